"""What one image file means: its pixels as uint8, grey or RGB, as viewers show it; the rest is counted and said."""

import io
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diffmem.data.limits import first_line
from diffmem.errors import DataError

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height, in pixels."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""What image files may be; Pillow knows others, some of which run programs or have never met a hostile file."""
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "jp2", "j2k", "jpf", "bmp", "dib", "gif", "webp"),
        *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif", "qoi", "tga"),
    )
)
TGA = "TGA"
"""A format without a mark of its own: whatever is damaged may look like it, so that only its suffix tells it."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, WHITE_IS_0 = 258, 262, 0
"""Tags of a TIFF."""

GREY = frozenset({"1", "L"})
DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Grey modes whose values are not 0..255."""


class Meaning(NamedTuple):
    """What can only be told of all images of a collection together."""

    channels: int = 1  # 3 if any is in colour
    signed: bool = False  # floating-point values are -1..1, since some are negative


class OtherMeaning(Exception):
    """An image shows that a collection means something else than was thought."""

    def __init__(self, meaning: Meaning) -> None:
        super().__init__(meaning)
        self.meaning = meaning


@dataclass
class Seen:
    """What was met in images and done to them, in counts; `+` puts together what was met in two parts."""

    images: int = 0
    done: Counter[str] = field(default_factory=Counter)
    least: float = math.inf  # of values beyond 8 bits, whole or floating-point
    most: float = -math.inf
    smallest: Size = (0, 0)  # before resizing, by area
    largest: Size = (0, 0)

    def __add__(self, other: Self) -> Self:
        sizes = [size for each in (self, other) if each.images for size in (each.smallest, each.largest)]
        return type(self)(
            self.images + other.images,
            self.done + other.done,
            min(self.least, other.least),
            max(self.most, other.most),
            min(sizes, key=_area, default=(0, 0)),
            max(sizes, key=_area, default=(0, 0)),
        )

    def add_size(self, size: Size) -> None:
        """Take note of another image of this size."""
        self.smallest = min(self.smallest, size, key=_area) if self.images else size
        self.largest = max(self.largest, size, key=_area)
        self.images += 1

    def add_values(self, values: npt.NDArray[Any]) -> None:
        """Take note of values that are not 8 bits wide."""
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))


def _area(size: Size) -> int:
    return size[0] * size[1]


def shown_size(size: Size) -> str:
    """Return a size in words."""
    return f"{size[0]}x{size[1]}"


# --- one image -----------------------------------------------------------------------------------------


def decode(data: bytes, where: str, meaning: Meaning, size: Size | None, seen: Seen) -> Pixels:
    """Return an encoded image as uint8 [c, h, w], cropped and resized to `size`; DataError if it is none.

    Raises OtherMeaning where it does not go with `meaning`.
    """
    try:
        formats = (*FORMATS, TGA) if where.lower().endswith(".tga") else FORMATS
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            image = plain(opened, where, meaning, seen)
    except (DataError, OtherMeaning):
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: not an image that can be read (not {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises errors of many kinds on damaged images
        raise DataError(f"{where}: not an image that can be read ({first_line(error)})") from error
    seen.add_size(image.size)
    if size is not None:
        seen.done.update(changes(image.size, size))
        image = crop_and_resize(image, size)
    array = np.asarray(image)
    if array.ndim == 2:
        seen.done["grey"] += 1
        return np.broadcast_to(array, (meaning.channels, *array.shape))
    return array.transpose(2, 0, 1)


def plain(image: Image.Image, where: str, meaning: Meaning, seen: Seen) -> Image.Image:
    """Return an image as L or RGB: its only frame, upright, without transparency, in 8 bits; what was done is noted in
    `seen`. Raises OtherMeaning where it does not go with `meaning`, DataError where it means nothing."""
    if image.format == "MPO":
        seen.done["first"] += 1
    elif image.format in ("GIF", "PNG", "TIFF", "WEBP", "AVIF") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{where}: holds {frames} frames or pages; save each as an image of its own")
    deep = image.mode not in DEEP and any(";16" in mode for mode in _raw_modes(image))
    image.load()
    if deep:  # of each channel, of which Pillow has kept the upper 8
        seen.done["deep colours"] += 1
        seen.add_values((np.asarray(image.getextrema(), dtype=np.int64) << 8) + [0, 255])
        if isinstance(hole := image.info.get("transparency"), tuple):
            image.info["transparency"] = tuple(value >> 8 for value in hole)
    image = _opaque(_upright(image, seen), seen)
    if image.mode in DEEP:
        values = _as_16_bits(np.asarray(image), image)
        grey = _eight_bits_of(values, where, meaning, seen)
        if (hole := values == image.info.get("transparency")).any():
            grey[hole] = 255
            seen.done["transparent"] += 1
        return Image.fromarray(grey)
    if image.mode in GREY:
        return image if image.mode == "L" else image.convert("L")
    if meaning.channels == 1:
        raise OtherMeaning(meaning._replace(channels=3))
    return image if image.mode == "RGB" else image.convert("RGB")


def _raw_modes(image: Image.Image) -> list[str]:
    """Return how the pixels of an image that is not loaded yet are kept in its file."""
    arguments = [tile.args for tile in getattr(image, "tile", ())]
    return [
        part for each in arguments for part in (each if isinstance(each, tuple) else (each,)) if isinstance(part, str)
    ]


def _as_16_bits(values: npt.NDArray[Any], image: Image.Image) -> npt.NDArray[Any]:
    """Return the values of a deep image as they are meant, where a TIFF has 12 bits or its white is 0, which Pillow
    leaves as it is."""
    tags = getattr(image, "tag_v2", {})
    if not image.mode.startswith("I;16"):
        return values
    if tags.get(BITS) in (12, (12,)):
        values = values << 4
    return (2**16 - 1) - values if tags.get(PHOTOMETRIC) == WHITE_IS_0 else values


def _upright(image: Image.Image, seen: Seen) -> Image.Image:
    """Return an image turned as its EXIF orientation says."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - tags that cannot be read turn nothing
        return image
    if turn is None:
        return image
    seen.done["turned"] += 1
    return image.transpose(turn)


def _opaque(image: Image.Image, seen: Seen) -> Image.Image:
    """Return an image without transparency: on white, where it has any."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if not has_alpha or image.mode in DEEP:
        return image
    grey = image.mode in ("L", "LA", "La", "1")
    full = image.convert("RGBA")
    alpha = full.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return full.convert("L" if grey else "RGB")
    seen.done["transparent"] += 1
    white = Image.new("RGBA", full.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, full).convert("L" if grey else "RGB")


def _eight_bits_of(values: npt.NDArray[Any], where: str, meaning: Meaning, seen: Seen) -> Pixels:
    seen.add_values(values)
    seen.done["float" if values.dtype.kind == "f" else "deep"] += 1
    least, most = float(values.min()), float(values.max())
    if values.dtype.kind != "f":
        if not 0 <= least <= most < 2**16:
            raise DataError(f"{where}: {range_fault(values.dtype, least, most)}")
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    if not -1 <= least <= most <= 1:
        raise DataError(f"{where}: {range_fault(values.dtype, least, most)}")
    if least < 0 and not meaning.signed:
        raise OtherMeaning(meaning._replace(signed=True))
    return from_floats(values, signed=meaning.signed)


# --- values that are not 8 bits wide -------------------------------------------------------------------


def from_floats(values: npt.NDArray[Any], *, signed: bool) -> Pixels:
    """Return values of 0..1, or with `signed` of -1..1, on the 0..255 scale."""
    scaled = (values.astype(np.float64) + 1) * 127.5 if signed else values.astype(np.float64) * 255
    return np.rint(scaled).astype(np.uint8)


def range_fault(dtype: object, least: float, most: float) -> str:
    """Return what is wrong with values beyond 8 bits, by their range; empty if it is one that is understood.

    Whole numbers must be those of 16 bits, some of them above 255; floating-point ones in 0..1 or -1..1.
    """
    name = str(dtype).removeprefix("torch.")
    if not math.isfinite(least) or not math.isfinite(most):
        return f"some of the {name} values are NaN or infinite; save images of finite values"
    if name.startswith(("float", "bfloat")):
        fine = -1 <= least <= most <= 1
        wanted = "0..1 or -1..1; clip or scale them first"
    else:
        fine = least >= 0 and 255 < most < 2**16
        wanted = "0..65535 with some above 255; save values of 0..255 as uint8"
    return "" if fine else f"the values are {name} in {least:g}..{most:g}, but must be in {wanted}"


def eight_bits(values: npt.NDArray[Any], least: float, most: float) -> Pixels:
    """Return an array of any type as uint8, by the range of all that it is a part of; DataError, where `range_fault`
    says so."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if fault := range_fault(values.dtype, least, most):
        raise DataError(fault)
    if values.dtype.kind == "f":
        return from_floats(values, signed=least < 0)
    return (values.astype(np.uint16) >> 8).astype(np.uint8)


# --- sizes ---------------------------------------------------------------------------------------------


def changes(old: Size, new: Size) -> list[str]:
    """Return what `crop_and_resize` does to an image: cropped, resized, enlarged."""
    box = _centre(old, new)
    inner = (box[2] - box[0], box[3] - box[1])
    kinds = ["cropped"] * (inner != old) + ["resized"] * (inner != new)
    return kinds + ["enlarged"] * (inner[0] < new[0] or inner[1] < new[1])


def crop_and_resize(image: Image.Image, size: Size) -> Image.Image:
    """Return the centre of an image, as much as has the shape of `size`, by Lanczos resampling where they differ."""
    box = _centre(image.size, size)
    inner = image if box == (0, 0, *image.size) else image.crop(box)
    return inner if inner.size == size else inner.resize(size, Image.Resampling.LANCZOS)


def _centre(old: Size, new: Size) -> tuple[int, int, int, int]:
    """Return the largest box in the middle that has the sides' ratio of `new`, to whole pixels."""
    width = min(old[0], max(1, round(old[1] * new[0] / new[1])))
    height = min(old[1], max(1, round(old[0] * new[1] / new[0])))
    left, top = (old[0] - width) // 2, (old[1] - height) // 2
    return left, top, left + width, top + height


def resized(images: Pixels, size: Size) -> Pixels:
    """Return uint8 images [n, c, h, w] at `size`, as `crop_and_resize` does each."""
    if images.shape[:1:-1] == size:
        return images
    small = np.empty((*images.shape[:2], size[1], size[0]), dtype=np.uint8)
    for plane in np.ndindex(images.shape[:2]):
        small[plane] = crop_and_resize(Image.fromarray(images[plane]), size)
    return small


# --- what is said --------------------------------------------------------------------------------------

SENTENCES = {
    "turned": "were turned as their EXIF orientation says",
    "transparent": "are transparent; they were composited on white",
    "first": "hold further pictures; the first one, which viewers show, was taken",
}
"""What is said of images that something was done to, whatever size they are read at."""


def treatments(seen: Seen) -> list[str]:
    """Return in sentences what was done to images that gives them another meaning than their bare values have."""
    said = [f"{_of(seen.done[kind], seen)} {words}" for kind, words in SENTENCES.items() if seen.done[kind]]
    if count := seen.done["deep"] + seen.done["deep colours"]:
        values = f"values {seen.least:,.0f} to {seen.most:,.0f} of 65,535"
        said.append(f"{_of(count, seen)} have 16 bits a pixel ({values}); the upper 8 were taken")
    if count := seen.done["float"]:
        how = "(x + 1) * 127.5" if seen.least < 0 else "x * 255"
        said.append(f"{_of(count, seen)} have floating-point values in {scale_of(seen)}, read as {how}")
    return said


def scale_of(seen: Seen) -> str:
    """Return the scale of floating-point images, 0..1 or -1..1; empty for other images."""
    return "" if not seen.done["float"] else "-1..1" if seen.least < 0 else "0..1"


def alterations(seen: Seen, channels: int, size: Size) -> list[str]:
    """Return in sentences what was done to images to make them alike."""
    said = []
    if channels == 3 and (count := seen.done["grey"]):
        said.append(f"{_of(count, seen)} are grey; they were repeated as RGB")
    touched = {kind: seen.done[kind] for kind in ("cropped", "resized", "enlarged") if seen.done[kind]}
    if touched:
        old = " to ".join(dict.fromkeys(map(shown_size, (seen.smallest, seen.largest))))
        done = ", ".join(f"{_of(count, seen)} were {kind}" for kind, count in touched.items())
        said.append(f"{done}: they were {old}, and are read at {shown_size(size)} (centre crop, Lanczos)")
    return said


def _of(count: int, seen: Seen) -> str:
    return f"all {count:,} images" if count == seen.images else f"{count:,} of {seen.images:,} images"


def unlike_scales(generated: Pixels, training: Pixels) -> str:
    """Return in a sentence that generated or training images have 0 and 1 only; empty where both have, or none."""
    alone = [is_binary(images) for images in (generated, training)]
    if alone[0] == alone[1]:
        return ""
    which, others = ("generated", "training") if alone[0] else ("training", "generated")
    return f"{which} images have values of 0 and 1 only, unlike the {others} images: a mask, or a wrong scale?"


def is_binary(images: Pixels) -> bool:
    """Return whether all values are 0 or 1."""
    return all(images[start : start + AT_ONCE].max() <= 1 for start in range(0, len(images), AT_ONCE))


AT_ONCE = 1000
"""Images that are looked at together."""


def total(parts: Iterable[Seen]) -> Seen:
    """Return what was met in all parts."""
    return sum(parts, Seen())
