"""Running: every checkpoint once and with the same numbers, whatever stops a run and whenever it goes on.

`reference` is one run of the command that nothing disturbed; all other runs must come to its numbers.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pytest
import tiny
import torch

from diffmem.errors import MachineError, StoreUnavailable
from diffmem.measures.nearest import NEAREST
from diffmem.models.denoiser import build_denoiser
from diffmem.models.training import TrainingState
from diffmem.runs import cell_run as cellrun
from diffmem.runs.events import CellEnded, CellStarted, Event, Measured, Trained
from diffmem.runs.runner import run_study
from diffmem.runs.saved_states import load_state, save_state
from diffmem.runs.stopping import Interrupted
from diffmem.store.database import Row
from diffmem.store.store import Store
from diffmem.study.study import Study

pytestmark = pytest.mark.gpu

ONE_CELL = "M.dropout = 0.2"
"""Leaves of the tiny study the cell whose dropout masks a resumed run has to draw again."""


class Run(NamedTuple):
    """A run of the command that has ended: its study file, its store and what it printed."""

    study: Path
    store: Store
    result: subprocess.CompletedProcess[str]

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        return tiny.here("run", self.study, "--store", self.store.path, *more)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute as the command does in `tiny.environment`, so that numbers compare bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_command(
    folder: Path,
    *more: str,
    text: str = tiny.TEXT,
    way: Callable[..., subprocess.CompletedProcess[str]] = tiny.here,
) -> Run:
    study, store = tiny.write(folder, text), Store(folder / "store" / "tiny.duckdb")
    return Run(study, store, way("run", study, "--store", store.path, *more))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_command(tmp_path_factory.mktemp("reference"), way=tiny.diffmem)
    assert run.result.returncode == 0, run.result.stderr
    return run


@pytest.fixture(scope="module")
def expected(reference: Run) -> dict[str, list[Row]]:
    return tiny.results(reference.store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "tiny.duckdb")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.load(tiny.write(tmp_path))


@pytest.fixture
def one_cell(tmp_path: Path) -> Study:
    return Study.load(tiny.write(tmp_path), overrides=[ONE_CELL])


def go_on(study: Study, store: Store) -> list[Event]:
    """Run a study to its end."""
    return list(run_study(study, store, stop=lambda: False))


def interrupt(study: Study, store: Store, kind: str, number: int, asks: int) -> None:
    """Run a study and ask it to stop at a moment (see tiny.Moment)."""
    moment = tiny.Moment(kind, number, asks)
    with pytest.raises(Interrupted):
        for event in run_study(study, store, stop=moment):
            moment.see(event)


IN_TRAINING = ("Measured", 1, 5)
"""In the first cell, five steps after its first checkpoint."""


def outcomes(store: Store) -> list[str]:
    return [row["outcome"] for row in store.rows("SELECT outcome FROM attempts ORDER BY started_at")]


def the_state(store: Store) -> Path:
    (path,) = store.states.glob("*.pt")
    return path


def files(store: Store) -> set[str]:
    """Return every file and folder beside the store, by its path from there, except the trained models."""
    found = {str(path.relative_to(store.path.parent)) for path in store.path.parent.rglob("*")}
    return found - {"weights"} - {f"weights/{path.name}" for path in weights(store)}


def weights(store: Store) -> list[Path]:
    """Return the trained models that are kept, in their order."""
    return sorted(path for files in store.kept_weights().values() for path in files.values())


CLEAN = {"tiny.duckdb", "tiny.duckdb.lock", "states"}
"""What a finished run leaves beside the trained models."""


def of(study: Study, results: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return the results of the cells of a study."""
    wanted = {entry.cell.cell_id for entry in study.cells}
    return {table: [row for row in rows if row["cell_id"] in wanted] for table, rows in results.items()}


# --- one run -------------------------------------------------------------------------------------------


def test_a_run_measures_every_checkpoint_of_every_cell(reference: Run, expected: dict[str, list[Row]]) -> None:
    study = Study.load(reference.study)
    wanted = sorted((entry.cell.cell_id, epoch) for entry in study.cells for epoch in tiny.EPOCHS)
    assert [(row["cell_id"], row["epoch"]) for row in expected["checkpoints"]] == wanted
    assert [(row["cell_id"], row["epoch"], row["sample"]) for row in expected["evidence"]] == [
        (*point, sample) for point in wanted for sample in range(20)
    ]
    assert [(row["cell_id"], row["epoch"], row["sample"]) for row in expected["pairs"]] == [
        (*point, sample) for point in wanted for sample in range(3)
    ]
    assert all(0 < row["loss"] < 1000 for row in expected["checkpoints"])
    assert all(0 <= row["nearest"] < 8 and 0 < row["d1"] <= row["d2"] for row in expected["evidence"])


def test_the_ratio_of_a_checkpoint_is_that_of_its_evidence(reference: Run) -> None:
    rows = reference.store.rows(
        """
        SELECT memorized, ratio, count(*) AS samples, count(*) FILTER (d1 < d2 / 3) AS counted
        FROM checkpoints JOIN evidence USING (cell_id, epoch) GROUP BY cell_id, epoch, memorized, ratio
        """
    )
    assert len(rows) == 6
    for row in rows:
        assert row["counted"] == row["memorized"]
        assert row["ratio"] == row["memorized"] / row["samples"]


def test_dropout_makes_a_difference(reference: Run) -> None:
    losses = reference.store.rows("SELECT epoch, list(loss) AS losses FROM checkpoints GROUP BY epoch")
    assert all(len(set(row["losses"])) == 2 for row in losses)


def test_a_run_prints_plain_lines_where_there_is_no_terminal(reference: Run) -> None:
    printed = reference.result.stdout
    assert reference.result.stderr == ""
    assert "\x1b" not in printed
    assert "\r" not in printed
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith("cell ")] == [
        "cell 1/2 M.dropout = 0.0, 30 steps",
        "cell 2/2 M.dropout = 0.2, 30 steps",
    ]
    assert sum("memorization ratio" in line for line in lines) == 6
    assert all(f"  epoch {epoch}: memorization ratio 0." in printed for epoch in tiny.EPOCHS)


def test_a_verbose_run_tells_of_each_saved_state_and_each_batch_of_images(tmp_path: Path) -> None:
    printed = run_command(tmp_path, "--set", ONE_CELL, "--verbose").result.stdout.splitlines()
    of_first = [
        "  step 12: training state saved",
        "  epoch 12: 12 of 20 images generated",
        "  epoch 12: 20 of 20 images generated",
    ]
    assert printed[2:5] == of_first
    assert printed[5].startswith("  epoch 12: memorization ratio 0.")
    assert sum("training state saved" in line for line in printed) == 3


def test_a_quiet_run_tells_only_what_failed_and_how_it_ended(tmp_path: Path) -> None:
    run = run_command(tmp_path, "--set", "T.epochs=2", "--quiet")
    assert run.result.stdout == f"tiny: 2 of 2 cells are finished in {run.store.path}\n"
    failing = run.again("--set", "T.lr=1e30", "--quiet")
    assert (failing.returncode, len(failing.stdout.splitlines())) == (1, 2)
    assert all("failed: the training loss is" in line for line in failing.stdout.splitlines())
    note, end = failing.stderr.splitlines()
    assert note.startswith("note: tiny is now the study of --set T.lr=1e30 instead of --set T.epochs=2;")
    assert end.startswith("2 of 2 cells failed")


def test_a_run_leaves_the_store_and_no_image_or_state(reference: Run) -> None:
    assert files(reference.store) == CLEAN


def test_an_attempt_says_where_and_with_what_it_ran(reference: Run) -> None:
    attempts = reference.store.rows("SELECT * FROM attempts ORDER BY started_at")
    assert [attempt["outcome"] for attempt in attempts] == ["finished"] * 2
    for attempt in attempts:
        versions = json.loads(attempt["versions"])
        assert set(versions) >= {"python", "diffmem", "torch", "accelerate", "numpy", "duckdb"}
        assert versions["torch"] == torch.__version__
        assert versions["numpy"] == np.__version__
        assert attempt["host"] == os.uname().nodename
        assert attempt["pid"] > 0
        assert attempt["device"]
        assert attempt["error"] is None
        assert attempt["started_at"] < attempt["ended_at"]
    used = {row["attempt_id"] for row in reference.store.rows("SELECT attempt_id FROM checkpoints")}
    assert used == {attempt["attempt_id"] for attempt in attempts}


def test_an_attempt_names_the_commit_that_ran_or_none_outside_a_checkout(reference: Run) -> None:
    for attempt in reference.store.rows("SELECT git_commit, git_dirty FROM attempts"):
        if attempt["git_commit"] is None:
            assert attempt["git_dirty"] is None
        else:
            assert re.fullmatch("[0-9a-f]{40}", attempt["git_commit"])
            assert attempt["git_dirty"] in (True, False)


@pytest.mark.slow
def test_a_study_run_again_trains_nothing_and_changes_no_row(reference: Run) -> None:
    tables = ("cells", "study_cells", "attempts", "checkpoints", "evidence", "pairs", "copied")

    def content() -> dict[str, list[Row]]:
        return {table: reference.store.rows(f"SELECT * FROM {table} ORDER BY ALL") for table in tables}

    before = content()
    second = reference.again()
    assert second.returncode == 0
    undertrained, *lines, last = second.stdout.splitlines()
    assert undertrained.startswith("note: undertrained at N = 8: after 30 optimizer steps")
    assert [line.rpartition(": ")[2] for line in lines] == ["already finished"] * 2
    assert last == f"tiny: 2 of 2 cells are finished in {reference.store.path}"
    assert content() == before


def test_a_run_in_this_process_comes_to_the_same_numbers(
    study: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    events = go_on(study, store)
    tiny.check_equal(tiny.results(store), expected)
    assert [event.outcome for event in events if isinstance(event, CellEnded)] == ["finished"] * 2
    assert [(event.epoch, event.ratio, event.loss) for event in events if isinstance(event, Measured)] == [
        (row["epoch"], row["ratio"], row["loss"])
        for entry in study.cells
        for row in expected["checkpoints"]
        if row["cell_id"] == entry.cell.cell_id
    ]


def test_what_changes_only_speed_or_looks_makes_no_other_cell(
    one_cell: Study, store: Store, tmp_path: Path, expected: dict[str, list[Row]]
) -> None:
    overrides = [ONE_CELL, "score.batch_size = 5", "score.pairs = 0"]
    other = Study.load(tiny.write(tmp_path), overrides=overrides)
    assert other.cells[0].cell.cell_id == one_cell.cells[0].cell.cell_id
    go_on(other, store)
    found, wanted = tiny.results(store), of(one_cell, expected)
    assert found["pairs"] == found["copied"] == []
    assert [(row["sample"], row["nearest"]) for row in found["evidence"]] == [
        (row["sample"], row["nearest"]) for row in wanted["evidence"]
    ]
    assert [row["d1"] for row in found["evidence"]] == pytest.approx([row["d1"] for row in wanted["evidence"]], abs=2)


@pytest.mark.parametrize("condition", ["none", "true"])
def test_the_optimum_replicates_its_training_set_without_training(condition: str, tmp_path: Path, store: Store) -> None:
    text = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", f'M.condition = ["{condition}"]')
    overrides = ['M.network = "optimum"', "P.size = 40", "score.samples = 200", "score.steps = 18"]
    events = go_on(Study.load(tiny.write(tmp_path, text), overrides=overrides), store)
    assert not [event for event in events if isinstance(event, Trained)]
    assert [event.steps for event in events if isinstance(event, CellStarted)] == [0]
    (row,) = store.rows("SELECT epoch, step, samples, ratio, loss FROM checkpoints")
    assert (row["epoch"], row["step"], row["samples"], row["loss"]) == (0, 0, 200, None)
    assert row["ratio"] >= 0.99
    copies = store.copies("tiny", NEAREST, NEAREST.threshold)
    copied = [kept.nearest for kept in copies if kept.picture]
    assert len(copied) >= 10  # of 40 images, the ten copied most, and those of the gallery
    assert copied[:10] == [kept.nearest for kept in copies[:10]]
    assert files(store) == CLEAN


# --- stopped on request --------------------------------------------------------------------------------


@contextmanager
def held(store: Store, process: subprocess.Popen[str]) -> Iterator[None]:
    """Hold the store's lock from when a run has begun its first cell, so that it cannot end meanwhile."""
    assert process.stdout.readline().startswith("note: undertrained at N = 8: "), process.communicate()
    assert process.stdout.readline().startswith("cell 1/2 "), process.communicate()
    with filelock.FileLock(f"{store.path}.lock", timeout=100):
        yield


def start_command(study_path: Path, store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tiny.command("run", study_path, "--store", store.path),
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_saves_the_state_and_the_same_command_goes_on(
    number: signal.Signals, tmp_path: Path, store: Store, study: Study, expected: dict[str, list[Row]]
) -> None:
    with start_command(tmp_path / "tiny.toml", store) as process:
        with held(store, process):
            process.send_signal(number)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert [line.split(";")[0] for line in errors.splitlines()] == ["stopping after this step", "stopped"]
    assert "the same command goes on from here" in errors
    assert outcomes(store)[-1] == "interrupted"
    (cell_id,) = [row["cell_id"] for row in store.rows("SELECT cell_id FROM attempts WHERE outcome = 'interrupted'")]
    assert f"states/{store.path.stem}.{cell_id}.pt" in files(store)
    assert len(tiny.results(store)["checkpoints"]) < len(expected["checkpoints"])
    go_on(study, store)
    tiny.check_equal(tiny.results(store), expected)
    assert files(store) == CLEAN


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(tmp_path: Path, store: Store, study: Study) -> None:
    with start_command(tmp_path / "tiny.toml", store) as process, held(store, process):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # while the first cannot have its effect: the run waits for the store
        process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM
    assert outcomes(store)[0] in ("running", "finished")
    assert store.cells(study.name)[1].measured < 3


@pytest.mark.parametrize(
    "moment",
    [
        ("CellStarted", 1, 1),
        ("CellStarted", 1, 7),
        ("Trained", 1, 2),  # generating, the state saved
        ("Generated", 1, 2),
        ("Measured", 1, 1),
        ("Measured", 2, 3),
        ("Trained", 3, 3),
    ],
    ids=lambda moment: f"{moment[2]} after {moment[0]} {moment[1]}",
)
def test_a_run_asked_to_stop_at_any_moment_goes_on_with_the_same_numbers(
    moment: tuple[str, int, int], one_cell: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    interrupt(one_cell, store, *moment)
    assert outcomes(store) == ["interrupted"]
    assert the_state(store).exists()
    before = tiny.results(store)["checkpoints"]
    events = go_on(one_cell, store)
    tiny.check_equal(tiny.results(store), of(one_cell, expected))
    assert outcomes(store) == ["interrupted", "finished"]
    assert [event.step > 0 for event in events if isinstance(event, CellStarted)] == [True]
    assert len([event for event in events if isinstance(event, Measured)]) == 3 - len(before)
    assert files(store) == CLEAN


def test_a_run_stopped_again_and_again_comes_to_the_same_numbers(
    one_cell: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    for _ in range(3):
        interrupt(one_cell, store, "CellStarted", 1, 7)
    go_on(one_cell, store)
    tiny.check_equal(tiny.results(store), of(one_cell, expected))


def test_a_run_saves_its_state_now_and_then_without_being_asked(
    one_cell: Study, store: Store, expected: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cellrun, "STATE_SECONDS", -1.0)
    moment = tiny.Moment(*IN_TRAINING)

    def stop() -> bool:
        if moment():
            raise SystemExit  # ends the run on the spot
        return False

    with pytest.raises(SystemExit):
        for event in run_study(one_cell, store, stop=stop):
            moment.see(event)
    events = go_on(one_cell, store)
    assert next(event.step for event in events if isinstance(event, CellStarted)) == 12 + 4
    tiny.check_equal(tiny.results(store), of(one_cell, expected))


def test_an_abandoned_attempt_counts_as_lost(one_cell: Study, store: Store, expected: dict[str, list[Row]]) -> None:
    events = run_study(one_cell, store, stop=lambda: False)
    while not isinstance(next(events), Measured):
        pass
    events.close()
    go_on(one_cell, store)
    assert outcomes(store) == ["lost", "finished"]
    tiny.check_equal(tiny.results(store), of(one_cell, expected))


# --- killed --------------------------------------------------------------------------------------------

KILLED = """
import os, resource, signal, sys
from pathlib import Path
import tiny
from diffmem.runs import run_study
from diffmem.store import Store
from diffmem.study import Study

moment, left = sys.argv[3], int(sys.argv[4])
stop = tiny.Moment(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))

def reached(name):
    global left
    left -= name == moment
    return name == moment and left == 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def no_file_may_grow_beyond(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system ends the process in the middle of its write
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tmp"):
        if reached("a state is about to be written"): die()
        if reached("a state is half written"): no_file_may_grow_beyond(2000)
    if event == "os.rename" and str(arguments[0]).endswith(".tmp") and reached("a state is not yet in place"): die()
    if event == "open" and str(arguments[0]).endswith(".duckdb.lock") and arguments[1] == "w":  # once each transaction
        if reached("the store is half written"): no_file_may_grow_beyond(os.path.getsize(sys.argv[2]))

sys.addaudithook(watch)
for event in run_study(Study.load(Path(sys.argv[1])), Store(Path(sys.argv[2])), stop=lambda: stop() and die()):
    if reached("right after " + type(event).__name__): die()
    stop.see(event)
"""

MOMENTS = {  # and the checkpoints that the store then has
    ("CellStarted", 1, 7): 0,  # before anything is saved
    ("Generated", 1, 1): 0,  # the state is saved, but no row yet
    ("Measured", 4, 5): 4,  # in training, after the first checkpoint of the second cell
    ("right after Measured", 1, 0): 1,
    ("right after Measured", 6, 0): 6,  # the last of all, but its attempt does not know yet
    ("a state is about to be written", 2, 0): 1,
    ("a state is half written", 2, 0): 1,
    ("a state is not yet in place", 3, 0): 2,
    ("the store is half written", 5, 0): 1,  # its row is in the write-ahead log, and on its way to the file
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]} {moment[1]}")
def test_a_run_killed_at_any_moment_goes_on_with_the_same_numbers(
    moment: tuple[str, int, int], study: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    arguments = [study.path, store.path, *moment]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], env=tiny.environment(), check=False)
    assert killed.returncode == -(signal.SIGXFSZ if "half written" in moment[0] else signal.SIGKILL)
    found = tiny.results(store)
    for table, rows in expected.items():
        assert [row for row in found[table] if row not in rows][:1] == [], "a row that an undisturbed run lacks"
    assert len(found["checkpoints"]) == MOMENTS[moment]
    assert len(found["evidence"]) == 20 * len(found["checkpoints"])
    go_on(study, store)
    tiny.check_equal(tiny.results(store), expected)
    assert set(outcomes(store)) <= {"finished", "lost"}
    assert files(store) == CLEAN


def state_is_there(store: Store) -> bool:
    return any(store.states.glob("*.pt"))


def row_is_there(store: Store) -> bool:
    return store.path.exists() and bool(store.rows("SELECT 1 FROM checkpoints LIMIT 1"))


@pytest.mark.slow
def test_a_command_killed_again_and_again_goes_on_with_the_same_numbers(
    tmp_path: Path, store: Store, expected: dict[str, list[Row]]
) -> None:
    path = tiny.write(tmp_path)
    watched: list[Callable[[Store], bool]] = [state_is_there, row_is_there]
    for has_come in watched:
        with start_command(path, store) as process:
            while process.poll() is None and not has_come(store):
                time.sleep(0.01)
            process.kill()
            process.communicate()
    for delay in (0.1, 0.4):  # after its first line, whatever the run is doing then
        with start_command(path, store) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
            process.communicate()
    last = tiny.here("run", path, "--store", store.path)
    assert (last.returncode, last.stderr) == (0, "")
    tiny.check_equal(tiny.results(store), expected)
    assert files(store) == CLEAN


# --- states that are of no use -------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def content_of(path: Path, name: str) -> slice:
    """Return where the largest file is whose name within the state, a zip archive, has this in it."""
    with zipfile.ZipFile(path) as archive:
        member = max((m for m in archive.infolist() if name in m.filename), key=lambda m: m.file_size)
    header = path.read_bytes()[member.header_offset :][:30]
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + 30 + lengths
    return slice(start, start + member.file_size)


def flip_a_bit_of_the_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content_of(path, "/data/")
    content[(where.start + where.stop) // 2] ^= 0x40
    path.write_bytes(content)


def flip_a_bit_of_the_names(path: Path) -> None:
    """Flip a bit of the part that says what is where, such that torch stumbles over it in a rare way."""
    content, where = path.read_bytes(), content_of(path, "data.pkl")
    for position in range(where.start, where.stop):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            torch.load(path, weights_only=True)
        except (IndexError, TypeError, AttributeError, AssertionError):
            return
        except Exception:  # noqa: BLE001 - the usual ones are not looked for
            continue
    raise AssertionError("no bit makes torch stumble in a rare way")


def change(**entries: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state |= entries
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return damage


DAMAGED = "FILE: damaged"
OTHER = "FILE: written by another diffmem, or of another cell"
UNFIT = "FILE: does not fit the network"
DAMAGES = {
    "cut off": (truncate, DAMAGED),
    "empty": (empty, DAMAGED),
    "noise": (overwrite, DAMAGED),
    "a flipped bit in the weights": (flip_a_bit_of_the_weights, DAMAGED),
    "a flipped bit in the names": (flip_a_bit_of_the_names, DAMAGED),
    "of other code": (change(results_version=0), OTHER),
    "of another cell": (change(cell_id="0123456789abcdef"), OTHER),
    "of another network": (change(network={"weight": torch.zeros(3)}), UNFIT),
    "of another average": (change(averaged={"weight": torch.zeros(3)}), UNFIT),
    "of another optimizer": (change(optimizer={"state": {}, "param_groups": []}), UNFIT),
    "without the weights": (change(network=None), UNFIT),
    "without the step": (change(step=None), UNFIT),
    "without the loss": (change(loss_sum=None), UNFIT),
    "something else": (lambda path: torch.save([1, 2, 3], path), DAMAGED),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a store whose only cell was stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    study = Study.load(tiny.write(folder), overrides=[ONE_CELL])
    interrupt(study, Store(folder / "store" / "tiny.duckdb"), *IN_TRAINING)
    return folder / "store"


@pytest.mark.filterwarnings("ignore")  # of torch, about what it finds in a damaged file
@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_state_of_no_use_is_named_and_the_cell_trained_from_the_start(
    damage: Callable[[Path], None],
    said: str,
    interrupted: Path,
    one_cell: Study,
    store: Store,
    expected: dict[str, list[Row]],
) -> None:
    shutil.copytree(interrupted, store.path.parent)
    path = the_state(store)
    damage(path)
    events = go_on(one_cell, store)
    assert [event.error for event in events if isinstance(event, CellEnded)] == [""]
    tiny.check_equal(tiny.results(store), of(one_cell, expected))
    (started,) = [event for event in events if isinstance(event, CellStarted)]
    assert started.step == 0
    assert started.note.replace(str(path), "FILE") == f"{said}: training from the start"


def test_a_state_that_may_not_be_read_may_be_whole_and_is_kept(interrupted: Path, one_cell: Study) -> None:
    (path,) = interrupted.glob("*/*.pt")
    before = path.read_bytes()
    with tiny.forbidden(path), pytest.raises(MachineError) as caught:
        load_state(path, one_cell.cells[0].cell, torch.device("cpu"))
    sentence = "FILE: the training state cannot be read; check its permissions"
    assert str(caught.value).replace(str(path), "FILE") == sentence
    assert path.read_bytes() == before


@pytest.mark.parametrize("moment", [("Generated", 1, 1), IN_TRAINING], ids=["saved at the first row", "past it"])
def test_a_state_whose_rows_were_deleted_is_no_reason_to_lack_them(
    moment: tuple[str, int, int], one_cell: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    interrupt(one_cell, store, *moment)
    store.path.unlink()
    go_on(one_cell, store)
    tiny.check_equal(tiny.results(store), of(one_cell, expected))


def test_rows_whose_state_was_deleted_are_kept_and_the_others_added(
    one_cell: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    interrupt(one_cell, store, *IN_TRAINING)
    the_state(store).unlink()
    before = store.rows("SELECT * FROM checkpoints")
    go_on(one_cell, store)
    tiny.check_equal(tiny.results(store), of(one_cell, expected))
    assert before[0] in store.rows("SELECT * FROM checkpoints")


def test_the_seconds_of_a_checkpoint_are_those_of_all_its_attempts(one_cell: Study, store: Store) -> None:
    interrupt(one_cell, store, "CellStarted", 1, 7)
    saved = torch.load(the_state(store), weights_only=True)
    assert saved["seconds"] > 0
    torch.save({**saved, "seconds": 1000.0}, the_state(store))
    go_on(one_cell, store)
    first, *others = (
        row["train_seconds"] for row in store.rows("SELECT train_seconds FROM checkpoints ORDER BY epoch")
    )
    assert first > 1000
    assert max(others) < 1000


def test_states_that_cannot_be_kept_are_an_error_with_the_folder(one_cell: Study, store: Store) -> None:
    store.path.parent.mkdir()
    store.states.write_text("a file where the folder should be")
    with pytest.raises(MachineError, match="cannot keep training states there") as caught:
        go_on(one_cell, store)
    assert str(store.states) in str(caught.value)


@pytest.mark.parametrize("moment", [("CellStarted", 1, 7), ("Trained", 1, 2), ("Measured", 1, 1)])
def test_a_run_whose_store_is_taken_away_ends_and_goes_on_once_it_is_back(
    moment: tuple[str, int, int], one_cell: Study, store: Store, expected: dict[str, list[Row]], tmp_path: Path
) -> None:
    when, away = tiny.Moment(*moment), tmp_path / "away"

    def stop() -> bool:
        if when():
            store.path.parent.rename(away)
        return False

    with pytest.raises(StoreUnavailable, match="the store is gone"):
        for event in run_study(one_cell, store, stop=stop):
            when.see(event)
    assert not store.path.parent.exists()
    away.rename(store.path.parent)
    go_on(one_cell, store)
    tiny.check_equal(tiny.results(store), of(one_cell, expected))


# --- cells that fail -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_failed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    text = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "T.lr = [1e30, 5e-3]")
    return run_command(tmp_path_factory.mktemp("failed"), text=text)


@pytest.mark.slow
def test_a_cell_whose_loss_is_nan_fails_and_the_others_go_on(half_failed: Run) -> None:
    result, store = half_failed.result, half_failed.store
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "1 of 2 cells failed" in result.stderr
    failed, finished = store.cells("tiny")
    assert (failed.outcome, failed.measured) == ("failed", 0)
    assert "the training loss is" in failed.error
    assert "lower T.lr (now 1e+30)" in failed.error
    assert (finished.outcome, finished.measured) == ("finished", 3)


@pytest.mark.slow
def test_status_tells_why_a_cell_failed(half_failed: Run) -> None:
    status = tiny.here("status", half_failed.study, "--store", half_failed.store.path)
    assert status.returncode == 0
    assert "failed: the training loss is" in status.stdout
    rows = json.loads(tiny.here("status", half_failed.study, "--store", half_failed.store.path, "--json").stdout)
    assert [(row["state"], row["checkpoints"]) for row in rows] == [("failed", "0/3"), ("finished", "3/3")]
    assert rows[0]["error"].startswith("the training loss is")
    assert rows[1]["error"] is None


@pytest.mark.slow
def test_a_state_that_cannot_be_written_ends_the_run_and_the_next_one_tries_the_cell_again(
    tmp_path: Path, store: Store
) -> None:
    path = tiny.write(tmp_path)
    # a state of 20 MB, where 10 MB is the most that a file may have
    wide = ["--set", ONE_CELL, "--set", "M.width = 64", "--set", "T.epochs=2"]
    limited = subprocess.run(
        ["sh", "-c", 'ulimit -f 20000; exec "$@"', "sh", *tiny.command("run", path, "--store", store.path, *wide)],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert limited.returncode == 1, limited
    (said,) = limited.stderr.splitlines()
    assert re.sub(r"^/\S+\.pt:|\(.*\)", "...", said) == (
        "... the training state cannot be saved ...; free some space or check the folder's permissions, then run the "
        "same command again"
    )
    (cell,) = store.cells("tiny")
    assert (cell.outcome, cell.error, cell.measured) == ("interrupted", said, 0)
    assert not [name for name in files(store) if name.endswith((".tmp", ".pt"))]
    status = tiny.here("status", "tiny", "--store", store.path)
    assert f"{cell.cell_id} interrupted: {said}" in status.stdout
    assert tiny.here("run", path, "--store", store.path, *wide).returncode == 0
    assert outcomes(store) == ["interrupted", "finished"]


@pytest.mark.slow
def test_a_store_that_cannot_be_written_ends_the_run_in_one_sentence(
    reference: Run, tmp_path: Path, expected: dict[str, list[Row]]
) -> None:
    store = Store(tmp_path / "store" / "tiny.duckdb")
    store.path.parent.mkdir()
    store.path.write_bytes(reference.store.path.read_bytes())
    limited = subprocess.run(
        [
            *("sh", "-c", 'ulimit -f 0; exec "$@"', "sh"),
            *tiny.command("run", reference.study, "--store", store.path, "--set", "M.dropout = 0.4"),
        ],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert limited.returncode == 1, limited
    note, said = limited.stderr.splitlines()
    assert note.startswith("note: tiny is now the study of ")
    assert " instead of the file alone; " in note
    assert said.startswith(f"{store.path}: ")
    assert "too large" in said or "full" in said
    tiny.check_equal(tiny.results(store), expected)


# --- several processes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_commands_at_once_measure_everything_once(
    tmp_path: Path, store: Store, expected: dict[str, list[Row]]
) -> None:
    path = tiny.write(tmp_path)
    with start_command(path, store) as one, start_command(path, store) as two:
        ends = [process.communicate(timeout=300) for process in (one, two)]
    assert [(process.returncode, errors) for process, (_, errors) in zip((one, two), ends, strict=True)] == [
        (0, "")
    ] * 2
    tiny.check_equal(tiny.results(store), expected)
    assert outcomes(store) == ["finished"] * 2
    assert files(store) == CLEAN


@pytest.mark.slow
def test_two_commands_at_once_measure_the_same_while_lock_files_are_deleted(
    tmp_path: Path, store: Store, expected: dict[str, list[Row]]
) -> None:
    path = tiny.write(tmp_path)
    with start_command(path, store) as one, start_command(path, store) as two:
        while one.poll() is None or two.poll() is None:
            for lock in store.path.parent.rglob("*.lock"):
                lock.unlink(missing_ok=True)
            time.sleep(0.001)
        ends = [(process.returncode, process.stderr.read()) for process in (one, two)]
    assert ends == [(0, "")] * 2
    tiny.check_equal(tiny.results(store), expected)
    assert set(outcomes(store)) <= {"finished", "lost"}
    assert not list(store.states.iterdir())


SAVER = """
import sys
from pathlib import Path
import torch
from diffmem.models import build_denoiser
from diffmem.runs.saved_states import load_state, save_state
from diffmem.study import Study
from diffmem.models import TrainingState
cell = Study.load(Path(sys.argv[1])).cells[0].cell
state = TrainingState(build_denoiser(cell.M, resolution=8, channels=1, labels=cell.labels), cell.T)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    save_state(Path(sys.argv[2]), cell, state)
    load_state(Path(sys.argv[2]), cell, torch.device("cpu"))
"""


def test_two_processes_may_save_the_state_of_one_cell_at_the_same_time(tmp_path: Path) -> None:
    arguments = (SAVER, tiny.write(tmp_path), tmp_path / "tiny.cell.pt")
    with tiny.started(*arguments) as one, tiny.started(*arguments) as two:
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [(process.communicate(timeout=200)[1], process.returncode) for process in (one, two)]
    assert ends == [("", 0)] * 2
    assert [path.name for path in tmp_path.glob("tiny.cell.*")] == ["tiny.cell.pt"]


@pytest.mark.slow
def test_a_command_leaves_a_cell_alone_that_another_one_works_on(
    tmp_path: Path, study: Study, store: Store, expected: dict[str, list[Row]]
) -> None:
    events = run_study(study, store, stop=lambda: False)
    while not isinstance(next(events), Trained):
        pass
    other = tiny.diffmem("run", tmp_path / "tiny.toml", "--store", store.path)
    assert other.returncode == 0
    assert "cell 1/2 M.dropout = 0.0: busy elsewhere" in other.stdout.splitlines()
    assert [cell.measured for cell in store.cells("tiny")] == [0, 3]
    rest = list(events)
    assert [event.outcome for event in rest if isinstance(event, CellEnded)] == ["finished", "already finished"]
    tiny.check_equal(tiny.results(store), expected)
    assert files(store) == CLEAN


def test_a_state_is_read_on_the_device_that_several_processes_call_cpu_0(one_cell: Study, tmp_path: Path) -> None:
    cell, device = one_cell.cells[0].cell, torch.device("cpu:0")
    denoiser = build_denoiser(cell.M, resolution=8, channels=1, labels=cell.labels)
    save_state(tmp_path / "s.pt", cell, TrainingState(denoiser, cell.T))
    assert load_state(tmp_path / "s.pt", cell, device)["step"] == 0
