"""Training sets: real images as uint8 arrays, in seeded, nested, class-balanced draws, with their labels."""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from diffmem.config import DATASETS, Cell, Dataset
from diffmem.errors import DataError, NoSuchData
from diffmem.images import Indices, Pixels, Source, read_images, resized
from diffmem.limits import check_pixels

IMAGENET_DOGS = range(151, 274)
"""The 123 classes of ImageNet-1k that the paper's code takes: 118 breeds, and wolves, coyote and dingo."""


@dataclass(frozen=True)
class TrainingSet:
    """The images that a cell trains on, uint8 [N, c, h, w], and their labels, int64 [N], where it has any."""

    images: Pixels
    labels: Indices | None


# --- sources -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def load_source(dataset: str, resolution: int | None) -> Source:
    """Return all images of a dataset by its name or path, at `resolution` pixels or in their own size.

    Raises DataError where it cannot be read, or cannot be reached: with what to download and where to put it.
    """
    if dataset == "digits":
        return _digits(resolution)
    if dataset == "cifar10":
        files = _downloaded("uoft-cs/cifar10", ["plain_text/train-00000-of-00001.parquet"])
        return read_images(files, resolution=resolution)
    if dataset == "imagenet-dogs":
        files = _downloaded("ILSVRC/imagenet-1k", [f"data/train-{i:05d}-of-00294.parquet" for i in range(294)])
        return read_images(files, resolution=resolution or 32, only=IMAGENET_DOGS)
    try:
        return read_images(dataset, resolution=resolution)
    except NoSuchData as error:
        raise NoSuchData(f"{error} (datasets with a name: {', '.join(sorted(DATASETS))})") from error


def _digits(resolution: int | None) -> Source:
    """The UCI handwritten digits: 1,797 grey 8x8 images of ten classes, values 0..255."""
    with resources.as_file(resources.files("diffmem.datasets") / "digits.npz") as path, np.load(path) as file:
        images: Pixels = file["images"]
        side = resolution or images.shape[-1]
        check_pixels("digits", len(images), side * side)
        return Source(resized(images, side), file["labels"].astype(np.int64))


def _downloaded(repository: str, files: list[str]) -> str:
    """Return the path, or the pattern, of a collection's Parquet files, fetched into huggingface_hub's own cache."""
    from huggingface_hub import hf_hub_download

    try:
        paths = [Path(hf_hub_download(repository, name, repo_type="dataset")) for name in files]
    except Exception as error:  # the library raises its own, the network's and the system's errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        others = f" and the {len(files) - 1} files like it" if len(files) > 1 else ""
        raise DataError(
            f"the dataset {repository} cannot be fetched ({reason}); download {files[0]}{others} from it by hand and "
            'name them in the study: P.dataset = "FOLDER/*.parquet"'
        ) from error
    return str(paths[0]) if len(paths) == 1 else str(paths[0].parent / "train-*.parquet")


def describe(dataset: str, resolution: int | None) -> Dataset:
    """Return the facts of a dataset; a user's own files are read and decoded for it, once. Raises DataError."""
    if dataset in DATASETS:
        return DATASETS[dataset]
    source = load_source(dataset, resolution)
    sizes = tuple(np.bincount(source.classes).tolist())
    return Dataset(sizes, source.images.shape[-1], source.images.shape[1], source.fingerprint)


# --- training sets -------------------------------------------------------------------------------------


def training_set(cell: Cell) -> TrainingSet:
    """Return the training set of a cell; DataError where its source cannot provide it."""
    P = cell.P
    images: list[Pixels] = []
    classes: list[Indices] = []
    for dataset, wanted, count in P.parts:
        source = load_source(dataset, P.resolution)
        kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
        chosen = draw(kinds, count, dataset=cell.fingerprints.get(dataset, dataset), number=P.draw)
        images.append(source.images[chosen])
        classes.append(kinds[chosen])
    return TrainingSet(np.concatenate(images), _labels(cell, np.concatenate(classes)))


def _renumbered(classes: Indices, wanted: tuple[int, ...]) -> Indices:
    """Return the position of each image's class in `wanted`, -1 where it is not in it."""
    position = np.full(max(int(classes.max()), *wanted) + 1, -1)
    position[list(wanted)] = np.arange(len(wanted))
    return position[classes]


def draw(classes: Indices, size: int, *, dataset: str, number: int | str) -> Indices:
    """Return the indices of `size` images with equal shares per class (Gu et al. 2023, Section 3).

    The classes take turns, each in an order of its own that depends on the dataset, the draw's number and the
    class (the file's order for `first`), so a smaller set is the beginning of a larger one. Images of class -1
    take no part. DataError if a class runs out.
    """
    count = int(classes.max()) + 1
    orders = [_order(np.flatnonzero(classes == c), dataset, number, c) for c in range(count)]
    rounds = -(-size // count)
    shortest = min(map(len, orders))
    if size > count * shortest:
        raise DataError(
            f"{size} images of {dataset}: its smallest class has {shortest}, enough for a balanced set of "
            f"{count * shortest}; take a smaller P.size or fewer P.classes"
        )
    return np.stack([order[:rounds] for order in orders], axis=1).reshape(-1)[:size]


def _order(members: Indices, dataset: str, number: int | str, class_index: int) -> Indices:
    if number == "first":
        return members
    seed = [zlib.crc32(f"draw/{dataset}".encode()), int(number), class_index]
    return np.random.default_rng(seed).permutation(members)


def _labels(cell: Cell, classes: Indices) -> Indices | None:
    """Return the label of each training image: its class, a random one of C, or one of its own."""
    if cell.M.condition == "true":
        return classes
    if cell.M.condition == "random":
        rng = np.random.default_rng([zlib.crc32(b"random labels"), cell.T.seed])
        return rng.integers(cell.labels, size=len(classes))
    return np.arange(len(classes)) if cell.M.condition == "unique" else None
