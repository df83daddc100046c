"""The commands that look into a store: `show`, `diff`, `query` and `export`."""

import csv
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import FileName, complete_cell, complete_study, json_option, store_option, stored
from diffmem.cli.quality import quality_rows
from diffmem.cli.tables import MOST_ROWS, echo, print_json, print_table, print_wrapped
from diffmem.text import counted, duration, moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.store import MeasuredPoint, StoredLevel, Try


@click.command()
@click.argument("cell", shell_complete=complete_cell)
@store_option
@json_option
def show(cell: str, store_path: Path, as_json: bool) -> None:
    """Show everything about one cell.

    This is its settings, studies, checkpoints and attempts, and what was done to its images.

    CELL is a cell_id from `diffmem status`, or the beginning of one. `low` and `high` are the ends of the 95% Wilson
    interval of a ratio.

    Example: diffmem show 3f2a
    """
    from diffmem.cells import clock_of, dotted
    from diffmem.store import Store, describe_cell, find_cell

    store = Store(store_path)
    described = describe_cell(store, find_cell(store, cell))
    if as_json:
        print_json(described)
        return
    measured, values = len(described.checkpoints), dotted(described.configuration)
    of = f" of {described.expected}" if described.expected else ""
    echo(f"{described.cell_id}: {measured}{of} checkpoints measured")
    print_table("settings", [{"setting": key, "value": _setting(value)} for key, value in values.items()])
    echo("studies" if described.studies else "in no study")
    for place in described.studies:
        echo(f"  {place.study}: {place.name}")
    print_table("checkpoints", [_checkpoint(row) for row in described.checkpoints])
    if described.measurements:
        print_table("by other measures", [vars(each) for each in described.measurements])
    if described.levels:
        epoch = max(each.epoch for each in described.levels)
        levels = [each for each in described.levels if each.epoch == epoch]
        print_table(f"at each noise level, {clock_of(described.configuration)} {epoch}", _by_sigma(levels))
    if described.quality:
        epoch = max(each.epoch for each in described.quality)
        of_last = [each for each in described.quality if each.epoch == epoch]
        print_table(f"quality, {clock_of(described.configuration)} {epoch}", quality_rows(of_last))
    print_table("attempts", [_attempt(row) for row in described.attempts])
    for versions in dict.fromkeys(_versions(row) for row in described.attempts):
        since = next(row.started_at for row in described.attempts if _versions(row) == versions)
        print_wrapped(f"from {moment(since)} with {versions}", indent=4)
    for row in described.attempts:
        if row.error:
            echo(f"{row.outcome} at {moment(row.ended_at or row.started_at)}: {row.error}")
    for note in described.notes:
        print_wrapped(f"note: {note}", indent=4)


def _setting(value: Any) -> str:
    return "-" if value is None else str(value)


def _checkpoint(row: "MeasuredPoint") -> dict[str, Any]:
    """Return a checkpoint as `show` prints it: so that a row fits a terminal."""
    return {
        "epoch": row.epoch,
        "step": row.step,
        "memorized": f"{row.memorized}/{row.samples}",
        "ratio": row.ratio,
        "low": row.low,
        "high": row.high,
        "loss": row.loss,
        "train": duration(row.train_seconds),
        "score": duration(row.score_seconds),
        "measured": moment(row.measured_at),
    }


LEVEL_COLUMNS = {
    ("loss", "training"): "loss",
    ("loss", "held_out"): "held-out loss",
    ("relative_loss_gap", "both"): "gap / held-out loss",
    ("to_optimum", "training"): "to the optimum",
    ("to_optimum", "held_out"): "held-out to it",
    ("auc_loss", "both"): "AUC",
}
"""What `show` prints of measures of a denoiser, by quantity and images."""


def _by_sigma(levels: "Sequence[StoredLevel]") -> list[dict[str, Any]]:
    """Return a row for each noise level."""
    rows: dict[float, dict[str, Any]] = {}
    for each in levels:
        if name := LEVEL_COLUMNS.get((each.quantity, each.images)):
            rows.setdefault(each.sigma, {"sigma": f"{each.sigma:.3g}"})[name] = f"{each.value:.3g}"
    return [rows[sigma] for sigma in sorted(rows, reverse=True)]


def _versions(row: "Try") -> str:
    return ", ".join(f"{package} {number}" for package, number in row.versions.items())


def _attempt(row: "Try") -> dict[str, Any]:
    return {
        "outcome": row.outcome,
        "host": row.host,
        "process": row.pid,
        "device": row.device,
        "started": moment(row.started_at),
        "took": None if row.seconds is None else duration(row.seconds),
        "commit": row.git_commit and row.git_commit[:10] + " (changed)" * bool(row.git_dirty),
    }


@click.command()
@click.argument("cell", shell_complete=complete_cell)
@click.argument("other", metavar="CELL", shell_complete=complete_cell)
@store_option
@json_option
def diff(cell: str, other: str, store_path: Path, as_json: bool) -> None:
    """Show the settings in which two cells differ.

    Each CELL is a cell_id, or the beginning of one.

    Example: diffmem diff 3f2a 91c0
    """
    from diffmem.store import Store, differing_settings, find_cell

    store = Store(store_path)
    one, two = find_cell(store, cell), find_cell(store, other)
    differing = differing_settings(store, one, two)
    if as_json:
        print_json({"cells": [one, two], "settings": differing})
    elif not differing:
        echo(f"{one} and {two} differ in no setting")
    else:
        rows = [{"setting": key, one: _setting(first), two: _setting(last)} for key, (first, last) in differing.items()]
        print_table("", rows)


@click.command()
@click.argument("sql", metavar="SELECT")
@store_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option("--files", is_flag=True, help="Let the query also read files of this machine, as in FROM 'table.csv'.")
@click.option(
    "--memory",
    type=click.FloatRange(min=0.1, max=1e6),
    default=4.0,
    show_default=True,
    metavar="GB",
    help="Approximate memory limit for the query and its rows.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.001, max=1e6),
    default=600.0,
    show_default=True,
    help="Time limit for the query.",
)
@json_option
def query(sql: str, store_path: Path, as_csv: bool, files: bool, memory: float, seconds: float, as_json: bool) -> None:
    """Run a SELECT on the store.

    If SELECT is -, the query is read from standard input. store/README.md describes the tables. The query cannot change
    the store, which is opened read-only. It can read other files only with --files.

    Example: diffmem query "SELECT curve, size, max(ratio) FROM results WHERE study = 'quickstart' GROUP BY ALL"
    """
    from diffmem.store import Limits, Store, bounded_memory
    from diffmem.store import query as select

    if as_csv and as_json:
        raise click.UsageError("--csv and --json are two ways to print the rows; take one")
    sql = sys.stdin.read() if sql == "-" else sql
    limits = Limits(gigabytes=memory, seconds=seconds, files=files)
    most = None if as_json or as_csv else MOST_ROWS
    with bounded_memory(memory):
        columns, values, count = select(Store(store_path), sql, limits=limits, most=most)
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *values])
        return
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    if as_json:
        print_json(rows)
        return
    shown = [{key: _precise(value) for key, value in row.items()} for row in rows]
    print_table("", shown, columns=columns, of=count)
    echo(counted(count, "row"))


def _precise(value: Any) -> Any:
    """Return a number as text with six digits, for a query may ask for what three decimals do not show."""
    return f"{value:.6g}" if isinstance(value, float) else value


WHAT = [
    *("results", "cells", "checkpoints", "evidence", "gaps", "quality", "images", "notes"),
    *("emm", "onsets", "extraction", "halves"),
]
SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".json": "json"}


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@click.option("--study", metavar="STUDY", shell_complete=complete_study, help="Export only this study.")
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "json"]),
    help="Output format.  [default: from the suffix of -o, or CSV]",
)
@click.option("-o", "--output", type=FileName(dir_okay=False), help="Output file.  [default: standard output]")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def export(
    what: str, study: str | None, store_path: Path, form: str | None, output: Path | None, as_json: bool
) -> None:
    """Write what the store has as CSV, Parquet or JSON.

    \b
    WHAT is one of:
      results      one row per checkpoint and measure at its place in each
                   study, with a column for each axis: P.size, M.width, ...
      cells        one row per cell, with a column for each setting
      checkpoints  one row per checkpoint and measure, with the 95% Wilson
                   interval of the ratio
      evidence     one row per generated image
      gaps         results of the measures of a denoiser, one row per noise
                   level
      quality      quality of the generated images of each checkpoint
      images       one row per training image, checkpoint and measure: how
                   often the image is copied, and what it is like
      notes        what was done to the images of each cell
      emm          one row per curve; lower and upper are the sizes around the
                   crossing, lower95 and upper95 are the 95% interval
      onsets       one row per size of a curve
      extraction   how many training images the last checkpoint of each cell
                   copies
      halves       one row per pair of cells that differ only in P.half, as
                   compared by `diffmem halves`

    With --study, every row except those of evidence and notes also gives its place in the study.

    Example: diffmem export results --study quickstart -o quickstart.parquet
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} are two formats; take one")
    chosen = _format(form or ("json" if as_json else None), output)
    from diffmem.analysis import export as write
    from diffmem.store import Store

    store, name = Store(store_path), None
    if study is not None:
        store, row = stored(store_path, study)
        name = row.study
    if output is not None:
        write(store, what, output, form=chosen, study=name)
        echo(f"{what}: {output}")
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / what
        write(store, what, path, form=chosen, study=name)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                click.echo(block, nl=False)


def _format(form: str | None, output: Path | None) -> str:
    """Return the format to write; UsageError where that is not clear, or not for a terminal."""
    if output is None:
        if form == "parquet":
            raise click.UsageError("Parquet is no text; name a file for it with -o")
        return form or "csv"
    chosen = form or SUFFIXES.get(output.suffix.lower())
    if chosen is None:
        raise click.UsageError(f"{output}: name it .csv, .parquet or .json, or say --format")
    return chosen
