"""Training sets: real images as uint8 arrays, in seeded, nested, class-balanced draws, with their labels."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path

import numpy as np

from diffmem.cells import DATASETS, MOST_CLASSES, Cell, Dataset, Half
from diffmem.data.collection import Indices, Pixels, Source, check_enlarged, read_images
from diffmem.data.duplicates import Groups, find_groups, groups_of, keep_groups, note
from diffmem.data.image_names import image_names, kept_names
from diffmem.data.limits import check_pixels, most_bytes_at_once
from diffmem.data.pixels import Seen, Size, alterations, changes, resized, shown_size
from diffmem.errors import DataError, NoSuchData, SizeError
from diffmem.text import with_unit

IMAGENET_DOGS = range(151, 274)
"""The 123 classes of ImageNet-1k that the paper's code takes: 118 breeds, and wolves, coyote and dingo."""
SHIPPED = ("digits", "emoji")
"""The datasets that come with diffmem; diffmem/data/README.md says what they are."""


@dataclass(frozen=True)
class TrainingSet:
    """The images that a cell trains on, uint8 [N, c, h, w], and their labels, int64 [N], where it has any."""

    images: Pixels
    labels: Indices | None


# --- sources -------------------------------------------------------------------------------------------


def load_source(
    dataset: str, resolution: int | Size | None, labels: str | None = None, *, enlarge: bool = False
) -> Source:
    """Return all images of a dataset, given by name or path: uint8 [n, c, h, w], with their classes, int64 [n].

    `resolution` is in pixels a side, or (width, height); None keeps their own size. `labels` names the column of labels
    in a Parquet file. Raises DataError if images cannot be read, if they cannot be downloaded (it says what to download
    and where to put it), or if all would be enlarged without `enlarge`.
    """
    if labels is not None and dataset in DATASETS:
        raise DataError(f"{dataset}: has its own classes; P.labels names a column of a Parquet file")
    if dataset in READERS:
        return READERS[dataset](resolution, enlarge)
    try:
        return read_images(dataset, resolution=resolution, labels=labels, enlarge=enlarge)
    except NoSuchData as error:
        raise NoSuchData(f"{error} (datasets with a name: {', '.join(sorted(DATASETS))})") from error


def _shipped(dataset: str, resolution: int | Size | None, enlarge: bool) -> Source:
    source = _resized(dataset, resolution)
    if not enlarge:
        check_enlarged(source, dataset)
    return source


def _cifar10(resolution: int | Size | None, enlarge: bool) -> Source:
    files = _downloaded("uoft-cs/cifar10", ["plain_text/train-00000-of-00001.parquet"])
    return read_images(files, resolution=resolution, enlarge=enlarge)


def _imagenet_dogs(resolution: int | Size | None, _enlarge: bool) -> Source:
    files = _downloaded("ILSVRC/imagenet-1k", [f"data/train-{i:05d}-of-00294.parquet" for i in range(294)])
    return read_images(files, resolution=resolution or 32, only=IMAGENET_DOGS)


Reader = Callable[[int | Size | None, bool], Source]
"""From the size that images are wanted in, and whether they may be enlarged to it."""

READERS: dict[str, Reader] = {
    **{dataset: partial(_shipped, dataset) for dataset in SHIPPED},
    "cifar10": _cifar10,
    "imagenet-dogs": _imagenet_dogs,
}
"""How the images of each dataset with a name are read; cells/datasets.py has what settings are checked against."""


@lru_cache(maxsize=4)
def _resized(dataset: str, resolution: int | Size | None) -> Source:
    """Return a dataset that comes with diffmem, at a resolution or in its own."""
    with resources.as_file(resources.files("diffmem.data") / f"{dataset}.npz") as path, np.load(path) as file:
        images: Pixels = file["images"]
        classes = file["labels"].astype(np.int64)
    own = (images.shape[3], images.shape[2])
    size = own if resolution is None else (resolution, resolution) if isinstance(resolution, int) else resolution
    check_pixels(dataset, len(images), size[0] * size[1])
    seen = Seen(images=len(images), smallest=own, largest=own)
    seen.done.update(dict.fromkeys(changes(own, size), len(images)))
    return Source(
        resized(images, size),
        classes,
        notes=tuple(alterations(seen, images.shape[1], size)),
        largest=own,
        enlarged=seen.done["enlarged"],
    )


def _downloaded(repository: str, files: list[str]) -> str:
    """Return the path, or the pattern, of a collection's Parquet files, fetched into huggingface_hub's own cache."""
    try:
        paths = [_one_downloaded(repository, name) for name in files]
    except Exception as error:  # the library raises its own, the network's and the system's errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        others = f" and the {len(files) - 1} files like it" if len(files) > 1 else ""
        raise DataError(
            f"the dataset {repository} cannot be fetched ({reason}); download {files[0]}{others} by hand, then set "
            'P.dataset = "FOLDER/*.parquet" in the study'
        ) from error
    return str(paths[0]) if len(paths) == 1 else str(paths[0].parent / "train-*.parquet")


def _one_downloaded(repository: str, name: str) -> Path:
    """Return one file of a repository, from the library's cache if it is there; without a network, fail at once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        get_hf_file_metadata(hf_hub_url(repository, name, repo_type="dataset"), timeout=10)  # hf_hub_download retries
        return Path(hf_hub_download(repository, name, repo_type="dataset"))


def describe(dataset: str, resolution: int | None, labels: str | None = None) -> Dataset:
    """Return the facts of a dataset; a user's own files are read and decoded for it, once. Raises DataError."""
    if dataset in DATASETS and labels is None:
        return DATASETS[dataset]
    try:
        source = load_source(dataset, resolution, labels)
    except SizeError as error:
        advice = "choose a smaller P.resolution" if resolution else "P.resolution crops and resizes them to one size"
        raise DataError(f"{error}; {advice}") from error
    channels, height, width = source.images.shape[1:]
    if height != width:
        raise DataError(f"{dataset}: {shown_size((width, height))} pixels, not square; P.resolution crops them")
    sizes = tuple(np.bincount(source.classes).tolist())
    return Dataset(sizes, width, channels, source.fingerprint)


# --- training sets -------------------------------------------------------------------------------------


def training_set(cell: Cell) -> TrainingSet:
    """Return the training set of a cell; DataError where its source cannot provide it, or has changed since."""
    P = cell.P
    images: list[Pixels] = []
    classes: list[Indices] = []
    for dataset, wanted, count in P.parts:
        source = _source(cell, dataset)
        kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
        known = _known_as(cell, dataset)
        chosen = draw(kinds, count, dataset=known, number=P.draw, balanced=P.balance, half=P.half)
        held = count * source.images[0].size
        if held > most_bytes_at_once():
            raise DataError(
                f"{dataset}: {count:,} images of {with_unit(held)}B in all do not fit into memory; take a smaller "
                "P.size or P.resolution, or raise the limit with --max-pixels"
            )
        images.append(source.images[chosen])
        classes.append(kinds[chosen])
    channels = max(part.shape[1] for part in images)
    images = [np.broadcast_to(part, (len(part), channels, *part.shape[2:])) for part in images]
    return TrainingSet(np.concatenate(images), _labels(cell, np.concatenate(classes)))


def names_and_groups(cell: Cell) -> tuple[list[str], Indices]:
    """Return the name of each training image of a cell, as `kept_names` has it, and how many training images are of
    its group of nearly identical ones, itself included, int64 [N]. Raises DataError as `training_set`."""
    names: list[str] = []
    alike: list[Indices] = []
    for dataset, wanted, count in cell.P.parts:
        labels = cell.P.labels if dataset == cell.P.dataset else None
        source, groups = _looked_through(dataset, cell.fingerprints.get(dataset, ""), cell.P.resolution, labels)
        kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
        half, known_as = cell.P.half, _known_as(cell, dataset)
        chosen = draw(kinds, count, dataset=known_as, number=cell.P.draw, balanced=cell.P.balance, half=half)
        known = image_names(dataset, source)
        names += kept_names(dataset, [known[number] for number in chosen.tolist()])
        _, group, sizes = np.unique(groups.of(chosen).widest, return_inverse=True, return_counts=True)
        alike.append(sizes[group])
    return names, np.concatenate(alike)


def held_out(cell: Cell, most: int) -> Pixels:
    """Return images that a cell does not train on, of the distribution that it trains on, uint8 [n, c, h, w].

    They are the other end of the draw's permutation, `most` of them or as many as the training set leaves, in the
    shares of its datasets and classes; so they are the same ones for all sizes that leave room for them. Raises
    DataError as `training_set`.
    """
    return held_out_set(cell, most).images


def held_out_set(cell: Cell, most: int) -> TrainingSet:
    """Return the images of `held_out` with their classes as labels, or None of a model that is not conditional.

    Random and unique labels follow no image, so each image has that of a training image drawn at random. Raises
    DataError as `training_set`.
    """
    P = cell.P
    parts = [(dataset, wanted, count, most * count // P.size) for dataset, wanted, count in P.parts if count]
    left: list[Indices] = []
    for dataset, wanted, count, images in parts:
        source = _source(cell, dataset)
        kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
        known = _known_as(cell, dataset)
        sets = 1 if P.half is None else 2
        left.append(draw_held_out(kinds, count, images, dataset=known, number=P.draw, balanced=P.balance, sets=sets))
    asked = [images for *_, images in parts]
    share = min((Fraction(len(each), images) for each, images in zip(left, asked, strict=True) if images), default=0)
    found: list[Pixels] = []
    classes: list[Indices] = []
    for (dataset, wanted, _, images), chosen in zip(parts, left, strict=True):
        source = _source(cell, dataset)
        kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
        found.append(source.images[chosen[: int(share * images)]])
        classes.append(kinds[chosen[: int(share * images)]])
    channels = max(part.shape[1] for part in found)
    pixels = np.concatenate([np.broadcast_to(each, (len(each), channels, *each.shape[2:])) for each in found])
    return TrainingSet(pixels, _held_out_labels(cell, np.concatenate(classes)))


def draw_held_out(
    classes: Indices, size: int, most: int, *, dataset: str, number: int | str, balanced: bool = True, sets: int = 1
) -> Indices:
    """Return the indices of `most` images at the other end of the orders that `draw` takes `size` from, or as many as
    it leaves, with equal shares per class if it is balanced. Both halves are two sets of that size."""
    if not balanced:
        order = _order(np.flatnonzero(classes >= 0), dataset, number, MOST_CLASSES)
        return order[sets * size :][::-1][:most]
    count = int(classes.max()) + 1
    orders = [_order(np.flatnonzero(classes == c), dataset, number, c) for c in range(count)]
    used = [sets * len(range(c, size, count)) for c in range(count)]  # the classes take turns
    rounds = min(min(len(order) - taken for order, taken in zip(orders, used, strict=True)), -(-most // count))
    return np.stack([order[::-1][:rounds] for order in orders], axis=1).reshape(-1)[:most]


def _source(cell: Cell, dataset: str) -> Source:
    """Return a dataset of a cell; DataError if its files hold something else than when the cell was planned."""
    source = load_source(dataset, cell.P.resolution, cell.P.labels if dataset == cell.P.dataset else None)
    if source.fingerprint and source.fingerprint != cell.fingerprints.get(dataset, source.fingerprint):
        raise DataError(f"{dataset}: has changed since this run began; start it again to measure what it holds now")
    return source


def _known_as(cell: Cell, dataset: str) -> str:
    return cell.fingerprints.get(dataset, dataset)


def notes_of(cell: Cell, *, fetch: bool = True) -> tuple[str, ...]:
    """Return what is to be said of the training images of a cell: what was done to them, and which are duplicates.

    Without `fetch`, nothing is said of datasets that may have to be fetched first. Raises DataError as `load_source`.
    """
    said: list[str] = []
    for dataset, wanted, count in cell.P.parts:
        if fetch or dataset not in DATASETS or dataset in SHIPPED:
            print_, labels = cell.fingerprints.get(dataset, ""), cell.P.labels if dataset == cell.P.dataset else None
            P = cell.P
            said += _notes(dataset, print_, P.resolution, labels, wanted, count, P.draw, P.balance, P.half)
    return tuple(said)


@lru_cache(maxsize=10_000)
def _notes(
    dataset: str,
    fingerprint: str,
    resolution: int | None,
    labels: str | None,
    wanted: tuple[int, ...] | None,
    count: int,
    number: int | str,
    balanced: bool,
    half: Half | None,
) -> tuple[str, ...]:
    source, groups = _looked_through(dataset, fingerprint, resolution, labels)
    kinds = source.classes if wanted is None else _renumbered(source.classes, wanted)
    chosen = draw(kinds, count, dataset=fingerprint or dataset, number=number, balanced=balanced, half=half)
    said = [*source.notes, note(groups.of(chosen))]
    return tuple(f"{dataset}: {each}" for each in said if each)


@lru_cache(maxsize=2)
def _looked_through(
    dataset: str, _fingerprint: str, resolution: int | None, labels: str | None
) -> tuple[Source, Groups]:
    """Return a dataset and the groups of its images, looked for once."""
    source = load_source(dataset, resolution, labels)
    return source, groups_in(source)


def groups_in(source: Source) -> Groups:
    """Return the groups of images that are alike; those of files are kept in the cache."""
    groups = groups_of(source.entry) if source.entry else None
    if groups is None:
        groups = find_groups(source.images)
        if source.entry:
            keep_groups(source.entry, groups)
    return groups


def _renumbered(classes: Indices, wanted: tuple[int, ...]) -> Indices:
    """Return the position of each image's class in `wanted`, -1 where it is not in it."""
    position = np.full(max(int(classes.max()), *wanted) + 1, -1)
    position[list(wanted)] = np.arange(len(wanted))
    return position[classes]


def draw(
    classes: Indices,
    size: int,
    *,
    dataset: str,
    number: int | str,
    balanced: bool = True,
    half: Half | None = None,
) -> Indices:
    """Return the indices of `size` images with equal shares per class (Gu et al. 2023, Section 3).

    The classes take turns, each in an order of its own that depends on the dataset, the draw's number and the
    class (the file's order for `first`), so a smaller set is the beginning of a larger one. Images of class -1
    take no part. Not `balanced`: all images in one such order, whatever their class. A `half` has every other image of
    each order. DataError if there are too few.
    """
    if not balanced:
        order = _of_half(_order(np.flatnonzero(classes >= 0), dataset, number, MOST_CLASSES), half)
        if size > len(order):
            if half is not None:
                raise DataError(_halves_too_large(dataset, size, len(order), ""))
            raise DataError(f"{size} images of {dataset}: it has {len(order)}; take a smaller P.size")
        return order[:size]
    count = int(classes.max()) + 1
    orders = [_of_half(_order(np.flatnonzero(classes == c), dataset, number, c), half) for c in range(count)]
    rounds = -(-size // count)
    shortest = min(map(len, orders))
    if size > count * shortest:
        if half is not None:
            raise DataError(_halves_too_large(dataset, size, count * shortest, "balanced "))
        raise DataError(
            f"{size} images of {dataset}: its smallest class has {shortest}, enough for a balanced set of "
            f"{count * shortest}; take a smaller P.size or fewer P.classes, or P.balance = false"
        )
    return np.stack([order[:rounds] for order in orders], axis=1).reshape(-1)[:size]


def _of_half(order: Indices, half: Half | None) -> Indices:
    """Return every other image of an order, from the first or the second one on; equally many for both halves."""
    return order if half is None else order[: len(order) // 2 * 2]["ab".index(half) :: 2]


def _halves_too_large(dataset: str, size: int, most: int, kind: str) -> str:
    return (
        f"two halves of {size} images of {dataset} need {2 * size}, and it has images for {kind}halves of up to "
        f"{most}; take a smaller P.size"
    )


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


def _held_out_labels(cell: Cell, classes: Indices) -> Indices | None:
    """Return the label of each held-out image: its class, or the label of a training image drawn at random."""
    if cell.M.condition in ("none", "true"):
        return classes if cell.M.condition == "true" else None
    labels = _labels(cell, np.zeros(cell.P.size, dtype=np.int64))
    rng = np.random.default_rng([zlib.crc32(b"held-out labels"), cell.T.seed])
    return None if labels is None else labels[rng.integers(len(labels), size=len(classes))]
