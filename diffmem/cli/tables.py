"""Rows as tables on the terminal, in a document or as data."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import click

NAMES = ("cell_id", "study")
"""Columns that a narrow terminal does not break: what they hold is copied into other commands."""
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
    table = Table(title=title or None, title_justify="left", highlight=False)
    for key in keys:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        table.add_column(key, justify="right" if numeric else "left", overflow="fold", no_wrap=key in NAMES)
    for row in rows[:MOST_ROWS]:
        table.add_row(*(text(row.get(key)) for key in keys))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
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
