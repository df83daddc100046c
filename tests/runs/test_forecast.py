"""What a run says and asks before it starts: its time and its memory on this machine."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from diffmem.cells import FEW_STEPS
from diffmem.runs.forecast import WORTH_MEASURING, forecast
from diffmem.store.store import Store
from diffmem.study.study import Study

LONG = tiny.TEXT.replace("epochs = 30 ", "epochs = 1000000000 ").replace("every = 12", "every = 500000000")
"""Two cells of a billion steps."""
LARGE = tiny.TEXT.replace("\nbatch_size = 8\n", "\nbatch_size = 100000000\n")
"""Two cells of one step, on a batch that no machine has room for."""


def test_a_run_too_small_to_measure_has_no_forecast(tmp_path: Path) -> None:
    study = Study.load(tiny.write(tmp_path))
    assert forecast(study, Store(tmp_path / "s.duckdb"), processes=1) is None
    ran = tiny.here("run", tmp_path / "tiny.toml", "--store", tmp_path / "s.duckdb", "--set", "T.epochs=2")
    assert "memory here" not in ran.stdout


def test_a_forecast_is_of_what_is_left(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, LONG)), Store(tmp_path / "s.duckdb")
    both = forecast(study, store, processes=1)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.1, 0.2])
    one = forecast(study, store, processes=1)
    assert both is not None
    assert one is not None
    assert (both.cells, one.cells) == (2, 1)
    assert one.operations * 2 == both.operations > WORTH_MEASURING
    in_two = forecast(study, Store(tmp_path / "none.duckdb"), processes=2)
    assert in_two is not None
    assert in_two.bytes == 2 * both.bytes


def test_a_study_of_more_than_a_day_stops_before_it_starts_where_nobody_can_be_asked(tmp_path: Path) -> None:
    path, store = tiny.write(tmp_path, LONG + "\n[profiles.laptop]\nT.epochs = 30\n"), tmp_path / "s.duckdb"
    ran = tiny.diffmem("run", path, "--store", store)
    assert ran.returncode == 2
    assert ran.stdout.startswith("tiny: 2 cells to go, about ")
    assert ran.stdout.endswith("B of memory here, in 1 process\n")
    assert ran.stderr.startswith("not started: it takes about ")
    assert ran.stderr.endswith(
        " here; --profile laptop asks the same of a small model, in minutes; --yes starts it all the same\n"
    )
    assert not store.exists()
    quiet = tiny.diffmem("run", path, "--store", store, "--quiet")
    assert (quiet.returncode, quiet.stdout.partition(", about")[0]) == (2, "tiny: 2 cells to go")


def test_a_study_without_a_small_profile_names_none(tmp_path: Path) -> None:
    ran = tiny.diffmem("run", tiny.write(tmp_path, LONG), "--store", tmp_path / "s.duckdb")
    assert ran.returncode == 2
    assert "laptop" not in ran.stderr
    assert ran.stderr.endswith(" here; --yes starts it all the same\n")


def test_a_study_that_needs_more_than_the_free_memory_stops_before_it_starts(tmp_path: Path) -> None:
    ran = tiny.diffmem("run", tiny.write(tmp_path, LARGE), "--store", tmp_path / "s.duckdb")
    assert ran.returncode == 2
    assert "it needs about " in ran.stderr
    assert "B of memory, and " in ran.stderr
    assert "B are free" in ran.stderr


def answered(answer: str, *arguments: str | Path, until: str) -> tuple[str, int | None]:
    """Run the command on a terminal, give it an answer, and return what it says up to some words, and its exit code."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        tiny.command(*arguments),
        env=tiny.environment(COLUMNS="200"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        close_fds=True,
    ) as process:
        os.close(follower)
        said = ""
        try:
            while until not in said:
                said += os.read(leader, 1000).decode()
                if said.endswith("[y/N]: "):
                    os.write(leader, f"{answer}\n".encode())
        except OSError:  # it has ended
            return said, process.wait()
        finally:
            process.kill()
            os.close(leader)
        return said, None


@pytest.mark.slow
def test_at_a_terminal_it_asks_and_does_as_it_is_told(tmp_path: Path) -> None:
    path, store = tiny.write(tmp_path, LONG), tmp_path / "s.duckdb"
    said, code = answered("n", "run", path, "--store", store, until="cell 1/2")
    assert "Start it all the same? [y/N]: " in said
    assert code == 2
    assert not store.exists()
    said, code = answered("y", "run", path, "--store", store, until="cell 1/2")
    assert (code, "cell 1/2" in said) == (None, True)


@pytest.mark.slow
def test_yes_starts_it_without_asking(tmp_path: Path) -> None:
    said, code = answered(
        "n", "run", tiny.write(tmp_path, LONG), "--store", tmp_path / "s.duckdb", "--yes", until="cell 1/2"
    )
    assert "[y/N]" not in said
    assert code is None


PEAK = """
import resource, sys
import torch
from diffmem.runs.forecast import forecast, bytes_for_backward, _bytes
from diffmem.runs.throughput import training_step
from diffmem.study import Study
torch.set_num_threads(1)
cell = Study.load(sys.argv[1]).cells[0].cell
device = torch.device("cpu")
predicted = _bytes(cell, device)
_, step = training_step(cell, cell.T.batch_size, device)
step()
print(predicted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
MEDIUM = (
    tiny.TEXT.replace("\nbatch_size = 8\n", "\nbatch_size = 4000\n")
    .replace("width = 4", "width = 32")
    .replace("blocks = 1", "blocks = 2")
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the peak in kilobytes")
def test_the_memory_of_a_forecast_is_that_of_a_real_step(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tiny.write(tmp_path, MEDIUM))],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    predicted, peak = map(float, result.stdout.split())
    assert 0.7 < predicted / peak < 1.4, (predicted, peak)


def test_a_run_says_how_many_steps_a_cell_gets_and_that_a_few_are_too_few(tmp_path: Path) -> None:
    ran = tiny.here("run", tiny.write(tmp_path), "--store", tmp_path / "s.duckdb", "--set", "T.epochs=2")
    assert FEW_STEPS == 100
    assert (
        "note: undertrained at N = 8: after 2 optimizer steps a network has learned next to nothing, and its ratio "
        "says nothing about memorization; train longer, or with smaller batches" in ran.stdout.splitlines()
    )
    assert "cell 1/2 M.dropout = 0.0, 2 steps" in ran.stdout.splitlines()
    enough = tiny.here("plan", tmp_path / "tiny.toml", "--store", tmp_path / "s.duckdb", "--set", "T.epochs=100")
    assert "undertrained" not in enough.stdout
    few = tiny.here("plan", tmp_path / "tiny.toml", "--store", tmp_path / "s.duckdb", "--set", "T.epochs=99")
    assert "warning: undertrained at N = 8: after 99 optimizer steps" in few.stdout
    assert "(2 of 2 cells)" in few.stdout
