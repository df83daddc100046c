"""The command that measures the images of other tools: `score`."""

from pathlib import Path

import click

from diffmem.cli.options import json_option, max_pixels_option, measures_option, store_option
from diffmem.cli.tables import echo, print_json, print_table


@click.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),  # any bytes, unlike a which a store may have to keep
    required=True,
    help="Generated images: a folder of them, a .zip, a .npz, a Parquet file or a pattern of them.",
)
@click.option(
    "--against",
    required=True,
    metavar="DATASET",
    help="The training set: digits, cifar10, imagenet-dogs, or a path, as P.dataset.",
)
@click.option(
    "--resolution",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Compare all images at N x N pixels, by centre crop and Lanczos resize, also where that enlarges them.",
)
@measures_option
@store_option
@max_pixels_option
@json_option
def score(
    images: Path, against: str, resolution: int | None, measures: tuple[str, ...], store_path: Path, as_json: bool
) -> None:
    """Measure how many images of any generator are copies of training images.

    Training images are cropped and resized to the size of the generated ones, unless that enlarges them, and named by
    their position in the dataset. The score is stored like any checkpoint; `diffmem report NAME` shows the images
    beside what they copy.

    Example: diffmem score --images samples/ --against data/train/
    """
    from diffmem.cli.reading import shown_reading
    from diffmem.external import score_images
    from diffmem.store import Store

    with shown_reading():
        result = score_images(images, against, Store(store_path), resolution=resolution, measures=measures)
    if as_json:
        copied = [{key: value for key, value in vars(each).items() if value is not None} for each in result.most_copied]
        print_json({**vars(result), "most_copied": copied, "ratio": result.ratio})
        return
    echo(
        f"memorization ratio {result.ratio:.4f} (95% interval {result.low:.4f} to {result.high:.4f}): "
        f"{result.memorized} of {result.samples} images are memorized, which is that their nearest image of {against} "
        "is less than a third as far away as the second nearest"
    )
    for note in result.notes:
        echo(f"note: {note}")
    if result.most_copied:
        rows = [
            {"position": each.nearest, "copies": each.copies} | ({"file": each.file} if each.file else {})
            for each in result.most_copied
        ]
        most = "" if len(rows) == result.replicated else f"; the {len(rows)} that are copied most"
        print_table(f"{result.replicated} of {result.size} training images are replicated{most}:", rows)
    echo(f"`diffmem report {result.study}` shows them")
