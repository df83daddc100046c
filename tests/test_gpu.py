"""What must hold on the device that trains: a GPU where there is one (`make gpu`), else the CPU.

All of this runs on either; what only a GPU has, as streams to wait for, is skipped without one.
"""

import copy
import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import spaces
import tiny
import torch
from reference import CASES, golden_arrays, golden_denoiser, random_images, relative_error, tiny_denoiser

from diffmem.cells.settings import TrainingProcedure
from diffmem.measures import MEASURES, Comparison, DeclaredSpace, denoising_errors, nearest_distances, two_nearest
from diffmem.measures.in_space import compare_in, opened
from diffmem.models import (
    Group,
    LaunchedDenoiser,
    TrainingState,
    compile_networks,
    generate,
    heun,
    loss,
    set_precision,
    this_device,
    train,
)
from diffmem.models.launching import WARM_UP, Launched
from diffmem.models.training import autocast
from diffmem.networks.closed_form import OptimalDenoiser
from diffmem.store.store import Store

pytestmark = pytest.mark.gpu
DEVICE = this_device()
on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA GPU, and -m gpu")
every_case = pytest.mark.parametrize("name", sorted(CASES))


@pytest.fixture(autouse=True)
def float32():
    """Round as the paper does, and leave no other mode behind."""
    set_precision(TrainingProcedure())
    yield
    set_precision(TrainingProcedure())


def procedure(**settings):
    return TrainingProcedure(**{"batch_size": 4, "lr": 1e-3, "warmup_epochs": 0, "ema": 0.9, **settings})


def start(T, **model):
    return TrainingState(tiny_denoiser(**model).to(DEVICE), T)


IMAGES = random_images(11, 1, 8, 8)


def take(state, count, images=IMAGES):
    """Take `count` steps and return their losses."""
    return [loss.item() for loss in itertools.islice(train(state, images.to(DEVICE)), count)]


def arrays_of(name):
    return {key: value.to(DEVICE) for key, value in golden_arrays(name).items()}


# --- networks, losses, samples -------------------------------------------------------------------------


@every_case
def test_denoised_images_losses_gradients_and_samples_agree_with_the_reference(name):
    arrays, denoiser = arrays_of(name), golden_denoiser(name).to(DEVICE)
    denoised = denoiser(arrays["noisy"], arrays["sigma"], arrays.get("labels"))
    assert relative_error(denoised.detach(), arrays["denoised"]) < 1e-5
    denoised.square().mean().backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in denoiser.parameters()))
    assert norm == pytest.approx(CASES[name]["gradient_norm"], rel=1e-5)
    with torch.no_grad():
        errors = loss(
            denoiser,
            arrays["clean"],
            sigma=arrays["sigma"],
            noise=arrays["noise"],
            labels=arrays.get("labels"),
        )
    assert relative_error(errors, arrays["loss"]) < 1e-5
    samples = heun(denoiser, arrays["latents"], arrays.get("labels"), steps=18)
    assert relative_error(samples, arrays["samples"]) < 1e-4


@every_case
@pytest.mark.parametrize(("precision", "bound"), [("tf32", 3e-3), ("bf16", 3e-2)])
def test_coarser_products_stay_within_their_bounds(name, precision, bound):
    T = TrainingProcedure(precision=precision)
    arrays, denoiser = arrays_of(name), golden_denoiser(name).to(DEVICE)
    set_precision(T)
    with torch.no_grad(), autocast(T, DEVICE):
        denoised = denoiser(arrays["noisy"], arrays["sigma"], arrays.get("labels"))
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, arrays["denoised"]) < bound


def test_float32_is_float32_on_this_device_whatever_was_set_before():
    set_precision(TrainingProcedure(precision="tf32"))
    set_precision(TrainingProcedure())
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    assert relative_error((a.to(DEVICE) @ b.to(DEVICE)).cpu(), a.double() @ b.double()) < 1e-6


def test_generated_images_are_those_of_the_cpu_but_for_rounding():
    denoiser = golden_denoiser("ddpmpp_vp")

    def made(device):
        return generate(
            copy.deepcopy(denoiser).to(device),
            range(6),
            shape=(1, 16, 16),
            labels=0,
            seed=0,
            steps=6,
            device=device,
        ).cpu()

    difference = (made(torch.device("cpu")).int() - made(DEVICE).int()).abs()
    assert difference.max() <= 1


# --- training ------------------------------------------------------------------------------------------


def test_two_trainings_have_the_same_bits():
    first, second = start(procedure()), start(procedure())
    assert take(first, 9) == take(second, 9)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.average, second.average)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(precision, optimizer):
    T = procedure(precision=precision, optimizer=optimizer)
    set_precision(T)
    whole, first = start(T), start(T)
    take(whole, 14)
    take(first, 6)  # a recorded step goes on without its graph
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = start(T, seed=5)
    resumed.load_state_dict(torch.load(file, map_location=DEVICE))
    take(resumed, 8)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.average, whole.average)


def test_kernels_launched_at_once_give_the_bits_of_kernels_launched_one_by_one(monkeypatch):
    at_once = start(procedure(), dropout=0.3)
    losses = take(at_once, 12)
    monkeypatch.setattr("diffmem.models.launching.MOST_BYTES", -1)
    one_by_one = start(procedure(), dropout=0.3)
    assert take(one_by_one, 12) == losses
    assert torch.equal(at_once.weights, one_by_one.weights)


def test_dropout_forgotten_at_a_checkpoint_is_drawn_again():
    whole, checked = start(procedure(), dropout=0.3), start(procedure(), dropout=0.3)
    expected = take(whole, 12)
    steps = train(checked, IMAGES.to(DEVICE))
    losses = []
    for _ in range(12):
        losses.append(next(steps).item())
        checked.denoiser.network.forget_dropout()
    assert losses == expected


@on_a_gpu
def test_small_works_are_launched_at_once_and_large_ones_are_not(monkeypatch):
    x = torch.ones(1000, device=DEVICE)
    small = Launched(lambda a: a * 2)
    for i in range(WARM_UP + 3):
        assert small(x * i).sum().item() == 2000 * i
    assert small.graph is not None
    monkeypatch.setattr("diffmem.models.launching.MOST_BYTES", 4000)
    large = Launched(lambda a: (a + 1) * 2)
    for i in range(WARM_UP + 3):
        assert large(x * i).sum().item() == 2000 * (i + 1)
    assert large.graph is None


def test_a_denoiser_launched_at_once_gives_the_same_images():
    denoiser = golden_denoiser("ddpmpp_edm_labels").to(DEVICE)
    arrays = arrays_of("ddpmpp_edm_labels")
    launched = LaunchedDenoiser(denoiser)
    expected = heun(denoiser, arrays["latents"], arrays["labels"], steps=9)
    for _ in range(2):
        assert torch.equal(heun(launched, arrays["latents"], arrays["labels"], steps=9), expected)
    fewer = heun(launched, arrays["latents"][:1], arrays["labels"][:1], steps=9)
    assert relative_error(fewer, expected[:1]) < 1e-5


@on_a_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("most", [-1, 2 << 30], ids=["one by one", "at once"])
def test_neither_a_step_nor_a_noise_level_waits_for_the_device(monkeypatch, most):
    monkeypatch.setattr("diffmem.models.launching.MOST_BYTES", most)
    steps = train(start(procedure(), dropout=0.3), IMAGES.to(DEVICE))
    denoiser = LaunchedDenoiser(tiny_denoiser().to(DEVICE))
    noisy = torch.zeros(4, 1, 8, 8, device=DEVICE)
    for _ in range(WARM_UP + 2):
        next(steps)
        denoiser(noisy, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(steps)
            denoiser(noisy, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu  # on the CPU it takes minutes, and tests/models/test_compiling.py has it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_training_is_the_same_but_for_rounding(precision):
    T = procedure(precision=precision)
    set_precision(T)
    plain, compiled = start(T, dropout=0.3), start(T, dropout=0.3)
    compile_networks(compiled, DEVICE)
    bound = 1e-4 if precision == "fp32" else 3e-2
    assert np.allclose(take(compiled, 8), take(plain, 8), rtol=bound)
    assert relative_error(compiled.weights, plain.weights) < bound


@on_a_gpu
def test_a_batch_that_does_not_fit_is_halved_and_the_images_are_the_same(tmp_path):
    """A whole run with all memory of the GPU taken but for little."""
    text = tiny.TEXT.replace("samples = 20", "samples = 4000").replace("batch_size = 12 ", "batch_size = 4000 ")
    text = text.replace("[0.0, 0.2]", "[0.2]").replace("every = 12", "every = 30").replace("width = 4", "width = 32")
    study = tiny.write(tmp_path, text)
    script = (
        "import sys, torch; from diffmem.cli import main\n"
        "torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]))\n"
        "main(['run', *sys.argv[2:]])"
    )
    for name, bytes_ in (("much", 30 << 30), ("little", 1 << 30)):
        share = bytes_ / torch.cuda.get_device_properties(DEVICE).total_memory
        arguments = [f"{share}", str(study), "--store", str(tmp_path / name)]
        subprocess.run([sys.executable, "-c", script, *arguments], env=tiny.environment(), check=True)
    results = [tiny.results(Store(tmp_path / name)) for name in ("much", "little")]
    tiny.check_close(*results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs, and -m gpu")
@pytest.mark.parametrize("split", ["cells", "batch"])
def test_two_processes_with_a_gpu_each_measure_what_one_does(split, tmp_path):
    """Together by NCCL (batch), or a cell each, which leaves no rounding to differ."""
    study = tiny.write(tmp_path)
    for count in "12":
        more = ("--processes", count, "--split", split if count == "2" else "auto")
        ran = tiny.diffmem("run", study, "--store", tmp_path / f"{count}.duckdb", *more)
        assert ran.returncode == 0, ran.stderr
    results = [tiny.results(Store(tmp_path / f"{count}.duckdb")) for count in "21"]
    tiny.check_equal(*results) if split == "cells" else tiny.check_close(*results)


# --- measures ------------------------------------------------------------------------------------------


def compared(n, N, shape, levels):
    """Return n images, N training images, and their squared distances in whole numbers, sorted, with the indices.

    Few levels of grey, at both ends of their range, so that products are as large as they get and many tie.
    """
    spread = 255 // (levels - 1)
    images, training = (random_images(k, *shape, seed=s, levels=levels) * spread for k, s in ((n, 1), (N, 2)))
    x, y = images.flatten(1).long(), training.flatten(1).long()
    squared = torch.stack([(row - y).square().sum(dim=1) for row in x])
    return images, training, squared.sort(dim=1, stable=True)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize(("n", "N", "shape", "levels"), [(70, 20_000, (1, 8, 8), 17), (50, 3000, (3, 32, 32), 2)])
def test_neighbours_are_those_of_whole_numbers_also_where_many_are_equally_near(precision, n, N, shape, levels):
    set_precision(TrainingProcedure(precision=precision))
    images, training, expected = compared(n, N, shape, levels)
    index, distance = two_nearest(images.to(DEVICE), training.to(DEVICE))
    assert torch.equal(index.cpu(), expected.indices[:, :2])
    squared_again = distance.cpu().square()
    assert torch.equal(squared_again.round().long(), expected.values[:, :2])
    np.testing.assert_allclose(squared_again, expected.values[:, :2], rtol=1e-15)  # roots may differ by a last bit


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_every_measure_is_the_same_on_this_device_as_on_the_cpu(name):
    training = random_images(300, 1, 8, 8, seed=3)
    generated = torch.cat([training[:40], random_images(60, 1, 8, 8, seed=4)])
    found = []
    for device in (torch.device("cpu"), DEVICE):
        comparison = Comparison(training.to(device), pairs=0, others=[name])
        comparison.add(generated.to(device))
        comparison.gather(Group(device=device), len(generated))
        evidence = comparison.evidence()
        others = [(each.nearest, each.distance, each.yardstick) for each in evidence.others.values()]
        found.append([evidence.nearest, evidence.d1, evidence.d2, *itertools.chain.from_iterable(others)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize(("N", "shape", "levels"), [(20_000, (1, 8, 8), 17), (3000, (3, 32, 32), 2)])
def test_the_50_nearest_are_at_the_distances_of_whole_numbers(precision, N, shape, levels):
    set_precision(TrainingProcedure(precision=precision))
    images, training, expected = compared(50, N, shape, levels)
    index, distance = nearest_distances(images.to(DEVICE), training.to(DEVICE), 50)
    assert torch.equal(index.cpu(), expected.indices[:, :2])
    np.testing.assert_allclose(distance.cpu().square(), expected.values[:, :50], rtol=1e-15)


def test_a_space_and_the_errors_of_a_denoiser_are_those_of_the_cpu_but_for_rounding(tmp_path):
    module = spaces.torchscript(tmp_path / "features.pt")
    space = DeclaredSpace.of("own", {"features": str(module), "rule": "nearest"})
    training = random_images(300, 1, 8, 8, seed=3)
    generated = torch.cat([training[:40], random_images(60, 1, 8, 8, seed=4)])
    clean = training[:20].float() / 127.5 - 1
    ratios, features, errors = [], [], []
    for device in (torch.device("cpu"), DEVICE):
        compare = compare_in(space, training.to(device))
        compared = compare(generated.to(device), training.to(device), None, None)
        ratios.append((compared.distance / compared.yardstick).cpu())
        features.append(opened(space, device)[0].features(generated.to(device)).cpu())
        optimum = OptimalDenoiser(training.to(device).float() / 127.5 - 1)
        denoiser = tiny_denoiser().to(device)
        errors.append(denoising_errors(denoiser, optimum, clean.to(device), name="training", seed=0))
    assert relative_error(*reversed(features)) < 1e-5
    np.testing.assert_allclose(ratios[1], ratios[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-4, atol=1e-7)
