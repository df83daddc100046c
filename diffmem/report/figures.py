"""The figures of a study, as data: the ratio against sizes, steps and generated images, and the loss."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from diffmem.analysis import Beside, Curve, Mean, by_position, emm_words, in_words, mean_ratios
from diffmem.measures import wilson
from diffmem.report.figure import (
    Axis,
    Interval,
    Look,
    Palette,
    Panel,
    Series,
    log_axis,
    ratio_axis,
    size_axis,
    widths,
)
from diffmem.store import Point, SampleCount

TALL = 420
"""Pixels of the one panel that a study is about."""


def ratio_against_size(
    curves: Sequence[Curve], ratio: str, colours: Palette, published: Sequence[Beside] = ()
) -> Panel:
    """Show ratio against N, one line a curve, with the line at 1 - epsilon and the EMM where a curve crosses it, or an
    arrow where it is a bound.

    `ratio` is what it is called; `published` are the paper's ratios, in their curve's colour.
    """
    series = [
        each
        for number, (curve, width) in enumerate(zip(curves, widths(len(curves)), strict=True))
        for each in _size_series(curve, number, width, colours.curves[curve.label], published)
    ]
    line = 1 - curves[0].epsilon if curves else None
    return Panel(
        series,
        size_axis(sorted({p.size for curve in curves for p in curve.points})),
        ratio_axis(ratio),
        height=TALL,
        line=line,
        line_text="" if line is None else f"1 - eps = {line:g}",
        labelled=True,
        opens=True,
    )


def _size_series(curve: Curve, number: int, width: float, colour: str, published: Sequence[Beside]) -> list[Series]:
    label = in_words(curve.label) or "all cells"
    measured = Series(
        label,
        [p.size for p in curve.points],
        [p.best for p in curve.points],
        "line",
        colour,
        hover="N = %{x}: ratio %{y:.3f} (best), %{customdata[0]:.3f} (last), cells: %{customdata[1]}",
        intervals=[(p.low, p.high) for p in curve.points],
        extra=[[p.last, p.cells, number] for p in curve.points],
        width=width,
    )
    found = [measured]
    if nulls := [p for p in curve.points if p.null is not None]:
        found.append(
            Series(
                label,
                [p.size for p in nulls],
                [p.null or 0.0 for p in nulls],
                "dotted",
                colour,
                hover="N = %{x}: %{y:.4f} of %{customdata} held-out images<extra></extra>",
                extra=[p.null_samples for p in nulls],
                full_name=f"held-out images: {label}",
                in_legend=False,
            )
        )
    if theirs := [each for each in published if each.curve == curve.label and each.size]:
        found.append(
            Series(
                f"published: {label}",
                [each.size for each in theirs],
                [each.published.value for each in theirs],
                "published",
                colour,
                hover="N = %{x}: published %{y:.3f}<extra></extra>",
            )
        )
    return [*found, *_mark(curve, label, colour)]


def _mark(curve: Curve, label: str, colour: str) -> list[Series]:
    """Return the star of an EMM on the line, or the arrow of a bound; nothing of one that is not known."""
    estimate = curve.estimate
    places = [estimate.value, estimate.lower, estimate.upper] if estimate else []
    at = next((each for each in places if each is not None), None)
    if estimate is None or at is None:
        return []
    look: Look = "star" if estimate.value is not None else "below" if estimate.lower is None else "at least"
    name, interval = f"EMM {emm_words(curve)}: {label}", _star_interval(curve) if look == "star" else None
    hover = f"EMM {emm_words(curve)}<extra></extra>"
    return [Series(name, [at], [1 - curve.epsilon], look, colour, hover, x_interval=interval, in_legend=False)]


def _star_interval(curve: Curve) -> Interval | None:
    """Return the 95% interval of a curve's EMM, up to the sizes measured where an end is open."""
    if curve.interval is None:
        return None
    sizes = [p.size for p in curve.points]
    low = min(sizes) if curve.interval.low is None else curve.interval.low
    high = max(sizes) if curve.interval.high is None else curve.interval.high
    return low, high


class _Trained(NamedTuple):
    """The models of one size at one checkpoint."""

    step: int
    ratio: Mean
    loss: float | None  # mean over the models


def against_steps(points: Sequence[Point], ratio: str, colours: Palette) -> list[Panel]:
    """Show ratio and training loss against steps, a panel each for the first curves and a line a size: the means over
    draws and seeds."""
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        curves[point.curve].append(point)
    lines = {label: _by_size(members) for label, members in list(curves.items())[:MOST_CURVES]}
    x = _step_axis([each.step for sizes in lines.values() for line in sizes.values() for each in line])
    losses = [each.loss for sizes in lines.values() for line in sizes.values() for each in line if each.loss]
    return [
        panel
        for label, sizes in lines.items()
        if any(len(line) > 1 for line in sizes.values())
        for panel in _trained(in_words(label), sizes, colours, x, ratio_axis(ratio), log_axis("training loss", losses))
    ]


def _trained(
    label: str, sizes: dict[int, list[_Trained]], colours: Palette, x: Axis, ratio: Axis, loss: Axis
) -> list[Panel]:
    ordered = sorted(sizes, reverse=True)  # the largest first, below the others
    drawn = list(zip(ordered, widths(len(ordered)), strict=True))
    named = f"{label}: " if label else ""
    ratios = [_ratio_line(size, sizes[size], colours.sizes[size], width) for size, width in drawn]
    losses = [_loss_line(size, sizes[size], colours.sizes[size]) for size, _ in drawn]
    found = [Panel(ratios, x, ratio, label=f"{named}ratio", labelled=True)]
    if any(line.x for line in losses):
        found.append(Panel([line for line in losses if line.x], x, loss, label=f"{named}training loss", labelled=True))
    return found


def _ratio_line(size: int, line: Sequence[_Trained], colour: str, width: float) -> Series:
    return Series(
        f"N = {size}",
        [each.step for each in line],
        [each.ratio.ratio for each in line],
        "line",
        colour,
        hover=f"N = {size}, step %{{x}}: ratio %{{y:.3f}}, cells: %{{customdata}}<extra></extra>",
        intervals=[(each.ratio.low, each.ratio.high) for each in line],
        extra=[each.ratio.models for each in line],
        width=width,
    )


def _loss_line(size: int, line: Sequence[_Trained], colour: str) -> Series:
    known = [(each.step, each.loss) for each in line if each.loss]
    steps, losses = [step for step, _ in known], [loss for _, loss in known]
    hover = f"N = {size}, step %{{x}}: loss %{{y:.4g}}<extra></extra>"
    return Series(f"N = {size}", steps, losses, "line", colour, hover=hover)


def _step_axis(steps: Sequence[int]) -> Axis:
    """Return the axis of optimizer steps, logarithmic where the checkpoints are."""
    known = sorted(set(steps))
    log = len(known) > 2 and known[0] > 0 and known[-1] >= FAR_APART * known[0]
    return log_axis("optimizer steps", known) if log else Axis("optimizer steps")


MOST_CURVES = 6
"""Curves whose training is shown: nobody reads more panels, and `diffmem export checkpoints` has all."""
FAR_APART = 8
"""Times the first checkpoint that the last one has to be for steps to be shown on a logarithmic axis."""


def _by_size(points: Sequence[Point]) -> dict[int, list[_Trained]]:
    """Return the mean ratios and losses of a curve by size, at the checkpoints that all models of a size have.

    A mean over other models at each checkpoint would rise and fall by their number. At each epoch, draws and seeds are
    taken to differ alike at all sizes, as for the curve against N.
    """
    epochs: dict[int, list[Point]] = defaultdict(list)
    models: dict[int, set[int]] = defaultdict(set)
    for point in points:
        epochs[point.epoch].append(point)
        models[point.size].add(point.position)
    lines: dict[int, list[_Trained]] = {size: [] for size in sorted({point.size for point in points})}
    for _, found in sorted(epochs.items()):
        for mean in mean_ratios([p.size for p in found], [p.ratio for p in found], [p.samples for p in found]):
            own = [p for p in found if p.size == mean.group]
            if mean.models == len(models[int(mean.group)]):
                losses = [p.loss for p in own if p.loss is not None]
                loss = fmean(losses) if len(losses) == len(own) else None
                lines[int(mean.group)].append(_Trained(max(p.step for p in own), mean, loss))
    return lines


def ratio_against_samples(counts: Sequence[SampleCount], ratio: str, colours: Palette) -> list[Panel]:
    """Show each cell's last ratio, and its standard deviation, against the generated images (Fig. 6); a panel a curve.

    Bands are 95% Wilson intervals. Lines are the standard deviation of a bootstrap that draws n images, which has the
    closed form sqrt(r (1 - r) / n); markers are that between disjoint groups of n images.
    """
    ratios: dict[str, list[Series]] = defaultdict(list)
    deviations: dict[str, list[Series]] = defaultdict(list)
    shown: set[tuple[str, int]] = set()
    for line in by_position(counts).values():
        curve, size = line[0].curve, line[0].size
        colour, first_of_size = colours.sizes[size], (curve, size) not in shown
        ratios[curve].append(_first_images(line, colour, in_legend=first_of_size))
        deviations[curve] += _deviations(line, colour, in_legend=first_of_size)
        shown.add((curve, size))
    x = Axis("generated images n", log=True, ticks=sorted({each.images for each in counts}))
    spread = log_axis("standard deviation", (y for drawn in deviations.values() for each in drawn for y in each.y))
    return [
        Panel(series, x, y, label=f"{in_words(curve)}: {what}" if len(drawn) > 1 else what)
        for what, drawn, y in (
            ("ratio of n images", ratios, ratio_axis(ratio)),
            ("its standard deviation", deviations, spread),
        )
        for curve, series in drawn.items()
    ]


OF_SAMPLES = "%{meta}, n = %{x}: %{y:.4f}<extra></extra>"
"""What is told of a point of the figure of sample sizes."""


def _first_images(line: Sequence[SampleCount], colour: str, *, in_legend: bool) -> Series:
    """Return the ratio of a cell's first n images."""
    first, n = [each.first for each in line], [each.images for each in line]
    intervals = [(low, high) for low, high in wilson(first, n).tolist()]
    name, full = f"N = {line[0].size}", line[0].name
    return Series(name, n, first, "line", colour, OF_SAMPLES, intervals, full_name=full, in_legend=in_legend)


def _deviations(line: Sequence[SampleCount], colour: str, *, in_legend: bool) -> list[Series]:
    """Return the standard deviation of a cell's ratio of n images, as expected and between groups of images."""
    ratio, name, size = line[0].ratio, line[0].name, f"N = {line[0].size}"
    n = [each.images for each in line]
    expected = [math.sqrt(ratio * (1 - ratio) / images) for images in n]
    groups = [(each.images, each.deviation) for each in line if each.deviation]
    between = [x for x, _ in groups], [y for _, y in groups]
    return [
        Series(size, n, expected, "bare line", colour, OF_SAMPLES, full_name=f"{name}: expected", in_legend=in_legend),
        Series(size, *between, "markers", colour, OF_SAMPLES, full_name=f"{name}: between groups", in_legend=False),
    ]
