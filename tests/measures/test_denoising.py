"""Denoising errors by noise level, gaps and membership: against brute force, the optimum and an untrained network."""

import math

import numpy as np
import pytest
import torch
from reference import random_images
from torch import Tensor

from diffmem.data import load_source
from diffmem.errors import OutOfMemory
from diffmem.measures import DENOISER_MEASURES, LEVELS, LevelErrors, LevelValue, SetErrors, denoising_errors
from diffmem.measures.bootstrap import ends, resampled
from diffmem.measures.denoising import BANK, noise_bank
from diffmem.measures.membership import area, halves, threshold
from diffmem.models import DenoiserFunction, build_denoiser
from diffmem.models.sampling import noise_levels, sampler_levels
from diffmem.networks import ModelConfiguration, OptimalDenoiser

SMALL = 5
"""Noise levels, the lowest ones, at which digits cannot be mistaken for each other."""


class Shrinks:
    """A denoiser that is known: half of what it is given, with the label added."""

    sigma_min, sigma_max = 0.0, math.inf

    def __call__(self, noisy: Tensor, _sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoise."""
        shift = 0.0 if labels is None else labels.float()[:, None, None, None] / 10
        return noisy / 2 + shift


def clean(count: int, seed: int = 0) -> Tensor:
    return random_images(count, 1, 4, 4, seed=seed).float() / 127.5 - 1


def found(
    denoiser: DenoiserFunction,
    training: Tensor,
    held_out: Tensor,
    *,
    labels: Tensor | None = None,
    held_out_labels: Tensor | None = None,
    optimum: OptimalDenoiser | None = None,
) -> dict[tuple[str, str], list[LevelValue]]:
    """Return what all measures find of a denoiser, by quantity and set, from the highest level down."""
    best = OptimalDenoiser(training, labels) if optimum is None else optimum
    parts = []
    for name, images, each in (("training", training, labels), ("held_out", held_out, held_out_labels)):
        errors = denoising_errors(denoiser, best, images[:200], each, name=name, seed=0).numpy()
        parts.append(SetErrors(*(errors[..., k] for k in range(3))))
    errors = LevelErrors(sampler_levels(denoiser, LEVELS), *parts, seed=0)
    values: dict[tuple[str, str], list[LevelValue]] = {}
    for measure in DENOISER_MEASURES.values():
        for each in measure.values(errors):
            values.setdefault((each.quantity, each.images), []).append(each)
    return values


def of(values: list[LevelValue]) -> np.ndarray:
    return np.array([each.value for each in values])


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Return 300 digits to train on and 200 others, in random order."""
    images = load_source("digits", None).images
    order = np.random.default_rng(0).permutation(len(images))
    scaled = torch.from_numpy(images[order[:500]]).float() / 127.5 - 1
    return scaled[:300], scaled[300:]


# --- errors against their definition -------------------------------------------------------------------


def by_definition(
    training: np.ndarray, classes: list[int], images: np.ndarray, labels: list[int], noise: np.ndarray, sigma: float
) -> np.ndarray:
    """Return the three errors of each image with a loop over images, draws and training images, in float64."""
    rows = []
    for image, label, draws in zip(images, labels, noise, strict=True):
        errors = []
        for e in draws:
            z = image + sigma * e
            logits = [
                -((y - z) ** 2).sum() / (2 * sigma**2) if c == label else -math.inf
                for y, c in zip(training, classes, strict=True)
            ]
            largest = max(logits)
            weights = np.exp(np.array(logits) - largest)
            best = (weights[:, None] * training.reshape(len(training), -1)).sum(axis=0).reshape(
                image.shape
            ) / weights.sum()
            own = z / 2 + label / 10
            errors.append([((own - image) ** 2).mean(), ((best - image) ** 2).mean(), ((own - best) ** 2).mean()])
        rows.append(np.mean(errors, axis=0))
    return np.array(rows)


@pytest.mark.parametrize("draws", [1, 3, 8])
def test_errors_of_three_images_are_those_of_their_definition(draws):
    training, classes = clean(3), [0, 1, 0]
    images, labels = torch.cat([clean(2, seed=1), training[:1]]), [0, 1, 0]
    errors = denoising_errors(
        Shrinks(),
        OptimalDenoiser(training, torch.tensor(classes)),
        images,
        torch.tensor(labels),
        name="held_out",
        seed=3,
        draws=draws,
        at_once=5,
    ).numpy()
    noise = noise_bank(range(3), name="held_out", seed=3, draws=draws, shape=(1, 4, 4)).double().numpy()
    for level, sigma in enumerate(noise_levels(LEVELS, 0.002, 80.0)[:-1].tolist()):
        given = (each.double().numpy() for each in (training, images))
        x, y = given
        expected = by_definition(x, classes, y, labels, noise, sigma)
        np.testing.assert_allclose(errors[:, level], expected, rtol=2e-5, atol=1e-9)


def test_the_noise_of_an_image_depends_on_nothing_but_its_set_its_number_its_draw_and_the_seed():
    shape = (3, 2, 2)
    both = noise_bank(range(4), name="training", seed=1, draws=2, shape=shape)
    assert both.shape == (4, 2, *shape)
    all_draws = noise_bank([2], name="training", seed=1, draws=BANK, shape=shape)
    assert torch.equal(all_draws[0, :2], both[2])
    for other in (
        noise_bank([2], name="held_out", seed=1, draws=1, shape=shape),
        noise_bank([2], name="training", seed=2, draws=1, shape=shape),
        noise_bank([3], name="training", seed=1, draws=1, shape=shape),
    ):
        assert not torch.equal(other[0, 0], both[2, 0])
    with pytest.raises(ValueError, match="the noise bank has 1 to 8 draws an image, not 9"):
        noise_bank([0], name="training", seed=0, draws=9, shape=shape)


def test_errors_do_not_depend_on_who_computes_them_or_on_how_many_at_once():
    training, images = clean(5), clean(7, seed=1)
    optimum = OptimalDenoiser(training)
    options = {"name": "training", "seed": 0}
    whole = denoising_errors(Shrinks(), optimum, images, **options)
    parts = [
        denoising_errors(Shrinks(), optimum, images, rows=rows, at_once=4, **options)
        for rows in (range(3), range(3, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-9)


def test_images_that_memory_does_not_hold_are_denoised_fewer_at_once():
    class Short(Shrinks):
        most = 3

        def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
            if len(noisy) > self.most:
                raise MemoryError
            return super().__call__(noisy, sigma, labels)

    training = clean(6)
    optimum = OptimalDenoiser(training)
    options = {"name": "training", "seed": 0, "draws": 1}
    expected = denoising_errors(Shrinks(), optimum, training, **options)
    torch.testing.assert_close(denoising_errors(Short(), optimum, training, **options), expected, rtol=1e-5, atol=1e-9)
    Short.most = 0
    with pytest.raises(OutOfMemory):
        denoising_errors(Short(), optimum, training, **options)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_loss_beyond_the_optimum_is_the_distance_to_it_on_training_noise(conditional):
    """E||D - x||^2 - E||D* - x||^2 = E||D - D*||^2, as D* is the mean of x given z: by Monte Carlo."""
    training, labels = clean(6) / 4, torch.tensor([0, 1, 0, 1, 0, 1]) if conditional else None
    optimum, differences = OptimalDenoiser(training, labels), []
    for seed in range(100):
        errors = denoising_errors(Shrinks(), optimum, training, labels, name="training", seed=seed, draws=BANK).mean(
            dim=0
        )
        differences.append(errors[:, 0] - errors[:, 1] - errors[:, 2])
    found = torch.stack(differences)
    deviation = found.std(dim=0) / math.sqrt(len(found))
    assert (found.mean(dim=0).abs() <= 4 * deviation + 1e-9).all()
    unsure = errors[10]  # a level at which the optimum mixes images, so that the identity says something
    assert unsure.min() > 5 * deviation[10] > 0


def test_of_unique_labels_the_optimum_is_the_image_itself():
    training, labels = clean(4), torch.arange(4)
    errors = denoising_errors(Shrinks(), OptimalDenoiser(training, labels), training, labels, name="training", seed=0)
    assert (errors[..., 1] == 0).all()
    assert torch.equal(errors[..., 0], errors[..., 2])


# --- oracles -------------------------------------------------------------------------------------------


def test_the_optimum_has_a_loss_gap_and_its_members_are_known(digits):
    training, held_out = digits
    values = found(OptimalDenoiser(training), training, held_out)
    assert (of(values["loss", "training"])[-SMALL:] == 0).all()
    assert (of(values["loss", "held_out"])[-SMALL:] > 0.05).all()
    gap = values["loss_gap", "both"][-SMALL:]
    assert all(each.low > 0.05 for each in gap)
    np.testing.assert_allclose(of(values["relative_loss_gap", "both"])[-SMALL:], 1)
    for images in ("training", "held_out"):
        assert {(each.value, each.low, each.high) for each in values["to_optimum", images]} == {(0, 0, 0)}
        assert of(values["loss", images]) == pytest.approx(of(values["optimum_loss", images]))
    assert {each.value for each in values["auc_loss", "both"][-SMALL:]} == {1}
    assert {each.value for each in values["tpr_loss", "training"][-SMALL:]} == {1}
    (area_,), (rate,), (false,) = (
        values[key] for key in (("told_auc_loss", "both"), ("told_tpr_loss", "training"), ("told_fpr_loss", "held_out"))
    )
    assert (area_.value, rate.value, area_.n, rate.n) == (1, 1, 200, 100)
    assert false.value <= 0.05
    assert {each.value for each in values["auc_excess", "both"]} == {0.5}  # it is nothing beyond itself


def test_an_untrained_network_has_no_loss_gap_and_knows_no_members(digits):
    training, held_out = digits
    M = ModelConfiguration(width=4, channel_mult=(1,), blocks=1, attention=(), precondition="edm")
    values = found(build_denoiser(M, resolution=8, channels=1), training, held_out)
    inside = [each.low <= 0 <= each.high for each in values["loss_gap", "both"]]
    assert sum(inside) >= LEVELS - 2
    assert np.abs(of(values["relative_loss_gap", "both"])).max() < 0.1
    standard_error = math.sqrt((200 + 200 + 1) / (12 * 200 * 200))  # of the area, if scores are alike
    assert np.abs(of(values["auc_loss", "both"]) - 0.5).max() < 4 * standard_error
    (told,) = values["told_auc_loss", "both"]
    assert abs(told.value - 0.5) < 4 * math.sqrt(2) * standard_error
    assert all(each.value < 0.06 for each in values["tpr_loss", "training"])
    assert of(values["to_optimum", "training"]).min() > 0


# --- statistics ----------------------------------------------------------------------------------------


def test_intervals_by_bootstrap_are_as_wide_as_the_standard_error_says():
    x = np.random.default_rng(0).normal(size=400)
    low, high = ends(np.asarray(x.mean()), resampled(400, name="training", seed=0) @ x)
    assert low < x.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)
    weights = resampled(7, name="training", seed=0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert not np.array_equal(weights, resampled(7, name="held_out", seed=0))
    assert np.array_equal(weights, resampled(7, name="training", seed=0))


def test_the_area_is_the_share_of_pairs_in_which_the_member_is_lower_and_a_tie_is_a_half():
    members, others = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])
    pairs = [(m < o) + 0.5 * (m == o) for m in members for o in others]
    assert area(members, others) == sum(pairs) / 6


@pytest.mark.parametrize(("count", "allowed"), [(1, 0), (99, 0), (100, 1), (250, 2), (1000, 10)])
def test_no_more_than_one_percent_lies_below_the_threshold(count, allowed):
    others = np.random.default_rng(0).permutation(count).astype(float)
    assert (others < threshold(others)).sum() == allowed
    assert (np.zeros(count) < threshold(np.zeros(count))).sum() == 0


def test_halves_have_each_image_once_in_an_order_that_does_not_depend_on_the_values():
    one, other = halves(np.arange(11)[:, None], name="training", seed=0)
    assert sorted([*one[:, 0], *other[:, 0]]) == list(range(11))
    assert (len(one), len(other)) == (5, 6)
    assert set(one[:, 0]) != set(range(0, 10, 2))
