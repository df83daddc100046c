"""What a cell costs: parameters and floating-point operations, counted from its settings alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from diffmem.cells.cell import Cell

PASSES = 3
"""Forward passes that a training step costs: one forward, and the backward pass as much as two."""


FEW_STEPS = 100
"""Optimizer steps below which a network has hardly left its initial weights: its ratio says nothing of memorization."""


class Cost(NamedTuple):
    """The work on a cell; operations are floating-point operations."""

    parameters: int
    images_trained: int
    images_generated: int
    training: int  # operations
    generation: int
    scoring: int  # of the neighbour search

    @property
    def operations(self) -> int:
        """Return all operations."""
        return self.training + self.generation + self.scoring


def cell_cost(cell: Cell, *, measured: int = 0) -> Cost:
    """Return the cost of a cell whose first `measured` checkpoints are there already."""
    steps = cell.last_step - _steps_before(cell, measured) if cell.M.trained else 0
    images_trained = steps * cell.T.batch_size
    images_generated = (cell.checkpoint_count - measured) * cell.score.samples
    pixels = cell.channels * (cell.P.resolution or 0) ** 2
    evaluations, work = 2 * cell.score.steps - 1, cell.work
    return Cost(
        work.parameters,
        images_trained,
        images_generated,
        PASSES * images_trained * work.forward,
        images_generated * evaluations * work.forward,
        2 * images_generated * cell.P.size * pixels,
    )


def _steps_before(cell: Cell, measured: int) -> int:
    """Return the optimizer steps up to the last of the first `measured` checkpoints."""
    if cell.clock == "step":
        return cell.checkpoints[min(measured, cell.checkpoint_count) - 1][1] if measured else 0
    return cell.steps(min(measured * (cell.score.every or 0), cell.epochs))


def stored_cell(configuration: Mapping[str, Any]) -> Cell | None:
    """Return the cell of a store's configuration, to count its cost; None if it is no model's, or has no channels."""
    try:
        return Cell.of(configuration)
    except (ValidationError, KeyError):
        return None


def kept_bytes(cell: Cell, parameters: int) -> int:
    """Return about how many bytes the kept weights of a finished cell take."""
    kept = {"all": cell.checkpoint_count, "best": 1, "last": 1, "none": 0}[cell.score.keep]
    return 4 * parameters * kept
