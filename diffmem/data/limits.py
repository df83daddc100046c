"""What images may ask for: pixels in all, bytes of one image, class numbers; files that ask for more are refused."""

import os
import reprlib
from typing import Any

from diffmem.errors import DataError
from diffmem.text import with_unit

MOST_PIXELS = 5 * 10**9
"""Pixels of one collection, 15 GB as RGB; it is mapped into memory, not held there."""
RGB = 3
"""Bytes per pixel at most."""
COPIES = 4
"""The share of the memory that may be filled at once: what is read is copied."""
LEAST_PIXELS = 64
"""What an image counts as at least: a label and an entry in a list take memory too."""
MOST_ENCODED = 10**9
"""Bytes of one encoded image."""


def most_pixels() -> int:
    """Return how many pixels a collection may have: DIFFMEM_MAX_PIXELS, or 5 * 10^9."""
    given = os.environ.get("DIFFMEM_MAX_PIXELS")
    if not given:
        return MOST_PIXELS
    if not (given.isascii() and given.isdecimal() and len(given) < 20 and int(given) > 0):
        raise DataError(f"DIFFMEM_MAX_PIXELS: must be a whole number of pixels, not {reprlib.repr(given)}")
    return int(given)


def most_bytes_at_once() -> int:
    """Return how many bytes may be held at once: as DIFFMEM_MAX_PIXELS allows, or what this machine has room for."""
    if os.environ.get("DIFFMEM_MAX_PIXELS"):
        return RGB * most_pixels()
    return min(RGB * MOST_PIXELS, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // COPIES)


def check_pixels(where: object, images: int, each: int) -> None:
    """Raise DataError if this many images of `each` pixels are more than a collection may have."""
    most = most_pixels()
    if images * max(each, LEAST_PIXELS) > most:
        raise DataError(
            f"{where}: {images:,} x {each:,} pixels or more, but a collection may have {most:,} "
            f"({with_unit(RGB * most)}B as RGB); choose fewer or smaller images, or raise the limit with --max-pixels"
        )


def class_number(label: Any, where: str) -> int:
    """Return the label of an image if it is a class number; raise DataError if not."""
    from diffmem.cells import MOST_CLASSES

    if label is None:
        raise DataError(f"{where}: no label")
    if not isinstance(label, int) or not 0 <= label < MOST_CLASSES:
        raise DataError(
            f"{where}: the label is {first_line(label)}, but class numbers are whole, from 0 to {MOST_CLASSES - 1}"
        )
    return label


def first_line(said: object) -> str:
    """Return the first line of what a library says about a file, without what a terminal would act on."""
    line = next(iter(str(said).splitlines()), "") or type(said).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line[:300])
