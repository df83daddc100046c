"""The folder of decoded images: files that are written whole, checked when they are opened, and mapped into memory.

An entry is the pixels of a collection, under the hash of its content, and a file of facts that is written after them.
"""

import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import filelock
import numpy as np
import numpy.typing as npt

from diffmem.atomic import partial_path, remove_abandoned, replacing
from diffmem.data.limits import check_pixels
from diffmem.errors import DataError

DECODER = 2
"""The version of what images mean; raise it when the same files come to mean other pixels."""
RACY = 2 * 10**9
"""Nanoseconds within which a file may change without a later time of change."""
BLOCK = 2**26
"""Bytes of pixels that have a checksum of their own."""


def cache_folder() -> Path:
    """Return the folder of decoded images: DIFFMEM_CACHE, or diffmem in the user's cache folder."""
    if named := os.environ.get("DIFFMEM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmem"


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and say so where what the block writes cannot be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: decoded images cannot be kept there ({error.strerror}); name another folder with DIFFMEM_CACHE"
        ) from error


def keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file of the cache, whole or not at all, and remove what killed writers have left beside it."""
    with writable(path.parent):
        remove_abandoned(path.parent)
        with replacing(path) as partial, partial.open("wb") as file:
            write(file)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Let one process at a time make what the cache will call `name`; the others wait, and then find it."""
    place = cache_folder() / "locks" / name
    with writable(place.parent), filelock.FileLock(place):
        yield


# --- what files hold, without reading them again -------------------------------------------------------


class Content(NamedTuple):
    """What is known of the content of some files since they were read last."""

    digest: str  # of their names and bytes
    unchanged: bool  # whether they are still those, for all that the system says


def known_content(files: Sequence[str], now: "Stamps") -> Content | None:
    """Return what is known of the content of files as they are now; None if they were never read at these places.

    A file that is replaced has another inode or a later time of change, whatever its size and its own time say; one
    that had changed shortly before it was read may have changed again since.
    """
    try:
        found = json.loads(_record(files).read_bytes())
        content, then, newest, at = str(found["content"]), str(found["files"]), int(found["newest"]), int(found["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Content(content, now.digest == then and newest < at - RACY)


class Stamps(NamedTuple):
    """When files had last changed, as the system said at one moment."""

    digest: str
    newest: int  # the latest time of change, ns
    at: int  # when that was asked, ns


def record_content(files: Sequence[str], content: str, stamps: Stamps) -> None:
    """Keep the content of files, whose `stamps` were taken before they were read; where that cannot be kept, they are
    read again next time."""
    text = json.dumps({"content": content, "files": stamps.digest, "newest": stamps.newest, "at": stamps.at})
    with suppress(DataError):
        keep(_record(files), lambda file: file.write(text.encode()))


def place_of(files: Sequence[str]) -> str:
    """Return a name for some files by where they are."""
    here = os.fsencode(f"{Path.cwd()}")
    names = b"\0".join(map(os.fsencode, files))
    if not all(map(os.path.isabs, files)):
        names = here + b"\0" + names
    return hashlib.sha256(names).hexdigest()[:32]


def _record(files: Sequence[str]) -> Path:
    return cache_folder() / "contents" / f"{place_of(files)}.json"


def stamps_now(files: Sequence[str]) -> Stamps:
    """Return what tells whether files have changed."""
    at, digest, newest = time.time_ns(), hashlib.sha256(), 0
    for file in files:
        status = os.stat(file)  # noqa: PTH116 - a million times
        digest.update(f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        newest = max(newest, status.st_ctime_ns)
    return Stamps(digest.hexdigest(), newest, at)


# --- entries -------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Decoded images of the cache: uint8 [n, c, h, w], mapped into memory, and what is known of them."""

    images: npt.NDArray[np.uint8]
    facts: dict[str, Any]


def entry_path(name: str) -> Path:
    """Return where the pixels of an entry are."""
    return cache_folder() / f"{name}.v{DECODER}.pixels"


@contextmanager
def new_pixels() -> Iterator[Path]:
    """Give a file for pixels, which `complete` puts in its place; it is gone where the block ends without."""
    path = cache_folder() / "new.pixels"
    with writable(path.parent):
        remove_abandoned(path.parent)
        partial = partial_path(path)
        partial.open("xb").close()
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


def complete(pixels: Path, name: str, shape: Sequence[int], facts: dict[str, Any]) -> None:
    """Put pixels in the place of their entry, and write its facts with the checksums of the pixels."""
    path = entry_path(name)
    with writable(path.parent):
        checksums = _checksums(pixels)
        path.with_suffix(".json").unlink(missing_ok=True)  # no facts of other pixels
        with pixels.open("rb") as file:
            os.fsync(file.fileno())
        pixels.replace(path)
    keep_facts(path.with_suffix(".json"), {"shape": list(shape), "crcs": checksums, "facts": facts})


def keep_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write plain data with its checksum."""
    text = json.dumps(facts)
    text = json.dumps([zlib.crc32(text.encode()), text])
    keep(path, lambda file: file.write(text.encode()))


def kept_facts(path: Path) -> dict[str, Any] | None:
    """Return plain data as it was written; None if it is not there or is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        crc, text = json.loads(path.read_bytes())
        if zlib.crc32(text.encode()) == crc:
            return dict(json.loads(text))
    return None


def opened(name: str) -> Entry | None:
    """Return an entry; None if there is none, or it is not as it was written."""
    path = entry_path(name)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        stamps = stamps_now([str(path), str(path.with_suffix(".json"))])
        entry = _checked(path, stamps.digest)
        if entry is not None:
            check_pixels(path, len(entry.images), math.prod(entry.images.shape[2:]))
        return entry
    return None


@lru_cache(maxsize=8)
def _checked(path: Path, _stamps: str) -> Entry | None:
    """Return an entry whose files have not changed since they were checked here."""
    held = kept_facts(path.with_suffix(".json"))
    if held is None:
        return None
    count, channels, height, width = held["shape"]
    if path.stat().st_size == count * channels * height * width and _checksums(path) == held["crcs"]:
        return Entry(np.memmap(path, dtype=np.uint8, mode="r", shape=(count, channels, height, width)), held["facts"])
    return None


def _checksums(path: Path) -> list[int]:
    """Return the CRC of each block of a file, read on all cores."""
    pixels = np.memmap(path, dtype=np.uint8, mode="r")
    blocks = [pixels[start : start + BLOCK] for start in range(0, len(pixels), BLOCK)]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(zlib.crc32, blocks))
