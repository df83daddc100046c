"""The page of findings: the paper's effects beside those measured at each scale, on one axis."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from plotly.offline import get_plotlyjs

from diffmem.analysis import ClaimAtScales, FindingsAtScales, findings_at_scales
from diffmem.atomic import whole
from diffmem.report.figure import COLOURS, Axis, Figure, Panel, Series
from diffmem.report.private import Private
from diffmem.report.template import beside, template
from diffmem.store import Store

BESIDE = (
    "Each line is a claim of the paper: a difference of memorization ratios between two levels of a factor, or, of "
    "those about one level, the ratio there (of 17, its standard deviation). The grey bar is the range in which the "
    "claim holds, and the open circle is what the paper's own numbers give, where it has them. The rest is what was "
    "measured, with 95% intervals over images, draws and seeds; a difference is taken in each draw. A claim that was "
    "not measured at a scale has no mark."
)
ENDS = (-1.05, 1.05)
"""Of the axis of differences of ratios."""
LINE = 44
"""Pixels that a claim has in the figure's height."""


def write_findings(store: Store, path: Path | str) -> None:
    """Write the page of findings to `path`, whole or not at all; it names no machine and no folder of one."""
    found, told = findings_at_scales(store), Private(store.hosts())
    text = template("findings.html").render(
        found=found,
        figure=findings_figure(found),
        findings=[(finding, list(claims)) for finding, claims in groupby(found.claims, key=lambda each: each.finding)],
        told=told,
        source=told(str(store.path)),
        plotly=get_plotlyjs(),
        css=beside("page.css"),
        script=beside("page.js"),
        version=version("diffmem"),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    with whole(Path(path)) as file:
        file.write_text(text, encoding="utf-8")


def findings_figure(found: FindingsAtScales) -> Figure:
    """Return every claim on one axis: its range, the paper's value, and that of each scale with its interval."""
    published = {each.name: each.published for each in found.claims if each.published is not None}
    series = [Series("the paper", list(published), list(published.values()), "published", "#444")]
    for number, scale in enumerate(found.scales):
        measured = [
            (each.name, result.value, result.interval)
            for each in found.claims
            if (result := each.results[scale]).value is not None and result.interval is not None
        ]
        names, values, intervals = zip(*measured, strict=True) if measured else ((), (), ())
        colour = COLOURS[number % len(COLOURS)]
        series.append(Series(scale, names, values, "markers", colour, intervals=intervals))
    panel = Panel(
        series,
        Axis("claim", names=True, ticks=[each.name for each in found.claims]),
        Axis("difference of memorization ratios, or ratio", range=ENDS),
        height=120 + LINE * len(found.claims),
        ranges=_ranges(found.claims),
    )
    return Figure("Published beside measured", BESIDE, [panel])


def _ranges(claims: Sequence[ClaimAtScales]) -> Mapping[str, tuple[float, float]]:
    return {each.name: (max(ENDS[0], each.claim.within[0]), min(ENDS[1], each.claim.within[1])) for each in claims}
