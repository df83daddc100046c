"""The command that counts the training images that are copied, and its export."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.analysis.copied import copied_images
from diffmem.measures import Evidence
from diffmem.store import TrainingImages
from diffmem.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store with one checkpoint of 20 images, 11 of them copies of 8 training images, three of these twice."""
    study, store = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "store.duckdb")
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.append(tiny.checkpoint(cell_id, 12, 0.55))
    store.add_training_images(
        cell_id, TrainingImages(np.arange(8), list("abcdefgh"), np.array([2, 2, *[1] * 6]), np.arange(8.0))
    )
    return store


def hold_out(store: Store, images: int, copies: int) -> None:
    """Add held-out images, of which as many are copies, each of another training image."""
    d1 = np.where(np.arange(images) < copies, 1.0, 9.0)
    (cell, *_) = store.progress("tiny")
    store.add_held_out(
        cell.cell_id, Evidence(nearest=np.arange(images) % 8, d1=d1, d2=np.full(images, 10.0), memorized=copies)
    )


def said(store: Store, *arguments: str) -> str:
    result = tiny.here("extraction", "tiny", "--store", store.path, *arguments, COLUMNS="200")
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_a_cell_is_a_row_of_what_it_copies(store: Store) -> None:
    hold_out(store, 40, 2)
    title, head, _, row, *more = said(store).splitlines()
    assert title == "tiny: memorized images"
    assert head.split()[:5] == ["cell_id", "cell", "N", "images", "extracted"]
    (found,) = copied_images(store, store.study("tiny"))
    assert row.split()[4:9] == ["8", "20", "8", f"{found.by_images[-1].low:.0f}", "to"]
    assert row.split()[10:] == ["1.000", "1.0", "3", "0", "0.182", f"{found.concentration.even:.3f}"]
    assert more == ["2 of 2 training images that have a group are copied"]


def test_fewer_held_out_images_than_generated_ones_are_told(store: Store) -> None:
    hold_out(store, 12, 1)
    assert said(store).splitlines()[-2] == (
        "1 of 1 cells have fewer held-out images than generated ones, at most 12: their null is of so many"
    )


def test_the_counts_are_printed_as_data(store: Store) -> None:
    data = json.loads(said(store, "--json"))
    assert (data["study"], data["measure"], data["threshold"]) == ("tiny", "nearest", 1 / 3)
    (cell,) = data["cells"]
    assert (cell["extracted"], cell["samples"], cell["null"]) == (8, 20, None)
    assert cell["frequencies"] == {"1": 5, "2": 3}
    assert [each["images"] for each in cell["by_images"]] == [10, 20]
    assert [(each["times"], each["images"]) for each in cell["eidetic"]] == [(1, 8), (2, 3)]


def test_a_measure_that_has_scored_nothing_is_refused(store: Store) -> None:
    refused = tiny.here("extraction", "tiny", "--store", store.path, "--measure", "calibrated")
    assert refused.returncode != 0
    assert "tiny: nothing is scored by the measure calibrated" in refused.stderr


def test_a_name_that_is_no_measure_of_the_store_is_refused(store: Store) -> None:
    refused = tiny.here("extraction", "tiny", "--store", store.path, "--measure", "calibratd")
    assert refused.returncode == 2
    assert "Invalid value for '--measure': 'calibratd' is not one of 'nearest', 'calibrated'" in refused.stderr


def test_a_study_without_a_checkpoint_has_no_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    tiny.register(store, tiny.load(tmp_path, tiny.TEXT))
    title, head, *_ = said(store).splitlines()
    assert (title, head.split()) == ("tiny: memorized images", ["cell_id", "N", "extracted"])


def test_the_counts_are_exported(store: Store) -> None:
    hold_out(store, 40, 2)
    text = tiny.here("export", "extraction", "--study", "tiny", "--store", store.path).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    (cell,) = copied_images(store, store.study("tiny"))
    assert [row["against"] for row in rows] == ["threshold"] * 24 + ["images"] * 2 + ["times"] * 2
    assert [float(row["extracted"]) for row in rows[:24]] == [each.extracted for each in cell.by_threshold]
    assert [float(row["null_extracted"]) for row in rows[24:26]] == [each.null for each in cell.by_images]
    assert [(row["times"], row["extracted"]) for row in rows[26:]] == [("1", "8.0"), ("2", "3.0")]
    assert {(row["cell_id"], row["measure"], row["size"]) for row in rows} == {(cell.cell_id, "nearest", "8")}
