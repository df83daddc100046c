"""Trained models that are kept: averaged weights as safetensors, whose header has the cell that they are of."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmem.atomic import remove_abandoned, replacing
from diffmem.cells import RESULTS_VERSION, Cell, Scoring
from diffmem.data import progress
from diffmem.errors import MachineError, NotInStore, OutOfMemory, RunError
from diffmem.models import (
    ALONE,
    Denoiser,
    DenoiserFunction,
    Group,
    build_denoiser,
    heun,
    latents,
    quantise,
    ran_out_of_memory,
    sample_labels,
    set_precision,
)
from diffmem.runs.saved_states import remove_state
from diffmem.store import Checkpoint, Store, close_attempts
from diffmem.text import counted

HEADER = "diffmem"
"""The entry of a file's header that says what the weights are of."""


@dataclass(frozen=True)
class Made:
    """What the images of a checkpoint depend on up to rounding."""

    device: str
    threads: int
    processes: int
    compiled: bool

    @classmethod
    def here(cls, device: torch.device | str, *, processes: int = 1, compiled: bool = False) -> "Made":
        """Return how images are made on a device here."""
        return cls(torch.device(device).type, torch.get_num_threads(), processes, compiled)

    def __str__(self) -> str:
        several = f"{self.processes} x " if self.processes > 1 else ""
        return f"{several}{self.device} ({counted(self.threads, 'thread')}{', compiled' * self.compiled})"


@dataclass(frozen=True)
class KeptModel:
    """A file of averaged weights, and what they are of."""

    path: Path
    cell: Cell
    epoch: int
    sha256: str  # of the weights
    made: Made | None  # None: written by a diffmem that did not say


# --- writing -------------------------------------------------------------------------------------------


def save_weights(path: Path, cell: Cell, denoiser: Denoiser, *, epoch: int, made: Made) -> None:
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
        "made": asdict(made),
        "sha256": _hash(weights),
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
    store: Store,
    cell: Cell,
    denoiser: DenoiserFunction,
    checkpoint: Checkpoint,
    *,
    last: bool,
    group: Group = ALONE,
    compiled: bool = False,
) -> bool:
    """Keep the weights of a checkpoint if the cell asks for it; call it before the row that says that it is measured.

    Returns whether they were kept, in the leading process. MachineError in all of a group where they cannot be.
    """
    failed: MachineError | None = None
    kept = False
    if group.leads and isinstance(denoiser, Denoiser) and store.exists():  # if not, the row cannot be written either
        best = max(_ratios(store, cell).values(), default=-1.0) if cell.score.keep == "best" else -1.0
        kept = is_kept(cell, ratio=checkpoint.ratio, best=best, last=last)
        try:
            if kept:
                made = Made.here(group.device, processes=group.count, compiled=compiled)
                path = store.weights_path(cell.cell_id, checkpoint.epoch)
                save_weights(path, cell, denoiser, epoch=checkpoint.epoch, made=made)
        except MachineError as error:
            failed = error
    if group.any(failed is not None):
        raise failed or MachineError(
            f"{store.weights}: another process cannot keep the trained model; its own message says why"
        )
    return kept


def _ratios(store: Store, cell: Cell) -> dict[int, float]:
    """Return the ratios of the checkpoints of a cell whose weights are kept, by epoch."""
    kept = store.kept_weights().get(cell.cell_id, {})
    return {epoch: ratio for epoch, ratio in store.ratios(cell.cell_id).items() if epoch in kept}


def is_kept(cell: Cell, *, ratio: float, best: float, last: bool) -> bool:
    """Return whether the weights of a checkpoint are kept, given the highest ratio of those that are."""
    return {"all": True, "best": ratio > best, "last": last, "none": False}[cell.score.keep]


def remove_others(store: Store, cell: Cell) -> None:
    """Remove what is kept of a cell beside its last checkpoint, or its best one, where one alone is wanted."""
    files = store.kept_weights().get(cell.cell_id, {})
    if len(files) < 2 or cell.score.keep not in ("last", "best"):
        return
    ratios = _ratios(store, cell)
    wanted = max(files) if cell.score.keep == "last" or not ratios else max(ratios, key=ratios.__getitem__)
    for epoch, path in files.items():
        if epoch != wanted:
            with suppress(OSError):  # what stays takes room, and no more
                path.unlink()


def remove_leftovers(store: Store, cell: Cell) -> None:
    """Remove what a run killed after the last checkpoint of a cell has left."""
    remove_others(store, cell)
    remove_state(store.state_path(cell.cell_id))
    close_attempts(store)


# --- reading -------------------------------------------------------------------------------------------


def find_model(store: Store, cell_id: str, epoch: int | None = None) -> KeptModel:
    """Return what is kept of a cell, at its last checkpoint that is or at `epoch`; NotInStore where nothing is."""
    kept = store.kept_weights().get(cell_id, {})
    if not kept:
        raise NotInStore(
            f"{store.weights}: no weights of cell {cell_id}; a run keeps them when it trains a cell to its end "
            "(score.keep), and `diffmem store prune` removes them"
        )
    if epoch is not None and epoch not in kept:
        there = ", ".join(map(str, sorted(kept)))
        raise NotInStore(
            f"{store.weights}: no weights of cell {cell_id} at checkpoint {epoch}; there are those of {there}"
        )
    wanted = max(kept) if epoch is None else epoch
    return _opened(kept[wanted], cell_id, wanted)


def _opened(path: Path, cell_id: str, epoch: int) -> KeptModel:
    with _readable(path):
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[HEADER])
        if about["channels"] not in (1, 3):
            raise ValueError("no images have so many channels")
        scoring = {**about["configuration"]["score"], "batch_size": about["batch_size"]}
        P = {**about["configuration"]["P"], "channels": about["channels"]}
        made = Made(**about["made"]) if "made" in about else None
        cell = Cell.of({**about["configuration"], "P": P, "score": scoring})
        kept = KeptModel(path, cell, epoch, str(about["sha256"]), made)
    names = {kept.cell.name_by(version) for version in range(1, RESULTS_VERSION + 1)}
    if not {cell_id, about["cell_id"]} <= names or about["epoch"] != epoch:
        raise RunError(f"{path}: written by another diffmem, or of another cell; {ANEW}")
    return kept


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a file of weights may raise into a sentence."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path}: the trained model cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        if ran_out_of_memory(error):
            raise OutOfMemory from error
        raise RunError(f"{path}: no weights that diffmem has written whole; {ANEW}") from error


DAMAGED = (SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, RuntimeError)
"""What reading a file may raise that something else wrote, or damaged."""
ANEW = "run its study with another --store to train the cell again"


def load_denoiser(
    store: Store | Path | str, cell_id: str, *, epoch: int | None = None, device: torch.device | str = "cpu"
) -> Denoiser:
    """Return the trained denoiser of a cell, with averaged weights, in evaluation mode on `device`.

    The weights are from checkpoint `epoch`; None means the last one that is kept. Raises NotInStore if none are kept,
    and RunError if they are damaged.
    """
    return denoiser_of(find_model(store if isinstance(store, Store) else Store(store), cell_id, epoch), device)


def denoiser_of(kept: KeptModel, device: torch.device | str) -> Denoiser:
    """Return the denoiser of a kept model on a device; RunError if its weights are damaged."""
    cell = kept.cell
    with _readable(kept.path):
        weights = load_file(kept.path)
        if _hash(weights) != kept.sha256:
            raise ValueError("other weights than were written")
        denoiser = build_denoiser(cell.M, resolution=cell.P.resolution or 0, channels=cell.channels, labels=cell.labels)
        denoiser.network.load_state_dict(weights)
    return denoiser.to(device).requires_grad_(False)


def _hash(weights: Mapping[str, Tensor]) -> str:
    """Return the hash of weights by name; safetensors has no checksum of its own."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {list(weights[name].shape)}\n".encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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

    `labels` is one label for all images, or one for each, instead of the drawn ones. `epoch` is as in `load_denoiser`.
    Raises NotInStore if no weights are kept, and RunError if the model has no such labels.
    """
    kept = find_model(store, cell_id, epoch)
    yield from images_of(denoiser_of(kept, device), kept.cell, count, labels=labels, device=device)


def images_of(
    denoiser: DenoiserFunction,
    cell: Cell,
    count: int,
    *,
    labels: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Iterator[Images]:
    """Yield the first `count` images of a cell's denoiser, batch by batch, as `generate_images` does."""
    _check_labels(cell, labels, count)
    set_precision(cell.T)
    tell, done = progress.get(), 0
    tell("generating", done, count)
    for batch in _batches(cell.score, count):
        if labels:  # images that were never scored need no more company than they ask for
            batch = range(batch.start, min(batch.stop, count))
        wanted = _labels(cell, batch, labels)
        found = _generated(denoiser, cell, batch, wanted, torch.device(device))
        rows = slice(0, count - done)
        done = min(batch.stop, count)
        tell("generating", done, count)
        yield Images(found[rows], None if wanted is None else wanted[rows])


def _generated(
    denoiser: DenoiserFunction, cell: Cell, batch: range, labels: Tensor | None, device: torch.device
) -> Tensor:
    """Return images of these numbers, uint8 on the CPU; in two halves where memory runs out."""
    side = cell.P.resolution or 0
    try:
        noise = latents(batch, shape=(cell.channels, side, side), seed=cell.T.seed).to(device)
        return quantise(
            heun(denoiser, noise, None if labels is None else labels.to(device), steps=cell.score.steps)
        ).cpu()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise OutOfMemory from error
    half = len(batch) // 2
    halves = (
        (batch[:half], None if labels is None else labels[:half]),
        (batch[half:], None if labels is None else labels[half:]),
    )
    return torch.cat([_generated(denoiser, cell, *each, device) for each in halves])


def _batches(score: Scoring, count: int) -> Iterator[range]:
    """Yield the batches of the first `count` images as the scoring has them, so that even rounding is the same."""
    first = 0
    while first < count:
        end = (first // score.at_once + 1) * score.at_once if first < score.samples else first + score.batch_size
        end = min(end, score.samples) if first < score.samples else end
        yield range(first, first := min(first + score.batch_size, end))


def _labels(cell: Cell, batch: range, given: Sequence[int]) -> Tensor | None:
    if not cell.labels:
        return None
    if not given:
        return sample_labels(batch, labels=cell.labels, seed=cell.T.seed)
    return torch.tensor([given[min(i, len(given) - 1)] for i in batch])


def _check_labels(cell: Cell, labels: Sequence[int], count: int) -> None:
    if not labels:
        return
    name, known = cell.cell_id, cell.labels
    if not known:
        raise RunError(f"cell {name}: an unconditional model, which takes no labels")
    if bad := [label for label in labels if not 0 <= label < known]:
        raise RunError(f"cell {name}: no label {bad[0]}; it has those from 0 to {known - 1}")
    if len(labels) not in (1, count):
        raise RunError(f"cell {name}: {len(labels)} labels for {count} images; give one for all, or one for each")


# --- removing ------------------------------------------------------------------------------------------


def prune(store: Store, cells: Iterable[str] | None, *, older_than: float | None = None) -> list[tuple[Path, int]]:
    """Remove the kept weights of `cells` (None: of all cells), and return each file with its size in bytes.

    `older_than` spares files of fewer days. Raises NotInStore if there is no store, and MachineError if a file cannot
    be removed.
    """
    if not store.exists():
        raise NotInStore(f"{store.path}: no store there yet, so nothing is kept for it")
    chosen, latest, removed = None if cells is None else set(cells), time.time() - (older_than or 0) * 86_400, []
    for cell_id, files in store.kept_weights().items():
        for path in files.values() if chosen is None or cell_id in chosen else ():
            try:
                status = path.lstat()
                if older_than is None or status.st_mtime <= latest:
                    path.unlink()
                    removed.append((path, status.st_size))
            except FileNotFoundError:  # a run has removed it
                continue
            except OSError as error:
                raise MachineError(f"{path}: cannot be removed: {error.strerror or error}") from error
    return removed
