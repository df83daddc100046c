"""The live display of a run: cells done of all, and what each process does, with its rate and the time left."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from diffmem.cli.tables import echo, printable
from diffmem.runs import Ended
from diffmem.text import duration

EVERY = 30.0
"""Without a terminal, a line says how far a run is once in so many seconds."""

Key = tuple[int, int]
"""A process and the number of the cell that it works on."""


@dataclass
class Row:
    """What a process does: steps of a cell's training, or images of a checkpoint, and since when."""

    doing: str
    unit: str  # step or image
    done: int
    of: int
    about: str
    first: int  # what was done when it began
    since: float

    def told(self, now: float) -> str:
        """Return it as text, with the rate and the time left."""
        if not self.of:
            return self.doing
        rate = (self.done - self.first) / max(now - self.since, 1e-9)
        left = f", {rate:.3g} a second, {duration((self.of - self.done) / rate)} left" if rate else ""
        return f"{self.doing}: {self.unit} {self.done:,} of {self.of:,}{left}"


class Board:
    """How far a run of one or several processes is: bars on a terminal, else a line now and then; only what they say if
    it is not `shown`."""

    def __init__(
        self, total: int, *, shown: bool = True, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total, self.done, self.clock = total, 0, clock
        self.rows: dict[Key, Row] = {}
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.bars = Bars(self.console, total) if shown and self.console.is_terminal else None
        if shown and self.bars is None:
            threading.Thread(target=self._lines, args=(every,), daemon=True).start()

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take what a process says, which is printed above the bars, or does."""
        with self.lock:
            if "text" in message:
                self._print(message["text"], err=message["err"])
            elif "ended" in message:
                self.done += message["ended"] not in (Ended.BUSY, Ended.FAILED_ELSEWHERE)
                self.rows.pop(_key(message), None)
            else:
                self._move(_key(message), message)
            if self.bars is not None:
                self.bars.draw(self.done, self.rows)

    def tell(self, **message: Any) -> None:
        """Take what the only process does."""
        self.hear({"rank": 0, **message})

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.hear({"text": line, "err": False})

    def _move(self, key: Key, message: Mapping[str, Any]) -> None:
        doing, unit, done, of, about = (message[key] for key in ("doing", "unit", "done", "of", "about"))
        row = self.rows.get(key)
        if row is None or (row.doing, row.unit) != (doing, unit) or done < row.done:
            self.rows[key] = Row(doing, unit, done, of, about, first=done, since=self.clock())
        else:
            row.done, row.about = done, about

    def _print(self, words: str, *, err: bool) -> None:
        if err:
            echo(words, err=True)
        else:
            self.console.print(printable(words), markup=False)

    def _lines(self, every: float) -> None:
        while not self.ended.wait(every):
            with self.lock:
                self.console.print(printable(str(self)), markup=False)

    def __str__(self) -> str:
        now = self.clock()
        return "; ".join([f"{self.done} of {self.total} cells done", *(row.told(now) for row in self.rows.values())])

    def close(self) -> None:
        """Take the bars off the screen."""
        self.ended.set()
        if self.bars is not None:
            self.bars.stop()


def _key(message: Mapping[str, Any]) -> Key:
    return message["rank"], message.get("cell", 0)


class Rate(ProgressColumn):
    """Steps or images per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task as text."""
        return Text(f"{task.speed:.3g}/s" if task.speed and task.fields.get("rated") else "")


class Bars:
    """A bar for the cells of a study, and one for each that is worked on."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate())
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.cells = self.progress.add_task("cells", total=total)
        self.tasks: dict[Key, tuple[Row, Any]] = {}
        self.progress.start()

    def draw(self, done: int, rows: Mapping[Key, Row]) -> None:
        """Move the bars."""
        self.progress.update(self.cells, completed=done)
        for key, (row, task) in list(self.tasks.items()):
            if rows.get(key) is not row:  # it does something else now
                self.progress.remove_task(task)
                del self.tasks[key]
        for key, row in rows.items():
            about = "  ".join(filter(None, [printable(row.doing)[:60], f"{row.unit}s", row.about]))
            if key not in self.tasks:
                task = self.progress.add_task(about, total=row.of or None, completed=row.done, rated=True)
                self.tasks[key] = row, task
            self.progress.update(self.tasks[key][1], completed=row.done, description=about)

    def stop(self) -> None:
        """Take the bars off the screen."""
        self.progress.stop()
