"""The figures of quality: how good generated images are against training and held-out images, beside the ratio."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from diffmem.measures import NEAREST, small_sample
from diffmem.report.figure import COLOURS, Axis, Figure, Panel, Series, ratio_axis, size_axis
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

X = Callable[[StudyQuality], int]


def quality_figures(values: Sequence[StudyQuality], clock: str) -> list[Figure]:
    """Return the figures of the quality of a study in each space; none where none is measured."""
    spaces: dict[str, list[StudyQuality]] = defaultdict(list)
    for each in values:
        spaces[each.space].append(each)
    return [figure for space, members in spaces.items() for figure in _of_space(space, members, clock)]


def _of_space(space: str, values: Sequence[StudyQuality], clock: str) -> list[Figure]:
    last = {each.position: each.epoch for each in sorted(values, key=lambda each: each.epoch)}
    of_last = [each for each in values if each.epoch == last[each.position]]
    sizes = sorted({each.size for each in values})
    cautions = " ".join(f"{each}." for each in dict.fromkeys(filter(None, map(small_sample, values))))
    text, method = f"{TEXT.format(space=space)} {cautions}".strip(), METHOD.format(space=space)
    found = []
    if len(sizes) > 1:
        panels = _panels(of_last, lambda each: each.size, size_axis(sizes), by_size=False)
        found.append(Figure(f"Quality ({space}) against the number of training images", text, panels, method))
    if len({(each.position, each.epoch) for each in values}) > len(last):
        by_step: X = lambda each: each.step if clock == "step" else each.epoch  # noqa: E731
        panels = _panels(values, by_step, Axis(f"{clock}s"), by_size=True)
        found.append(Figure(f"Quality ({space}) against {clock}s", text, panels, method))
    return found


def _panels(values: Sequence[StudyQuality], x: X, axis: Axis, *, by_size: bool) -> list[Panel]:
    """Show the ratio, and each quantity, over the same axis."""
    panels = [Panel(_ratios(values, x, by_size=by_size), axis, ratio_axis(NEAREST.ratio), label=NEAREST.ratio)]
    for quantity, title in QUANTITIES.items():
        members = [each for each in values if each.quantity == quantity]
        if members:
            y = ratio_axis(title) if quantity in SHARES else Axis(title)
            panels.append(Panel(_series(members, x, by_size=by_size), axis, y, label=title))
    return panels


def _lines(values: Sequence[StudyQuality], *, by_size: bool) -> dict[tuple[str, int], list[StudyQuality]]:
    """Return the values of each line by its name, and which of those of one name it is: of a model, or one model of
    each size."""
    rank: dict[tuple[str, int], list[int]] = defaultdict(list)
    for each in values:
        if each.position not in rank[each.curve, each.size]:
            rank[each.curve, each.size].append(each.position)
    lines: dict[tuple[str, int], list[StudyQuality]] = defaultdict(list)
    for each in values:
        name = ", ".join(filter(None, [each.curve, f"N = {each.size}" if by_size else ""])) or "all cells"
        lines[name, rank[each.curve, each.size].index(each.position)].append(each)
    return lines


def _ratios(values: Sequence[StudyQuality], x: X, *, by_size: bool) -> list[Series]:
    found = []
    lines = _lines([*{(each.position, each.epoch): each for each in values}.values()], by_size=by_size)
    for (name, number), line in lines.items():
        ordered = sorted(line, key=x)
        colour = _colour(name, lines, 0)
        xs, ys = [x(each) for each in ordered], [each.ratio for each in ordered]
        found.append(Series(name, xs, ys, "line", colour, in_legend=number == 0))
    return found


def _series(values: Sequence[StudyQuality], x: X, *, by_size: bool) -> list[Series]:
    found = []
    for offset, against in enumerate(("training", "held_out")):
        lines = _lines([each for each in values if each.against == against], by_size=by_size)
        for (name, number), line in lines.items():
            ordered = sorted(line, key=x)
            full = f"{name}, {against.replace('_', '-')} images"
            colour, xs = _colour(name, lines, offset), [x(each) for each in ordered]
            intervals = [(each.low, each.high) for each in ordered]
            ys = [each.value for each in ordered]
            found.append(Series(full, xs, ys, "line", colour, intervals=intervals, in_legend=number == 0))
            if nulls := [(x(each), each.null) for each in ordered if each.null is not None]:
                places, ys = [place for place, _ in nulls], [null for _, null in nulls]
                found.append(Series(f"{full}: null", places, ys, "dotted", colour, in_legend=number == 0))
    return found


def _colour(name: str, lines: dict[tuple[str, int], list[StudyQuality]], offset: int) -> str:
    names = [*dict.fromkeys(name for name, _ in lines)]
    return str(COLOURS[(2 * names.index(name) + offset) % len(COLOURS)])
