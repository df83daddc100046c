"""Held-out images in the store: the null of all cells of a training set, merged and checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.analysis.curves import noted, study_cells, study_curves
from diffmem.measures import NEAREST, Evidence, MeasureEvidence
from diffmem.store.checking import faults
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study


def unseen(images: int, copies: int, same: int = 0) -> Evidence:
    """Return evidence of held-out images of which `copies` have d1 / d2 = 0.1 and the others 0.8; `same`: d1 = 0."""
    d1 = np.where(np.arange(images) < copies, 1.0, 8.0)
    d1[:same] = 0.0
    return Evidence(nearest=np.zeros(images, np.int64), d1=d1, d2=np.full(images, 10.0), memorized=max(copies, same))


def filled(path: Path, *nulls: Evidence) -> tuple[Study, Store]:
    """Return the tiny study, both cells of which are measured, with held-out images of their one training set."""
    path.mkdir(exist_ok=True)
    study, store = tiny.load(path, tiny.TEXT), Store(path / "store.duckdb")
    tiny.register(store, study)
    for entry in study.cells:
        tiny.measure(store, entry.cell, [0.2, 0.4, 0.5])
    for null in nulls:
        store.add_held_out(study.cells[0].cell.cell_id, null)
    return study, store


def test_a_cell_that_has_not_started_shows_no_null(tmp_path: Path) -> None:
    study, store = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "store.duckdb")
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.2])
    store.add_held_out(study.cells[0].cell.cell_id, unseen(200, 20))  # of both cells, which share a training set
    rows = json.loads(tiny.here("status", "tiny", "--store", store.path, "--json").stdout)
    assert [(row["null_ratio"], row["null_samples"], row["null_threshold"]) for row in rows] == [
        (0.1, 200, pytest.approx(0.1)),
        (None, 0, None),
    ]


def counts(store: Store) -> list[tuple[int, int, int]]:
    return [(each.position, each.copies, each.samples) for each in store.nulls("tiny", NEAREST, 1 / 3).values()]


def test_all_cells_of_a_training_set_have_its_null(tmp_path: Path) -> None:
    _, store = filled(tmp_path, unseen(200, 3))
    assert sorted(counts(store)) == [(0, 3, 200), (1, 3, 200)]
    points = [point for curve in study_curves(store, store.study("tiny")) for point in curve.points]
    assert [(point.null, point.null_samples) for point in points] == [(3 / 200, 200)] * 2


@pytest.mark.parametrize("order", [(50, 200), (200, 50)])
def test_more_held_out_images_win_in_whatever_order_they_come(tmp_path: Path, order: tuple[int, int]) -> None:
    _, store = filled(tmp_path, *(unseen(images, 2) for images in order))
    assert {samples for *_, samples in counts(store)} == {200}


@pytest.mark.parametrize("order", [(50, 200), (200, 50)])
def test_merging_takes_the_larger_null(tmp_path: Path, order: tuple[int, int]) -> None:
    (_, into), (_, other) = (filled(tmp_path / str(n), unseen(n, 2)) for n in order)
    merge(into, other.path)
    assert {samples for *_, samples in counts(into)} == {200}
    assert len(into.rows("FROM held_out")) == 200
    assert faults(into) == []


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("UPDATE held_out SET distance = 'nan' WHERE sample = 1", "SET: impossible evidence of held-out images"),
        ("UPDATE held_out SET nearest = -1 WHERE sample = 1", "SET: impossible evidence of held-out images"),
        (
            "UPDATE held_out SET sample = 0 WHERE sample = 1",
            "training set SET, nearest: 1 held-out images that are there already",
        ),
    ],
)
def test_a_check_finds_damaged_held_out_evidence(tmp_path: Path, sql: str, sentence: str) -> None:
    _, store = filled(tmp_path, unseen(20, 1))
    (row,) = store.rows("SELECT DISTINCT training_set FROM held_out")
    assert faults(store) == []
    with store.writing() as connection:
        connection.execute(sql)
    assert sentence in [said.replace(str(row["training_set"]), "SET") for said in faults(store)]


def test_too_few_held_out_images_are_told(tmp_path: Path) -> None:
    _, store = filled(tmp_path, unseen(99, 1))
    cells, _ = study_cells(store, store.study("tiny"))
    assert noted([], cells) == ["99 held-out images at most in 2 cells: too few to tell a false-positive rate of 1%"]


def test_held_out_images_that_were_trained_on_are_told(tmp_path: Path) -> None:
    _, store = filled(tmp_path, unseen(200, 5, same=3))
    cells, _ = study_cells(store, store.study("tiny"))
    assert noted([], cells) == [
        "3 of 200 held-out images are also in the training set (most of 2 cells): the null is not of new images alone"
    ]
    assert noted([], study_cells(filled(tmp_path / "none")[1], store.study("tiny"))[0]) == []


CALIBRATED = MeasureEvidence(np.zeros(100, np.int64), np.ones(100), np.ones(100), 0)


def test_all_measures_of_a_training_set_have_the_null_of_the_same_images_also_after_merging(tmp_path: Path) -> None:
    """Equally many other held-out images, of which only one store has another measure."""
    _, into = filled(tmp_path / "one", unseen(100, 3))
    _, same = filled(tmp_path / "same", replace(unseen(100, 3), others={"calibrated": CALIBRATED}))
    _, other = filled(tmp_path / "other", replace(unseen(100, 9), others={"calibrated": CALIBRATED}))
    merge(into, other.path)
    assert [row["measure"] for row in into.rows("SELECT DISTINCT measure FROM held_out")] == ["nearest"]
    assert {copies for _, copies, _ in counts(into)} == {3}
    merge(into, same.path)
    assert len(into.rows("SELECT DISTINCT measure FROM held_out")) == 2


def test_the_newest_held_out_images_replace_others_and_not_the_same_ones_rounded_otherwise(tmp_path: Path) -> None:
    study, store = filled(tmp_path, unseen(100, 3))
    cell_id = study.cells[0].cell.cell_id
    store.add_held_out(cell_id, replace(unseen(100, 3), others={"calibrated": CALIBRATED}), newest=True)
    rounded = unseen(100, 3)
    store.add_held_out(cell_id, replace(rounded, d1=np.nextafter(rounded.d1, 9)), newest=True)
    assert store.held_out_counts(cell_id) == {"nearest": 100, "calibrated": 100}
    store.add_held_out(cell_id, unseen(50, 9), newest=True)
    assert store.held_out_counts(cell_id) == {"nearest": 50}
    assert {copies for _, copies, _ in counts(store)} == {9}
