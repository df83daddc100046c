"""A run on the terminal: its lines and its progress bars."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffmem.cli.tables import printable
from diffmem.runs import CellEnded, CellStarted, Ended, Event, Generated, Measured, Noted, Saved, Trained

Detail = Literal["quiet", "normal", "verbose"]
"""How much a run says."""


def show(events: Iterator[Event], *, total: int, label: str, detail: Detail = "normal") -> Counter[str]:
    """Print a run's events as they come, with progress bars on a terminal; return how many cells ended how.

    Of several processes none draws bars, and each begins its lines with its `label`. `quiet` says only what has
    failed, `verbose` also what is saved and each batch of generated images.
    """
    console = Console(highlight=False, soft_wrap=True)
    bars = Bars(console, total) if console.is_terminal and not label and detail != "quiet" else None
    outcomes: Counter[str] = Counter()
    try:
        for event in events:
            if bars is not None:
                bars.update(event)
            if isinstance(event, CellEnded):
                outcomes[event.outcome] += 1
            line = _line(event, total) if detail != "quiet" or _is_failure(event) else ""
            if detail == "verbose":
                line = line or _detail(event)
            if line:
                console.print(printable(label + line.replace("\n", "\n" + label)), markup=False)
    finally:
        if bars is not None:
            bars.stop()
    return outcomes


def _is_failure(event: Event) -> bool:
    return isinstance(event, CellEnded) and event.outcome in (Ended.FAILED, Ended.UNFINISHED)


def _line(event: Event, total: int) -> str:
    """Return what an event says as a line of text, empty for what only moves a bar."""
    match event:
        case Noted(note=note, cells=cells, of=of):
            return f"note: {note}" + (f" (in {cells} of {of} cells)" if cells < of else "")
        case CellStarted(entry=entry, step=step, steps=steps, note=note):
            going_on = f", going on at step {step} of {steps}" if step else ""
            return f"cell {entry.number}/{total} {entry.name}{going_on}" + (f"\n  {note}" if note else "")
        case Measured(cell=cell, epoch=epoch, ratio=ratio, loss=loss):
            trained = "" if loss is None else f"  loss {loss:.4g}"
            return f"  {cell.clock} {epoch}: memorization ratio {ratio:.3f}{trained}"
        case CellEnded(entry=entry, outcome=outcome, error=error) if outcome is not Ended.FINISHED:
            return f"cell {entry.number}/{total} {entry.name}{SAID.get(outcome, f': {outcome}')}{error}"
    return ""


SAID = {
    Ended.FAILED: " failed: ",
    Ended.UNFINISHED: " is not finished: ",
    Ended.FAILED_BEFORE: ": failed before, and is not tried again without --retry-failed",
}
"""What is said of a cell that ended so, before the reason."""


def _detail(event: Event) -> str:
    """Return what an event says in a run that is told in detail."""
    match event:
        case Saved(step=step):
            return f"  step {step}: training state saved"
        case Generated(cell=cell, epoch=epoch, count=count):
            return f"  {cell.clock} {epoch}: {count} of {cell.score.samples} images generated"
    return ""


class Bars:
    """Two progress bars at the bottom of a terminal: cells of the study, and the current cell."""

    def __init__(self, console: Any, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.study = self.progress.add_task("cells", total=total)
        self.cell = self.progress.add_task("steps", total=None)
        self.progress.start()

    def update(self, event: Event) -> None:
        """Move the bars to where the event says the run is."""
        match event:
            case CellStarted(step=step, steps=steps):
                self.progress.reset(self.cell, total=steps, completed=step, description="steps")
            case Trained(step=step, loss=loss):
                self.progress.update(self.cell, completed=step, description=f"steps, loss {loss:.4g}")
            case Generated(cell=cell, count=count):
                self.progress.update(self.cell, description=f"images {count}/{cell.score.samples}")
            case CellEnded():
                self.progress.advance(self.study)

    def stop(self) -> None:
        """Take the bars off the screen."""
        self.progress.stop()
