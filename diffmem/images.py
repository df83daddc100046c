"""Reading images: folders, Parquet files, .npz, and the published collections, decoded once and kept as arrays.

What is read is kept in a cache folder under the hash of its content, so that the next run reads one array.
"""

import glob
import hashlib
import io
import json
import math
import os
import warnings
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diffmem import npz
from diffmem.cache import cache_folder, keep
from diffmem.config import MOST_CLASSES
from diffmem.errors import DataError, NoSuchData
from diffmem.limits import MOST_ENCODED, check_pixels, class_number, first_line

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What these files may be; Pillow knows others, some of which run programs or have never met a hostile file."""


@dataclass(frozen=True)
class Source:
    """All images of a dataset, uint8 [n, c, h, w], and their classes, int64 [n] in 0..C-1."""

    images: Pixels
    classes: Indices
    fingerprint: str = ""  # hash of the content of a user's own files


class Item(NamedTuple):
    """One encoded image: its bytes, its class, and where it is, for messages."""

    data: bytes
    label: int
    where: str


def read_images(pattern: str, *, resolution: int | None, only: range | None = None) -> Source:
    """Return the images of a folder (a class per sub-folder), a .npz, or a Parquet file or a pattern of them.

    With `resolution` (pixels) every image is cropped to its centre square and resized by Lanczos; without, all
    must have one square size. `only` keeps the Parquet rows of a range of labels, counted from its start.
    DataError names the file or row that cannot be used.
    """
    side = "native" if resolution is None else str(resolution)
    rows = "" if only is None else f"-{only.start}-{only.stop}"
    try:
        files = _files(pattern)
        fingerprint = _fingerprint(files, pattern)
        kept = cache_folder() / f"{fingerprint.removeprefix('sha256:')}-{side}{rows}.npz"
        source = _kept(kept)
        if source is None:
            source = _decode(files, pattern, resolution, only)
            _keep(kept, source)
        return replace(source, fingerprint=fingerprint)
    except OSError as error:
        raise DataError(f"{error.filename or pattern}: cannot be read: {error.strerror or error}") from error


def _files(pattern: str) -> list[Path]:
    """Return the files that a path or pattern names, sorted; DataError if there are none."""
    try:
        path = Path(pattern).expanduser()
    except RuntimeError as error:
        raise NoSuchData(f"{pattern}: no such user") from error
    kind = DataError
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        missing = f"no images in it ({', '.join(sorted(SUFFIXES))})"
    elif path.is_file():
        found, missing = [path], ""
    else:
        named = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - patterns may be absolute
        found = [file for file in named if file.is_file()]  # a pipe or a device may never end
        missing = "neither a file nor a folder" if named else "no such file or folder"
        kind = DataError if named else NoSuchData
    if not found:
        raise kind(f"{pattern}: {missing}")
    for file in found:
        if file.suffix.lower() in SUFFIXES and file.stat().st_size > MOST_ENCODED:
            raise DataError(f"{file}: longer than {MOST_ENCODED:,} bytes; no image is")
    return sorted(found)


def image_files(pattern: str) -> list[str]:
    """Return the file of each image of a folder, in the order of `read_images`; none for other collections."""
    return [str(file) for file in _files(pattern)] if Path(pattern).expanduser().is_dir() else []


def _fingerprint(files: list[Path], pattern: str) -> str:
    """Return the hash of the names and contents of files; kept under their sizes and times, so read once."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    index = cache_folder() / "fingerprints" / hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    if index.exists():
        return index.read_text()
    top = _top(files, pattern)
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(top)
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    fingerprint = f"sha256:{digest.hexdigest()[:32]}"
    keep(index, lambda file: file.write(fingerprint.encode()))
    return fingerprint


def _keep(path: Path, source: Source) -> None:
    keep(path, lambda file: np.savez(file, images=source.images, classes=source.classes))


def _kept(path: Path) -> Source | None:
    """Return what was decoded before; None if nothing was, or if it cannot be read."""
    with suppress(DataError), npz.opened(path) as file:
        images, classes = file.claim("images"), file.claim("classes")
        if images and classes:
            check_pixels(path, images.shape[0], math.prod(images.shape[2:]))
            return Source(file.read(images), file.read(classes))
    return None


# --- decoding ------------------------------------------------------------------------------------------


def _decode(files: list[Path], pattern: str, resolution: int | None, only: range | None) -> Source:
    suffix = files[0].suffix.lower()
    if suffix == ".npz":
        return _from_npz(files[0], resolution)
    if suffix not in (".parquet", *SUFFIXES) or (files[0] == Path(pattern).expanduser() and suffix != ".parquet"):
        raise DataError(f"{pattern}: not a folder of images, a .npz or a Parquet file")
    items = _parquet_items(files, only) if suffix == ".parquet" else _folder_items(files, _top(files, pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images and damaged tags; what it refuses is an error
        return _gathered(items, pattern, resolution)


def _gathered(items: Iterator[Item], pattern: str, resolution: int | None) -> Source:
    """Decode images one by one into one array, as long as the limit allows more."""
    pixels, labels, shape = bytearray(), array("q"), (0, 0, 0)
    for item in items:
        image = _pixels(item, resolution)
        shape = image.shape if not labels else shape
        if image.shape != shape:
            first, this = (
                f"{width}x{height} in {channels} channels" for channels, height, width in (shape, image.shape)
            )
            raise DataError(
                f"{item.where}: {this}, but the first image is {first}; "
                "make them one size (in a study, P.resolution does)"
            )
        labels.append(item.label)
        check_pixels(pattern, len(labels), shape[1] * shape[2])
        pixels += image.tobytes()
    if not labels:
        raise DataError(f"{pattern}: no images in it")
    return Source(np.frombuffer(pixels, dtype=np.uint8).reshape(-1, *shape), np.array(labels, dtype=np.int64))


def _pixels(item: Item, resolution: int | None) -> Pixels:
    """Return an encoded image as uint8 [c, h, w], grey or RGB."""
    try:
        with Image.open(io.BytesIO(item.data), formats=FORMATS) as opened:
            image = grey_or_rgb(opened)
    except UnidentifiedImageError as error:
        raise DataError(f"{item.where}: not an image that can be read (not {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises errors of many kinds on damaged images
        raise DataError(f"{item.where}: not an image that can be read ({first_line(error)})") from error
    if resolution is not None:
        image = crop_and_resize(image, resolution)
    elif image.width != image.height:
        raise DataError(
            f"{item.where}: {image.width}x{image.height} pixels, not square; crop them (in a study, P.resolution does)"
        )
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in one of the two that are compared: L or RGB."""
    return image.convert("L" if image.mode in ("1", "L", "LA", "I", "I;16", "F") else "RGB")


def crop_and_resize(image: Image.Image, side: int) -> Image.Image:
    """Return the centre square of an image at `side` x `side` pixels, by Lanczos resampling where they differ."""
    shortest = min(image.size)
    left, top = (image.width - shortest) // 2, (image.height - shortest) // 2
    square = image.crop((left, top, left + shortest, top + shortest))
    return square if square.size == (side, side) else square.resize((side, side), Image.Resampling.LANCZOS)


def _top(files: list[Path], pattern: str) -> Path:
    """Return the folder whose sub-folders are classes: the one named, or the one that a pattern's files share."""
    path = Path(pattern).expanduser()
    return path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))


def _folder_items(files: list[Path], top: Path) -> Iterator[Item]:
    """Yield the images of a folder: its sub-folders are the classes, in order of name."""
    folders = [file.relative_to(top).parts[0] if file.parent != top else "" for file in files]
    numbers = {name: number for number, name in enumerate(sorted(set(folders)))}
    for file, folder in zip(files, folders, strict=True):
        yield Item(file.read_bytes(), class_number(numbers[folder], str(file)), str(file))


def _parquet_items(files: list[Path], only: range | None) -> Iterator[Item]:
    """Yield the rows of Parquet files."""
    from diffmem.parquet import rows  # which loads DuckDB

    first = 0 if only is None else only.start
    for data, label, place in rows(files, only):
        if data is None:
            raise DataError(f"{place}: no image")
        yield Item(data, class_number(label, place) - first, place)


def _from_npz(path: Path, resolution: int | None) -> Source:
    """Return the arrays `images` (or the only one of images) and `labels` of a .npz."""
    with npz.opened(path) as file:
        claim = file.claim("images") or file.claim("arr_0")
        if claim is None or claim.dtype != np.uint8 or len(claim.shape) not in (3, 4):
            found = {name: str(file.claim(name)) for name in file.names[:5]}
            raise DataError(
                f"{path}: needs an array `images` of uint8 [n, h, w], [n, h, w, c] or [n, c, h, w]; has {found}"
            )
        count, channels, height, width = _channels_first(claim.shape, path)
        if 0 in claim.shape:
            raise DataError(f"{path}: no images in it; `images` is {list(claim.shape)}")
        if resolution is None and height != width:
            raise DataError(f"{path}: {width}x{height} pixels, not square; crop them (in a study, P.resolution does)")
        side = resolution or width
        check_pixels(path, count, max(height * width, side * side))
        labels = _npz_labels(file, count, path)
        images: Pixels = file.read(claim)
    if claim.shape != (count, channels, height, width) and len(claim.shape) == 4:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Source(resized(images.reshape(count, channels, height, width), side), labels)


def _npz_labels(file: npz.Npz, count: int, path: Path) -> Indices:
    """Return the array `labels`, or zeros if there is none."""
    claim = file.claim("labels")
    if claim is None:
        return np.zeros(count, dtype=np.int64)
    if claim.shape != (count,) or claim.dtype.kind not in "iu":
        raise DataError(f"{path}: `labels` must be {count} whole numbers from 0, not {claim}")
    labels = file.read(claim)
    for row in np.flatnonzero((labels < 0) | (labels >= MOST_CLASSES))[:1].tolist():
        class_number(int(labels[row]), f"{path}, row {row}")
    return labels.astype(np.int64)


def _channels_first(shape: tuple[int, ...], path: Path) -> tuple[int, int, int, int]:
    """Return count, channels, height and width of images, wherever they have their channels."""
    if len(shape) == 3:
        return shape[0], 1, shape[1], shape[2]
    if shape[1] in (1, 3):
        return shape[0], shape[1], shape[2], shape[3]
    if shape[3] in (1, 3):
        return shape[0], shape[3], shape[1], shape[2]
    raise DataError(f"{path}: `images` has neither 1 nor 3 channels: {list(shape)}")


def resized(images: Pixels, side: int) -> Pixels:
    """Return uint8 images [n, c, h, w] at `side` x `side` pixels, as `crop_and_resize` does each."""
    if images.shape[-2:] == (side, side):
        return images
    small = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for plane in np.ndindex(images.shape[:2]):
        small[plane] = crop_and_resize(Image.fromarray(images[plane]), side)
    return small
