"""What a run will take on this machine, in time and in memory, from a short measurement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diffmem.cells import PASSES, Cell, cell_cost
from diffmem.data import cores
from diffmem.models import Denoiser, build_denoiser, cpu_threads, set_precision, this_device
from diffmem.networks import UntrainedModel
from diffmem.runs.control_groups import left_in_group
from diffmem.runs.plan import plan_search
from diffmem.runs.runner import work_together
from diffmem.runs.throughput import MOST_OPERATIONS, measure_untrained, seconds_in_turn, training_step
from diffmem.runs.waiting import Options, left_out, side_by_side, waiting_cells
from diffmem.store import Store
from diffmem.study import Study, StudyCell

WORTH_MEASURING = 3e11
"""Operations below which a run takes less than a minute anywhere, so that a measurement would be a part of it."""
AT_ONCE = {"cpu": 4e9, "cuda": MOST_OPERATIONS["cuda"]}
"""Operations of a measured step at most. Batches five times as large would be up to a third faster on a core, and take
five times as long to measure; a GPU gains much more from them."""
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

    cells: int  # of a search, at most
    operations: int  # floating-point
    seconds: float
    bytes: int  # memory of all processes together, or of each GPU
    free: int  # memory of this machine, or of the fullest GPU, that is free now
    on_gpus: bool = False


def forecast(study: Study, store: Store, options: Options, *, processes: int) -> Forecast | None:
    """Return what a run of so many processes will take, None if that is too little to be worth a measurement.

    It measures the network of the costliest cell, and takes all others to be as fast per operation.
    """
    waiting = waiting_cells(study, store, options)
    if study.estimation.search == "bisect":
        left, options = _left_of_search(study, store, waiting, options), replace(options, split="cells")
    else:
        left = _left(store, waiting)
    if left.operations < WORTH_MEASURING:
        return None
    if not torch.cuda.is_available():
        return _measured(left, waiting, processes, options)
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:  # a process that has used a GPU keeps memory there for as long as it lives
        found: Forecast = pool.submit(_measured, left, waiting, processes, options).result()
        return found


@dataclass(frozen=True)
class _Left:
    """The work that is left of a study."""

    cells: int
    operations: int
    longest: int  # operations of its costliest cell
    at_once: int  # cells that can be trained side by side
    hungry: list[Cell]  # cells of which one needs the most memory


def _left(store: Store, waiting: Sequence[StudyCell]) -> _Left:
    measured = store.checkpoint_counts() if store.exists() else {}
    costs = [cell_cost(each.cell, measured=measured.get(each.cell.cell_id, 0)).operations for each in waiting]
    return _Left(len(costs), sum(costs), max(costs, default=0), len(costs), [each.cell for each in waiting])


def _left_of_search(study: Study, store: Store, waiting: Sequence[StudyCell], options: Options) -> _Left:
    """Return what is left of a search whose next cells are `waiting`."""
    next_ones = _left(store, waiting)
    if not waiting:
        return next_ones
    plan = plan_search(study, store, failed=left_out(store, options))
    curves = {entry.curve for entry in waiting}
    largest = [entry.cell for entry in study.at(study.search_range[1]) if entry.curve in curves]
    return _Left(plan.cells, plan.expected, next_ones.longest, side_by_side(study, waiting), next_ones.hungry + largest)


def _measured(left: _Left, waiting: Sequence[StudyCell], processes: int, options: Options) -> Forecast:
    """Measure a training step, and return what is left in seconds and bytes."""
    device = this_device()
    together = processes > 1 and work_together(options, waiting, processes)
    cells = [each.cell for each in waiting]
    costliest = max(cells, key=lambda cell: cell_cost(cell).operations)
    share = processes if together else 1  # of a batch
    needed, free = max(_bytes(cell, device, share) for cell in _hungriest(left.hungry)), _free(device)
    speed = _speed(costliest, device, processes=processes, share=share, free=free)
    apart = left.operations / min(processes, left.at_once)
    operations = left.operations / processes if together else max(left.longest, apart)
    on_gpus = device.type == "cuda"
    all_bytes = needed if on_gpus else needed * processes
    return Forecast(left.cells, left.operations, operations / speed, round(all_bytes), free, on_gpus)


def _speed(cell: Cell, device: torch.device, *, processes: int, share: int, free: int) -> float:
    """Return the operations per second of a process that has its share of the cores and of a batch, in training.

    Generation is as fast per operation within a factor of two, and by far the smaller part of most studies.
    """
    if isinstance(cell.M, UntrainedModel):
        return measure_untrained(cell, cell.M, device).generation
    operations = PASSES * cell.work.forward
    fits = free / 2 / (BACKWARD * bytes_for_backward(cell))
    batch = max(1, int(min(cell.T.batch_size / share, AT_ONCE[device.type] / operations, fits)))
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // processes))
    set_precision(cell.T)
    try:
        _, step = training_step(cell, batch, device)
        with cpu_threads(cell):
            (seconds,) = seconds_in_turn([step], device, at_least=SECONDS)
    finally:
        torch.set_num_threads(before)
    return operations * batch / seconds


def _hungriest(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the most operations a step and with the most weights, which need the most memory."""
    trained = [cell for cell in cells if cell.M.trained] or list(cells)
    by_step = max(trained, key=lambda cell: cell.work.forward * cell.T.batch_size)
    by_weights = max(trained, key=lambda cell: cell.work.parameters)
    return [by_step] if by_step == by_weights else [by_step, by_weights]


def _bytes(cell: Cell, device: torch.device, share: int = 1) -> float:
    """Return about how much memory a process needs that trains a cell on its share of each batch, on the GPU if that
    is the device."""
    images = cell.channels * (cell.P.resolution or 0) ** 2 * cell.P.size
    of_process = 0 if device.type == "cuda" else OF_A_PROCESS
    if not cell.M.trained:
        return 4 * images + of_process
    kept = BACKWARD * math.ceil(cell.T.batch_size / share) * bytes_for_backward(cell)
    return 4 * COPIES * cell.work.parameters + kept + images + of_process


def bytes_for_backward(cell: Cell) -> int:
    """Return what one image of a batch makes the network of a cell keep for the backward pass."""
    side = cell.P.resolution or 0
    denoiser = build_denoiser(cell.M, resolution=side, channels=cell.channels, labels=cell.labels).train().to("meta")
    one, two = (_kept(denoiser, torch.zeros(n, cell.channels, side, side, device="meta"), cell.labels) for n in (1, 2))
    return two - one


def _kept(denoiser: Denoiser, noisy: Tensor, labels: int) -> int:
    """Return the bytes of all tensors that a forward pass keeps; nothing is computed for it."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph alive that keeps it

    masks = denoiser.network.draw_dropout(torch.Generator(), total=len(noisy))
    denoiser.network.use_dropout([mask.to("meta") for mask in masks])
    sigma = torch.ones(len(noisy), device="meta")
    classes = torch.zeros(len(noisy), dtype=torch.int64, device="meta") if labels else None
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = denoiser(noisy, sigma, classes)
    del result  # until here, nothing of what is kept may be used anew
    return sum(storages.values())


def _free(device: torch.device) -> int:
    """Return the free bytes of the GPU with the least, or of what this process may use of the machine."""
    if device.type == "cuda":
        return min(int(torch.cuda.mem_get_info(number)[0]) for number in range(torch.cuda.device_count()))
    return min(filter(None, [int(psutil.virtual_memory().available), left_in_group()]))
