"""The folder of decoded images: files that are written whole, and no remains of writers that were killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from diffmem.errors import DataError
from diffmem.files import remove_abandoned, replacing


def cache_folder() -> Path:
    """Return the folder of decoded images: DIFFMEM_CACHE, or diffmem in the user's cache folder."""
    if named := os.environ.get("DIFFMEM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmem"


def keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file of the cache, whole or not at all, and remove what killed writers have left beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with replacing(path) as partial, partial.open("wb") as file:
            write(file)
    except OSError as error:
        raise DataError(
            f"{path}: decoded images cannot be kept there ({error.strerror}); name another folder with DIFFMEM_CACHE"
        ) from error
