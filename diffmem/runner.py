"""Running: one cell end to end (training set, training, scoring, store), a study's cells one after another.

`run_study` is a generator of events; whoever consumes them prints, and stops it between two steps.
"""

import math
import os
import pickle
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffmem.config import RESULTS_VERSION, Cell
from diffmem.data import TrainingSet, training_set
from diffmem.denoiser import Denoiser, OptimalDenoiser, build_denoiser
from diffmem.errors import DiffmemError, RunError, StoreError
from diffmem.provenance import provenance
from diffmem.sampling import DenoiserFunction, generate
from diffmem.scoring import Scores
from diffmem.store import Store
from diffmem.study import Study
from diffmem.training import TrainingState, cpu_threads, set_precision, train

LOSS_CHECK = 100
"""Optimizer steps between two looks at the loss; each look waits for the device once."""
STATE_SECONDS = 300.0
"""Longest time of training that a crash can cost."""

UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile)
"""What reading a damaged training state may raise, beside the usual."""

Stop = Callable[[], bool]


class Interrupted(Exception):
    """The run was asked to stop; all that is needed to go on is saved."""


@dataclass(frozen=True)
class CellStarted:
    """Work on a cell begins, at optimizer step `step` of `steps`."""

    cell: Cell
    name: str  # its axis values
    number: int  # position in the study, from 1
    step: int
    steps: int
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """Training has come to optimizer step `step`."""

    cell: Cell
    step: int
    loss: float


@dataclass(frozen=True)
class Generated:
    """`count` of the images of a checkpoint are generated and scored."""

    cell: Cell
    epoch: int
    count: int


@dataclass(frozen=True)
class Measured:
    """A checkpoint is in the store."""

    cell: Cell
    epoch: int
    ratio: float
    loss: float | None


@dataclass(frozen=True)
class CellEnded:
    """A cell is finished, was so before, is worked on by another process, or has failed."""

    cell: Cell
    name: str
    number: int
    outcome: str  # finished, already finished, busy elsewhere, failed
    error: str = ""


Event = CellStarted | Trained | Generated | Measured | CellEnded


def run_study(study: Study, store: Store, *, stop: Stop) -> Iterator[Event]:
    """Train and score every cell of a study that the store does not have yet.

    `stop` is asked between steps; once it says so, the state is saved and Interrupted raised. A cell that
    fails is recorded with its reason and the next one begins. StoreError where the store itself cannot be used.
    """
    refuse_several_processes()
    store.register(
        study.name,
        title=study.title,
        figure=study.figure,
        path=study.path,
        axes=study.axes,
        estimation=study.estimation.model_dump(mode="json"),
        cells=[(entry.cell, entry.curve, entry.name, dict(entry.axis_values)) for entry in study.cells],
    )
    prefix = f"{store.path.stem}."  # what a run killed after a cell's last checkpoint has left behind
    left_behind = {path.stem.removeprefix(prefix) for path in store.states.glob(f"{prefix}*")}
    finished = store.finished_cells(study.name) - left_behind
    for number, entry in enumerate(study.distinct, start=1):
        if stop():
            raise Interrupted
        if entry.cell.cell_id in finished:
            yield CellEnded(entry.cell, entry.name, number, "already finished")
        else:
            yield from run_cell(entry.cell, store, name=entry.name, number=number, stop=stop)


def refuse_several_processes() -> None:
    """Raise RunError when a launcher has started several processes: each would train every cell."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise RunError(f"started as one of {size} processes, but diffmem trains on one; start `diffmem run` by itself")


def run_cell(cell: Cell, store: Store, *, name: str, number: int, stop: Stop) -> Iterator[Event]:
    """Train and score one cell, unless it is finished or another process works on it."""
    path = store.state_path(cell.cell_id)
    with _exclusive(path.with_suffix(".lock")) as free:
        if not free:
            yield CellEnded(cell, name, number, "busy elsewhere")
            return
        missing = {epoch for epoch, _ in cell.checkpoints} - store.measured_epochs(cell.cell_id)
        if not missing:
            _remove_state(path)
            store.end_open_attempts(cell.cell_id)
            yield CellEnded(cell, name, number, "already finished")
            return
        accelerator = Accelerator(cpu=not torch.cuda.is_available())  # MPS has no float64 for the sampler
        attempt = store.start_attempt(cell.cell_id, provenance(accelerator.device))
        try:
            work = CellRun(cell, store, attempt, accelerator.device, path, stop)
            yield from work.events(name, number, missing)
        except Interrupted:
            store.end_attempt(attempt, "interrupted")
            raise
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever fails a cell, the other cells go on
            reason = _reason(error)
            store.end_attempt(attempt, "failed", reason)
            yield CellEnded(cell, name, number, "failed", reason)
            return
        _remove_state(path)
        store.end_attempt(attempt, "finished")
        yield CellEnded(cell, name, number, "finished")


def _remove_state(path: Path) -> None:
    """Remove the state and the lock of a finished cell; who waits for the lock will find the cell finished."""
    for suffix in (".pt", ".tmp", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock of a cell; False if another process has it. The system frees it when a process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, blocking=False)
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot keep training states there: {error.strerror or error}") from error
    try:
        yield True
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    """Say in one sentence why a cell failed; what nobody foresaw comes with its traceback."""
    if isinstance(error, DiffmemError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory; lower T.batch_size or M.width, or only score.batch_size if it was while generating"
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    return "".join(traceback.format_exception(error)).rstrip()


@dataclass
class CellRun:
    """The work on one cell, by one process on one device."""

    cell: Cell
    store: Store
    attempt: str
    device: torch.device
    state_path: Path
    stop: Stop

    def events(self, name: str, number: int, missing: set[int]) -> Iterator[Event]:
        """Train from checkpoint to checkpoint and score those of `missing` epochs."""
        data = training_set(self.cell)
        images, labels = self._on_device(data)
        if self.cell.M.network == "optimum":
            used = 0 if labels is None else len(torch.unique(labels))
            if used < self.cell.labels:
                raise RunError(
                    f"only {used} of {self.cell.labels} labels are on a training image, and the others have no "
                    "optimum; take fewer labels or a larger size"
                )
            yield CellStarted(self.cell, name, number, 0, 0)
            optimum = OptimalDenoiser(images.float() / 127.5 - 1, labels)
            yield from self._measure(optimum, images, 0, 0, None, 0.0)
            return
        set_precision(self.cell.T)
        state, note = self._restore(missing)
        yield CellStarted(self.cell, name, number, state.step, self.cell.checkpoints[-1][1], note)
        steps = train(state, images, labels)
        for epoch, step in self.cell.checkpoints:
            if step < state.step:
                continue
            started = time.monotonic()
            with cpu_threads(self.cell):
                yield from self._train_to(step, state, steps)
            if epoch not in missing:
                state.take_mean_loss()
                continue
            # the state is kept with its loss still in it, so that a run killed while scoring finds it again
            save_state(self.state_path, self.cell, state)
            seconds = time.monotonic() - started
            loss = state.take_mean_loss()
            yield from self._measure(state.averaged, images, epoch, step, loss, seconds)

    def _on_device(self, data: TrainingSet) -> tuple[Tensor, Tensor | None]:
        images = torch.from_numpy(np.ascontiguousarray(data.images)).to(self.device)
        labels = None if data.labels is None else torch.from_numpy(data.labels).to(self.device)
        return images, labels

    def _restore(self, missing: set[int]) -> tuple[TrainingState, str]:
        """Return the saved training state, or a fresh one and why where the saved one is of no use."""
        state = TrainingState(self._fresh_denoiser(), self.cell.T)
        if not self.state_path.exists():
            return state, ""
        first = min(step for epoch, step in self.cell.checkpoints if epoch in missing)
        try:
            saved = load_state(self.state_path, self.cell, self.device)
            if saved["step"] > first:
                return state, "the saved state is past a checkpoint that the store lacks: training from the start"
            state.load_state_dict(saved)
        except (RunError, KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            return TrainingState(self._fresh_denoiser(), self.cell.T), f"{reason}: training from the start"
        return state, ""

    def _fresh_denoiser(self) -> Denoiser:
        cell = self.cell
        denoiser = build_denoiser(
            cell.M,
            resolution=cell.P.resolution or 0,
            channels=cell.channels,
            labels=cell.labels,
            seed=cell.T.seed,
        )
        return denoiser.to(self.device)

    def _train_to(self, step: int, state: TrainingState, steps: Iterator[Tensor]) -> Iterator[Event]:
        """Train up to optimizer step `step`; save the state now and then, and when asked to stop."""
        saved = time.monotonic()
        while state.step < step:
            loss = next(steps)
            if state.step % LOSS_CHECK == 0 or state.step == step:
                yield Trained(self.cell, state.step, self._checked(loss, state))
            stopping = self.stop()
            if stopping or time.monotonic() - saved > STATE_SECONDS:
                save_state(self.state_path, self.cell, state)
                saved = time.monotonic()
            if stopping:
                raise Interrupted

    def _checked(self, loss: Tensor, state: TrainingState) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise RunError(
                f"the training loss is {value} at step {state.step}; lower T.lr (now {self.cell.T.lr:g}) or "
                "lengthen T.warmup_epochs"
            )
        return value

    def _measure(
        self,
        denoiser: DenoiserFunction,
        images: Tensor,
        epoch: int,
        step: int,
        loss: float | None,
        train_seconds: float,
    ) -> Iterator[Event]:
        """Generate and score the images of a checkpoint, batch by batch, and append it to the store."""
        started = time.monotonic()
        score = self.cell.score
        scores = Scores(images, pairs=score.pairs)
        for start in range(0, score.samples, score.batch_size):
            batch = range(start, min(start + score.batch_size, score.samples))
            generated = generate(
                Interruptible(denoiser, self.stop),
                batch,
                shape=(images.shape[1], images.shape[2], images.shape[3]),
                labels=self.cell.labels,
                seed=self.cell.T.seed,
                steps=score.steps,
                device=self.device,
            )
            scores.add(generated)
            yield Generated(self.cell, epoch, batch.stop)
        checkpoint = scores.checkpoint(
            self.cell.cell_id,
            self.attempt,
            epoch=epoch,
            step=step,
            loss=loss,
            train_seconds=train_seconds,
            score_seconds=time.monotonic() - started,
        )
        self.store.append(checkpoint)
        yield Measured(self.cell, epoch, checkpoint.ratio, loss)


class Interruptible:
    """A denoiser that is asked to stop between two noise levels, so that a long generation can be left."""

    def __init__(self, denoiser: DenoiserFunction, stop: Stop) -> None:
        self.denoiser, self.stop = denoiser, stop
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoise, or raise Interrupted."""
        if self.stop():
            raise Interrupted
        return self.denoiser(noisy, sigma, labels)


# --- training states -----------------------------------------------------------------------------------


def save_state(path: Path, cell: Cell, state: TrainingState) -> None:
    """Write a training state so that at every moment either the old or the new one is whole."""
    temporary = path.with_suffix(".tmp")
    content = {"cell_id": cell.cell_id, "results_version": RESULTS_VERSION, **state.state_dict()}
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path}: the training state cannot be saved ({str(error).splitlines()[0]}); free some space or check "
            "the folder's permissions, then run the same command again"
        ) from error


def load_state(path: Path, cell: Cell, device: torch.device) -> dict[str, Any]:
    """Return a saved training state; RunError if the file is damaged or of another cell."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not look at the checksums
        state = None if damaged else torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, *UNREADABLE) as error:
        raise RunError(f"{path}: damaged") from error
    if not isinstance(state, dict):
        raise RunError(f"{path}: damaged")
    if state.get("cell_id") != cell.cell_id or state.get("results_version") != RESULTS_VERSION:
        raise RunError(f"{path}: written by another diffmem")
    return dict(state)
