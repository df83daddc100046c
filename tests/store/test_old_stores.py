"""Stores that earlier commits have written, brought up to date: names, numbers, and what is said of older ones.

stores/README.md says which commit and which command made each.
"""

import gzip
import json
import shutil
from pathlib import Path

import duckdb
import pytest
import tiny
import torch
from click.testing import CliRunner

from diffmem.cells import RESULTS_VERSION
from diffmem.cli import main
from diffmem.errors import RunError
from diffmem.runs import run_study
from diffmem.runs.saved_states import load_state
from diffmem.store.checking import faults
from diffmem.store.merging import merge
from diffmem.store.renaming import NOTE
from diffmem.store.schema import MIGRATIONS
from diffmem.store.store import Store
from diffmem.study.study import Study

STORES = Path(__file__).parent / "stores"
EARLY, MIDDLE, LATE = "16b369c", "70f04b8", "bf66dda"
ALL = [EARLY, MIDDLE, LATE]
POINTS = """
    SELECT name, epoch, samples, memorized, ratio, loss, list((nearest, d1, d2) ORDER BY sample) AS evidence
    FROM study_cells JOIN checkpoints USING (cell_id) JOIN evidence USING (cell_id, epoch)
    GROUP BY ALL ORDER BY name, epoch
"""


@pytest.fixture(params=ALL)
def commit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def unpacked(commit: str, folder: Path) -> Path:
    """Put the store of a commit, its study and its training states into a folder; return the store's path."""
    path = folder / f"{commit}.duckdb"
    path.write_bytes(gzip.decompress((STORES / f"{commit}.duckdb.gz").read_bytes()))
    shutil.copy(STORES / "old.toml", folder / "old.toml")
    (folder / "states").mkdir()
    for state in STORES.glob(f"{commit}.*.pt.gz"):
        (folder / "states" / state.name.removesuffix(".gz")).write_bytes(gzip.decompress(state.read_bytes()))
    return path


def plain(path: Path, sql: str) -> list[tuple]:
    """Return the rows of a query of the file as it is."""
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def change(path: Path, sql: str) -> None:
    with duckdb.connect(path) as connection:
        connection.execute(sql)


def study(path: Path) -> Study:
    return Study.load(path.parent / "old.toml")


def printed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def of_today(path: Path) -> dict[str, str]:
    """Return the names that the cells of the study have today, by their axis values."""
    return {entry.name: entry.cell.cell_id for entry in study(path).cells}


def migrated(commit: str, folder: Path) -> Store:
    store = Store(unpacked(commit, folder))
    with store.writing():
        pass
    return store


def stored(store: Store) -> dict[str, tuple[str, int]]:
    """Return the names and versions of the cells of the study, by their axis values."""
    rows = store.rows("SELECT name, cell_id, results_version FROM study_cells JOIN cells USING (cell_id)")
    return {row["name"]: (row["cell_id"], row["results_version"]) for row in rows}


# --- names ---------------------------------------------------------------------------------------------


def test_what_is_measured_comes_through_as_it_was(commit, tmp_path):
    path = unpacked(commit, tmp_path)
    before = plain(path, POINTS)
    store = Store(path)
    with store.writing():
        pass
    assert len(before) >= 6
    assert plain(path, POINTS) == before
    assert plain(path, "SELECT max(version) FROM migrations") == [(len(MIGRATIONS),)]
    assert faults(store) == []


@pytest.mark.parametrize("commit", [MIDDLE, LATE])
def test_cells_whose_attempts_have_the_masks_of_today_have_the_names_of_today(commit, tmp_path):
    store = migrated(commit, tmp_path)
    assert stored(store) == {name: (cell, RESULTS_VERSION) for name, cell in of_today(store.path).items()}
    assert store.notes("old") == []


def test_cells_with_other_masks_keep_their_names_and_the_others_get_those_of_today(tmp_path):
    path = unpacked(EARLY, tmp_path)
    before = dict(plain(path, "SELECT name, cell_id FROM study_cells"))
    store = migrated_at(path)
    measured = set(plain(path, "SELECT DISTINCT name FROM study_cells JOIN attempts USING (cell_id)"))
    older = {name for (name,) in measured if "dropout = 0.2" in name}
    assert len(older) == 2
    assert stored(store) == {
        name: (before[name], 1) if name in older else (cell, RESULTS_VERSION) for name, cell in of_today(path).items()
    }


def migrated_at(path: Path) -> Store:
    store = Store(path)
    with store.writing():
        pass
    return store


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE attempts SET git_commit = NULL",
        "UPDATE attempts SET git_commit = '0123456789' || git_commit",
        "DELETE FROM attempts",
    ],
    ids=["no commit", "an unknown commit", "no attempt"],
)
def test_where_nothing_says_which_masks_were_drawn_cells_with_dropout_count_as_older(sql, tmp_path):
    path = unpacked(LATE, tmp_path)
    change(path, sql)
    versions = {name: version for name, (_, version) in stored(migrated_at(path)).items()}
    assert {name for name, version in versions.items() if version == 1} == {
        name for name in versions if "dropout = 0.2" in name
    }


def test_every_table_follows_the_new_names(commit, tmp_path):
    store = migrated(commit, tmp_path)
    tables = [row["table_name"] for row in store.rows("FROM duckdb_columns() WHERE column_name = 'cell_id'")]
    assert {"cells", "checkpoints", "evidence", "attempts", "study_cells", "pairs", "notes"} <= set(tables)
    for table in tables:
        assert store.rows(f"FROM {table} WHERE cell_id NOT IN (SELECT cell_id FROM cells)") == []


def test_a_cell_whose_new_name_is_taken_keeps_its_old_one(tmp_path):
    path = unpacked(LATE, tmp_path)
    taken = next(iter(of_today(path).values()))
    change(path, f"INSERT INTO cells SELECT '{taken}', configuration, checkpoints, created_at FROM cells LIMIT 1")
    assert faults(migrated_at(path)) == []
    assert sorted(version for _, version in stored(Store(path)).values()) == [1, 2, 2, 2, 2, 2]


def test_the_channels_of_named_datasets_are_added(commit, tmp_path):
    store = migrated(commit, tmp_path)
    assert {json.loads(row["configuration"])["P"]["channels"] for row in store.rows("FROM cells")} == {1}


def test_a_store_merged_before_and_after_is_the_same(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    new = migrated(LATE, tmp_path / "a")
    old = unpacked(LATE, tmp_path / "b")
    assert merge(new, old) == 0
    assert plain(old, "SELECT count(*) FROM checkpoints") == plain(new.path, "SELECT count(*) FROM checkpoints")


def test_kept_models_and_training_states_follow_the_new_names(tmp_path):
    path = unpacked(LATE, tmp_path)
    (old, name), *_ = plain(path, "SELECT cell_id, name FROM study_cells ORDER BY position")
    (tmp_path / "weights").mkdir()
    (tmp_path / f"states/{LATE}.{old}.pt").write_bytes(b"")
    for stem in (LATE, "other"):
        (tmp_path / f"weights/{stem}.{old}.6.safetensors").write_bytes(b"")
    store = migrated_at(path)
    new = of_today(path)[name]
    assert store.state_path(new).exists()
    assert list(store.kept_weights()[new]) == [6]
    assert (tmp_path / f"weights/other.{old}.6.safetensors").exists()


def test_a_store_of_the_schema_before_notes_gets_the_table(tmp_path):
    store = Store(unpacked(MIDDLE, tmp_path))
    assert plain(store.path, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'notes'") == [(0,)]
    assert store.notes("old") == []
    cell = study(store.path).cells[0].cell.cell_id
    tiny.register(store, study(store.path), notes={cell: ["one image is read as grey"]})
    assert store.cell_notes("old") == {cell: ["one image is read as grey"]}


# --- what is said --------------------------------------------------------------------------------------


def test_status_emm_and_the_page_have_the_numbers_and_say_which_are_older(tmp_path):
    path = unpacked(EARLY, tmp_path)
    best = dict(plain(path, "SELECT name, max(ratio) FROM study_cells JOIN checkpoints USING (cell_id) GROUP BY name"))
    rows = json.loads(printed("status", "old", "--store", path, "--json"))
    names = {cell: name for name, (cell, _) in stored(Store(path)).items()}
    assert {names[row["cell_id"]]: row["best ratio"] for row in rows if row["measured"]} == best
    assert sum(NOTE in row["notes"] for row in rows) == 2
    for command in (["status", "old"], ["emm", "old"]):
        said = " ".join(printed(*command, "--store", path).split())
        assert f"{NOTE} (in 2 of 6 cells)" in said
    page = tmp_path / "page.html"
    printed("report", "old", "--store", path, "-o", page)
    assert NOTE in page.read_text()
    assert "outdated results 2 cells; a run of their studies measures them anew" in " ".join(
        printed("store", "info", path).split()
    )
    assert json.loads(printed("store", "info", path, "--json"))["older_cells"] == 2


def test_a_store_of_today_has_no_older_cells(tmp_path):
    path = migrated(LATE, tmp_path).path
    assert "outdated results" not in printed("store", "info", path)


# --- what a run does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [MIDDLE, LATE])
def test_a_run_trains_nothing_that_is_there(commit, tmp_path):
    store = migrated(commit, tmp_path)
    before = tiny.results(store)
    list(run_study(study(store.path), store))
    tiny.check_equal(tiny.results(store), before)


def test_a_run_measures_older_cells_anew_and_those_without_dropout_not_again(tmp_path):
    path = unpacked(EARLY, tmp_path)
    before = plain(path, "SELECT count(*) FROM attempts JOIN study_cells USING (cell_id) WHERE name LIKE '%0.0%'")
    store = migrated_at(path)
    list(run_study(study(path), store))
    assert stored(store) == {name: (cell, RESULTS_VERSION) for name, cell in of_today(path).items()}
    trained = "SELECT count(*) FROM attempts JOIN study_cells USING (cell_id) WHERE name LIKE 'M.network = ddpm++%0.0%'"
    assert plain(path, trained) == before == [(2,)]
    assert json.loads(printed("store", "info", path, "--json"))["older_cells"] == 2


def test_a_state_is_of_use_under_the_version_that_wrote_it_and_no_other(tmp_path):
    path = unpacked(EARLY, tmp_path)
    (state,) = (tmp_path / "states").glob("*.pt")
    cells = [entry.cell for entry in study(path).cells]
    (cell,) = [each for each in cells if each.name_by(1) == state.name.split(".")[1]]
    assert load_state(state, cell, torch.device("cpu"))["results_version"] == 1
    content = torch.load(state, weights_only=True)
    for version in (2, 3, 0, None):
        torch.save({**content, "results_version": version}, state)
        with pytest.raises(RunError, match="written by another diffmem"):
            load_state(state, cell, torch.device("cpu"))


@pytest.mark.parametrize("configuration", ['{"P": {"size": 4}}', "{}", "[]", '{"P": "x"}'])
def test_a_cell_of_an_odd_configuration_keeps_its_name_when_an_older_store_is_brought_up_to_date(
    tmp_path: Path, configuration: str
) -> None:
    path = unpacked(LATE, tmp_path)
    (before,) = plain(path, "SELECT cell_id FROM cells ORDER BY cell_id LIMIT 1")
    change(path, f"UPDATE cells SET configuration = '{configuration}' WHERE cell_id = '{before[0]}'")
    with Store(path, check=False).writing():
        pass
    assert plain(path, f"SELECT configuration, results_version FROM cells WHERE cell_id = '{before[0]}'") == [
        (configuration, 1)
    ]
