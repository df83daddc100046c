"""Rows as tables on the terminal, in a document or as data."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import click

NAMES = ("cell_id", "study")
"""Columns that a terminal does not break if it can help it: what they hold is copied into other commands."""
LEAST_WIDTH = 7
"""Characters, borders included, that every other column must still have for that."""
MOST_ROWS = 1000
"""More rows nobody reads, and a table of them takes minutes to lay out."""


def print_json(data: Any) -> None:
    """Print data as JSON: times in ISO 8601, bytes in base64, and null for a number that is none."""
    click.echo(json.dumps(_plain(data), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def print_table(title: str, rows: list[dict[str, Any]], *, columns: Sequence[str] = ()) -> None:
    """Print rows as a table with a column per key of any row, or those of `columns` where there is no row."""
    from rich.console import Console  # a tenth of a second that `--help` does without
    from rich.table import Table

    keys = list(dict.fromkeys(key for row in rows for key in row)) or columns
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    table = Table(title=title or None, title_justify="left", highlight=False)
    names = [key for key in keys if key in NAMES]
    widths = [max((len(text(row.get(key))) for row in rows), default=0) for key in names]
    whole = sum(widths) + 3 * len(names) <= console.width - LEAST_WIDTH * (len(keys) - len(names))
    for key in keys:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(key, justify=justify, overflow="fold", no_wrap=whole and key in names)
    for row in rows[:MOST_ROWS]:
        table.add_row(*(text(row.get(key)) for key in keys))
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"... and {len(rows) - MOST_ROWS} rows more, which --json prints")


def text(value: Any) -> str:
    """Return a value as a cell shows it."""
    if value is None:
        return "-"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows of the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(text, row.values())) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
