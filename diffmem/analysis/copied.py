"""Which training images the cells of a study copy: how many, how often, and what those are like."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffmem.analysis.curves import by_position
from diffmem.analysis.extraction import (
    Concentration,
    Frequencies,
    accumulated,
    at_least,
    concentration,
    distinct,
)
from diffmem.errors import StoreError
from diffmem.measures import wilson
from diffmem.store import CellProgress, CopyFrequency, DensityBin, Store, StoredStudy

TIMES = (1, 2, 3, 5, 10, 20, 50, 100)
"""How often an image may be copied at least, where images are counted that are."""
LEVELS = 24
"""Steps of the threshold, up to the largest that a measure has."""
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)
"""Generated images at which distinct training images are counted, and all of them."""


@dataclass(frozen=True)
class Extracted:
    """How many distinct training images are copied, by so many images or at some threshold."""

    images: int  # generated
    threshold: float
    extracted: float  # distinct training images, on average over all orders of the images
    low: float  # 95% interval, over other images of the same model
    high: float
    null: float | None  # the count for as many held-out images; None if there are fewer of them


@dataclass(frozen=True)
class Eidetic:
    """How many training images are copied at least so many times."""

    times: int
    images: int
    low: float  # 95% interval, over training images
    high: float


@dataclass(frozen=True)
class CopiedImages:
    """Which training images the last checkpoint of a cell copies."""

    position: int
    cell_id: str
    curve: str
    name: str
    size: int  # N, training images
    epoch: int  # what the checkpoint is known by
    samples: int  # generated images
    held_out: int  # images that were not trained on
    extracted: int  # distinct training images
    share: float  # of all training images
    low: float  # 95% interval of the share, over training images
    high: float
    null: float | None  # distinct training images by as many held-out images as both have; None without any
    null_images: int  # these
    concentration: Concentration | None
    eidetic: list[Eidetic]
    by_threshold: list[Extracted]
    by_images: list[Extracted]
    frequencies: Mapping[int, int]  # training images that are copied k times, by k
    densities: list[DensityBin]  # none where nobody looked through the training set

    @property
    def grouped(self) -> int:
        """Return how many training images have a group."""
        return sum(each.grouped for each in self.densities)

    @property
    def grouped_copied(self) -> int:
        """Return how many of these are copied."""
        return sum(each.grouped_copied for each in self.densities)


def copied_images(store: Store, study: StoredStudy) -> list[CopiedImages]:
    """Return which training images each cell of a study copies, by the study's measure and threshold.

    It takes the last checkpoint that the measure has scored, and leaves out cells without one. Raises StoreError if
    more images are copied than there are.
    """
    name, measure = study.study, study.measure
    thresholds = sorted({study.threshold, *(k * measure.largest / LEVELS for k in range(1, LEVELS + 1))})
    last = {point.position: point for point in store.curve_points(name, measure, study.threshold)}
    cells = {cell.position: cell for cell in store.progress(name)}
    found = _by_threshold(store.copy_frequencies(name, measure, thresholds))
    unseen = _by_threshold(store.held_out_frequencies(name, measure, thresholds))
    nulls = store.nulls(name, measure, study.threshold)
    densities = by_position(store.density_bins(name, measure, study.threshold))
    return [
        _copied(
            cells[position],
            point.epoch,
            _Counted(point.samples, found[position]),
            _Counted(nulls[position].samples if position in nulls else 0, unseen[position]),
            (study.threshold, thresholds),
            densities[position],
        )
        for position, point in sorted(last.items())
    ]


@dataclass(frozen=True)
class _Counted:
    """How many training images so many images are copies of, how often, at each threshold."""

    images: int
    at: Mapping[float, Frequencies]

    def extracted(self, threshold: float, counts: Sequence[int], size: int, null: "_Counted") -> list[Extracted]:
        """Return how many distinct training images are copied at a threshold by the first n images of any order, for
        each of the counts, beside those that as many images of `null` would be copies of."""
        mean, ends = accumulated(self.at.get(threshold, {}), self.images, counts, size=size)
        return [
            Extracted(count, threshold, float(value), float(low), float(high), null.would(threshold, count, size))
            for count, value, (low, high) in zip(counts, mean, ends, strict=True)
        ]

    def would(self, threshold: float, count: int, size: int) -> float | None:
        """Return how many training images so many of these images copy, on average; None if there are fewer images."""
        if not 0 < count <= self.images:
            return None
        (mean,), _ = accumulated(self.at.get(threshold, {}), self.images, [count], size=size)
        return float(mean)


def _by_threshold(rows: Sequence[CopyFrequency]) -> dict[int, dict[float, dict[int, int]]]:
    found: dict[int, dict[float, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row.position][row.threshold][row.copies] = row.images
    return found


def _copied(
    cell: CellProgress,
    epoch: int,
    made: _Counted,
    unseen: _Counted,
    thresholds: tuple[float, Sequence[float]],
    densities: Sequence[DensityBin],
) -> CopiedImages:
    own, levels = thresholds
    frequencies, size = made.at.get(own, {}), cell.size
    extracted, both = distinct(frequencies), min(made.images, unseen.images)
    if extracted > size:
        raise StoreError(
            f"{cell.cell_id}: {extracted} training images are copied, but it has {size}; `diffmem store check` lists "
            "what else is wrong"
        )
    low, high = wilson(extracted / size, size).tolist()
    counts = [*(count for count in COUNTS if count < made.images), made.images]
    return CopiedImages(
        position=cell.position,
        cell_id=cell.cell_id,
        curve=cell.curve,
        name=cell.name,
        size=size,
        epoch=epoch,
        samples=made.images,
        held_out=unseen.images,
        extracted=extracted,
        share=extracted / size,
        low=low,
        high=high,
        null=unseen.would(own, both, size),
        null_images=both,
        concentration=concentration(frequencies, size=size),
        eidetic=_eidetic(frequencies, size),
        by_threshold=[each for level in levels for each in made.extracted(level, [made.images], size, unseen)],
        by_images=made.extracted(own, counts, size, unseen),
        frequencies=dict(sorted(frequencies.items())),
        densities=list(densities),
    )


def _eidetic(frequencies: Frequencies, size: int) -> list[Eidetic]:
    """Return how many training images are copied at least twice, three times and so on, as long as any are."""
    counted = [(times, at_least(frequencies, times)) for times in TIMES]
    several = [(times, images) for times, images in counted if images or times == 1]
    return [Eidetic(times, images, *(size * wilson(images / size, size)).tolist()) for times, images in several]
