"""What is said and asked before a run starts: what it will take here."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffmem.cli.tables import echo
from diffmem.errors import DiffmemError
from diffmem.text import counted, duration, with_unit

if TYPE_CHECKING:
    from diffmem.runs import Forecast, Options
    from diffmem.store import Store
    from diffmem.study import Study

DAY = 86_400.0
"""Seconds above which a run asks before it starts."""
SMALL = "laptop"
"""The profile to name where a study is too large for this machine."""


def tell_the_cost(
    study: "Study",
    store: "Store",
    options: "Options",
    *,
    processes: int,
    profile: str | None,
    yes: bool,
    quiet: bool,
) -> None:
    """Say what a run will take here; ask whether to start it if that is more than a day, or than the free memory.

    Without a terminal there is nobody to ask: DiffmemError, unless `yes` is given.
    """
    from diffmem.runs import forecast

    found = forecast(study, store, options, processes=processes)
    if found is None:
        return
    objection = _objection(found)
    most = "at most " * (study.estimation.search == "bisect")
    where = "of each GPU" if found.on_gpus else "here"
    if not quiet or objection:
        echo(
            f"{study.name}: {most}{counted(found.cells, 'cell')} to go, about {duration(found.seconds)} and "
            f"{with_unit(found.bytes)}B of memory {where}, in {processes} process{'es' * (processes > 1)}"
        )
    if not objection or yes:
        return
    smaller = _smaller(study, profile)
    if sys.stdin.isatty() and sys.stdout.isatty():
        echo(f"{objection}{f'; {smaller}' if smaller else ''}")
        try:
            if click.confirm("Start it all the same?"):
                return
        except click.Abort:
            sys.exit(128 + signal.SIGINT)
        sys.exit(DiffmemError.exit_code)
    raise DiffmemError("; ".join(filter(None, [f"not started: {objection}", smaller, "--yes starts it all the same"])))


def _objection(found: "Forecast") -> str:
    """Return why a run should not start without a question; empty if there is no reason."""
    objections = [f"it takes about {duration(found.seconds)} here"] * (found.seconds > DAY)
    if found.bytes > found.free:
        objections.append(f"it needs about {with_unit(found.bytes)}B of memory, and {with_unit(found.free)}B are free")
    return " and ".join(objections)


def _smaller(study: "Study", profile: str | None) -> str:
    from diffmem.study import profiles_of

    if profile == SMALL or SMALL not in profiles_of(Path(study.path)):
        return ""
    return f"--profile {SMALL} asks the same of a small model, in minutes"
