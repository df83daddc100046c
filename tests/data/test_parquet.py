"""Parquet files: whatever their columns, fields and folders are called, they are read as data and nothing else."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from diffmem.cli import main
from diffmem.data.collection import read_images
from diffmem.errors import DataError

SIDE = 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (SIDE, SIDE), value).save(buffer, format="PNG")
    return buffer.getvalue()


PNGS = [png(0), png(10), png(20), png(30)]


def write(path: str | Path, **columns: object) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def values(path: str) -> list[int]:
    """Return the grey value of each image of a file of images of one value each."""
    return read_images(path, resolution=None).images[:, 0, 0, 0].tolist()


def refusal(path: str) -> str:
    with pytest.raises(DataError) as caught:
        read_images(path, resolution=None)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 2), result.output
    return result


# --- names ---------------------------------------------------------------------------------------------


def hostile_names(target: Path) -> list[str]:
    return [
        f"x\" FROM range(1); COPY (SELECT 1) TO '{target}' --",
        f"x\".bytes FROM range(1); COPY (SELECT 1) TO '{target}' --",
        f"bytes\" FROM range(1); COPY (SELECT 1) TO '{target}' --",
        f"'; COPY (SELECT 1) TO '{target}'; --",
        f"x\"; INSTALL httpfs; ATTACH '{target}' AS a; --",
        '"',
        '""',
        "'",
        "a\nb\x1b[2J",
        "\\",
        "select",
        "*",
        "$1",
        "?",
        "c0",
        "t",
        "日本",
        " ",
    ]


@pytest.mark.parametrize("number", range(len(hostile_names(Path()))))
@pytest.mark.parametrize("form", ["bytes", "struct", "field", "label"])
def test_a_name_in_a_file_is_a_name_and_never_sql(folder: Path, number: int, form: str) -> None:
    name = hostile_names(folder / "pwned")[number]
    structs = [{"bytes": image, "path": ""} for image in PNGS]
    columns: dict[str, object] = {
        "bytes": {name: PNGS, "label": [0, 1, 0, 1]},
        "struct": {name: structs, "label": [0, 1, 0, 1]},
        "field": {"img": [{name: 1, **struct} for struct in structs], "label": [0, 1, 0, 1]},
        "label": {"img": structs, name: [0, 1, 0, 1]},
    }[form]
    write("a.parquet", **columns)
    Path("s.toml").write_text('P.dataset = "a.parquet"\nP.size = 2\nM.network = "optimum"\n')
    assert command("plan", "s.toml").exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"here", "cache"}
    assert {path.name for path in Path().iterdir()} == {"a.parquet", "s.toml"}
    assert values("a.parquet") == [0, 10, 20, 30]


def test_a_file_of_hostile_names_is_scored_and_nothing_is_written_outside(folder: Path) -> None:
    write("a.parquet", image=PNGS, **dict.fromkeys(hostile_names(folder / "pwned"), PNGS))
    assert command("score", "--images", "a.parquet", "--against", "a.parquet").exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"here", "cache"}
    assert {path.name for path in Path().iterdir()} == {"a.parquet", "store"}


def test_a_struct_with_a_hostile_field_in_place_of_its_bytes_is_refused(folder: Path) -> None:
    for name in hostile_names(folder / "pwned"):
        write("a.parquet", img=[{name: image, "more bytes": 1} for image in PNGS])
        assert "no column of images" in refusal("a.parquet")
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("name", ["filename", "file_row_number", "file_index", "FILENAME", "rowid"])
def test_a_column_that_is_called_as_one_of_ours_neither_fails_nor_hides_it(name: str) -> None:
    write("a.parquet", **{name: ["nowhere", "nowhere"], "image": [PNGS[0], b"no image"]})
    assert "a.parquet, row 1: not an image" in refusal("a.parquet")


def test_images_may_be_in_a_column_that_is_called_as_one_of_ours() -> None:
    assert values(write("a.parquet", filename=PNGS)) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    "name",
    [
        "t[1].parquet",
        "what?.parquet",
        "star*.parquet",
        "per%cent.parquet",
        "q'uote.parquet",
        'q"uote.parquet',
        "a b.parquet",
    ],
)
@pytest.mark.parametrize("above", ["plain", "a[1]", "b?*", "c'\"%"])
def test_a_file_is_read_by_its_very_name(name: str, above: str) -> None:
    for other in ("t1.parquet", "whatx.parquet", "starx.parquet"):
        write(Path(above) / other, image=[PNGS[3]])
    write("a1/" + name, image=[PNGS[3]])
    assert values(write(Path(above) / name, image=[PNGS[1]])) == [10]


def test_files_of_a_pattern_are_read_by_their_very_names() -> None:
    for number, name in enumerate(["t1", "t?", "t[1]"]):
        write(f"many/{name}.parquet", image=[PNGS[number]])
    assert values("many/*.parquet") == [0, 10, 20]


def test_a_file_behind_a_link_is_read() -> None:
    write("blobs/0123", image=PNGS)
    Path("a.parquet").symlink_to("blobs/0123")
    assert values("a.parquet") == [0, 10, 20, 30]


def test_a_folder_that_is_called_as_a_value_of_a_column_is_no_column() -> None:
    source = read_images(write("label=7/fine_label=1/a.parquet", image=PNGS), resolution=None)
    assert source.classes.tolist() == [0, 0, 0, 0]


# --- labels --------------------------------------------------------------------------------------------


LABELS = [
    (pa.array([0, 10**12]), "1000000000000"),
    (pa.array([0, 2 * 10**9]), "2000000000"),
    (pa.array([0, 100_000]), "100000"),
    (pa.array([0, 2**63], pa.uint64()), "9223372036854775808"),
    (pa.array([0, -1]), "-1"),
    (pa.array([float("nan")] * 2), "nan"),
    (pa.array([0.5, 0.5]), "0.5"),
    (pa.array([b"\x1b[2J\ncat"] * 2), "\\x1B[2J\\x0Acat"),
    (pa.array([[1], [2]]), "[1]"),
    (pa.array([{"a": 1}] * 2), "{'a': 1}"),
    (pa.array([b"\xff", b"1"]), "\\xFF"),
]


@pytest.mark.parametrize(("labels", "shown"), LABELS, ids=[f"{number}" for number in range(len(LABELS))])
def test_a_label_that_is_no_class_number_is_refused_with_row_and_value(labels: pa.Array, shown: str) -> None:
    message = refusal(write("a.parquet", image=PNGS[:2], label=labels))
    row = int(labels[0].as_py() == 0)
    assert message.startswith(f"a.parquet, row {row}: the label is {shown}")
    assert "class numbers are whole, from 0 to 99999" in message


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string(), pa.null()], ids=str)
def test_a_missing_label_is_refused_with_its_row(kind: pa.DataType) -> None:
    assert (
        refusal(write("a.parquet", image=PNGS[:2], label=pa.array([None, None], kind))) == "a.parquet, row 0: no label"
    )


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.uint64(), pa.bool_()], ids=str)
def test_labels_of_every_whole_type_are_read(kind: pa.DataType) -> None:
    write("a.parquet", image=PNGS, label=pa.array([0, 1, 1, 0], pa.int64()).cast(kind))
    assert read_images("a.parquet", resolution=None).classes.tolist() == [0, 1, 1, 0]


def test_the_highest_class_number_is_read_and_described() -> None:
    write("a.parquet", image=PNGS[:2], label=[0, 99_999])
    Path("s.toml").write_text('P.dataset = "a.parquet"\nP.size = 2\nM.network = "optimum"\n')
    assert (
        "a.parquet has no images of classes 1, 2, 3, 4, 5; take those that there are with P.classes = [0, 99999]"
        in command("plan", "s.toml").stderr
    )


# --- sizes and damage ----------------------------------------------------------------------------------


def test_a_file_of_no_rows_has_no_images() -> None:
    assert refusal(write("a.parquet", image=pa.array([], pa.binary()))) == "a.parquet: no images in it"


def test_a_few_bytes_that_stand_for_many_rows_are_refused_before_any_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "10000000")
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array([b"no image"]))
    assert refusal(write("a.parquet", image=rows)) == (
        "a.parquet: 1,000,000 x 64 pixels or more, but a collection may have 10,000,000 "
        "(30 MB as RGB); choose fewer or smaller images, or raise the limit with --max-pixels"
    )


def test_rows_that_share_one_long_image_are_refused_before_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFMEM_MAX_PIXELS", "1000000")
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([bytes(10**6)]))
    message = refusal(write("a.parquet", image=rows))
    assert "a.parquet: 2048 rows of images have 500 MB, but at most 3 MB are read at once" in message


def test_a_name_that_is_not_utf8_is_refused_in_a_sentence() -> None:
    content = Path(write("a.parquet", imagexyz=PNGS)).read_bytes()
    Path("a.parquet").write_bytes(content.replace(b"imagexyz", b"image\xff\xfez"))
    assert refusal("a.parquet").startswith("a.parquet: not a Parquet file that can be read: ")


def test_damaged_pages_are_refused_in_a_sentence() -> None:
    content = bytearray(Path(write("a.parquet", image=PNGS, label=[0, 1, 0, 1])).read_bytes())
    content[4:200] = bytes(196)
    Path("a.parquet").write_bytes(content)
    assert refusal("a.parquet").startswith("a.parquet")
