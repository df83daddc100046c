"""Whether trainings of all sizes are one curve: f / f_max against step / N (Favero et al. 2025)."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffmem.analysis.curves import by_position
from diffmem.analysis.emm import still_rises
from diffmem.store import Point

Array = npt.NDArray[np.float64]

RESAMPLES = 1000
GRID = 50
"""Values of log(step / N) at which sizes are compared."""
RISE = (0.05, 0.95)
"""Between these values of f / f_max a curve rises; where all are below or above, they agree by doing nothing."""


@dataclass(frozen=True)
class Collapse:
    """The root mean square deviation of f / f_max between sizes, at the same step / N, with its 95% interval."""

    value: float
    interval: tuple[float, float]
    models: int
    rising: list[int]  # sizes of models whose ratio still rises at the end, so that f_max is not reached
    left_out: list[int]  # sizes of models that never memorize, which the value is without


@dataclass(frozen=True)
class _Training:
    size: int
    log_time: Array  # log(step / N) of each checkpoint
    ratio: Array
    samples: Array


def collapse(points: Sequence[Point], *, seed: int = 0) -> Collapse | None:
    """Return how far sizes deviate from their mean curve where any of them rises; None where no two sizes do at a
    common step / N.

    f is the memorization ratio and f_max its highest of a training. Between checkpoints it is linear in log step;
    trainings of one size are averaged. The interval is over images (Jeffreys' posterior) and, where a size has
    several, over trainings, drawn anew.
    """
    trainings: dict[int, list[_Training]] = defaultdict(list)
    rising, left_out = set(), set()
    for own in by_position(points).values():
        at = [point for point in own if point.step > 0]
        if at and max(point.ratio for point in at) > 0:
            training = _training(at)
            trainings[training.size].append(training)
            if still_rises([p.step for p in at], [p.ratio for p in at], [p.samples for p in at]):
                rising.add(training.size)
        elif at:
            left_out.add(at[0].size)
    if len(trainings) < 2:
        return None
    every = [each for own in trainings.values() for each in own]
    low, high = max(each.log_time[0] for each in every), min(each.log_time[-1] for each in every)
    if low >= high:
        return None
    grid = np.linspace(low, high, GRID)
    value = _deviation([[(each, each.ratio) for each in own] for own in trainings.values()], grid)
    if math.isnan(value):
        return None
    generator = np.random.default_rng(seed)
    drawn = [_deviation(_drawn(list(trainings.values()), generator), grid) for _ in range(RESAMPLES)]
    ends = np.nanquantile(drawn, [0.025, 0.975])
    return Collapse(
        value, (min(value, float(ends[0])), max(value, float(ends[1]))), len(every), sorted(rising), sorted(left_out)
    )


def _training(points: Sequence[Point]) -> _Training:
    steps, ratios, samples = np.array([(p.step, p.ratio, p.samples) for p in points], dtype=float).T
    return _Training(points[0].size, np.log(steps / points[0].size), ratios, samples)


def _drawn(sizes: Sequence[list[_Training]], generator: np.random.Generator) -> list[list[tuple[_Training, Array]]]:
    """Return trainings of each size drawn anew, with ratios that their images leave open."""
    found = []
    for own in sizes:
        chosen = [own[i] for i in generator.integers(len(own), size=len(own))]
        found.append([(each, _redrawn(each, generator)) for each in chosen])
    return found


def _redrawn(training: _Training, generator: np.random.Generator) -> Array:
    copies = training.ratio * training.samples
    drawn: Array = generator.beta(copies + 0.5, training.samples - copies + 0.5)
    return drawn


def _deviation(sizes: Sequence[Sequence[tuple[_Training, Array]]], grid: Array) -> float:
    """Return the root mean square deviation of the sizes' curves from their mean where any rises; nan if none does."""
    curves = np.array([np.mean([_at(grid, each, ratio) for each, ratio in own], axis=0) for own in sizes])
    rises = ((curves > RISE[0]) & (curves < RISE[1])).any(axis=0)
    if not rises.any():
        return math.nan
    from_mean = (curves - curves.mean(axis=0))[:, rises]
    return float(np.sqrt((from_mean**2).mean()))


def _at(grid: Array, training: _Training, ratio: Array) -> Array:
    found: Array = np.interp(grid, training.log_time, ratio / ratio.max())
    return found
