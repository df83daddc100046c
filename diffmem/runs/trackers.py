"""Experiment trackers: the loss and the ratio of each checkpoint, as a run goes, to what Accelerate knows."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from diffmem.cells import Cell, dotted
from diffmem.errors import DiffmemError, RunError
from diffmem.runs.events import CellEnded, CellLost, CellStarted, Event, Measured

Open = Callable[[CellStarted], Sequence[GeneralTracker]]
"""Makes the trackers of a cell that begins."""

RUN_NAME = {"mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name", "wandb": "name"}
"""How trackers that keep the runs of a project together are told the name of one; the others know runs alone."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise DiffmemError unless Accelerate knows the trackers of these names, and their packages are installed."""
    own = {str(kind) for kind in LoggerType}  # others have been registered by who needs them
    installed = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise DiffmemError(f"--log-with {name}: no such tracker; Accelerate knows {known}")
        if name in own - installed:
            package = name.replace("_", "-")
            raise DiffmemError(
                f"--log-with {name}: the package {package} is not installed; `pip install {package}`, or leave out "
                f"--log-with {name}, as the store has all that would be logged"
            )


def trackers_of(names: Sequence[str], *, study: str, folder: Path) -> Open:
    """Return what makes the trackers of these names for a cell of a study; what they write goes to `folder`."""

    def opened(started: CellStarted) -> list[GeneralTracker]:
        run = f"{started.entry.name} ({started.entry.cell.cell_id})".replace("/", "_")
        made = []
        for name in dict.fromkeys(names):
            with _named(name):
                made.append(_tracker(name, study, run, folder))
        return made

    return opened


def _tracker(name: str, study: str, run: str, folder: Path) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name in RUN_NAME:
        return kind(study, **{RUN_NAME[name]: run})
    if kind.requires_logging_directory:
        return kind(run, str(folder / study))
    return kind(f"{study}: {run}")


def log_events(events: Iterator[Event], opened: Open) -> Iterator[Event]:
    """Yield the events of a run, and log the loss and the ratio of each checkpoint at its epoch, or step.

    Each cell has trackers of its own. The process that an event comes to logs it, and waits for no other. RunError
    where a tracker fails: what is measured is in the store all the same.
    """
    trackers: dict[str, Sequence[GeneralTracker]] = {}
    try:
        for event in events:
            match event:
                case CellStarted(entry=entry):
                    trackers[entry.cell.cell_id] = opened(event)
                    for tracker in trackers[entry.cell.cell_id]:
                        with _named(tracker.name):
                            _start(tracker, entry.cell)
                case Measured(cell=cell, epoch=epoch, ratio=ratio, loss=loss):
                    values = {"memorization_ratio": ratio} | ({} if loss is None else {"loss": loss})
                    for tracker in trackers[cell.cell_id]:
                        with _named(tracker.name):
                            tracker.log(values, step=epoch)
                case CellEnded(entry=entry) | CellLost(entry=entry):
                    _finish(trackers.pop(entry.cell.cell_id, ()))
            yield event
    finally:
        for left in trackers.values():
            _finish(left)


def _finish(trackers: Sequence[GeneralTracker]) -> None:
    for tracker in trackers:
        with _named(tracker.name):
            tracker.finish()


def _start(tracker: GeneralTracker, cell: Cell) -> None:
    # Accelerate would have only the first process of a run log, but each has cells of its own
    tracker.main_process_only = False
    tracker.start()
    tracker.store_init_configuration(_settings(cell))


def _settings(cell: Cell) -> dict[str, Any]:
    """Return the settings of a cell as trackers take them: texts and numbers by dotted names."""
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in dotted(cell.configuration).items()
        if value is not None
    }


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn whatever a tracker fails with, which nobody knows, into a RunError with the name of it."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"the tracker {name} has failed: {reason}; put it right or leave out --log-with {name}, "
            "then run the same command again"
        ) from error
