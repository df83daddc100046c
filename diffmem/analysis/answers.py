"""What a study has found, in one to three sentences that say no more than its intervals allow."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from diffmem.analysis.curves import Curve, MeasuredCell, SizePoint, only_size
from diffmem.analysis.emm import LARGEST, NO_SIZE, Interval, next_size
from diffmem.analysis.words import in_words, typeset
from diffmem.measures import Measure
from diffmem.store import GOING_ON, Kind, StoredStudy, state_of
from diffmem.text import within

MOST_CURVES = 4
"""Curves that a sentence names one by one; of more it gives the ends."""
MOST_WARNINGS = 3
CHANCE = 0.05
"""A p-value from which on a ratio is not clearly above that of held-out images."""


@dataclass(frozen=True)
class Answer:
    """What a study has found, and what to know of it."""

    sentences: list[str]  # one to three: the estimate, held-out images, groups of near-duplicates
    warnings: list[str]  # those that curves share are one, the most important first

    @property
    def shown_warnings(self) -> list[str]:
        """Return the warnings that stand beside the answer."""
        return self.warnings[:MOST_WARNINGS]


def answer_of(
    study: StoredStudy, cells: Sequence[MeasuredCell], curves: Sequence[Curve], by_groups: Sequence[Curve] = ()
) -> Answer:
    """Return what a study has found; its cells and curves are by its own measure, `by_groups` those between groups."""
    if not any(curve.points for curve in curves):
        return Answer(["Nothing is measured yet."], _warnings(study, curves))
    single = study.kind is not Kind.TRAINED or only_size(cells) is not None
    found = _ratios(study, curves) if single else _estimates(curves)
    so_far = "So far, " if any(state_of(each.cell) in GOING_ON for each in cells) else ""
    sentences = [_capital(so_far + found), _held_out(study.measure, cells, curves), _grouped(curves, by_groups)]
    return Answer([each for each in sentences if each], _warnings(study, curves))


# --- the estimate --------------------------------------------------------------------------------------


def emm_words(curve: Curve) -> str:
    """Return the EMM of a curve as a page shows it: `12.5`, `≥ 24`, `< 8 (undertrained)`."""
    return typeset(curve.answer)


def last_emm_words(curve: Curve) -> str:
    """Return the EMM of a curve by its last checkpoints, `-` if nothing is measured."""
    found = curve.last_estimate
    return "-" if found is None else emm_words(replace(curve, estimate=found, undertrained=False))


def interval_words(interval: Interval | None) -> str:
    """Return the 95% interval of an EMM as a page shows it: `11.0 to 14.9`, `≥ 24`, `not bounded`, `-`."""
    return "-" if interval is None else typeset(str(interval))


def _estimates(curves: Sequence[Curve]) -> str:
    """Say up to what size each curve is memorized."""
    if all(curve.undertrained for curve in curves):
        answers = ", ".join(dict.fromkeys(typeset(str(curve.estimate)) for curve in curves))
        return f"the model is undertrained, so that its EMM ({answers}) says nothing about memorization."
    if len(curves) > MOST_CURVES:
        return _many_estimates(curves)
    if len(curves) == 1:
        return f"the model {_extent(curves[0])}."
    first, *others = [(in_words(curve.label) or "all cells", _extent(curve)) for curve in curves]
    said = [f"with {first[0]}, the model {first[1]}"]
    for words, extent in others:
        same = all(each.startswith("memorizes ") for each in (first[1], extent))
        said.append(f"with {words}, {extent.removeprefix('memorizes ') if same else 'it ' + extent}")
    return "; ".join(said) + "."


def _extent(curve: Curve) -> str:
    """Say up to what size one curve is memorized, as a sentence goes on after its subject."""
    estimate, sizes = curve.estimate, [point.size for point in curve.points]
    if estimate is None:
        return "is not measured yet"
    if curve.undertrained:
        return f"is undertrained, so that its EMM ({typeset(str(estimate))}) says nothing about memorization"
    if estimate.value is not None:
        return f"memorizes up to about {emm_words(curve)} training images{_in_brackets(curve.interval)}"
    if estimate.lower is not None:
        doubt = _in_brackets(curve.interval) if _crosses(curve.interval, estimate.lower, low=True) else ""
        return f"memorizes {_all_sizes(sizes)}, up to {estimate.lower:g} training images{doubt}"
    doubt = _in_brackets(curve.interval) if _crosses(curve.interval, sizes[0], low=False) else ""
    return f"memorizes fewer than {sizes[0]} training images, {_smallest(sizes)}{doubt}"


def _crosses(interval: Interval | None, size: float, *, low: bool) -> bool:
    """Return whether the interval of a bound reaches beyond the size that the bound is at."""
    if interval is None:
        return False
    if low:
        return interval.low is None or interval.low < size
    return interval.high is None or interval.high > size


def _all_sizes(sizes: Sequence[int]) -> str:
    return "all measured sizes" if len(sizes) > 1 else "the one size measured"


def _smallest(sizes: Sequence[int]) -> str:
    return "the smallest size measured" if len(sizes) > 1 else "the one size measured"


def _in_brackets(interval: Interval | None) -> str:
    if interval is None:
        return ""
    words = str(interval).replace(">=", "at least").replace("<=", "at most")
    return f" (95%: {words.replace('not bounded', 'anything, as the measured sizes do not bound it')})"


def _many_estimates(curves: Sequence[Curve]) -> str:
    """Say how many curves are memorized up to what size, and between what ends the estimates lie."""
    kinds = Counter(_kind(curve) for curve in curves)
    values = [(each.estimate.value, _named(each)) for each in curves if each.estimate and _kind(each) == VALUE]
    said = [f"{count} {kind}" for kind, count in kinds.items() if kind != VALUE]
    if values:
        ends = dict.fromkeys([min(values)[1], max(values)[1]])
        said.insert(0, f"{len(values)} {VALUE} {' to '.join(ends)}")
    return f"of {len(curves)} settings: {', '.join(said)}."


VALUE = "with an EMM of"


def _named(curve: Curve) -> str:
    return f"{emm_words(curve)} ({in_words(curve.label)}; 95%: {interval_words(curve.interval)})"


def _kind(curve: Curve) -> str:
    """Return what a curve is counted as."""
    if curve.estimate is None:
        return "not measured yet"
    if curve.undertrained:
        return "undertrained"
    return VALUE if curve.estimate.value is not None else f"with an EMM {emm_words(curve)}"


# --- ratios of one size --------------------------------------------------------------------------------


def _ratios(study: StoredStudy, curves: Sequence[Curve]) -> str:
    """Say the ratio of each curve at its only size, which gives no EMM."""
    known = [(curve, point) for curve in curves for point in curve.points]
    sizes = {point.size for _, point in known}
    at = f"at N = {sizes.pop()}, " if len(sizes) == 1 else ""
    named = [_ratio(curve, point, with_size=not at) for curve, point in known]
    if len(known) > MOST_CURVES:
        ends = [named[known.index(end(known, key=lambda each: each[1].best))] for end in (min, max)]
        listed = f"between {' and '.join(ends)}, over {len(known)} settings"
    else:
        *rest, last = named
        listed = " and ".join(filter(None, [", ".join(rest), last]))
    missing = sum(not curve.points for curve in curves)
    said = f"{at}the {study.measure.ratio} is {listed}"
    said += f"; {missing} of {len(curves)} settings are not measured yet" * bool(missing)
    return said + (NO_EMM if study.kind is Kind.TRAINED else ".")


NO_EMM = ". A single size gives no EMM."


def _ratio(curve: Curve, point: SizePoint, *, with_size: bool) -> str:
    value, interval = within(point.best, point.low, point.high)
    words = in_words(curve.label)
    named = "" if not words else f" with {words}" if words != curve.label else f" for {words}"
    named += f" at N = {point.size}" * with_size
    return f"{value}{named} (95%: {interval})" + ", undertrained" * curve.undertrained


# --- beside it -----------------------------------------------------------------------------------------


def _held_out(measure: Measure, cells: Sequence[MeasuredCell], curves: Sequence[Curve]) -> str:
    """Say how many held-out images are called copies, and whether any ratio is clearly above that."""
    shares = [point.null for curve in curves for point in curve.points if point.null is not None]
    if not shares:
        return ""
    chances = [each.p_value for each in cells if each.p_value is not None]
    most = "at most " * (len(set(shares)) > 1)
    said = f"{most}{percent(max(shares))} of held-out images are called {measure.copied}" if max(shares) else ""
    said = _capital(said) or f"No held-out image is called {measure.copied}"
    above = f", and no ratio is clearly above that (p = {min(chances):.2g})" if min(chances, default=0) > CHANCE else ""
    return f"{said}{above}."


def percent(share: float) -> str:
    """Return a share as a percentage with two digits."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def _grouped(curves: Sequence[Curve], by_groups: Sequence[Curve]) -> str:
    """Say what the ratio is if near-duplicates count as one image, at checkpoints that both measures have scored."""
    by_label = {curve.label: {point.size: point for point in curve.points} for curve in by_groups}
    both = [
        (curve, point, other)
        for curve in curves
        for point in curve.points
        if (other := by_label.get(curve.label, {}).get(point.size)) and other.steps == point.steps
    ]
    if not both:
        return ""
    curve, point, other = max(both, key=lambda each: abs(each[2].last - each[1].last))
    if abs(other.last - point.last) < 0.0005:
        return "If near-duplicates count as one image, the ratio of the last checkpoints is the same."
    where = ", ".join(filter(None, [in_words(curve.label), f"N = {point.size}"]))
    return (
        f"If near-duplicates count as one image, the ratio of the last checkpoints changes by at most "
        f"{abs(other.last - point.last):.3f} ({where}: {other.last:.3f} instead of {point.last:.3f})."
    )


# --- warnings ------------------------------------------------------------------------------------------


def _warnings(study: StoredStudy, curves: Sequence[Curve]) -> list[str]:
    """Return what to know of the curves, each once with the curves that it is of; counts are added up."""
    of: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for curve in curves:
        for warning in _of_curve(study, curve):
            found = COUNT.match(warning)
            counts = (int(found[1]), int(found[2])) if found else (0, 0)
            of[COUNT.sub("", warning)].append((in_words(curve.label), *counts))
    ordered = sorted(of.items(), key=lambda each: not each[0].startswith("undertrained"))
    return [_warning(text, found, everywhere=len(found) == len(curves)) for text, found in ordered]


COUNT = re.compile(r"(\d+) of (\d+) ")


def _warning(text: str, found: Sequence[tuple[str, int, int]], *, everywhere: bool) -> str:
    labels, counts, totals = zip(*found, strict=True)
    counted = f"{sum(counts)} of {sum(totals)} " if any(totals) else ""
    return _capital(counted + text) + ("" if everywhere else f" ({_settings(labels)})") + "."


def _settings(labels: Sequence[str]) -> str:
    return "; ".join(labels) if len(labels) <= MOST_CURVES else f"{len(labels)} settings"


def _of_curve(study: StoredStudy, curve: Curve) -> Iterator[str]:
    yield from curve.caveats
    if curve.points and _searching(study, curve):
        yield "the search for the EMM is not finished"
    note = curve.estimate.note if curve.estimate else ""
    rises = [part for part in note.split("; ") if part and part not in (NO_SIZE, LARGEST)]
    if rises:
        yield "; ".join(filter(None, [*rises, curve.noise]))


def _searching(study: StoredStudy, curve: Curve) -> bool:
    """Return whether a search would measure one more size of a curve."""
    found = study.estimation
    if found.get("search") != "bisect" or not found.get("range"):
        return False
    low, high = found["range"]
    ratios = {point.size: point.best for point in curve.points}
    more = next_size(ratios, low, high, epsilon=curve.epsilon, tolerance=found.get("tolerance", 0.1))
    return more is not None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
