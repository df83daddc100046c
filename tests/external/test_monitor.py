"""The monitor: samples of anybody's model scored while it trains, kept in the store, gone on with, reported."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.spatial.distance import cdist

import diffmem
from diffmem.analysis.curves import Curve, study_cells, study_curves
from diffmem.analysis.exporting import export
from diffmem.cli import main
from diffmem.data import load_source
from diffmem.errors import DataError, ImageWarning, StoreError
from diffmem.external import pending
from diffmem.measures.calibrated import CALIBRATED
from diffmem.measures.nearest import NEAREST
from diffmem.store.given import Listing
from diffmem.store.merging import merge
from diffmem.store.store import Store

NOISE = np.random.default_rng(0).integers(256, size=(20, 1, 8, 8), dtype=np.uint8)


@pytest.fixture
def training() -> np.ndarray:
    """Return 50 digits, uint8 [50, 1, 8, 8]."""
    return load_source("digits", None).images[:50]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def half_copied(training: np.ndarray):
    """Return a generator of images of which the first half are copies."""

    def generate(count: int) -> np.ndarray:
        return np.concatenate([training[: count // 2], NOISE[: count - count // 2]])

    return generate


def monitor(training: np.ndarray, store: Store, **more) -> diffmem.Monitor:
    return diffmem.Monitor(training, **{"store": store, "name": "mine", "every": 10, "samples": 20, **more})


def status(store: Store, name: str = "mine") -> list[dict]:
    """Return what `diffmem status` says of each cell."""
    result = CliRunner().invoke(main, ["status", name, "--store", str(store.path), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_so_many_steps_are_scored_and_stored_with_their_evidence(training, store):
    watch = monitor(training, store)
    ratios = [watch(step, half_copied(training), loss=1 / (step + 1)) for step in range(25)]
    assert [(step, ratio) for step, ratio in enumerate(ratios) if ratio is not None] == [(0, 0.5), (10, 0.5), (20, 0.5)]
    rows = store.rows("SELECT study, size, epoch, samples, memorized, ratio, loss FROM results ORDER BY epoch")
    assert [row["epoch"] for row in rows] == [0, 10, 20]
    assert rows[1] == {
        "study": "mine",
        "size": 50,
        "epoch": 10,
        "samples": 20,
        "memorized": 10,
        "ratio": 0.5,
        "loss": 1 / 11,
    }
    evidence = store.rows("SELECT nearest, d1 FROM evidence WHERE epoch = 10 ORDER BY sample")
    assert [(row["nearest"], row["d1"]) for row in evidence[:10]] == [(number, 0) for number in range(10)]
    assert len(store.pairs("mine", NEAREST)) == 20


def test_images_that_are_there_already_are_scored_at_any_step(training, store):
    watch = monitor(training, store)
    assert watch.score(torch.from_numpy(training[:4]), 7) == 1
    assert watch.score(list(NOISE), 13, loss=torch.tensor(0.5)) == 0
    rows = store.rows("SELECT epoch, samples, ratio, loss FROM results ORDER BY epoch")
    assert [tuple(row.values()) for row in rows] == [(7, 4, 1, None), (13, 20, 0, 0.5)]


def test_the_report_shows_the_ratio_against_steps_and_the_images(training, store, tmp_path):
    watch = monitor(training, store, settings={"lr": 0.5, "net": "a < b"})
    for step in range(0, 31, 10):
        watch(step, half_copied(training))
    diffmem.write_page(store, ["mine"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Memorization ratio and loss against steps" in page
    assert "against epochs" not in page
    assert "lr = 0.5, net = a &lt; b, N = 50" in page
    assert "step 30, ratio 0.500" in page
    assert "4 checkpoints, best ratio" in page
    assert page.count('class="pair memorized"') == 10
    (curve,) = diffmem.study_curves(store, "mine")
    assert curve.points[0].best == 0.5
    assert "not finished" not in curve.note


def test_status_copes_with_checkpoints_that_nobody_knows_in_advance(training, store):
    watch = monitor(training, store)
    (row,) = status(store)
    assert (row["state"], row["checkpoints"], row["last ratio"]) == ("running", "0", None)
    watch(0, half_copied(training))
    (row,) = status(store)
    assert (row["state"], row["checkpoints"], row["last ratio"]) == ("running", "1", 0.5)
    watch.close()
    assert status(store)[0]["state"] == "ended"
    watch(10, half_copied(training))
    assert status(store)[0]["checkpoints"] == "2"


def test_a_run_that_is_resumed_goes_on_and_says_what_is_skipped(training, store, caplog):
    monitor(training, store)(10, half_copied(training))
    again = monitor(list(training), store, resume=True)

    def never(_count: int) -> np.ndarray:
        raise AssertionError("nothing is to be generated")

    with caplog.at_level(logging.WARNING, "diffmem"):
        assert again(10, never) == 0.5
        assert again.score(training, 10) == 0.5
        assert again(20, half_copied(training)) == 0.5
    assert (
        caplog.messages
        == [
            "mine: step 10 of this run is measured already (ratio 0.500), so it is skipped; a monitor without "
            "resume=True is a new run"
        ]
        * 2
    )
    assert [row["checkpoints"] for row in status(store)] == ["2"]
    assert [row["samples"] for row in store.rows("SELECT samples FROM results")] == [20, 20]


def test_a_monitor_is_a_new_run_and_earlier_runs_are_curves_of_their_own(training, store):
    given_up = monitor(training, store, settings={"lr": 0.1, "b": 1})
    given_up.score(NOISE, 10)
    monitor(training[:20], store, settings={"lr": 0.1, "b": 1}).score(training[:10], 10)
    other = monitor(training, store, settings={"lr": 0.2, "b": 1})
    other.score(NOISE, 10)
    newest = monitor(training, store, settings={"b": 1, "lr": 0.1})  # the same ones in another order
    assert newest.score(training[:10], 10) == 1
    run = given_up.cell.origin["run"][:23]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", run)
    curves = {curve.label: [(point.size, point.best, point.cells) for point in curve.points] for curve in mine(store)}
    assert curves == {
        f"lr = 0.1, b = 1, run of {run} UTC": [(50, 0, 1)],
        "lr = 0.1, b = 1": [(20, 1, 1)],
        "lr = 0.2, b = 1": [(50, 0, 1)],
        "b = 1, lr = 0.1": [(50, 1, 1)],
    }
    names = [row.name for row in store.cells("mine")]
    assert names[0] == f"lr = 0.1, b = 1, N = 50, run of {run} UTC"
    assert names[1:] == ["lr = 0.1, b = 1, N = 20", "lr = 0.2, b = 1, N = 50", "b = 1, lr = 0.1, N = 50"]
    assert status(store)[0]["run"] == f"{run} UTC"
    assert monitor(training, store, resume=True, settings={"lr": 0.1, "b": 1}).cell == newest.cell


def mine(store: Store) -> list[Curve]:
    return diffmem.study_curves(store, "mine")


def test_a_run_of_an_older_diffmem_is_resumed_and_is_the_earlier_one_of_a_new_run(training, store):
    old = monitor(training, store)
    old._run.cell = old._run._any_run
    with store.writing() as connection:
        connection.execute("DELETE FROM study_cells")
    old._run.open(store)
    old.score(NOISE, 10)
    again = monitor(training, store, resume=True)
    assert again.cell == old.cell
    assert again.score(NOISE, 10) == 0
    monitor(training, store).score(training, 10)
    assert [(curve.label, curve.points[0].best) for curve in mine(store)] == [("earlier run", 0), ("", 1)]


def test_what_there_is_not_yet_is_not_resumed_but_begun(training, store):
    first = monitor(training, store, resume=True)
    first.score(training, 10)
    assert monitor(training[:20], store, resume=True).cell != first.cell
    assert monitor(training, store, resume=True, settings={"lr": 1}).cell != first.cell
    assert monitor(training, store, resume=True).cell == first.cell
    one = monitor(training, store, settings={"on": True}).cell
    assert monitor(training, store, resume=True, settings={"on": 1}).cell.cell_id != one.cell_id


def test_runs_of_two_stores_are_kept_apart_in_whatever_order_they_are_merged(training, tmp_path):
    stores = [Store(tmp_path / f"{name}.duckdb") for name in ("one", "two")]
    for store, images in zip(stores, (NOISE, training), strict=True):
        monitor(training, store).score(images, 10)
    merge(stores[1], stores[0].path)
    monitor(training, stores[1]).score(training, 10)
    merge(stores[0], stores[1].path)
    merge(stores[0], stores[1].path)
    expected = sorted((curve.label, curve.points[0].best) for curve in mine(stores[1]))
    assert [ratio for _, ratio in expected] == [1, 0, 1]
    assert [label[:6] for label, _ in expected] == ["", "run of", "run of"]
    assert sorted((curve.label, curve.points[0].best) for curve in mine(stores[0])) == expected


def test_the_loss_that_a_monitor_is_given_is_at_each_point_of_the_training_curve(training, store):
    watch = monitor(training, store)
    for step, loss in ((0, 2.0), (10, 0.5), (20, None)):
        watch(step, half_copied(training), loss=loss)
    _cells, points = study_cells(store, store.study("mine"))
    assert [(point.step, point.ratio, point.loss) for point in points] == [
        (0, 0.5, 2.0),
        (10, 0.5, 0.5),
        (20, 0.5, None),
    ]


def test_the_store_is_by_default_that_of_the_command_line(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diffmem.Monitor(training, name="mine").score(training[:4], 0)
    result = CliRunner().invoke(main, ["status", "mine", "--json"])
    assert json.loads(result.stdout)[0]["best ratio"] == 1
    assert (tmp_path / "store" / "diffmem.duckdb").is_file()


# --- images of a path or of a dataset ------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of grey images, each of a size of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(256, size=(20 + number, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_training_images_are_those_of_a_dataset_by_its_name(training, store):
    digits = load_source("digits", None).images
    with pytest.warns(ImageWarning, match="mine: of 1,797 training images 2 are nearly identical"):
        watch = monitor("digits", store)
    assert watch.score(training[:4], 0) == 1
    with pytest.warns(ImageWarning, match="nearly identical"):
        assert monitor(digits, store, resume=True).cell == watch.cell


def test_training_and_held_out_images_are_read_from_paths_at_their_own_size(training, store, tmp_path):
    np.savez(tmp_path / "images.npz", images=training[:, 0])
    (tmp_path / "unseen").mkdir()
    for number, image in enumerate(load_source("digits", None).images[50:150, 0]):
        Image.fromarray(image).save(tmp_path / "unseen" / f"{number:03}.png")
    (tmp_path / "unseen" / "notes.txt").write_text("no image")
    with pytest.warns(ImageWarning, match="unseen: 1 file was left out"):
        watch = monitor(tmp_path / "images.npz", store, held_out=tmp_path / "unseen")
    assert any("1 file was left out" in note.note for note in store.notes("mine"))
    again = monitor(training, store, resume=True, held_out=load_source("digits", None).images[50:150])
    assert (again.cell, again.null_ratio) == (watch.cell, watch.null_ratio)


def test_held_out_files_that_are_smaller_than_training_images_say_how_large_they_must_be(tmp_path, store):
    np.savez(tmp_path / "unseen.npz", images=np.zeros((3, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError) as refused:
        monitor(np.zeros((3, 8, 8), dtype=np.uint8), store, held_out=tmp_path / "unseen.npz")
    assert str(refused.value).endswith("; held-out images must be as large as the training images, or larger")


def test_images_of_several_sizes_are_read_at_the_resolution_that_is_given(photos, store):
    with pytest.raises(DataError) as refused:
        monitor(str(photos), store)
    assert str(refused.value).endswith("; resolution=N reads all images at N x N pixels")
    assert not store.exists()
    with pytest.warns(ImageWarning, match="photos: all 4 images were cropped"):
        watch = monitor(photos, store, resolution=16, held_out=photos)
    assert watch.score(load_source(str(photos), 16).images, 0) == 1
    assert watch.cell.image_size == (16, 16)
    with pytest.raises(DataError) as refused:
        monitor(np.zeros((4, 8, 8), np.uint8), store, resolution=16)
    assert str(refused.value) == ("mine: resolution is for images that are read from a path; resize arrays beforehand")


# --- the study that its runs make ----------------------------------------------------------------------


def test_each_training_set_and_each_combination_of_settings_is_a_cell_of_the_study(training, store):
    for size, lr in [(20, 0.1), (50, 0.1), (50, 0.2), (20, 0.1)]:
        monitor(training[:size], store, settings={"lr": lr}, resume=True).score(training[:10], size)
    assert [(row["P.size"], row["checkpoints"]) for row in status(store)] == [(20, "1"), (50, "1"), (50, "1")]
    curves = diffmem.study_curves(store, "mine")
    assert [(curve.label, [point.size for point in curve.points]) for curve in curves] == [
        ("lr = 0.1", [20, 50]),
        ("lr = 0.2", [50]),
    ]
    assert curves[0].estimate is not None
    assert str(curves[0].estimate) == ">= 50"
    other = training[:20].copy()
    other[0, 0, 0, 0] ^= 1
    monitor(other, store, settings={"lr": 0.1})
    assert len(status(store)) == 4


def test_other_commands_take_a_store_with_a_monitored_training(training, store, tmp_path):
    monitor(training, store)(0, half_copied(training))
    both = tmp_path / "both.duckdb"
    for arguments in (
        ["findings", "--store", str(store.path)],
        ["emm", "mine", "--store", str(store.path)],
        ["store", "merge", str(store.path), "-o", str(both)],
    ):
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, result.stderr) == (0, "")
    assert status(Store(both)) == status(store)


def test_the_training_goes_on_as_without_a_monitor_and_samples_come_from_a_stream_of_their_own(training, store):
    watch = monitor(training, store, batch_size=8)
    drawn = []

    def generate(count: int) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        drawn.append(torch.randint(256, (count, 1, 8, 8)).to(torch.uint8))
        return drawn[-1]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    watch(0, generate)
    watch(10, generate)
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()
    assert [len(batch) for batch in drawn] == [8, 8, 4, 8, 8, 4]
    assert torch.equal(torch.cat(drawn[:3]), torch.cat(drawn[3:]))
    assert not torch.equal(drawn[0], drawn[1])


def test_held_out_images_are_the_null_of_every_ratio(training, store):
    unseen = load_source("digits", None).images[50:250]
    mine = monitor(training, store, held_out=unseen, measures=["calibrated"])
    distances = np.sort(cdist(unseen.reshape(200, -1), training.reshape(50, -1)), axis=1)
    expected = np.mean(distances[:, 0] < distances[:, 1] / 3)
    assert mine.null_ratio == expected
    mine(10, half_copied(training))
    mine.close()
    monitor(training, store, held_out=unseen, resume=True).close()  # again: nothing twice
    (row,) = status(store)
    assert (row["null_ratio"], row["null_samples"]) == (expected, 200)
    assert row["p_value"] < 1e-6
    (other,) = store.nulls("mine", CALIBRATED, 1.0).values()
    assert other.samples == 200
    assert monitor(training, store, resume=True).null_ratio == expected
    assert monitor(training, store).null_ratio is None


def test_held_out_images_of_another_shape_are_refused(training, store):
    with pytest.raises(DataError) as refused:
        monitor(training, store, held_out=np.zeros((20, 3, 8, 8), np.uint8))
    assert str(refused.value) == "mine: held_out has images of 3 x 8 x 8, the training images are 1 x 8 x 8"
    assert not store.exists()


def test_what_cannot_be_monitored_is_refused_before_anything_is_written(training, store):
    for more, reason in [
        ({"every": 0}, "every must be a whole number, at least 1, not 0"),
        ({"settings": {"lr": [1, 2]}}, r"settings are texts, numbers, true or false by name, not 'lr': \[1, 2\]"),
        ({"settings": {"lr": float("nan")}}, "the setting 'lr' must be a finite number, not nan"),
    ]:
        with pytest.raises(DataError, match=reason):
            monitor(training, store, **more)
    with pytest.raises(DataError, match="training images: 1 of them"):
        monitor(training[:1], store)
    assert not store.exists()


def test_a_name_of_another_study_is_refused(training, store):
    store.register(Listing("mine", "", "studies/mine.toml", {"epsilon": 0.1, "threshold": 1 / 3}), [])
    with pytest.raises(StoreError, match=r"'mine' is a study of studies/mine\.toml; give the monitor another name"):
        monitor(training, store)


def test_samples_that_are_not_what_was_asked_for_are_refused_and_nothing_is_stored(training, store):
    watch = monitor(training, store)
    for generate, reason in [
        (lambda count: training[: count - 1], r"mine: generate\(20\) has returned 19 images"),
        (lambda count: torch.randn(count, 1, 8, 8), "generated images: the values are float32 in"),
        (lambda count: np.zeros((count, 1, 8, 9), np.uint8), "generated images have 9x8 pixels, but training"),
    ]:
        with pytest.raises(DataError, match=reason):
            watch(0, generate)
    with pytest.raises(DataError, match="a step is a whole number from 0 to 2147483647, not -1"):
        watch.score(training, -1)
    assert store.rows("FROM checkpoints") == []


LOOP = """
import sys, os, signal, diffmem
from diffmem.data import load_source
images = load_source("digits", None).images[:50]
monitor = diffmem.Monitor(images, store=sys.argv[1], name="mine")
monitor.score(images, 1)
{end}
"""


@pytest.mark.parametrize(
    ("end", "state"), [("", "ended"), ("raise ValueError", "ended"), ("os.kill(os.getpid(), signal.SIGKILL)", "lost")]
)
def test_a_process_that_ends_closes_its_monitor_and_one_that_is_killed_shows_as_lost(end, state, store):
    above = Path(diffmem.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", LOOP.format(end=end), str(store.path)],
        cwd=above,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.sub(r"(?s)Traceback.*ValueError\n", "", result.stderr) == ""
    assert [(row["state"], row["checkpoints"]) for row in status(store)] == [(state, "1")]


def test_merged_stores_list_the_trainings_of_both(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    stores = [Store(tmp_path / f"{name}.duckdb") for name in ("one", "two")]
    for number, store in enumerate(stores):
        diffmem.Monitor(images, store=store.path, name="mine", every=1, samples=4, settings={"width": number})(
            0, lambda count: images[:count]
        )
    for order in (stores, stores[::-1]):
        into = Store(tmp_path / f"{order[0].path.stem} first.duckdb")
        for store in (*order, *order):
            merge(into, store.path)
        assert sorted(row.cell_id for row in into.cells("mine")) == sorted(
            row.cell_id for store in stores for row in store.cells("mine")
        )


def test_a_ratio_that_rises_is_noted_once_the_training_has_ended(training, store):
    watch = monitor(training, store)
    for step, copied in ((0, 0), (10, 10), (20, 18)):
        watch.score(np.concatenate([training[:copied], NOISE[: 20 - copied]]), step)
    (curve,) = study_curves(store, "mine")
    assert "rises" not in curve.note
    watch.close()
    (curve,) = study_curves(store, "mine")
    assert "the ratio still rises at the end of training at N = 50" in curve.note


def test_settings_of_any_name_have_columns_of_an_export(training, store, tmp_path):
    settings = {"a.b": 1, "$lr": 0.5, "/d": 2, "~x": 3, "it's": "so", 'say "so"': True}
    monitor(training, store, settings=settings).score(training[:10], 0)
    export(store, "cells", tmp_path / "cells.parquet", form="parquet")
    (row,) = duckdb.sql(f"FROM '{tmp_path / 'cells.parquet'}'").fetchall()
    columns = duckdb.sql(f"DESCRIBE FROM '{tmp_path / 'cells.parquet'}'").fetchall()
    found = dict(zip([name for name, *_ in columns], row, strict=True))
    assert {key: found[f"settings.{key}"] for key in settings} == settings


# --- a store that something else holds -----------------------------------------------------------------

HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=True)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_notebook_that_holds_the_store_neither_ends_a_training_nor_makes_it_wait(training, store):
    watch = monitor(training, store)
    with tiny.started(HOLDER, store.path):
        started = time.monotonic()
        assert [watch(step, half_copied(training)) for step in (0, 10, 20)] == [0.5] * 3
        assert watch(20, half_copied(training)) == 0.5  # known, though not written yet
        assert time.monotonic() - started < pending.LAST_WAIT  # it would have waited 300 seconds for each
        assert store.rows("SELECT * FROM checkpoints") == []
    watch.close()
    assert store.measured_epochs(watch.cell.cell_id) == {0, 10, 20}
    assert [row["state"] for row in status(store)] == ["ended"]


def test_a_run_is_resumed_where_the_store_is_held_at_its_beginning(training, store, monkeypatch):
    monkeypatch.setattr(pending, "LAST_WAIT", 0.1)
    first = monitor(training, store, held_out=training[:30])
    first(10, half_copied(training))
    first.close()
    with tiny.started(HOLDER, store.path):
        again = monitor(training, store, resume=True)
        assert again.null_ratio is None  # nobody knows yet
        assert again(20, half_copied(training)) == 0.5
    again.close()
    assert again.cell == first.cell
    assert again.null_ratio == first.null_ratio == 1
    assert store.measured_epochs(first.cell.cell_id) == {10, 20}


def test_what_is_pending_is_written_at_the_next_call_and_said_after_ten_seconds(training, store, caplog, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pending.time, "monotonic", clock)
    watch = monitor(training, store)
    with tiny.started(HOLDER, store.path) as holder:
        watch(0, half_copied(training))
        clock.now += 5
        assert watch(1, half_copied(training)) is None
        assert caplog.text == ""
        clock.now += 6
        watch(2, half_copied(training))
        assert (
            f"mine: 1 checkpoint not written yet: {store.path}: process {holder.pid} holds the store open"
            in caplog.text
        )
        assert "the training goes on" in caplog.text
        said = len(caplog.records)
        clock.now += 60
        watch(3, half_copied(training))
        assert len(caplog.records) == said
    clock.now += 2
    watch(4, half_copied(training))
    assert store.measured_epochs(watch.cell.cell_id) == {0}


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("held_from_the_start", [False, True])
def test_what_cannot_be_written_in_the_end_is_in_a_file_that_merges(
    training, store, caplog, monkeypatch, held_from_the_start
):
    monkeypatch.setattr(pending, "LAST_WAIT", 0.1)
    with store.writing(create=True):
        pass
    watch = None if held_from_the_start else monitor(training, store)
    with tiny.started(HOLDER, store.path):
        watch = watch or monitor(training, store)
        for step in (0, 10):
            watch(step, half_copied(training))
        watch.close()
    (aside,) = store.path.parent.glob("store.mine-*.duckdb")
    assert f"mine: 2 checkpoints could not be written: {store.path}: process" in caplog.text
    assert f"They are in {aside}; `diffmem store merge {aside} -o {store.path}` adds them" in caplog.text
    merge(store, aside)
    assert store.measured_epochs(watch.cell.cell_id) == {0, 10}
    assert [(row["state"], row["checkpoints"]) for row in status(store)] == [("ended", "2")]
    assert len(store.pairs("mine", NEAREST)) == 20


@pytest.mark.parametrize("name", ["what is it?", "a\\b/c", "n" * 230])
def test_what_is_put_aside_has_a_name_that_a_file_can_have(training, store, caplog, monkeypatch, name):
    monkeypatch.setattr(pending, "LAST_WAIT", 0.1)
    with store.writing(create=True):
        pass
    watch = monitor(training, store, name=name)
    with tiny.started(HOLDER, store.path):
        watch(0, half_copied(training))
        watch.close()
    assert "They are in" in caplog.text
    (aside,) = [path for path in store.path.parent.glob("store.*-*.duckdb") if path != store.path]
    merge(store, aside)
    assert store.measured_epochs(watch.cell.cell_id) == {0}


def test_a_training_that_changes_its_folder_is_written_to_the_same_store(training, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    watch = monitor(training, Store("mine.duckdb"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    watch(0, half_copied(training))
    watch.close()
    assert Store(tmp_path / "mine.duckdb").measured_epochs(watch.cell.cell_id) == {0}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_training_goes_on_where_the_store_is_gone_or_its_disk_is_full(training, store, caplog, monkeypatch):
    monkeypatch.setattr(pending, "LAST_WAIT", 0.1)
    watch = monitor(training, store)
    store.path.unlink()
    assert watch(0, half_copied(training)) == 0.5
    watch.close()
    assert "1 checkpoint could not be written" in caplog.text
    assert "the store is gone" in caplog.text
    (aside,) = store.path.parent.glob("store.mine-*.duckdb")
    assert Store(aside).measured_epochs(watch.cell.cell_id) == {0}


def test_a_process_that_ends_puts_what_is_pending_aside(store):
    script = """
import sys
import numpy as np
from diffmem import Monitor
from diffmem.external import pending
pending.LAST_WAIT = 0.1
images = np.random.default_rng(0).integers(256, size=(20, 1, 8, 8), dtype=np.uint8)
watch = Monitor(images, store=sys.argv[1], name="mine", every=10, samples=20)
watch(0, lambda count: images[:count])
"""
    with store.writing(create=True):
        pass
    with tiny.started(HOLDER, store.path):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(store.path)],
            env=tiny.environment(), capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "1 checkpoint could not be written" in ended.stderr
    (aside,) = store.path.parent.glob("store.mine-*.duckdb")
    assert len(Store(aside).rows("SELECT * FROM checkpoints")) == 1


def test_a_reader_thread_beside_a_monitor_disturbs_neither(training, store):
    watch, failures, stop = monitor(training, store), [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                assert store.studies()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert [watch(step, half_copied(training)) for step in range(0, 300, 10)] == [0.5] * 30
    stop.set()
    reader.join()
    watch.close()
    assert failures == []
    assert store.measured_epochs(watch.cell.cell_id) == {*range(0, 300, 10)}


def test_a_training_that_has_ended_counts_as_done_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = diffmem.Monitor(load_source("digits", None).images[:10], name="mine", every=10, samples=5)
    monitor(0, lambda count: load_source("digits", None).images[:count])

    def done() -> str:
        return next(row["finished"] for row in json.loads(tiny.here("list", "--json").stdout) if row["study"] == "mine")

    assert done() == "0/1"
    monitor.close()
    assert done() == "1/1"
