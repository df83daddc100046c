"""Feature spaces for tests: small fixed random convolutions, and functions of images, right ones and wrong ones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """A fixed random convolution whose responses are averaged over the image: features [n, 16]."""

    def __init__(self, channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(16, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
        self.convolution = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.convolution.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).relu().mean(dim=(2, 3))


def torchscript(path: Path, channels: int = 1, seed: int = 0) -> Path:
    """Save such a convolution as TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")
        torch.jit.script(Convolution(channels, seed)).save(str(path))
    return path


def pixels(images: Tensor) -> Tensor:
    """Return the pixels themselves, as they are given."""
    return images.flatten(1)


def as_array(images: Tensor) -> np.ndarray:
    return images.flatten(1).double().numpy()


def too_long(images: Tensor) -> Tensor:
    return images.flatten(1).float().repeat(2, 1)


def flat(images: Tensor) -> Tensor:
    return images.flatten().float()


def not_numbers(images: Tensor) -> Tensor:
    found = images.flatten(1).float()
    found[0, 0] = torch.nan
    return found


def infinite(images: Tensor) -> np.ndarray:
    return np.full((len(images), 2), np.inf)


def zeros(images: Tensor) -> Tensor:
    return torch.zeros(len(images), 3)


def a_list(images: Tensor) -> list[Any]:
    return [0.0] * len(images)


def texts(images: Tensor) -> np.ndarray:
    return np.full((len(images), 2), "a")


def complex_numbers(images: Tensor) -> Tensor:
    return torch.zeros(len(images), 2, dtype=torch.complex64)


def raising(_images: Tensor) -> Tensor:
    raise KeyError("weights")


def by_batch(images: Tensor) -> Tensor:
    """Return features whose length depends on how many images there are."""
    return torch.ones(len(images), len(images) % 7 + 1)


NO_FUNCTION = 3
