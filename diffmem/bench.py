"""How fast this device does what diffmem spends its time on, beside the matrix-product peak of the same run."""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from diffmem.config import Cell, DataDistribution, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.cost import PASSES, forward_operations
from diffmem.denoiser import build_denoiser, draw_noise, loss
from diffmem.memorization import two_nearest
from diffmem.sampling import generate
from diffmem.streams import stream
from diffmem.training import TrainingState, train

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


def this_device() -> tuple[torch.device, str]:
    """Return the device that would train here, and what it is."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.cuda.get_device_name()
    return torch.device("cpu"), f"CPU, {torch.get_num_threads()} threads"


def bench(device: torch.device) -> list[Row]:
    """Measure all figures: rows of what, a value and its unit, and where that is one, its share of the peak."""
    side = torch.randn(SIDE, SIDE, device=device)
    peak = 2 * SIDE**3 / _seconds(lambda: side @ side, device)
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
    side = cell.P.resolution or 0
    shape = (cell.channels, side, side)
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels).to(device)
    state = TrainingState(denoiser, cell.T)
    images = torch.randint(256, (cell.P.size, *shape), dtype=torch.uint8, device=device)
    steps = train(state, images)
    bare = _bare_step(state, shape, device)
    step, bare_step = _seconds_in_turn([lambda: next(steps), bare], device)
    state.averaged.eval()
    generation = _seconds(
        lambda: generate(state.averaged, range(at_once), shape=shape, labels=0, seed=0, steps=2, device=device), device
    )
    return [
        _row(f"training step, {name}, batch {batch}", PASSES * forward * batch / step, peak, batch / step),
        {
            "what": f"step outside forward, backward and optimizer, {name}",
            "value": max(0.0, 1 - bare_step / step),
            "unit": "of the step",
        },
        _row(
            f"generation, {name}, batch {at_once}",
            3 * forward * at_once / generation,
            peak,
            at_once * 3 / 35 / generation,
        ),
    ]


def _bare_step(state: TrainingState, shape: tuple[int, int, int], device: torch.device) -> Callable[[], None]:
    """Return forward, backward and optimizer step on one batch that is there already."""
    clean = torch.rand(state.T.batch_size, *shape, device=device) * 2 - 1
    generator = stream("training", 0, 0, device)
    sigma, noise = draw_noise(state.denoiser, clean.shape, generator)

    def work() -> None:
        state.denoiser.train()
        state.denoiser.network.seed_dropout(generator)
        state.gradients.zero_()
        loss(state.denoiser, clean, sigma=sigma, noise=noise).mean().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()

    return work


def _neighbours(peak: float, device: torch.device) -> list[Row]:
    generated = torch.randint(256, (GENERATED, 3, 32, 32), dtype=torch.uint8, device=device)
    training = torch.randint(256, (TRAINING_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
    operations = 2 * GENERATED * TRAINING_IMAGES * 3 * 32 * 32
    a, b = generated.flatten(1).float(), training.flatten(1).float()

    def product() -> None:
        for rows in torch.split(a, 500):
            rows @ b.T

    found, products = _seconds_in_turn([lambda: two_nearest(generated, training), product], device)
    return [
        _row(
            f"two nearest of {TRAINING_IMAGES} for {GENERATED} images, 32x32 RGB",
            operations / found,
            peak,
            GENERATED / found,
        ),
        {"what": "the same, over its matrix products alone", "value": found / products, "unit": "times"},
    ]


def compare(device: torch.device) -> list[Row]:
    """Measure what one would otherwise take, as times of diffmem's own time; faiss where it is installed."""
    generated = torch.randint(256, (GENERATED, 3, 32, 32), dtype=torch.uint8, device=device)
    training = torch.randint(256, (TRAINING_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
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
    own, *times = _seconds_in_turn([lambda: two_nearest(generated, training), *others.values()], device)
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


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    return _seconds_in_turn([work], device)[0]


def _seconds_in_turn(works: list[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median time of each, measured in turn, so that what else the machine does meets all alike."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS * len(works) or len(times[0]) < 3:
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
