"""Feature spaces in studies: evidence against numpy, the null beside a similarity, and one space to a name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spaces
import tiny

from diffmem.analysis.curves import study_curves
from diffmem.data.training_sets import held_out, training_set
from diffmem.errors import DataError, StoreError
from diffmem.measures import MEASURES, SpaceIdentity
from diffmem.report.page import render_page
from diffmem.runs.kept_models import images_of
from diffmem.runs.measuring import Later, measure_study
from diffmem.runs.runner import run_study
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study

STUDY = """
title = "Spaces"

[P]
dataset = "digits"

[M]
network = "optimum"
precondition = "edm"

[[axes]]
P.size = [8, 12]

[score]
samples = 20
steps = 3
held_out = 250
measures = ["own", "net"]

[spaces.own]
features = "spaces:pixels"
rule = "nearest"

[spaces.net]
features = "net.pt"
pixels = "0..1"
threshold = 0.95

[emm]
measure = "net"
"""


def written(folder: Path, text: str = STUDY, **more: int) -> Path:
    spaces.torchscript(folder / "net.pt", **more)
    return tiny.write(folder, text, "spaces")


def run(folder: Path, text: str = STUDY) -> tuple[Study, Store]:
    study, store = Study.load(written(folder, text)), Store(folder / "s.duckdb")
    for _ in run_study(study, store):
        pass
    return study, store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    return run(tmp_path_factory.mktemp("made"))


def unit_features(images: np.ndarray) -> np.ndarray:
    """Return the features of the convolution scaled to length 1, in float64."""
    import torch

    found = spaces.Convolution()(torch.from_numpy(np.array(images)).float() / 255).double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rows(store: Store, table: str, where: str, *values: Any) -> dict[str, np.ndarray]:
    return store.columns(f"SELECT nearest, distance, yardstick FROM {table} WHERE {where} ORDER BY sample", values)


def test_the_pixels_as_a_space_repeat_the_paper_s_ratio_to_the_bit(made: tuple[Study, Store]) -> None:
    study, store = made
    for entry in study.cells:
        own = rows(store, "measure_evidence", "measure = 'own' AND cell_id = ?", entry.cell.cell_id)
        paper = store.distances(entry.cell.cell_id, 0)
        for key, column in (("nearest", "nearest"), ("distance", "d1"), ("yardstick", "d2")):
            assert own[key].tolist() == paper[column].tolist()
    by_own, by_paper = (study_curves(store, "spaces", name) for name in ("own", "nearest"))
    assert by_own == by_paper


def test_similarities_of_held_out_images_and_their_threshold_are_those_of_numpy(made: tuple[Study, Store]) -> None:
    study, store = made
    (curve,) = study_curves(store, "spaces")
    nulls = store.nulls("spaces", study.measure, study.threshold)
    for position, (entry, point) in enumerate(zip(study.cells, curve.points, strict=True)):
        unseen, seen = (unit_features(each) for each in (held_out(entry.cell, 250), training_set(entry.cell).images))
        similarity, null = (unseen @ seen.T).max(axis=1), nulls[position]
        assert null.copies == (similarity > 0.95).sum()
        # a hundredth of 250 images is 2: two exceed it
        assert 1 - null.at_one_percent == pytest.approx(np.sort(similarity)[-3], abs=1e-6)
        assert point.null_threshold == null.at_one_percent
        assert (similarity > 1 - null.at_one_percent + 1e-6).sum() == 2


def test_the_threshold_of_the_null_stands_where_the_null_does(made: tuple[Study, Store]) -> None:
    _, store = made
    (curve,) = study_curves(store, "spaces")
    at = {str(point.size): 1 - (point.null_threshold or 0) for point in curve.points}
    told = f"{at['8']:.4f} at N = 8, {at['12']:.4f} at N = 12"
    said = f"a threshold at 1% of held-out images would be a similarity of {told}"

    def printed(*arguments: str) -> str:
        found = tiny.here(*arguments, "--store", store.path)
        assert found.returncode == 0, found.stderr
        return " ".join(found.stdout.split())

    assert said in printed("emm", "spaces")
    assert said in printed("status", "spaces")
    assert said.replace("a thr", "A thr") in render_page(store, ["spaces"])
    (row,) = json.loads(printed("emm", "spaces", "--json"))["curves"]
    assert row["null_thresholds"] == pytest.approx(at)
    assert [each["null_threshold"] for each in json.loads(printed("status", "spaces", "--json"))] == list(at.values())
    assert "similarity of" not in printed("emm", "spaces", "--measure", "own")
    own = json.loads(printed("emm", "spaces", "--measure", "own", "--json"))
    (nearest,) = json.loads(printed("emm", "spaces", "--measure", "nearest", "--json"))["curves"]
    assert own["measure"] == "own"
    assert own["curves"][0]["null_thresholds"] == nearest["null_thresholds"]


@pytest.mark.parametrize(("held_out", "told"), [(0, False), (50, True)])
def test_few_held_out_images_are_told_of_and_none_have_no_threshold(held_out: int, told: bool, tmp_path: Path) -> None:
    study, store = Study.load(written(tmp_path), overrides=[f"score.held_out={held_out}"]), Store(tmp_path / "s.duckdb")
    for _ in run_study(study, store):
        pass
    printed = " ".join(tiny.here("emm", "spaces", "--store", store.path).stdout.split())
    assert ("a threshold at 1% of held-out images would be" in printed) == told
    assert ("50 held-out images at most in 2 cells: too few to tell a false-positive rate of 1%" in printed) == told
    (curve,) = json.loads(tiny.here("emm", "spaces", "--json", "--store", store.path).stdout)["curves"]
    assert [value is not None for value in curve["null_thresholds"].values()] == [told] * 2


def test_a_space_is_shown_as_every_measure_is(made: tuple[Study, Store]) -> None:
    _, store = made
    page = render_page(store, ["spaces"])
    assert "cosine similarity to its most similar training image is above 0.95 in the space net" in page
    assert "1 - cosine similarity to the most similar training image (net)" in page
    exported = json.loads(tiny.here("export", "emm", "--json", "--store", store.path).stdout)
    assert {row["measure"]: row["threshold"] for row in exported}["net"] == pytest.approx(0.05)
    checkpoints = json.loads(tiny.here("export", "checkpoints", "--json", "--store", store.path).stdout)
    assert {row["measure"] for row in checkpoints if row["null_ratio"] is not None} == {"nearest", "own", "net"}
    assert tiny.here("store", "check", store.path).stdout == f"{store.path}: in order\n"
    assert tiny.here("onset", "spaces", "--measure", "own", "--store", store.path).returncode == 0
    refused = tiny.here("emm", "spaces", "--measure", "nosuch", "--store", store.path)
    assert refused.returncode == 2
    known = ", ".join(map(repr, [*MEASURES, "own", "net"]))
    assert refused.stderr.endswith(f"Error: Invalid value for '--measure': 'nosuch' is not one of {known}.\n")


def test_a_store_keeps_what_a_space_is(made: tuple[Study, Store]) -> None:
    _, store = made
    own, net = store.rows("FROM spaces ORDER BY rule")
    assert (own["measure"], own["features"], own["rule"], own["dimensions"]) == ("own", "spaces:pixels", "nearest", 64)
    assert (net["features"], net["pixels"], net["threshold"], net["dimensions"]) == ("net.pt", "0..1", 0.95, 16)
    assert all(re.fullmatch("sha256:[0-9a-f]{32}", each["content"]) for each in (own, net))


OTHERWISE = {
    'resize = "square 8"': "resize was 'none', now 'square 8'",
    'rule = "nearest"': "rule was 'similarity', now 'nearest'",
}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('pixels = "0..1"', 'pixels = "0..255"', "pixels was '0..1', now '0..255'"),
        ("threshold = 0.95", "threshold = 0.9", "threshold was 0.95, now 0.9"),
        *(("threshold = 0.95", f"threshold = 0.95\n{more}", told) for more, told in OTHERWISE.items()),
    ],
)
def test_another_space_of_a_name_is_refused_before_anything_is_trained(
    old: str, new: str, said: str, made: tuple[Study, Store], tmp_path: Path
) -> None:
    _, store = made
    study = Study.load(written(tmp_path, STUDY.replace(old, new)), overrides=["P.size=[8,12,16]"])
    with pytest.raises(StoreError) as refused:
        next(iter(run_study(study, store)))
    assert str(refused.value) == (
        f"{store.path}: the space net is not the one that was measured there: {said}; give this one another name, as "
        "net-2, or use another --store"
    )
    assert len(store.cells("spaces")) == 2


def test_another_file_under_a_name_is_refused(made: tuple[Study, Store], tmp_path: Path) -> None:
    _, store = made
    study = Study.load(written(tmp_path, seed=1))
    with pytest.raises(StoreError) as refused:
        list(measure_study(study, store, measures=["net"]))
    said = "the content of its features (file, weights or source) is another one"
    assert f"the space net is not the one that was measured there: {said}; give" in str(refused.value)


def test_a_space_of_another_length_is_another_one(tmp_path: Path) -> None:
    _, store = run(tmp_path)
    smaller = Study.load(tmp_path / "spaces.toml", overrides=["P.resolution=4"])
    with pytest.raises(StoreError) as refused:
        next(iter(run_study(smaller, store)))
    said = 'its features had 64 numbers, now 16; resize = "square S" makes images of all sizes alike'
    assert f"the space own is not the one that was measured there: {said}; give" in str(refused.value)


def test_a_file_that_is_not_there_ends_a_run_before_the_store_is_written(tmp_path: Path) -> None:
    study, store = Study.load(tiny.write(tmp_path, STUDY, "spaces")), Store(tmp_path / "s.duckdb")
    with pytest.raises(DataError, match=r"net\.pt cannot be read: No such file or directory; features are a file"):
        next(iter(run_study(study, store)))
    assert not store.exists()


def test_stores_are_merged_with_their_spaces_unless_a_name_is_of_two(tmp_path: Path) -> None:
    stores = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        path = written(tmp_path / str(number), seed=number // 2)
        study, store = Study.load(path, overrides=[f"P.size={8 + 4 * number}"]), Store(path.with_suffix(".duckdb"))
        for _ in run_study(study, store):
            pass
        stores.append(store)
    into, same, other = stores
    assert merge(into, same.path) == 1
    assert {row["measure"] for row in into.rows("SELECT DISTINCT measure FROM spaces")} == {"own", "net"}
    with pytest.raises(StoreError) as refused:
        merge(into, other.path)
    said = "the content of its features (file, weights or source) is another one"
    assert str(refused.value) == (
        f"{other.path}: cannot be merged with {into.path}: the space net is not the one that was measured there: "
        f"{said}; give this one another name, as net-2, or use another --store"
    )
    empty = Store(tmp_path / "empty.duckdb")
    assert merge(empty, into.path) == 2
    assert len(empty.rows("FROM spaces")) == 2


def test_the_identity_of_a_space_is_refused_by_one_word(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.duckdb")
    space = SpaceIdentity("own", "a:b", "sha256:0", "none", "0..1", "nearest", 1 / 3, 4)
    for _ in range(2):
        store.add_spaces([space])
    with pytest.raises(StoreError, match=r"threshold was 0\.333333, now 0\.5"):
        store.add_spaces([replace(space, threshold=0.5)])
    assert len(store.rows("FROM spaces")) == 1


# --- measured later ------------------------------------------------------------------------------------

TRAINED = tiny.TEXT.replace("[[axes]]\nM.dropout = [0.0, 0.2]\n", "")
NET = '\n[spaces.net]\nfeatures = "net.pt"\npixels = "0..1"\nthreshold = 0.95\n'


def test_a_space_is_measured_later_from_kept_weights_as_a_run_would_have(tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    store = Store(tmp_path / "s.duckdb")
    for _ in run_study(Study.load(tiny.write(tmp_path, TRAINED)), store):
        pass
    path = written(tmp_path, TRAINED + 'measures = ["net"]\n' + NET).rename(tmp_path / "tiny.toml")
    study = Study.load(path)
    later = [each for each in measure_study(study, store, measures=["net"]) if isinstance(each, Later)]
    at_once = Store(tmp_path / "later" / "s.duckdb")
    for _ in run_study(study, at_once):
        pass
    cell = study.cells[0].cell
    both = [
        rows(each, "measure_evidence", "measure = 'net' AND cell_id = ? AND epoch = 30", cell.cell_id)
        for each in (store, at_once)
    ]
    for key in ("nearest", "distance", "yardstick"):
        np.testing.assert_allclose(both[0][key], both[1][key], atol=1e-12)
    assert [(each.measure, each.epoch, each.new) for each in later] == [("net", 30, True)]
    assert {row["measure"] for row in store.rows("SELECT DISTINCT measure FROM held_out")} == {"nearest", "net"}
    printed = tiny.here("measure", path, "--measure", "net", "--json", "--store", store.path)
    assert [(row["measure"], row["new"]) for row in json.loads(printed.stdout)["measured"]] == [("net", False)]
    refused = tiny.here("measure", path, "--measure", "nosuch", "--store", store.path)
    assert refused.returncode == 2
    assert "'nosuch' is not one of 'nearest', 'calibrated', " in refused.stderr
    assert "'gaps', 'membership', 'quality', 'net'." in refused.stderr


def test_generated_images_have_the_similarities_of_numpy(made: tuple[Study, Store]) -> None:
    import torch

    from diffmem.networks import UntrainedModel

    study, store = made
    cell = study.cells[0].cell
    training = training_set(cell)
    assert isinstance(cell.M, UntrainedModel)
    clean = torch.from_numpy(np.array(training.images)).float() / 127.5 - 1
    denoiser = cell.M.from_images(clean, None, count=0)
    generated = torch.cat([batch.images for batch in images_of(denoiser, cell, 20, device="cpu")])
    similarity = unit_features(generated.numpy()) @ unit_features(training.images).T
    found = rows(store, "measure_evidence", "measure = 'net' AND cell_id = ?", cell.cell_id)
    assert found["nearest"].tolist() == similarity.argmax(axis=1).tolist()
    np.testing.assert_allclose(1 - found["distance"], similarity.max(axis=1), atol=1e-6)
    (row,) = store.rows("SELECT value FROM measurements WHERE measure = 'net' AND cell_id = ?", [cell.cell_id])
    assert row["value"] == (similarity.max(axis=1) > 0.95).mean()


QUALITY = STUDY.replace('measures = ["own", "net"]', 'measures = ["own", "net", "quality"]').replace(
    "size = [8, 12]", "size = [100]"
)


def test_the_quality_is_measured_in_every_space_and_in_pixels_as_features_like_in_pixels(tmp_path: Path) -> None:
    _, store = run(tmp_path, QUALITY)
    found = {
        space: {
            (row["against"], row["quantity"]): row["value"]
            for row in store.rows("SELECT * FROM quality WHERE space = ?", [space])
        }
        for space in ("pixels", "own", "net")
    }
    assert len(found["pixels"]) > 10
    assert found["own"] == found["pixels"]
    assert found["net"].keys() == found["pixels"].keys()
    assert found["net"] != found["pixels"]


def test_a_space_that_a_checkpoint_lacks_is_added_to_its_quality_and_what_it_has_stays(tmp_path: Path) -> None:
    study, store = run(tmp_path, QUALITY)
    whole = store.rows("FROM quality ORDER BY ALL")
    with store.writing() as connection:
        connection.execute("DELETE FROM quality WHERE space = 'net'")
    found = [each for each in measure_study(study, store, measures=["quality"]) if isinstance(each, Later)]
    assert store.rows("FROM quality ORDER BY ALL") == whole
    assert {(each.quantity, each.new) for each in found} == {
        (f"Frechet distance ({space}) to {against} images", space == "net")
        for space in ("pixels", "own", "net")
        for against in ("training", "held-out")
    }
