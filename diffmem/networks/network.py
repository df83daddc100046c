"""What the training loop asks of every raw network F, and dropout whose masks it draws."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn


class DenoiserFunction(Protocol):
    """D(noisy, sigma, labels) and the noise levels that it knows."""

    sigma_min: float
    sigma_max: float

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean images."""
        ...


class Dropout(nn.Module):
    """Drop activations [n, *shape] with a mask that the training loop has drawn anew for every step."""

    def __init__(self, rate: float, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.rate, self.shape = rate, shape
        self.mask: Tensor | None = None

    def draw(self, generator: torch.Generator, *, rows: slice, total: int) -> None:
        """Draw the masks of `total` images and keep those of `rows`: 0 for a share `rate`, else 1 / (1 - rate)."""
        if self.rate > 0:
            count = total * math.prod(self.shape)
            # 32 random bits an element: on a CPU, Tensor.bernoulli_ takes several times as long to draw them
            words = torch.empty((count + 1) // 2, dtype=torch.int64, device=generator.device)
            bits = words.random_(-(2**63), None, generator=generator).view(torch.int32)[:count]
            kept = bits.view(total, *self.shape)[rows] >= round((self.rate - 0.5) * 2**32)
            self.mask = torch.where(kept, 1 / (1 - self.rate), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of x and scale the rest by 1 / (1 - rate), in training only."""
        if not self.training or self.rate == 0:
            return x
        if self.mask is None:
            raise RuntimeError("a network in training mode needs draw_dropout(generator, total=...) before each step")
        return x * self.mask.to(x.dtype)


class Network(nn.Module):
    """A raw network F: `forward(x, c_noise, labels)` maps [n, c, h, w], [n] and class indices [n] to [n, c, h, w]."""

    layout = torch.contiguous_format
    """How activations lie in memory; `torch.channels_last` is what a GPU's convolutions like best."""

    def draw_dropout(self, generator: torch.Generator, *, total: int, rows: slice = slice(None)) -> None:
        """Draw the dropout masks of the next training pass from `generator`, in the order of the layers.

        Masks are drawn for `total` images, and the images passed are `rows` of them.
        """
        for module in self.modules():
            if isinstance(module, Dropout):
                module.draw(generator, rows=rows, total=total)

    def forget_dropout(self) -> None:
        """Free the memory of the dropout masks, until they are drawn again."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.mask = None
