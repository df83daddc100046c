"""Quality with intervals and nulls: features of generated images against those of training and held-out images."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from diffmem.measures import quality
from diffmem.measures.bootstrap import half_samples
from diffmem.measures.intervals import wilson
from diffmem.measures.of_images import Against, QualityValue

Array = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]

NEIGHBOUR_IMAGES = 2000
"""Images of either set, at most, whose neighbours among each other are found."""
MANY_DIMENSIONS = 256
HALVES, FEWER_HALVES = 50, 20
"""Half samples behind an interval: fewer of Frechet distances in many dimensions, which take long."""
MOST_DIMENSIONS = 2560
"""Dimensions of a Frechet distance, whose time grows as their third power: more than the features of networks have."""


class RealImages:
    """Features of the real images that generated ones are compared with, and what is found of these alone.

    Half of the held-out images, at random, are compared with; the others take the place of generated ones for the null.
    """

    def __init__(self, training: Array, held_out: Array, *, space: str, seed: int = 0) -> None:
        order = shuffled(len(held_out), "held-out images", seed=seed)
        compared, new = np.array_split(order, 2)
        self.features: dict[Against, Array] = {"training": training, "held_out": held_out[compared]}
        self.new, self.space, self.seed = held_out[new], space, seed
        some = shuffled(len(training), "neighbours", seed=seed)[:NEIGHBOUR_IMAGES]
        few = held_out[compared][:NEIGHBOUR_IMAGES]
        self.some: dict[Against, Array] = {"training": training[np.sort(some)], "held_out": few}

    def values(self, generated: Array) -> list[QualityValue]:
        """Return all that is measured of the features of generated images [n, d], in a fixed order."""
        return [
            replace(each, null=self.nulls.get((each.quantity, each.against)), null_n=self._new_images(each))
            for each in self._of(generated, intervals=True)
        ]

    @cached_property
    def nulls(self) -> dict[tuple[str, Against], float]:
        """Return what new real images in the place of generated ones have."""
        return {(each.quantity, each.against): each.value for each in self._of(self.new, intervals=False)}

    def _new_images(self, value: QualityValue) -> int:
        if (value.quantity, value.against) not in self.nulls:
            return 0
        return len(self.new) if value.quantity == "frechet_distance" else min(len(self.new), NEIGHBOUR_IMAGES)

    def _of(self, generated: Array, *, intervals: bool) -> list[QualityValue]:
        some = generated[:NEIGHBOUR_IMAGES]
        among = quality.squared_distances(some, some)
        found: list[QualityValue] = []
        for against in self.features:
            found += self._distance(generated, against, intervals=intervals)
            between = quality.squared_distances(some, self.some[against])
            distances = quality.Distances(among, self._among[against], between)
            found += self._overlap(distances, against, intervals=intervals)
            found.append(self._authentic(some, distances, against, intervals=intervals))
            found += self._copying(some, against)
        return found

    # --- each with its interval ------------------------------------------------------------------------

    def _value(
        self, quantity: str, against: Against, numbers: tuple[float, float, float], n: int, m: int
    ) -> QualityValue:
        d = self.features[against].shape[1]
        return QualityValue(self.space, quantity, against, *numbers, n, m, d, None, 0)

    def _pairs(self, n: int, m: int, against: Against, count: int) -> "Iterator[tuple[Rows, Rows | None]]":
        """Yield halves of n generated images and of m real ones; None is all of a training set, which is no sample."""
        generated = half_samples(n, count, name="generated", seed=self.seed)
        if against == "training":
            yield from ((rows, None) for rows in generated)
            return
        yield from zip(generated, half_samples(m, count, name="real", seed=self.seed), strict=True)

    @cached_property
    def _moments(self) -> dict[Against, quality.Moments]:
        return {against: quality.moments(features) for against, features in self.features.items()}

    def _distance(self, generated: Array, against: Against, *, intervals: bool) -> Iterator[QualityValue]:
        real = self.features[against]
        if real.shape[1] > MOST_DIMENSIONS:
            return
        whole = self._moments[against]
        value = quality.frechet(quality.moments(generated), whole)
        count = HALVES if real.shape[1] <= MANY_DIMENSIONS else FEWER_HALVES
        halves = self._pairs(len(generated), len(real), against, count) if intervals else iter(())
        drawn = [
            quality.frechet(quality.moments(generated[rows]), whole if own is None else quality.moments(real[own]))
            for rows, own in halves
        ]
        numbers = interval(value, drawn, n=len(generated))
        yield self._value("frechet_distance", against, numbers, len(generated), len(real))

    def _overlap(self, distances: quality.Distances, against: Against, *, intervals: bool) -> Iterator[QualityValue]:
        n, m = distances.between.shape
        values = quality.overlap(distances)
        halves = self._pairs(n, m, against, HALVES) if intervals else iter(())
        drawn = np.array([quality.overlap(distances.of(*rows)) for rows in halves]).reshape(-1, 4)
        shares = {"precision": n, "recall": m, "coverage": m}
        for column, (quantity, value) in enumerate(values._asdict().items()):
            numbers = interval(value, drawn[:, column].tolist(), n=n)
            if quantity in shares:
                numbers = of_share(numbers, shares[quantity])
            yield self._value(quantity, against, numbers, n, m)

    @cached_property
    def _among(self) -> dict[Against, Array]:
        return {against: quality.squared_distances(each, each) for against, each in self.some.items()}

    def _authentic(
        self, some: Array, distances: quality.Distances, against: Against, *, intervals: bool
    ) -> QualityValue:
        """Return the authentic share: beside all of a training set, or some held-out images, which are a sample."""
        if against == "training":
            training = self.features[against]
            share = float(quality.authentic(some, training).mean())
            return self._value(
                "authentic", against, of_share((share, share, share), len(some)), len(some), len(training)
            )
        n, m = distances.between.shape
        share = float(quality.authentic_within(distances).mean())
        halves = self._pairs(n, m, against, HALVES) if intervals else iter(())
        drawn = [float(quality.authentic_within(distances.of(*rows)).mean()) for rows in halves]
        return self._value("authentic", against, of_share(interval(share, drawn, n=n), n), n, m)

    def _copying(self, some: Array, against: Against) -> Iterator[QualityValue]:
        """Yield C_T, if a cell has enough images; the test images are those of the other set."""
        real, test = self.features[against], self.some["held_out" if against == "training" else "training"]
        found = quality.cells(some, test, real, seed=self.seed)
        if not found:
            return
        drawn = [quality.copying(each) for each in _halved(found, self.seed)]
        scale = np.sqrt(2)  # the z of half as many images is that much nearer to 0
        numbers = interval(quality.copying(found), drawn, n=len(some), least=-np.inf, scale=scale)
        yield self._value("c_t", against, numbers, len(some), len(real))


def _halved(found: list[quality.Cell], seed: int) -> Iterator[list[quality.Cell]]:
    """Yield the cells with half of their images, at random, of either kind."""
    halves = [
        [
            half_samples(max(2, len(each)), HALVES, name=f"cell {number}/{kind}", seed=seed)
            for kind, each in enumerate(cell)
        ]
        for number, cell in enumerate(found)
    ]
    for draw in range(HALVES):
        yield [
            quality.Cell(*(each[rows[draw]] if len(each) > 1 else each for each, rows in zip(cell, own, strict=True)))
            for cell, own in zip(found, halves, strict=True)
        ]


def of_share(numbers: tuple[float, float, float], n: int) -> tuple[float, float, float]:
    """Return a share of n images, whose interval is within 0..1 and no narrower than Wilson's."""
    value, low, high = numbers
    least, most = wilson(value, n).tolist()
    return value, max(0.0, min(low, least)), min(1.0, max(high, most))


def interval(
    value: float, drawn: Sequence[float], *, n: int, least: float = 0.0, scale: float = 1.0
) -> tuple[float, float, float]:
    """Return a value with its 95% interval by Student's t, from its values on half samples of n images.

    Centred on the value of all images: half as many are biased more. `scale` is how many times wider the statistic
    varies on all of them.
    """
    if not len(drawn):
        return value, value, value
    from scipy import special  # half a second that most commands do without

    half = n // 2
    deviation = scale * float(np.std(drawn, ddof=1)) * float(np.sqrt(half / (n - half)))
    width = float(special.stdtrit(len(drawn) - 1, 0.975)) * deviation
    return value, max(least, value - width), value + width


def shuffled(n: int, name: str, *, seed: int = 0) -> Rows:
    """Return the positions of n images in a random order that depends on its name and seed alone."""
    order: Rows = np.random.default_rng([zlib.crc32(f"quality/{name}".encode()), seed]).permutation(n)
    return order
