"""What the images of a training set are like: found once for each set, by brute force the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from reference import random_images
from scipy.spatial.distance import cdist

from diffmem.data import names_and_groups
from diffmem.data.training_sets import load_source, training_set
from diffmem.measures import local_distances
from diffmem.models import ALONE
from diffmem.runs import training_images
from diffmem.runs.measuring import measure_study
from diffmem.runs.runner import run_study
from diffmem.runs.training_images import look_through
from diffmem.store.checking import faults
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study

OPTIMUM = """
title = "Optimum"

[P]
dataset = "digits"
size = 8

[M]
network = "optimum"
precondition = "edm"

[score]
samples = 20
steps = 3
"""
SEVERAL = (
    OPTIMUM.replace("size = 8\n", "") + '\n[[axes]]\nP.size = [8, 12]\n\n[[axes]]\nM.condition = ["none", "unique"]\n'
)
ROWS = "SELECT * EXCLUDE training_set FROM training_images ORDER BY ALL"


def run(folder: Path, text: str = OPTIMUM) -> tuple[Study, Store]:
    folder.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(folder, text)), Store(folder / "s.duckdb")
    list(run_study(study, store))
    return study, store


@pytest.mark.parametrize("N", [2, 3, 6, 7, 90])
def test_the_local_distance_is_the_mean_of_the_five_nearest_others(N: int) -> None:
    images = random_images(N, 1, 4, 4, seed=N)
    flat = images.flatten(1).numpy().astype(float)
    apart = cdist(flat, flat) + np.diag(np.full(N, np.inf))
    np.testing.assert_allclose(local_distances(images, images), np.sort(apart, axis=1)[:, : min(5, N - 1)].mean(axis=1))
    np.testing.assert_array_equal(local_distances(images[1:3], images), local_distances(images, images)[1:3])


def test_an_image_that_is_there_six_times_is_no_distance_from_its_nearest() -> None:
    images = torch.cat([random_images(20, 1, 4, 4), random_images(1, 1, 4, 4, seed=1).repeat(6, 1, 1, 1)])
    found = local_distances(images, images)
    assert found[20:].tolist() == [0.0] * 6
    assert found[:20].min() > 0
    assert local_distances(images[:1], images[:1]).tolist() == [0.0]


def test_a_run_keeps_what_its_training_images_are_like(tmp_path: Path) -> None:
    study, store = run(tmp_path)
    images = training_set(study.cells[0].cell).images
    flat = images.reshape(8, -1).astype(float)
    expected = np.sort(cdist(flat, flat), axis=1)[:, 1:6].mean(axis=1)
    rows = store.rows(ROWS)
    np.testing.assert_allclose([row["local_distance"] for row in rows], expected)
    assert [(row["position"], row["alike"]) for row in rows] == [(number, 1) for number in range(8)]
    digits = load_source("digits", None).images
    for row, image in zip(rows, images, strict=True):
        dataset, number = row["image"].split(":")
        assert dataset == "digits"
        np.testing.assert_array_equal(digits[int(number)], image)


@pytest.mark.parametrize("half", ["a", "b"])
def test_the_names_of_a_half_are_those_of_its_own_images(half: str, tmp_path: Path) -> None:
    cell = Study.load(tiny.write(tmp_path, OPTIMUM), overrides=["P.size=40", f'P.half="{half}"']).cells[0].cell
    names, _ = names_and_groups(cell)
    digits = load_source("digits", None).images
    named = digits[[int(name.removeprefix("digits:")) for name in names]]
    np.testing.assert_array_equal(named, training_set(cell).images)


def test_cells_of_one_training_set_share_them_and_they_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(
        training_images,
        "local_distances",
        lambda own, images: sizes.append(len(images)) or local_distances(own, images),
    )
    _, store = run(tmp_path, SEVERAL)
    assert sorted(sizes) == [8, 12]
    assert store.rows("SELECT count(*) AS rows FROM training_images") == [{"rows": 20}]


def test_a_store_without_them_gets_them_later_without_a_model(tmp_path: Path) -> None:
    study, store = run(tmp_path)
    expected = store.rows(ROWS)
    with store.writing() as connection:
        connection.execute("DELETE FROM training_images")
    assert list(measure_study(study, store)) == []
    assert store.rows(ROWS) == expected
    look_through(study.cells[0].cell, store, lambda: pytest.fail("they are there"), ALONE)


def test_images_of_a_group_say_how_many_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(tiny.png(number % 4))  # 0, 1 and 2 are there twice
    text = OPTIMUM.replace('"digits"', f'"{folder}"').replace("size = 8", "size = 6")
    study, _ = run(tmp_path / "study", text)
    names, alike = names_and_groups(study.cells[0].cell)
    numbers = [int(name.removeprefix("images/").removesuffix(".png")) for name in names]
    assert alike.tolist() == [sum(other % 4 == number % 4 for other in numbers) for number in numbers]
    assert max(alike) == 2


def test_the_one_store_takes_them_over_from_the_other(tmp_path: Path) -> None:
    (_, store), (_, other) = run(tmp_path / "one"), run(tmp_path / "other", SEVERAL)
    expected = other.rows(ROWS)
    merge(store, other.path)
    merge(store, other.path)
    assert store.rows(ROWS) == expected
    assert faults(store) == []


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("UPDATE training_images SET local_distance = 'nan' WHERE position = 1", "SET: an impossible training image"),
        ("UPDATE training_images SET alike = 0 WHERE position = 1", "SET: an impossible training image"),
        (
            "UPDATE training_images SET position = 0 WHERE position = 1",
            "training set SET: 1 training images that are there already",
        ),
    ],
)
def test_a_check_finds_damaged_training_images(tmp_path: Path, sql: str, sentence: str) -> None:
    _, store = run(tmp_path)
    (row,) = store.rows("SELECT DISTINCT training_set FROM training_images")
    with store.writing() as connection:
        connection.execute(sql)
    assert [said.replace(str(row["training_set"]), "SET") for said in faults(store)] == [sentence]


def test_every_training_image_is_exported_with_its_copies_at_each_checkpoint_by_each_measure(tmp_path: Path) -> None:
    _, store = run(tmp_path, OPTIMUM.replace("samples = 20", 'samples = 20\nmeasures = ["calibrated"]'))
    rows = json.loads(tiny.here("export", "images", "--json", "--store", store.path).stdout)
    assert [(row["measure"], row["training_image"]) for row in rows] == [
        (measure, number) for measure in ("calibrated", "nearest") for number in range(8)
    ]
    evidence = store.rows("FROM evidence")
    for row in rows[8:]:
        near = [each for each in evidence if each["nearest"] == row["training_image"]]
        assert row["nearest_of"] == len(near)
        assert row["copies"] == sum(each["d1"] < each["d2"] / 3 for each in near)
    assert sum(row["nearest_of"] for row in rows) == 40
    assert sum(row["copies"] for row in rows) > 0
    known = store.rows(ROWS)
    assert [(row["image"], row["alike"], row["local_distance"]) for row in rows[:8]] == [
        (row["image"], row["alike"], row["local_distance"]) for row in known
    ]
    header = tiny.here("export", "images", "--study", "tiny", "--store", store.path).stdout.splitlines()[0]
    assert header == (
        "study,position,curve,name,cell_id,size,draw,seed,epoch,measure,training_image,image,alike,local_distance,"
        "nearest_of,copies"
    )
