"""A cell of images that another tool has made, and what their studies are called."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffmem.cells import content_hash
from diffmem.data import CONTAINERS, SUFFIXES, Size, Source


@dataclass(frozen=True)
class ForeignCell:
    """Images that another tool has generated, against the training set that its model may have seen."""

    dataset: str  # a name, or the hash of a user's own images
    size: int
    image_size: Size  # width and height, in pixels
    origin: Mapping[str, Any]  # what distinguishes these images from others, as plain data
    checkpoints: Sequence[tuple[int, int]] = ((0, 0),)

    @property
    def checkpoint_count(self) -> int:
        """Return how many checkpoints a finished one has; 0 if that is not known in advance."""
        return len(self.checkpoints)

    @property
    def configuration(self) -> dict[str, Any]:
        """Return what the score depends on, as plain data."""
        width, height = self.image_size
        shape = {"resolution": width} if width == height else {"resolution": width, "height": height}
        return {"P": {"dataset": self.dataset, "size": self.size, **shape}, **self.origin}

    @cached_property
    def cell_id(self) -> str:
        """Return the name of the score, equal exactly when the origin of the images and the training set are."""
        return content_hash(self.configuration)


def study_name(images: str) -> str:
    """Return the name of a folder, of a file without its suffix, or of the folder that the files of a pattern share."""
    path = Path(images).expanduser()
    if not path.exists():
        parts = itertools.takewhile(lambda part: not set("*?[") & set(part), path.parts[:-1])
        path = Path(*parts)
    name = path.resolve().name
    suffix = Path(name).suffix
    is_file = path.is_file() and suffix.lower() in (*SUFFIXES, *CONTAINERS)
    return (name.removesuffix(suffix) if is_file else name) or "images"


def pipeline_name(pipeline: str) -> str:
    """Return the name of a pipeline's folder, or that of its repository on a hub without its owner."""
    path = Path(pipeline).expanduser()
    return path.resolve().name if path.exists() else pipeline.rstrip("/").rpartition("/")[2]


def called(name: Path | str, source: Source) -> str:
    """Return the name of a collection with the beginning of its content's hash, which a dataset with a name has not."""
    content = source.fingerprint.removeprefix("sha256:")[:8]
    return f"{name} ({content})" if content else str(name)
