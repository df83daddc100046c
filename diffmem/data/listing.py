"""Which files a path or a pattern means, and which class each image is of by where it lies."""

import fnmatch
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.data.limits import class_number, first_line
from diffmem.data.pixels import SUFFIXES
from diffmem.errors import DataError, NoSuchData
from diffmem.text import counted

CONTAINERS = (".npz", ".parquet", ".zip")
"""Files that hold many images."""
NOT_SHOWN = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names beside hidden ones that nobody means."""
TRAIN = ("train", "training")
SPLITS = frozenset({*TRAIN, "test", "testing", "val", "valid", "validation", "dev"})
"""Names of folders that split a dataset, and are no classes."""
MOST_KINDS = 8
"""Kinds of files that are named."""
EDM_LABELS = "dataset.json"
"""The file of labels in a folder or .zip as EDM and StyleGAN have it."""


@dataclass
class Listing:
    """The files that a path or a pattern means, in order of name, and what is left out."""

    top: str  # the folder whose sub-folders are classes: the one named, or the one that a pattern's files share
    images: list[str] = field(default_factory=list)  # names below `top`
    containers: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix
    is_folder: bool = False

    def notes(self) -> list[str]:
        """Return what is left out, in sentences."""
        return left_out_note(self.left_out)


def list_files(pattern: str) -> Listing:
    """Return the files that a path or a pattern means; DataError if there are none, or if a folder cannot be read."""
    try:
        path = str(Path(pattern).expanduser())
    except RuntimeError as error:
        raise NoSuchData(f"{pattern}: no such user") from error
    if os.path.isdir(path):  # noqa: PTH112 - strings, since there may be a million
        listing = Listing(path, is_folder=True)
        _add(listing, walk(path))
        missing = _nothing_in(listing)
    elif os.path.isfile(path):  # noqa: PTH113
        listing = Listing(os.path.dirname(path))  # noqa: PTH120
        _add(listing, [os.path.basename(path)])  # noqa: PTH119
        missing = "not a folder of images, a .npz, a .zip or a Parquet file"
        if not listing.containers:
            raise DataError(f"{pattern}: {missing}")
    else:
        listing = _matching(pattern, path)
        missing = _nothing_in(listing)
    if not listing.images and not listing.containers:
        raise DataError(f"{pattern}: {missing}")
    return listing


def _matching(pattern: str, path: str) -> Listing:
    """Return the files that a pattern matches, and those in the folders that it matches."""
    named = _expanded(path)
    if not named:
        raise NoSuchData(f"{pattern}: no such file or folder")
    files: set[str] = set()
    for name in map(os.path.abspath, named):
        if os.path.isdir(name):  # noqa: PTH112
            files.update(os.path.join(name, inner) for inner in walk(name))  # noqa: PTH118
        elif os.path.isfile(name):  # noqa: PTH113 - a pipe or a device may never end
            files.add(name)
        else:
            _check_link(name)
    if not files:
        raise DataError(f"{pattern}: neither a file nor a folder")
    listing = Listing(os.path.commonpath([os.path.dirname(file) for file in files]))  # noqa: PTH120
    _add(listing, [os.path.relpath(file, listing.top) for file in files])
    return listing


def _expanded(path: str) -> list[str]:
    """Return what a pattern matches that is not hidden; below a `**` files alone, and none behind a link that leads
    back."""
    top, parts = _literally_there(path.split("/"))
    at = parts.index("**") if "**" in parts else len(parts)
    found = glob.glob("/".join([glob.escape(top), *parts[:at]]))  # noqa: PTH207 - may be absolute
    shown = [name for name in found if not any(map(is_hidden, name.removeprefix(top).split("/")))]
    if at == len(parts):
        return shown
    folders = [name for name in shown if os.path.isdir(name)]  # noqa: PTH112
    below = ((folder, name) for folder in folders for name in walk(folder))
    return [os.path.join(folder, name) for folder, name in below if _matches(name.split("/"), parts[at:])]  # noqa: PTH118


def _literally_there(parts: list[str]) -> tuple[str, list[str]]:
    """Return the longest beginning of a path that is there, whatever marks of a pattern are in it, and the rest."""
    at = 1 if parts[0] == "" else 0
    while at < len(parts) and os.path.lexists("/".join(parts[: at + 1])):
        at += 1
    return "/".join(parts[:at]) or ("/" if parts[0] == "" else "."), parts[at:]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a name, or the first of them, match those of a pattern."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(names[skipped:], pattern[1:]) for skipped in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _add(listing: Listing, names: Iterable[str]) -> None:
    for name in sorted(names, key=lambda name: name.split("/")):  # as Path sorts
        suffix = suffix_of(name)
        if suffix in SUFFIXES:
            listing.images.append(name)
        elif suffix in CONTAINERS and not listing.is_folder:  # in a folder of images they are something else
            listing.containers.append(name)
        elif os.path.basename(name) != EDM_LABELS:  # noqa: PTH119
            listing.left_out[suffix or "without a suffix"] += 1


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _nothing_in(listing: Listing) -> str:
    inside = [suffix for suffix in CONTAINERS if listing.left_out[suffix]]
    if inside:
        return f"no images in it, but {inside[0]} files; name them as {listing.top}/*{inside[0]}"
    return f"no images in it{_but(listing.left_out)}"


def _but(left_out: Counter[str]) -> str:
    return f"; it holds {_by_suffix(left_out)}" if left_out else ""


def walk(top: str) -> Iterator[str]:
    """Yield the names below a folder of its files that are not hidden, also behind links to folders, but none within
    themselves. Raises OSError where a folder cannot be read."""
    yield from _walk(top, "", ())


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(folder)  # noqa: PTH116
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
            elif entry.is_file():  # a pipe or a device may never end
                yield prefix + entry.name
            else:
                _check_link(entry.path)


def _check_link(path: str) -> None:
    """Raise DataError if there is nothing where a link leads: images that are missing are not left out in silence."""
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
        raise DataError(f"{path}: a link that leads nowhere; remove it, or bring back what it leads to")


def is_hidden(name: str) -> bool:
    """Return whether nobody means a file or folder of this name when they name what it is in."""
    return name.startswith(".") or name.lower() in NOT_SHOWN


def left_out_note(left_out: Counter[str]) -> list[str]:
    """Return the sentence about files that are no images."""
    if not left_out:
        return []
    count = sum(left_out.values())
    files, them = ("1 file was", "it") if count == 1 else (f"{count:,} files were", "them")
    return [f"{files} left out, since no image can be read from {them}: {_by_suffix(left_out)}"]


def _by_suffix(left_out: Counter[str]) -> str:
    kinds = [f"{count:,} {suffix}" for suffix, count in left_out.most_common()]
    return ", ".join(kinds[:MOST_KINDS]) + (", ..." if len(kinds) > MOST_KINDS else "")


# --- classes by place ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Names of images relative to their top, those of them that are taken with their classes, and what is said."""

    names: list[str]
    classes: list[int]
    notes: list[str]
    altered: tuple[str, ...] = ()  # what gives them other classes than their first folders do


def place(names: Sequence[str], labels: bytes | None, where: str) -> Placed:
    """Return which of some images are taken, and their classes: by a dataset.json, or by their first folder.

    Folders named train, test and so on are splits, not classes: only train is read. DataError if there is no train
    folder to choose.
    """
    listed = {} if labels is None else edm_labels(labels, f"{where}/{EDM_LABELS}")
    if listed is None:
        return Placed(list(names), [0] * len(names), [f"no classes, as {EDM_LABELS} says"], (EDM_LABELS,))
    if listed:
        return _as_listed(names, listed, where)
    folders = {name.partition("/")[0].lower(): name.partition("/")[0] for name in names if "/" in name}
    others = [folders[name] for name in folders.keys() - SPLITS]
    loose = sum("/" not in name for name in names)
    if folders and not others and not loose:
        return _one_split(names, folders, where)
    splits = [folders[name] for name in sorted(folders.keys() & SPLITS)]
    return Placed(list(names), _by_folder(names, where), _not_as_splits(splits, sorted(others), loose))


def _not_as_splits(splits: Sequence[str], others: Sequence[str], loose: int) -> list[str]:
    """Return in a sentence which folders are read as classes, though they are called like splits."""
    if not splits:
        return []
    why = (
        f"{others[0]}/ is none" if others else f"{counted(loose, 'image')} {'is' if loose == 1 else 'are'} in no folder"
    )
    named = " and ".join(f"{split}/" for split in splits)
    return [
        f"{named} read as classes and not as splits, since {why}; name the folder that the model has seen if that is "
        "not what you want"
    ]


def wrapping_folder(names: Sequence[str]) -> str:
    """Return the folder, with its slash, that all names are in and that has folders of its own; empty if none."""
    first = names[0].partition("/")[0]
    if first.lower() in SPLITS or not any(name.count("/") > 1 for name in names):
        return ""
    return f"{first}/" if all(name.startswith(f"{first}/") for name in names) else ""


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
    return Placed(taken, _by_folder([name.partition("/")[2] for name in taken], where), notes, ("split",))


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
        raise DataError(
            f"{where}: {len(missing):,} of {len(names):,} images have no label in {EDM_LABELS}, the first is "
            f"{missing[0]}; add theirs, or remove {EDM_LABELS}"
        )
    absent = labels.keys() - set(names)
    if absent:
        raise DataError(
            f"{where}: {len(absent):,} of {len(labels):,} images in {EDM_LABELS} are not there, the first is "
            f"{min(absent)}; bring them back, or remove their labels"
        )
    return Placed(list(names), [labels[name] for name in names], [f"classes are those of {EDM_LABELS}"], (EDM_LABELS,))
