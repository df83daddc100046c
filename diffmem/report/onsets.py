"""The figure of onsets: the steps at which memorization begins, and images become good, against the number of training
images."""

from collections.abc import Sequence

from diffmem.analysis import CurveOnsets, Onset, in_words, onsets_of, space_of
from diffmem.report.figure import Figure, Interval, Look, Palette, Panel, Series, log_axis, size_axis
from diffmem.store import Point, StudyQuality

ONSETS = "The step at which memorization begins (lines) and reaches half of its last ratio (dotted), against N."
METHOD = (
    "tau_mem: the optimizer step at which the ratio rises above 0.01. tau_half, dotted: at which it is half of that of "
    "the last checkpoint. Geometric means over draws and seeds. Bands, or a bar at one point: 95% intervals over draws "
    "and seeds, or over generated images where each size has one model. An onset in proportion to N has the slope 1."
)
GENERATING = (
    " tau_gen, open circles: the first checkpoint whose Frechet distance to held-out images ({space}) is at most 1.1 "
    "times the least."
)

LOOKS: tuple[Look, Look] = ("line", "dotted")
"""Of tau_mem and tau_half."""


def onset_figure(points: Sequence[Point], colours: Palette, quality: Sequence[StudyQuality] = ()) -> Figure | None:
    """Return the onsets against N, a line a curve; None unless a curve has one at two sizes or more."""
    curves = [curve for curve in onsets_of(points, quality=quality) if curve.slope or curve.gen_slope]
    if not curves:
        return None
    series = [each for curve in curves for each in _series(curve, colours.curves[curve.label]) if each.x]
    sizes = sorted({size for each in series for size in each.x})
    steps = [step for each in series for interval in each.intervals for step in interval]
    panel = Panel(series, size_axis(sizes), log_axis("optimizer step", steps), height=420)
    told = GENERATING.format(space=space_of(quality)) if any(each.look == "published" for each in series) else ""
    return Figure("Onset of memorization against the number of training images", ONSETS, [panel], METHOD + told)


def _series(curve: CurveOnsets, colour: str) -> list[Series]:
    label = in_words(curve.label) or "all cells"
    slope = f", slope {curve.slope}" if curve.slope else ""
    named = f"tau_mem: {label}{slope}", f"tau_half: {label}"
    both = [(each.size, each.mem) for each in curve.sizes], [(each.size, each.half) for each in curve.sizes]
    good = [(each.size, each.gen) for each in curve.sizes if each.gen is not None]
    slope = f", slope {curve.gen_slope}" if curve.gen_slope else ""
    return [
        *(_line(name, onsets, colour, look) for name, onsets, look in zip(named, both, LOOKS, strict=True)),
        _line(f"tau_gen: {label}{slope}", good, colour, "published"),
    ]


def _line(name: str, onsets: Sequence[tuple[int, Onset]], colour: str, look: Look) -> Series:
    known = [(size, each.value, _ends(each, each.value)) for size, each in onsets if each.value is not None]
    return Series(
        name,
        [size for size, _, _ in known],
        [step for _, step, _ in known],
        look,
        colour,
        hover="N = %{x}: step %{y:.0f}",
        intervals=[ends for _, _, ends in known],
    )


def _ends(onset: Onset, step: float) -> Interval:
    """Return the 95% interval, up to the onset itself where an end is open."""
    return onset.low or step, onset.high or step
