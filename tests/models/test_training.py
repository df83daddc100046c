"""Training against the formulas of the paper, hand-written optimizers, and itself when interrupted."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from reference import one_thread, random_images, tiny_denoiser  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

from diffmem.cells.settings import TrainingProcedure
from diffmem.models.denoiser import draw_noise
from diffmem.models.training import EMA_BASE, TrainingState, batches, ema_decay, flatten, learning_rate, train
from diffmem.randomness import stream

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = random_images(11, 1, 8, 8)
LABELS = torch.arange(11) % 3


def procedure(**settings):
    return TrainingProcedure(**{"batch_size": 4, "lr": 1e-3, "warmup_epochs": 0, "ema": 0.9, **settings})


def start(T, **model):
    return TrainingState(tiny_denoiser(**model), T)


def steps(state, count, *, images=IMAGES, labels=None):
    """Take `count` steps and return their losses."""
    return [loss.item() for loss in itertools.islice(train(state, images, labels), count)]


# --- warm-up of learning rate and EMA ------------------------------------------------------------------


def test_learning_rate_and_ema_warm_up_step_by_step_as_in_the_paper():
    """paper.md, section 3; the clock is the number of images seen before the step."""
    size, T = 300, TrainingProcedure(batch_size=512, lr=2e-4, warmup_epochs=200, ema=0.99)
    b = 0.5 ** (512 / 500_000)
    images_seen = 0
    for step in range(200):
        r = min(images_seen / size / 200, 1)
        beta = 0.99 * b ** (1 / r - 1) if r else 0
        assert learning_rate(T, size=size, step=step) == pytest.approx(2e-4 * min(images_seen / (200 * size), 1))
        assert ema_decay(T, size=size, step=step) == pytest.approx(beta, rel=1e-12)
        images_seen += 512
    assert images_seen > 200 * size


def test_ema_base_is_a_half_life_of_half_a_million_images():
    assert pytest.approx(0.99929047, abs=5e-9) == EMA_BASE


def test_the_papers_ema_warms_up_as_a_growing_half_life():
    """With ema = b the decay is b^(1/r): the half-life is 500,000 images times r."""
    T = TrainingProcedure(batch_size=512, warmup_epochs=200, ema=EMA_BASE)
    for step in (1, 10, 100, 390):
        half_life = 500_000 * step * 512 / (200 * 1000)
        assert ema_decay(T, size=1000, step=step) == pytest.approx(0.5 ** (512 / half_life))
    assert ema_decay(T, size=1000, step=391) == EMA_BASE


def test_without_a_warm_up_both_are_constant():
    T = procedure(lr=3e-4, ema=0.7)
    assert {learning_rate(T, size=10, step=step) for step in range(50)} == {3e-4}
    assert {ema_decay(T, size=10, step=step) for step in range(50)} == {0.7}


def test_the_first_step_of_a_warm_up_moves_no_weight():
    state = start(procedure(warmup_epochs=5))
    before = state.weights.clone()
    steps(state, 1)
    assert torch.equal(state.weights, before)
    steps(state, 1)
    assert not torch.equal(state.weights, before)


# --- batch order ---------------------------------------------------------------------------------------


def positions(count, *, first_step=0, size=10, **settings):
    """Return the indices of `count` batches in a row."""
    T = procedure(**settings)
    return list(itertools.islice(batches(T, size=size, first_step=first_step), count))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23, 40])
def test_order_once_is_one_cyclic_order_for_ever(batch_size):
    drawn = positions(30, batch_size=batch_size)
    assert all(len(batch) == batch_size for batch in drawn)
    sequence = torch.cat(drawn).tolist()
    first = (sequence * 10)[:10] if batch_size == 1 else sequence[:10]
    assert sorted(first) == list(range(10))
    assert sequence == list(itertools.islice(itertools.cycle(first), len(sequence)))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23, 40])
def test_order_epoch_is_a_new_order_for_every_pass(batch_size):
    sequence = torch.cat(positions(30, batch_size=batch_size, shuffle="epoch")).tolist()
    passes = [tuple(sequence[i : i + 10]) for i in range(0, len(sequence) - 9, 10)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len(set(passes)) == len(passes)


def test_order_is_shuffled():
    sequence = torch.cat(positions(1, size=1000, batch_size=1000)).double()
    assert abs(torch.corrcoef(torch.stack([sequence, torch.arange(1000.0).double()]))[0, 1]) < 0.15


@pytest.mark.parametrize("shuffle", ["once", "epoch"])
@pytest.mark.parametrize("batch_size", [3, 23])
@pytest.mark.parametrize("first_step", [1, 2, 7, 29])
def test_order_can_be_taken_up_at_any_step(shuffle, batch_size, first_step):
    whole = positions(first_step + 5, batch_size=batch_size, shuffle=shuffle)
    resumed = positions(5, first_step=first_step, batch_size=batch_size, shuffle=shuffle)
    assert all(torch.equal(a, b) for a, b in zip(whole[first_step:], resumed, strict=True))


@pytest.mark.parametrize("shuffle", ["once", "epoch"])
def test_order_can_be_taken_up_far_into_a_training(shuffle):
    (batch,) = positions(1, first_step=10**9, batch_size=13, shuffle=shuffle)
    (following,) = positions(1, first_step=10**9 + 1, batch_size=13, shuffle=shuffle)
    assert sorted(batch[:10].tolist()) == list(range(10))
    assert sorted([*batch[10:].tolist(), *following[:7].tolist()]) == list(range(10))


@pytest.mark.parametrize("shuffle", ["once", "epoch"])
def test_order_is_a_function_of_the_seed(shuffle):
    first, again, other = (torch.cat(positions(10, seed=seed, shuffle=shuffle)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- one flat tensor -----------------------------------------------------------------------------------


def test_parameters_and_gradients_are_views_of_the_flat_tensors():
    network = tiny_denoiser(network="ncsn++").network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat = flatten(network)
    weights, gradients = flat.detach(), flat.grad
    assert len(weights) == len(gradients) == sum(p.numel() for p in network.parameters())
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    weights.fill_(7)
    gradients.fill_(3)
    assert all((p == 7).all() and (p.grad == 3).all() for p in network.parameters())


def test_gradients_of_a_backward_pass_land_in_the_flat_tensor():
    denoiser = tiny_denoiser(labels=3, dropout=0.0)
    plain = copy.deepcopy(denoiser)
    gradients = flatten(denoiser.network).grad
    noisy, labels = torch.ones(2, 1, 8, 8), torch.tensor([0, 2])
    for d in (denoiser, plain):
        d(noisy, 1.0, labels).square().sum().backward()
    assert gradients.any()
    assert torch.equal(gradients, torch.cat([p.grad.flatten() for p in plain.network.parameters()]))


def test_a_loaded_state_dict_changes_the_flat_tensor_that_is_trained():
    state, other = start(procedure()), tiny_denoiser(seed=5)
    state.denoiser.network.load_state_dict(other.network.state_dict())
    assert torch.equal(state.weights, torch.cat([p.detach().flatten() for p in other.network.parameters()]))
    steps(state, 1)
    assert torch.equal(state.weights, torch.cat([p.detach().flatten() for p in state.denoiser.network.parameters()]))


def test_averaged_network_is_a_copy_of_its_own():
    state = start(procedure())
    state.weights.fill_(7)
    assert not (state.average == 7).any()
    assert not any(p.requires_grad for p in state.averaged.parameters())
    assert torch.equal(state.average, torch.cat([p.flatten() for p in state.averaged.network.parameters()]))


# --- one step ------------------------------------------------------------------------------------------


def plain_step(denoiser, T, step, images, labels):
    """Return loss and flat gradient of a step by a plain autograd pass over the published formula of VP."""
    denoiser = copy.deepcopy(denoiser).train()
    generator = stream("training", T.seed, step)
    indices = next(batches(T, size=len(images), first_step=step))
    clean = images[indices].double().div(127.5).sub(1).float()
    sigma, noise = draw_noise(denoiser, clean.shape, generator)
    denoiser.network.draw_dropout(generator, total=len(clean))
    wanted = None if labels is None else labels[indices]
    denoised = denoiser(clean + sigma[:, None, None, None] * noise, sigma, wanted)
    squares = ((denoised - clean) ** 2).flatten(1).sum(dim=1)
    mean = (squares / sigma**2).sum() / len(indices)
    gradient = torch.autograd.grad(mean, list(denoiser.network.parameters()))
    return mean.item(), torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("labels", [None, LABELS])
def test_gradient_of_a_step_is_that_of_a_plain_autograd_pass(dropout, labels):
    T = procedure(seed=6)
    state = start(T, dropout=dropout, labels=0 if labels is None else 3)
    for step in range(4):
        mean, gradient = plain_step(state.denoiser, T, step, IMAGES, labels)
        (loss,) = steps(state, 1, labels=labels)
        assert loss == pytest.approx(mean, rel=1e-4)
        difference = (state.gradients - gradient).norm() / gradient.norm()
        assert difference < 1e-4


class Waits(TorchDispatchMode):
    """Collects the operations that would make the host wait for a GPU: reading a value, or a shape that needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision):
    state = start(procedure(precision=precision), dropout=0.3, labels=3)
    training = train(state, IMAGES, LABELS)
    next(training)
    with Waits() as waits:
        next(training)
    assert waits.found == []
    with Waits() as waits:
        state.take_mean_loss()
    assert waits.found == ["_local_scalar_dense"]


def test_a_step_leaves_the_global_generator_alone():
    state = start(procedure(), dropout=0.3)
    before = torch.get_rng_state()
    steps(state, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_drops_out_and_the_averaged_network_does_not():
    state = start(procedure(), dropout=0.5)
    steps(state, 1)
    assert state.denoiser.network.training
    assert not state.averaged.network.training


def trajectory(T, count, **model):
    """Return the weights before the first step, and weights and gradients after each of `count` steps."""
    state = start(T, **model)
    first = state.weights.double().numpy().copy()
    taken = itertools.islice(train(state, IMAGES), count)
    return first, [(state.weights.double().numpy(), state.gradients.double().numpy()) for _ in taken]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_the_textbook_update_with_coupled_weight_decay(weight_decay):
    T = procedure(lr=1e-3, weight_decay=weight_decay, warmup_epochs=2)
    w, taken = trajectory(T, 6)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, (weights, gradient) in enumerate(taken):
        lr = 1e-3 * min(step * 4 / (2 * 11), 1)
        g = gradient + weight_decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        update = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        np.testing.assert_allclose(weights, w - lr * update, rtol=1e-6, atol=1e-3 * lr + 1e-12)
        w = weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "effective"), [(None, 0.9), (0.5, 0.5), (0.0, 0.0)])
def test_sgd_is_the_textbook_update_with_momentum_and_coupled_weight_decay(weight_decay, momentum, effective):
    T = procedure(optimizer="sgd", lr=1e-4, momentum=momentum, weight_decay=weight_decay, warmup_epochs=2)
    w, taken = trajectory(T, 6)
    velocity = np.zeros_like(w)
    for step, (weights, gradient) in enumerate(taken):
        lr = 1e-4 * min(step * 4 / (2 * 11), 1)
        velocity = effective * velocity + gradient + weight_decay * w
        np.testing.assert_allclose(weights, w - lr * velocity, rtol=1e-6, atol=1e-8)
        w = weights


def test_weight_decay_of_adam_is_not_decoupled():
    """Where the gradient is nearly nothing, coupled decay moves a weight by lr, decoupled by lr * decay * weight."""
    state = start(procedure(lr=1e-3, weight_decay=100.0))
    before = state.weights.clone()
    steps(state, 1)
    moved = (state.weights - before)[before.abs() > 0.3]
    assert len(moved) > 10
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=1e-2, atol=1e-6)


def test_nan_gradients_count_as_zero_and_infinite_ones_as_a_hundred_thousand():
    state = start(procedure(optimizer="sgd", momentum=0.0, lr=1e-5))
    bias = state.denoiser.network.map_layer1.bias
    broken = torch.tensor([math.nan, math.inf, -math.inf, 2.0]).repeat(4)
    bias.register_hook(lambda gradient: broken.clone())  # noqa: ARG005
    before = bias.detach().clone()
    steps(state, 1)
    expected = before - 1e-5 * torch.tensor([0.0, 1e5, -1e5, 2.0]).repeat(4)
    torch.testing.assert_close(bias.detach(), expected, rtol=1e-6, atol=1e-9)
    assert state.gradients.isfinite().all()
    assert state.weights.isfinite().all()


def test_large_finite_gradients_are_not_clipped():
    state = start(procedure(optimizer="sgd", momentum=0.0, lr=1e-5))
    bias = state.denoiser.network.map_layer1.bias
    bias.register_hook(lambda gradient: torch.full_like(gradient, 3e6))
    before = bias.detach().clone()
    steps(state, 1)
    torch.testing.assert_close(bias.detach(), before - 30, rtol=1e-6, atol=1e-6)


# --- the averaged network ------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup_epochs", "ema"), [(0, 0.9), (3, 0.9), (3, 0.0), (2, 0.99929)])
def test_averaged_network_is_the_moving_average_of_the_weights(warmup_epochs, ema):
    T = procedure(lr=1e-2, warmup_epochs=warmup_epochs, ema=ema)
    state = start(T)
    average = state.weights.double().clone()
    for step, _ in enumerate(itertools.islice(train(state, IMAGES), 12)):
        r = min(step * 4 / 11 / warmup_epochs, 1) if warmup_epochs else 1
        beta = ema * (0.5 ** (512 / 500_000)) ** (1 / r - 1) if r else 0
        average = beta * average + (1 - beta) * state.weights.double()
        torch.testing.assert_close(state.average.double(), average, rtol=1e-5, atol=1e-6)
    flat = torch.cat([p.flatten() for p in state.averaged.network.parameters()])
    assert torch.equal(flat, state.average)
    assert (ema == 0) == torch.equal(state.average, state.weights)


def test_averaged_network_keeps_the_fourier_frequencies():
    state = start(procedure(), network="ncsn++", precondition="ve")
    steps(state, 3)
    assert torch.equal(state.averaged.network.map_noise.freqs, state.denoiser.network.map_noise.freqs)
    assert torch.equal(state.averaged.network.map_noise.freqs, tiny_denoiser(network="ncsn++").network.map_noise.freqs)


# --- stopping and going on -----------------------------------------------------------------------------


def saved(state):
    """Return the state as it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_equal_states(a, b):
    assert a.step == b.step
    assert torch.equal(a.weights, b.weights)
    assert torch.equal(a.average, b.average)
    moments_a, moments_b = (s.optimizer.state_dict()["state"][0] for s in (a, b))
    assert moments_a.keys() == moments_b.keys()
    for key, value in moments_a.items():
        assert (value is None and moments_b[key] is None) or torch.equal(value, moments_b[key]), key


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, {"dropout": 0.0}),
        ({"weight_decay": 0.01, "warmup_epochs": 2}, {"dropout": 0.4}),
        ({"optimizer": "sgd", "lr": 1e-5}, {"dropout": 0.4}),
        ({"shuffle": "epoch", "batch_size": 5}, {"network": "ncsn++", "precondition": "ve"}),
        ({"batch_size": 25}, {"precondition": "edm"}),
    ],
)
def test_a_training_that_is_stopped_and_taken_up_is_one_never_stopped_bit_for_bit(stop_after, settings, model):
    T = procedure(**settings)
    whole, first = start(T, **model), start(T, **model)
    losses = steps(whole, 7)
    before = steps(first, stop_after)
    resumed = start(T, seed=99, **model)  # other initial weights: all must come from the saved state
    resumed.load_state_dict(saved(first))
    assert before + steps(resumed, 7 - stop_after) == losses
    assert_equal_states(resumed, whole)
    assert resumed.take_mean_loss() == whole.take_mean_loss()


def test_a_state_saved_before_the_first_step_is_a_fresh_start():
    T = procedure(optimizer="sgd", lr=1e-5)
    fresh, whole = start(T), start(T)
    resumed = start(T, seed=99)
    resumed.load_state_dict(saved(fresh))
    assert steps(resumed, 3) == steps(whole, 3)
    assert_equal_states(resumed, whole)


def test_a_state_names_the_weights_as_the_published_networks_do():
    state = start(procedure())
    content = saved(state)
    names = set(state.denoiser.network.state_dict())
    assert set(content["network"]) == set(content["averaged"]) == names


def test_a_state_of_another_network_is_refused():
    content = saved(start(procedure()))
    with pytest.raises((KeyError, RuntimeError)):
        start(procedure(), width=8).load_state_dict(content)


def test_a_consumer_that_stops_asking_stops_the_training():
    state = start(procedure())
    generator = train(state, IMAGES)
    next(generator)
    next(generator)
    before = state.weights.clone()
    generator.close()
    assert state.step == 2
    assert torch.equal(state.weights, before)


# --- the loss ------------------------------------------------------------------------------------------


def test_mean_loss_is_the_mean_of_the_steps_since_it_was_last_taken():
    state = start(procedure())
    assert state.take_mean_loss() is None
    first = steps(state, 5)
    assert state.take_mean_loss() == pytest.approx(math.fsum(first) / 5, rel=1e-5)
    assert state.take_mean_loss() is None
    second = steps(state, 3)
    assert state.take_mean_loss() == pytest.approx(math.fsum(second) / 3, rel=1e-5)


def test_taking_the_mean_loss_changes_nothing_that_follows():
    looked_at, left_alone = start(procedure(), dropout=0.3), start(procedure(), dropout=0.3)
    steps(looked_at, 2)
    looked_at.take_mean_loss()
    steps(left_alone, 2)
    assert steps(looked_at, 2) == steps(left_alone, 2)
    assert_equal_states(looked_at, left_alone)


def test_yielded_loss_needs_no_gradient_and_stays_what_it_was():
    state = start(procedure())
    losses = list(itertools.islice(train(state, IMAGES), 3))
    assert not any(loss.requires_grad for loss in losses)
    assert [loss.item() for loss in losses] == steps(start(procedure()), 3)


def test_loss_starts_at_the_number_of_pixels():
    """An untrained VP network gives F near 0, so the weighted squared error is ||noise||^2, on average 64."""
    state = start(procedure(batch_size=500))
    (loss,) = steps(state, 1)
    assert abs(loss - 64) < 5 * math.sqrt(2 * 64 / 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, {"precondition": "vp"}),
        ({}, {"network": "ncsn++", "precondition": "ve"}),
        ({"optimizer": "sgd", "lr": 1e-5}, {"precondition": "vp"}),
    ],
)
def test_loss_falls(settings, model):
    T = procedure(batch_size=16, warmup_epochs=2, **{"lr": 2e-3, **settings})
    losses = steps(start(T, width=8, dropout=0.0, **model), 150)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def test_two_seeds_train_differently():
    first, other = (start(procedure(seed=seed)) for seed in (0, 1))
    assert steps(first, 2) != steps(other, 2)


def test_bfloat16_is_near_float32_and_not_the_same():
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(8, 1, 8, 8), dtype=np.uint8))
    losses = {}
    for precision in ("fp32", "bf16"):
        T = TrainingProcedure(batch_size=8, precision=precision)
        losses[precision] = next(train(TrainingState(tiny_denoiser(dropout=0.0), T), images)).item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
