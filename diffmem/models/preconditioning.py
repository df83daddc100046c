"""The three preconditionings: the rows of Table 1 of Karras et al. 2022, with the constants of Gu et al. 2023."""

from typing import Protocol

import torch
from torch import Tensor

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
