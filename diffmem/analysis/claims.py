"""What the paper finds, as claims about memorization ratios (Gu et al. 2023, Sections 3 to 5)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

IMAGES = ("score.samples",)
"""The factor of the one claim that is about the spread of a ratio, not the ratio: how many images are generated."""


@dataclass(frozen=True)
class Claim:
    """That a difference of memorization ratios, or a ratio, lies within a range.

    The difference is the ratio at level `high` of a factor minus that at `low`; without `low`, the ratio at `high`.
    """

    text: str
    study: str
    keys: tuple[str, ...]  # of the factor: what tells its levels apart
    low: Any
    high: Any
    within: Range
    level: Callable[[Settings], Any] | None = None  # of a cell; None: takes no part; default: the first key's value

    def level_of(self, settings: Settings) -> Any:
        """Return the level of the factor that a cell of these settings has."""
        return settings.get(self.keys[0]) if self.level is None else self.level(settings)


@dataclass(frozen=True)
class Finding:
    """One finding of the paper and the claims that it consists of."""

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
        "Weight decay: lower from 1e-2 on, near 0 at 1e-1",
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
    Finding(
        17,
        "Past 10k generated images the ratio's variance is negligible",
        (Claim("standard deviation below 0.01", "sample_size", IMAGES, None, 10_000, (0, 0.01)),),
    ),
)
