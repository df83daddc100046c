"""The Heun sampler against closed-form solutions, and the named latents and labels of generated images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from reference import one_thread, random_images, tiny_denoiser  # noqa: F401

from diffmem.models.sampling import generate, heun, latents, noise_levels, quantise, sample_labels
from diffmem.networks.closed_form import OptimalDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")


class Gaussian:
    """The optimum for normal data of mean `mean` and deviation `std`; remembers how it was asked."""

    def __init__(self, mean=0.0, std=0.5, sigma_min=0.0, sigma_max=math.inf):
        self.mean, self.std = mean, std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.sigmas, self.labels, self.dtypes = [], [], set()

    def __call__(self, noisy, sigma, labels=None):
        self.sigmas.append(float(sigma))
        self.labels.append(labels)
        self.dtypes.add(noisy.dtype)
        return self.denoise(noisy.double(), float(sigma)).float()

    def denoise(self, x, sigma):
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def solution(self, latents, sigma):
        """The state at `sigma` of the probability-flow ODE that starts from 80 times the latents."""
        return self.mean + (80 * latents - self.mean) * math.sqrt((self.std**2 + sigma**2) / (self.std**2 + 80**2))


LATENTS = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# --- noise levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "low", "high"), [(18, 0.002, 80.0), (18, 0.02, 80.0), (2, 0.002, 80.0), (7, 1, 2)])
def test_noise_levels_are_the_formula(steps, low, high):
    levels = noise_levels(steps, low, high)
    expected = [(high ** (1 / 7) + i / (steps - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(steps)]
    assert levels.dtype == torch.float64
    np.testing.assert_allclose(levels.numpy(), [*expected, 0.0], rtol=1e-12)


def test_noise_levels_fall_from_the_highest_to_the_lowest_and_then_to_zero():
    levels = noise_levels(18, 0.002, 80.0).tolist()
    assert levels[0] == pytest.approx(80, rel=1e-12)
    assert levels[-2] == pytest.approx(0.002, rel=1e-12)
    assert levels[-1] == 0
    assert all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ((0.0, math.inf), (80, 0.002)),
        ((0.02, 100.0), (80, 0.02)),
        ((0.001, 152.0), (80, 0.002)),
        ((0.1, 5.0), (5, 0.1)),
    ],
)
def test_sampling_stays_within_the_noise_levels_that_the_denoiser_knows(known, expected):
    denoiser = Gaussian(sigma_min=known[0], sigma_max=known[1])
    heun(denoiser, LATENTS, steps=5)
    assert (max(denoiser.sigmas), min(denoiser.sigmas)) == pytest.approx(expected, rel=1e-12)


# --- Heun ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_number_of_evaluations_is_twice_the_steps_less_one(steps):
    denoiser = Gaussian()
    heun(denoiser, LATENTS, steps=steps)
    assert len(denoiser.sigmas) == 2 * steps - 1


def test_default_is_18_steps_of_35_evaluations():
    denoiser = Gaussian()
    heun(denoiser, LATENTS)
    assert len(denoiser.sigmas) == 35


def test_state_is_float64_and_the_denoiser_sees_float32():
    denoiser = Gaussian()
    assert heun(denoiser, LATENTS.float()).dtype == torch.float64
    assert denoiser.dtypes == {torch.float32}


def test_latents_of_lower_precision_are_raised_to_float64_before_the_first_step():
    rounded = LATENTS.float()
    assert torch.equal(heun(Gaussian(), rounded), heun(Gaussian(), rounded.double()))


def test_labels_reach_every_evaluation():
    denoiser, labels = Gaussian(), torch.arange(6)
    heun(denoiser, LATENTS, labels, steps=3)
    assert all(torch.equal(seen, labels) for seen in denoiser.labels)


def test_a_constant_denoiser_is_solved_exactly():
    """The slope (x - m) / sigma makes straight lines towards m, on which Heun and Euler make no error."""
    final = heun(Gaussian(mean=0.375, std=0.0), LATENTS, steps=4)
    torch.testing.assert_close(final, torch.full_like(final, 0.375), rtol=0, atol=1e-9)


def test_the_identity_denoiser_leaves_the_start_where_it_is():
    class Identity(Gaussian):
        def denoise(self, x, sigma):  # noqa: ARG002
            return x

    torch.testing.assert_close(heun(Identity(), LATENTS, steps=4), 80 * LATENTS, rtol=1e-6, atol=1e-6)


def test_many_steps_reach_the_closed_form_solution_for_normal_data():
    denoiser = Gaussian(mean=0.2, std=0.5)
    final = heun(denoiser, LATENTS, steps=400)
    torch.testing.assert_close(final, denoiser.solution(LATENTS, 0), rtol=1e-4, atol=1e-4)


def test_error_falls_with_the_square_of_the_number_of_steps():
    """Down to sigma = 0.1 and then to 0 exactly, as the last step is Euler's: its error is taken off."""
    denoiser = Gaussian(mean=0.2, std=0.5, sigma_min=0.1)
    exact_before_last = denoiser.solution(LATENTS, 0.1)
    exact = denoiser.denoise(exact_before_last, 0.1)  # one Euler step from sigma to 0 gives D(x; sigma)
    errors = [(heun(denoiser, LATENTS, steps=steps) - exact).abs().max().item() for steps in (17, 33, 65)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(1.8 < order < 2.3 for order in orders), orders


def test_every_step_is_that_of_algorithm_1():
    """Karras et al. 2022, Algorithm 1, in plain float64 numpy."""
    denoiser = Gaussian(mean=-0.3, std=0.4)
    levels = [*((80 ** (1 / 7) + i / 5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(6)), 0.0]
    x = 80 * LATENTS.numpy()
    for now, following in pairwise(levels):
        slope = (x - denoiser.denoise(x, now)) / now
        euler = x + (following - now) * slope
        if following == 0:
            x = euler
        else:
            x = x + (following - now) * (slope + (euler - denoiser.denoise(euler, following)) / following) / 2
    np.testing.assert_allclose(heun(denoiser, LATENTS, steps=6).numpy(), x, rtol=1e-5, atol=1e-5)


def test_sampling_keeps_no_graph_and_does_not_change_the_latents():
    before = LATENTS.clone()
    assert not heun(tiny_denoiser(), torch.randn(1, 1, 8, 8, generator=torch.Generator()), steps=2).requires_grad
    heun(Gaussian(), LATENTS, steps=3)
    assert torch.equal(LATENTS, before)


# --- latents and labels of image i ---------------------------------------------------------------------


def test_latents_of_an_image_are_the_same_alone_and_in_a_batch():
    batch = latents(range(20), shape=(3, 4, 4), seed=5)
    assert batch.shape == (20, 3, 4, 4)
    assert batch.dtype == torch.float64
    for i in (0, 7, 19):
        assert torch.equal(latents([i], shape=(3, 4, 4), seed=5)[0], batch[i])
    assert torch.equal(latents([12, 3], shape=(3, 4, 4), seed=5), batch[[12, 3]])


def test_latents_differ_between_images_and_between_seeds():
    first, other = (latents(range(50), shape=(1, 2, 2), seed=seed) for seed in (0, 1))
    assert len(torch.cat([first, other]).flatten(1).unique(dim=0)) == 100


def test_latents_are_standard_normal():
    values = latents(range(2000), shape=(1, 4, 4), seed=0).flatten().numpy()
    assert scipy.stats.kstest(values, scipy.stats.norm.cdf).pvalue > 0.01


def test_label_of_an_image_is_the_same_alone_and_in_a_batch():
    batch = sample_labels(range(30), labels=10, seed=4)
    assert batch.dtype == torch.int64
    assert [sample_labels([i], labels=10, seed=4).item() for i in range(30)] == batch.tolist()


@pytest.mark.parametrize("labels", [1, 2, 10, 37])
def test_labels_are_uniform(labels):
    drawn = sample_labels(range(5000), labels=labels, seed=1)
    counts = torch.bincount(drawn, minlength=labels)
    assert len(counts) == labels
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001 if labels > 1 else counts.item() == 5000


def test_labels_are_a_function_of_the_seed():
    first, again, other = (sample_labels(range(40), labels=10, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_labels_and_latents_of_an_image_are_uncorrelated():
    label = sample_labels(range(3000), labels=2, seed=0).double()
    first = latents(range(3000), shape=(1, 1, 1), seed=0).flatten()
    assert abs(torch.corrcoef(torch.stack([label, first]))[0, 1]) < 4 / math.sqrt(3000)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    latents([0], shape=(1, 2, 2), seed=0)
    sample_labels([0], labels=3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# --- quantising ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "level"),
    [(-9.0, 0), (-1.0, 0), (0.0, 128), (0.999 / 127.5, 128), (1 / 127.5, 129), (-0.001, 127), (1.0, 255), (9.0, 255)],
)
def test_quantise_truncates_and_clips(value, level):
    levels = quantise(torch.tensor([value], dtype=torch.float64))
    assert levels.dtype == torch.uint8
    assert levels.item() == level


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantise_gives_every_grey_level_back(dtype):
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(grey.to(dtype) / 127.5 - 1), grey)


def test_quantise_is_what_numpy_makes_of_the_formula():
    images = np.random.default_rng(0).normal(size=10_000)
    expected = (images * 127.5 + 128).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(quantise(torch.from_numpy(images)).numpy(), expected)


# --- generate ------------------------------------------------------------------------------------------


def make(denoiser, indices, labels=0, seed=0):
    device = torch.device("cpu")
    return generate(denoiser, indices, shape=(1, 8, 8), labels=labels, seed=seed, steps=6, device=device)


def test_a_generated_image_is_the_same_alone_and_in_a_batch():
    classes = torch.arange(60) % 3
    optimum = OptimalDenoiser(random_images(60, 1, 8, 8).float() / 127.5 - 1, classes)
    batch = make(optimum, range(40), labels=3)
    assert batch.shape == (40, 1, 8, 8)
    assert batch.dtype == torch.uint8
    for i in (0, 13, 39):
        assert torch.equal(make(optimum, [i], labels=3)[0], batch[i])


def test_an_image_of_a_network_is_the_same_in_any_batch_up_to_one_grey_level():
    denoiser = tiny_denoiser(precondition="edm")
    batch = make(denoiser, range(10))
    alone = torch.cat([make(denoiser, [i]) for i in range(10)])
    assert (batch.int() - alone.int()).abs().max() <= 1


def test_generate_is_latents_labels_heun_and_quantise():
    class Remembering(Gaussian):
        def denoise(self, x, sigma):
            self.first = getattr(self, "first", x / sigma)
            return super().denoise(x, sigma)

    denoiser = Remembering()
    generated = make(denoiser, [4, 2], labels=7, seed=3)
    torch.testing.assert_close(denoiser.first, latents([4, 2], shape=(1, 8, 8), seed=3), rtol=1e-6, atol=1e-6)
    assert torch.equal(denoiser.labels[0], sample_labels([4, 2], labels=7, seed=3))
    expected = (heun(Gaussian(), latents([4, 2], shape=(1, 8, 8), seed=3), steps=6).numpy() * 127.5 + 128).clip(0, 255)
    np.testing.assert_array_equal(generated.numpy(), expected.astype(np.uint8))


def test_an_unconditional_model_is_asked_without_labels():
    denoiser = Gaussian()
    make(denoiser, [0, 1])
    assert denoiser.labels == [None] * 11
