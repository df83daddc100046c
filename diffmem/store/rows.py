"""What goes into a store: checkpoints, what is known of a cell, and where an attempt runs."""

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from diffmem.measures import Evidence
from diffmem.store.database import Row as Row


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Evidence):
    """One measured point of a cell's training: the evidence, and where it was taken."""

    cell_id: str
    epoch: int
    step: int
    loss: float | None  # mean training loss per image since the last checkpoint; None where nothing is trained
    train_seconds: float
    score_seconds: float
    attempt_id: str

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        *,
        cell_id: str,
        attempt_id: str,
        epoch: int,
        step: int,
        loss: float | None,
        train_seconds: float,
        score_seconds: float,
    ) -> "Checkpoint":
        """Return the checkpoint at which some evidence was taken."""
        return cls(
            nearest=evidence.nearest,
            d1=evidence.d1,
            d2=evidence.d2,
            memorized=evidence.memorized,
            pairs=evidence.pairs,
            copied=evidence.copied,
            cell_id=cell_id,
            attempt_id=attempt_id,
            epoch=epoch,
            step=step,
            loss=loss,
            train_seconds=train_seconds,
            score_seconds=score_seconds,
        )


class Registered(Protocol):
    """What the store keeps of a cell."""

    @property
    def cell_id(self) -> str:
        """Return its name."""
        ...

    @property
    def configuration(self) -> dict[str, Any]:
        """Return what its numbers depend on."""
        ...

    @property
    def checkpoint_count(self) -> int:
        """Return how many checkpoints a finished one has; 0 if that is not known in advance."""
        ...


@dataclass(frozen=True)
class Provenance:
    """Where and with what an attempt runs."""

    host: str
    pid: int
    device: str
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None


def new_attempt_id() -> str:
    """Return an id that no other attempt has."""
    return uuid.uuid4().hex
