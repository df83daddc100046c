"""The figures of a study as Plotly draws them, each from rows of the store."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, qualitative

from diffmem.analysis import Curve, Mean, mean_ratios
from diffmem.measures import wilson
from diffmem.store import THRESHOLD_LEVELS, Row

COLOURS = qualitative.D3
Panel = tuple[str, go.Figure]
"""A part of a figure with what stands above it; the page puts panels side by side where there is room."""
PANEL_HEIGHT = 360
BAND_OPACITY = 0.18
"""Of the bands of 95% intervals, so that several can be seen through each other."""


def ratio_against_size(curves: list[Curve], published: Sequence[Row] = ()) -> go.Figure:
    """Draw ratio against N, one line a curve, with the line at 1 - epsilon and the EMM where a curve crosses it.

    `published` are the paper's ratios (rows of `published.beside`), drawn as open markers in their curve's colour.
    """
    figure = go.Figure()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        label = plain(curve.label or "all cells")
        add_line(
            figure,
            [p.size for p in curve.points],
            [p.best for p in curve.points],
            [(p.low, p.high) for p in curve.points],
            name=label,
            colour=colour,
            hover="N = %{x}: ratio %{y:.3f} (best), %{customdata[0]:.3f} (last), cells: %{customdata[1]}",
            extra=[[p.last, p.cells] for p in curve.points],
        )
        theirs = [row for row in published if row["curve"] == curve.label and row["size"]]
        if theirs:
            figure.add_scatter(
                x=[row["size"] for row in theirs],
                y=[row["published"] for row in theirs],
                name=f"published: {label}",
                mode="markers",
                marker={"symbol": "circle-open", "size": 11, "color": colour},
                hovertemplate="N = %{x}: published %{y:.3f}<extra></extra>",
            )
        if curve.estimate and curve.estimate.value is not None:
            figure.add_scatter(
                x=[curve.estimate.value],
                y=[1 - curve.epsilon],
                name=f"EMM {curve.estimate}: {label}",
                mode="markers",
                marker={"symbol": "star", "size": 14, "color": colour},
                error_x=_interval_bar(curve),
                hovertemplate="EMM %{x:.1f}",
            )
    if curves:
        line = 1 - curves[0].epsilon
        figure.add_hline(line, line_dash="dash", line_color="#888", annotation_text=f"1 - eps = {line:g}")
    sizes = sorted({p.size for curve in curves for p in curve.points})
    figure.update_xaxes(title="training images N", type="log", **ticks_at(sizes))
    figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
    return styled(figure)


def add_line(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[Sequence[float]],
    *,
    name: str,
    colour: str,
    hover: str,
    extra: Sequence[Any] | None = None,
    full_name: str = "",
    legend: bool = True,
) -> None:
    """Add a line through measured ratios to a figure, above the band of their 95% intervals.

    `hover` is what Plotly tells of a point, `extra` what it may tell beside x and y. `full_name` is for where lines of
    one name share an entry in the legend.
    """
    if len(x) > 1:  # one point alone has a bar instead
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*(low for low, _ in intervals), *(high for _, high in reversed(intervals))],
            fill="toself",
            fillcolor=f"rgba{(*hex_to_rgb(colour), BAND_OPACITY)}",
            mode="lines",
            line_width=0,
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=y,
        error_y=error_bars(y, intervals) if len(x) == 1 else None,
        name=name,
        legendgroup=name,
        showlegend=legend,
        mode="lines+markers",
        line_color=colour,
        customdata=extra,
        meta=full_name or None,
        hovertemplate=hover,
    )


def error_bars(values: Sequence[float], intervals: Iterable[Sequence[float]]) -> dict[str, object]:
    """Return 95% intervals as the error bars that Plotly draws."""
    ends = list(zip(values, intervals, strict=True))
    return {
        "array": [max(0.0, high - value) for value, (_, high) in ends],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in ends],
        "color": "#888",
        "thickness": 1.5,
        "width": 3,
    }


def _interval_bar(curve: Curve) -> dict[str, object]:
    """Return the 95% interval of a curve's EMM as an error bar, up to the sizes measured where an end is open."""
    value, sizes = curve.estimate.value if curve.estimate else None, [p.size for p in curve.points]
    if value is None or curve.interval is None:
        return {}
    low = min(sizes) if curve.interval.low is None else curve.interval.low
    high = max(sizes) if curve.interval.high is None else curve.interval.high
    return {"array": [max(0.0, high - value)], "arrayminus": [max(0.0, value - low)], "thickness": 2, "width": 6}


def distance_histogram(counts: Sequence[Row], threshold: float) -> go.Figure:
    """Draw how many images of the last checkpoints have which distance ratio d1 / d2, with the threshold as a line."""
    last: dict[int, int] = {}
    for row in counts:
        last[row["position"]] = max(row["epoch"], last.get(row["position"], 0))
    images = [0] * (THRESHOLD_LEVELS + 2)
    for row in counts:
        if row["epoch"] == last[row["position"]]:
            images[row["level"]] += row["images"]
    middle = [(level - 0.5) / THRESHOLD_LEVELS for level in range(1, THRESHOLD_LEVELS + 2)]  # the last has d1 = d2
    figure = go.Figure()
    figure.add_bar(x=middle, y=images[1:], name="images", marker_color="#7f8ea3", hovertemplate="%{x:.3f}: %{y}")
    figure.add_vline(threshold, line_color="#b3261e")
    figure.update_xaxes(title="nearest distance / second nearest distance", range=[0, 1.01])
    figure.update_yaxes(title="generated images")
    return styled(figure, height=320).update_layout(bargap=0)


def ratio_against_epochs(points: list[Row], unit: str = "epoch") -> list[Panel]:
    """Draw ratio against epochs, or steps, one panel a curve and one line a size: the mean over draws and seeds.

    `points` are rows of `store.curve_points`.
    """
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in points:
        curves[row["curve"]].append(row)
    sizes = sorted({row["size"] for row in points})
    panels = []
    for label, members in curves.items():
        figure = go.Figure()
        for size, line in _by_size(members).items():
            add_line(
                figure,
                list(line),
                [mean.ratio for mean in line.values()],
                [(mean.low, mean.high) for mean in line.values()],
                name=f"N = {size}",
                colour=COLOURS[sizes.index(size) % len(COLOURS)],
                hover=f"N = {size}, {unit} %{{x}}: ratio %{{y:.3f}}, cells: %{{customdata}}<extra></extra>",
                extra=[mean.models for mean in line.values()],
            )
        figure.update_xaxes(title=f"{unit}s")
        figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
        panels.append((label, styled(figure, height=PANEL_HEIGHT)))
    return panels


def _by_size(points: Sequence[Row]) -> dict[int, dict[int, Mean]]:
    """Return the mean ratios of a curve by size and by epoch, at the epochs that all models of a size have.

    A mean over other models at each epoch would rise and fall by their number. At each epoch, draws and seeds are taken
    to differ alike at all sizes, as for the curve against N.
    """
    epochs: dict[int, list[Row]] = defaultdict(list)
    models: dict[int, set[int]] = defaultdict(set)
    for row in points:
        epochs[row["epoch"]].append(row)
        models[row["size"]].add(row["position"])
    lines: dict[int, dict[int, Mean]] = {size: {} for size in sorted({row["size"] for row in points})}
    for epoch, found in sorted(epochs.items()):
        sizes, ratios, samples = ([row[key] for row in found] for key in ("size", "ratio", "samples"))
        for mean in mean_ratios(sizes, ratios, samples):
            if mean.models == len(models[int(mean.group)]):
                lines[int(mean.group)][epoch] = mean
    return lines


def ratio_against_samples(rows: list[Row]) -> list[Panel]:
    """Draw each cell's last ratio, and its standard deviation, against the generated images (Fig. 6); a panel a curve.

    `rows` are those of `store.sample_counts`. Bands are 95% Wilson intervals. Lines are the standard deviation of a
    bootstrap that draws n images, which has the closed form sqrt(r (1 - r) / n); markers are that between disjoint
    groups of n images.
    """
    cells: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["position"]].append(row)
    sizes = sorted({row["size"] for row in rows})
    ratios: dict[str, go.Figure] = defaultdict(go.Figure)
    deviations: dict[str, go.Figure] = defaultdict(go.Figure)
    shown: set[tuple[str, int]] = set()
    for line in cells.values():
        curve, size, name = line[0]["curve"], line[0]["size"], plain(line[0]["name"])
        colour, first_of_size = COLOURS[sizes.index(size) % len(COLOURS)], (curve, size) not in shown
        n, first = [row["images"] for row in line], [row["first"] for row in line]
        add_line(
            ratios[curve],
            n,
            first,
            wilson(first, n).tolist(),
            name=f"N = {size}",
            colour=colour,
            hover=OF_SAMPLES,
            full_name=name,
            legend=first_of_size,
        )
        _add_deviations(deviations[curve], line, colour=colour, legend=first_of_size)
        shown.add((curve, size))
    for figure in ratios.values():
        figure.update_yaxes(range=[-0.03, 1.05], title="memorization ratio")
    axis = _log_ticks(value for figure in deviations.values() for trace in figure.data for value in trace.y)
    for figure in deviations.values():
        figure.update_yaxes(title="standard deviation", type="log", **axis)
    panels = []
    for what, drawn in (("ratio of n images", ratios), ("its standard deviation", deviations)):
        for curve, figure in drawn.items():
            figure.update_xaxes(
                title="generated images n", type="log", **ticks_at(sorted({row["images"] for row in rows}))
            )
            panels.append((f"{curve}: {what}" if len(drawn) > 1 else what, styled(figure, height=PANEL_HEIGHT)))
    return panels


OF_SAMPLES = "%{meta}, n = %{x}: %{y:.4f}<extra></extra>"
"""What Plotly tells of a point of the figure of sample sizes."""


def _add_deviations(figure: go.Figure, line: Sequence[Row], *, colour: str, legend: bool) -> None:
    """Add the standard deviation of a cell's ratio of n images, as expected and between groups of images."""
    ratio, n = line[0]["ratio"], [row["images"] for row in line]
    name, size = plain(line[0]["name"]), f"N = {line[0]['size']}"
    look = {"name": size, "legendgroup": size, "line_color": colour, "hovertemplate": OF_SAMPLES}
    figure.add_scatter(
        x=n,
        y=[math.sqrt(ratio * (1 - ratio) / images) for images in n],
        mode="lines",
        meta=f"{name}: expected",
        showlegend=legend,
        **look,
    )
    groups = [row for row in line if row["deviation"]]
    figure.add_scatter(
        x=[row["images"] for row in groups],
        y=[row["deviation"] for row in groups],
        mode="markers",
        meta=f"{name}: between groups",
        showlegend=False,
        **look,
    )


def _log_ticks(values: Iterable[float]) -> dict[str, object]:
    """Return a logarithmic axis' range and ticks at 1, 2 and 5, for Plotly's own are decades alone, or bare digits."""
    positive = [value for value in values if value > 0] or [1.0]
    ticks = [m * 10.0**k for k in range(-6, 2) for m in (1, 2, 5)]
    low = max((tick for tick in ticks if tick <= min(positive)), default=ticks[0])
    high = min(tick for tick in ticks if tick >= max(positive))
    return {"tickvals": ticks, "tickformat": "~g", "range": [math.log10(low) - 0.03, math.log10(high) + 0.03]}


def empty_curves(labels: Sequence[str], sizes: Sequence[int], line: float) -> go.Figure:
    """Return the axes on which the page's script draws ratio against N at another threshold, a line a curve."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(x=[], y=[], name=plain(label), mode="lines+markers", line_color=colour)
    figure.add_hline(line, line_dash="dash", line_color="#888")
    figure.update_xaxes(title="training images N", type="log", **ticks_at(sizes))
    figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
    return styled(figure, height=320).update_layout(legend_y=-0.35)


def axis_titles(panels: Sequence[Panel]) -> tuple[str, str]:
    """Return what x and y of a figure are, `value` where its panels differ."""
    xs = {axis.title.text for _, figure in panels for axis in figure.select_xaxes()}
    ys = {axis.title.text for _, figure in panels for axis in figure.select_yaxes()}
    return xs.pop() if len(xs) == 1 else "value", ys.pop() if len(ys) == 1 else "value"


def data_table(panels: Sequence[Panel]) -> list[tuple[str, Any, Any, str]]:
    """Return what the panels of a figure show as rows of a table: the line's name, x, y, and the interval of y."""
    rows: list[tuple[str, Any, Any, str]] = []
    band: list[str] = []
    for label, trace in ((label, trace) for label, figure in panels for trace in figure.data):
        if trace.type == "scatter" and trace.fill:  # the band of the line after it
            ends = len(trace.y) // 2
            band = [_from_to(*pair) for pair in zip(trace.y[:ends], reversed(trace.y[ends:]), strict=True)]
            continue
        name = ", ".join(filter(None, [label, html.unescape(trace.meta or trace.name or "")]))
        rows += zip([name] * len(trace.x), trace.x, trace.y, band or _barred(trace), strict=True)
        band = []
    return rows


def _barred(trace: Any) -> list[str]:
    """Return the intervals of a trace's error bars; empty where it has none."""
    bars = trace.error_y
    if not bars or bars.array is None:
        return [""] * len(trace.x)
    ends = zip(trace.y, bars.arrayminus, bars.array, strict=True)
    return [_from_to(y - below, y + above) for y, below, above in ends]


def _from_to(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def plain(text: str) -> str:
    """Return text so that Plotly, which reads a little HTML, shows it as it is."""
    return html.escape(text, quote=False)


def ticks_at(values: Iterable[float]) -> dict[str, object]:
    """Return an axis' ticks at the values themselves, where they are not too many."""
    ticks = list(values)
    return {"tickvals": ticks, "ticktext": [str(tick) for tick in ticks]} if 0 < len(ticks) <= 12 else {}


def styled(figure: go.Figure, height: int = 420) -> go.Figure:
    """Give a figure the look of the page; its script recolours text and grid."""
    return figure.update_layout(
        height=height,
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#888", "activecolor": "#444"},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": -0.2},
    )
