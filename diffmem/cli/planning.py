"""The commands that look at a study file before it is run: `plan` and `schema`."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    StudyFile,
    json_option,
    load_study,
    max_pixels_option,
    profile_option,
    set_option,
    store_option,
)
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.text import counted, duration, with_unit

if TYPE_CHECKING:
    from diffmem.runs import PlannedCell, SearchPlan, Throughput


@click.command()
@click.argument("study", type=StudyFile())
@profile_option
@set_option
@store_option
@max_pixels_option
@click.option("--measure", is_flag=True, help="Benchmark each network briefly to estimate the time.")
@click.option("--tflops", type=click.FloatRange(min=1e-6, max=1e9), help="Estimate the time at this many TFLOP/s.")
@json_option
def plan(
    study: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    store_path: Path,
    measure: bool,
    tflops: float | None,
    as_json: bool,
) -> None:
    """Show what a run would train, and what it would cost.

    For each cell of the study file, it shows how much the store already has and what the rest costs. For a
    search, it shows the cells that come next, and the cost of all that may follow. It writes nothing.

    STUDY is a study file, or the name of a study that is in the folder studies or ships with diffmem.

    \b
    Columns:
      params    parameters of the network
      steps     optimizer steps of the whole training
      done      checkpoints measured / all checkpoints
      shared    other study files in the folder that have the cell too
      train     images still to train
      generate  images still to generate
      FLOP      floating-point operations still to do
      time      time still to go; only with --measure or --tflops

    A shared cell is trained once for all of its studies. `shared` counts only studies of at most 1,000 cells, on
    datasets with a name or on this study's own images.

    Example: diffmem plan skip --tflops 40
    """
    if measure and tflops:
        raise click.UsageError("--measure and --tflops are two ways to tell the time; take one")
    if tflops is not None and math.isnan(tflops):
        raise click.BadParameter("nan is not a number of operations", param_hint="--tflops")
    loaded = load_study(study, profile, overrides)
    from diffmem.runs import Throughput, grid_as_fine, plan_cells, plan_search
    from diffmem.store import Store

    planned = plan_cells(loaded, Store(store_path), profile=profile)
    speed = None
    if tflops:
        speed = dict.fromkeys((each.cell.cell_id for each in planned), Throughput(tflops * 1e12, tflops * 1e12))
    elif measure:
        from diffmem.runs import measure_cells

        speed = measure_cells([each.cell for each in planned if not each.finished])
    search = plan_search(loaded, Store(store_path)) if loaded.estimation.search == "bisect" else None
    rows = (_planned_row(each, speed) for each in planned)
    if as_json:
        print_json(list(rows))
        return
    if not planned:
        echo(
            f"{loaded.name}: the search has all that it needs: diffmem run ends at once, and diffmem emm shows the EMM"
        )
        return
    print_table(f"{loaded.title} ({loaded.name})", map(_shown_row, rows), cut="cell_id")
    _print_totals(planned, search, store_path)
    if search:
        sizes, operations = grid_as_fine(loaded)
        echo(
            f"the cells listed come next; the search trains at most {counted(search.sizes, 'more size')} a curve, not "
            f"counting extra draws near the line: {with_unit(search.expected)} operations expected, "
            f"{with_unit(search.worst)} at worst; a grid as fine has {sizes} sizes a curve and {with_unit(operations)} "
            "operations"
        )
    notes = Counter(note for each in planned for note in each.notes)
    for note, cells in notes.items():
        echo(f"note: {note}" + (f" (in {cells} of {len(planned)} cells)" if cells < len(planned) else ""))
    if speed is None:
        echo("--measure estimates the time on this device, --tflops on another one")
    else:
        whence = "as measured on this device" if measure else f"at {tflops:g} TFLOP/s"
        echo(f"time on one device, {whence}: {_time(planned, search, speed)}")


def _time(planned: "Sequence[PlannedCell]", search: "SearchPlan | None", speed: "Mapping[str, Throughput]") -> str:
    """Return how long all cells of a plan take; of a search also the rest, at the same speed per operation."""
    seconds = sum(_seconds(each, speed) for each in planned)
    operations = sum(each.cost.operations for each in planned)
    if search is None or not operations:
        return duration(seconds)
    expected, worst = (duration(seconds / operations * whole) for whole in (search.expected, search.worst))
    return f"{duration(seconds)} for these cells; {expected} expected for the search, {worst} at worst"


def _print_totals(planned: "Sequence[PlannedCell]", search: "SearchPlan | None", store_path: Path) -> None:
    """Print what all cells of a plan have in common, and what is left of their work."""
    from diffmem.cells import kept_bytes
    from diffmem.runs import undertrained_cells, without_steps_between

    echo(
        f"{counted(len(planned), 'cell')}, {sum(each.finished for each in planned)} of them finished in {store_path}, "
        f"{sum(each.shared > 0 for each in planned)} shared with other studies of the folder"
    )
    trained, generated, operations = (
        with_unit(sum(getattr(each.cost, amount) for each in planned))
        for amount in ("images_trained", "images_generated", "operations")
    )
    echo(f"to go: {trained} images to train, {generated} to generate, {operations} floating-point operations")
    if kept := sum(kept_bytes(each.cell, each.cost.parameters) for each in planned if not each.finished):
        most = f"at most {with_unit(search.kept)}B" if search else f"{with_unit(kept)}B"
        echo(f"to keep: {most} of trained models in {store_path.parent / 'weights'} (score.keep)")
    count, warning = undertrained_cells([each.cell for each in planned])
    if count:
        echo(f"warning: {warning} ({count} of {len(planned)} cells)")
    if idle := without_steps_between([each.cell for each in planned]):
        echo(
            f"{counted(idle, 'cell')} with checkpoints that have no optimizer step between them: "
            "T.batch_size is more than the images of the epochs between"
        )


MAGNITUDES = ("parameters", "steps", "images to train", "images to generate", "operations")
"""Columns of a plan that are shown with a unit."""
HEADINGS = {
    "parameters": "params",
    "checkpoints": "done",
    "images to train": "train",
    "images to generate": "generate",
    "operations": "FLOP",
    "seconds": "time",
}
"""Shorter names of columns for a table, whose last lines have the whole ones."""


def _planned_row(planned: "PlannedCell", speed: "Mapping[str, Throughput] | None") -> dict[str, Any]:
    """Return a cell of a plan as a row, with its time where the speed is known."""
    cell, cost = planned.cell, planned.cost
    row = {
        "cell_id": cell.cell_id,
        "P.size": cell.P.size,
        **planned.entry.axis_values,
        "parameters": cost.parameters,
        "steps": cell.last_step if cell.M.trained else 0,
        "checkpoints": cell.checkpoint_count,
        "measured": planned.measured,
        "shared": planned.shared,
        "images to train": cost.images_trained,
        "images to generate": cost.images_generated,
        "operations": cost.operations,
        "notes": list(planned.notes),
    }
    if speed is not None:
        row["seconds"] = _seconds(planned, speed)
    return row


def _seconds(planned: "PlannedCell", speed: "Mapping[str, Throughput]") -> float:
    return 0.0 if planned.finished else planned.seconds(speed[planned.cell.cell_id])


def _shown_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a plan as its table shows it."""
    units: dict[str, Callable[[float], str]] = {**dict.fromkeys(MAGNITUDES, with_unit), "seconds": duration}
    shown = {key: units[key](value) if key in units else value for key, value in row.items()}
    shown.pop("notes")
    shown["checkpoints"] = f"{shown.pop('measured')}/{shown['checkpoints']}"
    return {HEADINGS.get(key, key): value for key, value in shown.items()}


@click.command()
@click.option("--markdown", is_flag=True, help="Print Markdown tables of all keys instead.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of study files.

    Editors use it to complete keys.

    Example: diffmem schema > studies/study.schema.json
    """
    from diffmem.study import json_schema, key_tables

    echo(key_tables() if markdown else json.dumps(json_schema(), indent=2))
