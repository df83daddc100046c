"""The null of a cell: what its measures say of images that are not trained on."""

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import held_out
from diffmem.measures import NEAREST, Comparison, of_copies
from diffmem.models import Group
from diffmem.store import Store

HELD_OUT_AT_ONCE = 1000
"""Held-out images that are compared with the training set at once."""


def measure_held_out(cell: Cell, images: Tensor, store: Store, group: Group) -> None:
    """Score images that a cell does not train on, whose share of copies is the null, unless the store has them all."""
    score, others = cell.score, of_copies(cell.score.measures)
    known = store.held_out_counts(cell.cell_id) if group.leads and score.held_out else {}
    (lacking,) = group.first([int(any(not known.get(name) for name in [NEAREST.name, *others]))])
    if not (score.held_out and lacking):
        return
    unseen = held_out(cell, score.held_out)
    comparison = Comparison(images, pairs=0, others=others)
    share = range(len(unseen))[group.share(len(unseen))]
    with group.memory():
        for start in range(share.start, share.stop, HELD_OUT_AT_ONCE):
            part = unseen[start : min(start + HELD_OUT_AT_ONCE, share.stop)]
            comparison.add(torch.from_numpy(np.ascontiguousarray(part)).to(group.device))
    comparison.gather(group, len(unseen))
    if group.leads and len(unseen):
        store.add_held_out(cell.cell_id, comparison.evidence())
