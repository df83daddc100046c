"""torch.compile: which cells it pays for, and their networks compiled."""

import warnings
from functools import cache
from typing import Any, Literal

import torch

from diffmem.cells import Cell, cell_cost
from diffmem.errors import RunError
from diffmem.models.training import TrainingState

Compile = Literal["auto", "on", "off"]

COMPILE_SECONDS = 180.0
"""What compiling a network's training and generation takes where nothing is cached."""
SAVED = {"cpu": 0.1, "cuda": 0.4}
"""Share of the time that compiling saves, about as `python -m benchmarks --compile` measures it."""
THREAD = 3e10
H100 = {"fp32": 3e13, "tf32": 1e14, "bf16": 1.3e14}
"""Operations of a cell's work that a CPU thread, or a GPU by T.precision, does in a second; rough, since they only tell
minutes from hours."""


def is_compiled(cell: Cell, device: torch.device, choice: Compile) -> bool:
    """Return whether a cell's network is to be compiled; RunError where it must be and cannot.

    `auto` compiles where all of the cell's work pays for it. What a killed run has done already does not count, so
    that a resumed run rounds as an uninterrupted one.
    """
    if choice == "off" or not cell.M.compiles:
        return False
    if choice == "auto" and not pays(cell, device):
        return False
    reason = _why_not(device.type)
    if reason and choice == "on":
        raise RunError(f"networks cannot be compiled here ({reason}); leave out --compile, or install what is missing")
    return not reason


def pays(cell: Cell, device: torch.device) -> bool:
    """Return whether compiling saves more time than it takes."""
    speed = THREAD * torch.get_num_threads() if device.type == "cpu" else H100[cell.T.precision]
    return SAVED[device.type] * cell_cost(cell).operations / speed > COMPILE_SECONDS


LONGEST_REASON = 500
"""Characters of an error of torch, whose first line says no more than where it was raised."""


@cache
def _why_not(device_type: str) -> str:
    """Return what keeps torch.compile from working on a kind of device, empty where it works; tried once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own deprecated functions
            torch.compile(torch.neg)(torch.ones(2, device=device_type))
    except Exception as error:  # noqa: BLE001 - a missing compiler is told by errors of many kinds
        return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
    return ""


def compile_networks(state: TrainingState, device: torch.device) -> None:
    """Compile both networks of a training state: numbers stay the same up to float rounding.

    Training has one shape of batch, generation a few.
    """
    torch.compiler.reset()  # what the cells before have left; the cache on disk stays
    # on a CPU, converting to channels-last costs more than its convolutions gain; on a GPU it gains also in networks
    # with convolutions that narrow, as a decoder's, which torch takes as a reason against it. Kernel by kernel it gains
    # nothing there: group norms bring their inputs back.
    gains = device.type != "cpu"
    options: dict[str, Any] = {"layout_optimization": gains, "force_layout_optimization": gains}
    for denoiser in (state.denoiser, state.averaged) if gains else ():
        denoiser.network.layout = torch.channels_last
    state.denoiser.network.compile(dynamic=False, options=options)
    state.averaged.network.compile(options=options)
