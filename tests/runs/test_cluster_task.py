"""A cell as a task: what it sends is what a run writes, and it goes on from what is at its workplace."""

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from diffmem.errors import MachineError, StoreError
from diffmem.measures import DeclaredSpace
from diffmem.runs import cluster_task
from diffmem.runs.cluster_task import Known, Message, Origin, Task, TaskStore, work_on
from diffmem.runs.events import CellEnded, CellStarted, Ended, Measured, Saved
from diffmem.runs.runner import run_study
from diffmem.runs.spaces import identities_of
from diffmem.runs.stopping import Stop
from diffmem.runs.workplace import STATE, WEIGHTS, Workplace
from diffmem.store.store import Store
from diffmem.study.crossing import StudyCell
from diffmem.study.study import Study

HERE = cluster_task.version("diffmem")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return tiny.load(tmp_path, tiny.TEXT.replace("[0.0, 0.2]", "[0.2]"))


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.opened(str(tmp_path / "work"), tmp_path / "s.duckdb")


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Store:
    store = Store(tmp_path / "driver" / "s.duckdb")
    tiny.register(store, study)
    return store


def task_of(entry: StudyCell, store: Store, place: Workplace, version: str = HERE) -> Task:
    return Task(entry, Known.of(store, entry.cell), place, Origin(version, str(Path.cwd())))


def sent(task: Task, stop_at: int | None = None) -> Iterator[Message]:
    """Yield what a task sends, as it arrives; it is asked to stop once it has measured so many checkpoints."""
    measured: list[Message] = []
    for message in work_on(task, lambda: stop_at is not None and len(measured) >= stop_at):
        yield pickle.loads(pickle.dumps(message))
        if isinstance(message.event, Measured):
            measured.append(message)


def test_what_a_task_sends_is_what_a_run_writes(study: Study, store: Store, place: Workplace, tmp_path: Path) -> None:
    entry = study.cells[0]
    events = []
    for message in sent(task_of(entry, store, place)):
        for call in message.calls:
            call(store)
        events.append(message.event)
        if isinstance(message.event, Saved):  # before it is said
            assert message.event.step in place.numbers(entry.cell.cell_id, STATE)
    alone = Store(tmp_path / "alone.duckdb")
    expected = list(run_study(study, alone))
    tiny.check_equal(tiny.results(store), tiny.results(alone))
    for table in ("held_out", "training_images"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert str(store.rows(query)) == str(alone.rows(query))
    kinds = (CellStarted, Saved, Measured, CellEnded)
    mine, theirs = ([type(event) for event in some if isinstance(event, kinds)] for some in (events, expected))
    assert mine == theirs
    assert place.numbers(entry.cell.cell_id, WEIGHTS) == []  # the store has them
    assert store.rows("SELECT outcome FROM attempts") == [{"outcome": "finished"}]


def test_a_task_goes_on_from_the_newest_state_that_does_not_pass_what_the_store_lacks(
    study: Study, store: Store, place: Workplace
) -> None:
    """The driver dies before it has the second checkpoint, whose task has come to the third."""
    entry = study.cells[0]
    for message in sent(task_of(entry, store, place)):
        if isinstance(message.event, Measured) and message.event.epoch > 12:
            continue
        for call in message.calls:
            call(store)
    assert store.measured_epochs(entry.cell.cell_id) == {12}
    assert place.numbers(entry.cell.cell_id, STATE) == [12, 24, 30]
    again = [message.event for message in sent(task_of(entry, store, place))]
    assert next(event.step for event in again if isinstance(event, CellStarted)) == 24
    assert [event.epoch for event in again if isinstance(event, Measured)] == [24, 30]


def test_a_state_past_what_the_store_lacks_is_said_to_be_of_no_use(
    study: Study, store: Store, place: Workplace
) -> None:
    entry = study.cells[0]
    for _ in sent(task_of(entry, store, place)):
        pass
    place.remove(entry.cell.cell_id, [12, 24], STATE)
    started = next(event for message in sent(task_of(entry, store, place)) if (event := message.event))
    assert isinstance(started, CellStarted)
    assert started.note == "the saved state is past a checkpoint that the store lacks: training from the start"


def test_a_damaged_state_is_removed_so_that_newer_ones_take_its_place(
    study: Study, store: Store, place: Workplace, tmp_path: Path
) -> None:
    """It would else be the newest one for as long as the training is not past it."""
    entry, damaged = study.cells[0], tmp_path / "damaged.pt"
    damaged.write_bytes(b"half of a st")
    place.put(damaged, entry.cell.cell_id, 12, STATE)
    events = []
    for message in sent(task_of(entry, store, place)):
        events.append(message.event)
        if isinstance(message.event, CellStarted):
            assert message.event.note.endswith("damaged: training from the start")
            assert place.numbers(entry.cell.cell_id, STATE) == []
    assert [event.epoch for event in events if isinstance(event, Measured)] == [12, 24, 30]


@contextmanager
def asked_at_each_step(asks_to_stop: Callable[[], bool]) -> Iterator[Stop]:
    yield asks_to_stop


def test_a_task_that_is_asked_to_stop_saves_its_state_and_says_that_it_was(
    study: Study, store: Store, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_task, "POLL", 0.0)
    entry = study.cells[0]
    messages = list(sent(task_of(entry, store, place), stop_at=0))
    assert [message.event for message in messages] == [None]
    monkeypatch.setattr(cluster_task, "_asked", asked_at_each_step)
    messages = list(sent(task_of(entry, store, place), stop_at=1))
    for message in messages:
        for call in message.calls:
            call(store)
    assert store.rows("SELECT outcome FROM attempts") == [{"outcome": "interrupted"}]
    assert not any(isinstance(message.event, CellEnded) for message in messages)
    assert max(place.numbers(entry.cell.cell_id, STATE)) > 12


@pytest.mark.parametrize(("kept", "put"), [({12}, []), (set(), [24])])
def test_weights_are_put_only_if_they_are_better_than_what_the_driver_keeps(
    kept: set[int], put: list[int], tmp_path: Path, place: Workplace
) -> None:
    """A task's own ratios are 0: they are better than nothing, and worse than the 1.0 of a checkpoint before."""
    study = tiny.load(tmp_path, tiny.TEXT.replace("[0.0, 0.2]", "[0.2]") + 'keep = "best"\n')
    known = Known({12: 1.0}, frozenset(kept), {}, training_images=True)
    task = Task(study.cells[0], known, place, Origin.here())
    assert [message.event.ratio for message in sent(task) if isinstance(message.event, Measured)] == [0.0, 0.0]
    assert place.numbers(study.cells[0].cell.cell_id, WEIGHTS) == put


def test_a_task_asks_its_store_nothing_that_it_does_not_know(tmp_path: Path, place: Workplace) -> None:
    store = TaskStore(tmp_path, "0" * 16, Known({}, frozenset(), {}, True), place)
    with pytest.raises(StoreError, match=r"task\.duckdb"):
        store.studies()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("version", f"diffmem {HERE} is installed here, and 0.0 where the run was started; install the same"),
        ("place", "not the same files on "),
    ],
)
def test_a_machine_that_is_not_as_the_drivers_is_says_so_before_any_work(
    what: str, said: str, study: Study, store: Store, place: Workplace
) -> None:
    if what == "place":
        place.close()
    messages = list(sent(task_of(study.cells[0], store, place, "0.0" if what == "version" else HERE)))
    assert [message.event for message in messages] == [None]
    assert messages[0].calls == ()
    assert messages[0].fault.startswith(f"on {socket.gethostname()}: ")
    assert said in messages[0].fault


def test_a_cell_that_fails_sends_its_reason(tmp_path: Path, place: Workplace) -> None:
    study = tiny.load(tmp_path, tiny.TEXT.replace("lr = 5e-3", "lr = 1e30"))
    store = Store(tmp_path / "driver.duckdb")
    tiny.register(store, study)
    messages = list(sent(task_of(study.cells[0], store, place)))
    for message in messages:
        for call in message.calls:
            call(store)
    ended = [message.event for message in messages if isinstance(message.event, CellEnded)]
    assert [event.outcome for event in ended] == [Ended.FAILED]
    assert not any(message.fault for message in messages)
    ((attempt,),) = [store.rows("SELECT outcome, error FROM attempts")]
    assert attempt["outcome"] == "failed"
    assert "lower T.lr" in attempt["error"]


@pytest.mark.parametrize(("kind", "epochs"), [(STATE, []), (WEIGHTS, [12, 24])])
def test_a_workplace_that_cannot_take_a_file_ends_the_attempt_and_keeps_no_row_without_its_weights(
    kind: str, epochs: list[int], study: Study, store: Store, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Workplace.put

    def full(self: Workplace, path: Path, cell_id: str, number: int, what: str) -> None:
        if what == kind:
            raise MachineError("the disk of all nodes is full")
        put(self, path, cell_id, number, what)

    monkeypatch.setattr(Workplace, "put", full)
    messages = list(sent(task_of(study.cells[0], store, place)))
    for message in messages:
        for call in message.calls:
            call(store)
    assert messages[-1].fault == f"on {socket.gethostname()}: the disk of all nodes is full"
    assert sorted(store.measured_epochs(study.cells[0].cell.cell_id)) == epochs
    assert store.rows("SELECT outcome, error FROM attempts") == [
        {"outcome": "interrupted", "error": "the disk of all nodes is full"}
    ]


def test_weights_come_before_the_row_that_says_that_they_are_measured(
    study: Study, store: Store, place: Workplace
) -> None:
    cell = study.cells[0].cell
    for message in sent(task_of(study.cells[0], store, place)):
        for call in message.calls:
            kept = store.kept_weights().get(cell.cell_id, {})
            assert (30 in store.measured_epochs(cell.cell_id)) <= (30 in kept)
            call(store)
    assert list(store.kept_weights()[cell.cell_id]) == [30]


def test_a_node_without_the_folder_of_the_run_says_so(study: Study, store: Store, place: Workplace) -> None:
    task = replace(task_of(study.cells[0], store, place), origin=Origin(HERE, "/nowhere"))
    (message,) = sent(task)
    assert message.fault == (
        f"on {socket.gethostname()}: /nowhere: No such file or directory; start the run in a folder that all nodes "
        "have, as paths begin there"
    )


def test_a_node_with_another_feature_space_of_a_name_says_so(study: Study, store: Store, place: Workplace) -> None:
    space = DeclaredSpace.of("own", {"features": lambda images: images.flatten(1).float(), "threshold": 0.5})
    (identity,) = identities_of([space], study.cells[0].cell, "cpu")
    origin = Origin(HERE, str(Path.cwd()), {}, (space,), (replace(identity, content="another"),))
    (message,) = work_on(replace(task_of(study.cells[0], store, place), origin=origin), lambda: False)
    assert message.fault == (
        f"on {socket.gethostname()}: the feature space own is another one here than where the run was started; give "
        "all nodes the same file, weights or function"
    )
    same = replace(origin, identities=(identity,))
    same.take(study.cells[0].cell, torch.device("cpu"))


def test_a_node_reads_what_the_driver_may_read(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "12345")
    origin = Origin.here()
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1")
    origin.take(study.cells[0].cell, torch.device("cpu"))
    assert os.environ["DIFFMEM_MAX_PIXELS"] == "12345"
