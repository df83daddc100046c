"""Denoisers D(x; sigma): the preconditioned network, its training loss, and the closed-form optimum.

The three preconditionings are the rows of Table 1 of Karras et al. 2022, with the constants of Gu et al. 2023.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from diffmem.config import ModelConfiguration
from diffmem.unet import BOX, SMOOTH, UNet

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""c_skip, c_out, c_in, c_noise, each of the shape of sigma."""


class Preconditioning(Protocol):
    """How noise levels are drawn and weighted, and how network and noise are scaled."""

    sigma_min: float
    sigma_max: float

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` noise levels of training, float32 [count]."""
        ...

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of the loss at sigma."""
        ...

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return c_skip, c_out, c_in and c_noise at sigma."""
        ...


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


class VP:
    """Variance preserving: beta_d = 19.9, beta_min = 0.1, M = 1000, eps_t = 1e-5."""

    beta_d, beta_min, eps_t = 19.9, 0.1, 1e-5

    def __init__(self) -> None:
        self.sigma_min = float(self.sigma(torch.tensor(self.eps_t, dtype=torch.float64)))
        self.sigma_max = float(self.sigma(torch.tensor(1.0, dtype=torch.float64)))

    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t) = sqrt(exp(19.9 t^2 / 2 + 0.1 t) - 1)."""
        return (0.5 * self.beta_d * t**2 + self.beta_min * t).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """t(sigma), the inverse of sigma(t)."""
        root = (self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt()
        return (root - self.beta_min) / self.beta_d

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """sigma(t) with t = 1 + u (1e-5 - 1), u uniform."""
        return self.sigma(1 + _uniform(count, generator) * (self.eps_t - 1))

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return 1 / sigma**2

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """1, -sigma, 1 / sqrt(sigma^2 + 1), 999 t(sigma)."""
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), 999 * self.time(sigma)


class VE:
    """Variance exploding: sigma from 0.02 to 100, log-uniform."""

    sigma_min, sigma_max = 0.02, 100.0

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """0.02 * 5000^u, u uniform."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** _uniform(count, generator)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return 1 / sigma**2

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """1, sigma, 1, ln(sigma / 2)."""
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


class EDM:
    """Karras et al. 2022: sigma_data = 0.5, P_mean = -1.2, P_std = 1.2."""

    sigma_min, sigma_max = 0.0, float("inf")
    sigma_data, mean, std = 0.5, -1.2, 1.2

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """exp(-1.2 + 1.2 n), n normal."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (self.mean + self.std * normal).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + 0.25) / (0.5 sigma)^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """0.25 / v, 0.5 sigma / sqrt(v), 1 / sqrt(v), ln(sigma) / 4 with v = sigma^2 + 0.25."""
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        return c_skip, sigma * self.sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4


PRECONDITIONINGS: dict[str, type[VP] | type[VE] | type[EDM]] = {"vp": VP, "ve": VE, "edm": EDM}


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with F in `network`."""

    def __init__(self, network: UNet, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.sigma_min = preconditioning.sigma_min
        self.sigma_max = preconditioning.sigma_max

    def forward(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean images [n, c, h, w] in [-1, 1] from `noisy` at noise level `sigma` ([n] or scalar)."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=noisy.device).expand(len(noisy))
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma)
        residual = self.network(per_image(c_in) * noisy, c_noise, labels)
        denoised: Tensor = per_image(c_skip) * noisy + per_image(c_out) * residual.float()
        return denoised


def per_image(values: Tensor) -> Tensor:
    """Return [n] as [n, 1, 1, 1], to multiply images with."""
    return values.reshape(-1, 1, 1, 1)


def build_denoiser(
    M: ModelConfiguration, *, resolution: int, channels: int, labels: int = 0, seed: int = 0
) -> Denoiser:
    """Build the network of M with its preconditioning, in evaluation mode, with weights drawn from `seed`.

    `labels` is the number of classes, 0 for an unconditional network. ValueError where M is the optimum,
    which needs training images: see `OptimalDenoiser`.
    """
    if M.network == "optimum":
        raise ValueError("the optimum is no network: use OptimalDenoiser(training_images)")
    M = M.resolved(resolution)
    ncsnpp = M.network == "ncsn++"
    network = UNet(
        resolution=resolution,
        channels=channels,
        width=M.width,
        channel_mult=M.channel_mult,
        blocks=M.blocks,
        attention=M.attention or (),
        embedding=M.embedding or "positional",
        residual_encoder=ncsnpp,
        taps=SMOOTH if ncsnpp else BOX,
        skips=M.skip_mask,
        dropout=M.dropout,
        labels=labels,
        seed=seed,
    )
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


class OptimalDenoiser:
    """The denoiser that minimises the training loss over all functions (Gu et al. 2023, Eq. 2 and Appendix A).

    D*(z; sigma) = sum_n softmax_n(-||x_n - z||^2 / (2 sigma^2)) x_n over the training images x_n [N, c, h, w]
    in [-1, 1]; with `labels` [N], over the images of the wanted class only (A.3).
    """

    sigma_min, sigma_max = 0.0, float("inf")
    largest_block = 1 << 24  # entries of a distance matrix held at once

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images.flatten(1).double()
        self.norms = self.images.square().sum(dim=1)
        self.labels = labels

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Return the posterior mean [n, c, h, w], float32, of `noisy` at `sigma` ([n] or scalar).

        Raises ValueError for a label that no training image has: the mean over no images does not exist.
        """
        if labels is not None and self.labels is not None and not torch.isin(labels, self.labels).all():
            raise ValueError("a label that no training image has: its optimum does not exist")
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).expand(len(noisy))
        rows = max(1, self.largest_block // len(self.images))
        parts = []
        for start in range(0, len(noisy), rows):
            block = slice(start, start + rows)
            wanted = None if labels is None else labels[block]
            parts.append(self._mean(noisy[block].flatten(1).double(), sigma[block], wanted))
        return torch.cat(parts).reshape(noisy.shape).float()

    def _mean(self, z: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        # ||z||^2 is the same for all n, so the softmax does not need it
        logits = (z @ self.images.T - self.norms / 2) / sigma[:, None] ** 2
        if labels is not None and self.labels is not None:
            logits = logits.masked_fill(labels[:, None] != self.labels, -torch.inf)
        return logits.softmax(dim=1) @ self.images
