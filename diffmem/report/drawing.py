"""Figures as Plotly draws them."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from diffmem.report.figure import Axis, Interval, Panel, Series

BAND_OPACITY = 0.18
"""Of the bands of 95% intervals, so that several can be seen through each other."""
MOST_TICKS = 12
GREY = "#888888"

MARKERS: dict[str, dict[str, object]] = {
    "published": {"symbol": "circle-open", "size": 11},
    "star": {"symbol": "star", "size": 14},
}


def draw(panel: Panel) -> go.Figure:
    """Return a panel drawn."""
    if panel.rows:
        return _heat_map(panel)
    if panel.ranges:
        return _across(panel)
    figure = go.Figure()
    for series in panel.series:
        _add(figure, series)
    if panel.line is not None:
        text = {"annotation_text": panel.line_text} if panel.line_text else {}
        figure.add_hline(panel.line, line_dash="dash", line_color=GREY, **text)
    if panel.mark is not None:
        figure.add_vline(panel.mark, line_color="#b3261e")
    figure.update_xaxes(**_axis(panel.x))
    figure.update_yaxes(**_axis(panel.y))
    return _styled(figure, panel)


def _heat_map(panel: Panel) -> go.Figure:
    """Return a panel whose series are rows of colours, the first at the bottom; none where a value is missing."""
    columns = list(dict.fromkeys(x for series in panel.series for x in series.x))
    rows = [dict(zip(series.x, series.y, strict=True)) for series in panel.series]
    low, high = panel.y.range or (None, None)
    figure = go.Figure(
        go.Heatmap(
            x=[str(column) for column in columns],
            y=[plain(series.name) for series in panel.series],
            z=[[row.get(column) for column in columns] for row in rows],
            zmin=low,
            zmax=high,
            colorscale="Viridis",
            colorbar={"title": {"text": panel.y.title, "side": "right"}},
            hovertemplate=f"{panel.x.title} %{{x}}, {panel.rows} %{{y}}: %{{z:.3f}}<extra></extra>",
        )
    )
    figure.update_xaxes(title=panel.x.title, type="category")
    figure.update_yaxes(title=panel.rows, type="category")
    return _styled(figure, panel)


def _across(panel: Panel) -> go.Figure:
    """Return a panel of names from top to bottom: at each its range, and the series' values with their intervals."""
    figure = go.Figure()
    names = {name: plain(name) for name in panel.x.ticks}
    lows, highs = zip(*panel.ranges.values(), strict=True)
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    in_range: dict[str, Any] = {"y": [names[name] for name in panel.ranges], "name": "claimed", "hoverinfo": "skip"}
    in_range |= {"width": 0.9, "offset": -0.45, "marker_color": f"rgba{(*hex_to_rgb(GREY), BAND_OPACITY)}"}
    figure.add_bar(**in_range, x=widths, base=lows, orientation="h")
    for series in panel.series:
        marker = {"color": series.colour, "size": 8, **MARKERS.get(series.look, {})}
        figure.add_scatter(
            x=series.y,
            y=[names[name] for name in series.x],
            name=plain(series.name),
            error_x=_error_bars(series.y, series.intervals, series.colour) if series.intervals else None,
            mode="markers",
            marker=marker,
            orientation="h",
            offsetgroup=series.name,
            hovertemplate="%{y}: %{x:.3f}",
        )
    figure.update_xaxes(title=panel.y.title, range=panel.y.range and list(panel.y.range))
    figure.update_yaxes(categoryorder="array", categoryarray=[*names.values()][::-1], automargin=True)
    above = {"orientation": "h", "y": 1.0, "yanchor": "bottom"}
    margins = {"t": TOP, "b": BOTTOM}
    return _styled(figure, panel).update_layout(scattermode="group", legend=above, height=panel.height, margin=margins)


def plain(text: str) -> str:
    """Return text so that Plotly, which reads a little HTML, shows it as it is."""
    return html.escape(text, quote=False)


def _add(figure: go.Figure, series: Series) -> None:
    name = plain(series.name)
    common: dict[str, Any] = {"x": series.x, "y": series.y, "name": name, "hovertemplate": series.hover}
    if series.look == "bars":
        bars = {"error_y": _error_bars(series.y, series.intervals)} if series.intervals else {}
        figure.add_bar(**common, **bars, marker_color=series.colour)
        return
    if series.look in MARKERS:
        marker = {**MARKERS[series.look], "color": series.colour}
        bar = {"error_x": _star_bar(series)} if series.x_interval else {}
        figure.add_scatter(**common, **bar, mode="markers", marker=marker)
        return
    band = series.look == "line" and bool(series.intervals)
    if band and len(series.x) > 1:  # one value alone has a bar instead
        _add_band(figure, series, name)
    mode = {"line": "lines+markers", "bare line": "lines", "dotted": "lines", "markers": "markers"}[series.look]
    figure.add_scatter(
        **common,
        error_y=_error_bars(series.y, series.intervals) if band and len(series.x) == 1 else None,
        legendgroup=name,
        showlegend=series.in_legend,
        mode=mode,
        line_color=series.colour,
        line_dash="dot" if series.look == "dotted" else None,
        customdata=series.extra or None,
        meta=plain(series.full_name) or None,
    )


def _add_band(figure: go.Figure, series: Series, name: str) -> None:
    """Add the band of 95% intervals below a line."""
    figure.add_scatter(
        x=[*series.x, *reversed(series.x)],
        y=[*(low for low, _ in series.intervals), *(high for _, high in reversed(series.intervals))],
        fill="toself",
        fillcolor=f"rgba{(*hex_to_rgb(series.colour), BAND_OPACITY)}",
        mode="lines",
        line_width=0,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


def _error_bars(values: Sequence[float], intervals: Sequence[Interval], colour: Any = GREY) -> dict[str, object]:
    ends = list(zip(values, intervals, strict=True))
    return {
        "array": [max(0.0, high - value) for value, (_, high) in ends],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in ends],
        "color": colour,
        "thickness": 1.5,
        "width": 3,
    }


def _star_bar(series: Series) -> dict[str, object]:
    (value,), (low, high) = series.x, series.x_interval or (0.0, 0.0)
    return {"array": [max(0.0, high - value)], "arrayminus": [max(0.0, value - low)], "thickness": 2, "width": 6}


def _axis(axis: Axis) -> dict[str, object]:
    """Return an axis as Plotly has it; ticks are at the values themselves, where they are not too many."""
    drawn: dict[str, object] = {"title": axis.title}
    if axis.log or axis.names:
        drawn["type"] = "log" if axis.log else "category"
    if axis.range is not None:
        drawn["range"] = list(axis.range)
    if 0 < len(axis.ticks) <= MOST_TICKS:
        drawn |= {"tickvals": list(axis.ticks), "ticktext": [str(tick) for tick in axis.ticks]}
    elif axis.ticks and axis.range is not None:  # more, of which the range shows some
        drawn |= {"tickvals": list(axis.ticks), "tickformat": "~g"}
    return drawn


def _styled(figure: go.Figure, panel: Panel) -> go.Figure:
    """Give a figure the look of the page; its script recolours text and grid. It is higher by what its legend needs."""
    legend_height = LEGEND_ROW * _legend_rows(figure, NARROW if panel.label else WIDE)
    return figure.update_layout(
        height=panel.height + legend_height,
        bargap=0 if any(trace.type == "bar" and trace.name == "images" for trace in figure.data) else None,
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": "#444"},
        margin={"l": 60, "r": 20, "t": TOP, "b": BOTTOM + legend_height},
        legend={
            "orientation": "h",
            "yanchor": "top",
            "y": -AXIS_TITLE / (panel.height - TOP - BOTTOM),
            "maxheight": 1.0,  # all of it: by default, half of the figure scrolls
        },
    )


TOP, BOTTOM, AXIS_TITLE, LEGEND_ROW = 40, 50, 55, 20
"""Pixels above the axes, below them without a legend, from the axis to below its title, and of a row of a legend."""
WIDE, NARROW = 880, 320
"""Pixels that a legend has across: of a panel alone, and of one beside others."""
LETTER, LINE_AND_GAP = 7, 48
"""Pixels of a letter of a legend, and of what is drawn before it, at most."""


def _legend_rows(figure: go.Figure, width: int) -> int:
    """Return how many rows the legend takes at this width; 0 without a legend."""
    names = {trace.name for trace in figure.data if trace.showlegend is not False and trace.name}
    if len(names) < 2:
        return 0
    columns = max(1, width // (LINE_AND_GAP + LETTER * max(map(len, names))))
    return -(-len(names) // columns)
