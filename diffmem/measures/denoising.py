"""Denoising errors by noise level: what the measures of a denoiser are computed from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmem.errors import OutOfMemory
from diffmem.models import DenoiserFunction, ran_out_of_memory, sampler_levels
from diffmem.randomness import stream

LEVELS = 18
"""Noise levels: those of the paper's sampler, however many the images of a study are generated with."""
DENOISING_IMAGES = 150
"""Images of either set, at most: with two draws these are 10,800 evaluations, 3% of those behind 10,000 images."""
DRAWS = 2
"""Noise draws an image."""
BANK = 8
"""Noise draws that the bank has of an image; the first ones are the same ones however many are used."""


def noise_bank(indices: Sequence[int], *, name: str, seed: int, draws: int, shape: Sequence[int]) -> Tensor:
    """Return the first draws of the noise of images number `indices` of a set, float32 [n, draws, c, h, w].

    It depends on (set, seed, image, draw) alone, and is drawn on the CPU. ValueError for more draws than the bank has.
    """
    if not 1 <= draws <= BANK:
        raise ValueError(f"the noise bank has 1 to {BANK} draws an image, not {draws}")
    streams = (stream(f"noise bank/{name}", seed, BANK * i + k) for i in indices for k in range(draws))
    return torch.stack([torch.randn(*shape, generator=each) for each in streams]).reshape(-1, draws, *shape)


@torch.inference_mode()
def denoising_errors(
    denoiser: DenoiserFunction,
    optimum: DenoiserFunction,
    clean: Tensor,
    labels: Tensor | None = None,
    *,
    name: str,
    seed: int,
    rows: range | None = None,
    draws: int = DRAWS,
    at_once: int = 500,
) -> Tensor:
    """Return the squared errors per pixel of images at each noise level, averaged over draws, float64 [n, levels, 3].

    The three errors are ||D(z) - x||^2, ||D*(z) - x||^2 and ||D(z) - D*(z)||^2 at z = x + sigma e (Gu et al. 2023,
    Eq. 2 and App. A). `clean` are images x, float32 [n, c, h, w] in -1..1, and `labels` their classes [n]; `rows` picks
    some of them. The noise e depends only on `seed`, the set's `name`, the image and the draw. At most `at_once` images
    are denoised together, fewer if memory runs out.
    """
    wanted = range(len(clean)) if rows is None else rows
    sigmas = sampler_levels(denoiser, LEVELS)
    found, size = [torch.empty(0, len(sigmas), 3, dtype=torch.float64)], max(1, at_once // draws)
    done = 0
    while done < len(wanted):
        batch = wanted[done : done + size]
        try:
            noise = noise_bank(batch, name=name, seed=seed, draws=draws, shape=clean.shape[1:]).to(clean.device)
            of_batch = None if labels is None else labels[batch.start : batch.stop]
            part = _errors(denoiser, optimum, clean[batch.start : batch.stop], of_batch, noise, sigmas)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if size == 1:
                raise OutOfMemory from error
            size = (len(batch) + 1) // 2
            continue
        found.append(part)
        done += len(batch)
    return torch.cat(found)


def _errors(
    denoiser: DenoiserFunction,
    optimum: DenoiserFunction,
    clean: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    sigmas: Sequence[float],
) -> Tensor:
    """Return the errors of images [n, c, h, w] with noise [n, draws, c, h, w] at each level."""
    draws = noise.shape[1]
    x = clean.repeat_interleave(draws, dim=0)
    label = None if labels is None else labels.repeat_interleave(draws)
    levels = []
    for sigma in sigmas:
        noisy = x + sigma * noise.flatten(0, 1)
        own, best = denoiser(noisy, sigma, label), optimum(noisy, sigma, label)
        errors = [
            (one.double() - other.double()).square().flatten(1).mean(dim=1)
            for one, other in ((own, x), (best, x), (own, best))
        ]
        levels.append(torch.stack(errors, dim=1).reshape(-1, draws, 3).mean(dim=1))
    return torch.stack(levels, dim=1).cpu()
