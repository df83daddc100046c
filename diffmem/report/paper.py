"""Figures for a paper: SVG and PDF, one column wide, with serif labels; needs matplotlib, which draws offline."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.atomic import whole
from diffmem.errors import DiffmemError
from diffmem.report.figure import Axis, Figure, Panel, Series
from diffmem.report.private import Private
from diffmem.report.section import section_of
from diffmem.report.template import file_name
from diffmem.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN = 3.3
"""Inches across one column of a paper."""
STYLE = {
    "font.family": "serif",
    "mathtext.fontset": "stix",
    "font.size": 8,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 3,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "diffmem",
}
MARKERS = {"published": "o", "star": "*", "at least": ">", "below": "<"}
MOST_NAMES = 12
"""Lines that a legend names."""


def write_figures(store: Store, names: Sequence[str], folder: Path) -> list[Path]:
    """Write each figure of the named studies as SVG and PDF to a folder, and return the files.

    DiffmemError without matplotlib.
    """
    if find_spec("matplotlib") is None:
        needs = "figures for a paper need matplotlib, which is not installed"
        raise DiffmemError(f"{needs}: `pip install 'diffmem[figures]'`")
    import matplotlib as mpl

    told, written = Private(store.hosts()), list[Path]()
    with mpl.rc_context(STYLE):
        for name in names:
            section = section_of(store, store.study(name), told)
            for figure in section.figures:
                written += _write(figure, folder / file_name(f"{name} {figure.title}"))
    return written


def _write(figure: Figure, path: Path) -> list[Path]:
    """Draw a figure, its panels below each other, and write it twice."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(COLUMN, 2.1 * len(figure.panels)), layout="constrained")
    for panel, axes in zip(figure.panels, drawing.subplots(len(figure.panels), squeeze=False)[:, 0], strict=True):
        _draw(panel, axes)
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "pdf")]
    for file, date in zip(files, ("Date", "CreationDate"), strict=True):
        with whole(file) as place:
            drawing.savefig(place, format=file.suffix[1:], metadata={date: None})  # the same figure is the same file
    return files


def _draw(panel: Panel, axes: "Axes") -> None:
    axes.set_title(panel.label, fontsize=8)
    if panel.rows:
        _draw_heat_map(panel, axes)
        return
    bars = [series for series in panel.series if series.look == "bars"]
    for series in panel.series:
        _add(axes, series, bars, overlaid=panel.overlaid)
    if panel.line is not None:
        axes.axhline(panel.line, color="#888888", linestyle="--", linewidth=0.7)
    if panel.mark is not None:
        axes.axvline(panel.mark, color="#b3261e", linewidth=0.9)
    _scale(axes, panel.x, "x", names=bool(bars) and panel.x.names)
    _scale(axes, panel.y, "y", names=False)
    handles, labels = axes.get_legend_handles_labels()
    if 1 < len(labels) <= MOST_NAMES:
        axes.legend(handles, labels, frameon=False)


def _scale(axes: "Axes", axis: Axis, which: str, *, names: bool) -> None:
    """Give an axis its title, its scale, its range and its ticks."""
    own = getattr(axes, f"{which}axis")
    own.set_label_text(axis.title)
    if axis.log:
        own.axes.set(**{f"{which}scale": "log"})
        own.set_minor_locator(_no_ticks())
    if axis.range is not None:
        ends = [10**end for end in axis.range] if axis.log else axis.range
        own.axes.set(**{f"{which}lim": ends})
    if len(axis.ticks) and not names:
        own.set_ticks(list(axis.ticks), [f"{tick:g}" for tick in axis.ticks])


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _add(axes: "Axes", series: Series, bars: Sequence[Series], *, overlaid: bool) -> None:
    label = series.name if series.in_legend else None
    if series.look == "bars":
        _add_bars(axes, series, bars, overlaid=overlaid)
    elif series.look in MARKERS:
        hollow: dict[str, Any] = (
            {"facecolors": "none", "edgecolors": series.colour} if series.look == "published" else {}
        )
        axes.scatter(series.x, series.y, marker=MARKERS[series.look], s=24, **(hollow or {"color": series.colour}))
    else:
        line = {"line": "-", "bare line": "-", "dotted": ":", "markers": ""}[series.look]
        marker = "o" if series.look in ("line", "markers") else ""
        width = 0.5 * series.width
        axes.plot(series.x, series.y, line, marker=marker, color=series.colour, linewidth=width, label=label)
        if series.intervals and len(series.x) > 1:
            low, high = zip(*series.intervals, strict=True)
            axes.fill_between(series.x, low, high, color=series.colour, alpha=0.18, linewidth=0)
        elif series.intervals:
            axes.errorbar(series.x, series.y, yerr=_errors(series), color=series.colour, linewidth=0.8, capsize=2)


def _add_bars(axes: "Axes", series: Series, bars: Sequence[Series], *, overlaid: bool) -> None:
    """Add the bars of a series beside those of the others, or in front of them if they share places."""
    if overlaid:
        width = series.x[1] - series.x[0]
        axes.bar(series.x, series.y, width, color=series.colour, label=series.name)
        return
    width = 0.8 / len(bars)
    levels = list(dict.fromkeys(x for each in bars for x in each.x))
    offset = (bars.index(series) - (len(bars) - 1) / 2) * width
    places = [levels.index(x) + offset for x in series.x]
    error: dict[str, Any] = (
        {"yerr": _errors(series), "error_kw": {"linewidth": 0.7, "capsize": 2}} if series.intervals else {}
    )
    axes.bar(places, series.y, width, color=series.colour, label=series.name, **error)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])


def _errors(series: Series) -> list[list[float]]:
    ends = list(zip(series.y, series.intervals, strict=True))
    return [[max(0.0, y - low) for y, (low, _) in ends], [max(0.0, high - y) for y, (_, high) in ends]]


def _draw_heat_map(panel: Panel, axes: "Axes") -> None:
    columns = list(dict.fromkeys(x for series in panel.series for x in series.x))
    rows = [dict(zip(series.x, series.y, strict=True)) for series in panel.series]
    low, high = panel.y.range or (None, None)
    values = [[row.get(column, float("nan")) for column in columns] for row in rows]
    shown = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    axes.set_xticks(range(len(columns)), [str(column) for column in columns])
    axes.set_yticks(range(len(rows)), [series.name for series in panel.series])
    axes.set(xlabel=panel.x.title, ylabel=panel.rows)
    axes.figure.colorbar(shown, ax=axes, label=panel.y.title)
