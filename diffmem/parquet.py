"""Reading images from Parquet files without trusting them: no name inside becomes SQL, and sizes are checked first."""

import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from diffmem.errors import DataError
from diffmem.limits import LEAST_PIXELS, RGB, check_pixels, first_line, most_pixels
from diffmem.sql import reading_files
from diffmem.units import with_unit

LABELS = ("label", "labels", "class", "fine_label")
"""Columns that hold the label, the first of them that there is."""
SIZES = ("tinyint", "smallint", "integer", "bigint")
INTEGERS = frozenset({"boolean", *SIZES, *(f"u{size}" for size in SIZES)})
"""Types of labels that are class numbers as they are."""
BATCH = 2048
"""Rows that DuckDB holds at once."""


def rows(files: Sequence[Path], only: range | None) -> Iterator[tuple[bytes | None, Any, str]]:
    """Yield image, label and place of each row of Parquet files; `only` keeps the rows of a range of labels.

    The image is a column of bytes, or of a struct with a field `bytes`; without a column of labels, the label is 0.
    """
    try:
        connection, names = reading_files(files)
        with connection:
            yield from _rows(connection, names, files, only)
    except DataError:
        raise
    except Exception as error:  # DuckDB raises its own errors, and Python's on names that are not UTF-8
        raise DataError(f"{files[0]}: not a Parquet file that can be read: {first_line(error)}") from error


def _rows(
    connection: DuckDBPyConnection, names: list[str], files: Sequence[Path], only: range | None
) -> Iterator[tuple[bytes | None, Any, str]]:
    read = "FROM read_parquet(?, hive_partitioning = false)"
    relation = connection.sql(read, params=[names])
    image, label = _columns(relation, files[0])
    # columns are called by their position, so that no name of the file is in SQL or hides file_index
    table = f"{read} AS t({', '.join(_column(number) for number in range(len(relation.columns)))})"
    if only is None:  # the published files are what they are
        _check_sizes(connection, names, table, image, files[0])
    where = "" if only is None else f"WHERE {label} BETWEEN {only.start} AND {only.stop - 1}"
    result = connection.execute(f"SELECT {image}, {label}, file_index, file_row_number {table} {where}", [names])
    while (row := result.fetchone()) is not None:  # one by one: many rows may share the same bytes in the file
        data, number, file, position = row
        yield data, number, f"{files[file]}, row {position}"


def _columns(relation: DuckDBPyRelation, file: Path) -> tuple[str, str]:
    """Return the SQL of the image's bytes and of the label."""
    names, types = relation.columns, relation.types
    labels = [names.index(name) for name in LABELS if name in names]
    images = [number for number in range(len(names)) if number not in labels[:1]]
    structs = [(number, at) for number in images if (at := _bytes_at(types[number])) is not None]
    blobs = [number for number in images if types[number].id == "blob"]
    if structs:
        number, at = structs[0]
        image = f"struct_extract_at({_column(number)}, {at})"
    elif blobs:
        image = _column(blobs[0])
    else:
        found = reprlib.repr(names)
        raise DataError(f"{file}: no column of images (bytes, or a struct of bytes and path); it has {found}")
    if not labels:
        return image, "0"
    label = _column(labels[0])
    return image, label if types[labels[0]].id in INTEGERS else f"substring({label}::VARCHAR, 1, 40)"


def _column(number: int) -> str:
    return f"c{number}"


def _bytes_at(kind: Any) -> int | None:
    """Return the position, from 1, of the field `bytes` of a struct; None if there is none."""
    if kind.id != "struct":
        return None
    return next(
        (at for at, (name, field) in enumerate(kind.children, 1) if (name, field.id) == ("bytes", "blob")), None
    )


def _check_sizes(connection: DuckDBPyConnection, names: list[str], table: str, image: str, file: Path) -> None:
    """Raise DataError if the files have too many rows, or some that are too long to be held at once."""
    [[count]] = connection.execute(f"SELECT count(*) {table}", [names]).fetchall()
    check_pixels(file, count, LEAST_PIXELS)
    batches = f"SELECT sum(octet_length({image})) AS held {table} GROUP BY file_index, file_row_number // {BATCH}"
    [[held]] = connection.execute(f"SELECT coalesce(max(held), 0) FROM ({batches})", [names]).fetchall()
    most = RGB * most_pixels()
    if held > most:
        raise DataError(
            f"{file}: {BATCH} rows of images have {with_unit(held)}B, but at most {with_unit(most)}B are read at once; "
            "raise the limit with --max-pixels"
        )
