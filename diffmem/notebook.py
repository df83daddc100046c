"""How a notebook shows what the Python API returns: one compact table."""

from collections.abc import Mapping, Sequence
from html import escape

MOST_ROWS = 50
"""Rows that a table shows."""


def html_table(caption: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as an HTML table with a column for each of their keys; of many rows, the first ones."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    shown = [[escape(str(row.get(name, ""))) for name in columns] for row in rows[:MOST_ROWS]]
    body = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in shown)
    more = f"<p>... and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
    caption = f'<caption style="text-align: left">{escape(caption)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
