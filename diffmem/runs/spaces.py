"""The feature spaces of a study, tried before anything is trained."""

from collections.abc import Iterable

import torch

from diffmem.cells import Cell
from diffmem.measures import DeclaredSpace, SpaceIdentity, identity_of
from diffmem.models import Group
from diffmem.store import Store
from diffmem.study import Study


def check_spaces(study: Study, store: Store, group: Group) -> tuple[SpaceIdentity, ...]:
    """Open each feature space of a study, try it on noise of the size of its images, and record it in the store.

    DataError where its file or function is not there or does not work; StoreError where the store has another space of
    its name.
    """
    identities = identities_of(study.spaces.values(), study.cells[0].cell, group.device)
    if identities and group.leads:
        store.add_spaces(identities)
    return identities


def identities_of(spaces: Iterable[DeclaredSpace], cell: Cell, device: torch.device | str) -> tuple[SpaceIdentity, ...]:
    """Return what tells feature spaces from others, each tried on noise of the size of a cell's images; DataError as
    above."""
    side = cell.P.resolution or 0
    return tuple(identity_of(space, (cell.channels, side, side), torch.device(device)) for space in spaces)
