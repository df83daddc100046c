"""One run of a monitored training, and what is written of it: to the store, or in the end to a file of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from diffmem.cells import content_hash
from diffmem.errors import StoreError
from diffmem.external.foreign import ForeignCell
from diffmem.external.nulls import null_of
from diffmem.external.pending import Write
from diffmem.external.score import READ_OFF
from diffmem.measures import NEAREST, Evidence, SpaceIdentity
from diffmem.store import Checkpoint, Kind, ListedCell, Listing, Outcome, Provenance, Store, new_attempt_id

PATH = "diffmem.Monitor"
"""What the store says of where a monitored study is from."""

Setting = str | int | float | bool | None


class MonitorRun:
    """A new run of the training `name`, or the last one that the store has of its settings and training set.

    Which cell it is, and what the store has of it, is known once `open` has written to the store. Whatever it writes
    can be written twice, also to another store.
    """

    def __init__(
        self,
        cell: ForeignCell,
        *,
        name: str,
        settings: Mapping[str, Setting],
        resume: bool,
        held_out: Evidence | None,
        spaces: Sequence[SpaceIdentity],
        notes: Sequence[str],
        where: Provenance,
    ) -> None:
        self._any_run = cell  # also the cell of an older diffmem, which had no runs
        self.cell = self._of(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}")
        self.attempt_id = new_attempt_id()
        self.ratios: dict[int, float] = {}  # of each step that is measured
        self.null_ratio = None if held_out is None else held_out.ratio
        self._name, self._settings, self._resume = name, settings, resume
        self._held_out, self._spaces, self._notes, self._where = held_out, spaces, notes, where

    def open(self, store: Store) -> None:
        """Write what checkpoints rely on, and take note of what the store has of the run."""
        if self._spaces:
            store.add_spaces(self._spaces)
        self._check_name(store)
        if self._resume and store.exists():
            self._find(store)
        self._register(store)
        store.start_attempt(self.cell.cell_id, self._where, attempt_id=self.attempt_id)
        for step, ratio in store.ratios(self.cell.cell_id).items():
            self.ratios.setdefault(step, ratio)  # it may have been measured again meanwhile
        if self._held_out is not None:
            store.add_held_out(self.cell.cell_id, self._held_out, newest=True)
        elif (null := null_of(store, self._name, self.cell, NEAREST)) is not None:
            self.null_ratio = null.ratio

    def appending(self, checkpoint: Checkpoint) -> Write:
        """Return what appends a checkpoint, whichever cell `open` finds."""
        return partial(self._append, checkpoint=checkpoint)

    def end(self, store: Store) -> None:
        """Record that the training has ended."""
        store.end_attempt(self.attempt_id, Outcome.FINISHED)

    def _append(self, store: Store, *, checkpoint: Checkpoint) -> None:
        store.append(replace(checkpoint, cell_id=self.cell.cell_id))

    def _check_name(self, store: Store) -> None:
        """Raise StoreError where the name is another study's."""
        studies = store.studies() if store.exists() else []
        taken = [each for each in studies if each.study == self._name and each.kind is not Kind.MONITOR]
        if taken:
            raise StoreError(
                f"{store.path}: {self._name!r} is a study of {taken[0].path}; give the monitor another name"
            )

    def _find(self, store: Store) -> None:
        """Take the last run that the store has of this training, if it has one, in the place of a new one."""
        runs = [
            str(each.configuration.get("run", ""))
            for each in store.cells(self._name)
            if content_hash({key: each.configuration[key] for key in each.configuration if key != "run"})
            == self._any_run.cell_id
        ]
        if runs:
            self.cell = self._of(max(runs))

    def _of(self, run: str) -> ForeignCell:
        """Return the cell of the run that was started at a time; empty: by an older diffmem."""
        return replace(self._any_run, origin={**self._any_run.origin, "run": run}) if run else self._any_run

    def _register(self, store: Store) -> None:
        """Make the cell one of the study."""
        curve, run = _as_text(self._settings), str(self.cell.origin.get("run", ""))
        name = ", ".join(filter(None, [curve, f"N = {self.cell.size}"]))
        store.register(
            Listing(self._name, f"{self._name}, monitored", PATH, READ_OFF),
            [ListedCell(self.cell, curve, name, {"run": f"{run[:23]} UTC"} if run else {})],
            kind=Kind.MONITOR,
            notes={self.cell.cell_id: self._notes},
            keep=True,
        )


def _as_text(settings: Mapping[str, Setting]) -> str:
    """Return settings as a curve is called by them."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())
