"""What a run will take on this machine, in time and in memory, from about a second of measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diffmem.cells import PASSES, Cell, cell_cost
from diffmem.models import Denoiser, build_denoiser, cpu_threads, set_precision, this_device
from diffmem.networks import UntrainedModel
from diffmem.runs.launch import cpu_cores
from diffmem.runs.plan import plan_search
from diffmem.runs.throughput import measure_untrained, seconds_in_turn, training_step
from diffmem.store import Store
from diffmem.study import Study

WORTH_MEASURING = 3e11
"""Operations below which a run takes less than a minute anywhere, so that a measurement would be a part of it."""
AT_ONCE = 2e10
"""Operations of a measured step at most, about a second's on one core: larger batches gain little."""
SECONDS = 0.5
"""How long the steps are measured, at least."""
COPIES = 5
"""Numbers kept for each weight: itself, its gradient, Adam's two moments, and the average."""
OF_A_PROCESS = 7e8
"""Bytes of a process that has torch loaded, before it trains anything."""
BACKWARD = 1.15
"""What the backward pass needs at its peak, beside what the forward pass has kept for it, as a factor: measured."""


@dataclass(frozen=True)
class Forecast:
    """What is left to do of a study, and about what it takes here."""

    cells: int
    operations: int  # floating-point
    seconds: float
    bytes: int  # memory of all processes, of the costliest cells
    free: int  # memory that is free now


def forecast(study: Study, store: Store, *, processes: int) -> Forecast | None:
    """Return what a run of so many processes will take, None where that is too little to be worth a measurement.

    One network is measured, that of the costliest cell, and speaks for all.
    """
    measured = store.checkpoint_counts() if store.exists() else {}
    to_go = [
        (entry.cell, cell_cost(entry.cell, measured=had))
        for entry in study.distinct
        if (had := measured.get(entry.cell.cell_id, 0)) < entry.cell.checkpoint_count
    ]
    total = sum(cost.operations for _, cost in to_go)
    if study.estimation.search == "bisect" and to_go:
        total = max(total, plan_search(study).expected)
    if total < WORTH_MEASURING:
        return None
    costliest, cost = max(to_go, key=lambda each: each[1].operations)
    device = this_device()
    speed = _speed(costliest, device, processes=processes)
    return Forecast(
        len(to_go),
        total,
        max(cost.operations, total / processes) / speed,
        round(processes * max(_bytes(cell, device) for cell in _hungriest([cell for cell, _ in to_go]))),
        _free(device),
    )


def _speed(cell: Cell, device: torch.device, *, processes: int) -> float:
    """Return the operations per second of a process that has its share of the cores, in training.

    Generation is as fast per operation within a factor of two, and by far the smaller part of most studies.
    """
    if isinstance(cell.M, UntrainedModel):
        return measure_untrained(cell, cell.M, device).generation
    operations = PASSES * cell.work.forward
    batch = max(1, min(cell.T.batch_size, int(AT_ONCE / operations)))
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cpu_cores() // processes))
    set_precision(cell.T)
    try:
        _, step = training_step(cell, batch, device)
        with cpu_threads(cell):
            (seconds,) = seconds_in_turn([step], device, at_least=SECONDS)
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return operations * batch / seconds


def _hungriest(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the most operations a step and with the most weights, which need the most memory."""
    trained = [cell for cell in cells if cell.M.trained] or list(cells)
    by_step = max(trained, key=lambda cell: cell.work.forward * cell.T.batch_size)
    by_weights = max(trained, key=lambda cell: cell.work.parameters)
    return [by_step] if by_step == by_weights else [by_step, by_weights]


def _bytes(cell: Cell, device: torch.device) -> float:
    """Return about how much memory the training of a cell takes; on a GPU, that of the GPU."""
    images = cell.channels * (cell.P.resolution or 0) ** 2 * cell.P.size
    of_process = 0 if device.type == "cuda" else OF_A_PROCESS
    if not cell.M.trained:
        return 4 * images + of_process
    kept = BACKWARD * cell.T.batch_size * bytes_for_backward(cell)
    return 4 * COPIES * cell.work.parameters + kept + images + of_process


def bytes_for_backward(cell: Cell) -> int:
    """Return what one image of a batch makes the network of a cell keep for the backward pass."""
    side = cell.P.resolution or 0
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels, labels=cell.labels).train()
    one, two = (_kept(denoiser, torch.zeros(n, cell.channels, side, side), labels=cell.labels) for n in (1, 2))
    return two - one


def _kept(denoiser: Denoiser, noisy: Tensor, *, labels: int) -> int:
    """Return the bytes of all tensors that a forward pass keeps."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph alive that keeps it

    denoiser.network.draw_dropout(torch.Generator(), total=len(noisy))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = denoiser(noisy, torch.ones(len(noisy)), torch.zeros(len(noisy), dtype=torch.int64) if labels else None)
    del result  # until here, nothing of what is kept may be used anew
    return sum(storages.values())


def _free(device: torch.device) -> int:
    """Return the free bytes of the GPU, or of the machine."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else int(psutil.virtual_memory().available)
