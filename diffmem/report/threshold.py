"""What the threshold decides: how alike images are to training images, and every ratio at each step of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffmem.analysis import CellWithSettings, bands, estimate_emm, in_words, ratio_intervals, typeset
from diffmem.measures import NEAREST, Measure
from diffmem.report.figure import Axis, Figure, Palette, Panel, Series, ratio_axis, size_axis
from diffmem.store import THRESHOLD_LEVELS, Kind, LevelCount, StoredStudy

HISTOGRAM = (
    "Images of the last checkpoints by {axis}, in front of held-out images (grey): left of the line, they are {copied}."
)
METHOD = (
    "The last bar has the images with two nearest equally far away, as copies of a training image that is there twice "
    "are. The ratios and EMMs at a threshold are those of the checkpoints that are best at it; bands are 95% intervals."
)


@dataclass(frozen=True)
class Distances:
    """The histogram of distance / yardstick, and for the page's script the ratio at each level of the threshold."""

    histogram: Figure
    curves: Panel | None  # on which the script draws; None of a study of one size
    data: dict[str, Any]  # for the script
    level: int  # of the study's threshold


class _Best(NamedTuple):
    """The highest ratio of any checkpoint of a cell at each level, and the images behind it."""

    ratios: np.ndarray  # [levels]
    samples: int


def distances(
    study: StoredStudy,
    cells: Sequence[CellWithSettings],
    counts: Sequence[LevelCount],
    unseen: Sequence[LevelCount],
    colours: Palette,
) -> Distances:
    """Return the histograms of generated and of held-out images, and the ratio of each size at each level.

    As everywhere, that of a size is the mean over its models of the ratio of their best checkpoint, which may be
    another one at each level.
    """
    measure, curves = study.measure, _best(cells, counts)
    sizes = sorted({size for members in curves.values() for size in members})
    text = HISTOGRAM.format(axis=measure.axis, copied=measure.copied)
    title = "Histogram of distances" + ("" if measure is NEAREST else f", {measure.ratio}")
    panel = distance_histogram(counts, unseen, measure, study.threshold)
    return Distances(
        Figure(title, text, [panel], METHOD),
        _axes(list(curves), sizes, study) if len(sizes) > 1 and study.kind is not Kind.IMAGES else None,
        {
            "levels": THRESHOLD_LEVELS,
            "largest": measure.largest,
            "threshold": study.threshold,
            "own": measure.threshold,
            "ownText": "1/3, the paper's" if measure is NEAREST else "the measure's own",
            "curves": [
                _at_each_level(label, found, study.epsilon) | {"colour": colours.curves[label]}
                for label, found in curves.items()
            ],
        },
        round(study.threshold * THRESHOLD_LEVELS / measure.largest),
    )


def _best(cells: Sequence[CellWithSettings], counts: Sequence[LevelCount]) -> dict[str, dict[int, list[_Best]]]:
    images: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0] * (THRESHOLD_LEVELS + 2)))
    for each in counts:
        images[each.position][each.epoch][each.level] = each.images
    curves: dict[str, dict[int, list[_Best]]] = defaultdict(lambda: defaultdict(list))
    for measured in cells:
        if checkpoints := images.get(measured.cell.position):
            copies = np.cumsum(list(checkpoints.values()), axis=1)
            best = _Best((copies / copies[:, -1:]).max(axis=0), int(copies[:, -1].min()))
            curves[measured.cell.curve][measured.cell.size].append(best)
    return curves


def _at_each_level(label: str, sizes: Mapping[int, Sequence[_Best]], epsilon: float) -> dict[str, Any]:
    """Return the mean ratio of each size of a curve with its 95% interval, and its EMM, at each level."""
    ordered = sorted(sizes)
    means = {size: np.mean([each.ratios for each in sizes[size]], axis=0).round(6).tolist() for size in ordered}
    emms = [str(estimate_emm(ordered, at, epsilon=epsilon)) for at in zip(*means.values(), strict=True)]
    groups = [size for size in ordered for _ in sizes[size]]
    ratios = np.array([each.ratios for size in ordered for each in sizes[size]])
    samples = [each.samples for size in ordered for each in sizes[size]]
    ends = np.array([ratio_intervals(bands(groups, at, samples)) for at in ratios.T.tolist()]).round(4)
    return {
        "label": in_words(label) or "all cells",
        "sizes": [
            {
                "size": size,
                "ratios": means[size],
                "low": ends[:, number, 0].tolist(),
                "high": ends[:, number, 1].tolist(),
            }
            for number, size in enumerate(ordered)
        ],
        "emms": [typeset(emm) for emm in emms],
    }


def distance_histogram(
    counts: Sequence[LevelCount], unseen: Sequence[LevelCount], measure: Measure, threshold: float
) -> Panel:
    """Show what share of the images of the last checkpoints has which distance / yardstick, in front of held-out ones,
    with the threshold as a line."""
    step = measure.largest / THRESHOLD_LEVELS
    middle = [(level - 0.5) * step for level in range(1, THRESHOLD_LEVELS + 2)]  # the last has what nothing reaches
    series = [
        Series(name, middle, _shares(rows), "bars", colour, hover="%{x:.3f}: %{y:.4f}")
        for name, rows, colour in (("held-out images", unseen, "#b9bfc7"), ("generated images", counts, "#3d7ea6"))
        if rows or name == "generated images"
    ]
    x = Axis(measure.axis, range=(0, 1.01 * measure.largest))
    text = f"threshold {measure.shown(threshold):.3g}"
    return Panel(series, x, Axis("share of images"), height=320, mark=threshold, mark_text=text, overlaid=True)


def _shares(counts: Sequence[LevelCount]) -> list[float]:
    """Return the share of the images of last checkpoints at each level but 0."""
    last: dict[int, int] = {}
    for each in counts:
        last[each.position] = max(each.epoch, last.get(each.position, 0))
    images = [0] * (THRESHOLD_LEVELS + 2)
    for each in counts:
        if each.epoch == last[each.position]:
            images[each.level] += each.images
    total = sum(images)
    return [count / max(1, total) for count in images[1:]]


def _axes(labels: Sequence[str], sizes: Sequence[int], study: StoredStudy) -> Panel:
    """Return the axes on which the page's script draws ratio against N at another threshold: a band and a line a
    curve."""
    ratio, line = ratio_axis(study.measure.ratio), 1 - study.epsilon
    lines = [Series(in_words(label) or "all cells", [], [], "line") for label in labels]  # for the legend's place
    return Panel(lines, size_axis(sizes), ratio, height=320, line=line, line_text=f"1 - eps = {line:g}")
