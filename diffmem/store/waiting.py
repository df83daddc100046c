"""Waiting for a store: threads of this process take turns, and whoever waits long says for whom."""

import logging
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb
import filelock

from diffmem.errors import StoreError, StoreHeld

SHORT = 3.0
"""Seconds that the writes of others may take; a wait of that length is not interrupted."""
SAY_AFTER = 10.0
"""Seconds of waiting for the same hold after which it is said: many short holds in turn are only others at work."""
SAY_AGAIN = 60.0
"""Seconds between two times that it is said."""
LONGEST_PAUSE = 0.05
"""Seconds between two looks whether the store is free."""

ADVICE = "close it (a notebook or a DuckDB shell?)"

logger = logging.getLogger("diffmem")
Result = TypeVar("Result")


class Wait:
    """One wait for the store at `path`, of `patience` seconds at most; `on_wait` is called at each look after SHORT."""

    def __init__(self, path: Path, patience: float, on_wait: Callable[[], None]) -> None:
        self.path, self.patience, self.on_wait = path, patience, on_wait
        self.started = time.monotonic()
        self.hold: object = None
        self.say_at = math.inf
        self.said = False
        self.pause = 0.005

    def again(self, holder: str, since: object = None) -> None:
        """Pause before another look; StoreHeld, which names the holder, once patience has ended.

        `since` tells one hold of the holder from the next.
        """
        now = time.monotonic()
        if (holder, since) != self.hold and not self.said:
            self.hold, self.say_at = (holder, since), now + SAY_AFTER
        if now - self.started >= SHORT:
            self.on_wait()
        if now - self.started >= self.patience:
            raise StoreHeld(f"{self.path}: {holder} holds the store open; {ADVICE} and try again")
        if now >= self.say_at:
            logger.warning("%s: waiting, since %s holds the store open; %s", self.path, holder, ADVICE)
            self.said, self.say_at = True, now + SAY_AGAIN
        time.sleep(min(self.pause, max(0.0, self.patience - (now - self.started))))
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def until(self, work: Callable[[], Result], holder_of: Callable[[Exception], tuple[str, object] | None]) -> Result:
        """Return what some work gives, done again as long as it fails because somebody holds the store.

        `holder_of` says of an error who that is and since when, None where it has another reason, and is raised.
        """
        while True:
            try:
                return work()
            except (duckdb.Error, filelock.Timeout) as error:
                holder = holder_of(error)
                if holder is None:
                    raise
                self.again(*holder)

    def over(self) -> None:
        """Say that the wait has ended, if it was said that there was one."""
        if self.said:
            logger.warning("%s: free again after %.0f seconds, going on", self.path, time.monotonic() - self.started)
            self.said, self.say_at = False, math.inf


class _Turns(threading.local):
    """The stores that this thread has open, each with how many times, and whether to write."""

    def __init__(self) -> None:
        self.readers: dict[str, int] = defaultdict(int)
        self.writes: set[str] = set()


_mine = _Turns()
_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
"""A lock for each store: DuckDB lets one process open a file in one way only, so its threads take turns."""


@contextmanager
def turn(path: Path, wait: Wait, *, write: bool) -> Iterator[None]:
    """Hold this process' turn at the store at `path`; a thread that reads it already may read it again.

    StoreError where the thread has it open already and one of the two writes: it would wait for itself.
    """
    key = os.path.realpath(path)
    if _mine.readers[key] or key in _mine.writes:
        if write or key in _mine.writes:
            raise StoreError(f"{path}: already open in this thread; leave that `with` block first")
        with _counted(key):
            yield
        return
    lock = _locks[key]
    while not lock.acquire(blocking=False):
        wait.again("another thread of this process")
    try:
        with _writing(key) if write else _counted(key):
            yield
    finally:
        lock.release()


@contextmanager
def _counted(key: str) -> Iterator[None]:
    _mine.readers[key] += 1
    try:
        yield
    finally:
        _mine.readers[key] -= 1


@contextmanager
def _writing(key: str) -> Iterator[None]:
    _mine.writes.add(key)
    try:
        yield
    finally:
        _mine.writes.discard(key)


def holder_in(error: Exception) -> tuple[str, object] | None:
    """Return who holds a file that DuckDB could not open; None where that is not why."""
    message = str(error)
    if "different configuration" in message or "Unique file handle conflict" in message:
        return "this process itself (duckdb.connect?)", None
    if "could not set lock" not in message.lower():
        return None
    _, found, process = message.partition("(PID ")
    return (f"process {process.partition(')')[0]}" if found else "another program"), None
