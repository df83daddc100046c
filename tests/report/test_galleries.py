"""Galleries: the stored pairs of the last checkpoint, what is copied most, and no more than a page has room for."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from reading import PAIRS, STUDY, Page, fill, images, rendered

from diffmem.analysis.copied import copied_images
from diffmem.measures.comparison import png
from diffmem.store import TrainingImages
from diffmem.store.store import Store
from diffmem.study.study import Study


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


@pytest.fixture
def page(store: Store) -> Page:
    fill(store)
    return rendered(store)


def test_the_gallery_has_the_stored_images_of_the_last_checkpoint_of_each_cell(page: Page) -> None:
    found = images(page)
    copied = PAIRS[0][1], PAIRS[1][1]  # training images 0 and 1, which all memorized images are copies of
    assert found == [*copied, *PAIRS[0], *PAIRS[1], PAIRS[0][1], *PAIRS[0]]
    pairs = [figure for figure in page.of("figure") if figure["class"].startswith("pair")]
    assert [(pair["data-number"], pair["data-side"]) for pair in pairs] == [("0", "8"), ("1", "8"), ("0", "8")]
    for image in found:
        with Image.open(io.BytesIO(image)) as opened:
            assert (opened.format, opened.size, opened.mode) == ("PNG", (8, 8), "L")


def test_the_gallery_tells_the_distance_ratio_and_outlines_what_is_memorized(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    point = tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.05, pairs=PAIRS)  # sample 0: 0.1, sample 1: 0.4
    store.append(point)
    page = rendered(store)
    pairs = shown_pairs(page)
    assert pairs == [(["pair", "memorized"], "0.10"), (["pair"], "0.40")]
    assert "1 of 8 training images are replicated, most often:" in page.text


def shown_pairs(page: Page) -> list[tuple[list[str], str]]:
    kinds = [attributes["class"].split() for attributes in page.of("figure")]
    figures = zip(kinds, page.texts["figure"], strict=True)
    return [(kind, text.strip()) for kind, text in figures if kind[0] == "pair"]


def test_the_most_similar_pairs_come_first(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    point = tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.05, pairs=PAIRS)  # sample 0: 0.1, sample 1: 0.4
    store.append(dataclasses.replace(point, d1=point.d1[::-1].copy()))  # sample 0: 0.8, sample 1 too
    later = tiny.checkpoint(study.cells[0].cell.cell_id, 24, 0.05, pairs=PAIRS)
    store.append(dataclasses.replace(later, d1=np.array([90.0, 10.0, *later.d1[2:]])))
    page = rendered(store)
    assert [text for _, text in shown_pairs(page)] == ["0.10", "0.90"]
    assert [figure["data-number"] for figure in page.of("figure") if figure["class"].startswith("pair")] == ["1", "0"]


def test_large_pictures_are_whole_where_there_is_room_the_most_similar_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 100, 100), dtype=np.uint8)
    pairs = [tuple(png(torch.from_numpy(image)) for image in pair) for pair in noise]
    study = tiny.load(store.path.parent, tiny.TEXT.replace("[0.0, 0.2]", "[0.1]"))
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5], pairs=pairs)

    def sides() -> list[int]:
        found = [Image.open(io.BytesIO(image)).size[0] for image in images(rendered(store))]
        return found[-8:]

    assert sides() == [100] * 8
    page = rendered(store)
    assert {each["data-side"] for each in page.of("figure") if each["class"].startswith("pair")} == {"100"}
    monkeypatch.setattr("diffmem.report.galleries.PAGE_BYTES", len(page.source.encode()) - 100_000)
    found = sides()
    assert found == sorted(found, reverse=True)
    assert {*found} == {100, 64}


def test_what_is_copied_most_is_shown_where_a_stored_pair_has_its_picture(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    # images 0 to 10 are memorized; those of positions 0, 1 and 2 twice, and pictures of 0 and 1 are kept
    store.append(tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.55, pairs=PAIRS))
    page = rendered(store)
    shown = zip(page.of("figure"), page.texts["figure"], strict=True)
    texts = [" ".join(text.split()) for attributes, text in shown if attributes["class"] == "copied"]
    assert texts[:4] == ["no. 02 times", "no. 12 times", "no. 22 times", "no. 31 time"]
    assert images(page)[:2] == [PAIRS[0][1], PAIRS[1][1]]
    assert page.text.count("no picture") == 4
    assert "8 of 8 training images are replicated" in page.text


def test_the_pictures_of_what_is_copied_most_need_no_pair(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    point = tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.55, pairs=PAIRS)
    kept = [tiny.png(100 + position) for position in range(8)]
    store.append(dataclasses.replace(point, copied=list(enumerate(kept))))
    page = rendered(store)
    assert images(page)[:6] == kept[:6]
    assert "no picture" not in page.text


def test_a_picture_of_what_is_copied_may_be_from_an_earlier_checkpoint(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.55], pairs=PAIRS)
    tiny.measure(store, study.cells[0].cell, [0.55, 0.55], pairs=PAIRS[:1])
    assert images(rendered(store)) == [PAIRS[0][1], PAIRS[1][1], *PAIRS[0]]


def test_pictures_of_an_earlier_checkpoint_are_not_shown_as_the_last_one_s(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.append(tiny.checkpoint(cell_id, 12, 0.0, pairs=PAIRS))
    store.append(tiny.checkpoint(cell_id, 24, 1.0))
    assert images(rendered(store)) == []


def measure_the_others(store: Store, study: Study) -> None:
    """Give each cell what was measured of the first one, in a hundredth of the time that it would take to append it."""
    first, *others = [entry.cell.cell_id for entry in study.cells]
    with store.writing() as connection:
        for table in ("checkpoints", "evidence", "pairs", "copied"):
            connection.execute(
                f"""
                INSERT INTO {table} BY NAME SELECT {table}.* REPLACE (other AS cell_id)
                FROM {table}, unnest(?::VARCHAR[]) others(other) WHERE cell_id = ?
                """,
                [others, first],
            )


def measure_in_between(store: Store, epochs: int) -> None:
    """Give each cell a checkpoint at every epoch before `epochs`, with ratios of many digits."""
    with store.writing() as connection:
        for table, column, value in (("evidence", "d1", "d1 * (0.5 + random())"), ("checkpoints", "ratio", "random()")):
            connection.execute(
                f"""
                INSERT INTO {table} BY NAME SELECT {table}.* REPLACE (k AS epoch, {value} AS {column})
                FROM {table}, range(1, ?) epochs(k) WHERE epoch = 27 AND k NOT IN (27, 54)
                """,
                [epochs],
            )


@pytest.mark.parametrize(("side", "epochs", "at_least"), [(32, 0, 5), (32, 81, 3), (100, 0, 1)])
def test_galleries_of_many_cells_show_as_many_pairs_as_there_is_room_for(
    store: Store, side: int, epochs: int, at_least: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 2, 3, side, side), dtype=np.uint8)
    pairs = [tuple(png(torch.from_numpy(image)) for image in pair) for pair in noise]
    text = tiny.TEXT.replace("epochs = 30", "epochs = 81").replace("every = 12", "every = 27")
    study = tiny.load(store.path.parent, text + f"[[axes]]\nP.size = {list(range(8, 33))}\n")
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.2, 0.5, 0.6], samples=1000, pairs=pairs)
    measure_the_others(store, study)
    measure_in_between(store, epochs)
    page = rendered(store)
    assert len(study.cells) == 50
    assert len(page.source.encode()) < 10e6
    (shown,) = set(re.findall(r"The (\d+) most similar of the 32 pairs", page.text))
    assert sum(figure["class"].startswith("pair") for figure in page.of("figure")) == 50 * int(shown)
    assert int(shown) >= at_least
    with Image.open(io.BytesIO(images(page)[0])) as picture:
        assert picture.size == (min(side, 64),) * 2


def test_the_galleries_of_several_studies_share_the_room_of_a_page(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 2, 3, 32, 32), dtype=np.uint8)
    pairs = [tuple(png(torch.from_numpy(image)) for image in pair) for pair in noise]
    names = ("one", "two", "three")
    for name in names:
        study = tiny.load(store.path.parent, tiny.TEXT.replace("[0.0, 0.2]", "[0.1]\nT.seed = [3]"), name)
        tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.2, 0.5, 0.6], samples=100, pairs=pairs)
    without = len(rendered(store, *names).source.encode())
    monkeypatch.setattr("diffmem.report.galleries.PAGE_BYTES", without - 100_000)
    assert without - 250_000 < len(rendered(store, *names).source.encode()) < without - 100_000


# --- what was generated near a training image ----------------------------------------------------------


def near(page: Page) -> list[dict[str, str | None]]:
    """Return what says of a training image what was generated near it: those copied most, and those of pairs."""
    return [attributes for _, attributes in page.tags if "data-about" in attributes]


def test_a_training_image_says_what_was_generated_near_it(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    # images 0 to 10 of 20 are memorized; that of number i is near training image i modulo 8
    store.append(tiny.checkpoint(cell_id, 12, 0.55, pairs=PAIRS))
    buttons = near(rendered(store))
    assert [each["data-of"] for each in buttons] == ["0", "1", "2", "3", "4", "5", "0", "1"]
    assert buttons[0]["data-about"] == buttons[6]["data-about"]
    assert buttons[0]["data-about"] == "Training image 0: nearest to 3 generated images, 2 of them memorized"
    about = TrainingImages(
        np.arange(8), [f"/home/me/faces:{n}" for n in range(8)], np.array([3, *[1] * 7]), np.arange(8) + 0.25
    )
    store.add_training_images(cell_id, about)
    buttons = near(rendered(store))
    assert [each["data-about"] for each in buttons[:2]] == [
        "Training image 0 (…/faces:0): nearest to 3 generated images, 2 of them memorized; mean distance to its 5 "
        "nearest others 0.2; one of 3 training images that are nearly identical",
        "Training image 1 (…/faces:1): nearest to 3 generated images, 2 of them memorized; mean distance to its 5 "
        "nearest others 1.2",
    ]


def test_pictures_that_are_not_of_the_nearest_by_the_measure_say_so(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY + '\n[emm]\nmeasure = "calibrated"\n')
    tiny.register(store, study)
    point = tiny.checkpoint(study.cells[0].cell.cell_id, 12, 0.55, pairs=PAIRS[:1])
    store.append(tiny.calibrated(point, 0.6))  # by which image 1 is the nearest to sample 0, not image 0
    (pair,) = [each for each in near(rendered(store)) if "data-called" in each]
    assert str(pair["data-about"]).endswith("; pictured is the nearest one in pixels, number 0")
    assert str(pair["data-about"]).startswith("Training image 1: ")


def test_the_page_says_how_many_training_images_each_cell_copies(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.append(tiny.checkpoint(cell_id, 12, 0.55, pairs=PAIRS))
    store.add_training_images(
        cell_id, TrainingImages(np.arange(8), list("abcdefgh"), np.array([2, 2, *[1] * 6]), np.arange(8.0))
    )
    page = rendered(store)
    assert "Which training images are memorized" in page.texts["summary"]
    assert "whether images in dense parts of the training set are copied more" in page.text
    cells = [text.strip() for text in page.texts["td"]]
    name = "N = 8"
    (row,) = (cells[at : at + 10] for at in range(len(cells)) if cells[at : at + 3] == [name, "20", "8"])
    found, *_ = copied_images(store, store.study("tiny"))
    whole, top = found.by_images[-1], found.concentration
    assert row[3:7] == [f"{whole.low:.0f} to {whole.high:.0f}", "1.000 (0.676 to 1.000)", "-", "3"]
    assert row[7:9] == [f"0.182 ({top.interval[0]:.3f} to {top.interval[1]:.3f})", f"{top.even:.3f}"]
    assert row[9] == "2 of 2"
    titles = [layout["yaxis"]["title"]["text"] for _, _, layout, _ in page.plots()]
    assert titles.count("copies of a training image") == 1
    assert titles.count("training images") == 2
