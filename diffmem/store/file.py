"""The file of a store: whether it is there, and an empty one made in its place."""

import glob
import os
import stat
from pathlib import Path

import duckdb

from diffmem.errors import StoreError, StoreUnavailable
from diffmem.store.refusals import UNUSABLE, refuse


def is_there(path: Path) -> bool:
    """Return whether a store is at `path`; StoreError if the system does not say, or it is not a regular file."""
    if mark := next((mark for mark in UNUSABLE if mark in str(path.absolute())), ""):
        raise StoreError(f"{path}: DuckDB cannot use a path with {mark} in it; name another store")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            target = os.path.realpath(path)
            raise StoreUnavailable(
                f"{path}: a link to {target}, which is gone (was its disk removed?); bring it back, or "
                "remove the link to begin a new store"
            ) from None
        return False
    except OSError as error:
        refuse(path, error)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StoreError(f"{path}: a pipe or a device, not a file; name another store")
    return True


def create_empty(path: Path) -> None:
    """Make an empty database: beside its place first, so that a file cut short is never taken for a store.

    It never replaces a store: if the lock file was deleted, another process may be making one at the same time.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    duckdb.connect(new.absolute()).close()
    try:
        path.hardlink_to(new)
    except OSError:
        if not is_there(path):  # a file system without hard links
            new.replace(path)
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.new"):  # also of processes that were killed
        if left.suffixes[-2][1:].isdecimal():
            left.unlink(missing_ok=True)
