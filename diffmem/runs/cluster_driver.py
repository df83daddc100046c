"""Cells as tasks of a Ray cluster: who hands them out, and does with the store what they send."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from diffmem.cells import Cell
from diffmem.errors import DiffmemError, MachineError, OutOfMemory, RunError
from diffmem.runs.cluster_task import Known, Message, Origin, Task, work_on
from diffmem.runs.events import CellEnded, CellLost, Connected, Ended, Event, Measured, Saved
from diffmem.runs.kept_models import remove_leftovers, remove_others
from diffmem.runs.ray_cluster import raise_file_limit
from diffmem.runs.saved_states import exclusive, load_state, remove_state
from diffmem.runs.search import enough
from diffmem.runs.stopping import Interrupted, Stop, end_if
from diffmem.runs.waiting import Failures, Options
from diffmem.runs.workplace import STATE, Workplace
from diffmem.store import Outcome, Store, provenance
from diffmem.study import Study, StudyCell

LOOK = 0.5
"""Seconds between two looks whether the run is to stop."""

LONGEST_SILENCE = 5.0
"""Seconds in which a task that has begun hears that it is to stop, and says so."""

MOST_WAITING = 64
"""Cells that wait for room on the cluster, so that one that can grow sees what for."""

MOST_LOSSES = 3
"""How often in a row a cell may lose its machine, with nothing saved in between, before it counts as failed."""


@dataclass(frozen=True)
class Cluster:
    """Where the cells of a run are trained.

    `address` is that of a Ray cluster's head; None is the one that RAY_ADDRESS names, else that of this machine, else a
    new one of this machine alone. `work` is a folder or an fsspec address for states and trained models, which all
    nodes reach. A cell takes one CPU, and `gpus_per_cell` of a GPU, at most a whole one; None is a whole one where the
    cluster has any.
    """

    work: str
    address: str | None = None
    gpus_per_cell: float | None = None


@dataclass
class _Running:
    """A cell that a task works on, or will."""

    entry: StudyCell
    lock: ExitStack = field(repr=False)
    attempt: str = ""  # as soon as its work has begun
    broken: bool = False  # whether a row of it could not be written


class _Stopper:
    """Says to all tasks whether the run is to stop."""

    def __init__(self) -> None:
        self.stops = False

    def stop(self) -> None:
        """Have all tasks stop."""
        self.stops = True

    def asked(self) -> bool:
        """Return whether they are to."""
        return self.stops


def _work_on(task: Task, stopper: Any) -> Iterator[Message]:
    """Work on a cell, as a task of Ray."""
    import ray

    def asked() -> bool:
        try:
            return bool(ray.get(stopper.asked.remote()))
        except ray.exceptions.RayError:  # it is started again
            return False

    yield from work_on(task, asked)


class Driver:
    """Hands cells to the cluster, and does with the store what their tasks send."""

    def __init__(
        self,
        ray: Any,
        study: Study,
        store: Store,
        place: Workplace,
        origin: Origin,
        cluster: Cluster,
        options: Options,
        stop: Stop,
    ) -> None:
        self.ray, self.study, self.place, self.origin = ray, study, place, origin
        self.options, self.stop = options, stop
        self.store = store.waiting(self._while_waiting)  # giving up would cost work
        self.enough = enough(study) if study.estimation.search == "bisect" else None
        self.tasks: dict[Any, _Running] = {}
        self.losses: Counter[str] = Counter()
        self.furthest: dict[str, int] = {}  # the step of each cell's last state
        self.fault: DiffmemError | None = None  # why the run ends, where a machine has failed
        self._failed_fast = False
        self._told_at: float | None = None  # when the tasks were first told to stop
        has, gpus = ray.cluster_resources(), cluster.gpus_per_cell
        self.needs = {"CPU": 1.0, "GPU": float(bool(has.get("GPU"))) if gpus is None else gpus}
        # a process that has had one GPU stays with it, and keeps some of its memory, so each cell has a new one
        calls = 1 if self.needs["GPU"] else 0
        self._task = ray.remote(num_cpus=1, num_gpus=self.needs["GPU"], max_retries=0, max_calls=calls)(_work_on)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # beside this process, with which alone it may die
        stopper = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Stopper)
        self._stopper = stopper.remote()
        raise_file_limit()

    @cached_property
    def failures(self) -> Failures:
        """Return what has failed since the first cell was handed out."""
        return Failures(self.store)

    def size(self) -> Connected:
        """Return how large the cluster is."""
        has = self.ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in self.ray.nodes())
        return Connected(nodes, int(has.get("CPU", 0)), int(has.get("GPU", 0)), self._at_once())

    def _at_once(self) -> int:
        has = self.ray.cluster_resources()
        return int(min(has.get(kind, 0) // need for kind, need in self.needs.items() if need))

    def has_room(self) -> bool:
        """Return whether the cluster may be given one more cell."""
        return len(self.tasks) < self._at_once() + MOST_WAITING

    def cells(self) -> set[str]:
        """Return the cells that the cluster has."""
        return {running.entry.cell.cell_id for running in self.tasks.values()}

    def ends(self) -> bool:
        """Return whether the run ends before all cells are trained."""
        return self.fault is not None or self._failed_fast or self.stop()

    def submit(self, entry: StudyCell) -> Ended | None:
        """Give a cell to the cluster, or return why not; where this machine fails, the run ends."""
        refused: Ended | None = None
        with ExitStack() as lock, self.failing():
            refused = self._submit(entry, lock)
        return refused  # noqa: RET504 - what fails in the block does not leave it

    def _submit(self, entry: StudyCell, lock: ExitStack) -> Ended | None:
        cell = entry.cell
        path = self.store.state_path(cell.cell_id)
        free = lock.enter_context(exclusive(path.with_suffix(".lock")))
        known = Known.of(self.store, cell)
        refused = None
        if not free or (self.enough is not None and known.best >= self.enough):
            refused = Ended.BUSY
        elif self.failures.new(cell):
            refused = Ended.FAILED_ELSEWHERE
        elif not known.missing(cell):
            remove_leftovers(self.store, cell)
            self.place.remove_all(cell.cell_id)
            refused = Ended.ALREADY
        if refused:
            return refused
        self._hand_on_state(cell, known)
        gpu = bool(self.needs["GPU"])
        task = Task(entry, known, self.place, self.origin, self.options.compile, self.enough, gpu)
        self.tasks[self._task.remote(task, self._stopper)] = _Running(entry, lock.pop_all())
        return None

    def _hand_on_state(self, cell: Cell, known: Known) -> None:
        """Put the state of a cell that was trained on this machine alone where the nodes find it, if it is the newest
        that is of use."""
        path = self.store.state_path(cell.cell_id)
        if not path.exists():
            return
        try:
            step = int(load_state(path, cell, torch.device("cpu"))["step"])
        except MachineError:
            raise
        except (RunError, KeyError):  # of no use, as the cell would find
            return
        except RuntimeError as error:
            raise OutOfMemory from error
        usable = [each for each in self.place.numbers(cell.cell_id, STATE) if each <= min(known.missing(cell))]
        if max(usable, default=-1) < step <= min(known.missing(cell)):
            self.place.put(path, cell.cell_id, step, STATE)

    def step(self) -> Iterator[Event]:
        """Do what tasks have sent, and yield what has happened; nothing where none has for a moment."""
        self._pass_on_stop()
        generators = list(self.tasks)
        if not generators:
            return
        ready, _ = self.ray.wait(generators, num_returns=len(generators), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(generators, num_returns=1, timeout=LOOK)
        for generator in ready:
            yield from self._hear(generator, self.tasks[generator])
        if not ready:
            self._give_up_waiting()

    def _pass_on_stop(self) -> None:
        """Tell all tasks to stop, if the run is to end."""
        if self.ends():
            self._told_at = self._told_at or time.monotonic()
            self._stopper.stop.remote()

    def _while_waiting(self) -> None:
        """Tell all tasks to stop while somebody else has the store; without any, there is nothing to wait for."""
        self._pass_on_stop()
        if not self.tasks:
            end_if(self.stop)

    def _give_up_waiting(self) -> None:
        """Take back cells that wait for a machine, which may never come, once all others have ended."""
        began = any(running.attempt for running in self.tasks.values())
        if self._told_at is not None and time.monotonic() - self._told_at > LONGEST_SILENCE and not began:
            self.close()

    def _hear(self, generator: Any, running: _Running) -> Iterator[Event]:
        errors = self.ray.exceptions
        try:
            message = self.ray.get(next(generator))
        except StopIteration:
            self._let_go(generator)
        except errors.RayTaskError as error:  # nothing that happens to a cell: the task would have said so
            self._let_go(generator)
            reason = (str(error.cause).splitlines() or [""])[0]
            self._fail(
                RunError(
                    f"{running.entry.name}: its task failed on the cluster: {type(error.cause).__name__}: {reason}; "
                    f"is diffmem {version('diffmem')} installed on all nodes?"
                )
            )
        except errors.RayError as error:
            self.ray.cancel(generator, force=True)  # where a message alone is lost
            self._let_go(generator)
            with self.failing():
                yield from self._lost(running, f"its node or its process died ({type(error).__name__})")
        else:
            if not running.broken:
                yield from self._done(running, message)

    def _done(self, running: _Running, message: Message) -> Iterator[Event]:
        """Do what a task has sent; where this machine fails, what the task sends after it counts no more."""
        running.broken = True
        with self.failing():
            self._do(running, message)
            running.broken = False
        if not running.broken and message.event is not None:
            yield message.event

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End the run where this machine fails in the block, once the cells have saved what they have."""
        try:
            yield
        except DiffmemError as error:
            self._fail(error)
        except OSError as error:
            self._fail(MachineError(f"{error.filename or 'file'}: {error.strerror or error}"))

    def _fail(self, fault: DiffmemError) -> None:
        self.fault = self.fault or fault

    def _do(self, running: _Running, message: Message) -> None:
        """Do with the store what a task has sent: weights come before the row that says that they are measured."""
        cell, name, event = running.entry.cell, running.entry.cell.cell_id, message.event
        running.attempt = message.attempt
        if message.fault:
            self._fail(RunError(f"{message.fault}; what was saved is kept, run the same command again"))
        for call in message.calls:
            call(self.store)
        if isinstance(event, Saved) and event.step > self.furthest.get(name, -1):
            self.furthest[name] = event.step
            self.losses.pop(name, None)
        if isinstance(event, Measured):
            self.losses.pop(name, None)
            remove_others(self.store, cell)
        if isinstance(event, Measured | Saved):
            self._forget_states(cell)
        if isinstance(event, CellEnded):
            if event.outcome is Ended.FINISHED:
                self._clean_up(cell)
            self._failed_fast |= self.options.fail_fast and event.outcome is Ended.FAILED

    def _clean_up(self, cell: Cell) -> None:
        """Remove what nobody needs of a finished cell."""
        self.place.remove_all(cell.cell_id)
        remove_state(self.store.state_path(cell.cell_id))

    def _forget_states(self, cell: Cell) -> None:
        """Remove the states of a cell before the newest from which its first missing checkpoint can be reached."""
        measured = self.store.measured_epochs(cell.cell_id)
        first = min((step for epoch, step in cell.checkpoints if epoch not in measured), default=-1)
        steps = self.place.numbers(cell.cell_id, STATE)
        newest = max((step for step in steps if step <= first), default=-1)
        self.place.remove(cell.cell_id, [step for step in steps if step < newest], STATE)

    def _lost(self, running: _Running, reason: str) -> Iterator[Event]:
        """Record that a cell has lost its machine, and give it to the cluster again, unless it does so each time, or
        nothing was left to do but to say so."""
        entry, name = running.entry, running.entry.cell.cell_id
        known = Known.of(self.store, entry.cell)
        if not known.missing(entry.cell):
            self._clean_up(entry.cell)
            yield CellEnded(entry, Ended.FINISHED)
            return
        if self.enough is not None and known.best >= self.enough:
            yield CellEnded(entry, Ended.CROSSED)
            return
        self.losses[name] += 1
        if self.losses[name] == MOST_LOSSES:
            reason = f"{reason} {MOST_LOSSES} times in a row without getting further; does it need more memory?"
            attempt = running.attempt or self.store.start_attempt(name, provenance(torch.device("cpu")))
            self.store.end_attempt(attempt, Outcome.FAILED, reason)
            self._failed_fast |= self.options.fail_fast
            yield CellEnded(entry, Ended.FAILED, reason)
            return
        if running.attempt:
            self.store.end_attempt(running.attempt, Outcome.LOST, reason)
        yield CellLost(entry, reason)
        if not self.ends() and (refused := self.submit(entry)):
            yield CellEnded(entry, refused)

    def _let_go(self, generator: Any) -> None:
        self.tasks.pop(generator).lock.close()

    def raise_if_ended(self) -> None:
        """Raise what a machine has failed with, or Interrupted where the run was asked to stop."""
        if self.fault is not None:
            raise self.fault
        if self.stop():
            raise Interrupted

    def close(self) -> None:
        """Let go of all cells; those that are still trained end where they are."""
        for generator in list(self.tasks):
            self.ray.cancel(generator, force=True)
            self._let_go(generator)
