"""What goes into a store: checkpoints, what is known of a cell and of a study, and where an attempt runs."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diffmem.measures import Evidence, LevelValue, QualityValue


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
    levels: Mapping[str, Sequence[LevelValue]] = field(default_factory=dict)  # by measures of a denoiser, by name
    quality: Sequence[QualityValue] = ()  # of its generated images

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
        levels: Mapping[str, Sequence[LevelValue]] = MappingProxyType({}),
        quality: Sequence[QualityValue] = (),
    ) -> "Checkpoint":
        """Return the checkpoint at which some evidence was taken."""
        return cls(
            nearest=evidence.nearest,
            d1=evidence.d1,
            d2=evidence.d2,
            memorized=evidence.memorized,
            pairs=evidence.pairs,
            copied=evidence.copied,
            others=evidence.others,
            cell_id=cell_id,
            attempt_id=attempt_id,
            epoch=epoch,
            step=step,
            loss=loss,
            train_seconds=train_seconds,
            score_seconds=score_seconds,
            levels=levels,
            quality=quality,
        )


@dataclass(frozen=True)
class TrainingImages:
    """What images of a training set are like."""

    positions: npt.NDArray[np.int64]  # [n], in the training set
    names: Sequence[str]  # of each image: its file, or its dataset and its position there
    alike: npt.NDArray[np.int64]  # [n], images of its group, with it
    local_distance: npt.NDArray[np.float64]  # [n], mean l2 distance to its 5 nearest others; NaN if not measured


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


class Listed(Protocol):
    """A cell at its place in a study."""

    @property
    def cell(self) -> Registered:
        """Return the cell itself, which may be at several places."""
        ...

    @property
    def curve(self) -> str:
        """Return the axis values that tell one EMM curve from another."""
        ...

    @property
    def name(self) -> str:
        """Return all axis values."""
        ...

    @property
    def axis_values(self) -> Mapping[str, Any]:
        """Return the value of each key of an axis."""
        ...


class Registrable(Protocol):
    """What the store keeps of a study beside its cells."""

    @property
    def name(self) -> str:
        """Return the name that tells it from others."""
        ...

    @property
    def title(self) -> str:
        """Return what it is about."""
        ...

    @property
    def figure(self) -> str:
        """Return which figure of the paper it repeats; empty: none."""
        ...

    @property
    def path(self) -> str:
        """Return where it is from."""
        ...

    @property
    def axes(self) -> Sequence[Sequence[str]]:
        """Return the keys of each axis."""
        ...

    @property
    def estimated(self) -> Mapping[str, Any]:
        """Return how its EMM is read off, as plain data."""
        ...

    @property
    def overrides(self) -> Sequence[str]:
        """Return what --set has changed of its file."""
        ...


@dataclass(frozen=True)
class ListedCell:
    """A cell of images of other tools, at its place in a study."""

    cell: Registered
    curve: str
    name: str
    axis_values: Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """A study that no file declares."""

    name: str
    title: str
    path: str
    estimated: Mapping[str, Any]
    figure: str = ""
    axes: Sequence[Sequence[str]] = ()
    overrides: Sequence[str] = ()


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
