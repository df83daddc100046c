"""Groups of training images that are identical or nearly so, which hide copies of each other from the paper's measure.

d1 and d2 are then both small, so that a copy of such an image has no ratio below a third.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from diffmem.data.cache import entry_path, keep_facts, kept_facts
from diffmem.data.pixels import is_binary
from diffmem.errors import DataError

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

NEAR = 0.05
"""Root mean square of the differences, as a share of 255, below which two images are nearly identical."""
MOST = 100_000
"""Distinct images among which near ones are looked for; there are N^2 pairs of them."""
MOST_PAIRS, MOST_COMPARED = 5 * 10**6, 3 * 10**9
"""Pairs, and pixels of them, that are compared: some seconds of work."""
GRID = 8
"""Blocks a side whose means are compared first."""
ROWS = 2048


class Groups(NamedTuple):
    """The group of each image, int64 [n]: of identical ones, and of near ones; None where these were not looked for."""

    exact: Indices
    near: Indices | None

    def of(self, chosen: Indices) -> "Groups":
        """Return the groups of some of the images."""
        return Groups(self.exact[chosen], None if self.near is None else self.near[chosen])


class _TooManyAlike(Exception):
    """Too many pairs of images may be alike for all of them to be compared."""


def find_groups(images: Pixels) -> Groups:
    """Return the groups of images [n, c, h, w]: connected by pairs that differ by less than NEAR."""
    exact, first = _identical(images)
    if len(first) > MOST:
        return Groups(exact, None)
    try:
        pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *_near_pairs(images, first)])
    except _TooManyAlike:
        return Groups(exact, None)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(first), len(first)))
    return Groups(exact, connected_components(graph, directed=False)[1].astype(np.int64)[exact])


def note(groups: Groups) -> str:
    """Return in a sentence how many images are not the only ones of their group, and what follows; empty if none."""
    count = len(groups.exact)
    identical = _in_company(groups.exact)
    alike = identical if groups.near is None else _in_company(groups.near)
    unsought = "; nearly identical ones were not looked for among so many images" if groups.near is None else ""
    if not alike:
        return f"no training images are identical{unsought}" if unsought else ""
    kinds = {"identical": identical, "nearly identical": alike - identical}
    found = " and ".join(f"{many:,} are {kind}" for kind, many in kinds.items() if many)
    return (
        f"of {count:,} training images {found} with another one: a copy of such an image has two nearest ones about "
        f"equally far away and does not count as memorized, so the ratio may be too low{unsought}"
    )


def _in_company(groups: Indices) -> int:
    _, sizes = np.unique(groups, return_counts=True)
    return int(sizes[sizes > 1].sum())


def _identical(images: Pixels) -> tuple[Indices, Indices]:
    """Return the group of each image among identical ones, and the first image of each group."""
    known: dict[bytes, int] = {}
    exact = np.empty(len(images), dtype=np.int64)
    first: list[int] = []
    for number, image in enumerate(images):
        content = image.tobytes()
        key = content if len(content) <= 64 else hashlib.blake2b(content, digest_size=16).digest()
        exact[number] = known.setdefault(key, len(known))
        if len(known) > len(first):
            first.append(number)
    return exact, np.array(first, dtype=np.int64)


def _near_pairs(images: Pixels, first: Indices) -> Iterator[Indices]:
    """Yield the pairs [k, 2] of distinct images that differ by less than NEAR, as positions in `first`.

    Means of blocks differ by no more than the images do, so that pairs are looked at only where these are near.
    """
    near = NEAR * (1 if is_binary(images) else 255)
    limit = near**2 * images[0].size
    means, weights = _block_means(images, first)
    brightness = means @ weights / images[0].size  # the mean of all pixels, which differs by less than NEAR too
    order = np.argsort(brightness, kind="stable")
    means, brightness = means[order], brightness[order]
    norms, compared = np.square(means).sum(axis=1), 0
    for start in range(0, len(order), ROWS):
        stop = min(start + ROWS, len(order))
        end = int(np.searchsorted(brightness, brightness[stop - 1] + near + SLACK))
        for other in range(start, end, ROWS):
            until = min(other + ROWS, end)
            squared = norms[start:stop, None] + norms[None, other:until] - 2 * means[start:stop] @ means[other:until].T
            left, right = np.nonzero(squared < limit * (1 + SLACK) + 1)
            left, right = left + start, right + other
            ahead = left < right
            compared += int(ahead.sum())
            if compared > MOST_PAIRS or compared * images[0].size > MOST_COMPARED:
                raise _TooManyAlike
            yield from _checked(images, first, np.stack([order[left[ahead]], order[right[ahead]]], axis=1), limit)


SLACK = 1e-3
"""What rounding may take from a comparison of means."""


def _block_means(images: Pixels, first: Indices) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the means of blocks of each distinct image times the root of their pixels, float32 [n, blocks], and those
    roots [blocks]; l2 distances of the former are at most those of the images."""
    channels, height, width = images.shape[1:]
    rows, columns = (np.linspace(0, side, min(GRID, side) + 1).astype(int) for side in (height, width))
    pixels = np.outer(np.diff(rows), np.diff(columns))
    roots = np.broadcast_to(np.sqrt(pixels), (channels, *pixels.shape)).reshape(-1).astype(np.float32)
    means = np.empty((len(first), len(roots)), dtype=np.float32)
    for start in range(0, len(first), ROWS):
        some = images[first[start : start + ROWS]].astype(np.float32) - 128
        sums = np.add.reduceat(np.add.reduceat(some, rows[:-1], axis=2), columns[:-1], axis=3)
        means[start : start + len(some)] = sums.reshape(len(some), -1) / roots
    return means, roots


def _checked(images: Pixels, first: Indices, pairs: Indices, limit: float) -> Iterator[Indices]:
    """Yield those of some pairs whose images differ by less than the limit, squared and summed."""
    at_once = max(1, AT_ONCE // images[0].size)
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        left, right = (images[first[some[:, side]]].reshape(len(some), -1).astype(np.int32) for side in (0, 1))
        yield some[np.square(left - right).sum(axis=1) < limit]


AT_ONCE = 2**24
"""Pixels that are compared at once."""


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
