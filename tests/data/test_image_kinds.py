"""Images as users have them: each kind is read as it is meant, compared rightly, and what was done to it is said."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageCms, ImageOps
from torch.utils.data import DataLoader, TensorDataset

import diffmem
from diffmem.cli import main
from diffmem.data.cache import cache_folder
from diffmem.data.collection import read_images
from diffmem.data.training_sets import groups_in, load_source
from diffmem.errors import DataError, ImageWarning, StoreError, StudyError
from diffmem.external.foreign import study_name
from diffmem.external.monitor import Monitor
from diffmem.external.score import score_images
from diffmem.external.scored import Score
from diffmem.store.store import Store
from diffmem.study.study import Study

COUNT = 12
"""Images of a training set."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DIFFMEM_MAX_PIXELS", raising=False)


def noise(count: int = COUNT, *, width: int = 8, height: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return random uint8 images [n, h, w, 3] or [n, h, w], no two of which are alike."""
    shape = (count, height, width, 3) if channels == 3 else (count, height, width)
    images = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    images[:, 0, :2] = np.reshape([0, 255], (2, *[1] * (images.ndim - 3)))  # the whole range, in each
    return images


def as_rows(images: np.ndarray) -> np.ndarray:
    """Return uint8 images of [n, h, w], [n, h, w, 3] or [n, 1, h, w] as float64 [n, values], grey as it is."""
    return images.reshape(len(images), -1).astype(np.float64)


def brute_force(generated: np.ndarray, training: np.ndarray) -> float:
    """Return the memorization ratio of images of one shape, by all their distances in float64."""
    x, y = as_rows(generated), as_rows(training)
    distances = np.sort(np.sqrt(np.square(x[:, None] - y[None]).sum(axis=2)), axis=1)
    return float(np.mean(distances[:, 0] < distances[:, 1] / 3))


def save(folder: str | Path, images: Sequence[np.ndarray | Image.Image], suffix: str = ".png", **how: Any) -> str:
    """Save images under their numbers and return their folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(Path(folder) / f"{number:03d}{suffix}", **how)
    return str(folder)


def score(images: str = "samples", against: str = "training", store: str = "s.duckdb", **how: Any) -> Score:
    place = Store(Path(store))
    tiny.make(place)
    return score_images(images, against, place, **how)


class Compared(NamedTuple):
    """What a score would be, by images as they are read for it and all their distances."""

    size: int
    ratio: float
    notes: list[str]


def compared(images: str = "samples", against: str = "training") -> Compared:
    """Return what a score would be, without a store."""
    generated = read_images(images, resolution=None)
    training = load_source(against, generated.images.shape[:1:-1], None)
    channels = max(generated.images.shape[1], training.images.shape[1])
    pixels = [
        np.broadcast_to(each, (len(each), channels, *each.shape[2:])) for each in (generated.images, training.images)
    ]
    notes = [f"{against}: {note}" for note in training.notes]
    return Compared(len(training.images), brute_force(*pixels), notes)


def command(*arguments: str | Path, code: int = 0) -> Result:
    """Run diffmem in this process; it ends with `code`, and never with a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    return result


def refusal(pattern: str, resolution: int | None = None, **how: Any) -> str:
    """Return the one line that says why images cannot be read."""
    with pytest.raises(DataError) as caught:
        read_images(pattern, resolution=resolution, **how)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def said(notes: Sequence[str], *words: str) -> bool:
    """Tell whether one of some notes has all of these words."""
    return any(all(word in note for word in words) for note in notes)


# --- pixels: more than 8 bits --------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: np.ndarray, *more: bytes) -> bytes:
    """Return 16-bit values [h, w] or [h, w, c] as PNG: grey, grey and alpha, RGB or RGBA; Pillow cannot write all."""
    channels = values.shape[2] if values.ndim == 3 else 1
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").reshape(len(values), -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def deep_tiff(values: np.ndarray, order: str, *, white_is_zero: bool = False, bits: int = 16) -> bytes:
    """Return values of 16 or 12 bits, [h, w] or [h, w, 3], as TIFF, `<` or `>`."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(f"{order}u2").tobytes()
    if bits == 12:  # two values in three bytes
        pairs = [first << 12 | second for first, second in values.reshape(-1, 2).tolist()]
        pixels = b"".join(pair.to_bytes(3, "big") for pair in pairs)
    colours = 2 if channels == 3 else 0 if white_is_zero else 1
    tags = [(256, width), (257, height), (259, 1), (262, colours), (273, 0), (277, channels)]
    tags += [(278, height), (279, len(pixels)), (284, 1)]
    depths = struct.pack(f"{order}{channels}H", *[bits] * channels)
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, start + 8 if tag == 273 else value) for tag, value in tags]
    shown = depths.ljust(4, b"\0") if channels == 1 else struct.pack(f"{order}I", start)
    entries.insert(2, struct.pack(f"{order}HHI", 258, 3, channels) + shown)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + depths.ljust(8, b"\0") + pixels


def encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **how)
    return buffer.getvalue()


def write_files(folder: str, files: Sequence[bytes], suffix: str) -> None:
    Path(folder).mkdir(parents=True)
    for number, content in enumerate(files):
        (Path(folder) / f"{number:03d}{suffix}").write_bytes(content)


DEEP: dict[str, tuple[int, str, Callable[[np.ndarray], bytes]]] = {
    "grey PNG": (1, ".png", deep_png),
    "RGB PNG": (3, ".png", deep_png),
    "grey TIFF": (1, ".tif", lambda values: deep_tiff(values, "<")),
    "grey TIFF, big-endian": (1, ".tif", lambda values: deep_tiff(values, ">")),
    "RGB TIFF": (3, ".tif", lambda values: deep_tiff(values, "<")),
    "RGB TIFF, big-endian": (3, ".tif", lambda values: deep_tiff(values, ">")),
    "TIFF of 32-bit numbers": (1, ".tif", lambda values: encoded(Image.fromarray(values.astype(np.int32)), "TIFF")),
    "grey JPEG 2000": (1, ".jp2", lambda values: encoded(Image.fromarray(values), "JPEG2000")),
    "PGM": (1, ".pgm", lambda values: b"P5 8 8 65535\n" + values.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", DEEP)
def test_images_of_16_bits_are_copied_by_their_upper_8(kind: str) -> None:
    channels, suffix, encode = DEEP[kind]
    images = noise(channels=channels)
    write_files("training", [encode(image.astype(np.uint16) * 257) for image in images], suffix)
    save("samples", images)
    result = compared()
    assert result.ratio == brute_force(images, images) == 1
    assert said(result.notes, "training: all 12 images have 16 bits a pixel (values ", "of 65,535); the upper 8 were")


@pytest.mark.parametrize("kind", [kind for kind in DEEP if kind not in ("grey JPEG 2000", "PGM")])
def test_the_lower_8_bits_do_not_matter(kind: str) -> None:
    channels, suffix, encode = DEEP[kind]
    images = noise(channels=channels)
    lower = noise(channels=channels, seed=1).astype(np.uint16)
    write_files(
        "training", [encode(high * np.uint16(256) + low) for high, low in zip(images, lower, strict=True)], suffix
    )
    found = read_images("training", resolution=None).images
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1) if channels == 3 else found[:, 0], images)


@pytest.mark.parametrize("kind", ["grey PNG", "RGB PNG", "grey TIFF, big-endian", "RGB TIFF", "TIFF of 32-bit numbers"])
def test_16_bits_that_hold_values_of_8_are_refused_with_their_range(kind: str) -> None:
    channels, suffix, encode = DEEP[kind]
    write_files("training", [encode(image.astype(np.uint16)) for image in noise(channels=channels)], suffix)
    assert "training: the values are" in refusal("training")
    assert "in 0..255, but must be in 0..65535 with some above 255" in refusal("training")


@pytest.mark.parametrize(("low", "high"), [(-5, 60_000), (0, 70_000), (0, 2**31 - 1), (-(2**31), 0)])
def test_whole_numbers_of_another_range_are_refused_with_it(low: int, high: int) -> None:
    values = np.full((8, 8), low, dtype=np.int32)
    values[0] = high
    save("training", [Image.fromarray(values)] * 2, ".tif")
    assert f"training/000.tif: the values are int32 in {low:g}..{high:g}, but must be in 0..65535" in refusal(
        "training"
    )


def test_a_tiff_of_16_bits_in_which_white_is_zero_is_shown_as_such() -> None:
    images = noise(channels=1)
    files = [deep_tiff((255 - image).astype(np.uint16) * 257, "<", white_is_zero=True) for image in images]
    write_files("training", files, ".tif")
    np.testing.assert_array_equal(read_images("training", resolution=None).images[:, 0], images)


def test_a_tiff_of_12_bits_is_as_bright_as_one_of_8() -> None:
    images = noise(channels=1)
    write_files(
        "training", [deep_tiff(image.astype(np.uint16) * 16 + image // 16, "<", bits=12) for image in images], ".tif"
    )
    found = read_images("training", resolution=None).images
    np.testing.assert_array_equal(found[:, 0], images)


def test_a_dark_image_of_16_bits_beside_bright_ones_is_dark() -> None:
    images = np.stack([np.full((8, 8), value, dtype=np.uint16) for value in (100, 60_000, 30_000)])
    save("training", [Image.fromarray(image) for image in images])
    assert read_images("training", resolution=None).images[:, 0, 0, 0].tolist() == [0, 234, 117]


def scaled(images: np.ndarray, scale: str) -> np.ndarray:
    return images / 255 if scale == "in 0..1, read as x * 255" else images / 127.5 - 1


SCALES = ["in 0..1, read as x * 255", "in -1..1, read as (x + 1) * 127.5"]


@pytest.mark.parametrize("scale", SCALES)
def test_float_tiffs_are_scaled_and_the_scale_is_said(scale: str) -> None:
    images = noise(channels=1)
    save("training", [Image.fromarray(image.astype(np.float32)) for image in scaled(images, scale)], ".tif")
    save("samples", images)
    result = score()
    assert result.ratio == 1
    assert said(result.notes, f"training: all 12 images have floating-point values {scale}")


def test_one_negative_value_says_what_all_images_mean() -> None:
    images = noise(channels=1)
    floats = scaled(np.maximum(images, 128), SCALES[1]).astype(np.float32)
    floats[7, 0, 0] = -1
    save("training", [Image.fromarray(image) for image in floats], ".tif")
    found = read_images("training", resolution=None)
    expected = np.maximum(images, 128)
    expected[7, 0, 0] = 0
    np.testing.assert_array_equal(found.images[:, 0], expected)
    assert said(found.notes, "-1..1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused_as_that(value: float) -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    values[0, 0] = value
    save("training", [Image.fromarray(values)] * 2, ".tif")
    assert "some of the float32 values are NaN or infinite; save images of finite values" in refusal("training")
    np.savez("training.npz", images=np.stack([values] * 2))
    assert "training.npz: some of the float32 values are NaN or infinite" in refusal("training.npz")


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-2, 1), (0, 1.5)])
def test_floats_of_another_range_are_refused_with_it(low: float, high: float) -> None:
    values = np.full((8, 8), low, dtype=np.float32)
    values[0] = high
    save("training", [Image.fromarray(values)] * 2, ".tif")
    assert f"in {low:g}..{high:g}, but must be in 0..1 or -1..1" in refusal("training")
    np.savez("training.npz", images=np.stack([values] * 2))
    assert f"training.npz: the values are float32 in {low:g}..{high:g}, but must be" in refusal("training.npz")


NUMBERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "float32": (lambda images: (images / 255).astype(np.float32), "in 0..1, read as x * 255"),
    "float16, signed": (lambda images: (images / 127.5 - 1).astype(np.float16), "in -1..1, read as (x + 1) * 127.5"),
    "float64, signed": (lambda images: images / 127.5 - 1, "in -1..1, read as (x + 1) * 127.5"),
    "uint16": (lambda images: images.astype(np.uint16) * 257, "the upper 8"),
    "int32": (lambda images: images.astype(np.int32) * 257, "the upper 8"),
    "int64": (lambda images: images.astype(np.int64) * 257, "the upper 8"),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_of_any_numbers_is_read_as_it_is_meant_and_that_is_said(kind: str, order: str) -> None:
    convert, words = NUMBERS[kind]
    images = noise()
    np.savez("training.npz", images=np.asarray(convert(images), order=order))
    save("samples", images)
    result = compared(against="training.npz")
    assert result.ratio == 1
    assert said(result.notes, "training.npz: all 12 images have", words)


def test_parts_of_different_scales_are_refused() -> None:
    images = noise(channels=1)
    images[:6] = np.maximum(images[:6], 128)  # no value below zero in the first part
    np.savez("part-0.npz", images=images[:6] / 127.5 - 1)
    np.savez("part-1.npz", images=images[6:] / 127.5 - 1)
    assert refusal("part-*.npz") == "part-*.npz: files of values in -1..1 and in 0..1; save all in one scale"


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("form", ["array", "tensor", "list of arrays", "list of tensors"])
def test_arrays_of_any_numbers_are_compared_as_they_are_meant_with_a_warning(kind: str, form: str) -> None:
    convert, _ = NUMBERS[kind]
    images = noise(channels=1)
    given: Any = convert(images)
    if "tensor" in form:
        given = torch.from_numpy(given)
    if "list" in form:
        given = list(given)
    with pytest.warns(ImageWarning, match=r"training images: .* were read as "):
        assert diffmem.memorization_ratio(images, given) == 1
    with pytest.warns(ImageWarning, match=r"generated images: .* were read as "):
        assert diffmem.memorization_ratio(given, images) == 1


def test_tensors_of_bfloat16_are_compared_with_a_warning() -> None:
    images = noise(channels=1)
    given = torch.from_numpy(images / 127.5 - 1).bfloat16()
    with pytest.warns(ImageWarning, match=r"bfloat16 values in -1\.\.1 were read as \(x \+ 1\) \* 127\.5"):
        assert diffmem.memorization_ratio(given, images) == 1


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "F, signed"])
def test_pictures_of_more_than_8_bits_are_compared_as_they_are_meant_with_a_warning(mode: str) -> None:
    images = noise(channels=1)
    values = {
        "I;16": images.astype(np.uint16) * 257,
        "I": images.astype(np.int32) * 257,
        "F": (images / 255).astype(np.float32),
        "F, signed": (images / 127.5 - 1).astype(np.float32),
    }[mode]
    pictures = [Image.fromarray(value) for value in values]
    assert {picture.mode for picture in pictures} == {mode[:4].rstrip(",")[: len(pictures[0].mode)]}
    with pytest.warns(ImageWarning, match="training images: all 12 images have "):
        assert diffmem.memorization_ratio(images, pictures) == 1
    with pytest.warns(ImageWarning, match="generated images: all 12 images have "):
        assert diffmem.memorization_ratio(pictures, images) == 1


# --- pixels: orientation -------------------------------------------------------------------------------


def turned(images: np.ndarray, form: str, orientation: int, **how: Any) -> tuple[list[bytes], list[Image.Image]]:
    """Return images as files with an EXIF orientation, and as viewers show them."""
    files, shown = [], []
    for image in images:
        exif = Image.Exif()  # one for each, since Pillow's AVIF takes it out
        exif[0x0112] = orientation
        files.append(encoded(Image.fromarray(image), form, exif=exif, **how))
    for content in files:
        with Image.open(io.BytesIO(content)) as opened:
            shown.append(ImageOps.exif_transpose(opened).convert("RGB"))
    return files, shown


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": (".jpg", {"quality": 95}),
    "PNG": (".png", {}),
    "WEBP": (".webp", {"lossless": True}),
    "TIFF": (".tif", {}),
    "AVIF": (".avif", {"quality": 90}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_are_turned_as_viewers_show_them(form: str, orientation: int) -> None:
    suffix, how = FORMS[form]
    files, shown = turned(noise(width=16, height=12), form, orientation, **how)
    write_files("training", files, suffix)
    source = read_images("training", resolution=None)
    expected = np.stack([np.asarray(image) for image in shown])
    np.testing.assert_array_equal(source.images.transpose(0, 2, 3, 1), expected)
    if form in ("PNG", "WEBP", "TIFF"):
        upright = noise(width=16, height=12)
        by_hand = {3: upright[:, ::-1, ::-1], 6: np.rot90(upright, -1, (1, 2)), 8: np.rot90(upright, 1, (1, 2))}
        if orientation in by_hand:
            np.testing.assert_array_equal(expected, by_hand[orientation])
    turned_by_pillow = form == "TIFF"
    assert said(source.notes, "all 12 images were turned as their EXIF orientation says") is not turned_by_pillow


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_copies_of_turned_photos_are_memorized_and_the_turn_is_said(form: str) -> None:
    suffix, how = FORMS[form]
    files, shown = turned(noise(width=16, height=12), form, 6, **how)
    write_files("training", files, suffix)
    save("samples", shown)
    result = score()
    assert result.ratio == 1
    assert said(result.notes, "training: all 12 images were turned as their EXIF orientation says")


def test_photos_that_were_opened_with_pillow_are_turned_too() -> None:
    files, shown = turned(noise(width=16, height=12), "PNG", 6)
    opened = [Image.open(io.BytesIO(content)) for content in files]
    with pytest.warns(ImageWarning, match="training images: all 12 images were turned"):
        assert diffmem.memorization_ratio(shown, opened) == 1
    with pytest.warns(ImageWarning, match="generated images: all 12 images were turned"):
        assert diffmem.memorization_ratio(opened, shown) == 1


def test_an_upright_photo_is_not_said_to_be_turned() -> None:
    files, _ = turned(noise(), "JPEG", 1)
    write_files("training", files, ".jpg")
    assert read_images("training", resolution=None).notes == ()


# --- pixels: transparency ------------------------------------------------------------------------------


def drawings(seed: int = 0) -> np.ndarray:
    """Return where something is drawn, bool [n, 8, 8]."""
    return np.random.default_rng(seed).integers(2, size=(COUNT, 8, 8)).astype(bool)


def palette_image(drawn: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.where(drawn, 1, 0).astype(np.uint8))
    image.putpalette([0, 0, 0, 10, 0, 0], "RGB")
    return image


def on_transparency(drawn: np.ndarray, kind: str) -> bytes:
    """Return a drawing of black, or nearly so, on transparent black."""
    grey = np.zeros((8, 8), dtype=np.uint8)
    alpha = np.where(drawn, 255, 0).astype(np.uint8)
    ink = np.where(drawn, 10, 0).astype(np.uint8)
    rgba = Image.fromarray(np.stack([grey, grey, grey, alpha], axis=2))
    form, image, how = {
        "RGBA PNG": ("PNG", rgba, {}),
        "RGBA WebP": ("WEBP", rgba, {"lossless": True, "exact": True}),
        "RGBA TIFF": ("TIFF", rgba, {}),
        "RGBA AVIF": ("AVIF", rgba, {"quality": 100}),
        "RGBA JPEG 2000": ("JPEG2000", rgba, {}),
        "RGBA QOI": ("QOI", rgba, {}),
        "RGBA TGA": ("TGA", rgba, {}),
        "LA PNG": ("PNG", Image.fromarray(np.stack([grey, alpha], axis=2)), {}),
        "palette PNG": ("PNG", palette_image(drawn), {"transparency": 0}),
        "palette PNG, many alphas": ("PNG", palette_image(drawn), {"transparency": b"\0\xff"}),
        "GIF": ("GIF", palette_image(drawn), {"transparency": 0}),
        "grey PNG, one value": ("PNG", Image.fromarray(ink), {"transparency": 0}),
        "RGB PNG, one colour": ("PNG", Image.fromarray(np.stack([ink] * 3, axis=2)), {"transparency": (0, 0, 0)}),
        "1-bit PNG, one value": ("PNG", Image.fromarray(~drawn).convert("1"), {"transparency": 1}),
    }[kind]
    return encoded(image, form, **how)


TRANSPARENT = [
    *("RGBA PNG", "RGBA WebP", "RGBA TIFF", "RGBA AVIF", "RGBA JPEG 2000", "RGBA QOI", "RGBA TGA", "LA PNG"),
    *("palette PNG", "palette PNG, many alphas", "GIF", "grey PNG, one value", "RGB PNG, one colour"),
    *("1-bit PNG, one value",),
]
SUFFIXES = {"WebP": ".webp", "TIFF": ".tif", "AVIF": ".avif", "JPEG 2000": ".jp2", "QOI": ".qoi", "TGA": ".tga"}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_drawings_on_transparency_are_compared_on_white_and_that_is_said(kind: str) -> None:
    drawn = drawings()
    suffix = next((suffix for name, suffix in SUFFIXES.items() if name in kind), ".png")
    write_files("training", [on_transparency(each, kind) for each in drawn], ".gif" if kind == "GIF" else suffix)
    save("samples", np.where(drawn, 0, 255).astype(np.uint8))
    result = compared()
    assert result.ratio == brute_force(drawn, drawn) == 1
    if "1-bit" not in kind:
        assert said(result.notes, "training: all 12 images are transparent; they were composited on white")


def test_the_transparent_colour_of_16_bits_is_white() -> None:
    values = np.where(drawings(), 300, 0x1234).astype(np.uint16)
    hole = chunk(b"tRNS", struct.pack(">H", 0x1234))
    write_files("training", [deep_png(each, hole) for each in values], ".png")
    source = read_images("training", resolution=None)
    np.testing.assert_array_equal(source.images[:, 0], np.where(drawings(), 1, 255))
    assert said(source.notes, "all 12 images are transparent")


@pytest.mark.parametrize("hole", [(0x1234, 0x5678, 0x9ABC), (0xFFFF, 0, 0), (0x12, 0x34, 0x56)])
def test_the_transparent_colour_of_rgb_of_16_bits_is_white(hole: tuple[int, int, int]) -> None:
    values = np.where(drawings()[..., None], np.array([0x8000, 0x4000, 0x2000]), np.array(hole)).astype(np.uint16)
    write_files("training", [deep_png(each, chunk(b"tRNS", struct.pack(">3H", *hole))) for each in values], ".png")
    source = read_images("training", resolution=None)
    expected = np.where(drawings()[..., None], np.array([0x80, 0x40, 0x20]), 255)
    np.testing.assert_array_equal(source.images.transpose(0, 2, 3, 1), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_16_bits_is_composited(channels: int) -> None:
    values = np.zeros((COUNT, 8, 8, channels), dtype=np.uint16)
    values[..., -1] = np.where(drawings(), 65535, 0)
    write_files("training", [deep_png(each) for each in values], ".png")
    found = read_images("training", resolution=None).images
    np.testing.assert_array_equal(found, np.broadcast_to(np.where(drawings(), 0, 255)[:, None], found.shape))


def test_half_transparent_colours_are_mixed_with_white() -> None:
    rgba = np.random.default_rng(0).integers(256, size=(COUNT, 8, 8, 4), dtype=np.uint8)
    save("training", rgba)
    source = read_images("training", resolution=None)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(source.images.transpose(0, 2, 3, 1) - expected).max() <= 1
    assert said(source.notes, "all 12 images are transparent")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_same_hidden_colours_with_another_alpha_are_other_images(mode: str) -> None:
    channels = 3 if mode == "RGBA" else 1
    hidden = noise(channels=channels).reshape(COUNT, 8, 8, channels)
    for folder, seed in (("training", 1), ("samples", 2)):
        alpha = np.where(drawings(seed), 255, 0).astype(np.uint8)[..., None]
        save(folder, np.concatenate([hidden, alpha], axis=3))
    assert score().ratio == 0


def test_opaque_images_are_not_said_to_be_transparent() -> None:
    images = noise()
    opaque = np.full((COUNT, 8, 8, 1), 255, dtype=np.uint8)
    save("training", np.concatenate([images, opaque], axis=3))
    save("samples", images)
    result = score()
    assert (result.ratio, result.notes) == (1, ())


def test_only_the_images_that_are_transparent_are_counted() -> None:
    images = np.concatenate([noise(), np.full((COUNT, 8, 8, 1), 255, dtype=np.uint8)], axis=3)
    images[:3, 0, 0, 3] = 254
    save("training", images)
    assert said(read_images("training", resolution=None).notes, "3 of 12 images are transparent")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pictures_are_compared_on_white_with_a_warning(mode: str) -> None:
    drawn = drawings()
    files = {"RGBA": "RGBA PNG", "LA": "LA PNG", "PA": "palette PNG", "P": "palette PNG"}[mode]
    pictures = [Image.open(io.BytesIO(on_transparency(each, files))) for each in drawn]
    if mode == "PA":
        pictures = [picture.convert("PA") for picture in pictures]
    shown = np.where(drawn, 0, 255).astype(np.uint8)
    with pytest.warns(ImageWarning) as caught:
        assert diffmem.memorization_ratio(shown, pictures) == 1
    assert said([str(each.message) for each in caught], "training images: all 12 images are transparent")


# --- pixels: palettes, CMYK, 1-bit, LAB, grey ----------------------------------------------------------


def lab(image: Image.Image) -> Image.Image:
    space = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    found = ImageCms.applyTransform(image, space)
    assert found is not None
    return found


MODES: dict[str, tuple[str, str, Callable[[Image.Image], Image.Image], int]] = {
    "palette PNG": (".png", "PNG", lambda image: image.quantize(256), 0),
    "palette BMP": (".bmp", "BMP", lambda image: image.quantize(256), 0),
    "GIF": (".gif", "GIF", lambda image: image.quantize(256), 0),
    "CMYK JPEG": (".jpg", "JPEG", lambda image: image.convert("CMYK"), 60),
    "CMYK TIFF": (".tif", "TIFF", lambda image: image.convert("CMYK"), 1),
    "YCbCr TIFF": (".tif", "TIFF", lambda image: image.convert("YCbCr"), 4),
    "LAB TIFF": (".tif", "TIFF", lab, 12),
    "RGB BMP": (".bmp", "BMP", lambda image: image, 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_colours_of_every_mode_are_read_as_rgb(mode: str) -> None:
    suffix, form, convert, within = MODES[mode]
    images = noise() if within <= 1 else np.clip(noise() // 2, 40, 100)  # which every mode can hold
    images = np.repeat(np.repeat(images, 4, axis=1), 4, axis=2) if form == "JPEG" else images
    write_files("training", [encoded(convert(Image.fromarray(image)), form) for image in images], suffix)
    save("samples", images)
    found = read_images("training", resolution=None).images.transpose(0, 2, 3, 1)
    assert np.abs(found.astype(int) - images).max() <= within
    assert compared().ratio == 1


def test_images_of_one_bit_are_black_and_white() -> None:
    drawn = drawings()
    save("training", [Image.fromarray(np.where(each, 255, 0).astype(np.uint8)).convert("1") for each in drawn])
    found = read_images("training", resolution=None).images
    np.testing.assert_array_equal(found[:, 0], np.where(drawn, 255, 0))


@pytest.mark.parametrize("labelled", [True, False])
def test_one_grey_jpeg_among_coloured_ones_is_repeated_as_rgb_and_that_is_said(labelled: bool) -> None:
    training = "training/cat" if labelled else "training"
    images = np.repeat(np.repeat(noise(), 2, axis=1), 2, axis=2)
    save(training, images, ".jpg")
    Image.fromarray(images[5]).convert("L").save(f"{training}/005.jpg")
    source = read_images("training", resolution=None)
    assert source.images.shape == (COUNT, 3, 16, 16)
    assert (source.images[5] == source.images[5, 0]).all()
    assert source.notes == ("1 of 12 images are grey; they were repeated as RGB",)
    save("samples", source.images.transpose(0, 2, 3, 1))
    assert score().ratio == 1


def test_a_grey_image_that_comes_first_does_not_make_the_others_grey() -> None:
    images = noise()
    save("training", images)
    Image.fromarray(images[0]).convert("L").save("training/000.png")
    source = read_images("training", resolution=None)
    np.testing.assert_array_equal(source.images[1:], images[1:].transpose(0, 3, 1, 2))
    assert said(source.notes, "1 of 12 images are grey")


@pytest.mark.parametrize("alone", [True, False])
def test_what_the_last_of_many_images_shows_holds_for_the_first(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not alone:
        monkeypatch.setattr("diffmem.data.decoding.ALONE", -1)  # other processes from the first image on
    images = noise(600, channels=1)
    floats = [Image.fromarray(image) for image in scaled(np.maximum(images, 128), SCALES[1]).astype(np.float32)]
    save("training", floats[:598], ".tif")
    Image.fromarray(np.full((8, 8), -1, np.float32)).save("training/598.tif")
    Image.fromarray(noise(1)[0]).save("training/599.png")
    source = read_images("training", resolution=None)
    np.testing.assert_array_equal(source.images[:598, 1], np.maximum(images, 128)[:598])
    np.testing.assert_array_equal(source.images[599], noise(1)[0].transpose(2, 0, 1))
    assert not source.images[598].any()
    assert said(source.notes, "599 of 600 images have floating-point values in -1..1")
    assert said(source.notes, "599 of 600 images are grey; they were repeated as RGB")
    Path("training/599.png").write_text("no image")
    assert refusal("training").startswith("training/599.png: not an image")


@pytest.mark.parametrize("grey", ["samples", "training"])
def test_grey_images_compare_with_the_same_stored_as_rgb(grey: str) -> None:
    images = noise(channels=1)
    save(grey, images)
    save({"samples": "training", "training": "samples"}[grey], np.stack([images] * 3, axis=3))
    result = score()
    assert result.ratio == 1
    assert said(result.notes, "grey was repeated as RGB")
    assert not said(result.notes, "--resolution")


@pytest.mark.parametrize("grey", [0, 1])
def test_grey_arrays_compare_with_the_same_stored_as_rgb_with_a_warning(grey: int) -> None:
    images = noise(channels=1)
    given = [images, np.stack([images] * 3, axis=3)]
    with pytest.warns(ImageWarning, match="grey was repeated as RGB"):
        assert diffmem.memorization_ratio(given[grey], given[1 - grey]) == 1


def test_a_monitor_compares_grey_samples_with_coloured_training_images() -> None:
    images = noise(channels=1)
    monitor = Monitor(np.stack([images] * 3, axis=3), store="s.duckdb", name="m")
    with pytest.warns(ImageWarning, match="grey was repeated as RGB"):
        assert monitor.score(images, 0) == 1
    monitor.close()


# --- pixels: values of 0 and 1 -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["samples", "training"])
def test_values_of_0_and_1_against_0_to_255_are_said(which: str) -> None:
    drawn = drawings().astype(np.uint8)
    for folder in ("samples", "training"):
        np.savez(f"{folder}.npz", images=drawn if folder == which else drawn * np.uint8(255))
    result = score("samples.npz", "training.npz")
    assert said(result.notes, "values of 0 and 1 only")
    given = {"samples": drawn, "training": drawn, "samples" if which == "training" else "training": drawn * 255}
    with pytest.warns(ImageWarning, match="values of 0 and 1 only"):
        diffmem.memorization_ratio(given["samples"].astype(np.uint8), given["training"].astype(np.uint8))


def test_a_monitor_says_that_samples_have_values_of_0_and_1() -> None:
    drawn = drawings().astype(np.uint8)
    monitor = Monitor(drawn * np.uint8(255), store="s.duckdb", name="m")
    with pytest.warns(ImageWarning, match="values of 0 and 1 only"):
        monitor.score(drawn, 0)
    monitor.close()


def test_masks_against_masks_are_nothing_to_say() -> None:
    np.savez("masks.npz", images=drawings().astype(np.uint8))
    result = score("masks.npz", "masks.npz")
    assert result.ratio == 1
    assert not said(result.notes, "0 and 1 only")


# --- pixels: sizes -------------------------------------------------------------------------------------


def as_pillow_does(images: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    found = [Image.fromarray(image).crop(box).resize(size, Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in found])


def test_training_images_are_cropped_and_resized_to_the_samples_and_that_is_said() -> None:
    images = noise(width=96, height=64)
    save("training", images)
    small = as_pillow_does(images, (16, 0, 80, 64), (32, 32))
    save("samples", small)
    result = score()
    assert result.ratio == 1
    assert said(result.notes, "training: ", "all 12 images were cropped", "resized", "96x64", "32x32", "Lanczos")


def test_samples_resized_in_another_way_are_measured_with_a_word() -> None:
    images = noise(width=64, height=64)
    save("training", images)
    box = np.stack([np.asarray(Image.fromarray(each).resize((16, 16), Image.Resampling.BOX)) for each in images])
    save("samples", box)
    result = score()
    lanczos = as_pillow_does(images, (0, 0, 64, 64), (16, 16))
    assert result.ratio == brute_force(box, lanczos)
    assert said(result.notes, "training: all 12 images were resized: they were 64x64, and are read at 16x16")


def test_samples_that_training_images_would_be_enlarged_to_are_refused_with_advice_that_works() -> None:
    images = noise(width=96, height=64)
    squashed = np.stack([np.asarray(Image.fromarray(image).resize((32, 32))) for image in images])
    save("training", squashed)
    save("samples", images)
    refused = command("score", "--images", "samples", "--against", "training", code=2)
    assert "training: its images have at most 32x32 pixels, so 96x64 would enlarge them" in refused.stderr
    assert "--resolution N" in refused.stderr
    assert "P.resolution" not in refused.stderr
    result = command("score", "--images", "samples", "--against", "training", "--resolution", "32")
    assert "samples: all 12 images were cropped, all 12 images were resized: they were 96x64" in result.stdout


def test_enlarging_is_done_where_it_is_asked_for_and_is_said() -> None:
    images = noise()
    save("training", images)
    large = as_pillow_does(images, (0, 0, 8, 8), (64, 64))
    save("samples", large)
    assert "would enlarge them" in command("score", "--images", "samples", "--against", "training", code=2).stderr
    result = command("score", "--images", "samples", "--against", "training", "--resolution", "64", "--json")
    told = json.loads(result.stdout)
    assert told["ratio"] == brute_force(large, large) == 1
    assert said(told["notes"], "all 12 images were enlarged: they were 8x8, and are read at 64x64")


def test_some_images_that_are_enlarged_are_counted() -> None:
    save("training", [*noise(9, width=32, height=32), *noise(3, width=8, height=8)])
    notes = read_images("training", resolution=16).notes
    assert said(notes, "3 of 12 images were enlarged", "they were 8x8 to 32x32, and are read at 16x16")


@pytest.mark.parametrize("dataset", ["training", "digits", "training.npz"])
def test_a_study_does_not_enlarge_in_silence(dataset: str) -> None:
    save("training", noise(channels=1))
    np.savez("training.npz", images=noise(channels=1))
    Path("s.toml").write_text(f'P.dataset = "{dataset}"\nP.size = 4\nP.resolution = 64\nM.network = "optimum"\n')
    with pytest.raises(StudyError, match=r"s\.toml:3: P\.resolution|s\.toml:1: P\.dataset: .*enlarge"):
        Study.load(Path("s.toml"))
    assert "--resolution" not in command("plan", "s.toml", code=2).stderr


@pytest.mark.parametrize("what", ["samples", "training"])
def test_images_of_several_sizes_are_refused_with_advice_that_fits_the_command(what: str) -> None:
    save("samples", noise())
    save("training", noise())
    Image.fromarray(noise(1, width=9)[0]).save(f"{what}/003.png")
    if what == "samples":
        refused = command("score", "--images", "samples", "--against", "training", code=2).stderr
        assert "samples/003.png: 9x8 pixels, but the first image has 8x8; --resolution N" in refused
        assert "P.resolution" not in refused
    else:
        Path("s.toml").write_text('P.dataset = "training"\nP.size = 4\nM.network = "optimum"\n')
        refused = command("plan", "s.toml", code=2).stderr
        assert "training/003.png: 9x8 pixels, but the first image has 8x8; P.resolution" in refused
        assert "--resolution" not in refused
        scored = command("score", "--images", "samples", "--against", "training").stdout
        assert "note: training: 1 of 12 images were cropped: they were 8x8 to 9x8, and are read at 8x8" in scored


def test_images_that_are_not_square_are_scored() -> None:
    training, other = noise(width=12, height=8), noise(width=12, height=8, seed=1)
    save("training", training)
    samples = [*training[:6], *other[:6]]
    save("samples", samples)
    assert score().ratio == brute_force(np.stack(samples), training) == 0.5
    monitor = Monitor(training, store="m.duckdb", name="m")
    assert monitor.score(samples, 0) == 0.5
    monitor.close()
    assert diffmem.memorization_ratio(samples, training) == 0.5


def test_arrays_of_other_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="generated images have 8x8 pixels, but training images have 9x8 pixels"):
        diffmem.memorization_ratio(noise(), noise(width=9))


# --- files: suffixes and what is left out --------------------------------------------------------------

READ = {
    ".jfif": ("JPEG", {"quality": 100}),
    ".jpe": ("JPEG", {"quality": 100}),
    ".JPG": ("JPEG", {"quality": 100}),
    ".jpeg": ("JPEG", {"quality": 100}),
    ".ppm": ("PPM", {}),
    ".pnm": ("PPM", {}),
    ".avif": ("AVIF", {"quality": 95}),
    ".jp2": ("JPEG2000", {}),
    ".j2k": ("JPEG2000", {"no_jp2": True}),
    ".tga": ("TGA", {}),
    ".TGA": ("TGA", {}),
    ".qoi": ("QOI", {}),
    ".bmp": ("BMP", {}),
    ".dib": ("DIB", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".WebP": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".TIFF": ("TIFF", {}),
    ".apng": ("PNG", {}),
    ".PNG": ("PNG", {}),
    ".gif": ("GIF", {}),
}


@pytest.mark.parametrize("suffix", READ)
def test_a_training_set_of_which_half_has_another_suffix_is_read_whole(suffix: str) -> None:
    form, how = READ[suffix]
    images = noise()
    save("training", images[:6])
    shown = []
    for number, image in enumerate(images[6:]):
        picture = Image.fromarray(image).quantize(256) if form == "GIF" else Image.fromarray(image)
        content = encoded(picture, form, **how)
        Path(f"training/other-{number}{suffix}").write_bytes(content)
        with Image.open(io.BytesIO(content)) as opened:
            shown.append(np.asarray(opened.convert("RGB")))
    save("samples", [*images[:6], *shown])
    result = compared()
    assert (result.size, result.ratio, result.notes) == (12, 1, [])


def test_files_that_are_no_images_are_counted_by_suffix_wherever_that_is_shown() -> None:
    save("training", noise())
    save("samples", noise()[:5])
    for name in ("a.txt", "b.txt", "c.TXT", "labels.csv", "README", "d.svg"):
        Path(f"training/{name}").write_text("x")
    result = score()
    assert (result.ratio, result.size) == (1, 12)
    (note,) = result.notes
    assert note.startswith("training: 6 files were left out, since ")
    assert sorted(note.partition("them: ")[2].split(", ")) == ["1 .csv", "1 .svg", "1 without a suffix", "3 .txt"]
    assert f"note: {note}" in command("score", "--images", "samples", "--against", "training").stdout
    shown = command("score", "--images", "samples", "--against", "training", "--json").stdout
    assert note in json.loads(shown)["notes"]
    command("report", "samples", "-o", "page.html")
    assert note in Path("page.html").read_text()


def test_images_in_an_archive_that_are_none_are_counted_by_suffix() -> None:
    with zipfile.ZipFile("training.zip", "w") as archive:
        for number, image in enumerate(noise()):
            archive.writestr(f"{number}.png", encoded(Image.fromarray(image), "PNG"))
        archive.writestr("notes.txt", "x")
    assert said(read_images("training.zip", resolution=None).notes, "left out", "1 .txt")


def test_arrays_in_a_folder_of_images_are_left_out_with_a_word() -> None:
    save("training", noise())
    np.savez("training/more.npz", images=noise())
    assert said(read_images("training", resolution=None).notes, "left out", "1 .npz")


def test_a_file_whose_suffix_lies_is_refused_by_name() -> None:
    save("training", noise())
    Path("training/003.png").write_text("no image")
    assert refusal("training").startswith("training/003.png: not an image that can be read")


HIDDEN = [
    ".ipynb_checkpoints/000-checkpoint.png",
    "._000.png",
    ".hidden/deep/er.png",
    "__MACOSX/000.png",
    "__MACOSX/._000.png",
    "cat/.ipynb_checkpoints/000.png",
    "cat/._000.png",
    "Thumbs.db",
    ".DS_Store",
    "cat/desktop.ini",
]


@pytest.mark.parametrize("form", ["folder", "zip", "pattern", "pattern of folders", "recursive pattern"])
def test_hidden_files_and_folders_are_left_out(form: str) -> None:
    content = [encoded(Image.fromarray(image), "PNG") for image in noise()]
    files = {f"{'cat' if number < 6 else 'dog'}/{number:03d}.png": each for number, each in enumerate(content)}
    files |= dict.fromkeys(HIDDEN, content[0])
    if form == "zip":
        with zipfile.ZipFile("training.zip", "w") as archive:
            for name, each in files.items():
                archive.writestr(name, each)
    else:
        for name, each in files.items():
            (Path("training") / name).parent.mkdir(parents=True, exist_ok=True)
            (Path("training") / name).write_bytes(each)
    named = {"folder": "training", "zip": "training.zip", "pattern": "training/*/*.png"}.get(form, "training/*")
    named = "training/**/*.png" if form == "recursive pattern" else named
    source = read_images(named, resolution=None)
    assert len(source.images) == COUNT
    assert source.classes.tolist() == [0] * 6 + [1] * 6
    assert source.notes == ()


# --- files: links and folders that cannot be read ------------------------------------------------------


@pytest.mark.parametrize("link", ["folder", "file", "relative", "chain"])
def test_images_behind_links_are_read_as_if_they_were_there(link: str) -> None:
    images = noise()
    save("training/a", images[:6])
    save("elsewhere/b", images[6:])
    save("samples", images)
    if link == "folder":
        Path("training/b").symlink_to(Path("elsewhere/b").absolute())
    elif link == "relative":
        Path("training/b").symlink_to("../elsewhere/b")
    elif link == "chain":
        Path("elsewhere/c").symlink_to("b")
        Path("training/b").symlink_to("../elsewhere/c")
    else:
        Path("training/b").mkdir()
        for file in sorted(Path("elsewhere/b").iterdir()):
            Path(f"training/b/{file.name}").symlink_to(file.absolute())
    result = compared()
    assert (result.size, result.ratio, result.notes) == (12, 1, [])
    assert read_images("training", resolution=None).classes.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("pattern", ["training", "training/*", "training/**", "training/**/*.png"])
def test_a_link_that_leads_back_is_no_loop(pattern: str) -> None:
    save("training/a", noise())
    Path("training/a/back").symlink_to(Path("training").absolute())
    if "**" not in pattern:  # where each link is followed until the system stops it, two take for ever
        Path("training/a/itself").symlink_to(".")
    assert len(read_images(pattern, resolution=None).images) == COUNT


@pytest.mark.parametrize("name", ["006.png", "b"])
def test_a_link_that_leads_nowhere_is_not_left_out_in_silence(name: str) -> None:
    save("training", noise(6))
    Path(f"training/{name}").symlink_to("/nowhere/of/that/name")
    try:
        source = read_images("training", resolution=None)
    except DataError as error:
        assert name in str(error)
    else:
        assert source.notes


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("pattern", ["training", "training/*", "training/*/*.png", "training/**/*.png"])
@pytest.mark.parametrize("name", ["b", "b/000.png"])
def test_a_folder_or_file_that_cannot_be_read_is_an_error(name: str, pattern: str) -> None:
    save("training/a", noise())
    save("training/b", noise(seed=1))
    Path(f"training/{name}").chmod(0)
    try:
        assert f"training/{name}: cannot be read: Permission denied" in refusal(pattern)
    finally:
        Path(f"training/{name}").chmod(0o700)


# --- files: several frames -----------------------------------------------------------------------------

FRAMES = {"GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "PNG": ".png", "AVIF": ".avif"}


@pytest.mark.parametrize("form", FRAMES)
def test_a_file_of_several_frames_is_refused_with_their_number(form: str) -> None:
    frames = [Image.fromarray(image).quantize(256) if form == "GIF" else Image.fromarray(image) for image in noise()]
    how = {"lossless": True} if form == "WEBP" else {}
    write_files("training", [encoded(frames[0], form, save_all=True, append_images=frames[1:], **how)], FRAMES[form])
    assert f"training/000{FRAMES[form]}: holds 12 frames or pages" in refusal("training")


@pytest.mark.parametrize("form", FRAMES)
def test_a_file_of_one_frame_is_an_image_like_any_other(form: str) -> None:
    frames = [Image.fromarray(image).quantize(256) if form == "GIF" else Image.fromarray(image) for image in noise()]
    write_files("training", [encoded(frame, form, save_all=True) for frame in frames], FRAMES[form])
    source = read_images("training", resolution=None)
    assert (len(source.images), source.notes) == (12, ())


def test_the_picture_that_viewers_show_of_a_photo_with_others_is_taken_with_a_word() -> None:
    photos = [Image.fromarray(np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)) for image in noise(24)]
    files = [
        encoded(photos[number], "MPO", save_all=True, append_images=[photos[number + 12]]) for number in range(COUNT)
    ]
    write_files("training", files, ".jpg")
    shown = []
    for content in files:
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.format == "MPO"
            shown.append(opened.convert("RGB"))
    save("samples", shown)
    result = score()
    assert (result.size, result.ratio) == (12, 1)
    assert said(result.notes, "training: all 12 images hold further pictures; the first one")


def test_an_animation_that_was_opened_with_pillow_is_refused_and_its_frames_are_images() -> None:
    frames = [Image.fromarray(image) for image in noise()]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    opened = Image.open(io.BytesIO(content))
    with pytest.raises(DataError, match="generated images, number 0: holds 12 frames"):
        diffmem.memorization_ratio([opened], noise())
    each = []
    for number in range(COUNT):
        opened.seek(number)
        each.append(opened.copy())
    assert diffmem.memorization_ratio(each, noise()) == 1


# --- files: patterns -----------------------------------------------------------------------------------


def test_a_pattern_of_several_npz_reads_them_all() -> None:
    images, other = noise(), noise(36, seed=1)
    for number, part in enumerate(np.split(np.concatenate([images, other]), 4)):
        np.savez(f"part-{number}.npz", images=part, labels=[number] * COUNT)
    save("training", images)
    result = score("part-*.npz")
    assert (result.samples, result.ratio) == (48, brute_force(np.concatenate([images, other]), images)) == (48, 0.25)
    assert read_images("part-*.npz", resolution=None).classes.tolist() == np.repeat(range(4), COUNT).tolist()


def test_a_pattern_of_folders_and_files_reads_both() -> None:
    images = noise()
    save("data/a", images[:4])
    save("data/b", images[4:8])
    for number in range(8, 12):
        Image.fromarray(images[number]).save(f"data/{number}.png")
    save("samples", images)
    result = score(against="data/*")
    assert (result.size, result.ratio) == (12, 1)


def test_a_pattern_of_all_kinds_reads_them_all() -> None:
    images = noise()
    save("data/folder", images[:3])
    np.savez("data/arrays.npz", images=images[3:6])
    write_parquet("data/rows.parquet", images[6:9])
    with zipfile.ZipFile("data/archive.zip", "w") as archive:
        for number, image in enumerate(images[9:]):
            archive.writestr(f"{number}.png", encoded(Image.fromarray(image), "PNG"))
    save("samples", images)
    result = compared(against="data/*")
    assert (result.size, result.ratio) == (12, 1)


def test_npz_of_several_sizes_are_refused() -> None:
    np.savez("part-0.npz", images=noise())
    np.savez("part-1.npz", images=noise(width=9))
    assert "part-*.npz: files of 8x8 and of 9x8 pixels" in refusal("part-*.npz")


def test_a_grey_npz_beside_a_coloured_one_is_repeated_as_rgb_and_that_is_said() -> None:
    np.savez("part-0.npz", images=noise(4, channels=1))
    np.savez("part-1.npz", images=noise(8))
    source = read_images("part-*.npz", resolution=None)
    assert source.images.shape == (12, 3, 8, 8)
    assert said(source.notes, "4 of 12 images are grey; they were repeated as RGB")


# --- files: names --------------------------------------------------------------------------------------

NAMES = [
    "t[1]",
    "star*",
    "what?",
    "per%cent",
    "q'uote",
    'q"uote',
    "a b",
    "日本",
    "new\nline",
    "-dash",
    "[",
    "caf\udce9",
]


@pytest.mark.parametrize("form", ["", ".npz", ".zip", ".parquet"])
def test_images_are_read_by_their_very_name(form: str) -> None:
    names = [*NAMES, "t1", "starx", "whatx"]
    pixels = {name: noise(seed=seed) for seed, name in enumerate(names)}
    for name, images in pixels.items():
        if not form:
            save(name, images)
        elif form == ".npz":
            with Path(f"{name}.npz").open("wb") as file:
                np.savez(file, images=images)
        elif form == ".parquet":
            write_parquet(f"{name}.parquet", images)
        else:
            with zipfile.ZipFile(f"{name}.zip", "w") as archive:
                for number, content in enumerate(pngs(images)):
                    archive.writestr(f"{number:02d}.png", content)
    for name, images in pixels.items():
        found = read_images(f"{name}{form}", resolution=None).images
        np.testing.assert_array_equal(found, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("form", ["", ".npz", ".parquet"])
@pytest.mark.parametrize("name", ["t[1]", "q'uote \"", "caf\udce9", "-dash", "new\nline\x1b[2J"])
def test_training_images_may_have_any_name(name: str, form: str) -> None:
    if not form:
        save(name, noise())
    elif form == ".npz":
        with Path(f"{name}.npz").open("wb") as file:
            np.savez(file, images=noise())
    else:
        write_parquet(f"{name}.parquet", noise())
    save("samples", noise())
    scored = command("score", "--images", "samples", "--against", f"{name}{form}")
    assert "12 of 12 images are copies" in scored.stdout
    if not form:
        command("report", "samples", "-o", "page.html")


@pytest.mark.parametrize("name", ["t[1]", "*", "caf\udce9", "-dash", "new\nline\x1b[2J", "日本"])
def test_a_folder_of_samples_may_have_any_name_and_is_reported_under_it(name: str) -> None:
    save("training", noise())
    save(Path("x") / name, noise(6))
    save("x/other", noise(6, seed=1))
    scored = command("score", "--images", f"x/{name}", "--against", "training")
    assert "6 of 6 images are copies" in scored.stdout
    study = Store(Path("store/diffmem.duckdb")).studies()[0].study
    command("report", "-o", "page.html", "--", study)
    assert 'class="pair memorized"' in Path("page.html").read_text()


def test_files_of_any_name_in_a_folder_are_read() -> None:
    names = [*NAMES, "\x1b[2J"]
    images = noise(len(names))
    Path("training").mkdir()
    for name, content in zip(names, pngs(images), strict=True):
        Path(f"training/{name}.png").write_bytes(content)
        Path(f"training/left out.{name}").write_text("x")
    save("samples", images)
    scored = command("score", "--images", "samples", "--against", "training")
    assert "13 of 13 images are copies" in scored.stdout
    assert "13 files were left out, since no image can be read from them" in scored.stdout
    assert "\x1b" not in scored.stdout
    command("score", "--images", "samples", "--against", "training", "--json")
    command("report", "samples", "-o", "page.html")


def test_files_of_any_name_in_an_archive_are_read() -> None:
    names = [name for name in NAMES if name.isprintable()]
    images = noise(len(names))
    with zipfile.ZipFile("training.zip", "w") as archive:
        for name, content in zip(names, pngs(images), strict=True):
            archive.writestr(f"{name}.png", content)
            archive.writestr(f"left out.{name}", "x")
    save("samples", images)
    assert compared(against="training.zip").ratio == 1


# --- files: Parquet ------------------------------------------------------------------------------------


def pngs(images: np.ndarray) -> list[bytes]:
    return [encoded(Image.fromarray(image), "PNG") for image in images]


def write_parquet(path: str | Path, images: np.ndarray, **columns: Any) -> str:
    buffer = io.BytesIO()  # pyarrow takes no name that is not UTF-8
    pq.write_table(pa.table({"image": pngs(images), **columns}), buffer)
    Path(path).write_bytes(buffer.getvalue())
    return str(path)


def test_an_image_column_that_comes_first_is_not_taken_for_the_image() -> None:
    images, other = noise(), noise(seed=1)
    pq.write_table(pa.table({"conditioning_image": pngs(other), "image": pngs(images)}), "training.parquet")
    save("samples", images)
    result = score(against="training.parquet")
    assert result.ratio == 1
    assert said(result.notes, "images are those of the column image, not of conditioning_image")


@pytest.mark.parametrize("columns", [["image", "img"], ["img", "other"], ["a", "img", "image"]])
def test_image_then_img_is_the_image(columns: list[str]) -> None:
    images, other = noise(), noise(seed=1)
    meant = "image" if "image" in columns else "img"
    table = pa.table({name: pngs(images if name == meant else other) for name in columns})
    pq.write_table(table, "training.parquet")
    found = read_images("training.parquet", resolution=None)
    np.testing.assert_array_equal(found.images, images.transpose(0, 3, 1, 2))


def test_several_image_columns_of_other_names_are_refused_by_name() -> None:
    pq.write_table(pa.table({"left": pngs(noise()), "right": pngs(noise(seed=1))}), "a.parquet")
    message = refusal("a.parquet")
    assert "'left'" in message
    assert "'right'" in message


def test_the_only_image_column_may_have_any_name_and_a_file_name_beside_it() -> None:
    images = noise()
    pq.write_table(pa.table({"filename": [f"{n}.png" for n in range(12)], "photo": pngs(images)}), "a.parquet")
    save("samples", images)
    assert score(against="a.parquet").ratio == 1


def test_a_folder_called_as_a_value_is_no_label() -> None:
    Path("label=7").mkdir()
    images = noise()
    labels = [0, 1] * 6
    write_parquet("label=7/a.parquet", images)
    write_parquet("label=7/b.parquet", images, label=labels)
    assert read_images("label=7/a.parquet", resolution=None).classes.tolist() == [0] * 12
    assert read_images("label=7/b.parquet", resolution=None).classes.tolist() == labels


# --- files: labels -------------------------------------------------------------------------------------

GOOD_LABELS = {
    "int8": pa.array([0, 1] * 6, pa.int8()),
    "uint64": pa.array([0, 1] * 6, pa.uint64()),
    "bool": pa.array([False, True] * 6),
    "text": pa.array(["cat", "dog"] * 6),
    "large text": pa.array(["cat", "dog"] * 6, pa.large_string()),
    "dictionary": pa.array(["cat", "dog"] * 6).dictionary_encode(),
    "empty text": pa.array(["", "dog"] * 6),
    "numbers as text": pa.array(["1", "2"] * 6),
    "whole floats": pa.array([0.0, 1.0] * 6),
    "halves": pa.array(np.array([0, 1] * 6, dtype=np.float16)),
    "decimal": pa.array([0, 1] * 6).cast(pa.decimal128(20, 0)),
}


@pytest.mark.parametrize("kind", GOOD_LABELS)
def test_labels_of_every_kind_are_classes(kind: str) -> None:
    write_parquet("a.parquet", noise(), label=GOOD_LABELS[kind])
    source = read_images("a.parquet", resolution=None)
    assert source.classes.tolist() == [0, 1] * 6
    assert said(source.notes, "classes are 2 names, numbered in their order") == (
        kind in ("text", "large text", "dictionary", "empty text", "numbers as text")
    )


NO_LABELS: dict[str, tuple[pa.Array, str]] = {
    "null": (pa.array([0, None]), "no label"),
    "null text": (pa.array(["cat", None]), "no label"),
    "nothing but null": (pa.array([None, None], pa.null()), "no label"),
    "nan": (pa.array([0.0, float("nan")]), "the label is nan"),
    "infinite": (pa.array([0.0, float("inf")]), "the label is inf"),
    "half": (pa.array([0.0, 0.5]), "the label is 0.5"),
    "list": (pa.array([[0], [1]]), "the label is [0]"),
    "struct": (pa.array([{"a": 0}, {"a": 1}]), "the label is {'a': 0}"),
    "map": (pa.array([[("a", 1)], [("b", 1)]], pa.map_(pa.string(), pa.int64())), "the label is {a=1}"),
    "negative": (pa.array([0, -1]), "the label is -1"),
    "a million million": (pa.array([0, 10**12]), "the label is 1000000000000"),
    "2^63": (pa.array([0, 2**63], pa.uint64()), "the label is 9223372036854775808"),
    "time": (pa.array([0, 1], pa.timestamp("us")), "the label is 1970-01-01 00:00:00"),
    "date": (pa.array([0, 1], pa.date32()), "the label is 1970-01-01"),
    "bytes": (pa.array([b"\xff\xfe", b"b"]), "the label is "),
    "decimal half": (pa.array(["0.5", "1.0"]).cast(pa.decimal128(10, 1)), "the label is 0.5"),
    "huge decimal": (pa.array(["1e37"] * 2).cast(pa.decimal128(38, 0)), "the label is 1000"),
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_a_label_that_is_no_class_is_refused_with_its_row(kind: str) -> None:
    labels, words = NO_LABELS[kind]
    write_parquet("a.parquet", noise(2), label=labels)
    first = 1 if str(labels[0].as_py()) in ("0", "0.0", "cat") else 0
    assert refusal("a.parquet").startswith(f"a.parquet, row {first}: {words}")


@pytest.mark.parametrize("name", ["label", "labels", "fine_label", "category", "Label", "LABELS", "class"])
def test_a_column_of_labels_has_its_usual_names(name: str) -> None:
    write_parquet("a.parquet", noise(), **{name: [0, 1] * 6})
    assert read_images("a.parquet", resolution=None).classes.tolist() == [0, 1] * 6


def test_a_column_of_labels_of_another_name_is_said_and_can_be_named() -> None:
    write_parquet("a.parquet", noise(), breed=["poodle", "beagle"] * 6)
    source = read_images("a.parquet", resolution=None)
    assert source.classes.tolist() == [0] * 12
    assert said(source.notes, "no classes", "P.labels names another one (breed)")
    assert read_images("a.parquet", resolution=None, labels="breed").classes.tolist() == [1, 0] * 6
    Path("s.toml").write_text(
        'P.dataset = "a.parquet"\nP.labels = "breed"\nP.size = 4\nM.network = "optimum"\nM.condition = "true"\n'
    )
    (entry,) = Study.load(Path("s.toml")).cells
    assert entry.cell.labels == 2


def test_a_named_column_that_is_not_there_is_refused() -> None:
    write_parquet("a.parquet", noise(), breed=["poodle", "beagle"] * 6)
    assert "no column 'race'" in refusal("a.parquet", labels="race")
    Path("s.toml").write_text('P.dataset = "a.parquet"\nP.labels = "race"\nP.size = 4\nM.network = "optimum"\n')
    assert "no column 'race'" in command("plan", "s.toml", code=2).stderr


def test_a_named_column_of_what_has_no_columns_is_not_taken_in_silence() -> None:
    save("training", noise())
    Path("s.toml").write_text('P.dataset = "training"\nP.labels = "race"\nP.size = 4\nM.network = "optimum"\n')
    assert "race" in command("plan", "s.toml", code=2).stderr


@pytest.mark.parametrize(
    "labels", [["cat", "dog"] * 6, [0.5] * 12, [[0]] * 12, [0] * 11, [-1] * 12, [10**12] * 12], ids=str
)
def test_labels_of_an_npz_that_are_no_classes_are_refused(labels: list[Any]) -> None:
    np.savez("a.npz", images=noise(), labels=labels)
    assert "a.npz" in refusal("a.npz")


def test_an_npz_whose_labels_have_another_name_says_that_it_has_no_classes() -> None:
    np.savez("a.npz", images=noise(), y=[0, 1] * 6)
    assert said(read_images("a.npz", resolution=None).notes, "no classes", "y")


def empty_classes(labels: list[int]) -> str:
    np.savez("a.npz", images=noise(len(labels)), labels=labels)
    Path("s.toml").write_text('P.dataset = "a.npz"\nP.size = 4\nM.network = "optimum"\n')
    return command("plan", "s.toml", code=2).stderr


def test_classes_that_are_counted_from_1_or_have_gaps_are_named_with_what_to_write() -> None:
    told = empty_classes([1, 2, 3] * 4)
    assert "a.npz has no images of class 0; take those that there are with P.classes = [1, 2, 3]" in told
    told = empty_classes([0, 2, 5] * 4)
    assert "a.npz has no images of classes 1, 3, 4; take those that there are with P.classes = [0, 2, 5]" in told
    Path("s.toml").write_text('P.dataset = "a.npz"\nP.size = 12\nP.classes = [0, 2, 5]\nM.network = "optimum"\n')
    command("plan", "s.toml")


def test_an_unbalanced_collection_can_be_used_whole() -> None:
    images = noise(20)
    save("training/few", images[:3])
    save("training/many", images[3:])
    Path("s.toml").write_text('P.dataset = "training"\nP.size = 20\nM.network = "optimum"\n')
    told = command("plan", "s.toml", code=2).stderr
    assert "balanced sets of up to 6, not 20; P.balance = false takes any of its 20" in told
    Path("s.toml").write_text(
        'P.dataset = "training"\nP.size = 20\nP.balance = false\nM.network = "optimum"\nM.condition = "true"\n'
        "score.samples = 8\n"
    )
    command("run", "s.toml", "--processes", "1")
    (row,) = Store(Path("store/diffmem.duckdb")).rows("SELECT size, samples FROM results")
    assert row == {"size": 20, "samples": 8}


# --- files: as other tools lay them out ----------------------------------------------------------------


def edm(images: np.ndarray, labels: list[Any] | None) -> dict[str, bytes]:
    """Return the files of a dataset as EDM's dataset_tool.py writes it."""
    names = [f"{number // 6:05d}/img{number:08d}.png" for number in range(len(images))]
    listed = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    return {**dict(zip(names, pngs(images), strict=True)), "dataset.json": json.dumps({"labels": listed}).encode()}


def lay_out(files: dict[str, bytes], form: str) -> str:
    if form == "zip":
        with zipfile.ZipFile("training.zip", "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return "training.zip"
    for name, content in files.items():
        (Path("training") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("training") / name).write_bytes(content)
    return "training"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_dataset_of_edm_has_the_classes_of_its_json(form: str) -> None:
    images, labels = noise(), [0, 1] * 6
    path = lay_out(edm(images, labels), form)
    source = read_images(path, resolution=None)
    assert source.classes.tolist() == labels
    assert source.notes == ("classes are those of dataset.json",)
    save("samples", images)
    assert score(against=path).ratio == 1


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_dataset_of_edm_without_labels_has_no_classes(form: str) -> None:
    source = read_images(lay_out(edm(noise(), None), form), resolution=None)
    assert source.classes.tolist() == [0] * 12
    assert source.notes == ("no classes, as dataset.json says",)


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("labels", "words"),
    [([0.5] * 12, "the label is 0.5"), ([None] * 12, "no label"), ([[0, 1]] * 12, "the label is"), ([-1] * 12, "-1")],
)
def test_labels_of_edm_that_are_no_classes_are_refused_with_the_image(form: str, labels: list[Any], words: str) -> None:
    message = refusal(lay_out(edm(noise(), labels), form))
    assert "dataset.json, 00000/img00000000.png" in message
    assert words in message


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_image_without_a_label_of_edm_is_refused(form: str) -> None:
    files = edm(noise(), [0, 1] * 6)
    listed = json.loads(files["dataset.json"])["labels"][1:]
    files["dataset.json"] = json.dumps({"labels": listed}).encode()
    assert "1 of 12 images have no label in dataset.json, the first is 00000/img00000000.png" in refusal(
        lay_out(files, form)
    )


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_image_that_dataset_json_has_but_is_not_there_is_not_passed_over_in_silence(form: str) -> None:
    files = edm(noise(), [0, 1] * 6)
    del files["00001/img00000011.png"]
    path = lay_out(files, form)
    try:
        notes = read_images(path, resolution=None).notes
    except DataError as error:
        notes = (str(error),)
    assert said(notes, "1 ", "dataset.json") or said(notes, "img00000011")


@pytest.mark.parametrize("content", [b"no json", b"{}", b"[1]", b'{"info": 1}', b"\xff\xfe", b'{"labels": 3}'])
def test_another_dataset_json_is_either_nothing_or_refused_in_a_sentence(content: bytes) -> None:
    save("training/a", noise())
    Path("training/dataset.json").write_bytes(content)
    try:
        assert read_images("training", resolution=None).classes.tolist() == [0] * 12
    except DataError as error:
        assert str(error).startswith("training/dataset.json: no labels as EDM writes them")


def test_samples_of_guided_diffusion_have_their_labels() -> None:
    images, labels = noise(), [3, 1, 0] * 4
    np.savez("samples_12x8x8x3.npz", images, labels)
    source = read_images("samples_12x8x8x3.npz", resolution=None)
    assert source.classes.tolist() == labels
    np.testing.assert_array_equal(source.images, images.transpose(0, 3, 1, 2))
    assert said(source.notes, "classes are those of the array arr_1")
    save("training", images)
    assert score("samples_12x8x8x3.npz").ratio == 1


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    "names", [("train", "test"), ("Train", "Val"), ("training", "testing"), ("train", "validation")]
)
def test_train_and_test_are_splits_and_no_classes(form: str, names: tuple[str, str]) -> None:
    files = {
        f"{split}/{kind}/{number}.png": content
        for split, seed in zip(names, (0, 1), strict=True)
        for kind, first in (("cat", 0), ("dog", 6))
        for number, content in enumerate(pngs(noise(seed=seed))[first : first + 6], first)
    }
    path = lay_out(files, form)
    source = read_images(path, resolution=None)
    assert (len(source.images), source.classes.tolist()) == (12, [0] * 6 + [1] * 6)
    assert said(source.notes, f"{names[0]}/ is read as a split", f"12 images of {names[1]}/ are left out")
    save("samples", noise())
    assert compared(against=path).ratio == 1


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_train_alone_is_a_split_and_no_class(form: str) -> None:
    files = {f"train/{'ab'[number % 2]}/{number:02d}.png": content for number, content in enumerate(pngs(noise()))}
    source = read_images(lay_out(files, form), resolution=None)
    assert source.classes.tolist() == [0] * 6 + [1] * 6
    assert said(source.notes, "train/ is read as a split, not as a class")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_split_beside_another_folder_is_a_class_and_that_is_said(form: str) -> None:
    files = {f"{folder}/{n}.png": content for folder in ("samples", "train") for n, content in enumerate(pngs(noise()))}
    source = read_images(lay_out(files, form), resolution=None)
    assert source.classes.tolist() == [0] * 12 + [1] * 12
    assert said(source.notes, "train/ read as classes and not as splits, since samples/ is none; name the folder that")


def test_images_beside_a_split_are_a_class_and_that_is_said() -> None:
    save("data/train", noise())
    save("data", noise(seed=1)[:1])
    source = read_images("data", resolution=None)
    assert len(source.images) == 13
    assert said(source.notes, "train/ read as classes and not as splits, since 1 image is in no folder")


def test_the_range_of_deep_images_is_said() -> None:
    save("training", [Image.fromarray(image[0].astype(np.uint16) * 16) for image in noise(channels=1)])
    assert said(read_images("training", resolution=None).notes, "(values 0 to 4,080 of 65,535)")


def test_scores_at_several_resolutions_are_curves_of_their_own() -> None:
    save("training", noise())
    save("samples", noise()[:4])
    store = Store(Path("s.duckdb"))
    curves = [score_images("samples", "training", store, resolution=side).study and side for side in (None, 4, 2)]
    assert len({row.curve for row in store.cells("samples")}) == len(curves)


def test_a_set_that_is_scored_against_itself_is_said_to_be_that() -> None:
    save("training", noise())
    result = score_images("training", "training", Store(Path("s.duckdb")))
    assert said(result.notes, "training: the same images as those of training, each of which is its own nearest one")


def test_splits_of_which_none_is_for_training_are_refused() -> None:
    save("data/test", noise())
    save("data/val", noise(seed=1))
    assert "its folders test, val are splits of a dataset, not classes" in refusal("data")


def test_a_class_that_is_called_train_is_a_class_beside_others() -> None:
    save("data/car", noise(6))
    save("data/train", noise(6, seed=1))
    source = read_images("data", resolution=None)
    assert source.classes.tolist() == [0] * 6 + [1] * 6
    assert said(source.notes, "train/ read as classes and not as splits, since car/ is none")


# --- remembered ----------------------------------------------------------------------------------------


def long_ago(path: str | Path) -> None:
    """Give a file a time of change that an unpacked archive would give it."""
    os.utime(path, (10**9, 10**9))


def write_collection(path: str, images: np.ndarray) -> None:
    """Write images of one size so that they always take as many bytes, with an old time of change."""
    if path.endswith(".npz"):
        np.savez(path, images=images)
    elif path.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for number, image in enumerate(images):
                archive.writestr(zipfile.ZipInfo(f"{number:03d}.bmp"), encoded(Image.fromarray(image), "BMP"))
    elif path.endswith(".parquet"):
        rows = [encoded(Image.fromarray(image), "BMP") for image in images]
        pq.write_table(pa.table({"image": rows}), path, compression="none", use_dictionary=False)
    else:
        save(path, images, ".bmp")
        for file in Path(path).iterdir():
            long_ago(file)
        return
    long_ago(path)


@pytest.mark.parametrize("path", ["training", "training.npz", "training.zip", "training.parquet"])
@pytest.mark.parametrize("how", ["in place", "replaced", "by link"])
def test_images_replaced_by_others_of_the_same_size_and_time_are_read_anew(path: str, how: str) -> None:
    old, new = noise(), noise(seed=1)
    save("samples", new)
    write_collection(path, old)
    assert score(against=path).ratio == brute_force(new, old) == 0
    assert score(against=path).ratio == 0
    if how == "in place":
        write_collection(path, new)
    else:
        Path("moved").mkdir()
        write_collection(f"moved/{path}", new)
        Path(path).rename("old")
        if how == "by link":
            Path(path).symlink_to(f"moved/{path}")
        else:
            Path(f"moved/{path}").rename(path)
    assert score(against=path).ratio == brute_force(new, new) == 1
    printed = command("score", "--images", "samples", "--against", path, "--store", "s.duckdb").stdout
    assert "memorization ratio, 1.0000" in printed


def test_images_replaced_by_another_process_are_read_anew() -> None:
    old, new = noise(), noise(seed=1)
    save("samples", new)
    np.savez("training.npz", images=old)
    np.savez("new.npz", images=new)
    long_ago("training.npz")
    assert score(against="training.npz").ratio == 0
    subprocess.run(["cp", "new.npz", "training.npz"], check=True)
    long_ago("training.npz")
    assert score(against="training.npz").ratio == 1
    told = tiny.diffmem("score", "--images", "samples", "--against", "training.npz", "--store", "other.duckdb")
    assert "memorization ratio, 1.0000" in told.stdout


def test_the_same_path_in_another_folder_means_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    top = Path().absolute()
    for number, name in enumerate(("a", "b")):
        Path(name).mkdir()
        np.savez(f"{name}/training.npz", images=noise(seed=number))
        save(f"{name}/folder", noise(seed=number))
    save("samples", noise(seed=1))
    for name, ratio in (("a", 0), ("b", 1), ("a", 0)):
        monkeypatch.chdir(top / name)
        for against in ("training.npz", "folder"):
            assert score(str(top / "samples"), against, str(top / "s.duckdb")).ratio == ratio
            Path("s.toml").write_text(f'P.dataset = "{against}"\nP.size = 4\nM.network = "optimum"\n')
            (entry,) = Study.load(Path("s.toml")).cells
            source = load_source(against, None)
            assert entry.cell.fingerprints[against] == source.fingerprint
            np.testing.assert_array_equal(source.images, noise(seed=int(name == "b")).transpose(0, 3, 1, 2))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
    "truncated": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + bytes(100),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "json of another kind": lambda _: b"[1, 2]",
    "no text": lambda _: b"\xff\xfe\x00",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["*.pixels", "*.json", "contents/*.json", "*.groups"])
def test_a_damaged_cache_is_made_again(which: str, damage: str) -> None:
    images = noise(seed=zlib.crc32(f"{which}, {damage}".encode()))  # nothing of them is known in this process
    save("training", np.concatenate([images, images[:1]]))
    expected = groups_in(read_images("training", resolution=None))
    damage_cache(which, damage)
    again = read_images("training", resolution=None)
    np.testing.assert_array_equal(again.images, np.concatenate([images, images[:1]]).transpose(0, 3, 1, 2))
    for one, other in zip(groups_in(again), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def damage_cache(which: str, damage: str) -> None:
    files = [file for file in cache_folder().glob(which) if file.is_file() and file.stat().st_size]
    assert files
    for file in files:
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
        long_ago(file)


@pytest.mark.parametrize("damage", ["emptied", "zeros"])
def test_a_power_cut_changes_no_score(damage: str) -> None:
    images = noise(seed=len(damage))
    save("training", np.concatenate([images, images[:1]]))
    np.savez("samples.npz", images=images)
    first = score("samples.npz")
    damage_cache("**/*", damage)
    told = json.loads(
        command("score", "--images", "samples.npz", "--against", "training", "--store", "s.duckdb", "--json").stdout
    )
    assert told["ratio"] == first.ratio == brute_force(images, np.concatenate([images, images[:1]])) == 11 / 12
    assert tuple(told["notes"]) == first.notes


@pytest.mark.parametrize("which", ["*.pixels", "*.json", "contents", "*.groups"])
def test_a_cache_of_which_a_part_is_gone_is_made_again(which: str) -> None:
    images = noise()
    save("training", images)
    save("samples", images)
    assert compared().ratio == 1
    groups_in(read_images("training", resolution=None))
    for path in cache_folder().glob(which):
        for file in list(path.iterdir()) if path.is_dir() else [path]:
            file.unlink()
    assert compared().ratio == 1
    assert groups_in(read_images("training", resolution=None)).exact.tolist() == list(range(COUNT))


def test_a_full_disk_while_images_are_kept_is_said_and_leaves_nothing() -> None:
    save("training", noise(400, width=64, height=64))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        "from diffmem.cli import main\n"
        "main(['score', '--images', 'training', '--against', 'training'])\n"
    )
    told = subprocess.run([sys.executable, "-c", script], env=tiny.environment(), capture_output=True, text=True)
    assert told.returncode != 0
    assert "Traceback" not in told.stderr
    assert "decoded images cannot be kept there (File too large); name another folder with DIFFMEM_CACHE" in told.stderr
    assert [file.name for file in cache_folder().rglob("*") if file.suffix in (".partial", ".pixels")] == []


def test_a_score_of_changed_images_is_the_one_that_the_store_and_the_page_have() -> None:
    images = noise()
    save("training", images)
    save("samples", noise(seed=1))
    assert "ratio, 0.0000" in command("score", "--images", "samples", "--against", "training").stdout
    save("samples", images)
    assert "ratio, 1.0000" in command("score", "--images", "samples", "--against", "training").stdout
    store = Store(Path("store/diffmem.duckdb"))
    assert [row["ratio"] for row in store.rows("SELECT ratio FROM results ORDER BY ratio")] == [0, 1]
    command("report", "samples", "-o", "page.html")
    assert Path("page.html").read_text().count('class="pair memorized"') == 12


def test_a_ratio_that_the_store_has_otherwise_is_never_printed() -> None:
    images = noise()
    save("training", images)
    save("samples", images)
    score()
    with duckdb.connect("s.duckdb") as connection:  # as if older rules had given another number
        connection.execute("UPDATE checkpoints SET memorized = 0, ratio = 0")
    with pytest.raises(StoreError, match="has another score of the same images, 0 of 12 instead of 12 of 12"):
        score()


@pytest.mark.parametrize(
    ("images", "study"),
    [
        ("ema-0.99", "ema-0.99"),
        ("ema-0.999", "ema-0.999"),
        ("ema-0.99/", "ema-0.99"),
        ("ema-0.99.npz", "ema-0.99"),
        ("samples [1]", "samples [1]"),
        ("ema-*/*.png", "here"),
        (".", "here"),
        ("./", "here"),
        ("ema-0.99/..", "here"),
        ("a.png", "a.png"),
    ],
)
def test_a_study_is_named_by_the_whole_name_of_its_samples(
    images: str, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    for folder in ("ema-0.99", "ema-0.999", "samples [1]", "a.png"):
        save(folder, noise(1, channels=1))
    np.savez("ema-0.99.npz", images=noise(channels=1))
    assert study_name(images) == study


def test_samples_of_two_names_that_begin_alike_are_two_studies() -> None:
    for folder in ("ema-0.99", "ema-0.999", "training"):
        save(folder, noise(channels=1))
    assert [score(folder).study for folder in ("ema-0.99", "ema-0.999")] == ["ema-0.99", "ema-0.999"]
    assert sorted(row.study for row in Store(Path("s.duckdb")).studies()) == ["ema-0.99", "ema-0.999"]


# --- duplicates ----------------------------------------------------------------------------------------

TWICE = "of 24 training images 24 are identical with another one: a copy of such an image has two nearest ones about"
"""What is said of each image twice."""


def twice(channels: int = 1) -> np.ndarray:
    return np.concatenate([noise(channels=channels), noise(channels=channels)])


def test_training_images_that_are_there_twice_are_said_by_score_with_what_they_do() -> None:
    save("training", twice())
    save("samples", noise(channels=1))
    result = score()
    assert (result.ratio, result.twins) == (brute_force(noise(channels=1), twice()), 24) == (0, 24)
    assert said(result.notes, f"training: {TWICE}", "the ratio may be too low")
    told = command("score", "--images", "samples", "--against", "training").stdout
    assert f"note: training: {TWICE}" in told


def test_training_images_that_are_nearly_alike_are_said() -> None:
    near = noise(channels=1)
    near = np.where(near < 128, near + 3, near - 3).astype(np.uint8)
    save("training", np.concatenate([noise(channels=1), near]))
    save("samples", noise(channels=1)[:6])
    result = score()
    assert (result.ratio, result.twins) == (1, 0)  # of exact copies, d1 is zero
    assert said(result.notes, "of 24 training images 24 are nearly identical with another one", "may be too low")


def test_the_same_photo_as_two_formats_is_a_duplicate() -> None:
    save("training", noise())
    save("training", noise()[:2], ".bmp")
    assert said(score("training").notes, "of 14 training images 4 are identical with another one")


def test_memorization_ratio_warns_of_duplicates() -> None:
    with pytest.warns(ImageWarning, match=f"training images: {TWICE}"):
        assert diffmem.memorization_ratio(noise(channels=1), twice()) == 0


def test_a_monitor_warns_of_duplicates_and_the_page_has_them() -> None:
    with pytest.warns(ImageWarning, match=TWICE):
        monitor = Monitor(twice(), store="s.duckdb", name="m")
    assert monitor.score(noise(channels=1), 0) == 0
    monitor.close()
    assert said([row.note for row in Store(Path("s.duckdb")).notes("m")], TWICE)
    command("report", "m", "--store", "s.duckdb", "-o", "page.html")
    assert TWICE in Path("page.html").read_text()


OPTIMUM = """
P.dataset = "training"
P.size = 24
M.network = "optimum"
axes = [{P.size = [12, 24]}]
[score]
samples = 20
"""


def test_duplicates_are_said_by_plan_run_emm_and_the_page() -> None:
    save("training", twice())
    Path("s.toml").write_text(OPTIMUM)
    assert f"training: {TWICE}" in command("plan", "s.toml").stdout
    ran = command("run", "s.toml", "--processes", "1")
    assert TWICE in ran.output
    rows = Store(Path("store/diffmem.duckdb")).rows("SELECT size, ratio FROM results ORDER BY size")
    assert rows[1] == {"size": 24, "ratio": 0}
    assert TWICE in " ".join(command("emm", "s").stdout.split())
    assert said([json.dumps(json.loads(command("emm", "s", "--json").stdout))], TWICE)
    command("report", "s", "-o", "page.html")
    assert TWICE in Path("page.html").read_text()


def test_nothing_is_said_of_training_images_that_are_all_distinct() -> None:
    save("training", noise(24, channels=1))
    Path("s.toml").write_text(OPTIMUM)
    assert "identical" not in command("plan", "s.toml").stdout
    assert "identical" not in command("run", "s.toml", "--processes", "1").output


def test_what_is_done_to_images_is_said_by_plan_run_emm_and_the_page() -> None:
    images = np.concatenate([noise(24), np.full((24, 8, 8, 1), 255, dtype=np.uint8)], axis=3)
    images[:5, 0, 0, 3] = 0
    save("training", images)
    Path("training/notes.txt").write_text("x")
    Path("s.toml").write_text(OPTIMUM)
    told = ["training: 5 of 24 images are transparent", "1 file was left out, since", "can be read from it: 1 .txt"]
    shown = [command("plan", "s.toml").stdout, command("run", "s.toml", "--processes", "1").output]
    command("report", "s", "-o", "page.html")
    shown += [command("emm", "s").stdout, Path("page.html").read_text()]
    for text in shown:
        flat = " ".join(text.split())
        assert all(each in flat for each in told)


# --- tracebacks ----------------------------------------------------------------------------------------


def claiming_npz(shape: str, held: int) -> bytes:
    """Return a .npz whose array claims a shape and holds `held` bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(held)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", array)
    return buffer.getvalue()


ODD_NPZ = {
    "no bytes": b"",
    "no arrays": b"PK\x05\x06" + bytes(18),
    "no images": claiming_npz("(0, 8, 8)", 0),
    "no pixels": claiming_npz("(2, 0, 0)", 0),
    "no width": claiming_npz("(2, 8, 0)", 0),
    "1 TB": claiming_npz("(1000000, 1000, 1000)", 64),
    "10^30": claiming_npz("(10000000000, 10000000000, 10000000000)", 64),
    "one number": claiming_npz("()", 1),
    "one row": claiming_npz("(8,)", 8),
    "five axes": claiming_npz("(1, 1, 1, 8, 8)", 64),
    "negative": claiming_npz("(-2, 8, 8)", 128),
    "four channels": claiming_npz("(2, 8, 8, 4)", 512),
}


@pytest.mark.parametrize("kind", ODD_NPZ)
def test_an_odd_npz_is_refused_in_a_sentence(kind: str) -> None:
    Path("a.npz").write_bytes(ODD_NPZ[kind])
    assert refusal("a.npz").startswith("a.npz: ")
    save("samples", noise(channels=1))
    for arguments in (("samples", "a.npz"), ("a.npz", "samples")):
        told = command("score", "--images", arguments[0], "--against", arguments[1], code=2)
        assert (told.stdout, len(told.stderr.splitlines())) == ("", 1)


PAIRS: dict[str, Callable[[], Any]] = {
    "list of tuples": lambda: [(image, 3) for image in noise()],
    "list of lists": lambda: [[image, 3] for image in noise()],
    "list of dictionaries": lambda: [{"image": image, "label": 3} for image in noise()],
    "pictures and labels": lambda: [(Image.fromarray(image), 3) for image in noise()],
    "dataset": lambda: TensorDataset(torch.from_numpy(noise()), torch.zeros(12)),
    "loader": lambda: DataLoader(TensorDataset(torch.from_numpy(noise()), torch.zeros(12)), batch_size=4),
    "loader of images alone": lambda: DataLoader(torch.from_numpy(noise()), batch_size=5),
    "names of files": lambda: ["a.png", "b.png"],
    "paths": lambda: [Path("a.png"), Path("b.png")],
    "numbers": lambda: [1, 2, 3],
    "nothing": lambda: None,
    "dictionary": lambda: {"image": noise()},
    "objects": lambda: np.array([None, "x"], dtype=object),
    "complex": lambda: np.zeros((2, 8, 8), dtype=complex),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_no_list_of_images_is_refused_in_a_sentence(kind: str) -> None:
    for given in ((noise(), PAIRS[kind]()), (PAIRS[kind](), noise())):
        with pytest.raises(DataError) as caught:
            diffmem.memorization_ratio(*given)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError):
        Monitor(PAIRS[kind](), store="s.duckdb", name="m")
    assert not Path("s.duckdb").exists()


def test_a_generator_of_images_is_a_list_of_them() -> None:
    assert diffmem.memorization_ratio((image for image in noise()), noise()) == 1


@pytest.mark.parametrize("threshold", ["1/3", None, 0, -1, 1.5, float("nan"), [0.3], "0.3"])
def test_a_threshold_that_is_none_is_refused_in_a_sentence(threshold: Any) -> None:
    with pytest.raises(DataError, match="the threshold must be a number above 0 and at most 1"):
        diffmem.memorization_ratio(noise(), noise(), threshold=threshold)


@pytest.mark.parametrize("threshold", [1, np.float32(0.5), np.float64(0.5), 1 / 3])
def test_a_threshold_is_any_number(threshold: Any) -> None:
    assert diffmem.memorization_ratio(noise(), noise(), threshold=threshold) == 1


@pytest.mark.parametrize("key", ["every", "samples", "batch_size"])
@pytest.mark.parametrize("value", ["2", 0, -1, 2.5, None])
def test_a_number_of_a_monitor_that_is_none_is_refused_in_a_sentence(key: str, value: Any) -> None:
    settings: dict[str, Any] = {key: value}
    with pytest.raises(DataError, match=f"Monitor: {key} must be a whole number, at least 1, not "):
        Monitor(noise(), store="s.duckdb", name="m", **settings)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_full_disk_behind_the_output_is_said_without_a_traceback(arguments: list[str]) -> None:
    save("training", noise())
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            tiny.command("score", "--images", "training", "--against", "training", *arguments),
            env=tiny.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert told.returncode != 0
    assert "Traceback" not in told.stderr
    assert "Exception" not in told.stderr
    assert told.stderr.strip()


# --- one scale, one group, one name --------------------------------------------------------------------


def test_generated_floats_are_on_the_scale_of_the_training_images() -> None:
    images = noise(channels=1)
    images[0] = np.maximum(images[0], 128)  # a copy of it has no negative value
    scaled_images = (images / 127.5 - 1).astype(np.float32)
    with pytest.warns(ImageWarning):
        assert diffmem.memorization_ratio(scaled_images[:1], scaled_images) == 1
    with pytest.warns(ImageWarning), pytest.raises(DataError, match=r"have negative values, but the training images"):
        diffmem.memorization_ratio(scaled_images, np.abs(scaled_images))


def test_a_bmp_of_8_bits_is_not_said_to_have_16() -> None:
    save("training", noise(width=72), ".bmp")  # a row of it has 216 bytes
    assert read_images("training", resolution=None).notes == ()


def test_a_split_is_known_by_its_own_images_alone() -> None:
    images = noise()
    save("data/train", images)
    save("data/test", noise(2, seed=1))
    first = read_images("data", resolution=None)
    save("data/test", noise(3, seed=1))
    again = read_images("data", resolution=None)
    assert first.fingerprint == again.fingerprint


def test_a_pattern_of_small_arrays_is_not_enlarged_without_being_asked() -> None:
    for number in range(2):
        np.savez(f"part-{number}.npz", images=noise(seed=number))
    with pytest.raises(DataError, match=r"at most 8x8 pixels, so 16x16 would enlarge them"):
        load_source("part-*.npz", 16)


def test_images_that_are_all_nearly_alike_are_not_compared_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmem.data.near.MOST_PAIRS", 10)
    training = np.full((12, 1, 8, 8), 20, dtype=np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    with pytest.warns(ImageWarning, match="nearly identical ones were not looked for among so many images"):
        diffmem.memorization_ratio(training, training)
