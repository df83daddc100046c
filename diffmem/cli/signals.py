"""Stopping on SIGINT and SIGTERM."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopOnSignal:
    """Says whether SIGINT or SIGTERM has come; the second one ends the process at once.

    `answer` is what the first one is answered with.
    """

    def __init__(self, answer: str = "stopping after this step; once more to stop at once") -> None:
        self.answer = answer
        self.signal: int | None = None
        self.at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Leave both signals to Python in a block in which nothing is to be saved."""
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        return self.signal is not None

    def stop(self) -> None:
        """Stop as if SIGTERM had come, unless a signal has."""
        if self.signal is None:
            self.signal, self.at = signal.SIGTERM, time.monotonic()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            again = number == self.signal and time.monotonic() - self.at < 1
            if again and "RANK" in os.environ:  # a terminal's Ctrl-C comes a second time from the launcher
                return
            os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the progress bars hide the cursor
            os._exit(128 + number)
        self.signal, self.at = number, time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{self.answer}\n".encode())
