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
    from diffmem.store import Row, Store


@click.command()
@click.argument("study", required=False, shell_complete=complete_study)
@profile_option
@store_option
@json_option
def status(study: str | None, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show how far each cell of a study is, what runs now, the time left, why a failed one failed, and what was done
    to its images.

    STUDY is a study file, or the name that the store knows it by or the beginning of it. Without one, how far each
    study of the store is.

    A cell is waiting, running, finished, interrupted (by a signal, or because the machine lacked memory or space), lost
    (its process died), failed, crossed (a search stopped it early) or ended (a monitor that is closed). `diffmem run`
    resumes those that are waiting, interrupted or lost, and with --retry-failed the failed ones too.

    Example: diffmem status quickstart
    """
    from diffmem.analysis import cell_state, measured_cells, reason
    from diffmem.runs import seconds_left

    if study is None:
        if profile is not None:
            raise click.UsageError("--profile picks the scale of a STUDY, and none is named")
        _print_studies(store_path, as_json=as_json)
        return
    store, row = stored(store_path, study, profile)
    _close_attempts(store)
    with store.snapshot():
        cells = measured_cells(store, row)
        left = seconds_left(store, row["study"])
        notes, by_cell = store.notes(row["study"]), store.cell_notes(row["study"])
    for cell in cells:
        cell["state"] = cell_state(cell)
        cell["seconds left"] = _left(cell["state"], left[cell["cell_id"]])
    if as_json:
        print_json(
            [
                _status_row(cell) | _counts(cell) | _attempt_row(cell) | {"notes": by_cell.get(cell["cell_id"], [])}
                for cell in cells
            ]
        )
        return
    rows = (_status_row(cell) | {"time left": _time(cell["seconds left"])} for cell in cells)
    print_table(row["study"], rows, cut="cell_id")
    for line in _running_lines(cells):
        echo(line)
    for cell in cells:
        if error := reason(cell):
            echo(f"{cell['cell_id']} {cell['state']}: {error}")
    print_notes(notes, cells)


def print_notes(notes: "list[Row]", cells: "list[Row]") -> None:
    """Print what was done to the images of a study's cells, each note once."""
    from diffmem.analysis import noted

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
    from diffmem.analysis import cell_state
    from diffmem.store import Store

    store = Store(store_path)
    _close_attempts(store)
    with store.snapshot():
        rows = [
            {
                "study": study["study"],
                "title": study["title"],
                "cells": Counter(cell_state(cell) for cell in cells),
                "measured": sum(cell["measured"] for cell in cells),
                "expected": sum(cell["expected"] for cell in cells),
                "registered_at": study["registered_at"],
            }
            for study in store.studies()
            for cells in [store.progress(study["study"])]
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


def _status_row(cell: "Row") -> dict[str, Any]:
    return {
        "cell_id": cell["cell_id"],
        "P.size": cell["size"],
        **cell["axis_values"],
        "state": cell["state"],
        "checkpoints": _of(cell["measured"], cell["expected"]),
        "best ratio": cell["best"],
        "last ratio": cell["last"],
    }


def _counts(cell: "Row") -> dict[str, Any]:
    """Return how many checkpoints a cell has, and of how many where that is known."""
    return {"measured": cell["measured"], "expected": cell["expected"] or None}


def _attempt_row(cell: "Row") -> dict[str, Any]:
    """Return what is known of a cell's latest attempt while it runs, and why it ended early."""
    from diffmem.analysis import reason

    running = cell["state"] == "running"
    return {
        "error": reason(cell),
        "host": cell["host"] if running else None,
        "pid": cell["pid"] if running else None,
        "since": cell["started_at"] if running else None,
        "seconds running": _since(cell["started_at"]) if running else None,
        "seconds left": cell["seconds left"],
    }


def _left(state: str, seconds: float | None) -> float | None:
    """Return the seconds that a run would still spend on a cell in this state."""
    if state in ("finished", "crossed"):
        return 0.0
    return None if state == "failed" else seconds


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _since(started: datetime) -> float:
    return max(0.0, (datetime.now(UTC).replace(tzinfo=None) - started).total_seconds())


def _running_lines(cells: "list[Row]") -> Iterator[str]:
    """Yield what runs now, and how long the rest takes and how that is known."""
    distinct = {cell["cell_id"]: cell for cell in cells}.values()
    running = [cell for cell in distinct if cell["state"] == "running"]
    for cell in running:
        since = f"since {moment(cell['started_at'])}, for {duration(_since(cell['started_at']))}"
        yield f"{cell['cell_id']} runs on {cell['host']}, process {cell['pid']}, {since}"
    ended = ("finished", "crossed", "failed")
    # of a monitor's training nobody knows the end
    waiting = [cell["seconds left"] for cell in distinct if cell["expected"] and cell["state"] not in ended]
    if not waiting:
        return
    if None in waiting:
        yield "time left: -, for nothing of this study is measured yet; `diffmem plan STUDY.toml --measure` tells it"
        return
    total = sum(waiting)
    shared = f", {duration(total / len(running))} on the {len(running)} that work now" if len(running) > 1 else ""
    yield (
        f"time left on one device: {duration(total)}{shared}; each cell from its last checkpoint on, at the seconds "
        "per operation of this study's checkpoints so far"
    )
