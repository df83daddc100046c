"""What one would otherwise take for diffmem's work, measured in the same run; what is not installed is left out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import NETWORKS, SECONDS, cell_of, noise_images
from diffmem.cells import PASSES
from diffmem.measures import two_nearest
from diffmem.runs import seconds_in_turn, training_step

Row = dict[str, Any]
Network = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy images and one number an image to images."""


def compare(device: torch.device) -> list[Row]:
    """Measure other packages as times of diffmem's own time, or of its operations per second."""
    return [*_neighbours(device), *_networks(device)]


def _neighbours(device: torch.device) -> list[Row]:
    generated, training = noise_images(device)
    a, b = generated.flatten(1).float(), training.flatten(1).float()
    others: dict[str, Callable[[], object]] = {
        "torch.cdist and topk": lambda: [torch.cdist(rows, b).topk(2, largest=False) for rows in torch.split(a, 500)]
    }
    try:
        import faiss

        index = faiss.IndexFlatL2(a.shape[1])
        index.add(b.cpu().numpy())
        others["faiss IndexFlatL2"] = lambda: index.search(a.cpu().numpy(), 2)
    except ImportError:
        pass
    works = [lambda: two_nearest(generated, training), *others.values()]
    own, *times = seconds_in_turn(works, device, at_least=SECONDS)
    return [
        {"what": f"two nearest with {name}", "value": seconds / own, "unit": "times diffmem's time"}
        for name, seconds in zip(others, times, strict=True)
    ]


def _networks(device: torch.device) -> list[Row]:
    """Compare the first network of the bench with those of the nearest size: other sizes, so per operation."""
    name, (dataset, M, batch, at_once) = next(iter(NETWORKS.items()))
    cell = cell_of(dataset, M, batch)
    state, step = training_step(cell, batch, device)
    side, channels = cell.P.resolution or 0, cell.channels
    noisy = torch.randn(at_once, channels, side, side, device=device)
    sigma = torch.full((at_once,), 0.5, device=device)
    forward = cell.work.forward

    def own_forward() -> None:
        with torch.inference_mode():
            state.averaged(noisy, 1.0)

    rows = []
    for other, build in OTHER_NETWORKS.items():
        try:
            network, call = build(cell.M.width * cell.M.channel_mult[0], len(cell.M.channel_mult), channels, side)
        except ImportError:
            continue
        network.to(device)
        other_step, step_operations = _training_step(
            network, call, noisy[:1].expand(batch, -1, -1, -1), sigma[:1].expand(batch)
        )
        other_forward, forward_operations_ = _forward(call, noisy, sigma)
        own, theirs, own_pass, their_pass = seconds_in_turn(
            [step, other_step, own_forward, other_forward], device, at_least=SECONDS
        )
        size = sum(p.numel() for p in network.parameters()) / 1e6
        for what, ratio in (
            (f"training step, {name}, batch {batch}", (step_operations / theirs) / (PASSES * forward * batch / own)),
            (
                f"forward pass, {name}, batch {at_once}",
                (forward_operations_ / their_pass) / (forward * at_once / own_pass),
            ),
        ):
            rows.append(
                {"what": f"{what}: {other}, {size:.1f} M parameters", "value": ratio, "unit": "times diffmem's GFLOP/s"}
            )
    return rows


def _diffusers(width: int, levels: int, channels: int, side: int) -> tuple[nn.Module, Network]:
    from diffusers import UNet2DModel

    attention = [level == 1 for level in range(levels)]  # at 16x16
    network = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(width,) * levels,
        norm_num_groups=min(32, width),  # 32 unless given
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )
    return network, lambda noisy, level: network(noisy, level).sample


def _denoising_diffusion_pytorch(width: int, levels: int, channels: int, _side: int) -> tuple[nn.Module, Network]:
    from denoising_diffusion_pytorch import Unet

    network = Unet(dim=width, dim_mults=(1,) * levels, channels=channels)
    return network, network


OTHER_NETWORKS: dict[str, Callable[[int, int, int, int], tuple[nn.Module, Network]]] = {
    "diffusers' UNet2DModel": _diffusers,
    "denoising-diffusion-pytorch's Unet": _denoising_diffusion_pytorch,
}


def _training_step(network: nn.Module, call: Network, noisy: Tensor, level: Tensor) -> tuple[Callable[[], None], int]:
    """Return a training step as its users write it, and its operations."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (call(noisy, level) - noisy).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return step, counter.get_total_flops()


def _forward(call: Network, noisy: Tensor, level: Tensor) -> tuple[Callable[[], None], int]:
    def forward() -> None:
        with torch.inference_mode():
            call(noisy, level)

    with FlopCounterMode(display=False) as counter:
        forward()
    return forward, counter.get_total_flops()
