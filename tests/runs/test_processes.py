"""Many processes: the same numbers however the work is split, whatever happens to one of them."""

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import tiny
import torch
from scipy.stats import binomtest

from diffmem.data import training_set
from diffmem.errors import StoreError
from diffmem.runs import cell_run as cellrun
from diffmem.runs.cell_run import CellRun, Work
from diffmem.runs.events import CellEnded
from diffmem.runs.quality import CellQuality
from diffmem.runs.runner import _run_apart
from diffmem.runs.waiting import Failures, Options, shard_of
from diffmem.store.database import Row
from diffmem.store.merging import merge, merged
from diffmem.store.store import Store
from diffmem.study.study import Study

FOUR_CELLS = tiny.TEXT + "[[axes]]\nP.draw = [0, 1]\n"
LONGER = ("--set", "T.epochs=160", "--set", "score.every=80")
MINUTES = 300.0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("study"), FOUR_CELLS)


def run(study: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return tiny.diffmem("run", study, "--store", store, *more)


def run_here(study: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return tiny.here("run", study, "--store", store, *more)


def measured_once(study: Path, factory: pytest.TempPathFactory, name: str, *more: str) -> dict[str, list[Row]]:
    def make(folder: Path) -> None:
        assert run_here(study, folder / "s.duckdb", *more).returncode == 0

    return tiny.results(Store(tiny.once(factory, name, make) / "s.duckdb"))


@pytest.fixture(scope="module")
def alone(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """Return what one process measures."""
    return measured_once(study, tmp_path_factory, "alone")


@pytest.fixture(scope="module")
def alone_longer(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    return measured_once(study, tmp_path_factory, "alone longer", *LONGER)


# --- the same numbers ----------------------------------------------------------------------------------


def test_two_processes_with_a_cell_each_measure_the_same_bit_by_bit(study, alone, tmp_path):
    result = run(study, tmp_path / "s.duckdb", "--processes", "2", "--split", "cells")
    assert result.returncode == 0, result.stderr
    tiny.check_equal(tiny.results(Store(tmp_path / "s.duckdb")), alone)
    *lines, last = result.stdout.splitlines()
    cells = [f"M.dropout = {dropout}, P.draw = {draw}" for dropout in (0.0, 0.2) for draw in (0, 1)]
    told = [line.partition(": epoch 12: memorization ratio ")[0] for line in lines if "epoch 12: " in line]
    assert sorted(told) == cells
    assert last.endswith(f"4 of 4 cells are finished in {tmp_path / 's.duckdb'}")
    assert sum(line.startswith(f"cell {cells[0]}, ") for line in lines) == 1


def test_processes_that_train_a_cell_together_measure_the_same_up_to_rounding(study, alone, tmp_path):
    result = run(study, tmp_path / "s.duckdb", "--processes", "2", "--split", "batch")
    assert result.returncode == 0, result.stderr
    tiny.check_close(tiny.results(Store(tmp_path / "s.duckdb")), alone)
    assert result.stdout.count("epoch 12: memorization ratio ") == 4, "each said once"
    attempts = Store(tmp_path / "s.duckdb").rows("SELECT device FROM attempts")
    assert all(row["device"].startswith("2 x ") for row in attempts)
    assert list((tmp_path / "states").iterdir()) == []


def test_fewer_cells_than_processes_are_trained_together(study, tmp_path):
    one = ("--set", "M.dropout=0.2", "--set", "P.draw=0")
    assert run(study, tmp_path / "s.duckdb", "--processes", "2", *one).returncode == 0
    (attempt,) = Store(tmp_path / "s.duckdb").rows("SELECT device FROM attempts")
    assert attempt["device"].startswith("2 x ")


def test_a_batch_smaller_than_the_processes_is_refused_in_a_sentence(study, tmp_path):
    result = run(study, tmp_path / "s.duckdb", "--processes", "2", "--split", "batch", "--set", "T.batch_size=1")
    assert result.returncode == 1
    sentence = (
        "M.dropout = 0.0, P.draw = 0: a batch of 1 images cannot be split over 2 processes; start fewer, or use "
        "--split cells"
    )
    assert set(result.stderr.splitlines()) == {sentence}


# --- launchers -----------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "diffmem"]


def test_torchrun_starts_it_too(study, alone, tmp_path):
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), "run", study, "--store", tmp_path / "s.duckdb"]
    result = subprocess.run(
        list(map(str, command)), env=tiny.environment(), capture_output=True, text=True, timeout=MINUTES, check=False
    )
    assert result.returncode == 0, result.stderr
    tiny.check_equal(tiny.results(Store(tmp_path / "s.duckdb")), alone)


@pytest.mark.parametrize("split", ["cells", "batch"])
def test_two_launchers_on_two_machines_work_together(study, alone, tmp_path, split):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launchers = []
    for node in ("0", "1"):
        nodes = ("--nnodes", "2", "--node-rank", node, "--nproc-per-node", "1")
        where = ("--master-addr", "127.0.0.1", "--master-port", port)
        command = [
            *torchrun(*nodes, *where),
            "run",
            str(study),
            "--store",
            str(tmp_path / "s.duckdb"),
            "--split",
            split,
        ]
        launchers.append(subprocess.Popen(command, env=tiny.environment(), stderr=subprocess.PIPE, text=True))
    for launcher in launchers:
        _, errors = launcher.communicate(timeout=MINUTES)
        assert launcher.returncode == 0, errors
    found = tiny.results(Store(tmp_path / "s.duckdb"))
    tiny.check_equal(found, alone) if split == "cells" else tiny.check_close(found, alone)


def test_accelerate_launch_starts_it_too(study, alone, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "diffmem"]
    command = [*launcher, "run", str(study), "--store", str(tmp_path / "s.duckdb")]
    result = subprocess.run(
        command, env=tiny.environment(), capture_output=True, text=True, timeout=MINUTES, check=False
    )
    assert result.returncode == 0, result.stderr
    tiny.check_equal(tiny.results(Store(tmp_path / "s.duckdb")), alone)


def test_a_process_that_cannot_find_the_others_says_what_to_start(study, tmp_path):
    result = tiny.diffmem("run", study, "--store", tmp_path / "s.duckdb", WORLD_SIZE="2", RANK="0")
    assert (result.returncode, result.stderr) == (
        1,
        "the processes cannot find each other: Tried to launch on distributed with multinode, but `MASTER_ADDR` env "
        "was not set, please try exporting rank 0's hostname as `MASTER_ADDR`; start them with `diffmem run "
        "--processes N`, or with `torchrun --nproc-per-node N -m diffmem run STUDY`\n",
    )
    assert not (tmp_path / "s.duckdb").exists()


ALONE_OF_TWO = """
import os
from accelerate import PartialState
PartialState(cpu=True)
os.environ["WORLD_SIZE"] = "2"
from diffmem.errors import RunError
from diffmem.runs import join
try:
    join()
except RunError as error:
    print(error)
"""


def test_a_process_that_accelerate_takes_for_the_only_one_of_several_is_refused():
    result = subprocess.run(
        [sys.executable, "-c", ALONE_OF_TWO], env=tiny.environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == (
        "started as one of 2 processes, but Accelerate sees no other; start them with `diffmem run --processes N`, or "
        "with `torchrun --nproc-per-node N -m diffmem run STUDY`\n"
    )


# --- parts for machines that share nothing -------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_the_cells_out(study, count):
    loaded = Study.load(study)
    shards = [[entry.cell.cell_id for entry in shard_of(loaded, (i, count))] for i in range(1, count + 1)]
    assert sorted(itertools.chain(*shards)) == sorted(entry.cell.cell_id for entry in loaded.distinct)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(study, tmp_path, text):
    result = run_here(study, tmp_path / "s.duckdb", "--shard", text)
    assert result.returncode == 2
    assert "is not I/N" in result.stderr


@pytest.fixture(scope="module")
def shards(study: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    stores = [folder / f"{i}.duckdb" for i in (1, 2)]
    for i, store in enumerate(stores, start=1):
        assert run_here(study, store, "--shard", f"{i}/2").returncode == 0
    return stores


def tables(path: Path) -> dict[str, list[Row]]:
    """Return all that a store has but its own history."""
    names = ("cells", "studies", "study_cells", "attempts", "checkpoints", "evidence", "pairs", "copied", "notes")
    return {name: Store(path).rows(f"FROM {name} ORDER BY ALL") for name in names}


def test_merged_shards_are_what_one_run_measures_in_any_order_and_however_often(shards, alone, tmp_path):
    one, other = tmp_path / "one.duckdb", tmp_path / "other.duckdb"
    assert tiny.here("store", "merge", *shards, "-o", one).returncode == 0
    again = tiny.here("store", "merge", *shards[::-1], *shards, "-o", other)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": 0 checkpoints taken") == 2
    tiny.check_equal(tiny.results(Store(one)), alone)
    assert tables(one) == tables(other)


def test_a_merged_store_needs_no_more_runs(study, shards, tmp_path):
    tiny.here("store", "merge", *shards, "-o", tmp_path / "s.duckdb")
    result = run_here(study, tmp_path / "s.duckdb")
    assert result.stdout.count("already finished") == 4


def test_stores_that_measured_otherwise_are_not_merged(shards, tmp_path):
    into = Store(tmp_path / "s.duckdb")
    merge(into, shards[0])
    (row, *_) = into.rows("SELECT cell_id, epoch FROM checkpoints ORDER BY ALL")
    with into.writing() as connection:
        connection.execute("UPDATE evidence SET d1 = d1 + 1 WHERE sample = 3 AND cell_id = ?", [row["cell_id"]])
    before = tables(into.path)
    with pytest.raises(StoreError, match=f"measured otherwise.*{row['cell_id']} at checkpoint {row['epoch']}"):
        merge(into, shards[0])
    assert tables(into.path) == before


def test_a_report_shows_several_stores_as_one(shards, tmp_path):
    page = tmp_path / "page.html"
    stores = [part for store in shards for part in ("--store", store)]
    result = tiny.here("report", *stores, "-o", page)
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert "not finished" not in text
    assert all(store.name in text for store in shards)
    with merged(shards) as store:
        assert len(store.rows("FROM checkpoints")) == 12


def test_what_is_no_store_is_not_merged(tmp_path):
    (tmp_path / "text.duckdb").write_text("no database")
    for name in ("text.duckdb", "nothing.duckdb"):
        result = tiny.here("store", "merge", tmp_path / name, "-o", tmp_path / "s.duckdb")
        assert result.returncode != 0
        assert name in result.stderr
        assert "Traceback" not in result.stderr


# --- interruptions -------------------------------------------------------------------------------------


@contextmanager
def running(study: Path, store: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run two processes in a session of their own; kill all of them at the end."""
    command = tiny.command("run", study, "--store", store, "--processes", "2", *LONGER, *more)
    process = subprocess.Popen(
        command,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(launcher: subprocess.Popen[str]) -> None:
    """Kill a launcher and its processes, which are in sessions of their own."""
    for pid in [*workers(launcher), launcher.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    launcher.communicate()


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    return [int(pid) for pid in children.stdout.split()]


@pytest.mark.parametrize(("split", "number"), [("cells", signal.SIGINT), ("batch", signal.SIGTERM)])
def test_a_signal_to_the_launcher_saves_everything_and_the_run_goes_on(study, alone_longer, tmp_path, split, number):
    store = tmp_path / "s.duckdb"
    with running(study, store, "--split", split) as process:
        tiny.wait_for(process, "epoch 80")
        process.send_signal(number)
        _, errors = process.communicate(timeout=MINUTES)
    assert process.returncode == 128 + number, errors
    assert "everything is saved" in errors
    assert "Traceback" not in errors
    outcomes = [row["outcome"] for row in Store(store).rows("SELECT outcome FROM attempts")]
    assert set(outcomes) <= {"finished", "interrupted"}
    again = run(study, store, "--processes", "2", "--split", split, *LONGER)
    assert again.returncode == 0
    assert again.stdout.count("going on at step") == outcomes.count("interrupted") > 0
    assert "training from the start" not in again.stdout
    found = tiny.results(Store(store))
    tiny.check_equal(found, alone_longer) if split == "cells" else tiny.check_close(found, alone_longer)


def test_a_process_lost_in_batch_mode_ends_the_run_with_a_reason_and_the_next_run_goes_on(
    study, alone_longer, tmp_path
):
    store = tmp_path / "s.duckdb"
    with running(study, store, "--split", "batch") as process:
        tiny.wait_for(process, "epoch 80")
        os.kill(max(workers(process)), signal.SIGKILL)
        _, errors = process.communicate(timeout=MINUTES)
    assert process.returncode != 0
    assert "Traceback" not in errors
    result = run(study, store, "--processes", "2", "--split", "batch", *LONGER)
    assert result.returncode == 0, result.stderr
    tiny.check_close(tiny.results(Store(store)), alone_longer)
    outcomes = {row["outcome"] for row in Store(store).rows("SELECT outcome FROM attempts")}
    assert outcomes & {"lost", "interrupted"}


# --- one of two processes without a launcher, which would end the other one --------------------------------


TOGETHER = ("--split", "batch", "--set", "M.dropout=0.2", "--set", "P.draw=0")


@contextmanager
def pair(
    study: Path, stores: tuple[Path, Path], script: str = "from diffmem.cli import main; main()"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run two processes that train a cell together, each with its store; the second one by a script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank, store in enumerate(stores):
        place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        start = ["-c", script] if rank else ["-m", "diffmem"]
        command = [sys.executable, *start, "run", str(study), "--store", str(store), *LONGER, *TOGETHER]
        environment = tiny.environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def last_words(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return how some processes have ended: their exit codes, and what they said."""
    said = [process.communicate(timeout=MINUTES)[1] for process in processes]
    return [(process.returncode, words) for process, words in zip(processes, said, strict=True)]


def test_a_process_that_loses_the_other_says_so(study, tmp_path):
    store = tmp_path / "s.duckdb"
    with pair(study, (store, store)) as (leading, other):
        tiny.wait_for(leading, "epoch 80")
        other.kill()
        ((code, said),) = last_words([leading])
    assert (code, re.sub(r"\(.*\)", "(REASON)", said)) == (
        1,
        "P.size = 8: another process of the run has ended (REASON); what was saved is kept, run the same "
        "command again\n",
    )
    (row,) = Store(store).rows("SELECT outcome, error FROM attempts")
    assert row["outcome"] == "lost"
    assert re.fullmatch(r"another process of the run has ended \(.+\)", row["error"])


def test_processes_with_a_folder_each_see_different_states_and_say_so(study, tmp_path):
    stores = (tmp_path / "one" / "s.duckdb", tmp_path / "two" / "s.duckdb")
    with running(study, stores[0], *TOGETHER) as process:
        tiny.wait_for(process, "epoch 80")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=MINUTES)
    stores[1].parent.mkdir()
    shutil.copyfile(*stores)
    with pair(study, stores) as processes:
        ended = last_words(processes)
    assert [(code, said.replace(str(tmp_path), "FOLDER")) for code, said in ended] == [
        (
            1,
            f"FOLDER/{name}/states: the processes see different training states; put the store into a folder that all "
            "of them share\n",
        )
        for name in ("one", "two")
    ]


def test_a_process_that_cannot_save_says_why_and_the_other_one_refers_to_it(study, tmp_path):
    store = Store(tmp_path / "s.duckdb")
    with pair(study, (store.path, store.path)) as processes:
        tiny.wait_for(processes[0], "epoch 80")
        store.states.rename(tmp_path / "away")
        ended = last_words(processes)
    (why,) = (re.sub(r"/[^/ ]*\.(pt|tmp)", "/FILE", said).replace(str(store.states), "STATES") for _, said in ended[:1])
    assert (ended[0][0], why) == (
        1,
        "STATES/FILE: the training state cannot be saved ([Errno 2] No such file or directory: 'STATES/FILE'); free "
        "some space or check the folder's permissions, then run the same command again\n",
    )
    assert (ended[1][0], ended[1][1].replace(str(store.states), "STATES")) == (
        1,
        "STATES: another process cannot save the training state; its own message says why\n",
    )


def test_a_process_that_cannot_keep_the_model_says_why_and_the_other_one_refers_to_it(study, tmp_path):
    store = Store(tmp_path / "s.duckdb")
    store.weights.write_text("a file where the folder should be")
    with pair(study, (store.path, store.path)) as processes:
        (one, why), (two, said) = last_words(processes)
    assert (one, two) == (1, 1)
    assert ": the trained model cannot be kept (" in why
    assert said.replace(str(store.weights), "FOLDER") == (
        "FOLDER: another process cannot keep the trained model; its own message says why\n"
    )


BROKEN = """
import numpy, torch
from diffmem.cli import main
def broken(*_, **__):
    raise {error}
{function} = broken
main()
"""
"""The command with a library of which one function fails."""


def test_what_nobody_foresaw_in_one_process_ends_all_with_its_traceback(study, tmp_path):
    store = tmp_path / "s.duckdb"
    script = BROKEN.format(function="torch.Tensor.backward", error="RuntimeError('an illegal memory access')")
    with pair(study, (store, store), script) as processes:
        (_, first), (code, said) = last_words(processes)
    start, *_, end = said.splitlines()
    assert code == 1
    assert start == ("P.size = 8: one of 2 processes failed, so the run ends: Traceback (most recent call last):")
    assert end == "RuntimeError: an illegal memory access"
    assert "another process of the run has ended" in first


def test_input_that_is_wrong_in_one_process_alone_fails_the_cells_in_both(study, tmp_path):
    """As a feature of an image of its share that is no number; nobody waits for the other."""
    store = tmp_path / "s.duckdb"
    error = "__import__('diffmem.errors').errors.DataError('the space own: it has returned NaN')"
    script = BROKEN.format(function="__import__('diffmem.runs.cell_run').runs.cell_run.Comparison.add", error=error)
    with pair(study, (store, store), script) as processes:
        codes = [code for code, _ in last_words(processes)]
    assert codes == [1, 1]
    attempts = Store(store).rows("SELECT DISTINCT outcome, error FROM attempts")
    assert attempts == [
        {"outcome": "failed", "error": "it failed in another process of the run, whose own message says why"}
    ]


def test_memory_that_one_process_lacks_where_the_others_cannot_know_ends_all(study, tmp_path):
    store = tmp_path / "s.duckdb"
    script = BROKEN.format(function="numpy.load", error="MemoryError")
    with pair(study, (store, store), script) as processes:
        (_, first), (code, said) = last_words(processes)
    assert (code, said) == (
        1,
        "P.size = 8: one of 2 processes ran out of memory, so the run ends; start fewer on one machine, or lower "
        "T.batch_size or M.width\n",
    )
    assert "another process of the run has ended" in first


def still_there(pids: list[int]) -> list[int]:
    """Return those of some processes that are still there and no zombies."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "Z" not in line.split()[1]]


def check_that_workers_end(pids: list[int]) -> None:
    """Check that processes whose launcher was killed end within a minute."""
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while (left := still_there(pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a process outlives its launcher"


@pytest.mark.parametrize("moment", ["the workers are there", "a second later", "cell M.", "epoch 80"])
def test_workers_end_when_their_launcher_is_killed_and_the_same_command_goes_on(study, alone_longer, tmp_path, moment):
    store = tmp_path / "s.duckdb"
    with running(study, store) as process:
        while len(pids := workers(process)) < 2:
            time.sleep(0.01)
        if moment == "a second later":
            time.sleep(1)
        elif moment != "the workers are there":
            tiny.wait_for(process, moment)
        process.kill()
        check_that_workers_end(pids)
        _, errors = process.communicate()
    assert errors.count("the launcher of this run has ended") == 2
    assert "Traceback" not in errors
    again = run(study, store, "--processes", "2", *LONGER)
    assert again.returncode == 0, again.stderr
    tiny.check_equal(tiny.results(Store(store)), alone_longer)


def test_workers_that_train_one_cell_save_it_when_their_launcher_is_killed(study, alone_longer, tmp_path):
    store = tmp_path / "s.duckdb"
    with running(study, store, "--split", "batch") as process:
        tiny.wait_for(process, "epoch 80")
        pids = workers(process)
        process.kill()
        check_that_workers_end(pids)
    assert [row["outcome"] for row in Store(store).rows("SELECT outcome FROM attempts")][-1] == "interrupted"
    again = run(study, store, "--processes", "2", "--split", "batch", *LONGER)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("going on at step") == 1
    tiny.check_close(tiny.results(Store(store)), alone_longer)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_workers_end_when_torchrun_is_killed(study, tmp_path, seconds):
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), "run", str(study), *LONGER]
    process = subprocess.Popen(
        [*command, "--store", str(tmp_path / "s.duckdb")],
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while len(pids := workers(process)) < 2:
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        check_that_workers_end(pids)
    finally:
        kill_all(process)


@pytest.mark.slow
def test_killed_at_six_random_moments_two_processes_measure_the_same(study, alone_longer, tmp_path):
    store = tmp_path / "s.duckdb"
    moments = random.Random(11)
    kills = 0
    for early in (3.75, 1.5, 5.25, 3.0, 2.25, 4.5):  # one moment of each part of the start, of four seconds, and after
        with running(study, store) as process:
            time.sleep(early + moments.uniform(0, 0.75))
            kills += process.poll() is None
            kill_all(process)
    assert kills >= 3
    result = run(study, store, "--processes", "2", *LONGER)
    assert result.returncode == 0, result.stderr
    tiny.check_equal(tiny.results(Store(store)), alone_longer)
    assert list((tmp_path / "states").iterdir()) == []


# --- failures ------------------------------------------------------------------------------------------

FAILING = FOUR_CELLS + "[[axes]]\nT.lr = [1e30, 5e-3]\n"
SHORT = ("--set", "T.epochs=4", "--set", "score.every=4")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_cells_that_fail_end_with_1_after_the_others_and_are_tried_again_when_asked(tmp_path, processes):
    study, store = tiny.write(tmp_path, FAILING), tmp_path / "s.duckdb"
    run_study = run if processes == "2" else run_here
    result = run_study(study, store, "--processes", processes, *SHORT)
    assert result.returncode == 1, result.stderr
    assert "4 of 8 cells failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(Store(store).finished_cells()) == 4
    again = run_study(study, store, "--processes", processes, *SHORT)
    assert again.returncode == 1
    assert again.stdout.count("failed before") == 4
    assert len(Store(store).rows("FROM attempts")) == 8
    assert run_study(study, store, "--processes", processes, "--retry-failed", *SHORT).returncode == 1
    assert len(Store(store).rows("FROM attempts")) == 12


@pytest.mark.parametrize("count", [1, 2])
def test_a_cell_that_fails_in_another_process_while_this_one_waits_for_its_lock_is_not_tried_again(
    tmp_path, monkeypatch, count
):
    study, store = tiny.load(tmp_path, FAILING), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    failures, cells = Failures(store), study.distinct

    def process(failures: Failures) -> list[str]:
        work = Work(store, lambda: False, failed_elsewhere=failures.new)
        apart = _run_apart(cells, work, Options(), several=count > 1)
        return [event.outcome for event in apart if isinstance(event, CellEnded)]

    def first_the_other(path: Path) -> AbstractContextManager[bool]:
        monkeypatch.setattr("diffmem.runs.cell_run.exclusive", exclusive)
        of_the_other.extend(process(Failures(store)))
        return exclusive(path)

    of_the_other: list[str] = []
    exclusive = cellrun.exclusive
    monkeypatch.setattr("diffmem.runs.cell_run.exclusive", first_the_other)
    seen = process(failures)
    assert sorted(seen) == ([] if count > 1 else 4 * ["already finished"] + 4 * ["failed elsewhere"])
    assert sorted(of_the_other) == 4 * ["failed"] + 4 * ["finished"]
    assert len(store.rows("FROM attempts")) == 8


def test_fail_fast_ends_at_the_first_failure(tmp_path):
    study, store = tiny.write(tmp_path, FAILING), tmp_path / "s.duckdb"
    result = run_here(study, store, "--fail-fast")
    assert result.returncode == 1
    assert [row["outcome"] for row in Store(store).rows("SELECT outcome FROM attempts")] == ["failed"]


class Small:
    """A denoiser that runs out of memory at more than five images."""

    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, noisy: torch.Tensor, _sigma: object, _labels: object = None) -> torch.Tensor:
        self.counts.append(len(noisy))
        if len(noisy) > 5:
            raise torch.OutOfMemoryError("no memory")
        return torch.zeros_like(noisy)


def test_out_of_memory_while_generating_halves_the_batch(study, tmp_path):
    entry = Study.load(study).cells[0]
    images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
    store = Store(tmp_path / "s.duckdb")
    with store.writing(create=True):
        pass
    small = Small()
    work = CellRun(entry, Work(store, lambda: False), "a", tmp_path / "state")
    work.data = training_set(entry.cell)
    work.quality = CellQuality(entry.cell)
    list(work._measure(small, images, 1, 1, None, 0.0))
    assert set(small.counts) == {12, 6, 3, 2}  # 12 of 20 images, then halves; 20 = 6 * 3 + 2
    (row,) = store.rows("SELECT samples FROM checkpoints")
    assert row["samples"] == 20
    assert store.rows("SELECT count(DISTINCT sample) AS n FROM evidence")[0]["n"] == 20


# --- as many images as the precision asks for ----------------------------------------------------------

PRECISE = tiny.TEXT.replace("samples = 20", "samples = 4000\nprecision = 0.003").replace("every = 12", "every = 30")


@pytest.mark.slow
def test_generation_stops_once_the_interval_is_narrow_enough_whatever_the_batches_and_processes(tmp_path):
    study = tiny.write(tmp_path, PRECISE.replace("[0.0, 0.2]", "[0.0]"))
    stores = [Store(tmp_path / f"{i}.duckdb") for i in range(3)]
    together = ("--processes", "2", "--split", "batch")
    for store, way, more in zip(
        stores, [run_here, run_here, run], [(), ("--set", "score.batch_size=130"), together], strict=True
    ):
        assert way(study, store.path, *more).returncode == 0
    (row,) = stores[0].rows("SELECT samples, memorized FROM checkpoints")
    assert row["samples"] % 500 == 0
    assert row["samples"] < 4000

    def half_width(memorized: float, samples: int) -> float:
        interval = binomtest(round(memorized), samples).proportion_ci(method="wilson")
        return (interval.high - interval.low) / 2

    assert half_width(row["memorized"], row["samples"]) <= 0.003
    assert row["samples"] > 500
    (first,) = stores[0].rows(
        "SELECT count(*) FILTER (d1 < d2 / 3) AS n FROM evidence WHERE sample < ?", [row["samples"] - 500]
    )
    assert half_width(first["n"], row["samples"] - 500) > 0.003
    other, one = (store.rows("SELECT * FROM evidence ORDER BY ALL") for store in stores[1::-1])
    assert len(other) == len(one)
    alike = [(a["nearest"], round(a["d1"])) == (b["nearest"], round(b["d1"])) for a, b in zip(other, one, strict=True)]
    assert sum(alike) > 0.99 * len(one)  # up to rounding: a batch's size decides which sums are fused
    assert stores[2].rows("SELECT samples FROM checkpoints") == [{"samples": row["samples"]}]


def test_precision_is_part_of_a_cell_only_where_it_is_asked_for(study):
    plain = Study.load(study).cells[0].cell
    assert "precision" not in plain.configuration["score"]
    precise = Study.load(study, overrides=["score.precision=0.02"]).cells[0].cell
    assert precise.configuration["score"]["precision"] == 0.02
    assert precise.cell_id != plain.cell_id
