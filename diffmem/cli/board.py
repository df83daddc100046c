"""The live display of a run: cells done of all, and what each process does, with its rate and the time left."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from diffmem.cli.tables import echo, printable
from diffmem.runs import Ended
from diffmem.text import duration

EVERY = 30.0
"""Seconds between two lines of how far a run is, where there is no terminal."""


@dataclass
class Row:
    """What a process does: steps of a cell, and since when."""

    doing: str
    step: int
    steps: int
    about: str
    first: int  # the step at which it began here
    since: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Return its steps per second, 0 where nothing is known yet."""
        return (self.step - self.first) / max(time.monotonic() - self.since, 1e-9)

    def __str__(self) -> str:
        if not self.steps or self.about.startswith("image "):  # which are generated now
            return f"{self.doing}: {self.about}" if self.about else self.doing
        rate = self.rate
        left = f", {rate:.3g} a second, {duration((self.steps - self.step) / rate)} left" if rate else ""
        return f"{self.doing}: step {self.step:,} of {self.steps:,}{left}"


class Board:
    """How far a run of one or several processes is: bars on a terminal, else a line now and then; only what they say if
    it is not `shown`."""

    def __init__(self, total: int, *, shown: bool = True, every: float = EVERY) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total, self.done = total, 0
        self.rows: dict[int, Row] = {}
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
                self.rows.pop(message["rank"], None)
            else:
                self._move(message["rank"], message)
            if self.bars is not None:
                self.bars.draw(self.done, self.rows)

    def hear_of(self, rank: int, **message: Any) -> None:
        """Take what the process of a rank says or does."""
        self.hear({"rank": rank, **message})

    def _move(self, rank: int, message: Mapping[str, Any]) -> None:
        row = self.rows.get(rank)
        if row is None or row.doing != message["doing"]:
            self.rows[rank] = Row(
                message["doing"], message["step"], message["steps"], message["about"], message["step"]
            )
        else:
            row.step, row.about = message["step"], message["about"]

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
        return "; ".join([f"{self.done} of {self.total} cells done", *map(str, self.rows.values())])

    def close(self) -> None:
        """Take the bars off the screen."""
        self.ended.set()
        if self.bars is not None:
            self.bars.stop()


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task as text."""
        return Text(f"{task.speed:.3g}/s" if task.speed and task.fields.get("rated") else "")


class Bars:
    """A bar for the cells of a study, and one for each process."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate())
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.cells = self.progress.add_task("cells", total=total)
        self.tasks: dict[int, Any] = {}
        self.doing: dict[int, str] = {}
        self.progress.start()

    def draw(self, done: int, rows: Mapping[int, Row]) -> None:
        """Move the bars."""
        self.progress.update(self.cells, completed=done)
        for rank in self.tasks.keys() - rows.keys():
            self.progress.remove_task(self.tasks.pop(rank))
        for rank, row in rows.items():
            about = f"{printable(row.doing)[:60]}  {row.about}"
            if rank not in self.tasks or self.doing[rank] != row.doing:
                if rank in self.tasks:
                    self.progress.remove_task(self.tasks[rank])
                self.doing[rank] = row.doing
                whole = row.steps or None
                self.tasks[rank] = self.progress.add_task(about, total=whole, completed=row.step, rated=True)
            self.progress.update(self.tasks[rank], completed=row.step, description=about)

    def stop(self) -> None:
        """Take the bars off the screen."""
        self.progress.stop()
