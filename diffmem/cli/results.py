"""The commands that say what has come out: `status`, `emm`, `report` and `findings`."""

import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    DEFAULT_STORE,
    FileName,
    complete_profile,
    complete_study,
    json_option,
    profile_option,
    store_option,
    stored,
    study_argument,
)
from diffmem.cli.signals import StopOnSignal
from diffmem.cli.tables import MOST_ROWS, as_markdown, echo, print_json, print_table, print_wrapped
from diffmem.errors import StoreError
from diffmem.text import counted, duration, moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.analysis import Curve, Finding, Result
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
    _print_notes(notes, cells)


def _print_notes(notes: "list[Row]", cells: "list[Row]") -> None:
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


@click.command()
@study_argument
@profile_option
@store_option
@json_option
def emm(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Estimate the effective model memorization: the largest N with ratio >= 1 - epsilon, for each curve.

    STUDY is a study file, or the name that the store knows it by or the beginning of it. The best checkpoint of
    each size counts, as in the paper; where the ratio does not cross the line between two sizes the answer is a bound.
    The 95% interval is over images, draws and seeds; "?" is an end that the sizes do not bound. Notes say what was done
    to the images when they were read.

    Example: diffmem emm quickstart --json
    """
    from diffmem.analysis import curves_of, measured_cells, only_size

    store, row = stored(store_path, study, profile)
    name = row["study"]
    with store.snapshot():
        cells, notes = measured_cells(store, row), store.notes(name)
    curves = curves_of(cells, row["estimation"]["epsilon"])
    rows = [
        {
            "curve": curve.label,
            "emm": str(curve.estimate) if curve.estimate else "not measured",
            "value": curve.estimate.value if curve.estimate else None,
            "lower": curve.estimate.lower if curve.estimate else None,
            "upper": curve.estimate.upper if curve.estimate else None,
            "lower95": curve.interval.low if curve.interval else None,
            "upper95": curve.interval.high if curve.interval else None,
            "ratios": {str(point.size): round(point.best, 6) for point in curve.points},
            "note": curve.note,
        }
        for curve in curves
    ]
    if as_json:
        print_json({"study": name, "epsilon": curves[0].epsilon if curves else None, "curves": rows, "notes": notes})
        return
    alone = only_size(cells) is not None
    line = f"memorization ratio >= {1 - curves[0].epsilon:g}"
    title = f"{name}: memorization ratio" if alone else f"{name}: largest N with {line}"
    print_table(title, [_curve_row(curve, alone=alone) for curve in curves])
    for curve in curves:
        if note := curve.caveat if alone else curve.note:
            print_wrapped(f"{curve.label or 'all cells'}: {note}", indent=4)
    if alone:
        print_wrapped(f"one size tells no EMM, the largest N with {line}", indent=4)
    _print_notes(notes, cells)


def _curve_row(curve: "Curve", *, alone: bool) -> dict[str, Any]:
    """Return what `emm` prints of a curve: its EMM and ratios, or of one size `alone` the ratio and its interval."""
    ratios = {f"N={point.size}": point.best for point in curve.points}
    label = {"curve": curve.label or "all cells"}
    if alone:
        interval = [f"{point.low:.3f} to {point.high:.3f}" for point in curve.points]
        return {**label, **ratios, "95%": "".join(interval) or None}
    return {**label, "EMM": str(curve.estimate or "not measured"), "95%": str(curve.interval or "-"), **ratios}


@click.command()
@click.argument("studies", nargs=-1, shell_complete=complete_study)
@profile_option
@click.option(
    "--store",
    "store_paths",
    type=FileName(),
    multiple=True,
    envvar="DIFFMEM_STORE",
    default=[DEFAULT_STORE],
    show_default=str(DEFAULT_STORE),
    show_envvar=True,
    help="The DuckDB file that results are kept in; several are shown as one.",
)
@click.option(
    "-o",
    "--output",
    type=FileName(dir_okay=False),
    help="Where to write the page.  [default: report.html beside the store]",
)
@click.option("--watch", is_flag=True, help="Write the page anew as results come in, until nothing is left to run.")
@click.option("--with-hosts", is_flag=True, help="Name the machines and the folders that results are from.")
def report(
    studies: tuple[str, ...],
    profile: str | None,
    store_paths: tuple[Path, ...],
    output: Path | None,
    watch: bool,
    with_hosts: bool,
) -> None:
    """Write figures, EMM tables, generated images and provenance as one HTML page that opens offline.

    STUDIES are study files, or names that the store knows them by or their beginnings; without any, all of the store's.

    With --watch, the page loads itself anew while there is something left to run; Ctrl-C ends the watching.

    Example: diffmem report quickstart -o quickstart.html
    """
    from diffmem.analysis import going_on
    from diffmem.report import write_page
    from diffmem.store import Store, merged

    path = output or store_paths[0].parent / "report.html"
    stop = StopOnSignal("the page stays as it is now") if watch else None
    meant: list[str] = []
    for written in itertools.count():
        before = _changed(store_paths)
        with merged(store_paths) if len(store_paths) > 1 else nullcontext(Store(store_paths[0])) as store:
            meant = meant or [stored(store.path, study, profile)[1]["study"] for study in studies]
            names = meant or [row["study"] for row in store.studies()]
            refresh = WATCH_SECONDS if watch else 0
            unfinished = going_on(store, names)  # before the page: it then has all that a finished study has
            source = ", ".join(map(str, store_paths))
            write_page(store, names, path, source=source, refresh=refresh, hosts=with_hosts)
        if not written:
            echo(f"report: {path}")
        if not (watch and unfinished):
            break
        while not (stop and stop()) and _changed(store_paths) == before:
            time.sleep(0.5)
        if stop and stop():
            sys.exit(128 + (stop.signal or signal.SIGINT))
    if written:
        echo(f"report: {path}, written {written + 1} times; nothing is left to run")


WATCH_SECONDS = 10
"""Seconds between two times that a watched page loads itself."""


def _changed(paths: tuple[Path, ...]) -> list[int]:
    """Return when each store was last written, 0 where it is gone or no store can be."""
    times = [0] * len(paths)
    for number, path in enumerate(paths):
        with suppress(OSError):
            times[number] = path.stat().st_mtime_ns
    return times


@click.command()
@click.option(
    "--profile",
    metavar="NAME",
    shell_complete=complete_profile,
    help="Check the studies of this profile, not those at the paper's scale.",
)
@store_option
@click.option("--markdown", is_flag=True, help="Print a table for a document.")
@json_option
def findings(profile: str | None, store_path: Path, markdown: bool, as_json: bool) -> None:
    """Check each of the paper's 17 findings against the store: holds, does not hold, cannot be told.

    A finding consists of claims about ratios, or differences of ratios (of the best checkpoint, as in the paper). One
    holds where its 95% interval lies inside the range that is claimed, does not hold where it lies outside, and
    cannot be told where it lies across: much is 0.1 and more, alike and little is less. Levels are averaged over the
    study's other axes. The intervals are over draws and seeds, Student's t, with their variance
    pooled over the two levels compared; with one draw and seed they have the noise of the images alone.

    Example: diffmem findings --profile laptop
    """
    from diffmem.analysis import check_findings
    from diffmem.store import Store

    checked = check_findings(Store(store_path), profile)
    if as_json:
        rows = [
            {
                "number": finding.number,
                "finding": finding.text,
                "verdict": verdict,
                "claims": [vars(r) for r in results],
            }
            for finding, verdict, results in checked
        ]
        print_json(rows)
        return
    if markdown:
        echo(as_markdown([row for each in checked for row in _finding_rows(*each)]))
        return
    echo(f"The paper's findings in {store_path}" + (f" at profile {profile}" if profile else ""))
    for finding, verdict, results in checked:
        print_wrapped(f"{finding.number:2}  {verdict:14}  {finding.text}", indent=20)
        for result in results:
            print_wrapped(f"    - {_claim(result, verdict)}", indent=6)
    verdicts = Counter(verdict for _, verdict, _ in checked)
    echo(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))


def _claim(result: "Result", verdict: str) -> str:
    """Return what is claimed, the claim's own verdict where the finding has another, and what was measured."""
    claim = result.text if result.verdict == verdict else f"{result.text} ({result.verdict})"
    measured = "" if result.measured == "-" else f"{result.levels}, {result.measured}"
    paper = "" if result.paper == "-" else f"the paper {result.paper}"
    return "; ".join(filter(None, [claim, measured, paper, _behind(result)]))


def _behind(result: "Result") -> str:
    return "; ".join(filter(None, [result.behind.strip("-"), result.reason]))


def _finding_rows(finding: "Finding", verdict: str, results: "Sequence[Result]") -> "list[Row]":
    """Return a row for each claim of a finding, which only the first one names."""
    return [
        {
            "": "" if number else finding.number,
            "the paper finds": "" if number else finding.text,
            "verdict": "" if number else verdict,
            "claim": result.text,
            "this": result.verdict,
            "compared": result.levels or "-",
            "measured (95%)": result.measured,
            "paper": result.paper,
            "behind it": _behind(result),
        }
        for number, result in enumerate(results)
    ]
