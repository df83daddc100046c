"""A study's ratio against one of its axes: the paper's figures of widths, depths, skip connections, conditions, ..."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from diffmem.analysis import Beside, CellWithSettings, mean_ratios, said
from diffmem.cells import REPLICATES
from diffmem.report.figure import COLOURS, Axis, Palette, Panel, Series, ratio_axis


def factors(axes: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the axes of a study along which a ratio is drawn: all but sizes, draws and seeds alone."""
    return [tuple(keys) for keys in axes if not set(keys) <= {"P.size", *REPLICATES}]


def factor_panels(
    axes: Sequence[Sequence[str]],
    cells: Sequence[CellWithSettings],
    ratio: str,
    colours: Palette,
    published: Sequence[Beside] = (),
) -> list[Panel]:
    """Show the best ratio against the factor with the most levels, a panel for each choice of the others and a line
    (numbers) or bars (names) for each N; none without a factor, and no panel of one value.

    Draws and seeds are averaged, with the 95% interval over images and over them.
    """
    known, measured = factors(axes), [each for each in cells if each.best is not None]
    if not known:
        return []
    keys = max(known, key=lambda factor: len({_values(factor, each) for each in measured}))
    facets: dict[str, list[CellWithSettings]] = defaultdict(list)
    for each in measured:
        facets[_facet(keys, each)].append(each)
    levels = {label: _levels(keys, members) for label, members in facets.items()}
    return [
        _panel(keys, label, members, ratio, colours, published)
        for label, members in facets.items()
        if len(levels[label]) > 1
    ]


def _panel(
    keys: tuple[str, ...],
    label: str,
    cells: Sequence[CellWithSettings],
    ratio: str,
    colours: Palette,
    published: Sequence[Beside],
) -> Panel:
    numeric = len(keys) == 1 and all(_is_number(each.cell.axis_values[keys[0]]) for each in cells)
    levels = _levels(keys, cells)
    if numeric:
        levels.sort()
    lines: dict[int, list[CellWithSettings]] = defaultdict(list)
    for each in cells:
        lines[0 if "P.size" in keys else each.cell.size].append(each)
    series = [
        _line(
            keys, size, lines[size], levels, colours.sizes.get(size, COLOURS[0]), numeric=numeric, alone=len(lines) == 1
        )
        for size in sorted(lines)
    ]
    curves = {each.cell.curve for each in cells}
    theirs = [each for each in published if each.curve in curves and set(keys) <= each.published.settings.keys()]
    if theirs:
        x = [_level(keys, each.published.settings, None) for each in theirs]
        values = [each.published.value for each in theirs]
        hover = "%{x}: published %{y:.3f}<extra></extra>"
        series.append(Series("published", x, values, "published", "#888", hover=hover))
    x_axis = _level_axis(keys, levels, numeric=numeric)
    return Panel(series, x_axis, ratio_axis(ratio), label=label, height=320, labelled=numeric)


def _levels(keys: tuple[str, ...], cells: Sequence[CellWithSettings]) -> list[Any]:
    return list(dict.fromkeys(_level(keys, each.cell.axis_values, each) for each in cells))


def _values(keys: Sequence[str], each: CellWithSettings) -> str:
    return str([each.cell.axis_values.get(key) for key in keys])


def _facet(keys: Sequence[str], each: CellWithSettings) -> str:
    """Return the choice of the other factors in words."""
    values = each.cell.axis_values.items()
    return ", ".join(said(key, str(value)) for key, value in values if key not in {*keys, "P.size", *REPLICATES})


def _line(
    keys: tuple[str, ...],
    size: int,
    members: Sequence[CellWithSettings],
    levels: Sequence[Any],
    colour: str,
    *,
    numeric: bool,
    alone: bool,
) -> Series:
    groups = [levels.index(_level(keys, each.cell.axis_values, each)) for each in members]
    means = mean_ratios(groups, [each.best or 0.0 for each in members], [each.samples or 0 for each in members])
    x = [levels[int(mean.group)] for mean in means]
    return Series(
        f"N = {size}" if size else "all sizes",
        x,
        [mean.ratio for mean in means],
        "line" if numeric else "bars",
        _by_resolution(x) if keys == ("M.skips",) and alone else colour,
        hover="%{x}: ratio %{y:.3f}",
        intervals=[(mean.low, mean.high) for mean in means],
    )


def _level_axis(keys: Sequence[str], levels: Sequence[Any], *, numeric: bool) -> Axis:
    """Return the axis of a factor: logarithmic for numbers far apart, with ticks at its levels if they do not crowd."""
    title = ", ".join(key.rpartition(".")[2].replace("_", " ") for key in keys)
    if not numeric:
        return Axis(title, names=True)
    if levels and levels[0] > 0 and levels[-1] >= 8 * levels[0]:
        return Axis(title, log=True, ticks=levels)
    apart = len(levels) > 1 and min(b - a for a, b in pairwise(levels)) > (levels[-1] - levels[0]) / 12
    return Axis(title, ticks=levels if apart else ())


def _by_resolution(skips: Sequence[str]) -> list[str]:
    """Return a colour for each choice of skips in words, the same for those at one resolution."""
    resolutions = list(dict.fromkeys(words.partition(":")[0] for words in skips))
    return [COLOURS[resolutions.index(words.partition(":")[0]) % len(COLOURS)] for words in skips]


def _level(keys: tuple[str, ...], values: Mapping[str, Any], each: CellWithSettings | None) -> Any:
    """Return what stands on the axis for the values of its keys: a number as it is, a mask of skips in words."""
    if keys == ("M.skips",):
        return skips_in_words(str(values["M.skips"]), each.cell.configuration["P"]["resolution"] if each else 32)
    if len(keys) == 1:
        value = values[keys[0]]
        return value if _is_number(value) else said(keys[0], str(value))
    return ", ".join(said(key, str(values[key])) for key in keys)


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
