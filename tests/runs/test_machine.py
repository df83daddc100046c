"""What the machine lacks is no failure of a cell: the next run finishes it, with the same numbers."""

import errno
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import tiny
import torch

from diffmem.errors import OutOfMemory, RunError
from diffmem.models.processes import ALONE, ran_out_of_memory
from diffmem.runs import launch
from diffmem.runs.cell_run import _machine_errors
from diffmem.store.database import Row
from diffmem.store.store import Store

THREE_CELLS = tiny.TEXT.replace("[0.0, 0.2]", "[0.0, 0.1, 0.2]")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    def make(folder: Path) -> None:
        path = tiny.write(folder, THREE_CELLS)
        assert tiny.here("run", path, "--store", folder / "s.duckdb").returncode == 0

    return tiny.results(Store(tiny.once(tmp_path_factory, "undisturbed", make) / "s.duckdb"))


def attempts(store: Store) -> list[tuple[str, str | None]]:
    rows = store.rows("SELECT outcome, error FROM attempts ORDER BY started_at")
    return [(row["outcome"], row["error"]) for row in rows]


# --- disk space ----------------------------------------------------------------------------------------

ON_A_SMALL_DISK = 'mount -t tmpfs -o size=16k none "$1" && shift && "$@"; code=$?; ls "$0"; exit $code'


@pytest.mark.parametrize("split", ["alone", "cells", "batch"])
def test_a_full_disk_for_training_states_ends_the_run_and_with_room_the_same_command_finishes_it(
    tmp_path: Path, expected: dict[str, list[Row]], split: str
) -> None:
    path, store = tiny.write(tmp_path, THREE_CELLS), Store(tmp_path / "s.duckdb")
    store.states.mkdir()
    many = ("--processes", "1") if split == "alone" else ("--processes", "2", "--split", split)
    command = tiny.command("run", path, "--store", store.path, *many)
    small = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, str(store.states), str(store.states)]
    if shutil.which("unshare") is None or subprocess.run([*small, "true"], check=False).returncode:
        pytest.skip("needs to mount a small file system")
    full = subprocess.run(
        [*small, *command], env=tiny.environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    assert "the training state cannot be saved" in full.stderr
    assert split != "alone" or len(full.stderr.splitlines()) == 1
    assert ".tmp" not in full.stdout
    assert {outcome for outcome, _ in attempts(store)} == {"interrupted"}
    assert all("free some space" in error for _, error in attempts(store) if error)
    way = tiny.here if split == "alone" else tiny.diffmem
    again = way("run", path, "--store", store.path, *many)
    assert again.returncode == 0, again.stderr
    found = tiny.results(store)
    tiny.check_close(found, expected) if split == "batch" else tiny.check_equal(found, expected)


# --- memory --------------------------------------------------------------------------------------------

LIMITED = """
import os, resource, sys
from pathlib import Path
import diffmem.runs.launch, diffmem.runs.runner
from diffmem.cli import main
if sys.argv.pop(1) in ("all", os.environ.get("RANK")):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 9 * 10**8,) * 2)
main()
"""
"""The command with more memory than the tiny cell and the store need, and less than the big one does."""
WHAT_IS_FREED_IS_FREE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""Without these, the addresses that malloc keeps for later, which no machine is short of, count against the limit."""

BIG_AND_SMALL = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "T.batch_size = [15000, 8]").replace(
    "\nbatch_size = 8\n", "\n"
)
"""A cell that takes more than a gigabyte, and one that does not."""
SAID = "1 of 2 cells could not be finished for lack of memory"


def limited(
    tmp_path: Path, text: str, *launcher: str, who: str = "all", more: tuple[str, ...] = ()
) -> tuple[Store, subprocess.CompletedProcess[str]]:
    """Run a study with little memory; return its store and what was said."""
    path, store = tiny.write(tmp_path, text), Store(tmp_path / "s.duckdb")
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    command = [*(launcher or [sys.executable]), str(script), who, "run", str(path), "--store", str(store.path), *more]
    environment = tiny.environment() | WHAT_IS_FREED_IS_FREE
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    return store, result


def check_that_the_big_cell_waits(store: Store, result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert SAID in result.stderr, (result.stdout, result.stderr, attempts(store))
    big, small = store.cells("tiny")
    assert (big.outcome, big.measured) == ("interrupted", 0)
    assert big.error.startswith("out of memory")
    assert (small.outcome, small.measured) == ("finished", 3)


@pytest.mark.slow
def test_a_cell_that_needs_more_memory_is_left_and_the_others_go_on(tmp_path: Path) -> None:
    store, result = limited(tmp_path, BIG_AND_SMALL)
    check_that_the_big_cell_waits(store, result)
    assert "is not finished: out of memory" in result.stdout
    assert "Traceback" not in result.stderr
    shown = json.loads(tiny.here("status", "tiny", "--store", store.path, "--json").stdout)
    assert [(row["state"], row["error"]) for row in shown] == [
        ("interrupted", store.cells("tiny")[0].error),
        ("finished", None),
    ]
    again = tiny.diffmem("run", tmp_path / "tiny.toml", "--store", store.path)
    assert again.returncode == 0, again.stderr
    assert [cell.outcome for cell in store.cells("tiny")] == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["all", "0", "1"])
def test_processes_that_train_a_cell_together_leave_it_together_if_one_has_too_little_memory(
    tmp_path: Path, who: str
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    text = BIG_AND_SMALL.replace("15000", "30000")  # half of it in each process
    check_that_the_big_cell_waits(*limited(tmp_path, text, *torchrun, who=who, more=("--split", "batch")))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),  # unsupported
        (ValueError("std::bad_alloc"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
    ],
    ids=str,
)
def test_too_little_memory_is_told_from_other_failures(error: Exception, expected: bool) -> None:
    assert ran_out_of_memory(error) is expected


def test_what_a_step_without_memory_held_is_free_before_the_store_is_written() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def step() -> None:
        activations = torch.zeros(1)
        held.append(weakref.ref(activations))
        raise MemoryError

    with pytest.raises(OutOfMemory) as short, _machine_errors("cell", ALONE):
        step()
    assert str(short.value) == (
        "out of memory; lower T.batch_size or M.width, or only score.batch_size if it was while generating"
    )
    assert isinstance(short.value.__cause__, MemoryError)  # which is what would have kept them
    assert held[0]() is None


SEARCH = (
    tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "P.draw = [0, 1]").replace("batch_size = 8\n", "batch_size = 15000\n")
    + '\n[emm]\nsearch = "bisect"\nrange = [4, 8]\n'
)


@pytest.mark.slow
def test_a_search_tries_a_cell_that_needs_more_memory_once(tmp_path: Path) -> None:
    store, result = limited(tmp_path, SEARCH)
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert "could not be finished for lack of memory" in result.stderr, (result.stderr, attempts(store))
    tried = store.rows("SELECT cell_id, count(*) AS attempts FROM attempts GROUP BY cell_id")
    assert tried
    assert {row["attempts"] for row in tried} == {1}


@pytest.mark.parametrize("asks", ["start", "join"])
def test_more_processes_than_gpus_are_refused_before_any_starts(monkeypatch, asks):
    def refusal(gpus: int) -> str:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        with pytest.raises(RunError) as caught:
            launch.start(3, ["run"]) if asks == "start" else joined(monkeypatch, 3)
        return str(caught.value)

    assert refusal(1) == (
        "3 processes, but 1 GPU here, and each needs one of its own; start at most 1 (--processes 1), or set "
        "CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
    )
    assert refusal(2) == (
        "3 processes, but 2 GPUs here, and each needs one of its own; start at most 2 (--processes 2), or set "
        "CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
    )


def joined(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    return launch.join()
