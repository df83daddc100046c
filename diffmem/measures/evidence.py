"""The evidence behind a memorization ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class MeasureEvidence:
    """What one measure beside the paper's has found of each generated image."""

    nearest: npt.NDArray[np.int64]  # [samples], positions in the training set
    distance: npt.NDArray[np.float64]  # [samples]
    yardstick: npt.NDArray[np.float64]  # [samples]
    copies: int  # images that are copies, at the measure's own threshold


class Pictured(NamedTuple):
    """A generated image and its two nearest training images, as PNG."""

    generated: bytes
    nearest: bytes
    second: bytes
    second_nearest: int  # its position in the training set
    name: str | None = None  # of the generated image, where another tool made it: its file, or its place
    copy_of: str | None = None  # what it is a copy of, if that is a mirrored, shifted or doubled training image


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is behind a memorization ratio: of each generated image its nearest training image and the two distances."""

    nearest: npt.NDArray[np.int64]  # [samples], positions in the training set
    d1: npt.NDArray[np.float64]  # [samples], l2 on the 0..255 scale
    d2: npt.NDArray[np.float64]  # [samples]
    memorized: int
    pairs: Sequence[Pictured] = field(default=())  # of samples 0, 1, ...
    copied: Sequence[tuple[int, bytes]] = field(default=())  # position and PNG of the training images copied most
    others: Mapping[str, MeasureEvidence] = field(default_factory=dict)  # of other measures than the paper's, by name

    @property
    def samples(self) -> int:
        """Return the number of generated images."""
        return len(self.nearest)

    @property
    def ratio(self) -> float:
        """Return the memorization ratio, in 0..1."""
        return self.memorized / self.samples
