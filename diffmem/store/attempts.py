"""How an attempt stands that has not said how it ended: one rule, for what is shown and for what is recorded."""

import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from diffmem.atomic import is_running
from diffmem.store.database import Row
from diffmem.store.store import Store

START_PRECISION = timedelta(seconds=2)
"""How precisely the system knows when a process was started."""


def outcome_of(attempt: Row) -> str:
    """Return how an attempt stands: as recorded, unless it is open but its cell is finished or its process is gone.

    The row has outcome, host, pid, started_at, and the checkpoints of the cell, measured and expected. Of a cell
    without any attempt it is "waiting".
    """
    if attempt["outcome"] != "running":
        return str(attempt["outcome"] or "waiting")
    if is_finished(attempt):
        return "finished"
    here = attempt["host"] == socket.gethostname()
    return "lost" if here and not _runs(attempt["pid"], attempt["started_at"]) else "running"


def is_finished(cell: Row) -> bool:
    """Return whether a cell has all its checkpoints; never that of a monitor, whose number nobody knows in advance."""
    return bool(0 < cell["expected"] <= cell["measured"])


def close_attempts(store: Store) -> None:
    """Record how the attempts ended that are open but no longer running; StoreError if the store cannot be written."""
    ended = {row["attempt_id"]: outcome for row in store.open_attempts() if (outcome := outcome_of(row)) != "running"}
    if ended:
        store.close_attempts(ended)


def _runs(pid: int, since: datetime) -> bool:
    """Return whether a process of this machine runs that was there at a time, in UTC: the number may be reused."""
    if not is_running(pid):
        return False
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except FileNotFoundError:
        return is_running(pid)  # unless it has just ended, its user hides it, or the system has no such files
    seconds = int(fields[18]) / os.sysconf("SC_CLK_TCK")  # from the start of the machine to that of the process
    started = datetime.fromtimestamp(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seconds, UTC)
    return state not in "ZX" and started.replace(tzinfo=None) <= since + START_PRECISION
