"""The command that says which training images are copied: `extraction`."""

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
    from diffmem.analysis import CopiedImages


@click.command()
@study_argument
@profile_option
@measure_option
@store_option
@json_option
def extraction(study: str, profile: str | None, measure: str | None, store_path: Path, as_json: bool) -> None:
    """Count the distinct training images that each model copies.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name.

    Each row is a cell at its last checkpoint. Each generated copy counts for its nearest training image.

    \b
    Columns:
      N          training images
      images     generated images
      extracted  training images with a copy among the generated images
      95%        interval of extracted, over other images of the same model
      of N       extracted as a share of all training images
      null       training images that held-out images would be copies of,
                 counted with as many held-out images as generated ones
      >= 2       training images with at least 2 copies
      >= 10      training images with at least 10 copies
      top 1%     share of all copies that fall on the most copied 1% of the
                 training images
      even       what top 1% would be if copies fell evenly on all training
                 images

    With --measure calibrated, it counts as Carlini et al. 2023 do.

    With --json, it also prints the counts at other thresholds and for fewer generated images. `diffmem export images`
    lists the counts of each image.

    Example: diffmem extraction quickstart --json
    """
    from diffmem.analysis import check_measured, copied_images

    store, found = stored(store_path, study, profile)
    found = by_measure(found, measure)
    with store.snapshot():
        check_measured(store, found)
        cells = copied_images(store, found)
    if as_json:
        about = {"study": found.study, "measure": found.measure.name, "threshold": found.threshold}
        print_json({**about, "cells": cells})
        return
    columns = ["cell_id", "N", "extracted"]
    print_table(f"{found.study}: {found.measure.copied} images", [_row(cell) for cell in cells], columns=columns)
    if fewer := [cell for cell in cells if 0 < cell.null_images < cell.samples]:
        most = max(cell.null_images for cell in fewer)
        print_wrapped(
            f"{len(fewer)} of {len(cells)} cells have fewer held-out images than generated ones, at most {most:,}: "
            "their null is of so many",
            indent=4,
        )
    if grouped := sum(cell.grouped for cell in cells):
        copied = sum(cell.grouped_copied for cell in cells)
        print_wrapped(f"{copied:,} of {grouped:,} training images that have a group are copied", indent=4)


def _row(cell: "CopiedImages") -> dict[str, Any]:
    whole = cell.by_images[-1]
    times = {each.times: each.images for each in cell.eidetic}
    top = cell.concentration
    return {
        "cell_id": cell.cell_id[:8],
        "cell": cell.name,
        "N": cell.size,
        "images": cell.samples,
        "extracted": cell.extracted,
        "95%": f"{whole.low:.0f} to {whole.high:.0f}",
        "of N": cell.share,
        "null": None if cell.null is None else f"{cell.null:.1f}",
        ">= 2": times.get(2, 0),
        ">= 10": times.get(10, 0),
        "top 1%": top and top.share,
        "even": top and top.even,
    }
