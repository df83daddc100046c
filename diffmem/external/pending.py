"""What a monitor has measured but not yet written, for a store that something else may hold: nothing waits for it."""

import logging
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from diffmem.errors import StoreError, StoreHeld
from diffmem.store import Store
from diffmem.text import counted

WARN_AFTER = 10.0
"""Seconds that something may be pending before it is said."""
WARN_AGAIN = 600.0
"""Seconds between two times that it is said."""
RETRY = 1.0
"""Seconds between two tries to write, where nothing new is to be written."""
LAST_WAIT = 10.0
"""Seconds to wait for the store at the end, before what is pending goes to a file of its own."""

Write = Callable[[Store], object]
"""One thing to write to a store; writing it twice must do no more than once."""

logger = logging.getLogger("diffmem")


class Pending:
    """Writes to the store at `path` in order, at once where it is free, and at a later call where it is not.

    `opening` is what every other write relies on: it is written first, and also begins the file that takes what
    could not be written in the end.
    """

    def __init__(self, path: Path, name: str, opening: Sequence[Write]) -> None:
        self.path, self.name, self.opening = path, name, list(opening)
        self.store = Store(self.path)  # one for all writes: the first opening of each checks the whole file
        self.writes: deque[Write] = deque(opening)
        self.checkpoints: deque[Write] = deque()  # of the writes that wait
        self.since: float | None = None  # when the first try failed
        self.tried = self.warned = -RETRY

    def open(self) -> None:
        """Write what the rest relies on; StoreError where that cannot be, but not where the store is only held."""
        try:
            self._write(LAST_WAIT)
        except StoreHeld as error:
            self.since = self.warned = time.monotonic()
            logger.warning("%s: %s; %s", self.name, error, KEPT)
        self.path = self.store.path = self.path.absolute()  # the training may change its folder

    def add(self, write: Write) -> None:
        """Take a checkpoint to write, and try."""
        self.writes.append(write)
        self.checkpoints.append(write)
        self.tried = -RETRY
        self.retry()

    def retry(self) -> None:
        """Try to write what is pending, without waiting and not too often; warn if it has been pending for long."""
        now = time.monotonic()
        if not self.writes or now - self.tried < RETRY:
            return
        self.tried = now
        try:
            self._write(0)
            self.since = None
        except StoreError as error:
            self.since = now if self.since is None else self.since
            if now - self.since >= WARN_AFTER and now - self.warned >= WARN_AGAIN:
                self.warned = now
                logger.warning("%s: %s not written yet: %s; %s", self.name, self._what(), error, KEPT)

    def close(self, ending: Write) -> None:
        """Write what is pending and how it ended, or else put both into a file of their own, and say where."""
        self.writes.append(ending)
        try:
            self._write(LAST_WAIT)
        except StoreError as error:
            self._put_aside(error)

    def _write(self, patience: float) -> None:
        self.store.patience = patience
        while self.writes:
            self.writes[0](self.store)
            done = self.writes.popleft()
            if self.checkpoints and done is self.checkpoints[0]:
                self.checkpoints.popleft()

    def _put_aside(self, reason: StoreError) -> None:
        if not self.checkpoints:
            return  # all is written but how it ended: its process is gone, which says the same
        name = re.sub(r"[^\w.-]+", "-", self.name)[:60]
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            path = folder / f"{self.path.stem[:60]}.{name}-{time.time_ns():x}.duckdb"
            store = Store(path)
            try:
                with store.writing(create=True):
                    pass
                for write in [*self.opening, *(each for each in self.writes if each not in self.opening)]:
                    write(store)
            except StoreError:
                path.unlink(missing_ok=True)
                continue
            logger.warning(
                "%s: %s could not be written: %s. They are in %s; `diffmem store merge %s -o %s` adds them",
                self.name, self._what(), reason, path, path, self.path,
            )  # fmt: skip
            return
        logger.warning("%s: %s could not be written anywhere, and are lost: %s", self.name, self._what(), reason)

    def _what(self) -> str:
        return counted(len(self.checkpoints), "checkpoint")


KEPT = "it is kept, and written as soon as the store is free; the training goes on"
