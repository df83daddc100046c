"""An audit of a dataset: which of its images are identical or nearly so, and how many are left without these."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffmem.cells import DATASETS, NEAR
from diffmem.data.collection import image_files
from diffmem.data.duplicates import Groups, find_groups
from diffmem.data.training_sets import load_source
from diffmem.errors import DataError, SizeError

Pixels = npt.NDArray[np.uint8]

SIDE = 96
"""Pixels of a picture's side, at most."""


@dataclass(frozen=True)
class ImageGroup:
    """Images of a dataset that count as one."""

    images: int
    identical: bool  # all of them with each other, as augmented
    members: list[int]  # positions in the dataset
    files: list[str]  # of a folder


@dataclass(frozen=True)
class Audit:
    """What was found of a dataset's images; a delta is a share of the scale."""

    dataset: str
    images: int
    width: int
    height: int
    delta: float
    augment: tuple[str, ...]
    identical: int  # images that are identical with another one
    nearly_identical: int  # others that differ from another one by less than delta, or are connected so
    distinct: int  # images that are left if each group counts as one
    groups: list[ImageGroup]  # of two images or more, the largest first
    notes: tuple[str, ...]  # what was done to the images when they were read
    pixels: Pixels = field(repr=False, compare=False)

    @property
    def largest(self) -> int:
        """Return how many images the largest group has; 1 where there are no groups."""
        return max((group.images for group in self.groups), default=1)

    def pictures(self, group: ImageGroup, most: int) -> list[bytes]:
        """Return the first images of a group as PNG."""
        return [_png(self.pixels[member]) for member in group.members[:most]]


def audit(dataset: str, *, resolution: int | None = None, delta: float = NEAR, augment: Sequence[str] = ()) -> Audit:
    """Return the groups of identical and nearly identical images of a dataset, given by name or path.

    Two images are in one group if the root mean square of their differences is below `delta` of the scale, or if other
    images connect them. With `augment` ("hflip", "shift"), augmented versions count too. `resolution` is in pixels a
    side; None keeps their own size. Raises DataError as `load_source`, and for an impossible delta or augmentation.
    """
    try:
        source = load_source(dataset, resolution, enlarge=resolution is not None)
    except SizeError as error:
        raise DataError(f"{error}; --resolution N crops and resizes them to N x N pixels") from error
    found = find_groups(source.images, delta=delta, augment=augment, thorough=True)
    files = [] if dataset in DATASETS else image_files(dataset)
    height, width = source.images.shape[2:]
    groups = _largest_first(found, files)
    alone = len(source.images) - sum(group.images for group in groups)
    return Audit(
        dataset=dataset,
        images=len(source.images),
        width=width,
        height=height,
        delta=delta,
        augment=tuple(augment),
        identical=found.identical,
        nearly_identical=found.alike - found.identical,
        distinct=alone + len(groups),
        groups=groups,
        notes=source.notes,
        pixels=source.images,
    )


def _largest_first(found: Groups, files: Sequence[str]) -> list[ImageGroup]:
    """Return the groups of two images or more, those of the first images before others of their size."""
    order = np.argsort(found.widest, kind="stable")
    _, starts = np.unique(found.widest[order], return_index=True)
    groups = [
        ImageGroup(
            len(members),
            identical=len(set(found.exact[members].tolist())) == 1,
            members=members.tolist(),
            files=[files[member] for member in members] if files else [],
        )
        for members in np.split(order, starts[1:])
        if len(members) > 1
    ]
    return sorted(groups, key=lambda group: (-group.images, group.members[0]))


def _png(image: Pixels) -> bytes:
    """Return an image [c, h, w] as PNG, with at most SIDE pixels a side."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
