"""The command line: exit codes, what goes to which stream, and that nothing is written where nothing should be."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import click
import duckdb
import numpy as np
import pytest
import tiny
from click.testing import CliRunner, Result

from diffmem.cells.cost import cell_cost
from diffmem.cli import main, status
from diffmem.cli.tables import MOST_ROWS, _widths, print_table
from diffmem.store.given import Checkpoint, Provenance
from diffmem.store.schema import MIGRATIONS
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

STUDIES = Path(__file__).parents[2] / "studies"

STUDY = """
title = "Small [red]things[/nothing]"
[P]
dataset = "digits"
[M]
width = 8
channel_mult = [2, 2]
[T]
epochs = 10
[score]
samples = 10
every = 5
[[axes]]
M.condition = ["none", "unique"]
[[axes]]
P.size = [4, 8]
[profiles.laptop]
T.epochs = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder, so that the default store is in it too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DIFFMEM_PROCESSES", "1")
    return tmp_path


@pytest.fixture
def _signals_put_back() -> Iterator[None]:
    """`run` takes SIGINT and SIGTERM over, for the rest of its process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def _impatient(monkeypatch) -> None:
    """Wait a moment, not ten seconds, for a store that another process holds."""
    monkeypatch.setattr("diffmem.store.database.PATIENCE", 0.05)


def diffmem(*arguments: str | Path) -> Result:
    """Run a command in this process; an error that nobody foresaw fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def data(*arguments: str | Path) -> Any:
    """Return the data that a command prints with --json."""
    result = diffmem(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout, parse_constant=no_constant)


def files(folder: Path) -> dict[str, bytes]:
    """Return every path below a folder, and the content of the files."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def study(text: str = STUDY) -> Path:
    path = Path("small.toml")
    path.write_text(text)
    return path


WHERE = Provenance(host="elsewhere", pid=1, device="cpu", versions={}, git_commit=None, git_dirty=None)


def checkpoint(cell_id: str, epoch: int, *, ratio: float, attempt: str) -> Checkpoint:
    """Return a measured point of ten images, of which a share `ratio` is memorized."""
    memorized = round(10 * ratio)
    return Checkpoint(
        cell_id=cell_id,
        epoch=epoch,
        step=100 * epoch,
        loss=None,
        nearest=np.zeros(10, dtype=np.int64),
        d1=np.where(np.arange(10) < memorized, 1.0, 9.0),
        d2=np.full(10, 10.0),
        memorized=memorized,
        train_seconds=1.0,
        score_seconds=1.0,
        attempt_id=attempt,
    )


def fill(ratios: dict[tuple[str, int], list[float]], *, failed: str = "") -> Store:
    """Return the default store with the small study and the ratio of each checkpoint of each (condition, size)."""
    loaded = Study.load(study())
    store = Store(Path("store/diffmem.duckdb"))
    tiny.register(store, loaded)
    for entry in loaded.cells:
        cell_id = entry.cell.cell_id
        measured = ratios.get((entry.cell.M.condition, entry.cell.P.size))
        if measured is None and not failed:
            continue
        attempt = store.start_attempt(cell_id, WHERE)
        for (epoch, _), ratio in zip(entry.cell.checkpoints, measured or [], strict=False):
            store.append(checkpoint(cell_id, epoch, ratio=ratio, attempt=attempt))
        store.end_attempt(attempt, Outcome.FINISHED if measured else Outcome.FAILED, None if measured else failed)
    return store


@pytest.fixture(scope="module")
def _filled_once(tmp_path_factory) -> Path:
    """The folder of a store in which the small study is finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("filled"))
        store = fill(FULL)
        Path("small.toml").unlink()  # each test has a copy of it, which is no other study
        return store.path.parent.absolute()


@pytest.fixture
def filled(_filled_once, folder) -> Path:
    """A copy of that folder where the default store is, and of its study file."""
    shutil.copytree(_filled_once, folder / "store")
    study()
    return folder / "store"


FULL = {("none", 4): [0.5, 1.0], ("none", 8): [0.0, 0.0], ("unique", 4): [1.0, 1.0], ("unique", 8): [1.0, 0.9]}


# --- the program ---------------------------------------------------------------------------------------


def test_python_m_diffmem_is_diffmem():
    command = [sys.executable, "-m", "diffmem", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.endswith(f"diffmem, version {version('diffmem')}\n")
    assert result.stderr == ""


def commands(group: click.Group = main, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command, and every group, with the words that name it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_says_what_it_does_with_an_example(path):
    for flag in ("-h", "--help"):
        result = diffmem(*path, flag)
        assert result.exit_code == 0
        assert ["Example:", "diffmem", *path] in [line.split()[: len(path) + 2] for line in result.stdout.splitlines()]


PRINT_NO_DATA = {"run", "report", "generate", "schema", "store", "init", "help"}
"""Commands that write a store, a page, images or a study, or print JSON anyway, the group, and help."""


def test_every_command_that_prints_data_prints_it_as_json_too():
    with_json = {" ".join(path) for path, command in commands() if any("--json" in p.opts for p in command.params)}
    assert with_json == {" ".join(path) for path, _ in commands()} - PRINT_NO_DATA


def test_the_exit_codes_are_in_the_help_and_in_the_documents():
    document = (STUDIES.parent / "docs" / "running.md").read_text()
    for text in (diffmem("--help").stdout, document):
        section = text[text.index("xit codes") :]
        assert all(code in section for code in ("0", "1", "2", "130", "143"))


@pytest.mark.parametrize("arguments", [["nonsense"], ["plan"], ["plan", "--nonsense"], ["emm", "a", "b"]], ids=" ".join)
def test_a_wrong_command_line_is_wrong_input(arguments):
    result = diffmem(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_schema_prints_the_committed_schema():
    assert diffmem("schema").stdout == (STUDIES / "study.schema.json").read_text()


# --- wrong studies -------------------------------------------------------------------------------------


BAD = STUDY.replace("width", "widht").replace("epochs = 10", "epochs = 0")


@pytest.mark.parametrize("store", [[], ["--store", "new/folder/some.duckdb"]], ids=["default store", "named store"])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_wrong_study_ends_with_all_faults_and_writes_nothing(command, store, folder):
    path = study(BAD)
    before = files(folder)
    result = diffmem(command, path, *store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "small.toml:6: M.widht: no such key; did you mean width?",
        "small.toml:9: T.epochs: must be greater than or equal to 1, not 0",
    ]
    assert files(folder) == before


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_wrong_study_ends_before_the_store_is_looked_at(command):
    Path("no.duckdb").write_text("no store")
    result = diffmem(command, study(BAD), "--store", "no.duckdb")
    assert result.stderr.startswith("small.toml:6: ")


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    "arguments",
    [["nowhere.toml"], ["."], ["small.toml", "--profile", "nowhere"], ["small.toml", "--set", "T.epohcs=3"]],
    ids=" ".join,
)
def test_a_study_that_cannot_be_made_is_wrong_input(command, arguments, folder):
    study()
    before = files(folder)
    result = diffmem(command, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert files(folder) == before


# --- plan ----------------------------------------------------------------------------------------------


def test_plan_tells_of_checkpoints_without_a_step_between_them():
    path = study()
    printed = diffmem(
        "plan", path, "--set", "T.batch_size=512", "--set", "T.epochs=20", "--set", "score.every=1"
    ).stdout
    assert "4 cells with checkpoints that have no optimizer step between them: T.batch_size is more than" in printed
    assert "no optimizer step" not in diffmem("plan", path, "--set", "T.batch_size=4", "--set", "score.every=1").stdout


def test_plan_writes_nothing(folder):
    path = study()
    before = files(folder)
    assert diffmem("plan", path).exit_code == 0
    assert diffmem("plan", path, "--store", "new/folder/some.duckdb").exit_code == 0
    assert files(folder) == before


def test_plan_lists_the_cells_and_what_there_is_to_do():
    result = diffmem("plan", study())
    assert result.stderr == ""
    assert all(entry.cell.cell_id in result.stdout for entry in Study.load(study()).cells)
    assert "4 cells, 0 of them finished" in result.stdout
    # one step of 512 images (more than the set has) for each cell, two checkpoints of 10 images
    assert "2.05 k images to train, 80 to generate" in result.stdout
    assert "--measure estimates the time on this device" in result.stdout


def test_plan_shows_a_title_as_it_is_written():
    assert "Small [red]things[/nothing] (small)" in diffmem("plan", study()).stdout


def test_plan_as_data_has_the_same_cells():
    rows = data("plan", study())
    loaded = Study.load(study())
    assert [row["cell_id"] for row in rows] == [entry.cell.cell_id for entry in loaded.cells]
    cell = loaded.cells[0].cell
    cost = cell_cost(cell)
    assert rows[0] == {
        "cell_id": cell.cell_id,
        "M.condition": "none",
        "P.size": 4,
        "parameters": cost.parameters,
        "steps": 1,
        "checkpoints": 2,
        "measured": 0,
        "shared": 0,
        "images to train": 512,
        "images to generate": 20,
        "operations": cost.operations,
        "notes": [],
    }


def test_plan_tells_the_time_at_a_given_speed():
    rows = data("plan", study(), "--tflops", "0.5")
    assert [row["seconds"] for row in rows] == pytest.approx([row["operations"] / 0.5e12 for row in rows])
    operations = sum(row["operations"] for row in rows)
    result = diffmem("plan", study(), "--tflops", str(operations / 7200 / 1e12))
    assert "TFLOP/s: 2.0 h" in result.stdout


def test_plan_tells_the_time_at_the_speed_of_this_device():
    rows = data("plan", study(), "--measure", "--set", "M.width=4")
    assert all(0 < row["seconds"] < 3600 for row in rows)
    assert "as measured on this device" in diffmem("plan", study(), "--measure", "--set", "M.width=4").stdout


def test_plan_takes_one_way_to_tell_the_time():
    result = diffmem("plan", study(), "--measure", "--tflops", "1")
    assert result.exit_code == 2
    assert "take one" in result.stderr


def test_plan_counts_the_other_studies_of_the_folder_that_have_a_cell():
    path = Path(study())
    path.with_name("other.toml").write_text(path.read_text().replace("[4, 8]", "[8, 16]"))
    path.with_name("broken.toml").write_text("[P]\nsize = 0\n")
    rows = data("plan", str(path))
    assert [(row["P.size"], row["shared"]) for row in rows] == [(4, 0), (8, 1), (4, 0), (8, 1)]
    assert "2 shared with other studies" in diffmem("plan", str(path)).stdout


def test_plan_follows_profile_and_set():
    expected = Study.load(study(), profile="laptop", overrides=["P.size=16"])
    rows = data("plan", study(), "--profile", "laptop", "--set", "P.size=16")
    assert [row["cell_id"] for row in rows] == [entry.cell.cell_id for entry in expected.cells]
    assert {(row["P.size"], row["checkpoints"]) for row in rows} == {(16, 1)}


def test_plan_counts_what_the_store_has_already():
    fill({("none", 4): [0.5, 1.0], ("none", 8): [0.5]})
    assert [row["measured"] for row in data("plan", study())] == [2, 1, 0, 0]
    assert "4 cells, 1 of them finished" in diffmem("plan", study()).stdout
    # of the second cell the last checkpoint is left, of the other two both
    assert [row["images to generate"] for row in data("plan", study())] == [0, 10, 20, 20]


@pytest.mark.usefixtures("filled")
def test_a_store_may_be_named_by_the_environment(monkeypatch):
    Path("store").rename("elsewhere")
    monkeypatch.setenv("DIFFMEM_STORE", "elsewhere/diffmem.duckdb")
    assert [row["measured"] for row in data("plan", study())] == [2, 2, 2, 2]
    assert data("emm", "small")["study"] == "small"


# --- status and emm ------------------------------------------------------------------------------------


def test_status_tells_how_far_each_cell_is():
    fill({("none", 4): [1.0, 0.5], ("none", 8): [0.3]})
    rows = data("status", "small")
    assert [(row["M.condition"], row["P.size"], row["state"], row["checkpoints"]) for row in rows] == [
        ("none", 4, "finished", "2/2"),
        ("none", 8, "waiting", "1/2"),
        ("unique", 4, "waiting", "0/2"),
        ("unique", 8, "waiting", "0/2"),
    ]
    assert all(row["checkpoints"] == f"{row['measured']}/{row['expected']}" for row in rows)
    assert [(row["best ratio"], row["last ratio"]) for row in rows] == [
        (1.0, 0.5),
        (0.3, 0.3),
        (None, None),
        (None, None),
    ]


def test_status_tells_why_a_cell_failed():
    fill({}, failed="out of memory [/b]; lower M.width")
    assert {(row["state"], row["error"]) for row in data("status", "small")} == {
        ("failed", "out of memory [/b]; lower M.width")
    }
    result = diffmem("status", "small")
    assert result.exit_code == 0
    assert result.stdout.count("failed: out of memory [/b]; lower M.width") == 4


@pytest.mark.usefixtures("filled")
def test_status_without_a_study_tells_how_far_each_study_is():
    rows = {row["study"]: row for row in data("status")}
    for name, row in rows.items():
        cells = data("status", name)
        assert sum(row["cells"].values()) == len(cells)
        assert row["cells"] == dict(Counter(cell["state"] for cell in cells))
        assert f"{row['measured']}/{row['expected']}" == _sum_of([cell["checkpoints"] for cell in cells])
    printed = diffmem("status").stdout
    assert all(name in printed for name in rows)
    assert list(rows) == [study.study for study in Store("store/diffmem.duckdb").studies()]


def _sum_of(parts: list[str]) -> str:
    return "/".join(str(sum(int(part.split("/")[i]) for part in parts)) for i in (0, 1))


@pytest.mark.usefixtures("filled")
def test_status_without_a_study_takes_no_profile():
    result = diffmem("status", "--profile", "laptop")
    assert result.exit_code == 2
    assert "--profile picks the scale of a STUDY, and none is named" in result.stderr


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a printed table, which has two blanks or more between columns."""
    return re.split(" {2,}", line.strip())


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("width", [60, 80, 100])
def test_in_a_narrow_terminal_headings_are_broken_and_words_are_not(width, monkeypatch):
    whole = list(map(cells_of, diffmem("status", "small").stdout.splitlines()[-4:]))
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = diffmem("status", "small").stdout.splitlines()
    assert max(map(len, narrow)) <= width
    for one, other in zip(whole, map(cells_of, narrow[-4:]), strict=True):
        assert one[1:] == other[1:]
        assert len(other[0]) >= 8  # the beginning of an id names a cell
        assert one[0].startswith(other[0])


@pytest.mark.usefixtures("filled")
def test_a_query_s_texts_stay_whole_in_a_narrow_terminal_also_those_called_cell_id(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    printed = diffmem("query", "SELECT cell_id || study AS cell_id, name, curve FROM study_cells").stdout
    lines = [line.partition("  ")[0] for line in printed.splitlines()]
    for row in Store("store/diffmem.duckdb").rows("SELECT cell_id || study AS text FROM study_cells"):
        assert row["text"] in "".join(lines)


@pytest.mark.usefixtures("filled")
def test_a_name_too_long_for_the_terminal_leaves_room_for_the_other_columns(monkeypatch):
    Path("small.toml").rename(name := Path(f"{'a' * 90}.toml"))
    tiny.register(Store("store/diffmem.duckdb"), Study.load(name))
    monkeypatch.setenv("COLUMNS", "80")
    table = diffmem("status").stdout
    for row in data("status"):
        assert f"{row['measured']}/{row['expected']}" in table
    assert sum(line.count("a") for line in table.splitlines() if "aaa" in line) >= 90


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["small", "small.toml", "some/folder/small.toml"])
@pytest.mark.parametrize("command", ["status", "emm"])
def test_a_study_may_be_named_by_its_file(command, name):
    assert data(command, name) == data(command, "small")


@pytest.mark.usefixtures("filled")
def test_a_study_with_a_profile_is_another_study():
    result = diffmem("emm", "small", "--profile", "laptop")
    assert result.exit_code == 2
    assert "'small@laptop'" in result.stderr


@pytest.mark.usefixtures("filled")
def test_emm_is_where_the_ratio_crosses_the_line():
    result = data("emm", "small")
    assert (result["study"], result["epsilon"]) == ("small", 0.1)
    none, unique = result["curves"]
    # from ratio 1 at N = 4 to 0 at N = 8, the line at 0.9 is crossed a tenth of the way
    assert none == {
        "curve": "M.condition = none",
        "emm": "4.4",
        "value": pytest.approx(4.4),
        "lower": 4,
        "upper": 8,
        "lower95": pytest.approx(4.0, abs=0.1),
        "upper95": pytest.approx(4.4, abs=0.1),
        "ratios": {"4": 1.0, "8": 0.0},
        "grouped_ratios": {},
        "null_ratios": {"4": None, "8": None},
        "null_samples": {"4": 0, "8": 0},
        "null_thresholds": {"4": None, "8": None},
        "p_values": {"4": None, "8": None},
        "steps": {"4": 1000, "8": 1000},
        "note": "",
    }
    assert (unique["emm"], unique["value"], unique["lower"], unique["upper"]) == (">= 8", None, 8, None)


@pytest.mark.usefixtures("filled")
def test_emm_as_a_table_has_the_same_numbers():
    lines = diffmem("emm", "small").stdout.splitlines()
    assert "ratio >= 0.9" in lines[0]
    (line,) = [line for line in lines if "M.condition = none" in line]
    assert cells_of(line) == ["M.condition = none", "4.4", "4.0 to 4.4", "1.000", "0.000", "-"]
    assert lines[-1] == "optimizer steps at the last checkpoint: N=4: 1,000, N=8: 1,000"


@pytest.mark.usefixtures("filled")
def test_emm_at_another_threshold_and_epsilon():
    # all distances are a tenth of the second nearest, or nine tenths
    none, _ = data("emm", "small", "--threshold", "0.05")["curves"]
    assert none["ratios"] == {"4": 0.0, "8": 0.0}
    everything, _ = data("emm", "small", "--threshold", "0.95")["curves"]
    assert everything["ratios"] == {"4": 1.0, "8": 1.0}
    result = data("emm", "small", "--epsilon", "0.5")
    assert (result["threshold"], result["epsilon"]) == (pytest.approx(1 / 3), 0.5)
    assert result["curves"][0]["value"] == pytest.approx(6.0)
    assert "ratio >= 0.5 at threshold 0.95" in diffmem("emm", "small", "--epsilon", "0.5", "--threshold", "0.95").stdout
    wrong = diffmem("emm", "small", "--threshold", "1.5")
    assert wrong.exit_code == 2
    assert "Invalid value for --threshold: must be at most 1 for the measure nearest, not 1.5" in wrong.stderr


def test_emm_of_one_size_is_its_ratios_with_their_intervals(folder):
    study, store = tiny.load(folder, tiny.TEXT), Store(Path("store/diffmem.duckdb"))
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5, 0.55, 0.4])
    title, headings, _, first, second, *notes = diffmem("emm", "tiny").stdout.splitlines()
    assert (title, headings.split()) == ("tiny: memorization ratio", ["curve", "N=8", "95%", "null"])
    assert first.split() == ["M.dropout", "=", "0.0", "0.550", "0.342", "to", "0.742", "-"]
    assert second.split() == ["M.dropout", "=", "0.2", "-", "-", "-"]
    assert notes == [
        "M.dropout = 0.2: 1 of 1 cells are not finished",
        "optimizer steps at the last checkpoint: N=8: 3,000",
        "a single size gives no EMM, the largest N with memorization ratio >= 0.9",
    ]


def test_emm_says_what_is_not_measured_yet():
    fill({("none", 4): [1.0]})
    none, unique = data("emm", "small")["curves"]
    assert (none["value"], none["lower"]) == (None, 4)
    assert "2 of 2 cells are not finished" in none["note"]
    assert (unique["emm"], unique["value"], unique["ratios"]) == ("not measured", None, {})
    assert "not measured" in diffmem("emm", "small").stdout


def note(store: Store, notes: dict[str, list[str]]) -> None:
    """Add notes to the cells of the small study, by their condition."""
    loaded = Study.load(study())
    given = {entry.cell.cell_id: notes.get(entry.cell.M.condition, []) for entry in loaded.cells}
    tiny.register(store, loaded, notes=given)


@pytest.mark.parametrize("command", ["status", "emm"])
def test_each_note_is_printed_once_with_its_cells_if_not_all_have_it(command):
    store = fill({("none", 4): [1.0, 0.5]})
    before = diffmem(command, "small").stdout
    note(store, {"none": ["2 of 9 images are transparent", "resized"], "unique": ["resized"]})
    printed = diffmem(command, "small").stdout
    assert printed == f"{before}note: resized\nnote: 2 of 9 images are transparent (in 2 of 4 cells)\n"


def test_notes_are_in_the_data_of_emm_and_of_each_cell_in_that_of_status():
    store = fill({("none", 4): [1.0, 0.5]})
    before = data("emm", "small")
    note(store, {"none": ["2 of 9 images are transparent", "resized"], "unique": ["resized"]})
    notes = [{"note": "resized", "cells": 4}, {"note": "2 of 9 images are transparent", "cells": 2}]
    assert data("emm", "small") == {**before, "notes": notes}
    assert [(row["M.condition"], row["notes"]) for row in data("status", "small")] == [
        *2 * [("none", ["resized", "2 of 9 images are transparent"])],
        *2 * [("unique", ["resized"])],
    ]


@pytest.mark.usefixtures("filled")
def test_without_notes_nothing_is_said_of_them():
    for command in ("status", "emm"):
        assert "note:" not in diffmem(command, "small").stdout
    assert data("emm", "small")["notes"] == []
    assert [row["notes"] for row in data("status", "small")] == [[]] * 4


def test_more_notes_than_anybody_reads_are_counted(monkeypatch):
    monkeypatch.setattr(status, "MOST_ROWS", 2)
    note(fill({}), {"none": ["a", "b", "c", "d"]})
    printed = diffmem("status", "small").stdout.splitlines()
    assert [line[:7] for line in printed[-3:-1]] == ["note: a", "note: b"]
    assert printed[-1] == "... and 2 notes more, which --json prints"


def wait_for(path: Path, text: str, process: subprocess.Popen) -> str:
    """Wait until a page has a text; the process that writes it must not end before."""
    deadline = time.monotonic() + 60
    while not path.exists() or text not in (page := path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the page never had it"
        time.sleep(0.05)
    return page


def test_a_watched_report_follows_the_run_and_ends_with_it(tmp_path):
    study, store, path = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "s.duckdb"), tmp_path / "page.html"
    tiny.register(store, study)
    first, second = (entry.cell for entry in study.cells)
    tiny.measure(store, first, [0.5])
    command = tiny.command("report", "tiny", "--watch", "--store", store.path, "-o", path)
    with subprocess.Popen(command, env=tiny.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            page = wait_for(path, "1 of 6 checkpoints", process)
            assert '<meta http-equiv="refresh"' in page
            tiny.measure(store, first, [0.5, 0.5, 0.85])
            wait_for(path, "best ratio 0.850", process)
            tiny.measure(store, second, [0.1, 0.2, 0.35])
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    start, end = printed.splitlines()  # however often the page was written
    assert start == f"report: {path}, 1 study: tiny"
    assert re.fullmatch(rf"report: {path}, written ([3-9]|1\d) times; nothing is left to run", end)
    page = path.read_text()
    assert "best ratio 0.350" in page
    assert '<meta http-equiv="refresh"' not in page


SHORT = tiny.TEXT.replace("epochs = 30 ", "epochs = 1 ").replace("every = 12", "every = 1").replace("20", "2")


def test_a_watched_report_that_is_stopped_stays_and_has_the_exit_code_of_the_signal(tmp_path):
    study, store, path = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "s.duckdb"), tmp_path / "page.html"
    tiny.register(store, study)
    command = tiny.command("report", "tiny", "--watch", "--store", store.path, "-o", path)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=tiny.environment(), **output) as process:
        try:
            wait_for(path, "0 of 6 checkpoints", process)
            process.send_signal(signal.SIGINT)
            printed, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed, told) == (
        130,
        f"report: {path}, 1 study: tiny\n",
        "the page stays as it is now\n",
    )


def test_a_study_file_is_not_silently_taken_for_another_one_of_its_name(folder):
    for name in ("here", "there"):
        (folder / name).mkdir()
    here, there = (tiny.write(folder / name, SHORT) for name in ("here", "there"))
    assert diffmem("run", str(here), "--quiet").stderr == ""
    assert diffmem("emm", str(here)).stderr == ""
    was = "note: this is the study of here/tiny.toml, the one of this name that was run last\n"
    for command in (["emm"], ["status"], ["export", "cells", "--study"], ["report"]):
        assert diffmem(*command, str(there)).stderr == was
    again = diffmem("run", str(there), "--quiet")
    assert again.exit_code == 0
    assert again.stderr.startswith(
        f"note: tiny is now the study of {there} instead of here/tiny.toml; earlier results stay in the store, but "
    )
    assert diffmem("emm", str(there)).stderr == ""
    there.unlink()  # a store from another machine: there is nothing to compare
    assert diffmem("emm", str(here)).stderr == ""


def test_a_relative_path_of_a_study_file_is_taken_from_where_it_was_run(folder, monkeypatch):
    for name in ("here", "there"):
        (folder / name).mkdir()
        tiny.write(folder / name, SHORT)
    monkeypatch.chdir(folder / "here")
    assert diffmem("run", "tiny.toml", "--quiet", "--store", "../s.duckdb").stderr == ""
    monkeypatch.chdir(folder / "there")
    assert diffmem("emm", "../here/tiny.toml", "--store", "../s.duckdb").stderr == ""
    was = "note: this is the study of ../here/tiny.toml, the one of this name that was run last\n"
    assert diffmem("emm", "tiny.toml", "--store", "../s.duckdb").stderr == was
    run = tiny.diffmem("run", "tiny.toml", "--quiet", "--store", "../s.duckdb", DIFFMEM_PROCESSES="2")
    assert run.stderr.count("note: tiny is now the study of tiny.toml instead of ../here/tiny.toml") == 1


def test_a_study_that_was_run_with_other_settings_than_its_file_has_says_so(folder):
    file = str(tiny.write(folder, SHORT))
    changed = ("--set", "T.seed=7", "--set", 'title="a title"')
    assert diffmem("run", file, "--quiet", *changed).stderr == ""
    shown = "--set T.seed=7 --set 'title=\"a title\"'"
    for command in (["emm"], ["status"], ["export", "cells", "--study"], ["report"]):
        assert diffmem(*command, "tiny").stderr == f"note: tiny was run last with {shown}\n"
    assert "tiny.toml, --set T.seed=7, --set title=&#34;a title&#34;</p>" in Path("store/report.html").read_text()
    assert diffmem("run", file, "--quiet", *changed).stderr == ""
    alone = diffmem("run", file, "--quiet").stderr
    assert alone == (
        f"note: tiny is now the study of the file alone instead of {shown}; earlier results stay in "
        f"the store, but this run trains other cells; give {shown} to resume the 2 cells begun before\n"
    )
    assert diffmem("emm", "tiny").stderr == ""
    assert (
        "; give no --set to resume the 2 cells begun before\n" in diffmem("run", file, "--quiet", *changed[:2]).stderr
    )
    named = diffmem("run", file, "--quiet", *changed).stderr
    assert named.endswith("but a copy of the file under another name, or a profile, has a report of its own\n")


def test_a_report_that_is_not_watched_does_not_load_itself_anew(tmp_path):
    study, store = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    assert diffmem("report", "tiny", "--store", str(store.path), "-o", str(tmp_path / "page.html")).exit_code == 0
    assert '<meta http-equiv="refresh"' not in (tmp_path / "page.html").read_text()


@pytest.mark.usefixtures("filled")
def test_report_is_written_beside_the_store_or_where_it_is_asked_for(folder):
    assert diffmem("report").stdout == "report: store/report.html, 1 study: small\n"
    assert diffmem("report", "small", "-o", "new/page.html").stdout == "report: new/page.html, 1 study: small\n"
    assert "Small [red]things[/nothing]" in Path("new/page.html").read_text()
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".partial")]


@pytest.mark.usefixtures("filled")
def test_a_report_that_cannot_be_written_is_wrong_input():
    Path("file").write_text("")
    result = diffmem("report", "-o", "file/page.html")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("file/page.html: ")


# --- stores that cannot be used ------------------------------------------------------------------------

READING = [
    ["status", "small"],
    ["emm", "small"],
    ["emm", "small", "--json"],
    ["report"],
    ["report", "small"],
    ["show", "3f2a"],
    ["query", "FROM cells"],
    ["export", "emm"],
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.parametrize("path", ["store/diffmem.duckdb", "new/folder/some.duckdb"])
def test_a_store_that_is_not_there_is_named_and_not_made(arguments, path, folder):
    result = diffmem(*arguments, "--store", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{path}: no store there yet")
    assert files(folder) == {}


@pytest.mark.usefixtures("filled")
def test_a_study_file_that_is_not_there_is_told_as_that():
    result = diffmem("status", "smal.toml")
    assert result.exit_code == 2
    assert result.stderr.startswith("smal.toml: no such file, and store/diffmem.duckdb: no study 'smal'; did you mean")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("command", ["status", "emm", "report"])
def test_an_unknown_study_names_those_that_the_store_has(command, folder):
    before = files(folder)
    result = diffmem(command, "smell")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'smell'; did you mean small?" in result.stderr
    assert "it has small" in result.stderr
    assert files(folder) == before


def make_text(path: Path) -> None:
    path.write_text("these are the notes of another program")


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_other(path: Path) -> None:
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine (i INTEGER)")


def make_newer(path: Path) -> None:
    with Store(path).writing(create=True):
        pass
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    with duckdb.connect(path) as connection:
        connection.execute("INSERT INTO migrations VALUES (?, NULL)", [len(MIGRATIONS) + 1])


UNUSABLE = {
    "text": (make_text, "not a DuckDB file"),
    "empty": (make_empty, "not a DuckDB file"),
    "folder": (make_folder, "name another store"),
    "other": (make_other, "not a diffmem store"),
    "newer": (make_newer, f"newer diffmem (schema {len(MIGRATIONS) + 1}, this one knows {len(MIGRATIONS)})"),
}


@pytest.mark.parametrize("arguments", [*READING, ["plan", "small.toml"], ["run", "small.toml"]], ids=" ".join)
@pytest.mark.parametrize(("make", "sentence"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_store_that_is_none_is_refused_in_one_sentence_and_left_as_it_is(
    make, sentence, arguments, folder, _signals_put_back
):
    study()
    make(Path("some.duckdb"))
    before = files(folder)
    result = diffmem(*arguments, "--store", "some.duckdb")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("some.duckdb: ")
    assert sentence in result.stderr
    after = files(folder)
    after.pop(str(folder / "some.duckdb.lock"), None)  # what a writer holds while it looks
    assert after == before


HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(filled) -> Iterator[int]:
    """The process that holds the filled store open."""
    command = [sys.executable, "-c", HOLD, str(filled / "diffmem.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate()


@pytest.mark.usefixtures("_impatient", "_signals_put_back")
def test_a_store_that_another_process_holds_is_named_with_that_process(holder, folder):
    before = {path: len(content) for path, content in files(folder / "store").items() if "duckdb" not in path}
    for arguments in [*READING, ["plan", "small.toml"], ["run", "small.toml"]]:
        result = diffmem(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), arguments
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("store/diffmem.duckdb: ")
        assert result.stderr.startswith("store/diffmem.duckdb: process")
        assert f"process {holder} holds the store open" in result.stderr
    assert {path: 0 for path in files(folder / "store") if "duckdb" not in path} == before


def test_a_long_table_ends_with_how_many_rows_it_leaves_out(capsys):
    print_table("many", [{"row": number} for number in range(MOST_ROWS + 5)])
    printed = capsys.readouterr().out
    assert printed.startswith("many\n")
    assert f"{MOST_ROWS - 1}\n" in printed
    assert f"{MOST_ROWS}\n" not in printed
    assert printed.endswith("... and 5 rows more, which --json prints\n")


def test_rows_that_are_left_out_still_say_which_columns_there_are_and_which_hold_numbers(capsys):
    numbers = [{"row": number, "value": 1} for number in range(MOST_ROWS)]
    print_table("", iter([*numbers, {"value": "text", "more": 2}]))
    heading, _, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["row", "value", "more"]
    assert first.index("1") == heading.index("value")


def test_a_column_that_may_be_cut_takes_what_the_others_leave():
    lines = [["0123456789abcdef", "some words to be read", "17"]]
    keys = ["cell_id", "a long heading", "N"]
    assert _widths(keys, lines, 100, "cell_id") == [None] * 3
    assert _widths(keys, lines, 37, "cell_id") == [10, 21, 2]
    assert _widths(keys, lines, 33, "cell_id") == [8, 19, 2]


def test_headings_are_broken_between_words_before_any_word_is():
    keys, lines = ["cell_id", "M.condition", "best ratio", "state"], [["0123456789abcdef", "none", "0.962", "finished"]]
    assert _widths(keys, lines, 40, "cell_id") == [8, 11, 7, 8]
    assert _widths(keys, lines, 36, "cell_id") == [8, 9, 5, 8]  # M. over condition, best over ratio
    assert _widths(keys, lines, 33, "cell_id") == [8, 6, 5, 8]
    assert _widths(keys, lines, 30, "cell_id") == [None] * 4  # not even the values fit


def test_a_value_that_rounds_to_0_has_no_sign(capsys):
    print_table("", [{"gap": -0.0004, "other": -0.0006}])
    assert capsys.readouterr().out.split()[-2:] == ["0.000", "-0.001"]


def test_a_heading_without_room_is_broken_behind_its_table_and_no_other_dot_is(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "33")
    print_table("", [{"M.condition": "none", "max(d1/2.5)": 0.5, "state": "finished"}])
    first, second, *_ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first, second) == (["M."], ["condition", "max(d1/2.5)", "state"])


@pytest.mark.parametrize("name", ["", " ", "a.b.c", "."])
def test_a_column_of_any_name_is_printed(name, capsys, monkeypatch):
    for width in ("200", "20", "3"):
        monkeypatch.setenv("COLUMNS", width)
        print_table("", [{name: "some words to be read", "other": 1}])
    assert capsys.readouterr().out.count("words") >= 2


def test_what_the_terminal_cannot_show_is_no_reason_to_end():
    path = study(STUDY.replace("Small", "Kleine Größe 小"))
    result = tiny.diffmem("plan", path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Kleine Gr\\xf6\\xdfe \\u5c0f" in result.stdout


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", [":memory:", "md:mine", "sqlite:mine", "it's.duckdb"])
def test_a_store_of_a_name_that_means_something_to_duckdb_is_a_file(name):
    assert diffmem("store", "merge", "store/diffmem.duckdb", "-o", name).exit_code == 0
    assert Path(name).is_file()
    assert [row["measured"] for row in data("plan", study(), "--store", name)] == [2, 2, 2, 2]
    assert diffmem("store", "merge", name, "-o", "again.duckdb").exit_code == 0
    assert data("emm", "small", "--store", "again.duckdb") == data("emm", "small")
