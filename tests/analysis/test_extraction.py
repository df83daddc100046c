"""Distinct training images that are copied: by permutation, by simulation, and by counting them one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.analysis.copied import LEVELS, copied_images
from diffmem.analysis.extraction import accumulated, all_ever, at_least, concentration, distinct
from diffmem.errors import StoreError
from diffmem.measures import MEASURES, Evidence, MeasureEvidence, wilson
from diffmem.store import TrainingImages
from diffmem.store.given import Checkpoint
from diffmem.store.store import Store
from diffmem.study.study import Study


def frequencies(copied: np.ndarray) -> Counter[int]:
    """Return how many training images are copied how often, from the image that each copy is of."""
    return Counter(Counter(copied.tolist()).values())


def test_the_number_of_distinct_images_is_the_mean_over_all_orders() -> None:
    generator = np.random.default_rng(0)
    copied = np.where(np.arange(60) < 35, generator.integers(20, size=60) ** 2 // 20, -1)  # 25 images are no copies
    counts = [1, 7, 30, 60]
    mean, _ = accumulated(frequencies(copied[copied >= 0]), 60, counts, size=100)
    orders = [generator.permutation(copied) for _ in range(4000)]
    by_order = np.array([[len(set(order[:n].tolist()) - {-1}) for n in counts] for order in orders])
    spread = by_order.std(axis=0) / np.sqrt(len(orders))
    assert (np.abs(mean - by_order.mean(axis=0)) <= 5 * spread + 1e-9).all()
    assert mean[-1] == pytest.approx(distinct(frequencies(copied[copied >= 0])))


@pytest.mark.parametrize(("size", "images", "alpha", "copies"), [(200, 500, 1.0, 0.5), (1000, 1000, 0.3, 0.2)])
def test_the_interval_holds_what_the_model_copies_on_average(size, images, alpha, copies) -> None:
    """Planted chances of each training image, so that the expected number of distinct ones is known."""
    generator = np.random.default_rng(1)
    chances = generator.dirichlet(np.full(size, alpha)) * copies
    held = np.zeros(2)
    for _ in range(400):
        times = generator.multinomial(images, [*chances, 1 - copies])[:-1]
        _, ends = accumulated(Counter(times[times > 0].tolist()), images, [images // 2, images], size=size)
        expected = [(1 - (1 - chances) ** n).sum() for n in (images // 2, images)]
        held += [low <= value <= high for value, (low, high) in zip(expected, ends, strict=True)]
    assert (held / 400 >= 0.93).all()


def test_chao_s_estimate_is_that_of_its_formula_and_no_more_than_there_are() -> None:
    assert all_ever({1: 6, 2: 2, 5: 1}, 100, size=1000) == pytest.approx(9 + 0.99 * 6 * 5 / (2 * 3))
    assert all_ever({1: 60}, 100, size=70) == 70
    assert all_ever({}, 100, size=70) == 0


def test_images_that_are_copied_at_least_so_often_are_counted() -> None:
    found = {1: 6, 2: 2, 5: 1}
    assert [at_least(found, times) for times in (1, 2, 3, 5, 6)] == [9, 3, 1, 1, 0]


def test_nothing_is_extracted_where_nothing_is_copied() -> None:
    mean, ends = accumulated({}, 100, [10, 100], size=50)
    assert (mean.tolist(), ends.tolist()) == ([0, 0], [[0, 3.69]] * 2)
    assert concentration({}, size=50) is None


def test_concentration_is_the_share_of_the_images_copied_most() -> None:
    generator = np.random.default_rng(2)
    times = generator.geometric(0.4, size=250) - 1
    found = concentration(Counter(times[times > 0].tolist()), size=250)
    assert found is not None
    assert found.images == 3  # a hundredth, rounded up
    assert found.share == pytest.approx(np.sort(times)[-3:].sum() / times.sum())
    again = [np.sort(generator.choice(times, 250)) for _ in range(2000)]
    expected = np.quantile([each[-3:].sum() / each.sum() for each in again], [0.025, 0.975])
    assert found.interval == pytest.approx(expected, rel=0.05)
    even = [np.sort(generator.multinomial(times.sum(), np.full(250, 1 / 250)))[-3:].sum() for _ in range(2000)]
    assert found.even == pytest.approx(np.mean(even) / times.sum(), rel=0.03)


# --- of a study ----------------------------------------------------------------------------------------


def evidence(images: int, seed: int) -> Evidence:
    """Return images near one of 8 training images, with distance ratios anywhere, also by calibrated l2."""
    generator = np.random.default_rng(seed)
    nearest, share = generator.integers(8, size=images) ** 2 // 8, generator.uniform(size=images)
    d2 = 50 + generator.uniform(size=images)
    calibrated = MeasureEvidence(nearest, share * d2, d2 / 2, int((share < 0.5).sum()))
    return Evidence(
        nearest=nearest, d1=share * d2, d2=d2, memorized=int((share < 1 / 3).sum()), others={"calibrated": calibrated}
    )


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Study, Store]:
    """Return the tiny study with two checkpoints of its first cell, and 90 held-out images."""
    study, store = tiny.load(tmp_path, tiny.TEXT), Store(tmp_path / "store.duckdb")
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    for epoch, images in ((12, 40), (24, 200)):
        about = {"cell_id": cell_id, "attempt_id": "by hand", "epoch": epoch, "step": epoch, "loss": 1.0}
        store.append(Checkpoint.of(evidence(images, epoch), **about, train_seconds=1.0, score_seconds=1.0))
    store.add_held_out(cell_id, evidence(90, 99))
    store.add_training_images(
        cell_id,
        TrainingImages(np.arange(8), [f"digits:{n}" for n in range(8)], np.array([2, 2, *[1] * 6]), np.arange(8.0)),
    )
    return study, store


@pytest.mark.parametrize(("measure", "own", "largest"), [("nearest", 1 / 3, 1.0), ("calibrated", 1.0, 2.0)])
def test_images_are_counted_at_every_threshold_at_the_last_checkpoint(filled, measure, own, largest) -> None:
    study, store = filled
    (found,) = copied_images(store, store.study("tiny").by(MEASURES[measure]))
    last, unseen = evidence(200, 24), evidence(90, 99)
    scale = 1 if measure == "nearest" else 2
    assert (found.cell_id, found.epoch, found.samples, found.held_out) == (study.cells[0].cell.cell_id, 24, 200, 90)
    levels = sorted({own, *(k * largest / LEVELS for k in range(1, LEVELS + 1))})
    assert [each.threshold for each in found.by_threshold] == levels
    for each in found.by_threshold:
        copied = last.nearest[scale * last.d1 < each.threshold * last.d2]
        assert each.extracted == pytest.approx(len(set(copied.tolist())))
        assert each.low <= each.extracted + 1e-9
        assert each.extracted <= each.high + 1e-9
        assert each.null is None  # there are 90 held-out images for 200 generated ones
    copied = last.nearest[scale * last.d1 < own * last.d2]
    times = Counter(Counter(copied.tolist()).values())
    assert found.frequencies == dict(sorted(times.items()))
    assert found.extracted == len(set(copied.tolist()))
    assert (found.low, found.high) == pytest.approx(tuple(wilson(found.extracted / 8, 8)))
    null = unseen.nearest[scale * unseen.d1 < own * unseen.d2]
    assert (found.null, found.null_images) == (pytest.approx(len(set(null.tolist()))), 90)
    assert [each.images for each in found.by_images] == [10, 20, 50, 100, 200]
    assert [each.null is None for each in found.by_images] == [False, False, False, True, True]
    assert {each.times: each.images for each in found.eidetic} == {
        k: n for k in (1, 2, 3, 5, 10, 20, 50, 100) if (n := sum(images for c, images in times.items() if c >= k))
    }


def test_copies_are_counted_by_local_density_and_group(filled) -> None:
    _, store = filled
    (found,) = copied_images(store, store.study("tiny"))
    last = evidence(200, 24)
    copied = Counter(last.nearest[last.d1 < last.d2 / 3].tolist())
    rows = [(each.local_distance, each.images, each.copied, each.copies, each.squares) for each in found.densities]
    assert rows == [(float(n), 1, int(copied[n] > 0), copied[n], copied[n] ** 2) for n in range(8)]
    assert (found.grouped, found.grouped_copied) == (2, sum(copied[n] > 0 for n in (0, 1)))


def test_a_measure_that_has_not_scored_the_last_checkpoint_counts_the_one_that_it_has(filled) -> None:
    study, store = filled
    cell_id = study.cells[0].cell.cell_id
    found = evidence(40, 12).others["calibrated"]
    store.add_measure(cell_id, 12, "grouped", found)
    (counted,) = copied_images(store, store.study("tiny").by(MEASURES["grouped"]))
    copies = found.nearest[found.distance < found.yardstick / 3]
    assert (counted.epoch, counted.samples, counted.extracted) == (12, 40, len(set(copies.tolist())))
    assert (counted.null, counted.null_images) == (None, 0)


def test_more_copied_images_than_there_are_is_damage(filled) -> None:
    study, store = filled
    with store.writing() as connection:
        connection.execute("UPDATE evidence SET nearest = sample, d1 = 0")
    with pytest.raises(StoreError) as caught:
        copied_images(store, store.study("tiny"))
    assert str(caught.value) == (
        f"{study.cells[0].cell.cell_id}: 200 training images are copied, but it has 8; `diffmem store check` lists "
        "what else is wrong"
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [({}, (0, 3.69)), ({1: 1}, (0.03, 5.57)), ({40: 8}, (8, 8)), ({40: 6}, (6, 8)), ({2: 3, 1: 1}, None)],
)
def test_few_copies_leave_an_interval_though_they_have_no_variance(found, expected) -> None:
    """Poisson's 95% interval of 0 or 1 training image copied once; no more than there are."""
    _, ends = accumulated(found, 1000, [1000], size=8)
    if expected is None:
        assert ends[0][0] < 4 < ends[0][1]
    else:
        assert ends[0].tolist() == pytest.approx(expected)
