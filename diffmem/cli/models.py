"""The commands that work with trained models: `generate`, and `store prune`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from diffmem.cli.options import FileName, complete_cell, complete_study, json_option, store_option, stored
from diffmem.cli.tables import echo, print_json
from diffmem.text import counted, with_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffmem.runs import Images


@click.command()
@click.argument("cell", shell_complete=complete_cell)
@click.option("--count", type=click.IntRange(min=1), required=True, help="Number of images.")
@click.option(
    "--labels", metavar="L[,L...]", help="One label for all images, or one for each, instead of random labels."
)
@click.option(
    "--epoch",
    type=click.IntRange(min=1),
    help="Checkpoint to use: its epoch, or its step if the cell has score.points, or T.steps that end inside an "
    "epoch.  [default: the last that is kept]",
)
@click.option("-o", "--output", type=FileName(), required=True, help="A folder for PNG files, or a .npz file.")
@store_option
def generate(cell: str, count: int, labels: str | None, epoch: int | None, output: Path, store_path: Path) -> None:
    """Generate images with a trained model that a run has kept.

    The setting score.keep says which models a run keeps. CELL is a cell_id from `diffmem status`, or the beginning of
    one. Image i is the image that was scored as number i, so the first images are those of the gallery.

    Example: diffmem generate 3f2a --count 100 -o samples/
    """
    wanted = _labels(labels)
    if output.is_dir() and any(output.iterdir()):
        raise click.BadParameter(f"{output} is not empty; name a new folder, or a .npz", param_hint="--output")
    from diffmem.cli.reading import shown_reading
    from diffmem.models import this_device
    from diffmem.runs import generate_images
    from diffmem.store import Store, find_cell

    store = Store(store_path)
    with shown_reading():
        made = generate_images(store, find_cell(store, cell), count, labels=wanted, epoch=epoch, device=this_device())
        if output.suffix.lower() == ".npz":
            _write_npz(made, output)
        else:
            _write_folder(made, output)
    echo(f"{counted(count, 'image')}: {output}")


def _labels(text: str | None) -> list[int]:
    if text is None:
        return []
    if not all(part.strip().isdecimal() and len(part) < 20 for part in text.split(",")):
        raise click.BadParameter(f"{text!r} is not a label, or labels with commas between them", param_hint="--labels")
    return list(map(int, text.split(",")))


def _write_npz(made: "Iterator[Images]", path: Path) -> None:
    from diffmem.atomic import whole

    batches = list(made)
    arrays = {"images": np.concatenate([each.images.permute(0, 2, 3, 1).numpy() for each in batches])}
    labels = [each.labels.numpy() for each in batches if each.labels is not None]
    if labels:
        arrays["labels"] = np.concatenate(labels)
    with whole(path) as place, place.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _write_folder(made: "Iterator[Images]", folder: Path) -> None:
    """Write PNG files, and the labels of a conditional model as a dataset.json, which diffmem and EDM read."""
    from diffmem.atomic import whole
    from diffmem.measures import png

    labels: list[tuple[str, int]] = []
    number = 0
    for each in made:
        for row, image in enumerate(each.images):
            name = f"{number:06}.png"
            with whole(folder / name) as place:
                place.write_bytes(png(image))
            labels += [] if each.labels is None else [(name, int(each.labels[row]))]
            number += 1
    if labels:
        with whole(folder / "dataset.json") as place:
            place.write_text(json.dumps({"labels": labels}), encoding="utf-8")


@click.command()
@click.option("--study", metavar="STUDY", shell_complete=complete_study, help="Only models of this study.")
@click.option("--cell", metavar="CELL", shell_complete=complete_cell, help="Only models of this cell.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only models that are at least DAYS days old."
)
@click.option("--all", "everything", is_flag=True, help="Models of all cells of the store.")
@store_option
@json_option
def prune(
    study: str | None,
    cell: str | None,
    older_than: float | None,
    everything: bool,
    store_path: Path,
    as_json: bool,
) -> None:
    """Remove trained models that are kept.

    Everything that was measured stays.

    Example: diffmem store prune --study quickstart --older-than 30
    """
    if study is None and cell is None and older_than is None and not everything:
        raise click.UsageError("say which: --study, --cell, --older-than DAYS or --all")
    from diffmem.runs import prune as remove
    from diffmem.store import Store, find_cell

    store, cells = Store(store_path), None
    if study is not None:
        store, row = stored(store_path, study)
        cells = {each.cell_id for each in store.progress(row.study)}
    if cell is not None:
        found = {find_cell(store, cell)}
        cells = found if cells is None else cells & found
    removed = remove(store, cells, older_than=older_than)
    if as_json:
        print_json([{"file": str(path), "bytes": size} for path, size in removed])
        return
    echo(f"{counted(len(removed), 'trained model')} removed, {with_unit(sum(size for _, size in removed))}B")
