"""SQL from text that is not ours: names and texts quoted in one place, and DuckDB locked away from all other files."""

import glob
from collections.abc import Sequence
from pathlib import Path

import duckdb

CLOSED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a name in SQL is a table, never a variable of ours
    "temp_directory": "",  # nothing is written beside a file that is only read
}
"""Settings of every connection: nothing is fetched, and no name means anything but what the database has."""
LOCKED = {**CLOSED, "enable_external_access": "false", "lock_configuration": "true"}
"""Settings of a connection that opens no other file and cannot be talked into it."""


def identifier(name: str) -> str:
    """Return a name of a table or column as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def reading_files(paths: Sequence[Path]) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """Return a connection that can open these files and no others, and their names as SQL functions take them.

    A file function of DuckDB expands `*`, `?` and `[` in whatever name it is given, so these are escaped.
    """
    names = [str(path.absolute()) for path in paths]
    patterns = [glob.escape(name) for name in names]
    connection = duckdb.connect(config={**CLOSED})
    connection.execute("SET allowed_paths = ?", [sorted({*names, *patterns})])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection, patterns
