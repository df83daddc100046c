"""What scoring the images of another tool finds."""

from collections.abc import Callable
from dataclasses import dataclass

from diffmem.external.matches import Match
from diffmem.measures import QualityValue
from diffmem.store import Measurement


@dataclass(frozen=True)
class Copied:
    """A training image that memorized images are nearest to."""

    nearest: int  # position in the training set
    copies: int
    file: str  # or dataset and position there


@dataclass(frozen=True)
class MeasureNull:
    """What a measure beside the paper's says of held-out images."""

    measure: str
    ratio: float  # share of them that is called copies
    samples: int
    threshold: float | None  # at which at most 1% of them are, as the measure's rule says it; None: any


@dataclass(frozen=True)
class Score:
    """What was found: the memorization ratio with its 95% Wilson interval, and what is copied."""

    study: str
    samples: int
    memorized: int
    low: float
    high: float
    size: int  # training images
    mirrored: int | None  # images that are copies of a mirrored or shifted training image; None: not looked for
    duplicated: int | None  # images that are copies of one that the training set has more than once; None: likewise
    identical: int  # images that are a training image, pixel by pixel
    matches: Callable[[], list[Match]]  # what each image is nearest to, the most similar first
    replicated: int  # training images that a memorized image is nearest to
    most_copied: list[Copied]  # ten of them at most
    twins: int  # training images that another one is identical with, whose copies are never memorized: d1 = d2
    notes: tuple[str, ...]  # what was done to images when they were read, and what else the ratio depends on
    null_ratio: float | None  # share of held-out images that are called copies; None without any
    null_samples: int  # held-out images
    null_mirrored: int | None  # of these that are copies of a mirrored or shifted one; None: not looked for, or given
    null_duplicated: int | None  # likewise of one that is there more than once
    p_value: float | None  # the chance of so many copies if held-out images are called that as often
    measurements: list[Measurement]  # by other measures than the paper's
    grouped_ratio: float | None  # the ratio between groups of training images, if one of `measures` is
    nulls: list[MeasureNull]  # by measures beside the paper's
    quality: list[QualityValue]  # how good the images are, if that was asked for

    @property
    def ratio(self) -> float:
        """Return the memorized share, in 0..1."""
        return self.memorized / self.samples
