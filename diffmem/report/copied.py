"""The figures of which training images are copied: how often each, how dense the set is there, and how many at all."""

import math
from collections.abc import Sequence

from diffmem.analysis import CopiedImages, Extracted
from diffmem.measures import NORMAL, Measure
from diffmem.report.figure import COLOURS, Axis, Figure, Interval, Panel, Series
from diffmem.store import DensityBin

MOST_CELLS = 12
"""Cells that a figure shows."""

BY_IMAGE = (
    "Training images in the order of how often the last checkpoint of a cell copies them; and copies against local "
    "density: the mean distance to the 5 nearest other training images, the median of each tenth of the training set, "
    "the densest on the left. Bands: 95% intervals over training images."
)
EXTRACTED = (
    "Distinct training images with a copy among the images of the last checkpoint. Against generated images n: on "
    "average over all orders of them. Bands: 95% intervals over other images of the same model (Colwell et al. 2012). "
    "Dotted: as many held-out images in the place of generated ones."
)
FIRST = f" The first {MOST_CELLS} cells that copy any."


def copied_figures(cells: Sequence[CopiedImages], measure: Measure, *, by_image: bool) -> list[Figure]:
    """Return what there is to show of the training images that cells copy; none where none is copied."""
    copying = [cell for cell in cells if cell.extracted]
    shown, more = copying[:MOST_CELLS], FIRST * (len(copying) > MOST_CELLS)
    if not shown:
        return []
    found = []
    if by_image:
        found.append(Figure("Copies of each training image", BY_IMAGE + more, _by_image(shown)))
    panels = [_against_threshold(shown, measure), _against_images(shown)]
    found.append(Figure(f"How many training images are {measure.copied}", EXTRACTED + more, panels))
    return found


def _colour(cells: Sequence[CopiedImages], cell: CopiedImages) -> str:
    return str(COLOURS[cells.index(cell) % len(COLOURS)])


def _by_image(cells: Sequence[CopiedImages]) -> list[Panel]:
    ranked = [_ranked(cell, _colour(cells, cell)) for cell in cells]
    rank = _log_axis("training images, most copied first", [rank for each in ranked for rank in each.x])
    times = _log_axis("copies", [copies for each in ranked for copies in each.y])
    panels = [Panel(ranked, rank, times, label="copies of each image")]
    if dense := [cell for cell in cells if cell.densities]:
        distance = Axis("mean distance to the 5 nearest others")
        means = [_means(cell, _colour(cells, cell)) for cell in dense]
        panels += [
            Panel(means, distance, Axis("copies of a training image"), label="copies, by local density"),
        ]
    return panels


def _ranked(cell: CopiedImages, colour: str) -> Series:
    """Return copies against rank: the first and the last of the training images that are copied equally often."""
    ranks: list[int] = []
    copies: list[float] = []
    before = 0
    for times, images in sorted(cell.frequencies.items(), reverse=True):
        ends = dict.fromkeys([before + 1, before + images])
        ranks += ends
        copies += [float(times)] * len(ends)
        before += images
    hover = "%{meta}: image %{x} has %{y} copies<extra></extra>"
    return Series(cell.name, ranks, copies, "bare line", colour, hover, full_name=cell.name)


def _means(cell: CopiedImages, colour: str) -> Series:
    means = [each.copies / each.images for each in cell.densities]
    return _by_density(cell, means, [_interval(each) for each in cell.densities], colour)


def _interval(found: DensityBin) -> Interval:
    """Return the 95% interval of the mean copies of an image of a bin, by its standard error."""
    mean = found.copies / found.images
    variance = max(0.0, found.squares / found.images - mean**2)
    width = NORMAL * math.sqrt(variance / max(1, found.images - 1))
    return max(0.0, mean - width), mean + width


def _by_density(cell: CopiedImages, values: Sequence[float], intervals: Sequence[Interval], colour: str) -> Series:
    x = [each.local_distance for each in cell.densities]
    hover = "%{meta}, %{x:.0f}: %{y:.3f}, training images: %{customdata}<extra></extra>"
    extra = [each.images for each in cell.densities]
    return Series(cell.name, x, values, "line", colour, hover, intervals, extra=extra, full_name=cell.name)


def _against_threshold(cells: Sequence[CopiedImages], measure: Measure) -> Panel:
    lines = [(cell, cell.by_threshold, [each.threshold for each in cell.by_threshold]) for cell in cells]
    series = [each for cell, rows, x in lines for each in _with_null(cell, rows, x, _colour(cells, cell))]
    own = cells[0].by_images[-1].threshold
    label = "against the threshold"
    return Panel(series, Axis(f"threshold on {measure.axis}"), Axis("training images"), label=label, mark=own)


def _against_images(cells: Sequence[CopiedImages]) -> Panel:
    lines = [(cell, cell.by_images, [float(each.images) for each in cell.by_images]) for cell in cells]
    series = [each for cell, rows, x in lines for each in _with_null(cell, rows, x, _colour(cells, cell))]
    x = _log_axis("generated images n", [value for each in series for value in each.x])
    return Panel(series, x, Axis("training images"), label="against generated images")


def _with_null(cell: CopiedImages, rows: Sequence[Extracted], x: Sequence[float], colour: str) -> list[Series]:
    """Return a line of distinct training images, and that of held-out images where there are enough of them."""
    hover = "%{meta}, %{x:.6g}: %{y:.1f}<extra></extra>"
    intervals = [(each.low, each.high) for each in rows]
    counts = [each.extracted for each in rows]
    found = [Series(cell.name, x, counts, "line", colour, hover, intervals, full_name=cell.name)]
    unseen = [(at, each.null) for at, each in zip(x, rows, strict=True) if each.null is not None]
    if unseen:
        name = f"{cell.name}: held-out images"
        ends, nulls = zip(*unseen, strict=True)
        found.append(Series(cell.name, ends, nulls, "dotted", colour, hover, full_name=name, in_legend=False))
    return found


def _log_axis(title: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis with ticks at 1, 2 and 5, or at powers of ten where these are many."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [step * 10**k for k in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    shown = [tick for tick in ticks if low - 0.1 <= math.log10(tick) <= high + 0.1]
    return Axis(title, log=True, ticks=shown, range=(low - 0.1, high + 0.1))
