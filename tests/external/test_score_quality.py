"""`diffmem score --quality`: the images of any generator beside training images and new ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.data import load_source
from diffmem.errors import DataError
from diffmem.external.score import score_images
from diffmem.measures import quality
from diffmem.store.store import Store

PARTS = {"copies": (0, 200), "train": (0, 500), "held": (500, 1100), "other": (1100, 1500), "new": (1500, 1700)}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with digits, some of them as training images, copies of these, and others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    for name, (first, last) in PARTS.items():
        np.savez(f"{name}.npz", images=part(first, last).transpose(0, 2, 3, 1))


def part(first: int, last: int) -> np.ndarray:
    images = load_source("digits", None).images
    found: np.ndarray = images[np.random.default_rng(0).permutation(len(images))][first:last]
    return found


def test_copies_are_nearer_than_new_images_to_the_training_set_alone() -> None:
    store = Store(Path("s.duckdb"))
    found = {
        name: {
            (each.quantity, each.against): each
            for each in score_images(f"{name}.npz", "train.npz", store, held_out="held.npz", quality=True).quality
        }
        for name in ("copies", "new")
    }
    distances = {name: values["frechet_distance", "training"] for name, values in found.items()}
    generated, training = (part(*PARTS[name]).reshape(-1, 64) for name in ("copies", "train"))
    assert distances["copies"].value == pytest.approx(quality.frechet_distance(generated, training))
    assert distances["copies"].high < distances["new"].low
    assert found["copies"]["authentic", "training"].value == 0
    assert found["copies"]["c_t", "training"].high < -5 < found["new"]["c_t", "training"].low
    assert (distances["new"].n, distances["new"].real, distances["new"].null_n) == (200, 500, 300)
    assert len(store.rows("SELECT DISTINCT cell_id FROM quality")) == 2


def test_other_held_out_images_take_the_place_of_the_first_ones() -> None:
    store = Store(Path("s.duckdb"))
    for name, images in (("held", 300), ("other", 200)):
        score_images("new.npz", "train.npz", store, held_out=f"{name}.npz", quality=True)
        (row,) = store.rows("SELECT DISTINCT real FROM quality WHERE against = 'held_out' AND quantity = 'c_t'")
        assert row["real"] == images


def test_the_command_prints_the_quality_as_text_and_as_data() -> None:
    arguments = ["score", "--images", "copies.npz", "--against", "train.npz", "--held-out", "held.npz", "--quality"]
    said = tiny.here(*arguments, COLUMNS="160")
    assert said.returncode == 0, said.stderr
    data = json.loads(tiny.here(*arguments, "--json").stdout)["quality"]
    found = {(each["quantity"], each["against"]): each for each in data}
    assert len(found) == len(data) == 14
    assert "quality of the images:" in said.stdout
    lines = [line.split() for line in said.stdout.splitlines() if line.startswith("pixels")]
    assert [line[:3] for line in lines] == [["pixels", "training", "200/500"], ["pixels", "held-out", "200/300"]]
    for line, against in zip(lines, ("training", "held_out"), strict=True):
        assert line[3] == f"{found['frechet_distance', against]['value']:.4g}"
        assert line[-1] == f"{found['c_t', against]['value']:.3f}"
    assert json.loads(tiny.here("quality", "copies", "--json").stdout)["values"][0]["space"] == "pixels"
    without = json.loads(tiny.here(*arguments[:-1], "--json").stdout)
    assert without["quality"] == []


def test_too_few_images_are_a_note_with_their_counts() -> None:
    np.savez("few.npz", images=part(0, 10).transpose(0, 2, 3, 1))
    arguments = ["score", "--images", "few.npz", "--against", "train.npz", "--held-out", "few.npz", "--quality"]
    said = tiny.here(*arguments)
    assert (
        "note: quality needs 12 generated images, 6 training images and 24 held-out ones, and there are 10, 500 and 10"
        in said.stdout
    )
    assert "quality of the images:" not in said.stdout
    notes = [row["note"] for row in Store(Path("store/diffmem.duckdb")).rows("FROM notes")]
    assert any(note.startswith("quality needs") for note in notes)


def test_a_quality_needs_held_out_images() -> None:
    refused = tiny.here("score", "--images", "new.npz", "--against", "train.npz", "--quality")
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert said.endswith("--quality compares with held-out images too; add --held-out IMAGES")
    with pytest.raises(DataError) as told:
        score_images("new.npz", "train.npz", Store(Path("s.duckdb")), quality=True)
    assert str(told.value) == (
        "quality is measured beside held-out images too, and none are given; --held-out IMAGES names them"
    )


def test_grey_images_beside_those_in_colour_are_repeated_as_colours() -> None:
    colour = np.repeat(part(*PARTS["train"]), 3, axis=1)
    np.savez("colour.npz", images=colour.transpose(0, 2, 3, 1))
    store = Store(Path("s.duckdb"))
    found = score_images("new.npz", "colour.npz", store, held_out="held.npz", quality=True).quality
    assert {each.dimensions for each in found} == {192}
    grey = score_images("new.npz", "train.npz", store, held_out="held.npz", quality=True).quality
    for one, other in zip(found, grey, strict=True):
        scale = 3 if one.quantity == "frechet_distance" else 1
        assert one.value == pytest.approx(scale * other.value)
