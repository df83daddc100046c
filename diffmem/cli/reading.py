"""A progress bar on the terminal while images are read and scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffmem.cli.tables import printable


@contextmanager
def shown_reading() -> Iterator[None]:
    """Show how far images are decoded and scored for the while of a block: on a terminal, once it takes a while."""
    from diffmem.data import progress

    bars = _Bars()
    token = progress.set(bars.update)
    try:
        yield
    finally:
        progress.reset(token)
        bars.stop()


class _Bars:
    """A bar for each thing that is read, drawn from the first of which there is more to come."""

    def __init__(self) -> None:
        self.drawn: Any = None
        self.tasks: dict[str, Any] = {}

    def update(self, what: str, done: int, of: int) -> None:
        """Move the bar of `what` to `done` of `of`."""
        if self.drawn is None and done < of:
            self.drawn = _progress()
            self.drawn.start()
        if self.drawn is not None:
            if what not in self.tasks:
                self.tasks[what] = self.drawn.add_task(printable(what), total=of)
            self.drawn.update(self.tasks[what], completed=done, total=of)

    def stop(self) -> None:
        """Take the bars off the screen."""
        if self.drawn is not None:
            self.drawn.stop()


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
