"""Which images differ by little, looked for among all pairs of them in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.data.augmenting import Transform
from diffmem.data.decoding import progress

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MOST_PAIRS, MOST_COMPARED = 5 * 10**6, 3 * 10**9
"""Pairs, and pixels of them, that are compared for a warning: some seconds of work."""
GRID = 8
"""Blocks a side whose means are compared first."""
ROWS = 2048
"""Images whose means are compared at once with as many others."""
AT_ONCE = 2**24
"""Pixels that are compared at once."""
SPARSE = 64
"""Pairs that a matrix product compares in the time in which one is compared by itself."""
EXACT_TERMS = 1024
"""Products of two values in -128..127 whose float32 sum is exact, whatever the order."""
SLACK = 1e-3
"""What rounding may take from the mean of an image."""
ROUNDING = 2.0**-24
"""Relative rounding of one float32 addition."""


class TooManyAlike(Exception):
    """Too many pairs of images may be alike for all of them to be compared for a warning."""


def joined(labels: Indices, left: Indices, right: Indices) -> Indices:
    """Return the group of each image, named by its first member, once the images left and right of pairs are joined."""
    if not len(left):
        return labels
    from scipy.sparse import coo_matrix  # half a second that most commands do without
    from scipy.sparse.csgraph import connected_components

    names, ends = np.unique(np.concatenate([labels[left], labels[right]]), return_inverse=True)
    edges = (np.ones(len(left)), (ends[: len(left)], ends[len(left) :]))
    _, parts = connected_components(coo_matrix(edges, shape=(len(names), len(names))), directed=False)
    first = np.full(len(names), len(labels), dtype=np.int64)
    np.minimum.at(first, parts, names)
    table = np.arange(len(labels))
    table[names] = first[parts]
    return table[labels]


def join_near(
    images: Pixels,
    chosen: Indices,
    labels: Indices,
    near: float,
    *,
    transforms: list[Transform],
    thorough: bool,
) -> Indices:
    """Return the groups of chosen images once those are joined of which one differs from the other, or from what a
    transform makes of it, by less than `near`, the root mean square of pixels.

    `labels` are the groups before. Raises TooManyAlike if so many pairs are to be compared that it takes minutes,
    unless it is to be `thorough`.
    """
    limit, tell = near**2 * images[0].size, progress.get()
    plain = _sketched(images, chosen, None)
    compared = 0
    ways = [None, *transforms]
    for number, transform in enumerate(ways):
        sketch = plain if transform is None else _sketched(images, chosen, transform)
        for done, left, right in _candidates(sketch, plain, near, limit):
            apart = labels[left] != labels[right]  # those that are joined already need no look
            left, right = left[apart], right[apart]
            compared += len(left)
            if not thorough and (compared > MOST_PAIRS or compared * images[0].size > MOST_COMPARED):
                raise TooManyAlike
            close = _squared(images, chosen[left], chosen[right], transform) < limit
            labels = joined(labels, left[close], right[close])
            if thorough:
                tell("comparing", number * len(chosen) + done, len(ways) * len(chosen))
    return labels


# --- what is compared first ----------------------------------------------------------------------------


class _Sketch(NamedTuple):
    """Means of images, the darkest image first; they differ by no more than the images do."""

    order: Indices  # positions of the images
    brightness: npt.NDArray[np.float64]  # the mean of all pixels
    means: Floats  # [n, blocks], of blocks, times the root of their pixels
    norms: Floats  # squared, of the means


def _sketched(images: Pixels, chosen: Indices, transform: Transform | None) -> _Sketch:
    channels, height, width = images.shape[1:]
    rows, columns = (np.linspace(0, side, min(GRID, side) + 1).astype(int) for side in (height, width))
    pixels = np.outer(np.diff(rows), np.diff(columns))
    roots = np.broadcast_to(np.sqrt(pixels), (channels, *pixels.shape)).reshape(-1).astype(np.float32)
    means = np.empty((len(chosen), len(roots)), dtype=np.float32)
    brightness = np.empty(len(chosen))
    for part in _parts(len(chosen), images[0].size):
        some = _read(images, chosen[part], transform)
        sums = np.add.reduceat(np.add.reduceat(some, rows[:-1], axis=2), columns[:-1], axis=3)
        means[part] = sums.reshape(len(some), -1) / roots
        brightness[part] = some.mean(axis=(1, 2, 3), dtype=np.float64)
    order = np.argsort(brightness, kind="stable")
    means = means[order]
    return _Sketch(order, brightness[order], means, np.square(means).sum(axis=1))


def _candidates(one: _Sketch, other: _Sketch, near: float, limit: float) -> Iterator[tuple[int, Indices, Indices]]:
    """Yield pairs of images that may differ by less than `near`, each pair of one sketch once, and how many images are
    through with."""
    count, terms = len(one.order), one.means.shape[1]
    rounding = 2 * (terms + 4) * ROUNDING * (one.norms.max() + other.norms.max())
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        darkest, brightest = one.brightness[[start, stop - 1]]
        begin = int(np.searchsorted(other.brightness, darkest - near - SLACK)) if one is not other else start
        end = int(np.searchsorted(other.brightness, brightest + near + SLACK))
        for first in range(begin, end, ROWS):
            last = min(first + ROWS, end)
            squared = one.means[start:stop] @ other.means[first:last].T
            squared *= -2
            squared += one.norms[start:stop, None]
            squared += other.norms[first:last]
            left, right = np.nonzero(squared < limit + rounding)
            left, right = left + start, right + first
            if one is other:
                ahead = left < right
                left, right = left[ahead], right[ahead]
            yield stop, one.order[left], other.order[right]


# --- exactly -------------------------------------------------------------------------------------------


def _squared(images: Pixels, left: Indices, right: Indices, transform: Transform | None) -> npt.NDArray[np.float64]:
    """Return the squared l2 distance of each pair of an image on the left, transformed, and one on the right."""
    (lefts, row), (rights, column) = (np.unique(side, return_inverse=True) for side in (left, right))
    if len(lefts) * len(rights) <= SPARSE * len(left):
        return _of_all_pairs(images, lefts, rights, transform)[row, column]
    squared = np.empty(len(left))
    for part in _parts(len(left), images[0].size):
        difference = _read(images, left[part], transform) - _read(images, right[part])
        squared[part] = np.square(difference).sum(axis=(1, 2, 3), dtype=np.float64)
    return squared


def _of_all_pairs(
    images: Pixels, lefts: Indices, rights: Indices, transform: Transform | None
) -> npt.NDArray[np.float64]:
    """Return the squared l2 distances [lefts, rights], exact."""
    squared = np.empty((len(lefts), len(rights)))
    for row in _parts(len(lefts), images[0].size):
        x = _read(images, lefts[row], transform).reshape(row.stop - row.start, -1)
        for column in _parts(len(rights), images[0].size):
            y = _read(images, rights[column]).reshape(column.stop - column.start, -1)
            tile = np.square(x).sum(axis=1, dtype=np.float64)[:, None] + np.square(y).sum(axis=1, dtype=np.float64)
            for start in range(0, x.shape[1], EXACT_TERMS):
                terms = slice(start, start + EXACT_TERMS)
                tile -= 2 * (x[:, terms] @ y[:, terms].T)
            squared[row, column] = tile
    return squared


def _read(images: Pixels, chosen: Indices, transform: Transform | None = None) -> Floats:
    """Return some images as float32, on the scale -128..127."""
    some = images[chosen]
    return (some if transform is None else transform.of(some)).astype(np.float32) - 128


def _parts(count: int, pixels: int) -> Iterator[slice]:
    """Yield the parts of so many images that are read at once."""
    at_once = max(1, min(ROWS, AT_ONCE // pixels))
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))
