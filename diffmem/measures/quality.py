"""The formulas of quality, on features of images [n, d]: distance, overlap and copying of two sets.

Memory beside the features is bounded by blocks of distances. All distances are Euclidean.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

NEIGHBOURS = 5
"""k of precision, recall, density and coverage (Naeem et al. 2020, Sec. 4)."""
CELLS = 3
"""Cells of C_T (Meehan et al. 2020, Sec. 5)."""
ENOUGH_IN_CELL = 20
"""A cell counts with more generated images than these."""
BLOCK = 2**24
"""Distances that are held at once."""


# --- Frechet distance ----------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Mean [d] and a factor R [r, d] of the covariance R^T R, with r = min(n, d)."""

    mean: Array
    factor: Array


def moments(features: Array) -> Moments:
    """Return mean and covariance (divisor n - 1) of features [n, d] of two images or more."""
    values = np.asarray(features, dtype=np.float64)
    mean = values.mean(axis=0)
    centred = (values - mean) / np.sqrt(len(values) - 1)
    if len(values) <= values.shape[1]:
        return Moments(mean, centred)
    from scipy import linalg  # half a second that most commands do without

    (factor,) = linalg.qr(centred, mode="r", overwrite_a=True, check_finite=False)
    return Moments(mean, factor[: values.shape[1]])


def frechet(one: Moments, other: Moments) -> float:
    """Return ||mu - mu'||^2 + tr(C + C' - 2 sqrt(C C')) (Heusel et al. 2017, Eq. 6).

    tr sqrt(C C') is the sum of the singular values of R R'^T, whatever the ranks are.
    """
    from scipy import linalg

    shift = one.mean - other.mean
    spread = float(np.square(one.factor).sum() + np.square(other.factor).sum())
    common = float(linalg.svdvals(one.factor @ other.factor.T, check_finite=False).sum())
    return max(0.0, float(shift @ shift) + spread - 2 * common)


def frechet_distance(generated: Array, real: Array) -> float:
    """Return the Frechet distance between two sets of features, [n, d] and [m, d]; biased upwards by about d / n."""
    return frechet(moments(generated), moments(real))


# --- distances -----------------------------------------------------------------------------------------


def blocks(one: Array, other: Array) -> Iterator[tuple[slice, Array]]:
    """Yield the squared distances [rows, m] of some rows of one set [n, d] to all of the other [m, d], and the rows.

    Of whole numbers, as pixels are, they are exact.
    """
    size = max(1, BLOCK // max(1, len(other)))
    y = np.asarray(other, dtype=np.float64)
    y_norms = np.square(y).sum(axis=1)
    for start in range(0, len(one), size):
        x = np.asarray(one[start : start + size], dtype=np.float64)
        squared = np.square(x).sum(axis=1)[:, None] + y_norms - 2 * (x @ y.T)
        yield slice(start, start + len(x)), np.maximum(squared, 0)


def squared_distances(one: Array, other: Array) -> Array:
    """Return all squared distances [n, m] of two sets."""
    return np.concatenate([block for _, block in blocks(one, other)])


def nearest(one: Array, other: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the position in the other set of the nearest to each of one, [n], and the squared distances [n]."""
    found = [(block.argmin(axis=1), block.min(axis=1)) for _, block in blocks(one, other)]
    positions, squared = (np.concatenate(each) for each in zip(*found, strict=True))
    return positions, squared


# --- overlap -------------------------------------------------------------------------------------------


class Distances(NamedTuple):
    """Squared distances among generated images [n, n], among real ones [m, m], and between both [n, m]."""

    generated: Array
    real: Array
    between: Array

    def of(self, generated: npt.NDArray[np.int64], real: npt.NDArray[np.int64] | None) -> "Distances":
        """Return those of some of the images, by position; None: all of the real ones."""
        rows = np.arange(len(self.real)) if real is None else real
        own = self.real if real is None else self.real[np.ix_(rows, rows)]
        return Distances(self.generated[np.ix_(generated, generated)], own, self.between[np.ix_(generated, rows)])


class Overlap(NamedTuple):
    """How two sets overlap."""

    precision: float  # share of generated images inside the ball of a real one
    recall: float  # share of real images inside the ball of a generated one
    density: float  # balls of real images around a generated one / k
    coverage: float  # share of real images with a generated one inside their ball


def overlap(distances: Distances, neighbours: int = NEIGHBOURS) -> Overlap:
    """Return precision and recall (Kynkäänniemi et al. 2019, Sec. 2), density and coverage (Naeem et al. 2020, Sec. 3).

    The ball of an image reaches to its k-th nearest other one of its own set, and what is as far is outside.
    """
    generated, real = (np.partition(own, neighbours, axis=1)[:, neighbours] for own in distances[:2])
    inside = distances.between < real  # the first of each row's distances is to itself
    return Overlap(
        precision=float(inside.any(axis=1).mean()),
        recall=float((distances.between < generated[:, None]).any(axis=0).mean()),
        density=float(inside.sum() / (neighbours * len(inside))),
        coverage=float((distances.between.min(axis=0) < real).mean()),
    )


def overlap_of(generated: Array, real: Array) -> Overlap:
    """Return how two sets of features overlap, [n, d] and [m, d], of six images or more each.

    Memory grows with the squares of n and m.
    """
    sets = (generated, generated), (real, real), (generated, real)
    return overlap(Distances(*(squared_distances(*pair) for pair in sets)))


# --- copying -------------------------------------------------------------------------------------------


def authentic(generated: Array, training: Array) -> Flags:
    """Return which generated images are authentic, bool [n] (Alaa et al. 2022, Sec. 4).

    That is where the nearest training image has another one that is nearer to it than the generated one is.
    """
    positions, squared = nearest(generated, training)
    copied, where = np.unique(positions, return_inverse=True)
    own = np.empty(len(copied))
    for rows, block in blocks(training[copied], training):
        block[np.arange(len(block)), copied[rows]] = np.inf
        own[rows] = block.min(axis=1)
    flags: Flags = own[where] < squared
    return flags


def authentic_within(distances: Distances) -> Flags:
    """Return the same, by distances that are there."""
    own = distances.real + np.diag(np.full(len(distances.real), np.inf))
    positions = distances.between.argmin(axis=1)
    flags: Flags = own.min(axis=1)[positions] < distances.between.min(axis=1)
    return flags


class Cell(NamedTuple):
    """Distances to the nearest training image of the same cell."""

    generated: Array  # [n of the cell]
    test: Array  # [m of the cell]


def cells(generated: Array, test: Array, training: Array, *, seed: int) -> list[Cell]:
    """Return the k-means cells of the training images that count: with test images, and enough generated ones."""
    centres = kmeans(training, min(CELLS, len(training)), seed=seed)
    of_generated, of_test, of_training = (nearest(each, centres)[0] for each in (generated, test, training))
    found = []
    for cell in range(len(centres)):
        inside = generated[of_generated == cell], test[of_test == cell], training[of_training == cell]
        if len(inside[0]) > ENOUGH_IN_CELL and len(inside[1]) and len(inside[2]):
            found.append(Cell(*(nearest(each, inside[2])[1] for each in inside[:2])))
    return found


def kmeans(features: Array, count: int, *, seed: int) -> Array:
    """Return the centres [count, d] of k-means of features [n, d], from k-means++ and ten iterations."""
    from scipy.cluster import vq  # a second that most commands do without

    values = np.asarray(features, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a cell is empty, which then does not count
        centres: Array = vq.kmeans2(values, count, minit="++", rng=np.random.default_rng(seed))[0]
    return centres


def z_score(generated: Array, test: Array) -> float:
    """Return the z of the Mann-Whitney U of some distances to others: below 0 where they are smaller."""
    from scipy import stats  # two seconds that most commands do without

    m, n = len(generated), len(test)
    ranks = stats.rankdata(np.concatenate([generated, test]))
    u = ranks[:m].sum() - m * (m + 1) / 2
    return float((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))


def copying(found: Sequence[Cell]) -> float:
    """Return C_T, the mean z of cells, weighted by their test images (Meehan et al. 2020, Sec. 4): far below 0 where
    generated images are nearer to training images than test images are. There is one cell at least."""
    weights = [len(cell.test) for cell in found]
    return float(np.average([z_score(*cell) for cell in found], weights=weights))


def copying_of(generated: Array, test: Array, training: Array, *, seed: int = 0) -> float | None:
    """Return C_T of generated images and of test images, which are held out, [n, d] and [m, d], by training images
    [N, d]; None where no cell has more than 20 generated images."""
    found = cells(generated, test, training, seed=seed)
    return copying(found) if found else None
