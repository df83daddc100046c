"""A study on a cluster: each cell a Ray task, its rows appended by this process, the only one that has the store."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import torch

from diffmem.cells import Cell
from diffmem.errors import MachineError, RunError
from diffmem.models import Group
from diffmem.runs.cluster_task import Known, Message, Task, work_on
from diffmem.runs.events import CellEnded, CellLost, Connected, Ended, Event, Measured, Saved
from diffmem.runs.kept_models import remove_leftovers, remove_others
from diffmem.runs.ray_cluster import connected
from diffmem.runs.saved_states import exclusive, load_state, remove_state
from diffmem.runs.search import enough
from diffmem.runs.spaces import check_spaces
from diffmem.runs.stopping import Interrupted, Stop, end_if
from diffmem.runs.waiting import Failures, Options, Rounds, begin, costliest_first, settled_cells
from diffmem.runs.workplace import STATE, WEIGHTS, Workplace
from diffmem.store import Outcome, Store, provenance
from diffmem.study import Study, StudyCell

LOOK = 0.5
"""Seconds between two looks whether the run is to stop."""

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


def run_on_cluster(
    study: Study, store: Store, cluster: Cluster, *, stop: Stop = lambda: False, options: Options = Options()
) -> Iterator[Event]:
    """Train and score every cell of a study on a cluster, and yield an event for all that happens, as `run_study` does.

    This process appends the rows of all cells as they come. A cell whose node dies goes on elsewhere from its last
    saved state. When `stop` returns True, all cells save their states, and Interrupted is raised. Raises DataError if
    images cannot be read here, StoreError if the store cannot be used, and RunError if the cluster cannot, or a node
    has another diffmem or does not reach `work`.
    """
    store = store.waiting(partial(end_if, stop))
    check_spaces(study, store, Group(device=torch.device("cpu")))
    with (
        connected(cluster.address) as ray,
        closing(Workplace.opened(cluster.work)) as place,
        closing(_Driver(ray, study, store, place, cluster, options, stop)) as driver,
    ):
        yield driver.size()
        yield from _search(driver) if study.estimation.search == "bisect" else _all(driver)


def _all(driver: "_Driver") -> Iterator[Event]:
    """Train all cells of a study, the costliest first."""
    study, store, options = driver.study, driver.store, driver.options
    yield from begin(study, store)
    settled = settled_cells(study, store, options)
    for entry in study.distinct:
        if outcome := settled.get(entry.cell.cell_id):
            yield CellEnded(entry, outcome)
    queue = deque(costliest_first([entry for entry in study.distinct if entry.cell.cell_id not in settled]))
    while driver.tasks or (queue and not driver.ends()):
        while queue and driver.has_room() and not driver.ends():
            entry = queue.popleft()
            if refused := driver.submit(entry):
                yield CellEnded(entry, refused)
        yield from driver.step()
    driver.raise_if_stopped()


def _search(driver: "_Driver") -> Iterator[Event]:
    """Train what the search for the EMM of every curve needs next, until none needs anything."""
    rounds, number = Rounds(driver.study, driver.store, driver.options), 0
    while not driver.ends():
        said, wanted = rounds.next()
        yield from said
        again = False
        for entry in wanted:
            if entry.cell.cell_id in driver.cells():
                continue
            number += 1
            entry = replace(entry, number=number)
            if refused := driver.submit(entry):
                again = again or refused is Ended.ALREADY
                if refused is not Ended.ALREADY:
                    rounds.left_out.add(entry.cell.cell_id)
                ended = CellEnded(entry, refused)
                rounds.ended(ended)
                yield ended
        if not driver.tasks and not again:
            break
        ended_one = again
        while driver.tasks and not ended_one:
            for event in driver.step():
                yield event
                if isinstance(event, CellEnded):
                    rounds.ended(event)
                    ended_one = True
    while driver.tasks:
        yield from driver.step()
    driver.raise_if_stopped()


@dataclass
class _Running:
    """A cell that a task works on, or will."""

    entry: StudyCell
    lock: ExitStack = field(repr=False)
    attempt: str = ""  # as soon as its work has begun


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

    yield from work_on(task, lambda: bool(ray.get(stopper.asked.remote())))


class _Driver:
    """Hands cells to the cluster, and does with the store what their tasks send."""

    def __init__(
        self, ray: Any, study: Study, store: Store, place: Workplace, cluster: Cluster, options: Options, stop: Stop
    ) -> None:
        self.ray, self.study, self.store, self.place = ray, study, store, place
        self.options, self.stop = options, stop
        self.enough = enough(study) if study.estimation.search == "bisect" else None
        self.tasks: dict[Any, _Running] = {}
        self.losses: Counter[str] = Counter()
        self.fault = ""  # why the run ends, where a machine has failed
        self._failed_fast = self._told = False
        has = ray.cluster_resources()
        gpus = cluster.gpus_per_cell
        self.needs = {"CPU": 1.0, "GPU": float(bool(has.get("GPU"))) if gpus is None else gpus}
        self._task = ray.remote(_work_on).options(num_cpus=1, num_gpus=self.needs["GPU"], max_retries=0)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # beside this process, with which alone it may die
        self._stopper = ray.remote(_Stopper).options(num_cpus=0, scheduling_strategy=here).remote()

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
        return bool(self.fault) or self._failed_fast or self.stop()

    def submit(self, entry: StudyCell) -> Ended | None:
        """Give a cell to the cluster, or return why not."""
        cell, lock = entry.cell, ExitStack()
        path = self.store.state_path(cell.cell_id)
        free = lock.enter_context(exclusive(path.with_suffix(".lock")))
        known = Known.of(self.store, cell)
        refused = None
        if not free or (self.enough is not None and max(known.ratios.values(), default=0.0) >= self.enough):
            refused = Ended.BUSY
        elif self.failures.new(cell):
            refused = Ended.FAILED_ELSEWHERE
        elif not known.missing(cell):
            remove_leftovers(self.store, cell)
            self.place.remove(cell.cell_id, STATE)
            refused = Ended.ALREADY
        if refused:
            lock.close()
            return refused
        self._hand_on_state(cell)
        task = Task(entry, known, self.place, self.options.compile, self.enough, version("diffmem"))
        self.tasks[self._task.remote(task, self._stopper)] = _Running(entry, lock)
        return None

    def _hand_on_state(self, cell: Cell) -> None:
        """Put the state of a cell that was begun on this machine alone where the nodes find it."""
        path = self.store.state_path(cell.cell_id)
        if path.exists() and not self.place.numbers(cell.cell_id, STATE):
            try:
                step = int(load_state(path, cell, torch.device("cpu"))["step"])
            except MachineError:
                raise
            except (RunError, KeyError):  # of no use, as the cell would find
                return
            self.place.put(path, cell.cell_id, step, STATE)

    def step(self) -> Iterator[Event]:
        """Do what a task has sent, and yield what has happened; nothing where none has for a moment."""
        if self.ends():
            self._tell_to_stop()
        if self.tasks:
            ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=LOOK)
            for generator in ready:
                yield from self._hear(generator, self.tasks[generator])

    def _tell_to_stop(self) -> None:
        if not self._told:
            self._told = True
            self.ray.get(self._stopper.stop.remote())
        if not any(running.attempt for running in self.tasks.values()):
            for generator in list(self.tasks):  # which may wait for a machine that never comes
                self.ray.cancel(generator, force=True)
                self._let_go(generator)

    def _hear(self, generator: Any, running: _Running) -> Iterator[Event]:
        errors = self.ray.exceptions
        try:
            message = self.ray.get(next(generator))
        except StopIteration:
            self._let_go(generator)
        except errors.RayTaskError as error:  # nothing that happens to a cell: the task would have said so
            reason = (str(error.cause).splitlines() or [""])[0]
            raise RunError(
                f"{running.entry.name}: its task failed on the cluster: {type(error.cause).__name__}: {reason}; "
                f"is diffmem {version('diffmem')} installed on all nodes?"
            ) from error
        except errors.RayError as error:
            self._let_go(generator)
            yield from self._lost(running, f"its node or its process died ({type(error).__name__})")
        else:
            yield from self._do(running, message)

    def _do(self, running: _Running, message: Message) -> Iterator[Event]:
        """Do with the store what a task has sent: weights come before the row that says that they are measured."""
        cell, event = running.entry.cell, message.event
        running.attempt = message.attempt
        if isinstance(event, Measured):
            self._fetch_weights(cell, event.epoch)
        for call in message.calls:
            call(self.store)
        if isinstance(event, Measured | Saved):
            self.losses.pop(cell.cell_id, None)
            self._forget_states(cell)
        if isinstance(event, Measured):
            remove_others(self.store, cell)
        if isinstance(event, CellEnded):
            if event.outcome is Ended.FINISHED:
                self.place.remove(cell.cell_id, STATE)
                remove_state(self.store.state_path(cell.cell_id))
            self._failed_fast |= self.options.fail_fast and event.outcome is Ended.FAILED
        self.fault = self.fault or message.fault
        if event is not None:
            yield event

    def _fetch_weights(self, cell: Cell, epoch: int) -> None:
        if epoch in self.place.numbers(cell.cell_id, WEIGHTS):
            path = self.store.weights_path(cell.cell_id, epoch)
            path.parent.mkdir(exist_ok=True)
            self.place.get(path, cell.cell_id, epoch, WEIGHTS)
            self.place.remove(cell.cell_id, WEIGHTS)

    def _forget_states(self, cell: Cell) -> None:
        """Remove the states of a cell before the newest from which its first missing checkpoint can be reached."""
        missing = Known.of(self.store, cell).missing(cell)
        usable = [step for step in self.place.numbers(cell.cell_id, STATE) if missing and step <= min(missing)]
        if usable:
            self.place.remove(cell.cell_id, STATE, before=max(usable))

    def _lost(self, running: _Running, reason: str) -> Iterator[Event]:
        """Record that a cell has lost its machine, and give it to the cluster again, unless it does so each time."""
        entry, name = running.entry, running.entry.cell.cell_id
        self.losses[name] += 1
        if self.losses[name] == MOST_LOSSES:
            reason = f"{reason} {MOST_LOSSES} times in a row before it had saved anything; does it need more memory?"
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

    def raise_if_stopped(self) -> None:
        """Raise RunError where a machine has failed, and Interrupted where the run was asked to stop."""
        if self.fault:
            raise RunError(f"{self.fault}; what was saved is kept, run the same command again")
        if self.stop():
            raise Interrupted

    def close(self) -> None:
        """Let go of all cells; those that are still trained end where they are."""
        for generator in list(self.tasks):
            self.ray.cancel(generator, force=True)
            self._let_go(generator)
