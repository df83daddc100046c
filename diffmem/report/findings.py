"""What the paper finds, as claims that a store can bear out or contradict (Gu et al. 2023, Sections 3 to 5)."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, NamedTuple

from scipy.special import chdtri, stdtrit

from diffmem.config import REPLICATES
from diffmem.report.estimates import study_cells
from diffmem.report.published import Published, published_values, settings_of
from diffmem.store import Row, Store

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"

Settings = Mapping[str, Any]
Range = tuple[float, float]

LOWEST, HIGHEST = "the lowest", "the highest"

ANY_HIGHER: Range = (0, math.inf)
ANY_LOWER: Range = (-math.inf, 0)
MARGIN = 0.1
"""Differences of ratios below it are little, above it much; the paper's own EMA rates differ by up to 0.04."""
MUCH_HIGHER: Range = (MARGIN, math.inf)
MUCH_LOWER: Range = (-math.inf, -MARGIN)
NO_LOWER: Range = (-MARGIN, math.inf)
ALIKE: Range = (-MARGIN, MARGIN)


@dataclass(frozen=True)
class Claim:
    """That a difference of memorization ratios, or a ratio, lies within a range.

    The difference is the ratio at level `high` of a factor minus that at `low`; without `low`, the ratio at `high`.
    """

    text: str
    study: str
    keys: tuple[str, ...]  # of the factor
    low: Any
    high: Any
    within: Range
    level: Callable[[Settings], Any] | None = None  # of a cell; None: takes no part; default: the first key's value

    def level_of(self, settings: Settings) -> Any:
        """Return the level of the factor that a cell of these settings has."""
        return settings.get(self.keys[0]) if self.level is None else self.level(settings)


@dataclass(frozen=True)
class Finding:
    """One finding of the paper and the claims that it consists of; the last one, about sample counts, has none."""

    number: int
    text: str
    claims: tuple[Claim, ...]


def _up_to(key: str, most: float) -> Callable[[Settings], Any]:
    return lambda settings: settings[key] if settings[key] <= most else None


def _from(key: str, least: float) -> Callable[[Settings], Any]:
    return lambda settings: settings[key] if settings[key] >= least else None


def _random_labels(settings: Settings) -> Any:
    return settings["M.labels"] if settings["M.condition"] == "random" else None


def _kept_skip(settings: Settings) -> str | None:
    """Return where the one kept skip connection is, or `all`."""
    groups = settings["M.skips"].split()
    kept = [level for level, group in enumerate(groups) for bit in group if bit == "1"]
    if "0" not in settings["M.skips"]:
        return "all"
    if len(kept) != 1:
        return None
    return {0: "one, highest resolution", len(groups) - 1: "one, lowest resolution"}.get(kept[0])


FINDINGS = (
    Finding(
        1,
        "The ratio falls as N grows",
        (Claim("more images: lower", "dataset_size", ("P.size",), LOWEST, HIGHEST, ANY_LOWER),),
    ),
    Finding(
        2,
        "It rises with epochs",
        (Claim("more epochs: higher", "dataset_size", ("T.epochs",), LOWEST, HIGHEST, ANY_HIGHER),),
    ),
    Finding(
        3,
        "Lower resolution: much larger training sets are memorized",
        (Claim("higher resolution: lower", "resolution", ("P.resolution",), LOWEST, HIGHEST, ANY_LOWER),),
    ),
    Finding(
        4,
        "More classes: slightly lower",
        (Claim("more classes: lower", "classes", ("P.classes",), LOWEST, HIGHEST, ANY_LOWER),),
    ),
    Finding(
        5,
        "More images of another collection: slightly lower",
        (Claim("larger share: lower", "blend", ("P.blend.share",), LOWEST, HIGHEST, ANY_LOWER),),
    ),
    Finding(6, "Wider: higher", (Claim("wider: higher", "width", ("M.width",), LOWEST, HIGHEST, ANY_HIGHER),)),
    Finding(
        7,
        "Deeper: up to 6 blocks higher, then lower",
        (
            Claim("up to 6: higher", "depth", ("M.blocks",), LOWEST, HIGHEST, ANY_HIGHER, _up_to("M.blocks", 6)),
            Claim("from 6 on: lower", "depth", ("M.blocks",), LOWEST, HIGHEST, ANY_LOWER, _from("M.blocks", 6)),
        ),
    ),
    Finding(
        8,
        "Fourier embedding in DDPM++: much lower",
        (Claim("fourier: much lower", "time_embedding", ("M.embedding",), "positional", "fourier", MUCH_LOWER),),
    ),
    Finding(
        9,
        "Skips at high resolution carry memorization; one is enough",
        (
            Claim(
                "highest resolution: much higher",
                "skip",
                ("M.skips",),
                "one, lowest resolution",
                "one, highest resolution",
                MUCH_HIGHER,
                _kept_skip,
            ),
            Claim(
                "one at the highest: no lower than all",
                "skip",
                ("M.skips",),
                "all",
                "one, highest resolution",
                NO_LOWER,
                _kept_skip,
            ),
        ),
    ),
    Finding(
        10,
        "Larger batches: slightly higher",
        (Claim("larger batches: higher", "batch_size", ("T.batch_size",), LOWEST, HIGHEST, ANY_HIGHER),),
    ),
    Finding(
        11,
        "Weight decay from 1e-2 on: drops to 0",
        (
            Claim(
                "up to 1e-3: alike",
                "weight_decay",
                ("T.weight_decay",),
                LOWEST,
                HIGHEST,
                ALIKE,
                _up_to("T.weight_decay", 1e-3),
            ),
            Claim("the largest: much lower", "weight_decay", ("T.weight_decay",), LOWEST, HIGHEST, MUCH_LOWER),
            Claim("the largest: near 0", "weight_decay", ("T.weight_decay",), None, HIGHEST, (-math.inf, 0.05)),
        ),
    ),
    Finding(12, "EMA rate: little effect", (Claim("any rate: alike", "ema", ("T.ema",), LOWEST, HIGHEST, ALIKE),)),
    Finding(
        13,
        "True labels: higher",
        (Claim("true labels: higher", "condition", ("M.condition", "M.labels"), "none", "true", ANY_HIGHER),),
    ),
    Finding(
        14,
        "Random labels: as high as true ones",
        (Claim("random labels: alike", "condition", ("M.condition", "M.labels"), "true", "random", ALIKE),),
    ),
    Finding(
        15,
        "More random classes: higher still",
        (
            Claim(
                "more labels: higher",
                "random_labels",
                ("M.labels", "M.condition"),
                LOWEST,
                HIGHEST,
                ANY_HIGHER,
                _random_labels,
            ),
        ),
    ),
    Finding(
        16,
        "Unique labels: near 100%, and over 65% of a large set where the unconditional net stays at 0",
        (
            Claim("unique labels: near 1", "condition", ("M.condition", "M.labels"), None, "unique", (0.9, math.inf)),
            Claim("large set: over 0.65", "unique_50k", ("M.condition",), None, "unique", (0.65, math.inf)),
            Claim("without labels: near 0", "unique_50k", ("M.condition",), None, "none", (-math.inf, 0.05)),
        ),
    ),
    Finding(17, "Past 10k generated images the ratio's variance is negligible", ()),
)


# --- evidence for and against --------------------------------------------------------------------------


class Measurement(NamedTuple):
    """The ratio of one cell, as one claim sees it."""

    level: Any
    stratum: str  # the settings in which cells must agree to be compared
    ratio: float
    samples: int


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
    reason: str  # why it cannot be told, or what the interval leaves out

    @property
    def measured(self) -> str:
        """Return what was measured, as text."""
        if self.value is None or self.interval is None:
            return "-"
        low, high = self.interval
        if self.low is None:
            return f"{self.value:.3f} ({low:.3f} to {high:.3f})"
        return f"{self.low:.3f} to {self.high:.3f}: {self.value:+.3f} ({low:+.3f} to {high:+.3f})"

    @property
    def paper(self) -> str:
        """Return what the paper has, as text."""
        if self.published is None:
            return "-"
        return f"{self.published:.3f}" if self.low is None else f"{self.published:+.3f}"

    @property
    def behind(self) -> str:
        """Return how many draws and seeds stand behind it, as text."""
        return f"{_many(self.draws, 'draw')}, {_many(self.seeds, 'seed')}" if self.draws else "-"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def check_findings(store: Store, profile: str | None) -> list[tuple[Finding, str, list[Result]]]:
    """Return every finding with its verdict from the studies of a profile (None: the paper's scale)."""
    studies = {row["study"]: row for row in store.studies()}
    checked = []
    for finding in FINDINGS:
        if finding.claims:
            results = [check_claim(store, claim, studies, profile) for claim in finding.claims]
        else:
            results = [_check_sample_counts(store, studies, profile)]
        checked.append((finding, _together([result.verdict for result in results]), results))
    return checked


def _together(verdicts: Sequence[str]) -> str:
    if FAILS in verdicts:
        return FAILS
    return UNKNOWN if UNKNOWN in verdicts else HOLDS


def study_results(store: Store, study: Row) -> list[Result]:
    """Return the results of all claims about one study (a row of `store.studies`)."""
    stem, _, profile = study["study"].partition("@")
    studies = {study["study"]: study}
    claims = [claim for finding in FINDINGS for claim in finding.claims if claim.study == stem]
    return [check_claim(store, claim, studies, profile or None) for claim in claims]


def check_claim(store: Store, claim: Claim, studies: Mapping[str, Row], profile: str | None) -> Result:
    """Return what the store says of a claim; only finished cells count, each with its best checkpoint."""
    name = claim.study if profile is None else f"{claim.study}@{profile}"
    if name not in studies:
        option = "" if profile is None else f" --profile {profile}"
        return _unknown(claim, name, f"not run: diffmem run studies/{claim.study}.toml{option}")
    study = studies[name]
    cells, _ = study_cells(store, study)
    finished = [cell for cell in cells if cell["measured"] >= cell["expected"]]
    held = [key for axis in study["axes"] if not set(axis) & set(claim.keys) for key in axis]
    measured = [_measurement(claim, cell, [key for key in held if key not in REPLICATES]) for cell in finished]
    part = [m for m in measured if m.level is not None]
    levels = _levels(claim, [m.level for m in part])
    missing = len(cells) - len(finished)
    note = f"{missing} of {len(cells)} cells are not finished" if missing else ""
    if levels is None:
        return _unknown(claim, name, note or "the study has no cells at the levels that this is about")
    published = _published_value(claim, published_values(store, claim.study))
    replicates = [settings_of(cell) for cell in finished]
    return _judged(
        claim,
        name,
        part,
        levels,
        published,
        draws=len({str(settings.get("P.draw")) for settings in replicates}),
        seeds=len({settings.get("T.seed") for settings in replicates}),
        note=note,
    )


def _unknown(claim: Claim, study: str, reason: str) -> Result:
    return Result(claim.text, study, UNKNOWN, "", None, None, None, None, None, 0, 0, reason)


def _measurement(claim: Claim, cell: Row, held: Sequence[str]) -> Measurement:
    settings = settings_of(cell)
    stratum = ", ".join(f"{key} = {cell['axis_values'][key]}" for key in held)
    return Measurement(claim.level_of(settings), stratum, cell["best"], settings["score.samples"])


def _levels(claim: Claim, found: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the two levels that a claim compares, the first None for a claim about one; None if one is not there."""
    distinct = set(found)
    if LOWEST in (claim.low, claim.high) or HIGHEST in (claim.low, claim.high):
        if len(distinct) < 2:
            return None
        return (None if claim.low is None else min(distinct)), max(distinct)
    wanted = {claim.high} | ({claim.low} if claim.low is not None else set())
    return (claim.low, claim.high) if wanted <= distinct else None


def _means(part: Sequence[Measurement], level: Any) -> dict[str, list[float]]:
    """Return the ratios at one level, by stratum."""
    found: dict[str, list[float]] = defaultdict(list)
    for measurement in part:
        if measurement.level == level:
            found[measurement.stratum].append(measurement.ratio)
    return found


def _difference(part: Sequence[Measurement], levels: tuple[Any, Any]) -> tuple[float | None, float, float, float]:
    """Return the mean ratios at both levels, the claim's value, and the variance of that in units of one cell's.

    Strata that have both levels count equally.
    """
    low_level, high_level = levels
    high = _means(part, high_level)
    if low_level is None:
        mean = fmean(fmean(ratios) for ratios in high.values())
        return None, mean, mean, sum(1 / len(ratios) for ratios in high.values()) / len(high) ** 2
    low = _means(part, low_level)
    common = [stratum for stratum in high if stratum in low]
    if not common:
        return None, math.nan, math.nan, math.nan
    mean_low, mean_high = (fmean(fmean(side[stratum]) for stratum in common) for side in (low, high))
    spread = sum(1 / len(low[stratum]) + 1 / len(high[stratum]) for stratum in common) / len(common) ** 2
    return mean_low, mean_high, mean_high - mean_low, spread


def _cell_variance(part: Sequence[Measurement]) -> tuple[float, float]:
    """Return the variance of one cell's ratio and its degrees of freedom.

    That between draws and seeds, pooled over the levels compared, and never less than what the number of images
    leaves; with one draw and seed the latter alone, with infinitely many degrees.
    """
    images = fmean(_binomial_variance(m.ratio, m.samples) for m in part)
    groups: dict[tuple[Any, str], list[float]] = defaultdict(list)
    for m in part:
        groups[m.level, m.stratum].append(m.ratio)
    degrees = sum(len(ratios) - 1 for ratios in groups.values())
    if not degrees:
        return images, math.inf
    pooled = sum(variance(ratios) * (len(ratios) - 1) for ratios in groups.values() if len(ratios) > 1) / degrees
    return max(pooled, images), degrees


def _binomial_variance(ratio: float, samples: int) -> float:
    """Return the variance of a share of so many images, after two more of either kind, so that 0 is not certain."""
    share = (ratio * samples + 2) / (samples + 4)
    return share * (1 - share) / samples


def _judged(
    claim: Claim,
    study: str,
    part: Sequence[Measurement],
    levels: tuple[Any, Any],
    published: float | None,
    *,
    draws: int,
    seeds: int,
    note: str,
) -> Result:
    low, high, value, spread = _difference(part, levels)
    if math.isnan(value):
        return _unknown(claim, study, "no two finished cells agree in everything else")
    cell_variance, degrees = _cell_variance([m for m in part if m.level in levels])
    reach = _quantile(degrees) * math.sqrt(cell_variance * spread)
    least = 0.0 if low is None else -1.0
    interval = (max(value - reach, least), min(value + reach, 1.0))
    notes = [note] if note else []
    if math.isinf(degrees):
        notes.append("one draw and seed: the interval has the images' noise only")
    named = str(levels[1]) if levels[0] is None else f"{levels[0]} to {levels[1]}"
    return Result(
        claim.text,
        study,
        verdict(interval, claim.within),
        f"{claim.keys[0]} {named}",
        low,
        high,
        value,
        interval,
        published,
        draws,
        seeds,
        "; ".join(notes),
    )


def _quantile(degrees: float) -> float:
    """Return the 97.5% quantile of Student's distribution, or of the normal one for infinitely many degrees."""
    return float(stdtrit(min(degrees, 1e9), 0.975))


def verdict(interval: Range, within: Range) -> str:
    """Return whether a 95% interval lies inside a range (holds), outside (does not hold), or across its edge."""
    if within[0] <= interval[0] and interval[1] <= within[1]:
        return HOLDS
    return FAILS if interval[1] < within[0] or within[1] < interval[0] else UNKNOWN


def _published_value(claim: Claim, published: Sequence[Published]) -> float | None:
    """Return the value that the paper's own numbers give a claim, None where they do not have both levels."""
    part = []
    for number in published:
        if number.metric != "ratio" or claim.keys[0] not in number.settings:
            continue
        stratum = str([(key, value) for key, value in number.settings.items() if key not in claim.keys])
        part.append(Measurement(claim.level_of(number.settings), stratum, number.value, 1))
    part = [m for m in part if m.level is not None]
    levels = _levels(claim, [m.level for m in part])
    if levels is None:
        return None
    value = _difference(part, levels)[2]
    return None if math.isnan(value) else value


# --- how many generated images a ratio needs -----------------------------------------------------------

ENOUGH = 10_000
NEGLIGIBLE = 0.01
GROUPS = 100


def _check_sample_counts(store: Store, studies: Mapping[str, Row], profile: str | None) -> Result:
    """Check that a ratio of 10,000 images or more varies by less than a point, by comparing hundredths of them."""
    claim = Claim("standard deviation below 0.01", "sample_size", ("score.samples",), None, ENOUGH, (0, NEGLIGIBLE))
    name = claim.study if profile is None else f"{claim.study}@{profile}"
    if name not in studies:
        option = "" if profile is None else f" --profile {profile}"
        return _unknown(claim, name, f"not run: diffmem run studies/{claim.study}.toml{option}")
    rows = store.sample_counts(name, studies[name]["estimation"]["threshold"])
    groups = [row for row in rows if row["samples"] >= ENOUGH and row["images"] == row["samples"] // GROUPS]
    if not groups:
        return _unknown(claim, name, f"no cell has {ENOUGH} generated images")
    cells = store.cells(name)
    replicates = [settings_of(cell) for cell in cells]
    value = math.sqrt(fmean(row["deviation"] ** 2 * row["images"] / ENOUGH for row in groups))
    degrees = len(groups) * (GROUPS - 1)
    low, high = (value * math.sqrt(degrees / chdtri(degrees, tail)) for tail in (0.025, 0.975))
    return Result(
        claim.text,
        name,
        verdict((low, high), claim.within),
        f"score.samples {ENOUGH}",
        None,
        fmean(row["ratio"] for row in groups),
        value,
        (low, high),
        None,
        len({str(settings.get("P.draw")) for settings in replicates}),
        len({settings.get("T.seed") for settings in replicates}),
        f"between {GROUPS} groups of each cell's images, divided by the root of their number",
    )
