"""The cells of a study as the page shows them: what sets each apart, its attempts, and what they took."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffmem.analysis import CellWithSettings, by_position
from diffmem.cells import cell_cost, stored_cell
from diffmem.store import Attempt, State, StoredCell, outcome_of, reason, state_of
from diffmem.text import duration, with_unit


@dataclass(frozen=True)
class TriedCell:
    """A cell with its state, what sets it apart in its study, its attempts and what they took."""

    cell: StoredCell
    best: float | None
    state: State
    error: str | None
    configuration: str
    apart: str
    cost: str
    trained: str
    scored: str
    attempts: list[tuple[Attempt, str, str, str]]  # with its outcome, versions and source


def tried_cells(cells: Sequence[CellWithSettings], attempts: Sequence[Attempt]) -> list[TriedCell]:
    """Return the cells of a study with what was tried."""
    tried = by_position(attempts)
    base = _most_common([each.settings for each in cells])
    return [_tried_cell(each, tried[each.cell.position], base) for each in cells]


def _tried_cell(measured: CellWithSettings, tried: Sequence[Attempt], base: Mapping[str, Any]) -> TriedCell:
    cell = measured.cell
    apart = [f"{key} = {value}" for key, value in measured.settings.items() if base.get(key) != value]
    return TriedCell(
        cell,
        measured.best,
        state_of(cell),
        reason(cell),
        configuration=json.dumps(cell.configuration, indent=2),
        apart=", ".join(apart),
        cost=_cost(cell),
        trained=duration(sum(attempt.train_seconds for attempt in tried)),
        scored=duration(sum(attempt.score_seconds for attempt in tried)),
        attempts=[
            (each, outcome_of(each, finished=cell.finished) or each.outcome, _versions(each), _source(each))
            for each in tried
        ],
    )


UNKNOWN_COST = "not known: an older diffmem did not keep the colour channels of its images"


def _cost(cell: StoredCell) -> str:
    """Return the size of a cell's network and its operations in words; empty for images of other tools."""
    known = stored_cell(cell.configuration)
    if known is None:
        return UNKNOWN_COST if "M" in cell.configuration else ""
    cost = cell_cost(known)
    size = f"{with_unit(cost.parameters)} parameters, " * bool(cost.parameters)
    return f"{size}{with_unit(cost.operations)} floating-point operations for all its checkpoints"


def _most_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the value of each setting that most cells have, the first one where several are as frequent."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for one in settings:
        for key, value in one.items():
            values[key][json.dumps(value)] += 1
    return {key: json.loads(counted.most_common(1)[0][0]) for key, counted in values.items()}


def _versions(attempt: Attempt) -> str:
    return ", ".join(f"{package} {number}" for package, number in attempt.versions.items())


def _source(attempt: Attempt) -> str:
    if attempt.git_commit is None:
        return "-"
    return attempt.git_commit[:10] + (" with local changes" if attempt.git_dirty else "")
