"""A figure as data: what its panels show, before it is drawn; its table and its download are made of the same."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffmem.analysis import in_words

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#a3323e", "#7f7f7f", "#8c6d31"]
"""Of curves and settings, which people with any colour vision can tell apart (Okabe and Ito 2008)."""
SMALLEST, LARGEST = (199, 155, 232), (106, 47, 176)
"""The ends of the scale of training set sizes, the darkest the largest; no curve has its hue."""

Interval = tuple[float, float]
Look = Literal["line", "bare line", "dotted", "markers", "bars", "published", "star", "at least", "below", "heat"]
"""A line with markers and the band of its intervals, one without, markers alone, bars, and what the paper has, open;
the star is an EMM, and an arrow one that is a bound; heat is a row of a heat map, whose colours are its values."""


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
    width: float = 2  # of the line, in pixels


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
    mark_text: str = ""
    labelled: bool = False  # lines have their names at their ends, in the place of a legend
    opens: bool = False  # a click on a value opens the copies that it is of
    overlaid: bool = False  # bars are in front of each other, the last in front, without gaps
    rows: str = ""  # of a heat map: what its rows are, which are series, named by their place on this axis
    ranges: Mapping[str, Interval] = field(default_factory=dict)  # of y at each x, which is a name; drawn across


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, with what is to be seen in them."""

    title: str
    text: str  # one sentence
    panels: Sequence[Panel]
    method: str = ""  # how it is made, for who wants to know

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


@dataclass(frozen=True)
class Palette:
    """The colours of a study's curves and of its training set sizes, the same in all its figures."""

    curves: Mapping[str, str]
    sizes: Mapping[int, str]

    def of_cell(self, curve: str, size: int) -> tuple[str, str]:
        """Return what a cell is told by, its curve if there are several, else its size; and the colour of that."""
        if len(self.curves) > 1:
            return in_words(curve), self.curves[curve]
        return f"N = {size}", self.sizes[size]


def palette(curves: Iterable[str], sizes: Iterable[int]) -> Palette:
    """Return the colours of curves, in their order, and of sizes, the darkest of the largest."""
    known = sorted(set(sizes))
    shares = {size: 1 - (len(known) - 1 - number) / max(1, len(known) - 1) for number, size in enumerate(known)}
    labels = list(dict.fromkeys(curves))
    return Palette(
        {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)},
        {size: _between(share) for size, share in shares.items()},
    )


def _between(share: float) -> str:
    mixed = [round(low + share * (high - low)) for low, high in zip(SMALLEST, LARGEST, strict=True)]
    return "#" + "".join(f"{each:02x}" for each in mixed)


def widths(lines: int) -> list[float]:
    """Return the widths of lines in the order in which they are drawn: the lowest is the widest, so that lines that
    lie on each other are all seen."""
    return [2 + min(1.5, 3 / max(1, lines)) * (lines - 1 - number) for number in range(lines)]


def ratio_axis(title: str) -> Axis:
    """Return the axis of a ratio in 0..1."""
    return Axis(title, range=RATIOS)


def size_axis(sizes: Sequence[int]) -> Axis:
    """Return the axis of training set sizes, which are its ticks."""
    return Axis("training images N", log=True, ticks=sizes)


def log_axis(title: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis over all values above 0 with ticks at 1, 2 and 5, or at powers of ten where these are
    many, for Plotly's own are decades alone, or bare digits."""
    positive = [value for value in values if value > 0] or [1.0]
    decades = math.log10(max(positive)) - math.log10(min(positive))
    steps = (1, 2, 5) if decades <= 3 else (1,)
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    ticks = [step * 10.0**k for k in range(first, last + 1) for step in steps]
    low = max(tick for tick in ticks if tick <= min(positive) * (1 + 1e-9))
    high = min(tick for tick in ticks if tick >= max(positive) * (1 - 1e-9))
    shown = [tick for tick in ticks if low <= tick <= high]
    every = max(1, -(-len(shown) // MOST_TICKS))
    return Axis(title, log=True, ticks=shown[::every], range=(math.log10(low) - 0.03, math.log10(high) + 0.03))


MOST_TICKS = 12
