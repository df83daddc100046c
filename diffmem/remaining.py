"""How long the rest of a study takes, from the seconds that its measured checkpoints took."""

from collections.abc import Sequence
from typing import NamedTuple

from diffmem.cost import Cost, cell_cost, stored_cell
from diffmem.store import Row, Store


class Work(NamedTuple):
    """Floating-point operations of training, and of generating and scoring."""

    training: float
    scoring: float


def seconds_left(store: Store, study: str) -> dict[str, float | None]:
    """Return the seconds of one device that each cell of a study still needs; None where that cannot be told.

    Training and scoring each take as long per operation as in the study's checkpoints so far, all together.
    """
    work = {cell["cell_id"]: _done_and_left(cell) for cell in store.cells(study)}
    spent = store.read(
        """
        SELECT cell_id, sum(train_seconds) AS training, sum(score_seconds) AS scoring FROM checkpoints
        WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?) GROUP BY cell_id
        """,
        [study],
    )
    counted = [(row, known[0]) for row in spent if (known := work[row["cell_id"]]) is not None]
    training = _rate([row["training"] for row, _ in counted], [done.training for _, done in counted])
    scoring = _rate([row["scoring"] for row, _ in counted], [done.scoring for _, done in counted])
    return {cell_id: known and _seconds(known[1], training, scoring) for cell_id, known in work.items()}


def _done_and_left(stored: Row) -> tuple[Work, Work] | None:
    """Return the operations of a stored cell so far and from then on; None where it is no model's."""
    cell = stored_cell(stored["configuration"])
    if cell is None:
        return None
    whole, left = (_work(cell_cost(cell, measured=had)) for had in (0, min(stored["measured"], stored["expected"])))
    return Work(whole.training - left.training, whole.scoring - left.scoring), left


def _work(cost: Cost) -> Work:
    return Work(cost.training, cost.generation + cost.scoring)


def _rate(seconds: Sequence[float], operations: Sequence[float]) -> float | None:
    """Return the seconds per operation; None where none was done."""
    return sum(seconds) / total if (total := sum(operations)) else None


def _seconds(left: Work, training: float | None, scoring: float | None) -> float | None:
    if (left.training and training is None) or (left.scoring and scoring is None):
        return None
    return left.training * (training or 0) + left.scoring * (scoring or 0)
