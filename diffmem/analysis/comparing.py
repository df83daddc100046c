"""Two levels of a factor compared, each draw with itself."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from diffmem.analysis.claims import Range
from diffmem.analysis.emm import Mean, mean_ratios, paired_interval, weighted_sum

Replicate = tuple[str, str, int]
"""Draw, half of the draw and seed: what tells models of the same settings apart."""


class CellRatio(NamedTuple):
    """The ratio of one cell, as one claim sees it."""

    level: Any
    stratum: str  # the settings in which cells must agree to be compared
    ratio: float | None  # None: not finished
    samples: int
    draw: str
    half: str  # of the draw
    seed: int

    @property
    def replicate(self) -> Replicate:
        """Return what tells it from cells of the same settings."""
        return self.draw, self.half, self.seed


class Difference(NamedTuple):
    """The mean ratios at two levels, and their difference with its 95% interval; with one level, `low` is None and
    `value` the ratio there."""

    low: float | None
    high: float
    value: float
    interval: Range


Levels = tuple[Any, Any]
"""The lower and the higher one that are compared; the lower is None where the ratio at the higher one is asked for."""


def to_compare(planned: Sequence[CellRatio], levels: Levels) -> list[CellRatio]:
    """Return those of the cells at `levels` that can be compared: finished ones, and for two levels those of draws and
    seeds that have finished at both, in the strata where most have."""
    if levels[0] is None:
        return [m for m in planned if m.ratio is not None]
    places: dict[tuple[str, Replicate], list[CellRatio]] = {}
    for m in planned:
        places.setdefault((m.stratum, m.replicate), []).append(m)
    complete = {
        place
        for place, cells in places.items()
        if {m.level for m in cells} == set(levels) and all(m.ratio is not None for m in cells)
    }
    of_stratum = Counter(stratum for stratum, _ in complete)
    most = max(of_stratum.values(), default=0)
    strata = [stratum for stratum, count in of_stratum.items() if count == most]
    whole = {replicate for _, replicate in complete if all((each, replicate) in complete for each in strata)}
    return [m for m in planned if m.stratum in strata and m.replicate in whole]


def compare(cells: Sequence[CellRatio], levels: Levels) -> Difference:
    """Return the difference between two levels, or the ratio at one, in which strata count equally.

    The interval of a difference is Student's t over draws, each of which has both levels (a paired t-test), but never
    narrower than the noise of the generated images. That of a ratio is as in `mean_ratios`.
    """
    if levels[0] is None:
        means = _means(cells)
        value, interval = weighted_sum(means, [1 / len(means)] * len(means))
        return Difference(None, value, value, interval)
    low, high = (_means([m for m in cells if m.level == level], images_alone=True) for level in levels)
    share = 1 / len(low)
    _, noise = weighted_sum([*high, *low], [share] * len(high) + [-share] * len(low))
    differences = _differences(cells, levels)
    by_draws = paired_interval(differences)
    widest = min(noise[0], by_draws[0]), max(noise[1], by_draws[1])
    return Difference(fmean(m.ratio for m in low), fmean(m.ratio for m in high), fmean(differences), widest)


def _means(cells: Sequence[CellRatio], *, images_alone: bool = False) -> list[Mean]:
    """Return the mean ratio of each stratum."""
    strata = list(dict.fromkeys(m.stratum for m in cells))
    groups = [strata.index(m.stratum) for m in cells]
    return mean_ratios(groups, [m.ratio or 0.0 for m in cells], [m.samples for m in cells], images_alone=images_alone)


def _differences(cells: Sequence[CellRatio], levels: Levels) -> list[float]:
    """Return the difference between two levels in each draw, in which strata and seeds count equally; in each seed, if
    there is one draw alone."""
    one_draw = len({(m.draw, m.half) for m in cells}) == 1
    found: dict[Any, dict[tuple[str, Any], list[float]]] = {}
    for m in cells:
        of_unit = found.setdefault(m.seed if one_draw else (m.draw, m.half), {})
        of_unit.setdefault((m.stratum, m.level), []).append(m.ratio or 0.0)
    low, high = levels
    strata = list(dict.fromkeys(m.stratum for m in cells))
    return [fmean(fmean(of[each, high]) - fmean(of[each, low]) for each in strata) for of in found.values()]
