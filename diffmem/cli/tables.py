"""Rows as tables on the terminal, in a document or as data."""

import base64
import json
import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import click

PIPED_WIDTH = 160
"""Characters of a line that goes to a file or a program, unless COLUMNS says otherwise."""
SHORT = 8
"""Characters that still name a cell, so that its id may be cut to them; no text as short is broken."""
MOST_ROWS = 1000
"""More rows nobody reads, and a table of them takes minutes to lay out."""


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that command a terminal instead of standing on it."""


def printable(words: str) -> str:
    """Return a text, which may be from another's store or file, without what would command a terminal."""
    return CONTROL.sub("?", words)


def echo(words: str, *, err: bool = False) -> None:
    """Print a text."""
    click.echo(printable(words), err=err)


def print_json(data: Any) -> None:
    """Print data as JSON: times in ISO 8601, bytes in base64, and null for a number that is none."""
    click.echo(json.dumps(_plain(data), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def print_table(
    title: str,
    rows: Iterable[dict[str, Any]],
    *,
    columns: Sequence[str] = (),
    cut: str = "",
    of: int | None = None,
) -> None:
    """Print rows as a table with a column per key of any row, or those of `columns` where there is no row.

    `of` is how many rows there are, where these are the first ones. In a narrow terminal the texts of the column `cut`
    are cut, to SHORT characters at least.
    """
    from rich import box
    from rich.console import Console  # a tenth of a second that `--help` does without
    from rich.table import Table

    first, numeric, count = _gathered(rows)
    keys = list(numeric) or list(columns)
    shown = [[text(row.get(key)) for key in keys] for row in first]
    console = Console(highlight=False, markup=False, width=line_width())
    widths = _widths(keys, shown, console.width, cut)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for key, width in zip(keys, widths, strict=True):
        heading = key if width is None or len(key) <= width else _breakable(key)
        table.add_column(heading, justify="right" if numeric.get(key, True) else "left", overflow="fold", width=width)
    for line in shown:
        cells = zip(keys, widths, line, strict=True)
        table.add_row(*(cell[:width] if key == cut else cell for key, width, cell in cells))
    if title:
        console.print(printable(title), soft_wrap=True)  # a table's own title is broken at the width of the table
    console.print(table)
    left_out = (count if of is None else of) - min(count, MOST_ROWS)
    if left_out:
        console.print(f"... and {left_out} rows more, which --json prints")


def _gathered(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, bool], int]:
    """Return the rows that are shown, whether each column of all rows has only numbers, and how many rows there are."""
    first: list[dict[str, Any]] = []
    numeric: dict[str, bool] = {}
    count = 0
    for row in rows:
        if count < MOST_ROWS:
            first.append(row)
        for key, value in row.items():
            numeric[key] = isinstance(value, NUMBERS) and numeric.get(key, True)
        count += 1
    return first, numeric, count


NUMBERS = (int, float, type(None))
"""What a cell of a column of numbers holds."""


def print_wrapped(sentence: str, *, indent: int) -> None:
    """Print a text in as many lines as it needs, all but the first one indented by so many characters."""
    echo(textwrap.fill(sentence, line_width(), subsequent_indent=" " * indent, break_on_hyphens=False))


def line_width() -> int:
    """Return the characters of a line: the terminal's, or COLUMNS, or enough for a file."""
    return shutil.get_terminal_size((PIPED_WIDTH, 0)).columns


def _widths(keys: Sequence[str], lines: Sequence[Sequence[str]], room: int, cut: str) -> Sequence[int | None]:
    """Return the width of each column; None where all fit, or nothing.

    Values are broken last, before them the words of headings, and first what only needs another line.
    """
    columns = list(zip(*lines, strict=True)) or [()] * len(keys)
    natural = [max(map(len, (key, *cells))) for key, cells in zip(keys, columns, strict=True)]
    least = [max(map(_least, cells), default=1) for cells in columns]
    least = [min(SHORT, width) if key == cut else width for key, width in zip(keys, least, strict=True)]
    words = [max([width, *map(len, _breakable(key).split())]) for key, width in zip(keys, least, strict=True)]
    spare = room - 2 * (len(keys) - 1) - sum(least)  # two blanks between columns
    if spare < 0 or spare >= sum(natural) - sum(least):
        return [None] * len(keys)
    widths = list(least)
    for wanted in (words, natural):
        spare = _widen(widths, wanted, spare, last=keys.index(cut) if cut in keys else None)
    return widths


def _widen(widths: list[int], wanted: Sequence[int], spare: int, last: int | None) -> int:
    """Widen columns towards what they want, within what is spare, and return what is left of it.

    Those that ask for least get it whole, so that the widest alone are broken; the column `last` gets what is left.
    """
    order = sorted(range(len(widths)), key=lambda column: (column == last, wanted[column] - widths[column]))
    for done, column in enumerate(order):
        sharing = max(1, len(order) - done - (last is not None))
        more = min(wanted[column] - widths[column], spare // sharing)
        widths[column], spare = widths[column] + more, spare - more
    return spare


def _breakable(key: str) -> str:
    """Return a heading broken behind the name of its table of a study file, as in M.width."""
    return re.sub(r"^(\w+\.)(?=\w+$)", r"\1\n", key)


def _least(cell: str) -> int:
    """Return the characters that a cell needs for its words to stay whole."""
    return len(cell) if len(cell) <= SHORT else max(map(len, cell.split()), default=1)


def text(value: Any) -> str:
    """Return a value as a cell shows it."""
    if value is None:
        return "-"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"{value:z.3f}" if isinstance(value, float) else printable(str(value))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows of the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(text, row.values())) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
