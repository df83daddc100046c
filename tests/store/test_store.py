"""The store: schema and migrations, whole transactions, readers between writes, and errors that say what to do."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import filelock
import numpy as np
import pytest
import tiny

from diffmem.analysis.curves import study_cells
from diffmem.errors import StoreError, StoreHeld, StoreUnavailable
from diffmem.measures import Pictured
from diffmem.measures.nearest import NEAREST
from diffmem.store import database
from diffmem.store import store as store_module
from diffmem.store.attempts import close_attempts
from diffmem.store.given import Checkpoint, ListedCell, Listing
from diffmem.store.merging import merge
from diffmem.store.rows import Note
from diffmem.store.schema import MIGRATIONS
from diffmem.store.standing import Kind, Outcome
from diffmem.store.store import Store

TABLES = {
    "attempts",
    "cells",
    "checkpoints",
    "copied",
    "evidence",
    "halves",
    "held_out",
    "measure_evidence",
    "measurements",
    "migrations",
    "noise_levels",
    "notes",
    "pairs",
    "spaces",
    "quality",
    "studies",
    "study_cells",
    "training_images",
}
PATIENCE = 0.2
ESTIMATED = {"epsilon": 0.1, "threshold": 1 / 3}


@pytest.fixture
def fresh(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "diffmem.duckdb")


@pytest.fixture
def store(fresh: Store) -> Store:
    with fresh.writing(create=True):
        return fresh


def checkpoint(epoch: int = 1, cell_id: str = "cell", ratio: float = 0.25) -> Checkpoint:
    return tiny.checkpoint(cell_id, epoch, ratio, pairs=[(tiny.png(1), tiny.png(2))])


def count(store: Store, table: str) -> int:
    return store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"]


def tables(store: Store) -> set[str]:
    return {row["table_name"] for row in store.rows("SELECT table_name FROM duckdb_tables()")}


def version(store: Store) -> int:
    return store.rows("SELECT max(version) AS version FROM migrations")[0]["version"]


def refuses_to_read(path: Path, kind: type[StoreError]) -> str:
    """Return the sentence with which the store at `path` refuses to be read; it must be of exactly this kind."""
    with pytest.raises(StoreError) as caught, Store(path, patience=PATIENCE).reading() as connection:
        connection.execute("SELECT 1")
    return sentence(caught.value, path, kind)


def refuses_to_write(path: Path, kind: type[StoreError], *, create: bool = True) -> str:
    with pytest.raises(StoreError) as caught, Store(path, patience=PATIENCE).writing(create=create) as connection:
        connection.execute("SELECT 1")
    return sentence(caught.value, path, kind)


GONE = "the store is gone (was it moved, or its disk removed?); once it is back, run the same command to resume"
CLOSE_IT = "close it (a notebook or a DuckDB shell?) and try again"


def sentence(error: StoreError, path: Path, kind: type[StoreError]) -> str:
    text = str(error)
    assert type(error) is kind, text
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- schema and migrations -----------------------------------------------------------------------------


def test_a_fresh_file_gets_the_schema_with_its_folder(fresh: Store) -> None:
    with fresh.writing(create=True):
        pass
    assert tables(fresh) == TABLES
    assert version(fresh) == len(MIGRATIONS)
    assert fresh.rows("SELECT * FROM results") == []


def test_reading_where_nothing_is_creates_nothing(fresh: Store) -> None:
    said = refuses_to_read(fresh.path, StoreError)
    assert "no store there yet" in said
    assert "diffmem run" in said
    assert not fresh.path.parent.exists()


def test_each_migration_is_recorded_once(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE second (i INTEGER)"])
    for _ in range(3):
        with fresh.writing(create=True):
            pass
    numbers = [row["version"] for row in fresh.rows("SELECT version FROM migrations ORDER BY applied_at")]
    assert numbers == [*range(1, len(MIGRATIONS) + 2)]


def test_an_older_file_is_migrated_when_opened_to_write_and_keeps_its_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(checkpoint())
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "ALTER TABLE checkpoints ADD COLUMN extra INTEGER"])
    with store.writing() as connection:
        assert connection.execute("SELECT epoch, extra FROM checkpoints").fetchall() == [(1, None)]


def test_an_older_file_is_migrated_when_opened_to_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(checkpoint())
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE second AS SELECT 7 AS i"])
    assert store.rows("SELECT i, epoch FROM second, checkpoints") == [{"i": 7, "epoch": 1}]
    assert version(store) == len(MIGRATIONS) + 1


def test_an_older_file_that_cannot_be_written_is_read_through_a_copy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(checkpoint())
    Path(f"{store.path}.lock").unlink(missing_ok=True)
    Path(f"{store.path}.lock").mkdir()
    before = store.path.read_bytes()
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE extra AS SELECT 7 AS i"])
    for _ in range(2):
        assert store.rows("SELECT i, epoch FROM extra, checkpoints") == [{"i": 7, "epoch": 1}]
    assert store.path.read_bytes() == before
    assert {path.name for path in store.path.parent.iterdir()} == {store.path.name, f"{store.path.name}.lock"}


def test_an_older_file_that_another_program_holds_says_why_it_must_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE extra (i INTEGER)"])
    with filelock.FileLock(f"{store.path}.lock"), pytest.raises(StoreUnavailable) as caught:
        Store(store.path, patience=0.05).studies()
    assert re.sub("process .* holds", "process N holds", sentence(caught.value, store.path, StoreHeld)) == (
        "process N holds the store open; close it (a notebook or a DuckDB shell?) and try again "
        "(it is of an older diffmem, and is brought up to date before it is read)"
    )


def test_an_older_file_of_which_no_copy_can_be_kept_is_not_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(checkpoint())
    kept = store.path.with_name(f"{store.path.name}.schema-{len(MIGRATIONS)}")
    kept.mkdir()
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE extra (i INTEGER)"])
    said = refuses_to_write(store.path, StoreUnavailable)
    assert said.replace(str(kept), "FILE") == (
        "cannot be brought up to date: FILE: cannot be written: Is a directory; name another file"
    )
    monkeypatch.undo()
    assert version(store) == len(MIGRATIONS)


def test_the_file_as_it_was_is_kept_before_it_is_migrated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(checkpoint())
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "DROP TABLE copied"])
        assert store.append(checkpoint(epoch=2)) is True
    kept = Store(store.path.with_name(f"{store.path.name}.schema-{len(MIGRATIONS)}"))
    assert kept.measured_epochs("cell") == {1}
    assert count(kept, "copied") == 0


BAD = "CREATE TABLE half (i INTEGER); DROP TABLE pairs; SELECT * FROM nowhere"


def test_a_failing_migration_rolls_back_whole_and_leaves_the_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(checkpoint())
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", [*MIGRATIONS, BAD])
        said = "the store cannot be used: Catalog Error: Table with name nowhere does not exist!"
        assert refuses_to_write(store.path, StoreUnavailable) == said
        with pytest.raises(StoreError, match="nowhere"):
            store.rows("SELECT 1")
    assert version(store) == len(MIGRATIONS)
    assert tables(store) == TABLES
    assert count(store, "pairs") == 1


def test_a_migration_whose_record_fails_leaves_nothing(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = f"CREATE TABLE half (i INTEGER); INSERT INTO migrations VALUES ({len(MIGRATIONS) + 1}, now()::TIMESTAMP)"
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", [*MIGRATIONS, taken])
        with pytest.raises(StoreError), fresh.writing(create=True):
            pass
    assert version(fresh) == len(MIGRATIONS)
    assert tables(fresh) == TABLES


def test_the_migrations_before_a_failing_one_stay(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE second (i INTEGER)", BAD])
        with pytest.raises(StoreError), fresh.writing(create=True):
            pass
        patch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE second (i INTEGER)"])
        assert tables(fresh) == TABLES | {"second"}


def test_a_migration_that_was_mended_runs_on_the_next_opening(fresh: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, BAD])
    with pytest.raises(StoreError), fresh.writing(create=True):
        pass
    monkeypatch.setattr(database, "MIGRATIONS", [*MIGRATIONS, "CREATE TABLE half (i INTEGER)"])
    assert tables(fresh) == TABLES | {"half"}


# --- one transaction -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"d1": np.array(["near"] * 20)},
        {"pairs": [Pictured(tiny.png(1), 3, tiny.png(2), 7)]},
        {"pairs": [Pictured(*[tiny.png(1)] * 3, 7), Pictured(None, None, None, 7)]},
        {"copied": [(1, None)]},
    ],
    ids=["evidence of a wrong type", "a pair of a wrong type", "a missing image", "a missing picture of a copy"],
)
def test_a_checkpoint_is_appended_whole_or_not_at_all(store: Store, broken: dict) -> None:
    store.append(checkpoint(epoch=1))
    with pytest.raises(StoreError):
        store.append(dataclasses.replace(checkpoint(epoch=2), **broken))
    assert store.measured_epochs("cell") == {1}
    assert (count(store, "evidence"), count(store, "pairs")) == (20, 1)


def test_the_block_of_a_writer_is_undone_when_it_raises(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.writing() as connection:
        connection.execute("DELETE FROM migrations")
        raise ZeroDivisionError
    assert version(store) == len(MIGRATIONS)


def test_the_same_checkpoint_twice_keeps_the_first(store: Store) -> None:
    assert store.append(checkpoint(ratio=0.25)) is True
    before = tiny.results(store)
    assert store.append(checkpoint(ratio=0.75)) is False
    assert tiny.results(store) == before
    assert store.append(checkpoint(epoch=2)) is True
    assert store.append(checkpoint(cell_id="another")) is True


def test_a_checkpoint_comes_back_as_it_was_measured(store: Store) -> None:
    wanted = checkpoint(epoch=3)
    store.append(wanted)
    (row,) = store.rows("SELECT * FROM checkpoints")
    evidence = store.rows("SELECT * FROM evidence ORDER BY sample")
    assert (row["samples"], row["memorized"], row["ratio"], row["loss"]) == (20, 5, 0.25, 1 / 3)
    assert (row["train_seconds"], row["score_seconds"], row["attempt_id"]) == (1.5, 0.5, "by hand")
    assert [e["sample"] for e in evidence] == [*range(20)]
    assert [e["nearest"] for e in evidence] == wanted.nearest.tolist()
    assert [e["d1"] for e in evidence] == wanted.d1.tolist()
    assert [e["d2"] for e in evidence] == wanted.d2.tolist()
    assert store.rows("SELECT generated, nearest FROM pairs") == [{"generated": tiny.png(1), "nearest": tiny.png(2)}]


def test_pictures_of_what_is_copied_are_kept_once_for_all_checkpoints(store: Store) -> None:
    for epoch in (1, 2):
        store.append(dataclasses.replace(checkpoint(epoch=epoch), copied=[(4, tiny.png(4)), (epoch, tiny.png(epoch))]))
    assert store.rows("SELECT nearest, picture FROM copied ORDER BY nearest") == [
        {"nearest": position, "picture": tiny.png(position)} for position in (1, 2, 4)
    ]


def test_a_loss_that_was_never_measured_is_null(store: Store) -> None:
    store.append(dataclasses.replace(checkpoint(), loss=None))
    assert store.rows("SELECT loss FROM checkpoints") == [{"loss": None}]


def test_the_evidence_gives_the_ratio_again_and_that_of_other_thresholds(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.25, 0.5])
    (first, second) = store.rows(
        """
        SELECT epoch, any_value(ratio) AS ratio,
            avg(CAST(d1 < d2 / 3 AS INTEGER)) AS counted, avg(CAST(d1 < 0.5 * d2 AS INTEGER)) AS half
        FROM checkpoints JOIN evidence USING (cell_id, epoch) GROUP BY epoch ORDER BY epoch
        """
    )
    assert (first["ratio"], first["counted"], first["half"]) == (0.25, 0.25, pytest.approx(0.25 + 7 / 20))
    assert (second["ratio"], second["counted"], second["half"]) == (0.5, 0.5, 0.75)
    assert [row.ratio for row in store.curve_points("tiny", NEAREST, 1 / 3)] == [0.25, 0.5]
    assert [row.ratio for row in store.curve_points("tiny", NEAREST, 0.5)] == [first["half"], 0.75]
    assert [row.ratio for row in store.curve_points("tiny", NEAREST, 0.05)] == [0.0, 0.0]


def test_a_distance_at_the_threshold_is_not_memorized(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    cell = study.cells[0].cell
    point = tiny.checkpoint(cell.cell_id, 15, 0.0, samples=2)
    store.append(dataclasses.replace(point, d1=np.array([50.0, 0.0]), d2=np.array([100.0, 0.0])))
    assert [row.ratio for row in store.curve_points("tiny", NEAREST, 0.5)] == [0.0]


# --- studies, cells, attempts --------------------------------------------------------------------------


def test_a_study_registered_again_replaces_its_list_of_cells_and_loses_no_cell(store: Store, tmp_path: Path) -> None:
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT))
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT.replace("[0.0, 0.2]", "[0.2, 0.4]").replace("Tiny", "New")))
    assert [cell.axis_values["M.dropout"] for cell in store.cells("tiny")] == [0.2, 0.4]
    assert [study.title for study in store.studies()] == ["New"]
    assert count(store, "cells") == 3


def test_a_study_that_keeps_its_cells_gets_the_new_ones_after_them(store: Store, tmp_path: Path) -> None:
    for dropout in ("[0.0, 0.2]", "[0.2, 0.4]", "[0.4]"):
        study = tiny.load(tmp_path, tiny.TEXT.replace("[0.0, 0.2]", dropout))
        store.register(Listing("tiny", "", "", ESTIMATED), study.cells, keep=True)
    assert [cell.axis_values["M.dropout"] for cell in store.cells("tiny")] == [0.0, 0.2, 0.4]


def test_a_cell_of_two_studies_is_one_cell(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny.register(store, tiny.load(tmp_path, tiny.TEXT, name))
    assert count(store, "cells") == 2
    assert [study.study for study in store.studies()] == ["two", "one"]
    tiny.measure(store, tiny.load(tmp_path, tiny.TEXT).cells[0].cell, [0, 0, 0])
    assert len(store.finished_cells()) == 1


def test_a_study_of_no_cell_can_be_registered(store: Store) -> None:
    store.register(Listing("none", "", "", ESTIMATED), [])
    assert store.cells("none") == []


def test_cells_come_with_how_far_they_are_and_their_latest_attempt(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    first = study.cells[0].cell
    store.end_attempt(store.start_attempt(first.cell_id, tiny.HERE), Outcome.FAILED, "first reason")
    store.end_attempt(store.start_attempt(first.cell_id, tiny.HERE), Outcome.INTERRUPTED)
    tiny.measure(store, first, [0.75, 0.25])
    one, two = store.cells("tiny")
    assert (one.measured, one.expected, one.outcome, one.error) == (2, 3, Outcome.INTERRUPTED, None)
    assert (one.host, one.pid) == (tiny.HERE.host, tiny.HERE.pid)
    assert one.configuration == first.configuration
    assert (two.measured, two.expected, two.outcome, two.started_at) == (0, 3, None, None)
    (study_row,) = store.studies()
    (first_measured, second_measured), _ = study_cells(store, study_row)
    assert (first_measured.best, first_measured.last, first_measured.samples) == (0.75, 0.25, 20)
    assert (second_measured.best, second_measured.last, second_measured.samples) == (None, None, None)
    assert [point.epoch for point in store.curve_points("tiny", NEAREST, NEAREST.threshold)] == [12, 24]
    latest = store.attempts("tiny")[-1]
    assert (latest.outcome, latest.versions) == (Outcome.INTERRUPTED, tiny.HERE.versions)


def test_an_attempt_left_open_counts_as_lost_when_the_next_one_starts(store: Store) -> None:
    lost = store.start_attempt("cell", tiny.HERE)
    other = store.start_attempt("other cell", tiny.HERE)
    second = store.start_attempt("cell", tiny.HERE)
    outcomes = {row["attempt_id"]: row["outcome"] for row in store.rows("SELECT attempt_id, outcome FROM attempts")}
    assert outcomes == {lost: "lost", other: "running", second: "running"}


# --- notes ---------------------------------------------------------------------------------------------

CLEAR = "train/: 3 of 40 images are transparent; they were composited on white"
LARGE = "train/: 40 images of 16x16 pixels were resized to 8x8"


def noted(store: Store, folder: Path, *notes: list[str] | None, name: str = "tiny", text: str = tiny.TEXT) -> list[str]:
    """Register a study with notes on its cells in their order, None where nothing is given; return the cell_ids."""
    study = tiny.load(folder, text, name)
    ids = [entry.cell.cell_id for entry in study.cells]
    given = zip(ids, notes, strict=False)
    tiny.register(store, study, notes={cell_id: each for cell_id, each in given if each is not None})
    return ids


def test_notes_come_with_the_cells_that_have_them_the_most_common_first(store: Store, tmp_path: Path) -> None:
    one, two = noted(store, tmp_path, [CLEAR, LARGE], [LARGE])
    assert store.notes("tiny") == [Note(LARGE, 2), Note(CLEAR, 1)]
    assert store.cell_notes("tiny") == {one: [LARGE, CLEAR], two: [LARGE]}


def test_notes_of_as_many_cells_come_in_the_order_of_their_texts(store: Store, tmp_path: Path) -> None:
    noted(store, tmp_path, ["b", "c"], ["a"])
    assert [row.note for row in store.notes("tiny")] == ["a", "b", "c"]


def test_a_cell_at_two_places_of_a_study_is_counted_once(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    cell = study.cells[0].cell
    places = [ListedCell(cell, curve, curve, {"M.dropout": 0.0}) for curve in ("one", "two")]
    store.register(study, places, notes={cell.cell_id: [CLEAR]})
    assert store.notes("tiny") == [Note(CLEAR, 1)]


def test_notes_replace_those_of_the_cells_that_they_are_given_for_alone(store: Store, tmp_path: Path) -> None:
    one, two = noted(store, tmp_path, [CLEAR, LARGE], [CLEAR, LARGE])
    noted(store, tmp_path, ["new", LARGE], None)
    assert store.cell_notes("tiny") == {one: [LARGE, "new"], two: [LARGE, CLEAR]}
    noted(store, tmp_path)
    assert store.cell_notes("tiny") == {one: [LARGE, "new"], two: [LARGE, CLEAR]}
    noted(store, tmp_path, [], None)
    assert store.cell_notes("tiny") == {two: [CLEAR, LARGE]}


def test_the_same_notes_given_again_or_twice_are_there_once(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        noted(store, tmp_path, [CLEAR, LARGE, CLEAR], [CLEAR])
    assert count(store, "notes") == 3


def test_notes_are_those_of_the_study_s_own_cells(store: Store, tmp_path: Path) -> None:
    noted(store, tmp_path, [CLEAR], [LARGE])
    noted(store, tmp_path, name="other", text=tiny.TEXT.replace("[0.0, 0.2]", "[0.2, 0.4]"))
    assert store.notes("other") == [Note(LARGE, 1)]
    assert store.notes("no such study") == []


def test_a_note_of_nothing_is_none_and_one_of_any_bytes_can_be_read(store: Store, tmp_path: Path) -> None:
    noted(store, tmp_path, ["", " \n", " a\udcff\x00'b\n"], ["é"])
    assert {row.note for row in store.notes("tiny")} == {"a\\udcff\x00'b", "é"}
    assert Store(store.path).studies() != []


def test_notes_that_cannot_be_written_leave_the_study_as_it_was(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    with pytest.raises(StoreError):
        tiny.register(store, study, notes={study.cells[0].cell.cell_id: [CLEAR], "\udcff": [LARGE]})
    assert (store.studies(), count(store, "notes")) == ([], 0)


@dataclasses.dataclass(frozen=True)
class Cell:
    """As little of a cell as a store keeps."""

    cell_id: str
    configuration: dict = dataclasses.field(default_factory=lambda: {"P": {"size": 8}})
    checkpoint_count: int = 3


@pytest.mark.slow
def test_notes_on_a_hundred_thousand_cells_take_seconds(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    cells = [ListedCell(Cell(f"{number:016x}"), "", "", {"M.dropout": number}) for number in range(100_000)]
    store.register(study, cells)
    notes = {each.cell.cell_id: [f"{i} of {j % 9} images" for i in range(3)] for j, each in enumerate(cells)}
    started = time.monotonic()
    store.register(study, cells, notes=notes)
    assert time.monotonic() - started < 60  # a statement a row takes many minutes
    assert sum(row.cells for row in store.notes("tiny")) == 300_000


def test_merged_stores_have_the_notes_of_both_in_any_order(tmp_path: Path) -> None:
    stores = [Store(tmp_path / f"{name}.duckdb") for name in ("one", "two")]
    one, two = noted(stores[0], tmp_path, [CLEAR], None)
    noted(stores[1], tmp_path, [CLEAR, LARGE], [LARGE])
    for number, order in enumerate([stores, stores[::-1], [*stores, *stores]]):
        into = Store(tmp_path / f"{number}.duckdb")
        for each in order:
            merge(into, each.path)
        assert into.cell_notes("tiny") == {one: [LARGE, CLEAR], two: [LARGE]}
        assert count(into, "notes") == 3


def before(words: str) -> int:
    """Return how many migrations come before the one with these words."""
    return next(number for number, each in enumerate(MIGRATIONS) if isinstance(each, str) and words in each)


def of_schema(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store of an older schema that has the tiny study."""
    new = Store(folder / "new.duckdb")
    tiny.register(new, tiny.load(folder, tiny.TEXT))
    rows = {table: new.rows(f"FROM {table}") for table in ("cells", "studies", "study_cells")}
    old = Store(folder / "old.duckdb", check=False)  # its rules are those of the newest schema
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:number])
        with old.writing(create=True) as connection:
            for table, given in rows.items():
                names = [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]
                for row in given:
                    marks = ", ".join("?" * len(names))
                    connection.execute(f"INSERT INTO {table} VALUES ({marks})", [row[name] for name in names])
        assert version(old) == number
    return old


def test_the_studies_of_a_store_of_the_schema_before_kinds_get_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = before("ADD COLUMN kind")
    old = of_schema(number, tmp_path, monkeypatch)
    foreign = '{"P": {"dataset": "digits", "size": 8, "draw": "first"}, "T": {"seed": 0}}'
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:number])
        with old.writing() as connection:
            columns = "cell_id, configuration, checkpoints, created_at"
            connection.execute(f"INSERT INTO cells ({columns}) VALUES ('foreign', ?, 1, now()::TIMESTAMP)", [foreign])
            for name, path in (("scored", "diffmem score"), ("watched", "diffmem.Monitor")):
                connection.execute(
                    """
                    INSERT INTO studies (study, title, figure, path, axes, estimation, registered_at)
                    SELECT ?, title, figure, ?, '[]', estimation, registered_at FROM studies WHERE study = 'tiny'
                    """,
                    [name, path],
                )
                connection.execute("INSERT INTO study_cells VALUES (?, 0, 'foreign', '', '', '{}')", [name])
    kinds = {study.study: study.kind for study in Store(old.path).studies()}
    assert kinds == {"tiny": Kind.TRAINED, "scored": Kind.IMAGES, "watched": Kind.MONITOR}


def test_the_checkpoints_of_a_store_of_the_schema_before_measures_are_there_by_the_paper_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = before("CREATE TABLE measurements")
    old = of_schema(number, tmp_path, monkeypatch)
    cell_id = tiny.load(tmp_path, tiny.TEXT).cells[0].cell.cell_id
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:number])
        old.append(tiny.checkpoint(cell_id, 12, 0.25))
    store = Store(old.path)
    assert store.rows("SELECT measure, value, n FROM measured") == [{"measure": "nearest", "value": 0.25, "n": 20}]
    assert count(store, "measurements") == 0
    assert [point.ratio for point in store.curve_points("tiny", NEAREST, NEAREST.threshold)] == [0.25]


# --- evidence ------------------------------------------------------------------------------------------


def with_distances(store: Store, folder: Path, d1: list[float], d2: list[float]) -> str:
    """Register a study and append these distances as one checkpoint, of images nearest to 0, 1, 0, 1, ..."""
    study = tiny.load(folder, tiny.TEXT)
    tiny.register(store, study)
    point = tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.5, samples=len(d1))
    nearest = np.arange(len(d1)) % 2
    store.append(dataclasses.replace(point, d1=np.array(d1), d2=np.array(d2), nearest=nearest))
    return study.name


def test_levels_of_distance_count_what_every_threshold_counts(store: Store, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    d2 = generator.uniform(1, 4000, 3000)
    exact = np.repeat(np.arange(1, 121), 5)  # ratios on the levels themselves, where division rounds either way
    d1 = np.concatenate([generator.uniform(0, 1, 2400) * d2[:2400], exact / 120 * d2[2400:]])
    name = with_distances(store, tmp_path, list(d1), list(d2))
    rows = store.distance_counts(name, NEAREST)
    assert {row.epoch for row in rows} == {12}
    for k in range(1, 121):
        counted = sum(row.images for row in rows if row.level <= k)
        assert counted == int((d1 < k / 120 * d2).sum()), k
    assert sum(row.images for row in rows) == 3000


def test_images_on_two_equal_training_images_are_beyond_every_level(store: Store, tmp_path: Path) -> None:
    name = with_distances(store, tmp_path, [0.0, 0.0, 5.0], [0.0, 1.0, 5.0])
    assert [(row.level, row.images) for row in store.distance_counts(name, NEAREST)] == [(1, 1), (121, 2)]


def test_copies_are_counted_for_each_training_image_at_the_threshold(store: Store, tmp_path: Path) -> None:
    name = with_distances(store, tmp_path, [1, 1, 1, 4, 9], [10.0] * 5)
    assert [(row.nearest, row.copies) for row in store.copies(name, NEAREST, 1 / 3)] == [(0, 2), (1, 1)]
    assert [(row.nearest, row.copies) for row in store.copies(name, NEAREST, 0.5)] == [(0, 2), (1, 2)]


def test_attempts_come_with_the_seconds_of_their_checkpoints(store: Store, tmp_path: Path) -> None:
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    cell = study.cells[0].cell
    first = store.start_attempt(cell.cell_id, tiny.HERE)
    tiny.measure(store, cell, [0.5, 0.5], attempt=first)
    store.end_attempt(first, Outcome.INTERRUPTED)
    store.end_attempt(store.start_attempt(cell.cell_id, tiny.HERE), Outcome.FAILED, "no reason")
    rows = store.attempts(study.name)
    assert [(row.position, row.outcome, row.measured) for row in rows] == [
        (0, Outcome.INTERRUPTED, 2),
        (0, Outcome.FAILED, 0),
    ]
    assert [(row.train_seconds, row.score_seconds) for row in rows] == [(3.0, 1.0), (0.0, 0.0)]


# --- several processes ---------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import tiny
from diffmem.store import Store
store, cell_id, count = Store(Path(sys.argv[1]), patience=300), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for epoch in range(1, count + 1):
    assert store.append(tiny.checkpoint(cell_id, epoch, 0.5)), epoch
"""

READER = """
import sys
from pathlib import Path
from diffmem.store import Store
store, last = Store(Path(sys.argv[1])), 0
print("ready", flush=True)
sys.stdin.readline()
reads = 0
while last < int(sys.argv[2]):
    (row,) = store.rows(
        "SELECT (SELECT count(*) FROM checkpoints) AS points, (SELECT count(*) FROM evidence) AS evidence"
    )
    assert row["evidence"] == 20 * row["points"] and row["points"] >= last, row
    last, reads = row["points"], reads + 1
print(reads)
"""


def at_once(*scripts: tuple[str | Path, ...]) -> list[str]:
    """Start scripts that wait, let them go together, and return what each printed; all must end well."""
    with ExitStack() as stack:
        processes = [stack.enter_context(tiny.started(*script)) for script in scripts]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        output = [process.communicate(timeout=200) for process in processes]
        ends = [(process.returncode, errors) for process, (_, errors) in zip(processes, output, strict=True)]
    assert ends == [(0, "")] * len(scripts)
    return [printed for printed, _ in output]


ENDLESS_WRITER = """
import itertools, sys
from pathlib import Path
import tiny
from diffmem.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for epoch in itertools.takewhile(lambda _: not Path(sys.argv[2]).exists(), itertools.count(1)):
    assert store.append(tiny.checkpoint("cell", epoch, 0.5)), epoch
"""

SATISFIED_READER = """
import sys
from pathlib import Path
from diffmem.store import Store
store, seen = Store(Path(sys.argv[1])), set()
print("ready", flush=True)
sys.stdin.readline()
while len(seen) < 5:
    seen.add(store.rows("SELECT count(*) AS points FROM checkpoints")[0]["points"])
Path(sys.argv[2]).touch()
"""


@pytest.mark.slow
def test_a_reader_gets_in_between_the_writes_of_another_process(store: Store, tmp_path: Path) -> None:
    with store.writing():
        pass
    enough = tmp_path / "enough"  # the writer only ends once the reader has seen five states of the store
    at_once((ENDLESS_WRITER, store.path, enough), (SATISFIED_READER, store.path, enough))
    epochs = store.measured_epochs("cell")
    assert epochs == {*range(1, len(epochs) + 1)}


MAKER = """
import sys
from pathlib import Path
import tiny
from diffmem.store import Store
folder, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for number in range(6):
    (folder / f"{number}.{me}").touch()
    while not (folder / f"{number}.{other}").exists(): pass  # both at the same time
    store = Store(folder / f"{number}.duckdb")
    with store.writing(create=True): pass
    store.start_attempt(me, tiny.HERE)
(folder / f"{me} is done").touch()
"""

LOCK_DELETER = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while not all((folder / f"{name} is done").exists() for name in ("one", "two")):
    for path in folder.glob("*.lock"): path.unlink(missing_ok=True)
"""


def test_two_processes_make_one_store_and_lose_no_row_while_lock_files_are_deleted(tmp_path: Path) -> None:
    at_once((MAKER, tmp_path, "one", "two"), (MAKER, tmp_path, "two", "one"), (LOCK_DELETER, tmp_path))
    for number in range(6):
        rows = Store(tmp_path / f"{number}.duckdb").rows("SELECT cell_id FROM attempts ORDER BY cell_id")
        assert [row["cell_id"] for row in rows] == ["one", "two"], number
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.slow
def test_four_processes_append_many_checkpoints_while_a_reader_asks_again_and_again(store: Store) -> None:
    cells = ["one", "two", "three", "four"]
    *_, reads = at_once(*((WRITER, store.path, cell, "40") for cell in cells), (READER, store.path, "160"))
    assert int(reads) > 10
    assert count(store, "checkpoints") == 160
    assert count(store, "evidence") == 160 * 20
    assert [store.measured_epochs(cell) for cell in cells] == [{*range(1, 41)}] * 4


HALF_DONE = """
import sys, time
from pathlib import Path
import tiny
from diffmem.store import Store
store = Store(Path(sys.argv[1]))
with store.writing() as connection:
    if sys.argv[2] == "left in the WAL":
        connection.execute("INSERT INTO cells VALUES ('kept', '{}', 1, now()::TIMESTAMP, 2)")
        connection.commit()
        connection.begin()
    connection.execute("INSERT INTO cells VALUES ('undone', '{}', 1, now()::TIMESTAMP, 2)")
    connection.execute("INSERT INTO evidence SELECT 'cell', 9, i, i, i, i FROM range(200000) t(i)")
    print("ready", flush=True)
    time.sleep(300)
"""


def kill_inside(store: Store, moment: str) -> None:
    """Kill a writer inside an open transaction."""
    with tiny.started(HALF_DONE, store.path, moment) as process:
        pass
    assert process.returncode == -signal.SIGKILL


def test_nothing_of_a_transaction_shows_whose_writer_was_killed(store: Store) -> None:
    store.append(checkpoint())
    before = tiny.results(store)
    kill_inside(store, "open")
    assert tiny.results(store) == before
    assert count(store, "cells") == 0
    assert store.append(checkpoint(epoch=2)) is True
    assert store.measured_epochs("cell") == {1, 2}


def test_what_a_killed_writer_committed_is_read_from_the_wal_it_left(store: Store) -> None:
    store.append(checkpoint())
    kill_inside(store, "left in the WAL")
    assert store.path.with_name(store.path.name + ".wal").exists()
    assert store.rows("SELECT cell_id FROM cells") == [{"cell_id": "kept"}]
    assert store.measured_epochs("cell") == {1}
    assert store.append(checkpoint(epoch=2)) is True
    assert store.rows("SELECT cell_id FROM cells") == [{"cell_id": "kept"}]


# --- time ----------------------------------------------------------------------------------------------


def test_the_order_of_attempts_and_studies_survives_a_clock_that_is_set_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [datetime(2030, 1, 1) - timedelta(days=day) for day in range(100)]
    monkeypatch.setattr(store_module, "utc_now", lambda: clock.pop(0))
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    cell = study.cells[0].cell
    for outcome in (Outcome.FAILED, Outcome.INTERRUPTED):
        store.end_attempt(store.start_attempt(cell.cell_id, tiny.HERE), outcome)
    assert store.cells(study.name)[0].outcome is Outcome.INTERRUPTED
    assert all(row["ended_at"] >= row["started_at"] for row in store.rows("SELECT * FROM attempts"))
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT, name="second"))
    assert [row.study for row in store.studies()] == ["second", study.name]


# --- what is no store, or cannot be used ---------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 1000)
    for refuses in (refuses_to_read, refuses_to_write):
        assert "not a DuckDB file" in refuses(path, StoreError)
    assert path.read_text() == "not a database\n" * 1000


def test_a_file_that_is_no_database_is_refused_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "blocks" / "unlocked.txt"  # both hold the word `lock`
    path.parent.mkdir()
    path.write_text("not a database\n" * 1000)
    for refuses in (refuses_to_read, refuses_to_write):
        assert "not a DuckDB file" in refuses(path, StoreError)


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE birds (name VARCHAR)")
    for refuses in (refuses_to_read, refuses_to_write):
        assert "not a diffmem store" in refuses(path, StoreError)
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("birds",)]


def test_a_store_of_a_newer_diffmem_is_refused(store: Store) -> None:
    with store.writing() as connection:
        connection.execute("INSERT INTO migrations VALUES (99, now()::TIMESTAMP)")
    for refuses in (refuses_to_read, refuses_to_write):
        said = refuses(store.path, StoreError)
        assert "newer diffmem" in said
        assert "99" in said
        assert "upgrade" in said


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    for refuses in (refuses_to_read, refuses_to_write):
        assert "name another store" in refuses(tmp_path, StoreError)


@pytest.mark.parametrize("below", ["store.duckdb", "folder/store.duckdb"])
def test_a_path_below_a_regular_file_is_refused(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("a regular file")
    assert "no store there yet" in refuses_to_read(file / below, StoreError)
    assert "name another store" in refuses_to_write(file / below, StoreError)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with tiny.forbidden(tmp_path):
        said = "cannot be written; check the permissions of the file and its folder, or name another store"
        assert refuses_to_write(tmp_path / "store.duckdb", StoreError) == said


def test_a_store_of_a_newer_duckdb_is_refused(store: Store) -> None:
    with store.writing():
        pass
    content = bytearray(store.path.read_bytes())
    content[8 + 4 : 8 + 12] = struct.pack("<Q", 10**6)  # the version of the format, after the checksum and `DUCK`
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", content[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 % 2**64
    content[:8] = struct.pack("<Q", checksum)
    store.path.write_bytes(content)
    said = "written by another version of DuckDB; install the one that constraints.txt names"
    assert refuses_to_read(store.path, StoreError) == said
    assert refuses_to_write(store.path, StoreError) == said


def test_too_little_memory_for_the_store_itself_is_called_that(store: Store) -> None:
    with pytest.raises(StoreUnavailable) as caught, store.reading(settings={"memory_limit": "20MB"}) as connection:
        connection.execute("FROM range(100000000) ORDER BY hash(range)")
    said = "out of memory; close other programs, or raise --memory if this is a query"
    assert sentence(caught.value, store.path, StoreUnavailable) == said


@pytest.fixture
def shell(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Open a store in another process and keep it open, as a notebook or a DuckDB shell would."""
    with store.writing():
        pass
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()"
    with tiny.started(script, store.path) as process:
        yield process


def test_what_is_measured_is_never_written_to_a_new_store_in_the_place_of_one_that_is_gone(store: Store) -> None:
    with store.writing(create=True):
        pass
    shutil.rmtree(store.path.parent)
    assert refuses_to_write(store.path, StoreUnavailable, create=False) == GONE
    with pytest.raises(StoreUnavailable) as caught:
        store.append(checkpoint())
    assert sentence(caught.value, store.path, StoreUnavailable) == GONE
    assert not store.path.parent.exists()


def test_a_store_that_another_program_holds_open_is_named_with_its_process(
    store: Store, shell: subprocess.Popen[str]
) -> None:
    for refuses in (refuses_to_read, refuses_to_write):
        assert refuses(store.path, StoreHeld) == f"process {shell.pid} holds the store open; {CLOSE_IT}"


def test_a_store_is_waited_for_and_used_once_it_is_free(store: Store, shell: subprocess.Popen[str]) -> None:
    shell.stdin.write("go\n")  # it closes at some moment while we wait
    shell.stdin.flush()
    assert store.append(checkpoint()) is True
    assert store.measured_epochs("cell") == {1}


def test_a_writer_waits_for_the_lock_file_and_a_reader_does_not(store: Store) -> None:
    store.append(checkpoint())
    with filelock.FileLock(f"{store.path}.lock"):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        assert refuses_to_write(store.path, StoreHeld) == f"{holder} holds the store open; {CLOSE_IT}"
        assert store.measured_epochs("cell") == {1}


# --- a full disk ---------------------------------------------------------------------------------------

FILLER = """
import dataclasses, resource, sys
from pathlib import Path
import numpy as np
import tiny
from diffmem.errors import StoreUnavailable
from diffmem.store import Store
if sys.argv[2] != "disk":  # no file may grow beyond so many bytes; Python ignores SIGXFSZ, so writing fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
store = Store(Path(sys.argv[1]))
try:
    with store.writing(create=True):
        pass
    for epoch in range(1, 200):
        point = tiny.checkpoint("cell", epoch, 0.5, samples=3000)
        noise = np.random.default_rng(epoch).random((2, 3000))  # does not compress
        store.append(dataclasses.replace(point, d1=noise[0], d2=noise[1]))
        print(epoch, flush=True)
except StoreUnavailable as error:
    print(error, file=sys.stderr)
"""


def check_filled(filled: subprocess.CompletedProcess[str], store: Store) -> None:
    """Check that a store was filled until it said that the disk is full, with all rows kept."""
    assert filled.returncode == 0, filled.stderr
    appended = len(filled.stdout.splitlines())
    assert appended > 0
    assert filled.stderr.replace(str(store.path), "FILE") == (
        "FILE: the disk is full; free some space and run the same command again, nothing measured is lost\n"
    )
    epochs = store.measured_epochs("cell")
    assert epochs >= {*range(1, appended + 1)}
    assert count(store, "evidence") == 3000 * len(epochs)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000_000, 3_500_000])
def test_a_store_that_may_not_grow_says_why_and_keeps_its_rows(store: Store, limit: int) -> None:
    filled = subprocess.run(
        [sys.executable, "-c", FILLER, str(store.path), str(limit)],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    check_filled(filled, store)
    assert store.append(checkpoint(epoch=1000)) is True


def can_mount() -> bool:
    """Tell whether a small file system of our own can be made, which no one else sees."""
    if shutil.which("unshare") is None:
        return False
    attempt = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_called_that_and_the_store_keeps_its_rows(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("needs to mount a small file system")
    (tmp_path / "disk").mkdir()
    script = """
        mount -t tmpfs -o size=3m none "$1/disk"
        "$2" -c "$3" "$1/disk/diffmem.duckdb" disk
        result=$?
        cp "$1"/disk/diffmem.duckdb* "$1"
        exit $result
    """
    filled = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FILLER],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    filled.stderr = filled.stderr.replace("/disk/", "/")  # the rows are looked for in the copy
    check_filled(filled, Store(tmp_path / "diffmem.duckdb"))


def test_a_store_whose_creation_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    (tmp_path / "store.duckdb.4194305.new").write_bytes(b"half a header")
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT))
    assert [row.study for row in store.studies()] == ["tiny"]
    assert not (tmp_path / "store.duckdb.4194305.new").exists()


def test_stores_in_one_folder_keep_their_states_apart(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one.duckdb"), Store(tmp_path / "two.duckdb")
    assert one.state_path("abc") != two.state_path("abc")


@pytest.mark.parametrize("other", ["a.b", "a.0123456789abcdef", "a*", "[a]"])
def test_states_of_a_store_whose_name_begins_with_anothers_are_not_that_ones(tmp_path: Path, other: str) -> None:
    cell_id, one, two = "fedcba9876543210", Store(tmp_path / "a.duckdb"), Store(tmp_path / f"{other}.duckdb")
    one.states.mkdir()
    two.state_path(cell_id).write_bytes(b"state")
    assert dict(one.state_files()) == {}
    assert dict(two.state_files()) == {cell_id: [two.state_path(cell_id)]}


def test_an_attempt_that_never_said_how_it_ended_is_closed_for_a_finished_cell(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    study = tiny.load(tmp_path, tiny.TEXT)
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.start_attempt(cell_id, tiny.HERE)
    tiny.measure(store, study.cells[0].cell, [0.5, 0.5, 0.5])
    close_attempts(store)
    (attempt,) = store.rows("SELECT outcome, ended_at FROM attempts")
    assert attempt["outcome"] == "finished"
    assert attempt["ended_at"] is not None
