"""Onsets: the optimizer steps at which the ratio leaves zero, is half of what it reaches, and images become good.

Bonnaire et al. 2025 and Favero et al. 2025 find that the first grows in proportion to the training images N, and that
the last does not depend on N.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy import special

from diffmem.analysis.curves import by_position
from diffmem.analysis.emm import still_rises
from diffmem.measures import NORMAL, PIXELS, wilson
from diffmem.store import Point, StudyQuality

LEVEL = 0.01
"""The ratio f from which on a model memorizes."""

GOOD = 1.1
"""Images are good from the first checkpoint on whose distance to held-out images is at most so many times the least."""

RESAMPLES = 1000
"""Trainings of a bootstrap."""


@dataclass(frozen=True)
class Onset:
    """An optimizer step with its 95% interval; where none is between two checkpoints, a bound on one side."""

    value: float | None
    lower: float | None = None  # it is later than this step
    upper: float | None = None  # it is earlier than this step
    low: float | None = None  # 95%; None: the checkpoints do not bound it
    high: float | None = None

    def __str__(self) -> str:
        if self.value is not None:
            return _step(self.value)
        if self.lower is not None:
            return f"> {_step(self.lower)}"
        return "unknown" if self.upper is None else f"< {_step(self.upper)}"

    @property
    def interval(self) -> str:
        """Return the 95% interval in words; an end that the checkpoints do not bound is `?`."""
        if self.value is None:
            return "-"
        return " to ".join("?" if end is None else _step(end) for end in (self.low, self.high))


def _step(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class SizeOnsets:
    """The onsets at one training set size: geometric means over draws and seeds."""

    size: int
    cells: int
    mem: Onset  # tau_mem: the ratio leaves the level
    half: Onset  # tau_half: it passes half of the last ratio
    rises: bool  # whether the ratio of a model does so still, at the end of what is trained
    gen: Onset | None = None  # tau_gen: images become good; None: their quality is not measured
    gen_cells: int = 0  # with a quality
    falls: bool = False  # whether the distance of a model does so still, at the end of what is trained


@dataclass(frozen=True)
class Slope:
    """How steeply log onset rises with log N, with a 95% interval if there are three models or more."""

    value: float
    low: float | None
    high: float | None
    models: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" (95%: {self.low:z.2f} to {self.high:z.2f})"
        return f"{self.value:z.2f}{interval}"


@dataclass(frozen=True)
class CurveOnsets:
    """The onsets of one combination of the other axes, by size, and how tau_mem grows with the size."""

    label: str
    sizes: list[SizeOnsets]
    slope: Slope | None  # None: fewer than two sizes have an onset
    left_out: list[int]  # sizes of models that have none, which the slope is without
    gen_slope: Slope | None = None  # of tau_gen
    gen_left_out: list[int] = field(default_factory=list)


class Model(NamedTuple):
    """The onsets of one model."""

    mem: Onset
    half: Onset
    rises: bool  # whether the ratio does so still, at the end of what is trained
    gen: Onset | None = None
    falls: bool = False  # whether the distance to held-out images does so still
    gap: float = 0.0  # logarithm of the steps of tau_gen over those of the checkpoint before: it is in between


def onsets_of(
    points: Sequence[Point], *, level: float = LEVEL, quality: Sequence[StudyQuality] = ()
) -> list[CurveOnsets]:
    """Return the optimizer steps at which memorization begins, for each curve of a study, in its order.

    `level` is the ratio, in 0..1, at which it counts as begun. `quality` gives tau_gen, from the distances to held-out
    images in the space of `space_of`. Models without optimizer steps (the optimum, images of other tools) have no
    onset.
    """
    distances = _distances(quality)
    models: dict[str, dict[int, list[Model]]] = defaultdict(lambda: defaultdict(list))
    for own in by_position(points).values():
        at_step = {point.step: point for point in own if point.step > 0}
        if at_step:
            steps, found = list(at_step), list(at_step.values())
            ratios, samples = [point.ratio for point in found], [point.samples for point in found]
            model = model_onsets(steps, ratios, samples, level=level)
            if known := distances.get(own[0].position):
                gen, falls = quality_onset(list(known), list(known.values()))
                model = model._replace(gen=gen, falls=falls, gap=_gap(list(known), gen))
            models[own[0].curve][own[0].size].append(model)
    return [_curve(label, sizes) for label, sizes in models.items()]


def space_of(quality: Sequence[StudyQuality]) -> str:
    """Return the feature space that tau_gen is by: pixels only if there is no other; empty without any."""
    return min({each.space for each in quality}, key=lambda space: (space == PIXELS.name, space), default="")


Distance = tuple[float, float, float]
"""A distance with its 95% interval."""


def _distances(quality: Sequence[StudyQuality]) -> dict[int, dict[int, Distance]]:
    """Return the Frechet distances to held-out images, by position and step."""
    space, found = space_of(quality), defaultdict[int, dict[int, Distance]](dict)
    for each in quality:
        if (each.space, each.quantity, each.against) == (space, "frechet_distance", "held_out") and each.step > 0:
            found[each.position][each.step] = (each.value, each.low, each.high)
    return found


# --- one model -----------------------------------------------------------------------------------------


def model_onsets(
    steps: Sequence[int], ratios: Sequence[float], samples: Sequence[int], *, level: float = LEVEL, seed: int = 0
) -> Model:
    """Return the onsets of one training from its checkpoints, in the order of their steps.

    tau_mem is looked for at the first checkpoint at which the lower end of Wilson's 95% interval is above `level`, as
    it is at the next one; tau_half at the first one with half of the last ratio, as the next one has it. The onset is
    where the log-odds of the ratio, linear in log step, last rose through the line up to there. Every resample draws
    each ratio from what its images leave open (Jeffreys' posterior of a binomial).
    """
    log_steps, ratio, n = np.log(steps), np.asarray(ratios, dtype=float), np.asarray(samples, dtype=float)
    copies, last = ratio * n, len(ratio) - 1
    generator = np.random.default_rng(seed)
    drawn = _log_odds(generator.beta(copies + 0.5, n - copies + 0.5, size=(RESAMPLES, len(n))))
    best = _log_odds((copies + 0.5) / (n + 1))[None]
    rises = still_rises(steps, ratios, samples)
    above = wilson(ratio, n)[:, 0] > level
    at, half_at = _first_twice(above), _first_twice(ratio >= ratio[last] / 2)

    def onset(line: Callable[[np.ndarray], np.ndarray], where: int) -> Onset:
        found, resampled = (_crossing(log_steps, odds, line(odds), where) for odds in (best, drawn))
        return _estimate(found, resampled, steps)

    if at is None and not above[last]:
        later = Onset(None, float(steps[last]))
        return Model(later, later, rises)
    half = onset(_half_of_last, last if half_at is None else half_at)
    if at is None:  # above at the last one, which no other checkpoint confirms
        return Model(Onset(None, float(steps[last - 1]) if last else None), half, rises)
    line = float(special.logit(level))
    return Model(onset(lambda odds: np.full(len(odds), line), at), half, rises)


def quality_onset(steps: Sequence[int], distances: Sequence[Distance], *, seed: int = 0) -> tuple[Onset, bool]:
    """Return tau_gen, the first checkpoint whose distance is at most 1.1 times the least, and whether the
    distance still falls at the end: the last one is least, and below the interval of the one before.

    A checkpoint is known by its step, so tau_gen is one of these. Every resample draws each distance from the normal
    distribution that its 95% interval is of.
    """
    value, low, high = np.asarray(distances, dtype=float).T
    deviation = (high - low) / (2 * NORMAL)
    generator = np.random.default_rng(seed)
    drawn = np.maximum(value + deviation * generator.standard_normal((RESAMPLES, len(value))), 0)
    at, firsts = _first_good(value[None])[0], _first_good(drawn)
    falls = len(value) > 1 and bool(value.argmin() == len(value) - 1 and value[-1] < low[-2])
    if at == 0:
        return Onset(None, None, float(steps[0])), falls
    if at == len(steps) - 1:
        return Onset(None, float(steps[at - 1])), falls
    first, last = np.quantile(firsts, [0.025, 0.975], method="nearest").astype(int)
    low_end = None if first == 0 else float(steps[first - 1])  # it has become good after the checkpoint before
    return Onset(float(steps[at]), None, None, low_end, None if last == len(steps) - 1 else float(steps[last])), falls


def _gap(steps: Sequence[int], onset: Onset) -> float:
    """Return log(step of the onset / step of the checkpoint before it); 0 if there is no such checkpoint."""
    before = [step for step in steps if onset.value is not None and step < onset.value]
    return math.log(onset.value / max(before)) if before and onset.value else 0.0


def _first_good(distances: np.ndarray) -> np.ndarray:
    """Return the first checkpoint of each training [n, checkpoints] whose distance is at most 1.1 times the least."""
    first: np.ndarray = (distances <= GOOD * distances.min(axis=1, keepdims=True)).argmax(axis=1)
    return first


def _half_of_last(odds: np.ndarray) -> np.ndarray:
    """Return the log-odds of half of the last ratio of each training [n, checkpoints]."""
    half: np.ndarray = special.logit(special.expit(odds[:, -1]) / 2)
    return half


def _log_odds(ratio: np.ndarray) -> np.ndarray:
    odds: np.ndarray = special.logit(np.clip(ratio, 1e-12, 1 - 1e-12))
    return odds


def _first_twice(above: np.ndarray) -> int | None:
    """Return the first checkpoint that is above a line with the next one; None where none is."""
    both = np.flatnonzero(above[:-1] & above[1:])
    return int(both[0]) if len(both) else None


def _crossing(log_steps: np.ndarray, odds: np.ndarray, line: np.ndarray, at: int) -> np.ndarray:
    """Return the log step at which each training [n, checkpoints] rises through its line [n] next to a checkpoint.

    Up to it where it is above the line there, else after it; -inf and inf where the checkpoints have no such rise.
    """
    above, number = odds > line[:, None], np.arange(len(log_steps))
    before = np.where(~above & (number < at), number, -1).max(axis=1)
    after = np.where(above & (number > at), number, len(number)).min(axis=1) - 1
    below = np.where(above[:, at], before, after)
    found = np.where(below < 0, -np.inf, np.inf)
    inside = (below >= 0) & (below < len(number) - 1)
    row, i = np.flatnonzero(inside), below[inside]
    share = (line[row] - odds[row, i]) / (odds[row, i + 1] - odds[row, i])
    found[inside] = log_steps[i] + share * (log_steps[i + 1] - log_steps[i])
    return found


def _estimate(best: np.ndarray, drawn: np.ndarray, steps: Sequence[int]) -> Onset:
    """Return the onset at a log step [1] with the middle 95% of those of resamples."""
    log_step = float(best[0])
    if log_step == -math.inf:
        return Onset(None, None, float(steps[0]))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return Onset(math.exp(log_step), None, None, _end(low), _end(high))


def _end(log_step: float) -> float | None:
    return math.exp(log_step) if math.isfinite(log_step) else None


# --- models of several sizes ---------------------------------------------------------------------------


def _curve(label: str, models: dict[int, list[Model]]) -> CurveOnsets:
    sizes = sorted(models)
    mem = _means([[model.mem for model in models[size]] for size in sizes])
    half = _means([[model.half for model in models[size]] for size in sizes])
    gens = [[model.gen for model in models[size] if model.gen is not None] for size in sizes]
    gap = max(model.gap for own in models.values() for model in own)
    gen = iter(_from_before(each, gap) for each in _means([own for own in gens if own]))
    found = [
        SizeOnsets(
            *(size, len(models[size]), mem_of, half_of, any(model.rises for model in models[size])),
            gen=next(gen) if own else None,
            gen_cells=len(own),
            falls=any(model.falls for model in models[size]),
        )
        for size, mem_of, half_of, own in zip(sizes, mem, half, gens, strict=True)
    ]
    mems = [(size, model.mem) for size in sizes for model in models[size]]
    good = [(size, each) for size, own in zip(sizes, gens, strict=True) for each in own]
    slope, rest = _slope_and_rest(good)
    known = sorted(size for size, each in good if each.value is not None)
    return CurveOnsets(label, found, *_slope_and_rest(mems), _between_checkpoints(slope, gap, known), rest)


def _from_before(onset: Onset, gap: float) -> Onset:
    """Return the mean tau_gen of models with an interval that begins at the checkpoint before at the latest."""
    if onset.value is None or onset.low is None:
        return onset
    return replace(onset, low=min(onset.low, onset.value * math.exp(-gap)))


def _between_checkpoints(slope: Slope | None, gap: float, sizes: Sequence[int]) -> Slope | None:
    """Return the slope of onsets that are known to lie between two checkpoints, `gap` apart on a log scale: as far to
    either side as it could be if the smallest size had it at one end, and the largest at the other."""
    if slope is None or slope.low is None or slope.high is None:
        return slope
    more = gap / (math.log(sizes[-1]) - math.log(sizes[0]))
    return replace(slope, low=slope.low - more, high=slope.high + more)


def _slope_and_rest(onsets: Sequence[tuple[int, Onset]]) -> tuple[Slope | None, list[int]]:
    """Return the slope of the onsets of models, and the sizes of those that have none."""
    known = [(size, each.value) for size, each in onsets if each.value is not None]
    return slope_of(known), [*dict.fromkeys(size for size, each in onsets if each.value is None)]


def _means(onsets: Sequence[Sequence[Onset]]) -> list[Onset]:
    """Return the geometric mean of the onsets of models at each size, with its interval over draws and seeds.

    Models of one size are taken to differ by the same factor at all sizes, images included, so that their variance is
    estimated from all of them together (Student's t). With one model a size, the interval is that over images.
    """
    logs = [[math.log(each.value) for each in own if each.value is not None] for own in onsets]
    squares = sum((value - sum(own) / len(own)) ** 2 for own in logs for value in own)
    freedom = sum(len(own) - 1 for own in logs if own)
    if not freedom:
        return [_mean(own) for own in onsets]
    width = float(special.stdtrit(freedom, 0.975)) * math.sqrt(squares / freedom)
    return [_within(_mean(own), width / math.sqrt(len(own))) for own in onsets]


def _mean(own: Sequence[Onset]) -> Onset:
    """Return the geometric mean of some onsets: a bound where some of them are bounds on the same side."""
    if len(own) == 1:
        return own[0]
    values = [each.value for each in own if each.value is not None]
    if len(values) == len(own):
        return Onset(_geometric(values))
    bounds = [each for each in own if each.value is None]
    lower, upper = [each.lower for each in bounds], [each.upper for each in bounds]
    if all(lower):
        return Onset(None, _geometric([*values, *filter(None, lower)]))
    return Onset(None, None, _geometric([*values, *filter(None, upper)]) if all(upper) else None)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _within(onset: Onset, width: float) -> Onset:
    """Return an onset with an interval of so much on either side of its logarithm."""
    if onset.value is None:
        return onset
    return Onset(onset.value, None, None, onset.value * math.exp(-width), onset.value * math.exp(width))


def slope_of(onsets: Sequence[tuple[int, float]]) -> Slope | None:
    """Return the slope of log onset against log N by least squares over models, with Student's t for its interval.

    `onsets` are N and the onset of each model; None where they are of fewer than two sizes.
    """
    x, y = (np.log([each[column] for each in onsets]) for column in (0, 1))
    if len(set(x.tolist())) < 2:
        return None
    from_mean = x - x.mean()
    spread = float(from_mean @ from_mean)
    slope = float(from_mean @ y) / spread
    freedom = len(x) - 2
    if not freedom:
        return Slope(slope, None, None, len(x))
    rest = y - y.mean() - slope * from_mean
    width = float(special.stdtrit(freedom, 0.975)) * math.sqrt(float(rest @ rest) / freedom / spread)
    return Slope(slope, slope - width, slope + width, len(x))
