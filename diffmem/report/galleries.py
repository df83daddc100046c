"""The galleries of a page: generated images above what they are nearest to, and what is copied most."""

import base64
from collections.abc import Sequence
from typing import Any

from diffmem.analysis import CellWithSettings, by_position
from diffmem.cells import clock_of
from diffmem.errors import StoreError
from diffmem.measures import is_copy
from diffmem.store import UNREADABLE, CopyCount, ImagePair, StoredCell, StoredStudy, reduced

PAGE_BYTES = 9_800_000
"""What a page may have: galleries show as many pictures as are left room for by Plotly and the figures."""
MARKUP = 300
"""Bytes of the page around the pictures of one place in a gallery, at most."""
PICTURE_SIDE = 64
"""Pixels of a picture's side: larger ones are reduced, since a gallery shows them smaller still."""
MOST_COPIED = 6
"""Training images that are named for each cell as those copied most."""


def room_beside(page: str) -> int:
    """Return the bytes that galleries may take beside the rest of a page."""
    return PAGE_BYTES - len(page.encode())


def galleries(
    pairs: Sequence[ImagePair],
    cells: Sequence[CellWithSettings],
    copies: Sequence[CopyCount],
    study: StoredStudy,
    room: int,
) -> list[dict[str, Any]]:
    """Return, for each cell that has image pairs, its name, the pairs as data URIs, and what is copied most.

    `pairs` and `copies` are those of the store, at the study's threshold of distance / yardstick. All cells show
    equally many pictures, as fit into `room` bytes of the page, half of them of what is copied.
    """
    pairs_of, copies_of = by_position(pairs), by_position(copies)
    shown = [each for each in cells if each.cell.position in pairs_of]
    most = [copies_of[each.cell.position][:MOST_COPIED] for each in shown]
    own = [pairs_of[each.cell.position] for each in shown]
    half = room // 2
    copied, left = _fitting([[(row.picture or b"",) for row in rows] for rows in most], half)
    drawn, _ = _fitting([[(pair.generated, pair.nearest) for pair in rows] for rows in own], half + left)
    return [
        {
            "name": each.cell.name,
            "position": each.cell.position,
            "at": _named(each.cell, study, own[number][0].epoch),
            "ratio": each.last,
            "size": each.cell.size,
            "replicated": len(copies_of[each.cell.position]),
            "copied": [
                {"nearest": row.nearest, "copies": row.copies, "picture": picture}
                for row, (picture,) in zip(most[number], copied[number], strict=False)
            ],
            "stored": len(own[number]),
            "pairs": [
                {
                    "generated": generated,
                    "nearest": nearest,
                    "number": pair.number,
                    "distance_ratio": pair.distance / pair.yardstick if pair.yardstick else 1.0,
                    "memorized": is_copy(pair.distance, pair.yardstick, study.threshold),
                }
                for pair, (generated, nearest) in zip(own[number], drawn[number], strict=False)
            ],
        }
        for number, each in enumerate(shown)
    ]


def _named(cell: StoredCell, study: StoredStudy, known_by: int) -> str:
    """Return what a checkpoint is known by: `epoch 30`, or `step 64`."""
    clock = "step" if clock_of(cell.configuration) == "step" else study.kind.clock
    return f"{clock} {known_by}"


def _fitting(pictures: Sequence[Sequence[tuple[bytes, ...]]], room: int) -> tuple[list[list[tuple[str, ...]]], int]:
    """Return the first pictures of each cell as data URIs, equally many of each, one at least, and the room left."""
    fitting: list[list[tuple[str, ...]]] = [[] for _ in pictures]
    for rank in range(max(map(len, pictures), default=0)):
        having = [number for number, own in enumerate(pictures) if rank < len(own)]
        ranked = [tuple(data_uri(smaller(png)) for png in pictures[number][rank]) for number in having]
        size = sum(MARKUP + sum(map(len, uris)) for uris in ranked)
        if rank and size > room:
            break
        room -= size
        for number, uris in zip(having, ranked, strict=True):
            fitting[number].append(uris)
    return fitting, max(0, room)


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
