"""The quality of the images of a cell, beside its training images and held-out ones."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffmem.cells import Cell, Scoring
from diffmem.data import TrainingSet, held_out_set, training_set
from diffmem.measures import GENERATED_IMAGES, HELD_OUT_IMAGES, ImageQuality, Quality, asks_for_quality

NOT_ASKED = Quality([], [], "")
"""The quality of images that nobody asks for."""


@dataclass
class CellQuality:
    """The real images of a cell, whose features are found when the first generated ones come."""

    cell: Cell
    device: torch.device | str = "cpu"
    data: TrainingSet | None = None  # where its training set is there already

    def of(self, generated: Tensor) -> Quality:
        """Measure generated images, uint8 [n, c, h, w]; DataError as `held_out_set`."""
        return self._beside.of(generated)

    @cached_property
    def _beside(self) -> ImageQuality:
        held_out = held_out_set(self.cell, HELD_OUT_IMAGES).images
        training = training_set(self.cell) if self.data is None else self.data
        return ImageQuality(training.images, held_out, device=self.device)


def images_kept(score: Scoring) -> int:
    """Return how many generated images of a checkpoint are kept in memory until their quality is measured."""
    return min(score.samples, GENERATED_IMAGES) if asks_for_quality(score.measures) else 0
