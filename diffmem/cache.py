"""The folder of decoded images: files that are written whole, and no remains of writers that were killed."""

import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from diffmem.errors import DataError

LONGEST_WRITE = 3600
"""Seconds without a change after which a file being written is abandoned, on whatever host its writer was."""
PARTIAL = re.compile(r".+\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
"""The name of a file while it is written: what it will be, and by which process of which host."""


def cache_folder() -> Path:
    """Return the folder of decoded images: DIFFMEM_CACHE, or diffmem in the user's cache folder."""
    if named := os.environ.get("DIFFMEM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmem"


def keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file of the cache, whole or not at all, and remove what killed writers have left beside it."""
    partial = path.with_name(f"{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        try:
            with partial.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
    except OSError as error:
        raise DataError(
            f"{path}: decoded images cannot be kept there ({error.strerror}); name another folder with DIFFMEM_CACHE"
        ) from error


def _remove_abandoned(folder: Path) -> None:
    for file in folder.iterdir():
        name = PARTIAL.fullmatch(file.name)
        with suppress(OSError):  # another writer has removed it, or may
            if name and (_is_old(file) or (name["host"] == _host() and not _is_running(int(name["pid"])))):
                file.unlink()


def _is_old(file: Path) -> bool:
    return time.time() - file.stat().st_mtime > LONGEST_WRITE


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # it runs for someone else
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _host() -> str:
    return socket.gethostname()[:64].replace("/", "-")
