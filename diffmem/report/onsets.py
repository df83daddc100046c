"""The figure of onsets: the step at which memorization begins against the number of training images."""

import math
from collections.abc import Sequence

from diffmem.analysis import CurveOnsets, Onset, onsets_of
from diffmem.report.figure import COLOURS, Axis, Figure, Interval, Panel, Series, size_axis
from diffmem.store import Point

AGAINST_SIZE = (
    "tau_mem: the optimizer step at which the ratio rises above 0.01. tau_half, dotted: at which it is half of that of "
    "the last checkpoint. Geometric means over draws and seeds. Bands, or a bar at one point: 95% intervals over draws "
    "and seeds, or over generated images where each size has one model. An onset in proportion to N has the slope 1."
)


def onset_figure(points: Sequence[Point]) -> Figure | None:
    """Return the onsets against N, a line a curve; None unless a curve has one at two sizes or more."""
    curves = [curve for curve in onsets_of(points) if curve.slope]
    if not curves:
        return None
    series = [
        each for number, curve in enumerate(curves) for each in _series(curve, COLOURS[number % len(COLOURS)]) if each.x
    ]
    sizes = sorted({size for each in series for size in each.x})
    steps = [step for each in series for interval in each.intervals for step in interval]
    panel = Panel(series, size_axis(sizes), _step_axis(steps), height=420)
    return Figure("Onset of memorization against the number of training images", AGAINST_SIZE, [panel])


def _series(curve: CurveOnsets, colour: str) -> list[Series]:
    label = curve.label or "all cells"
    named = f"tau_mem: {label}, slope {curve.slope}", f"tau_half: {label}"
    both = [(each.size, each.mem) for each in curve.sizes], [(each.size, each.half) for each in curve.sizes]
    return [
        _line(name, onsets, colour, dotted=dotted)
        for name, onsets, dotted in zip(named, both, (False, True), strict=True)
    ]


def _line(name: str, onsets: Sequence[tuple[int, Onset]], colour: str, *, dotted: bool) -> Series:
    known = [(size, each.value, _ends(each, each.value)) for size, each in onsets if each.value is not None]
    return Series(
        name,
        [size for size, _, _ in known],
        [step for _, step, _ in known],
        "dotted" if dotted else "line",
        colour,
        hover="N = %{x}: step %{y:.0f}",
        intervals=[ends for _, _, ends in known],
    )


def _ends(onset: Onset, step: float) -> Interval:
    """Return the 95% interval, up to the onset itself where an end is open."""
    return onset.low or step, onset.high or step


def _step_axis(steps: Sequence[float]) -> Axis:
    """Return a logarithmic axis of optimizer steps with ticks at 1, 2 and 5."""
    low, high = math.log10(min(steps)) - 0.05, math.log10(max(steps)) + 0.05
    ticks = [m * 10**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return Axis("optimizer step", log=True, ticks=shown, range=(low, high))
