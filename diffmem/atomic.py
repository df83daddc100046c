"""Files written whole or not at all, and a sentence where they cannot be written."""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffmem.errors import DiffmemError, RunError

LONGEST_WRITE = 3600
"""Seconds without a change after which a file being written is abandoned, on whatever host its writer was."""
PARTIAL = re.compile(r"\.(?P<target>.+)\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
"""The name of a file while it is written: what it will be, and by which process of which host."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` if the block ends well; a device or a pipe is given as
    it is. DiffmemError where it cannot be written; a full disk may be tried again (RunError)."""
    try:
        path = _led_to(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            yield path
            return
        remove_abandoned(path.parent, path.name)
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error


def check_writable(path: Path) -> None:
    """Raise DiffmemError where `whole` could not write a file, before the work whose outcome it is for."""
    try:
        path = _led_to(path)
        if not path.exists() or path.is_file():
            folder = next(each for each in path.parents if each.exists())  # in which those that are not there will be
            partial = partial_path(folder / path.name)
            partial.open("xb").close()
            partial.unlink()
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error


def _led_to(path: Path) -> Path:
    """Return the file that a link leads to, which is replaced, not the link."""
    return Path(os.path.realpath(path)) if path.is_symlink() and (path.is_file() or not path.exists()) else path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` that takes its place, once it is on the disk, if the block ends well."""
    partial = partial_path(path)
    try:
        partial.open("xb").close()  # never another writer's, nor what a link leads to
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


def partial_path(path: Path) -> Path:
    """Return a new name beside `path` for what becomes it, which tells whose it is."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def remove_abandoned(folder: Path, target: str | None = None) -> None:
    """Remove what killed writers have left in a folder, of one file or of all."""
    for file in folder.iterdir():
        name = PARTIAL.fullmatch(file.name)
        if name is None or target not in (None, name["target"]):
            continue
        with suppress(OSError):  # another writer has removed it, or may
            if _is_old(file) or (name["host"] == _host() and not is_running(int(name["pid"]))):
                file.unlink()


def _is_old(file: Path) -> bool:
    return time.time() - file.stat().st_mtime > LONGEST_WRITE


def is_running(pid: int) -> bool:
    """Return whether a process of this host is there."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # it runs for someone else
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _host() -> str:
    return re.sub(r"[./]", "-", socket.gethostname()[:64])


def unwritable(path: Path, reason: str) -> DiffmemError:
    """Return the error of a file that cannot be written, for the reason that the system gives."""
    if any(words in reason.lower() for words in ("no space left", "disk quota", "file too large")):
        return RunError(f"{path}: cannot be written, the disk is full; free some space and try again")
    return DiffmemError(f"{path}: cannot be written: {reason}; name another file")
