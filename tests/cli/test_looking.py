"""The commands that look into a store, on stores filled by hand: what they say, and that they change nothing."""

import csv
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import tiny
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from scipy.stats import binomtest

from diffmem.cli import main
from diffmem.measures import MeasureEvidence
from diffmem.store.given import Listing, Provenance
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

pytestmark = pytest.mark.usefixtures("store")

RATIOS = [0.0, 0.55, 1.0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    return tmp_path


@pytest.fixture
def study(folder: Path) -> Study:
    return tiny.load(folder, tiny.TEXT)


@pytest.fixture
def store(study: Study) -> Store:
    """The default store: the first cell is finished at its second attempt, the other one has nothing."""
    store = Store(Path("store/diffmem.duckdb"))
    cell = study.cells[0].cell
    with tiny.at_once(store):
        tiny.register(store, study)
        failed = store.start_attempt(cell.cell_id, tiny.HERE)
        store.end_attempt(failed, Outcome.FAILED, "out of memory [/b]; lower M.width")
        attempt = store.start_attempt(cell.cell_id, tiny.HERE)
        tiny.measure(store, cell, RATIOS, attempt=attempt, pairs=[(tiny.png(0), tiny.png(1))])
        store.end_attempt(attempt, Outcome.FINISHED)
    return store


@pytest.fixture
def ids(study: Study) -> list[str]:
    return [entry.cell.cell_id for entry in study.cells]


def diffmem(*arguments: str | Path) -> Result:
    """Run a command in this process; an error that nobody foresaw fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def data(*arguments: str | Path) -> Any:
    """Return the data that a command prints with --json."""
    result = diffmem(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refusal(*arguments: str | Path) -> str:
    """Return the one sentence with which a command refuses wrong input."""
    result = diffmem(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def change(store: Store, sql: str) -> None:
    with store.writing() as connection:
        connection.execute(sql)


# --- show and diff -------------------------------------------------------------------------------------


def test_show_has_the_whole_configuration_and_the_place_in_each_study(store, study, ids):
    other = tiny.load(study.path and Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.0]"), name="other")
    tiny.register(store, other)
    shown = data("show", ids[0])
    assert shown["cell_id"] == ids[0]
    assert shown["configuration"] == study.cells[0].cell.configuration
    assert [(row["study"], row["axis_values"]) for row in shown["studies"]] == [
        ("other", {"M.dropout": 0.0}),
        ("tiny", {"M.dropout": 0.0}),
    ]
    text = diffmem("show", ids[0]).stdout
    assert "studies\n  other: M.dropout = 0.0\n  tiny: M.dropout = 0.0\n" in text
    assert all(f"\n{key}  " in text for key in ("P.dataset", "M.channel_mult", "T.lr", "score.steps"))


def test_show_has_each_ratio_with_its_wilson_interval(ids):
    found = [(row["ratio"], row["low"], row["high"]) for row in data("show", ids[0])["checkpoints"]]
    for (ratio, low, high), wanted in zip(found, RATIOS, strict=True):
        interval = binomtest(round(20 * wanted), 20).proportion_ci(method="wilson")
        assert ratio == wanted
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert " 11/20      0.550  0.342  0.742 " in diffmem("show", ids[0]).stdout


def test_show_has_every_attempt_with_how_it_ended(store, ids):
    failed, finished = data("show", ids[0])["attempts"]
    assert (failed["outcome"], failed["error"]) == ("failed", "out of memory [/b]; lower M.width")
    assert (finished["outcome"], finished["error"]) == ("finished", None)
    assert (finished["host"], finished["device"]) == (tiny.HERE.host, tiny.HERE.device)
    assert finished["seconds"] > 0
    text = diffmem("show", ids[0]).stdout
    assert "a-host" in text
    assert ": out of memory [/b]; lower M.width" in text
    assert text.count("with python 3.0, torch 9.9") == 1  # the same for both
    change(store, "UPDATE attempts SET versions = '{\"torch\": \"10\"}' WHERE outcome = 'failed'")
    lines = [line for line in diffmem("show", ids[0]).stdout.splitlines() if line.startswith("from ")]
    assert [line.partition(" UTC with ")[2] for line in lines] == ["torch 10", "python 3.0, torch 9.9"]


def test_show_has_the_notes_of_the_cell_and_of_no_other(store, study, ids):
    tiny.register(store, study, notes={ids[0]: ["2 images were resized", "1 of 8 is grey"], ids[1]: ["another"]})
    assert data("show", ids[0])["notes"] == ["1 of 8 is grey", "2 images were resized"]
    lines = diffmem("show", ids[0]).stdout.splitlines()
    assert lines[-2:] == ["note: 1 of 8 is grey", "note: 2 images were resized"]
    assert "another" not in "".join(lines)


def test_show_of_a_cell_with_nothing_measured(ids):
    shown = data("show", ids[1])
    assert (shown["expected"], shown["checkpoints"], shown["attempts"]) == (3, [], [])
    assert "0 of 3 checkpoints measured" in diffmem("show", ids[1]).stdout


def test_diff_has_only_the_settings_that_differ(ids):
    assert data("diff", *ids) == {"cells": ids, "settings": {"M.dropout": [0.0, 0.2]}}
    text = diffmem("diff", *ids).stdout
    assert "M.dropout" in text
    assert "T.lr" not in text
    assert "differ in no setting" in diffmem("diff", ids[0], ids[0]).stdout


# --- names ---------------------------------------------------------------------------------------------


def common(ids: list[str]) -> str:
    length = next(n for n in range(16) if ids[0][n] != ids[1][n])
    return ids[0][:length]


def test_the_beginning_of_a_cell_is_enough(ids):
    begun = ids[0][: len(common(ids)) + 1]
    assert data("show", begun)["cell_id"] == ids[0]
    assert data("diff", begun, ids[1])["cells"] == ids


def test_a_beginning_that_several_cells_have_lists_them(ids):
    sentence = refusal("show", common(ids))
    assert all(
        f"{cell} (tiny: M.dropout = {value})" in sentence for cell, value in zip(ids, ("0.0", "0.2"), strict=True)
    )


def test_an_unknown_cell_suggests_the_nearest(ids):
    assert f"did you mean {ids[0]}?" in refusal("show", "x" + ids[0][1:])


@pytest.fixture
def _several(store: Store, study: Study) -> None:
    """The store has the studies tiny, other, other@laptop and odd@laptop too."""
    for name in ("other", "other@laptop", "odd@laptop"):
        store.register(Listing(name, "", "", study.estimated), study.cells)


@pytest.mark.usefixtures("_several")
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["t"], "tiny"),
        (["other"], "other"),
        (["other@"], "other@laptop"),
        (["od"], "odd@laptop"),
        (["od", "--profile", "laptop"], "odd@laptop"),
        (["oth", "--profile", "laptop"], "other@laptop"),
        (["some/other.toml"], "other"),
        (["other.toml", "--profile", "laptop"], "other@laptop"),
    ],
    ids=str,
)
def test_a_study_is_named_by_the_beginning_of_its_name(arguments, name):
    assert data("emm", *arguments)["study"] == name


@pytest.mark.usefixtures("_several")
@pytest.mark.parametrize("command", [["status"], ["emm"], ["report"], ["export", "cells", "--study"]], ids=" ".join)
def test_a_beginning_that_several_studies_have_lists_them_and_an_unknown_one_suggests(command):
    sentence = refusal(*command, "o")
    assert all(name in sentence for name in ("other", "other@laptop", "odd@laptop"))
    assert "tiny" not in sentence
    assert "did you mean tiny?" in refusal(*command, "tinny")
    assert "no study 'ti'" in refusal(*command, "ti.toml")  # a file is named in full


def test_the_shell_completes_studies_and_cells_of_the_store_that_is_named(store, ids):
    store.path.rename("elsewhere.duckdb")
    store = Store(Path("elsewhere.duckdb"))

    def completed(arguments: list[str], begun: str) -> list[str]:
        items = ShellComplete(main, {}, "diffmem", "_DIFFMEM_COMPLETE").get_completions(arguments, begun)
        return [item.value for item in items if item.type == "plain"]

    named = ["--store", str(store.path)]
    for command in (["status"], ["emm"], ["report"], ["export", "cells", "--study"]):
        assert completed([*command[:1], *named, *command[1:]], "t") == ["tiny"], command
    for command in (["show"], ["diff"], ["diff", ids[0]]):
        assert completed([*command[:1], *named, *command[1:]], "") == sorted(ids), command
    tiny.register(store, dataclasses.replace(tiny.load(Path(), tiny.TEXT), name="tiny@once"))
    file = str(tiny.write(Path(), tiny.TEXT + "[profiles.short]\nT.epochs = 1\n"))
    assert completed(["plan", file, *named, "--profile"], "") == ["short"]
    assert completed(["status", "tiny", *named, "--profile"], "") == ["once"]
    assert completed(["plan", "nowhere.toml", "--store", "nowhere", "--profile"], "") == []
    assert completed(["run", file, "--set"], "T.e") == ["T.ema=", "T.epochs="]
    assert completed(["run", file, "--set"], "T.epochs=1") == []
    assert completed(["show", "--store", "nowhere"], "") == completed(["status", "--store", "nowhere"], "t") == []
    assert not Path("nowhere").exists()


# --- query ---------------------------------------------------------------------------------------------


def test_a_query_gives_rows_as_a_table_or_as_data():
    sql = "SELECT epoch, ratio AS x, ratio / 3 AS x FROM checkpoints ORDER BY epoch"
    assert data("query", sql)[1] == {"epoch": 24, "x": 0.55, "x_1": pytest.approx(0.55 / 3)}
    result = diffmem("query", sql)
    assert "0.183333" in result.stdout
    assert "3 rows" in result.stdout
    assert "epoch" in diffmem("query", f"FROM ({sql}) WHERE false").stdout
    assert data("query", "SELECT 'nan'::DOUBLE AS a, DATE '2023-10-04' AS b, 1.5::DECIMAL(4, 2) AS c") == [
        {"a": None, "b": "2023-10-04", "c": "1.50"}
    ]


WRITING = [
    "DELETE FROM checkpoints",
    "UPDATE checkpoints SET ratio = 1",
    "INSERT INTO migrations VALUES (9, now())",
    "DROP TABLE evidence",
    "CREATE TABLE mine (i INTEGER)",
    "COPY checkpoints TO 'copy.csv'",
    "EXPLAIN ANALYZE COPY checkpoints TO 'copy.csv'",
    "ATTACH 'other.duckdb'",
    "SELECT 1; DELETE FROM checkpoints",
    "WITH a AS (SELECT 1) DELETE FROM checkpoints",
]


@pytest.mark.parametrize("sql", WRITING)
def test_a_query_that_would_write_is_refused(sql, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sentence = refusal("query", sql)
    assert "only a SELECT is run" in sentence or "one SELECT at a time" in sentence
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("sql", "says"),
    [("SELEKT 1", "syntax error"), ("SELECT nope FROM cells", '"nope" not found'), ("FROM sql", "sql"), ("", "not 0")],
)
def test_a_query_that_is_wrong_is_refused_in_a_sentence(sql, says):
    assert says in refusal("query", sql)


# --- export --------------------------------------------------------------------------------------------


def exported(what: str, suffix: str, *more: str) -> list[dict[str, Any]]:
    path = Path("out") / f"{what}.{suffix}"
    result = diffmem("export", what, "-o", path, *more)
    assert (result.exit_code, result.stdout) == (0, f"{what}: {path}\n"), result.stderr
    with duckdb.connect() as connection:
        found = connection.execute(f"FROM '{path}'")
        return [dict(zip([c[0] for c in found.description], row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_every_export_comes_in_every_format(suffix, ids):
    cells = {row["cell_id"]: row for row in exported("cells", suffix)}
    assert {cell: (row["measured"], row["M.dropout"]) for cell, row in cells.items()} == {
        ids[0]: (3, 0),
        ids[1]: (0, 0.2),
    }
    points = exported("checkpoints", suffix)
    assert [(row["epoch"], row["size"], row["ratio"]) for row in points] == list(
        zip(tiny.EPOCHS, [8] * 3, RATIOS, strict=True)
    )
    assert points[0]["low"] == 0 < points[0]["high"]
    assert len(exported("evidence", suffix)) == 60
    curves = exported("emm", suffix)
    assert [(row["study"], row["curve"], row["emm"]) for row in curves] == [
        ("tiny", "M.dropout = 0.0", ">= 8"),
        ("tiny", "M.dropout = 0.2", None),
    ]
    (told, _) = data("emm", "tiny")["curves"]
    names = ("value", "lower", "upper", "lower95", "upper95")
    assert [curves[0][name] for name in names] == [told[name] for name in names]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(
        f"{what}.{suffix}" for what in ("cells", "checkpoints", "evidence", "emm")
    )


def test_a_parquet_file_has_the_types_of_the_settings():
    (row, _) = exported("cells", "parquet", "--study", "tiny")
    assert (row["P.size"], row["T.lr"], row["M.channel_mult"], row["M.labels"]) == (8, 0.005, "[1,1]", None)
    assert (row["study"], row["position"], row["curve"]) == ("tiny", 0, "M.dropout = 0.0")


def test_results_have_a_column_for_each_axis_of_their_studies(store, ids):
    text = tiny.TEXT.replace(
        "M.dropout = [0.0, 0.2]", "M.dropout = [0.0]\n[[axes]]\nP.size = [8]\nM.channel_mult = [[1, 1]]"
    )
    tiny.register(store, tiny.load(Path(), text, name="other"))  # whose one cell is the first of the other study
    rows = exported("results", "parquet")
    own = {"study": "tiny", "cell_id": ids[0], "curve": "M.dropout = 0.0", "M.dropout": 0.0}
    axes = {"P.size": None, "M.channel_mult": None}
    assert [
        row | own | axes | {"epoch": epoch, "ratio": ratio}
        for row, epoch, ratio in zip(rows[3:], tiny.EPOCHS, RATIOS, strict=True)
    ] == rows[3:]
    assert [(row["study"], row["M.dropout"], row["P.size"], row["M.channel_mult"]) for row in rows[:3]] == [
        ("other", 0.0, 8, "[1,1]")
    ] * 3
    alone = exported("results", "csv", "--study", "tiny")
    assert [row["ratio"] for row in alone] == RATIOS
    assert "P.size" not in alone[0]
    assert list(alone[0])[:5] == ["study", "position", "curve", "name", "M.dropout"]


def test_an_axis_of_tables_and_one_of_a_setting_in_them_are_one_column(store):
    tiny.register(store, tiny.load(Path(), tiny.TEXT, name="other"))
    with store.writing() as connection:
        for study, axes in (("tiny", {"P.blend": {"share": 0.5}}), ("other", {"P.blend.share": 0.2})):
            connection.execute("UPDATE study_cells SET axis_values = ? WHERE study = ?", [json.dumps(axes), study])
            (key,) = axes
            connection.execute("UPDATE studies SET axes = replace(axes, 'M.dropout', ?) WHERE study = ?", [key, study])
    rows = exported("results", "parquet")
    assert {(row["study"], row["P.blend.share"]) for row in rows} == {("tiny", 0.5), ("other", 0.2)}
    assert [name for name in rows[0] if name.startswith("P.blend")] == ["P.blend.share"]


def test_the_view_of_results_has_the_value_on_each_axis(store):
    sql = "SELECT (axes->>'M.dropout')::DOUBLE AS dropout, max(ratio) AS best FROM results GROUP BY ALL"
    assert data("query", sql) == [{"dropout": 0.0, "best": max(RATIOS)}]
    assert store.columns("FROM results")["axes"].tolist() == ['{"M.dropout": 0.0}'] * 3


def test_an_export_of_a_study_has_nothing_of_others(store, ids):
    other = tiny.load(Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.2]"), name="it's other")
    tiny.register(store, other)
    assert [row["cell_id"] for row in exported("cells", "json", "--study", "it's")] == [ids[1]]
    assert [exported(what, "parquet", "--study", "it's") for what in ("checkpoints", "evidence")] == [[], []]
    assert [row["study"] for row in exported("emm", "json", "--study", "it's")] == ["it's other"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_notes_are_exported_all_or_of_a_study(suffix, store, study, ids):
    tiny.register(store, study, notes={ids[0]: ["resized, 2 of 8"], ids[1]: ["b", "a"]})
    tiny.register(store, tiny.load(Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.2]"), name="other"))
    every = sorted([(ids[0], "resized, 2 of 8"), (ids[1], "a"), (ids[1], "b")])
    assert [tuple(row.values()) for row in exported("notes", suffix)] == every
    assert [row["note"] for row in exported("notes", suffix, "--study", "other")] == ["a", "b"]


def test_an_export_to_a_link_replaces_what_it_leads_to():
    Path("there.csv").write_text("before")
    Path("link.csv").symlink_to("there.csv")
    assert diffmem("export", "cells", "-o", "link.csv").exit_code == 0
    assert Path("link.csv").is_symlink()
    Path("there.csv").rename("before.csv")
    assert diffmem("export", "cells", "-o", "link.csv").exit_code == 0
    assert Path("link.csv").is_symlink()
    assert Path("there.csv").read_text() == Path("before.csv").read_text()
    assert Path("there.csv").read_text().startswith("cell_id,")


def test_an_export_to_a_pipe_goes_through_it():
    os.mkfifo("pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(Path("pipe").read_text)
        assert diffmem("export", "cells", "--format", "csv", "-o", "pipe").exit_code == 0
        assert read.result(timeout=60).startswith("cell_id,")
    assert Path("pipe").is_fifo()


def test_a_query_comes_from_standard_input():
    asked = CliRunner().invoke(main, ["query", "-"], input="SELECT count(*) AS cells FROM cells\n")
    assert asked.exit_code == 0, asked.stderr
    assert asked.stdout == diffmem("query", "SELECT count(*) AS cells FROM cells").stdout


def test_rows_of_a_query_are_csv_too():
    printed = diffmem("query", "SELECT ratio, 'a \"b\", c' AS words, NULL AS none FROM results ORDER BY ALL", "--csv")
    read = list(csv.reader(printed.stdout.splitlines()))
    assert read == [["ratio", "words", "none"], *([str(ratio), 'a "b", c', ""] for ratio in sorted(RATIOS))]
    both = diffmem("query", "SELECT 1", "--csv", "--json")
    assert both.exit_code == 2
    assert "--csv and --json are two ways to print the rows; take one" in both.stderr


def test_a_pivot_is_a_query_too():
    rows = data("query", "PIVOT results ON epoch USING max(ratio)")
    assert {"12", "24", "30"} <= rows[0].keys()


def test_an_export_without_a_file_goes_to_standard_output():
    rows = list(csv.DictReader(diffmem("export", "checkpoints").stdout.splitlines()))
    assert [float(row["ratio"]) for row in rows] == RATIOS
    assert [row["ratio"] for row in data("export", "checkpoints")] == RATIOS
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize(
    "arguments", [["--format", "parquet"], ["-o", "cells.txt"], ["-o", "file/cells.csv"], ["-o", "store"]], ids=" ".join
)
def test_an_export_that_cannot_be_is_wrong_input_and_leaves_nothing(arguments, folder):
    Path("file").write_text("")
    before = set(folder.rglob("*"))
    result = diffmem("export", "cells", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert arguments[-1].title() in result.stderr.title()
    assert set(folder.rglob("*")) == before


# --- the store as a whole ------------------------------------------------------------------------------


def test_info_counts_what_the_store_holds(store, ids):
    store.states.mkdir()
    store.state_path(ids[1]).write_bytes(b"12345")
    (store.states / f"another.{ids[1]}.pt").write_bytes(b"of another store")
    store.weights.mkdir()
    store.weights_path(ids[0], 12).write_bytes(b"123")
    (store.weights / f"another.{ids[0]}.12.safetensors").write_bytes(b"of another store")
    assert data("store", "info") == {
        "path": str(store.path),
        "bytes": store.path.stat().st_size,
        "schema": store.rows("SELECT max(version) AS version FROM migrations")[0]["version"],
        "checkpoints": 3,
        "evidence": 60,
        "generated": 60,
        "training_states": 1,
        "training_state_bytes": 5,
        "trained_models": 1,
        "trained_model_bytes": 3,
        "studies": [{"study": "tiny", "title": "Tiny", "cells": 2}],
        "in_no_study": [],
        "older_cells": 0,
        "cells": {"finished": 1, "waiting": 1},
    }
    text = diffmem("store", "info", store.path).stdout
    (Path("elsewhere.duckdb")).write_bytes(store.path.read_bytes())
    for named in (["elsewhere.duckdb"], ["--store", "elsewhere.duckdb"]):
        assert diffmem("store", "info", *named).stdout.startswith("path              elsewhere.duckdb\n")
        assert diffmem("store", "check", *named).stdout == "elsewhere.duckdb: in order\n"
    assert "1 finished, 1 waiting" in text
    assert "tiny: 2 cells, Tiny" in text
    tiny.register(store, tiny.load(Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.2]")))
    assert "tiny: 1 cell, Tiny" in diffmem("store", "info", store.path).stdout


def test_info_names_the_cells_that_no_study_lists_any_more(store, ids):
    tiny.register(store, tiny.load(Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.2]")))
    assert data("store", "info")["in_no_study"] == [ids[0]]
    assert f"in no study now   {ids[0]}\n" in diffmem("store", "info").stdout
    tiny.register(store, tiny.load(Path(), tiny.TEXT + f"[[axes]]\nP.size = {list(range(8, 20))}\n"))
    tiny.register(store, tiny.load(Path(), tiny.TEXT.replace("[0.0, 0.2]", "[0.2]")))
    line = diffmem("store", "info").stdout.splitlines()[-1]
    assert len(line.split(", ")) == 10
    assert line.endswith(f" and {len(data('store', 'info')['in_no_study']) - 10} more")


def test_a_store_in_order_has_no_fault(store):
    result = diffmem("store", "check")
    assert (result.exit_code, result.stdout) == (0, f"{store.path}: in order\n")
    assert data("store", "check", store.path) == []


HARM = {
    "UPDATE checkpoints SET ratio = 0.5 WHERE epoch = 24": [
        "{0} at checkpoint 24: ratio 0.5, but 0.55 by the evidence"
    ],
    "UPDATE checkpoints SET memorized = 12 WHERE epoch = 24": [
        "{0} at checkpoint 24: 12 images memorized, but 11 by the evidence"
    ],
    "UPDATE checkpoints SET samples = 21 WHERE epoch = 12": [
        "{0} at checkpoint 12: 21 images generated, but 20 rows of evidence"
    ],
    "DELETE FROM evidence WHERE epoch = 12": ["{0} at checkpoint 12: 20 images generated, but 0 rows of evidence"],
    "UPDATE evidence SET sample = 0 WHERE epoch = 12 AND sample = 1": [
        "{0} at checkpoint 12: 1 rows of evidence for an image that has one already"
    ],
    "DELETE FROM checkpoints WHERE epoch = 30": [
        "{0} at checkpoint 30: evidence without its checkpoint",
        "{0} at checkpoint 30: image pairs without their checkpoint",
    ],
    "INSERT INTO notes VALUES ('nobody', 'resized')": ["nobody: a note on a cell that is not there"],
    "INSERT INTO copied VALUES ('nobody', 0, '')": ["nobody: pictures of copied training images without a checkpoint"],
    "DELETE FROM cells WHERE cell_id NOT IN (SELECT cell_id FROM checkpoints)": [
        "tiny: it lists the cell {1}, which is not there"
    ],
    "DELETE FROM cells WHERE cell_id IN (SELECT cell_id FROM checkpoints)": [
        *(f"{{0}} at checkpoint {epoch}: a checkpoint of a cell that is not there" for epoch in tiny.EPOCHS),
        "{0}: an attempt at a cell that is not there",
        "tiny: it lists the cell {0}, which is not there",
    ],
    "DELETE FROM studies": ["tiny: its cells are listed, but the study is not there"],
}


@pytest.mark.parametrize(("sql", "faults"), HARM.items(), ids=HARM)
def test_check_finds_what_does_not_agree_and_says_so_in_a_line_each(sql, faults, store, ids):
    change(store, sql)
    result = diffmem("store", "check")
    assert (result.exit_code, result.stderr) == (1, "")
    expected = [fault.format(*ids) for fault in faults]
    assert [line for line in result.stdout.splitlines() if line in expected] == expected
    assert json.loads(diffmem("store", "check", "--json").stdout) == result.stdout.splitlines()


# --- what runs now, and the time left ------------------------------------------------------------------


def here() -> Provenance:
    """Return where this process runs."""
    return Provenance(os.uname().nodename, os.getpid(), "cpu", {}, None, None)


def test_status_names_what_runs_now_and_since_when(store, ids):
    store.start_attempt(ids[1], here())
    started = store.rows("SELECT started_at FROM attempts WHERE outcome = 'running'")[0]["started_at"]
    finished, running = data("status", "tiny")
    assert (finished["state"], finished["pid"], finished["since"]) == ("finished", None, None)
    assert (running["state"], running["host"], running["pid"]) == ("running", os.uname().nodename, os.getpid())
    assert running["since"] == started.isoformat()
    assert running["seconds running"] >= 0
    text = diffmem("status", "tiny").stdout
    assert (
        f"{ids[1]} runs on {os.uname().nodename}, process {os.getpid()}, since {started:%Y-%m-%d %H:%M:%S} UTC" in text
    )


def test_the_time_left_is_that_of_as_many_operations_of_the_same_study():
    # the first cell took 3 checkpoints of 1.5 s of training and 0.5 s of scoring; the other one costs the same
    finished, waiting = data("status", "tiny")
    assert finished["seconds left"] == 0
    assert waiting["seconds left"] == pytest.approx(3 * (1.5 + 0.5))
    assert "time left on one device: 6 s;" in diffmem("status", "tiny").stdout


def test_what_is_measured_already_takes_no_time(store, study):
    # of 30 epochs the last 6 are left, and of three checkpoints one; at 0.5 s an epoch and 2 s a checkpoint
    tiny.measure(store, study.cells[1].cell, RATIOS[:2])
    change(store, "UPDATE checkpoints SET train_seconds = CASE epoch WHEN 30 THEN 3 ELSE 6 END, score_seconds = 2")
    assert data("status", "tiny")[1]["seconds left"] == pytest.approx(6 * 0.5 + 2)


def test_the_time_left_of_a_failed_cell_and_of_an_unmeasured_study_is_not_told(study, ids):
    store, named = Store(Path("new.duckdb")), ["tiny", "--store", "new.duckdb"]
    tiny.register(store, study)
    assert [row["seconds left"] for row in data("status", *named)] == [None, None]
    assert "time left: -" in diffmem("status", *named).stdout
    tiny.measure(store, study.cells[0].cell, RATIOS)
    store.end_attempt(store.start_attempt(ids[1], here()), Outcome.FAILED, "why")
    assert [row["seconds left"] for row in data("status", *named)] == [0, None]
    assert "time left on" not in diffmem("status", *named).stdout


def test_checkpoints_of_a_draw_in_the_order_of_the_file_are_exported(tmp_path):
    study = tiny.load(tmp_path, tiny.TEXT.replace("\nsize = 8", '\nsize = 8\ndraw = "first"'))
    store = Store(tmp_path / "first.duckdb")
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5])
    result = CliRunner().invoke(main, ["export", "checkpoints", "--json", "--store", str(store.path)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["draw"] == "first"


# --- measures ------------------------------------------------------------------------------------------


@pytest.fixture
def measured(store: Store, study: Study) -> Store:
    """Score the second cell by calibrated l2 too."""
    for epoch, extracted in zip(tiny.EPOCHS, (0.2, 0.8, 0.6), strict=True):
        point = tiny.checkpoint(study.cells[1].cell.cell_id, epoch, 0.1)
        store.append(tiny.calibrated(point, extracted))
    return store


@pytest.mark.usefixtures("measured")
def test_emm_is_by_the_measure_that_is_asked_for():
    paper, calibrated = data("emm", "tiny"), data("emm", "tiny", "--measure", "calibrated")
    assert (paper["measure"], calibrated["measure"]) == ("nearest", "calibrated")
    assert [curve["ratios"] for curve in paper["curves"]] == [{"8": 1.0}, {"8": 0.1}]
    assert [curve["ratios"] for curve in calibrated["curves"]] == [{}, {"8": 0.8}]
    shown = diffmem("emm", "tiny", "--measure", "calibrated").stdout
    assert shown.startswith("tiny: extracted share (calibrated l2)\n")
    assert "the largest N with extracted share (calibrated l2) >= 0.9" in " ".join(shown.split())


@pytest.fixture
def grouped(store: Store, study: Study) -> Store:
    """Score the second cell between groups too, of mirrored images: none, most and some are copies."""
    for epoch, copies in zip(tiny.EPOCHS, (0, 18, 5), strict=True):
        point = tiny.checkpoint(study.cells[1].cell.cell_id, epoch, 0.1)
        yardstick = np.full(point.samples, 50.0)
        distance = np.where(np.arange(point.samples) < copies, 5.0, 40.0)
        found = MeasureEvidence(point.nearest, distance, yardstick, copies)
        store.append(dataclasses.replace(point, others={"grouped-hflip": found}))
    return store


@pytest.mark.usefixtures("grouped")
def test_emm_and_status_have_the_ratio_between_groups_beside_the_papers():
    rows = data("status", "tiny")
    assert [(row["best ratio"], row["grouped_ratio"]) for row in rows] == [(1.0, None), (0.1, 0.9)]
    assert {row["grouped_measure"] for row in rows} == {"grouped-hflip"}
    assert "grouped ratio" in diffmem("status", "tiny").stdout
    found = data("emm", "tiny")
    assert (found["measure"], found["grouped_measure"]) == ("nearest", "grouped-hflip")
    assert [curve["grouped_ratios"] for curve in found["curves"]] == [{}, {"8": 0.9}]
    assert "M.dropout = 0.2: grouped ratio (hflip) N=8: 0.900\n" in diffmem("emm", "tiny").stdout


def test_a_study_that_is_not_scored_between_groups_has_no_such_ratio():
    assert {(row["grouped_ratio"], row["grouped_measure"]) for row in data("status", "tiny")} == {(None, None)}
    assert "grouped" not in diffmem("status", "tiny").stdout + diffmem("emm", "tiny").stdout
    assert data("emm", "tiny")["grouped_measure"] is None


@pytest.mark.usefixtures("grouped")
def test_one_grouping_is_never_shown_as_another():
    assert "nothing is scored by the measure grouped;" in refusal("emm", "tiny", "--measure", "grouped")
    by_itself = data("emm", "tiny", "--measure", "grouped-hflip")
    assert (by_itself["measure"], by_itself["grouped_measure"]) == ("grouped-hflip", None)
    assert [curve["ratios"] for curve in by_itself["curves"]] == [{}, {"8": 0.9}]
    assert diffmem("store", "check").exit_code == 0


def test_emm_by_a_measure_that_nothing_is_scored_by_names_the_command(study):
    assert refusal("emm", "tiny", "--measure", "calibrated") == (
        f"tiny: nothing is scored by the measure calibrated; `diffmem measure {study.path} --measure calibrated` does "
        "it, from trained models that are kept"
    )


@pytest.mark.usefixtures("measured")
def test_show_has_what_other_measures_have_found(ids):
    shown = data("show", ids[1])["measurements"]
    assert [(row["epoch"], row["measure"], row["value"], row["n"]) for row in shown] == [
        (12, "calibrated", 0.2, 20),
        (24, "calibrated", 0.8, 20),
        (30, "calibrated", 0.6, 20),
    ]
    interval = binomtest(16, 20).proportion_ci(method="wilson")
    assert (shown[1]["low"], shown[1]["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert data("show", ids[0])["measurements"] == []
    assert "by other measures" in diffmem("show", ids[1]).stdout
    assert "by other measures" not in diffmem("show", ids[0]).stdout


@pytest.mark.usefixtures("measured")
def test_exports_have_each_measure(ids):
    rows = [row for row in exported("checkpoints", "csv") if row["cell_id"] == ids[1]]
    assert [(row["epoch"], row["measure"], float(row["ratio"]), row["memorized"], row["samples"]) for row in rows] == [
        (epoch, measure, ratio, round(20 * ratio), 20)
        for epoch, ratios in zip(tiny.EPOCHS, ((0.1, 0.2), (0.1, 0.8), (0.1, 0.6)), strict=True)
        for measure, ratio in zip(("nearest", "calibrated"), ratios, strict=True)
    ]
    emm = [(row["curve"], row["measure"], float(row["threshold"]), int(row["sizes"])) for row in exported("emm", "csv")]
    assert emm == [
        ("M.dropout = 0.0", "nearest", 1 / 3, 1),
        ("M.dropout = 0.2", "nearest", 1 / 3, 1),
        ("M.dropout = 0.0", "calibrated", 1.0, 0),
        ("M.dropout = 0.2", "calibrated", 1.0, 1),
    ]
    evidence = exported("evidence", "json")
    of_one = [row for row in evidence if row["cell_id"] == ids[0]]
    assert {(row["calibrated_distance"], row["calibrated_yardstick"]) for row in of_one} == {(None, None)}
    last = [row for row in evidence if row["cell_id"] == ids[1] and row["epoch"] == 30]
    assert sum(row["calibrated_distance"] < row["calibrated_yardstick"] for row in last) == 12
    assert [row["sample"] for row in last] == [*range(20)]


def test_the_emm_of_a_study_by_a_measure_that_nothing_is_scored_by_is_exported_as_not_measured(store):
    other = tiny.load(Path(), tiny.TEXT + '\n[emm]\nmeasure = "calibrated"\n')
    tiny.register(store, other)
    rows = [(row["curve"], row["measure"], row["sizes"]) for row in exported("emm", "csv")]
    assert rows == [
        ("M.dropout = 0.0", "calibrated", 0),
        ("M.dropout = 0.2", "calibrated", 0),
        ("M.dropout = 0.0", "nearest", 1),
        ("M.dropout = 0.2", "nearest", 0),
    ]


@pytest.mark.usefixtures("measured")
def test_status_is_by_the_measure_of_the_study(store):
    tiny.register(store, tiny.load(Path(), tiny.TEXT + '\n[emm]\nmeasure = "calibrated"\n'))
    assert [(row["best ratio"], row["last ratio"]) for row in data("status", "tiny")] == [(None, None), (0.8, 0.6)]
    assert diffmem("status", "tiny").stdout.startswith("tiny: extracted share (calibrated l2)\n")
