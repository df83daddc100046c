"""Measures of a denoiser in a run and later: the same numbers, no image, and a sentence where there are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from diffmem.data import held_out_set, training_set
from diffmem.data.training_sets import held_out
from diffmem.errors import DataError, RunError
from diffmem.measures import DENOISING_IMAGES, LEVELS
from diffmem.networks import OptimalDenoiser
from diffmem.runs.denoising import measure_denoiser
from diffmem.runs.events import CellEnded
from diffmem.runs.measuring import Later, NotMeasured, measure_study
from diffmem.runs.runner import run_study
from diffmem.store.store import Store
from diffmem.study.study import Study

BOTH = "score.measures=['gaps', 'membership']"
TEXT = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "M.dropout = [0.0]").replace("batch_size = 12", "batch_size = 300")
OPTIMUM = TEXT.replace("[M]\n", '[M]\nnetwork = "optimum"\n').replace("size = 8\n", "size = 20\n", 1)
ROWS = "SELECT * EXCLUDE cell_id FROM noise_levels ORDER BY ALL"


def trained(folder: Path, *overrides: str, text: str = TEXT) -> tuple[Study, Store]:
    folder.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(folder, text), overrides=overrides), Store(folder / "s.duckdb")
    ended = [event for event in run_study(study, store) if isinstance(event, CellEnded)]
    assert {event.outcome for event in ended} == {"finished"}, ended
    return study, store


def test_gaps_measured_later_are_those_of_a_run_bit_by_bit_and_no_image_is_generated(tmp_path, monkeypatch):
    study, later = trained(tmp_path / "later", "score.keep='all'")
    asked, run = trained(tmp_path / "run", "score.keep='all'", BOTH)
    assert [entry.cell.cell_id for entry in asked.cells] == [entry.cell.cell_id for entry in study.cells]
    assert later.rows("FROM evidence ORDER BY ALL") == run.rows("FROM evidence ORDER BY ALL")
    monkeypatch.setattr("diffmem.runs.checkpoint_model.images_of", None)
    found = list(measure_study(study, later, measures=["gaps", "membership"]))
    assert [(each.epoch, each.measure, each.new) for each in found] == [
        (epoch, measure, True) for epoch in tiny.EPOCHS for measure in ("gaps", "membership")
    ]
    rows = later.rows(ROWS)
    assert rows == run.rows(ROWS)
    assert {row["sigma"] for row in rows if row["quantity"] == "loss_gap"} == {row["sigma"] for row in rows}
    assert len({row["sigma"] for row in rows}) == LEVELS
    assert {(row["images"], row["n"]) for row in rows if row["quantity"] == "loss"} == {
        ("training", 8),
        ("held_out", DENOISING_IMAGES),
    }
    gaps = [row for row in rows if (row["epoch"], row["quantity"]) == (30, "relative_loss_gap")]
    (largest,) = [each for each in found if (each.epoch, each.measure) == (30, "gaps")]
    best = max(gaps, key=lambda row: row["value"])
    assert (largest.value, largest.sigma, largest.quantity) == (best["value"], best["sigma"], "relative_loss_gap")
    again = measure_study(study, later, measures=["gaps"])
    assert [each.new for each in again] == [False] * 3
    assert run.lacking("tiny", "gaps") == run.lacking("tiny", "membership") == 0
    assert run.lacking("tiny", "calibrated") == 3


def test_the_optimum_is_measured_without_weights_and_has_every_gap(tmp_path):
    study, store = trained(tmp_path, text=OPTIMUM)
    (gaps, membership) = measure_study(study, store, measures=["gaps", "membership"])
    assert (gaps.value, gaps.n) == (1.0, 20 + DENOISING_IMAGES)
    assert (membership.value, membership.quantity) == (1.0, "told_auc_loss")
    (row,) = store.rows("SELECT max(high) AS high, max(value) AS value FROM noise_levels WHERE quantity = 'to_optimum'")
    assert row == {"high": 0, "value": 0}
    more = list(measure_study(study, store, measures=["gaps"], samples=30))
    assert [each.measure for each in more] == ["nearest", "gaps"]
    assert more[1].value == 1.0


def test_a_run_shares_the_images_of_a_class_out_to_the_model(tmp_path):
    text = OPTIMUM.replace('network = "optimum"\n', 'network = "optimum"\ncondition = "true"\n')
    study, store = trained(tmp_path, BOTH, text=text)
    cell = study.cells[0].cell
    unseen = held_out_set(cell, DENOISING_IMAGES)
    assert unseen.labels is not None
    images = np.concatenate([unseen.images, training_set(cell).images])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) > len(unseen.images)
    assert np.array_equal(unseen.images, held_out(cell, DENOISING_IMAGES))
    assert set(unseen.labels.tolist()) == set(range(10))  # classes take turns in both
    assert unseen.labels[:10].tolist() == training_set(cell).labels[:10].tolist()
    assert store.rows("FROM notes") == []
    (row,) = store.rows("SELECT max(value) AS gap FROM noise_levels WHERE quantity = 'relative_loss_gap'")
    assert row["gap"] == 1


def test_held_out_images_of_unique_labels_have_those_of_training_images_which_is_said(tmp_path):
    text = OPTIMUM.replace('network = "optimum"\n', 'network = "optimum"\ncondition = "unique"\n')
    study, store = trained(tmp_path, BOTH, text=text)
    labels = held_out_set(study.cells[0].cell, DENOISING_IMAGES).labels
    assert labels is not None
    assert set(labels.tolist()) <= set(range(20))
    assert len(set(labels.tolist())) > 10
    assert [row["note"] for row in store.rows("FROM notes")] == [
        "gaps, membership: held-out images have no label of their own, so each has that of a training image drawn at "
        "random"
    ]
    (row,) = store.rows("SELECT max(value) AS loss FROM noise_levels WHERE quantity = 'loss' AND images = 'training'")
    assert row["loss"] == 0  # of a label of its own the optimum knows the image at any noise


@pytest.mark.parametrize(("size", "left"), [(1700, 90), (1740, 0)])
def test_too_few_held_out_images_are_counted_and_none_are_a_sentence(tmp_path, size, left):
    text = OPTIMUM.replace("size = 20\n", f"size = {size}\n", 1).replace("samples = 20", "samples = 1")
    study, store = trained(tmp_path, BOTH, "P.balance=false", text=text) if left else trained(tmp_path, BOTH, text=text)
    cell_id = study.cells[0].cell.cell_id
    notes = [row["note"] for row in store.rows("FROM notes ORDER BY note")]
    counts = {row["n"] for row in store.rows("FROM noise_levels WHERE images = 'held_out' AND quantity = 'loss'")}
    found = list(measure_study(study, store, measures=["gaps"]))
    if left:
        (count,) = counts
        assert (
            f"gaps, membership: only {count} held-out images instead of {DENOISING_IMAGES}, so intervals are wide"
            in notes
        )
        assert [type(each) for each in found] == [Later]
        return
    assert counts == set()
    reason = (
        f"gaps needs 2 training images and 2 held-out ones, and there are {size} and 0; a smaller P.size leaves "
        "more of the dataset held out"
    )
    assert reason in notes
    assert found == [NotMeasured(cell_id, "M.dropout = 0.0", reason)]


def test_few_training_images_are_said_to_make_the_intervals_of_membership_too_narrow(tmp_path):
    _, store = trained(tmp_path, BOTH, "P.size=10", text=OPTIMUM)
    assert [row["note"] for row in store.rows("FROM notes")] == [
        "gaps, membership: only 10 training images, half of them to choose sigma and threshold by, so intervals are "
        "too narrow"
    ]


def test_a_study_without_a_measure_of_denoisers_looks_at_no_held_out_image_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr("diffmem.runs.denoising.held_out_set", None)
    _, store = trained(tmp_path, "M.condition='true'", text=OPTIMUM)
    assert store.rows("FROM notes") == []


def test_a_model_that_is_not_kept_is_told_of_with_the_key_that_keeps_it(tmp_path):
    study, store = trained(tmp_path, "score.keep='none'")
    (found,) = measure_study(study, store, measures=["gaps"])
    assert found.reason == 'no trained model is kept; score.keep = "last" keeps it, in a run with another --store'


def test_a_denoiser_without_numbers_is_refused(tmp_path):
    cell = Study.load(tiny.write(tmp_path, OPTIMUM)).cells[0].cell

    class Broken(OptimalDenoiser):
        def __call__(self, noisy, _sigma, _labels=None):
            return torch.full_like(noisy, torch.nan)

    data = training_set(cell)
    broken = Broken(torch.from_numpy(data.images).float())
    with pytest.raises(RunError) as refused:
        measure_denoiser(cell, broken, data, ["gaps"])
    assert str(refused.value) == (
        "the denoiser gives images with values that are no numbers, so its loss cannot be measured"
    )
    assert measure_denoiser(cell, broken, data, []).values == {}


def test_a_denoiser_costs_a_few_percent_of_the_evaluations_of_a_scoring(tmp_path):
    cell = Study.load(tiny.write(tmp_path, OPTIMUM), overrides=["P.size=200"]).cells[0].cell
    data, counted = training_set(cell), [0]

    class Counted(OptimalDenoiser):
        def __call__(self, noisy, sigma, labels=None):
            counted[0] += len(noisy)
            return super().__call__(noisy, sigma, labels)

    measure_denoiser(cell, Counted(torch.from_numpy(data.images).float() / 127.5 - 1), data, ["gaps", "membership"])
    assert counted[0] == 2 * DENOISING_IMAGES * LEVELS * 2
    assert counted[0] <= 0.05 * 10_000 * 35


# --- commands ------------------------------------------------------------------------------------------

REFUSED = (
    "gaps measures a denoiser at each noise level and calls no image a copy, so there is no ratio by it; "
    "`diffmem gaps STUDY` shows what it found"
)


def test_the_commands_show_gaps_and_say_what_to_do_without(tmp_path):
    study, store = trained(tmp_path, text=OPTIMUM)
    cell_id, path = study.cells[0].cell.cell_id, tmp_path / "tiny.toml"

    def said(*arguments: object) -> str:
        result = tiny.here(*map(str, arguments), "--store", store.path, COLUMNS="200")
        assert result.returncode == 0, result.stderr
        return result.stdout

    refused = tiny.here("gaps", "tiny", "--store", store.path)
    assert refused.returncode == 2
    assert " ".join(refused.stderr.split()).endswith(
        f"tiny: no gaps are measured; `diffmem measure {path} --measure gaps` measures them on trained models that are "
        "kept (score.keep)"
    )
    assert "at each noise level" not in said("show", cell_id)
    measured = said("measure", path, "--measure", "gaps", "--measure", "membership")
    assert "relative_loss_gap at sigma = " in measured
    (row,) = [line.split() for line in said("gaps", "tiny").splitlines() if line.startswith(cell_id)]
    assert row[-5:] == ["1.000", "1.000", "to", "1.000", "1.000"]
    data = json.loads(said("gaps", "tiny", "--json"))
    assert data["study"] == "tiny"
    exported = json.loads(said("export", "gaps", "--study", "tiny", "--json"))
    assert len(data["values"]) == len(exported) > 10 * LEVELS
    keys = ("measure", "quantity", "images", "sigma", "value", "n")
    assert [[each[key] for key in keys] for each in data["values"]] == [
        [each[key] for key in keys] for each in exported
    ]
    shown = said("show", cell_id)
    assert "at each noise level, epoch 0" in shown
    assert "gap / held-out loss" in shown
    assert said("store", "check").endswith("in order\n")
    for arguments in (("emm", "tiny"), ("score", "--images", tmp_path, "--against", "digits")):
        refused = tiny.here(*arguments, "--measure", "gaps", "--store", store.path)
        assert refused.returncode == 2
        assert REFUSED in " ".join(refused.stderr.split())


def test_a_measure_of_a_denoiser_is_no_measure_of_copies_in_python(tmp_path):
    _, store = trained(tmp_path, text=OPTIMUM)
    import diffmem

    with pytest.raises(DataError) as refused:
        diffmem.study_curves(store, "tiny", "gaps")
    assert str(refused.value) == REFUSED
