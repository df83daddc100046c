"""What a measure of a denoiser is: numbers at each noise level, from training images and held-out ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Errors = npt.NDArray[np.float64]

ImageSet = Literal["training", "held_out", "both"]


@dataclass(frozen=True)
class LevelValue:
    """One number at one noise level, with its 95% interval."""

    quantity: str  # "loss_gap"
    images: ImageSet  # those that it is of
    sigma: float
    value: float
    low: float
    high: float
    n: int  # images behind it


@dataclass(frozen=True)
class SetErrors:
    """Squared errors per pixel of each image at each noise level, means over noise draws, float64 [n, levels].

    Images are in [-1, 1]; x is the clean image, z = x + sigma e the noisy one, D* the closed-form optimum.
    """

    loss: "Errors"  # ||D(z) - x||^2
    optimum_loss: "Errors"  # ||D*(z) - x||^2
    to_optimum: "Errors"  # ||D(z) - D*(z)||^2


@dataclass(frozen=True)
class LevelErrors:
    """What all measures of a denoiser are computed from, found once for all of them."""

    sigmas: Sequence[float]
    training: SetErrors
    held_out: SetErrors
    seed: int  # of what a measure draws itself: bootstrap, halves


@dataclass(frozen=True)
class DenoiserMeasure:
    """A measure of a denoiser: it generates no image and calls no image a copy, so there is no ratio by it."""

    name: str
    source: str
    finds: str  # what it measures, as a sentence goes on
    headline: str  # the quantity whose largest value stands for the checkpoint
    least: int  # images that it needs of either set
    values: Callable[[LevelErrors], list[LevelValue]]


def level_values(
    quantity: str,
    images: ImageSet,
    sigmas: Sequence[float],
    *,
    values: "Errors",
    ends: "tuple[Errors, Errors]",
    n: int,
) -> list[LevelValue]:
    """Return a value for each noise level, from values, and low and high ends, [levels] each."""
    numbers = zip(sigmas, values.tolist(), *(end.tolist() for end in ends), strict=True)
    return [LevelValue(quantity, images, sigma, value, low, high, n) for sigma, value, low, high in numbers]
