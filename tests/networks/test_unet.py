"""The raw networks DDPM++ and NCSN++: golden outputs, published sizes, labels, initial weights, dropout, skips."""

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from reference import (
    CASES,
    LargestTensor,
    golden_arrays,
    golden_denoiser,
    one_thread,  # noqa: F401
    relative_error,
    tiny_denoiser,
)
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from diffmem.cells.settings import ModelConfiguration
from diffmem.models.denoiser import build_denoiser, loss
from diffmem.models.sampling import heun
from diffmem.networks.unet import (
    BOX,
    Block,
    Dropout,
    FourierEmbedding,
    GroupNorm,
    LabelEmbedding,
    PositionalEmbedding,
    UNet,
    _Doubled,
    initialise,
)

pytestmark = pytest.mark.usefixtures("one_thread")
every_case = pytest.mark.parametrize("name", sorted(CASES))


# --- golden cases --------------------------------------------------------------------------------------


def test_there_are_five_golden_cases():
    assert len(CASES) == 5


@every_case
def test_state_dict_has_the_published_names_and_shapes(name):
    state = golden_denoiser(name).network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == CASES[name]["state_dict"]


@every_case
def test_parameter_count_is_that_of_the_reference(name):
    assert sum(p.numel() for p in golden_denoiser(name).network.parameters()) == CASES[name]["parameters"]


@every_case
def test_resampling_filters_are_normalised_outer_products(name):
    taps = [1, 1] if CASES[name]["arch"] == "ddpm++" else [1, 3, 3, 1]
    expected = torch.tensor(np.outer(taps, taps) / np.sum(taps) ** 2, dtype=torch.float32)
    filters = [v for k, v in golden_denoiser(name).network.state_dict().items() if "resample_filter" in k]
    assert filters
    assert all(torch.equal(f[0, 0], expected) for f in filters)


@every_case
def test_denoised_images_agree_with_the_reference(name):
    arrays = golden_arrays(name)
    with torch.no_grad():
        denoised = golden_denoiser(name)(arrays["noisy"], arrays["sigma"], arrays.get("labels"))
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, arrays["denoised"]) < 1e-5


@every_case
def test_gradient_norm_agrees_with_the_reference(name):
    arrays, denoiser = golden_arrays(name), golden_denoiser(name)
    denoiser(arrays["noisy"], arrays["sigma"], arrays.get("labels")).square().mean().backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in denoiser.parameters()))
    assert norm == pytest.approx(CASES[name]["gradient_norm"], rel=1e-5)


@every_case
def test_loss_agrees_with_the_reference(name):
    arrays = golden_arrays(name)
    with torch.no_grad():
        losses = loss(
            golden_denoiser(name),
            arrays["clean"],
            sigma=arrays["sigma"],
            noise=arrays["noise"],
            labels=arrays.get("labels"),
        )
    assert losses.shape == (4,)
    assert relative_error(losses, arrays["loss"]) < 1e-5


@every_case
def test_samples_agree_with_the_reference(name):
    arrays = golden_arrays(name)
    samples = heun(golden_denoiser(name), arrays["latents"], arrays.get("labels"), steps=18)
    assert relative_error(samples, arrays["samples"]) < 1e-4


# --- the paper's networks ------------------------------------------------------------------------------


class WithoutDraws(TorchDispatchMode):
    """Skip random draws, so that a network on the meta device needs neither memory nor time."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def cifar_network(**settings) -> UNet:
    M = ModelConfiguration(precondition="edm", **settings)
    with torch.device("meta"), WithoutDraws():
        return build_denoiser(M, resolution=32, channels=3).network


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("width", "blocks", "published"),
    [
        (128, 2, 35_125_251),
        (192, 2, 78_984_195),
        (256, 2, 140_374_019),
        (320, 2, 219_294_723),
        (128, 4, 55_732_739),
        (128, 12, 138_162_691),
    ],
)
def test_parameter_count_is_that_of_the_paper(width, blocks, published):
    assert parameter_count(cifar_network(width=width, blocks=blocks)) == published


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
def test_removing_skips_changes_no_parameter_count(network):
    whole = parameter_count(cifar_network(network=network))
    assert parameter_count(cifar_network(network=network, skips="000 010 000")) == whole


def test_attention_sits_at_the_second_resolution_and_at_the_bottom_of_the_decoder():
    network = cifar_network()
    attending = {name for name, module in network.named_modules() if isinstance(module, Block) and module.attention}
    assert attending == {"enc.16x16_block0", "enc.16x16_block1", "dec.8x8_in0", "dec.16x16_block2"}


@pytest.mark.parametrize(
    ("network", "embedding", "features"),
    [("ddpm++", "positional", 128), ("ddpm++", "fourier", 128), ("ncsn++", "positional", 256), ("ncsn++", None, 256)],
)
def test_embedding_width_belongs_to_the_network_not_to_the_embedding(network, embedding, features):
    built = cifar_network(network=network, embedding=embedding)
    assert built.map_layer0.in_features == features
    assert isinstance(built.map_noise, PositionalEmbedding if embedding == "positional" else FourierEmbedding)


# --- embeddings ----------------------------------------------------------------------------------------


def test_positional_embedding_is_the_formula():
    c_noise = torch.tensor([0.0, 0.3, 12.5, 999.0])
    w = np.array([10_000 ** (-i / 7) for i in range(8)])
    angle = c_noise.double().numpy()[:, None] * w
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(PositionalEmbedding(16)(c_noise).numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(PositionalEmbedding(16)(c_noise[:3]).numpy(), expected[:3], atol=5e-6)


def test_fourier_embedding_is_the_formula():
    layer = FourierEmbedding(8)
    layer.freqs.copy_(torch.tensor([-20.0, 0.5, 3.0, 31.0]))
    c_noise = torch.tensor([-1.2, 0.0, 0.7])
    angle = 2 * np.pi * c_noise.double().numpy()[:, None] * layer.freqs.double().numpy()
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(layer(c_noise).numpy(), expected, atol=5e-5)


# --- attention and resampling, by hand -----------------------------------------------------------------


def conv1x1(layer: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return np.einsum("oi,ip->op", weight[:, :, 0, 0], x) + bias[:, None]


def test_attention_is_softmax_over_keys_of_interleaved_channels():
    case = golden_denoiser("ddpmpp_vp").network
    block = copy.deepcopy(case.dec["2x2_in0"])
    x = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normalised = block.norm2(x)[0].reshape(16, 4).double().numpy()
        attended = block._attend(x)[0].reshape(16, 4).numpy()
    qkv = conv1x1(block.qkv, normalised)
    q, k, v = qkv[0::3], qkv[1::3], qkv[2::3]
    expected = np.zeros_like(v)
    for position in range(4):
        scores = np.exp(q[:, position] @ k / math.sqrt(16))
        expected[:, position] = v @ (scores / scores.sum())
    np.testing.assert_allclose(attended, conv1x1(block.proj, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resample", ["down", "up"])
def test_box_resampling_averages_or_repeats_pixels(resample):
    block = Block(4, 4, 8, side=8, dropout=0.0, resample=resample, taps=BOX)
    nn.init.eye_(block.skip.weight.data[:, :, 0, 0])
    nn.init.zeros_(block.skip.bias)
    x = torch.arange(64.0).reshape(1, 4, 4, 4)
    averaged = x.numpy().reshape(1, 4, 2, 2, 2, 2).mean(axis=(3, 5))
    repeated = x.numpy().repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_allclose(block.skip(x).detach().numpy(), averaged if resample == "down" else repeated, rtol=1e-6)


# --- labels --------------------------------------------------------------------------------------------


def label_embedding(classes: int, features: int) -> LabelEmbedding:
    layer = LabelEmbedding(classes, features)
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(layer.weight, generator=generator)
    nn.init.normal_(layer.bias, generator=generator)
    return layer


def test_label_embedding_and_its_gradient_equal_the_one_hot_formula():
    layer = label_embedding(7, 5)
    labels = torch.tensor([0, 6, 3, 3, 1])
    target = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    expected = functional.one_hot(labels, 7).double() * math.sqrt(7) @ weight.T + bias
    (expected * target).sum().backward()
    embedded = layer(labels)
    (embedded * target).sum().backward()
    torch.testing.assert_close(embedded.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-5, atol=1e-6)


def test_fifty_thousand_unique_labels_build_no_one_hot_matrix():
    denoiser = tiny_denoiser(labels=50_000, condition="unique", precondition="edm")
    noisy = torch.zeros(64, 1, 8, 8)
    labels = torch.arange(64) * 700
    with LargestTensor() as largest:
        denoiser(noisy, torch.ones(64), labels).square().sum().backward()
    assert largest.elements == denoiser.network.map_label.weight.numel() == 4 * 50_000


def test_each_label_gives_another_image():
    denoiser = golden_denoiser("ddpmpp_edm_labels")
    noisy = torch.zeros(10, 3, 16, 16)
    with torch.no_grad():
        denoised = denoiser(noisy, 1.0, torch.arange(10))
    assert torch.pdist(denoised.flatten(1)).min() > 1e-3


def test_conditional_network_refuses_to_go_without_labels():
    with pytest.raises(ValueError, match="conditioned on 10 labels"):
        golden_denoiser("ddpmpp_edm_labels")(torch.zeros(1, 3, 16, 16), 1.0)


# --- initial weights -----------------------------------------------------------------------------------


def layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def xavier_bound(name: str, weight: torch.Tensor) -> float:
    """Return the bound of the uniform draw, as paper.md says it."""
    area = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / (weight.shape[1] * area + weight.shape[0] * area))
    if name.endswith(("conv1", "proj", "aux_conv")):
        return 1e-5 * bound
    return math.sqrt(0.2) * bound if name.endswith("qkv") else bound


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
def test_initial_weights_are_uniform_within_the_xavier_bound(network):
    M = ModelConfiguration(network=network, width=16)
    built = build_denoiser(M, resolution=8, channels=3, labels=10).network
    checked = set()
    for name, layer in layers(built):
        scaled = layer.weight.detach().double().flatten().numpy() / xavier_bound(name, layer.weight)
        assert np.abs(scaled).max() <= 1 + 1e-6, name
        if scaled.size >= 500:
            assert scipy.stats.kstest(scaled, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4, name
            checked.add(name.rpartition(".")[2])
    assert checked >= {"map_layer0", "affine", "conv0", "conv1", "skip", "qkv", "proj", "8x8_aux_conv"}


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
def test_initial_biases_are_zero_and_norms_are_the_identity(network):
    built = tiny_denoiser(network=network, labels=3).network
    assert all(not layer.bias.any() for _, layer in layers(built))
    norms = [m for m in built.modules() if isinstance(m, nn.GroupNorm)]
    assert norms
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_group_norms_have_the_published_groups_and_epsilon():
    for norm in (m for m in cifar_network(width=128).modules() if isinstance(m, nn.GroupNorm)):
        assert norm.num_groups == min(32, norm.num_channels // 4)
        assert norm.eps == 1e-6


def test_fourier_frequencies_are_normal_with_scale_16():
    layer = FourierEmbedding(40_000)
    initialise(nn.Sequential(layer), seed=0)
    assert scipy.stats.kstest(layer.freqs.double().numpy(), scipy.stats.norm(0, 16).cdf).pvalue > 0.01
    assert layer.freqs.std().item() == pytest.approx(16, rel=4 / math.sqrt(2 * 20_000))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (tiny_denoiser(seed=seed, network="ncsn++").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if key.endswith((".weight", "freqs")) and "norm" not in key]
    assert drawn
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


def test_no_two_layers_of_one_shape_start_equal():
    weights = [layer.weight for _, layer in layers(tiny_denoiser().network)]
    for i, a in enumerate(weights):
        assert not any(a.shape == b.shape and torch.equal(a, b) for b in weights[:i])


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    tiny_denoiser(network="ncsn++", labels=3)
    assert torch.equal(torch.get_rng_state(), before)


# --- layout --------------------------------------------------------------------------------------------


@every_case
def test_channels_last_is_the_same_network_in_another_layout(name):
    denoiser, arrays = golden_denoiser(name), golden_arrays(name)
    layouts = set()
    for module in denoiser.network.modules():
        if isinstance(module, Block):
            module.register_forward_hook(
                lambda *call: layouts.add(call[2].is_contiguous(memory_format=torch.channels_last))
            )
    denoiser.network.layout = torch.channels_last
    labels = arrays.get("labels")
    with torch.no_grad():
        denoised = denoiser(arrays["noisy"], arrays["sigma"], labels)
    assert layouts == {True}
    assert relative_error(denoised, arrays["denoised"]) < 1e-5


# --- dropout -------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dropout_zeroes_a_share_and_scales_the_rest():
    layer = Dropout(0.13, (10, 10, 10)).train()
    layer.draw(generator(0), rows=slice(None), total=100, layout=torch.contiguous_format)
    dropped = layer(torch.full((100, 10, 10, 10), 2.0))
    zeros = (dropped == 0).double().mean().item()
    assert abs(zeros - 0.13) < 4 * math.sqrt(0.13 * 0.87 / 100_000)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([2 / 0.87]))


def test_dropout_mask_is_a_function_of_the_generator():
    denoiser = golden_denoiser("ddpmpp_vp").train()
    noisy = golden_arrays("ddpmpp_vp")["noisy"]

    def run(seed: int) -> torch.Tensor:
        denoiser.network.draw_dropout(generator(seed), total=len(noisy))
        with torch.no_grad():
            return denoiser(noisy, 1.0)

    torch.rand(3)  # the global generator has no part in it
    first, other, again = run(1), run(2), run(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_layer_has_a_mask_of_its_own():
    network = tiny_denoiser(dropout=0.5).network
    network.draw_dropout(generator(0), total=2)
    masks = [module.kept for module in network.modules() if isinstance(module, Dropout)]
    assert len(masks) > 2
    assert not any(
        torch.equal(one, other) for one, other in itertools.combinations(masks, 2) if one.shape == other.shape
    )


def test_a_share_of_a_batch_has_its_part_of_the_masks():
    network = tiny_denoiser(dropout=0.5).network

    def masks(rows: slice) -> list[torch.Tensor]:
        network.draw_dropout(generator(3), total=5, rows=rows)
        return [module.kept for module in network.modules() if isinstance(module, Dropout)]

    for whole, *parts in zip(masks(slice(None)), masks(slice(0, 2)), masks(slice(2, 5)), strict=True):
        assert torch.equal(torch.cat(parts), whole)


def test_dropout_does_nothing_in_evaluation():
    denoiser = golden_denoiser("ddpmpp_vp")
    arrays = golden_arrays("ddpmpp_vp")
    denoiser.network.draw_dropout(generator(1), total=len(arrays["noisy"]))
    with torch.no_grad():
        assert relative_error(denoiser(arrays["noisy"], arrays["sigma"]), arrays["denoised"]) < 1e-5


def test_training_without_a_generator_is_refused():
    with pytest.raises(RuntimeError, match="draw_dropout"):
        tiny_denoiser().train()(torch.zeros(1, 1, 8, 8), 1.0)


def test_training_with_no_dropout_needs_no_generator():
    assert tiny_denoiser(dropout=0.0).train()(torch.zeros(1, 1, 8, 8), 1.0).shape == (1, 1, 8, 8)


# --- skip connections ----------------------------------------------------------------------------------


def received_skips(network: UNet) -> list[torch.Tensor]:
    """Run the network and return what its decoder blocks get from the encoder, in encoder order."""
    received: list[torch.Tensor] = []
    carried: dict[str, int] = {}

    def remember(module, args):  # noqa: ARG001
        received.append(args[0][:, carried["channels"] :].detach())

    def carry(module, args, output):  # noqa: ARG001
        carried["channels"] = output.shape[1]

    handles = []
    for name, layer in network.dec.items():
        handles.append(layer.register_forward_hook(carry))
        if "_block" in name:
            handles.append(layer.register_forward_pre_hook(remember))
    with torch.no_grad():
        network(torch.randn(2, 3, 16, 16, generator=generator(0)), torch.ones(2))
    for handle in handles:
        handle.remove()
    return received[::-1]


@pytest.mark.parametrize("network", ["ddpm++", "ncsn++"])
@pytest.mark.parametrize("skips", ["111 111 111", "000 000 000", "100 010 001", "011 101 110"])
def test_removed_skips_arrive_as_zeros_and_kept_ones_do_not(network, skips):
    M = ModelConfiguration(network=network, width=8, skips=skips)
    received = received_skips(build_denoiser(M, resolution=16, channels=3).network)
    assert len(received) == 9
    assert "".join(str(int(bool(skip.any()))) for skip in received) == skips.replace(" ", "")


def test_kept_skips_do_not_change_when_others_are_removed():
    whole, one = (
        received_skips(build_denoiser(ModelConfiguration(width=8, skips=skips), resolution=16, channels=3).network)
        for skips in ("111 111 111", "010 000 100")
    )
    assert torch.equal(one[1], whole[1])
    assert torch.equal(one[6], whole[6])


def test_a_wrong_number_of_skips_is_refused():
    with pytest.raises(ValueError, match="9 skip connections, not 6"):
        build_denoiser(ModelConfiguration(width=8, skips="111 111"), resolution=16, channels=3)


# --- what a compiler is given --------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (6, 1), (128, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norm_by_channels_is_that_of_float64_with_its_gradients(channels, groups, layout):
    norm, exact = GroupNorm(groups, channels, eps=1e-6), nn.GroupNorm(groups, channels, eps=1e-6)
    for parameter, values in zip(norm.parameters(), torch.randn(2, channels, generator=generator(0)), strict=True):
        parameter.data = values
    exact.load_state_dict(norm.state_dict())
    exact.double()
    images = torch.randn(4, channels, 8, 8, generator=generator(0)) * 2 + 30  # a mean that squares would not survive
    x = images.clone(memory_format=layout).requires_grad_()
    y = images.double().requires_grad_()
    wanted = torch.randn(images.shape, generator=generator(0))
    found = norm.by_channels(x)
    expected = exact(y)
    (found * wanted).sum().backward()
    (expected * wanted).sum().backward()
    assert found.is_contiguous(memory_format=layout)
    assert relative_error(found.detach(), expected.detach()) < 3e-6
    assert relative_error(x.grad, y.grad) < 3e-6
    for own, other in zip(norm.parameters(), exact.parameters(), strict=True):
        assert relative_error(own.grad, other.grad) < 3e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_doubled_images_and_their_gradients_have_the_bits_of_torch(layout):
    x = torch.randn(3, 5, 7, 6, generator=generator(0)).to(memory_format=layout).requires_grad_()
    wanted = torch.randn(3, 5, 14, 12, generator=generator(0)).to(memory_format=layout)
    found, expected = _Doubled.apply(x), functional.interpolate(x, scale_factor=2.0)
    assert torch.equal(found, expected)
    (own,), (other,) = (torch.autograd.grad(each, x, wanted) for each in (found, expected))
    assert torch.equal(own, other)
