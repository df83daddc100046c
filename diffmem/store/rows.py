"""What comes out of a store, as frozen records whose fields have the names of the columns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from diffmem.errors import StoreError
from diffmem.measures import MEASURES, NEAREST, Measure, SpaceIdentity, measure_in
from diffmem.store.quality_rows import StoredQuality
from diffmem.store.standing import Kind, Outcome


@dataclass(frozen=True)
class StoredStudy:
    """A study as it was last run."""

    study: str  # its name
    title: str
    figure: str
    path: str
    folder: str | None  # where `path` begins if it is relative
    kind: Kind
    axes: list[list[str]]
    estimation: Mapping[str, Any]  # [emm]
    overrides: list[str]
    registered_at: datetime
    spaces: list[Mapping[str, Any]]  # the feature spaces of its store

    @property
    def epsilon(self) -> float:
        """Return by how much the ratio at the EMM is below 1."""
        return float(self.estimation["epsilon"])

    @property
    def threshold(self) -> float:
        """Return below which share of its yardstick a distance is a copy."""
        return float(self.estimation["threshold"])

    @property
    def measure(self) -> Measure:
        """Return the measure that its ratios are by; StoreError for one that this diffmem does not know."""
        name = self.estimation.get("measure", NEAREST.name)
        if name not in self.measures:
            raise StoreError(f"the study {self.study} is by the measure {name!r}, which this diffmem does not know")
        return self.measures[name]

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the measures that tell copies by name: those of diffmem, and of the feature spaces of its store."""
        spaces = [measure_in(SpaceIdentity(**each)) for each in self.spaces]
        return {**MEASURES, **{each.name: each for each in spaces}}

    def by(self, measure: Measure) -> "StoredStudy":
        """Return the study with its ratios by another measure, at the measure's own threshold."""
        if measure.name == self.estimation.get("measure", NEAREST.name):
            return self
        estimation = {**self.estimation, "measure": measure.name, "threshold": measure.threshold}
        return replace(self, estimation=estimation)

    def at(self, *, threshold: float | None = None, epsilon: float | None = None) -> "StoredStudy":
        """Return the study with its ratios at another threshold, and its EMM at another epsilon; None: its own."""
        given = {key: value for key, value in (("threshold", threshold), ("epsilon", epsilon)) if value is not None}
        return replace(self, estimation={**self.estimation, **given})


@dataclass(frozen=True)
class LatestAttempt:
    """What is known of the latest attempt at a cell, and how many checkpoints the cell has; its state follows."""

    expected: int  # checkpoints of a finished cell; 0: nobody knows
    measured: int  # checkpoints had
    outcome: Outcome | None  # None: none was made
    error: str | None
    host: str | None
    pid: int | None
    started_at: datetime | None

    @property
    def finished(self) -> bool:
        """Return whether the cell has all its checkpoints; never that of a monitor, whose number nobody knows."""
        return 0 < self.expected <= self.measured


@dataclass(frozen=True)
class CellProgress(LatestAttempt):
    """How far a cell of a study is."""

    position: int
    cell_id: str
    curve: str
    name: str
    axis_values: Mapping[str, Any]
    size: int  # N, training images


@dataclass(frozen=True)
class StoredCell(CellProgress):
    """A cell of a study with all its settings."""

    configuration: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One checkpoint of a cell of a study, with its ratio at some threshold."""

    position: int
    curve: str
    size: int
    draw: str
    seed: int
    cell_id: str
    epoch: int  # what the checkpoint is known by: its epoch, or its step where it does not end one
    step: int
    samples: int
    ratio: float
    loss: float | None


FEW_HELD_OUT = 100
"""Held-out images below which a share of 1% cannot be seen."""


@dataclass(frozen=True)
class Null:
    """How many images that were not trained on a measure calls copies."""

    position: int
    copies: int
    samples: int
    trained_on: int  # of them, those that are also in the training set
    at_one_percent: float  # the largest threshold at which at most 1% of them are called copies; inf: any

    @property
    def ratio(self) -> float:
        """Return the share of them: the false-positive rate."""
        return self.copies / self.samples


@dataclass(frozen=True)
class Attempt:
    """One try to train a cell: how it stands, where it ran, and what its checkpoints took."""

    position: int
    attempt_id: str
    cell_id: str
    outcome: Outcome
    error: str | None
    started_at: datetime
    ended_at: datetime | None
    host: str
    pid: int
    device: str
    versions: Mapping[str, str]
    git_commit: str | None
    git_dirty: bool | None
    train_seconds: float
    score_seconds: float
    measured: int


@dataclass(frozen=True)
class OpenAttempt(LatestAttempt):
    """An attempt that has not said how it ended."""

    attempt_id: str


@dataclass(frozen=True)
class Note:
    """What was done to the images of some cells of a study."""

    note: str
    cells: int


@dataclass(frozen=True)
class Reached:
    """How high the ratio of a cell has come."""

    cell_id: str
    best: float  # highest ratio of a checkpoint
    samples: int  # images behind it
    finished: bool


@dataclass(frozen=True)
class AlikeCells:
    """Cells of a study that cost the same and are equally far, and what they took, all together."""

    settings: Mapping[str, Any]  # those that cost something
    measured: int  # checkpoints of each
    cells: list[str]
    training: float | None  # seconds
    scoring: float | None


@dataclass(frozen=True)
class Place:
    """Where a study has a cell."""

    study: str
    curve: str
    name: str
    axis_values: Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredPoint:
    """A checkpoint as it was stored, with the 95% Wilson interval of its ratio."""

    epoch: float  # a part of one where the checkpoint is inside an epoch
    step: int
    samples: int
    memorized: int
    ratio: float
    low: float
    high: float
    loss: float | None
    train_seconds: float
    score_seconds: float
    measured_at: datetime


@dataclass(frozen=True)
class Measurement:
    """What a measure beside the paper's has found at a checkpoint: the share of copies, with its 95% interval."""

    epoch: float  # as in MeasuredPoint, or what the checkpoint is known by
    measure: str
    value: float
    low: float
    high: float
    n: int  # generated images


@dataclass(frozen=True)
class StoredLevel:
    """What a measure of a denoiser has found of a checkpoint at one noise level, with its 95% interval."""

    epoch: int
    measure: str
    quantity: str
    images: str  # training, held_out, both
    sigma: float
    value: float
    low: float
    high: float
    n: int  # images behind it


@dataclass(frozen=True)
class StudyLevel(StoredLevel):
    """The same, at its place in a study."""

    position: int
    curve: str
    name: str
    size: int  # N, training images
    cell_id: str


@dataclass(frozen=True)
class Try:
    """An attempt at a cell, as it is shown."""

    outcome: Outcome
    host: str
    pid: int
    device: str
    started_at: datetime
    ended_at: datetime | None
    seconds: float | None
    error: str | None
    versions: Mapping[str, str]
    git_commit: str | None
    git_dirty: bool | None


@dataclass(frozen=True)
class CellDescription:
    """All about a cell."""

    cell_id: str
    created_at: datetime
    configuration: Mapping[str, Any]
    expected: int
    studies: list[Place]
    checkpoints: list[MeasuredPoint]
    measurements: list[Measurement]  # by other measures than the paper's
    levels: list[StoredLevel]  # by measures of its denoiser
    quality: list[StoredQuality]  # of its images
    attempts: list[Try]
    notes: list[str]


@dataclass(frozen=True)
class StudySize:
    """A study and how many cells it lists."""

    study: str
    title: str
    cells: int


@dataclass(frozen=True)
class StoreDescription:
    """What a store holds."""

    path: str
    bytes: int
    schema: int
    checkpoints: int
    evidence: int
    generated: int
    older_cells: int  # with results of an older version
    training_states: int
    training_state_bytes: int
    trained_models: int
    trained_model_bytes: int
    studies: list[StudySize]
    in_no_study: list[str]
