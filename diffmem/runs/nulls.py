"""The null of a ratio: how many images that nobody trained on a measure would call copies."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import held_out
from diffmem.measures import NEAREST, NO_SPACES, Comparison, Spaces, of_copies
from diffmem.models import Group
from diffmem.store import Store

AT_ONCE = 1000
"""Held-out images that are compared with the training set at once."""


@dataclass(frozen=True)
class NullMeasured:
    """How many held-out images were compared with a training set."""

    cell_id: str  # of one of its cells
    name: str  # its axis values
    images: int


def measure_null(
    cell: Cell, store: Store, training_images: Callable[[], Tensor], group: Group, spaces: Spaces = NO_SPACES
) -> int:
    """Compare held-out images with the training set of a cell; return how many, 0 if the store has as many already.

    The processes of the group do a share each. Raises DataError as `training_set`, OutOfMemory.
    """
    wanted = cell.score.held_out
    others = of_copies(cell.score.measures, spaces)
    names = [NEAREST.name, *others]
    counts = store.held_out_counts(cell.cell_id) if group.leads else {}
    (had,) = group.first([min(counts.get(name, 0) for name in names)])
    if had >= wanted:
        return 0
    images = held_out(cell, wanted)
    if len(images) <= had:
        return 0
    share = group.share(len(images))
    with group.memory():
        comparison = Comparison(training_images(), pairs=0, others=others, spaces=spaces)
        for start in range(share.start, share.stop, AT_ONCE):
            part = images[start : min(start + AT_ONCE, share.stop)]
            comparison.add(torch.from_numpy(np.ascontiguousarray(part)).to(group.device))
    comparison.gather(group, len(images))
    if group.leads:
        store.add_held_out(cell.cell_id, comparison.evidence())
    return len(images)
