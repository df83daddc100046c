"""The figures of a study, as data: the ratio against sizes, epochs and generated images, and the distances."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from diffmem.analysis import Beside, Curve, Mean, by_position, mean_ratios
from diffmem.measures import Measure, wilson
from diffmem.report.figure import COLOURS, Axis, Interval, Panel, Series, ratio_axis, size_axis
from diffmem.store import THRESHOLD_LEVELS, LevelCount, Point, SampleCount

TALL = 420
"""Pixels of the one panel that a study is about."""


def ratio_against_size(curves: Sequence[Curve], ratio: str, published: Sequence[Beside] = ()) -> Panel:
    """Show ratio against N, one line a curve, with the line at 1 - epsilon and the EMM where a curve crosses it.

    `ratio` is what it is called; `published` are the paper's ratios, in their curve's colour.
    """
    series: list[Series] = []
    for number, curve in enumerate(curves):
        series += _size_series(curve, COLOURS[number % len(COLOURS)], published)
    line = 1 - curves[0].epsilon if curves else None
    return Panel(
        series,
        size_axis(sorted({p.size for curve in curves for p in curve.points})),
        ratio_axis(ratio),
        height=TALL,
        line=line,
        line_text="" if line is None else f"1 - eps = {line:g}",
    )


def _size_series(curve: Curve, colour: str, published: Sequence[Beside]) -> list[Series]:
    label = curve.label or "all cells"
    measured = Series(
        label,
        [p.size for p in curve.points],
        [p.best for p in curve.points],
        "line",
        colour,
        hover="N = %{x}: ratio %{y:.3f} (best), %{customdata[0]:.3f} (last), cells: %{customdata[1]}",
        intervals=[(p.low, p.high) for p in curve.points],
        extra=[[p.last, p.cells] for p in curve.points],
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
    if curve.estimate and curve.estimate.value is not None:
        at, name = curve.estimate.value, f"EMM {curve.estimate}: {label}"
        interval = _star_interval(curve)
        found.append(Series(name, [at], [1 - curve.epsilon], "star", colour, hover="EMM %{x:.1f}", x_interval=interval))
    return found


def _star_interval(curve: Curve) -> Interval | None:
    """Return the 95% interval of a curve's EMM, up to the sizes measured where an end is open."""
    if curve.interval is None:
        return None
    sizes = [p.size for p in curve.points]
    low = min(sizes) if curve.interval.low is None else curve.interval.low
    high = max(sizes) if curve.interval.high is None else curve.interval.high
    return low, high


def distance_histogram(counts: Sequence[LevelCount], measure: Measure, threshold: float) -> Panel:
    """Show how many images of the last checkpoints have which distance / yardstick, with the threshold as a line."""
    last: dict[int, int] = {}
    for each in counts:
        last[each.position] = max(each.epoch, last.get(each.position, 0))
    images = [0] * (THRESHOLD_LEVELS + 2)
    for each in counts:
        if each.epoch == last[each.position]:
            images[each.level] += each.images
    step = measure.largest / THRESHOLD_LEVELS
    middle = [(level - 0.5) * step for level in range(1, THRESHOLD_LEVELS + 2)]  # the last has what nothing reaches
    bars = Series("images", middle, images[1:], "bars", "#7f8ea3", hover="%{x:.3f}: %{y}")
    x = Axis(measure.axis, range=(0, 1.01 * measure.largest))
    return Panel([bars], x, Axis("generated images"), height=320, mark=threshold)


def ratio_against_epochs(points: Sequence[Point], ratio: str, clock: str = "epoch") -> list[Panel]:
    """Show ratio against epochs, or steps, one panel a curve and one line a size: the mean over draws and seeds."""
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        curves[point.curve].append(point)
    sizes = sorted({point.size for point in points})
    return [
        Panel(
            [
                Series(
                    f"N = {size}",
                    list(line),
                    [mean.ratio for mean in line.values()],
                    "line",
                    COLOURS[sizes.index(size) % len(COLOURS)],
                    hover=f"N = {size}, {clock} %{{x}}: ratio %{{y:.3f}}, cells: %{{customdata}}<extra></extra>",
                    intervals=[(mean.low, mean.high) for mean in line.values()],
                    extra=[mean.models for mean in line.values()],
                )
                for size, line in _by_size(members, clock).items()
            ],
            Axis(f"{clock}s"),
            ratio_axis(ratio),
            label=label,
        )
        for label, members in curves.items()
    ]


def _by_size(points: Sequence[Point], clock: str) -> dict[int, dict[int, Mean]]:
    """Return the mean ratios of a curve by size and by epoch, or step, at those that all models of a size have.

    A mean over other models at each epoch would rise and fall by their number. At each epoch, draws and seeds are taken
    to differ alike at all sizes, as for the curve against N.
    """
    epochs: dict[int, list[Point]] = defaultdict(list)
    models: dict[int, set[int]] = defaultdict(set)
    for point in points:
        epochs[point.step if clock == "step" else point.epoch].append(point)
        models[point.size].add(point.position)
    lines: dict[int, dict[int, Mean]] = {size: {} for size in sorted({point.size for point in points})}
    for epoch, found in sorted(epochs.items()):
        for mean in mean_ratios([p.size for p in found], [p.ratio for p in found], [p.samples for p in found]):
            if mean.models == len(models[int(mean.group)]):
                lines[int(mean.group)][epoch] = mean
    return lines


def ratio_against_samples(counts: Sequence[SampleCount], ratio: str) -> list[Panel]:
    """Show each cell's last ratio, and its standard deviation, against the generated images (Fig. 6); a panel a curve.

    Bands are 95% Wilson intervals. Lines are the standard deviation of a bootstrap that draws n images, which has the
    closed form sqrt(r (1 - r) / n); markers are that between disjoint groups of n images.
    """
    sizes = sorted({each.size for each in counts})
    ratios: dict[str, list[Series]] = defaultdict(list)
    deviations: dict[str, list[Series]] = defaultdict(list)
    shown: set[tuple[str, int]] = set()
    for line in by_position(counts).values():
        curve, size = line[0].curve, line[0].size
        colour, first_of_size = COLOURS[sizes.index(size) % len(COLOURS)], (curve, size) not in shown
        ratios[curve].append(_first_images(line, colour, in_legend=first_of_size))
        deviations[curve] += _deviations(line, colour, in_legend=first_of_size)
        shown.add((curve, size))
    x = Axis("generated images n", log=True, ticks=sorted({each.images for each in counts}))
    spread = _log_axis("standard deviation", (y for drawn in deviations.values() for each in drawn for y in each.y))
    return [
        Panel(series, x, y, label=f"{curve}: {what}" if len(drawn) > 1 else what)
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


def _log_axis(title: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis with ticks at 1, 2 and 5, for Plotly's own are decades alone, or bare digits."""
    positive = [value for value in values if value > 0] or [1.0]
    ticks = [m * 10.0**k for k in range(-6, 2) for m in (1, 2, 5)]
    low = max((tick for tick in ticks if tick <= min(positive)), default=ticks[0])
    high = min(tick for tick in ticks if tick >= max(positive))
    return Axis(title, log=True, ticks=ticks, range=(math.log10(low) - 0.03, math.log10(high) + 0.03))


def empty_curves(labels: Sequence[str], sizes: Sequence[int], line: float, ratio: str) -> Panel:
    """Return the axes on which the page's script draws ratio against N at another threshold, a line a curve."""
    series = [Series(label, [], [], "line", COLOURS[number % len(COLOURS)]) for number, label in enumerate(labels)]
    return Panel(series, size_axis(sizes), ratio_axis(ratio), height=320, line=line)
