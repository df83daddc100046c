"""The figures of which training images are copied: how often each, how dense the set is there, and how many at all."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from diffmem.analysis import CopiedImages, Extracted
from diffmem.measures import NORMAL, Measure
from diffmem.report.figure import Axis, Figure, Interval, Palette, Panel, Series, log_axis
from diffmem.store import DensityBin

MOST_CELLS = 12
"""Cells that a figure shows."""

BY_IMAGE = "How often each training image is copied."
BY_IMAGE_METHOD = "Training images in the order of how often the last checkpoint of a cell copies them."
BY_DENSITY = (
    "How often each training image is copied, and whether images in dense parts of the training set are copied more."
)
BY_DENSITY_METHOD = (
    f"{BY_IMAGE_METHOD} Beside it, copies against local density: the mean distance to the 5 nearest other training "
    "images, the median of each tenth of the training set, the densest on the left. Bands: 95% intervals over training "
    "images."
)
EXTRACTED = (
    "Distinct training images with a copy among the images of the last checkpoint; dotted: held-out images instead."
)
EXTRACTED_METHOD = (
    "Against generated images n: on average over all orders of them. Bands: 95% intervals over other images of the "
    "same model (Colwell et al. 2012). Dotted: as many held-out images in the place of generated ones."
)
FIRST = f" The first {MOST_CELLS} cells that copy any."


def copied_figures(
    cells: Sequence[CopiedImages], measure: Measure, colours: Palette, *, by_image: bool
) -> list[Figure]:
    """Return what there is to show of the training images that cells copy; none where none is copied."""
    copying = [cell for cell in cells if cell.extracted]
    shown, more = copying[:MOST_CELLS], FIRST * (len(copying) > MOST_CELLS)
    if not shown:
        return []
    found, lines = [], _lines(shown, colours)
    if by_image:
        dense = any(line.cell.densities for line in lines)
        text, method = (BY_DENSITY, BY_DENSITY_METHOD) if dense else (BY_IMAGE, BY_IMAGE_METHOD)
        found.append(Figure("Copies of each training image", text, _by_image(lines), method + more))
    panels = [_against_threshold(lines, measure), _against_images(lines)]
    title = f"How many training images are {measure.copied}"
    return [*found, Figure(title, EXTRACTED, panels, EXTRACTED_METHOD + more)]


class _Line(NamedTuple):
    """A cell with what it is called in the legend, and whether it is the first of that name."""

    cell: CopiedImages
    name: str
    colour: str
    first: bool


def _lines(cells: Sequence[CopiedImages], colours: Palette) -> list[_Line]:
    named = [colours.of_cell(cell.curve, cell.size) for cell in cells]
    return [
        _Line(cell, name, colour, (name, colour) not in named[:number])
        for number, (cell, (name, colour)) in enumerate(zip(cells, named, strict=True))
    ]


def _by_image(lines: Sequence[_Line]) -> list[Panel]:
    ranked = [_ranked(line) for line in lines]
    rank = log_axis("training images, most copied first", [rank for each in ranked for rank in each.x])
    times = log_axis("copies", [copies for each in ranked for copies in each.y])
    panels = [Panel(ranked, rank, times, label="copies of each image")]
    if dense := [line for line in lines if line.cell.densities]:
        distance = Axis("mean distance to the 5 nearest others")
        means = [_means(line) for line in dense]
        panels += [
            Panel(means, distance, Axis("copies of a training image"), label="copies, by local density"),
        ]
    return panels


def _ranked(line: _Line) -> Series:
    """Return copies against rank: the first and the last of the training images that are copied equally often."""
    ranks: list[int] = []
    copies: list[float] = []
    before = 0
    for times, images in sorted(line.cell.frequencies.items(), reverse=True):
        ends = dict.fromkeys([before + 1, before + images])
        ranks += ends
        copies += [float(times)] * len(ends)
        before += images
    hover = "%{meta}: image %{x} has %{y} copies<extra></extra>"
    name, full = line.name, line.cell.name
    return Series(name, ranks, copies, "bare line", line.colour, hover, full_name=full, in_legend=line.first)


def _means(line: _Line) -> Series:
    """Return the mean copies of an image against local density."""
    bins = line.cell.densities
    x, means = [each.local_distance for each in bins], [each.copies / each.images for each in bins]
    hover = "%{meta}, %{x:.0f}: %{y:.3f}, training images: %{customdata}<extra></extra>"
    return Series(
        *(line.name, x, means, "line", line.colour, hover),
        intervals=[_interval(each) for each in bins],
        extra=[each.images for each in bins],
        full_name=line.cell.name,
        in_legend=line.first,
    )


def _interval(found: DensityBin) -> Interval:
    """Return the 95% interval of the mean copies of an image of a bin, by its standard error."""
    mean = found.copies / found.images
    variance = max(0.0, found.squares / found.images - mean**2)
    width = NORMAL * math.sqrt(variance / max(1, found.images - 1))
    return max(0.0, mean - width), mean + width


def _against_threshold(lines: Sequence[_Line], measure: Measure) -> Panel:
    series = [
        each
        for line in lines
        for rows in [line.cell.by_threshold]
        for each in _with_null(line, rows, [row.threshold for row in rows])
    ]
    own = lines[0].cell.by_images[-1].threshold
    label = "against the threshold"
    return Panel(series, Axis(f"threshold on {measure.axis}"), Axis("training images"), label=label, mark=own)


def _against_images(lines: Sequence[_Line]) -> Panel:
    series = [
        each
        for line in lines
        for rows in [line.cell.by_images]
        for each in _with_null(line, rows, [float(row.images) for row in rows])
    ]
    x = log_axis("generated images n", [value for each in series for value in each.x])
    return Panel(series, x, Axis("training images"), label="against generated images")


def _with_null(line: _Line, rows: Sequence[Extracted], x: Sequence[float]) -> list[Series]:
    """Return a line of distinct training images, and that of held-out images where there are enough of them."""
    hover = "%{meta}, %{x:.6g}: %{y:.1f}<extra></extra>"
    intervals = [(each.low, each.high) for each in rows]
    counts = [each.extracted for each in rows]
    name, full = line.name, line.cell.name
    found = [Series(name, x, counts, "line", line.colour, hover, intervals, full_name=full, in_legend=line.first)]
    unseen = [(at, each.null) for at, each in zip(x, rows, strict=True) if each.null is not None]
    if unseen:
        ends, nulls = zip(*unseen, strict=True)
        unseen_name = f"{full}: held-out images"
        found.append(Series(name, ends, nulls, "dotted", line.colour, hover, full_name=unseen_name, in_legend=False))
    return found
