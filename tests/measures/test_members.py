"""The measures beside each other: one rule of a copy everywhere, and calibrated l2 against its definition."""

import io

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image
from reference import random_images

from diffmem.measures import MEASURES, NEAREST, Comparison, is_copy, is_copy_sql, wilson
from diffmem.measures.calibrated import ALPHA, CALIBRATED, NEIGHBOURS
from diffmem.measures.comparison import neighbours_for
from diffmem.models import ALONE

PAIRS = 1_000_000


def distances(threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a million pairs of distance and yardstick: any, on the threshold exactly, and one rounding beside it."""
    generator = np.random.default_rng(0)
    squared = generator.integers(0, 10**8, (2, PAIRS)).astype(float)
    distance, yardstick = np.sqrt(squared.min(axis=0)), np.sqrt(squared.max(axis=0))
    at = np.arange(PAIRS) % 5
    tie = threshold * yardstick
    for number, value in enumerate((tie, np.nextafter(tie, -np.inf), np.nextafter(tie, np.inf)), start=1):
        distance[at == number] = np.maximum(0, value)[at == number]
    yardstick[:10] = distance[:10] = 0.0
    return distance, yardstick


@pytest.mark.parametrize("threshold", [*(each.threshold for each in MEASURES.values()), 0.1, 0.3 * 3, 1 / 7], ids=str)
def test_a_copy_is_the_same_one_in_python_and_in_sql(threshold):
    distance, yardstick = distances(threshold)
    expected = is_copy(distance, yardstick, threshold)
    with duckdb.connect() as connection:
        connection.register("given", {"number": np.arange(PAIRS), "distance": distance, "yardstick": yardstick})
        as_parameter, as_literal = (
            connection.execute(f"SELECT {rule} AS copy FROM given ORDER BY number", parameters).fetchnumpy()["copy"]
            for rule, parameters in ((is_copy_sql(), [threshold]), (is_copy_sql(repr(threshold)), []))
        )
    assert np.array_equal(as_parameter, expected)
    assert np.array_equal(as_literal, expected)
    assert not expected[np.arange(PAIRS) % 5 == 1].any()  # a tie is no copy
    assert torch.equal(
        is_copy(torch.from_numpy(distance), torch.from_numpy(yardstick), threshold), torch.tensor(expected)
    )
    assert PAIRS / 5 < expected.sum() < PAIRS


def test_a_rule_has_a_place_for_its_threshold_and_measures_their_names():
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert "1/2" in measure.rule.format("1/2")
        assert 0 < measure.threshold <= measure.largest
    assert next(iter(MEASURES)) == NEAREST.name


# --- calibrated l2 -------------------------------------------------------------------------------------


def by_definition(images: torch.Tensor, training_images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nearest, d1 and alpha times the mean distance of the 50 nearest, image by image (Carlini et al. 2023)."""
    x, y = (each.flatten(1).numpy().astype(float) for each in (images, training_images))
    nearest, distance, yardstick = [], [], []
    for image in x:
        d = np.sqrt(((y - image) ** 2).sum(axis=1))
        nearest.append(int(d.argmin()))
        distance.append(d.min())
        yardstick.append(0.5 * np.sort(d)[:50].mean())
    return np.array(nearest), np.array(distance), np.array(yardstick)


@pytest.mark.parametrize("N", [2, 3, 49, 50, 51, 400])
def test_calibrated_l2_is_that_of_its_definition(N):
    training = random_images(N, 1, 4, 4, seed=1)
    images = torch.cat([random_images(20, 1, 4, 4, seed=2), training[:2]])
    found = CALIBRATED.compare(images, training, *neighbours_for([CALIBRATED], images, training))
    for own, expected in zip(found, by_definition(images, training), strict=True):
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-12)
    assert (ALPHA, NEIGHBOURS) == (0.5, 50)
    assert is_copy(found.distance, found.yardstick, CALIBRATED.threshold)[-2:].all()  # a replica is a copy of itself
    assert (found.distance <= CALIBRATED.largest * found.yardstick).all()


def test_a_replica_of_an_image_that_is_there_twice_is_extracted_though_it_is_not_memorized():
    training = random_images(60, 1, 4, 4)
    twice = torch.cat([training, training[:1]])
    comparison = Comparison(twice, pairs=0, others=["calibrated", "nearest"])
    comparison.add(training[:1])
    comparison.gather(ALONE, 1)
    evidence = comparison.evidence()
    assert evidence.memorized == 0
    assert list(evidence.others) == ["calibrated"]
    assert evidence.others["calibrated"].copies == 1


def test_evidence_of_several_batches_is_that_of_all_images_in_their_order():
    training, images = random_images(70, 1, 4, 4), random_images(30, 1, 4, 4, seed=1)
    comparison = Comparison(training, pairs=0, others=["calibrated"])
    for part in images.split(8):
        comparison.add(part)
        comparison.gather(ALONE, len(part))
    found = comparison.evidence().others["calibrated"]
    nearest, distance, yardstick = by_definition(images, training)
    assert found.nearest.tolist() == nearest.tolist()
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    np.testing.assert_allclose(found.yardstick, yardstick, rtol=1e-12)
    assert found.copies == int(is_copy(distance, yardstick, CALIBRATED.threshold).sum())


def test_images_are_kept_with_pictures_of_their_two_nearest_training_images() -> None:
    rng = np.random.default_rng(0)
    training, images = (torch.from_numpy(rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)) for n in (60, 10))
    comparison = Comparison(training, pairs=7)
    for part in (images[:5], images[5:]):
        comparison.add(part)
    comparison.gather(ALONE, 10)
    distances = torch.cdist(images.flatten(1).double(), training.flatten(1).double())
    two = distances.argsort(dim=1)[:, :2].tolist()
    found = comparison.evidence().pairs
    assert [(pair.second_nearest, pair.name) for pair in found] == [(second, None) for _, second in two[:7]]
    for image, (nearest, second), pair in zip(images, two, found, strict=False):
        for expected, picture in zip((image, training[nearest], training[second]), pair[:3], strict=True):
            with Image.open(io.BytesIO(picture)) as shown:
                assert np.array_equal(np.asarray(shown), expected.numpy().transpose(1, 2, 0))


def test_a_batch_that_one_measure_has_no_memory_for_is_added_by_none() -> None:
    training = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8))
    comparison = Comparison(training, pairs=2, others=["calibrated"])
    compare = CALIBRATED.compare

    def short(*_given: torch.Tensor) -> None:
        raise MemoryError

    object.__setattr__(CALIBRATED, "compare", short)
    try:
        with pytest.raises(MemoryError):
            comparison.add(training[:10])
    finally:
        object.__setattr__(CALIBRATED, "compare", compare)
    for part in (training[:5], training[5:10]):
        comparison.add(part)
    comparison.gather(ALONE, 10)
    found = comparison.evidence()
    assert (found.samples, len(found.others["calibrated"].nearest), len(found.pairs)) == (10, 10, 2)


def test_the_interval_of_none_or_all_ends_at_them_exactly() -> None:
    n = np.arange(1, 20_001)
    none, every = wilson(np.zeros(len(n)), n), wilson(np.ones(len(n)), n)
    assert (none[:, 0] == 0).all()
    assert (every[:, 1] == 1).all()
    assert (none[:, 1] > 0).all()
    assert (every[:, 0] < 1).all()
