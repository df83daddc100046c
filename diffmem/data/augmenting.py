"""What augmentations make of an image: its pixels in other places."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.cells import AUGMENTATIONS
from diffmem.errors import DataError

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Transform(NamedTuple):
    """A mirror image, shifted by pixels to the right and down; the edge that a shift uncovers is repeated."""

    mirrored: bool = False
    right: int = 0
    down: int = 0

    def sources(self, height: int, width: int) -> tuple[Indices, Indices]:
        """Return the row, int64 [h, 1], and the column, int64 [w], that each pixel of the transformed image is from."""
        rows = np.clip(np.arange(height) - self.down, 0, height - 1)
        columns = np.clip(np.arange(width) - self.right, 0, width - 1)
        return rows[:, None], width - 1 - columns if self.mirrored else columns

    def of(self, images: Pixels) -> Pixels:
        """Return images [n, c, h, w] transformed."""
        rows, columns = self.sources(*images.shape[2:])
        transformed: Pixels = images[:, :, rows, columns]
        return transformed


def transforms_of(augment: Iterable[str]) -> list[Transform]:
    """Return what augmentations can make of an image, itself left out; DataError for one that diffmem does not know."""
    wanted = set(augment)
    for name in sorted(wanted - set(AUGMENTATIONS)):
        raise DataError(f"no augmentation {name!r}; there are {', '.join(AUGMENTATIONS)}")
    mirrored = (False, True) if "hflip" in wanted else (False,)
    shifts = (0, -1, 1) if "shift" in wanted else (0,)
    return [Transform(*each) for each in product(mirrored, shifts, shifts)][1:]
