"""The feature spaces of a study, tried before anything is trained."""

import torch

from diffmem.measures import identity_of
from diffmem.models import Group
from diffmem.store import Store
from diffmem.study import Study


def check_spaces(study: Study, store: Store, group: Group) -> None:
    """Open each feature space of a study, try it on noise of the size of its images, and record it in the store.

    DataError where its file or function is not there or does not work; StoreError where the store has another space of
    its name.
    """
    if not study.spaces:
        return
    cell = study.cells[0].cell
    side = cell.P.resolution or 0
    device = torch.device(group.device)
    identities = [identity_of(space, (cell.channels, side, side), device) for space in study.spaces.values()]
    if group.leads:
        store.add_spaces(identities)
