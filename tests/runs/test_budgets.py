"""Trainings whose checkpoints lie inside epochs: the numbers are those of epochs at the same step."""

import csv
import io
import json
from collections import defaultdict
from pathlib import Path

import pytest
import tiny

from diffmem.runs.kept_models import find_model
from diffmem.runs.runner import run_study
from diffmem.runs.stopping import Interrupted
from diffmem.store.store import Store
from diffmem.study.study import Study

TEXT = """
P = {dataset = "digits", size = 8}
M = {precondition = "edm", width = 4, channel_mult = [1, 1], blocks = 1}

[T]
epochs = 5          # 8 images in batches of 5: epochs end after 2, 4, 5, 7 and 8 steps
batch_size = 5
lr = 5e-3
warmup_epochs = 2
ema = 0.9

[score]
samples = 12
every = 1
steps = 3
pairs = 2
keep = "all"
measures = ["calibrated"]
held_out = 0
"""
STEPS = [1, 2, 4, 7]
BY_STEP = ("--set", "T.steps=7", "--set", "score.points=4")


def run(folder: Path, *more: str) -> tuple[Store, str]:
    study, store = tiny.write(folder, TEXT), Store(folder / "store.duckdb")
    result = tiny.here("run", study, "--store", store.path, "--verbose", *more)
    assert result.returncode == 0, result.stderr
    return store, result.stdout + result.stderr


@pytest.fixture(scope="module")
def epochs(tmp_path_factory) -> Store:
    return run(tmp_path_factory.mktemp("epochs"))[0]


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> tuple[Store, str]:
    return run(tmp_path_factory.mktemp("steps"), *BY_STEP)


@pytest.fixture(scope="module")
def steps(said) -> Store:
    return said[0]


def evidence(store: Store) -> dict[int, list[tuple[object, ...]]]:
    rows = store.rows(
        "SELECT step, sample, nearest, d1, d2 FROM evidence JOIN checkpoints USING (cell_id, epoch) ORDER BY ALL"
    )
    found: dict[int, list[tuple[object, ...]]] = defaultdict(list)
    for row in rows:
        found[row["step"]].append(tuple(row.values())[1:])
    return dict(found)


def cell_id(store: Store) -> str:
    (row,) = store.rows("SELECT cell_id FROM cells")
    return str(row["cell_id"])


def test_a_checkpoint_has_the_same_images_bit_by_bit_whichever_way_its_step_is_said(epochs, steps):
    by_epoch, by_step = evidence(epochs), evidence(steps)
    assert (sorted(by_epoch), sorted(by_step)) == ([2, 4, 5, 7, 8], STEPS)
    for step in (2, 4, 7):
        assert by_epoch[step] == by_step[step]
    assert by_step[1] != by_step[2]


def test_a_budget_in_steps_that_ends_an_epoch_trains_nothing_again(epochs):
    result = tiny.here("run", epochs.path.parent / "tiny.toml", "--store", epochs.path, "--set", "T.steps=8")
    assert result.returncode == 0
    assert "1 finished before" in result.stdout + result.stderr or "already" in result.stdout + result.stderr
    assert len(epochs.rows("FROM attempts")) == 1


@pytest.mark.parametrize("moment", [("CellStarted", 1, 3), ("Measured", 2, 1), ("Measured", 3, 2)])
def test_a_run_that_is_stopped_between_steps_goes_on_to_the_same_numbers(steps, tmp_path, moment):
    study = Study.load(tiny.write(tmp_path, TEXT), overrides=BY_STEP[1::2])
    store, stop = Store(tmp_path / "store.duckdb"), tiny.Moment(*moment)
    with pytest.raises(Interrupted):
        for event in run_study(study, store, stop=stop):
            stop.see(event)
    assert list(run_study(study, store))
    assert len(store.rows("FROM attempts")) == 2
    tiny.check_equal(tiny.results(store), tiny.results(steps))


def test_a_run_says_the_step_of_a_checkpoint_inside_an_epoch(said):
    lines = [line.strip() for line in said[1].splitlines()]
    assert next(line for line in lines if "memorization ratio" in line).startswith("step 1: memorization ratio ")
    assert "step 7: 12 of 12 images generated" in lines


def test_show_has_the_part_of_an_epoch_that_a_checkpoint_lies_at(steps):
    result = tiny.here("show", cell_id(steps), "--store", steps.path, "--json")
    shown = json.loads(result.stdout)
    assert [row["epoch"] for row in shown["checkpoints"]] == [step * 5 / 8 for step in STEPS]
    assert [row["step"] for row in shown["checkpoints"]] == STEPS
    assert [row["epoch"] for row in shown["measurements"]] == [step * 5 / 8 for step in STEPS]


def test_exports_have_the_part_of_an_epoch_that_a_checkpoint_lies_at(steps):
    found = {}
    for what in ("checkpoints", "evidence"):
        rows = csv.DictReader(io.StringIO(tiny.here("export", what, "--store", steps.path).stdout))
        found[what] = [float(row["epoch"]) for row in rows]
    assert sorted(set(found["checkpoints"])) == [step * 5 / 8 for step in STEPS]
    assert found["evidence"] == [step * 5 / 8 for step in STEPS for _ in range(12)]


def test_exports_of_epochs_are_whole_numbers(epochs):
    rows = csv.DictReader(io.StringIO(tiny.here("export", "checkpoints", "--store", epochs.path).stdout))
    assert {row["epoch"] for row in rows} == {"1", "2", "3", "4", "5"}


def test_kept_models_are_found_by_their_step(steps):
    assert [find_model(steps, cell_id(steps), step).epoch for step in STEPS] == STEPS


def test_a_measure_of_a_checkpoint_is_told_at_its_part_of_an_epoch(steps):
    study = steps.path.parent / "tiny.toml"
    result = tiny.here("measure", study, "--store", steps.path, *BY_STEP, "--measure", "calibrated", "--json")
    measured = json.loads(result.stdout)["measured"]
    assert sorted({row["epoch"] for row in measured}) == [step * 5 / 8 for step in STEPS]


def test_more_images_of_a_training_by_steps_are_its_last_checkpoint(steps):
    study = steps.path.parent / "tiny.toml"
    result = tiny.here("measure", study, "--store", steps.path, *BY_STEP, "--samples", "20", "--json")
    measured = json.loads(result.stdout)["measured"]
    assert {(row["epoch"], row["n"]) for row in measured} == {(7 * 5 / 8, 20)}


def test_a_page_shows_steps(steps, tmp_path):
    page = tmp_path / "page.html"
    assert tiny.here("report", "--store", steps.path, "-o", page).returncode == 0
    text = page.read_text()
    assert "Memorization ratio and loss against steps" in text
    assert "step 7, " in text
    assert "against epochs" not in text
