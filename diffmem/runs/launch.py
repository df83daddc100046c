"""Starting several processes on this machine, and joining those that a launcher has started."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffmem.data import cores
from diffmem.errors import RunError
from diffmem.models import Group
from diffmem.runs.orphan import LAUNCHER

LONGEST_WAIT = timedelta(hours=2)
"""How long a process waits for the slowest of its group: shares are equal, but machines may not be."""


def launched() -> bool:
    """Return whether a launcher (torchrun, accelerate launch, `start`) has started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def default_processes(cells: int) -> int:
    """Return one process per GPU, or one per CPU core but no more than there are cells to train."""
    return torch.cuda.device_count() or max(1, min(cores(), cells))


def start(count: int, arguments: Sequence[str]) -> int:
    """Run `diffmem ARGUMENTS` in `count` processes with torchrun's launcher; return the exit code.

    RunError where they are more than the GPUs here.
    """
    _check_gpus(count)
    logging.disable(logging.CRITICAL)  # the processes themselves say what went wrong
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ[LAUNCHER] = str(os.getpid())  # they end if this process does
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "diffmem", *arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()  # the launcher ends the others
        return 128 - first.exitcode if first.exitcode < 0 else first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def join() -> Group:
    """Join the processes that a launcher has started together, if any.

    RunError where Accelerate takes this process for the only one although there are several, or where they are more
    than the GPUs here.
    """
    cpu = not torch.cuda.is_available()  # MPS has no float64 for the sampler
    if launched():
        _check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        state = PartialState(cpu=cpu, timeout=LONGEST_WAIT) if launched() else PartialState(cpu=cpu)
    except (ValueError, RuntimeError) as error:
        raise RunError(f"the processes cannot find each other: {str(error).splitlines()[0]}; {HOW}") from error
    if state.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RunError(f"started as one of {os.environ['WORLD_SIZE']} processes, but Accelerate sees no other; {HOW}")
    return Group(state.process_index, state.num_processes, state.device)


def _check_gpus(processes: int) -> None:
    """Raise RunError where several processes would share a GPU, over which they cannot talk to each other."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        here = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise RunError(
            f"{processes} processes, but {here} here, and each needs one of its own; start at most {gpus} "
            f"(--processes {gpus}), or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )


def leave() -> None:
    """Leave the group: from here on, no process waits for another."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


HOW = "start them with `diffmem run --processes N`, or with `torchrun --nproc-per-node N -m diffmem run STUDY`"
