"""Whether a store bears out what the paper finds: each claim's value, its 95% interval, and the verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from scipy.special import chdtri

from diffmem.analysis.claims import FINDINGS, HIGHEST, IMAGES, LOWEST, Claim, Finding, Range
from diffmem.analysis.comparing import CellRatio, Levels, compare, to_compare
from diffmem.analysis.curves import CellWithSettings, study_cells
from diffmem.analysis.published import Published, at_paper_scale, published_values
from diffmem.cells import REPLICATES
from diffmem.measures import NEAREST
from diffmem.store import Store, StoredStudy
from diffmem.text import counted

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "inconclusive"


@dataclass(frozen=True)
class Result:
    """A claim, what was measured, and whether that bears it out."""

    text: str
    study: str
    verdict: str
    levels: str  # what is compared
    low: float | None  # mean ratio at the two levels
    high: float | None
    value: float | None  # what should lie within the range, with its 95% interval
    interval: Range | None
    published: float | None  # the same value of the paper
    draws: int
    seeds: int
    reason: str  # why it is inconclusive, or what the interval leaves out

    @property
    def measured(self) -> str:
        """Return what was measured, as text."""
        if self.value is None or self.interval is None:
            return "-"
        low, high = self.interval
        if self.low is None:
            return f"{self.value:.3f} ({low:.3f} to {high:.3f})"
        return f"{self.low:.3f} to {self.high:.3f}: {self.value:+z.3f} ({low:+z.3f} to {high:+z.3f})"

    @property
    def paper(self) -> str:
        """Return what the paper has, as text."""
        return effect_text(self.published, difference=self.low is not None)

    @property
    def behind(self) -> str:
        """Return how many draws and seeds stand behind it, as text."""
        return f"{counted(self.draws, 'draw')}, {counted(self.seeds, 'seed')}" if self.draws else "-"


def effect_text(value: float | None, *, difference: bool) -> str:
    """Return a ratio, or a difference of ratios, as text."""
    if value is None:
        return "-"
    return f"{value:+z.3f}" if difference else f"{value:.3f}"


class MeasuredStudy(NamedTuple):
    """A study as claims see it: its cells, and the paper's numbers."""

    study: StoredStudy
    cells: Sequence[CellWithSettings]
    published: Sequence[Published]


def check_findings(store: Store, profile: str | None = None) -> list[tuple[Finding, str, list[Result]]]:
    """Return each of the paper's 17 findings with its verdict and the results of its claims (Gu et al. 2023).

    The evidence is the studies of `profile` in the store; None means those without a profile, at the paper's scale. A
    finding whose studies are missing is inconclusive. Raises StoreError if the store cannot be read.
    """
    evidence = {
        each.study: MeasuredStudy(each, study_cells(store, each)[0], published_values(store, each.study))
        for each in (stored.by(NEAREST) for stored in store.studies())
        if each.study.partition("@")[2] == (profile or "")
    }
    checked = []
    for finding in FINDINGS:
        results = []
        for claim in finding.claims:
            name = claim.study if profile is None else f"{claim.study}@{profile}"
            if name not in evidence:
                option = "" if profile is None else f" --profile {profile}"
                results.append(_unknown(claim, name, f"not run: diffmem run {claim.study}{option}"))
            else:
                result = _check(store, claim, evidence[name])
                results.append(result if profile is not None else _at_scale(result, evidence[name]))
        checked.append((finding, _together([result.verdict for result in results]), results))
    return checked


def _at_scale(result: Result, evidence: MeasuredStudy) -> Result:
    """Return a result that says where it is of a study that only has the name of the paper's."""
    if result.value is None or any(at_paper_scale(cell) for cell in evidence.cells):
        return result
    told = f"not at the paper's scale: the study was run from {evidence.study.path}"
    return replace(result, reason=_join(result.reason, told))


def _together(verdicts: Sequence[str]) -> str:
    if FAILS in verdicts:
        return FAILS
    return UNKNOWN if UNKNOWN in verdicts else HOLDS


def study_results(store: Store, evidence: MeasuredStudy) -> list[Result]:
    """Return the results of all claims about one study."""
    stem = evidence.study.study.partition("@")[0]
    claims = [claim for finding in FINDINGS for claim in finding.claims if claim.study == stem]
    return [_check(store, claim, evidence) for claim in claims]


def _check(store: Store, claim: Claim, evidence: MeasuredStudy) -> Result:
    return check_sample_counts(store, claim, evidence) if claim.keys == IMAGES else check_claim(claim, evidence)


def check_claim(claim: Claim, evidence: MeasuredStudy) -> Result:
    """Return what a study says of a claim; only finished cells count, each with its best checkpoint."""
    study, cells, published = evidence
    held = [key for axis in study.axes if not set(axis) & set(claim.keys) for key in axis if key not in REPLICATES]
    planned = [_measurement(claim, cell, held) for cell in cells]
    levels = _levels(claim, [m.level for m in planned if m.level is not None and m.ratio is not None])
    missing = sum(m.ratio is None for m in planned)
    note = f"{missing} of {len(cells)} cells are not finished" if missing else ""
    if levels is None:
        return _unknown(claim, study.study, note or "the study has no cells at the levels that this is about")
    at_levels = [m for m in planned if m.level in levels and m.level is not None]
    return _judged(claim, study.study, at_levels, levels, _published_value(claim, published), note)


def _unknown(claim: Claim, study: str, reason: str) -> Result:
    return Result(claim.text, study, UNKNOWN, "", None, None, None, None, None, 0, 0, reason)


def _measurement(claim: Claim, measured: CellWithSettings, held: Sequence[str]) -> CellRatio:
    settings, samples = measured.settings, measured.samples or 0
    best = measured.best if measured.cell.finished else None
    stratum = ", ".join(f"{key} = {measured.cell.axis_values[key]}" for key in held)
    replicate = str(settings["P.draw"]), str(settings.get("P.half")), settings["T.seed"]
    return CellRatio(claim.level_of(settings), stratum, best, samples, *replicate)


def _levels(claim: Claim, found: Sequence[Any]) -> Levels | None:
    """Return the two levels that a claim compares, the first None for a claim about one; None if one is not there."""
    distinct = set(found)
    if LOWEST in (claim.low, claim.high) or HIGHEST in (claim.low, claim.high):
        if len(distinct) < 2:
            return None
        return (None if claim.low is None else min(distinct)), max(distinct)
    wanted = {claim.high} | ({claim.low} if claim.low is not None else set())
    return (claim.low, claim.high) if wanted <= distinct else None


def _judged(
    claim: Claim,
    study: str,
    at_levels: Sequence[CellRatio],
    levels: Levels,
    published: float | None,
    note: str,
) -> Result:
    compared = to_compare(at_levels, levels)
    if not compared:
        return _unknown(claim, study, _join(note, "no draw and seed has finished all its cells at both levels"))
    found = compare(compared, levels)
    done, planned = (len({m.replicate for m in cells}) for cells in (compared, at_levels))
    too_few = done == 1 < planned
    return Result(
        claim.text,
        study,
        UNKNOWN if too_few else verdict(found.interval, claim.within),
        f"{claim.keys[0]} " + (str(levels[1]) if levels[0] is None else f"{levels[0]} to {levels[1]}"),
        found.low,
        found.high,
        found.value,
        found.interval,
        published,
        len({m.draw for m in compared}),
        len({m.seed for m in compared}),
        _join(
            note,
            _strata_left_out(at_levels, compared),
            f"only one of {planned} draws and seeds has finished" if too_few else _left_out(compared),
        ),
    )


def _strata_left_out(planned: Sequence[CellRatio], compared: Sequence[CellRatio]) -> str:
    """Say how many settings of the study's other axes (sizes, say) are not compared yet."""
    done, of = (len({m.stratum for m in cells}) for cells in (compared, planned))
    return f"compared at {done} of {of} settings of the other axes" if done < of else ""


def _left_out(compared: Sequence[CellRatio]) -> str:
    """Say what the interval leaves out, because it was not repeated."""
    if len({(m.draw, m.half) for m in compared}) > 1:
        return ""
    if len({m.seed for m in compared}) > 1:
        return "one draw: the interval has the noise of seeds and images only"
    return "one draw and seed: the interval has the images' noise only"


def _join(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def verdict(interval: Range, within: Range) -> str:
    """Return whether a 95% interval lies inside a range (holds), outside (does not hold), or across its edge."""
    if within[0] <= interval[0] and interval[1] <= within[1]:
        return HOLDS
    return FAILS if interval[1] < within[0] or within[1] < interval[0] else UNKNOWN


def published_effect(store: Store, claim: Claim) -> float | None:
    """Return the value that the paper's own numbers give a claim, whatever was run; None where they do not have it."""
    return _published_value(claim, published_values(store, claim.study))


def _published_value(claim: Claim, published: Sequence[Published]) -> float | None:
    """Return the value that the paper's own numbers give a claim, None where they do not have both levels."""
    part = []
    for number in published:
        if number.metric != "ratio" or claim.keys[0] not in number.settings:
            continue
        stratum = str([(key, value) for key, value in number.settings.items() if key not in claim.keys])
        part.append(CellRatio(claim.level_of(number.settings), stratum, number.value, 1, "", "", 0))
    levels = _levels(claim, [m.level for m in part if m.level is not None])
    if levels is None:
        return None
    compared = to_compare([m for m in part if m.level in levels and m.level is not None], levels)
    return compare(compared, levels).value if compared else None


# --- how many generated images a ratio needs -----------------------------------------------------------

GROUPS = 100
"""Parts of a cell's images whose ratios are compared; the claim is about the ratio of all."""


def check_sample_counts(store: Store, claim: Claim, evidence: MeasuredStudy) -> Result:
    """Check how much a ratio of `claim.high` images or more varies, by comparing hundredths of them."""
    study, cells, _ = evidence
    rows = store.sample_counts(study.study, study.measure, study.threshold)
    groups = [row for row in rows if row.samples >= claim.high and row.images == row.samples // GROUPS]
    if not groups:
        return _unknown(claim, study.study, f"no cell has {claim.high} generated images")
    value = math.sqrt(fmean((row.deviation or 0.0) ** 2 * row.images / claim.high for row in groups))
    degrees = len(groups) * (GROUPS - 1)
    low, high = (value * math.sqrt(degrees / chdtri(degrees, tail)) for tail in (0.025, 0.975))
    positions = {row.position for row in groups}
    used = [each.settings for each in cells if each.cell.position in positions]
    return Result(
        claim.text,
        study.study,
        verdict((low, high), claim.within),
        f"{claim.keys[0]} {claim.high}",
        None,
        fmean(row.ratio for row in groups),
        value,
        (low, high),
        None,
        len({str(settings["P.draw"]) for settings in used}),
        len({settings["T.seed"] for settings in used}),
        f"over {GROUPS} groups of each cell's images, divided by the root of {GROUPS}",
    )
