"""A study in the space of a word: its ratios against N, a line a curve, or a dot each of one size."""

import math

from markupsafe import Markup

from diffmem.report.section import Section

WIDTH, HEIGHT, MARGIN = 96, 28, 3


def sparkline(section: Section) -> Markup:
    """Return the ratios of a study's own measure as a small drawing, which its answer says in words."""
    main = section.by_measure[0]
    sizes = main.sizes
    drawn = []
    for number, curve in enumerate(main.curves):
        colour = section.colours.curves[curve.label]
        alone = len(sizes) == 1
        places = [
            (_across(number, len(main.curves)) if alone else _along(point.size, sizes), _up(point.best))
            for point in curve.points
        ]
        if len(places) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        else:
            drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return Markup(f'<svg class="sparkline" aria-hidden="true" {box}>{"".join(drawn)}</svg>')  # noqa: S704 own text


def _across(number: int, count: int) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * (number + 0.5) / count


def _along(size: int, sizes: list[int]) -> float:
    first, last = math.log(sizes[0]), math.log(sizes[-1])
    return MARGIN + (WIDTH - 2 * MARGIN) * (math.log(size) - first) / (last - first)


def _up(ratio: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * ratio
