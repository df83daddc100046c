"""One cell end to end: training set, training, scoring, store; interrupted and resumed at any moment."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import TrainingSet, training_set
from diffmem.errors import DiffmemError, MachineError, OutOfMemory, RunError, StoreError
from diffmem.measures import Comparison, LevelValue, of_copies, of_denoisers
from diffmem.models import (
    ALONE,
    Compile,
    Denoiser,
    DenoiserFunction,
    Group,
    LaunchedDenoiser,
    LostProcess,
    TrainingState,
    build_denoiser,
    compile_networks,
    cpu_threads,
    generate,
    give_back_memory,
    is_compiled,
    ran_out_of_memory,
    set_precision,
    train,
)
from diffmem.networks import UntrainedModel
from diffmem.runs.attempt_record import AttemptRecord, reason_of
from diffmem.runs.denoising import measure_denoiser
from diffmem.runs.events import CellEnded, CellStarted, Ended, Event, Generated, Measured, Saved, Trained
from diffmem.runs.kept_models import keep_weights, remove_leftovers, remove_others
from diffmem.runs.nulls import measure_null
from diffmem.runs.quality import CellQuality, images_kept
from diffmem.runs.saved_states import exclusive, load_state, remove_state, save_state
from diffmem.runs.stopping import Interrupted, Interruptible, Stop
from diffmem.runs.training_images import look_through
from diffmem.store import Checkpoint, Outcome, Store
from diffmem.study import StudyCell

LOSS_CHECK = 100
"""Optimizer steps between two looks at the loss; each look waits for the device once."""

STATE_SECONDS = 300.0
"""Longest time of training that a crash can cost."""

STOP_CHECK = 10
"""Optimizer steps between two questions to a group on GPUs whether to stop."""


@dataclass(frozen=True)
class Work:
    """What the cells of a run have in common: where they go, who works on them, and when that ends."""

    store: Store
    stop: Stop
    group: Group = ALONE
    compile: Compile = "off"
    enough: float | None = None  # the ratio at which a cell has answered
    failed_elsewhere: Callable[[Cell], bool] = lambda _: False


def run_cell(entry: StudyCell, work: Work) -> Generator[Event, None, None]:
    """Train and score one cell, unless it is finished, another process works on it, or it has failed there.

    With `enough` it ends at the first checkpoint with that ratio; its state is kept, so that it can be finished.
    """
    cell, store, group = entry.cell, work.store, work.group
    path = store.state_path(cell.cell_id)
    with exclusive(path.with_suffix(".lock")) if group.leads else nullcontext(False) as free:
        # another process may have had the lock since the cell was asked for, and have reached `enough` or failed
        if not group.any(free) or (work.enough is not None and _best(store, cell) >= work.enough):
            yield CellEnded(entry, Ended.BUSY)
            return
        if work.failed_elsewhere(cell):
            yield CellEnded(entry, Ended.FAILED_ELSEWHERE)
            return
        measured = store.measured_epochs(cell.cell_id) if group.leads else set()
        flags = group.first([int(epoch not in measured) for epoch, _ in cell.checkpoints])
        missing = {epoch for (epoch, _), flag in zip(cell.checkpoints, flags, strict=True) if flag}
        if not missing:
            if group.leads:
                remove_leftovers(store, cell)
            yield CellEnded(entry, Ended.ALREADY)
            return
        compiled = is_compiled(cell, group.device, work.compile)
        attempt = AttemptRecord(store, cell.cell_id, group, compiled=compiled)
        yield from _attempted(CellRun(entry, work, attempt.id, path, compiled), attempt, missing)


def _attempted(run: "CellRun", attempt: "AttemptRecord", missing: set[int]) -> Iterator[Event]:
    """Do the work on a cell, and record how it ended; the last checkpoint comes with that in the same transaction."""
    entry, group, name = run.entry, run.group, run.entry.name
    try:
        with _machine_errors(name, group):
            yield from run.events(missing)
    except Interrupted:
        attempt.end(Outcome.INTERRUPTED)
        raise
    except StoreError:
        raise
    except LostProcess as error:
        attempt.end(Outcome.LOST, str(error))
        raise LostProcess(f"{name}: {error}; what was saved is kept, run the same command again") from error
    except MachineError as error:
        attempt.end(Outcome.INTERRUPTED, str(error))
        if not isinstance(error, OutOfMemory):
            raise
        yield CellEnded(entry, Ended.UNFINISHED, str(error))
        return
    except Exception as error:
        reason = reason_of(error)
        attempt.end(Outcome.FAILED, reason)
        yield CellEnded(entry, Ended.FAILED, reason)
        if group.count > 1 and not isinstance(error, DiffmemError):
            raise RunError(f"{name}: one of {group.count} processes failed, so the run ends: {reason}") from error
        return
    if group.leads and run.outcome is Outcome.FINISHED:
        remove_state(run.state_path)
    yield CellEnded(entry, Ended.CROSSED if run.outcome is Outcome.CROSSED else Ended.FINISHED)


@contextmanager
def _machine_errors(name: str, group: Group) -> Iterator[None]:
    """Turn what the system says of memory, disks and permissions into a MachineError."""
    try:
        yield
    except Exception as error:
        if ran_out_of_memory(error):
            give_back_memory(error)  # before the store needs some to record how the attempt ended
            if group.count > 1 and not isinstance(error, OutOfMemory):
                raise MachineError(
                    f"{name}: one of {group.count} processes ran out of memory, so the run ends; start fewer on one "
                    "machine, or lower T.batch_size or M.width"
                ) from error
            raise OutOfMemory from error
        if isinstance(error, OSError):
            raise MachineError(f"{name}: {error.filename or 'file'}: {error.strerror or error}") from error
        raise


def _best(store: Store, cell: Cell) -> float:
    return max(store.ratios(cell.cell_id).values(), default=0.0)


@dataclass
class CellRun:
    """The work on one cell, by one process on one device."""

    entry: StudyCell
    work: Work
    attempt: str
    state_path: Path
    compiled: bool = False
    outcome: Outcome | None = None  # how the work ended: finished or crossed
    launched: LaunchedDenoiser | None = None  # which generates at all checkpoints

    def __post_init__(self) -> None:
        self.cell, self.store, self.group, self.stop = self.entry.cell, self.work.store, self.work.group, self.work.stop

    def events(self, missing: set[int]) -> Iterator[Event]:
        """Train from checkpoint to checkpoint and score those of `missing` epochs."""
        set_precision(self.cell.T)  # before features are found, which the same rounding is to find again
        self.data = data = training_set(self.cell)
        self.quality = CellQuality(self.cell, self.group.device, data, self.entry.spaces)
        with self.group.memory():
            images, labels = self._on_device(data)
        measure_null(self.cell, self.store, lambda: images, self.group, self.entry.spaces)
        look_through(self.cell, self.store, lambda: images, self.group)
        if isinstance(self.cell.M, UntrainedModel):
            denoiser = self.cell.M.from_images(images.float() / 127.5 - 1, labels, count=self.cell.labels)
            yield CellStarted(self.entry, 0, 0)
            yield from self._measure(denoiser, images, 0, 0, None, 0.0, last=True)
            return
        state, note = self._restore(missing)
        if self.compiled:
            compile_networks(state, self.group.device)
        yield CellStarted(self.entry, state.step, self.cell.checkpoints[-1][1], note)
        steps = train(state, images, labels, group=self.group)
        for epoch, step in self.cell.checkpoints:
            if step < state.step:
                continue
            with cpu_threads(self.cell):
                yield from self._train_to(step, state, steps)
            if epoch not in missing:
                state.take_mean_loss()
                state.take_seconds()
                continue
            state.denoiser.network.forget_dropout()  # generating needs the memory
            # the state is kept with loss and seconds still in it, so that a run killed while scoring finds them again
            self._save(state)
            yield Saved(self.cell, state.step)
            loss, seconds = state.take_mean_loss(), state.take_seconds()
            last = epoch == max(missing)
            yield from self._measure(state.averaged, images, epoch, step, loss, seconds, last=last)
            if self.outcome is Outcome.CROSSED:
                return

    def _on_device(self, data: TrainingSet) -> tuple[Tensor, Tensor | None]:
        images = torch.from_numpy(np.ascontiguousarray(data.images)).to(self.group.device)
        labels = None if data.labels is None else torch.from_numpy(data.labels).to(self.group.device)
        return images, labels

    def _restore(self, missing: set[int]) -> tuple[TrainingState, str]:
        """Return the saved training state, or a fresh one and why where the saved one is of no use."""
        with self.group.memory():
            state, note = self._saved_state(missing)
        if self.group.any(self.group.first([state.step]) != [state.step]):  # the leading process sees its own
            raise MachineError(
                f"{self.state_path.parent}: the processes see different training states; put the store into a folder "
                "that all of them share"
            )
        return state, note

    def _saved_state(self, missing: set[int]) -> tuple[TrainingState, str]:
        state = TrainingState(self._fresh_denoiser(), self.cell.T)
        if not self.state_path.exists():
            return state, ""
        first = min(step for epoch, step in self.cell.checkpoints if epoch in missing)
        try:
            saved = load_state(self.state_path, self.cell, self.group.device)
            if saved["step"] > first:
                return state, "the saved state is past a checkpoint that the store lacks: training from the start"
            state.load_state_dict(saved)
        except MachineError:
            raise
        except (RunError, KeyError, ValueError, RuntimeError) as error:
            if ran_out_of_memory(error):
                raise
            reason = error if isinstance(error, RunError) else f"{self.state_path}: does not fit the network"
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
        return denoiser.to(self.group.device)

    def _train_to(self, step: int, state: TrainingState, steps: Iterator[Tensor]) -> Iterator[Event]:
        """Train up to optimizer step `step`; save the state now and then, and when asked to stop."""
        saved = counted = time.monotonic()
        while state.step < step:
            loss = next(steps)
            checked = state.step % LOSS_CHECK == 0 or state.step == step
            value = self._checked(loss, state) if checked else 0.0  # which waits for the device, so before the clock
            now = time.monotonic()
            state.seconds, counted = state.seconds + now - counted, now
            if checked:
                yield Trained(self.cell, state.step, value)
            if not self._asks(state, step):
                continue
            stopping = self.stop()
            if self.group.any(stopping or now - saved > STATE_SECONDS or state.out_of_memory):
                if self.group.any(state.out_of_memory):
                    raise OutOfMemory
                self._save(state)
                yield Saved(self.cell, state.step)
                saved = now
                if self.group.any(stopping):
                    raise Interrupted

    def _asks(self, state: TrainingState, last: int) -> bool:
        """Return whether the processes agree at this step what to do; on a GPU they wait for it, so not at each."""
        every = 1 if self.group.count == 1 or self.group.device.type == "cpu" else STOP_CHECK
        return state.step % every == 0 or state.step == last

    def _save(self, state: TrainingState) -> None:
        """Save the state, which all processes of the group have, once; if that fails, raise in all of them."""
        failed: Exception | None = None
        if self.group.leads:
            try:
                save_state(self.state_path, self.cell, state)
            except Exception as error:  # noqa: BLE001 - raised once the others know
                failed = error
        if self.group.any(failed is not None):
            raise failed or MachineError(
                f"{self.state_path.parent}: another process cannot save the training state; its own message says why"
            )

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
        *,
        last: bool = False,
    ) -> Iterator[Event]:
        """Generate and score the images of a checkpoint, batch by batch, and append it to the store."""
        started = time.monotonic()
        score = self.cell.score
        others, spaces = of_copies(score.measures, self.entry.spaces), self.entry.spaces
        pairs, keep = score.pairs if self.group.leads else 0, images_kept(score)
        with self.group.memory():
            comparison = Comparison(images, pairs=pairs, others=others, spaces=spaces, keep=keep)
        for first in range(0, score.samples, score.at_once):
            part = range(first, min(first + score.at_once, score.samples))
            with self.group.memory():
                yield from self._score(denoiser, images, epoch, part, comparison)
            comparison.gather(self.group, len(part))
            if score.precision and comparison.half_width() <= score.precision:
                break
        self.launched = None  # training needs the memory
        levels, quality = self._levels(denoiser), self.quality.measured(comparison.images, self.group, self.store)
        checkpoint = Checkpoint.of(
            comparison.evidence(),
            cell_id=self.cell.cell_id,
            attempt_id=self.attempt,
            epoch=epoch,
            step=step,
            loss=loss,
            train_seconds=train_seconds,
            score_seconds=time.monotonic() - started,
            levels=levels,
            quality=quality,
        )
        crossed = self.work.enough is not None and checkpoint.ratio >= self.work.enough
        self.outcome = Outcome.FINISHED if last else Outcome.CROSSED if crossed else None
        last_so_far = bool(self.outcome)  # which it is, unless a search's cell is finished later
        kept = keep_weights(
            self.store, self.cell, denoiser, checkpoint, last=last_so_far, group=self.group, compiled=self.compiled
        )
        if self.group.leads:
            self.store.append(checkpoint, outcome=self.outcome)
            if kept or last:
                remove_others(self.store, self.cell)
        yield Measured(self.cell, epoch, checkpoint.ratio, loss)

    def _levels(self, denoiser: DenoiserFunction) -> Mapping[str, Sequence[LevelValue]]:
        """Measure the denoiser itself by the measures that are asked for, and note why one cannot be had."""
        names = of_denoisers(self.cell.score.measures)
        found = measure_denoiser(self.cell, Interruptible(denoiser, self.stop), self.data, names, group=self.group)
        for note in [*found.notes, *found.reasons.values()] if self.group.leads else []:
            self.store.add_note(self.cell.cell_id, note)
        return found.values

    def _score(
        self, denoiser: DenoiserFunction, images: Tensor, epoch: int, part: range, comparison: Comparison
    ) -> Iterator[Event]:
        """Generate and score this process' share of the images `part`; half as many at once where memory runs out."""
        share = part[self.group.share(len(part))]
        done, at_once = 0, self.cell.score.batch_size
        while done < len(share):
            batch = share[done : done + at_once]
            try:
                comparison.add(self._generate(denoiser, batch, images))
            except (RuntimeError, MemoryError) as error:
                if at_once == 1 or not ran_out_of_memory(error):
                    raise
                at_once = (len(batch) + 1) // 2
                torch.cuda.empty_cache()
                continue
            done += len(batch)
            yield Generated(self.cell, epoch, batch.stop)

    def _generate(self, denoiser: DenoiserFunction, batch: range, images: Tensor) -> Tensor:
        """Generate images of these numbers, of the shape of the training images."""
        if isinstance(denoiser, Denoiser):
            self.launched = self.launched or LaunchedDenoiser(denoiser)
        return generate(
            Interruptible(self.launched or denoiser, self.stop),
            batch,
            shape=(images.shape[1], images.shape[2], images.shape[3]),
            labels=self.cell.labels,
            seed=self.cell.T.seed,
            steps=self.cell.score.steps,
            device=self.group.device,
        )
