"""The commands that measure something else than a study: `score` and `bench`."""

import json
from pathlib import Path

import click

from diffmem.cli.options import FileName, json_option, max_pixels_option, store_option
from diffmem.cli.tables import echo, print_json, print_table


@click.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),  # any bytes, unlike a FileName, which a store may have to keep
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
@store_option
@max_pixels_option
@json_option
def score(images: Path, against: str, resolution: int | None, store_path: Path, as_json: bool) -> None:
    """Measure how many images of any generator are copies of training images.

    Training images are cropped and resized to the size of the generated ones, unless that enlarges them, and named by
    their position in the dataset. The score is stored like any checkpoint; `diffmem report NAME` shows the images
    beside what they copy.

    Example: diffmem score --images samples/ --against data/train/
    """
    from diffmem.cli.reading import shown_reading
    from diffmem.scoring import score_images
    from diffmem.store import Store

    with shown_reading():
        result = score_images(images, against, Store(store_path), resolution=resolution)
    if as_json:
        print_json({**vars(result), "ratio": result.ratio})
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
            {"position" if key == "nearest" else key: value for key, value in row.items()} for row in result.most_copied
        ]
        most = "" if len(rows) == result.replicated else f"; the {len(rows)} that are copied most"
        print_table(f"{result.replicated} of {result.size} training images are replicated{most}:", rows)
    echo(f"`diffmem report {result.study}` shows them")


@click.command()
@click.option(
    "--compile", "compiled", is_flag=True, help="Measure compiled networks too; takes minutes the first time."
)
@click.option("--compare", is_flag=True, help="Measure torch.cdist beside it, and faiss and diffusers where installed.")
@click.option("--growth", is_flag=True, help="Measure how store and report grow up to 10,000 cells.")
@click.option(
    "-o",
    "--output",
    type=FileName(dir_okay=False),
    help="Also write the figures as JSON, and beside it the plot of --growth as .html.",
)
@json_option
def bench(compiled: bool, compare: bool, growth: bool, output: Path | None, as_json: bool) -> None:
    """Measure how fast this device trains, generates and finds neighbours, as shares of its matrix-product peak.

    All figures are from one run, measured in turn, since a time alone says little on a machine that does other things.

    Example: diffmem bench --compare -o bench.json
    """
    from diffmem import bench as figures
    from diffmem import comparison, scaling
    from diffmem.files import whole
    from diffmem.throughput import this_device

    device = this_device()
    rows = figures.bench(device, compiled=compiled) + (comparison.compare(device) if compare else [])
    grown = scaling.measure_growth() if growth else []
    data = json.dumps({"device": figures.name_of(device), "speed": rows, "growth": grown}, indent=2)
    if output:
        with whole(output) as file:
            file.write_text(data + "\n", encoding="utf-8")
        if grown:
            with whole(output.with_suffix(".html")) as file:
                scaling.growth_figure(grown).write_html(file)
    if as_json:
        echo(data)
        return
    print_table(figures.name_of(device), rows)
    if grown:
        print_table("Seconds, by the number of cells in the store", grown)
