"""The galleries of a page: generated images above what they are nearest to, and what is copied most."""

import base64
import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffmem.analysis import CellWithSettings, by_position, in_words
from diffmem.cells import clock_of
from diffmem.errors import StoreError
from diffmem.measures import is_copy
from diffmem.store import UNREADABLE, CopyCount, ImagePair, Kind, NearImage, StoredCell, StoredStudy, reduced
from diffmem.text import counted

PAGE_BYTES = 9_800_000
"""What a page may have: galleries show as many pictures as are left room for by Plotly and the figures."""
MARKUP = 360
"""Bytes of the page around the pictures and the text of one place in a gallery, at most."""
PICTURE_SIDE = 64
"""Pixels of a picture's side: larger ones are reduced, since a gallery shows them smaller still."""
MOST_COPIED = 6
"""Training images that are named for each cell as those copied most."""


def room_beside(page: str) -> int:
    """Return the bytes that galleries may take beside the rest of a page."""
    return PAGE_BYTES - len(page.encode())


@dataclass(frozen=True)
class Copied:
    """A training image that is copied often."""

    nearest: int  # position in the training set
    copies: int
    picture: str  # data URI; empty where the store has none
    about: str


@dataclass(frozen=True)
class Pair:
    """A generated image and its two nearest training images."""

    sample: int
    called: str  # the generated image
    copy_of: str  # the mirrored, shifted or doubled image that it is a copy of; empty of others
    number: int  # position of the training image
    pictured: int  # of that in the picture
    generated: str  # data URIs
    nearest: str
    second: str  # empty where the store has none
    second_called: str
    about: str
    alike: float  # distance / yardstick
    copied: bool
    side: int  # pixels of the stored picture


@dataclass(frozen=True)
class Gallery:
    """Pictures of a cell's last checkpoint, the most similar first."""

    name: str
    curve: int  # which of the study's
    size: int
    position: int
    at: str  # `epoch 30`; empty of images of another tool
    ratio: float | None
    replicated: int
    copied: list[Copied]
    stored: int  # pairs that the store has
    samples: int  # generated images
    pairs: list[Pair]


def galleries(
    pairs: Sequence[ImagePair],
    cells: Sequence[CellWithSettings],
    copies: Sequence[CopyCount],
    near: Sequence[NearImage],
    study: StoredStudy,
    room: int,
) -> list[Gallery]:
    """Return, for each cell that has image pairs, the most similar of them as data URIs, and what is copied most.

    `pairs`, `copies` and `near` are those of the store, at the study's threshold of distance / yardstick. All cells
    show equally many pictures, as fit into `room` bytes of the page, half of them of what is copied; large ones are
    reduced, but for the most similar ones that there is still room for.
    """
    pairs_of, copies_of = by_position(sorted(pairs, key=_alike)), by_position(copies)
    about = defaultdict(str, {(each.position, each.nearest): _about(each, study) for each in near})
    shown = [each for each in cells if each.cell.position in pairs_of]
    most = [copies_of[each.cell.position][:MOST_COPIED] for each in shown]
    own = [pairs_of[each.cell.position] for each in shown]
    half = room // 2
    copied, left = _fitting(
        [[_Place((row.picture or b"",), [about[row.position, row.nearest]]) for row in rows] for rows in most], half
    )
    paired = [[_place(pair, about) for pair in rows] for rows in own]
    reduced, left = _fitting(paired, half + left)
    drawn = _in_full(paired, reduced, left)
    curves = list(dict.fromkeys(each.cell.curve for each in cells))
    return [
        Gallery(
            in_words(each.cell.name),
            curves.index(each.cell.curve),
            each.cell.size,
            each.cell.position,
            _named(each.cell, study, own[number][0].epoch),
            each.last,
            len(copies_of[each.cell.position]),
            [
                Copied(row.nearest, row.copies, picture, about[row.position, row.nearest])
                for row, (picture,) in zip(most[number], copied[number], strict=False)
            ],
            len(own[number]),
            each.samples or 0,
            [
                _pair(pair, place.texts, pictures, study)
                for pair, place, pictures in zip(own[number], paired[number], drawn[number], strict=False)
            ],
        )
        for number, each in enumerate(shown)
    ]


def _alike(pair: ImagePair) -> float:
    return pair.distance / pair.yardstick if pair.yardstick else 1.0


def _place(pair: ImagePair, about: Mapping[tuple[int, int], str]) -> "_Place":
    """Return the pictures of a pair, and what the three images are called or what is known of them."""
    called = f"Generated image {pair.sample}" if pair.name is None else pair.name
    nearest = about[pair.position, pair.number]
    if pair.pictured != pair.number:
        nearest += f"; pictured is the nearest one in pixels, number {pair.pictured}"
    second = "" if pair.second is None else f"second nearest in pixels, number {pair.second_number}"
    second += f" ({pair.second_image})" if pair.second_image else ""
    return _Place((pair.generated, pair.nearest, pair.second or b""), (called, pair.copy_of or "", nearest, second))


def _pair(pair: ImagePair, texts: Sequence[str], pictures: tuple[str, ...], study: StoredStudy) -> Pair:
    copied = bool(is_copy(pair.distance, pair.yardstick, study.threshold))
    side = max(_sides(pair.generated))
    called, copy_of, about, second_called = texts
    generated, nearest, second = pictures
    shown = generated, nearest, second, second_called
    return Pair(pair.sample, called, copy_of, pair.number, pair.pictured, *shown, about, _alike(pair), copied, side)


def _sides(png: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG, which its first chunk says."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def _about(found: NearImage, study: StoredStudy) -> str:
    """Say what is known of a training image, and what was generated near it."""
    name = f"Training image {found.nearest}" + (f" ({found.image})" if found.image else "")
    near = f"nearest to {counted(found.near, 'generated image')}, {found.copies} of them {study.measure.copied}"
    said = [f"{name}: {near}"]
    if found.local_distance is not None:
        said.append(f"mean distance to its 5 nearest others {found.local_distance:.1f}")
    if (found.alike or 1) > 1:
        said.append(f"one of {found.alike} training images that are nearly identical")
    return "; ".join(said)


def _named(cell: StoredCell, study: StoredStudy, known_by: int) -> str:
    """Return what a checkpoint is known by, `epoch 30` or `step 64`; images of another tool have none."""
    if study.kind is Kind.IMAGES:
        return ""
    clock = "step" if clock_of(cell.configuration) == "step" else study.kind.clock
    return f"{clock} {known_by}"


class _Place(NamedTuple):
    """One place in a gallery: its pictures, as PNG, and what it says of the images."""

    pictures: tuple[bytes, ...]
    texts: Sequence[str]


def _fitting(places: Sequence[Sequence[_Place]], room: int) -> tuple[list[list[tuple[str, ...]]], int]:
    """Return the first pictures of each cell as data URIs, equally many of each, one at least, and the room left."""
    fitting: list[list[tuple[str, ...]]] = [[] for _ in places]
    for rank in range(max(map(len, places), default=0)):
        ranked = {
            number: tuple(data_uri(smaller(png)) for png in own[rank].pictures)
            for number, own in enumerate(places)
            if rank < len(own)
        }
        said = sum(len(html.escape(text).encode()) for number in ranked for text in places[number][rank].texts)
        size = said + sum(MARKUP + sum(map(len, uris)) for uris in ranked.values())
        if rank and size > room:
            break
        room -= size
        for number, uris in ranked.items():
            fitting[number].append(uris)
    return fitting, max(0, room)


def _in_full(
    places: Sequence[Sequence[_Place]], reduced: Sequence[Sequence[tuple[str, ...]]], room: int
) -> list[list[tuple[str, ...]]]:
    """Return the pictures, with the first ones of each cell at full size if the page has room for them."""
    found = [list(pictures) for pictures in reduced]
    for rank in range(max(map(len, found), default=0)):
        for own, pictures in zip(places, found, strict=True):
            if rank < len(pictures) and max(_sides(own[rank].pictures[0])) > PICTURE_SIDE:
                whole = tuple(data_uri(png) for png in own[rank].pictures)
                room -= sum(map(len, whole)) - sum(map(len, pictures[rank]))
                if room < 0:
                    return found
                pictures[rank] = whole
    return found


def smaller(png: bytes) -> bytes:
    """Return a picture with at most PICTURE_SIDE pixels a side; none of none; StoreError if it is no PNG."""
    try:
        return reduced(png, PICTURE_SIDE) if png else png
    except UNREADABLE as error:
        raise StoreError(
            "a picture in the store is not a PNG that can be read; `diffmem store check` names its cell"
        ) from error


def data_uri(png: bytes) -> str:
    """Return a picture as the address of itself; empty where there is none."""
    return "data:image/png;base64," + base64.b64encode(png).decode() if png else ""
