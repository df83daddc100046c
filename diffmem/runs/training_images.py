"""What the images of a training set are like, found once for all cells of the set."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell
from diffmem.data import names_and_groups
from diffmem.measures import local_distances
from diffmem.models import Group
from diffmem.store import Store, TrainingImages


def look_through(cell: Cell, store: Store, training_images: Callable[[], Tensor], group: Group) -> None:
    """Keep which group each training image of a cell is of, and how far its nearest others are, unless the store has
    it.

    The processes of the group do a share each. Raises DataError as `training_set`, OutOfMemory.
    """
    (known,) = group.first([int(group.leads and store.has_training_images(cell.cell_id))])
    if known:
        return
    images = training_images()
    with group.memory():
        own = torch.from_numpy(local_distances(images[group.share(len(images))], images))
    distances = group.gather(own, len(images))
    with group.memory():
        found = names_and_groups(cell) if group.leads else None
    if found:
        store.add_training_images(cell.cell_id, TrainingImages(np.arange(len(images)), *found, distances.numpy()))
