"""What two halves show: how far models without a training image in common agree, pair by pair and against N."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from scipy import special

from diffmem.errors import NotInStore
from diffmem.measures import CENTRED_PIXELS, SIMILAR, Agreement, Bounded, agreement
from diffmem.store import Store, StoredStudy, StudyHalves, as_arguments


@dataclass(frozen=True)
class HalvesAgreement:
    """How far two models agree that differ in P.half alone: both start from the same weights, see the same noise in
    training and generate from the same latents, as T.seed says."""

    curve: str
    size: int  # N, training images of each
    draw: str
    seed: int  # T.seed of both
    cell_a: str
    cell_b: str
    epoch: int  # what the checkpoint is known by
    space: str
    threshold: float  # t
    pairs: int  # latents
    found: Agreement


def halves_of(
    store: Store, study: StoredStudy, *, space: str = CENTRED_PIXELS.name, threshold: float = SIMILAR
) -> list[HalvesAgreement]:
    """Return how much each pair of halves of a study agrees in a space, in its order; none if nothing was compared."""
    return [_agreement(each, threshold) for each in store.study_halves(study.study) if each.space == space]


def check_compared(study: StoredStudy, found: Sequence[HalvesAgreement]) -> None:
    """Raise NotInStore if no two halves of a study are compared."""
    if not found:
        meant = as_arguments(study.path, study.study, study.overrides)
        raise NotInStore(
            f"{study.study}: no halves are compared; `diffmem halves {meant}` compares cells that differ in P.half "
            "alone"
        )


def _agreement(row: StudyHalves, threshold: float) -> HalvesAgreement:
    found = agreement(
        (row.similarity, row.mse),
        (row.mismatched, row.mismatched_mse),
        (row.nearest_a, row.nearest_b),
        (row.held_out_a, row.held_out_b),
        threshold=threshold,
        seed=row.seed,
    )
    about = row.cell_a, row.cell_b, row.epoch, row.space, threshold, len(row.mse)
    return HalvesAgreement(row.curve, row.size, row.draw, row.seed, *about, found)


# --- against the size ----------------------------------------------------------------------------------


class SizeMean(NamedTuple):
    """The mean of a number over pairs of models of one size, with its 95% interval."""

    size: int
    pairs: int  # of models
    value: float
    low: float
    high: float


Number = Callable[[Agreement], Bounded | None]
"""Takes one number of a pair."""


def size_means(rows: Sequence[HalvesAgreement], number: Number) -> list[SizeMean]:
    """Return the mean of a number at each size, ascending; sizes without it are left out.

    With several pairs of models at a size, the interval is Student's t over them, with one variance for all sizes, and
    never narrower than what the latents leave open; with one, it is that over latents.
    """
    sizes: dict[int, list[Bounded]] = defaultdict(list)
    for row in rows:
        if (found := number(row.found)) is not None and math.isfinite(found.value):
            sizes[row.size].append(found)
    freedom = sum(len(own) - 1 for own in sizes.values())
    squares = sum((each.value - fmean(b.value for b in own)) ** 2 for own in sizes.values() for each in own)
    deviation = math.sqrt(squares / freedom) * float(special.stdtrit(freedom, 0.975)) if freedom else 0.0
    return [_mean(size, own, deviation / math.sqrt(len(own))) for size, own in sorted(sizes.items())]


def _mean(size: int, own: Sequence[Bounded], width: float) -> SizeMean:
    value, count = fmean(each.value for each in own), len(own)
    below = math.hypot(*(each.value - each.low for each in own)) / count
    above = math.hypot(*(each.high - each.value for each in own)) / count
    return SizeMean(size, count, value, value - max(below, width), value + max(above, width))


def rise(means: Sequence[SizeMean]) -> tuple[float, tuple[float, float]] | None:
    """Return how much higher a mean is at the largest size than at the smallest, with its 95% interval (Newcombe 1998,
    method 10); None of one size."""
    if len(means) < 2:
        return None
    low, high = means[0], means[-1]
    value = high.value - low.value
    below = math.hypot(high.value - high.low, low.high - low.value)
    above = math.hypot(high.high - high.value, low.value - low.low)
    return value, (value - below, value + above)
