"""The null of a run: the images that a training set leaves, compared with it once."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from scipy.spatial.distance import cdist

from diffmem.analysis.curves import study_cells, study_curves
from diffmem.data.training_sets import held_out, load_source, training_set
from diffmem.measures import NEAREST, Comparison
from diffmem.measures.calibrated import CALIBRATED
from diffmem.models import ALONE
from diffmem.runs import nulls
from diffmem.runs.measuring import measure_study
from diffmem.runs.nulls import NullMeasured, measure_null
from diffmem.runs.runner import run_study
from diffmem.store.store import Store
from diffmem.study.study import Study

OPTIMUM = """
title = "Optimum"

[P]
dataset = "digits"
size = 8

[M]
network = "optimum"
precondition = "edm"

[score]
samples = 20
steps = 3
"""
SEVERAL = (
    OPTIMUM.replace("size = 8\n", "")
    + """
[[axes]]
P.size = [8, 12]

[[axes]]
M.condition = ["none", "unique"]
"""
)


def run(folder: Path, *overrides: str, text: str = OPTIMUM) -> tuple[Study, Store]:
    study, store = Study.load(tiny.write(folder, text), overrides=overrides), Store(folder / "s.duckdb")
    list(run_study(study, store))
    return study, store


def by_brute_force(cell) -> tuple[np.ndarray, np.ndarray]:
    """Return d1 and d2 of all held-out images of a cell, in float64."""
    unseen, seen = held_out(cell, 10_000), training_set(cell).images
    distances = np.sort(cdist(unseen.reshape(len(unseen), -1), seen.reshape(len(seen), -1)), axis=1)
    return distances[:, 0], distances[:, 1]


def test_the_null_of_a_run_is_the_share_of_held_out_images_by_brute_force(tmp_path: Path) -> None:
    study, store = run(tmp_path)
    d1, d2 = by_brute_force(study.cells[0].cell)
    (null,) = store.nulls("tiny", NEAREST, 1 / 3).values()
    assert (null.samples, null.copies) == (1740, np.count_nonzero(d1 < d2 / 3))
    (loose,) = store.nulls("tiny", NEAREST, 0.9).values()
    assert loose.copies == np.count_nonzero(d1 < 0.9 * d2) > 100
    assert loose.ratio == loose.copies / loose.samples


def test_a_number_of_held_out_images_can_be_asked_for(tmp_path: Path) -> None:
    _, store = run(tmp_path, "score.held_out=50")
    assert [each.samples for each in store.nulls("tiny", NEAREST, 1 / 3).values()] == [50]


def test_without_held_out_images_there_is_no_null(tmp_path: Path) -> None:
    _, store = run(tmp_path, "score.held_out=0")
    assert store.nulls("tiny", NEAREST, 1 / 3) == {}
    (cell,), _ = study_cells(store, store.study("tiny"))
    assert (cell.null, cell.p_value) == (None, None)
    assert [point.null for point in study_curves(store, store.study("tiny"))[0].points] == [None]


def test_cells_of_one_training_set_share_its_null_and_it_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(
        nulls, "Comparison", lambda images, **more: sizes.append(len(images)) or Comparison(images, **more)
    )
    _, store = run(tmp_path, text=SEVERAL)
    assert sorted(sizes) == [8, 12]
    found = store.nulls("tiny", NEAREST, 1 / 3)
    assert {position: null.samples for position, null in found.items()} == {0: 1740, 1: 1740, 2: 1730, 3: 1730}
    assert store.rows("SELECT count(*) AS rows FROM held_out") == [{"rows": 1740 + 1730}]


def test_the_number_of_held_out_images_is_no_part_of_a_cell(tmp_path: Path) -> None:
    study, other = (
        Study.load(tiny.write(tmp_path, OPTIMUM), overrides=overrides) for overrides in ([], ["score.held_out=3"])
    )
    assert [entry.cell.cell_id for entry in study.cells] == [entry.cell.cell_id for entry in other.cells]


def test_more_held_out_images_take_the_place_of_fewer_and_fewer_of_none(tmp_path: Path) -> None:
    _, store = run(tmp_path, "score.held_out=50")
    few = Study.load(tiny.write(tmp_path, OPTIMUM), overrides=["score.held_out=20"])
    assert list(measure_study(few, store)) == []
    more = Study.load(tiny.write(tmp_path, OPTIMUM), overrides=["score.held_out=70"])
    (found,) = measure_study(more, store)
    assert found == NullMeasured(more.cells[0].cell.cell_id, more.cells[0].name, 70)
    assert [each.samples for each in store.nulls("tiny", NEAREST, 1 / 3).values()] == [70]
    assert list(measure_study(more, store)) == []


def test_a_store_without_nulls_gets_them_later_without_a_model(tmp_path: Path) -> None:
    study, store = run(tmp_path)
    expected = store.rows("FROM held_out ORDER BY ALL")
    with store.writing() as connection:
        connection.execute("DELETE FROM held_out")
    (found,) = measure_study(study, store)
    assert found.images == 1740
    assert store.rows("FROM held_out ORDER BY ALL") == expected
    assert (
        "held-out images compared with 0 training sets"
        in tiny.here("measure", tmp_path / "tiny.toml", "--store", store.path).stdout
    )
    with store.writing() as connection:
        connection.execute("DELETE FROM held_out")
    said = tiny.here("measure", tmp_path / "tiny.toml", "--store", store.path, "--json")
    assert [each["images"] for each in json.loads(said.stdout)["held_out"]] == [1740]


def test_another_measure_has_a_null_of_its_own(tmp_path: Path) -> None:
    study, store = run(tmp_path, "score.measures=['calibrated']")
    (null,) = store.nulls("tiny", CALIBRATED, 1.0).values()
    d1, _ = by_brute_force(study.cells[0].cell)
    unseen, seen = held_out(study.cells[0].cell, 10_000), training_set(study.cells[0].cell).images
    mean = cdist(unseen.reshape(len(unseen), -1), seen.reshape(len(seen), -1)).mean(axis=1)  # all 8: fewer than 50
    assert null.copies == np.count_nonzero(d1 < 0.5 * mean)


def test_no_null_is_measured_where_the_training_set_leaves_nothing(tmp_path: Path) -> None:
    text = OPTIMUM.replace("size = 8", "size = 1797\nbalance = false")
    study, store = run(tmp_path, text=text)
    assert store.nulls("tiny", NEAREST, 1 / 3) == {}
    images = torch.from_numpy(training_set(study.cells[0].cell).images)
    assert measure_null(study.cells[0].cell, store, lambda: images, ALONE) == 0


def test_the_p_value_is_fisher_s(tmp_path: Path) -> None:
    _, store = run(tmp_path)
    (cell,), _ = study_cells(store, store.study("tiny"))
    assert cell.null is not None
    memorized = round(cell.best * cell.samples)
    table = [[memorized, cell.samples - memorized], [cell.null.copies, cell.null.samples - cell.null.copies]]
    assert cell.p_value == pytest.approx(scipy.stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
    assert cell.p_value < 1e-20


def test_every_ratio_stands_beside_its_null(tmp_path: Path) -> None:
    _, store = run(tmp_path, text=SEVERAL)
    emm = json.loads(tiny.here("emm", "tiny", "--store", store.path, "--json").stdout)
    assert [curve["null_samples"] for curve in emm["curves"]] == [{"8": 1740, "12": 1730}] * 2
    nulls_of = store.nulls("tiny", NEAREST, 1 / 3)
    assert [curve["null_ratios"]["8"] for curve in emm["curves"]] == [nulls_of[0].ratio] * 2
    assert all(p < 1e-20 for curve in emm["curves"] for p in curve["p_values"].values())
    assert "null" in tiny.here("emm", "tiny", "--store", store.path).stdout
    status = json.loads(tiny.here("status", "tiny", "--store", store.path, "--json").stdout)
    assert [(row["null_ratio"], row["null_samples"]) for row in status] == [
        (null.ratio, null.samples) for _, null in sorted(nulls_of.items())
    ]
    tiny.here("export", "checkpoints", "-o", tmp_path / "c.json", "--store", store.path)
    exported = json.loads((tmp_path / "c.json").read_text())
    assert {(row["size"], row["null_samples"]) for row in exported} == {(8, 1740), (12, 1730)}
    tiny.here("export", "emm", "-o", tmp_path / "e.json", "--store", store.path)
    assert {row["null_samples"] for row in json.loads((tmp_path / "e.json").read_text())} == {1740 + 1730}


def test_held_out_images_are_the_other_end_of_the_draw_balanced_and_shared_by_sizes(tmp_path: Path) -> None:
    cells = {entry.cell.P.size: entry.cell for entry in Study.load(tiny.write(tmp_path, SEVERAL)).cells}
    assert load_source("digits", None).images.shape[0] == 1797
    at_8, at_12 = held_out(cells[8], 300), held_out(cells[12], 300)
    np.testing.assert_array_equal(at_8, at_12)
    for cell, unseen in ((cells[8], held_out(cells[8], 10_000)), (cells[12], held_out(cells[12], 10_000))):
        seen = training_set(cell).images
        everything = np.concatenate([seen, unseen]).reshape(-1, 64)
        assert len(np.unique(everything, axis=0)) == len(everything)  # no two digits are equal
