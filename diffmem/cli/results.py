"""The commands that say what has come out: `status`, `emm`, `report` and `findings`."""

import itertools
import math
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    DEFAULT_STORE,
    FileName,
    by_measure,
    complete_profile,
    complete_study,
    json_option,
    measure_option,
    profile_option,
    store_option,
    stored,
    study_argument,
)
from diffmem.cli.signals import StopOnSignal
from diffmem.cli.tables import as_markdown, echo, print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.analysis import Curve, Finding, OtherResult, Result
    from diffmem.store import Note, StoredStudy
from diffmem.cli.status import print_notes


@click.command()
@study_argument
@profile_option
@measure_option
@store_option
@json_option
def emm(study: str, profile: str | None, measure: str | None, store_path: Path, as_json: bool) -> None:
    """Estimate the effective model memorization: the largest N with ratio >= 1 - epsilon, for each curve.

    STUDY is a study file, or the name that the store knows it by or the beginning of it. The best checkpoint of
    each size counts, as in the paper; where the ratio does not cross the line between two sizes the answer is a bound.
    The ratio is the share of images that the study's measure, or --measure, calls copies. The 95% interval is over
    images, draws and seeds; "?" is an end that the sizes do not bound. `null` is the
    share of held-out images, which no model was trained on, that are called copies: the highest of all sizes. Notes say
    what was done to the images when they were read.

    Example: diffmem emm quickstart --json
    """
    from diffmem.analysis import between_groups, check_measured, curves_of, measured_cells, only_size

    store, found = stored(store_path, study, profile)
    found = by_measure(found, measure)
    with store.snapshot():
        cells, notes = measured_cells(store, found), store.notes(found.study)
        check_measured(store, found)
        grouped = between_groups(store, found)
        by_groups = [] if grouped is None else curves_of(measured_cells(store, grouped), found.epsilon)
    curves = curves_of(cells, found.epsilon)
    if as_json:
        _print_emm_json(found, grouped, curves, by_groups, notes)
        return
    alone = only_size(cells) is not None
    line = f"{found.measure.ratio} >= {1 - curves[0].epsilon:g}"
    title = f"{found.study}: {found.measure.ratio}" if alone else f"{found.study}: largest N with {line}"
    print_table(title, [_curve_row(curve, alone=alone) for curve in curves])
    for curve in curves:
        if note := curve.caveat if alone else curve.note:
            print_wrapped(f"{curve.label or 'all cells'}: {note}", indent=4)
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
            "p_values": {str(point.size): point.p_value for point in curve.points},
            "note": row.note,
        }
        for curve in curves
        for row in [emm_row(study, curve)]
    ]
    about = {"study": study.study, "measure": study.measure.name, "epsilon": curves[0].epsilon if curves else None}
    print_json({**about, "grouped_measure": grouped and grouped.measure.name, "curves": rows, "notes": notes})


EMM_KEYS = ("curve", "emm", "value", "lower", "upper", "lower95", "upper95")


def _curve_row(curve: "Curve", *, alone: bool) -> dict[str, Any]:
    """Return what `emm` prints of a curve: its EMM and ratios, or of one size `alone` the ratio and its interval."""
    ratios = {f"N={point.size}": point.best for point in curve.points}
    label = {"curve": curve.label or "all cells"}
    if alone:
        interval = [f"{point.low:.3f} to {point.high:.3f}" for point in curve.points]
        return {**label, **ratios, "95%": "".join(interval) or None, "null": curve.highest_null}
    told = {"EMM": str(curve.estimate or "not measured"), "95%": str(curve.interval or "-")}
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
    from diffmem.report import write_page
    from diffmem.store import Store, going_on, merged

    path = output or store_paths[0].parent / "report.html"
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
@click.option(
    "--report",
    "page",
    type=FileName(dir_okay=False),
    help="Also write a page with the paper's effects beside those measured at every scale that the store has.",
)
@json_option
def findings(profile: str | None, store_path: Path, markdown: bool, page: Path | None, as_json: bool) -> None:
    """Check the paper's 17 findings, and some of other papers: holds, does not hold, cannot be told.

    A finding consists of claims about ratios, or differences of ratios (of the best checkpoint, as in the paper). One
    holds where its 95% interval lies inside the range that is claimed, does not hold where it lies outside, and
    cannot be told where it lies across: much is 0.1 and more, alike and little is less. Levels are averaged over the
    study's other axes. The intervals are those of `emm`, over images, draws and seeds; with one draw and seed they have
    the noise of the images alone.

    Findings of other papers are read off the studies onset and two_halves: a number, its 95% interval, and the range
    that is claimed.

    Example: diffmem findings --profile laptop
    """
    from diffmem.analysis import check_findings, check_other_papers
    from diffmem.store import Store

    store = Store(store_path)
    if page is not None:
        from diffmem.report import write_findings

        write_findings(store, page)
        echo(f"findings: {page}", err=True)
    checked, others = check_findings(store, profile), check_other_papers(store, profile)
    if as_json:
        rows = [
            {
                "number": finding.number,
                "source": GU,
                "finding": finding.text,
                "verdict": verdict,
                "claims": [vars(r) for r in results],
            }
            for finding, verdict, results in checked
        ]
        print_json([*rows, *map(_other_data, others)])
        return
    if markdown:
        echo(as_markdown([row for each in checked for row in _finding_rows(*each)]))
        echo(f"\n{as_markdown(list(map(_other_row, others)))}")
        return
    echo(f"The paper's findings in {store_path}" + (f" at profile {profile}" if profile else ""))
    for finding, verdict, results in checked:
        print_wrapped(f"{finding.number:2}  {verdict:14}  {finding.text}", indent=20)
        for result in results:
            print_wrapped(f"    - {_claim(result, verdict)}", indent=6)
    verdicts = Counter(verdict for _, verdict, _ in checked)
    echo(", ".join(f"{verdict}: {count}" for verdict, count in verdicts.most_common()))
    echo("Findings of other papers")
    for other in others:
        print_wrapped(f"    {other.verdict:14}  {other.text} ({other.source})", indent=20)
        print_wrapped(f"    - {_other(other)}", indent=6)


GU = "Gu et al. 2023"


def _other(result: "OtherResult") -> str:
    """Return what was measured of a claim of another paper, its range, and where."""
    low, high = result.within
    within = f"above {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    measured = result.quantity if result.value is None else f"{result.quantity}: {result.measured}, claimed {within}"
    return "; ".join(filter(None, [measured, result.scale, result.behind, result.reason]))


def _other_data(result: "OtherResult") -> dict[str, Any]:
    """Return a finding of another paper as data, as the paper's are."""
    claim = {key: value for key, value in vars(result).items() if key != "source"}
    about = {"number": None, "source": result.source, "finding": result.text, "verdict": result.verdict}
    return {**about, "claims": [claim]}


def _other_row(result: "OtherResult") -> dict[str, Any]:
    return {
        "source": result.source,
        "finds": result.text,
        "verdict": result.verdict,
        "measured": result.quantity,
        "value (95%)": result.measured,
        "scale": result.scale or "-",
        "behind it": "; ".join(filter(None, [result.behind, result.reason])),
    }


def _claim(result: "Result", verdict: str) -> str:
    """Return what is claimed, the claim's own verdict where the finding has another, and what was measured."""
    claim = result.text if result.verdict == verdict else f"{result.text} ({result.verdict})"
    measured = "" if result.measured == "-" else f"{result.levels}, {result.measured}"
    paper = "" if result.paper == "-" else f"the paper {result.paper}"
    return "; ".join(filter(None, [claim, measured, paper, _behind(result)]))


def _behind(result: "Result") -> str:
    return "; ".join(filter(None, [result.behind.strip("-"), result.reason]))


def _finding_rows(finding: "Finding", verdict: str, results: "Sequence[Result]") -> list[dict[str, Any]]:
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
