"""How long the rest of a study takes, from the seconds that its measured checkpoints took."""

from collections.abc import Sequence
from typing import NamedTuple

from diffmem.cells import BUDGETS, Cost, TrainingProcedure, cell_cost, stored_cell
from diffmem.store import AlikeCells, Store


class Operations(NamedTuple):
    """Floating-point operations of training, and of generating and scoring."""

    training: float
    scoring: float


def seconds_left(store: Store, study: str) -> dict[str, float | None]:
    """Return the seconds of one device that each cell of a study still needs; None if that is unknown.

    Training and scoring each take as long per operation as in the study's checkpoints so far, all together.
    """
    alike = [(each, _done_and_left(each)) for each in store.alike_cells(study, COSTS_NOTHING)]
    counted = [(each, known[0]) for each, known in alike if known is not None and each.measured]
    training = _rate([(each.training or 0.0, done.training * len(each.cells)) for each, done in counted])
    scoring = _rate([(each.scoring or 0.0, done.scoring * len(each.cells)) for each, done in counted])
    return {
        cell_id: seconds
        for each, known in alike
        for seconds in [known and _seconds(known[1], training, scoring)]
        for cell_id in each.cells
    }


COSTS_NOTHING = {
    "P": dict.fromkeys(("draw", "half", "classes", "blend")),
    "T": dict.fromkeys(sorted(TrainingProcedure.model_fields.keys() - {*BUDGETS, "batch_size"})),
}
"""Settings that cost no operations, as what takes them out of a configuration."""


def _done_and_left(alike: AlikeCells) -> tuple[Operations, Operations] | None:
    """Return the operations of one of some cells alike so far, and from then on; None where they are no model's."""
    cell = stored_cell(alike.settings)
    if cell is None:
        return None
    whole, left = (_work(cell_cost(cell, measured=had)) for had in (0, alike.measured))
    return Operations(whole.training - left.training, whole.scoring - left.scoring), left


def _work(cost: Cost) -> Operations:
    return Operations(cost.training, cost.generation + cost.scoring)


def _rate(spent: Sequence[tuple[float, float]]) -> float | None:
    """Return the seconds per operation of some seconds and operations; None where none was done."""
    total = sum(operations for _, operations in spent)
    return sum(seconds for seconds, _ in spent) / total if total else None


def _seconds(left: Operations, training: float | None, scoring: float | None) -> float | None:
    if (left.training and training is None) or (left.scoring and scoring is None):
        return None
    return left.training * (training or 0) + left.scoring * (scoring or 0)
