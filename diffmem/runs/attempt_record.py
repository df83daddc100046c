"""What the store is told of one try to train a cell."""

import traceback

from diffmem.errors import DiffmemError
from diffmem.models import Group
from diffmem.store import Outcome, Store, provenance


class AttemptRecord:
    """The record of one try to train a cell, which the leading process of its group writes."""

    def __init__(self, store: Store, cell_id: str, group: Group, *, compiled: bool) -> None:
        self.store = store
        self.id = ""
        if group.leads:
            self.id = store.start_attempt(cell_id, provenance(group.device, processes=group.count, compiled=compiled))

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Record how it ended."""
        if self.id:
            self.store.end_attempt(self.id, outcome, error)


def reason_of(error: Exception) -> str:
    """Say in one sentence why a cell failed; what nobody foresaw comes with its traceback."""
    if isinstance(error, DiffmemError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()
