"""Training sets: real images as uint8 arrays, in seeded, nested, class-balanced draws, with their labels."""

import zlib
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffmem.config import Cell, DataDistribution
from diffmem.errors import DataError

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """All images of a dataset, uint8 [n, c, h, w], and their classes, int64 [n] in 0..C-1."""

    images: Pixels
    classes: Indices


@dataclass(frozen=True)
class TrainingSet:
    """The images that a cell trains on, uint8 [N, c, h, w], and their labels [N] where it has any."""

    images: Pixels
    labels: Indices | None


def load_digits() -> Source:
    """Return the UCI handwritten digits: 1,797 grey 8x8 images of ten classes, values 0..255."""
    with resources.as_file(resources.files("diffmem.datasets") / "digits.npz") as path, np.load(path) as file:
        return Source(file["images"], file["labels"].astype(np.int64))


SOURCES = {"digits": load_digits}


def training_set(cell: Cell) -> TrainingSet:
    """Return the training set of a cell; DataError where its source cannot provide it."""
    P = cell.P
    source = SOURCES[P.dataset]()
    if P.classes is not None:
        keep = source.classes < P.classes
        source = Source(source.images[keep], source.classes[keep])
    chosen = draw(source.classes, P)
    images = resized(source.images[chosen], P.resolution or source.images.shape[-1])
    return TrainingSet(images, _labels(cell, source.classes[chosen]))


def draw(classes: Indices, P: DataDistribution) -> Indices:
    """Return the indices of P.size images with equal shares per class (Gu et al. 2023, Section 3).

    The classes take turns, each in an order of its own that depends on the dataset, P.draw and the class (the
    file's order for `first`), so a smaller set is the beginning of a larger one. DataError if one runs out.
    """
    count = int(classes.max()) + 1
    orders = [_order(np.flatnonzero(classes == c), P, c) for c in range(count)]
    rounds = -(-P.size // count)
    shortest = min(map(len, orders))
    if P.size > count * shortest:
        raise DataError(
            f"P.size = {P.size}: {P.dataset} has {shortest} images in its smallest class, enough for a balanced "
            f"set of {count * shortest}; take a smaller size or fewer classes"
        )
    return np.stack([order[:rounds] for order in orders], axis=1).reshape(-1)[: P.size]


def _order(members: Indices, P: DataDistribution, class_index: int) -> Indices:
    if P.draw == "first":
        return members
    seed = [zlib.crc32(f"draw/{P.dataset}".encode()), int(P.draw), class_index]
    return np.random.default_rng(seed).permutation(members)


def resized(images: Pixels, side: int) -> Pixels:
    """Return uint8 images [n, c, h, w] at `side` x `side` pixels, by Lanczos resampling where they differ."""
    if images.shape[-2:] == (side, side):
        return images
    planes = images.reshape(-1, *images.shape[-2:])
    small = [np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.LANCZOS)) for plane in planes]
    return np.stack(small).reshape(*images.shape[:2], side, side)


def _labels(cell: Cell, classes: Indices) -> Indices | None:
    """Return the label of each training image: its class, a random one of C, or one of its own."""
    if cell.M.condition == "true":
        return classes
    if cell.M.condition == "random":
        rng = np.random.default_rng([zlib.crc32(b"random labels"), cell.T.seed])
        return rng.integers(cell.labels, size=len(classes))
    return np.arange(len(classes)) if cell.M.condition == "unique" else None
