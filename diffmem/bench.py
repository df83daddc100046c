"""How fast this device does what diffmem spends its time on, beside the matrix-product peak of the same run."""

import resource
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffmem.config import Cell, DataDistribution, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.cost import PASSES, forward_operations
from diffmem.denoiser import draw_noise, loss
from diffmem.memorization import two_nearest
from diffmem.streams import stream
from diffmem.throughput import EVALUATIONS, generation, seconds_in_turn, training_step
from diffmem.training import TrainingState

SIDE = 2048
"""Side of the square matrices whose product is the peak."""
SECONDS = 2.0
"""How long each figure is measured, at least."""
GENERATED, TRAINING_IMAGES = 2000, 50_000
"""Images of the neighbour search, 32x32 RGB: the size of the paper's largest study."""

Row = dict[str, Any]

NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "32x32, width 64, 2 blocks": ("cifar10", {"width": 64, "blocks": 2}, 8, 16),
    "8x8, width 16, 1 block": ("digits", {"width": 16, "blocks": 1, "channel_mult": (2, 2)}, 128, 500),
}
"""Dataset, settings of M, batch size of training and of generation."""


def name_of(device: torch.device) -> str:
    """Return what a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def bench(device: torch.device) -> list[Row]:
    """Measure all figures: rows of what, a value and its unit, and where that is one, its share of the peak."""
    side = torch.randn(SIDE, SIDE, device=device)
    (seconds,) = seconds_in_turn([lambda: side @ side], device, at_least=SECONDS)
    peak = 2 * SIDE**3 / seconds
    rows = [_row("matrix product, float32", peak, peak)]
    for name, (dataset, M, batch, at_once) in NETWORKS.items():
        rows += _network(name, _cell(dataset, M, batch), at_once, peak, device)
    return [*rows, *_neighbours(peak, device), _memory()]


def _cell(dataset: str, M: dict[str, Any], batch: int) -> Cell:
    return Cell.resolve(
        DataDistribution(dataset=dataset, size=1000),
        ModelConfiguration(**M),
        TrainingProcedure(batch_size=batch),
        Scoring(),
    )


def _network(name: str, cell: Cell, at_once: int, peak: float, device: torch.device) -> list[Row]:
    forward, batch = forward_operations(cell), cell.T.batch_size
    state, step_work = training_step(cell, batch, device)
    step, bare_step = seconds_in_turn([step_work, _bare_step(state, cell, device)], device, at_least=SECONDS)
    (generated,) = seconds_in_turn([generation(cell, state, at_once, device)], device, at_least=SECONDS)
    return [
        _row(f"training step, {name}, batch {batch}", PASSES * forward * batch / step, peak, batch / step),
        {
            "what": f"step outside forward, backward and optimizer, {name}",
            "value": max(0.0, 1 - bare_step / step),
            "unit": "of the step",
        },
        _row(
            f"generation, {name}, batch {at_once}",
            EVALUATIONS * forward * at_once / generated,
            peak,
            at_once * EVALUATIONS / 35 / generated,  # as the sampler's 35 evaluations would take
        ),
    ]


def _bare_step(state: TrainingState, cell: Cell, device: torch.device) -> Callable[[], None]:
    """Return forward, backward and optimizer step on one batch that is there already."""
    side = cell.P.resolution or 0
    clean = torch.rand(cell.T.batch_size, cell.channels, side, side, device=device) * 2 - 1
    generator = stream("training", 0, 0, device)
    sigma, noise = draw_noise(state.denoiser, clean.shape, generator)

    def work() -> None:
        state.denoiser.train()
        state.denoiser.network.draw_dropout(generator, total=len(clean))
        state.gradients.zero_()
        loss(state.denoiser, clean, sigma=sigma, noise=noise).mean().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()

    return work


def _images(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return generated and training images of noise for the neighbour search."""
    generated = torch.randint(256, (GENERATED, 3, 32, 32), dtype=torch.uint8, device=device)
    return generated, torch.randint(256, (TRAINING_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)


def _neighbours(peak: float, device: torch.device) -> list[Row]:
    generated, training = _images(device)
    operations = 2 * GENERATED * TRAINING_IMAGES * 3 * 32 * 32
    a, b = generated.flatten(1).float(), training.flatten(1).float()

    def product() -> None:
        for rows in torch.split(a, 500):
            rows @ b.T

    found, products = seconds_in_turn([lambda: two_nearest(generated, training), product], device, at_least=SECONDS)
    what = f"two nearest of {TRAINING_IMAGES} for {GENERATED} images, 32x32 RGB"
    return [
        _row(what, operations / found, peak, GENERATED / found),
        {"what": "the same, over its matrix products alone", "value": found / products, "unit": "times"},
    ]


def compare(device: torch.device) -> list[Row]:
    """Measure what one would otherwise take, as times of diffmem's own time; faiss where it is installed."""
    generated, training = _images(device)
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


def _row(what: str, per_second: float, peak: float, images: float | None = None) -> Row:
    row = {"what": what, "value": per_second / 1e9, "unit": "GFLOP/s", "of peak": per_second / peak}
    return row if images is None else {**row, "images per second": images}


def _memory() -> Row:
    return {
        "what": "most memory of this process",
        "value": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "unit": "GiB",
    }
