"""Groups of training images that are identical or nearly so, which hide copies of each other from the paper's measure.

d1 and d2 are then both small, so that a copy of such an image has no ratio below a third.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.cells import NEAR
from diffmem.data.augmenting import Transform, transforms_of
from diffmem.data.cache import entry_path, keep_facts, kept_facts
from diffmem.data.near import TooManyAlike, join_near, joined
from diffmem.data.pixels import is_binary
from diffmem.errors import DataError
from diffmem.text import counted

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

MOST = 100_000
"""Distinct images among which near ones are looked for to warn of them; there are N^2 pairs of them."""


class Groups(NamedTuple):
    """The group of each image, int64 [n]: of identical ones, and of near ones; None where these were not looked for."""

    exact: Indices
    near: Indices | None

    @property
    def identical(self) -> int:
        """Return how many images are identical with another one."""
        return _in_company(self.exact)

    @property
    def alike(self) -> int:
        """Return how many images are identical or nearly identical with another one, as far as it was looked for."""
        return _in_company(self.widest)

    @property
    def widest(self) -> Indices:
        """Return the group of each image, of near ones if these were looked for, else of identical ones."""
        return self.exact if self.near is None else self.near

    def of(self, chosen: Indices) -> "Groups":
        """Return the groups of some of the images."""
        return Groups(self.exact[chosen], None if self.near is None else self.near[chosen])


def find_groups(images: Pixels, *, delta: float = NEAR, augment: Iterable[str] = (), thorough: bool = False) -> Groups:
    """Return the groups of images [n, c, h, w]: connected by pairs that differ by less than `delta`, the root mean
    square of pixels as a share of the scale.

    With `augment`, an image may also be like what these augmentations make of another one. Near ones are not looked for
    if that takes minutes, unless it is to be `thorough`. DataError for an augmentation or a delta that cannot be.
    """
    if not 0 < delta < 1:
        raise DataError(f"delta must be above 0 and below 1, a share of the scale of pixels, not {delta:g}")
    transforms = transforms_of(augment)
    kinds, first = _distinct(images)
    alike = _joined_by(transforms, images, first)
    near = None
    if thorough or len(first) <= MOST:
        scaled = delta * (1 if is_binary(images) else 255)
        with suppress(TooManyAlike):
            near = join_near(images, first, alike, scaled, transforms=transforms, thorough=thorough)[kinds]
    return Groups(alike[kinds], near)


def identical_groups(images: Pixels, *, augment: Iterable[str] = ()) -> Indices:
    """Return the group of each of images [n, c, h, w]: of those that are identical, or that these augmentations make
    of each other; DataError for an augmentation that diffmem does not know."""
    kinds, first = _distinct(images)
    return _joined_by(transforms_of(augment), images, first)[kinds]


def note(groups: Groups) -> str:
    """Return in a sentence how many images are not the only ones of their group, and what follows; empty if none."""
    count = len(groups.exact)
    identical, alike = groups.identical, groups.alike
    unsought = "; nearly identical ones were not looked for among so many images" if groups.near is None else ""
    if not alike:
        return f"no training images are identical{unsought}" if unsought else ""
    kinds = {"identical": identical, "nearly identical": alike - identical}
    found = " and ".join(f"{many:,} are {kind}" for kind, many in kinds.items() if many)
    return (
        f"of {count:,} training images {found} with another one: a copy of such an image has two nearest ones about "
        "equally far away and does not count as memorized, so the ratio may be too low; the measure grouped takes them "
        f"for {counted(_several(groups.widest), 'image')}{unsought}"
    )


def _in_company(groups: Indices) -> int:
    _, sizes = np.unique(groups, return_counts=True)
    return int(sizes[sizes > 1].sum())


def _several(groups: Indices) -> int:
    """Return how many groups have more than one image."""
    _, sizes = np.unique(groups, return_counts=True)
    return int((sizes > 1).sum())


def _distinct(images: Pixels) -> tuple[Indices, Indices]:
    """Return the number of each image among distinct ones, and the first image of each number."""
    known: dict[bytes, int] = {}
    kinds = np.empty(len(images), dtype=np.int64)
    first: list[int] = []
    for number, image in enumerate(images):
        kinds[number] = known.setdefault(_key(image), len(known))
        if len(known) > len(first):
            first.append(number)
    return kinds, np.array(first, dtype=np.int64)


def _joined_by(transforms: Sequence[Transform], images: Pixels, first: Indices) -> Indices:
    """Return the group of each distinct image among those of which transforms make another one."""
    labels = np.arange(len(first))
    known = {_key(images[number]): kind for kind, number in enumerate(first)} if transforms else {}
    for transform in transforms:
        made = [known.get(_key(transform.of(images[number : number + 1]))) for number in first]
        pairs = [(kind, other) for kind, other in enumerate(made) if other is not None]
        left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        labels = joined(labels, left, right)
    return labels


def _key(image: Pixels) -> bytes:
    """Return what tells the content of an image from any other."""
    content = image.tobytes()
    return content if len(content) <= 64 else hashlib.blake2b(content, digest_size=16).digest()


# --- kept with the images ------------------------------------------------------------------------------


def groups_of(entry: str) -> Groups | None:
    """Return the groups of an entry of the cache that are known; None if they were not looked for yet."""
    facts = kept_facts(_place(entry))
    if facts is None or facts.get("near") != NEAR:
        return None
    exact, near = (_decoded(facts[name]) for name in ("exact_groups", "near_groups"))
    return None if exact is None else Groups(exact, near)


def keep_groups(entry: str, groups: Groups) -> None:
    """Keep the groups of an entry of the cache."""
    facts = {"near": NEAR, "exact_groups": _encoded(groups.exact), "near_groups": _encoded(groups.near)}
    with suppress(DataError):  # they are looked for again next time
        keep_facts(_place(entry), facts)


def _place(entry: str) -> Path:
    return entry_path(entry).with_suffix(".groups")


def _encoded(groups: Indices | None) -> str | None:
    return None if groups is None else base64.b64encode(zlib.compress(groups.astype("<i8").tobytes())).decode()


def _decoded(text: str | None) -> Indices | None:
    return None if text is None else np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i8")
