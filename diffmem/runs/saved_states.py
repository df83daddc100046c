"""Training states as files: whole at every moment, and of no use where damaged or another cell's."""

import glob
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import torch

from diffmem.cells import RESULTS_VERSION, Cell
from diffmem.errors import MachineError, RunError
from diffmem.models import TrainingState, ran_out_of_memory

LOCK_SECONDS = 0.2
"""Seconds to try for the lock of a cell: if its file is deleted meanwhile, the first try fails though it is free."""
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile)
"""What reading a damaged training state may raise, beside the usual."""


def save_state(path: Path, cell: Cell, state: TrainingState) -> None:
    """Write a training state so that at every moment either the old or the new one is whole."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # should the lock be deleted, two processes may be saving
    content = {"cell_id": cell.cell_id, "results_version": RESULTS_VERSION, **state.state_dict()}
    try:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):  # another process has finished the cell and removed this
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        raise MachineError(
            f"{path}: the training state cannot be saved ({str(error).splitlines()[0]}); free some space or check "
            "the folder's permissions, then run the same command again"
        ) from error


def remove_state(path: Path) -> None:
    """Remove the state and the lock of a finished cell, and what killed processes have left of unfinished ones.

    Who waits for the lock will find the cell finished.
    """
    path.unlink(missing_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.stem)}.*tmp"):
        left.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)


def load_state(path: Path, cell: Cell, device: torch.device) -> dict[str, Any]:
    """Return a saved training state; RunError if the file is damaged or of another cell, MachineError if it cannot be
    read, as it may be whole."""
    place = "cpu" if device.type == "cpu" else device  # torch.load does not know the `cpu:0` of several processes
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not look at the checksums
        state = None if damaged else torch.load(path, map_location=place, weights_only=True)
    except PermissionError as error:
        raise MachineError(f"{path}: the training state cannot be read; check its permissions") from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, *UNREADABLE) as error:
        if isinstance(error, OSError | RuntimeError) and ran_out_of_memory(error):
            raise
        raise RunError(f"{path}: damaged") from error
    if not isinstance(state, dict):
        raise RunError(f"{path}: damaged")
    # under the name of today, the state of an older version is of a cell whose numbers are unchanged
    names = {version: cell.name_by(version) for version in range(1, RESULTS_VERSION + 1)}
    if state.get("cell_id") != names.get(state.get("results_version", 0)):
        raise RunError(f"{path}: written by another diffmem, or of another cell")
    return dict(state)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock of a cell; False if another process has it. The system frees it when a process dies."""
    try:
        path.parent.mkdir(exist_ok=True)  # where the store's own folder is gone, nothing may begin
        lock = filelock.FileLock(path, timeout=LOCK_SECONDS)
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise MachineError(f"{path.parent}: cannot keep training states there: {error.strerror or error}") from error
    try:
        yield True
    finally:
        lock.release()
