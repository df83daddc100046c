"""Effective model memorization: the largest training set that is still memorized (Gu et al. 2023, Def. 3.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ROUNDING = 1e-9
"""A ratio this little below the line is on it: shares of images are far coarser, so only rounding is forgiven."""


class Estimate(NamedTuple):
    """An EMM: `value` where the curve crosses, else None; the sizes around it, None at an open end; and why."""

    value: float | None
    lower: float | None
    upper: float | None
    note: str

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:.0f}" if self.value >= 100 else f"{self.value:.1f}"
        if self.lower is not None:
            return f"> {self.lower:g}"
        return "unknown" if self.upper is None else f"< {self.upper:g}"


def estimate_emm(sizes: Sequence[float], ratios: Sequence[float], *, epsilon: float = 0.1) -> Estimate:
    """Estimate the largest N whose memorization ratio is at least 1 - epsilon.

    `ratios` (in 0..1) are those of training sets of `sizes`, in any order; equal sizes are replicates and are
    averaged. Between the last size at or above 1 - epsilon and the next one the ratio is interpolated linearly;
    where no size follows, or none is at or above, the answer is a bound. Raises ValueError for unequal lengths,
    no sizes, or a ratio outside 0..1.
    """
    N, ratio = _curve(sizes, ratios)
    note = _rise(N, ratio)
    target = 1 - epsilon
    above = np.flatnonzero(ratio >= target - ROUNDING)
    if len(above) == 0:
        return Estimate(None, None, float(N[0]), _join("no size reaches the line", note))
    last = int(above[-1])
    if last == len(N) - 1:
        return Estimate(None, float(N[last]), None, _join("the largest size is above the line", note))
    share = max(ratio[last] - target, 0.0) / (ratio[last] - ratio[last + 1])
    value = N[last] + share * (N[last + 1] - N[last])
    return Estimate(float(value), float(N[last]), float(N[last + 1]), note)


def _curve(sizes: Sequence[float], ratios: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct sizes, ascending, and the mean ratio at each."""
    n, r = np.asarray(sizes, dtype=float), np.asarray(ratios, dtype=float)
    if n.shape != r.shape or n.size == 0:
        raise ValueError(f"sizes and ratios must be equally many, and some: {n.size} and {r.size}")
    if not ((r >= 0) & (r <= 1)).all():
        raise ValueError(f"ratios must lie in 0..1: {r.tolist()}")
    distinct, member = np.unique(n, return_inverse=True)
    return distinct, np.bincount(member, weights=r) / np.bincount(member)


def _rise(N: np.ndarray, ratio: np.ndarray) -> str:
    """Name where the ratio rises with N, which Hypothesis 1 excludes."""
    rises = np.flatnonzero(np.diff(ratio) > 0)
    steps = ", ".join(f"{N[i]:g} to {N[i + 1]:g}" for i in rises)
    return f"the ratio rises with N from {steps}, against Hypothesis 1" if steps else ""


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def next_size(
    points: Mapping[int, float], low: int, high: int, *, epsilon: float = 0.1, tolerance: float = 0.1
) -> int | None:
    """Return the training set size to measure next, None where the EMM is known well enough.

    `points` are the ratios known so far, by size. The two ends come first, then always the middle, on a log scale, of
    the sizes around the crossing, until all sizes that the EMM can be are within a factor of 1 + tolerance: at most
    2 + log2(log(high / low) / log(1 + tolerance)) sizes, rounded up. A curve that does not cross between `low` and
    `high` ends with a bound.
    """
    above = [size for size, ratio in points.items() if ratio >= 1 - epsilon - ROUNDING]
    last = max(above, default=None)
    first_below = min((size for size in points if last is None or size > last), default=None)
    if last is None or last < low:
        return None if low in points else low
    if first_below is None:
        return None if last >= high else high
    if (first_below - 1) / last <= 1 + tolerance:  # the largest size that can still be memorized over the smallest
        return None
    return min(max(round(math.sqrt(last * first_below)), last + 1), first_below - 1)


def most_sizes(low: int, high: int, tolerance: float) -> int:
    """Return how many sizes a search measures at most."""
    return 2 + max(0, math.ceil(math.log2(math.log(high / low) / math.log(1 + tolerance))))


def near_line(ratio: float, samples: int, *, epsilon: float = 0.1) -> bool:
    """Return whether a ratio of so many images is within two standard deviations of 1 - epsilon."""
    line = 1 - epsilon
    return abs(ratio - line) < 2 * math.sqrt(line * (1 - line) / samples)
