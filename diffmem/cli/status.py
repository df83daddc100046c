"""The command that says how far a study is: `status`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    complete_study,
    json_option,
    profile_option,
    store_option,
    stored,
)
from diffmem.cli.tables import MOST_ROWS, echo, print_json, print_table, print_wrapped
from diffmem.errors import StoreError
from diffmem.text import counted, duration, moment

if TYPE_CHECKING:
    from diffmem.analysis import MeasuredCell
    from diffmem.measures import Measure
    from diffmem.store import CellProgress, Note, Store, StoredStudy


@click.command()
@click.argument("study", required=False, shell_complete=complete_study)
@profile_option
@store_option
@json_option
def status(study: str | None, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show the progress of a study, or of all studies.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name. Without STUDY, summarise
    all studies.

    For each cell it shows how far it is and the time left. It also shows what runs now, why a cell failed, and what was
    done to the images.

    \b
    Columns:
      checkpoints  checkpoints measured / all checkpoints
      best ratio   the highest ratio of a checkpoint
      last ratio   the ratio of the last checkpoint
      null         share of held-out images that are called copies

    \b
    A cell is waiting, running, finished or failed, or:
      interrupted  stopped by a signal, or because the machine lacked memory
                   or space
      lost         its process died
      crossed      a search stopped it early
      ended        its monitor is closed

    `diffmem run` resumes cells that are waiting, interrupted or lost. With --retry-failed, it also tries failed ones
    again.

    Example: diffmem status quickstart
    """
    from diffmem.analysis import between_groups, measured_cells
    from diffmem.measures import NEAREST
    from diffmem.runs import seconds_left

    if study is None:
        if profile is not None:
            raise click.UsageError("--profile picks the scale of a STUDY, and none is named")
        _print_studies(store_path, as_json=as_json)
        return
    store, found = stored(store_path, study, profile)
    _close_attempts(store)
    with store.snapshot():
        cells, grouped = measured_cells(store, found), between_groups(store, found)
        by_groups = measured_cells(store, grouped) if grouped else []
        left = seconds_left(store, found.study)
        notes, by_cell = store.notes(found.study), store.cell_notes(found.study)
    best = {each.cell.position: each.best for each in by_groups}
    rows = [_CellRow(each, left[each.cell.cell_id], best.get(each.cell.position)) for each in cells]
    if as_json:
        print_json(
            [
                _status_row(row)
                | _null(row, found)
                | {"grouped_ratio": row.grouped, "grouped_measure": grouped and grouped.measure.name}
                | _counts(row.cell)
                | _attempt_row(row)
                | {"notes": by_cell.get(row.cell.cell_id, [])}
                for row in rows
            ]
        )
        return
    table = (
        _status_row(row)
        | ({grouped.measure.ratio: row.grouped} if grouped else {})
        | {"null": _null(row, found)["null_ratio"]}
        | {"time left": None if row.left is None else duration(row.left)}
        for row in rows
    )
    by = "" if found.measure is NEAREST else f": {found.measure.ratio}"
    print_table(f"{found.study}{by}", table, cut="cell_id")
    for line in _running_lines(rows):
        echo(line)
    for row in rows:
        if row.reason:
            echo(f"{row.cell.cell_id} {row.state}: {row.reason}")
    print_notes(notes, cells, found.measure)


class _CellRow:
    """A cell of a study as `status` looks at it: how it stands is asked once."""

    def __init__(self, measured: "MeasuredCell", seconds: float | None, grouped: float | None) -> None:
        from diffmem.store import State, reason, state_of

        self.measured, self.cell, self.grouped = measured, measured.cell, grouped
        self.state, self.reason = state_of(measured.cell), reason(measured.cell)
        self.running = self.state is State.RUNNING
        self.done = self.state in (State.FINISHED, State.CROSSED)
        self.failed = self.state is State.FAILED
        self.left = 0.0 if self.done else None if self.failed else seconds  # that a run would still spend on it


def print_notes(notes: "list[Note]", cells: "list[MeasuredCell]", measure: "Measure") -> None:
    """Print the threshold of a similarity at 1% of held-out images, and what was done to the images of a study's
    cells, each note once."""
    from diffmem.analysis import noted, threshold_notes

    for said in threshold_notes(cells, measure):
        print_wrapped(said, indent=4)
    for note in noted(notes[:MOST_ROWS], cells):
        print_wrapped(f"note: {note}", indent=4)
    if len(notes) > MOST_ROWS:
        echo(f"... and {counted(len(notes) - MOST_ROWS, 'note')} more, which --json prints")


def _close_attempts(store: "Store") -> None:
    """Record which attempts no longer run, if the store can be written at once; they are shown as ended anyway."""
    from diffmem.store import Store, close_attempts

    with suppress(StoreError):
        close_attempts(Store(store.path, patience=0, check=False))


def _print_studies(store_path: Path, *, as_json: bool) -> None:
    """Print how far each study is, the one that was run last first."""
    from diffmem.store import Store, state_of

    store = Store(store_path)
    _close_attempts(store)
    with store.snapshot():
        rows: list[dict[str, Any]] = [
            {
                "study": study.study,
                "title": study.title,
                "cells": Counter(state_of(cell) for cell in cells),
                "measured": sum(cell.measured for cell in cells),
                "expected": sum(cell.expected for cell in cells),
                "registered_at": study.registered_at,
            }
            for study in store.studies()
            for cells in [store.progress(study.study)]
        ]
    if as_json:
        print_json(rows)
        return
    columns = ["study", "cells", "checkpoints", "last run", "title"]
    table = [
        {
            "study": row["study"],
            "cells": ", ".join(f"{count} {state}" for state, count in row["cells"].most_common()),
            "checkpoints": _of(row["measured"], row["expected"]),
            "last run": moment(row["registered_at"]),
            "title": row["title"],
        }
        for row in rows
    ]
    print_table(f"studies in {store_path}", table, columns=columns)


def _of(measured: int, expected: int) -> str:
    """Return how many checkpoints there are, of how many where that is known."""
    return f"{measured}/{expected}" if expected else str(measured)


def _status_row(row: _CellRow) -> dict[str, Any]:
    cell = row.cell
    return {
        "cell_id": cell.cell_id,
        "P.size": cell.size,
        **cell.axis_values,
        "state": str(row.state),
        "checkpoints": _of(cell.measured, cell.expected),
        "best ratio": row.measured.best,
        "last ratio": row.measured.last,
    }


def _null(row: _CellRow, study: "StoredStudy") -> dict[str, Any]:
    """Return the share of held-out images that are called copies, of how many, the chance of the best ratio, and the
    threshold at which they would be 1%."""
    from diffmem.analysis import one_percent

    null = row.measured.null if row.cell.measured else None  # of a ratio; a cell of another study may have brought it
    least = one_percent([null] if null else [])
    return {
        "null_threshold": None if least is None else study.measure.shown(least),
        "null_ratio": null and null.ratio,
        "null_samples": null.samples if null else 0,
        "p_value": row.measured.p_value,
    }


def _counts(cell: "CellProgress") -> dict[str, Any]:
    """Return how many checkpoints a cell has, and of how many where that is known."""
    return {"measured": cell.measured, "expected": cell.expected or None}


def _attempt_row(row: _CellRow) -> dict[str, Any]:
    """Return what is known of a cell's latest attempt while it runs, and why it ended early."""
    cell = row.cell if row.running else None
    return {
        "error": row.reason,
        "host": cell and cell.host,
        "pid": cell and cell.pid,
        "since": cell and cell.started_at,
        "seconds running": cell and _since(cell.started_at),
        "seconds left": row.left,
    }


def _since(started: datetime | None) -> float | None:
    if started is None:
        return None
    return max(0.0, (datetime.now(UTC).replace(tzinfo=None) - started).total_seconds())


def _running_lines(rows: "list[_CellRow]") -> Iterator[str]:
    """Yield what runs now, and how long the rest takes and how that is known."""
    distinct = {row.cell.cell_id: row for row in rows}.values()
    running = [row for row in distinct if row.running]
    for row in running:
        since = f"since {moment(row.cell.started_at)}, for {duration(_since(row.cell.started_at) or 0.0)}"
        yield f"{row.cell.cell_id} runs on {row.cell.host}, process {row.cell.pid}, {since}"
    # of a monitor's training nobody knows the end
    waiting = [row.left for row in distinct if row.cell.expected and not row.done and not row.failed]
    if not waiting:
        return
    known = [left for left in waiting if left is not None]
    if len(known) < len(waiting):
        yield "time left: -, for nothing of this study is measured yet; `diffmem plan STUDY --measure` estimates it"
        return
    total = sum(known)
    shared = f", {duration(total / len(running))} on the {len(running)} that work now" if len(running) > 1 else ""
    yield (
        f"time left on one device: {duration(total)}{shared}; each cell from its last checkpoint on, at the seconds "
        "per operation of this study's checkpoints so far"
    )
