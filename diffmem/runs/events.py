"""What a run does, as events: whoever consumes them prints, draws progress bars or logs."""

from dataclasses import dataclass
from enum import StrEnum

from diffmem.cells import Cell
from diffmem.study import StudyCell


class Ended(StrEnum):
    """How a run is done with a cell."""

    FINISHED = "finished"
    CROSSED = "crossed"  # its ratio has reached the line that a search asks for
    ALREADY = "already finished"
    BUSY = "busy elsewhere"  # another process works on it
    FAILED = "failed"
    FAILED_ELSEWHERE = "failed elsewhere"
    FAILED_BEFORE = "failed before"
    UNFINISHED = "unfinished"  # it needs more memory


@dataclass(frozen=True)
class Noted:
    """Something was done to training images when they were read, some are alike, or trainings are too short."""

    note: str
    cells: int  # cells that it is about
    of: int


@dataclass(frozen=True)
class Connected:
    """A run has found its cluster, of so many nodes and their CPUs and GPUs; `at_once` cells find room on it now."""

    nodes: int
    cpus: int
    gpus: int
    at_once: int


@dataclass(frozen=True)
class CellStarted:
    """Work on a cell begins, at optimizer step `step` of `steps`."""

    entry: StudyCell
    step: int
    steps: int
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """Training has come to optimizer step `step`."""

    cell: Cell
    step: int
    loss: float


@dataclass(frozen=True)
class Saved:
    """The training state at optimizer step `step` is on disk, so that a run killed now goes on from there."""

    cell: Cell
    step: int


@dataclass(frozen=True)
class Generated:
    """`count` of the images of a checkpoint are generated and scored."""

    cell: Cell
    epoch: int
    count: int


@dataclass(frozen=True)
class Measured:
    """A checkpoint is in the store."""

    cell: Cell
    epoch: int
    ratio: float
    loss: float | None


@dataclass(frozen=True)
class CellLost:
    """The machine or process that worked on a cell is gone; another one goes on from the last saved state."""

    entry: StudyCell
    reason: str


@dataclass(frozen=True)
class CellEnded:
    """A run is done with a cell."""

    entry: StudyCell
    outcome: Ended
    error: str = ""


Event = Noted | Connected | CellStarted | Trained | Saved | Generated | Measured | CellLost | CellEnded
