"""Reading images from Parquet files without trusting them: no name inside becomes SQL, and sizes are checked first."""

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from duckdb import DuckDBPyConnection

from diffmem.cells import MOST_CLASSES
from diffmem.data.limits import LEAST_PIXELS, check_pixels, class_number, first_line, most_bytes_at_once
from diffmem.errors import DataError
from diffmem.sql import reading_files
from diffmem.text import with_unit

IMAGES = ("image", "img")
"""Columns that hold the image, the first of them that there is; else the only one of bytes."""
LABELS = ("label", "labels", "class", "fine_label", "category")
"""Columns that hold the label, in any case, the first of them that there is."""
SIZES = ("tinyint", "smallint", "integer", "bigint")
INTEGERS = frozenset({"boolean", *SIZES, *(f"u{size}" for size in SIZES)})
NUMBERS, TEXTS = frozenset({"float", "double", "decimal"}), frozenset({"varchar", "enum"})
LONGEST_NAME = 1000
"""Characters of the name of a class."""
BATCH = 2048
"""Rows that DuckDB holds at once."""


class Row(NamedTuple):
    """An encoded image, its class, and what to call it."""

    data: bytes
    label: int
    where: str


class Table:
    """The open rows of Parquet files: how many there are, what is said of their columns, and the rows themselves."""

    def __init__(
        self,
        connection: DuckDBPyConnection,
        names: list[str],
        files: Sequence[Path],
        only: range | None,
        label: str | None,
    ) -> None:
        self.connection, self.names, self.files, self.only = connection, names, files, only
        self.notes: list[str] = []
        self.altered: list[str] = []  # what makes the columns mean something else than they once did
        read = "FROM read_parquet(?, hive_partitioning = false)"
        relation = connection.sql(read, params=[names])
        self.columns, self.types = relation.columns, relation.types
        # columns are called by their position, so that no name of the file is in SQL or hides file_index
        self._table = f"{read} AS t({', '.join(_column(number) for number in range(len(self.columns)))})"
        at = self._label_column(label)
        self._image = self._image_column(at)
        self._label = "0" if at is None else _column(at)
        self._kind = "integer" if at is None else self.types[at].id
        if only is None:  # the published files are what they are
            self._check_sizes()
        self.classes = self._text_classes() if self._kind in TEXTS else {}
        if self._kind not in INTEGERS | NUMBERS | TEXTS:
            self._label = f"substring({self._label}::VARCHAR, 1, 40)"  # to be refused with its row
        self._where = "" if only is None else f"WHERE {self._label} BETWEEN {only.start} AND {only.stop - 1}"

    def __len__(self) -> int:
        return self._count(self._where)

    def _count(self, where: str) -> int:
        return int(self.connection.execute(f"SELECT count(*) {self._table} {where}", [self.names]).fetchall()[0][0])

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order. DataError names the first that has no image or no class."""
        first = 0 if self.only is None else self.only.start
        result = self.connection.execute(
            f"SELECT {self._image}, {self._label}, file_index, file_row_number {self._table} {self._where}",
            [self.names],
        )
        while (row := result.fetchone()) is not None:  # one by one: many rows may share the same bytes in the file
            data, label, file, position = row
            where = f"{self.files[file]}, row {position}"
            if data is None:
                raise DataError(f"{where}: no image")
            yield Row(data, class_number(self._number(label), where) - first, where)

    def _number(self, label: Any) -> Any:
        if self._kind in NUMBERS and label is not None and isfinite(label) and label == int(label):
            return int(label)
        return self.classes.get(label, label) if self._kind in TEXTS else label

    def _label_column(self, wanted: str | None) -> int | None:
        """Return the number of the column of labels; None if there is none."""
        if wanted is not None:
            if wanted not in self.columns:
                raise DataError(f"{self.files[0]}: no column {wanted!r}; it has {reprlib.repr(self.columns)}")
            return self.columns.index(wanted)
        lower = [name.lower() for name in self.columns]
        at = next((lower.index(name) for name in LABELS if name in lower), None)
        if at is not None:
            name = self.columns[at]
            if name not in LABELS[:4]:
                self.altered.append(f"labels {name}")
                self.notes.append(f"classes are those of the column {first_line(name)}")
            return at
        others = [
            first_line(name) for name, kind in zip(self.columns, self.types, strict=True) if kind.id in INTEGERS | TEXTS
        ]
        if others:
            self.notes.append(
                f"no classes: no column is called {', '.join(LABELS)}; P.labels names another one ({', '.join(others)})"
            )
        return None

    def _image_column(self, label: int | None) -> str:
        """Return the SQL of the image's bytes; DataError where it is not clear which column they are."""
        found = {}
        for number, kind in enumerate(self.types):
            if number != label and kind.id == "blob":
                found[number] = _column(number)
            elif number != label and (at := _bytes_at(kind)) is not None:
                found[number] = f"struct_extract_at({_column(number)}, {at})"
        names = [self.columns[number] for number in found]
        if not found:
            raise DataError(
                f"{self.files[0]}: no column of images (bytes, or a struct of bytes and path); "
                f"it has {reprlib.repr(self.columns)}"
            )
        chosen = next((name for name in IMAGES if name in names), names[0])
        if len(found) > 1:
            if chosen not in IMAGES:
                raise DataError(
                    f"{self.files[0]}: several columns of images, {reprlib.repr(names)}; rename the one that is meant "
                    "to `image`"
                )
            if chosen != names[0]:  # the first one was taken once
                self.altered.append(f"images {chosen}")
            others = ", ".join(first_line(name) for name in names if name != chosen)
            self.notes.append(f"images are those of the column {chosen}, not of {others}")
        return found[self.columns.index(chosen)]

    def _text_classes(self) -> dict[str, int]:
        """Return the classes of a column of text, in order of name."""
        self._label = f"{self._label}::VARCHAR"
        [[longest]] = self.connection.execute(
            f"SELECT max(length({self._label})) {self._table}", [self.names]
        ).fetchall()
        if longest is not None and longest > LONGEST_NAME:
            raise DataError(
                f"{self.files[0]}: class names of up to {longest:,} characters, but at most {LONGEST_NAME:,} are read"
            )
        found = self.connection.execute(
            f"SELECT DISTINCT {self._label} AS name {self._table} WHERE name IS NOT NULL "
            f"ORDER BY name LIMIT {MOST_CLASSES + 1}",
            [self.names],
        ).fetchall()
        if len(found) <= MOST_CLASSES:
            self.notes.append(f"classes are {len(found):,} names, numbered in their order")
        return {name: number for number, (name,) in enumerate(found)}

    def _check_sizes(self) -> None:
        """Raise DataError if the files have too many rows, or some that are too long to be held at once."""
        check_pixels(self.files[0], self._count(""), LEAST_PIXELS)
        batches = (
            f"SELECT sum(octet_length({self._image})) AS held {self._table} "
            f"GROUP BY file_index, file_row_number // {BATCH}"
        )
        [[held]] = self.connection.execute(f"SELECT coalesce(max(held), 0) FROM ({batches})", [self.names]).fetchall()
        most = most_bytes_at_once()
        if held > most:
            raise DataError(
                f"{self.files[0]}: {BATCH} rows of images have {with_unit(held)}B, but at most {with_unit(most)}B are "
                "read at once; raise the limit with --max-pixels"
            )


def _as_text(file: Path, number: int, folder: str) -> Path:
    """Return a file by a name that DuckDB takes: a link to it, where its own is of bytes that are no text."""
    try:
        str(file.absolute()).encode()
        return file
    except UnicodeEncodeError:
        link = Path(folder, f"{number}.parquet")
        link.symlink_to(file.absolute())
        return link


@contextmanager
def opened(files: Sequence[Path], only: range | None, label: str | None) -> Iterator[Table]:
    """Open Parquet files; `only` keeps the rows of a range of labels, `label` names their column.

    The image is a column of bytes, or of a struct with a field `bytes`; without a column of labels, the label is 0.
    Whatever is wrong with the files inside the block is a DataError.
    """
    try:
        with TemporaryDirectory(prefix="diffmem-") as folder:
            connection, names = reading_files([_as_text(file, number, folder) for number, file in enumerate(files)])
            with connection:
                yield Table(connection, names, files, only, label)
    except (DataError, OSError):
        raise
    except Exception as error:  # DuckDB raises its own errors, and Python's on names that are not UTF-8
        raise DataError(f"{files[0]}: not a Parquet file that can be read: {first_line(error)}") from error


def _column(number: int) -> str:
    return f"c{number}"


def _bytes_at(kind: Any) -> int | None:
    """Return the position, from 1, of the field `bytes` of a struct; None if there is none."""
    if kind.id != "struct":
        return None
    return next(
        (at for at, (name, field) in enumerate(kind.children, 1) if (name, field.id) == ("bytes", "blob")), None
    )
