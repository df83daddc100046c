"""A study's ratio against one of its axes: the paper's figures of widths, depths, skip connections, conditions, ..."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from diffmem.analysis import mean_ratios, size_of
from diffmem.cells import REPLICATES
from diffmem.report.figures import COLOURS, add_line, error_bars, plain, styled, ticks_at
from diffmem.store import Row


def factors(axes: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the axes of a study along which a ratio is drawn: all but sizes, draws and seeds alone."""
    return [tuple(keys) for keys in axes if not set(keys) <= {"P.size", *REPLICATES}]


def ratio_against_factor(keys: tuple[str, ...], cells: Sequence[Row], published: Sequence[Row] = ()) -> go.Figure:
    """Draw the best ratio against an axis, a line (numbers) or bars (names) for each choice of the others and N.

    `cells` are rows of `study_cells`. Draws and seeds are averaged, with the 95% interval over images and over them.
    """
    measured = [cell for cell in cells if cell["best"] is not None]
    numeric = len(keys) == 1 and all(_is_number(cell["axis_values"][keys[0]]) for cell in cells)
    levels = list(dict.fromkeys(_level(keys, cell["axis_values"], cell) for cell in cells))
    if numeric:
        levels.sort()
    lines: dict[str, list[Row]] = defaultdict(list)
    for cell in measured:
        lines[_line_name(keys, cell)].append(cell)
    figure = go.Figure()
    for number, (name, members) in enumerate(lines.items()):
        colour: Any = COLOURS[number % len(COLOURS)]
        groups = [levels.index(_level(keys, cell["axis_values"], cell)) for cell in members]
        means = mean_ratios(groups, [cell["best"] for cell in members], [cell["samples"] for cell in members])
        x, y, intervals = [levels[int(m.group)] for m in means], [m.ratio for m in means], [m[2:4] for m in means]
        if numeric:
            add_line(figure, x, y, intervals, name=plain(name), colour=colour, hover="%{x}: ratio %{y:.3f}")
            continue
        if keys == ("M.skips",) and len(lines) == 1:
            colour = _by_resolution(x)
        figure.add_bar(
            x=x,
            y=y,
            error_y=error_bars(y, intervals),
            name=plain(name),
            marker_color=colour,
            hovertemplate="%{x}: ratio %{y:.3f}",
        )
    theirs = [row for row in published if set(keys) <= row["values"].keys()]
    if theirs:
        figure.add_scatter(
            x=[_level(keys, row["values"], None) for row in theirs],
            y=[row["published"] for row in theirs],
            name="published",
            mode="markers",
            marker={"symbol": "circle-open", "size": 11, "color": "#888"},
            hovertemplate="%{x}: published %{y:.3f}<extra></extra>",
        )
    if numeric and levels and levels[0] > 0 and levels[-1] >= 8 * levels[0]:
        figure.update_xaxes(type="log", **ticks_at(levels))
    elif numeric and len(levels) > 1 and min(b - a for a, b in pairwise(levels)) > (levels[-1] - levels[0]) / 12:
        figure.update_xaxes(**ticks_at(levels))
    figure.update_xaxes(title=", ".join(keys), **({} if numeric else {"type": "category"}))
    figure.update_yaxes(title="memorization ratio", range=[-0.03, 1.05])
    return styled(figure)


def _by_resolution(skips: Sequence[str]) -> list[str]:
    """Return a colour for each choice of skips in words, the same for those at one resolution."""
    resolutions = list(dict.fromkeys(words.partition(":")[0] for words in skips))
    return [COLOURS[resolutions.index(words.partition(":")[0]) % len(COLOURS)] for words in skips]


def _line_name(keys: tuple[str, ...], cell: Row) -> str:
    others = {key: value for key, value in cell["axis_values"].items() if key not in {*keys, "P.size", *REPLICATES}}
    text = [f"{key} = {value}" for key, value in others.items()]
    return ", ".join(text if "P.size" in keys else [*text, f"N = {size_of(cell)}"])


def _level(keys: tuple[str, ...], values: Mapping[str, Any], cell: Row | None) -> Any:
    """Return what stands on the axis for the values of its keys: a number as it is, a mask of skips in words."""
    if keys == ("M.skips",):
        return skips_in_words(str(values["M.skips"]), cell["configuration"]["P"]["resolution"] if cell else 32)
    if len(keys) == 1:
        value = values[keys[0]]
        return value if _is_number(value) else str(value)
    return ", ".join(str(values[key]) for key in keys)


def skips_in_words(mask: str, resolution: int) -> str:
    """Return which skip connections a mask keeps: all, none, one by its resolution and place, or how many where."""
    levels = mask.split()
    kept = {resolution >> level: bits for level, bits in enumerate(levels) if "1" in bits}
    if not kept or "0" not in mask:
        return "all" if kept else "none"
    if len(kept) > 1:
        return mask
    ((side, bits),) = kept.items()
    place = f"skip {bits.index('1') + 1} of {len(bits)}" if bits.count("1") == 1 else f"{bits.count('1')} skips"
    return f"{side}x{side}: {place}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
