"""How long the rest of a study takes, from the seconds that its measured checkpoints took."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from diffmem.config import DATASETS, Cell
from diffmem.cost import Cost, cell_cost
from diffmem.store import Row, Store


class Work(NamedTuple):
    """Operations of training, and of generating and scoring; or the seconds they took."""

    training: float
    scoring: float


def seconds_left(store: Store, study: str) -> dict[str, float | None]:
    """Return the seconds of one device that each cell of a study still needs; None where that cannot be told.

    Training and scoring each take as long per operation as in the study's checkpoints so far, all together.
    """
    cells = {cell["cell_id"]: cell for cell in store.cells(study)}
    spent = {
        row["cell_id"]: Work(row["training"], row["scoring"])
        for row in store.rows(
            """
            SELECT cell_id, sum(train_seconds) AS training, sum(score_seconds) AS scoring FROM checkpoints
            WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?) GROUP BY cell_id
            """,
            [study],
        )
    }
    whole = {cell_id: work for cell_id, cell in cells.items() if (work := _work(cell, 0)) is not None}
    rest = {
        cell_id: work for cell_id in whole if (work := _work(cells[cell_id], cells[cell_id]["measured"])) is not None
    }
    measured = whole.keys() & spent.keys()
    training, scoring = (
        _rate(
            [spent[cell_id][part] for cell_id in measured],
            [whole[cell_id][part] - rest[cell_id][part] for cell_id in measured],
        )
        for part in range(2)
    )
    return {cell_id: _seconds(rest.get(cell_id), training, scoring) for cell_id in cells}


def _work(cell: Row, measured: int) -> Work | None:
    """Return the operations of a stored cell after its first `measured` checkpoints; None where it is no model's."""
    cost = _cost(cell["configuration"], min(measured, cell["expected"]))
    return None if cost is None else Work(cost.training, cost.generation + cost.scoring)


def _cost(configuration: dict[str, Any], measured: int) -> Cost | None:
    dataset = DATASETS.get(configuration["P"].get("dataset"))
    channels = dataset.channels if dataset else 3  # a user's own images: the store does not say, and it hardly matters
    try:
        cell = Cell.model_validate({**configuration, "channels": channels, "fingerprints": {}})
    except ValidationError:
        return None
    return cell_cost(cell, measured=measured)


def _rate(seconds: Sequence[float], operations: Sequence[float]) -> float | None:
    """Return the seconds per operation; None where none was done."""
    return sum(seconds) / total if (total := sum(operations)) else None


def _seconds(rest: Work | None, training: float | None, scoring: float | None) -> float | None:
    if rest is None or (rest.training and training is None) or (rest.scoring and scoring is None):
        return None
    return rest.training * (training or 0) + rest.scoring * (scoring or 0)
