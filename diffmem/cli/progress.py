"""A run on the terminal: its lines, and how far each of its processes is."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffmem.runs import (
    CellEnded,
    CellLost,
    CellStarted,
    Connected,
    Ended,
    Event,
    Generated,
    Measured,
    Noted,
    Saved,
    Trained,
)
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.study import StudyCell

Detail = Literal["quiet", "normal", "verbose"]
"""How much a run says."""
Say = Callable[[str], object]
"""Prints a line."""
Tell = Callable[..., object]
"""Is told of a `cell` (its number) how far it is: `doing`, `unit`, `done`, `of`, `about`; or how it `ended`."""


def show(
    events: Iterator[Event], *, total: int, say: Say, tell: Tell, detail: Detail = "normal", several: bool = False
) -> Counter[str]:
    """Say a run's events as they come, and tell how far it is; return how many cells ended how.

    Where `several` cells are trained at once, each line names its cell. `quiet` says only what has failed, `verbose`
    also what is saved and each batch of generated images.
    """
    outcomes: Counter[str] = Counter()
    doing = Doing(tell)
    names: dict[str, str] = {}
    for event in events:
        doing.update(event)
        if isinstance(event, CellEnded):
            outcomes[event.outcome] += 1
        if isinstance(event, CellStarted):
            names[event.entry.cell.cell_id] = f"{event.entry.name or 'the cell'}: "
        where = "  "
        if several and isinstance(event, Measured | Saved | Generated):
            where = names[event.cell.cell_id]
        line = _line(event, None if several else total, where) if detail != "quiet" or _is_failure(event) else ""
        if detail == "verbose":
            line = line or _detail(event, where)
        if line:
            say(line)
    return outcomes


def _is_failure(event: Event) -> bool:
    return isinstance(event, CellEnded) and event.outcome in (Ended.FAILED, Ended.UNFINISHED)


def _line(event: Event, total: int | None, where: str) -> str:
    """Return what an event says as a line of text; empty for what only moves a bar.

    `where` stands before what happens in a cell. Cells are numbered up to `total` where they come in their order.
    """
    match event:
        case Noted(note=note, cells=cells, of=of):
            return f"note: {note}" + (f" (in {cells} of {of} cells)" if cells < of else "")
        case Connected(nodes=nodes, cpus=cpus, gpus=gpus, at_once=at_once):
            size = f"a cluster of {counted(nodes, 'node')}, {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
            room = f"{counted(at_once, 'cell')} at once" if at_once else "no cell has room on it yet, so all wait"
            return f"{size}: {room}"
        case CellLost(entry=entry, reason=reason):
            return f"{_named(entry, total)}: {reason}; another one goes on from its last saved state"
        case CellStarted(entry=entry, step=step, steps=steps, note=note):
            length = f", {counted(steps, 'step')}" * bool(steps)
            going_on = f", going on at step {step} of {steps}" if step else length
            return f"{_named(entry, total)}{going_on}" + (f"\n  {note}" if note else "")
        case Measured(cell=cell, epoch=epoch, ratio=ratio, loss=loss):
            trained = "" if loss is None else f"  loss {loss:.4g}"
            return f"{where}{cell.clock} {epoch}: memorization ratio {ratio:.3f}{trained}"
        case CellEnded(entry=entry, outcome=outcome, error=error) if outcome is not Ended.FINISHED:
            return f"{_named(entry, total)}{SAID.get(outcome, f': {outcome}')}{error}"
    return ""


def _named(entry: "StudyCell", total: int | None) -> str:
    return f"cell {entry.name}" if total is None else f"cell {entry.number}/{total} {entry.name}"


SAID = {
    Ended.FAILED: " failed: ",
    Ended.UNFINISHED: " is not finished: ",
    Ended.FAILED_BEFORE: ": failed before, and is not tried again without --retry-failed",
}
"""What is said of a cell that ended so, before the reason."""


def _detail(event: Event, where: str) -> str:
    """Return what an event says in a run that is told in detail."""
    match event:
        case Saved(step=step):
            return f"{where}step {step}: training state saved"
        case Generated(cell=cell, epoch=epoch, count=count):
            return f"{where}{cell.clock} {epoch}: {count} of {cell.score.samples} images generated"
    return ""


class Doing:
    """Tells how far each cell is, a few times a second at most."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.cells: dict[str, _Told] = {}

    def update(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case CellStarted(entry=entry, step=step, steps=steps):
                told = self.cells[entry.cell.cell_id] = _Told(entry.name or "the cell", entry.number, steps)
                told.state |= {"unit": "step", "done": step, "of": steps, "about": ""}
            case Trained(cell=cell, step=step, loss=loss):
                told = self.cells[cell.cell_id]
                told.state |= {"unit": "step", "done": step, "of": told.steps, "about": f"loss {loss:.4g}"}
            case Generated(cell=cell, count=count):
                told = self.cells[cell.cell_id]
                told.state |= {"unit": "image", "done": count, "of": cell.score.samples, "about": ""}
            case CellEnded(entry=entry, outcome=outcome):
                self.cells.pop(entry.cell.cell_id, None)
                self.tell(cell=entry.number, ended=str(outcome))
                return
            case _:
                return
        if time.monotonic() - told.at >= OFTEN:
            told.at = time.monotonic()
            self.tell(cell=told.number, doing=told.name, **told.state)


@dataclass
class _Told:
    """What was told of a cell, and when."""

    name: str
    number: int
    steps: int
    at: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)


OFTEN = 0.2
"""A process tells how far it is once in so many seconds, at most."""
