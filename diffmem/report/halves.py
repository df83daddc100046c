"""Two halves on the page: agreement against the number of training images, and images of the same latents."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffmem.analysis import HalvesAgreement, SizeMean, size_means
from diffmem.measures import Agreement, Bounded
from diffmem.report.figure import COLOURS, RATIOS, Axis, Figure, Palette, Panel, Series, size_axis
from diffmem.report.galleries import data_uri, smaller
from diffmem.store import HalfImages

HALVES = (
    "Whether two models trained on disjoint halves generate the same images from the same latents; dotted: the null."
)
METHOD = (
    "Two models that differ in P.half alone have no training image in common; they start from the same weights and "
    "generate from the same latents. Cosine: mean similarity of their two images, in {space}. RP: share of latents "
    "whose two images are more similar than {threshold:g}. GL: share of images that are less similar than that to "
    "every training image of their model. Dotted: the null, which is images of different latents, and for GL held-out "
    "images. Means over pairs of models. Bands, or a bar at one point: 95% intervals over these, or over latents where "
    "each size has one pair."
)
SHOWN = 8
"""Latents of each pair of models whose images a gallery shows, at most."""
MOST_GALLERIES = 8
"""Pairs of models that are shown, the first ones."""


def halves_figure(rows: Sequence[HalvesAgreement], colours: Palette) -> Figure | None:
    """Return agreement against N, a panel for each number and a line for each two curves that differ in their half
    alone, in colours that no curve has, as far as there are any; None where nothing is compared."""
    if not rows:
        return None
    free = [each for each in COLOURS if each not in colours.curves.values()] or COLOURS
    panels = [
        _panel(rows, free, "cosine", Axis("mean cosine", range=_cosines(rows))),
        _panel(rows, free, "psnr", Axis("PSNR (dB)")),
        _panel(rows, free, "reproducible", Axis("reproducible share RP", range=RATIOS)),
        _panel(rows, free, "generalization", Axis("generalization GL", range=RATIOS)),
    ]
    method = METHOD.format(space=rows[0].space, threshold=rows[0].threshold)
    return Figure("Agreement of two halves against the number of training images", HALVES, panels, method)


def _cosines(rows: Sequence[HalvesAgreement]) -> tuple[float, float]:
    lowest = min(each.low for row in rows for each in (row.found.cosine, row.found.cosine_null) if each)
    return min(RATIOS[0], lowest - 0.03), RATIOS[1]


def _panel(rows: Sequence[HalvesAgreement], colours: Sequence[str], name: str, y: Axis) -> Panel:
    curves: dict[str, list[HalvesAgreement]] = defaultdict(list)
    for row in rows:
        curves[row.curve].append(row)
    series = []
    for number, (curve, own) in enumerate(curves.items()):
        colour = colours[number % len(colours)]
        for which, suffix in ((name, ""), (f"{name}_null", ", null")):
            if means := size_means(own, _taking(which)):
                series.append(_series((curve or "all cells") + suffix, means, colour, dotted=bool(suffix)))
    return Panel(series, size_axis(sorted({row.size for row in rows})), y, label=y.title)


def _taking(name: str) -> Callable[[Agreement], Bounded | None]:
    return lambda found: getattr(found, name)


def _series(name: str, means: Sequence[SizeMean], colour: str, *, dotted: bool) -> Series:
    return Series(
        name,
        [each.size for each in means],
        [each.value for each in means],
        "dotted" if dotted else "line",
        colour,
        hover="N = %{x}: %{y:.3f}",
        intervals=[(each.low, each.high) for each in means],
    )


# --- galleries -----------------------------------------------------------------------------------------


class HalfPicture(NamedTuple):
    """Both images of one latent as data URIs."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class HalfGallery:
    """Images of two models from the same latents."""

    position: int
    name: str
    cosine: float  # over all latents
    pairs: list[HalfPicture]


def half_galleries(rows: Sequence[HalvesAgreement], images: Sequence[HalfImages]) -> list[HalfGallery]:
    """Return a gallery for each of the first pairs of models whose pictures the store has; StoreError if one is no
    PNG."""
    own: dict[tuple[str, str], list[HalfImages]] = defaultdict(list)
    for each in images:
        own[each.cell_a, each.cell_b].append(each)
    shown = [row for row in rows if (row.cell_a, row.cell_b) in own][:MOST_GALLERIES]
    return [_gallery(row, own[row.cell_a, row.cell_b]) for row in shown]


def _gallery(row: HalvesAgreement, images: Sequence[HalfImages]) -> HalfGallery:
    several = [row.curve, f"N = {row.size}", f"P.draw = {row.draw}", f"T.seed = {row.seed}"]
    pairs = [
        HalfPicture(data_uri(smaller(each.first)), data_uri(smaller(each.second)), each.similarity)
        for each in images[:SHOWN]
    ]
    return HalfGallery(images[0].position, ", ".join(filter(None, several)), row.found.cosine.value, pairs)
