"""One study as the page shows it: everything that its templates ask for, by name."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffmem.analysis import (
    Answer,
    Beside,
    CellWithSettings,
    CopiedImages,
    Curve,
    MeasuredStudy,
    OtherResult,
    Result,
    answer_of,
    at_paper_scale,
    beside,
    between_groups,
    by_each_measure,
    copied_images,
    curves_of,
    halves_of,
    measured_cells,
    noted,
    only_size,
    other_results,
    published_values,
    study_cells,
    study_results,
    threshold_notes,
)
from diffmem.cells import clock_of
from diffmem.measures import NEAREST, Measure
from diffmem.report import figures
from diffmem.report.copied import copied_figures
from diffmem.report.factors import factor_panels, factors
from diffmem.report.figure import Figure, Palette, palette
from diffmem.report.galleries import Gallery, galleries
from diffmem.report.halves import HalfGallery, half_galleries, halves_figure
from diffmem.report.noise_levels import level_figures, shown_levels
from diffmem.report.onsets import onset_figure
from diffmem.report.quality import quality_figures
from diffmem.report.threshold import Distances, distances
from diffmem.report.tried import TriedCell, tried_cells
from diffmem.store import GOING_ON, NEEDS_NO_MORE, Kind, Point, State, Store, StoredStudy, StudyQuality, state_of

Told = Callable[[Any], Any]
"""Leaves out of every text what is not to be told."""


@dataclass(frozen=True)
class ByMeasure:
    """What a study's cells show by one measure."""

    study: StoredStudy
    measure: Measure
    curves: list[Curve]
    only_size: int | None
    sizes: list[int]
    curve: Figure | None  # against N, or against the only factor of a study of one size
    training: list[Figure]
    copies: list[Figure]
    factors: Figure | None
    samples: Figure | None
    distances: Distances | None
    copied: list[CopiedImages]  # which training images each cell copies
    at_one_percent: list[str]  # what a threshold at 1% of held-out images would be, of a similarity

    @property
    def threshold(self) -> str:
        """Return the threshold as text."""
        return share(self.study.threshold)

    @property
    def figures(self) -> list[Figure]:
        """Return all figures, in the order of the page."""
        histogram = [self.distances.histogram] if self.distances else []
        found = [self.curve, *self.training, *self.copies, *histogram, self.factors, self.samples]
        return [figure for figure in found if figure]


@dataclass(frozen=True)
class Section:
    """One study."""

    study: StoredStudy
    answer: Answer
    by_measure: list[ByMeasure]  # its own measure first
    colours: Palette
    states: Counter[State]
    done: int  # checkpoints
    expected: int
    notes: list[str]
    results: list[Result]
    published: list[Beside]
    cells: list[TriedCell]
    others: list[Figure]  # what measures of a denoiser and of quality have found, and two halves
    other_results: list[OtherResult]
    half_images: list[HalfGallery]
    galleries: Callable[[int], list[Gallery]]  # that fit into so many bytes

    @property
    def figures(self) -> list[Figure]:
        """Return all figures, in the order of the page."""
        return [*(figure for by in self.by_measure for figure in by.figures), *self.others]

    @property
    def scored(self) -> bool:
        """Return whether it is of images that another tool has generated, which have no training."""
        return self.study.kind is Kind.IMAGES

    @property
    def ended(self) -> int:
        """Return how many cells need no more work."""
        return sum(self.states[state] for state in NEEDS_NO_MORE)

    @property
    def going_on(self) -> bool:
        """Return whether a run can still change it."""
        return any(self.states[state] for state in GOING_ON)


def section_of(store: Store, study: StoredStudy, told: Told) -> Section:
    """Return all that the page shows of a study."""
    with store.snapshot():
        cells, _ = told(study_cells(store, study))
        colours = palette([each.cell.curve for each in cells], [each.cell.size for each in cells])
        quality = told(store.study_quality(study.study))
        by_measure = [
            _by_measure(store, each, told, quality, colours, main=study) for each in by_each_measure(store, study)
        ]
        by_groups = told(_by_groups(store, study))
        pairs = told(store.pairs(study.study, study.measure))
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
    clock, agreement = _clock(study, cells), halves_figure(halves, colours)
    return Section(
        told(study),
        answer_of(study, cells, by_measure[0].curves, by_groups),
        by_measure,
        colours,
        states=Counter(state_of(each.cell) for each in cells),
        done=sum(each.cell.measured for each in cells),
        expected=sum(each.cell.expected for each in cells),
        notes=noted(notes, cells),
        results=results,
        published=beside(published, comparable) if comparable else [],
        cells=tried_cells(cells, attempts),
        others=[
            *quality_figures(quality, clock, colours),
            *level_figures(levels, clock, colours),
            *([agreement] if agreement else []),
        ],
        other_results=others,
        half_images=half_galleries(halves, half_images),
        galleries=partial(galleries, pairs, cells, copies, near, study),
    )


def _by_groups(store: Store, study: StoredStudy) -> list[Curve]:
    grouped = between_groups(store, study)
    return curves_of(measured_cells(store, grouped), study.epsilon) if grouped else []


def _by_measure(
    store: Store,
    study: StoredStudy,
    told: Told,
    quality: Sequence[StudyQuality],
    colours: Palette,
    *,
    main: StoredStudy,
) -> ByMeasure:
    measure = study.measure
    cells, points = told(study_cells(store, study))
    counts = told(store.sample_counts(study.study, measure, study.threshold))
    levels = store.distance_counts(study.study, measure)
    unseen = store.held_out_distance_counts(study.study, measure)
    copied = told(copied_images(store, study))
    published: list[Beside] = []
    if measure is NEAREST and (comparable := [each for each in cells if at_paper_scale(each)]):
        published = beside(published_values(store, study.study), comparable)
    curves = curves_of(cells, study.epsilon)
    needs = "the ratio" if measure is NEAREST else f"the {measure.ratio}"
    samples = figures.ratio_against_samples(counts, measure.ratio, colours) if counts else []
    return ByMeasure(
        told(study),
        measure,
        curves,
        only_size(cells),
        sorted({point.size for curve in curves for point in curve.points}),
        _curve(study, curves, cells, colours, published),
        _training(measure, points, quality, colours),
        copied_figures(copied, measure, colours, by_image=study is main),
        _factors(study, cells, colours, published),
        Figure(f"How many generated images {needs} needs", SAMPLES, samples, SAMPLES_METHOD) if samples else None,
        distances(study, cells, levels, unseen, colours) if levels else None,
        copied,
        list(threshold_notes(cells, measure)),
    )


def share(threshold: float) -> str:
    """Return a threshold as text, a third as the paper writes it."""
    return "1/3" if threshold == NEAREST.threshold else f"{threshold:g}"


# --- figures -------------------------------------------------------------------------------------------


CURVE = "The highest ratio of any checkpoint at each number of training images; dotted: held-out images."
CURVE_METHOD = (
    "Bands, or a bar at one point: 95% intervals over generated images, and over draws and seeds where there "
    "are several, which are taken to differ alike at all sizes of a curve. Stars: EMMs, linear in N between "
    "two sizes, where the lines are straight on this logarithmic axis; an arrow is a bound."
)
TRAINING = "Ratio and loss at each checkpoint, a line for each number of training images, the darkest the largest."
TRAINING_METHOD = (
    "Averaged over draws and seeds at the checkpoints that all of them have. Bands, or a bar at one point: 95% "
    "intervals over generated images, and over draws and seeds if there are several."
)
FACTOR = "The highest ratio of any checkpoint at each setting."
FACTOR_METHOD = (
    "Averaged over draws and seeds. Bands or bars: 95% intervals, which take draws and seeds to differ alike along "
    "this axis, not along the sizes as the figure against N does."
)
SAMPLES = "The ratio of the first n images, and its standard deviation: expected (lines) and between groups (markers)."
SAMPLES_METHOD = (
    "Bands: 95% intervals. The standard deviation is that between groups of n images. A deviation of 0, as a ratio of "
    "0 or 1 has it, has no place on a logarithmic axis."
)


def _named(measure: Measure) -> str:
    return measure.ratio[0].upper() + measure.ratio[1:]


def _curve(
    study: StoredStudy,
    curves: Sequence[Curve],
    cells: Sequence[CellWithSettings],
    colours: Palette,
    published: Sequence[Beside],
) -> Figure | None:
    """Return the ratio against N; of a study of one size and one factor, against that; None of one dot."""
    name, ratio = _named(study.measure), study.measure.ratio
    sizes = {point.size for curve in curves for point in curve.points}
    if len(sizes) > 1 and study.kind is not Kind.IMAGES:
        panel = figures.ratio_against_size(curves, ratio, colours, published)
        return Figure(f"{name} against the number of training images", CURVE, [panel], CURVE_METHOD)
    if len(factors(study.axes)) != 1:
        return None
    panels = factor_panels(study.axes, cells, ratio, colours, published)
    return Figure(f"{name} against {panels[0].x.title}", FACTOR, panels, FACTOR_METHOD) if panels else None


def _factors(
    study: StoredStudy, cells: Sequence[CellWithSettings], colours: Palette, published: Sequence[Beside]
) -> Figure | None:
    """Return the ratio of a study of several factors, as facets."""
    if len(factors(study.axes)) < 2:
        return None
    panels = factor_panels(study.axes, cells, study.measure.ratio, colours, published)
    return Figure(f"{_named(study.measure)} by factor", FACTOR, panels, FACTOR_METHOD) if panels else None


def _training(
    measure: Measure, points: Sequence[Point], quality: Sequence[StudyQuality], colours: Palette
) -> list[Figure]:
    """Return the ratio and the loss against steps, of cells with more than one checkpoint, and the onsets."""
    found = []
    if len({point.position for point in points}) < len(points):
        curves = len({point.curve for point in points})
        more = f" The first {figures.MOST_CURVES} of {curves} settings." if curves > figures.MOST_CURVES else ""
        panels = figures.against_steps(points, measure.ratio, colours)
        if panels:
            title = f"{_named(measure)} and loss against steps"
            found.append(Figure(title, TRAINING + more, panels, TRAINING_METHOD))
    onset = onset_figure(points, colours, quality)
    return [*found, *([onset] if onset else [])]


def _clock(study: StoredStudy, cells: Sequence[CellWithSettings]) -> str:
    """Return what the checkpoints of a study are known by: `epoch` or `step`."""
    by_step = any(clock_of(each.cell.configuration) == "step" for each in cells)
    return "step" if by_step else study.kind.clock
