"""Files for others to read: whole or not at all, and a sentence where they cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffmem.errors import DiffmemError, RunError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` if the block ends well; a device or a pipe is given as
    it is. DiffmemError where it cannot be written; a full disk may be tried again (RunError)."""
    if path.is_symlink() and path.is_file():
        path = path.resolve()  # what the link leads to is replaced, not the link
    temporary = path.with_name(f"{path.name}.tmp") if path.name else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            yield path
            return
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error
    finally:
        if temporary != path:
            with suppress(OSError):
                temporary.unlink()


def unwritable(path: Path, reason: str) -> DiffmemError:
    """Return the error of a file that cannot be written, for the reason that the system gives."""
    if any(words in reason.lower() for words in ("no space left", "disk quota", "file too large")):
        return RunError(f"{path}: cannot be written, the disk is full; free some space and try again")
    return DiffmemError(f"{path}: cannot be written: {reason}; name another file with -o")
