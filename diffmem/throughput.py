"""How fast this device trains and generates a cell's network, measured on the network itself."""

import time
from collections.abc import Callable, Sequence

import torch

from diffmem.config import Cell
from diffmem.cost import PASSES, forward_operations
from diffmem.denoiser import OptimalDenoiser, build_denoiser
from diffmem.plan import Throughput
from diffmem.sampling import generate
from diffmem.training import TrainingState, cpu_threads, set_precision, train

MOST_OPERATIONS = 2e11
"""Operations of one measured step: larger batches are cut down to it, which they gain little beyond."""
SECONDS = 1.0
"""How long each speed is measured, at least."""
NOISE_LEVELS = 3


def measure_cells(cells: Sequence[Cell]) -> dict[str, Throughput]:
    """Return the throughput of each cell by its name on this device, measured once for cells that cost the same."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    by_cost: dict[tuple[int, int, int], Throughput] = {}
    found = {}
    for cell in cells:
        if cell.M.network == "optimum":
            found[cell.cell_id] = measure_products(cell, device)
            continue
        key = (forward_operations(cell), cell.T.batch_size, cell.score.batch_size)
        by_cost[key] = by_cost.get(key) or measure(cell, device)
        found[cell.cell_id] = by_cost[key]
    return found


def measure_products(cell: Cell, device: torch.device) -> Throughput:
    """Return the operations per second of the two matrix products that the optimum of a cell consists of."""
    side = cell.P.resolution or 0
    images = torch.randn(min(cell.P.size, 10_000), cell.channels, side, side, device=device)
    optimum = OptimalDenoiser(images)
    noisy = torch.randn(cell.score.batch_size, cell.channels, side, side, device=device)
    speed = _per_second(lambda: optimum(noisy, 1.0), device) * 4 * len(noisy) * images.numel()
    return Throughput(speed, speed)


def measure(cell: Cell, device: torch.device) -> Throughput:
    """Train and generate a little with the network of a cell, and return the operations per second of each."""
    forward = forward_operations(cell)
    side = cell.P.resolution or 0
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels, labels=cell.labels).to(device)
    set_precision(cell.T)
    batch = max(1, min(cell.T.batch_size, int(MOST_OPERATIONS / (PASSES * forward))))
    state = TrainingState(denoiser, cell.T.model_copy(update={"batch_size": batch}))
    images = torch.randint(256, (batch, cell.channels, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(cell.labels, (batch,), device=device) if cell.labels else None
    steps = train(state, images, labels)
    with cpu_threads(cell):
        trained = _per_second(lambda: next(steps), device) * batch * PASSES * forward

    evaluations = 2 * NOISE_LEVELS - 1
    images_at_once = max(1, min(cell.score.batch_size, int(MOST_OPERATIONS / (evaluations * forward))))

    def generation() -> None:
        shape = (cell.channels, side, side)
        wanted = range(images_at_once)
        generate(state.averaged, wanted, shape=shape, labels=cell.labels, seed=0, steps=NOISE_LEVELS, device=device)

    return Throughput(trained, _per_second(generation, device) * images_at_once * evaluations * forward)


def _per_second(work: Callable[[], object], device: torch.device) -> float:
    """Return how often a second `work` is done, after a first time that does not count."""
    work()
    _wait(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS or count == 0:
        work()
        _wait(device)
        count += 1
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
