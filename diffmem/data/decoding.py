"""Decoding encoded images on all cores, into one file that is mapped into memory."""

import hashlib
import itertools
import os
import time
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffmem.data.cache import stamps_now, writable
from diffmem.data.limits import MOST_ENCODED, check_pixels, first_line
from diffmem.data.listing import EDM_LABELS, is_hidden
from diffmem.data.pixels import SUFFIXES, Meaning, OtherMeaning, Seen, Size, decode, shown_size, total
from diffmem.errors import DataError, SizeError

CHUNK, CHUNK_PIXELS = 256, 2**24
"""Images, and pixels of them, that one process decodes at a time."""
ALONE = 0.3
"""Seconds after which other processes are started: for less work they would take longer than they save."""
AHEAD = 3
"""Chunks that wait for each process, so that none waits for the next one."""

Progress = Callable[[str, int, int], None]
"""Called with what is read, how many images are decoded, and of how many."""
progress: ContextVar[Progress] = ContextVar("progress", default=lambda *_: None)
"""Whom to tell how far decoding is."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Encoded(NamedTuple):
    """An encoded image: its bytes, or the file or the member of an archive that holds them, and what to call it."""

    name: str
    data: bytes | None = None
    archive: str | None = None  # the .zip that it is in

    @property
    def where(self) -> str:
        """Return what to call it in messages."""
        return f"{self.archive}/{self.name}" if self.archive else self.name

    def read(self) -> bytes:
        """Return its bytes; DataError where they cannot be read."""
        if self.data is not None:
            return self.data
        try:
            if self.archive:
                return _archive(self.archive, stamps_now([self.archive]).digest).read(self.name)
            with open(self.name, "rb") as file:  # noqa: PTH123 - a million times
                if os.fstat(file.fileno()).st_size > MOST_ENCODED:
                    raise DataError(f"{self.where}: longer than {MOST_ENCODED:,} bytes; no image is")
                return file.read()
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{self.where}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # zipfile and zlib raise errors of many kinds on damaged archives
            raise DataError(f"{self.where}: cannot be read: {first_line(error)}") from error


@dataclass(frozen=True)
class Chunk:
    """Some images one after another, and where their pixels go."""

    images: list[Encoded]
    first: int  # number of the first one among all
    target: Path  # the file of pixels [n, c, h, w]
    meaning: Meaning
    size: Size  # of all, in pixels
    resize: bool  # to that size; else it is one that all must have


class Decoded(NamedTuple):
    """What is known of a chunk: what was met, and the hash of each file that was read."""

    images: int
    seen: Seen
    hashes: list[tuple[int, bytes]]  # bytes of the file, SHA-256


def decode_chunk(chunk: Chunk) -> Decoded:
    """Decode the images of a chunk into its target. DataError names the one that cannot be used."""
    seen, hashes = Seen(), []
    width, height = chunk.size
    pixels = np.empty((len(chunk.images), chunk.meaning.channels, height, width), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images and damaged tags; what it refuses is an error
        for number, image in enumerate(chunk.images):
            data = image.read()
            if image.data is None and image.archive is None:
                hashes.append((len(data), hashlib.sha256(data).digest()))
            decoded = decode(data, image.where, chunk.meaning, chunk.size if chunk.resize else None, seen)
            if decoded.shape[:0:-1] != chunk.size:
                this, first = shown_size((decoded.shape[2], decoded.shape[1])), shown_size(chunk.size)
                raise SizeError(f"{image.where}: {this} pixels, but the first image has {first}")
            pixels[number] = decoded
    with writable(chunk.target.parent), chunk.target.open("r+b") as file:
        file.seek(chunk.first * pixels[0].size)
        file.write(pixels.data)
    return Decoded(len(pixels), seen, hashes)


@contextmanager
def zipped(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .zip; DataError where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (OSError, DataError):
        raise
    except Exception as error:  # zipfile raises errors of many kinds on damaged archives
        raise DataError(f"{file}: not a .zip that can be read ({first_line(error)})") from error


def names_in(archive: zipfile.ZipFile, file: Path) -> tuple[list[str], Counter[str]]:
    """Return the images of a .zip, in order of name, and by their suffix what else is in it."""
    names, left_out = [], Counter[str]()
    for entry in archive.infolist():
        if entry.is_dir() or any(is_hidden(part) for part in entry.filename.split("/")):
            continue
        suffix = PurePosixPath(entry.filename).suffix.lower()
        if suffix not in SUFFIXES:
            left_out[suffix or "without a suffix"] += entry.filename != EDM_LABELS
        elif entry.file_size > MOST_ENCODED:
            raise DataError(f"{file}/{entry.filename}: longer than {MOST_ENCODED:,} bytes; no image is")
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without bounds
            raise DataError(f"{file}/{entry.filename}: compressed in another way than stored or deflated; zip it again")
        else:
            names.append(entry.filename)
    if not names:
        raise DataError(f"{file}: no images in it")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{file}: has {first_line(twice[0])} twice; zip its images again, each once")
    return sorted(names), +left_out


@lru_cache(maxsize=1)
def _archive(name: str, _stamps: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(name)


def decode_all(
    images: Callable[[], Iterable[Encoded]],
    count: int,
    *,
    what: str,
    target: Path,
    size: Size | None = None,
) -> tuple[list[Decoded], Meaning, Size]:
    """Decode `count` images that `images` yields into the file `target`, as uint8 [n, c, h, w] in their order.

    Returns what is known of each chunk, and what all are: in colour or not, and of which size. DataError names the
    first image that cannot be used.
    """
    meaning, wanted = Meaning(), size
    if wanted is None:
        meaning, wanted = _first_size(next(iter(images())))
    check_pixels(what, count, wanted[0] * wanted[1])
    while True:
        try:
            chunks = _chunks(images(), target, meaning, wanted, resize=size is not None)
            with writable(target.parent), target.open("r+b") as file:
                file.truncate(count * meaning.channels * wanted[0] * wanted[1])
            return list(_told(on_all_cores(decode_chunk, chunks), what, count)), meaning, wanted
        except OtherMeaning as other:
            meaning = other.meaning


def _first_size(image: Encoded) -> tuple[Meaning, Size]:
    """Return what the first image means and its size."""
    meaning, seen = Meaning(), Seen()
    data = image.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            try:
                shape = decode(data, image.where, meaning, None, seen).shape
                return meaning, (shape[2], shape[1])
            except OtherMeaning as other:
                meaning = other.meaning


def _chunks(images: Iterable[Encoded], target: Path, meaning: Meaning, size: Size, *, resize: bool) -> Iterator[Chunk]:
    iterator, first = iter(images), 0
    length = max(1, min(CHUNK, CHUNK_PIXELS // (size[0] * size[1])))
    while some := list(itertools.islice(iterator, length)):
        yield Chunk(some, first, target, meaning, size, resize)
        first += len(some)


def _told(chunks: Iterable[Decoded], what: str, count: int) -> Iterator[Decoded]:
    tell, done = progress.get(), 0
    for chunk in chunks:
        done += chunk.images
        tell(what, done, count)
        yield chunk


def on_all_cores(work: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """Yield `work(each)` for each of `given`, in order, on several processes if there is enough to do."""
    given, processes, started = iter(given), cores(), time.monotonic()
    for each in given:
        yield work(each)
        if processes > 1 and time.monotonic() - started > ALONE:
            break
    first = next(given, None)
    if first is None:
        return
    from loky import ProcessPoolExecutor  # which, unlike Python's own, does not run the caller's script again

    with ProcessPoolExecutor(processes, env={"OMP_NUM_THREADS": "1"}) as pool:
        waiting: deque[Any] = deque()
        try:
            for each in itertools.chain([first], given):
                waiting.append(pool.submit(work, each))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException as error:
            pool.shutdown(wait=False, kill_workers=True)
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "a process that decodes images was killed, perhaps for lack of memory; run the same command again"
                ) from error
            raise


def cores() -> int:
    """Return how many CPU cores this process may use."""
    with suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def seen_in(chunks: Iterable[Decoded]) -> Seen:
    """Return what was met in all chunks."""
    return total(chunk.seen for chunk in chunks)
