"""Figures as Plotly draws them: the data and the layout of a chart, as plain values."""

import html
import math
from collections.abc import Sequence
from typing import Any

from diffmem.report.figure import MOST_TICKS, Axis, Interval, Panel, Series

BAND_OPACITY = 0.18
"""Of the bands of 95% intervals, so that several can be seen through each other."""
GREY, RED = "#888888", "#b3261e"

MARKERS: dict[str, dict[str, object]] = {
    "published": {"symbol": "circle-open", "size": 11},
    "star": {"symbol": "star", "size": 14},
    "at least": {"symbol": "arrow-right", "size": 16},
    "below": {"symbol": "arrow-left", "size": 16},
}

Drawn = dict[str, Any]
"""A chart: its `data`, which are traces, and its `layout`."""


def draw(panel: Panel) -> Drawn:
    """Return a panel drawn."""
    if panel.rows:
        return _heat_map(panel)
    if panel.ranges:
        return _across(panel)
    layout = _styled(panel, [trace for series in panel.series for trace in _traces(series)])
    layout["layout"] |= {"xaxis": _axis(panel.x), "yaxis": _axis(panel.y)}
    _add_lines(layout["layout"], panel)
    return _with_end_labels(layout, panel) if panel.labelled else layout


def _add_lines(layout: Drawn, panel: Panel) -> None:
    """Add the line across and the upright one, with what they are called."""
    shapes, names = [], []
    if panel.line is not None:
        line = {"color": GREY, "dash": "dash"}
        shapes.append(
            {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": panel.line, "y1": panel.line, "line": line}
        )
        place = {"xref": "x domain", "x": 1, "xanchor": "right", "y": panel.line, "yanchor": "bottom"}
        names.append((panel.line_text, place))
    if panel.mark is not None:
        line = {"color": RED}
        shapes.append(
            {"type": "line", "yref": "y domain", "y0": 0, "y1": 1, "x0": panel.mark, "x1": panel.mark, "line": line}
        )
        place = {"yref": "y domain", "y": 1, "yanchor": "top", "x": panel.mark, "xanchor": "left"}
        names.append((panel.mark_text, place))
    layout["shapes"] = shapes
    layout["annotations"] = [{"text": text, "showarrow": False, **place} for text, place in names if text]


def _with_end_labels(drawn: Drawn, panel: Panel) -> Drawn:
    """Put the name of each line at its end, apart from the others; a narrow page's script shows a legend instead."""
    ends = [(_place(panel.y, series.y[-1]), series) for series in panel.series if series.look == "line" and series.x]
    if not 1 < len(ends) <= MOST_LABELS or panel.y.range is None:
        return drawn
    low, high = panel.y.range
    pixels = (panel.height - TOP - BOTTOM) / (high - low)
    for at, (y, series) in zip(_apart([y for y, _ in ends], LABEL_HEIGHT / pixels, high), ends, strict=True):
        place = {
            "x": _place(panel.x, series.x[-1]),
            "y": y,
            "xanchor": "left",
            "xshift": 8,
            "yshift": (at - y) * pixels,
        }
        name = {"text": plain(series.name), "font": {"color": series.colour}, "name": "end", "showarrow": False}
        drawn["layout"]["annotations"].append(name | place)
    right = 20 + min(MOST_RIGHT, LETTER * max(len(series.name) for _, series in ends))
    drawn["layout"] |= {"showlegend": False, "height": panel.height}
    drawn["layout"]["margin"] |= {"r": right, "b": BOTTOM}
    return drawn


def _place(axis: Axis, value: Any) -> Any:
    """Return where a value is on an axis, as Plotly has it."""
    return math.log10(value) if axis.log else value


def _apart(values: Sequence[float], least: float, highest: float) -> list[float]:
    """Return places as near to values as they can be while they are apart by the least distance, from the top down."""
    places = [0.0] * len(values)
    above = highest + least
    for number in sorted(range(len(values)), key=lambda number: -values[number]):
        above = places[number] = min(values[number], above - least)
    return places


def _heat_map(panel: Panel) -> Drawn:
    """Return a panel whose series are rows of colours, the first at the bottom; none where a value is missing."""
    columns = list(dict.fromkeys(x for series in panel.series for x in series.x))
    rows = [dict(zip(series.x, series.y, strict=True)) for series in panel.series]
    low, high = panel.y.range or (None, None)
    trace = {
        "type": "heatmap",
        "x": [str(column) for column in columns],
        "y": [plain(series.name) for series in panel.series],
        "z": [[row.get(column) for column in columns] for row in rows],
        "zmin": low,
        "zmax": high,
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": panel.y.title, "side": "right"}},
        "hovertemplate": f"{panel.x.title} %{{x}}, {panel.rows} %{{y}}: %{{z:.3f}}<extra></extra>",
    }
    drawn = _styled(panel, [trace])
    drawn["layout"]["xaxis"] = {"title": {"text": panel.x.title}, "type": "category", **GRID}
    drawn["layout"]["yaxis"] = {"title": {"text": panel.rows}, "type": "category", **GRID}
    return drawn


def _across(panel: Panel) -> Drawn:
    """Return a panel of names from top to bottom: at each its range, and the series' values with their intervals."""
    names = {name: plain(name) for name in panel.x.ticks}
    lows, highs = zip(*panel.ranges.values(), strict=True)
    traces: list[Drawn] = [
        {
            "type": "bar",
            "y": [names[name] for name in panel.ranges],
            "x": [high - low for low, high in zip(lows, highs, strict=True)],
            "base": lows,
            "name": "claimed",
            "hoverinfo": "skip",
            "orientation": "h",
            "width": 0.9,
            "offset": -0.45,
            "marker": {"color": _faint(GREY)},
        }
    ]
    traces += [_marks_across(series, names) for series in panel.series]
    drawn = _styled(panel, traces)
    order = {"categoryorder": "array", "categoryarray": [*names.values()][::-1], "automargin": True}
    above = {"orientation": "h", "y": 1.0, "yanchor": "bottom"}
    drawn["layout"] |= {"scattermode": "group", "legend": above, "height": panel.height}
    drawn["layout"]["margin"] |= {"t": TOP, "b": BOTTOM}
    drawn["layout"]["xaxis"] = {"title": {"text": panel.y.title}, "range": panel.y.range, **GRID}
    drawn["layout"]["yaxis"] = {**GRID, **order}
    return drawn


def _marks_across(series: Series, names: dict[str, str]) -> Drawn:
    bars = {"error_x": _error_bars(series.y, series.intervals, series.colour)} if series.intervals else {}
    return {
        "type": "scatter",
        "x": series.y,
        "y": [names[name] for name in series.x],
        "name": plain(series.name),
        "mode": "markers",
        "marker": {"color": series.colour, "size": 8, **MARKERS.get(series.look, {})},
        "orientation": "h",
        "offsetgroup": series.name,
        "hovertemplate": "%{y}: %{x:.3f}",
        **bars,
    }


def plain(text: str) -> str:
    """Return text so that Plotly, which reads a little HTML, shows it as it is."""
    return html.escape(text, quote=False)


def _traces(series: Series) -> list[Drawn]:
    """Return what a series is drawn with: a line and the band below it, bars or markers."""
    name = plain(series.name)
    common = {"x": series.x, "y": series.y, "name": name, "hovertemplate": series.hover}
    if series.look == "bars":
        bars = {"error_y": _error_bars(series.y, series.intervals)} if series.intervals else {}
        return [{"type": "bar", **common, **bars, "marker": {"color": series.colour}}]
    if series.look in MARKERS:
        bars = {"error_x": _star_bar(series)} if series.x_interval else {}
        marker = {**MARKERS[series.look], "color": series.colour}
        named = {"legendgroup": name, "showlegend": series.in_legend}
        return [{"type": "scatter", **common, **bars, **named, "mode": "markers", "marker": marker}]
    ends = bool(series.intervals) and series.look in ("line", "dotted")
    band = [_band(series, name)] if ends and len(series.x) > 1 else []  # one value alone has a bar instead
    modes = {"line": "lines+markers", "bare line": "lines", "dotted": "lines", "markers": "markers"}
    line: Drawn = {"color": series.colour, "width": series.width}
    trace: Drawn = {"type": "scatter", **common, "legendgroup": name, "showlegend": series.in_legend}
    trace |= {"mode": modes[series.look], "line": line, "marker": {"color": series.colour}}
    if series.look == "dotted":
        line["dash"] = "dot"
    if ends and not band:
        trace["error_y"] = _error_bars(series.y, series.intervals)
    if series.extra:
        trace["customdata"] = series.extra
    if series.full_name:
        trace["meta"] = plain(series.full_name)
    return [*band, trace]


def _band(series: Series, name: str) -> Drawn:
    """Return the band of 95% intervals below a line."""
    return {
        "type": "scatter",
        "x": [*series.x, *reversed(series.x)],
        "y": [*(low for low, _ in series.intervals), *(high for _, high in reversed(series.intervals))],
        "fill": "toself",
        "fillcolor": _faint(str(series.colour)),
        "mode": "lines",
        "line": {"width": 0},
        "legendgroup": name,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _faint(colour: str) -> str:
    """Return a colour, #rrggbb, that others are seen through."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red}, {green}, {blue}, {BAND_OPACITY})"


def _error_bars(values: Sequence[float], intervals: Sequence[Interval], colour: Any = GREY) -> Drawn:
    ends = list(zip(values, intervals, strict=True))
    return {
        "array": [max(0.0, high - value) for value, (_, high) in ends],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in ends],
        "color": colour,
        "thickness": 1.5,
        "width": 3,
    }


def _star_bar(series: Series) -> Drawn:
    (value,), (low, high) = series.x, series.x_interval or (0.0, 0.0)
    return {"array": [max(0.0, high - value)], "arrayminus": [max(0.0, value - low)], "thickness": 2, "width": 6}


GRID: Drawn = {"gridcolor": "#d7dde5", "zerolinecolor": "#d7dde5", "automargin": True}


def _axis(axis: Axis) -> Drawn:
    """Return an axis as Plotly has it; ticks are at the values themselves, where they are not too many."""
    drawn: Drawn = {"title": {"text": axis.title, "standoff": 8}, **GRID}
    if axis.log or axis.names:
        drawn["type"] = "log" if axis.log else "category"
    if axis.range is not None:
        drawn["range"] = axis.range
    if 0 < len(axis.ticks) <= MOST_TICKS:
        drawn |= {"tickvals": axis.ticks, "ticktext": [_tick(tick) for tick in axis.ticks]}
    elif axis.ticks and axis.range is not None:  # more, of which the range shows some
        drawn |= {"tickvals": axis.ticks, "tickformat": "~g"}
    return drawn


def _tick(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _styled(panel: Panel, traces: list[Drawn]) -> Drawn:
    """Return traces with the look of the page; its script recolours text and grid. It is higher by what its legend
    needs."""
    legend_height = LEGEND_ROW * _legend_rows(traces, NARROW if panel.label else WIDE)
    clear = "rgba(0,0,0,0)"
    layout: Drawn = {
        "height": panel.height + legend_height,
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"color": "#1c2430"},
        "hovermode": "closest",
        "modebar": {"bgcolor": clear, "color": GREY, "activecolor": "#444"},
        "margin": {"l": 60, "r": 20, "t": TOP, "b": BOTTOM + legend_height},
        "legend": {
            "orientation": "h",
            "yanchor": "top",
            "y": -AXIS_TITLE / (panel.height - TOP - BOTTOM),
            "maxheight": 1.0,  # all of it: by default, half of the figure scrolls
        },
    }
    return {"data": traces, "layout": layout | ({"bargap": 0, "barmode": "overlay"} if panel.overlaid else {})}


MOST_LABELS, LABEL_HEIGHT, MOST_RIGHT = 8, 15, 240
"""Lines that have their names at their ends, the pixels of such a name, and those that names have across."""
TOP, BOTTOM, AXIS_TITLE, LEGEND_ROW = 40, 50, 55, 20
"""Pixels above the axes, below them without a legend, from the axis to below its title, and of a row of a legend."""
WIDE, NARROW = 880, 320
"""Pixels that a legend has across: of a panel alone, and of one beside others."""
LETTER, LINE_AND_GAP = 7, 48
"""Pixels of a letter of a legend, and of what is drawn before it, at most."""


def _legend_rows(traces: Sequence[Drawn], width: int) -> int:
    """Return how many rows the legend takes at this width; 0 without a legend."""
    names = {trace["name"] for trace in traces if trace.get("showlegend", True) and trace.get("name")}
    if len(names) < 2:
        return 0
    columns = max(1, width // (LINE_AND_GAP + LETTER * max(map(len, names))))
    return -(-len(names) // columns)
