"""Two halves: the images of models that differ in P.half alone, generated from the same latents and compared."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import TrainingSet, held_out, training_set
from diffmem.errors import DataError, StoreError
from diffmem.measures import CENTRED_PIXELS, Space, compare_pairs
from diffmem.models import sample_labels
from diffmem.networks import UntrainedModel
from diffmem.runs.checkpoint_model import CheckpointModel, Device
from diffmem.runs.kept_models import images_of
from diffmem.runs.measuring import measured_entries
from diffmem.store import UNREADABLE, Store, decoded
from diffmem.study import Study, StudyCell
from diffmem.text import counted

MOST_PAIRS = 1000
"""Latents from which both models of a pair generate; the scoring's first ones."""


@dataclass(frozen=True)
class HalvesCompared:
    """Two cells that differ in P.half alone, and how many pairs of images are compared."""

    cell_a: str
    cell_b: str
    name: str  # the axis values of half a
    epoch: int  # what their last checkpoint is known by
    pairs: int
    new: bool  # whether the store did not have it yet
    note: str = ""  # from what they are compared, if not from the models


@dataclass(frozen=True)
class HalfNotCompared:
    """A cell of one half that is not compared with the other half."""

    cell_id: str
    name: str  # its axis values
    reason: str


PICTURES = "from the pictures that the store has of the first images, as a trained model is not kept (score.keep)"
NOT_A_PAIR = "no cell of the study differs from it in P.half alone"
NOT_FINISHED = "it is not trained to its end; run the study first"
NOT_KEPT = (
    'its trained model is not kept, and the store has no pictures of its images; score.keep = "last", the default, '
    "keeps the models of a run, so run the study with that and another --store"
)


def compare_halves(
    study: Study, store: Store, *, space: Space = CENTRED_PIXELS, device: Device = "cpu"
) -> Iterator[HalvesCompared | HalfNotCompared]:
    """Compare the last models of each two cells that differ in P.half alone, store the result, and yield it.

    Both generate from the same latents, those of the first images that were scored, at most MOST_PAIRS. If a model is
    not kept, the pictures in the store are compared instead. A result of as many images that the store already has
    stays. Raises DataError if no cell has P.half, or a training set cannot be read.
    """
    entries = [entry for entry in measured_entries(study, store) if entry.cell.P.half is not None]
    if not entries:
        raise DataError(
            f'{study.path}: no cell has P.half; put P.half = ["a", "b"] on an axis of its own, then run the study'
        )
    for pair in _pairs(entries):
        missing = [_why_not(entry, pair, store) for entry in pair]
        if any(missing):
            yield from (
                HalfNotCompared(entry.cell.cell_id, entry.name, reason)
                for entry, reason in zip(pair, missing, strict=True)
                if reason
            )
        else:
            yield _compared(pair[0], pair[1], store, space, device)


def _pairs(entries: Sequence[StudyCell]) -> list[tuple[StudyCell, ...]]:
    """Return the cells that differ in P.half alone, half a first; a cell by itself if there is no other."""
    alike: dict[str, dict[str, StudyCell]] = {}
    for entry in entries:
        identity = entry.cell.identity
        rest = json.dumps({**identity, "P": {**identity["P"], "half": None}}, sort_keys=True)
        alike.setdefault(rest, {})[str(entry.cell.P.half)] = entry
    return [tuple(pair[half] for half in sorted(pair)) for pair in alike.values()]


def _why_not(entry: StudyCell, pair: Sequence[StudyCell], store: Store) -> str:
    """Return why a cell cannot be compared with its other half; empty if it can, as far as it is asked."""
    if len(pair) < 2:
        return NOT_A_PAIR
    cell = entry.cell
    last = cell.checkpoints[-1][0]
    if last not in store.measured_epochs(cell.cell_id):
        return NOT_FINISHED
    return "" if _has_model(cell, store) or store.pictures(cell.cell_id, last) else NOT_KEPT


def _has_model(cell: Cell, store: Store) -> bool:
    last = cell.checkpoints[-1][0]
    return isinstance(cell.M, UntrainedModel) or last in store.kept_weights().get(cell.cell_id, {})


def _compared(first: StudyCell, second: StudyCell, store: Store, space: Space, device: Device) -> HalvesCompared:
    cells = first.cell, second.cell
    epoch, names = cells[0].checkpoints[-1][0], (cells[0].cell_id, cells[1].cell_id)
    had = store.half_pairs(*names, epoch, space.name)
    models = all(_has_model(cell, store) for cell in cells)
    wanted = min(cells[0].score.samples, MOST_PAIRS)
    if not models:
        wanted = min(wanted, *(len(store.pictures(name, epoch)) for name in names))
    if had >= wanted:
        return HalvesCompared(*names, first.name, epoch, had, new=False)
    if models:
        images = [_generated(cell, store, epoch, wanted, device) for cell in cells]
    else:
        images = [_shown(store, name, epoch, wanted) for name in names]
    data = [training_set(cell) for cell in cells]
    labels = sample_labels(range(wanted), labels=cells[0].labels, seed=cells[0].T.seed) if cells[0].labels else None
    found = compare_pairs(
        (images[0], images[1]),
        (_tensor(data[0]), _tensor(data[1])),
        torch.from_numpy(np.ascontiguousarray(held_out(cells[0], wanted))),
        labels=labels,
        space=space,
    )
    store.add_halves(*names, epoch, space.name, found)
    for note in _notes(cells[0], data):
        for name in names:
            store.add_note(name, note)
    return HalvesCompared(*names, first.name, epoch, wanted, new=True, note="" if models else PICTURES)


def _generated(cell: Cell, store: Store, epoch: int, count: int, device: Device) -> Tensor:
    model = CheckpointModel(cell, store, epoch, device)
    return torch.cat([batch.images for batch in images_of(model.denoiser, cell, count, device=device)])


def _shown(store: Store, cell_id: str, epoch: int, count: int) -> Tensor:
    """Return the first images of a checkpoint from their pictures, uint8 [n, c, h, w]."""
    try:
        images = [np.asarray(decoded(png)) for png in store.pictures(cell_id, epoch)[:count]]
    except UNREADABLE as error:
        raise StoreError(
            f"{store.path}: a picture of cell {cell_id} is not a PNG that can be read; `diffmem store check` says more"
        ) from error
    return torch.from_numpy(np.stack([each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in images]))


def _tensor(data: TrainingSet) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data.images))


def _notes(cell: Cell, data: Sequence[TrainingSet]) -> Iterator[str]:
    """Yield what is to be said of the training sets of two halves."""
    first, second = [image.tobytes() for image in data[0].images], {image.tobytes() for image in data[1].images}
    if shared := len([image for image in first if image in second]):
        yield f"halves: {shared} of the {counted(len(first), 'image')} of half a are identical to one of half b"
    if cell.M.condition == "unique":
        yield "halves: each half has labels of its own, so that the two models are asked for different images"
