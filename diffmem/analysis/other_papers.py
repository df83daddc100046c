"""Findings of other papers than Gu et al. 2023, and whether a store bears them out: value, 95% interval, verdict."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from scipy import special

from diffmem.analysis.claims import ANY_HIGHER, MARGIN, Range
from diffmem.analysis.collapse import collapse
from diffmem.analysis.curves import CellWithSettings, by_position, study_cells
from diffmem.analysis.findings import UNKNOWN, verdict
from diffmem.analysis.halves import Number, halves_of, rise, size_means
from diffmem.analysis.onsets import LEVEL, Slope, onsets_of, space_of
from diffmem.cells import DATASETS
from diffmem.measures import NEAREST, wilson
from diffmem.store import Point, Store, StoredStudy, StudyLevel
from diffmem.text import counted

PROPORTIONAL: Range = (0.8, 1.2)
"""Slopes of log against log that are taken for a growth in proportion."""
ONE_CURVE: Range = (0, MARGIN)
"""Deviations of f / f_max, as differences of ratios, that are taken for none."""
LATER: Range = (1, math.inf)
GAP = 0.1
"""The loss gap as a share of the held-out loss from which on there is one."""


@dataclass(frozen=True)
class Measured:
    """What a study gives for a claim: its value with its 95% interval, None where there is none, and what to know."""

    value: float | None
    interval: Range | None
    models: int
    reason: str = ""


@dataclass(frozen=True)
class MeasuredPoints:
    """A study as claims of other papers see it."""

    store: Store
    study: StoredStudy
    points: Sequence[Point]  # by the paper's measure


@dataclass(frozen=True)
class OtherClaim:
    """That a number lies within a range."""

    source: str
    text: str
    quantity: str  # what is measured
    study: str
    within: Range
    measure: Callable[[MeasuredPoints], Measured]


@dataclass(frozen=True)
class OtherResult:
    """A claim of another paper, what was measured, at which scale, and whether that bears it out."""

    source: str
    text: str
    quantity: str
    study: str
    verdict: str
    value: float | None
    interval: Range | None
    within: Range
    models: int  # behind the value
    scale: str
    reason: str  # why it is inconclusive, or what the value leaves out

    @property
    def measured(self) -> str:
        """Return what was measured, as text."""
        if self.value is None:
            return "-"
        between = "?" if self.interval is None else f"{self.interval[0]:.3g} to {self.interval[1]:.3g}"
        return f"{self.value:.3g} ({between})"

    @property
    def behind(self) -> str:
        """Return how many models stand behind it, as text."""
        return counted(self.models, "model") if self.models else ""


def check_other_papers(store: Store, profile: str | None = None) -> list[OtherResult]:
    """Return what the studies of a profile (None: those without one) say about each finding of another paper."""
    studies = {each.study: each for each in store.studies()}
    results = []
    for claim in OTHER_PAPERS:
        name = claim.study if profile is None else f"{claim.study}@{profile}"
        if name in studies:
            results.append(_check(store, claim, studies[name]))
        else:
            option = "" if profile is None else f" --profile {profile}"
            results.append(_unknown(claim, name, f"not run: diffmem run {claim.study}{option}"))
    return results


def other_results(store: Store, study: StoredStudy) -> list[OtherResult]:
    """Return what one study says of the claims of other papers that are about it."""
    stem = study.study.partition("@")[0]
    return [_check(store, claim, study) for claim in OTHER_PAPERS if claim.study == stem]


def _unknown(claim: OtherClaim, study: str, reason: str) -> OtherResult:
    about = claim.source, claim.text, claim.quantity, study
    return OtherResult(*about, UNKNOWN, None, None, claim.within, 0, "", reason)


def _check(store: Store, claim: OtherClaim, study: StoredStudy) -> OtherResult:
    by_paper = study.by(NEAREST)
    cells, points = study_cells(store, by_paper)
    finished = {each.cell.position for each in cells if each.cell.finished}
    points = [point for point in points if point.position in finished]
    if points and not any(point.step for point in points):
        return _unknown(claim, study.study, "its models are not trained, and this is about those that are")
    found = claim.measure(MeasuredPoints(store, by_paper, points))
    missing = len(cells) - len(finished)
    note = f"{missing} of {len(cells)} cells are not finished" if missing else ""
    return OtherResult(
        claim.source,
        claim.text,
        claim.quantity,
        study.study,
        UNKNOWN if found.interval is None else verdict(found.interval, claim.within),
        found.value,
        found.interval,
        claim.within,
        found.models,
        _scale(cells, points),
        _joined(note, found.reason),
    )


def _scale(cells: Sequence[CellWithSettings], points: Sequence[Point]) -> str:
    """Return on which images, how many of them, and how long models are trained, as text."""
    if not cells:
        return ""
    settings = cells[0].settings
    dataset, side = settings.get("P.dataset"), settings.get("P.resolution")
    images = str(dataset) if dataset in DATASETS else "own images"
    sizes, steps = [each.cell.size for each in cells], max((point.step for point in points), default=0)
    network = f"{settings.get('M.network', 'network')} of width {settings.get('M.width', '?')}"
    return f"{images} at {side}x{side}, N = {min(sizes)} to {max(sizes)}, {network}, {steps:,} steps"


# --- onsets --------------------------------------------------------------------------------------------


def _onset_slope(evidence: MeasuredPoints) -> Measured:
    """Return the slope of log tau_mem against log N."""
    curves = onsets_of(evidence.points)
    if len(curves) != 1:
        return Measured(None, None, 0, f"the study has {len(curves)} curves with checkpoints, and this is about one")
    return _slope_of(curves[0].slope, curves[0].left_out)


def _generation_slope(evidence: MeasuredPoints) -> Measured:
    """Return the slope of log tau_gen against log N."""
    quality = evidence.store.study_quality(evidence.study.study)
    if not quality:
        return Measured(
            None, None, 0, 'no quality is measured: score.measures = ["quality"] does it at each checkpoint'
        )
    curves = onsets_of(evidence.points, quality=quality)
    if len(curves) != 1:
        return Measured(None, None, 0, f"the study has {len(curves)} curves with checkpoints, and this is about one")
    found = _slope_of(curves[0].gen_slope, curves[0].gen_left_out)
    return replace(found, reason=_joined(f"Frechet distance in {space_of(quality)}", found.reason))


def _slope_of(slope: Slope | None, left_out: Sequence[int]) -> Measured:
    sizes = ", ".join(map(str, left_out))
    without = f"without an onset between checkpoints: N = {sizes}" if sizes else ""
    if slope is None:
        return Measured(None, None, 0, _joined("fewer than two sizes have an onset between checkpoints", without))
    if slope.low is None or slope.high is None:
        return Measured(slope.value, None, slope.models, _joined("two models give no interval", without))
    return Measured(slope.value, (slope.low, slope.high), slope.models, without)


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _one_curve(evidence: MeasuredPoints) -> Measured:
    """Return how far f / f_max at the same step / N deviates between sizes."""
    if len({point.curve for point in evidence.points}) > 1:
        return Measured(None, None, 0, "the study has several curves, and this is about one")
    found = collapse(evidence.points)
    if found is None:
        return Measured(None, None, 0, "no two sizes rise at the same step / N")
    rising = f"f still rises at the end at N = {', '.join(map(str, found.rising))}" if found.rising else ""
    never = f"without copies, and left out: N = {', '.join(map(str, found.left_out))}" if found.left_out else ""
    return Measured(found.value, found.interval, found.models, _joined(rising, never))


# --- two halves ----------------------------------------------------------------------------------------


def _rise_of(number: Number, null: Number) -> Callable[[MeasuredPoints], Measured]:
    def measured(evidence: MeasuredPoints) -> Measured:
        """Return by how much a number of two halves is higher at the largest size than at the smallest."""
        rows = halves_of(evidence.store, evidence.study)
        if (curves := len({row.curve for row in rows})) > 1:
            return Measured(None, None, 0, f"the study has {curves} curves with halves, and this is about one")
        means, nulls = size_means(rows, number), size_means(rows, null)
        found = rise(means)
        if found is None:
            return Measured(None, None, 0, "fewer than two sizes have halves compared: `diffmem halves` does it")
        at = f"{means[0].value:.3f} at N = {means[0].size}, {means[-1].value:.3f} at N = {means[-1].size}"
        beside = f"; null {nulls[0].value:.3f} and {nulls[-1].value:.3f}" if len(nulls) == len(means) else ""
        pairs = means[0].pairs, means[-1].pairs
        alone = "" if min(pairs) > 1 else "; one pair of models: the noise of latents only"
        return Measured(*found, 2 * sum(pairs), at + beside + alone)

    return measured


# --- the loss gap --------------------------------------------------------------------------------------


def _gap_before_copies(evidence: MeasuredPoints) -> Measured:
    """Return how many times as many steps the first copies take as the loss gap: a geometric mean over models.

    Either is found at the first checkpoint whose 95% interval is above its level, as that of the next one is; of two
    at the same checkpoint the factor is 1. What never comes counts as if it came at the last checkpoint.
    """
    levels: dict[int, list[StudyLevel]] = defaultdict(list)
    for each in evidence.store.study_levels(evidence.study.study):
        if each.quantity == "relative_loss_gap":
            levels[each.position].append(each)
    if not levels:
        return Measured(None, None, 0, 'no loss gap is measured: score.measures = ["gaps"] does it at each checkpoint')
    own = by_position(evidence.points)
    found = [_factor(own[position], levels[position]) for position in own if position in levels]
    logs = [each for each in found if each is not None]
    neither = f"{len(found) - len(logs)} of {len(found)} models have neither" if len(logs) < len(found) else ""
    if len(logs) < 2:
        return Measured(math.exp(logs[0]) if logs else None, None, len(logs), neither or "one model gives no interval")
    deviation = math.sqrt(sum((each - fmean(logs)) ** 2 for each in logs) / (len(logs) - 1) / len(logs))
    width = float(special.stdtrit(len(logs) - 1, 0.975)) * deviation
    low, high = math.exp(fmean(logs) - width), math.exp(fmean(logs) + width)
    return Measured(math.exp(fmean(logs)), (low, high), len(logs), neither)


def _factor(points: Sequence[Point], levels: Sequence[StudyLevel]) -> float | None:
    """Return the logarithm of the steps of the first copies over those of the gap, for one model; None of neither."""
    last = max(each.epoch for each in levels)
    sigma = max((each for each in levels if each.epoch == last), key=lambda each: each.value).sigma
    lows = {each.epoch: each.low for each in levels if each.sigma == sigma}
    both = [point for point in points if point.epoch in lows and point.step > 0]
    gap = _first_twice([lows[point.epoch] > GAP for point in both])
    copies = _first_twice([float(wilson(point.ratio, point.samples)[0]) > LEVEL for point in both])
    if gap is None and copies is None:
        return None
    steps = [both[-1 if at is None else at].step for at in (gap, copies)]
    return math.log(steps[1] / steps[0])


def _first_twice(above: Sequence[bool]) -> int | None:
    both = np.flatnonzero(np.array(above[:-1], dtype=bool) & np.array(above[1:], dtype=bool))
    return int(both[0]) if len(both) else None


BONNAIRE, FAVERO = "Bonnaire et al. 2025", "Favero et al. 2025"
KADKHODAIE, ZHANG = "Kadkhodaie et al. 2024", "Zhang et al. 2024"
IN_PROPORTION = "Memorization begins after a time in proportion to N"
SLOPE = "slope of log tau_mem against log N"

OTHER_PAPERS = (
    OtherClaim(BONNAIRE, IN_PROPORTION, SLOPE, "onset", PROPORTIONAL, _onset_slope),
    OtherClaim(
        BONNAIRE,
        "Images become good after a time that does not depend on N",
        "slope of log tau_gen against log N",
        "onset",
        (-0.2, 0.2),
        _generation_slope,
    ),
    OtherClaim(FAVERO, IN_PROPORTION, SLOPE, "onset", PROPORTIONAL, _onset_slope),
    OtherClaim(
        FAVERO,
        "f / f_max against step / N is one curve for all N",
        "root mean square deviation between sizes of f / f_max at the same step / N",
        "onset",
        ONE_CURVE,
        _one_curve,
    ),
    OtherClaim(
        f"{FAVERO}; {KADKHODAIE}",
        "The loss gap comes before the copies",
        "steps of the first copies / steps of the loss gap",
        "onset",
        LATER,
        _gap_before_copies,
    ),
    OtherClaim(
        KADKHODAIE,
        "Models of two halves agree more as N grows",
        "rise of the mean cosine of two halves' images of one latent",
        "two_halves",
        ANY_HIGHER,
        _rise_of(lambda found: found.cosine, lambda found: found.cosine_null),
    ),
    OtherClaim(
        ZHANG,
        "The reproducible share grows with N",
        "rise of RP",
        "two_halves",
        ANY_HIGHER,
        _rise_of(lambda found: found.reproducible, lambda found: found.reproducible_null),
    ),
    OtherClaim(
        ZHANG,
        "Generalization grows with N",
        "rise of GL",
        "two_halves",
        ANY_HIGHER,
        _rise_of(lambda found: found.generalization, lambda found: found.generalization_null),
    ),
)
"""What is asked of the studies onset and two_halves."""
