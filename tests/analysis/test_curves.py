"""From the store's rows to curves: best and last checkpoints, means over replicates, and what splits a curve."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from diffmem.analysis.curves import Curve, study_cells, study_curves
from diffmem.store.attempts import state_of
from diffmem.store.given import Provenance
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

SIZES = """
[[axes]]
P.size = [8, 16, 32]
"""
AXES = "\n[[axes]]\nM.dropout = [0.0, 0.2]\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def registered(store: Store, axes: str, more: str = "") -> Study:
    """Return the tiny study with other axes, registered in the store."""
    assert AXES in tiny.TEXT
    study = tiny.load(store.path.parent, tiny.TEXT.replace(AXES, axes) + more)
    tiny.register(store, study)
    return study


def curves(store: Store) -> list[Curve]:
    (row,) = store.studies()
    return study_curves(store, row)


def measure(store: Store, study: Study, *ratios: list[float]) -> None:
    """Append checkpoints to the cells of a study in their order, a list of ratios for each."""
    for entry, values in zip(study.cells, ratios, strict=False):
        tiny.measure(store, entry.cell, values)


def test_the_images_of_a_point_are_those_of_the_checkpoint_with_the_best_ratio(store: Store) -> None:
    study = registered(store, "")
    cell = study.cells[0].cell
    for epoch, ratio, samples in ((12, 0.5, 20), (24, 0.9, 400), (30, 0.6, 40)):
        store.append(tiny.checkpoint(cell.cell_id, epoch, ratio, samples=samples))
    ((row,), _) = study_cells(store, store.studies()[0])
    assert (row.best, row.samples, row.last) == (0.9, 400, 0.6)


# --- points --------------------------------------------------------------------------------------------


def test_a_point_is_the_best_of_the_checkpoints_beside_the_last(store: Store) -> None:
    measure(store, registered(store, SIZES), [0.5, 1.0, 0.95], [0.0, 0.8, 0.7], [0.1, 0.1, 0.0])
    (curve,) = curves(store)
    assert [(p.size, p.best, p.last, p.cells) for p in curve.points] == [
        (8, 1.0, 0.95, 1),
        (16, 0.8, 0.7, 1),
        (32, 0.1, 0.0, 1),
    ]


def test_the_emm_is_read_off_the_best_and_off_the_last_checkpoints(store: Store) -> None:
    measure(store, registered(store, SIZES), [0.5, 1.0, 0.95], [0.0, 0.8, 0.7], [0.1, 0.1, 0.0])
    (curve,) = curves(store)
    assert curve.estimate.value == pytest.approx(8 + (1.0 - 0.9) / (1.0 - 0.8) * 8)
    assert (curve.estimate.lower, curve.estimate.upper) == (8, 16)
    assert curve.last_estimate.value == pytest.approx(8 + (0.95 - 0.9) / (0.95 - 0.7) * 8)
    assert curve.note == ""


def test_epsilon_is_that_of_the_study(store: Store) -> None:
    measure(store, registered(store, SIZES, "\n[emm]\nepsilon = 0.5\n"), [1.0] * 3, [0.75] * 3, [0.25] * 3)
    (curve,) = curves(store)
    assert curve.epsilon == 0.5
    assert curve.estimate.value == pytest.approx(24)


def test_a_curve_that_does_not_cross_the_line_has_a_bound_and_says_why(store: Store) -> None:
    measure(store, registered(store, SIZES), [1.0] * 3, [1.0] * 3, [1.0] * 3)
    (curve,) = curves(store)
    assert (curve.estimate.value, str(curve.estimate)) == (None, ">= 32")
    assert "the largest size is above the line" in curve.note


def test_points_are_means_over_seeds_and_draws(store: Store) -> None:
    axes = SIZES + "\n[[axes]]\nT.seed = [0, 1]\n\n[[axes]]\nP.draw = [0, 1]\n"
    study = registered(store, axes)
    assert [tuple(entry.axis_values.values()) for entry in study.cells][:5] == [
        (8, 0, 0),
        (8, 0, 1),
        (8, 1, 0),
        (8, 1, 1),
        (16, 0, 0),
    ]
    measure(store, study, [1.0, 0.9, 0.9], [0.8, 0.9, 0.7], [0.6, 0.0, 0.0], [1.0, 1.0, 1.0])
    (curve,) = curves(store)
    (point,) = curve.points
    assert (point.size, point.cells) == (8, 4)
    assert point.best == pytest.approx((1.0 + 0.9 + 0.6 + 1.0) / 4)
    assert point.last == pytest.approx((0.9 + 0.7 + 0.0 + 1.0) / 4)


def test_replicates_may_have_unequally_many_checkpoints(store: Store) -> None:
    study = registered(store, "\n[[axes]]\nT.seed = [0, 1]\n")
    measure(store, study, [0.2, 0.4, 0.6], [0.8])
    (curve,) = curves(store)
    assert [(p.best, p.last, p.cells) for p in curve.points] == [(pytest.approx(0.7), pytest.approx(0.7), 2)]
    assert "1 of 2 cells are not finished" in curve.note


def test_another_threshold_is_counted_from_the_evidence(store: Store) -> None:
    study = registered(store, SIZES, "\n[emm]\nthreshold = 0.5\n")
    measure(store, study, [0.9, 0.0, 0.5])
    (curve,) = curves(store)
    # of the images that are not memorized, one half has a distance ratio of 0.4 and the other of 0.8
    assert [(p.best, p.last) for p in curve.points] == [(0.95, 0.75)]


# --- curves --------------------------------------------------------------------------------------------


def test_the_other_axes_split_curves_in_the_order_of_the_file(store: Store) -> None:
    axes = '\n[[axes]]\nM.condition = ["none", "unique"]\n\n[[axes]]\nM.dropout = [0.2, 0.0]\n' + SIZES
    study = registered(store, axes)
    measure(store, study, *[[number / 20] for number in range(12)])
    found = curves(store)
    assert [curve.label for curve in found] == [
        "M.condition = none, M.dropout = 0.2",
        "M.condition = none, M.dropout = 0.0",
        "M.condition = unique, M.dropout = 0.2",
        "M.condition = unique, M.dropout = 0.0",
    ]
    assert [[p.best for p in curve.points] for curve in found] == [
        [pytest.approx(number / 20) for number in range(3 * k, 3 * k + 3)] for k in range(4)
    ]


def test_keys_that_move_with_the_size_do_not_split_a_curve(store: Store) -> None:
    study = registered(store, "\n[[axes]]\nP.size = [8, 16]\nT.epochs = [30, 20]\n")
    measure(store, study, [1.0], [0.5])
    (curve,) = curves(store)
    assert curve.label == ""
    assert [p.size for p in curve.points] == [8, 16]


def test_keys_that_move_together_name_a_curve_together(store: Store) -> None:
    registered(store, '\n[[axes]]\nM.network = ["ddpm++", "ncsn++"]\nM.precondition = ["vp", "ve"]\n')
    assert [curve.label for curve in curves(store)] == [
        "M.network = ddpm++, M.precondition = vp",
        "M.network = ncsn++, M.precondition = ve",
    ]


def test_sizes_come_in_order_whatever_the_file_says(store: Store) -> None:
    measure(store, registered(store, "\n[[axes]]\nP.size = [32, 8, 16]\n"), [0.1], [1.0], [0.5])
    (curve,) = curves(store)
    assert [(p.size, p.best) for p in curve.points] == [(8, 1.0), (16, 0.5), (32, 0.1)]


def test_only_the_cells_of_the_study_count(store: Store) -> None:
    other = tiny.load(store.path.parent, tiny.TEXT, "other")
    tiny.register(store, other)
    for entry in other.cells:
        tiny.measure(store, entry.cell, [1.0, 1.0, 1.0])
    registered(store, "\n[[axes]]\nM.dropout = [0.2, 0.4]\n")
    row = next(row for row in store.studies() if row.study == "tiny")
    assert [[p.best for p in curve.points] for curve in study_curves(store, row)] == [[1.0], []]


# --- what is missing -----------------------------------------------------------------------------------


def test_missing_cells_are_noted_and_the_others_used(store: Store) -> None:
    measure(store, registered(store, SIZES), [1.0, 1.0, 1.0], [], [0.5, 0.6])
    (curve,) = curves(store)
    assert [p.size for p in curve.points] == [8, 32]
    assert curve.estimate.value == pytest.approx(8 + (1.0 - 0.9) / (1.0 - 0.6) * 24)
    assert curve.note == "2 of 3 cells are not finished"


def test_a_ratio_that_rises_to_the_end_of_training_is_noted_with_its_size(store: Store) -> None:
    # epochs 12, 24 and 30: 0.5 to 0.85 of 20 images is beyond their noise, 0.8 to 0.85 is not, and a peak has passed
    measure(store, registered(store, SIZES), [0.5, 0.7, 0.85], [0.8, 0.7, 0.85], [0.1, 0.9, 0.8])
    (curve,) = curves(store)
    assert "the ratio still rises at the end of training at N = 8" in curve.note


def test_a_ratio_that_rises_in_some_draws_is_noted_with_their_number(store: Store) -> None:
    draws = SIZES + "[[axes]]\nP.draw = [0, 1, 2]\n"
    rising, level = [0.5, 0.7, 0.85], [0.8, 0.7, 0.8]
    measure(store, registered(store, draws), rising, rising, level, *[level] * 3, level, rising, level)
    (curve,) = curves(store)
    assert "at the end of training at N = 8 (2 of 3 cells), 32 (1 of 3 cells)" in curve.note


def test_a_cell_at_two_places_of_a_study_rises_or_not_as_at_one(store: Store) -> None:
    study = registered(store, SIZES)
    cells = [entry for entry in study.cells for _ in range(2)]
    tiny.register(store, study, cells)
    measure(store, study, [0.2, 0.85, 0.85], [0.85, 0.85, 0.85], [0.0, 0.0, 0.0])
    (curve,) = curves(store)
    assert curve.caveat == "the ratio still rises at the end of training at N = 8"


def test_a_ratio_that_rises_in_a_cell_that_is_not_finished_is_not_noted(store: Store) -> None:
    measure(store, registered(store, SIZES), [0.1, 0.9])
    (curve,) = curves(store)
    assert "rises" not in curve.note


def test_an_answer_of_cells_with_next_to_no_steps_says_so(store: Store) -> None:
    study = registered(store, SIZES)
    for entry in study.cells:
        steps = 3 if entry.cell.P.size == 8 else 4  # an epoch, and 90 or 120 at the last
        tiny.measure(store, entry.cell, [0.0, 0.0], epoch_steps=steps)
    (curve,) = curves(store)
    assert (curve.undertrained, curve.answer) == (False, "< 8"), "more steps are to come"
    for entry in study.cells:
        steps = 3 if entry.cell.P.size == 8 else 4
        store.append(tiny.checkpoint(entry.cell.cell_id, 30, 0.0, epoch_steps=steps))
    (curve,) = curves(store)
    assert curve.undertrained
    assert (str(curve.estimate), curve.answer) == ("unknown", "unknown (undertrained)")
    assert "undertrained at N = 8: after 90 optimizer steps a network has learned next to nothing" in curve.note
    assert [point.steps for point in curve.points] == [90, 120, 120]
    printed = tiny.here("emm", "tiny", "--store", store.path, COLUMNS="150").stdout
    assert "unknown (undertrained)" in printed
    assert "optimizer steps at the last checkpoint: N=8: 90, N=16: 120, N=32: 120" in printed
    page = store.path.parent / "page.html"
    assert tiny.here("report", "tiny", "--store", store.path, "-o", page).returncode == 0
    assert "unknown (undertrained)" in page.read_text()


def test_a_hundred_steps_are_enough_not_to_be_called_undertrained(store: Store) -> None:
    study = registered(store, SIZES)
    for entry in study.cells:
        for epoch in (5, 10, 25):  # 100 steps at the last
            store.append(tiny.checkpoint(entry.cell.cell_id, epoch, 0.0, epoch_steps=4))
    (curve,) = curves(store)
    assert (curve.undertrained, curve.answer) == (False, "< 8")


@pytest.mark.parametrize(
    ("ratios", "samples", "noise"),
    [
        ((0.88, 0.92, 0.4), 100, "8 to 16"),
        ((0.88, 0.92, 0.4), 2000, ""),
        ((0.86, 0.915, 0.4), 400, ""),  # z = 2.5, although the intervals overlap
        ((0.86, 0.915, 0.92), 400, "16 to 32"),
        ((0.87, 0.875, 0.88), 400, "8 to 16, 16 to 32"),
        ((0.92, 0.91, 0.4), 100, ""),  # no rise
    ],
)
def test_rises_with_n_that_may_be_the_noise_of_the_images_are_named(
    store: Store, ratios: tuple[float, ...], samples: int, noise: str
) -> None:
    study = registered(store, SIZES)
    for entry, ratio in zip(study.cells, ratios, strict=True):
        tiny.measure(store, entry.cell, [ratio] * 3, samples=samples)
    *_, last = curves(store)[0].note.split("; ")
    assert ("noise" in last) == bool(noise)
    if noise:
        assert last == f"from {noise} it may be the noise of images, draws and seeds (95%)"


def test_a_bound_and_missing_cells_are_both_noted(store: Store) -> None:
    measure(store, registered(store, SIZES), [0.5, 0.5, 0.5])
    (curve,) = curves(store)
    assert curve.note == "2 of 3 cells are not finished; no size reaches the line"


def test_a_curve_of_which_nothing_is_measured_has_no_estimate(store: Store) -> None:
    registered(store, SIZES)
    (curve,) = curves(store)
    assert (curve.points, curve.estimate, curve.last_estimate) == ([], None, None)
    assert curve.note == "3 of 3 cells are not finished"


# --- how a cell stands ---------------------------------------------------------------------------------


def state(store: Store) -> str:
    return state_of(store.cells("tiny")[0])


HERE = dataclasses.replace(tiny.HERE, host=socket.gethostname(), pid=os.getpid())


def an_ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("where", "outcome", "expected"),
    [
        (HERE, Outcome.FAILED, "failed"),
        (HERE, Outcome.INTERRUPTED, "interrupted"),
        (HERE, None, "running"),
        (dataclasses.replace(HERE, pid=1), None, "running"),
        (dataclasses.replace(HERE, pid=an_ended_process()), None, "lost"),
        (dataclasses.replace(tiny.HERE, pid=an_ended_process()), None, "running"),
    ],
    ids=["failed", "interrupted", "running", "another's process", "lost", "on another host"],
)
def test_a_cell_stands_as_its_latest_attempt_says(
    store: Store, where: Provenance, outcome: Outcome | None, expected: str
) -> None:
    cell = registered(store, SIZES).cells[0].cell
    assert state(store) == "waiting"
    store.end_attempt(store.start_attempt(cell.cell_id, tiny.HERE), Outcome.FAILED, "an older reason")
    attempt = store.start_attempt(cell.cell_id, where)
    tiny.measure(store, cell, [0.5, 0.5])
    if outcome:
        store.end_attempt(attempt, outcome)
    assert state(store) == expected


def test_a_cell_with_all_its_checkpoints_is_finished_whatever_its_attempt_says(store: Store) -> None:
    cell = registered(store, SIZES).cells[0].cell
    store.start_attempt(cell.cell_id, dataclasses.replace(HERE, pid=an_ended_process()))
    tiny.measure(store, cell, [0.5, 0.5, 0.5])
    assert state(store) == "finished"
