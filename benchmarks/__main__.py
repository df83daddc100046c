"""The command: measure, print, and write the figures."""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks import comparison, growth, speed
from diffmem.atomic import whole
from diffmem.cli.tables import print_table
from diffmem.models.processes import this_device


@click.command()
@click.option(
    "--compile", "compiled", is_flag=True, help="Measure compiled networks too; takes minutes the first time."
)
@click.option("--compare", is_flag=True, help="Measure torch.cdist beside it, and faiss and diffusers where installed.")
@click.option("--growth", "grows", is_flag=True, help="Measure how store and report grow up to 10,000 cells.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the figures as JSON, and beside it the plot of --growth as .html.",
)
def main(compiled: bool, compare: bool, grows: bool, output: Path | None) -> None:
    """Measure how fast this device trains, generates and finds neighbours, as shares of its matrix-product peak.

    All figures are from one run, measured in turn, since a time alone says little on a machine that does other things.

    Example: python -m benchmarks --compare -o bench.json
    """
    device = this_device()
    rows = speed.bench(device, compiled=compiled) + (comparison.compare(device) if compare else [])
    grown = growth.measure_growth() if grows else []
    if output:
        _write(output, {"device": speed.name_of(device), "speed": rows, "growth": grown})
    print_table(speed.name_of(device), rows)
    if grown:
        print_table("Seconds, by the number of cells in the store", grown)


def _write(output: Path, data: dict[str, Any]) -> None:
    with whole(output) as file:
        file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if data["growth"]:
        with whole(output.with_suffix(".html")) as file:
            growth.growth_figure(data["growth"]).write_html(file)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
