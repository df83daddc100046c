"""Trained models that are kept: averaged weights as safetensors, whose header has the cell that they are of."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmem.atomic import remove_abandoned, replacing
from diffmem.cells import Cell
from diffmem.data import progress
from diffmem.errors import MachineError, NotInStore, RunError
from diffmem.models import (
    ALONE,
    Denoiser,
    DenoiserFunction,
    Group,
    build_denoiser,
    heun,
    latents,
    on_device,
    quantise,
    sample_labels,
)
from diffmem.store import Checkpoint, Store

HEADER = "diffmem"
"""The entry of a file's header that says what the weights are of."""


@dataclass(frozen=True)
class KeptModel:
    """A file of averaged weights, and what they are of."""

    path: Path
    cell: Cell
    epoch: int
    batch_size: int  # images that were generated at once when it was scored


# --- writing -------------------------------------------------------------------------------------------


def save_weights(path: Path, cell: Cell, denoiser: Denoiser, *, epoch: int) -> None:
    """Write the weights of a checkpoint, whole or not at all; MachineError where they cannot be written."""
    weights = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in denoiser.network.state_dict().items()
    }
    about = {
        "cell_id": cell.cell_id,
        "epoch": epoch,
        "configuration": cell.configuration,
        "channels": cell.channels,
        "batch_size": cell.score.batch_size,
    }
    try:
        path.parent.mkdir(exist_ok=True)  # where the store's own folder is gone, nothing may begin
        remove_abandoned(path.parent, path.name)
        with replacing(path) as file:
            save_file(weights, file, metadata={HEADER: json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"{path}: the trained model cannot be kept ({str(error).splitlines()[0]}); free some space or check the "
            'folder\'s permissions, then run the same command again, or set score.keep = "none"'
        ) from error


def keep_weights(
    store: Store, cell: Cell, denoiser: DenoiserFunction, checkpoint: Checkpoint, *, last: bool, group: Group = ALONE
) -> bool:
    """Keep the weights of a checkpoint if the cell asks for it; call it before the row that says that it is measured.

    Returns whether they were kept, in the leading process. MachineError in all of a group where they cannot be.
    """
    failed: MachineError | None = None
    kept = False
    if group.leads and isinstance(denoiser, Denoiser) and store.exists():  # if not, the row cannot be written either
        best = best_ratio(store, cell) if cell.score.keep == "best" else 0.0
        kept = is_kept(cell, ratio=checkpoint.ratio, best=best, last=last)
        try:
            if kept:
                save_weights(store.weights_path(cell.cell_id, checkpoint.epoch), cell, denoiser, epoch=checkpoint.epoch)
        except MachineError as error:
            failed = error
    if group.any(failed is not None):
        raise failed or MachineError(f"{store.weights}: another process cannot keep the trained model")
    return kept


def best_ratio(store: Store, cell: Cell) -> float:
    """Return the highest ratio that the store has of a cell, -1 where it has none."""
    rows = store.read("SELECT coalesce(max(ratio), -1) AS best FROM checkpoints WHERE cell_id = ?", [cell.cell_id])
    return float(rows[0]["best"])


def is_kept(cell: Cell, *, ratio: float, best: float, last: bool) -> bool:
    """Return whether the weights of a checkpoint are kept, given the highest ratio of those before it."""
    return {"all": True, "best": ratio > best, "last": last, "none": False}[cell.score.keep]


def remove_others(store: Store, cell: Cell, epoch: int) -> None:
    """Remove what is kept of a cell's other checkpoints, unless all are."""
    if cell.score.keep != "all":
        for other, path in store.kept_weights().get(cell.cell_id, {}).items():
            if other != epoch:
                path.unlink(missing_ok=True)


# --- reading -------------------------------------------------------------------------------------------


def find_model(store: Store, cell_id: str, epoch: int | None = None) -> KeptModel:
    """Return what is kept of a cell, at its last checkpoint that is or at `epoch`; NotInStore where nothing is."""
    kept = store.kept_weights().get(cell_id, {})
    if not kept:
        raise NotInStore(
            f"{store.weights}: no weights of cell {cell_id}; they are kept when it is trained, unless score.keep is "
            '"none", or `diffmem store prune` has removed them'
        )
    if epoch is not None and epoch not in kept:
        there = ", ".join(map(str, sorted(kept)))
        raise NotInStore(f"{store.weights}: no weights of cell {cell_id} at epoch {epoch}; there are those of {there}")
    return _opened(kept[max(kept) if epoch is None else epoch], cell_id)


def _opened(path: Path, cell_id: str) -> KeptModel:
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[HEADER])
        cell = Cell.model_validate({**about["configuration"], "channels": about["channels"], "fingerprints": {}})
        if cell.cell_id != cell_id or about["cell_id"] != cell_id:
            raise RunError(f"{path}: written by another diffmem, or of another cell; train it again")
        return KeptModel(path, cell, int(about["epoch"]), int(about["batch_size"]))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, ValidationError) as error:
        raise RunError(f"{path}: no weights that diffmem has written whole; train the cell again") from error


def load_denoiser(
    store: Store | Path | str, cell_id: str, *, epoch: int | None = None, device: torch.device | str = "cpu"
) -> Denoiser:
    """Return the trained denoiser of a cell, with averaged weights, in evaluation mode on a device.

    It is that of the last checkpoint that is kept, or of `epoch`. NotInStore where no weights are kept, RunError where
    they are damaged.
    """
    return _denoiser(find_model(store if isinstance(store, Store) else Store(store), cell_id, epoch), device)


def _denoiser(kept: KeptModel, device: torch.device | str) -> Denoiser:
    cell = kept.cell
    denoiser = build_denoiser(cell.M, resolution=cell.P.resolution or 0, channels=cell.channels, labels=cell.labels)
    try:
        denoiser.network.load_state_dict(load_file(kept.path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{kept.path}: no weights that diffmem has written whole; train the cell again") from error
    return on_device(denoiser, torch.device(device)).requires_grad_(False)


# --- generating ----------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Generated images, uint8 [n, c, h, w], and their labels, int64 [n], where the model has any."""

    images: Tensor
    labels: Tensor | None


def generate_images(
    store: Store,
    cell_id: str,
    count: int,
    *,
    labels: Sequence[int] = (),
    epoch: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Images]:
    """Yield the first `count` images of a trained cell, batch by batch; image i is the one that was scored.

    `labels` are one for all images or one for each, instead of those that were drawn. RunError where the model has no
    such labels.
    """
    kept = find_model(store, cell_id, epoch)
    cell, denoiser = kept.cell, _denoiser(kept, device)
    _check_labels(kept, labels, count)
    side = cell.P.resolution or 0
    for batch in _batches(count, kept):
        wanted = _labels(cell, batch, labels)
        noise = latents(batch, shape=(cell.channels, side, side), seed=cell.T.seed).to(device)
        found = heun(denoiser, noise, None if wanted is None else wanted.to(device), steps=cell.score.steps)
        done = min(batch.stop, count)
        rows = slice(0, done - batch.start)
        progress.get()("generating", done, count)
        yield Images(quantise(found)[rows].cpu(), None if wanted is None else wanted[rows])


def _batches(count: int, kept: KeptModel) -> Iterator[range]:
    """Yield the batches of the first `count` images as the scoring had them, so that even rounding is the same."""
    first, samples = 0, kept.cell.score.samples
    while first < count:
        end = first + kept.batch_size
        end = min(end, samples) if first < samples else end
        yield range(first, end)
        first = end


def _labels(cell: Cell, batch: range, given: Sequence[int]) -> Tensor | None:
    if not cell.labels:
        return None
    if not given:
        return sample_labels(batch, labels=cell.labels, seed=cell.T.seed)
    return torch.tensor([given[min(i, len(given) - 1)] for i in batch])


def _check_labels(kept: KeptModel, labels: Sequence[int], count: int) -> None:
    if not labels:
        return
    name, known = kept.cell.cell_id, kept.cell.labels
    if not known:
        raise RunError(f"cell {name}: an unconditional model, which takes no labels")
    if bad := [label for label in labels if not 0 <= label < known]:
        raise RunError(f"cell {name}: no label {bad[0]}; it has those from 0 to {known - 1}")
    if len(labels) not in (1, count):
        raise RunError(f"cell {name}: {len(labels)} labels for {count} images; give one for all, or one for each")


# --- removing ------------------------------------------------------------------------------------------


def prune(store: Store, cells: Iterable[str] | None, *, older_than: float = 0.0) -> list[tuple[Path, int]]:
    """Remove the kept weights of some cells (None: of all) that were written so many days ago; return files, bytes."""
    chosen, latest, removed = None if cells is None else set(cells), time.time() - older_than * 86_400, []
    for cell_id, files in store.kept_weights().items():
        for path in files.values():
            status = path.stat()
            if (chosen is None or cell_id in chosen) and status.st_mtime <= latest:
                path.unlink(missing_ok=True)
                removed.append((path, status.st_size))
    return removed
