"""The command that says when memorization begins: `onset`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import (
    by_measure,
    json_option,
    measure_option,
    profile_option,
    store_option,
    stored,
    study_argument,
)
from diffmem.cli.tables import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from diffmem.analysis import CurveOnsets


@click.command()
@study_argument
@profile_option
@measure_option
@click.option(
    "--level",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="The ratio at which memorization begins.",
)
@store_option
@json_option
def onset(study: str, profile: str | None, measure: str | None, level: float, store_path: Path, as_json: bool) -> None:
    """Estimate when memorization begins, in optimizer steps.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name.

    Each row is a training set size of a curve.

    \b
    Columns:
      N         training images
      cells     models of this size
      tau_mem   step at which memorization begins: the ratio rises through
                --level
      tau_half  step at which the ratio is half of its last value
      tau_gen   step at which images become good: the first checkpoint whose
                Frechet distance to held-out images is at most 1.1 times the
                least; only if the quality of images is measured
      95%       interval; "?" is an end that the checkpoints do not bound

    tau_mem is next to the first checkpoint whose 95% interval is above --level, if the interval of the next checkpoint
    is above it too. Values are geometric means over draws and seeds. Intervals are over draws and seeds, or over images
    if a size has only one model.

    The slope of log tau_mem against log N is 1 if the onset grows in proportion to the number of training images. From
    tau_gen on, images are good. From tau_mem on, they are copied.

    Checkpoints that are log-spaced in steps (score.points) work best.

    Example: diffmem onset quickstart --json
    """
    from diffmem.analysis import check_measured, onsets_of, space_of

    store, found = stored(store_path, study, profile)
    found = by_measure(found, measure)
    with store.snapshot():
        check_measured(store, found)
        points, cells = store.curve_points(found.study, found.measure, found.threshold), store.progress(found.study)
        quality = store.study_quality(found.study)
    unfinished = sum(bool(cell.expected) and not cell.finished for cell in cells)  # a monitor's may go on for ever
    curves = onsets_of(points, level=level, quality=quality)
    if as_json:
        about = {
            "study": found.study,
            "measure": found.measure.name,
            "level": level,
            "space": space_of(quality) or None,
        }
        print_json({**about, "curves": curves, "unfinished": unfinished})
        return
    rows = [row for curve in curves for row in _rows(curve)]
    print_table(
        f"{found.study}: steps until {found.measure.ratio} > {level:g}", rows, columns=["curve", "N", "tau_mem"]
    )
    for curve in curves:
        _print_slope(curve)
    if quality:
        print_wrapped(f"tau_gen is by the Frechet distance to held-out images ({space_of(quality)})", indent=4)
    else:
        print_wrapped(
            'no tau_gen: the quality is not measured; a run measures it with score.measures = ["quality"]', indent=4
        )
    if unfinished:
        print_wrapped(f"{unfinished} of {len(cells)} cells are not finished", indent=4)
    if not curves:
        print_wrapped("no checkpoint after an optimizer step is measured", indent=4)


def _rows(curve: "CurveOnsets") -> list[dict[str, Any]]:
    return [
        {
            "curve": curve.label or "all cells",
            "N": each.size,
            "cells": each.cells,
            "tau_mem": str(each.mem),
            "95%": each.mem.interval,
            "tau_half": str(each.half),
            "its 95%": each.half.interval,
        }
        | ({} if each.gen is None else {"tau_gen": str(each.gen), "95% of it": each.gen.interval})
        for each in curve.sizes
    ]


def _print_slope(curve: "CurveOnsets") -> None:
    label = curve.label or "all cells"
    if curve.slope:
        print_wrapped(f"{label}: tau_mem grows as N to the power {curve.slope}", indent=4)
    if curve.left_out:
        print_wrapped(f"{label}: without an onset between checkpoints: N = {_listed(curve.left_out)}", indent=4)
    if curve.gen_slope:
        print_wrapped(f"{label}: tau_gen grows as N to the power {curve.gen_slope}", indent=4)
    if curve.gen_left_out:
        print_wrapped(f"{label}: without a tau_gen between checkpoints: N = {_listed(curve.gen_left_out)}", indent=4)
    if partly := [each.size for each in curve.sizes if 0 < each.gen_cells < each.cells]:
        print_wrapped(f"{label}: tau_gen is of some cells only at N = {_listed(partly)}", indent=4)
    if falling := [each.size for each in curve.sizes if each.falls]:
        print_wrapped(
            f"{label}: the distance to held-out images still falls at the last checkpoint at N = {_listed(falling)}, "
            "so that tau_gen may be later with more steps",
            indent=4,
        )
    if rising := [each.size for each in curve.sizes if each.rises]:
        print_wrapped(
            f"{label}: the ratio still rises at the last checkpoint at N = {_listed(rising)}, so that tau_half is "
            "later with more steps",
            indent=4,
        )


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
