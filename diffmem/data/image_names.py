"""What the images of a dataset are called, where they are used and where that is kept."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from diffmem.cells import DATASETS
from diffmem.data.collection import Source, image_files
from diffmem.text import readable


def image_names(dataset: str, source: Source) -> list[str]:
    """Return the file of each image of a dataset, or the dataset and its position there."""
    files = [] if dataset in DATASETS else image_files(dataset)
    count = len(source.images)
    return files if len(files) == count else [f"{dataset}:{number}" for number in range(count)]


def kept_names(dataset: str, names: Sequence[str]) -> list[str]:
    """Return names of a dataset's images as a store keeps them: from its own folder or file on, as the folders before
    that may name a person; what is no text in them is replaced."""
    if dataset in DATASETS:
        return list(names)
    path = Path(dataset).expanduser()
    if not path.is_file():
        folder = path if path.is_dir() else Path(*itertools.takewhile(_is_plain, path.parts[:-1]))
        path = Path(os.path.abspath(folder))  # noqa: PTH100 - the links in it are those that names have
    before = os.path.join(os.path.abspath(path.parent), "")  # noqa: PTH100, PTH118
    return [readable(_without(before, os.path.abspath(name))) for name in names]  # noqa: PTH100


def _is_plain(part: str) -> bool:
    return not set("*?[") & set(part)


def _without(before: str, name: str) -> str:
    return name.removeprefix(before) if name.startswith(before) else name.rpartition(os.sep)[2]
