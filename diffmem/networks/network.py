"""What the training loop asks of every raw network F, and dropout whose masks it draws."""

import math
from collections.abc import Sequence
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
        self.kept: Tensor | None = None

    def draw(self, generator: torch.Generator, *, rows: slice, total: int, layout: torch.memory_format) -> None:
        """Draw which activations of `total` images are kept, all but a share `rate`, and hold those of `rows`.

        On a GPU they are drawn with the channels last, in the order in which compiled networks read them.
        """
        if self.rate > 0:
            count = total * math.prod(self.shape)
            # 32 random bits an element: on a CPU, Tensor.bernoulli_ takes several times as long to draw them
            words = torch.empty((count + 1) // 2, dtype=torch.int64, device=generator.device)
            bits = words.random_(-(2**63), None, generator=generator).view(torch.int32)[:count]
            kept = self._in_order(bits, total)[rows] >= round((self.rate - 0.5) * 2**32)
            self.kept = kept.contiguous(memory_format=layout)

    def _in_order(self, bits: Tensor, total: int) -> Tensor:
        channels, height, width = self.shape
        if bits.is_cuda:
            return bits.view(total, height, width, channels).permute(0, 3, 1, 2)
        return bits.view(total, *self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of x and scale the rest by 1 / (1 - rate), in training only."""
        if not self.training or self.rate == 0:
            return x
        if self.kept is None:
            raise RuntimeError("a network in training mode needs draw_dropout(generator, total=...) before each step")
        return torch.where(self.kept, x * (1 / (1 - self.rate)), 0.0)


class Network(nn.Module):
    """A raw network F: `forward(x, c_noise, labels)` maps [n, c, h, w], [n] and class indices [n] to [n, c, h, w]."""

    layout = torch.contiguous_format
    """How activations lie in memory; with `torch.channels_last` compiled networks are fastest on a GPU."""

    def draw_dropout(self, generator: torch.Generator, *, total: int, rows: slice = slice(None)) -> list[Tensor]:
        """Draw the dropout masks of the next training pass from `generator`, in the order of the layers; return them.

        Masks are drawn for `total` images, and the images passed are `rows` of them.
        """
        for layer in self._dropouts():
            layer.draw(generator, rows=rows, total=total, layout=self.layout)
        return [layer.kept for layer in self._dropouts() if layer.kept is not None]

    def use_dropout(self, masks: Sequence[Tensor]) -> None:
        """Take these masks, as `draw_dropout` returned them, for the next training pass."""
        for layer, mask in zip((each for each in self._dropouts() if each.rate > 0), masks, strict=True):
            layer.kept = mask

    def forget_dropout(self) -> None:
        """Free the memory of the dropout masks, until they are drawn again."""
        for layer in self._dropouts():
            layer.kept = None

    def _dropouts(self) -> list[Dropout]:
        return [module for module in self.modules() if isinstance(module, Dropout)]
