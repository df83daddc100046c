"""Searching for the EMM of each curve: which cells to train next (doubling, then bisection on a log scale)."""

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from statistics import fmean

from diffmem.analysis import bracket, memorized_from, most_sizes, near_line, next_size
from diffmem.measures import NEAREST
from diffmem.store import Reached, Store
from diffmem.study import Study, StudyCell


@dataclass(frozen=True)
class CurveSearch:
    """Where the search along one curve stands."""

    curve: str
    points: dict[int, float]  # ratio by training set size
    used: list[StudyCell]  # that the ratios are of
    wanted: list[StudyCell]  # that it needs next; none: it is done
    settled: Set[str]  # all cells of the store that need no more training


@dataclass(frozen=True)
class Round:
    """Where a search stands: the cells that it rests on, and those that it needs next; none: it is done."""

    used: list[StudyCell]
    wanted: list[StudyCell]


def enough(study: Study) -> float | None:
    """Return the stored ratio at which a cell of a search has answered, None where each trains to its end.

    Stored ratios are the paper's, at its threshold; by other ones only the whole evidence tells.
    """
    stored = study.measure is NEAREST and study.threshold == NEAREST.threshold
    return memorized_from(study.estimation.epsilon) if study.estimation.stop == "crossed" and stored else None


def most_cells(study: Study) -> int:
    """Return how many cells a search trains at most, one more draw near the line aside."""
    low, high = study.search_range
    return len(study.at(low)) * most_sizes(low, high, study.estimation.tolerance)


def next_round(study: Study, store: Store) -> Round:
    """Return the cells that the search of a study needs next, over all its curves."""
    searches = curve_searches(study, store)
    return Round(
        used=[entry for each in searches for entry in each.used],
        wanted=[entry for each in searches for entry in each.wanted],
    )


def curve_searches(study: Study, store: Store) -> list[CurveSearch]:
    """Return where the search along each curve of a study stands; the store need not exist yet.

    Sizes that the store has already count first. A size whose ratio is within the noise of the line, next to the
    crossing, is measured on one more draw of the training set before the search goes on.
    """
    low, high = study.search_range
    look = _Look(study, store.reached(study.measure, study.threshold) if store.exists() else {})
    sizes = sorted(store.measured_sizes(low, high)) if store.exists() else []
    searches = []
    for curve in look.at(low):
        points: dict[int, float] = {}
        samples: dict[int, int] = {}
        used: list[StudyCell] = []
        for size in sizes:
            cells = look.at(size)[curve]
            if all(map(look.settled, cells)):
                cells = cells + [entry for entry in look.one_more(size, curve) if look.settled(entry)]
                found = [look.known[entry.cell.cell_id] for entry in cells]
                points[size], samples[size] = fmean(k.best for k in found), sum(k.samples for k in found)
                used += cells
        wanted = _next_cells(look, curve, points, samples)
        searches.append(CurveSearch(curve, points, used, wanted, look.settled_cells))
    return searches


class _Look:
    """A study and what the store has, as one round of its search sees them."""

    def __init__(self, study: Study, known: dict[str, Reached]) -> None:
        self.study, self.known = study, known
        line = enough(study)
        self.settled_cells = {
            cell_id for cell_id, found in known.items() if found.finished or (line is not None and found.best >= line)
        }
        self._cells: dict[tuple[int, int | None], dict[str, list[StudyCell]]] = {}

    def at(self, size: int, draw: int | None = None) -> dict[str, list[StudyCell]]:
        """Return the cells at a size by their curve."""
        if (size, draw) not in self._cells:
            curves: dict[str, list[StudyCell]] = defaultdict(list)
            for entry in self.study.at(size, draw=draw):
                curves[entry.curve].append(entry)
            self._cells[size, draw] = curves
        return self._cells[size, draw]

    def one_more(self, size: int, curve: str) -> list[StudyCell]:
        """Return the cells at a size on one more draw; none where draws are an axis, or the file's order."""
        draw = self.study.one_more_draw
        return [] if draw is None else self.at(size, draw)[curve]

    def settled(self, entry: StudyCell) -> bool:
        """Return whether a cell is finished, or has answered before its end."""
        return entry.cell.cell_id in self.settled_cells


def _next_cells(look: _Look, curve: str, points: dict[int, float], samples: dict[int, int]) -> list[StudyCell]:
    """Return the cells that one curve needs next, from its ratios and the images behind them by size."""
    low, high = look.study.search_range
    estimation = look.study.estimation
    for size in filter(None, bracket(points, estimation.epsilon)):
        more = [entry for entry in look.one_more(size, curve) if not look.settled(entry)]
        if more and near_line(points[size], samples[size], epsilon=estimation.epsilon):
            return more
    chosen = next_size(points, low, high, epsilon=estimation.epsilon, tolerance=estimation.tolerance)
    return [] if chosen is None else [entry for entry in look.at(chosen)[curve] if not look.settled(entry)]
