"""Every sentence that a user's mistake is answered with, word by word.

What only other hardware, another process or a broken disk causes is caused in other tests; tests/test_every_message.py
looks for what none of them asserts.
"""
# ruff: noqa: E501 - a sentence is easier to find on one line

import io
import os
import re
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pytest
import tiny
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from click.testing import CliRunner, Result
from PIL import Image

import diffmem
from diffmem.cli import main
from diffmem.data.collection import read_images
from diffmem.data.decoding import ALONE, on_all_cores, progress
from diffmem.data.duplicates import find_groups
from diffmem.data.training_sets import draw, training_set
from diffmem.errors import DataError, ImageWarning, StoreError
from diffmem.store.schema import MIGRATIONS
from diffmem.store.store import Store
from diffmem.study.study import Study


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Work in an empty folder, alone, with the signals put back that `run` takes over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DIFFMEM_PROCESSES", "1")
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# --- study files ---------------------------------------------------------------------------------------


FAULTS = {
    # files
    "M.width 8": "study.toml:1: not valid TOML: Expected '=' after a key in a key/value pair",
    "M.network = ddpm": "study.toml:1: not valid TOML: Invalid value (text needs quotes)",
    "M.attention = [\n  True]": "study.toml:2: not valid TOML: Invalid value (true and false are in small letters)",
    "T.lr = .5": "study.toml:1: not valid TOML: Invalid value",
    "T.epochs = 3\nT.epochs = 4": "study.toml:2: not valid TOML: Cannot overwrite a value",
    "M = ["
    + 500 * "[": "study.toml: not valid TOML: TOML inline arrays/tables are nested more than the allowed 400 levels",
    'title = "\\u0000"\nextends = "\\u0000"': "study.toml:2: extends: not a file name",
    'extends = "nowhere.toml"': "nowhere.toml: cannot be read: No such file or directory; study.toml extends it",
    'extends = "study.toml"': "study.toml:1: extends: study.toml leads back to this file",
    # keys
    "M.widht = 8": "study.toml:1: M.widht: no such key; did you mean width?",
    "M.xyz = 8": "study.toml:1: M.xyz: no such key",
    "T.samples = 8": "study.toml:1: T.samples: no such key; did you mean score.samples?",
    "titel = 1": "study.toml:1: titel: no such key; did you mean title?",
    "title = 5": "study.toml:1: title: must be text, not 5",
    "score = 3": "study.toml:1: score: must be a table, not 3",
    "P.blend = 3": "study.toml:1: P.blend: must be a table of classes, dataset, share, not 3",
    "profiles = 3": "study.toml:1: profiles: must be a table of tables: [profiles.NAME]",
    "profiles.laptop = 3": "study.toml:1: profiles.laptop: must be a table",
    # axes
    "axes = [1, 2]": "study.toml:1: axes: must be [[axes]] tables of lists",
    "axes = [{}]": "study.toml:1: axes: an axis needs a key with its values, as in P.size = [4, 8]",
    "axes = [{title = [1]}]": "study.toml:1: title: cannot be on an axis; only keys of P, M and T can",
    "axes = [{P.size = 8}]": "study.toml:1: P.size: an axis needs a list of values, not 8",
    "axes = [{P.size = []}]": "study.toml:1: P.size: an axis needs a list of values, not []",
    "axes = [{emm.epsilon = [0.1]}]": "study.toml:1: emm.epsilon: cannot be on an axis; only keys of P, M and T can",
    "axes = [{M.blocks = [1, 2], M.dropout = [0.1]}]": "study.toml:1: M.blocks: keys of one axis move together and need equally many values: M.blocks has 2, M.dropout has 1",
    "axes = [{M.blocks = [1, 2]}, {M.blocks = [1]}]": "study.toml:1: M.blocks: is on an axis already, at study.toml:1",
    f"axes = [{{T.seed = {list(range(1000))}}}, {{P.draw = {list(range(1000))}}}]": "study.toml: axes: cross to 1000000 cells; 100000 is the most",
    # values of one key
    "M.blocks = 0": "study.toml:1: M.blocks: must be greater than or equal to 1, not 0",
    "M.blocks = 1" + 20 * "0": "study.toml:1: M.blocks: must be less than or equal to 1000, not 100000000000000000000",
    "T.lr = nan": "study.toml:1: T.lr: must be a finite number, not nan",
    "M.attention = 4": "study.toml:1: M.attention: must be a list, not 4",
    'M.skips = "12"': "study.toml:1: M.skips: must be 0s and 1s, not '12'",
    "P.draw = -1": "study.toml:1: P.draw: must be greater than or equal to 0 or 'first', not -1",
    'M.condition = "maybe"': "study.toml:1: M.condition: must be 'none', 'true', 'random' or 'unique', not 'maybe'",
    f"title = {list(range(100))}": "study.toml:1: title: must be text, not [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1 ... 7, 98, 99]",
    "P.blend.share = 0.5": "study.toml: P.blend.dataset: missing; every cell needs it",
    # values of several keys
    'P.blend = {dataset = "nowhere", share = 0.5}': "study.toml:1: P.blend.dataset: nowhere: no such file or folder (datasets with a name: cifar10, digits, emoji, imagenet-dogs)",
    'P.blend = {dataset = "~nobody-of-that-name", share = 0.5}': "study.toml:1: P.blend.dataset: ~nobody-of-that-name: no such user (datasets with a name: cifar10, digits, emoji, imagenet-dogs)",
    'P.blend = {dataset = "study.toml", share = 0.5}': "study.toml:1: P.blend.dataset: study.toml: not a folder of images, a .npz, a .zip or a Parquet file",
    'P.blend = {dataset = "/dev/null", share = 0.5}': "study.toml:1: P.blend.dataset: /dev/null: neither a file nor a folder",
    'P.blend = {dataset = "digits", share = 0.5}': "study.toml:1: P.blend.classes: class 0 of digits is in both parts of the blend, and an image must not be there twice",
    'P.blend = {dataset = "digits", classes = [1], share = 0.5}\nM.condition = "true"\nP.classes = [0]': "study.toml:2: M.condition: true labels of two blended datasets do not agree",
    "P.classes = 11": "study.toml:1: P.classes: digits has 10 classes, 0 to 9, and no class 10",
    "P.classes = [1, 1]": "study.toml:1: P.classes: names a class twice: [1, 1]",
    "P.resolution = 16": "study.toml:1: P.resolution: digits has 8x8 pixels, not 16",
    "axes = [{P.size = [1741]}]": "study.toml:1: P.size: digits has images for balanced sets of up to 1740, not 1741; P.balance = false takes any of its 1797",
    "axes = [{P.size = [1798]}]": "study.toml:1: P.size: digits has images for balanced sets of up to 1740, not 1798",
    "axes = [{P.size = [1798]}]\nP.balance = false": "study.toml:1: P.size: digits has images for sets of up to 1797, not 1798",
    'P.labels = "kind"': "study.toml:2: P.dataset: digits: has its own classes; P.labels names a column of a Parquet file",
    'M.condition = "random"': "study.toml:1: M.labels: missing; condition = random needs a number of labels",
    "M.attention = [3]": "study.toml:1: M.attention: the net has no resolution 3; it has 8, 4",
    'M.skips = "111"': "study.toml:1: M.skips: 2 levels of 2 blocks have 6 skips, not 3",
    "axes = [{M.width = [9]}]": "study.toml:1: M.width: the noise embedding is half sines and half cosines; 9 is odd",
    "axes = [{M.width = [2]}]": "study.toml:1: M.width: group norm cannot split 2 channels evenly; take a multiple of 4 (of 32 from 64 on)",
    "axes = [{M.channel_mult = [[1, 1, 1, 1, 1]]}]": "study.toml:1: M.channel_mult: 5 levels halve the side 4 times, which 8 pixels do not allow",
    "score.every = 1\naxes = [{T.epochs = [10001]}]": "study.toml:1: score.every: 10001 epochs with a checkpoint every 1 are more than 10000 checkpoints",
    "T.steps = 5": "study.toml:6: T.epochs: T.steps is in its place already, at study.toml:1; a study has one of T.epochs, T.steps or T.images",
    "score.points = 2": "study.toml:1: score.points: 2 checkpoints, but the training has 1 optimizer step",
    "T.batch_size = 1\nscore.points = 5\naxes = [{T.epochs = [1000000000]}]": "study.toml:3: T.epochs: 8000000000 optimizer steps; a checkpoint inside an epoch is at step 1000000000 at most",
    # searches
    'emm.search = "bisect"': "study.toml:1: emm.range: missing; a search needs its smallest and largest size, as in range = [16, 4096]",
    "emm.range = [4, 8]": 'study.toml:1: emm.range: is for a search; add search = "bisect", or put P.size on an axis',
    'emm.search = "bisect"\nemm.range = [8, 4]': "study.toml:2: emm.range: must be two sizes from 2 on, the smaller one first, not [8, 4]",
    'emm.search = "bisect"\nemm.range = [4, 8]\naxes = [{P.size = [4]}]': "study.toml:3: P.size: is on an axis, but a search chooses the sizes itself",
}


@pytest.mark.parametrize(("text", "sentence"), FAULTS.items(), ids=lambda text: ascii(text[:30]))
def test_a_fault_of_a_study_file_is_told_in_these_words(text, sentence):
    Path("study.toml").write_text(f"{text}\n{tiny.DOTTED}")
    result = command("plan", "study.toml")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{sentence}\n")


OVERRIDES = {
    "M.widht=8": "--set M.widht=8: M.widht: no such key; did you mean width?",
    "T.epochs": "--set T.epochs: not KEY=VALUE in TOML syntax: Expected '=' after a key in a key/value pair (text needs quotes)",
    "T.epochs=1"
    + 5000
    * "0": f"--set T.epochs=1{5000 * '0'}: not KEY=VALUE in TOML syntax: Exceeds the limit (4300 digits) for integer string conversion: value has 5001 digits",
    'extends="a"': '--set extends="a": extends: cannot be overridden',
    "title=5": "--set title=5: title: must be text, not 5",
    'title="\udcff"': '--set title="\\udcff": not UTF-8 text',
}


@pytest.mark.parametrize(("override", "sentence"), OVERRIDES.items(), ids=lambda text: ascii(text[:30]))
def test_a_fault_of_the_command_line_is_told_in_these_words(override, sentence):
    Path("study.toml").write_text(tiny.DOTTED)
    result = command("plan", "study.toml", "--set", override)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{sentence}\n")


# --- everything else -----------------------------------------------------------------------------------


def nothing() -> None:
    """Make no file."""


def a_study() -> None:
    tiny.write(Path())


def bytes_of(name: str, content: bytes) -> Callable[[], None]:
    def make() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)

    return make


def arrays(**named: object) -> Callable[[], None]:
    return lambda: np.savez("a.npz", **{name: np.asarray(value) for name, value in named.items()})


def grey(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.uint8)


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(*sides: tuple[int, int]) -> Callable[[], None]:
    def make() -> None:
        Path("images").mkdir()
        for number, (width, height) in enumerate(sides):
            Path(f"images/{number}.png").write_bytes(picture(width, height))

    return make


def endless_picture() -> None:
    """Make a sparse file of a terabyte."""
    Path("images").mkdir()
    with Path("images/0.png").open("wb") as file:
        file.truncate(10**12)


def parquet(sql: str) -> Callable[[], None]:
    def make() -> None:
        with duckdb.connect() as connection:
            connection.execute(f"COPY ({sql}) TO 'a.parquet'")

    return make


def database(sql: str) -> Callable[[], None]:
    def make() -> None:
        with duckdb.connect("a.duckdb") as connection:
            connection.execute(sql)

    return make


def store(name: str = "a.duckdb", ratio: float = 1.0) -> Store:
    """Make a store in which both cells of the tiny study are finished."""
    loaded = tiny.load(Path(), tiny.TEXT)
    made = Store(Path(name))
    tiny.register(made, loaded)
    for entry in loaded.cells:
        tiny.measure(made, entry.cell, [ratio] * 3)
    return made


def crossed() -> None:
    """Make a store with two studies that begin alike, and with two cells that do."""
    for name in ("tiny", "tiny@laptop"):
        loaded = tiny.load(Path(), tiny.TEXT + "[[axes]]\nP.size = [8, 107]\n", name)
        tiny.register(Store(Path("a.duckdb")), loaded)


def no_disk() -> None:
    """Make a store, and let what an export writes go to a full device."""
    store()


def newer() -> None:
    with store().writing() as connection:
        connection.execute("INSERT INTO migrations VALUES (99, now()::TIMESTAMP)")


def two_stores() -> None:
    store("a.duckdb", 1.0)
    store("b.duckdb", 0.5)


def state_is_a_file() -> None:
    tiny.write(Path(), tiny.TEXT.replace("epochs = 30 ", "epochs = 300 "))
    Path("states").write_text("a file where the folder should be")


def damaged() -> None:
    """Make a store of which the evidence cannot be read, and two bytes of its first block are others."""
    content = bytearray(store("b.duckdb").path.read_bytes())
    Path("a.duckdb").write_bytes(content[: len(content) // 2])
    content[20:22] = b"??"
    Path("c.duckdb").write_bytes(content)


def full_device() -> None:
    store()
    Path("full").symlink_to("/dev/full")


def chain() -> None:
    for number in range(30):
        Path(f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n{tiny.DOTTED}')


def unequal_pictures() -> None:
    pictures((8, 8), (9, 9))()
    Path("s.toml").write_text('P.dataset = "images"\nP.size = 2')


def study_of(dataset: str, *lines: str) -> Callable[[], None]:
    text = "\n".join([f'P.dataset = "{dataset}"', "P.size = 2", *lines])
    return bytes_of("s.toml", text.encode())


def both(*makes: Callable[[], object]) -> Callable[[], None]:
    def make() -> None:
        for each in makes:
            each()

    return make


def zipped(*names: str, compression: int = zipfile.ZIP_STORED) -> Callable[[], None]:
    def make() -> None:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile("a.zip", "w", compression) as archive:
            for name in names:  # one name twice is a warning
                archive.writestr(name, picture(8, 8))

    return make


def labelled(content: str) -> Callable[[], None]:
    return both(pictures((8, 8), (8, 8)), bytes_of("images/dataset.json", content.encode()))


def splits() -> None:
    for name in ("test", "val"):
        bytes_of(f"images/{name}/0.png", picture(8, 8))()


def link_to_nowhere() -> None:
    pictures((8, 8))()
    Path("images/1.png").symlink_to("nowhere")


def pages() -> None:
    Path("images").mkdir()
    page = Image.new("L", (8, 8))
    page.save("images/0.tif", save_all=True, append_images=[page, page])


def scored_otherwise() -> None:
    """Score images, and put another score of them into the store, as if older rules had given it."""
    arrays(images=grey(2, 8, 8))()
    assert command(*SCORE.split()).exit_code == 0
    with duckdb.connect("s.duckdb") as connection:
        connection.execute("UPDATE checkpoints SET memorized = 1, ratio = 0.5")


def cache_is_a_file() -> None:
    arrays(images=grey(2, 8, 8))()
    Path("cache").write_text("")


class Case(NamedTuple):
    """A command line, what it finds, and what it says last."""

    arguments: str
    sentence: str
    make: Callable[[], object] = nothing
    exit_code: int = 2


SCORE = "score --images a.npz --against digits --store s.duckdb"
TEXTS = "SELECT 'a' AS name"
RUN = "run tiny.toml --store a.duckdb"

CASES = [
    # study files
    Case("plan nowhere.toml", "nowhere.toml: cannot be read: No such file or directory"),
    Case("plan .", ".: cannot be read: Is a directory; a study file ends in .toml, as studies/quickstart.toml"),
    Case("plan latin.toml", "latin.toml: not valid TOML: not UTF-8 text", bytes_of("latin.toml", b'title = "\xe9"')),
    Case("plan /dev/zero", "/dev/zero: a pipe or a device, not a study file"),
    Case(
        "plan long.toml",
        "long.toml: longer than 10000000 bytes; no study file is",
        bytes_of("long.toml", b"#" * 10**7 + b"#"),
    ),
    Case("plan tiny.toml --profile laptop", "tiny.toml: profiles: no profile 'laptop'; there is none", a_study),
    Case(
        "plan empty.toml",
        "empty.toml: P.dataset: missing; every cell needs it\nempty.toml: P.size: missing; every cell needs it",
        bytes_of("empty.toml", b""),
    ),
    Case("plan 0.toml", "20.toml:1: extends: more than 20 files extend one another", chain),
    Case(
        "plan s.toml",
        "s.toml:1: P.dataset: images/1.png: 9x9 pixels, but the first image has 8x8; P.resolution crops and resizes them to one size",
        unequal_pictures,
    ),
    Case(
        "plan s.toml",
        "s.toml:1: P.dataset: images: 8x9 pixels, not square; P.resolution crops them",
        both(pictures((8, 9), (8, 9)), study_of("images")),
    ),
    Case(
        "plan s.toml",
        "s.toml:1: P.dataset: images: its images have at most 8x8 pixels, so 16x16 would enlarge them; choose a smaller P.resolution",
        both(pictures((8, 8), (8, 8)), study_of("images", "P.resolution = 16")),
    ),
    Case(
        "plan s.toml",
        "s.toml:1: P.dataset: images: has no columns; P.labels = 'kind' names one of a Parquet file",
        both(pictures((8, 8), (8, 8)), study_of("images", 'P.labels = "kind"')),
    ),
    Case(
        "plan s.toml",
        "s.toml:2: P.size: a.npz has no images of class 0; take those that there are with P.classes = [1, 2]",
        both(arrays(images=grey(2, 8, 8), labels=[1, 2]), study_of("a.npz")),
    ),
    Case(
        "plan s.toml",
        "s.toml:2: P.size: a.npz has no images of classes 0, 2; take those that there are with P.classes = [1, 3]",
        both(arrays(images=grey(2, 8, 8), labels=[1, 3]), study_of("a.npz")),
    ),
    Case(
        "plan s.toml",
        "s.toml:2: P.size: a.npz has no images of class 0; take those that there are with P.classes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, ...]",
        both(arrays(images=grey(21, 8, 8), labels=range(1, 22)), study_of("a.npz")),
    ),
    Case(
        "plan s.toml",
        "s.toml:2: P.size: a.npz has no images of classes 0, 22; take those that there are with P.classes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, ...]",
        both(arrays(images=grey(22, 8, 8), labels=[*range(1, 22), 23]), study_of("a.npz")),
    ),
    # command lines
    Case(
        "plan tiny.toml --measure --tflops 1",
        "Error: --measure and --tflops are two ways to tell the time; take one",
        a_study,
    ),
    Case(
        "plan tiny.toml --tflops nan", "Error: Invalid value for --tflops: nan is not a number of operations", a_study
    ),
    Case(
        RUN + " --shard 3/2",
        "Error: Invalid value for --shard: '3/2' is not I/N with I from 1 to N, as in 2/8",
        a_study,
    ),
    Case("plan a\0b", "Error: Invalid value for 'STUDY': 'a\\x00b' is not a file name in UTF-8"),
    Case(
        "export cells -o " + 300 * "x" + ".csv --store a.duckdb",
        300 * "x" + ".csv: cannot be written: File name too long; name another file",
        store,
    ),
    Case(
        "report -o " + 300 * "x" + ".html --store a.duckdb",
        300 * "x" + ".html: cannot be written: File name too long; name another file",
        store,
    ),
    Case(
        "status " + 300 * "x" + ".toml --store a.duckdb",
        f"{300 * 'x'}.toml: no such file, and a.duckdb: no study '{300 * 'x'}'; it has tiny. `diffmem run STUDY` adds one",
        store,
    ),
    # images
    Case("score --images nowhere --against digits", "nowhere: no such file or folder"),
    Case(
        "score --images images --against digits",
        "images: no images in it",
        lambda: Path("images").mkdir(),
    ),
    Case(
        "score --images images --against digits",
        "images: no images in it, but .npz files; name them as images/*.npz",
        bytes_of("images/a.npz", b""),
    ),
    Case(
        "score --images images --against digts",
        "digts: no such file or folder (datasets with a name: cifar10, digits, emoji, imagenet-dogs)",
        pictures((8, 8)),
    ),
    Case(
        "score --images images --against *.parquet",
        "FOLDER/a.parquet: not a Parquet file that can be read: Invalid Input Error: File 'FOLDER/a.parquet' too small to be a Parquet file",
        lambda: (pictures((8, 8))(), bytes_of("a.parquet", b"PAR1")()),
    ),
    Case("score --images ~nobody-of-that-name --against digits", "~nobody-of-that-name: no such user"),
    Case("score --images /dev/null --against digits", "/dev/null: neither a file nor a folder"),
    Case("score --images " + 300 * "x" + " --against digits", 300 * "x" + ": no such file or folder"),
    Case(
        "score --images notes.txt --against digits",
        "notes.txt: not a folder of images, a .npz, a .zip or a Parquet file",
        bytes_of("notes.txt", b"notes"),
    ),
    Case(
        "score --images images --against digits",
        "images/1.png: not an image that can be read (not AVIF, BMP, DIB, GIF, JPEG, JPEG2000, PNG, PPM, QOI, TIFF, WEBP)",
        bytes_of("images/1.png", b"no image"),
    ),
    Case(
        "score --images images --against digits",
        "digits: its images have at most 8x8 pixels, so 8x9 would enlarge them; --resolution N compares all images at N x N pixels",
        pictures((8, 9)),
    ),
    Case(
        "score --images images --against digits",
        "images/1.png: 9x9 pixels, but the first image has 8x8; --resolution N compares all images at N x N pixels",
        pictures((8, 8), (9, 9)),
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet: not a Parquet file that can be read: Invalid Input Error: File 'FOLDER/a.parquet' too small to be a Parquet file",
        bytes_of("a.parquet", b"PAR1"),
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet: no column of images (bytes, or a struct of bytes and path); it has ['name']",
        parquet(TEXTS),
    ),
    Case(
        "score --images a.parquet --against digits", "a.parquet, row 0: no image", parquet("SELECT NULL::BLOB AS image")
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet, row 0: no label",
        parquet("SELECT 'a'::BLOB AS image, NULL AS label"),
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet, row 0: the label is -1, but class numbers are whole, from 0 to 99999",
        parquet("SELECT 'a'::BLOB AS image, -1 AS label"),
    ),
    Case(
        "score --images a.parquet --against digits --max-pixels 100",
        "a.parquet: 2048 rows of images have 1 kB, but at most 300B are read at once; raise the limit with --max-pixels",
        parquet("SELECT repeat('a', 1000)::BLOB AS image"),
    ),
    Case(
        "score --images images --against digits --max-pixels 100",
        "images: 2 x 64 pixels or more, but a collection may have 100 (300B as RGB); choose fewer or smaller images, or raise the limit with --max-pixels",
        pictures((8, 8), (8, 8)),
    ),
    Case(
        "score --images images --against digits --max-pixels 0",
        "Error: Invalid value for '--max-pixels' (env var: 'DIFFMEM_MAX_PIXELS'): 0 is not in the range 1<=x<=1000000000000000000.",
        pictures((8, 8)),
    ),
    Case(
        "score --images images --against digits",
        "images/0.png: longer than 1,000,000,000 bytes; no image is",
        endless_picture,
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet: no images in it",
        parquet("SELECT 'a'::BLOB AS image WHERE false"),
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet: several columns of images, ['left', 'right']; rename the one that is meant to `image`",
        parquet("SELECT 'a'::BLOB AS left, 'b'::BLOB AS right"),
    ),
    Case(
        "score --images a.parquet --against digits",
        "a.parquet: class names of up to 1,001 characters, but at most 1,000 are read",
        parquet("SELECT 'a'::BLOB AS image, repeat('a', 1001) AS label"),
    ),
    Case(
        "score --images a.zip --against digits",
        "a.zip: not a .zip that can be read (File is not a zip file)",
        bytes_of("a.zip", b"no zip"),
    ),
    Case(
        "score --images a.zip --against digits",
        "a.zip: has 0.png twice; zip its images again, each once",
        zipped("0.png", "1.png", "0.png"),
    ),
    Case(
        "score --images a.zip --against digits",
        "a.zip/0.png: compressed in another way than stored or deflated; zip it again",
        zipped("0.png", compression=zipfile.ZIP_BZIP2),
    ),
    Case(
        "score --images images --against digits",
        "images/1.png: a link that leads nowhere; remove it, or bring back what it leads to",
        link_to_nowhere,
    ),
    Case(
        "score --images images --against digits",
        "images: its folders test, val are splits of a dataset, not classes; name the one that the model has seen",
        splits,
    ),
    Case(
        "score --images images --against digits",
        "images/0.tif: holds 3 frames or pages; save each as an image of its own",
        pages,
    ),
    Case(
        "score --images images --against digits",
        "images/dataset.json: no labels as EDM writes them (Expecting value: line 1 column 1 (char 0))",
        labelled("no JSON"),
    ),
    Case(
        "score --images images --against digits",
        "images: 1 of 2 images have no label in dataset.json, the first is 1.png; add theirs, or remove dataset.json",
        labelled('{"labels": [["0.png", 0]]}'),
    ),
    Case(
        "score --images images --against digits",
        "images: 1 of 3 images in dataset.json are not there, the first is 2.png; bring them back, or remove their labels",
        labelled('{"labels": [["0.png", 0], ["1.png", 0], ["2.png", 1]]}'),
    ),
    Case(SCORE, "a.npz: not a .npz that can be read (no zip file)", bytes_of("a.npz", b"no zip")),
    Case(SCORE, "a.npz: not a .npz that can be read (no zip file)", bytes_of("a.npz", b"")),
    Case(
        SCORE,
        "a.npz: needs an array `images` of [n, h, w], [n, h, w, c] or [n, c, h, w]; has {'pixels': 'uint8 [2, 8, 8]'}",
        arrays(pixels=grey(2, 8, 8)),
    ),
    Case(SCORE, "a.npz: `images` has neither 1 nor 3 channels: [2, 8, 8, 5]", arrays(images=grey(2, 8, 8, 5))),
    Case(
        SCORE,
        "digits: its images have at most 8x8 pixels, so 9x8 would enlarge them; --resolution N compares all images at N x N pixels",
        arrays(images=grey(2, 8, 9)),
    ),
    Case(
        SCORE,
        "a.npz: `labels` must be 2 whole numbers from 0, not float64 [2]",
        arrays(images=grey(2, 8, 8), labels=[0.5, 1.0]),
    ),
    Case(
        "score --images a.npz --against a.npz",
        "a.npz: one image; a second nearest training image needs two",
        arrays(images=grey(1, 8, 8)),
    ),
    Case(
        SCORE + " --max-pixels 128",
        "a.npz: `images` has 1.02 kB in Fortran's order, which are read at once, but at most 384B may be; save it in C's order, or raise the limit with --max-pixels",
        arrays(images=np.zeros((2, 8, 8), order="F")),
    ),
    Case(
        SCORE,
        "s.duckdb: has another score of the same images, 1 of 2 instead of 0 of 2 memorized; name another store",
        scored_otherwise,
    ),
    Case(
        SCORE,
        "FOLDER/cache/locks: decoded images cannot be kept there (Not a directory); name another folder with DIFFMEM_CACHE",
        cache_is_a_file,
    ),
    Case(
        "score --images a.npz --against digits --store a.npz",
        "a.npz: not a DuckDB file; name another store",
        arrays(images=grey(2, 8, 8)),
    ),
    # stores
    Case(
        "emm tiny --store a.duckdb",
        "a.duckdb: no store there yet; `diffmem run`, `diffmem score` and a Monitor make one, or name another one with --store",
    ),
    Case(
        "emm tiny --store a.duckdb",
        "a.duckdb: not a DuckDB file; name another store",
        bytes_of("a.duckdb", b"notes"),
    ),
    Case(
        "emm tiny --store a.duckdb",
        "a.duckdb: a DuckDB file, but not a diffmem store; name another one",
        database("CREATE TABLE mine (i INTEGER)"),
    ),
    Case(
        "emm tiny --store a.duckdb",
        f"a.duckdb: made by a newer diffmem (schema 99, this one knows {len(MIGRATIONS)}); upgrade diffmem, or name another store",
        newer,
    ),
    Case(
        "emm tiny --store a.duckdb",
        "a.duckdb: damaged, or cut short while it was copied; copy it again, or name another store",
        damaged,
    ),
    Case(
        "emm tiny --store c.duckdb",
        "c.duckdb: damaged, or cut short while it was copied; copy it again, or name another store",
        damaged,
    ),
    Case(
        "store merge a.duckdb -o new.duckdb",
        "a.duckdb: damaged, or cut short while it was copied; copy it again, or name another store",
        damaged,
    ),
    Case("emm tiny --store .", ".: no file can be there; name another store"),
    Case(
        "emm other --store a.duckdb",
        "a.duckdb: no study 'other'; it has tiny. `diffmem run STUDY` adds one",
        store,
    ),
    Case(
        "emm other --store a.duckdb",
        "a.duckdb: no study 'other'; it has none yet. `diffmem run STUDY` adds one",
        database("SELECT 1"),
    ),
    Case(
        "report --store a.duckdb -o tiny.toml/page.html",
        "tiny.toml/page.html: cannot be written: File exists; name another file",
        store,
    ),
    Case(
        "report --store a.duckdb -o full",
        "full: cannot be written, the disk is full; free some space and try again",
        full_device,
        1,
    ),
    # names
    *(
        Case(
            f"{command} ti --store a.duckdb",
            "a.duckdb: 'ti' begins 2 names: tiny@laptop, tiny; write more of the study that is meant",
            crossed,
        )
        for command in ("status", "emm", "report", "export cells --study")
    ),
    *(
        Case(
            f"{command} tinny --store a.duckdb",
            "a.duckdb: no study 'tinny'; did you mean tiny?; it has tiny@laptop, tiny. `diffmem run STUDY` adds one",
            crossed,
        )
        for command in ("status", "emm", "report", "export cells --study")
    ),
    *(
        Case(
            f"{command} --store a.duckdb",
            "a.duckdb: '81' begins 2 names: 81520624cd1fcda3 (tiny@laptop: M.dropout = 0.2, P.size = 8), 81e73c56614b97a5 (tiny@laptop: M.dropout = 0.2, P.size = 107); write more of the cell that is meant",
            crossed,
        )
        for command in ("show 81", "diff 81 22", "diff 22 81")
    ),
    *(
        Case(
            f"{command} --store a.duckdb",
            "a.duckdb: no cell '226c168813fa0138'; did you mean 226c168813fa0137?; `diffmem status STUDY` lists those of a study",
            store,
        )
        for command in ("show 226c168813fa0138", "diff 226c168813fa0138 22", "diff 22 226c168813fa0138")
    ),
    Case("show x --store a.duckdb", "a.duckdb: no cell 'x'; `diffmem status STUDY` lists those of a study", store),
    # queries and exports
    Case("query  --store a.duckdb", "the query: one SELECT at a time, not 0 statements", store),
    Case("query FROM\tcells;FROM\tcells --store a.duckdb", "the query: one SELECT at a time, not 2 statements", store),
    Case(
        "query DROP\tTABLE\tcells --store a.duckdb",
        "the query: only a SELECT is run, for a query changes nothing; this is DROP",
        store,
    ),
    Case("query SELECT\t'\udcff' --store a.duckdb", '''the query: not UTF-8 text: "SELECT\\t'\\udcff'"''', store),
    Case(
        "query SELECT\tnope --store a.duckdb",
        'the query: Binder Error: Referenced column "nope" was not found because the FROM clause is missing (the query SHOW TABLES lists the tables)',
        store,
    ),
    Case(
        "export cells --store a.duckdb --format parquet",
        "Error: Parquet is no text; name a file for it with -o",
        store,
    ),
    Case(
        "export cells --store a.duckdb -o cells.txt",
        "Error: cells.txt: name it .csv, .parquet or .json, or say --format",
        store,
    ),
    Case(
        "export cells --store a.duckdb -o tiny.toml/cells.csv",
        "tiny.toml/cells.csv: cannot be written: File exists; name another file",
        store,
    ),
    Case(
        "export cells --store a.duckdb -o /dev/full --format csv",
        "/dev/full: cannot be written, the disk is full; free some space and try again",
        no_disk,
        1,
    ),
    *(
        Case(
            f"{command} a.duckdb",
            "a.duckdb: no store there yet; `diffmem run`, `diffmem score` and a Monitor make one, or name another one with --store",
        )
        for command in (
            "store info",
            "store check",
            "show 88 --store",
            "diff 88 99 --store",
            "query FROM\tcells --store",
        )
    ),
    Case("export cells --json --format csv", "Error: --json and --format csv are two formats; take one"),
    Case("store check a.duckdb --store b.duckdb", "Error: a.duckdb and --store b.duckdb are two stores; name one"),
    # reports
    Case(
        "report --store " + 300 * "x",
        300 * "x" + ": no file can be there; name another store",
    ),
    Case("report --store a.duckdb -o .", "Error: Invalid value for '-o' / '--output': File '.' is a directory.", store),
    Case(
        "report --store a.duckdb --store b.duckdb",
        "b.duckdb: measured otherwise than in a.duckdb: 226c168813fa0137 at checkpoint 12, 226c168813fa0137 at checkpoint 24, 226c168813fa0137 at checkpoint 30, 81520624cd1fcda3 at checkpoint 12, 81520624cd1fcda3 at checkpoint 24 and 1 more; merge only one of the two",
        two_stores,
    ),
    Case(
        "store merge b.duckdb -o a.duckdb",
        "b.duckdb: measured otherwise than in a.duckdb: 226c168813fa0137 at checkpoint 12, 226c168813fa0137 at checkpoint 24, 226c168813fa0137 at checkpoint 30, 81520624cd1fcda3 at checkpoint 12, 81520624cd1fcda3 at checkpoint 24 and 1 more; merge only one of the two",
        two_stores,
    ),
    Case(
        "store merge a.duckdb -o tiny.toml/b.duckdb",
        "tiny.toml/b.duckdb: no file can be there; name another store",
        store,
    ),
    # runs
    Case(
        RUN + " --log-with tensorbord",
        f"--log-with tensorbord: no such tracker; Accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}",
        a_study,
    ),
    Case(RUN, "states: cannot keep training states there: File exists", state_is_a_file, 1),
    Case(
        RUN + ' --split batch --set emm.search="bisect" --set emm.range=[4,8]',
        "a search trains a cell in each process: use --split cells",
        a_study,
        1,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arguments[:40]}: {case.sentence[:40]}")
def test_a_mistake_is_told_in_these_words(case, folder):
    case.make()
    result = command(*case.arguments.split(" "))
    said = result.stderr.replace(str(folder), "FOLDER").rstrip("\n")
    said = re.sub("[0-9a-f]{64}", "HASH", re.sub("^Usage: .*(?=Error: )", "", said, flags=re.DOTALL))
    assert (result.exit_code, result.stdout, said) == (case.exit_code, "", case.sentence)


FAILED = {
    "T.lr=1e30": "the training loss is nan at step 12; lower T.lr (now 1e+30) or lengthen T.warmup_epochs",
    'M = {network = "optimum", condition = "random", labels = 100}': "only 8 of 100 labels are on a training image, and "
    "the others have no optimum; take fewer labels or a larger size",
}


@pytest.mark.parametrize(("override", "sentence"), FAILED.items(), ids=["loss", "labels"])
def test_a_cell_that_fails_is_told_in_these_words_and_again_by_status(override, sentence):
    a_study()
    result = command("run", "tiny.toml", "--store", "a.duckdb", "--set", override, "--set", "M.dropout=0.0")
    tells = "`diffmem status tiny --store a.duckdb` says why, --retry-failed tries them again"
    assert (result.exit_code, result.stderr) == (1, f"1 of 1 cells failed; {tells}\n")
    assert f"cell 1/1 P.size = 8 failed: {sentence}\n" in result.stdout
    assert command("status", "tiny", "--store", "a.duckdb").stdout.endswith(f" failed: {sentence}\n")


@pytest.mark.skipif(find_spec("pytz") is not None, reason="DuckDB finds pytz")
def test_a_time_with_a_zone_is_refused_in_these_words():
    store()
    result = command("query", "SELECT TIMESTAMPTZ '2020-01-01 00:00+01'", "--store", "a.duckdb")
    sentence = "the query: times with a time zone need the package pytz; cast them ::TIMESTAMP"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{sentence}\n")


def test_a_tracker_that_is_not_installed_is_told_in_these_words(monkeypatch):
    a_study()
    monkeypatch.setattr("diffmem.runs.trackers.get_available_trackers", list)
    result = command(*RUN.split(), "--log-with", "comet_ml")
    sentence = "--log-with comet_ml: the package comet-ml is not installed; `pip install comet-ml`, or leave out --log-with comet_ml, as the store has all that would be logged"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{sentence}\n")


class Unreachable(GeneralTracker):
    """A tracker that fails when it is made, or when a cell begins."""

    name = "notebook"
    requires_logging_directory = False
    when = "start"

    def __init__(self, _: str) -> None:
        super().__init__()
        self.fail("made")

    @property
    def tracker(self) -> None:
        """Return nothing: it never comes to this."""

    def fail(self, when: str) -> None:
        """Fail, if it is then."""
        if when == self.when:
            raise ConnectionError("no network\nand 40 lines more")

    def start(self) -> None:
        """Fail."""
        self.fail("start")


@pytest.mark.parametrize("when", ["made", "start"])
def test_a_tracker_that_fails_is_told_in_these_words(when, monkeypatch):
    a_study()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Unreachable)
    monkeypatch.setattr(Unreachable, "when", when)
    result = command(*RUN.split(), "--log-with", "notebook")
    sentence = "the tracker notebook has failed: no network; put it right or leave out --log-with notebook, then run the same command again"
    assert (result.exit_code, result.stderr) == (1, f"{sentence}\n")


def test_a_device_is_written_to_and_not_replaced_by_the_page():
    store()
    Path("null").symlink_to("/dev/null")
    assert command("report", "--store", "a.duckdb", "-o", "null").exit_code == 0
    assert Path("null").is_char_device()


def test_a_store_merged_into_itself_has_all_of_it_already():
    store()
    result = command("store", "merge", "a.duckdb", "-o", "./a.duckdb")
    assert (result.exit_code, result.stdout) == (0, "a.duckdb: 0 checkpoints taken into a.duckdb\n")


# --- calls from Python ---------------------------------------------------------------------------------

IMAGES = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)


def ratio(generated: object = IMAGES, training: object = IMAGES, **more: float) -> Callable[[], object]:
    return lambda: diffmem.memorization_ratio(generated, training, **more)


def with_negative_values() -> object:
    with warnings.catch_warnings(action="ignore", category=ImageWarning):  # of what the values mean
        return diffmem.memorization_ratio(IMAGES / 127.5 - 1, IMAGES / 255)


def take(size: int, *, balanced: bool = True) -> Callable[[], object]:
    """Draw from 3 images of one class and 9 of another."""
    return lambda: draw(np.repeat([0, 1], [3, 9]), size, dataset="mine", number=0, balanced=balanced)


def watch(*, name: str = "mine", **more: object) -> diffmem.Monitor:
    return diffmem.Monitor(IMAGES, store="a.duckdb", name=name, every=10, samples=8, **more)


CALLS = {
    # images
    "the threshold must be a number above 0 and at most 1 (the paper's is 1/3), not 3": ratio(threshold=3),
    "training images: 1 of them, but a second nearest one needs two": ratio(training=IMAGES[:1]),
    "generated images: none, so they have no ratio; give one or more": ratio([]),
    "generated images have 9x8 pixels, but training images have 8x8 pixels; make them alike first": ratio(
        np.zeros((2, 1, 8, 9), dtype=np.uint8)
    ),
    "generated images: the values are float32 in 0..255, but must be in 0..1 or -1..1; clip or scale them first": ratio(
        np.linspace(0, 255, 128, dtype=np.float32).reshape(2, 1, 8, 8)
    ),
    "training images: the values are int64 in 0..191, but must be in 0..65535 with some above 255; save values of 0..255 as uint8": ratio(
        training=IMAGES.astype(int)
    ),
    "generated images: each must be an image, not a tuple of image and label; give the images alone, as [image for image, label in dataset] does, and join the batches of a loader with torch.cat": ratio(
        [(IMAGES[0], 3)]
    ),
    "delta must be above 0 and below 1, a share of the scale of pixels, not 2": lambda: find_groups(IMAGES, delta=2),
    "groups must be none, exact or near, not 'twins'": lambda: diffmem.memorization_ratio(
        IMAGES, IMAGES, groups="twins"
    ),
    'augment is of groups of training images; add groups="near", or "exact"': lambda: diffmem.memorization_ratio(
        IMAGES, IMAGES, augment=["hflip"]
    ),
    "no augmentation 'rotate'; there are hflip, shift": lambda: diffmem.memorization_ratio(
        IMAGES, IMAGES, groups="near", augment=["rotate"]
    ),
    "generated images: a dict is no image": ratio([{}]),
    "generated images: must be [n, c, h, w], [n, h, w, c] or [n, h, w] with 1 or 3 channels c, not [8, 8]": ratio(
        IMAGES[0, 0]
    ),
    "training images: must all have one shape and type, but there are uint8 [8, 8] and uint8 [9, 9]": ratio(
        training=[grey(9, 9), grey(8, 8)]
    ),
    "generated images: must be an array, a tensor or a list of images, not NoneType": ratio(None),
    "generated images: have negative values, but the training images are in 0..1; scale both alike": with_negative_values,
    # training sets
    "7 images of mine: its smallest class has 3, enough for a balanced set of 6; take a smaller P.size or fewer P.classes, or P.balance = false": take(
        7
    ),
    "13 images of mine: it has 12; take a smaller P.size": take(13, balanced=False),
    # the monitor
    "Monitor: batch_size must be a whole number, at least 1, not 0": lambda: watch(batch_size=0),
    "Monitor: settings are texts, numbers, true or false by name, not 'lr': [1, 2]": lambda: watch(
        settings={"lr": [1, 2]}
    ),
    "Monitor: the setting 'lr' must be a finite number, not nan": lambda: watch(settings={"lr": float("nan")}),
    "no measure 'l2'; there are nearest, calibrated, grouped, grouped-hflip, grouped-shift, grouped-hflip-shift, grouped-exact, grouped-exact-hflip, grouped-exact-shift, grouped-exact-hflip-shift": lambda: (
        watch(measures=["l2"])
    ),
    "a.duckdb: 'tiny' is a study of tiny.toml; give the monitor another name": lambda: (store(), watch(name="tiny")),
    "mine: a step is a whole number from 0 to 2147483647, not -10": lambda: watch()(-10, lambda count: IMAGES[:count]),
    "mine: a step is a whole number from 0 to 2147483647, not 0.5": lambda: watch()(0.5, lambda count: IMAGES[:count]),
    "mine: generate(8) has returned 3 images; let it return as many as it is asked for": lambda: watch()(
        10, lambda count: IMAGES[:count]
    ),
    # the store
    "no measure 'calibrate'; there are nearest, calibrated, grouped, grouped-hflip, grouped-shift, grouped-hflip-shift, grouped-exact, grouped-exact-hflip, grouped-exact-shift, grouped-exact-hflip-shift": lambda: (
        diffmem.study_curves(store(), "tiny", "calibrate")
    ),
    'the query: Binder Error: Referenced column "nope" was not found because the FROM clause is missing (the query SHOW TABLES lists the tables)': lambda: (
        store().columns("SELECT nope")
    ),
}


@pytest.mark.parametrize(
    ("sentence", "call"), CALLS.items(), ids=lambda part: part[:60] if isinstance(part, str) else ""
)
def test_a_mistake_in_a_call_is_told_in_these_words(sentence, call):
    with pytest.raises(diffmem.DiffmemError) as caught:
        call()
    assert (str(caught.value), caught.value.exit_code) == (sentence, 2)


def refusal_of_images() -> str:
    with pytest.raises(DataError) as caught:
        read_images("images", resolution=None)
    return str(caught.value)


def test_images_that_change_while_they_are_read_are_refused_in_these_words():
    pictures((8, 8), (8, 8))()
    token = progress.set(lambda *_: Path("images/0.png").write_bytes(picture(8, 8) + b"more"))
    try:
        sentence = "images: changed while it was read; run the same command again once it is whole"
        assert refusal_of_images() == sentence
    finally:
        progress.reset(token)


def test_a_cache_that_is_emptied_meanwhile_is_told_in_these_words(folder, monkeypatch):
    pictures((8, 8), (8, 8))()
    fsync = os.fsync

    def emptying(file: int) -> None:
        """Empty the cache as soon as its last file, the one in `contents`, is written."""
        fsync(file)
        if list(folder.glob("cache/contents/.*.partial")):
            for pixels in folder.glob("cache/*.pixels"):
                pixels.unlink()

    monkeypatch.setattr(os, "fsync", emptying)
    assert refusal_of_images() == "images: its decoded images are gone from the cache; run the same command again"


def test_images_that_have_changed_since_they_were_planned_are_refused_in_these_words():
    pictures((8, 8), (8, 8))()
    study_of("images")()
    (entry,) = Study.load(Path("s.toml")).cells
    Path("images/0.png").write_bytes(tiny.png(0))
    with pytest.raises(DataError) as caught:
        training_set(entry.cell)
    assert str(caught.value) == "images: has changed since this run began; start it again to measure what it holds now"


def test_a_training_set_that_does_not_fit_into_memory_is_refused_in_these_words(monkeypatch):
    tiny.write(Path(), 'P.dataset = "digits"\nP.size = 1740\n')
    (entry,) = Study.load(Path("tiny.toml")).cells
    machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(os, "sysconf", machine.__getitem__)
    with pytest.raises(DataError) as caught:
        training_set(entry.cell)
    assert str(caught.value) == (
        "digits: 1,740 images of 111 kB in all do not fit into memory; take a smaller P.size or P.resolution, or raise "
        "the limit with --max-pixels"
    )


def test_a_process_that_is_killed_while_it_decodes_is_told_in_these_words(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    here = os.getpid()

    def work(number: int) -> int:
        time.sleep(2 * ALONE)
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(DataError) as caught:
        list(on_all_cores(work, range(2)))
    sentence = "a process that decodes images was killed, perhaps for lack of memory; run the same command again"
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("package", "method", "what"), [("pandas", "frame", "a data frame"), ("pyarrow", "arrow", "an Arrow table")]
)
def test_rows_in_the_form_of_a_package_that_is_missing_are_refused_in_these_words(package, method, what, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StoreError) as caught:
        getattr(store(), method)("FROM cells")
    told = str(caught.value).replace(package, "PACKAGE").replace(what, "WHAT")
    assert told == "WHAT needs PACKAGE, which is not installed: `pip install PACKAGE`, or take `Store.columns`"
