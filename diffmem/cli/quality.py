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
    """Show how good the generated images of each model are.

    They are compared with the model's training images and with held-out images. A run measures the quality if
    score.measures names it. `diffmem measure --measure quality` measures it with trained models that are kept.

    STUDY is a study file, or the name of a study in the store, or the beginning of that name.

    Each cell has two rows at its last checkpoint: against training images and against held-out ones. With several
    feature spaces, it has two rows in each space. A model that copies is good against its training images only.

    \b
    Columns:
      against    the real images of this row
      images     generated images / real images
      FD         Frechet distance between the two
      95%        interval of FD
      null       FD of new real images in place of the generated ones
      authentic  share of generated images that are not copies by the rule of
                 Alaa et al. 2022
      C_T        far below 0 if the generated images are nearer to these real
                 images than other real images are

    With --json, it prints every value at every checkpoint, with its interval and its null.

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
