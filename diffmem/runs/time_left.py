"""How long the rest of a study takes, from the seconds that its measured checkpoints took."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from diffmem.cells import Cost, TrainingProcedure, cell_cost, stored_cell
from diffmem.store import Row, Store, from_json


class Work(NamedTuple):
    """Floating-point operations of training, and of generating and scoring."""

    training: float
    scoring: float


def seconds_left(store: Store, study: str) -> dict[str, float | None]:
    """Return the seconds of one device that each cell of a study still needs; None where that cannot be told.

    Training and scoring each take as long per operation as in the study's checkpoints so far, all together.
    """
    alike = [(row, _done_and_left(row)) for row in _cells_alike(store, study)]
    counted = [(row, known[0]) for row, known in alike if known is not None and row["measured"]]
    training = _rate([(row["training"], done.training * len(row["cells"])) for row, done in counted])
    scoring = _rate([(row["scoring"], done.scoring * len(row["cells"])) for row, done in counted])
    return {
        cell_id: seconds
        for row, known in alike
        for seconds in [known and _seconds(known[1], training, scoring)]
        for cell_id in row["cells"]
    }


COSTS_NOTHING = {
    "P": dict.fromkeys(("draw", "classes", "blend")),
    "T": dict.fromkeys(sorted(TrainingProcedure.model_fields.keys() - {"epochs", "batch_size"})),
}
"""Settings that cost no operations, as what takes them out of a configuration."""


def _cells_alike(store: Store, study: str) -> list[Row]:
    """Return the cells of a study that cost the same and are equally far: their `settings` that cost something, ids,
    checkpoints had, and the seconds that they took of training and of scoring, all together."""
    return store.read(
        """
        SELECT json_merge_patch(configuration, ?)::VARCHAR AS settings,
            least(coalesce(measured, 0), cells.checkpoints) AS measured, list(cell_id) AS cells,
            sum(training) AS training, sum(scoring) AS scoring
        FROM cells LEFT JOIN (
            SELECT cell_id, count(*) AS measured, sum(train_seconds) AS training, sum(score_seconds) AS scoring
            FROM checkpoints GROUP BY cell_id
        ) USING (cell_id)
        WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
        GROUP BY ALL
        """,
        [json.dumps(COSTS_NOTHING), study],
    )


def _done_and_left(alike: Row) -> tuple[Work, Work] | None:
    """Return the operations of one of some cells alike so far, and from then on; None where they are no model's."""
    cell = stored_cell(from_json(alike["settings"], "the store"))
    if cell is None:
        return None
    whole, left = (_work(cell_cost(cell, measured=had)) for had in (0, alike["measured"]))
    return Work(whole.training - left.training, whole.scoring - left.scoring), left


def _work(cost: Cost) -> Work:
    return Work(cost.training, cost.generation + cost.scoring)


def _rate(spent: Sequence[tuple[float, float]]) -> float | None:
    """Return the seconds per operation of some seconds and operations; None where none was done."""
    total = sum(operations for _, operations in spent)
    return sum(seconds for seconds, _ in spent) / total if total else None


def _seconds(left: Work, training: float | None, scoring: float | None) -> float | None:
    if (left.training and training is None) or (left.scoring and scoring is None):
        return None
    return left.training * (training or 0) + left.scoring * (scoring or 0)
