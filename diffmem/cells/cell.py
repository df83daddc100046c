"""A cell: one model to train and measure, and the name that its settings give it."""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import SerializeAsAny

from diffmem.cells.datasets import DATASETS, Facts
from diffmem.cells.settings import DataDistribution, ModelConfiguration, Scoring, Settings, TrainingProcedure
from diffmem.networks import Work

REPLICATES = frozenset({"P.draw", "P.half", "T.seed"})
"""Keys over which the ratio is averaged; all others but the size tell one EMM curve from another."""

RESULTS_VERSION = 2
"""Part of every `cell_id`; raise it when the same settings come to mean other numbers."""


Clock = Literal["epoch", "step"]
"""What the checkpoints of a cell are known by."""

DECADES = 3
"""Powers of ten of the training over which log-spaced checkpoints lie: what comes before is close to the noise that an
untrained network makes."""


def log_spaced(count: int, last: int) -> list[int]:
    """Return so many different steps up to `last`, each about the same factor above the one before.

    The first is at a thousandth of the last. Where rounding makes two equal, the later one is the next step.
    """
    first = max(1.0, last / 10**DECADES)
    steps: list[int] = []
    for i in range(count):
        wanted = last if i == count - 1 else round(first * (last / first) ** (i / (count - 1)))
        later = max(wanted, steps[-1] + 1 if steps else 1)
        steps.append(min(later, last - (count - 1 - i)))  # which leaves a step for each that follows
    return steps


def clock_of(configuration: Mapping[str, Any]) -> Clock:
    """Return what the checkpoints of a stored configuration are known by, as `Cell.clock` does."""
    by_step = configuration.get("T", {}).get("steps") or configuration.get("score", {}).get("points")
    return "step" if by_step else "epoch"


def epoch_of(configuration: Mapping[str, Any], known_by: int) -> float:
    """Return the epochs of a stored configuration at a checkpoint, in parts of one where it does not end one."""
    if clock_of(configuration) == "epoch":
        return known_by
    images, size = known_by * int(configuration["T"]["batch_size"]), int(configuration["P"]["size"])
    return images / size if images % size else images // size


def content_hash(configuration: dict[str, Any]) -> str:
    """Return 16 hex digits that name what a configuration gives, under this version's meaning of it."""
    return _hash(json.dumps([RESULTS_VERSION, configuration], sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints_of(P: DataDistribution, facts: Facts) -> dict[str, str]:
    """Return the content hash of each dataset of P that is a user's own files, by its path."""
    return {part.dataset: print_ for part in P.parts if (print_ := facts[part.dataset].fingerprint)}


def channels_of(P: DataDistribution, facts: Facts) -> int:
    """Return the colour channels of a training set: 3 where any of its datasets is RGB."""
    return max(facts[part.dataset].channels for part in P.parts)


class Cell(Settings):
    """One model to train and measure: P, M, T and the scoring, with every default written out."""

    P: DataDistribution
    M: SerializeAsAny[ModelConfiguration]  # of the network's own class
    T: TrainingProcedure
    score: Scoring

    channels: int  # colour channels of the images: 1 grey, 3 RGB
    fingerprints: dict[str, str]  # content hash of each dataset that is a user's own files, by its path

    @classmethod
    def resolve(
        cls, P: DataDistribution, M: ModelConfiguration, T: TrainingProcedure, score: Scoring, facts: Facts = DATASETS
    ) -> Self:
        """Write out all defaults, and drop what has no effect, so that equal cells compare equal."""
        dataset = facts[P.dataset]
        P, T = P.resolved(dataset), T.resolved(P.size, trained=M.trained)
        return cls(
            P=P,
            M=M.resolved(P.resolution or 0),
            T=T,
            score=score.resolved(T.epochs_begun(P.size), trained=M.trained),
            channels=channels_of(P, facts),
            fingerprints=fingerprints_of(P, facts),
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """Return what a store keeps: its identity, and the colour channels that its dataset decides on."""
        identity = self.identity
        return {**identity, "P": {**identity["P"], "channels": self.channels}}

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Self:
        """Return the cell of a configuration, with a user's own files by their content.

        KeyError if it does not have the channels, or is no model's; ValidationError if it has other settings.
        """
        P = dict(configuration["P"])
        return cls.model_validate({**configuration, "channels": P.pop("channels"), "P": P, "fingerprints": {}})

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data; the hash of it is the cell's name.

        A user's own files stand in it by their content, so that the same images at another place are the same cell.
        """
        return {
            "P": self._by_content.numbers,
            "M": self.M.numbers,
            "T": self.T.numbers,
            "score": self.score.numbers,
        }

    @property
    def _by_content(self) -> DataDistribution:
        """Return P with the hash of the content in place of the path of a user's own files."""
        if not self.fingerprints:
            return self.P
        P, blend = self.P, self.P.blend
        return P.model_copy(
            update={
                "dataset": self.fingerprints.get(P.dataset, P.dataset),
                "blend": blend
                and blend.model_copy(update={"dataset": self.fingerprints.get(blend.dataset, blend.dataset)}),
            }
        )

    @cached_property
    def cell_id(self) -> str:
        """Return the cell's name: 16 hex digits, equal exactly when all numbers must be equal.

        It is the `content_hash` of the identity, from texts that cells of the same settings share.
        """
        return self.name_by(RESULTS_VERSION)

    def name_by(self, version: int) -> str:
        """Return the name that a version of the results gives to the cell."""
        P, M, T, score = (each.as_json for each in (self._by_content, self.M, self.T, self.score))
        return _hash(f'[{version}, {{"M": {M}, "P": {P}, "T": {T}, "score": {score}}}]')

    @property
    def labels(self) -> int:
        """Return the number of labels C that the model is conditioned on; 0: none."""
        return {
            "none": 0,
            "true": len(self.P.parts[0].classes or ()),
            "random": self.M.labels or 0,
            "unique": self.P.size,
        }[self.M.condition]

    @property
    def work(self) -> Work:
        """Return what the network is made of, and what it does with one image at one noise level."""
        return self.M.work(
            resolution=self.P.resolution or 0, channels=self.channels, labels=self.labels, size=self.P.size
        )

    @property
    def clock(self) -> Clock:
        """Return what its checkpoints are known by: steps where they do not all end an epoch."""
        return "epoch" if self.T.epochs is not None and self.score.points is None else "step"

    @property
    def checkpoints(self) -> list[tuple[int, int]]:
        """Return every checkpoint as what it is known by, an epoch or a step, and its optimizer step.

        The untrained model is not one of them.
        """
        if not self.M.trained:
            return [(0, 0)]
        if self.clock == "step":
            return [(step, step) for step in self._steps]
        return [(epoch, self.steps(epoch)) for epoch in self._epochs]

    @property
    def _epochs(self) -> list[int]:
        """Return the multiples of the epochs between checkpoints, and the last epoch."""
        last = self.epochs
        every = self.score.every or last
        return [*range(every, last, every), last]

    @property
    def _steps(self) -> list[int]:
        """Return the optimizer steps of the checkpoints that are known by them."""
        last = self.last_step
        if self.score.points is not None:
            return log_spaced(self.score.points, last)
        return [*dict.fromkeys(step for step in map(self.steps, self._epochs) if step < last), last]

    @property
    def checkpoint_count(self) -> int:
        """Return how many checkpoints a finished one has."""
        if self.clock == "step":
            return len(self._steps)
        return math.ceil(self.epochs / (self.score.every or self.epochs))

    @property
    def epochs(self) -> int:
        """Return the epochs that the training begins, the last of which may not be a whole one."""
        return self.T.epochs_begun(self.P.size)

    @property
    def last_step(self) -> int:
        """Return the optimizer steps of the whole training."""
        return self.T.last_step(self.P.size)

    def steps(self, epochs: int) -> int:
        """Return the optimizer steps of the first epochs."""
        return self.T.steps_of(epochs, self.P.size)
