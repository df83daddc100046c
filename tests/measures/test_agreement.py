"""Agreement of two halves: cosine, PSNR, RP and GL against a few lines of numpy, and what oracles are known to give."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from diffmem.data.training_sets import load_source
from diffmem.errors import RunError
from diffmem.measures import PIXELS, Space, wilson
from diffmem.measures.agreement import CENTRED_PIXELS, SIMILAR, agreement
from diffmem.measures.halves import compare_pairs, largest_similarity, other_of_label, similarity, squared_error
from diffmem.measures.halves import directions as unit
from diffmem.models import heun, latents, quantise
from diffmem.networks import OptimalDenoiser

DIGITS = torch.from_numpy(load_source("digits", None).images)[torch.randperm(1797, generator=torch.manual_seed(0))]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def flat(images: torch.Tensor) -> np.ndarray:
    return images.numpy().reshape(len(images), -1).astype(float)


def correlations(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return the correlation of every two images of two sets."""
    return np.array([[np.corrcoef(one, other)[0, 1] for other in flat(second)] for one in flat(first)])


def found(first, second, own, other, held_out, **more):
    pairs = compare_pairs((first, second), (own, other), held_out, **more)
    return agreement(
        (pairs.similarity, pairs.mse),
        (known(pairs.mismatched), known(pairs.mismatched_mse)),
        (pairs.nearest_a, pairs.nearest_b),
        (known(pairs.held_out_a), known(pairs.held_out_b)),
    )


def known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


# --- the numbers of a pair -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_similarity_error_and_nearest_equal_numpy(channels):
    first, second = noise(9, channels, 5, 4, seed=1), noise(9, channels, 5, 4, seed=2)
    np.testing.assert_allclose(similarity(first, second), np.diag(correlations(first, second)), atol=1e-12)
    error = ((flat(first) / 255 - flat(second) / 255) ** 2).mean(axis=1)
    np.testing.assert_allclose(squared_error(first, second), error)
    nearest = largest_similarity(unit(first, CENTRED_PIXELS), second, CENTRED_PIXELS)
    np.testing.assert_allclose(nearest, correlations(first, second).max(axis=1), atol=1e-12)


def test_more_training_images_than_fit_at_once_are_searched_whole(monkeypatch):
    first, second = noise(4, 1, 4, 4, seed=1), noise(50, 1, 4, 4, seed=2)
    whole = largest_similarity(unit(first, CENTRED_PIXELS), second, CENTRED_PIXELS)
    monkeypatch.setattr("diffmem.measures.halves.AT_ONCE", 7)
    np.testing.assert_allclose(largest_similarity(unit(first, CENTRED_PIXELS), second, CENTRED_PIXELS), whole)


def test_images_of_one_grey_are_alike_and_unlike_all_others():
    grey, dark = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert similarity(grey, dark).tolist() == [1.0]
    assert similarity(grey, noise(1, 1, 4, 4)).tolist() == [0.0]


def test_a_space_decides_where_images_are_compared():
    first, second = noise(6, 1, 4, 4, seed=1), noise(6, 1, 4, 4, seed=2)
    x, y = flat(first), flat(second)
    cosine = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(similarity(first, second, PIXELS), cosine)
    corner = Space("corner", lambda images: images[:, :, 0, 0].float() - 300)
    np.testing.assert_allclose(similarity(first, second, corner), 1)


def test_features_that_are_no_numbers_are_refused():
    broken = Space("broken", lambda images: images.flatten(1).float() / 0)
    with pytest.raises(RunError) as error:
        similarity(noise(2, 1, 4, 4), noise(2, 1, 4, 4), broken)
    assert str(error.value) == ("the space broken gives features that are no numbers, so no similarity can be computed")


def test_a_mismatched_image_has_the_same_label_and_is_used_once():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    other = other_of_label(labels)
    assert other.tolist() == [2, 4, 5, -1, 1, 0]
    with_partner = other[other >= 0]
    assert len(set(with_partner.tolist())) == len(with_partner) == 5


# --- the numbers of two models -------------------------------------------------------------------------


def test_cosine_psnr_rp_and_gl_equal_numpy():
    first, own, other, held_out = DIGITS[:40], DIGITS[40:90], DIGITS[90:140], DIGITS[140:165]
    second = torch.cat([first[:25], DIGITS[170:185]])  # 25 of 40 are the same
    second[:5, :, 0, 0] += 9
    result = found(first, second, own, other, held_out)
    pair, mixed = np.diag(correlations(first, second)), correlations(first, second)
    mixed = np.array([mixed[i, (i + 1) % 40] for i in range(40)])
    nearest = [correlations(images, own_).max(axis=1) for images, own_ in ((first, own), (second, other))]
    null = [correlations(held_out, own_).max(axis=1) for own_ in (own, other)]
    assert result.cosine.value == pytest.approx(pair.mean())
    assert result.cosine_null.value == pytest.approx(mixed.mean())
    error = ((flat(first) - flat(second)) ** 2).mean() / 255**2
    assert result.psnr.value == pytest.approx(-10 * math.log10(error))
    assert result.reproducible.value == np.mean(pair > SIMILAR)
    assert result.reproducible_null.value == np.mean(mixed > SIMILAR)
    assert result.generalization.value == pytest.approx(1 - np.mean([each > SIMILAR for each in nearest]))
    assert result.generalization_null.value == pytest.approx(1 - np.mean([each > SIMILAR for each in null]))
    assert (result.cosine.n, result.generalization_null.n) == (40, 25)


def test_intervals_are_wilson_s_of_shares_and_the_bootstrap_s_of_means():
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    result = agreement((values, values**2), ((), ()), (values, values), ((), ()), threshold=0.6)
    assert (result.reproducible.low, result.reproducible.high) == pytest.approx(
        tuple(wilson(np.mean(values > 0.6), 400)), abs=1e-12
    )
    width = stats.norm.ppf(0.975) * values.std() / 20
    assert (result.cosine.low, result.cosine.high) == pytest.approx(
        (values.mean() - width, values.mean() + width), abs=0.002
    )
    assert result.psnr.low < result.psnr.value < result.psnr.high
    assert (1 - result.generalization.high, 1 - result.generalization.low) == pytest.approx(
        tuple(wilson(np.mean(values > 0.6), 400)), abs=1e-12
    )


def test_where_there_is_no_null_none_is_told():
    result = agreement(([0.5, 0.6], [0.1, 0.1]), ((), ()), ([0.1, 0.2], [0.1, 0.2]), ((), ()))
    assert (result.cosine_null, result.psnr_null, result.reproducible_null, result.generalization_null) == (None,) * 4


# --- oracles -------------------------------------------------------------------------------------------


def generated(training_images: torch.Tensor, count: int = 40) -> torch.Tensor:
    """Return what the closed-form optimum of training images generates."""
    optimum = OptimalDenoiser(training_images.float() / 127.5 - 1)
    return quantise(heun(optimum, latents(range(count), shape=(1, 8, 8), seed=0), steps=8))


def test_the_same_model_agrees_with_itself():
    own, other = DIGITS[:20], DIGITS[20:40]
    images = generated(own)
    result = found(images, images.clone(), own, other, DIGITS[40:80])
    assert (result.cosine.value, result.reproducible.value) == pytest.approx((1, 1))
    assert (result.psnr.value, result.psnr.low, result.psnr.high) == (math.inf, math.inf, math.inf)
    assert result.cosine_null.high < 0.8


def test_the_optima_of_disjoint_halves_agree_little_and_do_not_generalize():
    own, other = DIGITS[:20], DIGITS[20:40]
    result = found(generated(own), generated(other), own, other, DIGITS[40:80])
    assert result.cosine.high < 0.85
    assert result.reproducible.value < 0.1
    assert result.generalization.value < 0.05
    assert result.generalization_null.value > 0.9


def test_agreement_rises_with_n_where_it_is_planted():
    """Models whose images have what all have in common, and a deviation of their own that falls as N^(-1/2)."""
    common, results = noise(200, 1, 8, 8, seed=5).numpy().astype(float), []
    for size in (1, 10, 100, 1000):
        deviations = [np.random.default_rng(seed).normal(0, 100 / size**0.5, common.shape) for seed in (1, 2)]
        images = [torch.from_numpy((common + each).round().clip(0, 255).astype(np.uint8)) for each in deviations]
        results.append(found(*images, DIGITS[:50], DIGITS[50:100], DIGITS[100:150]))
    for number in ("cosine", "psnr"):
        values = [getattr(each, number) for each in results]
        assert all(one.high < other.low for one, other in pairwise(values))
    assert [each.reproducible.value for each in results] == sorted(each.reproducible.value for each in results)
    assert abs(results[-1].cosine_null.value) < 0.05
