"""From the store's checkpoints to EMM curves: the best checkpoint of each size, averaged over draws and seeds."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Protocol, TypeVar

from diffmem.analysis.emm import Estimate, Interval, bands, emm_interval, estimate_emm, mean_ratios, rises, still_rises
from diffmem.cells import FEW_STEPS, dotted
from diffmem.errors import StoreError
from diffmem.measures import GROUPED, Measure, measure_named, p_value
from diffmem.notebook import html_table
from diffmem.store import (
    FEW_HELD_OUT,
    CellProgress,
    Kind,
    Note,
    Null,
    Outcome,
    Point,
    State,
    Store,
    StoredCell,
    StoredStudy,
    as_arguments,
    state_of,
)
from diffmem.text import counted


@dataclass(frozen=True)
class SizePoint:
    """The memorization ratio at one training set size, each in 0..1."""

    size: int
    best: float  # mean over draws and seeds of the highest ratio of any checkpoint: the paper's number
    last: float  # mean over draws and seeds of the ratio of the last checkpoint: without that upward bias
    cells: int  # draws and seeds behind the means
    low: float  # 95% interval of `best`, over images, draws and seeds
    high: float
    null: float | None  # share of held-out images that are called copies, over the cells' training sets; None: no such
    null_samples: int  # held-out images
    p_value: float | None  # the largest of the cells'
    null_threshold: float | None = None  # at which at most 1% of held-out images are called copies, at any of the cells
    steps: int = 0  # the fewest optimizer steps of the cells up to their last checkpoint; 0: of no training


@dataclass(frozen=True)
class Curve:
    """Ratio against training set size for one combination of the other axes, and the EMM read off it.

    `points` has `size`, `best` and `last` (mean ratios, in 0..1), `low` and `high` (the 95% interval of `best`), and
    `null` (the share of held-out images that are called copies). `estimate` and its 95% `interval` are None if nothing
    is measured.
    """

    label: str
    points: list[SizePoint]
    epsilon: float
    estimate: Estimate | None  # from the best checkpoints; None where nothing is measured
    interval: Interval | None  # 95%, of `estimate`
    last_estimate: Estimate | None  # from the last checkpoints
    caveats: Sequence[str] = ()  # what to know of the trainings: unfinished, or ended too early
    noise: str = ""  # which of the rises with N that the estimate names are none to rely on
    undertrained: bool = False  # some of its cells have had next to no optimizer steps

    @property
    def answer(self) -> str:
        """Return the EMM as text, marked if it comes from undertrained cells."""
        if self.estimate is None:
            return "not measured"
        return self.estimate.beside(self.interval) + " (undertrained)" * self.undertrained

    @property
    def caveat(self) -> str:
        """Return what to know of the trainings as one text; empty where all is well."""
        return "; ".join(self.caveats)

    @property
    def highest_null(self) -> float | None:
        """Return the highest share of held-out images, over the sizes, that are called copies; None without any."""
        return max((point.null for point in self.points if point.null is not None), default=None)

    @property
    def note(self) -> str:
        """Return what the reader of the EMM should know of its trainings and its estimate; empty if nothing."""
        return "; ".join(filter(None, [self.caveat, self.estimate.note if self.estimate else "", self.noise]))


class Curves(list[Curve]):
    """The curves of a study, in the order of its file."""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the ratio at each size, and the EMM of each curve."""
        rows = [
            {
                "curve": curve.label or "all cells",
                "N": point.size,
                "ratio": f"{point.best:.3f}",
                "95%": f"{point.low:.3f} to {point.high:.3f}",
                "EMM": curve.answer,
                "EMM 95%": str(curve.interval or "-"),
            }
            for curve in self
            for point in curve.points
        ]
        unmeasured = [{"curve": curve.label or "all cells", "EMM": curve.answer} for curve in self if not curve.points]
        line = f", EMM at ratio >= {1 - self[0].epsilon:g}" if self else ""
        return html_table(f"{counted(len(self), 'curve')}{line}", [*rows, *unmeasured])


@dataclass(frozen=True)
class MeasuredCell:
    """A cell of a study, and its ratios by the study's measure at its threshold; None where nothing is measured."""

    cell: CellProgress
    best: float | None  # the highest ratio of a checkpoint
    samples: int | None  # images behind it
    last: float | None  # the ratio of the last checkpoint
    rises: bool  # still, at the end of what is trained
    steps: int | None  # optimizer steps up to the last checkpoint; 0: of no training that is known
    scored: int  # checkpoints that the measure has scored
    null: Null | None  # of its training set; None where no image is held out

    @property
    def undertrained(self) -> bool:
        """Return whether all of its training was too few optimizer steps for its ratio to say anything."""
        return self.cell.finished and 0 < (self.steps or 0) < FEW_STEPS

    @property
    def p_value(self) -> float | None:
        """Return the chance of as many copies at the best checkpoint if images that were not trained on were as often
        taken for copies; None without any."""
        if self.null is None or self.best is None or self.samples is None:
            return None
        return p_value(round(self.best * self.samples), self.samples, self.null.copies, self.null.samples)


@dataclass(frozen=True)
class CellWithSettings(MeasuredCell):
    """A measured cell whose settings are known too."""

    cell: StoredCell

    @property
    def settings(self) -> dict[str, Any]:
        """Return its settings by dotted key, with its axis values."""
        return {**dotted(self.cell.configuration), **self.cell.axis_values}


def study_curves(store: Store, study: StoredStudy | str, measure: str | None = None) -> Curves:
    """Return the curves of a study, each with its EMM (Gu et al. 2023, Def. 3.1), in the order of its file.

    `study` is a name, or a row of `store.studies()`. Ratios are by the study's own measure unless `measure` names
    another one. Raises StoreError if the store has no such study, or diffmem no such measure.
    """
    with store.snapshot():
        found = store.study(study) if isinstance(study, str) else study
        found = found if measure is None else found.by(measure_named(measure, found.measures))
        cells = measured_cells(store, found)
        check_measured(store, found)
    return curves_of(cells, found.epsilon)


def by_each_measure(store: Store, study: StoredStudy) -> list[StoredStudy]:
    """Return a study by its own measure, and by each other one that it has been scored by."""
    scored = store.measures_of(study.study) - {study.measure.name}
    return [study, *(study.by(measure) for name, measure in study.measures.items() if name in scored)]


def between_groups(store: Store, study: StoredStudy) -> StoredStudy | None:
    """Return a study by the first measure between groups that it has been scored by, to stand beside its own; None
    if there is none, or its own is one."""
    scored = store.measures_of(study.study)
    found = [measure for name, measure in GROUPED.items() if name in scored]
    return study.by(found[0]) if found and study.measure.name not in GROUPED else None


def check_measured(store: Store, study: StoredStudy) -> None:
    """Raise StoreError if a study has checkpoints, but none that its measure has scored."""
    found = store.measures_of(study.study)
    if found and study.measure.name not in found:
        name, meant = study.measure.name, as_arguments(study.path, study.study, study.overrides)
        advice = {
            Kind.TRAINED: f"`diffmem measure {meant} --measure {name}` does it, from trained models that are kept",
            Kind.IMAGES: f"`diffmem score --measure {name}` scores its images again",
            Kind.MONITOR: f'give its Monitor measures=["{name}"]',
        }
        raise StoreError(f"{study.study}: nothing is scored by the measure {name}; {advice[study.kind]}")


def study_cells(store: Store, study: StoredStudy) -> tuple[list[CellWithSettings], list[Point]]:
    """Return the cells and the checkpoints of a study, all ratios by its measure, at its threshold."""
    points = store.curve_points(study.study, study.measure, study.threshold)
    ratios, nulls = _ratios_of(points), store.nulls(study.study, study.measure, study.threshold)
    cells = store.cells(study.study)
    return [CellWithSettings(each, *ratios(each.position), null=nulls.get(each.position)) for each in cells], points


def measured_cells(store: Store, study: StoredStudy) -> list[MeasuredCell]:
    """Return the cells of a study without their settings, all ratios by its measure, at its threshold."""
    ratios = _ratios_of(store.curve_points(study.study, study.measure, study.threshold))
    nulls, cells = store.nulls(study.study, study.measure, study.threshold), store.progress(study.study)
    return [MeasuredCell(each, *ratios(each.position), null=nulls.get(each.position)) for each in cells]


Ratios = tuple[float | None, int | None, float | None, bool, int | None, int]


def _ratios_of(points: Sequence[Point]) -> Callable[[int], Ratios]:
    """Return a function of a position: the best ratio there and the images behind it, the last one, whether it rises
    still, the optimizer steps, and how many checkpoints are scored."""
    measured = by_position(points)  # one cell may be at several

    def ratios(position: int) -> Ratios:
        own = measured[position]
        if not own:
            return None, None, None, False, None, 0
        best = max(own, key=lambda point: (point.ratio, point.samples))
        rises = still_rises([p.epoch for p in own], [p.ratio for p in own], [p.samples for p in own])
        return best.ratio, best.samples, own[-1].ratio, rises, own[-1].step, len(own)

    return ratios


def curves_of(cells: Sequence[MeasuredCell], epsilon: float) -> Curves:
    """Return the curves that the cells of a study make, in its order."""
    by_curve: dict[str, list[MeasuredCell]] = defaultdict(list)
    for each in cells:
        by_curve[each.cell.curve].append(each)
    return Curves(_curve(label, members, epsilon) for label, members in by_curve.items())


def _curve(label: str, cells: Sequence[MeasuredCell], epsilon: float) -> Curve:
    measured = [(each.cell.size, each.best, each.samples or 0) for each in cells if each.best is not None]
    caveats = _caveats(cells)
    if not measured:
        return Curve(label, [], epsilon, None, None, None, caveats)
    sizes, best, samples = map(list, zip(*measured, strict=True))
    last: dict[float, list[float]] = defaultdict(list)
    for each in cells:
        if each.last is not None:
            last[each.cell.size].append(each.last)
    at: dict[float, list[MeasuredCell]] = defaultdict(list)
    for each in cells:
        at[each.cell.size].append(each)
    points = [
        SizePoint(
            int(mean.group),
            mean.ratio,
            fmean(last[mean.group]),
            mean.models,
            mean.low,
            mean.high,
            *_null(at[mean.group]),
            steps=min(each.steps for each in at[mean.group] if each.steps is not None),
        )
        for mean in mean_ratios(sizes, best, samples)
    ]
    interval = emm_interval(sizes, best, samples, epsilon=epsilon)
    smallest_says_nothing = any(each.undertrained for each in at[points[0].size])
    estimate, last_estimate = (
        _without_idle_bound(estimate_emm([p.size for p in points], ratios, epsilon=epsilon), smallest_says_nothing)
        for ratios in ([p.best for p in points], [p.last for p in points])
    )
    if estimate.lower is estimate.upper is None:
        interval = Interval(None, None)
    noise = _noise(points, rises(bands(sizes, best, samples)).tolist())
    undertrained = any(each.undertrained for each in cells)
    return Curve(label, points, epsilon, estimate, interval, last_estimate, caveats, noise, undertrained)


def _without_idle_bound(estimate: Estimate, smallest_says_nothing: bool) -> Estimate:
    """Return an EMM without the bound "less than the smallest size" if its network has learned next to nothing: with
    more training it may well be memorized."""
    return estimate._replace(upper=None) if estimate.lower is None and smallest_says_nothing else estimate


def _null(cells: Sequence[MeasuredCell]) -> tuple[float | None, int, float | None, float | None]:
    """Return the share of held-out images that are called copies, how many there are, the largest p-value, and the
    threshold at which they are at most 1%."""
    nulls = [each.null for each in cells if each.null]
    images = sum(null.samples for null in nulls)
    chances = [each.p_value for each in cells if each.p_value is not None]
    share = sum(null.copies for null in nulls) / images if images else None
    return share, images, max(chances, default=None), one_percent(nulls)


def one_percent(nulls: Iterable[Null]) -> float | None:
    """Return the largest threshold at which at most 1% of the held-out images of each cell are called copies; None if
    there is none."""
    least = min((null.at_one_percent for null in nulls), default=math.inf)
    return None if math.isinf(least) else least


def threshold_notes(cells: Sequence[MeasuredCell], measure: Measure) -> Iterator[str]:
    """Yield the similarity that 1% of held-out images exceed, at each size, if the measure is one of similarity."""
    at: dict[int, list[Null]] = defaultdict(list)
    for each in cells:
        if each.null and each.best is not None:
            at[each.cell.size].append(each.null)
    found = {size: least for size, nulls in sorted(at.items()) if (least := one_percent(nulls)) is not None}
    if measure.similarity and found:
        told = ", ".join(f"{measure.shown(least):.4f} at N = {size}" for size, least in found.items())
        yield f"a threshold at 1% of held-out images would be a similarity of {told}"


def _caveats(cells: Sequence[MeasuredCell]) -> list[str]:
    """Say which trainings are not finished, and which ended while their ratio rose; none where all is well."""
    to_finish = [each.cell for each in cells if each.cell.expected and each.cell.outcome is not Outcome.CROSSED]
    unfinished = sum(not cell.finished for cell in to_finish)
    caveats = [f"{unfinished} of {len(cells)} cells are not finished"] * bool(unfinished)
    had, trained = sum(each.cell.measured for each in cells), any(each.cell.expected for each in cells)
    if lacking := had - sum(each.scored for each in cells):
        caveats.append(f"{lacking} of {had} checkpoints are not scored by this measure" + MEASURE_KEPT * trained)
    if few := [each for each in cells if each.undertrained]:
        caveats.append(undertrained([each.steps or 0 for each in few], {each.cell.size for each in few}))
    if rising := _rising(cells):
        caveats.append(f"the ratio still rises at the end of training at N = {rising}")
    return caveats


def _rising(cells: Sequence[MeasuredCell]) -> str:
    """Name the sizes whose ratio still rises at the end of a training, with how many trainings of each do."""
    ended = [m for m in cells if m.best is not None and state_of(m.cell) in (State.FINISHED, State.ENDED)]
    rises = {(m.cell.size, m.cell.cell_id): m.rises for m in ended}
    of, some = Counter(N for N, _ in rises), Counter(N for (N, _), still in rises.items() if still)
    return ", ".join(f"{N} ({some[N]} of {of[N]} cells)" if of[N] > 1 else f"{N}" for N in sorted(some))


def undertrained(steps: Sequence[int], sizes: Iterable[int]) -> str:
    """Say that the trainings on sets of these sizes have so few steps each, and what to change."""
    least, most = min(steps), max(steps)
    have = counted(most, "optimizer step") if least == most else f"{least} to {most} optimizer steps"
    at = ", ".join(map(str, sorted(set(sizes))))
    return (
        f"undertrained at N = {at}: after {have} a network has learned next to nothing, and its ratio says nothing "
        "about memorization; train longer, or with smaller batches"
    )


MEASURE_KEPT = "; `diffmem measure` scores those whose model is kept (score.keep)"


def _noise(points: Sequence[SizePoint], significant: Sequence[bool]) -> str:
    """Name the rises from a size to the next one that may be noise; empty where there are none."""
    steps = zip(pairwise(points), significant, strict=True)
    within = [f"{a.size} to {b.size}" for (a, b), beyond in steps if b.best > a.best and not beyond]
    return f"from {', '.join(within)} it may be the noise of images, draws and seeds (95%)" if within else ""


def only_size(cells: Sequence[MeasuredCell]) -> int | None:
    """Return the N of a study whose cells have one alone, and that therefore tells no EMM; None for several."""
    sizes = {each.cell.size for each in cells}
    return sizes.pop() if len(sizes) == 1 else None


class Positioned(Protocol):
    """A row of the store that is of a place in a study."""

    @property
    def position(self) -> int:
        """Return the place."""
        ...


P = TypeVar("P", bound=Positioned)


def by_position(rows: Sequence[P]) -> dict[int, list[P]]:
    """Return rows by the place in their study that they are of; none for a place without any."""
    found: dict[int, list[P]] = defaultdict(list)
    for row in rows:
        found[row.position].append(row)
    return found


def noted(notes: Sequence[Note], cells: Sequence[MeasuredCell]) -> list[str]:
    """Return the notes of a study as they are shown: with how many of its cells, if not all."""
    total = len({each.cell.cell_id for each in cells})
    found = [each.note if each.cells == total else f"{each.note} (in {each.cells} of {total} cells)" for each in notes]
    return [*found, *null_notes(cells)]


def null_notes(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    """Yield in what the held-out images of cells are no null, or a poor one."""
    nulls = [each.null for each in cells if each.null and each.best is not None]
    if few := [null.samples for null in nulls if null.samples < FEW_HELD_OUT]:
        most = counted(max(few), "held-out image")
        yield f"{most} at most in {counted(len(few), 'cell')}: too few to tell a false-positive rate of 1%"
    if same := [null for null in nulls if null.trained_on]:
        worst = max(same, key=lambda null: null.trained_on / null.samples)
        yield (
            f"{worst.trained_on} of {counted(worst.samples, 'held-out image')} are also in the training set (most of "
            f"{counted(len(same), 'cell')}): the null is not of new images alone"
        )
