"""A cell of a study as a task on a node of a cluster: trained and scored as anywhere, its rows sent to the driver."""

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from diffmem.cells import Cell
from diffmem.errors import DiffmemError, MachineError
from diffmem.measures import DeclaredSpace, Evidence, SpaceIdentity
from diffmem.models import Compile, Group, this_device
from diffmem.runs.cell_run import Work, run_cell
from diffmem.runs.events import CellStarted, Event, Generated, Saved, Trained
from diffmem.runs.spaces import identities_of
from diffmem.runs.stopping import Interrupted, Stop
from diffmem.runs.workplace import STATE, WEIGHTS, Workplace
from diffmem.store import Checkpoint, Outcome, Provenance, Store, TrainingImages, new_attempt_id
from diffmem.study import StudyCell

Call = Callable[[Store], Any]
"""What is to be done with the driver's store: one of its methods, with what it is given."""

HANDED_ON = ("DIFFMEM_MAX_PIXELS",)
"""Variables of the environment that the driver hands on."""

POLL = 1.0
"""Seconds between two questions whether the run is to stop."""

OFTEN = 0.5
"""Seconds between two messages that only say how far a task is."""


@dataclass(frozen=True)
class Known:
    """What the driver's store has of a cell when its task begins."""

    ratios: Mapping[int, float]  # of the checkpoints that are measured, by epoch
    kept: frozenset[int]  # epochs whose weights are kept
    held_out: Mapping[str, int]  # held-out images that are compared, by measure
    training_images: bool  # whether its training images are looked through

    @classmethod
    def of(cls, store: Store, cell: Cell) -> "Known":
        """Return what a store has of a cell."""
        name = cell.cell_id
        kept = frozenset(store.kept_weights().get(name, {}))
        return cls(store.ratios(name), kept, store.held_out_counts(name), store.has_training_images(name))

    @property
    def best(self) -> float:
        """Return the highest ratio that is measured, 0 where none is."""
        return max(self.ratios.values(), default=0.0)

    def missing(self, cell: Cell) -> list[int]:
        """Return the optimizer steps of the checkpoints that are not measured."""
        return [step for epoch, step in cell.checkpoints if epoch not in self.ratios]


@dataclass(frozen=True)
class Origin:
    """What must be the same on a node as where the run was started."""

    version: str  # of diffmem
    folder: str  # in which relative paths begin
    environment: Mapping[str, str] = field(default_factory=dict)  # what decides which images may be read
    spaces: Sequence[DeclaredSpace] = ()
    identities: tuple[SpaceIdentity, ...] = ()  # of these

    @classmethod
    def here(cls, spaces: Iterable[DeclaredSpace] = (), identities: Sequence[SpaceIdentity] = ()) -> "Origin":
        """Return what it is here."""
        told = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        return cls(version("diffmem"), str(Path.cwd()), told, tuple(spaces), tuple(identities))

    def take(self, cell: Cell, device: torch.device) -> None:
        """Work in that folder and environment; MachineError where this machine has no such folder, another diffmem, or
        another feature space."""
        if (own := version("diffmem")) != self.version:
            raise MachineError(
                f"diffmem {own} is installed here, and {self.version} where the run was started; install the same"
            )
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise MachineError(
                f"{self.folder}: {error.strerror}; start the run in a folder that all nodes have, as paths begin there"
            ) from error
        os.environ.update(self.environment)
        for own_space, space in zip(identities_of(self.spaces, cell, device), self.identities, strict=True):
            if own_space != space:
                raise MachineError(
                    f"the feature space {space.measure} is another one here than where the run was started; give all "
                    "nodes the same file, weights or function"
                )


@dataclass(frozen=True)
class Task:
    """All that a node needs to work on a cell."""

    entry: StudyCell
    known: Known
    workplace: Workplace
    origin: Origin
    compile: Compile = "off"
    enough: float | None = None  # the ratio at which a cell has answered
    gpu: bool = False  # whether it has one, or a share


@dataclass(frozen=True)
class Message:
    """What a task has done since the last one: rows for the store, an event, and at its end what went wrong."""

    attempt: str
    calls: tuple[Call, ...] = ()
    event: Event | None = None
    fault: str = ""


class TaskStore(Store):
    """What a task knows of the driver's store, and what it has for it: there is no file, and all else is an error.

    Weights that are kept here are put to the workplace before the row that says that they are measured.
    """

    def __init__(self, folder: Path, cell_id: str, known: Known, place: Workplace) -> None:
        super().__init__(folder / "task.duckdb")
        self.cell_id, self.known, self.place, self._ratios = cell_id, known, place, dict(known.ratios)
        self.attempt = ""
        self._calls: list[Call] = []

    def take(self) -> tuple[Call, ...]:
        """Return what has come since the last time."""
        calls, self._calls = tuple(self._calls), []
        return calls

    def _add(self, name: str, *given: Any, **named: Any) -> None:
        self._calls.append(methodcaller(name, *given, **named))

    def exists(self) -> bool:
        """Return True: the driver has made it."""
        return True

    def measured_epochs(self, cell_id: str) -> set[int]:
        """Return the epochs of the checkpoints that are measured."""
        return set(self.ratios(cell_id))

    def ratios(self, cell_id: str) -> dict[int, float]:
        """Return the memorization ratios by epoch."""
        del cell_id  # there is one
        return dict(self._ratios)

    def held_out_counts(self, cell_id: str) -> dict[str, int]:
        """Return how many held-out images are compared, by measure."""
        del cell_id
        return dict(self.known.held_out)

    def has_training_images(self, cell_id: str) -> bool:
        """Return whether the training images are looked through."""
        del cell_id
        return self.known.training_images

    def kept_weights(self) -> dict[str, dict[int, Path]]:
        """Return the files of weights that are kept here, and the names of those that the driver keeps."""
        there = {epoch: self.weights_path(self.cell_id, epoch) for epoch in self.known.kept}
        return {self.cell_id: there | super().kept_weights().get(self.cell_id, {})}

    def start_attempt(self, cell_id: str, where: Provenance, *, attempt_id: str = "") -> str:
        """Have the driver record that work on a cell starts, and return the attempt's id."""
        self.attempt = attempt_id or new_attempt_id()
        self._add("start_attempt", cell_id, where, attempt_id=self.attempt)
        return self.attempt

    def end_attempt(self, attempt_id: str, outcome: Outcome, error: str | None = None) -> None:
        """Have the driver record how an attempt ended."""
        self._add("end_attempt", attempt_id, outcome, error)

    def append(self, checkpoint: Checkpoint, *, outcome: Outcome | None = None) -> bool:
        """Have the driver append a checkpoint, once it has its weights if they are kept; MachineError as `put`."""
        weights = self.weights_path(self.cell_id, checkpoint.epoch)
        kept = weights.exists()
        where: dict[str, Any] = {"place": self.place, "cell_id": self.cell_id, "epoch": checkpoint.epoch}
        if kept:
            self.place.put(weights, self.cell_id, checkpoint.epoch, WEIGHTS)
            self._calls.append(partial(_fetch_weights, **where))
        self._add("append", checkpoint, outcome=outcome)
        if kept:
            self._calls.append(partial(_forget_weights, **where))
        self._ratios[checkpoint.epoch] = checkpoint.ratio
        return True

    def add_held_out(self, cell_id: str, evidence: Evidence, *, newest: bool = False) -> int:
        """Have the driver keep the evidence of held-out images; 0, as none are replaced."""
        self._add("add_held_out", cell_id, evidence, newest=newest)
        return 0

    def add_training_images(self, cell_id: str, images: TrainingImages) -> None:
        """Have the driver keep what training images are like."""
        self._add("add_training_images", cell_id, images)

    def add_note(self, cell_id: str, note: str) -> None:
        """Have the driver add a note."""
        self._add("add_note", cell_id, note)


def work_on(task: Task, asks_to_stop: Callable[[], bool]) -> Generator[Message, None, None]:
    """Train and score a cell on this machine, from its newest state that is of use; yield what the driver is to know.

    States and weights are at the task's workplace before the message that says so.
    """
    cell, place = task.entry.cell, task.workplace
    told, fault = 0.0, ""
    with TemporaryDirectory(prefix="diffmem-") as folder, _asked(asks_to_stop) as stop:
        store = TaskStore(Path(folder), cell.cell_id, task.known, place)
        group = Group(device=this_device() if task.gpu else torch.device("cpu"))
        try:
            task.origin.take(cell, group.device)
            place.check()
            if stop():
                raise Interrupted
            _fetch_state(task, store)
            work = Work(store, stop, group, task.compile, enough=task.enough)
            events = run_cell(task.entry, work)
            for event in events:
                try:
                    if isinstance(event, CellStarted) and event.note:  # of a state that is of no use
                        place.remove(cell.cell_id, place.numbers(cell.cell_id, STATE), STATE)
                    if isinstance(event, Saved):
                        place.put(store.state_path(cell.cell_id), cell.cell_id, event.step, STATE)
                except MachineError as error:
                    events.throw(error)  # so that the attempt ends for this reason
                calls, now = store.take(), time.monotonic()
                if calls or not isinstance(event, Trained | Generated) or now - told >= OFTEN:
                    told = now
                    yield Message(store.attempt, calls, event)
        except Interrupted:
            pass
        except DiffmemError as error:
            fault = f"on {socket.gethostname()}: {error}"
        yield Message(store.attempt, store.take(), fault=fault)


def _fetch_state(task: Task, store: TaskStore) -> None:
    """Fetch the newest state that is not past the first missing checkpoint.

    If all are past it, fetch one all the same: the cell then says that it starts over, and why.
    """
    cell = task.entry.cell
    steps = task.workplace.numbers(cell.cell_id, STATE)
    if steps:
        usable = [step for step in steps if step <= min(task.known.missing(cell))]
        path = store.state_path(cell.cell_id)
        path.parent.mkdir(exist_ok=True)
        task.workplace.get(path, cell.cell_id, max(usable, default=steps[0]), STATE)


def _fetch_weights(store: Store, *, place: Workplace, cell_id: str, epoch: int) -> None:
    """Bring the weights of a checkpoint to where the store keeps them."""
    path = store.weights_path(cell_id, epoch)
    path.parent.mkdir(exist_ok=True)
    place.get(path, cell_id, epoch, WEIGHTS)


def _forget_weights(_store: Store, *, place: Workplace, cell_id: str, epoch: int) -> None:
    """Remove the weights of a checkpoint from where the store has fetched them."""
    place.remove(cell_id, [epoch], WEIGHTS)


@contextmanager
def _asked(asks_to_stop: Callable[[], bool]) -> Iterator[Stop]:
    """Give what says whether the run is to stop, which a thread asks now and then, so that no step waits for it."""
    stop, ended = threading.Event(), threading.Event()

    def ask() -> None:
        while not ended.wait(POLL) and not stop.is_set():
            if asks_to_stop():
                stop.set()

    if asks_to_stop():
        stop.set()
    threading.Thread(target=ask, daemon=True).start()
    try:
        yield stop.is_set
    finally:
        ended.set()
