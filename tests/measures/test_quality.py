"""Quality: the formulas against closed forms and brute force, and intervals that hold what they say."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from diffmem.cli.quality import quality_row
from diffmem.data import load_source
from diffmem.errors import DataError
from diffmem.measures import PIXELS, ImageQuality, Space, features, image_quality, quality
from diffmem.measures.image_quality import RealImages
from diffmem.measures.of_images import QualityValue, small_sample


def normal(n: int, d: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def digits(seed: int = 0) -> np.ndarray:
    """Return all 8x8 digits as rows of pixels, in a random order."""
    images = load_source("digits", None).images.reshape(-1, 64)
    return images[np.random.default_rng(seed).permutation(len(images))].astype(np.float32)


# --- Frechet distance ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(400, 5), (20, 50)])
def test_the_distance_of_shifted_and_scaled_features_is_the_analytic_one(n, d):
    """x and a x + b have the distance |mu (a - 1) + b|^2 + (a - 1)^2 tr C, whatever the distribution."""
    x = normal(n, d)
    shift, spread = x.mean(axis=0) * (3 - 1) + 2.0, np.trace(np.cov(x, rowvar=False))
    assert quality.frechet_distance(x * 3 + 2, x) == pytest.approx(shift @ shift + 4 * spread, rel=1e-9)
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(x + 2, x) == pytest.approx(4 * d, rel=1e-9)


def test_the_distance_of_normal_samples_is_near_that_of_their_distributions():
    found = quality.frechet_distance(normal(50_000, 4, shift=1, scale=2), normal(50_000, 4, seed=1))
    assert found == pytest.approx(4 * 1 + 4 * (2 - 1) ** 2, rel=0.02)


@pytest.mark.parametrize(("n", "m"), [(60, 80), (4, 80), (4, 5)])
def test_the_distance_is_that_of_the_matrix_square_root(n, m):
    mixed = np.random.default_rng(3).normal(size=(6, 6))
    x, y = normal(n, 6) @ mixed, normal(m, 6, seed=1) + 0.5
    shift, (c, other) = x.mean(axis=0) - y.mean(axis=0), (np.cov(each, rowvar=False) for each in (x, y))
    root = linalg.sqrtm(c).real
    expected = shift @ shift + np.trace(c + other - 2 * linalg.sqrtm(root @ other @ root).real)
    assert quality.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


# --- overlap -------------------------------------------------------------------------------------------


def brute(generated: np.ndarray, real: np.ndarray, k: int = 5) -> tuple[float, ...]:
    """Return precision, recall, density and coverage as they are defined, pair by pair."""

    def radius(own: np.ndarray, i: int) -> float:
        return float(sorted(np.linalg.norm(own[i] - own[j]) for j in range(len(own)) if j != i)[k - 1])

    radii, others = ([radius(own, i) for i in range(len(own))] for own in (real, generated))
    apart = np.array([[np.linalg.norm(g - r) for r in real] for g in generated])
    precision = np.mean([any(apart[i, j] < radii[j] for j in range(len(real))) for i in range(len(generated))])
    recall = np.mean([any(apart[i, j] < others[i] for i in range(len(generated))) for j in range(len(real))])
    density = sum(apart[i, j] < radii[j] for i in range(len(generated)) for j in range(len(real)))
    coverage = np.mean([min(apart[:, j]) < radii[j] for j in range(len(real))])
    return float(precision), float(recall), float(density / k / len(generated)), float(coverage)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_overlap_is_that_of_all_pairs(shift, monkeypatch):
    generated, real = normal(40, 3, shift=shift), normal(30, 3, seed=1)
    assert quality.overlap_of(generated, real) == pytest.approx(brute(generated, real))
    monkeypatch.setattr(quality, "BLOCK", 64)  # blocks of two rows
    assert quality.overlap_of(generated, real) == pytest.approx(brute(generated, real))


def test_a_set_overlaps_with_itself_wholly_and_not_at_all_with_one_far_away():
    x = normal(50, 4)
    assert quality.overlap_of(x, x) == pytest.approx((1, 1, 1, 1))
    assert quality.overlap_of(x + 100, x) == (0, 0, 0, 0)


def test_an_image_that_is_as_far_as_the_ball_reaches_is_outside():
    """Of 0, 1, ..., 5 the balls of 0 and 5 reach as far as 5, those of 1 and 4 to 4, those of 2 and 3 to 3."""
    real = np.arange(6.0)[:, None]
    assert quality.overlap_of(np.full((6, 1), -5.0), real)[2:] == (0, 0)
    assert quality.overlap_of(np.full((6, 1), -4.9), real)[2:] == pytest.approx((1 / 5, 1 / 6))


# --- copying -------------------------------------------------------------------------------------------


def test_no_exact_copy_is_authentic_and_half_of_new_images_about_are():
    images = digits()
    training, new = images[:600], images[600:1200]
    assert not quality.authentic(training[:200], training).any()
    assert 0.4 < quality.authentic(new, training).mean() < 0.65


def test_authentic_images_are_those_of_the_definition(monkeypatch):
    generated, training = normal(30, 3), normal(40, 3, seed=1)
    expected = []
    for g in generated:
        t = int(np.argmin([np.linalg.norm(g - each) for each in training]))
        own = min(np.linalg.norm(training[t] - training[j]) for j in range(len(training)) if j != t)
        expected.append(own < np.linalg.norm(g - training[t]))
    assert quality.authentic(generated, training).tolist() == expected
    pairs = (generated, generated), (training, training), (generated, training)
    distances = quality.Distances(*(quality.squared_distances(*pair) for pair in pairs))
    assert quality.authentic_within(distances).tolist() == expected
    monkeypatch.setattr(quality, "BLOCK", 64)
    assert quality.authentic(generated, training).tolist() == expected


def test_c_t_is_far_below_0_for_copies_and_near_0_for_new_images():
    images = digits()
    training, test, new = images[:600], images[600:1000], images[1000:1400]
    noise = np.random.default_rng(0).integers(-9, 10, (400, 64))
    copied = quality.copying_of(training[:400] + noise, test, training)
    fresh = quality.copying_of(new, test, training)
    assert copied is not None
    assert fresh is not None
    assert copied < -8
    assert abs(fresh) < 3


def test_c_t_of_new_images_varies_around_0_by_less_than_1():
    """Of a mean of three z by their weights the standard deviation is below 1."""
    found = []
    for seed in range(40):
        sets = [normal(300, 3, seed=1000 * part + seed) for part in range(3)]
        found.append(quality.copying_of(*sets, seed=seed))
    assert np.mean(found) == pytest.approx(0, abs=0.35)
    assert 0.4 < np.std(found) < 1.1


def test_c_t_is_the_mean_z_of_cells_weighted_by_their_test_images():
    """Three cells far apart, of which one has 20 generated images, which are too few."""
    centres = np.repeat([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], 60, axis=0)
    training, test = centres + normal(180, 2), (centres + normal(180, 2, seed=1))[30:150]
    generated = (centres + normal(180, 2, seed=2))[:140]
    zs = []
    for own, of_test in ((slice(0, 60), slice(0, 30)), (slice(60, 120), slice(30, 90))):
        sets = generated[own], test[of_test]
        to_own = [[np.linalg.norm(training[own] - x, axis=1).min() for x in each] for each in sets]
        m, n = map(len, to_own)
        u = stats.mannwhitneyu(*to_own, use_continuity=False).statistic
        zs.append((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))
    weighted = (30 * zs[0] + 60 * zs[1]) / 90
    assert quality.copying_of(generated, test, training) == pytest.approx(weighted)
    assert quality.copying_of(generated[:20], test, training) is None


# --- with intervals and nulls --------------------------------------------------------------------------

QUANTITIES = ["frechet_distance", "precision", "recall", "density", "coverage", "authentic", "c_t"]


def test_every_quantity_comes_against_both_sets_within_its_interval_and_with_its_null():
    images = digits()
    real = RealImages(images[:300], images[300:900], space="pixels")
    found = real.values(images[900:1100])
    assert [each.quantity for each in found] == QUANTITIES * 2
    assert [each.against for each in found] == ["training"] * 7 + ["held_out"] * 7
    for each in found:
        assert each.low <= each.value <= each.high
        assert (each.n, each.real, each.dimensions, each.null_n) == (200, 300, 64, 300)
        assert each.high > each.low
    assert len(np.unique(np.concatenate([real.new, real.features["held_out"]]), axis=0)) == len(
        np.unique(images[300:900], axis=0)
    )
    assert real.nulls["frechet_distance", "training"] == quality.frechet_distance(real.new, images[:300])
    assert real.nulls["recall", "held_out"] == quality.overlap_of(real.new, real.features["held_out"]).recall


def test_a_model_that_copies_is_better_than_new_images_to_its_training_set_alone():
    images = digits()
    training, held_out, new = images[:300], images[300:1100], images[1100:1400]
    real = RealImages(training, held_out, space="pixels")
    copies, fresh = ({(each.quantity, each.against): each for each in real.values(given)} for given in (training, new))
    for quantity in ("frechet_distance", "c_t", "authentic"):
        assert copies[quantity, "training"].high < fresh[quantity, "training"].low
    assert copies["coverage", "training"].value == 1
    assert copies["frechet_distance", "held_out"].high > fresh["frechet_distance", "held_out"].value


def test_intervals_hold_the_expected_value_in_about_95_of_100_samples():
    """Of held-out images, which are drawn anew too, and of a training set, which stays."""
    trials, n, d = 60, 80, 20
    training = normal(60, d, seed=999)
    values: dict[tuple[str, str], list[QualityValue]] = {}
    for trial in range(trials):
        generated, held_out = normal(n, d, seed=2 * trial, shift=0.4), normal(2 * n, d, seed=2 * trial + 1)
        for each in RealImages(training, held_out, space="pixels").values(generated):
            values.setdefault((each.quantity, each.against), []).append(each)
    for key, found in values.items():
        expected = np.mean([each.value for each in found])
        inside = np.mean([each.low <= expected <= each.high for each in found])
        assert inside >= 0.87, key  # of 60, 95% have a standard deviation of 2.8%
        widths, spread = [each.high - each.low for each in found], np.std([each.value for each in found])
        assert np.mean(widths) / 3.92 == pytest.approx(spread, rel=0.6), key


def test_an_interval_of_a_distance_in_many_dimensions_costs_fewer_half_samples(monkeypatch):
    images = digits()
    real = RealImages(images[:100], images[100:300], space="pixels")
    usual = real.values(images[300:400])[0]
    monkeypatch.setattr(image_quality, "MANY_DIMENSIONS", 10)
    fewer = RealImages(images[:100], images[100:300], space="pixels").values(images[300:400])[0]
    assert fewer.value == usual.value
    assert fewer.high - fewer.value == pytest.approx(usual.high - usual.value, rel=0.5)
    assert fewer.high != usual.high


def test_a_distance_in_too_many_dimensions_is_left_out_and_that_is_said(monkeypatch):
    images = as_images(digits())
    usual = ImageQuality(images[:100], images[100:300]).of(images[300:400])
    for module in (image_quality, features):
        monkeypatch.setattr(module, "MOST_DIMENSIONS", 63)
    fewer = ImageQuality(images[:100], images[100:300]).of(images[300:400])
    assert fewer.values == [each for each in usual.values if each.quantity != "frechet_distance"]
    assert fewer.notes[-1] == (
        "quality: no Frechet distance in pixels: 64 values an image take too long, 63 at most; a feature space "
        "([spaces.NAME]) has fewer"
    )
    assert quality_row("training", {each.quantity: each for each in fewer.values})["FD"] is None


def value(n: int, real: int, dimensions: int) -> QualityValue:
    return QualityValue("pixels", "frechet_distance", "held_out", 1, 1, 1, n, real, dimensions, None, 0)


def test_a_distance_of_fewer_images_than_dimensions_is_said_to_be_biased():
    assert small_sample(value(100, 64, 64)) == (
        "Frechet distance (pixels) to held-out images: 64 images in 64 dimensions are too few (n <= d), so it is "
        "biased upwards; compare it with its null and with distances of as many images only"
    )
    assert small_sample(value(65, 65, 64)) == ""


# --- of images -----------------------------------------------------------------------------------------


def as_images(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 1, 8, 8).astype(np.uint8)


def test_images_are_measured_in_the_space_that_is_given():
    images = as_images(digits())
    halved = Space("halved", lambda batch: batch.flatten(1).float() / 2)
    sets = images[:200], images[200:600]
    plain, other = (
        ImageQuality(*sets, space=space).of(torch.from_numpy(images[600:700])).values for space in (PIXELS, halved)
    )
    assert {each.space for each in other} == {"halved"}
    for one, half in zip(plain, other, strict=True):
        expected = one.value / 4 if one.quantity == "frechet_distance" else one.value
        assert half.value == pytest.approx(expected)


def test_too_few_images_are_counted():
    images = as_images(digits())
    found = ImageQuality(images[:5], images[100:120]).of(images[200:210])
    assert found.values == []
    assert found.reason == (
        "quality needs 12 generated images, 6 training images and 24 held-out ones, and there are 10, 5 and 20"
    )
    few = ImageQuality(images[:6], images[100:124]).of(images[200:212])
    assert few.reason == ""
    assert [note.partition(":")[2].split(";")[0] for note in few.notes] == [
        " only 24 held-out images, half of them for the null, so intervals are wide",
        " Frechet distance (pixels) to training images: 6 images in 64 dimensions are too few (n <= d), so it is "
        "biased upwards",
        " Frechet distance (pixels) to held-out images: 12 images in 64 dimensions are too few (n <= d), so it is "
        "biased upwards",
        " no C_T against training images: no k-means cell has more than 20 generated images and a test image",
        " no C_T against held-out images: no k-means cell has more than 20 generated images and a test image",
    ]


def test_of_a_large_training_set_some_images_are_taken_and_that_is_said(monkeypatch):
    monkeypatch.setattr("diffmem.measures.features.TRAINING_IMAGES", 100)
    images = as_images(digits())
    found = ImageQuality(images[:300], images[300:700]).of(images[700:900])
    assert "quality: beside 100 of 300 training images, at random; copies of the others are not seen" in found.notes
    assert {each.real for each in found.values if each.against == "training"} == {100}


def test_features_that_are_no_numbers_are_refused():
    images = as_images(digits())
    broken = Space("broken", lambda batch: batch.flatten(1).float() / 0)
    with pytest.raises(DataError) as refused:
        ImageQuality(images[:100], images[100:200], space=broken).of(images[200:300])
    assert str(refused.value) == "broken: a feature is no finite number, so the quality cannot be measured"
