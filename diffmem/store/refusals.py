"""What the system and DuckDB say of a file that cannot be used, as a sentence that says what to do."""

from pathlib import Path
from typing import NoReturn

from diffmem.errors import StoreError, StoreUnavailable

UNUSABLE = ("?", "\\")
"""What DuckDB takes for the end of a path, so that its write-ahead log would lie elsewhere, and for a slash."""

DAMAGED = "damaged, or cut short while it was copied; copy it again, or name another store"

REFUSALS: list[tuple[tuple[str, ...], type[StoreError], str]] = [
    (("not a valid duckdb", "extension"), StoreError, "not a DuckDB file; name another store"),
    (
        ("no space left", "disk quota", "file too large", "the disk is full"),
        StoreUnavailable,
        "the disk is full; free some space and run the same command again, nothing measured is lost",
    ),
    (
        ("permission denied", "read-only file system", "read-only mode"),
        StoreError,
        "cannot be written; check the permissions of the file and its folder, or name another store",
    ),
    (
        ("replaying wal",),
        StoreError,
        "its write-ahead log {path}.wal is damaged; move that file away, which loses at most the append that was "
        "under way when the last process ended",
    ),
    (
        ("out of memory", "bad_alloc"),
        StoreUnavailable,
        "out of memory; close other programs, or raise --memory if this is a query",
    ),
    (("corrupt", "could not read enough bytes", "checksum"), StoreError, DAMAGED),
    (
        ("version number",),
        StoreError,
        "written by another version of DuckDB; install the one that constraints.txt names",
    ),
    (
        ("file exists", "is a directory", "no such file or directory", "not a directory", "file name too long"),
        StoreError,
        "no file can be there; name another store",
    ),
]
"""What an error's text holds, the kind of error that it then is, and what to say; the first that fits."""


def refuse(path: Path, error: Exception) -> NoReturn:
    """Raise a StoreError of the store at `path` for what the system or DuckDB says."""
    low = str(error).lower()
    for words, kind, advice in REFUSALS:
        if any(word in low for word in words):
            raise kind(f"{path}: {advice.format(path=path)}") from error
    raise StoreUnavailable(f"{path}: the store cannot be used: {str(error).splitlines()[0]}") from error
