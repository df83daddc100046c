"""Images of a .npz, whatever its arrays are called and whatever type they have, as uint8 in one file."""

import math
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.cells import MOST_CLASSES
from diffmem.data import npz
from diffmem.data.cache import writable
from diffmem.data.limits import check_pixels, class_number, first_line, most_bytes_at_once
from diffmem.data.pixels import Seen, Size, changes, eight_bits, range_fault, resized
from diffmem.errors import DataError
from diffmem.text import with_unit

IMAGES, LABELS = ("images", "arr_0"), ("labels", "label", "arr_1")
"""Names of the arrays, one's own and those of guided-diffusion's samples; the first that there is."""

MOST_ARRAYS = 100
"""Arrays of a .npz that are looked at."""


class Written(NamedTuple):
    """The images of a .npz that were written: their shape [n, c, h, w], classes, what was met, and what is said."""

    shape: tuple[int, int, int, int]
    classes: npt.NDArray[np.int64]
    seen: Seen
    altered: list[str]  # what makes them mean something else than they once did
    notes: list[str]


def write_npz(path: Path, target: Path, size: Size | None) -> Written:
    """Write the images of a .npz to `target` as uint8 [n, c, h, w], cropped and resized to `size`; DataError."""
    with npz.opened(path) as file:
        claim = next((found for name in IMAGES if (found := file.claim(name))), None)
        if claim is None or len(claim.shape) not in (3, 4) or claim.dtype.kind not in "buif":
            held = {name: str(file.claim(name)) for name in file.names[:5]}
            raise DataError(f"{path}: needs an array `images` of [n, h, w], [n, h, w, c] or [n, c, h, w]; has {held}")
        count, channels, height, width = _channels_first(claim.shape, path)
        if 0 in claim.shape:
            raise DataError(f"{path}: no images in it; `{claim.name}` is {list(claim.shape)}")
        wide, high = size or (width, height)
        check_pixels(path, count, max(height * width, wide * high))
        if claim.fortran and claim.nbytes > most_bytes_at_once():
            raise DataError(
                f"{path}: `{claim.name}` has {with_unit(claim.nbytes)}B in Fortran's order, which are read at once, "
                f"but at most {with_unit(most_bytes_at_once())}B may be; save it in C's order, or raise the limit with "
                "--max-pixels"
            )
        labels, name = _labels(file, count, path)
        others = [] if name else _unread_labels(file, count)
        seen = _seen(count, (width, height), size)
        least, most = _range(file, claim, seen, path)
        with target.open("wb") as written:
            for block in file.blocks(claim):
                images = eight_bits(block, least, most)
                last = len(claim.shape) == 4 and claim.shape[1:] != (channels, height, width)
                images = images.transpose(0, 3, 1, 2) if last else images.reshape(-1, channels, height, width)
                content = resized(np.ascontiguousarray(images), (wide, high)).tobytes()
                with writable(target.parent):
                    written.write(content)
    altered = [] if name in ("labels", "") else [f"labels {name}"]
    notes = [f"classes are those of the array {name}"] * bool(altered) + others
    return Written((count, channels, high, wide), labels, seen, altered, notes)


def _seen(count: int, old: Size, size: Size | None) -> Seen:
    seen = Seen(images=count, smallest=old, largest=old)
    seen.done.update(dict.fromkeys(changes(old, size or old), count))
    return seen


def _range(file: npz.Npz, claim: npz.Claim, seen: Seen, path: Path) -> tuple[float, float]:
    """Return the least and the most value of an array that is not uint8; DataError where they mean nothing."""
    if claim.dtype == np.uint8 or claim.dtype == np.bool_:
        return 0.0, 255.0
    least, most = math.inf, -math.inf
    for block in file.blocks(claim):
        least, most = float(np.minimum(least, block.min())), float(np.maximum(most, block.max()))
    if fault := range_fault(claim.dtype, least, most):
        raise DataError(f"{path}: {fault}")
    seen.least, seen.most = least, most
    seen.done["float" if claim.dtype.kind == "f" else "deep"] = seen.images
    return least, most


def _labels(file: npz.Npz, count: int, path: Path) -> tuple[npt.NDArray[np.int64], str]:
    """Return the labels and the name of their array; zeros if there is none."""
    claim = next((found for name in LABELS if (found := file.claim(name))), None)
    if claim is None:
        return np.zeros(count, dtype=np.int64), ""
    if claim.shape != (count,) or claim.dtype.kind not in "iu":
        raise DataError(f"{path}: `{claim.name}` must be {count} whole numbers from 0, not {claim}")
    labels = file.read(claim)
    for row in np.flatnonzero((labels < 0) | (labels >= MOST_CLASSES))[:1].tolist():
        class_number(int(labels[row]), f"{path}, row {row}")
    return labels.astype(np.int64), claim.name


def _unread_labels(file: npz.Npz, count: int) -> list[str]:
    """Return in a sentence which arrays may be labels, but have no name of one."""
    claims = []
    for name in file.names[:MOST_ARRAYS]:
        with suppress(ValueError, OSError, EOFError, zlib.error):  # what is not read may be damaged
            claims += [file.claim(name)]
    found = [
        first_line(claim.name) for claim in claims if claim and claim.shape == (count,) and claim.dtype.kind in "iub"
    ]
    if not found:
        return []
    return [f"no classes: no array is called {', '.join(LABELS)} (it has {', '.join(found)})"]


def _channels_first(shape: tuple[int, ...], path: Path) -> tuple[int, int, int, int]:
    """Return count, channels, height and width of images, wherever they have their channels."""
    if len(shape) == 3:
        return shape[0], 1, shape[1], shape[2]
    if shape[1] in (1, 3):
        return shape[0], shape[1], shape[2], shape[3]
    if shape[3] in (1, 3):
        return shape[0], shape[3], shape[1], shape[2]
    raise DataError(f"{path}: `images` has neither 1 nor 3 channels: {list(shape)}")
