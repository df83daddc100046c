"""Generated images: EDM's deterministic Heun sampler (Karras et al. 2022, Algorithm 1) from named latents."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffmem.networks import DenoiserFunction as DenoiserFunction
from diffmem.randomness import stream


def noise_levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return `steps` noise levels from sigma_max down to sigma_min and then 0, float64 [steps + 1]."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = torch.pow(high + ramp * (low - high), rho)
    return torch.cat([levels, levels.new_zeros(1)])


def sampler_levels(denoiser: DenoiserFunction, steps: int) -> list[float]:
    """Return the noise levels that the sampler goes through with a denoiser, from the highest down, without 0."""
    low, high = max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
    levels: list[float] = noise_levels(steps, low, high)[:-1].tolist()
    return levels


@torch.inference_mode()
def heun(denoiser: DenoiserFunction, latents: Tensor, labels: Tensor | None = None, *, steps: int = 18) -> Tensor:
    """Generate images from standard normal `latents` [n, c, h, w] with EDM's Heun sampler (Karras et al. 2022, Alg. 1).

    Returns float64 [n, c, h, w], in about -1..1. `labels` is int64 [n]. `steps` noise levels take 2 * steps - 1
    evaluations of the denoiser, which sees float32.
    """
    levels = [*sampler_levels(denoiser, steps), 0.0]
    x = latents.double() * levels[0]
    for sigma, next_sigma in pairwise(levels):
        slope = _slope(denoiser, x, sigma, labels)
        if next_sigma > 0:
            euler = x + (next_sigma - sigma) * slope
            slope = (slope + _slope(denoiser, euler, next_sigma, labels)) / 2
        x = x + (next_sigma - sigma) * slope
    return x


def _slope(denoiser: DenoiserFunction, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma."""
    return (x - denoiser(x.float(), sigma, labels).double()) / sigma


def latents(indices: Sequence[int], *, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Return the standard normal latents of generated images `indices`, float64 [n, c, h, w].

    Image i depends on (seed, i) alone and is drawn on the CPU, so it is the same image on every device.
    """
    return torch.stack([torch.randn(shape, dtype=torch.float64, generator=stream("latents", seed, i)) for i in indices])


def sample_labels(indices: Sequence[int], *, labels: int, seed: int) -> Tensor:
    """Return the label of each generated image of `indices`, uniform in 0..labels-1, int64 [n]."""
    draws = [torch.randint(labels, (1,), generator=stream("labels", seed, i)) for i in indices]
    return torch.cat(draws)


def quantise(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8 by clip(128 + 127.5 x, 0, 255), as the paper's code writes them."""
    levels: Tensor = (images * 127.5 + 128).clip(0, 255)
    return levels.to(torch.uint8)


def generate(
    denoiser: DenoiserFunction,
    indices: Sequence[int],
    *,
    shape: tuple[int, int, int],
    labels: int,
    seed: int,
    steps: int,
    device: torch.device,
) -> Tensor:
    """Generate images number `indices` of `seed`, uint8 [n, c, h, w] on `device`; `labels` classes, 0 for none."""
    wanted = sample_labels(indices, labels=labels, seed=seed).to(device) if labels else None
    return quantise(heun(denoiser, latents(indices, shape=shape, seed=seed).to(device), wanted, steps=steps))
