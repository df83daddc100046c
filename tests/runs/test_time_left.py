"""The time that is left of a study, and how little of the store tells it."""

import tracemalloc
from dataclasses import asdict, fields

import pytest
import tiny

from diffmem.analysis.curves import measured_cells
from diffmem.runs import time_left
from diffmem.runs.time_left import seconds_left
from diffmem.store.rows import CellProgress
from diffmem.store.store import Store
from diffmem.study.study import Study


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store.duckdb")


def registered(store: Store, seeds: int) -> Study:
    """Return a study of three sizes and some seeds, registered in the store."""
    axes = f"[[axes]]\nP.size = [8, 16, 32]\n[[axes]]\nT.seed = {list(range(seeds))}\n"
    study = tiny.load(store.path.parent, tiny.TEXT.replace("[[axes]]\nM.dropout = [0.0, 0.2]\n", axes))
    tiny.register(store, study)
    return study


def test_cells_that_cost_the_same_and_are_equally_far_are_counted_once(store, monkeypatch):
    study = registered(store, 20)
    tiny.measure(store, study.cells[0].cell, [0.5])
    tiny.measure(store, study.cells[1].cell, [0.5])
    counted = []
    count = time_left.stored_cell
    monkeypatch.setattr(time_left, "stored_cell", lambda settings: counted.append(settings) or count(settings))
    left = seconds_left(store, study.name)
    assert len(left) == 60
    assert len(counted) == 4


def test_each_cell_needs_the_time_of_its_own_cost(store):
    study = registered(store, 2)
    measured, waiting, twice, *_ = (entry.cell for entry in study.cells)
    tiny.measure(store, measured, [0.5])
    left = seconds_left(store, study.name)
    whole = 30 * 1.5 / 12 + 3 * 0.5  # training by its steps, a checkpoint's scoring for each of three
    assert left[waiting.cell_id] == pytest.approx(whole)
    assert left[measured.cell_id] == pytest.approx(whole - 2)
    assert left[twice.cell_id] == pytest.approx(2 * 30 * 1.5 / 12 + 3 * 0.5, rel=0.01)


def test_how_far_cells_are_is_read_without_their_configurations(store):
    study = registered(store, 2)
    cells, progress = store.cells(study.name), store.progress(study.name)
    names = [field.name for field in fields(CellProgress)]
    assert [asdict(row) for row in progress] == [{name: getattr(cell, name) for name in names} for cell in cells]
    assert [row.size for row in progress] == [entry.cell.P.size for entry in study.cells]
    assert {type(row) for row in progress} == {CellProgress}
    assert "configuration" not in names


def test_each_further_cell_of_a_status_takes_less_than_4000_bytes(store):
    peaks = []
    for seeds in (300, 700):
        study = registered(store, seeds)
        (row,) = store.studies()
        tracemalloc.start()
        measured_cells(store, row)
        seconds_left(store, study.name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1200 < 4000
