"""A score by several processes is that of one; a pipeline generates no more images than a precision needs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from diffmem.data import load_source
from diffmem.external import score_pipeline
from diffmem.external.compared import Enough
from diffmem.measures import wilson
from diffmem.models import ALONE
from diffmem.store.database import Row
from diffmem.store.store import Store

pytestmark = pytest.mark.slow

TABLES = ("evidence", "measure_evidence", "measurements", "held_out", "training_images", "pairs", "copied", "notes")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))


def everything(store: str) -> dict[str, list[Row]]:
    """Return all that a score has stored, attempts and times aside."""
    return {table: Store(Path(store)).rows(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES}


def test_two_processes_store_and_say_what_one_does() -> None:
    digits = load_source("digits", None).images
    generator = np.random.default_rng(0)
    Path("samples").mkdir()
    for number in range(81):  # shares that are not equal; some are copies, one a mirrored one
        image = digits[number % 9, 0] if number % 3 else generator.integers(256, size=(8, 8))
        image = digits[20, 0][:, ::-1] if number == 80 else image
        Image.fromarray(image.astype(np.uint8)).save(f"samples/{number:02}.png")
    np.savez("train.npz", images=digits[:500, 0])
    np.savez("unseen.npz", images=digits[500:701, 0])
    command = ("score", "--images", "samples", "--against", "train.npz", "--held-out", "unseen.npz", "--quality")
    said = {}
    for processes in ("1", "2"):
        more = ("--measure", "calibrated", "--store", f"{processes}.duckdb", "--list", f"{processes}.csv")
        told = tiny.diffmem(*command, *more, "--processes", processes)
        assert told.returncode == 0, told.stderr
        said[processes] = told.stdout.replace(f"{processes}.duckdb", "").replace(f"{processes}.csv", "")
    assert said["2"] == said["1"]
    assert said["1"].startswith("53 of 81 images are copies of training images")
    assert Path("2.csv").read_text() == Path("1.csv").read_text()
    one, two = everything("1.duckdb"), everything("2.duckdb")
    for table in TABLES:
        assert str(two[table]) == str(one[table]), table
        assert one[table], table
    assert [row["outcome"] for row in Store(Path("2.duckdb")).rows("SELECT outcome FROM attempts")] == ["finished"]


def test_what_is_wrong_with_images_is_said_once_however_many_processes_are_wanted() -> None:
    told = tiny.diffmem("score", "--images", "nowhere", "--against", "digits", "--processes", "2")
    assert told.returncode == 2
    assert told.stderr.count("nowhere") == 1


def test_two_processes_generate_the_images_that_one_does(pipelines: Path) -> None:
    shutil.copytree(pipelines / "ddpm", "ddpm")
    command = ("score", "--pipeline", "ddpm", "--against", "digits", "--steps", "3", "--samples", "9", "--json")
    found = []
    for processes in ("1", "2"):
        told = tiny.diffmem(*command, "--store", f"{processes}.duckdb", "--processes", processes)
        assert told.returncode == 0, told.stderr
        found.append(json.loads(told.stdout))
    assert found[0]["samples"] == found[1]["samples"] == 9
    query = "SELECT nearest, d1, d2 FROM evidence ORDER BY sample"
    one, two = (Store(Path(f"{count}.duckdb")).rows(query) for count in "12")
    assert [row["nearest"] for row in one] == [row["nearest"] for row in two]
    assert [row["d1"] for row in one] == pytest.approx([row["d1"] for row in two], rel=0.01)  # rounded at other places


def test_a_pipeline_ends_once_the_ratio_is_known_to_a_precision_and_says_so(
    pipelines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmem.external.pipeline.PRECISION_CHECK", 20)
    shutil.copytree(pipelines / "ddpm", "ddpm")
    given = {"samples": 100, "batch_size": 7, "steps": 2}
    none_of_forty = (np.diff(wilson(0.0, 40)) / 2).item()
    score = score_pipeline("ddpm", "digits", Store(Path("s.duckdb")), **given, precision=none_of_forty * 1.0001)
    assert (score.samples, score.memorized) == (40, 0)
    assert "ddpm: 40 of 100 images generated, as their ratio is known to the precision" in score.notes
    whole = score_pipeline("ddpm", "digits", Store(Path("t.duckdb")), **given, precision=0.001)
    assert whole.samples == 100
    assert not any("generated" in note for note in whole.notes)
    first, all_of_them = (Store(Path(name)).rows("SELECT d1 FROM evidence") for name in ("s.duckdb", "t.duckdb"))
    assert {row["d1"] for row in first} <= {row["d1"] for row in all_of_them}


def test_images_are_enough_at_the_half_width_of_all_so_far() -> None:
    training = np.random.default_rng(1).integers(256, size=(30, 1, 8, 8), dtype=np.uint8)
    others = np.random.default_rng(2).integers(256, size=(10, 1, 8, 8), dtype=np.uint8)
    half = (np.diff(wilson(0.5, 20)) / 2).item()
    ten, more = np.concatenate([training[:5], others[:5]]), np.concatenate([others[5:], training[5:10]])
    enough = Enough(training, half * 1.0001, ALONE)
    assert [enough(ten), enough(more)] == [False, True]
    enough = Enough(training, half * 0.9999, ALONE)
    assert [enough(ten), enough(more)] == [False, False]


def test_precision_is_of_a_pipeline() -> None:
    told = tiny.here("score", "--images", "x", "--against", "digits", "--precision", "0.1")
    assert told.returncode == 2
    assert "--precision: of a --pipeline, and none is named" in told.stderr
