"""One study as the page shows it: everything that its template asks for, by name."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diffmem.analysis import (
    Beside,
    CellWithSettings,
    CopiedImages,
    Curve,
    MeasuredStudy,
    OtherResult,
    Result,
    at_paper_scale,
    beside,
    by_each_measure,
    by_position,
    copied_images,
    curves_of,
    estimate_emm,
    halves_of,
    noted,
    only_size,
    other_results,
    published_values,
    study_cells,
    study_results,
    threshold_notes,
)
from diffmem.cells import cell_cost, clock_of, stored_cell
from diffmem.measures import NEAREST, Measure
from diffmem.report import figures
from diffmem.report.copied import copied_figures
from diffmem.report.factors import factors, ratio_against_factor
from diffmem.report.figure import Figure, Panel
from diffmem.report.galleries import galleries
from diffmem.report.halves import HalfGallery, half_galleries, halves_figure
from diffmem.report.noise_levels import level_figures, shown_levels
from diffmem.report.onsets import onset_figure
from diffmem.report.quality import quality_figures
from diffmem.store import (
    GOING_ON,
    THRESHOLD_LEVELS,
    Attempt,
    LevelCount,
    Point,
    SampleCount,
    State,
    Store,
    StoredCell,
    StoredStudy,
    StudyQuality,
    outcome_of,
    reason,
    state_of,
)
from diffmem.text import duration, with_unit

Told = Callable[[Any], Any]
"""Leaves out of every text what is not to be told."""


@dataclass(frozen=True)
class Distances:
    """The histogram of distance / yardstick, and for the page's script the ratio at each level of the threshold."""

    histogram: Figure
    curves: Panel | None  # on which the script draws; None of a study of one size
    data: dict[str, Any]  # for the script
    level: int  # of the study's threshold


@dataclass(frozen=True)
class ByMeasure:
    """What a study's cells show by one measure."""

    study: StoredStudy
    measure: Measure
    curves: list[Curve]
    only_size: int | None
    sizes: list[int]
    figures: list[Figure]
    distances: Distances | None
    copied: list[CopiedImages]  # which training images each cell copies
    at_one_percent: list[str]  # what a threshold at 1% of held-out images would be, of a similarity

    @property
    def threshold(self) -> str:
        """Return the threshold as text."""
        return share(self.study.threshold)


@dataclass(frozen=True)
class TriedCell:
    """A cell with its state, what sets it apart in its study, its attempts and what they took."""

    cell: StoredCell
    best: float | None
    state: State
    error: str | None
    configuration: str
    apart: str
    cost: str
    trained: str
    scored: str
    attempts: list[tuple[Attempt, str, str, str]]  # with its outcome, versions and source


@dataclass(frozen=True)
class Section:
    """One study."""

    study: StoredStudy
    by_measure: list[ByMeasure]  # its own measure first
    states: Counter[State]
    done: int  # checkpoints
    expected: int
    notes: list[str]
    results: list[Result]
    published: list[Beside]
    cells: list[TriedCell]
    of_denoisers: list[Figure]  # what measures of a denoiser have found
    of_images: list[Figure]  # how good generated images are
    other_results: list[OtherResult]
    halves: Figure | None
    half_images: list[HalfGallery]
    galleries: Callable[[int], list[dict[str, Any]]]  # that fit into so many bytes

    @property
    def ended(self) -> int:
        """Return how many cells need no more work."""
        return self.states[State.FINISHED] + self.states[State.CROSSED] + self.states[State.ENDED]

    @property
    def going_on(self) -> bool:
        """Return whether a run can still change it."""
        return any(self.states[state] for state in GOING_ON)


def section_of(store: Store, study: StoredStudy, told: Told) -> Section:
    """Return all that the page shows of a study."""
    with store.snapshot():
        quality = told(store.study_quality(study.study))
        by_measure = [_by_measure(store, each, told, quality, main=study) for each in by_each_measure(store, study)]
        cells, _ = told(study_cells(store, study))
        pairs = store.pairs(study.study, study.measure)
        copies = store.copies(study.study, study.measure, study.threshold)
        near = told(store.near_images(study.study, study.measure, study.threshold))
        attempts, notes = told(store.attempts(study.study)), told(store.notes(study.study))
        levels = told(shown_levels(store.study_levels(study.study)))
        published = published_values(store, study.study)
        by_paper = study.by(NEAREST)
        evidence = MeasuredStudy(told(by_paper), told(study_cells(store, by_paper))[0], published)
        results, others = study_results(store, evidence), told(other_results(store, study))
        halves, half_images = told(halves_of(store, study)), store.half_images(study.study)
    comparable = [each for each in evidence.cells if at_paper_scale(each)]
    return Section(
        told(study),
        by_measure,
        states=Counter(state_of(each.cell) for each in cells),
        done=sum(each.cell.measured for each in cells),
        expected=sum(each.cell.expected for each in cells),
        notes=noted(notes, cells),
        results=results,
        published=beside(published, comparable) if comparable else [],
        cells=_tried(cells, attempts),
        of_denoisers=level_figures(levels, _clock(study, cells)),
        of_images=quality_figures(quality, _clock(study, cells)),
        other_results=others,
        halves=halves_figure(halves),
        half_images=half_galleries(halves, half_images),
        galleries=partial(galleries, pairs, cells, copies, near, study),
    )


def _by_measure(
    store: Store, study: StoredStudy, told: Told, quality: Sequence[StudyQuality], *, main: StoredStudy
) -> ByMeasure:
    cells, points = told(study_cells(store, study))
    counts = told(store.sample_counts(study.study, study.measure, study.threshold))
    levels = store.distance_counts(study.study, study.measure)
    copied = told(copied_images(store, study))
    published: list[Beside] = []
    if study.measure is NEAREST and (comparable := [each for each in cells if at_paper_scale(each)]):
        published = beside(published_values(store, study.study), comparable)
    curves = curves_of(cells, study.epsilon)
    return ByMeasure(
        told(study),
        study.measure,
        curves,
        only_size(cells),
        sorted({point.size for curve in curves for point in curve.points}),
        [
            *_figures(study, curves, cells, points, counts, published, quality),
            *copied_figures(copied, study.measure, by_image=study is main),
        ],
        _distances(study, cells, levels) if levels else None,
        copied,
        list(threshold_notes(cells, study.measure)),
    )


def share(threshold: float) -> str:
    """Return a threshold as text, a third as the paper writes it."""
    return "1/3" if threshold == NEAREST.threshold else f"{threshold:g}"


# --- figures -------------------------------------------------------------------------------------------


AGAINST_SIZE = (
    "Bands, or a bar at one point: 95% intervals over generated images, and over draws and seeds where there "
    "are several, which are taken to differ alike at all sizes of a curve. Stars: EMMs, linear in N between "
    "two sizes, where the lines are straight on this logarithmic axis. Dotted: held-out images."
)
AGAINST_EPOCHS = (
    "One line for each number of training images, averaged over draws and seeds at the {}s that all of "
    "them have. Bands, or a bar at one point: 95% intervals over generated images, and over draws and seeds "
    "where there are several."
)
AGAINST_FACTOR = (
    "The highest ratio of any checkpoint, averaged over draws and seeds. Bands or bars: 95% intervals, which "
    "take draws and seeds to differ alike along this axis, not along the sizes as the figure against N does."
)
AGAINST_SAMPLES = (
    "The ratio of the first n images, with 95% intervals, and its "
    "standard deviation: as expected (lines) and between groups of n images (markers). A deviation of 0, as a "
    "ratio of 0 or 1 has it, has no place on a logarithmic axis."
)


def _figures(
    study: StoredStudy,
    curves: Sequence[Curve],
    cells: Sequence[CellWithSettings],
    points: Sequence[Point],
    counts: Sequence[SampleCount],
    published: Sequence[Beside],
    quality: Sequence[StudyQuality],
) -> list[Figure]:
    """Return each figure that there is something for."""
    if not points:
        return []
    found: list[Figure] = []
    axes, ratio = factors(study.axes), study.measure.ratio
    clock = _clock(study, cells)
    named = ratio[0].upper() + ratio[1:]
    if len({point.size for point in points}) > 1 or not axes:
        panel = figures.ratio_against_size(curves, ratio, published)
        found.append(Figure(f"{named} against the number of training images", AGAINST_SIZE, [panel]))
    if len({point.position for point in points}) < len(points):  # a cell has more than one checkpoint
        panels = figures.ratio_against_epochs(points, ratio, clock)
        found.append(Figure(f"{named} against {clock}s", AGAINST_EPOCHS.format(clock), panels))
    if found_onsets := onset_figure(points, quality):
        found.append(found_onsets)
    for keys in axes:
        panel = ratio_against_factor(keys, cells, ratio, published)
        found.append(Figure(f"{named} against {', '.join(keys)}", AGAINST_FACTOR, [panel]))
    if counts:
        panels = figures.ratio_against_samples(counts, ratio)
        needs = "the ratio" if study.measure is NEAREST else f"the {ratio}"
        found.append(Figure(f"How many generated images {needs} needs", AGAINST_SAMPLES, panels))
    return found


def _clock(study: StoredStudy, cells: Sequence[CellWithSettings]) -> str:
    """Return what the checkpoints of a study are known by: `epoch` or `step`."""
    by_step = any(clock_of(each.cell.configuration) == "step" for each in cells)
    return "step" if by_step else study.kind.clock


def _distances(study: StoredStudy, cells: Sequence[CellWithSettings], counts: Sequence[LevelCount]) -> Distances:
    """Return the ratio of each size at each level of the threshold.

    As everywhere, that of a size is the mean over its models of the ratio of their best checkpoint, which may be
    another one at each level.
    """
    images: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0] * (THRESHOLD_LEVELS + 2)))
    for each in counts:
        images[each.position][each.epoch][each.level] = each.images
    curves: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for measured in cells:
        if checkpoints := images.get(measured.cell.position):
            copies = np.cumsum(list(checkpoints.values()), axis=1)
            curves[measured.cell.curve][measured.cell.size].append((copies / copies[:, -1:]).max(axis=0))
    measure, sizes = study.measure, sorted({size for members in curves.values() for size in members})
    labels = [label or "all cells" for label in curves]
    histogram = figures.distance_histogram(counts, measure, study.threshold)
    return Distances(
        Figure("", "", [histogram]),
        figures.empty_curves(labels, sizes, 1 - study.epsilon, measure.ratio) if len(sizes) > 1 else None,
        {
            "levels": THRESHOLD_LEVELS,
            "largest": measure.largest,
            "threshold": study.threshold,
            "own": measure.threshold,
            "ownText": "1/3, the paper's" if measure is NEAREST else "the measure's own",
            "curves": [_at_each_level(label, found, study.epsilon) for label, found in curves.items()],
        },
        round(study.threshold * THRESHOLD_LEVELS / measure.largest),
    )


def _at_each_level(label: str, sizes: Mapping[int, Sequence[np.ndarray]], epsilon: float) -> dict[str, Any]:
    """Return the mean ratio of each size of a curve, and its EMM, at each level of the threshold."""
    ratios = {size: np.mean(best, axis=0).round(9).tolist() for size, best in sorted(sizes.items())}
    emms = [str(estimate_emm(list(ratios), at, epsilon=epsilon)) for at in zip(*ratios.values(), strict=True)]
    return {
        "label": label or "all cells",
        "sizes": [{"size": size, "ratios": at} for size, at in ratios.items()],
        "emms": emms,
    }


# --- cells ---------------------------------------------------------------------------------------------


def _tried(cells: Sequence[CellWithSettings], attempts: Sequence[Attempt]) -> list[TriedCell]:
    tried = by_position(attempts)
    base = _most_common([each.settings for each in cells])
    return [_tried_cell(each, tried[each.cell.position], base) for each in cells]


def _tried_cell(measured: CellWithSettings, tried: Sequence[Attempt], base: Mapping[str, Any]) -> TriedCell:
    cell = measured.cell
    apart = [f"{key} = {value}" for key, value in measured.settings.items() if base.get(key) != value]
    return TriedCell(
        cell,
        measured.best,
        state_of(cell),
        reason(cell),
        configuration=json.dumps(cell.configuration, indent=2),
        apart=", ".join(apart),
        cost=_cost(cell),
        trained=duration(sum(attempt.train_seconds for attempt in tried)),
        scored=duration(sum(attempt.score_seconds for attempt in tried)),
        attempts=[
            (each, outcome_of(each, finished=cell.finished) or each.outcome, _versions(each), _source(each))
            for each in tried
        ],
    )


UNKNOWN_COST = "not known: an older diffmem did not keep the colour channels of its images"


def _cost(cell: StoredCell) -> str:
    """Return the size of a cell's network and its operations in words; empty for images of other tools."""
    known = stored_cell(cell.configuration)
    if known is None:
        return UNKNOWN_COST if "M" in cell.configuration else ""
    cost = cell_cost(known)
    size = f"{with_unit(cost.parameters)} parameters, " * bool(cost.parameters)
    return f"{size}{with_unit(cost.operations)} floating-point operations for all its checkpoints"


def _most_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the value of each setting that most cells have, the first one where several are as frequent."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for one in settings:
        for key, value in one.items():
            values[key][json.dumps(value)] += 1
    return {key: json.loads(counted.most_common(1)[0][0]) for key, counted in values.items()}


def _versions(attempt: Attempt) -> str:
    return ", ".join(f"{package} {number}" for package, number in attempt.versions.items())


def _source(attempt: Attempt) -> str:
    if attempt.git_commit is None:
        return "-"
    return attempt.git_commit[:10] + (" with local changes" if attempt.git_dirty else "")
