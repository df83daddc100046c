"""torch.compile: which cells are compiled, and the same numbers up to rounding."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import tiny
import torch

from diffmem.cells.cost import cell_cost
from diffmem.errors import RunError
from diffmem.models import compiling
from diffmem.models.compiling import H100, is_compiled, pays
from diffmem.store.store import Store
from diffmem.study.study import Study

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = ("T.epochs=100_000_000", "score.every=100_000_000")
PAPER = Path(__file__).parents[2] / "studies" / "paper.toml"

ONE_LEVEL = (
    tiny.TEXT.replace("channel_mult = [1, 1]", "channel_mult = [1]\nattention = []")
    .replace("[0.0, 0.2]", "[0.2]")
    .replace("samples = 20", "samples = 24")
)
"""One cell with the smallest network and batches of one shape, since compiling takes its time."""


def cell(folder: Path, *overrides: str):
    return Study.load(tiny.write(folder), overrides=overrides).cells[0].cell


def test_compiling_pays_for_the_papers_cells_and_not_for_those_of_seconds(tmp_path):
    paper = Study.load(PAPER).cells[0].cell
    for device in (CPU, CUDA):
        assert pays(paper, device)
        assert not pays(cell(tmp_path), device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiling_pays_on_a_gpu_where_two_fifths_of_the_time_are_more_than_it_takes(monkeypatch, tmp_path, precision):
    wanted = cell(tmp_path, f'T.precision="{precision}"')
    monkeypatch.setitem(H100, precision, cell_cost(wanted).operations / 449)
    assert not pays(wanted, CUDA)  # 450 s is where three minutes are two fifths
    monkeypatch.setitem(H100, precision, cell_cost(wanted).operations / 451)
    assert pays(wanted, CUDA)


def test_compiling_pays_on_a_cpu_where_a_tenth_of_the_time_is_more_than_it_takes(monkeypatch, tmp_path):
    operations = cell_cost(cell(tmp_path)).operations / torch.get_num_threads()
    monkeypatch.setattr(compiling, "THREAD", operations / 1790)
    assert not pays(cell(tmp_path), CPU)  # half an hour is where three minutes are a tenth
    monkeypatch.setattr(compiling, "THREAD", operations / 1810)
    assert pays(cell(tmp_path), CPU)


def test_auto_compiles_the_longer_of_two_cells(tmp_path):
    assert not is_compiled(cell(tmp_path), CPU, "auto")
    assert is_compiled(cell(tmp_path, *LONG), CPU, "auto")
    assert not is_compiled(cell(tmp_path, *LONG), CPU, "off")
    assert is_compiled(cell(tmp_path), CPU, "on")


def test_the_optimum_has_nothing_to_compile(tmp_path):
    assert not is_compiled(cell(tmp_path, 'M.network="optimum"'), CPU, "on")


def test_where_nothing_compiles_auto_goes_without_and_on_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffmem.models.compiling._why_not", lambda _: "no compiler")
    assert not is_compiled(cell(tmp_path, *LONG), CPU, "auto")
    with pytest.raises(RunError) as caught:
        is_compiled(cell(tmp_path), CPU, "on")
    sentence = "networks cannot be compiled here (no compiler); leave out --compile, or install what is missing"
    assert str(caught.value) == sentence


def test_without_a_compiler_the_command_says_so(tmp_path):
    study, store = tiny.write(tmp_path), tmp_path / "s.duckdb"
    nothing = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = tiny.diffmem("run", study, "--store", store, "--compile", "on", **nothing)
    assert result.returncode == 1
    assert re.sub(r"\(Invalid.*\)", "(REASON)", result.stderr) == (
        "networks cannot be compiled here (REASON); leave out --compile, or install what is missing\n"
    )


@pytest.mark.slow
def test_compiled_networks_measure_the_same_up_to_rounding_also_when_stopped_in_between(tmp_path):
    study = tiny.write(tmp_path, ONE_LEVEL)
    plain, compiled = (Store(tmp_path / name / "s.duckdb") for name in ("plain", "compiled"))
    assert tiny.here("run", study, "--store", plain.path, "--compile", "off").returncode == 0
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    arguments = tiny.command("run", study, "--store", compiled.path, "--compile", "on")
    with subprocess.Popen(arguments, env=tiny.environment(**cache), stdout=subprocess.PIPE, text=True) as process:
        while "epoch 12" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    result = tiny.diffmem("run", study, "--store", compiled.path, "--compile", "on", **cache)
    assert result.returncode == 0, result.stderr
    attempts = compiled.rows("SELECT device, outcome FROM attempts ORDER BY started_at")
    assert [row["outcome"] for row in attempts] == ["interrupted", "finished"]
    assert all(row["device"].endswith(", compiled") for row in attempts)
    tiny.check_close(tiny.results(compiled), tiny.results(plain))
    assert len([*(tmp_path / "cache").rglob("*.so")]) > 2  # training, its backward pass, generation
