"""The figures of a study as Plotly draws them, each from rows of the store."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from diffmem.report.estimates import Curve
from diffmem.store import Row

COLOURS = qualitative.D3
COLUMNS = 2


def ratio_against_size(curves: list[Curve]) -> go.Figure:
    """Draw ratio against N, one line a curve, with the line at 1 - epsilon and the EMM where a curve crosses it."""
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
            customdata=[[p.last, p.cells] for p in curve.points],
            hovertemplate="N = %{x}: ratio %{y:.3f} (best), %{customdata[0]:.3f} (last), cells: %{customdata[1]}",
        )
        if curve.estimate and curve.estimate.value is not None:
            figure.add_scatter(
                x=[curve.estimate.value],
                y=[1 - curve.epsilon],
                name=f"EMM {curve.estimate}: {label}",
                mode="markers",
                marker={"symbol": "star", "size": 14, "color": colour},
                hovertemplate="EMM %{x:.1f}",
            )
    if curves:
        line = 1 - curves[0].epsilon
        figure.add_hline(line, line_dash="dash", line_color="#888", annotation_text=f"1 - eps = {line:g}")
    sizes = sorted({p.size for curve in curves for p in curve.points})
    figure.update_xaxes(title="training images N", type="log", **_ticks(sizes))
    figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
    return _styled(figure)


def ratio_against_epochs(points: list[Row]) -> go.Figure:
    """Draw ratio against epochs, one panel a curve and one line a cell, coloured by its size."""
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
                hovertemplate=f"N = {size}, epoch %{{x}}: ratio %{{y:.3f}}<extra></extra>",
                row=number // COLUMNS + 1,
                col=number % COLUMNS + 1,
            )
            shown.add(size)
    figure.update_xaxes(title="epochs")
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.update_yaxes(title="memorization ratio", col=1)
    return _styled(figure, height=360 * rows)


def plain(text: str) -> str:
    """Return text so that Plotly, which reads a little HTML, shows it as it is."""
    return html.escape(text, quote=False)


def _ticks(values: Iterable[int]) -> dict[str, object]:
    ticks = list(values)
    return {"tickvals": ticks, "ticktext": [str(tick) for tick in ticks]} if 0 < len(ticks) <= 12 else {}


def _styled(figure: go.Figure, height: int = 420) -> go.Figure:
    return figure.update_layout(
        height=height,
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#888", "activecolor": "#444"},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": -0.2},
    )
