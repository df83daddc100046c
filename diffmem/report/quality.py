"""The figures of quality: how good generated images are against training and held-out images, beside the ratio."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from diffmem.analysis import in_words
from diffmem.measures import NEAREST, small_sample
from diffmem.report.figure import Axis, Figure, Palette, Panel, Series, ratio_axis, size_axis
from diffmem.report.figures import MOST_CURVES
from diffmem.store import StudyQuality

QUANTITIES = {
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "authentic": "authentic share",
    "c_t": "C_T",
}
"""The quantities as an axis has them."""
SHARES = ("precision", "recall", "coverage", "authentic")
TEXT = "How good generated images are ({space}): a model that copies is good against its training images alone."
METHOD = (
    "Generated images in the space {space} against training images and against held-out ones. Dotted: new real images "
    "in the place of the generated ones. Bands: 95% intervals over images. One line a model."
)
AGAINST = {"training": "beside training images", "held_out": "beside held-out images"}

X = Callable[[StudyQuality], int]
Told = Callable[[StudyQuality], tuple[str, str]]
"""What a line is called, and its colour."""


def quality_figures(values: Sequence[StudyQuality], clock: str, colours: Palette) -> list[Figure]:
    """Return the figures of the quality of a study in each space; none where none is measured."""
    spaces: dict[str, list[StudyQuality]] = defaultdict(list)
    for each in values:
        spaces[each.space].append(each)
    return [figure for space, members in spaces.items() for figure in _of_space(space, members, clock, colours)]


def _of_space(space: str, values: Sequence[StudyQuality], clock: str, colours: Palette) -> list[Figure]:
    """Return a figure against N, a line a curve, and for each curve one against steps, a line a size."""
    last = {each.position: each.epoch for each in sorted(values, key=lambda each: each.epoch)}
    of_last = [each for each in values if each.epoch == last[each.position]]
    sizes = sorted({each.size for each in values})
    cautions = " ".join(f"{each}." for each in dict.fromkeys(filter(None, map(small_sample, values))))
    text, method = f"{TEXT.format(space=space)} {cautions}".strip(), METHOD.format(space=space)
    found = []
    if len(sizes) > 1:
        by_curve: Told = lambda each: (in_words(each.curve) or "all cells", colours.curves[each.curve])  # noqa: E731
        panels = _panels(of_last, lambda each: each.size, size_axis(sizes), by_curve)
        found.append(Figure(f"Quality ({space}) against the number of training images", text, panels, method))
    if len({(each.position, each.epoch) for each in values}) > len(last):
        by_step: X = lambda each: each.step if clock == "step" else each.epoch  # noqa: E731
        by_size: Told = lambda each: (f"N = {each.size}", colours.sizes[each.size])  # noqa: E731
        trained = list(dict.fromkeys(each.curve for each in values if each.epoch != last[each.position]))
        more = f" The first {MOST_CURVES} of {len(trained)} settings." * (len(trained) > MOST_CURVES)
        for curve in trained[:MOST_CURVES]:
            panels = _panels([each for each in values if each.curve == curve], by_step, Axis(f"{clock}s"), by_size)
            of = f", {in_words(curve)}" * (len(colours.curves) > 1)
            found.append(Figure(f"Quality ({space}) against {clock}s{of}", text + more, panels, method))
    return found


def _panels(values: Sequence[StudyQuality], x: X, axis: Axis, told: Told) -> list[Panel]:
    """Show the ratio, and each quantity beside either kind of real images, over the same axis."""
    once = [*{(each.position, each.epoch): each for each in values}.values()]
    ratios = [_line(own, x, [each.ratio for each in own], named) for named, own in _lines(once, x, told)]
    panels = [Panel(ratios, axis, ratio_axis(NEAREST.ratio), label=NEAREST.ratio)]
    for quantity, title in QUANTITIES.items():
        for against, beside in AGAINST.items():
            members = [each for each in values if (each.quantity, each.against) == (quantity, against)]
            if members:
                label = f"{title} {beside}"
                y = ratio_axis(label) if quantity in SHARES else Axis(label)
                panels.append(Panel(_series(members, x, told), axis, y, label=label))
    return panels


class _Named(NamedTuple):
    """What a line is called, its colour, and whether it is the first of that name."""

    name: str
    colour: str
    first: bool


def _lines(values: Sequence[StudyQuality], x: X, told: Told) -> Iterator[tuple[_Named, list[StudyQuality]]]:
    """Yield the values of each line in the order of x: those of one model, or of one model of each size."""
    rank: dict[tuple[str, int], list[int]] = defaultdict(list)
    for each in values:
        if each.position not in rank[each.curve, each.size]:
            rank[each.curve, each.size].append(each.position)
    lines: dict[tuple[str, str, int], list[StudyQuality]] = defaultdict(list)
    for each in values:
        lines[*told(each), rank[each.curve, each.size].index(each.position)].append(each)
    for (name, colour, number), line in lines.items():
        yield _Named(name, colour, number == 0), sorted(line, key=x)


def _line(own: Sequence[StudyQuality], x: X, y: Sequence[float], named: _Named) -> Series:
    return Series(named.name, [x(each) for each in own], y, "line", named.colour, in_legend=named.first)


def _series(values: Sequence[StudyQuality], x: X, told: Told) -> list[Series]:
    found = []
    for named, own in _lines(values, x, told):
        line = _line(own, x, [each.value for each in own], named)
        found.append(replace(line, intervals=[(each.low, each.high) for each in own]))
        if nulls := [(x(each), each.null) for each in own if each.null is not None]:
            places, ys = [place for place, _ in nulls], [null for _, null in nulls]
            found.append(Series(f"{named.name}: null", places, ys, "dotted", named.colour, in_legend=False))
    return found
