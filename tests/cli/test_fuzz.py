"""Damaged studies and images, odd commands and queries: each ends with a sentence or an answer, never a traceback."""

import hashlib
import io
import os
import random
import re
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from click.testing import CliRunner, Result
from PIL import Image

from diffmem.cli import main
from diffmem.store.store import Store
from diffmem.study.layers import known_keys

KEYS = sorted(known_keys())

SEED = int(os.environ.get("FUZZ_SEED", "0"))
"""Always the same cases; another one, to look for more."""
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""How many times as many cases."""
CPU_SECONDS = 30
"""Of this process, for one case: a hang, not a slow machine."""
MOST_KILOBYTES = 500_000
"""More memory than all cases together may add."""

TEXT = """\
# a study with everything
title = "Ünïcode and [brackets]"
figure = "Fig. 0"

[P]
dataset = "digits"
size = 8
classes = [0, 1, 2]

[M]
network = "ddpm++"
precondition = "edm"
width = 4
channel_mult = [1, 1]
blocks = 1
skips = "11 11"
attention = [4]

[T]
epochs = 30
batch_size = 8
lr = 5e-3
optimizer = "sgd"

[[axes]]
M.dropout = [0.0, 0.2]

[[axes]]
P.size = [
  4,   # images
  8,
]
T.seed = [0, 1]

[score]
samples = 20
every = 12

[emm]
epsilon = 0.2

[profiles.laptop]
T.epochs = 3
[[profiles.laptop.axes]]
P.size = [4]
"""

FLAT = """\
P.dataset = "digits"
P.size = 8
M.width = 4
M.channel_mult = [1, 1]
M.blocks = 1
T.epochs = 30
score.samples = 20
emm.search = "bisect"
emm.range = [4, 8]
axes = [{M.dropout = [0.0, 0.2], T.seed = [1, 2]}, {M.condition = ["none", "unique"]}]
"""
"""A study of single lines, of which a damaged one is mostly still TOML."""

HUGE = "1" + 30 * "0"
VALUES = [
    *("0", "-1", "3", HUGE, "1" + 400 * "0", "1" + 5000 * "0", "0x" + 5000 * "f", "0.5", "1e400", "-1e-400", "nan"),
    *("-inf", "true", '""', '"a"', '"\\u0000"', '"' + 5000 * "x" + '"', '"日本\\U0001F600"', '"\\u202e"', '"first"'),
    *("1979-05-27", "07:32:00", "[]", "[[]]", "{}", "{a = 1}", "[{}]", "[1, 2]", '["none", 1, 2.0]', '"s.toml"'),
    *('"/dev/zero"', '"~nobody-of-that-name"', '"~"', '".."', '"*"', '"/dev/null"', '"\\n"', "'''\n[P]\n'''"),
    *("[" * 300 + "]" * 300, "[" * 2000, "{a = " * 300 + "1" + "}" * 300, "[" + 2000 * "1, " + "]", "", "=", '"'),
]
TABLES = ["P", "M", "T", "score", "emm", "profiles", "profiles.laptop", "axes", "extends", "M.skips.more", "Ü", "a.b.c"]
BYTES = [
    b"\x00",
    b"\xff",
    b"\xe9",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b"#",
    b".",
    b"\\",
    b"9",
]


# --- study files ---------------------------------------------------------------------------------------


def flip_bytes(text: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def insert_bytes(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    return text[:at] + rng.choice(BYTES) * rng.choice([1, 1, 3, 1000]) + text[at:]


def cut(text: bytes, rng: random.Random) -> bytes:
    return text[: rng.randrange(len(text))]


def on_lines(change: Callable[[list[bytes], int, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    """Return a mutation that changes the lines of a text at one of them."""

    def mutate(text: bytes, rng: random.Random) -> bytes:
        lines = text.split(b"\n")
        change(lines, rng.randrange(len(lines)), rng)
        return b"\n".join(lines)

    return mutate


def drop(lines: list[bytes], at: int, _: random.Random) -> None:
    del lines[at]


def double(lines: list[bytes], at: int, rng: random.Random) -> None:
    lines[at:at] = [lines[at]] * rng.choice([1, 1, 1000])


def swap(lines: list[bytes], at: int, rng: random.Random) -> None:
    other = rng.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


def other_value(lines: list[bytes], at: int, rng: random.Random) -> None:
    at = rng.choice([number for number, line in enumerate(lines) if b"=" in line] or [at])
    lines[at] = lines[at].partition(b"=")[0] + b"= " + rng.choice(VALUES).encode()


def other_key(lines: list[bytes], at: int, rng: random.Random) -> None:
    lines[at] = rng.choice(KEYS).encode() + b" = " + lines[at].partition(b"=")[2]


def new_setting(lines: list[bytes], at: int, rng: random.Random) -> None:
    lines.insert(at, f"{rng.choice([*KEYS, *TABLES])} = {rng.choice(VALUES)}".encode())


def new_table(lines: list[bytes], at: int, rng: random.Random) -> None:
    lines.insert(at, rng.choice(["[{}]", "[[{}]]", "[{}", "[[profiles.{}.axes]]"]).format(rng.choice(TABLES)).encode())


def table_as_value(lines: list[bytes], _: int, rng: random.Random) -> None:
    at = rng.choice([number for number, line in enumerate(lines) if line.startswith(b"[")] or [0])
    lines[at] = lines[at].strip(b"[]") + b" = " + rng.choice(VALUES).encode()


def new_axis(lines: list[bytes], _: int, rng: random.Random) -> None:
    """Add axes that cross to up to 10^12 cells, or one of any key and any value."""
    if rng.random() < 0.3:
        for key in ("T.warmup_epochs", "P.draw", "T.weight_decay", "score.steps")[: rng.randint(1, 4)]:
            lines += [b"[[axes]]", f"{key} = {list(range(2, 1002))}".encode()]
    else:
        values = ", ".join(rng.choices(VALUES, k=rng.randint(1, 3)))
        lines += [b"[[axes]]", f"{rng.choice(KEYS)} = [{values}]".encode()]


def deep(lines: list[bytes], at: int, rng: random.Random) -> None:
    lines.insert(at, b"M." + rng.choice([10, 300, 3000]) * b"a." + b"a = 1")


def searches(lines: list[bytes], _: int, rng: random.Random) -> None:
    some = [*VALUES[:12], "[2, 8]", "[8, 1740]", "[2, 1000000]", f"[2, {HUGE}]", "1e-17", "0.001", '"bisect"', '"end"']
    lines += [b"[emm]", b'search = "bisect"', b"range = [4, 8]"]
    lines[-1:] = [f"{key} = {rng.choice(some)}".encode() for key in rng.sample(["range", "tolerance", "stop"], k=2)]


MUTATIONS = [
    flip_bytes,
    insert_bytes,
    cut,
    *map(on_lines, [drop, double, swap, other_value, other_key, new_setting, new_table, table_as_value, new_axis]),
    *map(on_lines, [deep, searches, other_value, other_value, other_value, other_key, new_setting, new_setting]),
    lambda text, _: text.replace(b"\n", b"\r\n"),
    lambda text, _: b"\xef\xbb\xbf" + text,
    lambda text, _: text.decode(errors="replace").encode("utf-16"),
]


def damaged(rng: random.Random) -> bytes:
    text = rng.choice([TEXT, FLAT, FLAT]).encode()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text = rng.choice(MUTATIONS)(text, rng) or b"\n"
    return text


# --- command lines -------------------------------------------------------------------------------------

WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        ".",
        "..",
        "/",
        "~",
        "*",
        "\0",
        "a\0b",
        "\udcff",
        "日本",
        "\u202e",
        "-1",
        "nan",
        "inf",
        HUGE,
    ),
    *(5000 * "x", 300 * "x", 100 * "a/", "s.toml", "small", "tiny", "tiny@laptop", "laptop", "folder"),
    *("folder/s.toml", "s.toml/below", "secret.toml", "null", "full", "loop.toml", "a.duckdb", "text.duckdb"),
    *(":memory:", "md:a", "s3://a/b", "'; DROP TABLE cells; --", "nowhere.duckdb", "1/2", "2/1", "1/" + 5000 * "9"),
    *("T.epochs=3", "T.epochs", "T.epochs=" + HUGE, 'M.network="optimum"', "P=3", "P.size=[4, 8]", 'extends="a"', "[P"),
]
OPTIONS = {
    "plan": ["--profile", "--set", "--store", "--tflops", "--json"],
    "run": ["--profile", "--set", "--store", "--processes", "--split", "--compile", "--shard", "--fail-fast"],
    "status": ["--profile", "--store", "--json"],
    "emm": ["--profile", "--store", "--json"],
    "report": ["--profile", "--store", "-o"],
    "findings": ["--profile", "--store", "--markdown", "--json"],
    "schema": [],
    "show": ["--store", "--json"],
    "diff": ["--store", "--json"],
    "query": ["--store", "--json"],
    "export": ["--study", "--store", "--format", "-o", "--json"],
    "store merge": ["-o"],
    "store info": ["--json"],
    "store check": ["--json"],
}
CELLS = ["22", "81", "226c168813fa0137", "81520624cd1fcda3", "226C1", "81520624cd1fcda3a", "%", "_"]
QUERIES = [
    *r"""
FROM cells
FROM evidence
FROM pairs
SHOW TABLES
DESCRIBE cells
SELECT
;
SELECT 1;
SELECT 1; SELECT 2
/*
SELECT '
SELECT "
SELECT $1
SELECT ?
SELECT 1 AS ""
SELECT 1, 1, 1 AS "1_2"
SELECT '[red]', chr(0), chr(27), chr(8238), '\xff'::BLOB, '日本' AS Ü
SELECT 'nan'::FLOAT, '-inf'::DOUBLE, 1e400
SELECT 170141183460469231731687303715884105727::HUGEINT, 0.1::DECIMAL(38, 37)
SELECT 'infinity'::DATE, 'infinity'::TIMESTAMP
SELECT '5000-01-01 (BC)'::DATE
SELECT '290000-01-01'::TIMESTAMP
SELECT INTERVAL '1000000 years'
SELECT INTERVAL '1 day', TIME '24:00:00', uuid(), '101'::BIT
SELECT TIMESTAMPTZ '2020-01-01 00:00+01'
SELECT {'a': [1, NULL], 'b': MAP {[1]: 2}}, union_value(a := 1)
SELECT 1::UTINYINT / 0
SELECT error('no')
FROM range(3000)
FROM 'nowhere'
FROM 'text.duckdb'
FROM read_text('/dev/null')
FROM read_csv('s.toml')
FROM sql
ATTACH 'x.duckdb'
DROP TABLE cells
EXPLAIN FROM cells
PRAGMA version
CALL pragma_version()
SET a = 1
BEGIN
COPY cells TO 'x.csv'
EXPORT DATABASE 'x'
WITH a AS (FROM a) FROM a
PIVOT cells ON cell_id
""".strip().splitlines(),
    "SELECT " + 2000 * "(" + "1" + 2000 * ")",
    "SELECT 1" + 3000 * " + 1",
]
NAMES = {
    "plan": "s.toml",
    "run": "bad.toml",
    "status": "tiny",
    "emm": "tiny",
    "report": "tiny",
    "show": "88",
    "diff": "99",
    "query": "FROM results",
    "export": "cells",
    "store merge": "a.duckdb",
    "store info": "a.duckdb",
    "store check": "a.duckdb",
}
ODD_NAMES = {
    "show": CELLS,
    "diff": CELLS,
    "export": ["checkpoints", "evidence", "notes", "emm"],
    "query": QUERIES,
}
"""Other words than WORDS that are near to what a command takes."""
FLAGS = {"--json", "--markdown", "--fail-fast"}


def arguments(rng: random.Random) -> list[str]:
    """Return a command with options repeated, of odd values or none, in any order; the study of `run` has a fault."""
    command = rng.choice(sorted(OPTIONS))
    parts = [[option] for option in rng.choices(OPTIONS[command] or ["--json"], k=rng.randint(0, 3))]
    for part in parts:
        if part[0] not in FLAGS and rng.random() < 0.95:
            part.append(rng.choice(WORDS))
    if command == "run":
        parts.append(["bad.toml"])
    elif command in NAMES:
        odd = WORDS + ODD_NAMES.get(command, []) * 2
        parts += [[NAMES[command] if rng.random() < 0.5 else rng.choice(odd)] for _ in range(rng.choice([0, 1, 1, 2]))]
    if command == "store merge":
        parts.append(["-o", "merged.duckdb"])
    rng.shuffle(parts)
    return [*command.split(), *(word for part in parts for word in part)]


# --- the cases -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a store, studies with and without faults, and what is no file, as the working folder.

    Nothing that a case names lies outside of it, for it may be written to.
    """
    tmp_path = tmp_path / "here"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "folder"))
    study = tiny.load(tmp_path, tiny.TEXT)
    store = Store(tmp_path / "a.duckdb")
    tiny.register(store, study)
    for entry in study.cells:
        tiny.measure(store, entry.cell, [1.0, 0.9, 0.8])
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.duckdb").write_text("notes")
    (tmp_path / "s.toml").write_text(TEXT)
    (tmp_path / "bad.toml").write_text("no_such_key = 1\n" + TEXT)
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "secret.toml").write_text(TEXT)
    (tmp_path / "secret.toml").chmod(0)
    return tmp_path


class Hang(BaseException):
    """A case takes too long; no Exception, so that nothing takes it for an error."""


def hang(*_: object) -> None:
    raise Hang


@pytest.fixture
def _bounded() -> Iterator[None]:
    """End a case that hangs, and fail where all cases together have taken too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGVTALRM, hang)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES


def check(*command: str) -> Result:
    """Check that a command ends with an exit code of its own, and with words where it is not 0; return how it ended."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    result = CliRunner().invoke(main, list(command))
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    assert result.output if result.exit_code == 0 or "check" in command else result.stderr
    return result


STUDIES, COMMANDS = 120 * TIMES, 80 * TIMES


@pytest.mark.usefixtures("_bounded")
def test_a_damaged_study_file_is_planned_or_refused_in_words(folder):
    for case in range(STUDIES):
        rng = random.Random(f"{SEED} study {case}")
        text = damaged(rng)
        (folder / "s.toml").write_bytes(text)
        profile = rng.choice([[], [], ["--profile", "laptop"]])
        try:
            result = check("plan", "s.toml", "--store", rng.choice(["a.duckdb", "new.duckdb"]), *profile)
            if result.exit_code == 2 and "Usage:" not in result.stderr:
                says_where = re.match(r"\S+\.toml(:\d+)?: ", result.stderr) or "s.toml extends it" in result.stderr
                assert says_where, result.stderr
            (folder / "bad.toml").write_bytes(b"no_such_key = 1\n" + text)
            if case % 10 == 0:
                check("run", "bad.toml", "--store", "new.duckdb", *profile)
        except BaseException as error:
            error.add_note(f"case {case}: {text!r}")
            raise
    assert not (folder / "new.duckdb").exists()


@pytest.mark.usefixtures("_bounded")
def test_an_odd_command_line_is_answered_or_refused_in_words(folder):
    for case in range(COMMANDS):
        command = arguments(random.Random(f"{SEED} command {case}"))
        try:
            check(*command)
        except BaseException as error:
            error.add_note(f"case {case}: {command!r}")
            raise
    assert not list(folder.rglob("states"))


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "data"])
def test_an_odd_query_is_answered_or_refused_in_a_line(form, folder):
    before = {path.name for path in folder.iterdir()}
    for sql in QUERIES:
        result = check("query", "--store", "a.duckdb", *form, "--", sql)
        assert result.stderr.count("\n") == (result.exit_code != 0), sql
    assert {path.name for path in folder.iterdir()} == before


# --- hostile images ------------------------------------------------------------------------------------

FILES = 40 * TIMES
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}
COLUMNS = [
    "image",
    "img",
    "label",
    "labels",
    "bytes",
    "filename",
    "file_row_number",
    "file_index",
    '"',
    "'",
    "c0",
    "Ü",
    " ",
]
LABELS = [0, 1, 2, -1, 10**12, 2**63 - 1, None]


def picture(rng: random.Random, form: str, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("L", (side, side), rng.randbytes(side * side)).save(buffer, format=form)
    return buffer.getvalue()


def hostile_name(rng: random.Random) -> str:
    target = rng.choice(["outside/pwned", "store.duckdb", "outside/kept.txt"])
    return rng.choice(
        [
            *COLUMNS,
            f"x\" FROM range(1); COPY (SELECT 1) TO '../{target}' --",
            f"bytes\" FROM range(1); COPY (SELECT 1) TO '../{target}' --",
            f"'); COPY (SELECT 1) TO '../{target}'; --",
            f"label\"; ATTACH '../{target}' AS a; CREATE TABLE a.t AS SELECT 1; --",
        ]
    )


def column(rng: random.Random, count: int) -> pa.Array:
    """Return a column of images, labels or something else, of any type."""
    field = hostile_name(rng)
    images = [picture(rng, "PNG", rng.choice([8, 8, 8, 1, 9])) for _ in range(count)]
    images = [
        rng.choice([b"", image[:20], flip_bytes(image, rng), None]) if rng.random() < 0.1 else image for image in images
    ]
    return rng.choice(
        [
            lambda: pa.array(images, pa.binary()),
            lambda: pa.array(images, pa.large_binary()),
            lambda: pa.array([{field: b"", "bytes": image, "path": ""} for image in images]),
            lambda: pa.array([{"bytes": b"", field: image} for image in images]),
            lambda: pa.array(images).dictionary_encode(),
            lambda: pa.array(rng.choices(LABELS, k=count), pa.int64()),
            lambda: pa.array(rng.choices([0, 1, 2**63, 2**64 - 1], k=count), pa.uint64()),
            lambda: pa.array(rng.choices([0.5, 1.0, float("nan")], k=count)),
            lambda: pa.array(rng.choices(["cat", "\x1b[2J", "1"], k=count)),
            lambda: pa.array([[1, 2]] * count),
            lambda: pa.nulls(count),
            lambda: pa.array([True] * count),
        ]
    )()


def hostile_parquet(rng: random.Random) -> bytes:
    count = rng.choice([0, 1, 4, 4, 4])
    columns = {hostile_name(rng): column(rng, count) for _ in range(rng.randint(0, 3))}
    if rng.random() < 0.7:
        columns = {"image": pa.array([picture(rng, "PNG") for _ in range(count)], pa.binary()), **columns}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression=rng.choice(["none", "snappy", "zstd", "gzip"]))
    return buffer.getvalue()


def hostile_npz(rng: random.Random) -> bytes:
    side = rng.choice([0, 1, 8, 8, 8, 9])
    shape = rng.choice([(4, side, side), (4, side, side, 3), (4, 3, side, side), (0, 8, 8), (2, 8, 9), (2,), ()])
    arrays = {
        rng.choice(["images", "images", "arr_0", "x"]): np.zeros(shape, rng.choice(["u1", "u1", "u1", "f4", "U3"]))
    }
    if rng.random() < 0.5:
        labels = rng.choice([[0, 1, 0, 1], [0, 1], [-1] * 4, [10**12] * 4, [0.5] * 4, ["a"] * 4, [[0]] * 4])
        arrays["labels"] = np.array(labels)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    ) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array)
            text = content.getvalue()
            if rng.random() < 0.3:
                text = text.replace(
                    b"(4, ", b"(" + rng.choice([b"9999999999, ", b"-4, ", b"[], ", b"4.0, ", b"(" * 50])
                )
            file.writestr(f"{name}.npy", text)
    return buffer.getvalue()


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes cut, flipped, filled, or with a head, or a tail, of another kind of file."""
    at = rng.randrange(len(content))
    heads = [
        b"PAR1",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"BM",
        b"\xff\xd8\xff",
        b"%!PS-Adobe",
        b"RIFF",
    ]
    return rng.choice(
        [
            lambda: content[:at],
            lambda: content[at:],
            lambda: flip_bytes(content, rng),
            lambda: flip_bytes(flip_bytes(content, rng), rng),
            lambda: rng.choice(heads) + content[4:],
            lambda: content[:at] + rng.randbytes(8) + content[at + 8 :],
            lambda: content[:at] + b"\xff" * 8 + content[at + 8 :],
            lambda: content[:-8] + rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0"]) + content[-4:],
            lambda: b"",
        ]
    )()


def hostile_file(rng: random.Random) -> str:
    """Write a file, or a folder, of images that are not what they should be, and return its name."""
    kind = rng.choice(["parquet", "parquet", "npz", *FORMATS])
    makers = {"parquet": hostile_parquet, "npz": hostile_npz}
    content = makers[kind](rng) if kind in makers else picture(rng, FORMATS[kind])
    if rng.random() < (0.5 if kind in makers else 0.9):
        content = damaged_bytes(content, rng)
    if kind in makers:
        Path(f"hostile.{kind}").write_bytes(content)
        return f"hostile.{kind}"
    for old in Path("hostile").glob("*"):
        old.unlink()
    Path("hostile").mkdir(exist_ok=True)
    Path("hostile/0.png").write_bytes(picture(rng, "PNG"))
    Path(f"hostile/1.{rng.choice(list(FORMATS))}").write_bytes(content)
    return "hostile"


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return size, time and content of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


@pytest.mark.usefixtures("_bounded")
def test_a_hostile_file_of_images_is_read_or_refused_and_nothing_else_is_touched(tmp_path, monkeypatch):
    for name in ("work", "outside", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000000")
    (tmp_path / "outside" / "kept.txt").write_text("kept")
    tiny.register(Store(tmp_path / "store.duckdb"), tiny.load(tmp_path, tiny.TEXT))
    kept = {path.name for path in tmp_path.iterdir()}
    before = {**listing(tmp_path / "outside"), **{str(path): path.stat().st_mtime_ns for path in tmp_path.glob("*.*")}}
    Path("good").mkdir()
    Path("good/0.png").write_bytes(tiny.png(0))
    codes = []
    for case in range(FILES):
        rng = random.Random(f"{SEED} images {case}")
        try:
            name = hostile_file(rng)
            resolution = rng.choice(["", "P.resolution = 8\n"])
            Path("s.toml").write_text(f'P.dataset = "{name}"\nP.size = 2\n{resolution}M.network = "optimum"\n')
            codes.append(check("plan", "s.toml", "--store", "new.duckdb").exit_code)
            if case % 4 == 0:
                images, against = rng.choice([(name, name), (name, "digits"), ("good", name)])
                codes.append(
                    check("score", "--images", images, "--against", against, "--store", "scores.duckdb").exit_code
                )
        except BaseException as error:
            error.add_note(f"case {case}")
            raise
    assert codes.count(0) > FILES / 10
    assert codes.count(2) > FILES / 2
    after = {**listing(tmp_path / "outside"), **{str(path): path.stat().st_mtime_ns for path in tmp_path.glob("*.*")}}
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert {path.name for path in Path().iterdir()} <= {
        *("s.toml", "scores.duckdb", "scores.duckdb.lock", "good", "hostile", "hostile.parquet", "hostile.npz")
    }
    assert not list((tmp_path / "cache").rglob("*.partial"))
