"""Which images are copies: of which kind, in a sentence, in a list, and of a pipeline's images."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from diffmem.data import load_source
from diffmem.errors import DataError
from diffmem.external import matches, score_images, score_pipeline
from diffmem.external.foreign import pipeline_name
from diffmem.report.page import render_page
from diffmem.store.store import Store


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))


def save(folder: str, images: list[np.ndarray]) -> None:
    Path(folder).mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.astype(np.uint8)).save(f"{folder}/{number}.png")


@pytest.fixture
def digits() -> np.ndarray:
    """Train on 40 digits, of which number 7 is there twice."""
    digits = load_source("digits", None).images[:40, 0]
    save("train", [*digits, digits[7]])
    return digits


def noise(count: int) -> list[np.ndarray]:
    return [*np.random.default_rng(0).integers(256, size=(count, 8, 8))]


def test_each_kind_of_copy_is_counted_once_and_listed_with_what_it_is_a_copy_of(digits: np.ndarray) -> None:
    right = np.concatenate([digits[20][:, :1], digits[20][:, :-1]], axis=1)  # shifted, its edge repeated
    save("samples", [*noise(2), digits[5], digits[30][:, ::-1], right, digits[7]])
    save("unseen", [*noise(5)[2:], digits[12][:, ::-1], digits[7] ^ 1])
    result = tiny.here(
        *("score", "--images", "samples", "--against", "train", "--held-out", "unseen", "--list", "new/copies.csv")
    )
    answer = (
        "1 of 6 images is a copy of a training image (16.7%, 95% interval 3.0% to 56.4%); 1 more image is a copy of a "
        "training image that is there more than once; 2 more images are copies of mirrored or shifted training images. "
        "Of 5 held-out images, 0 would be called copies, 1 of those that are there more than once, 1 of mirrored or "
        "shifted ones (p = 0.55)."
    )
    assert result.stdout.splitlines()[0] == answer
    assert result.stdout.endswith("each image and what it is nearest to: new/copies.csv\n")
    page = render_page(Store(Path("store/diffmem.duckdb")), ["samples"])
    shown = dict(re.findall(r'data-called="([^"]*)"[^>]* data-copy-of="([^"]*)"', page))
    assert shown == {
        "samples/3.png": "mirrored or shifted copy of train/30.png",
        "samples/4.png": "mirrored or shifted copy of train/20.png",
        "samples/5.png": "copy of a duplicate of train/40.png",
    }
    assert page.count('<figure class="pair also"') == 3
    assert "samples: 2 more images are copies of mirrored or shifted training images" in page
    assert "samples: 1 more image is a copy of a training image that is there more than once" in page
    with Path("new/copies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sample"], row["copy"], row["nearest"], row["group"]) for row in rows[:4]] == [
        ("samples/2.png", "copy", "train/5.png", ""),
        ("samples/3.png", "mirrored or shifted copy", "train/30.png", ""),
        ("samples/4.png", "mirrored or shifted copy", "train/20.png", ""),
        ("samples/5.png", "copy of a duplicate", "train/40.png", "train/40.png"),
    ]
    assert [row["copy"] for row in rows[4:]] == ["", ""]
    ratios = [float(row["distance_ratio"]) for row in rows]
    assert ratios == sorted(ratios)
    assert ratios[:4] == [0, 0, 0, 0]
    assert ratios[4] > 0.5


@pytest.mark.parametrize("place", ["noted/copies.csv", "link.csv"])
def test_a_list_that_cannot_be_written_is_refused_before_anything_is_scored(digits: np.ndarray, place: str) -> None:
    save("samples", [digits[5]])
    Path("noted").write_text("a file")
    Path("link.csv").symlink_to("noted/copies.csv")
    told = tiny.here("score", "--images", "samples", "--against", "train", "--list", place)
    assert (told.returncode, told.stdout) == (2, "")
    named = place if "noted" in place else Path("noted/copies.csv").absolute()
    assert told.stderr == f"{named}: cannot be written: Not a directory; name another file\n"
    assert not Path("store").exists()


def test_what_was_looked_for_beside_the_paper_s_copies_is_no_measure_of_the_store(digits: np.ndarray) -> None:
    save("samples", [digits[30][:, ::-1]])
    store = Store(Path("s.duckdb"))
    score = score_images("samples", "train", store, held_out="train")
    assert (score.memorized, score.mirrored, score.duplicated) == (0, 1, 0)
    assert store.rows("SELECT DISTINCT measure FROM held_out") == [{"measure": "nearest"}]
    assert not store.rows("FROM measurements")


def test_among_too_many_images_nobody_looks_for_mirrored_copies_unasked_and_the_answer_says_so(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matches.MOST_COMPARED, "cpu", 1)
    save("samples", [digits[5], digits[30][:, ::-1]])
    unasked = tiny.here("score", "--images", "samples", "--against", "train")
    assert (
        "; copies of mirrored, shifted or doubled training images were not looked for among so many: --groups exact "
        "--augment hflip --augment shift does. How often" in unasked.stdout
    )
    store = Store(Path("store/diffmem.duckdb"))

    def page_says() -> tuple[bool, bool]:
        page = render_page(store, ["samples"])
        return "were not looked for among so many" in page, "dashed: copies of mirrored" in page

    assert page_says() == (True, False)
    asked = ("--groups", "exact", "--augment", "hflip", "--augment", "shift")
    told = tiny.here("score", "--images", "samples", "--against", "train", *asked)
    assert "; 1 more image is a copy of a mirrored or shifted training image." in told.stdout
    assert "were not looked for" not in told.stdout
    assert page_says() == (False, True)


@pytest.mark.usefixtures("digits")
def test_a_set_scored_against_itself_is_called_that() -> None:
    told = tiny.here("score", "--images", "train", "--against", "train")
    # the two that are identical have another one as near, and are no copies by the paper's rule
    assert told.stdout.startswith(
        "39 of 41 images are copies of training images (95.1%, 95% interval 83.9% to 98.7%); all of them are training "
        "images, pixel by pixel (were they scored against themselves?); 2 more images are copies of training images "
        "that are there more than once. "
    )


def test_held_out_images_count_among_those_that_are_compared_and_training_images_have_a_limit_too() -> None:
    cpu, shape = torch.device("cpu"), (10_000, 3, 32, 32)
    assert matches.looks_for_transformed(6000, shape, cpu)
    assert not matches.looks_for_transformed(7000, shape, cpu)
    assert not matches.looks_for_transformed(1, (20_001, 1, 8, 8), torch.device("cuda"))


def test_a_copy_at_no_distance_comes_first_also_where_its_ratio_is_unknown(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matches.MOST_COMPARED, "cpu", 1)
    save("samples", [*noise(2), digits[7]])
    first, *_ = score_images("samples/*.png", "train", Store(Path("s.duckdb"))).matches()
    assert (first.sample, first.copy, first.distance_ratio) == (str(Path("samples/2.png").absolute()), "", None)


# --- images of a pipeline -------------------------------------------------------------------------------


def test_a_pipeline_of_a_folder_is_scored_without_files_whatever_its_batch_size(pipelines: Path) -> None:
    shutil.copytree(pipelines / "ddpm", "ddpm")
    arguments = ("score", "--pipeline", "ddpm", "--against", "digits", "--steps", "3", "--samples")
    told = tiny.here(*arguments, "5", "--batch-size", "3", "--store", "one.duckdb", "--list", "one.csv")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("0 of 5 images are copies of training images (0.0%, 95% interval 0.0% to 43.4%). ")
    other = tiny.here(*arguments, "5", "--store", "other.duckdb", "--json")
    assert json.loads(other.stdout)["samples"] == 5
    distances = "SELECT nearest, d1, d2 FROM evidence ORDER BY ALL"
    assert Store(Path("one.duckdb")).rows(distances) == Store(Path("other.duckdb")).rows(distances)
    with Path("one.csv").open() as file:
        assert {row["sample"] for row in csv.DictReader(file)} == {f"ddpm:{number}" for number in range(5)}
    assert Store(Path("one.duckdb")).studies()[0].study == "ddpm"
    score = score_pipeline("ddpm", "digits", Store(Path("one.duckdb")), samples=2, steps=3, resolution=4)
    assert "ddpm: resized from 8x8 pixels" in score.notes


def test_a_pipeline_that_wants_a_prompt_or_is_not_there_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMPipeline

    class Prompted(DDPMPipeline):  # type: ignore[misc]
        def __call__(self, prompt, class_labels, batch_size=1, generator=None):  # noqa: ARG002
            raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: Prompted.__new__(Prompted))
        with pytest.raises(DataError) as refused:
            score_pipeline("sd", "digits", Store(Path("s.duckdb")))
    assert str(refused.value) == (
        "sd: Prompted generates from prompt, class_labels, and score gives it none; generate images with it, and score "
        "these with --images"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("empty").mkdir()
    told = tiny.here("score", "--pipeline", "empty", "--against", "digits")
    assert told.returncode == 2
    assert re.sub(r"\(.*\)", "(REASON)", told.stderr) == (
        "empty: no pipeline could be loaded (REASON); name a folder that pipeline.save_pretrained has written, or one "
        "of the Hugging Face Hub\n"
    )


def test_a_pipeline_of_something_else_than_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMPipeline

    class Audio(DDPMPipeline):  # type: ignore[misc]
        def to(self, *_: object) -> "Audio":
            return self

        def __call__(self, batch_size=1, generator=None, output_type="pil"):  # noqa: ARG002
            return SimpleNamespace(audios=[0.0])

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: Audio.__new__(Audio))
    monkeypatch.setattr(Audio, "set_progress_bar_config", lambda *_, **__: None)
    store = Store(Path("s.duckdb"))
    with pytest.raises(DataError) as refused:
        score_pipeline("sounds", "digits", store)
    assert str(refused.value) == "sounds: generates no images, and score compares images alone"
    with pytest.raises(DataError) as refused:
        score_pipeline("sounds", "digits", store, steps=3)
    assert str(refused.value) == (
        "sounds: Audio takes no num_inference_steps; generate images with it, and score these with --images"
    )
    for wrong in ({"measures": ["typo"]}, {"held_out": "nowhere"}, {"quality": True}):
        with pytest.raises(DataError, match=r"typo|nowhere|held-out"):  # before anything is generated
            score_pipeline("sounds", "digits", store, **wrong)


def test_a_pipeline_of_a_hub_is_known_by_the_name_of_its_repository() -> None:
    assert pipeline_name("google/ddpm-cifar10-32") == "ddpm-cifar10-32"
    assert pipeline_name("ddpm") == "ddpm"
    Path("here/mine").mkdir(parents=True)
    assert pipeline_name("here/mine/") == "mine"


def test_without_diffusers_a_pipeline_says_what_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    told = tiny.here("score", "--pipeline", "ddpm", "--against", "digits")
    assert told.stderr == "--pipeline needs the package diffusers; `pip install diffmem[diffusers]` adds it\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name the images to score with --images, or a pipeline with --pipeline, one of both"),
        (
            ["--images", "a", "--pipeline", "b"],
            "name the images to score with --images, or a pipeline with --pipeline, one of both",
        ),
        (
            ["--images", "a", "--samples", "5", "--batch-size", "2"],
            "--samples, --batch-size: of a --pipeline, and none is named",
        ),
    ],
)
def test_options_that_do_not_go_together_are_answered(options: list[str], said: str) -> None:
    told = tiny.here("score", "--against", "digits", *options)
    assert (told.returncode, told.stderr.splitlines()[-1]) == (2, f"Error: {said}")
