"""Searching for the EMM of each curve: which cells to train next (bisection on a log scale)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from diffmem.config import Estimation
from diffmem.emm import near_line, next_size
from diffmem.store import Store
from diffmem.study import Study, StudyCell


@dataclass(frozen=True)
class Known:
    """What the store has of a cell."""

    best: float  # highest ratio of a checkpoint
    samples: int  # images behind it
    finished: bool


@dataclass(frozen=True)
class Round:
    """Where a search stands: the cells that it rests on, and those that it needs next; none: it is done."""

    used: list[StudyCell]
    wanted: list[StudyCell]


def enough(estimation: Estimation) -> float | None:
    """Return the ratio at which a cell of a search has answered, None where each trains to its end."""
    return 1 - estimation.epsilon if estimation.stop == "crossed" else None


def next_round(study: Study, store: Store) -> Round:
    """Return the cells that the search of a study needs next, over all its curves.

    Sizes that the store has already count first. A size whose ratio is within the noise of the line, next to the
    crossing, is measured on one more draw of the training set before the search goes on.
    """
    low, high = study.search_range
    known = _known(store)
    sizes = sorted({low, high, *_sizes(store, low, high)})
    cells = {size: _by_curve(study.at(size)) for size in sizes}
    used: list[StudyCell] = []
    wanted: list[StudyCell] = []
    for curve in cells[low]:
        points: dict[int, float] = {}
        behind: dict[int, list[StudyCell]] = {}
        for size in sizes:
            if all(_settled(entry, known, study.estimation) for entry in cells[size][curve]):
                more = [entry for entry in _one_more(study, size, curve) if _settled(entry, known, study.estimation)]
                behind[size] = cells[size][curve] + more
                points[size] = fmean(known[entry.cell.cell_id].best for entry in behind[size])
        used += [entry for size in behind for entry in behind[size]]
        wanted += _next_cells(study, curve, points, behind, known)
    return Round(used, wanted)


def _next_cells(
    study: Study,
    curve: str,
    points: dict[int, float],
    behind: dict[int, list[StudyCell]],
    known: dict[str, Known],
) -> list[StudyCell]:
    low, high = study.search_range
    estimation = study.estimation
    for size in _around_crossing(points, estimation.epsilon):
        samples = sum(known[entry.cell.cell_id].samples for entry in behind[size])
        more = [entry for entry in _one_more(study, size, curve) if entry.cell.cell_id not in known]
        if more and near_line(points[size], samples, epsilon=estimation.epsilon):
            return more
    chosen = next_size(points, low, high, epsilon=estimation.epsilon, tolerance=estimation.tolerance)
    if chosen is None:
        return []
    return [entry for entry in _by_curve(study.at(chosen))[curve] if not _settled(entry, known, estimation)]


def _around_crossing(points: dict[int, float], epsilon: float) -> list[int]:
    """Return the last size at or above the line and the next one, where there are such."""
    last = max((size for size, ratio in points.items() if ratio >= 1 - epsilon), default=0)
    return [size for size in (last, min((size for size in points if size > last), default=0)) if size]


def _one_more(study: Study, size: int, curve: str) -> list[StudyCell]:
    """Return the cells of a curve at a size on one more draw; none where draws are an axis, or the file's order."""
    draw = study.one_more_draw
    return [] if draw is None else _by_curve(study.at(size, draw=draw))[curve]


def _by_curve(cells: Sequence[StudyCell]) -> dict[str, list[StudyCell]]:
    curves: dict[str, list[StudyCell]] = defaultdict(list)
    for entry in cells:
        curves[entry.curve].append(entry)
    return curves


def _settled(entry: StudyCell, known: dict[str, Known], estimation: Estimation) -> bool:
    """Return whether a cell is finished, or has answered before its end."""
    found = known.get(entry.cell.cell_id)
    line = enough(estimation)
    return found is not None and (found.finished or (line is not None and found.best >= line))


def _known(store: Store) -> dict[str, Known]:
    rows = store.rows(
        """
        SELECT cell_id, max(ratio) AS best, max_by(samples, ratio) AS samples,
            count(*) >= any_value(cells.checkpoints) AS finished
        FROM checkpoints JOIN cells USING (cell_id) GROUP BY cell_id
        """
    )
    return {row["cell_id"]: Known(row["best"], row["samples"], row["finished"]) for row in rows}


def _sizes(store: Store, low: int, high: int) -> list[int]:
    """Return the training set sizes between two that the store has measured anything of."""
    rows = store.rows(
        """
        SELECT DISTINCT CAST(configuration->>'$.P.size' AS INTEGER) AS size
        FROM cells SEMI JOIN checkpoints USING (cell_id) WHERE size BETWEEN ? AND ?
        """,
        [low, high],
    )
    return [row["size"] for row in rows]
