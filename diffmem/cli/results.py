"""The commands that say what has come out: `emm` and `report`."""

import itertools
import os
import signal
import sys
import time
import webbrowser
from collections import defaultdict
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    FileName,
    by_measure,
    complete_study,
    json_option,
    measure_option,
    profile_option,
    store_option,
    stored,
    study_argument,
)
from diffmem.cli.signals import StopOnSignal
from diffmem.cli.tables import echo, print_json, print_table, print_wrapped
from diffmem.store import DEFAULT_STORE
from diffmem.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.analysis import Curve
    from diffmem.store import Note, StoredStudy
from diffmem.cli.status import print_notes


@click.command()
@study_argument
@profile_option
@measure_option
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SHARE",
    help="Count copies at this threshold of the measure.  [default: emm.threshold of the study]",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(min=0, max=1, max_open=True),
    help="The EMM is the largest N with ratio >= 1 - EPSILON.  [default: emm.epsilon of the study]",
)
@store_option
@json_option
def emm(
    study: str,
    profile: str | None,
    measure: str | None,
    threshold: float | None,
    epsilon: float | None,
    store_path: Path,
    as_json: bool,
) -> None:
    """Estimate the largest training set that is memorized (EMM).

    The EMM (effective model memorization) of a curve is the largest N with ratio >= 1 - epsilon. The ratio is the share
    of images that the study's measure, or --measure, calls copies. At each size, the best checkpoint counts, as in the
    paper.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name.

    \b
    Columns:
      curve    one combination of settings
      EMM      the estimate; a bound, as in >= 32, if the ratio does not cross
               1 - epsilon between two sizes
      95%      interval over images, draws and seeds; >= 19.3 or <= 8 if no size
               ends it, "not bounded" if none begins it either
      N=...    ratio at this size
      null     share of held-out images that are called copies: the highest of
               all sizes (no model was trained on held-out images)

    Notes say what was done to the images when they were read.

    Example: diffmem emm quickstart --json
    """
    from diffmem.analysis import between_groups, check_measured, curves_of, measured_cells, only_size

    store, found = stored(store_path, study, profile)
    found = by_measure(found, measure).at(threshold=threshold, epsilon=epsilon)
    if threshold is not None and threshold > found.measure.largest:
        largest = f"at most {found.measure.largest:g} for the measure {found.measure.name}"
        raise click.BadParameter(f"must be {largest}, not {threshold:g}", param_hint="--threshold")
    with store.snapshot():
        cells, notes = measured_cells(store, found), store.notes(found.study)
        check_measured(store, found)
        grouped = between_groups(store, found)
        grouped = grouped and grouped.at(threshold=threshold)
        by_groups = [] if grouped is None else curves_of(measured_cells(store, grouped), found.epsilon)
    curves = curves_of(cells, found.epsilon)
    if as_json:
        _print_emm_json(found, grouped, curves, by_groups, notes)
        return
    alone = only_size(cells) is not None
    line = f"{found.measure.ratio} >= {1 - curves[0].epsilon:g}"
    line += "" if threshold is None else f" at threshold {threshold:g}"
    title = f"{found.study}: {found.measure.ratio}" if alone else f"{found.study}: largest N with {line}"
    print_table(title, [_curve_row(curve, alone=alone) for curve in curves])
    for curve in curves:
        if note := curve.caveat if alone else curve.note:
            print_wrapped(f"{curve.label or 'all cells'}: {note}", indent=4)
    if steps := steps_told(curves):
        print_wrapped(steps, indent=4)
    if alone:
        print_wrapped(f"a single size gives no EMM, the largest N with {line}", indent=4)
    for curve in (each for each in by_groups if each.points):
        ratios = ", ".join(f"N={point.size}: {point.best:.3f}" for point in curve.points)
        print_wrapped(f"{curve.label or 'all cells'}: {grouped and grouped.measure.ratio} {ratios}", indent=4)
    print_notes(notes, cells, found.measure)


def _print_emm_json(
    study: "StoredStudy",
    grouped: "StoredStudy | None",
    curves: "Sequence[Curve]",
    by_groups: "Sequence[Curve]",
    notes: "Sequence[Note]",
) -> None:
    from diffmem.analysis import emm_row

    ratios = {curve.label: {str(point.size): round(point.best, 6) for point in curve.points} for curve in by_groups}
    rows = [
        {key: getattr(row, key) for key in EMM_KEYS}
        | {
            "emm": row.emm or "not measured",
            "ratios": {str(point.size): round(point.best, 6) for point in curve.points},
            "grouped_ratios": ratios.get(curve.label, {}),
            "null_ratios": {str(point.size): point.null for point in curve.points},
            "null_samples": {str(point.size): point.null_samples for point in curve.points},
            "null_thresholds": {
                str(point.size): None if point.null_threshold is None else study.measure.shown(point.null_threshold)
                for point in curve.points
            },
            "steps": {str(point.size): point.steps for point in curve.points},
            "p_values": {str(point.size): point.p_value for point in curve.points},
            "note": row.note,
        }
        for curve in curves
        for row in [emm_row(study, curve)]
    ]
    about = {
        "study": study.study,
        "measure": study.measure.name,
        "threshold": study.threshold,
        "epsilon": study.epsilon,
    }
    print_json({**about, "grouped_measure": grouped and grouped.measure.name, "curves": rows, "notes": notes})


def steps_told(curves: "Sequence[Curve]") -> str:
    """Return how many optimizer steps the cells of each size have had; empty of what was not trained."""
    steps: dict[int, set[int]] = defaultdict(set)
    for curve in curves:
        for point in curve.points:
            steps[point.size] |= {point.steps} - {0}
    told = ", ".join(f"N={size}: {_between(found)}" for size, found in sorted(steps.items()) if found)
    return f"optimizer steps at the last checkpoint: {told}" if told else ""


def _between(numbers: set[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


EMM_KEYS = ("curve", "emm", "value", "lower", "upper", "lower95", "upper95")


def _curve_row(curve: "Curve", *, alone: bool) -> dict[str, Any]:
    """Return what `emm` prints of a curve: its EMM and ratios, or of one size `alone` the ratio and its interval."""
    ratios = {f"N={point.size}": point.best for point in curve.points}
    label = {"curve": curve.label or "all cells"}
    if alone:
        interval = [f"{point.low:.3f} to {point.high:.3f}" for point in curve.points]
        return {**label, **ratios, "95%": "".join(interval) or None, "null": curve.highest_null}
    told = {"EMM": curve.answer, "95%": str(curve.interval or "-")}
    return {**label, **told, **ratios, "null": curve.highest_null}


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
    help="The DuckDB file that holds the results. If given several times, the stores are shown as one.",
)
@click.option(
    "-o",
    "--output",
    type=FileName(dir_okay=False),
    help="File to write the page to.  [default: report.html beside the store]",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
@click.option("--watch", is_flag=True, help="Rewrite the page as results come in, until nothing is left to run.")
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each figure as SVG and PDF for a paper instead of the page. Needs matplotlib.",
)
@click.option("--with-hosts", is_flag=True, help="Name the machines and the folders that the results come from.")
def report(
    studies: tuple[str, ...],
    profile: str | None,
    store_paths: tuple[Path, ...],
    output: Path | None,
    opened: bool,
    watch: bool,
    figures: Path | None,
    with_hosts: bool,
) -> None:
    """Write all results as one HTML page that opens offline.

    Each study begins with its answer, then shows its curve, training and copies, and how it was measured.

    STUDIES are study files, or names of studies in the store, or the beginnings of those names. Without STUDIES, the
    page has all studies of the store.

    With --watch, the page reloads itself while there is something left to run. Ctrl-C stops watching.

    With --figures, every figure is one column wide (3.3 inches), with serif labels.

    \b
    Example: diffmem report quickstart -o quickstart.html
    Example: diffmem report quickstart --figures paper/
    """
    if figures is not None:
        _write_figures(studies, profile, store_paths, figures)
        return
    from diffmem.report import write_page
    from diffmem.store import Store, going_on, listed, merged

    path = output or store_paths[0].parent / "report.html"
    replaced = os.path.isfile(path)  # noqa: PTH113 - False where the name is too long
    stop = StopOnSignal("the page stays as it is now") if watch else None
    meant: list[str] = []
    for written in itertools.count():
        before = _changed(store_paths)
        with merged(store_paths) if len(store_paths) > 1 else nullcontext(Store(store_paths[0])) as store:
            meant = meant or [stored(store.path, study, profile)[1].study for study in studies]
            names = meant or [each.study for each in store.studies()]
            refresh = WATCH_SECONDS if watch else 0
            unfinished = going_on(store, names)  # before the page: it then has all that a finished study has
            source = ", ".join(map(str, store_paths))
            write_page(store, names, path, source=source, refresh=refresh, hosts=with_hosts)
        if not written:
            echo(f"report: {path}{' (replaced)' * replaced}, {counted(len(names), 'study')}: {listed(names)}")
            if opened and not webbrowser.open(path.resolve().as_uri()):
                echo("no browser could be started", err=True)
        if not (watch and unfinished):
            break
        while not (stop and stop()) and _changed(store_paths) == before:
            time.sleep(0.5)
        if stop and stop():
            sys.exit(128 + (stop.signal or signal.SIGINT))
    if written:
        echo(f"report: {path}, written {written + 1} times; nothing is left to run")


def _write_figures(studies: tuple[str, ...], profile: str | None, stores: tuple[Path, ...], folder: Path) -> None:
    from diffmem.report import write_figures
    from diffmem.store import Store, merged

    with merged(stores) if len(stores) > 1 else nullcontext(Store(stores[0])) as store:
        meant = [stored(store.path, study, profile)[1].study for study in studies]
        files = write_figures(store, meant or [each.study for each in store.studies()], folder)
    echo(f"{len(files)} files: {folder}")


WATCH_SECONDS = 10
"""Seconds between two times that a watched page loads itself."""


def _changed(paths: tuple[Path, ...]) -> list[int]:
    """Return when each store was last written, 0 where it is gone or no store can be."""
    times = [0] * len(paths)
    for number, path in enumerate(paths):
        with suppress(OSError):
            times[number] = path.stat().st_mtime_ns
    return times
