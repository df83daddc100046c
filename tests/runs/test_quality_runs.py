"""The quality of images in a run and later: the same numbers, of the scored images, and a sentence without them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.data import held_out_set, training_set
from diffmem.errors import DataError
from diffmem.measures import ImageQuality, quality
from diffmem.models import generate
from diffmem.runs.events import CellEnded
from diffmem.runs.measuring import Later, NotMeasured, measure_study
from diffmem.runs.runner import run_study
from diffmem.store.store import Store
from diffmem.study.study import Study

ASKED = "score.measures=['quality']"
TEXT = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "M.dropout = [0.0]").replace("samples = 20", "samples = 40")
OPTIMUM = TEXT.replace("[M]\n", '[M]\nnetwork = "optimum"\n').replace("size = 8\n", "size = 100\n", 1)
ROWS = "SELECT * EXCLUDE cell_id FROM quality ORDER BY ALL"


def trained(folder: Path, *overrides: str, text: str = TEXT) -> tuple[Study, Store]:
    folder.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(folder, text), overrides=overrides), Store(folder / "s.duckdb")
    ended = [event for event in run_study(study, store) if isinstance(event, CellEnded)]
    assert {event.outcome for event in ended} == {"finished"}, ended
    return study, store


def test_the_quality_measured_later_is_that_of_a_run_bit_by_bit(tmp_path):
    study, later = trained(tmp_path / "later", "score.keep='all'")
    asked, run = trained(tmp_path / "run", "score.keep='all'", ASKED)
    assert [entry.cell.cell_id for entry in asked.cells] == [entry.cell.cell_id for entry in study.cells]
    assert later.rows("FROM evidence ORDER BY ALL") == run.rows("FROM evidence ORDER BY ALL")
    found = list(measure_study(study, later, measures=["quality", "calibrated"]))[1:]  # without the null
    assert [(each.epoch, each.measure, each.quantity.rpartition(" to ")[2], each.new) for each in found] == [
        each
        for epoch in tiny.EPOCHS
        for each in (
            (epoch, "calibrated", "", True),
            (epoch, "quality", "training images", True),
            (epoch, "quality", "held-out images", True),
        )
    ]
    assert later.rows(ROWS) == run.rows(ROWS)
    assert {row["epoch"] for row in run.rows(ROWS)} == set(tiny.EPOCHS)
    assert later.rows("FROM notes ORDER BY ALL") == run.rows("FROM notes ORDER BY ALL")
    again = list(measure_study(study, later, measures=["quality"]))
    assert [each.new for each in again] == [False] * 6
    assert run.lacking("tiny", "quality") == 0


def test_the_quality_is_that_of_the_scored_images(tmp_path):
    study, store = trained(tmp_path, ASKED, text=OPTIMUM)
    cell = study.cells[0].cell
    data = training_set(cell)
    import torch

    images = torch.from_numpy(data.images)
    denoiser = cell.M.from_images(images.float() / 127.5 - 1, None, count=cell.labels)
    generated = generate(denoiser, range(40), shape=(1, 8, 8), labels=0, seed=cell.T.seed, steps=3, device="cpu")
    real = data.images.reshape(100, -1)
    found = {(each.quantity, each.against): each for each in store.quality(cell.cell_id)}
    expected = quality.frechet_distance(generated.flatten(1).numpy(), real)
    assert found["frechet_distance", "training"].value == pytest.approx(expected)
    assert found["authentic", "training"].value == quality.authentic(generated.flatten(1).numpy(), real).mean()
    assert (found["recall", "training"].n, found["recall", "training"].real) == (40, 100)
    assert found["recall", "held_out"].real == len(held_out_set(cell, 20_000).images) / 2


def test_a_study_scored_anew_has_the_quality_of_the_new_images(tmp_path):
    study, store = trained(tmp_path, ASKED, text=OPTIMUM)
    found = list(measure_study(study, store, measures=["quality"], samples=60))
    assert [(each.measure, each.n, each.new) for each in found] == [
        ("nearest", 60, True),
        ("quality", 60, True),
        ("quality", 60, True),
    ]
    again = list(measure_study(study, store, measures=["quality", "calibrated"], samples=60))[1:]
    assert [(each.measure, each.new) for each in again] == [
        ("nearest", False),
        ("calibrated", True),
        ("quality", False),
        ("quality", False),
    ]


@pytest.mark.parametrize(("samples", "size", "left"), [(10, 100, 1640), (40, 1740, 0)])
def test_too_few_images_are_a_sentence_with_their_counts(tmp_path, samples, size, left):
    text = OPTIMUM.replace("size = 100\n", f"size = {size}\n", 1).replace("samples = 40", f"samples = {samples}")
    study, store = trained(tmp_path, ASKED, text=text)
    cell = study.cells[0].cell
    unseen = len(held_out_set(cell, 20_000).images)
    assert unseen == left
    reason = (
        f"quality needs 12 generated images, 6 training images and 24 held-out ones, and there are {samples}, {size} "
        f"and {unseen}"
    )
    assert reason in [row["note"] for row in store.rows("FROM notes")]
    assert store.rows(ROWS) == []
    assert list(measure_study(study, store, measures=["quality"])) == [
        NotMeasured(cell.cell_id, "M.dropout = 0.0", reason)
    ]


def test_a_small_training_set_is_noted_with_n_and_d(tmp_path):
    _, store = trained(tmp_path, ASKED)
    (note,) = [row["note"] for row in store.rows("FROM notes") if "to training images" in row["note"]]
    assert note.startswith("quality: Frechet distance (pixels) to training images: 8 images in 64 dimensions")


def test_the_images_are_found_in_whatever_batches_a_precision_asks_for(tmp_path):
    text = OPTIMUM.replace("samples = 40", "samples = 1200\nprecision = 0.001")
    _, store = trained(tmp_path, ASKED, text=text)
    (row,) = store.rows("SELECT max(n) AS n FROM quality WHERE quantity = 'frechet_distance'")
    assert row["n"] == store.rows("SELECT samples FROM checkpoints")[0]["samples"]


def test_processes_that_share_the_images_measure_the_quality_of_all_of_them_in_their_order(tmp_path):
    _, alone = trained(tmp_path / "alone", ASKED, text=OPTIMUM)
    together = Store(tmp_path / "together.duckdb")
    shared = ("--processes", "2", "--split", "batch", "--set", ASKED)
    result = tiny.diffmem("run", tmp_path / "alone" / "tiny.toml", "--store", together.path, *shared)
    assert result.returncode == 0, result.stderr
    sql = "SELECT quantity, against, n, value FROM quality ORDER BY ALL"
    found, expected = ([list(row.values()) for row in store.rows(sql)] for store in (together, alone))
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert len(found) > 10
    # a pixel may be rounded otherwise
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected], rel=0.01, abs=0.02)


# --- commands ------------------------------------------------------------------------------------------


def test_the_commands_show_the_quality_and_say_what_to_do_without(tmp_path):
    study, store = trained(tmp_path, text=OPTIMUM)
    cell_id, path = study.cells[0].cell.cell_id, tmp_path / "tiny.toml"

    def said(*arguments: object) -> str:
        result = tiny.here(*map(str, arguments), "--store", store.path, COLUMNS="200")
        assert result.returncode == 0, result.stderr
        return result.stdout

    refused = tiny.here("quality", "tiny", "--store", store.path)
    assert refused.returncode == 2
    assert " ".join(refused.stderr.split()).endswith(
        f"tiny: no quality is measured; `diffmem measure {path} --measure quality` measures it on the images of "
        "trained models that are kept (score.keep)"
    )
    assert "quality, epoch" not in said("show", cell_id)
    measured = said("measure", path, "--measure", "quality")
    assert "Frechet distance (pixels) to held-out images" in measured
    lines = [line.split() for line in said("quality", "tiny").splitlines() if line.startswith(cell_id)]
    found = {(each.quantity, each.against): each for each in store.quality(cell_id)}
    for line, against in zip(lines, ("training", "held_out"), strict=True):
        assert against.replace("_", "-") in line
        assert line[-2] == f"{found['authentic', against].value:.3f}"
        assert f"{found['frechet_distance', against].null:.4g}" in line
    assert "(n <= d), so it is biased upwards" in " ".join(said("quality", "tiny").split())
    data = json.loads(said("quality", "tiny", "--json"))
    assert [(each["quantity"], each["against"], each["value"]) for each in data["values"]] == [
        (each.quantity, each.against, each.value) for each in store.quality(cell_id)
    ]
    assert [note.partition(" are too few")[0] for note in data["notes"]] == [
        f"Frechet distance (pixels) to {against} images: 40 images in 64 dimensions"
        for against in ("training", "held-out")
    ]
    shown = said("show", cell_id)
    assert "quality, epoch 0" in shown
    assert said("store", "check").endswith("in order\n")


REFUSED = (
    "quality measures all generated images together and calls none of them a copy, so there is no ratio by it; "
    "`diffmem quality STUDY` shows what it found"
)


def test_the_quality_is_no_measure_of_copies(tmp_path):
    _, store = trained(tmp_path, text=OPTIMUM)
    for arguments in (("emm", "tiny"), ("score", "--images", tmp_path, "--against", "digits")):
        refused = tiny.here(*arguments, "--measure", "quality", "--store", store.path)
        assert refused.returncode == 2
        assert REFUSED in " ".join(refused.stderr.split())
    import diffmem

    with pytest.raises(DataError) as told:
        diffmem.study_curves(store, "tiny", "quality")
    assert str(told.value) == REFUSED


def test_a_page_has_figures_of_the_quality_beside_the_ratio(tmp_path):
    text = OPTIMUM.replace("M.dropout = [0.0]", "P.size = [40, 100]")
    _, store = trained(tmp_path, ASKED, text=text)
    page = tmp_path / "page.html"
    assert tiny.here("report", "tiny", "--store", store.path, "-o", page).returncode == 0
    source = page.read_text()
    assert "Quality (pixels) against the number of training images" in source
    asked = ("memorization ratio", "Frechet distance beside training images", "recall beside held-out images", "C_T")
    labels = re.findall('<p class="panel">(.*?)</p>', source)
    assert [label for label in asked if not any(shown.startswith(label) for shown in labels)] == [], labels


def test_real_images_are_looked_at_once_for_all_checkpoints(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    counted = []
    from diffmem.measures import features

    found = features.features_of
    monkeypatch.setattr(features, "features_of", lambda *given: counted.append(1) or found(*given))
    beside = ImageQuality(images[:60], images[60:140])
    first, second = beside.of(images[140:]), beside.of(images[140:])
    assert first == second
    assert len(counted) == 4  # training and held-out images once, generated ones twice
    assert isinstance(first.values[0].null, float)
    assert not isinstance(first, Later)
