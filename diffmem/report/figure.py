"""A figure as data: what its panels show, before it is drawn; its table and its download are made of the same."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from plotly.colors import qualitative

COLOURS = qualitative.D3

Interval = tuple[float, float]
Look = Literal["line", "bare line", "dotted", "markers", "bars", "published", "star", "heat"]
"""A line with markers and the band of its intervals, one without, markers alone, bars, and what the paper has, open;
the star is an EMM; heat is a row of a heat map, whose colours are its values."""


@dataclass(frozen=True)
class Series:
    """Values that are drawn alike, under one name."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    look: Look
    colour: str | Sequence[str] = COLOURS[0]  # one, or one for each value
    hover: str = "%{x}: %{y:.3f}"  # what is told of a value under the pointer, as Plotly has it
    intervals: Sequence[Interval] = ()  # 95%, of y
    x_interval: Interval | None = None  # 95%, of the x of a star
    extra: Sequence[Any] = ()  # of each value, that `hover` tells
    full_name: str = ""  # where series of one name share an entry in the legend
    in_legend: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis: what it is of, and how it is scaled."""

    title: str
    log: bool = False
    names: bool = False  # its values are names, in the order in which they come
    ticks: Sequence[Any] = ()  # where they are, none: anywhere
    range: Interval | None = None


@dataclass(frozen=True)
class Panel:
    """Series over the same axes."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    label: str = ""  # what tells it from the other panels of its figure
    height: int = 360
    line: float | None = None  # across, at this y
    line_text: str = ""
    mark: float | None = None  # upright, at this x
    rows: str = ""  # of a heat map: what its rows are, which are series, named by their place on this axis
    ranges: Mapping[str, Interval] = field(default_factory=dict)  # of y at each x, which is a name; drawn across


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, with what is to be seen in them."""

    title: str
    text: str
    panels: Sequence[Panel]

    @property
    def axis_titles(self) -> tuple[str, str]:
        """Return what x and y are, `value` where panels differ."""
        xs, ys = ({axis.title for axis in axes} for axes in zip(*((p.x, p.y) for p in self.panels), strict=True))
        return xs.pop() if len(xs) == 1 else "value", ys.pop() if len(ys) == 1 else "value"

    def rows(self) -> Iterator[tuple[str, Any, float, Interval | None]]:
        """Yield what is shown as rows of a table: the series' name, x, y, and the interval of y."""
        for panel in self.panels:
            for series in panel.series:
                name = ", ".join(filter(None, [panel.label, series.full_name or series.name]))
                intervals: list[Interval | None] = [*series.intervals] or [None for _ in series.x]
                yield from zip([name] * len(series.x), series.x, series.y, intervals, strict=True)

    def as_csv(self) -> str:
        """Return what is shown as CSV, every number in full."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(["line", *self.axis_titles, "low", "high"])
        for name, x, y, interval in self.rows():
            writer.writerow([name, x, y, *(interval or ("", ""))])
        return written.getvalue()


RATIOS: Interval = (-0.03, 1.05)
"""The range of an axis of ratios."""


def ratio_axis(title: str) -> Axis:
    """Return the axis of a ratio in 0..1."""
    return Axis(title, range=RATIOS)


def size_axis(sizes: Sequence[int]) -> Axis:
    """Return the axis of training set sizes, which are its ticks."""
    return Axis("training images N", log=True, ticks=sizes)
