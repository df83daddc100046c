"""What a run says and asks before it starts: its time and its memory on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from terminal import on_terminal

from diffmem.cells import FEW_STEPS, cell_cost
from diffmem.runs.control_groups import left_in_group
from diffmem.runs.forecast import WORTH_MEASURING, forecast
from diffmem.runs.launch import default_processes
from diffmem.runs.plan import plan_search
from diffmem.runs.waiting import Options
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

LONG = tiny.TEXT.replace("epochs = 30 ", "epochs = 1000000000 ").replace("every = 12", "every = 500000000")
"""Two cells of a billion steps."""
LARGE = tiny.TEXT.replace("\nbatch_size = 8\n", "\nbatch_size = 100000000\n")
"""Two cells of one step, on a batch that no machine has room for."""


def test_a_run_too_small_to_measure_has_no_forecast(tmp_path: Path) -> None:
    study = Study.load(tiny.write(tmp_path))
    assert forecast(study, Store(tmp_path / "s.duckdb"), Options(), processes=1) is None
    ran = tiny.here("run", tmp_path / "tiny.toml", "--store", tmp_path / "s.duckdb", "--set", "T.epochs=2")
    assert "memory here" not in ran.stdout


def test_a_forecast_is_of_what_is_left(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, LONG)), Store(tmp_path / "s.duckdb")
    both = forecast(study, store, Options(), processes=1)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.1, 0.2])
    one = forecast(study, store, Options(), processes=1)
    assert both is not None
    assert one is not None
    assert (both.cells, one.cells) == (2, 1)
    assert one.operations * 2 == both.operations > WORTH_MEASURING
    in_two = forecast(study, Store(tmp_path / "none.duckdb"), Options(), processes=2)
    assert in_two is not None
    assert in_two.bytes == 2 * both.bytes


def test_a_forecast_of_a_shard_is_of_its_cells(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, LONG)), Store(tmp_path / "s.duckdb")
    whole = forecast(study, store, Options(), processes=1)
    part = forecast(study, store, Options(shard=(1, 2)), processes=1)
    assert whole is not None
    assert part is not None
    assert (part.cells, 2 * part.operations) == (1, whole.operations)


def test_a_cell_that_has_failed_is_left_only_if_it_is_retried(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, LONG)), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    store.end_attempt(store.start_attempt(study.cells[0].cell.cell_id, tiny.HERE), Outcome.FAILED, "a reason")
    once, again = (forecast(study, store, Options(retry_failed=retry), processes=1) for retry in (False, True))
    assert once is not None
    assert again is not None
    assert (once.cells, again.cells) == (1, 2)


def test_processes_that_share_each_batch_need_less_memory_each(tmp_path: Path) -> None:
    study = Study.load(tiny.write(tmp_path, LONG.replace("\nbatch_size = 8\n", "\nbatch_size = 1000000\n")))
    store = Store(tmp_path / "s.duckdb")
    apart = forecast(study, store, Options(split="cells"), processes=2)
    shared = forecast(study, store, Options(split="batch"), processes=2)
    assert apart is not None
    assert shared is not None
    assert 0.4 < shared.bytes / apart.bytes < 0.6


SEARCH = """
[emm]
search = "bisect"
range = [8, 32]
tolerance = 0.2
"""


def test_a_forecast_of_a_search_is_of_what_it_has_not_measured(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, LONG + SEARCH)), Store(tmp_path / "s.duckdb")
    plan = plan_search(study, store)
    whole = forecast(study, store, Options(), processes=1)
    assert whole is not None
    assert (whole.cells, whole.operations) == (plan.cells, plan.expected)
    in_three = forecast(study, store, Options(), processes=3)
    assert in_three is not None
    assert in_three.bytes == 3 * whole.bytes, "a search trains no cell together"
    ends = [*study.at(8), *study.at(32)]  # the search itself would not have trained at 32 before 16
    tiny.register(store, study)
    store.register(study, ends, folder=study.folder, notes={})
    for entry in ends:
        tiny.measure(store, entry.cell, [0.2, 1.0] if entry.cell.P.size == 8 else [0.1, 0.1], samples=200)
    left = forecast(study, store, Options(), processes=1)
    assert left is not None, "the ends alone are not the end of a search"
    assert left.operations == sum(cell_cost(e.cell).operations for size in (16, 23, 19) for e in study.at(size))
    assert left.cells == 2 * 3


# --- memory that is free ------------------------------------------------------------------------------------


def test_the_memory_that_a_control_group_leaves_is_the_least_of_all_above(tmp_path: Path) -> None:
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    job = groups / "slurm" / "job_1"
    job.mkdir(parents=True)
    own.write_text("0::/slurm/job_1\n")
    assert left_in_group(groups, own) is None, "no limit"
    for folder, limit in ((job, "max"), (job.parent, "5000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 2500\ninactive_file 500\n")
    assert left_in_group(groups, own) == 5000 - 3000 + 500
    (job / "memory.max").write_text("3100\n")
    assert left_in_group(groups, own) == 3100 - 3000 + 500
    own.write_text("12:memory:/an/older/version\n")
    assert left_in_group(groups, own) is None


def test_a_study_of_more_than_a_day_stops_before_it_starts_where_nobody_can_be_asked(tmp_path: Path) -> None:
    path, store = tiny.write(tmp_path, LONG + "\n[profiles.laptop]\nT.epochs = 30\n"), tmp_path / "s.duckdb"
    ran = tiny.here("run", path, "--store", store)
    assert ran.returncode == 2
    assert ran.stdout.startswith("tiny: 2 cells to go, about ")
    assert ran.stdout.endswith("B of memory here, in 1 process\n")
    assert ran.stderr.startswith("not started: it takes about ")
    assert ran.stderr.endswith(
        " here; --profile laptop asks the same of a small model, in minutes; --yes starts it all the same\n"
    )
    assert not store.exists()
    quiet = tiny.here("run", path, "--store", store, "--quiet")
    assert (quiet.returncode, quiet.stdout.partition(", about")[0]) == (2, "tiny: 2 cells to go")


def test_a_search_starts_a_process_for_each_draw_that_has_a_core(tmp_path: Path) -> None:
    text = LONG.replace("M.dropout = [0.0, 0.2]", "P.draw = [0, 1]") + SEARCH
    ran = tiny.here("run", tiny.write(tmp_path, text), "--store", tmp_path / "s.duckdb", DIFFMEM_PROCESSES="")
    count = default_processes(2)
    assert ran.stdout.endswith(f" in {count} process{'es' * (count > 1)}\n")


def test_a_study_without_a_small_profile_names_none(tmp_path: Path) -> None:
    ran = tiny.here("run", tiny.write(tmp_path, LONG), "--store", tmp_path / "s.duckdb")
    assert ran.returncode == 2
    assert "laptop" not in ran.stderr
    assert ran.stderr.endswith(" here; --yes starts it all the same\n")


def test_a_study_that_needs_more_than_the_free_memory_stops_before_it_starts(tmp_path: Path) -> None:
    ran = tiny.here("run", tiny.write(tmp_path, LARGE), "--store", tmp_path / "s.duckdb")
    assert ran.returncode == 2
    assert "it needs about " in ran.stderr
    assert "B of memory, and " in ran.stderr
    assert "B are free" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n\n", "\x03", "\x04"], ids=["no", "Ctrl-C", "Ctrl-D"])
def test_at_a_terminal_it_asks_and_a_no_starts_nothing(tmp_path: Path, answer: str) -> None:
    path, store = tiny.write(tmp_path, LONG), tmp_path / "s.duckdb"
    code, said = on_terminal("run", path, "--store", store, answer=("[y/N]: ", answer))
    assert "Start it all the same? [y/N]: " in said
    assert code == (2 if answer == "n\n" else 130)
    assert "stopping after this step" not in said
    assert not store.exists()


@pytest.mark.slow
def test_at_a_terminal_a_yes_starts_it(tmp_path: Path) -> None:
    path, store = tiny.write(tmp_path, LONG), tmp_path / "s.duckdb"
    code, said = on_terminal("run", path, "--store", store, answer=("[y/N]: ", "y\n"), until="cell 1/2")
    assert (code, "Start it all the same?" in said) == (None, True)


@pytest.mark.slow
def test_yes_starts_it_without_asking(tmp_path: Path) -> None:
    path, store = tiny.write(tmp_path, LONG), tmp_path / "s.duckdb"
    code, said = on_terminal("run", path, "--store", store, "--yes", until="cell 1/2")
    assert (code, "[y/N]" in said) == (None, False)


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
