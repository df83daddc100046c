"""What the control group of this process may still use of the memory, as containers and batch systems limit it."""

from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def left_in_group(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes that are left to the control group (version 2) of this process and to all above it; None
    without a limit."""
    with suppress(OSError, ValueError):
        (name,) = [
            line.removeprefix("0::").lstrip("/") for line in own.read_text().splitlines() if line.startswith("0::")
        ]
        group = groups / name
        found = [left for each in (group, *group.parents) if each.is_relative_to(groups) and (left := _left_in(each))]
        return min(found, default=None)
    return None


def _left_in(group: Path) -> int | None:
    """Return what is left to one control group, without what it has of files, which goes when memory is needed."""
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())  # or the word max
        of_files = [
            line.split()[1]
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        ]
        return max(1, limit - int((group / "memory.current").read_text()) + sum(map(int, of_files)))
    return None
