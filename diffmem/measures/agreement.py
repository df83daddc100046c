"""How far models of two halves agree: cosine and PSNR, the reproducible share and generalization, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diffmem.measures.bootstrap import ends, resampled
from diffmem.measures.intervals import wilson
from diffmem.measures.spaces import Space

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]


def _centred(images: "Tensor") -> "Tensor":
    pixels = images.flatten(1).double()
    return pixels - pixels.mean(dim=1, keepdim=True)


CENTRED_PIXELS = Space("centred pixels", _centred)
"""The values of the pixels minus the image's own mean: a cosine of them is the correlation of two images."""

SIMILAR = 0.95
"""The similarity t above which two images are the same, in centred pixels; diffmem's own, as no paper has one there."""


@dataclass(frozen=True)
class HalfPairs:
    """What is found of each pair of generated images, float64 [n]; nan where there is none."""

    similarity: Array  # of both models' images of one latent
    mse: Array  # mean squared difference of these, of pixels in 0..1
    mismatched: Array  # similarity of half a's image and half b's of another latent: the null
    mismatched_mse: Array
    nearest_a: Array  # largest similarity of half a's image to its training images
    nearest_b: Array
    held_out_a: Array  # that of a held-out image to the training images of half a: the null
    held_out_b: Array


@dataclass(frozen=True)
class Bounded:
    """A number with its 95% interval over latents, and how many stand behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Agreement:
    """How far the images of two models of one latent agree, each number beside its null."""

    cosine: Bounded  # mean similarity of a pair
    cosine_null: Bounded | None  # with mismatched latents; None: no latent has another one of its label
    psnr: Bounded  # -10 log10 of the mean squared difference on 0..1, in dB; inf: all pairs are identical
    psnr_null: Bounded | None
    reproducible: Bounded  # RP: share of pairs more alike than t
    reproducible_null: Bounded | None
    generalization: Bounded  # GL: 1 - share of images more alike than t to a training image of their model
    generalization_null: Bounded | None  # of held-out images; None: none is left


def agreement(
    pairs: tuple[Sequence[float], Sequence[float]],
    mismatched: tuple[Sequence[float], Sequence[float]],
    nearest: tuple[Sequence[float], Sequence[float]],
    held_out: tuple[Sequence[float], Sequence[float]],
    *,
    threshold: float = SIMILAR,
    seed: int = 0,
) -> Agreement:
    """Return what pairs of images say (Kadkhodaie et al. 2024; Zhang et al. 2024).

    `pairs` and `mismatched` are similarity and mean squared difference [n] each; `nearest` and `held_out` the largest
    similarities [n] to the training images of either half. `mismatched` and `held_out` can be of fewer, or none.
    """
    (similar, mse), (other, other_mse) = _arrays(pairs), _arrays(mismatched)
    own, unseen = _arrays(nearest), _arrays(held_out)
    return Agreement(
        mean(similar, seed=seed),
        mean(other, seed=seed) if len(other) else None,
        psnr(mse, seed=seed),
        psnr(other_mse, seed=seed) if len(other) else None,
        share_above(similar, threshold),
        share_above(other, threshold) if len(other) else None,
        generalization(*own, threshold),
        generalization(*unseen, threshold) if len(unseen[0]) else None,
    )


def _arrays(values: tuple[Sequence[float], Sequence[float]]) -> tuple[Array, Array]:
    return np.asarray(values[0], dtype=np.float64), np.asarray(values[1], dtype=np.float64)


def mean(values: Array, *, seed: int) -> Bounded:
    """Return the mean of values [n] with its bootstrap interval."""
    low, high = ends(values.mean(), resampled(len(values), name="halves", seed=seed) @ values)
    return Bounded(float(values.mean()), float(low), float(high), len(values))


def psnr(mse: Array, *, seed: int) -> Bounded:
    """Return -10 log10 of the mean of squared differences [n] on 0..1, in dB; inf where all are 0."""
    found = mean(mse, seed=seed)
    return Bounded(_decibels(found.value), _decibels(found.high), _decibels(found.low), found.n)


def _decibels(mse: float) -> float:
    return -10 * float(np.log10(mse)) if mse > 0 else float("inf")


def share_above(values: Array, threshold: float) -> Bounded:
    """Return the share of values [n] above a threshold, with Wilson's interval; RP of similarities of pairs."""
    share = float((values > threshold).mean())
    low, high = wilson(share, len(values)).tolist()
    return Bounded(share, low, high, len(values))


def generalization(first: Array, second: Array, threshold: float) -> Bounded:
    """Return 1 - the share of images of two models whose largest similarity [n] each to training images is above a
    threshold, with Wilson's interval of n images, as those of one latent depend on each other."""
    copied = float(np.mean([first > threshold, second > threshold]))
    low, high = wilson(copied, len(first)).tolist()
    return Bounded(1 - copied, 1 - high, 1 - low, len(first))
