"""Measures beside the paper's: their evidence, ratios and intervals in the store, merged and checked."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.analysis.curves import study_curves
from diffmem.errors import DataError, StoreError
from diffmem.measures import NEAREST, MeasureEvidence, wilson
from diffmem.measures.calibrated import CALIBRATED
from diffmem.store.checking import faults
from diffmem.store.looking import describe_cell
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


@pytest.fixture
def study(store: Store) -> Study:
    """Register the tiny study, of whose first cell two checkpoints are scored by calibrated l2 too, 0.4 and 0.8."""
    study = tiny.load(store.path.parent, tiny.TEXT)
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    for epoch, ratio, extracted in ((12, 0.1, 0.4), (24, 0.2, 0.8)):
        store.append(tiny.calibrated(tiny.checkpoint(cell_id, epoch, ratio), extracted))
    store.append(tiny.checkpoint(cell_id, 30, 0.3))
    return study


def ratios(store: Store, threshold: float) -> dict[int, float]:
    return {point.epoch: point.ratio for point in store.curve_points("tiny", CALIBRATED, threshold)}


def change(store: Store, sql: str) -> None:
    with store.writing() as connection:
        connection.execute(sql)


# --- intervals -----------------------------------------------------------------------------------------


def test_the_intervals_of_the_view_are_wilson_s(store: Store) -> None:
    counts = [(n, k) for n in (1, 2, 3, 10, 999) for k in {0, 1, n // 3, n - 1, n}]
    counts += [(n, k) for n in (20, 10_000, 2_000_000_000) for k in (0, 1, n // 7, n // 2, n - 1, n)]
    with store.writing(create=True) as connection:
        for epoch, (n, k) in enumerate(counts):
            row = ["cell", epoch, epoch, n, k, k / n, None, 1.0, 1.0, "by hand"]
            connection.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, now()::TIMESTAMP)", row)
    rows = store.rows("SELECT measure, value, low, high, n FROM measured ORDER BY epoch")
    assert [(row["measure"], row["value"], row["n"]) for row in rows] == [("nearest", k / n, n) for n, k in counts]
    n, k = np.array(counts).T
    np.testing.assert_allclose([(row["low"], row["high"]) for row in rows], wilson(k / n, n), rtol=1e-9, atol=1e-15)
    assert all(row["low"] == 0 for row, (_, k) in zip(rows, counts, strict=True) if k == 0)
    assert all(row["high"] == 1 for row, (n, k) in zip(rows, counts, strict=True) if k == n)
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_another_measure_has_its_wilson_interval(store: Store, ratio: float) -> None:
    study = tiny.load(store.path.parent, tiny.TEXT)
    tiny.register(store, study)
    store.append(tiny.calibrated(tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.5), ratio))
    (row,) = store.rows("SELECT value, low, high, n FROM measured WHERE measure = 'calibrated'")
    assert [row["low"], row["high"]] == wilson(ratio, 20).tolist()
    assert (row["value"], row["n"]) == (ratio, 20)
    assert faults(store) == []


# --- ratios --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("study")
def test_ratios_by_a_measure_are_those_at_its_threshold_and_from_the_evidence_at_another(store: Store) -> None:
    assert ratios(store, CALIBRATED.threshold) == {12: 0.4, 24: 0.8}  # the last checkpoint has none
    assert ratios(store, 1.5) == {12: 0.7, 24: 0.9}  # and half of the others, at 1.2
    assert ratios(store, 1.2) == {12: 0.4, 24: 0.8}  # at the threshold itself is none
    assert ratios(store, 0.5) == {12: 0.0, 24: 0.0}
    nearest = store.curve_points("tiny", NEAREST, NEAREST.threshold)
    assert {point.epoch: point.ratio for point in nearest} == {12: 0.1, 24: 0.2, 30: 0.3}
    assert store.measures_of("tiny") == {"nearest", "calibrated"}


def test_everything_behind_a_ratio_is_that_of_its_measure(store: Store, study: Study) -> None:
    cell_id = study.cells[0].cell.cell_id
    pair = [(tiny.png(1), tiny.png(2))]
    store.append(tiny.calibrated(tiny.checkpoint(study.cells[1].cell.cell_id, 30, 0.1, pairs=pair), 0.6))
    (row,) = store.pairs("tiny", CALIBRATED)
    assert (row.number, row.distance, row.yardstick) == (1, 5.0, 10.0)
    assert row.pictured == 0  # the pictures are of the nearest ones in pixels
    copied = [(row.nearest, row.copies) for row in store.copies("tiny", CALIBRATED, CALIBRATED.threshold)]
    assert sorted(copied) == [(0, 1), *((image, 2) for image in range(1, 5)), (5, 1), (6, 1), (7, 1)]
    reached = store.reached(CALIBRATED, CALIBRATED.threshold)
    assert (reached[cell_id].best, reached[cell_id].samples) == (0.8, 20)
    levels = [row for row in store.distance_counts("tiny", CALIBRATED) if (row.position, row.epoch) == (0, 12)]
    # k / 120 of a largest of 2: 0.5 is level 30 and counts from 31 on, 1.2 is 72 and 1.8 is 108
    assert [(row.level, row.images) for row in levels] == [(31, 8), (73, 6), (109, 6)]
    counts = store.sample_counts("tiny", CALIBRATED, CALIBRATED.threshold)
    assert {(row.position, row.images, row.first) for row in counts} == {(1, 10, 1.0), (1, 20, 0.6)}


@pytest.mark.usefixtures("study")
def test_curves_by_another_measure_are_asked_for_by_its_name(store: Store) -> None:
    (first, _) = study_curves(store, "tiny", measure="calibrated")
    assert [(point.best, point.last) for point in first.points] == [(0.8, 0.8)]
    (first, _) = study_curves(store, "tiny")
    assert [(point.best, point.last) for point in first.points] == [(0.3, 0.3)]
    with pytest.raises(DataError, match=r"^no measure 'calibrate'; there are nearest, calibrated, grouped, "):
        study_curves(store, "tiny", measure="calibrate")


def test_a_measure_that_nothing_is_scored_by_is_refused_with_the_command_that_computes_it(
    store: Store, study: Study
) -> None:
    change(store, "DELETE FROM measurements")
    with pytest.raises(StoreError) as caught:
        study_curves(store, "tiny", measure="calibrated")
    assert str(caught.value) == (
        f"tiny: nothing is scored by the measure calibrated; `diffmem measure {study.path} --measure calibrated` does "
        "it, from trained models that are kept"
    )
    change(store, "DELETE FROM checkpoints")
    assert [curve.points for curve in study_curves(store, "tiny", measure="calibrated")] == [[], []]


@pytest.mark.usefixtures("study")
def test_a_study_by_a_measure_that_this_diffmem_does_not_know_is_refused_in_a_sentence(store: Store) -> None:
    change(store, """UPDATE studies SET estimation = '{"epsilon": 0.1, "threshold": 1, "measure": "nova"}'""")
    with pytest.raises(StoreError) as caught:
        study_curves(store, "tiny")
    assert str(caught.value) == "the study tiny is by the measure 'nova', which this diffmem does not know"


# --- appended, and added later -------------------------------------------------------------------------


def extracted(copies: int = 3) -> MeasureEvidence:
    share = np.repeat([0.5, 1.5], [copies, 20 - copies])
    return MeasureEvidence(np.arange(20) % 8, share * 7.0, np.full(20, 7.0), copies)


def test_evidence_comes_back_as_it_was_measured(store: Store, study: Study) -> None:
    cell_id = study.cells[0].cell.cell_id
    wanted = tiny.calibrated(tiny.checkpoint(cell_id, 12, 0.1), 0.4).others["calibrated"]
    sql = "FROM measure_evidence WHERE cell_id = ? AND epoch = 12 ORDER BY sample"
    rows = store.rows(sql, [cell_id])
    assert [row["sample"] for row in rows] == [*range(20)]
    for key in ("nearest", "distance", "yardstick"):
        assert [row[key] for row in rows] == getattr(wanted, key).tolist()
    shown = describe_cell(store, cell_id).measurements
    assert [(row.epoch, row.measure, row.value, row.n) for row in shown] == [
        (12, "calibrated", 0.4, 20),
        (24, "calibrated", 0.8, 20),
    ]


def test_a_measure_that_is_added_later_is_there_once(store: Store, study: Study) -> None:
    cell_id = study.cells[0].cell.cell_id
    assert store.add_measure(cell_id, 30, "calibrated", extracted()) is True
    assert store.add_measure(cell_id, 30, "calibrated", extracted(5)) is False
    assert ratios(store, CALIBRATED.threshold) == {12: 0.4, 24: 0.8, 30: 0.15}
    assert store.rows("SELECT count(*) AS n FROM measure_evidence WHERE epoch = 30") == [{"n": 20}]
    assert faults(store) == []


def test_a_checkpoint_with_evidence_that_cannot_be_written_is_not_there_at_all(store: Store, study: Study) -> None:
    cell_id = study.cells[1].cell.cell_id
    wrong = dataclasses.replace(extracted(), distance=np.array(["near"] * 20))
    with pytest.raises(StoreError):
        store.append(dataclasses.replace(tiny.checkpoint(cell_id, 12, 0.5), others={"calibrated": wrong}))
    assert store.measured_epochs(cell_id) == set()
    assert store.rows("FROM measurements WHERE cell_id = ?", [cell_id]) == []


# --- checked -------------------------------------------------------------------------------------------

DAMAGES = {
    "UPDATE measurements SET value = 0.45, high = 0.9 WHERE epoch = 12": (
        "CELL at checkpoint 12, calibrated: 0.45, but 0.4 by the evidence"
    ),
    "UPDATE measure_evidence SET distance = 0 WHERE epoch = 12 AND sample = 19": (
        "CELL at checkpoint 12, calibrated: 0.4, but 0.45 by the evidence"
    ),
    "DELETE FROM measure_evidence WHERE epoch = 12 AND sample = 19": (
        "CELL at checkpoint 12, calibrated: 20 images measured, but 19 rows of evidence"
    ),
    "DELETE FROM measure_evidence WHERE epoch = 24": (
        "CELL at checkpoint 24, calibrated: 20 images measured, but 0 rows of evidence"
    ),
    "UPDATE measure_evidence SET sample = 0 WHERE epoch = 12 AND sample = 1": (
        "CELL at checkpoint 12, calibrated: 1 rows of evidence for an image that has one already"
    ),
    "DELETE FROM measurements WHERE epoch = 12": "CELL at checkpoint 12, calibrated: evidence without its measurement",
    "DELETE FROM checkpoints WHERE epoch = 24; DELETE FROM evidence WHERE epoch = 24": (
        "CELL at checkpoint 24: measurements without their checkpoint"
    ),
    "UPDATE measurements SET low = 0.5 WHERE epoch = 12": (
        "CELL: a measurement is no share of images within its interval"
    ),
    "UPDATE measure_evidence SET yardstick = 'nan' WHERE epoch = 12 AND sample = 19": (
        "CELL: impossible evidence of a measure"
    ),
    "UPDATE measure_evidence SET nearest = -1 WHERE epoch = 12 AND sample = 19": (
        "CELL: impossible evidence of a measure"
    ),
}


@pytest.mark.parametrize(("sql", "sentence"), DAMAGES.items(), ids=lambda text: text[:60])
def test_a_check_finds_what_does_not_agree(store: Store, study: Study, sql: str, sentence: str) -> None:
    assert faults(store) == []
    change(store, sql)
    found = [said.replace(study.cells[0].cell.cell_id, "CELL") for said in faults(store)]
    assert sentence in found


# --- merged --------------------------------------------------------------------------------------------


def content(store: Store) -> list[list[dict]]:
    return [
        store.rows(f"FROM {table} ORDER BY ALL")
        for table in ("measurements", "measure_evidence", "checkpoints", "evidence")
    ]


@pytest.mark.usefixtures("study")
def test_merging_takes_measures_over_with_their_evidence(store: Store, tmp_path: Path) -> None:
    into = Store(tmp_path / "into.duckdb")
    assert merge(into, store.path) == 3
    assert content(into) == content(store)
    merge(into, store.path)
    assert content(into) == content(store)
    assert faults(into) == []


def test_a_measure_that_one_of_two_stores_has_of_a_checkpoint_is_there_after_merging_in_any_order(
    store: Store, study: Study, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = store.copy_to(tmp_path / "other")
    store.add_measure(study.cells[0].cell.cell_id, 30, "calibrated", extracted())
    change(other, "DELETE FROM measurements WHERE epoch = 24; DELETE FROM measure_evidence WHERE epoch = 24")
    merged = [Store(tmp_path / name) for name in ("one.duckdb", "two.duckdb")]
    for into, order in zip(merged, ((store, other), (other, store)), strict=True):
        for each in order:
            merge(into, each.path)
        assert ratios(into, CALIBRATED.threshold) == {12: 0.4, 24: 0.8, 30: 0.15}
        assert faults(into) == []
    assert content(merged[0]) == content(merged[1])


@pytest.mark.usefixtures("study")
def test_stores_that_measure_otherwise_do_not_merge(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = store.copy_to(tmp_path / "other")
    change(other, "UPDATE measurements SET value = 0.45 WHERE epoch = 12")
    change(other, "UPDATE measure_evidence SET distance = 0 WHERE epoch = 12 AND sample = 19")
    before = content(store)
    with pytest.raises(StoreError, match=r"measured otherwise .* at checkpoint 12; merge only one of the two"):
        merge(store, other.path)
    assert content(store) == before


@pytest.mark.usefixtures("study")
def test_checkpoints_that_a_measure_has_not_scored_are_counted_beside_its_curve(store: Store) -> None:
    (curve, *_) = study_curves(store, "tiny", measure="calibrated")
    assert (
        "1 of 3 checkpoints are not scored by this measure; `diffmem measure` scores those whose model is kept "
        "(score.keep)" in curve.caveat
    )
    (curve, *_) = study_curves(store, "tiny")
    assert "scored" not in curve.caveat


def test_evidence_of_a_measure_that_differs_between_stores_is_a_conflict(tmp_path: Path, study: Study) -> None:
    stores = []
    for name, factor in (("one", 1.0), ("two", 1.01)):
        made = Store(tmp_path / name / "s.duckdb")
        tiny.register(made, study)
        point = tiny.calibrated(tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.1), 0.4)
        found = point.others["calibrated"]
        others = {"calibrated": dataclasses.replace(found, distance=found.distance * factor)}
        made.append(dataclasses.replace(point, others=others))
        stores.append(made)
    with pytest.raises(StoreError, match="measured otherwise"):
        merge(stores[0], stores[1].path)


@pytest.mark.parametrize(
    ("estimation", "fault"),
    [
        ('{"epsilon": 0.1, "threshold": 0.5, "measure": []}', "its measure is no text"),
        ('{"epsilon": 0.1, "threshold": 1.5}', "its threshold is more than its measure can be"),
    ],
)
def test_a_study_by_no_measure_or_an_impossible_threshold_is_refused(
    store: Store, study: Study, estimation: str, fault: str
) -> None:
    change(store, f"UPDATE studies SET estimation = '{estimation}'")
    with pytest.raises(StoreError) as refused:
        Store(store.path).studies()
    assert str(refused.value) == f"{store.path}: {study.name}: {fault}; `diffmem store check` lists what else is wrong"


def test_channels_that_an_older_store_lacks_come_with_the_next_run(store: Store, study: Study) -> None:
    change(store, 'UPDATE cells SET configuration = json_merge_patch(configuration, \'{"P": {"channels": null}}\')')
    assert "channels" not in store.cells("tiny")[0].configuration["P"]
    tiny.register(store, study)
    assert store.cells("tiny")[0].configuration["P"]["channels"] == 1
