"""The command that shows the quality of generated images: `quality`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffmem.cli.options import json_option, profile_option, store_option, stored, study_argument
from diffmem.cli.tables import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffmem.analysis import QualityRow
    from diffmem.measures import QualityValue


@click.command()
@study_argument
@profile_option
@store_option
@json_option
def quality(study: str, profile: str | None, store_path: Path, as_json: bool) -> None:
    """Show how good the images of each model are, against its training images and against held-out ones.

    STUDY is a study file, or the name that the store knows it by or the beginning of it. A run measures the quality if
    score.measures names it, `diffmem measure --measure quality` with trained models that are kept. Two rows are a cell
    at its last checkpoint: FD is the Frechet distance, C_T is far below 0 if generated images are nearer to these real
    images than other real images are, `authentic` the share that is no copy by Alaa's rule. `null` is the FD of new
    real images in the place of the generated ones. A model that copies is good against its training images alone.

    With --json, every value at every checkpoint is printed, with its interval and its null.

    Example: diffmem quality quickstart
    """
    from diffmem.analysis import cautions, cell_quality

    store, found = stored(store_path, study, profile)
    with store.snapshot():
        rows, values = cell_quality(store, found), store.study_quality(found.study) if as_json else []
    if as_json:
        print_json({"study": found.study, "values": values, "notes": cautions(rows)})
        return
    print_table(f"{found.study}: quality", [_row(each) for each in rows], columns=["cell_id", "against"], cut="cell_id")
    for caution in cautions(rows):
        print_wrapped(caution, indent=4)
    print_wrapped("the page and `diffmem export quality` have all checkpoints, intervals and nulls", indent=4)


def _row(row: "QualityRow") -> dict[str, Any]:
    about = {"cell_id": row.cell_id, "cell": row.name, "epoch": row.epoch, "space": row.space}
    return about | quality_row(row.against, row.by_quantity)


def quality_rows(values: "Sequence[QualityValue]") -> list[dict[str, Any]]:
    """Return a row of a table for the quality in each space against each kind of real images."""
    found: dict[tuple[str, str], dict[str, QualityValue]] = {}
    for each in values:
        found.setdefault((each.space, each.against), {})[each.quantity] = each
    return [{"space": space} | quality_row(against, by_quantity) for (space, against), by_quantity in found.items()]


def quality_row(against: str, found: "Mapping[str, QualityValue]") -> dict[str, Any]:
    """Return what a table shows of the quality against one kind of real images, by quantity."""
    distance, images = found.get("frechet_distance"), next(iter(found.values()))
    values = {name: found[quantity].value if quantity in found else None for name, quantity in SHOWN.items()}
    return {
        "against": against.replace("_", "-"),
        "images": f"{images.n}/{images.real}",
        "FD": None if distance is None else f"{distance.value:.4g}",
        "95%": None if distance is None else f"{distance.low:.4g} to {distance.high:.4g}",
        "null": None if distance is None or distance.null is None else f"{distance.null:.4g}",
        **values,
    }


SHOWN = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "authentic": "authentic",
    "C_T": "c_t",
}
"""The columns of a table, and the quantities that they have."""
