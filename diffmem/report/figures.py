"""The figures of a study as Plotly draws them, each from rows of the store."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from diffmem.emm import wilson
from diffmem.report.estimates import Curve
from diffmem.store import THRESHOLD_LEVELS, Row

COLOURS = qualitative.D3
COLUMNS = 2


def ratio_against_size(curves: list[Curve], published: Sequence[Row] = ()) -> go.Figure:
    """Draw ratio against N, one line a curve, with the line at 1 - epsilon and the EMM where a curve crosses it.

    `published` are the paper's ratios (rows of `published.beside`), drawn as open markers in their curve's colour.
    """
    figure = go.Figure()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        label = plain(curve.label or "all cells")
        figure.add_scatter(
            x=[p.size for p in curve.points],
            y=[p.best for p in curve.points],
            name=label,
            mode="lines+markers",
            line_color=colour,
            error_y=error_bars([p.best for p in curve.points], [(p.low, p.high) for p in curve.points]),
            customdata=[[p.last, p.cells] for p in curve.points],
            hovertemplate="N = %{x}: ratio %{y:.3f} (best), %{customdata[0]:.3f} (last), cells: %{customdata[1]}",
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


def error_bars(values: Sequence[float], intervals: Iterable[Sequence[float]]) -> dict[str, object]:
    """Return 95% intervals as the error bars that Plotly draws."""
    ends = list(zip(values, intervals, strict=True))
    return {
        "array": [max(0.0, high - value) for value, (_, high) in ends],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in ends],
        "thickness": 1,
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
    middle = [(level - 0.5) / THRESHOLD_LEVELS for level in range(1, THRESHOLD_LEVELS + 1)]
    figure = go.Figure()
    figure.add_bar(x=middle, y=images[1:-1], name="images", marker_color="#7f8ea3", hovertemplate="%{x:.3f}: %{y}")
    figure.add_vline(threshold, line_color="#b3261e")
    figure.update_xaxes(title="distance to the nearest training image over that to the second nearest", range=[0, 1.01])
    figure.update_yaxes(title="generated images")
    return styled(figure, height=320).update_layout(bargap=0)


def ratio_against_epochs(points: list[Row], unit: str = "epoch") -> go.Figure:
    """Draw ratio against epochs, or steps, one panel a curve and one line a cell, coloured by its size."""
    panels: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in points:
        panels[row["curve"]][row["cell_id"]].append(row)
    sizes = sorted({row["size"] for row in points})
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    figure = make_subplots(
        rows=rows,
        cols=min(COLUMNS, max(1, len(panels))),
        subplot_titles=[plain(label) for label in panels] if any(panels) else None,
        shared_yaxes=True,
        horizontal_spacing=0.06,
    )
    shown: set[int] = set()
    for number, cells in enumerate(panels.values()):
        for line in cells.values():
            size = line[0]["size"]
            figure.add_scatter(
                x=[row["epoch"] for row in line],
                y=[row["ratio"] for row in line],
                name=f"N = {size}",
                legendgroup=str(size),
                showlegend=size not in shown,
                mode="lines+markers",
                line_color=COLOURS[sizes.index(size) % len(COLOURS)],
                hovertemplate=f"N = {size}, {unit} %{{x}}: ratio %{{y:.3f}}<extra></extra>",
                row=number // COLUMNS + 1,
                col=number % COLUMNS + 1,
            )
            shown.add(size)
    figure.update_xaxes(title=f"{unit}s")
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.update_yaxes(title="memorization ratio", col=1)
    return styled(figure, height=360 * rows)


def ratio_against_samples(rows: list[Row]) -> go.Figure:
    """Draw each cell's last ratio, and its standard deviation, against the number of generated images (Fig. 6).

    `rows` are those of `store.sample_counts`. Bars are 95% Wilson intervals. Lines are the standard deviation of a
    bootstrap that draws n images, which has the closed form sqrt(r (1 - r) / n); markers are that between disjoint
    groups of n images.
    """
    cells: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["position"]].append(row)
    sizes = sorted({row["size"] for row in rows})
    titles = ["ratio of the first n images", "standard deviation"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    shown: set[int] = set()
    for line in cells.values():
        size, ratio = line[0]["size"], line[0]["ratio"]
        look = {
            "name": f"N = {size}",
            "legendgroup": str(size),
            "line_color": COLOURS[sizes.index(size) % len(COLOURS)],
            "hovertemplate": f"N = {size}, n = %{{x}}: %{{y:.4f}}<extra></extra>",
        }
        n, first = [row["images"] for row in line], [row["first"] for row in line]
        deviation = [math.sqrt(ratio * (1 - ratio) / images) for images in n]
        figure.add_scatter(
            x=n,
            y=first,
            error_y=error_bars(first, wilson(first, n).tolist()),
            mode="lines+markers",
            showlegend=size not in shown,
            row=1,
            col=1,
            **look,
        )
        figure.add_scatter(x=n, y=deviation, mode="lines", showlegend=False, row=1, col=2, **look)
        groups = [row for row in line if row["deviation"]]
        figure.add_scatter(
            x=[row["images"] for row in groups],
            y=[row["deviation"] for row in groups],
            mode="markers",
            showlegend=False,
            row=1,
            col=2,
            **look,
        )
        shown.add(size)
    figure.update_xaxes(title="generated images n", type="log", dtick=1)
    figure.update_yaxes(range=[-0.03, 1.05], title="memorization ratio", col=1)
    figure.update_yaxes(type="log", dtick=1, tickformat="~g", col=2)
    return styled(figure)


def empty_curves(labels: Sequence[str], line: float) -> go.Figure:
    """Return the axes on which the page's script draws ratio against N at another threshold, a line a curve."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(x=[], y=[], name=plain(label), mode="lines+markers", line_color=colour)
    figure.add_hline(line, line_dash="dash", line_color="#888")
    figure.update_xaxes(title="training images N", type="log")
    figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
    return styled(figure, height=320).update_layout(legend_y=-0.35)


def data_table(figure: go.Figure) -> list[tuple[str, Any, Any, str]]:
    """Return what a figure shows as rows of a table: the name of its line, x, y, and the interval of y."""
    rows = []
    for trace in figure.data:
        bars = trace.error_y
        for i, (x, y) in enumerate(zip(trace.x, trace.y, strict=True)):
            interval = (
                f"{y - bars.arrayminus[i]:.3f} to {y + bars.array[i]:.3f}" if bars and bars.array is not None else ""
            )
            rows.append((html.unescape(trace.name or ""), x, y, interval))
    return rows


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
