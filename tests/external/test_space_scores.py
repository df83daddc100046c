"""Feature spaces for images of other tools: `score`, `memorization_ratio` and the Monitor."""

import json
from pathlib import Path

import numpy as np
import pytest
import spaces
import tiny
import torch
from PIL import Image

import diffmem
from diffmem.data import load_source
from diffmem.errors import DataError, StoreError
from diffmem.external.score import score_images
from diffmem.store.store import Store

DIGITS = load_source("digits", None).images
COPIES = [5, 5, 9, 700]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    for folder, images in (
        ("samples", [*DIGITS[COPIES], *noise(3)]),
        ("train", DIGITS[:800]),
        ("new", DIGITS[800:1100]),
    ):
        Path(folder).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image[0]).save(f"{folder}/{number:03d}.png")
    spaces.torchscript(tmp_path / "net.pt")


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, 1, 8, 8), dtype=np.uint8)


def similarities(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the highest cosine similarity of each image, of features of the convolution in float64."""
    u, v = (
        spaces.Convolution()(torch.from_numpy(np.array(each)).float() / 255).double().numpy()
        for each in (images, training)
    )
    u, v = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (u, v))
    return (u @ v.T).max(axis=1)


SPACE = 'net = {features = "net.pt", pixels = "0..1", threshold = 0.9999}'
TABLE = {"features": "net.pt", "pixels": "0..1", "threshold": 0.9999}


def test_score_has_a_space_with_its_null_and_the_threshold_of_1_percent() -> None:
    given = ("--images", "samples", "--against", "train", "--held-out", "new", "--space", SPACE, "--store", "s.duckdb")
    printed = tiny.here("score", *given)
    assert printed.returncode == 0, printed.stderr
    unseen = similarities(DIGITS[800:1100], DIGITS[:800])
    found = similarities(np.concatenate([DIGITS[COPIES], noise(3)]), DIGITS[:800])
    called, at = (unseen > 0.9999).sum(), np.sort(unseen)[-4]
    assert f"copied share (net) {(found > 0.9999).mean():.4f} " in printed.stdout
    assert "an image is copied if the cosine similarity to its most similar training image is above 0.9999 in the" in (
        printed.stdout
    )
    assert (
        f"of 300 held-out images {called} would be called that; a threshold at 1% of held-out images would be a "
        f"similarity of {at:.4f}\n"
    ) in printed.stdout
    data = json.loads(tiny.here("score", *given, "--json").stdout)
    (null,) = data["nulls"]
    assert (null["measure"], null["samples"], null["ratio"]) == ("net", 300, pytest.approx(called / 300))
    assert null["threshold"] == pytest.approx(at, abs=1e-6)
    (measured,) = data["measurements"]
    assert (measured["measure"], measured["value"]) == ("net", pytest.approx((found > 0.9999).mean()))


def test_other_measures_have_their_null_too_and_no_similarity() -> None:
    score = score_images("samples", "train", Store(Path("s.duckdb")), measures=["calibrated"], held_out="new")
    (null,) = score.nulls
    assert (null.measure, null.samples) == ("calibrated", 300)
    printed = tiny.here(
        *("score", "--images", "samples", "--against", "train", "--held-out", "new", "--measure", "calibrated"),
        *("--store", "s.duckdb"),
    )
    assert f"of 300 held-out images {round(null.ratio * 300)} would be called that\n" in printed.stdout


def test_a_space_that_is_no_toml_or_no_space_is_refused() -> None:
    def refused(*texts: str) -> str:
        more = [each for text in texts for each in ("--space", text)]
        found = tiny.here("score", "--images", "samples", "--against", "train", *more, "--store", "s.duckdb")
        assert found.returncode == 2
        return " ".join(found.stderr.split())

    assert "Invalid value for '--space': net: not NAME = {...} in TOML syntax" in refused("net")
    assert "Invalid value for '--space': net = 3: not NAME = {...}, each name once" in refused("net = 3")
    assert f"Invalid value for '--space': {SPACE}: not NAME = {{...}}, each name once" in refused(SPACE, SPACE)
    assert refused('net = {features = "net.pt"}').startswith("the space net: threshold: missing; a similarity needs")
    assert not Path("s.duckdb").exists()


def test_another_space_of_a_name_is_refused_before_images_are_scored() -> None:
    store = Store(Path("s.duckdb"))
    score_images("samples", "train", store, spaces={"net": TABLE})
    with pytest.raises(
        StoreError, match=r"the space net is not the one that was measured there: threshold was 0\.9999"
    ):
        score_images("samples", "train", store, spaces={"net": {**TABLE, "threshold": 0.5}})


def test_the_ratio_in_a_space_is_by_its_rule() -> None:
    images = np.concatenate([DIGITS[COPIES], noise(3)])
    assert diffmem.memorization_ratio(images, DIGITS[:800], space=TABLE) == pytest.approx(
        (similarities(images, DIGITS[:800]) > 0.9999).mean()
    )
    by_function = {"features": spaces.pixels, "rule": "nearest"}
    assert diffmem.memorization_ratio(images, DIGITS[:800], space=by_function) == diffmem.memorization_ratio(
        images, DIGITS[:800]
    )
    for more in ({"threshold": 0.2}, {"groups": "near"}):
        with pytest.raises(DataError) as refused:
            diffmem.memorization_ratio(images, DIGITS[:800], space=TABLE, **more)
        assert str(refused.value) == (
            "space has its own threshold, and groups are of pixels; leave out threshold, groups and augment"
        )


def test_a_monitor_scores_in_spaces_and_its_store_keeps_what_they_are() -> None:
    monitor = diffmem.Monitor(
        DIGITS[:50],
        store="s.duckdb",
        name="mine",
        every=1,
        samples=4,
        held_out=DIGITS[50:250],
        spaces={"net": TABLE, "own": {"features": spaces.pixels, "rule": "nearest"}},
    )
    assert monitor.score(DIGITS[:4], 1) == 1
    monitor.close()
    store = Store(Path("s.duckdb"))
    found = {each.measure: each.value for each in store.measurements(monitor.cell.cell_id, 1)}
    assert found == {"nearest": 1.0, "net": 1.0, "own": 1.0}
    measures = store.study("mine").measures
    null = store.nulls("mine", measures["net"], measures["net"].threshold)[0]
    assert null.copies == (similarities(DIGITS[50:250], DIGITS[:50]) > 0.9999).sum()
    with pytest.raises(DataError, match=r"^the space bad \(spaces:raising\): it failed on 2 images of 1 x 8 x 8: "):
        diffmem.Monitor(DIGITS[:50], store="s.duckdb", name="x", spaces={"bad": {**TABLE, "features": spaces.raising}})
    with pytest.raises(StoreError, match="the space net is not the one that was measured there: "):
        diffmem.Monitor(DIGITS[:50], store="s.duckdb", name="x", spaces={"net": {**TABLE, "pixels": "0..255"}})
