"""Attempts that never said how they ended: what is shown of them, and what is recorded."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import filelock
import pytest
import tiny

from diffmem.store.attempts import close_attempts, state_of
from diffmem.store.store import Store
from diffmem.study.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return tiny.load(tmp_path, tiny.TEXT)


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Store:
    store = Store(tmp_path / "store" / "tiny.duckdb")
    tiny.register(store, study)
    return store


def start(store: Store, study: Study, pid: int, *, ago: timedelta = timedelta()) -> None:
    """Record an attempt at the first cell by a process of this machine, started a while ago."""
    store.start_attempt(study.cells[0].cell.cell_id, dataclasses.replace(tiny.HERE, host=socket.gethostname(), pid=pid))
    with store.writing() as connection:
        connection.execute("UPDATE attempts SET started_at = started_at - ?", [ago])


def state(store: Store) -> str:
    return state_of(store.cells("tiny")[0])


def recorded(store: Store) -> list[tuple[str, str | None]]:
    rows = store.rows("SELECT outcome, error FROM attempts ORDER BY started_at")
    return [(row["outcome"], row["error"]) for row in rows]


@contextmanager
def another_program() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


LOST = [("lost", "its process died")]


def test_a_process_that_was_there_before_the_attempt_runs(store, study):
    with another_program() as pid:
        start(store, study, pid)
        assert state(store) == "running"
        close_attempts(store)
        assert recorded(store) == [("running", None)]


def test_a_process_number_that_another_program_has_now_is_no_running_attempt(store, study):
    with another_program() as pid:
        start(store, study, pid, ago=timedelta(minutes=1))
        assert state(store) == "lost"
        close_attempts(store)
    assert recorded(store) == LOST


def test_a_process_that_has_ended_but_that_nobody_has_waited_for_is_no_running_attempt(store, study):
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        start(store, study, process.pid)
        assert state(store) == "lost"


def status(store: Store, *more: str) -> str:
    result = tiny.here("status", *more, "--store", store.path)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("arguments", [("tiny",), ()])
def test_status_records_an_attempt_whose_process_is_gone_as_lost(store, study, arguments):
    start(store, study, ended_process())
    assert "lost" in status(store, *arguments)
    assert recorded(store) == LOST


def test_status_records_the_attempt_of_a_finished_cell_as_finished(store, study):
    start(store, study, ended_process())
    tiny.measure(store, study.cells[0].cell, [0.5, 0.5, 0.5])
    status(store, "tiny")
    assert recorded(store) == [("finished", None)]


def test_status_shows_how_attempts_stand_while_another_process_writes_and_does_not_wait(store, study):
    start(store, study, ended_process())
    with filelock.FileLock(f"{store.path}.lock"):
        shown = json.loads(status(store, "tiny", "--json"))
    assert [row["state"] for row in shown] == ["lost", "waiting"]
    assert recorded(store) == [("running", None)]


def test_show_never_calls_an_attempt_running_whose_process_is_gone(store, study):
    start(store, study, ended_process())
    cell_id = study.cells[0].cell.cell_id
    shown = json.loads(tiny.here("show", cell_id, "--store", store.path, "--json").stdout)
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["lost"]
    tiny.measure(store, study.cells[0].cell, [0.5, 0.5, 0.5])
    shown = json.loads(tiny.here("show", cell_id, "--store", store.path, "--json").stdout)
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["finished"]


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def test_status_shows_how_attempts_stand_of_a_store_that_cannot_be_written(store, study):
    start(store, study, ended_process())
    read_only = ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(store.path.parent)]
    if shutil.which("unshare") is None or subprocess.run([*read_only, "true"], check=False).returncode:
        pytest.skip("needs to mount a folder read-only")
    command = [*read_only, *tiny.command("status", "tiny", "--store", store.path, "--json")]
    shown = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [row["state"] for row in json.loads(shown.stdout)] == ["lost", "waiting"]
    assert recorded(store) == [("running", None)]


def test_the_next_run_records_how_attempts_ended_also_at_cells_that_it_does_not_train(store, study, tmp_path):
    start(store, study, ended_process())
    tiny.measure(store, study.cells[0].cell, [0.5, 0.5, 0.5])
    second = study.cells[1].cell
    store.start_attempt(second.cell_id, dataclasses.replace(tiny.HERE, host=socket.gethostname(), pid=ended_process()))
    result = tiny.here("run", tmp_path / "tiny.toml", "--store", store.path, "--set", "M.dropout=0.0")
    assert result.returncode == 0, result.stderr
    assert recorded(store) == [("finished", None), *LOST]


MONITOR = """
import sys
import numpy as np
import diffmem
images = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
monitor = diffmem.Monitor(images, store=sys.argv[1], name="mine")
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_monitor_whose_process_was_killed_is_lost(tmp_path):
    store = Store(tmp_path / "mine.duckdb")
    with tiny.started(MONITOR, store.path) as process:
        assert "running" in status(store, "mine")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "lost" in status(store, "mine")
    assert recorded(store) == LOST
