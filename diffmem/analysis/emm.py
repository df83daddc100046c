"""Effective model memorization: the largest training set that is still memorized (Gu et al. 2023, Def. 3.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from diffmem.measures import NORMAL, wilson
from diffmem.text import decimals

ROUNDING = 1e-9
"""A ratio this little below the line is on it: shares of images are far coarser, so only rounding is forgiven."""


NO_SIZE, LARGEST = "no size reaches the line", "the largest size is above the line"
"""Why an estimate is a bound."""


def memorized_from(epsilon: float) -> float:
    """Return the ratio from which on a size counts as memorized: 1 - epsilon, less what rounding may take from it."""
    return 1 - epsilon - ROUNDING


class Estimate(NamedTuple):
    """An EMM: `value`, the sizes `lower` and `upper` around the crossing, and a `note`.

    `value` is None if the curve does not cross, and `lower` or `upper` is None at an open end. `str()` gives "34.9",
    ">= 64" or "< 8".
    """

    value: float | None
    lower: float | None
    upper: float | None
    note: str

    def __str__(self) -> str:
        return self.beside(None)

    def beside(self, interval: "Interval | None") -> str:
        """Return it as text, with the digits that its 95% interval allows."""
        if self.value is not None:
            return _shown(self.value, interval)
        if self.lower is not None:
            return f">= {self.lower:g}"
        return "unknown" if self.upper is None else f"< {self.upper:g}"


def estimate_emm(sizes: Sequence[float], ratios: Sequence[float], *, epsilon: float = 0.1) -> Estimate:
    """Estimate the largest N whose memorization ratio is at least 1 - epsilon (Gu et al. 2023, Def. 3.1).

    `ratios` (in 0..1) belong to training sets of `sizes` images, in any order. Ratios of the same size are averaged.
    Between the last size at or above 1 - epsilon and the next size, the ratio is interpolated linearly. If there is no
    next size, or no size is at or above, the answer is a bound. Raises ValueError for unequal lengths, no sizes, or a
    ratio outside 0..1.
    """
    N, ratio = _curve(sizes, ratios)
    note = _rise(N, ratio)
    target = 1 - epsilon
    above = np.flatnonzero(ratio >= memorized_from(epsilon))
    if len(above) == 0:
        return Estimate(None, None, float(N[0]), _join(NO_SIZE, note))
    last = int(above[-1])
    if last == len(N) - 1:
        return Estimate(None, float(N[last]), None, _join(LARGEST, note))
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
    steps = ", ".join(f"{N[i]:g} to {N[i + 1]:g} ({ratio[i]:.3f} to {ratio[i + 1]:.3f})" for i in rises)
    return f"the ratio rises with N from {steps}, against Hypothesis 1" if steps else ""


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def next_size(
    points: Mapping[int, float], low: int, high: int, *, epsilon: float = 0.1, tolerance: float = 0.1
) -> int | None:
    """Return the training set size to measure next, None where the EMM is known well enough.

    `points` are the ratios known so far, by size. The size doubles, from `low` on, until the ratio is below the line:
    a training costs in proportion to its size, so none is to be far above the crossing. Then it is always the middle,
    on a log scale, of the sizes around the crossing, until all sizes that the EMM can be are within a factor of
    1 + tolerance. A curve that does not cross between `low` and `high` ends with a bound.
    """
    last, first_below = bracket(points, epsilon)
    if last is None or last < low:
        return None if low in points else low
    if first_below is None:
        return None if last >= high else min(2 * last, high)
    if (first_below - 1) / last <= 1 + tolerance:  # the largest size that can still be memorized over the smallest
        return None
    middle = round(math.sqrt(last * first_below))
    return min(max(min(middle, 2 * last), last + 1), first_below - 1)


def bracket(points: Mapping[int, float], epsilon: float = 0.1) -> tuple[int | None, int | None]:
    """Return the largest size whose ratio is at least 1 - epsilon, and the next larger one; None if there is none."""
    last = max((size for size, ratio in points.items() if ratio >= memorized_from(epsilon)), default=None)
    return last, min((size for size in points if last is None or size > last), default=None)


def most_sizes(low: int, high: int, tolerance: float) -> int:
    """Return how many sizes a search measures at most: `low`, all doublings, and the halvings of one doubling."""
    halvings = math.ceil(math.log2(math.log(min(2, high / low)) / math.log(1 + tolerance)))
    return min(1 + math.ceil(math.log2(high / low)) + max(0, halvings), high - low + 1)


def near_line(ratio: float, samples: int, *, epsilon: float = 0.1) -> bool:
    """Return whether a ratio of so many images is within two standard deviations of 1 - epsilon."""
    line = 1 - epsilon
    return abs(ratio - line) < 2 * math.sqrt(line * (1 - line) / samples)


def still_rises(epochs: Sequence[int], ratios: Sequence[float], samples: Sequence[int]) -> bool:
    """Return whether a model's ratio is highest, but not 1, at its last checkpoint, and above the highest of the first
    three quarters of its training: by more than the noise of the generated images leaves open (95%).

    Checkpoints come in order of their epochs.
    """
    early = max(1, sum(epoch <= 0.75 * epochs[-1] for epoch in epochs))
    before = max(range(early), key=lambda at: ratios[at])
    rise = math.asin(math.sqrt(ratios[-1])) - math.asin(math.sqrt(ratios[before]))
    noise = math.sqrt(1 / (4 * samples[before]) + 1 / (4 * samples[-1]))
    return max(ratios) <= ratios[-1] < 1 and rise > NORMAL * noise


class Interval(NamedTuple):
    """A 95% interval of an EMM in training images; None at an end that the measured sizes do not bound.

    `str()` gives "11.0 to 14.9", ">= 24" or "<= 8" of an open one, or "not bounded".
    """

    low: float | None
    high: float | None

    def __str__(self) -> str:
        low, high = (None if end is None else _shown(end, self) for end in self)
        if low and high:
            return f"{low} to {high}"
        return f">= {low}" if low else f"<= {high}" if high else "not bounded"


def _shown(images: float, interval: Interval | None) -> str:
    """Return a number of images with the digits that an interval allows; more than one decimal says nothing of it."""
    if interval and interval.low is not None and interval.high is not None:
        return f"{images:.{decimals(interval.low, interval.high, most=1)}f}"
    return f"{images:.0f}" if images >= 100 or images == int(images) else f"{images:.1f}"


class Bands(NamedTuple):
    """Mean memorization ratios of groups of models, on the scale arcsin(sqrt(ratio)), with the variance of each mean.

    On that scale, the noise of n generated images has the variance 1 / (4 n) at every ratio.
    """

    angle: np.ndarray  # [groups]
    images: np.ndarray  # [groups], variance by the noise of the generated images
    models: np.ndarray  # [groups], variance by what models of one group differ by: draws and seeds
    freedom: float  # degrees of freedom of `models`

    def ratios(self, above: np.ndarray) -> np.ndarray:
        """Return the ratios [..., groups] that lie `above` the means by so much on their scale."""
        ratios: np.ndarray = np.sin(np.clip(self.angle + above, 0, np.pi / 2)) ** 2
        return ratios


def bands(groups: Sequence[float], ratios: Sequence[float], samples: Sequence[int]) -> Bands:
    """Return the mean ratio of each group, ascending, with its variance over images, draws and seeds.

    Each entry is one trained model: its group (a training set size, say), its memorization ratio, and the generated
    images behind it. Models of one group are taken to differ alike on the log-odds scale in all groups, so that their
    variance is estimated from all of them together; with one model a group, it is unknown and left out.
    """
    distinct, mean = _curve(groups, ratios)
    member = np.searchsorted(distinct, np.asarray(groups, dtype=float))
    count = np.bincount(member)
    angle = np.arcsin(np.sqrt(mean))
    noise = 1 / (4 * np.asarray(samples, dtype=float))
    images = np.bincount(member, weights=noise) / count**2
    # the variance of log-odds times mean (1 - mean) / 4 is that of the angle
    slope = mean * (1 - mean) / 4
    weight = (count - 1) * slope
    if not weight.any():
        return Bands(angle, images, np.zeros_like(images), 1.0)
    apart = (np.arcsin(np.sqrt(np.asarray(ratios, dtype=float))) - angle[member]) ** 2
    beyond_noise = apart.sum() - ((count - 1) * images * count).sum()
    log_odds = max(0.0, beyond_noise) / weight.sum()
    freedom = weight.sum() ** 2 / (weight**2 / np.maximum(count - 1, 1)).sum()
    return Bands(angle, images, log_odds * slope / count, float(freedom))


def ratio_intervals(found: Bands) -> np.ndarray:
    """Return the 95% interval of each ratio, [groups, 2]: Wilson's, for as many images as its variance is worth.

    With the noise of images alone that is Wilson's interval of their number; with models that differ beyond it,
    Student's t takes the place of the normal.
    """
    variance = found.images + found.models
    worth = 1 / (4 * variance)
    quantile = _quantile(found.models, found.freedom)
    return wilson(found.ratios(np.zeros_like(variance)), worth, quantile=quantile)


def rises(found: Bands) -> np.ndarray:
    """Return whether the ratio of each group but the first is above that of the group before, [groups - 1], by more
    than images, draws and seeds leave open (95%)."""
    variance, models = (each[:-1] + each[1:] for each in (found.images + found.models, found.models))
    above: np.ndarray = np.diff(found.angle) > _quantile(models, found.freedom) * np.sqrt(variance)
    return above


def _quantile(models: np.ndarray, freedom: float) -> np.ndarray:
    """Return the 97.5% quantile: Student's where models are seen to differ, as the whole variance is then estimated
    with their degrees of freedom, else the normal one."""
    quantile: np.ndarray = special.stdtrit(np.where(models > 0, freedom, 1e9), 0.975)
    return quantile


class Mean(NamedTuple):
    """The mean memorization ratio of models of one group, with its 95% interval over images, draws and seeds."""

    group: float
    ratio: float
    low: float
    high: float
    models: int


def mean_ratios(
    groups: Sequence[float], ratios: Sequence[float], samples: Sequence[int], *, images_alone: bool = False
) -> list[Mean]:
    """Return the mean ratio of each group, ascending; the arguments are those of `bands`.

    With `images_alone`, the intervals have the noise of the generated images only.
    """
    distinct, mean = _curve(groups, ratios)
    found = bands(groups, ratios, samples)
    intervals = ratio_intervals(found._replace(models=np.zeros_like(found.models)) if images_alone else found)
    models = np.unique(np.asarray(groups, dtype=float), return_counts=True)[1]
    columns = zip(distinct.tolist(), mean.tolist(), intervals.tolist(), models.tolist(), strict=True)
    return [Mean(group, ratio, low, high, count) for group, ratio, (low, high), count in columns]


def weighted_sum(means: Sequence[Mean], weights: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return a weighted sum of mean ratios and its 95% interval, from those of the means (Zou and Donner 2008).

    Each end is as far from the sum as the ends of the means are together that move it that way, as independent errors.
    """
    ratio, low, high, w = (
        np.array(column)
        for column in ([m.ratio for m in means], [m.low for m in means], [m.high for m in means], weights)
    )
    value = float(w @ ratio)
    down = np.where(w > 0, ratio - low, high - ratio)
    up = np.where(w > 0, high - ratio, ratio - low)
    return value, (value - float(np.hypot.reduce(w * down)), value + float(np.hypot.reduce(w * up)))


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean of differences, each within one draw (Student's paired t-test); with one
    difference, it is unknown and has no width."""
    d = np.asarray(differences, dtype=float)
    if len(d) == 1:
        return float(d[0]), float(d[0])
    mean, reach = d.mean(), special.stdtrit(len(d) - 1, 0.975) * d.std(ddof=1) / math.sqrt(len(d))
    return max(-1.0, float(mean - reach)), min(1.0, float(mean + reach))


def emm_interval(
    sizes: Sequence[float], ratios: Sequence[float], samples: Sequence[int], *, epsilon: float = 0.1, seed: int = 0
) -> Interval:
    """Return the 95% interval of the EMM, by a parametric bootstrap over images, draws and seeds.

    Each entry is one trained model: its training set size, its ratio (in 0..1), and the number of generated images
    behind it. Each resample draws a ratio at every size, with Student's t because there are few models; the interval
    is the middle 95% of the EMMs of RESAMPLES such curves. An end that the measured sizes do not bound is open. Raises
    ValueError as `estimate_emm`.
    """
    found = bands(sizes, ratios, samples)
    generator = np.random.default_rng(seed)
    by_images, by_models = generator.standard_normal((2, RESAMPLES, len(found.angle)))
    scale = np.sqrt(found.freedom / generator.chisquare(found.freedom, size=(RESAMPLES, 1)))
    above = by_images * np.sqrt(found.images) + by_models * scale * np.sqrt(found.models)
    N = np.unique(np.asarray(sizes, dtype=float))
    emms = _crossings(N, found.ratios(above), epsilon)
    low, high = np.quantile(emms, [0.025, 0.975], method="nearest")
    # an EMM beyond the sizes is known to be beyond the last one of them, and no more
    return Interval(None if low < N[0] else float(min(low, N[-1])), None if high > N[-1] else float(max(high, N[0])))


RESAMPLES = 4000
"""Curves of a bootstrap: more would move the ends of an interval by less than a twentieth of its width."""


def _crossings(N: np.ndarray, ratios: np.ndarray, epsilon: float) -> np.ndarray:
    """Return where each curve [n, sizes] last falls through 1 - epsilon; -inf or inf where it is outside the sizes."""
    above, target = ratios >= memorized_from(epsilon), 1 - epsilon
    last = above.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)
    inside = above.any(axis=1) & (last < len(N) - 1)
    row, i = np.flatnonzero(inside), last[inside]
    start, end = ratios[row, i], ratios[row, i + 1]
    crossing = np.where(above.any(axis=1), np.inf, -np.inf)
    crossing[inside] = N[i] + np.maximum(start - target, 0) / (start - end) * (N[i + 1] - N[i])
    return crossing
