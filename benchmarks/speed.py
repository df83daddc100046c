"""How fast this device does what diffmem spends its time on, beside the matrix-product peak of the same run."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmem.cells import (
    PASSES,
    Cell,
    DataDistribution,
    ModelConfiguration,
    Scoring,
    TrainingProcedure,
)
from diffmem.measures import two_nearest
from diffmem.models import TrainingState, compile_networks, draw_noise, loss
from diffmem.randomness import stream
from diffmem.runs import EVALUATIONS, generation, seconds_in_turn, training_step

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


def bench(device: torch.device, *, compiled: bool = False) -> list[Row]:
    """Measure all figures: rows of what, a value and its unit, and where that is one, its share of the peak.

    Each share is of a peak measured in turn with it. With `compiled`, also the figures of compiled networks.
    """
    rows = _neighbours(device)  # first, for the memory: a process only knows the most it ever had
    for name, (dataset, M, batch, at_once) in NETWORKS.items():
        rows += _network(name, cell_of(dataset, M, batch), at_once, device, compiled=compiled)
    return [*rows, {"what": "most memory of all of this", "value": _most_memory(device) / 2**30, "unit": "GiB"}]


def cell_of(dataset: str, M: dict[str, Any], batch: int) -> Cell:
    """Return a cell with a network of NETWORKS."""
    return Cell.resolve(
        DataDistribution(dataset=dataset, size=1000),
        ModelConfiguration(**M),
        TrainingProcedure(batch_size=batch),
        Scoring(),
    )


def _network(name: str, cell: Cell, at_once: int, device: torch.device, *, compiled: bool) -> list[Row]:
    state, step = training_step(cell, cell.T.batch_size, device)
    works = [_product(device), _bare_step(state, cell, device), step, generation(cell, state, at_once, device)]
    if compiled:
        other, other_step = training_step(cell, cell.T.batch_size, device)
        compile_networks(other, device)
        works += [other_step, generation(cell, other, at_once, device)]
    product, bare_step, *times = seconds_in_turn(works, device, at_least=SECONDS)
    peak = 2 * SIDE**3 / product
    rows = [_row("matrix product, float32", peak, peak), *_speeds(name, cell, at_once, times[:2], peak)]
    if compiled:
        rows += _speeds(f"compiled, {name}", cell, at_once, times[2:], peak)
    outside = max(0.0, 1 - bare_step / times[0])
    return [
        *rows,
        {"what": f"step outside forward, backward and optimizer, {name}", "value": outside, "unit": "of the step"},
    ]


def _speeds(name: str, cell: Cell, at_once: int, seconds: list[float], peak: float) -> list[Row]:
    """Return the speeds of training and generation, from the seconds of a step and of a measured generation."""
    forward, batch = cell.work.forward, cell.T.batch_size
    step, generated = seconds
    images = at_once * EVALUATIONS / 35 / generated  # as the sampler's 35 evaluations would take
    return [
        _row(f"training step, {name}, batch {batch}", PASSES * forward * batch / step, peak, batch / step),
        _row(f"generation, {name}, batch {at_once}", EVALUATIONS * forward * at_once / generated, peak, images),
    ]


def _product(device: torch.device) -> Callable[[], object]:
    """Return the product of two square matrices, whose speed is the peak."""
    matrix = torch.randn(SIDE, SIDE, device=device)
    return lambda: matrix @ matrix


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
        state.optimizer.step(cell.T.lr)

    return work


def noise_images(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return generated and training images of noise for the neighbour search."""
    generated = torch.randint(256, (GENERATED, 3, 32, 32), dtype=torch.uint8, device=device)
    return generated, torch.randint(256, (TRAINING_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)


def _neighbours(device: torch.device) -> list[Row]:
    generated, training = noise_images(device)
    before = _memory(device)
    two_nearest(generated, training)
    beyond = _most_memory(device) - before
    operations = 2 * GENERATED * TRAINING_IMAGES * 3 * 32 * 32
    a, b = generated.flatten(1).float(), training.flatten(1).float()

    def product() -> None:
        for rows in torch.split(a, 500):
            rows @ b.T

    works = [_product(device), lambda: two_nearest(generated, training), product]
    seconds, found, products = seconds_in_turn(works, device, at_least=SECONDS)
    peak = 2 * SIDE**3 / seconds
    what = f"two nearest of {TRAINING_IMAGES} for {GENERATED} images, 32x32 RGB"
    return [
        _row(what, operations / found, peak, GENERATED / found),
        {"what": "the same, over its matrix products alone", "value": found / products, "unit": "times"},
        {"what": "the same, memory above the images", "value": beyond / 2**30, "unit": "GiB"},
    ]


def _row(what: str, per_second: float, peak: float, images: float | None = None) -> Row:
    row = {"what": what, "value": per_second / 1e9, "unit": "GFLOP/s", "of peak": per_second / peak}
    return row if images is None else {**row, "images per second": images}


def _memory(device: torch.device) -> int:
    """Return the memory that is in use, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _most_memory(device: torch.device) -> int:
    """Return the most memory that has been in use so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
