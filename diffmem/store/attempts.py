"""How attempts and cells stand: one rule, for what is shown and for what is recorded."""

import os
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from diffmem.atomic import is_running
from diffmem.store.rows import LatestAttempt
from diffmem.store.standing import Outcome, State
from diffmem.store.store import Store

START_PRECISION = timedelta(seconds=2)
"""How precisely the system knows when a process was started."""


class Started(Protocol):
    """An attempt: how it stands as recorded, and where it began; all None where none was made."""

    @property
    def outcome(self) -> Outcome | None:
        """Return how it was recorded."""
        ...

    @property
    def host(self) -> str | None:
        """Return the machine."""
        ...

    @property
    def pid(self) -> int | None:
        """Return the process."""
        ...

    @property
    def started_at(self) -> datetime | None:
        """Return when it began, in UTC."""
        ...


def outcome_of(attempt: Started, *, finished: bool) -> Outcome | None:
    """Return how an attempt stands: as recorded, unless it is open but its cell is `finished` or its process is gone;
    None of none."""
    if attempt.outcome is not Outcome.RUNNING or attempt.pid is None or attempt.started_at is None:
        return attempt.outcome
    if finished:
        return Outcome.FINISHED
    here = attempt.host == socket.gethostname()
    return Outcome.LOST if here and not _runs(attempt.pid, attempt.started_at) else Outcome.RUNNING


def state_of(cell: LatestAttempt) -> State:
    """Return the state of a cell: waiting, running, finished, interrupted, failed, lost, crossed or ended."""
    outcome = outcome_of(cell, finished=cell.finished)
    if not cell.expected and outcome is Outcome.FINISHED:
        return State.ENDED
    if cell.finished:
        return State.FINISHED
    return State.WAITING if outcome in (None, Outcome.FINISHED) else State(outcome)


def reason(cell: LatestAttempt) -> str | None:
    """Return why the latest attempt at a cell failed or was interrupted; None if it did not or nothing is known."""
    return cell.error or None if state_of(cell) in (State.FAILED, State.INTERRUPTED) else None


NEEDS_NO_MORE = (State.FINISHED, State.CROSSED, State.ENDED)
"""States of cells that need no more work."""
GOING_ON = (State.RUNNING, State.WAITING, State.INTERRUPTED, State.LOST)
"""States of a cell that a run can still change."""


def going_on(store: Store, studies: Sequence[str]) -> bool:
    """Return whether a run can still change a cell of these studies."""
    return any(state_of(cell) in GOING_ON for study in studies for cell in store.progress(study))


def close_attempts(store: Store) -> None:
    """Record how the attempts ended that are open but no longer running; StoreError if the store cannot be written."""
    stand = {each.attempt_id: outcome_of(each, finished=each.finished) for each in store.open_attempts()}
    ended = {attempt: outcome for attempt, outcome in stand.items() if outcome and outcome is not Outcome.RUNNING}
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
