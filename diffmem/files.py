"""Files for others to read: whole or not at all, and a sentence where they cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffmem.errors import DiffmemError, RunError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` if the block ends well; a device or a pipe is given as
    it is. DiffmemError where it cannot be written; a full disk may be tried again (RunError)."""
    temporary = None
    try:
        if path.is_symlink() and (path.is_file() or not path.exists()):
            path = Path(os.path.realpath(path))  # what the link leads to is replaced, not the link
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            yield path
            return
        temporary = path.with_name(f"{path.name}.tmp")
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error
    finally:
        if temporary:
            with suppress(OSError):
                temporary.unlink()


def unwritable(path: Path, reason: str) -> DiffmemError:
    """Return the error of a file that cannot be written, for the reason that the system gives."""
    if any(words in reason.lower() for words in ("no space left", "disk quota", "file too large")):
        return RunError(f"{path}: cannot be written, the disk is full; free some space and try again")
    return DiffmemError(f"{path}: cannot be written: {reason}; name another file")
