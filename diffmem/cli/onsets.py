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
    help="The ratio that a model has from its onset on.",
)
@store_option
@json_option
def onset(study: str, profile: str | None, measure: str | None, level: float, store_path: Path, as_json: bool) -> None:
    """Estimate at which step memorization begins (tau_mem), and is half of what it becomes (tau_half).

    STUDY is a study file, or the name that the store knows it by or the beginning of it. tau_mem is where the ratio
    rises through --level, next to the first checkpoint whose 95% interval is above it, as that of the next checkpoint
    is. Values are geometric means over draws and seeds; 95% intervals are over these, or over images where a size has
    one model; "?" is an end that the checkpoints do not bound. The slope of log tau_mem against log N is 1 where the
    onset grows in proportion to the training images. If the quality of images is measured, tau_gen is the first
    checkpoint whose Frechet distance to held-out images is at most 1.1 times the least: from there on images are good,
    and from tau_mem on copied. Checkpoints log-spaced in steps (score.points) suit it best.

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
