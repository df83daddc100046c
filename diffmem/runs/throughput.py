"""How fast this device trains and generates with a cell's network, measured on the network itself."""

import time
from collections.abc import Callable, Sequence

import torch

from diffmem.cells import PASSES, Cell
from diffmem.models import (
    LaunchedDenoiser,
    TrainingState,
    build_denoiser,
    cpu_threads,
    generate,
    set_precision,
    train,
)
from diffmem.models import this_device as this_device
from diffmem.networks import UntrainedModel
from diffmem.runs.plan import Throughput

MOST_OPERATIONS = {"cpu": 2e11, "cuda": 5e13}
"""Operations of one measured step: larger batches are cut down to it, which they gain little beyond."""
SECONDS = 1.0
"""How long each speed is measured, at least."""
MOST_IMAGES = 10_000
"""Training images of a measured denoiser that is not trained: with more, it is as fast per operation."""
NOISE_LEVELS, EVALUATIONS = 3, 5
"""Noise levels of a measured generation, and how often it asks the network."""


def measure_cells(cells: Sequence[Cell]) -> dict[str, Throughput]:
    """Return the throughput of each cell by its name on this device, measured once for cells that cost the same."""
    device = this_device()
    by_cost: dict[tuple[bool, int, int, int], Throughput] = {}
    found = {}
    for cell in cells:
        key = (cell.M.trained, cell.work.forward, cell.T.batch_size, cell.score.batch_size)
        by_cost[key] = by_cost.get(key) or measure(cell, device)
        found[cell.cell_id] = by_cost[key]
    return found


def measure_untrained(cell: Cell, M: UntrainedModel, device: torch.device) -> Throughput:
    """Return the operations per second of a denoiser that is known from images, here from random ones."""
    side, size = cell.P.resolution or 0, min(cell.P.size, MOST_IMAGES)
    images = torch.randn(size, cell.channels, side, side, device=device)
    denoiser = M.from_images(images, None, count=0)
    noisy = torch.randn(cell.score.batch_size, cell.channels, side, side, device=device)
    (seconds,) = seconds_in_turn([lambda: denoiser(noisy, 1.0)], device, at_least=SECONDS)
    forward = M.work(resolution=side, channels=cell.channels, labels=0, size=size).forward
    return Throughput(forward * len(noisy) / seconds, forward * len(noisy) / seconds)


def measure(cell: Cell, device: torch.device) -> Throughput:
    """Train and generate a little with the network of a cell, and return the operations per second of each."""
    if isinstance(cell.M, UntrainedModel):
        return measure_untrained(cell, cell.M, device)
    forward = cell.work.forward
    set_precision(cell.T)
    batch = _at_once(cell.T.batch_size, PASSES * forward, device)
    state, step = training_step(cell, batch, device)
    with cpu_threads(cell):
        (trained,) = seconds_in_turn([step], device, at_least=SECONDS)
    images = _at_once(cell.score.batch_size, EVALUATIONS * forward, device)
    (generated,) = seconds_in_turn([generation(cell, state, images, device)], device, at_least=SECONDS)
    return Throughput(PASSES * forward * batch / trained, EVALUATIONS * forward * images / generated)


def _at_once(wanted: int, operations: int, device: torch.device) -> int:
    return max(1, min(wanted, int(MOST_OPERATIONS[device.type] / operations)))


def training_step(cell: Cell, batch: int, device: torch.device) -> tuple[TrainingState, Callable[[], object]]:
    """Return a training state of a cell's network, and what does its next step on noise images of `batch` at once."""
    side = cell.P.resolution or 0
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels, labels=cell.labels)
    state = TrainingState(denoiser.to(device), cell.T.model_copy(update={"batch_size": batch}))
    images = torch.randint(256, (1000, cell.channels, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(cell.labels, (len(images),), device=device) if cell.labels else None
    steps = train(state, images, labels)
    return state, lambda: next(steps)


def generation(cell: Cell, state: TrainingState, images: int, device: torch.device) -> Callable[[], object]:
    """Return what generates so many images, asking the network EVALUATIONS times."""
    side = cell.P.resolution or 0
    denoiser = LaunchedDenoiser(state.averaged)
    return lambda: generate(
        denoiser,
        range(images),
        shape=(cell.channels, side, side),
        labels=cell.labels,
        seed=0,
        steps=NOISE_LEVELS,
        device=device,
    )


def seconds_in_turn(works: Sequence[Callable[[], object]], device: torch.device, *, at_least: float) -> list[float]:
    """Return the median time of each work, after a first time that does not count.

    They are measured in turn, for `at_least` seconds each, so that what else the machine does meets all alike.
    """
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    started = time.perf_counter()
    while not times[0] or time.perf_counter() - started < at_least * len(works):
        for work, found in zip(works, times, strict=True):
            _wait(device)
            begun = time.perf_counter()
            work()
            _wait(device)
            found.append(time.perf_counter() - begun)
    return [sorted(found)[len(found) // 2] for found in times]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
