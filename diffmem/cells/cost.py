"""What a cell costs: parameters and floating-point operations, counted from its settings alone.

A multiplication and an addition are two operations; normalisations, activations and resampling filters, a few per
cent together, are left out.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from diffmem.cells.cell import Cell
from diffmem.cells.datasets import DATASETS
from diffmem.cells.settings import ModelConfiguration
from diffmem.networks import Layer

PASSES = 3
"""Forward passes that a training step costs: one forward, and the backward pass as much as two."""


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
    epochs_before = min(measured * (cell.score.every or 0), cell.T.epochs)
    images_trained = (cell.steps(cell.T.epochs) - cell.steps(epochs_before)) * cell.T.batch_size
    images_generated = (cell.checkpoint_count - measured) * cell.score.samples
    pixels = cell.channels * (cell.P.resolution or 0) ** 2
    search = 2 * images_generated * cell.P.size * pixels
    evaluations = 2 * cell.score.steps - 1
    if cell.M.network == "optimum":  # two products with the training images, and no training
        generation = images_generated * evaluations * 4 * cell.P.size * pixels
        return Cost(0, 0, images_generated, 0, generation, search)
    forward = forward_operations(cell)
    return Cost(
        parameters(cell),
        images_trained,
        images_generated,
        PASSES * images_trained * forward,
        images_generated * evaluations * forward,
        search,
    )


def stored_cell(configuration: Mapping[str, Any]) -> Cell | None:
    """Return the cell of a store's configuration, to count its cost; None where it is no model's.

    The store does not say how many channels a user's own images have: three are assumed, so its cost is about right.
    """
    dataset = DATASETS.get(configuration["P"].get("dataset"))
    channels = dataset.channels if dataset else 3
    try:
        return Cell.model_validate({**configuration, "channels": channels, "fingerprints": {}})
    except ValidationError:
        return None


def parameters(cell: Cell) -> int:
    """Return the number of trained parameters of a cell's network."""
    noise, _ = _embedding_widths(cell.M)
    labels = (cell.labels + 1) * noise if cell.labels else 0
    return labels + _counts(cell.M, cell.P.resolution or 0, cell.channels).parameters


def forward_operations(cell: Cell) -> int:
    """Return the operations of one forward pass of a cell's network on one image."""
    return _counts(cell.M, cell.P.resolution or 0, cell.channels).forward


class _Counts(NamedTuple):
    """What a network without labels is made of, and the operations of its forward pass on one image."""

    parameters: int
    forward: int


@lru_cache(maxsize=1000)
def _counts(M: ModelConfiguration, resolution: int, channels: int) -> _Counts:
    """Count a network once for the many cells that train it."""
    noise, embedded = _embedding_widths(M)
    layers = M.layers(resolution, channels=channels)
    parameters = (noise + 1) * embedded + (embedded + 1) * embedded
    forward = 2 * noise * embedded + 2 * embedded * embedded
    return _Counts(
        parameters + sum(_parameters(layer, embedded) for layer in layers),
        forward + sum(_operations(layer, embedded) for layer in layers),
    )


def _embedding_widths(M: ModelConfiguration) -> tuple[int, int]:
    """Return the channels of the noise embedding as it enters, and as the blocks see it."""
    return (2 * M.width if M.network == "ncsn++" else M.width), 4 * M.width


def _parameters(layer: Layer, embedded: int) -> int:
    a, b = layer.inputs, layer.outputs
    if layer.kind == "norm":
        return 2 * a
    if layer.kind != "block":
        return (9 * a + 1) * b
    skip = (a + 1) * b if _has_skip(layer) else 0
    attention = 2 * b + (b + 1) * 3 * b + (b + 1) * b if layer.attention else 0
    return 2 * a + (9 * a + 1) * b + (embedded + 1) * b + 2 * b + (9 * b + 1) * b + skip + attention


def _operations(layer: Layer, embedded: int) -> int:
    a, b, area = layer.inputs, layer.outputs, layer.side**2
    if layer.kind == "norm":
        return 0
    if layer.kind == "auxiliary":  # convolves before it halves, over one more pixel at each end
        return 2 * 9 * a * b * (2 * layer.side + 2) ** 2
    if layer.kind == "convolution":
        return 2 * 9 * a * b * area
    skip = 2 * a * b * area if _has_skip(layer) else 0
    attention = 2 * (4 * b * b * area + 2 * b * area**2) if layer.attention else 0
    return 2 * 9 * (a + b) * b * area + 2 * embedded * b + skip + attention


def _has_skip(layer: Layer) -> bool:
    """Return whether a block's shortcut is a 1x1 convolution."""
    return layer.inputs != layer.outputs or layer.resample is not None


def kept_bytes(cell: Cell, parameters: int) -> int:
    """Return about how many bytes the kept weights of a finished cell take."""
    kept = {"all": cell.checkpoint_count, "best": 1, "last": 1, "none": 0}[cell.score.keep]
    return 4 * parameters * kept
