"""Reading collections of images: folders, .zip, .npz, Parquet files and patterns of them, decoded once and kept.

What is read is kept in the cache under the hash of its content, so that the next run maps one file into memory.
"""

import base64
import hashlib
import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.data import cache
from diffmem.data.arrays import write_npz
from diffmem.data.decoding import CHUNK, Encoded, decode_all, names_in, seen_in, zipped
from diffmem.data.limits import check_pixels
from diffmem.data.listing import (
    EDM_LABELS,
    Listing,
    Placed,
    left_out_note,
    list_files,
    place,
    suffix_of,
    wrapping_folder,
)
from diffmem.data.parquet import opened as opened_parquet
from diffmem.data.pixels import Seen, Size, alterations, range_fault, scale_of, shown_size, treatments
from diffmem.errors import DataError, SizeError

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """All images of a dataset, uint8 [n, c, h, w], their classes, int64 [n] in 0..C-1, and what is to be said."""

    images: Pixels
    classes: Indices
    fingerprint: str = ""  # hash of the content of a user's own files, and of what it is taken to mean
    notes: tuple[str, ...] = ()  # what was left out, turned, composited, resized, with its count
    entry: str = ""  # its name in the cache
    largest: Size = (0, 0)  # of the images as they were
    enlarged: int = 0  # how many were
    scale: str = ""  # of floating-point values, 0..1 or -1..1


def read_images(
    pattern: str,
    *,
    resolution: int | Size | None,
    only: range | None = None,
    labels: str | None = None,
    enlarge: bool = True,
) -> Source:
    """Return the images of a folder (a class per sub-folder), a .zip, a .npz, a Parquet file, or a pattern of them.

    With `resolution` (pixels: a side, or width and height) every image is cropped to the centre that has its shape and
    resized by Lanczos; without, all must have one size. `only` keeps the Parquet rows of a range of labels, counted
    from its start; `labels` names their column. DataError names the file or row that cannot be used; without `enlarge`
    also images that are all smaller than `resolution`.
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    try:
        source = _source(list_files(pattern), Wanted(pattern, size, only, labels))
    except OSError as error:
        raise DataError(f"{error.filename or pattern}: cannot be read: {error.strerror or error}") from error
    if not enlarge:
        check_enlarged(source, pattern)
    return source


def check_enlarged(source: Source, name: str) -> None:
    """Raise SizeError if all images of a source were enlarged."""
    if source.enlarged == len(source.images):
        height, width = source.images.shape[2:]
        raise SizeError(
            f"{name}: its images have at most {shown_size(source.largest)} pixels, so {width}x{height} would enlarge "
            "them"
        )


class Wanted(NamedTuple):
    """How images are to be read."""

    pattern: str
    size: Size | None
    only: range | None
    labels: str | None

    @property
    def suffix(self) -> str:
        """Return what is added to the name of a cache entry, which holds them as they are wanted."""
        side = "native" if self.size is None else shown_size(self.size)
        rows = "" if self.only is None else f"-{self.only.start}-{self.only.stop}"
        column = "" if self.labels is None else f"-{hashlib.sha256(self.labels.encode()).hexdigest()[:8]}"
        return f"-{side}{rows}{column}"


class Made(NamedTuple):
    """What was decoded: its shape, classes, what was met, and what is said, besides what it is to mean."""

    shape: tuple[int, ...]
    classes: Sequence[int] | Indices
    seen: Seen
    hashes: list[tuple[int, bytes]] | None = None  # of the files that were read, bytes and SHA-256
    altered: Sequence[str] = ()  # what makes the files mean something else than they once did
    notes: Sequence[str] = ()


class Reader(NamedTuple):
    """One way to read files: where they are, their names there, and the function that decodes them."""

    top: str
    names: list[str]
    decode: Callable[[Path], Made]
    hashes_itself: bool = False  # `decode` hashes the files, but for the last ones, as it reads them

    @property
    def files(self) -> list[str]:
        """Return all files that are read."""
        return [os.path.join(self.top, name) for name in self.names]  # noqa: PTH118 - there may be a million


def _source(listing: Listing, wanted: Wanted) -> Source:
    """Return the images of a listing, whose kinds of files are read apart and then joined."""
    kinds = [Listing(listing.top, images=listing.images, is_folder=listing.is_folder)] if listing.images else []
    parquet = [name for name in listing.containers if suffix_of(name) == ".parquet"]
    kinds += [Listing(listing.top, containers=parquet)] if parquet else []
    kinds += [Listing(listing.top, containers=[name]) for name in listing.containers if name not in parquet]
    sources = [_read(_reader(kind, wanted), wanted) for kind in kinds]
    joined = sources[0] if len(sources) == 1 else _joined(sources, kinds, wanted)
    return replace(joined, notes=(*joined.notes, *listing.notes()))


def _reader(listing: Listing, wanted: Wanted) -> Reader:
    if wanted.labels is not None and not all(suffix_of(name) == ".parquet" for name in listing.containers or [""]):
        raise DataError(f"{wanted.pattern}: has no columns; P.labels = {wanted.labels!r} names one of a Parquet file")
    if listing.images:
        return _folder_reader(listing, wanted)
    files = [Path(listing.top, name) for name in listing.containers]
    if suffix_of(files[0].name) == ".parquet":
        top = os.path.commonpath([file.parent for file in files])
        names = [os.path.relpath(file, top) for file in files]
        return Reader(top, names, partial(_decode_parquet, files, wanted))
    decode = _decode_zip if suffix_of(files[0].name) == ".zip" else _decode_npz
    return Reader(str(files[0].parent), [files[0].name], partial(decode, files[0], wanted))


# --- what is kept --------------------------------------------------------------------------------------


def _read(reader: Reader, wanted: Wanted) -> Source:
    """Return images from the cache, or decode them and keep them there."""
    files = reader.files
    found = _kept(reader, files, wanted)
    if found is None:
        with cache.only_one(cache.place_of(files) + wanted.suffix):
            found = _kept(reader, files, wanted) or _decoded(reader, files, wanted)
    return found


def _kept(reader: Reader, files: list[str], wanted: Wanted) -> Source | None:
    """Return images from the cache, if their files still hold what they held; None if they are not there.

    Files are read again only where they may have changed, or have another name than when they were decoded.
    """
    stamps = cache.stamps_now(files)
    known = cache.known_content(files, stamps)
    if known and known.unchanged:
        return _opened(known.digest, wanted)
    if known or not reader.hashes_itself:
        content = _content(reader, map(_hashed, files))
        cache.record_content(files, content, stamps)
        return _opened(content, wanted)
    return None


def _decoded(reader: Reader, files: list[str], wanted: Wanted) -> Source:
    """Decode images and keep them."""
    stamps = cache.stamps_now(files)
    with cache.new_pixels() as pixels:
        made = reader.decode(pixels)
        if (made.seen.done["deep"] or made.seen.done["deep colours"]) and (
            fault := range_fault("whole numbers", made.seen.least, made.seen.most)
        ):
            raise DataError(f"{wanted.pattern}: {fault}")
        rest = files[len(made.hashes or ()) :]
        content = _content(reader, [*(made.hashes or ()), *map(_hashed, rest)])
        in_own_size = made.seen.smallest == made.seen.largest == wanted.size
        name = content + (wanted._replace(size=None) if in_own_size else wanted).suffix
        if cache.stamps_now(files).digest != stamps.digest:
            raise DataError(f"{wanted.pattern}: changed while it was read; run the same command again once it is whole")
        cache.complete(pixels, name, made.shape, _facts(made, content))
    cache.record_content(files, content, stamps)
    return _there(_opened(content, wanted), wanted)


def _there(source: Source | None, wanted: Wanted) -> Source:
    if source is None:
        raise DataError(f"{wanted.pattern}: its decoded images are gone from the cache; run the same command again")
    return source


def _hashed(file: str) -> tuple[int, bytes]:
    """Return the bytes and the SHA-256 of a file."""
    with open(file, "rb") as opened:  # noqa: PTH123 - a million times
        digest = hashlib.file_digest(opened, "sha256").digest()
        return opened.tell(), digest


def _content(reader: Reader, hashes: Iterable[tuple[int, bytes]]) -> str:
    """Return the hash of the names and contents of files."""
    digest = hashlib.sha256()
    for name, (length, hashed) in zip(reader.names, hashes, strict=True):
        digest.update(os.fsencode(name) + f"\0{length}\0".encode())
        digest.update(hashed)
    return digest.hexdigest()[:32]


def _facts(made: Made, content: str) -> dict[str, Any]:
    """Return what is kept of a collection beside its pixels."""
    channels, height, width = made.shape[1:]
    altered = sorted([*(kind for kind in ALTERS if made.seen.done[kind]), *made.altered])
    fingerprint = content
    if altered:  # the same files had another meaning before
        fingerprint = hashlib.sha256(json.dumps([content, cache.DECODER, altered]).encode()).hexdigest()[:32]
    notes = [*treatments(made.seen), *alterations(made.seen, channels, (width, height)), *made.notes]
    classes = zlib.compress(np.asarray(made.classes, dtype="<i4").tobytes())
    return {
        "classes": base64.b64encode(classes).decode(),
        "fingerprint": f"sha256:{fingerprint}",
        "notes": ["".join(letter if letter.isprintable() else "?" for letter in note) for note in notes],
        "largest": list(made.seen.largest),
        "enlarged": made.seen.done["enlarged"],
        "scale": scale_of(made.seen),
    }


ALTERS = ("turned", "transparent", "deep", "float")
"""What may be done to images that gives them other pixels than they had before it was done."""


def _opened(content: str, wanted: Wanted) -> Source | None:
    """Return a collection from the cache, also where it is kept in its own size, and that is the wanted one."""
    found = _entry(content + wanted.suffix)
    if found is None and wanted.size is not None:
        own = _entry(content + wanted._replace(size=None).suffix)
        return own if own is not None and own.images.shape[:1:-1] == wanted.size else None
    return found


def _entry(name: str) -> Source | None:
    entry = cache.opened(name)
    if entry is None:
        return None
    facts = entry.facts
    classes = np.frombuffer(zlib.decompress(base64.b64decode(facts["classes"])), dtype="<i4").astype(np.int64)
    return Source(
        entry.images,
        classes,
        facts["fingerprint"],
        tuple(facts["notes"]),
        name,
        (facts["largest"][0], facts["largest"][1]),
        facts["enlarged"],
        facts["scale"],
    )


# --- kinds of files ------------------------------------------------------------------------------------


def _folder_reader(listing: Listing, wanted: Wanted) -> Reader:
    labels = Path(listing.top, EDM_LABELS)
    extra = listing.is_folder and labels.is_file()
    placed = place(listing.images, labels.read_bytes() if extra else None, wanted.pattern)
    decode = partial(_decode_files, listing.top, placed, wanted)
    return Reader(listing.top, placed.names + [EDM_LABELS] * extra, decode, hashes_itself=True)


def _decode_files(top: str, placed: Placed, wanted: Wanted, pixels: Path) -> Made:
    files = [os.path.join(top, name) for name in placed.names]  # noqa: PTH118
    chunks, meaning, size = decode_all(
        lambda: map(Encoded, files), len(files), what=wanted.pattern, target=pixels, size=wanted.size
    )
    hashes = [each for chunk in chunks for each in chunk.hashes]
    shape = (len(files), meaning.channels, size[1], size[0])
    return Made(shape, placed.classes, seen_in(chunks), hashes, placed.altered, placed.notes)


def _decode_zip(file: Path, wanted: Wanted, pixels: Path) -> Made:
    with zipped(file) as archive:
        listing, left_out = names_in(archive, file)
        labels = archive.read(EDM_LABELS) if EDM_LABELS in archive.namelist() else None
    wrapping = wrapping_folder(listing)
    placed = place([name.removeprefix(wrapping) for name in listing], labels, str(file))
    chunks, meaning, size = decode_all(
        lambda: (Encoded(wrapping + name, archive=str(file)) for name in placed.names),
        len(placed.names),
        what=wanted.pattern,
        target=pixels,
        size=wanted.size,
    )
    shape = (len(placed.names), meaning.channels, size[1], size[0])
    return Made(shape, placed.classes, seen_in(chunks), None, placed.altered, [*placed.notes, *left_out_note(left_out)])


def _decode_npz(file: Path, wanted: Wanted, pixels: Path) -> Made:
    written = write_npz(file, pixels, wanted.size)
    return Made(written.shape, written.classes, written.seen, None, written.altered, written.notes)


def _decode_parquet(files: list[Path], wanted: Wanted, pixels: Path) -> Made:
    classes = array("q")
    with opened_parquet(files, wanted.only, wanted.labels) as table:
        count = len(table)
        if not count:
            raise DataError(f"{wanted.pattern}: no images in it")

        def encoded() -> Iterator[Encoded]:
            del classes[:]
            for row in table.rows():
                classes.append(row.label)
                yield Encoded(row.where, row.data)

        chunks, meaning, size = decode_all(encoded, count, what=wanted.pattern, target=pixels, size=wanted.size)
        shape = (count, meaning.channels, size[1], size[0])
        return Made(shape, list(classes), seen_in(chunks), None, table.altered, table.notes)


# --- several kinds, or several .npz --------------------------------------------------------------------


def _joined(sources: Sequence[Source], kinds: Sequence[Listing], wanted: Wanted) -> Source:
    """Return the images of several sources as one; grey ones become RGB beside RGB. DataError where sizes differ."""
    sizes = {source.images.shape[2:] for source in sources}
    if len(sizes) > 1:
        first, other = ((width, height) for height, width in sorted(sizes)[:2])
        raise SizeError(f"{wanted.pattern}: files of {shown_size(first)} and of {shown_size(other)} pixels")
    if len(scales := {source.scale for source in sources} - {""}) > 1:
        raise DataError(
            f"{wanted.pattern}: files of values in {' and in '.join(sorted(scales))}; save all in one scale"
        )
    channels = max(source.images.shape[1] for source in sources)
    count = sum(len(source.images) for source in sources)
    check_pixels(wanted.pattern, count, math.prod(next(iter(sizes))))
    content = hashlib.sha256(json.dumps([source.entry for source in sources]).encode()).hexdigest()[:32]
    found = _opened(content, wanted)
    if found is not None:
        return found
    only_npz = all(kind.containers and suffix_of(kind.containers[0]) == ".npz" for kind in kinds)
    classes = np.concatenate([source.classes for source in sources]) if only_npz else np.zeros(count, dtype=np.int64)
    names = [", ".join(kind.containers) or "image files" for kind in kinds]
    notes = [f"{name}: {note}" for name, source in zip(names, sources, strict=True) for note in source.notes]
    notes += [] if only_npz or not any(source.classes.any() for source in sources) else [NO_CLASSES]
    seen = Seen(images=count, largest=max((source.largest for source in sources), key=math.prod))
    seen.done["enlarged"] = sum(source.enlarged for source in sources)
    seen.done["grey"] = sum(len(source.images) for source in sources if source.images.shape[1] < channels)
    shape = (count, channels, *next(iter(sizes)))
    with cache.new_pixels() as pixels:
        with cache.writable(pixels.parent), pixels.open("wb") as file:
            for source in sources:
                for start in range(0, len(source.images), CHUNK):
                    part = source.images[start : start + CHUNK]
                    file.write(np.broadcast_to(part, (len(part), *shape[1:])).tobytes())
        made = Made(shape, classes, seen, altered=["joined", *(source.fingerprint for source in sources)], notes=notes)
        cache.complete(pixels, content + wanted.suffix, shape, _facts(made, content))
    return _there(_opened(content, wanted), wanted)


NO_CLASSES = "files of several kinds are read together, without their classes"


def image_files(pattern: str) -> list[str]:
    """Return the file of each image of a folder or a pattern, in the order of `read_images`; none for other
    collections."""
    listing = list_files(pattern)
    if listing.containers:
        return []
    reader = _folder_reader(listing, Wanted(pattern, None, None, None))
    return reader.files[: len(reader.names) - (reader.names[-1] == EDM_LABELS)]
