""".npz files: what an array claims is checked before memory is taken for it, and only what is wanted is read."""

import io
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffmem.data.collection import read_images
from diffmem.errors import DataError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with little more memory than there is taken already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * 10**9, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def refusal(resolution: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_images("a.npz", resolution=resolution)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def header(shape: object, kind: object = "|u1", *, fortran: bool = False) -> bytes:
    """Return the header of an array as numpy writes it, of any claim."""
    text = f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile("a.npz", "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)


def grey(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


IMAGES = ("images.npy", npy(grey(2, 4, 4)))


# --- what is read --------------------------------------------------------------------------------------


def test_only_the_wanted_arrays_are_read() -> None:
    write(IMAGES, ("notes.npy", npy(np.array([{}], dtype=object))), ("huge.npy", header((10**12,))), ("a/b.txt", b"?"))
    np.testing.assert_array_equal(read_images("a.npz", resolution=None).images[:, 0], grey(2, 4, 4))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_in_the_order_of_fortran_is_read_as_numpy_reads_it(compression: int) -> None:
    write(("images.npy", npy(np.asfortranarray(grey(3, 4, 4, 3)))), compression=compression)
    np.testing.assert_array_equal(read_images("a.npz", resolution=None).images, grey(3, 4, 4, 3).transpose(0, 3, 1, 2))


def test_labels_of_another_byte_order_are_read() -> None:
    np.savez("a.npz", images=grey(2, 4, 4), labels=np.array([0, 1], dtype=">i4"))
    assert read_images("a.npz", resolution=None).classes.tolist() == [0, 1]


# --- claims --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(10**12, 1, 1), (10**6, 10**6), (1, 10**6, 10**6), (10**9, 32, 32, 3), (1, 3, 10**9, 10**9)]
)
def test_an_array_that_claims_a_terabyte_is_refused_before_memory_is_taken(shape: tuple[int, ...]) -> None:
    write(("images.npy", header(shape)))
    assert refusal().startswith("a.npz: ")


def test_more_pixels_than_the_limit_are_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000")
    write(("images.npy", npy(grey(2, 40, 40))))
    assert refusal() == (
        "a.npz: 2 x 1,600 pixels or more, but a collection may have 1,000 (3 kB as RGB); "
        "choose fewer or smaller images, or raise the limit with --max-pixels"
    )
    assert "2 x 1,600 pixels or more" in refusal(4)
    assert "2 x 160,000 pixels or more" in refusal(400)
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "3200")
    assert len(read_images("a.npz", resolution=None).images) == 2
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000")  # what is kept is no way around it
    assert "2 x 1,600 pixels or more" in refusal()


def test_images_of_a_pixel_are_not_more_than_their_labels_have_room_for() -> None:
    write(("images.npy", header((10**9, 1, 1)) + bytes(1000)))
    assert "1,000,000,000 x 1 pixels or more" in refusal()


def test_a_zip_that_inflates_to_more_than_its_array_claims_is_refused() -> None:
    write(("images.npy", header((2, 4, 4)) + bytes(10**8)))
    assert Path("a.npz").stat().st_size < 10**8 / 900
    assert "'images' claims 32 bytes, but has 100000000" in refusal()


def test_a_zip_that_inflates_ten_thousandfold_ends_within_its_claim() -> None:
    once = zlib.compress(bytes(10**8), 9)
    write(("images.npy", once))
    assert refusal().startswith("a.npz: not a .npz that can be read (")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_inflates_without_bounds_is_refused(method: int) -> None:
    write(IMAGES, compression=method)
    assert "'images' is compressed in another way than numpy does it" in refusal()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.array([{}], dtype=object)), "'images' holds Python objects, which are not loaded"),
        (header((2, 4, 4), "|O"), "'images' holds Python objects, which are not loaded"),
        (header((-2, 4, 4)), "'images' has the shape (-2, 4, 4)"),
        (header((2, 4, 4)) + bytes(31), "'images' claims 32 bytes, but has 31"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100, "'images' has a header of version 2.0, not 1.0"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, ""),
        (header("(" * 3000 + ")" * 3000), ""),
        (header((2, 4, 4), "nonsense"), ""),
        (b"", ""),
        (b"\x93NUM", ""),
    ],
    ids=range(10),
)
def test_an_array_that_is_none_is_refused_in_a_sentence(content: bytes, words: str) -> None:
    write(("images.npy", content))
    assert refusal().startswith("a.npz: not a .npz that can be read (")
    assert words in refusal()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused() -> None:
    write(IMAGES, IMAGES)
    assert "it has 'images' twice" in refusal()
    write(IMAGES, ("images", IMAGES[1]))
    assert "it has 'images' twice" in refusal()


def test_an_array_in_a_folder_of_the_zip_is_another_one() -> None:
    write(("x/images.npy", IMAGES[1]), ("../images.npy", IMAGES[1]))
    assert "has {'x/images': 'uint8 [2, 4, 4]', '../images': 'uint8 [2, 4, 4]'}" in refusal()


def test_a_truncated_or_flipped_zip_is_refused_in_a_sentence() -> None:
    np.savez_compressed("a.npz", images=np.random.default_rng(0).integers(256, size=(4, 8, 8), dtype=np.uint8))
    content = Path("a.npz").read_bytes()
    for damaged in (content[:-30], content[:100], content[30:], content[:150] + b"??" + content[152:]):
        Path("a.npz").write_bytes(damaged)
        assert refusal().startswith("a.npz: not a .npz that can be read (")


def test_an_encrypted_zip_is_refused_in_a_sentence() -> None:
    write(IMAGES, compression=zipfile.ZIP_STORED)
    content = bytearray(Path("a.npz").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("a.npz").write_bytes(content)
    assert "not a .npz that can be read" in refusal()


# --- nothing, and labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 0), (2, 0, 4), (0, 4, 4, 3), (2, 3, 0, 0)])
@pytest.mark.parametrize("resolution", [None, 8])
def test_no_images_and_images_of_no_pixels_are_refused(shape: tuple[int, ...], resolution: int | None) -> None:
    write(("images.npy", npy(np.zeros(shape, dtype=np.uint8))))
    assert refusal(resolution) == f"a.npz: no images in it; `images` is {list(shape)}"


@pytest.mark.parametrize("label", [-1, 100_000, 2 * 10**9, 10**12, 2**63 - 1])
def test_a_label_that_is_no_class_number_is_refused_with_row_and_value(label: int) -> None:
    np.savez("a.npz", images=grey(3, 4, 4), labels=[0, 1, label])
    assert refusal() == f"a.npz, row 2: the label is {label}, but class numbers are whole, from 0 to 99999"


def test_a_label_that_only_fits_without_a_sign_is_refused() -> None:
    np.savez("a.npz", images=grey(2, 4, 4), labels=np.array([0, 2**63], dtype=np.uint64))
    assert "a.npz, row 1: the label is 9223372036854775808" in refusal()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint64])
def test_labels_of_every_whole_type_are_read(kind: type) -> None:
    np.savez("a.npz", images=grey(2, 4, 4), labels=np.array([0, 1], dtype=kind))
    assert read_images("a.npz", resolution=None).classes.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.5, float("nan")], [[0], [1]], [0], [True, False]], ids=str)
def test_labels_of_another_kind_are_refused(labels: list[object]) -> None:
    np.savez("a.npz", images=grey(2, 4, 4), labels=labels)
    assert "`labels` must be 2 whole numbers from 0, not " in refusal()


def test_labels_that_claim_more_than_they_are_are_refused() -> None:
    write(IMAGES, ("labels.npy", header((2,), "<i8") + bytes(8)))
    assert "'labels' claims 16 bytes, but has 8" in refusal()
    write(IMAGES, ("labels.npy", header((2,), "|V2000000000")))
    assert "`labels` must be 2 whole numbers" in refusal()
