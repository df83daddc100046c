"""How attempts and cells can stand, and what studies there are."""

from enum import StrEnum


class Outcome(StrEnum):
    """How an attempt stands or has ended."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    LOST = "lost"
    CROSSED = "crossed"


class State(StrEnum):
    """How a cell stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    LOST = "lost"
    CROSSED = "crossed"  # a search stopped it early
    ENDED = "ended"  # a monitor that is closed


class Kind(StrEnum):
    """What a study measures."""

    TRAINED = "trained"  # networks that diffmem trains
    IMAGES = "images"  # images of other tools
    MONITOR = "monitor"  # somebody's own training, while it goes on

    @property
    def clock(self) -> str:
        """Return what the epochs of its checkpoints count."""
        return "step" if self is Kind.MONITOR else "epoch"
