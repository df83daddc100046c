"""The denoiser D(x; sigma): a preconditioned network, and its training loss."""

import torch
from torch import Tensor, nn

from diffmem.cells import ModelConfiguration
from diffmem.models.preconditioning import PRECONDITIONINGS, Preconditioning
from diffmem.networks import Network, TrainedModel


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with F in `network`."""

    def __init__(self, network: Network, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.sigma_min = preconditioning.sigma_min
        self.sigma_max = preconditioning.sigma_max

    def forward(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean images [n, c, h, w] in [-1, 1] from `noisy` at noise level `sigma` ([n] or scalar)."""
        sigma = level(sigma, noisy.device).expand(len(noisy))
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma)
        residual = self.network(per_image(c_in) * noisy, c_noise, labels)
        denoised: Tensor = per_image(c_skip) * noisy + per_image(c_out) * residual.float()
        return denoised


def level(sigma: Tensor | float, device: torch.device) -> Tensor:
    """Return a noise level as a float32 tensor on a device, without waiting for the device where it is a number."""
    if isinstance(sigma, Tensor):
        return sigma.to(device, torch.float32)
    return torch.full((), sigma, dtype=torch.float32, device=device)


def per_image(values: Tensor) -> Tensor:
    """Return [n] as [n, 1, 1, 1], to multiply images with."""
    return values.reshape(-1, 1, 1, 1)


def build_denoiser(
    M: ModelConfiguration, *, resolution: int, channels: int, labels: int = 0, seed: int = 0
) -> Denoiser:
    """Build the untrained denoiser D(x; sigma) of M, in evaluation mode, with weights drawn from `seed`.

    Call it as `denoiser(noisy, sigma, labels=None)`: noisy images float32 [n, c, h, w], noise levels [n] or one number,
    labels int64 [n]. It returns the clean images that it estimates, float32 [n, c, h, w] in about -1..1. `resolution`
    is in pixels a side, and `labels` is the number of classes, 0 for an unconditional network. Raises ValueError if
    M has no network to train (the optimum).
    """
    if not isinstance(M, TrainedModel):
        raise ValueError(M.refusal)
    network = M.build(resolution=resolution, channels=channels, labels=labels, seed=seed)
    return Denoiser(network, PRECONDITIONINGS[M.precondition]()).eval()


def draw_noise(denoiser: Denoiser, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what a training step adds: noise levels [n] and standard normal noise of `shape` [n, c, h, w]."""
    sigma = denoiser.preconditioning.draw_sigma(shape[0], generator)
    return sigma, torch.randn(shape, generator=generator, device=generator.device)


def loss(denoiser: Denoiser, clean: Tensor, *, sigma: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return weight(sigma) ||D(x + sigma n; sigma) - x||^2 for each image, [n] (Gu et al. 2023, Eq. 1).

    `clean` and `noise` are [n, c, h, w], `sigma` [n]; the sum runs over pixels.
    """
    denoised = denoiser(clean + per_image(sigma) * noise, sigma, labels)
    squared_error: Tensor = (denoised - clean).square().sum(dim=(1, 2, 3))
    return denoiser.preconditioning.weight(sigma) * squared_error
