"""The quality of the images of a cell, beside its training images and held-out ones."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffmem.cells import Cell, Scoring
from diffmem.data import TrainingSet, held_out_set, training_set
from diffmem.measures import (
    GENERATED_IMAGES,
    HELD_OUT_IMAGES,
    PIXELS,
    ImageQuality,
    Quality,
    QualityValue,
    Spaces,
    asks_for_quality,
    joined,
    spaces_of,
)
from diffmem.models import Group
from diffmem.store import Store


@dataclass
class CellQuality:
    """The real images of a cell, whose features are found when the first generated ones come."""

    cell: Cell
    device: torch.device | str = "cpu"
    data: TrainingSet | None = None  # where its training set is there already
    in_spaces: Spaces = field(default_factory=dict)  # in whose features it is measured too

    def __post_init__(self) -> None:
        self.spaces = [PIXELS, *spaces_of(self.in_spaces)]

    def missing(self, had: Iterable[QualityValue]) -> set[str]:
        """Return the names of the spaces in which a checkpoint that `had` some quality is not measured yet."""
        return {space.name for space in self.spaces} - {each.space for each in had}

    def of(self, generated: Tensor, names: Collection[str] | None = None) -> Quality:
        """Measure generated images, uint8 [n, c, h, w], in all spaces or some; DataError as `held_out_set`."""
        found = [
            self._beside[space.name].of(generated) for space in self.spaces if names is None or space.name in names
        ]
        return joined(found)

    def measured(self, generated: Tensor, group: Group, store: Store) -> list[QualityValue]:
        """Measure generated images in the leading process of a group, if the cell asks for it, and note why not."""
        with group.memory():
            asked = group.leads and asks_for_quality(self.cell.score.measures)
            found = self.of(generated) if asked else Quality([], [], "")
        for note in filter(None, [*found.notes, found.reason]):
            store.add_note(self.cell.cell_id, note)
        return found.values

    @cached_property
    def _beside(self) -> dict[str, ImageQuality]:
        held_out = held_out_set(self.cell, HELD_OUT_IMAGES).images
        training = training_set(self.cell) if self.data is None else self.data
        sets = training.images, held_out
        return {space.name: ImageQuality(*sets, space=space, device=self.device) for space in self.spaces}


def images_kept(score: Scoring) -> int:
    """Return how many generated images of a checkpoint are kept in memory until their quality is measured."""
    return min(score.samples, GENERATED_IMAGES) if asks_for_quality(score.measures) else 0


def add_quality(store: Store, cell_id: str, epoch: int, found: Quality) -> list[str]:
    """Add the quality of images to their checkpoint, with what is to be said of it; return why there is none."""
    for note in found.notes:
        store.add_note(cell_id, note)
    if found.reason:
        return [found.reason]
    store.add_quality(cell_id, epoch, found.values)
    return []


def stored_distances(store: Store, cell_id: str, epoch: int) -> list[tuple[str, QualityValue]]:
    """Return the Frechet distances that a store has of a checkpoint, each with what it is in words."""
    return [
        (f"Frechet distance ({each.space}) to {each.against.replace('_', '-')} images", each)
        for each in store.quality(cell_id, epoch)
        if each.quantity == "frechet_distance"
    ]
