"""Reading images: folders, Parquet files, .npz, and the published collections, decoded once and kept as arrays.

What is read is kept in a cache folder under the hash of its content, so that the next run reads one array.
"""

import glob
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diffmem.errors import DataError, NoSuchData

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


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


def cache_folder() -> Path:
    """Return the folder of decoded images: DIFFMEM_CACHE, or diffmem in the user's cache folder."""
    if named := os.environ.get("DIFFMEM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmem"


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
        if not kept.exists():
            _keep(kept, _decode(files, pattern, resolution, only))
        with np.load(kept) as file:
            return Source(file["images"], file["classes"], fingerprint)
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
    _write(index, fingerprint.encode())
    return fingerprint


def _keep(path: Path, source: Source) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=source.images, classes=source.classes)
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: decoded images cannot be kept there ({error.strerror}); name another folder with DIFFMEM_CACHE"
        ) from error


# --- decoding ------------------------------------------------------------------------------------------


def _decode(files: list[Path], pattern: str, resolution: int | None, only: range | None) -> Source:
    suffix = files[0].suffix.lower()
    if suffix == ".npz":
        return _from_npz(files[0], resolution)
    if suffix not in (".parquet", *SUFFIXES) or (files[0] == Path(pattern).expanduser() and suffix != ".parquet"):
        raise DataError(f"{pattern}: not a folder of images, a .npz or a Parquet file")
    items = _parquet_items(files, only) if suffix == ".parquet" else _folder_items(files, _top(files, pattern))
    arrays: list[Pixels] = []
    labels: list[int] = []
    for item in items:
        array = _pixels(item, resolution)
        if arrays and array.shape != arrays[0].shape:
            first, this = (f"{a.shape[2]}x{a.shape[1]} in {a.shape[0]} channels" for a in (arrays[0], array))
            raise DataError(
                f"{item.where}: {this}, but the first image is {first}; "
                "make them one size (in a study, P.resolution does)"
            )
        arrays.append(array)
        labels.append(item.label)
    if not arrays:
        raise DataError(f"{pattern}: no images in it")
    return Source(np.stack(arrays), np.asarray(labels, dtype=np.int64))


def _pixels(item: Item, resolution: int | None) -> Pixels:
    """Return an encoded image as uint8 [c, h, w], grey or RGB."""
    try:
        with Image.open(io.BytesIO(item.data)) as opened:
            image = grey_or_rgb(opened)
    except UnidentifiedImageError as error:
        raise DataError(f"{item.where}: not an image that can be read (of no known format)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{item.where}: not an image that can be read ({error})") from error
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
    names = sorted(set(folders))
    for file, folder in zip(files, folders, strict=True):
        yield Item(file.read_bytes(), names.index(folder), str(file))


def _parquet_items(files: list[Path], only: range | None) -> Iterator[Item]:
    """Yield the rows of Parquet files with an image column (bytes, or a struct of bytes) and maybe a label."""
    import duckdb

    names = [str(file) for file in files]
    try:
        connection = duckdb.connect()
        columns = connection.execute("DESCRIBE FROM read_parquet(?)", [names]).fetchall()
        image, label = _columns(columns, names[0])
        where = f"WHERE {label} BETWEEN {only.start} AND {only.stop - 1}" if only is not None else ""
        rows = "read_parquet(?, filename = true, file_row_number = true)"
        result = connection.execute(f"SELECT {image}, {label}, filename, file_row_number FROM {rows} {where}", [names])
        while batch := result.fetchmany(1000):
            for data, number, name, row in batch:
                place = f"{name}, row {row}"
                if data is None or number is None or number < 0:
                    raise DataError(f"{place}: no {'image' if data is None else 'label'}")
                yield Item(data, int(number) - (only.start if only is not None else 0), place)
    except duckdb.Error as error:
        raise DataError(f"{names[0]}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _columns(columns: list[tuple[Any, ...]], file: str) -> tuple[str, str]:
    """Return the SQL of the image's bytes and of the label."""
    types = {name: str(kind) for name, kind, *_ in columns}
    structs = [name for name, kind in types.items() if kind.startswith("STRUCT") and "bytes" in kind]
    blobs = [name for name, kind in types.items() if kind == "BLOB"]
    if not structs and not blobs:
        raise DataError(f"{file}: no column of images (bytes, or a struct of bytes and path); it has {list(types)}")
    image = f'"{structs[0]}".bytes' if structs else f'"{blobs[0]}"'
    label = next((name for name in ("label", "labels", "class", "fine_label") if name in types), None)
    return image, "0" if label is None else f'"{label}"'


def _from_npz(path: Path, resolution: int | None) -> Source:
    """Return the arrays `images` (or the only one of images) and `labels` of a .npz."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a .npz that can be read (no zip file)")
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a .npz that can be read ({error})") from error
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4):
        found = {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()}
        raise DataError(
            f"{path}: needs an array `images` of uint8 [n, h, w], [n, h, w, c] or [n, c, h, w]; has {found}"
        )
    images = _channels_first(images, path)
    labels = arrays.get("labels", np.zeros(len(images), dtype=np.int64))
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or (labels < 0).any():
        kind = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{path}: `labels` must be {len(images)} whole numbers from 0, not {kind}")
    side = resolution or images.shape[-1]
    if resolution is None and images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"{path}: {images.shape[-1]}x{images.shape[-2]} pixels, not square; "
            "crop them (in a study, P.resolution does)"
        )
    return Source(resized(images, side), labels.astype(np.int64))


def _channels_first(images: Pixels, path: Path) -> Pixels:
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in (1, 3):
        return images
    if images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DataError(f"{path}: `images` has neither 1 nor 3 channels: {list(images.shape)}")


def resized(images: Pixels, side: int) -> Pixels:
    """Return uint8 images [n, c, h, w] at `side` x `side` pixels, as `crop_and_resize` does each."""
    if images.shape[-2:] == (side, side):
        return images
    planes = images.reshape(-1, *images.shape[-2:])
    small = [np.asarray(crop_and_resize(Image.fromarray(plane), side)) for plane in planes]
    return np.stack(small).reshape(*images.shape[:2], side, side)
