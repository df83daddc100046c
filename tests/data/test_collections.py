"""Reading images: folders, Parquet in the published layout, .npz, what is kept, and what is refused."""

import io
import os
import random
import re
import socket
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from PIL import Image

from diffmem.cells.cell import Cell
from diffmem.cells.rules import impossible_pairs
from diffmem.cells.settings import DataDistribution, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.cli import main
from diffmem.data.cache import cache_folder
from diffmem.data.collection import read_images
from diffmem.data.limits import most_bytes_at_once, most_pixels
from diffmem.data.pixels import crop_and_resize
from diffmem.data.training_sets import IMAGENET_DOGS, describe, load_source, training_set
from diffmem.errors import DataError, StudyError
from diffmem.study.study import Study


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path_factory.mktemp("cache")))


def pictures(count: int, *, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return random uint8 images [n, h, w, 3] or [n, h, w]."""
    shape = (count, side, side, 3) if channels == 3 else (count, side, side)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[int]) -> str:
    """Write images as the published CIFAR-10 has them: `img` a struct of bytes and path, `label` a 64-bit integer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect()
    connection.execute("CREATE TABLE rows (bytes BLOB, label BIGINT)")
    connection.executemany("INSERT INTO rows VALUES (?, ?)", list(zip(images, labels, strict=True)))
    select = "SELECT {'bytes': bytes, 'path': NULL::VARCHAR} AS img, label FROM rows"
    connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return str(path)


def write_folder(top: Path, images: np.ndarray, labels: list[int]) -> str:
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        file = top / f"class {label}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return str(top)


# --- what can be read ----------------------------------------------------------------------------------


def test_parquet_in_the_published_layout_is_read_row_by_row(tmp_path: Path) -> None:
    images, labels = pictures(20), [i % 10 for i in range(20)]
    source = read_images(write_parquet(tmp_path / "train.parquet", list(map(png, images)), labels), resolution=None)
    np.testing.assert_array_equal(source.images, images.transpose(0, 3, 1, 2))
    assert source.classes.tolist() == labels


def test_a_pattern_reads_its_files_in_order_of_name(tmp_path: Path) -> None:
    images = pictures(6)
    for part in (1, 0):
        rows = [png(image) for image in images[3 * part : 3 * part + 3]]
        write_parquet(tmp_path / f"part-{part}.parquet", rows, [part] * 3)
    source = read_images(str(tmp_path / "*.parquet"), resolution=None)
    np.testing.assert_array_equal(source.images, images.transpose(0, 3, 1, 2))
    assert source.classes.tolist() == [0, 0, 0, 1, 1, 1]


def test_rows_of_a_range_of_labels_are_kept_and_counted_from_its_start(tmp_path: Path) -> None:
    images = pictures(5)
    file = write_parquet(tmp_path / "dogs.parquet", list(map(png, images)), [150, 151, 273, 274, 200])
    source = read_images(file, resolution=None, only=IMAGENET_DOGS)
    assert source.classes.tolist() == [0, 122, 49]
    np.testing.assert_array_equal(source.images, images[[1, 2, 4]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_a_class_per_subfolder(tmp_path: Path, channels: int) -> None:
    images, labels = pictures(6, side=8, channels=channels), [0, 0, 1, 1, 2, 2]
    source = read_images(write_folder(tmp_path / "mine", images, labels), resolution=None)
    expected = images[:, None] if channels == 1 else images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(source.images, expected)
    assert source.classes.tolist() == labels


@pytest.mark.parametrize("layout", ["n h w c", "n c h w", "n h w"])
def test_an_npz_may_have_its_channels_first_last_or_none(tmp_path: Path, layout: str) -> None:
    images = pictures(4, side=8, channels=1 if layout == "n h w" else 3)
    stored = images.transpose(0, 3, 1, 2) if layout == "n c h w" else images
    np.savez(tmp_path / "mine.npz", images=stored, labels=[0, 1, 0, 1])
    source = read_images(str(tmp_path / "mine.npz"), resolution=None)
    np.testing.assert_array_equal(source.images, images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))
    assert source.classes.tolist() == [0, 1, 0, 1]


def test_images_of_many_sizes_are_cropped_to_their_centre_and_resized_by_lanczos(tmp_path: Path) -> None:
    wide = pictures(1, side=40)[0][:32]  # 32 high, 40 wide
    rows = [png(wide), png(pictures(1, side=64)[0])]
    source = read_images(write_parquet(tmp_path / "a.parquet", rows, [0, 0]), resolution=16)
    expected = Image.fromarray(wide[:, 4:36]).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(source.images[0], np.asarray(expected).transpose(2, 0, 1))
    assert crop_and_resize(Image.fromarray(wide), (16, 16)).size == (16, 16)


# --- what is kept --------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_known_by_their_content(tmp_path: Path) -> None:
    images = pictures(4, side=8)
    first = read_images(write_folder(tmp_path / "a", images, [0, 0, 1, 1]), resolution=None)
    moved = read_images(write_folder(tmp_path / "b", images, [0, 0, 1, 1]), resolution=None)
    other = read_images(write_folder(tmp_path / "c", pictures(4, side=8, seed=1), [0, 0, 1, 1]), resolution=None)
    assert first.fingerprint == moved.fingerprint != other.fingerprint
    assert len(list(cache_folder().glob("*.pixels"))) == 2


def test_an_image_that_changes_makes_other_cells(tmp_path: Path) -> None:
    images = pictures(4, side=8)
    before = read_images(write_folder(tmp_path / "a", images, [0, 0, 1, 1]), resolution=None)
    images[0, 0, 0] ^= 1
    after = read_images(write_folder(tmp_path / "a", images, [0, 0, 1, 1]), resolution=None)
    assert before.fingerprint != after.fingerprint
    assert (before.images != after.images).any()


def cell(dataset: str, **P: object) -> Cell:
    P = {"size": 4, **P}
    facts = {dataset: describe(dataset, P.get("resolution"))}  # type: ignore[arg-type]
    return Cell.resolve(
        DataDistribution(dataset=dataset, **P), ModelConfiguration(), TrainingProcedure(), Scoring(), facts
    )


def test_the_same_images_at_another_place_are_the_same_cell_and_draw(tmp_path: Path) -> None:
    images, labels = pictures(12, side=8), [0, 1] * 6
    one = cell(write_folder(tmp_path / "a", images, labels))
    two = cell(write_folder(tmp_path / "b", images, labels))
    assert one.cell_id == two.cell_id
    assert one.channels == 3
    np.testing.assert_array_equal(training_set(one).images, training_set(two).images)


def test_classes_may_be_a_list_and_are_numbered_in_its_order(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8), 10 * label, dtype=np.uint8) for label in (0, 1, 2) for _ in range(4)])
    folder = write_folder(tmp_path / "a", images, [0] * 4 + [1] * 4 + [2] * 4)
    chosen = cell(folder, classes=[2, 0])
    assert sorted(set(training_set(chosen).images.ravel().tolist())) == [0, 20]
    assert chosen.P.classes == (2, 0)
    assert cell(folder, classes=[0, 1]).cell_id == cell(folder, classes=2).cell_id


# --- blends --------------------------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path) -> str:
    """Return a .npz of the digits turned upside down."""
    digits = load_source("digits", None)
    np.savez(tmp_path / "others.npz", images=digits.images[:, :, ::-1], labels=digits.classes)
    return str(tmp_path / "others.npz")


def blended(others: str, share: float, size: int) -> Cell:
    P = DataDistribution(dataset="digits", classes=(3,), size=size, blend={"dataset": others, "share": share})
    facts = {name: describe(name, None) for name, *_ in P.parts}
    return Cell.resolve(P, ModelConfiguration(), TrainingProcedure(), Scoring(), facts)


def test_a_blend_takes_its_rounded_share_and_a_smaller_set_lies_in_a_larger_one(others: str) -> None:
    digits = load_source("digits", None)
    threes = {image.tobytes() for image in digits.images[digits.classes == 3]}
    turned = {image[:, ::-1].tobytes() for image in digits.images}
    previous: set[bytes] = set()
    for size in (10, 17, 40):
        images = [image.tobytes() for image in training_set(blended(others, 0.8, size)).images]
        count = round(0.8 * size)
        assert all(image in threes for image in images[: size - count])
        assert all(image in turned for image in images[size - count :])
        assert previous <= set(images)
        previous = set(images)
    parts = DataDistribution(dataset="a", size=2000, blend={"dataset": "b", "share": 0.8, "classes": 2}).parts
    assert parts == [("a", None, 400), ("b", (0, 1), 1600)]


def test_other_classes_of_the_same_dataset_can_be_blended_in() -> None:
    P = DataDistribution(
        dataset="digits", classes=(3,), size=20, blend={"dataset": "digits", "share": 0.5, "classes": (1, 5)}
    )
    cell = Cell.resolve(P, ModelConfiguration(), TrainingProcedure(), Scoring())
    digits = load_source("digits", None)
    class_of = dict(zip((image.tobytes() for image in digits.images), digits.classes.tolist(), strict=True))
    assert [class_of[image.tobytes()] for image in training_set(cell).images] == [3] * 10 + [1, 5] * 5


def test_a_blend_that_could_take_an_image_twice_is_refused() -> None:
    P = DataDistribution(dataset="digits", classes=(3, 4), size=20, blend={"dataset": "digits", "share": 0.5})
    faults = impossible_pairs(P, ModelConfiguration(channel_mult=(2, 2)), TrainingProcedure(), Scoring())
    assert [fault.message for fault in faults] == [
        "class 3 of digits is in both parts of the blend, and an image must not be there twice"
    ]


def test_a_blend_of_nothing_is_no_blend(others: str) -> None:
    assert blended(others, 0.0, 10).P.blend is None


# --- what is refused -----------------------------------------------------------------------------------


def refusal(pattern: str, resolution: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_images(pattern, resolution=resolution)
    return str(caught.value)


def test_a_corrupt_image_names_its_file_or_row(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", pictures(2, side=8), [0, 0])
    bad = tmp_path / "a" / "class 0" / "001.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert str(bad) in refusal(folder)
    rows: list[bytes | None] = [png(pictures(1)[0]), b"no image"]
    file = write_parquet(tmp_path / "b.parquet", rows, [0, 0])
    assert f"{file}, row 1: not an image" in refusal(file)
    file = write_parquet(tmp_path / "c.parquet", [png(pictures(1)[0]), None], [0, 0])
    assert f"{file}, row 1: no image" in refusal(file)


def test_images_of_unequal_size_name_the_first_that_differs(tmp_path: Path) -> None:
    rows = [png(pictures(1, side=8)[0]), png(pictures(1, side=10)[0])]
    file = write_parquet(tmp_path / "a.parquet", rows, [0, 0])
    assert f"{file}, row 1: 10x10 pixels, but the first image has 8x8" in refusal(file)
    with pytest.raises(DataError, match=r"32x16 pixels, not square; P\.resolution crops"):
        describe(write_parquet(tmp_path / "b.parquet", [png(pictures(1)[0][:16])], [0]), None)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nothing.npz", b"", "not a .npz"),
        ("broken.npz", b"PK\x03\x04 and no more", "not a .npz"),
        ("nothing.parquet", b"PAR1", "not a Parquet file"),
        ("study.toml", b"x = 1", "not a folder of images, a .npz, a .zip or a Parquet file"),
    ],
)
def test_a_file_that_is_none_of_images_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in refusal(str(tmp_path / name))


def test_a_path_without_images_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(str(tmp_path / "nowhere"))
    assert "no images in it" in refusal(str(tmp_path))


def test_an_npz_without_images_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels=np.zeros((2, 8, 8)))
    assert "'pixels': 'float64 [2, 8, 8]'" in refusal(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.5, 1.0], [0]], ids=str)
def test_labels_that_are_no_whole_numbers_from_0_are_refused(tmp_path: Path, labels: list[object]) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), dtype=np.uint8), labels=labels)
    assert "`labels` must be 2 whole numbers from 0" in refusal(str(tmp_path / "a.npz"))


def test_a_path_that_the_system_refuses_is_an_error_and_no_crash(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (
            "cifar10",
            "the dataset uoft-cs/cifar10 cannot be fetched (REASON); download plain_text/train-00000-of-00001.parquet "
            'by hand, then set P.dataset = "FOLDER/*.parquet" in the study',
        ),
        (
            "imagenet-dogs",
            "the dataset ILSVRC/imagenet-1k cannot be fetched (REASON); download data/train-00000-of-00294.parquet and "
            'the 293 files like it by hand, then set P.dataset = "FOLDER/*.parquet" in the study',
        ),
    ],
)
def test_a_collection_that_cannot_be_fetched_names_what_to_download(
    monkeypatch: pytest.MonkeyPatch, dataset: str, sentence: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    with pytest.raises(DataError) as caught:
        load_source(dataset, 64)
    assert re.sub(r"\([^)]+\)(?=; download)", "(REASON)", str(caught.value)) == sentence


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_of_what_cannot_be_fetched_ends_with_one_sentence_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    study = tiny.write(tmp_path, tiny.TEXT.replace('"digits"', '"cifar10"'))
    ended = tiny.here("run", study, "--store", tmp_path / "s.duckdb", "--processes", processes)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("the dataset uoft-cs/cifar10 cannot be fetched (")
    assert not (tmp_path / "s.duckdb").exists()


STUDY = """[P]
dataset = "digits"
size = 8
"""


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('blend.share = 1.5\nblend.dataset = "digits"', "study.toml:4: P.blend.share: must be less than or equal to 1"),
        ("blend.share = 0.5", "P.blend.dataset: missing"),
        ("blend = 3", "study.toml:4: P.blend: must be a table of classes, dataset, share, not 3"),
        ("classes = [1, 10]", "study.toml:4: P.classes: digits has 10 classes, 0 to 9, and no class 10"),
        ("classes = [1, 1]", "study.toml:4: P.classes: names a class twice"),
        ('blend.dataset = "nowhere/*.png"\nblend.share = 0.5', "study.toml:4: P.blend.dataset: nowhere/*.png: no such"),
    ],
)
def test_faults_of_the_data_have_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY + line + "\n")
    with pytest.raises(StudyError) as caught:
        Study.load(Path("study.toml"))
    assert fault in str(caught.value)


def test_a_study_of_a_users_own_images_resolves_to_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("mine"), pictures(12, side=8), [0, 1] * 6)
    Path("study.toml").write_text('[P]\ndataset = "mine"\nsize = 6\n[M]\ncondition = "true"\n')
    (entry,) = Study.load(Path("study.toml")).cells
    assert (entry.cell.P.resolution, entry.cell.channels, entry.cell.labels) == (8, 3, 2)
    assert entry.cell.configuration["P"]["dataset"].startswith("sha256:")


def test_a_pipe_is_no_file_of_images_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "neither a file nor a folder" in refusal(str(tmp_path / "pipe.png"))
    assert "no images in it" in refusal(str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "npz", "parquet"])
def test_what_may_never_begin_or_end_is_never_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / f"socket.{suffix}"))
        for name in ("pipe", "zero", "socket", "*"):
            assert "neither a file nor a folder" in refusal(str(tmp_path / f"{name}.{suffix}"))


def test_the_home_of_nobody_is_refused() -> None:
    assert refusal("~nobody-of-that-name/images") == "~nobody-of-that-name/images: no such user"


# --- images that are bombs, or damaged -----------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def claimed_png(width: int, height: int, *more: bytes) -> bytes:
    """Return a grey PNG that claims a size, and has a row of it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(width + 1)))


def claimed_tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """Return a TIFF of tags, types, counts and values, and of nothing else."""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


TIFF_TAGS = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (278, 4, 1, 8)]

BOMBS = {
    "a PNG of 10^10 pixels": claimed_png(100_000, 100_000),
    "a PNG of 2^62 pixels": claimed_png(2**31 - 1, 2**31 - 1),
    "a PNG of 0 pixels": claimed_png(0, 8),
    "a PNG with text that inflates to 10 MB": claimed_png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))),
    "a GIF of 65,535 pixels a side": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "a TIFF of 2^64 pixels": claimed_tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), *TIFF_TAGS[2:]),
    "a TIFF with 4 * 10^9 strips": claimed_tiff(*TIFF_TAGS, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)),
    "a TIFF with 60,000 tags": claimed_tiff(*TIFF_TAGS, *((40_000, 4, 2**30, number) for number in range(60_000))),
    "a TIFF whose directory is its own next": claimed_tiff(*TIFF_TAGS)[:-4] + b"\x08\0\0\0",
    "a BMP of a negative width": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -8, 8, 1, 24, 0, 0, 0, 0, 0, 0),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_is_a_bomb_or_none_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "0.png").write_bytes(BOMBS[name])
    message = refusal(str(tmp_path), 8)
    assert message.startswith(f"{tmp_path}/0.png: not an image that can be read (")
    assert message.isprintable()


def test_an_image_of_nearly_the_most_pixels_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000), 1).save(tmp_path / "0.png")  # more than Pillow's limit, but not twice as many
    assert (read_images(str(tmp_path), resolution=4).images == 255).all()


def test_damaged_tags_are_no_reason_to_warn(tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 7)
    image.save(tmp_path / "0.tif", tiffinfo={270: "a description"})
    content = (tmp_path / "0.tif").read_bytes()
    (tmp_path / "0.tif").write_bytes(
        content.replace(struct.pack("<HHI", 270, 2, 14), struct.pack("<HHI", 270, 2, 10**6))
    )
    assert (read_images(str(tmp_path), resolution=None).images == 7).all()


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_whatever_byte_of_an_image_is_damaged_it_is_read_or_refused(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pictures(1, side=8)[0]).save(buffer, format=form)
    content = buffer.getvalue()
    rng = random.Random(form)
    for _ in range(60):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(1, len(content))])])
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "0.png").write_bytes(damaged)
        with suppress(DataError):
            read_images(str(tmp_path), resolution=8)


# --- limits --------------------------------------------------------------------------------------------


def test_a_collection_has_no_more_pixels_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "a", pictures(4, side=16), [0, 0, 1, 1])
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000")
    assert "4 x 256 pixels or more, but a collection may have 1,000 (3 kB as RGB)" in refusal(folder)
    assert len(read_images(folder, resolution=8).images) == 4  # what counts is what is kept
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1024")
    assert len(read_images(folder, resolution=None).images) == 4


def test_the_digits_are_not_made_larger_than_the_limit() -> None:
    with pytest.raises(DataError, match="digits: 1,797 x 100,000,000 pixels or more, but a collection may have"):
        load_source("digits", 10_000)


def test_without_a_limit_a_quarter_of_the_memory_is_the_most_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFMEM_MAX_PIXELS", raising=False)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert (most_pixels(), most_bytes_at_once()) == (5 * 10**9, min(15 * 10**9, memory // 4))


@pytest.mark.parametrize("given", ["0", "-1", "x", "1e9", "1" + 5000 * "0", "²"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", given)
    with pytest.raises(DataError, match="DIFFMEM_MAX_PIXELS: must be a whole number of pixels, not "):
        most_pixels()


def test_max_pixels_holds_for_the_command_and_not_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000")
    write_folder(Path("mine"), pictures(4, side=16), [0, 0, 1, 1])
    Path("s.toml").write_text('P.dataset = "mine"\nP.size = 4\nM.network = "optimum"\n[score]\nsamples = 2\n')
    for arguments in (
        ["plan", "s.toml"],
        ["run", "s.toml", "--processes", "1"],
        ["score", "--images", "mine", "--against", "mine"],
    ):
        refused = CliRunner().invoke(main, arguments)
        assert (refused.exit_code, "raise the limit with --max-pixels" in refused.stderr) == (2, True)
    assert CliRunner().invoke(main, ["plan", "s.toml", "--max-pixels", "1024"]).exit_code == 0
    assert os.environ["DIFFMEM_MAX_PIXELS"] == "1000"
    monkeypatch.delenv("DIFFMEM_MAX_PIXELS")
    assert CliRunner().invoke(main, ["plan", "s.toml", "--max-pixels", "1024"]).exit_code == 0
    assert "DIFFMEM_MAX_PIXELS" not in os.environ


def test_the_processes_of_a_run_have_its_limit(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", pictures(4, side=16), [0, 0, 1, 1])
    text = f'P.dataset = "{tmp_path}/mine"\nP.size = 4\nM.network = "optimum"\nscore.samples = 2\n'
    text += "axes = [{T.seed = [0, 1]}]\n"
    (tmp_path / "s.toml").write_text(text)
    run = ["run", tmp_path / "s.toml", "--store", tmp_path / "a.duckdb", "--processes", "2", "--max-pixels", "1024"]
    ended = tiny.diffmem(*run, DIFFMEM_MAX_PIXELS="1000")
    assert ended.returncode == 0, ended.stderr
