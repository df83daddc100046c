"""`diffmem score`: the images of any generator against any training set."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tiny
from click.testing import CliRunner
from PIL import Image

from diffmem.analysis.curves import study_curves
from diffmem.cli import main
from diffmem.data import load_source
from diffmem.errors import DataError
from diffmem.external.score import score_images
from diffmem.measures.nearest import NEAREST
from diffmem.report.page import render_page
from diffmem.store.merging import merge
from diffmem.store.store import Store

COPIED = [5, 5, 5, 5, 9, 9, 700]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def samples() -> Path:
    """Return a folder of 7 near copies of digits and 3 images of noise."""
    digits = load_source("digits", None).images[:, 0]
    copies = [np.where(digits[i] > 128, digits[i] - 2, digits[i] + 2) for i in COPIED]
    noise = np.random.default_rng(0).integers(256, size=(3, 8, 8))
    Path("samples").mkdir()
    for number, image in enumerate([*copies, *noise]):
        Image.fromarray(image.astype(np.uint8)).save(f"samples/{number:02d}.png")
    return Path("samples")


def test_copies_are_counted_and_named(samples: Path) -> None:
    score = score_images(samples, "digits", Store(Path("s.duckdb")))
    assert (score.memorized, score.samples, score.ratio) == (7, 10, 0.7)
    assert [(row.nearest, row.copies) for row in score.most_copied] == [(5, 4), (9, 2), (700, 1)]
    assert (score.replicated, score.size) == (3, 1797)
    z, p, n = 1.959963984540054, 0.7, 10  # Wilson 1927
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (score.low, score.high) == pytest.approx([(centre + s * half) / (1 + z**2 / n) for s in (-1, 1)])


def test_a_score_is_stored_like_any_other_checkpoint(samples: Path) -> None:
    store = Store(Path("s.duckdb"))
    for _ in range(2):
        score_images(samples, "digits", store)
    (row,) = store.rows("SELECT study, size, samples, memorized, ratio FROM results")
    assert row == {"study": "samples", "size": 1797, "samples": 10, "memorized": 7, "ratio": 0.7}
    evidence = store.rows("SELECT nearest, d1, d2 FROM evidence ORDER BY sample")
    order = np.random.default_rng(0).permutation(10).tolist()  # of the files by their names, as store/README.md says
    by_file = [evidence[order.index(number)] for number in range(10)]
    assert [e["nearest"] for e in by_file[:7]] == COPIED
    assert all(e["d1"] == 16 for e in by_file[:7])  # 64 pixels off by 2
    assert len(store.pairs("samples", NEAREST)) == 10


def test_what_is_copied_most_keeps_its_pictures(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmem.external.score.PAIRS", 1)  # of image 5 alone, there would be one otherwise
    store = Store(Path("s.duckdb"))
    score_images(samples, "digits", store)
    digits = load_source("digits", None).images[:, 0]
    copies = store.copies("samples", NEAREST, NEAREST.threshold)
    assert [(row.nearest, row.copies) for row in copies] == [(5, 4), (9, 2), (700, 1)]
    for row in copies:
        with Image.open(io.BytesIO(row.picture)) as picture:
            assert np.array_equal(np.asarray(picture), digits[row.nearest])


def test_samples_are_compared_at_their_own_size(samples: Path) -> None:
    for file in samples.glob("*.png"):
        Image.open(file).resize((4, 4)).save(file)
    store = Store(Path("s.duckdb"))
    score_images(samples, "digits", store)
    assert json.loads(store.rows("SELECT configuration FROM cells")[0]["configuration"])["P"]["resolution"] == 4


def test_the_command_prints_ratio_interval_and_the_most_copied_and_the_report_shows_them(samples: Path) -> None:
    result = CliRunner().invoke(main, ["score", "--images", str(samples), "--against", "digits"])
    assert result.exit_code == 0
    assert result.stdout.startswith(
        "7 of 10 images are copies of training images (70.0%, 95% interval 39.7% to 89.2%). How often images are "
        "called copies by chance, held-out images tell (--held-out IMAGES).\n"
        "A copy is an image whose nearest image of digits is less than a third as far away as the second nearest; the "
        "share of copies is the memorization ratio, 0.7000.\n"
    )
    assert "3 of 1797 training images are copied:\n" in result.stdout
    assert CliRunner().invoke(main, ["report", "samples"]).exit_code == 0
    page = Path("store/report.html").read_text()
    assert page.count('class="pair memorized"') == 7
    data = json.loads(
        CliRunner().invoke(main, ["score", "--images", "samples", "--against", "digits", "--json"]).stdout
    )
    assert data["ratio"] == 0.7


def test_a_score_is_said_as_a_test_against_held_out_images(samples: Path) -> None:
    digits = load_source("digits", None).images[:, 0]
    Path("unseen").mkdir()
    for number in range(40):  # 38 of noise, and 2 copies
        image = digits[number] if number < 2 else np.random.default_rng(number).integers(256, size=(8, 8))
        Image.fromarray(image.astype(np.uint8)).save(f"unseen/{number:02d}.png")
    arguments = ["score", "--images", str(samples), "--against", "digits", "--held-out", "unseen"]
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 0, said.output
    chance = scipy.stats.fisher_exact([[7, 3], [2, 38]], alternative="greater").pvalue
    assert f"Of 40 held-out images, 2 would be called copies (p = {chance:.2g})." in said.stdout
    assert "note: unseen: 2 of 40 held-out images are also in digits" in said.stdout
    assert "note: unseen: 40 held-out images, too few to tell a false-positive rate of 1%" in said.stdout
    data = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (data["null_ratio"], data["null_samples"]) == (0.05, 40)
    assert data["p_value"] == pytest.approx(chance)
    status = json.loads(CliRunner().invoke(main, ["status", "samples", "--json"]).stdout)
    assert [(row["null_ratio"], row["null_samples"]) for row in status] == [(0.05, 40)]
    shown = CliRunner().invoke(main, ["status", "samples"]).stdout
    assert [shown.count(each) for each in ("too few to tell", "are also in")] == [1, 1]


@pytest.mark.parametrize("images", [40, 30])
def test_the_held_out_images_given_last_are_the_null_also_where_they_are_no_more(samples: Path, images: int) -> None:
    digits, store = load_source("digits", None).images[:, 0], Store(Path("s.duckdb"))
    np.savez("noise.npz", images=np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8))
    np.savez("trained.npz", images=digits[:images])
    score_images(samples, "digits", store, held_out="noise.npz", measures=["calibrated"])
    again = score_images(samples, "digits", store, held_out="noise.npz")  # the same ones: nothing is forgotten
    assert (again.null_ratio, again.null_samples) == (0.0, 40)
    assert sorted(store.held_out_counts(store.cells("samples")[0].cell_id)) == ["calibrated", "nearest"]
    other = score_images(samples, "digits", store, held_out="trained.npz")
    assert (other.null_ratio, other.null_samples) == (1.0, images)
    replaced = f"trained.npz: {images} held-out images, in the place of 40 others that were given before"
    assert [each.notes[-1] == replaced for each in (again, other)] == [False, True]
    (null,) = store.nulls("samples", NEAREST, NEAREST.threshold).values()
    assert (null.ratio, null.samples) == (1.0, images)
    assert [*store.held_out_counts(store.cells("samples")[0].cell_id)] == ["nearest"]  # no measure has another null
    later = score_images(samples, "digits", store)
    assert (later.null_ratio, later.null_samples, later.p_value) == (1.0, images, 1.0)  # which the store has
    given = f"held-out images given before: {images} of {images} held-out images are also in digits"
    assert [note for note in later.notes if "also in" in note] == [given]


def test_each_training_set_has_its_own_null(samples: Path) -> None:
    digits, store = load_source("digits", None).images[:, 0], Store(Path("s.duckdb"))
    for name, images in (("train", digits[:20]), ("other", digits[20:60])):
        np.savez(f"{name}.npz", images=images)
    found = [
        score_images(samples, f"{name}.npz", store, held_out="other.npz", measures=["calibrated"])
        for name in ("train", "other", "train")
    ]
    assert [score.null_ratio for score in found] == [0.0, 1.0, 0.0]
    assert [score.nulls[0].ratio for score in found][1:] == [1.0, found[0].nulls[0].ratio]
    assert found[0].nulls[0].ratio < 1


def test_the_command_that_shows_a_score_names_its_store(samples: Path) -> None:
    arguments = ["score", "--images", samples.name, "--against", "digits"]
    said = CliRunner().invoke(main, arguments).stdout
    assert said.endswith("`diffmem report samples` shows them\n")
    said = CliRunner().invoke(main, [*arguments, "--store", "my results/s.duckdb"]).stdout
    assert said.endswith("`diffmem report samples --store 'my results/s.duckdb'` shows them\n")


def test_a_chance_that_is_next_to_none_is_said_so() -> None:
    digits = load_source("digits", None).images
    np.savez("copies.npz", images=digits[:100].transpose(0, 2, 3, 1))
    np.savez("noise.npz", images=np.random.default_rng(0).integers(256, size=(100, 8, 8, 1), dtype=np.uint8))
    said = CliRunner().invoke(
        main, ["score", "--images", "copies.npz", "--against", "digits", "--held-out", "noise.npz"]
    )
    assert "Of 100 held-out images, 0 would be called copies (p < 1e-20)." in said.stdout, said.output


def test_held_out_images_in_colour_are_no_null_of_grey_ones(samples: Path) -> None:
    np.savez("colour.npz", images=np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError) as refused:
        score_images(samples, "digits", Store(Path("s.duckdb")), held_out="colour.npz")
    assert str(refused.value) == "colour.npz: held-out images in colour, but the training images are grey"
    assert not Path("s.duckdb").exists()


def test_what_cannot_be_compared_is_refused_and_nothing_written(samples: Path) -> None:
    np.savez("large.npz", images=np.zeros((2, 16, 16), dtype=np.uint8))
    with pytest.raises(DataError, match=r"digits: .* 8x8 pixels, so 16x16 would enlarge them; --resolution N compares"):
        score_images(Path("large.npz"), "digits", Store(Path("s.duckdb")))
    np.savez("single.npz", images=np.zeros((1, 8, 8), dtype=np.uint8))
    with pytest.raises(DataError, match=r"single\.npz: one image"):
        score_images(samples, "single.npz", Store(Path("s.duckdb")))
    for arguments in (["nowhere", "digits"], [str(samples), "nowhere"]):
        result = CliRunner().invoke(main, ["score", "--images", arguments[0], "--against", arguments[1]])
        assert (result.exit_code, result.stdout) == (2, "")
        assert "nowhere: no such file or folder" in result.stderr
    assert not Path("s.duckdb").exists()
    assert not Path("store").exists()


def test_two_folders_of_one_name_stay_side_by_side(samples: Path) -> None:
    store = Store(Path("s.duckdb"))
    score_images(samples, "digits", store)
    other = samples.parent / "other" / samples.name
    shutil.copytree(samples, other)
    next(iter(sorted(other.glob("*.png")))).unlink()
    score = score_images(other, "digits", store)
    assert score.notes[-1] == (
        f"{other}: the study 'samples' also has the images of {samples}; --name gives these a study of their own"
    )
    assert [row.curve.partition(" (")[0] for row in store.cells(samples.name)] == [str(samples), str(other)]


def test_images_can_be_given_a_name(samples: Path) -> None:
    store = Store(Path("s.duckdb"))
    score_images(samples, "digits", store)
    told = tiny.here("score", "--images", str(samples), "--against", "digits", "--name", "mine", "--store", "s.duckdb")
    assert told.stdout.endswith("`diffmem report mine --store s.duckdb` shows them\n")
    assert {study.study: len(store.cells(study.study)) for study in store.studies()} == {"samples": 1, "mine": 1}
    assert not any("also has" in note for note in score_images(samples, "digits", store).notes)


def test_a_study_of_trained_networks_is_never_taken_over_by_a_score(samples: Path, tmp_path: Path) -> None:
    store = Store(Path("s.duckdb"))
    study = tiny.load(tmp_path, tiny.TEXT, name=samples.name)
    tiny.register(store, study)
    with pytest.raises(DataError) as caught:
        score_images(samples, "digits", store)
    told = str(caught.value).replace(str(samples), "samples")
    assert told == "samples: the store has a study 'samples' of trained networks; give these images another --name"
    assert len(store.cells(samples.name)) == len(study.cells)


def test_the_files_of_a_folder_that_are_copied_most_are_named(samples: Path) -> None:
    training = Path("training")
    for kind in ("b", "a"):
        (training / kind).mkdir(parents=True)
    for number, file in enumerate(sorted(samples.iterdir())):
        shutil.copy(file, training / "ba"[number % 2] / file.name)
    score = score_images(samples, str(training), Store(Path("s.duckdb")))
    named = {row.file: row.copies for row in score.most_copied}
    assert len(named) == len(score.most_copied) > 0
    images = load_source(str(training), 8).images
    for row in score.most_copied:
        with Image.open(row.file) as image:
            assert np.array_equal(np.asarray(image), images[row.nearest, 0])
    printed = CliRunner().invoke(main, ["score", "--images", "samples", "--against", "training"]).stdout
    assert all(Path(file).name in printed for file in named)


def test_the_same_images_against_two_training_sets_are_two_curves(samples: Path) -> None:
    digits, store = load_source("digits", None).images[:, 0], Store(Path("s.duckdb"))
    for name, images in (("train", digits[:20]), ("held", digits[20:40])):
        np.savez(f"{name}.npz", images=images)
        score_images(samples, f"{name}.npz", store)
    train, held = study_curves(store, "samples")
    assert [point.best for curve in (train, held) for point in curve.points] == [0.6, 0.0]
    assert train.label.startswith("samples (")
    assert ") against train.npz (" in train.label
    score_images(samples, "digits", store)
    assert any(curve.label.endswith(") against digits") for curve in study_curves(store, "samples"))


def test_other_images_in_the_same_folder_are_a_curve_of_their_own(samples: Path) -> None:
    store = Store(Path("s.duckdb"))
    score_images(samples, "digits", store)
    for number in range(5):
        (samples / f"{number:02d}.png").unlink()
    score_images(samples, "digits", store)
    score_images(samples, "digits", store)
    one, other = study_curves(store, "samples")
    assert one.label != other.label
    assert [point.best for curve in (one, other) for point in curve.points] == [0.7, 0.4]


def test_training_images_that_are_there_twice_are_told_for_their_copies_do_not_count(samples: Path) -> None:
    digits = load_source("digits", None).images[:20, 0]
    Path("train").mkdir()
    for number, image in enumerate([*digits, digits[5], digits[5]]):
        Image.fromarray(image).save(f"train/{number:02d}.png")
    score = score_images(samples, "train", Store(Path("s.duckdb")))
    assert score.twins == 3
    assert [row.nearest for row in score.most_copied] == [9]
    result = CliRunner().invoke(main, ["score", "--images", str(samples), "--against", "train"])
    assert "note: train: of 22 training images 3 are identical with another one" in result.stdout
    assert score_images(samples, "digits", Store(Path("s.duckdb"))).twins == 0


def test_the_ten_training_images_copied_most_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_source("digits", None).images[:, 0]
    Path("samples").mkdir()
    for number in range(30):
        Image.fromarray(digits[number % 15]).save(f"samples/{number:02d}.png")
    monkeypatch.setattr("diffmem.external.score.PAIRS", 1)
    store = Store(Path("s.duckdb"))
    assert score_images("samples", "digits", store).replicated == 15
    assert [row["nearest"] for row in store.rows("SELECT nearest FROM copied ORDER BY nearest")] == [*range(10)]
    printed = CliRunner().invoke(main, ["score", "--images", "samples", "--against", "digits"]).stdout
    assert "15 of 1797 training images are copied; the 10 that are copied most:\n" in printed


def test_a_pattern_is_named_by_its_folder(samples: Path) -> None:
    score = score_images(f"{samples}/*.png", "digits", Store(Path("s.duckdb")))
    assert (score.study, score.memorized, score.samples) == ("samples", 7, 10)


def test_the_order_of_file_names_decides_neither_on_the_gallery_nor_on_the_first_n_images() -> None:
    digits = load_source("digits", None).images[:, 0]
    noise = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    Path("samples").mkdir()
    for number, image in enumerate([*digits[:60], *noise]):  # all copies come first
        Image.fromarray(image).save(f"samples/{number:02d}.png")
    store = Store(Path("s.duckdb"))
    score_images("samples", "digits", store)
    order = np.random.default_rng(0).permutation(100)
    pairs = store.pairs("samples", NEAREST)
    assert len(pairs) == 32
    assert sum(pair.distance == 0 for pair in pairs) == sum(order[:32] < 60) < 32
    for pair in pairs:
        with Image.open(io.BytesIO(pair.generated)) as generated:
            assert np.array_equal(np.asarray(generated), [*digits[:60], *noise][order[pair.sample]])
        with Image.open(io.BytesIO(pair.nearest)) as nearest:
            assert np.array_equal(np.asarray(nearest), digits[pair.number])
        with Image.open(io.BytesIO(pair.second or b"")) as second:
            assert np.array_equal(np.asarray(second), digits[pair.second_number or 0])
        assert (pair.name, pair.second_image) == (
            f"samples/{order[pair.sample]:02d}.png",
            f"digits:{pair.second_number}",
        )
    first = {row.images: row.first for row in store.sample_counts("samples", NEAREST, NEAREST.threshold)}
    assert first == {n: sum(order[:n] < 60) / n for n in (10, 20, 50, 100)}
    assert first[50] < 1


def test_the_page_names_the_files_of_what_is_copied(samples: Path) -> None:
    Path("training").mkdir()
    for number, image in enumerate(load_source("digits", None).images[:200, 0]):
        Image.fromarray(image).save(f"training/{number:03d}.png")
    store = Store(Path("s.duckdb"))
    score = score_images(str(samples), "training", store)
    page = render_page(store, ["samples"])
    for number in range(score.samples):
        assert f'data-called="{samples}/{number:02d}.png"' in page
    assert score.replicated > 1
    for copied in store.replicated(store.cells("samples")[0].cell_id):
        assert f"Training image {copied.nearest} (training/{copied.nearest:03d}.png): nearest to" in page
    pair = store.pairs("samples", NEAREST)[0]
    called = f"second nearest in pixels, number {pair.second_number} (training/{pair.second_number:03d}.png)"
    assert f'data-second-called="{called}"' in page
    assert "How often each training image is copied." in page  # how dense the set is there, nobody has measured


def test_a_name_that_is_no_text_is_kept_as_far_as_it_is_text() -> None:
    for folder in ("samples", "training"):
        Path(folder).mkdir()
        for number, image in enumerate(load_source("digits", None).images[:9, 0]):
            Image.fromarray(image).save(f"{folder}/{number}.png")
        os.rename(f"{folder}/3.png", os.fsencode(f"{folder}/3") + b"\xff.png")  # noqa: PTH104
    store = Store(Path("s.duckdb"))
    assert score_images("samples", "training", store).memorized == 9
    names = {pair.name for pair in store.pairs("samples", NEAREST)}
    assert names == {f"samples/{number}.png" for number in (0, 1, 2, 4, 5, 6, 7, 8)} | {"samples/3\\udcff.png"}
    assert "training/3\\udcff.png" in {row["image"] for row in store.rows("SELECT image FROM training_images")}


def test_what_an_earlier_score_has_not_kept_is_added_by_another_one(samples: Path) -> None:
    store, names = Store(Path("s.duckdb")), ("second", "second_nearest", "name")
    score_images(str(samples), "digits", store)
    everything = (
        store.rows("SELECT * FROM pairs ORDER BY ALL"),
        store.rows("SELECT * FROM training_images ORDER BY ALL"),
    )
    with store.writing() as connection:
        connection.execute(f"UPDATE pairs SET {', '.join(f'{name} = NULL' for name in names)}")
        connection.execute("DELETE FROM training_images WHERE position > 5")
    assert 'data-second-called=""' in render_page(store, ["samples"])
    score_images(str(samples), "digits", store)
    again = store.rows("SELECT * FROM pairs ORDER BY ALL"), store.rows("SELECT * FROM training_images ORDER BY ALL")
    assert again == everything


@pytest.mark.parametrize("old_first", [True, False])
def test_the_pairs_of_an_older_store_are_completed_when_stores_are_merged(samples: Path, *, old_first: bool) -> None:
    old, new, both = (Store(Path(f"{name}.duckdb")) for name in ("old", "new", "both"))
    for store in (old, new):
        score_images(str(samples), "digits", store)
    with old.writing() as connection:
        connection.execute("UPDATE pairs SET second = NULL, second_nearest = NULL, name = NULL")
        connection.execute("DELETE FROM training_images WHERE position > 5")
    for store in (old, new) if old_first else (new, old):
        merge(both, store.path)
    for table in ("pairs", "training_images"):
        assert both.rows(f"SELECT * FROM {table} ORDER BY ALL") == new.rows(f"SELECT * FROM {table} ORDER BY ALL")


LIMITED = """
import resource
import sys
from pathlib import Path

from diffmem.external import score_images
from diffmem.store import Store

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + 250 * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print(score_images("samples.npz", "training.npz", Store(Path("s.duckdb"))).memorized)
"""
"""A score with 250 MB of memory more than Python has with diffmem; maps of files do not count."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="others do not limit memory like this")
def test_a_training_set_that_is_larger_than_memory_is_scored() -> None:
    count = 101_000  # of 40x40, which are 480 MB; near duplicates are not looked for among so many
    generator = np.random.default_rng(0)
    with zipfile.ZipFile("training.npz", "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 40, 40, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(count // 1000):
            images = generator.integers(256, size=(1000, 40, 40, 3), dtype=np.uint8)
            file.write(images.data)
    np.savez("samples.npz", images=np.concatenate([images[-3:], 255 - images[-3:]]))
    for kept in (False, True):  # decoded, and from the cache
        result = subprocess.run(
            [sys.executable, "-c", LIMITED],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert (result.returncode, result.stdout) == (0, "3\n"), (kept, result.stderr)


# --- groups of training images -------------------------------------------------------------------------


def test_the_ratio_between_groups_stands_beside_the_papers(samples: Path) -> None:
    digits = load_source("digits", None).images[:20, 0]
    np.savez("train.npz", images=np.concatenate([digits, digits]))
    asked = ["score", "--images", str(samples), "--against", "train.npz", "--store", "s.duckdb", "--groups", "near"]
    printed = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    assert (printed["ratio"], printed["grouped_ratio"]) == (0.0, 0.6)
    (measured,) = printed["measurements"]
    assert (measured["measure"], measured["value"], measured["n"]) == ("grouped", 0.6, 10)
    shown = CliRunner().invoke(main, asked).stdout
    assert "grouped ratio 0.6000 (95% interval 0.3127 to 0.8318): an image is memorized between groups if" in shown
    assert "the measure grouped takes them for 20 images" in shown


def test_evidence_by_one_grouping_is_not_that_by_another(samples: Path) -> None:
    store = Store(Path("s.duckdb"))
    plain = score_images(samples, "digits", store, measures=["grouped"])
    assert plain.grouped_ratio == 0.7
    again = score_images(samples, "digits", store)
    assert (again.grouped_ratio, [row.measure for row in again.measurements]) == (None, ["grouped"])
    for file in samples.iterdir():
        with Image.open(file) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    assert score_images(samples, "digits", store, measures=["grouped"]).grouped_ratio == 0.0
    asked = ["--groups", "near", "--augment", "hflip", "--json"]
    result = CliRunner().invoke(
        main, ["score", "--images", str(samples), "--against", "digits", "--store", "s.duckdb", *asked]
    )
    printed = json.loads(result.stdout)
    assert printed["grouped_ratio"] == 0.7
    assert {row["measure"]: row["value"] for row in printed["measurements"]} == {"grouped": 0.0, "grouped-hflip": 0.7}


def test_an_augmentation_without_groups_is_answered_with_what_is_missing(samples: Path) -> None:
    result = CliRunner().invoke(main, ["score", "--images", str(samples), "--against", "digits", "--augment", "hflip"])
    assert result.exit_code == 2
    said = result.stderr.splitlines()[-1]
    assert said == "Error: --augment is of groups of training images; add --groups near, or exact"


def test_held_out_images_are_the_null_of_the_ratio_between_groups_too(samples: Path) -> None:
    digits, store = load_source("digits", None).images[:, 0], Store(Path("s.duckdb"))
    np.savez("train.npz", images=digits[:900])
    np.savez("held.npz", images=digits[900:])
    score_images(samples, "train.npz", store, measures=["grouped"], held_out="held.npz")
    counts = store.rows("SELECT measure, count(*) AS images FROM held_out GROUP BY ALL ORDER BY measure")
    assert counts == [{"measure": "grouped", "images": 897}, {"measure": "nearest", "images": 897}]


def test_held_out_images_in_colour_do_not_compare_with_grey_training_images(samples: Path) -> None:
    np.savez("held.npz", images=np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"held\.npz: held-out images in colour, but the training images are grey"):
        score_images(samples, "digits", Store(Path("s.duckdb")), held_out="held.npz")
