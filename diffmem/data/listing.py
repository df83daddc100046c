"""Which files a path or a pattern means, and which class each image is of by where it lies."""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.data.limits import MOST_ENCODED, class_number, first_line
from diffmem.data.pixels import SUFFIXES
from diffmem.errors import DataError, NoSuchData

CONTAINERS = (".npz", ".parquet", ".zip")
"""Files that hold many images."""
NOT_SHOWN = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names beside hidden ones that nobody means."""
TRAIN = ("train", "training")
SPLITS = frozenset({*TRAIN, "test", "testing", "val", "valid", "validation", "dev"})
"""Names of folders that split a dataset, and are no classes."""
EDM_LABELS = "dataset.json"
"""The file of labels in a folder or .zip as EDM and StyleGAN have it."""


@dataclass
class Listing:
    """The files that a path or a pattern means, in order of name, and what is left out."""

    top: Path  # the folder whose sub-folders are classes: the one named, or the one that a pattern's files share
    images: list[Path] = field(default_factory=list)
    containers: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix
    is_folder: bool = False

    @property
    def files(self) -> list[Path]:
        """Return all files that are read."""
        return [*self.images, *self.containers]

    def notes(self) -> list[str]:
        """Return what is left out, in sentences."""
        return left_out_note(self.left_out)


def list_files(pattern: str) -> Listing:
    """Return the files that a path or a pattern means; DataError if there are none, or if a folder cannot be read."""
    try:
        path = Path(pattern).expanduser()
    except RuntimeError as error:
        raise NoSuchData(f"{pattern}: no such user") from error
    if path.is_dir():
        listing = Listing(path, is_folder=True)
        _add(listing, walk(path))
        missing = _nothing_in(listing)
    elif path.is_file():
        listing = Listing(path.parent)
        _add(listing, [path])
        missing = "not a folder of images, a .npz, a .zip or a Parquet file"
        if not listing.containers:
            raise DataError(f"{pattern}: {missing}")
    else:
        named = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - may be absolute
        if not named:
            raise NoSuchData(f"{pattern}: no such file or folder")
        files = {file for name in named for file in (walk(name) if name.is_dir() else [name]) if file.is_file()}
        if not files:
            raise DataError(f"{pattern}: neither a file nor a folder of images")
        listing = Listing(Path(os.path.commonpath([file.absolute().parent for file in files])))
        _add(listing, files)
        listing.images = [file.absolute() for file in listing.images]
        missing = _nothing_in(listing)
    if not listing.files:
        raise DataError(f"{pattern}: {missing}")
    for file in listing.images:
        if file.stat().st_size > MOST_ENCODED:
            raise DataError(f"{file}: longer than {MOST_ENCODED:,} bytes; no image is")
    return listing


def _add(listing: Listing, files: Iterable[Path]) -> None:
    for file in sorted(files):
        suffix = file.suffix.lower()
        if suffix in SUFFIXES:
            listing.images.append(file)
        elif suffix in CONTAINERS and not listing.is_folder:  # in a folder of images they are something else
            listing.containers.append(file)
        elif file.name != EDM_LABELS:
            listing.left_out[suffix or "without a suffix"] += 1


def _nothing_in(listing: Listing) -> str:
    inside = [suffix for suffix in CONTAINERS if listing.left_out[suffix]]
    also = f"; name what is in it as {listing.top}/*{inside[0]}" if inside else ""
    return f"no images in it ({', '.join(sorted(SUFFIXES))}){also}"


def walk(top: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, also behind links to folders, but none within themselves.

    Raises OSError where a folder cannot be read.
    """
    yield from _walk(top, ())


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, (*above, here))
            elif entry.is_file():  # a pipe or a device may never end
                yield folder / entry.name


def is_hidden(name: str) -> bool:
    """Return whether nobody means a file or folder of this name when they name what it is in."""
    return name.startswith(".") or name.lower() in NOT_SHOWN


def left_out_note(left_out: Counter[str]) -> list[str]:
    """Return the sentence about files that are no images."""
    if not left_out:
        return []
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in left_out.most_common())
    return [f"left out, since they are no images that can be read: {kinds}"]


# --- classes by place ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Names of images relative to their top, those of them that are taken with their classes, and what is said."""

    names: list[str]
    classes: list[int]
    notes: list[str]


def place(names: Sequence[str], labels: bytes | None, where: str) -> Placed:
    """Return which of some images are taken, and their classes: by a dataset.json, or by their first folder.

    Folders called train, test and the like are splits: train is taken. DataError where that cannot be told.
    """
    listed = {} if labels is None else edm_labels(labels, f"{where}/{EDM_LABELS}")
    if listed is None:
        return Placed(list(names), [0] * len(names), [f"no classes, as {EDM_LABELS} says"])
    if listed:
        return _as_listed(names, listed, where)
    folders = {name.partition("/")[0].lower(): name.partition("/")[0] for name in names if "/" in name}
    if not folders or folders.keys() - SPLITS or any("/" not in name for name in names):
        return Placed(list(names), _by_folder(names, where), [])
    return _one_split(names, folders, where)


def _one_split(names: Sequence[str], folders: dict[str, str], where: str) -> Placed:
    train = next((name for name in TRAIN if name in folders), None)
    if train is None and len(folders) > 1:
        raise DataError(
            f"{where}: its folders {', '.join(sorted(folders.values()))} are splits of a dataset, not classes; name "
            "the one that the model has seen"
        )
    chosen = folders[train or next(iter(folders))]
    taken = [name for name in names if name.startswith(f"{chosen}/")]
    others = Counter(name.partition("/")[0] for name in names if not name.startswith(f"{chosen}/"))
    said = "".join(f", and {count:,} images of {name}/ are left out" for name, count in sorted(others.items()))
    notes = [f"{chosen}/ is read as a split, not as a class{said}"]
    return Placed(taken, _by_folder([name.partition("/")[2] for name in taken], where), notes)


def _by_folder(names: Sequence[str], where: str) -> list[int]:
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    numbers = {name: number for number, name in enumerate(sorted(set(folders)))}
    return [class_number(numbers[folder], where) for folder in folders]


def edm_labels(content: bytes, where: str) -> dict[str, int] | None:
    """Return the labels of a dataset.json by image, none if it is about something else; None if it says that there are
    none. DataError where they are no class numbers."""
    try:
        data: Any = json.loads(content)
        if not isinstance(data, dict) or "labels" not in data:
            return {}
        if data["labels"] is None:
            return None
        return {str(name): class_number(label, f"{where}, {name}") for name, label in data["labels"]}
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: no labels as EDM writes them ({first_line(error)})") from error


def _as_listed(names: Sequence[str], labels: dict[str, int], where: str) -> Placed:
    missing = [name for name in names if name not in labels]
    if missing:
        raise DataError(f"{where}: {len(missing):,} images have no label in {EDM_LABELS}, the first is {missing[0]}")
    return Placed(list(names), [labels[name] for name in names], [f"classes are those of {EDM_LABELS}"])
