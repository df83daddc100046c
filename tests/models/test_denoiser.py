"""Preconditionings, training loss and the closed-form optimum, against float64 formulas and brute force."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from reference import one_thread, random_images, tiny_denoiser  # noqa: F401

from diffmem.cells.settings import ModelConfiguration
from diffmem.data.training_sets import load_source
from diffmem.measures.nearest import memorized_share
from diffmem.measures.neighbours import two_nearest
from diffmem.models.denoiser import build_denoiser, draw_noise, loss
from diffmem.models.preconditioning import EDM, PRECONDITIONINGS, VE, VP
from diffmem.models.sampling import generate, sample_labels
from diffmem.networks.closed_form import OptimalDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")
every_preconditioning = pytest.mark.parametrize("name", ["vp", "ve", "edm"])
SIGMA = np.geomspace(2e-3, 150, 60)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the formulas, written out again -------------------------------------------------------------------


def vp_sigma(t):
    return np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))


def vp_time(sigma):
    return (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9


def coefficients(name, sigma):
    """Return c_skip, c_out, c_in, c_noise of the table in paper.md, section 3."""
    if name == "vp":
        return 1 + 0 * sigma, -sigma, 1 / np.sqrt(sigma**2 + 1), 999 * vp_time(sigma)
    if name == "ve":
        return 1 + 0 * sigma, sigma, 1 + 0 * sigma, np.log(sigma / 2)
    variance = sigma**2 + 0.25
    return 0.25 / variance, 0.5 * sigma / np.sqrt(variance), 1 / np.sqrt(variance), np.log(sigma) / 4


def weight(name, sigma):
    return (sigma**2 + 0.25) / (0.5 * sigma) ** 2 if name == "edm" else 1 / sigma**2


CDF = {
    "vp": lambda sigma: (vp_time(sigma) - 1e-5) / (1 - 1e-5),
    "ve": scipy.stats.loguniform(0.02, 100).cdf,
    "edm": scipy.stats.lognorm(s=1.2, scale=math.exp(-1.2)).cdf,
}
QUANTILE = {
    "vp": lambda q: vp_sigma(1e-5 + q * (1 - 1e-5)),
    "ve": scipy.stats.loguniform(0.02, 100).ppf,
    "edm": scipy.stats.lognorm(s=1.2, scale=math.exp(-1.2)).ppf,
}


@every_preconditioning
def test_coefficients_are_those_of_the_table(name):
    computed = PRECONDITIONINGS[name]().coefficients(torch.from_numpy(SIGMA))
    for value, expected in zip(computed, coefficients(name, SIGMA), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-8)


@every_preconditioning
def test_coefficients_are_accurate_in_float32(name):
    computed = PRECONDITIONINGS[name]().coefficients(torch.from_numpy(SIGMA).float())
    for value, expected in zip(computed, coefficients(name, SIGMA.astype(np.float32).astype(float)), strict=True):
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected, rtol=2e-5, atol=1e-3)


@every_preconditioning
def test_weight_is_that_of_the_table(name):
    computed = PRECONDITIONINGS[name]().weight(torch.from_numpy(SIGMA))
    np.testing.assert_allclose(computed.numpy(), weight(name, SIGMA), rtol=1e-12)


@every_preconditioning
def test_weight_times_the_square_of_c_out_is_one(name):
    """Karras et al. 2022: every noise level counts equally at the start of training."""
    preconditioning = PRECONDITIONINGS[name]()
    sigma = torch.from_numpy(SIGMA)
    product = preconditioning.weight(sigma) * preconditioning.coefficients(sigma)[1] ** 2
    np.testing.assert_allclose(product.numpy(), 1, rtol=1e-12)


def test_sigma_limits_are_those_of_the_table():
    assert VP().sigma_max == pytest.approx(152.167, abs=5e-4)
    assert VP().sigma_min == pytest.approx(vp_sigma(1e-5), rel=1e-9)
    assert (VE().sigma_min, VE().sigma_max) == (0.02, 100)
    assert (EDM().sigma_min, EDM().sigma_max) == (0, math.inf)


def test_vp_time_is_the_inverse_of_vp_sigma():
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    np.testing.assert_allclose(VP().time(VP().sigma(t)).numpy(), t.numpy(), rtol=1e-9)
    np.testing.assert_allclose(VP().sigma(t).numpy(), vp_sigma(t.numpy()), rtol=1e-12)


@every_preconditioning
def test_drawn_noise_levels_have_the_distribution_of_the_table(name):
    sigma = PRECONDITIONINGS[name]().draw_sigma(20_000, generator(1))
    assert sigma.dtype == torch.float32
    assert scipy.stats.kstest(sigma.double().numpy(), CDF[name]).pvalue > 0.01
    quantiles = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    drawn = np.quantile(sigma.double().numpy(), quantiles)
    for q, value in zip(quantiles, drawn, strict=True):
        margin = 4 * math.sqrt(q * (1 - q) / 20_000)
        assert QUANTILE[name](max(q - margin, 0)) < value < QUANTILE[name](min(q + margin, 1))


@every_preconditioning
def test_drawn_noise_levels_stay_within_the_limits(name):
    preconditioning = PRECONDITIONINGS[name]()
    sigma = preconditioning.draw_sigma(50_000, generator(2)).double()
    assert sigma.min() >= preconditioning.sigma_min * (1 - 1e-4)
    assert sigma.max() <= preconditioning.sigma_max * (1 + 1e-4)


# --- the denoiser --------------------------------------------------------------------------------------


@every_preconditioning
def test_denoiser_is_the_preconditioned_network(name):
    denoiser = tiny_denoiser(precondition=name, dropout=0.0)
    torch.nn.init.normal_(denoiser.network.dec["8x8_aux_conv"].weight, generator=generator(0))
    noisy = torch.randn(5, 1, 8, 8, generator=generator(1))
    sigma = np.array([0.03, 0.4, 1.0, 7.0, 80.0])
    c_skip, c_out, c_in, c_noise = (torch.from_numpy(c).reshape(-1, 1, 1, 1) for c in coefficients(name, sigma))
    with torch.no_grad():
        residual = denoiser.network((c_in * noisy).float(), c_noise.flatten().float()).double()
        denoised = denoiser(noisy, torch.from_numpy(sigma))
    assert residual.std() > 0.1
    torch.testing.assert_close(denoised.double(), c_skip * noisy + c_out * residual, rtol=1e-4, atol=1e-3)


def test_one_noise_level_serves_all_images():
    denoiser = tiny_denoiser()
    noisy = torch.randn(3, 1, 8, 8, generator=generator(1))
    with torch.no_grad():
        vector = denoiser(noisy, torch.full((3,), 2.5))
        assert torch.equal(denoiser(noisy, 2.5), vector)
        assert torch.equal(denoiser(noisy, torch.tensor(2.5, dtype=torch.float64)), vector)


def test_a_fresh_denoiser_is_in_evaluation_mode_and_trainable():
    denoiser = tiny_denoiser()
    assert not denoiser.network.training
    assert all(p.requires_grad for p in denoiser.parameters())


def test_the_optimum_is_not_built_without_images():
    with pytest.raises(ValueError, match="OptimalDenoiser"):
        build_denoiser(ModelConfiguration(network="optimum"), resolution=8, channels=1)


# --- the loss ------------------------------------------------------------------------------------------


@every_preconditioning
def test_loss_is_the_weighted_squared_error_summed_over_pixels(name):
    denoiser = tiny_denoiser(precondition=name, labels=3, condition="true")
    clean = random_images(4, 1, 8, 8).float() / 127.5 - 1
    noise = torch.randn(4, 1, 8, 8, generator=generator(2))
    sigma = torch.tensor([0.05, 0.5, 3.0, 40.0])
    labels = torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        computed = loss(denoiser, clean, sigma=sigma, noise=noise, labels=labels)
    assert computed.shape == (4,)
    for i in range(4):
        with torch.no_grad():
            denoised = denoiser(clean[i : i + 1] + sigma[i] * noise[i : i + 1], float(sigma[i]), labels[i : i + 1])
        squares = (denoised.double() - clean[i].double()).square()
        expected = weight(name, float(sigma[i])) * math.fsum(squares.flatten().tolist())
        assert computed[i].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_loss_of_an_untrained_network_is_the_squared_norm_of_the_noise(name):
    """F starts near 0 and c_skip is 1, so D(x + sigma n) - x = sigma n, and the weight is 1 / sigma^2."""
    denoiser = tiny_denoiser(precondition=name)
    clean = random_images(6, 1, 8, 8).float() / 127.5 - 1
    sigma, noise = draw_noise(denoiser, clean.shape, generator(4))
    with torch.no_grad():
        computed = loss(denoiser, clean, sigma=sigma.clamp(min=0.1), noise=noise)
    torch.testing.assert_close(computed, noise.square().sum(dim=(1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_noise_is_standard_normal_and_a_function_of_the_generator():
    denoiser = tiny_denoiser()
    shape = torch.Size((200, 1, 8, 8))
    (sigma, noise), (sigma_again, again), (sigma_other, other) = (
        draw_noise(denoiser, shape, generator(seed)) for seed in (5, 5, 6)
    )
    assert sigma.shape == (200,)
    assert noise.shape == shape
    assert torch.equal(sigma, sigma_again)
    assert torch.equal(noise, again)
    assert not torch.equal(sigma, sigma_other)
    assert not torch.equal(noise, other)
    assert scipy.stats.kstest(noise.double().flatten().numpy(), scipy.stats.norm.cdf).pvalue > 0.01


def test_every_image_of_a_batch_has_a_noise_level_of_its_own():
    sigma, _ = draw_noise(tiny_denoiser(), torch.Size((64, 1, 8, 8)), generator(0))
    assert len(sigma.unique()) == 64


# --- the optimum ---------------------------------------------------------------------------------------


def brute_force_optimum(z, sigma, images):
    """D*(z; sigma) of one image by the definition, in float64."""
    squared = ((images - z) ** 2).reshape(len(images), -1).sum(axis=1)
    share = scipy.special.softmax(-squared / (2 * sigma**2))
    return np.tensordot(share, images, axes=1)


@pytest.fixture(scope="module")
def clean():
    return random_images(40, 3, 4, 4, seed=8).float() / 127.5 - 1


NOISY = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(9))
LEVELS = torch.tensor([0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0, 80.0])


def test_optimum_is_the_softmax_weighted_mean_of_the_training_images(clean):
    noisy = NOISY * LEVELS[:, None, None, None]
    optimum = OptimalDenoiser(clean)(noisy, LEVELS)
    images = clean.double().numpy()
    expected = [brute_force_optimum(z.double().numpy(), float(s), images) for z, s in zip(noisy, LEVELS, strict=True)]
    assert optimum.dtype == torch.float32
    np.testing.assert_allclose(optimum.numpy(), np.stack(expected), atol=1e-6)


def test_optimum_with_labels_averages_over_the_wanted_class_only(clean):
    classes = torch.arange(40) % 4
    wanted = torch.arange(9) % 4
    optimum = OptimalDenoiser(clean, classes)(NOISY, 1.0, wanted)
    for z, label, denoised in zip(NOISY, wanted, optimum, strict=True):
        members = clean[classes == label].double().numpy()
        np.testing.assert_allclose(denoised.numpy(), brute_force_optimum(z.numpy(), 1.0, members), atol=1e-6)


@pytest.mark.parametrize("largest_block", [1, 80, 120, 360])
def test_optimum_does_not_depend_on_the_size_of_its_blocks(clean, largest_block):
    classes = torch.arange(40) % 4
    whole, blocked = OptimalDenoiser(clean, classes), OptimalDenoiser(clean, classes)
    blocked.largest_block = largest_block
    wanted = torch.arange(9) % 4
    torch.testing.assert_close(blocked(NOISY, LEVELS, wanted), whole(NOISY, LEVELS, wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [1e-4, 2e-3])
def test_optimum_at_a_tiny_noise_level_is_the_nearest_training_image(clean, sigma):
    nearest = torch.cdist(NOISY.flatten(1).double(), clean.flatten(1).double()).argmin(dim=1)
    assert torch.equal(OptimalDenoiser(clean)(NOISY, sigma), clean[nearest])


def test_optimum_at_a_huge_noise_level_is_the_mean_image(clean):
    denoised = OptimalDenoiser(clean)(NOISY, 1e6)
    torch.testing.assert_close(denoised, clean.mean(dim=0).expand(9, -1, -1, -1), rtol=0, atol=1e-5)


def test_optimum_of_a_class_without_training_images_is_refused(clean):
    """A label of `condition = "random"` that no training image has: its softmax would be 0 / 0."""
    optimum = OptimalDenoiser(clean, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="label"):
        optimum(NOISY, 1.0, torch.ones(9, dtype=torch.int64))


# --- sampling with the optimum (Fig. 1a): tests sampler and scorer together ------------------------------


def digits():
    source = load_source("digits", None)
    return torch.from_numpy(source.images), torch.from_numpy(source.classes)


def sample(optimum, count, labels):
    return generate(optimum, range(count), shape=(1, 8, 8), labels=labels, seed=0, steps=18, device=torch.device("cpu"))


def test_sampling_with_the_optimum_returns_training_images():
    images, _ = digits()
    generated = sample(OptimalDenoiser(images.float() / 127.5 - 1), 200, labels=0)
    index, distance = two_nearest(generated, images)
    assert memorized_share(distance) >= 0.99
    assert len(index[:, 0].unique()) > 100


def test_sampling_with_the_optimum_returns_training_images_of_the_wanted_class():
    images, classes = digits()
    generated = sample(OptimalDenoiser(images.float() / 127.5 - 1, classes), 200, labels=10)
    index, distance = two_nearest(generated, images)
    assert memorized_share(distance) >= 0.99
    assert torch.equal(classes[index[:, 0]], sample_labels(range(200), labels=10, seed=0))


def test_an_untrained_network_memorizes_nothing():
    images, _ = digits()
    _, distance = two_nearest(sample(tiny_denoiser(), 50, labels=0), images)
    assert memorized_share(distance) == 0
