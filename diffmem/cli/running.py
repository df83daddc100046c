"""The command that trains: `run`."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from diffmem.cli.cost import tell_the_cost
from diffmem.cli.options import (
    StudyFile,
    file_of,
    is_another_file,
    load_study,
    max_pixels_option,
    profile_option,
    set_option,
    store_option,
)
from diffmem.cli.planning import plan
from diffmem.cli.relay import Sender, relayed
from diffmem.cli.signals import StopOnSignal
from diffmem.cli.tables import echo
from diffmem.runs import OrphanWatch
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.cli.progress import Detail
    from diffmem.models import Compile
    from diffmem.runs import Cluster, Options
    from diffmem.store import Store, StoredStudy
    from diffmem.study import Study


@click.command()
@click.argument("study", type=StudyFile())
@profile_option
@set_option
@store_option
@max_pixels_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    envvar="DIFFMEM_PROCESSES",
    show_envvar=True,
    help="Number of processes on this machine.  [default: one per GPU; without GPUs, one per CPU "
    "core but no more than cells]",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "cells", "batch"]),
    default="auto",
    help="With several processes: train a cell each (cells), or one cell together (batch). auto: together if there "
    "are fewer cells than processes.",
)
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Compile the networks with torch.compile. auto: only if a cell's work is long enough to pay for it.",
)
@click.option(
    "--shard", metavar="I/N", help="Run only the I-th of N parts of the cells. For machines that share no disk."
)
@click.option(
    "--cluster",
    metavar="ray[://ADDRESS]",
    help="Train on a Ray cluster: a cell is a task, this process keeps the store. Without ADDRESS: the cluster of this "
    "machine, or RAY_ADDRESS.",
)
@click.option(
    "--gpus-per-cell",
    type=click.FloatRange(0, 1, min_open=True),
    help="With --cluster: the share of a GPU that a cell takes, as 0.25 for small networks.  [default: a whole one]",
)
@click.option(
    "--work",
    metavar="FOLDER",
    help="With --cluster: a folder, or an address such as s3://bucket/folder, that all nodes reach, for training "
    "states and models.  [default: work, beside the store]",
)
@click.option(
    "--log-with",
    multiple=True,
    metavar="TRACKER",
    help="Also log the loss and ratio of each checkpoint to tensorboard, wandb, mlflow or another tracker that "
    "Accelerate supports.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be trained, as `diffmem plan` does, and train nothing.")
@click.option(
    "--yes", is_flag=True, help="Start without asking, however long the run takes or however much memory it needs."
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first cell that fails.")
@click.option("--retry-failed", is_flag=True, help="Retry cells that failed before.")
@click.option("--quiet", "-q", "detail", flag_value="quiet", help="Print only failures and the summary.")
@click.option("--verbose", "-v", "detail", flag_value="verbose", help="Also print each save and each batch of images.")
def run(
    study: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    store_path: Path,
    processes: int | None,
    split: str,
    compiling: "Compile",
    shard: str | None,
    cluster: str | None,
    gpus_per_cell: float | None,
    work: str | None,
    log_with: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    fail_fast: bool,
    retry_failed: bool,
    detail: "Detail | None",
) -> None:
    """Train and score every cell the store does not have yet.

    STUDY is a study file, or the name of a study that is in the folder studies or ships with diffmem.

    You can stop a run at any moment; the same command resumes it. Ctrl-C saves first; a second Ctrl-C does not. If a
    run would take more than a day here, or more than the free memory, it asks before it starts.

    `accelerate launch -m diffmem run` and `torchrun -m diffmem run` use the processes that they start.

    Example: diffmem run quickstart
    """
    if dry_run:
        shown = {"study": study, "profile": profile, "overrides": overrides, "store_path": store_path}
        click.get_current_context().invoke(plan, **shown, measure=False, tflops=None, as_json=False)
        return
    watch = OrphanWatch()
    sender = relayed(int(os.environ.get("RANK", "0")))
    loaded = load_study(study, profile, overrides)
    part = _shard(shard)
    if log_with:
        from diffmem.runs import check_trackers

        check_trackers(log_with)
    stop = StopOnSignal()
    from diffmem.cli.reading import shown_reading
    from diffmem.runs import Options, default_processes, launched, read_ahead
    from diffmem.store import Store

    store, count = Store(store_path), 1
    options = Options(split, part, fail_fast, retry_failed, compiling)
    alone = bool(launched() or _on_command_line("processes") or shard or split == "batch")
    where = _cluster(cluster, gpus_per_cell, work, store, not_with=alone)
    if not (where or launched()):
        with stop.asleep():
            count = processes or default_processes(_at_once(loaded, store, options))
            tell_the_cost(loaded, store, options, processes=count, profile=profile, yes=yes, quiet=detail == "quiet")
    if count > 1:
        given: dict[str, Sequence[str]] = {"--store": [str(store_path)], "--split": [split], "--compile": [compiling]}
        given |= {"--set": overrides, "--profile": _one(profile), "--shard": _one(shard), "--log-with": log_with}
        flags = {"--fail-fast": fail_fast, "--retry-failed": retry_failed, f"--{detail}": detail is not None}
        arguments = [str(study), *_options(given), *(flag for flag, on in flags.items() if on)]
        with shown_reading(), stop.asleep():
            read_ahead(loaded, store, options)
        _hand_on(count, arguments, loaded, store, total=_total(loaded, options), shown=detail != "quiet")
    show: dict[str, Any] = {"log_with": log_with, "detail": detail or "normal", "sender": sender}
    _work(loaded, store, options, stop=stop, watch=watch, cluster=where, **show)


def _work(
    study: "Study",
    store: "Store",
    options: "Options",
    *,
    stop: StopOnSignal,
    watch: OrphanWatch,
    log_with: tuple[str, ...],
    detail: "Detail",
    sender: Sender | None,
    cluster: "Cluster | None",
) -> None:
    """Do this process' share of a run, or have a cluster do it all, and say how it goes and how it ended."""
    from diffmem.cli.board import Board
    from diffmem.cli.progress import show
    from diffmem.runs import Ended, Interrupted, join, leave, log_events, run_on_cluster, run_study, trackers_of

    group = join()
    watch.joined(stop.stop)
    if group.leads:
        _tell_what_is_replaced(study, store)
    total = _total(study, options)
    if cluster:
        events = run_on_cluster(study, store, cluster, stop=stop, options=options)
    else:
        events = run_study(study, store, stop=stop, group=group, options=options)
    several = bool(cluster) or group.count > 1
    if log_with:
        events = log_events(events, trackers_of(log_with, study=study.name, folder=store.path.parent / "logs"))
    board = None if group.count > 1 or sender else Board(total, shown=detail != "quiet")
    tell = sender.send if sender else board.tell if board else _nobody
    say = board.say if board else echo
    try:
        outcomes = show(events, total=total, say=say, tell=tell, detail=detail, several=several)
    except Interrupted:
        if group.leads:
            echo("stopped; everything is saved, the same command goes on from here", err=True)
        sys.exit(128 + (stop.signal or signal.SIGINT))
    finally:
        if board:
            board.close()
        leave()
    _conclude(study, store, several=group.count > 1, busy=outcomes[Ended.BUSY], total=total)


def _on_command_line(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


def _cluster(
    given: str | None, gpus_per_cell: float | None, work: str | None, store: "Store", *, not_with: bool
) -> "Cluster | None":
    """Return the cluster that a command line asks for, if any, `not_with` other processes and parts of a study."""
    if given is None:
        if gpus_per_cell or work:
            raise click.UsageError("--gpus-per-cell and --work are for a run with --cluster")
        return None
    if not_with:
        raise click.UsageError("--cluster hands out cells from one process; leave out --processes, --split and --shard")
    from diffmem.runs import Cluster

    kind, _, address = given.partition("://")
    if kind != "ray" or given == "ray://":
        raise click.BadParameter(f"{given!r} is not ray, or as ray://10.0.0.1:6379", param_hint="--cluster")
    there = work or str(store.path.parent / "work")
    return Cluster(there if "://" in there else str(Path(there).absolute()), address or None, gpus_per_cell)


def _total(study: "Study", options: "Options") -> int:
    """Return how many cells a run of a study has, at most if it is a search."""
    from diffmem.runs import most_cells, shard_of

    return most_cells(study) if study.estimation.search == "bisect" else len(shard_of(study, options.shard))


def _nobody(**_told: object) -> None:
    """Take what a process does where nobody shows it: another launcher has started several."""


def _tell_what_is_replaced(study: "Study", store: "Store") -> None:
    """Say so where the store has another study of this name, whose cells are then not listed under it."""
    from diffmem.store import as_options

    studies = store.studies() if store.exists() else []
    known = next((each for each in studies if each.study == study.name), None)
    if known is None:
        return
    if is_another_file(known, study.path):
        was, now, advice = file_of(known), study.path, "rename one of the files to have a report of both"
    elif known.overrides != list(study.overrides):
        was, now = (" ".join(as_options(each)) or "the file alone" for each in (known.overrides, study.overrides))
        advice = _resuming(known, study, store)
    else:
        return
    echo(
        f"note: {study.name} is now the study of {now} instead of {was}; earlier results stay in the store, but "
        f"{advice}",
        err=True,
    )


def _resuming(known: "StoredStudy", study: "Study", store: "Store") -> str:
    """Return how a run goes on with the cells that were begun with other --set than it has, or how both are shown."""
    from diffmem.store import as_options

    before, own, saved = store.progress(known.study), {each.cell.cell_id for each in study.cells}, store.state_files()
    begun = len({cell.cell_id for cell in before if cell.measured or cell.cell_id in saved} - own)
    if not begun or own <= {cell.cell_id for cell in before}:
        return "a copy of the file under another name, or a profile, has a report of its own"
    give = " ".join(as_options(known.overrides)) or "no --set"
    return f"this run trains other cells; give {give} to resume the {counted(begun, 'cell')} begun before"


def _conclude(study: "Study", store: "Store", *, several: bool, busy: int, total: int) -> None:
    """Say how a run ended; exit with 1 if cells have failed, or need more memory."""
    if busy:
        echo(f"{busy} of {total} cells are being trained by another process; run this again after it")
    failed, short = _not_done(study, store, several=several)
    tells = f"diffmem status {study.name} --store {store.path}"
    if failed:
        echo(f"{failed} of {total} cells failed; `{tells}` says why, --retry-failed tries them again", err=True)
    if short:
        echo(
            f"{short} of {total} cells could not be finished for lack of memory; `{tells}` lists them, "
            "the same command tries them again",
            err=True,
        )
    if failed or short:
        sys.exit(1)
    if not several:
        echo(_ending(study, store))


def _ending(study: "Study", store: "Store") -> str:
    """Return the last line of a run in which nothing has failed."""
    from diffmem.store import Outcome, as_arguments

    cells = {cell.cell_id: cell for cell in store.progress(study.name)}.values()
    finished = sum(cell.finished for cell in cells)
    crossed = sum(cell.outcome is Outcome.CROSSED and not cell.finished for cell in cells)
    early = f" and {crossed} ended at the line" if crossed else ""
    lines = [f"{study.name}: {finished} of {len(cells)} cells are finished{early} in {store.path}"]
    meant = as_arguments(study.path, study.name, study.overrides)
    lines += [
        f"{counted(lacking, 'checkpoint')} measured before without {measure}; "
        f"`diffmem measure {meant} --measure {measure} --store {store.path}` adds it where the trained model is kept"
        for measure in study.cells[0].cell.score.measures
        if (lacking := store.lacking(study.name, measure))
    ]
    return "\n".join(lines)


def _hand_on(count: int, arguments: list[str], study: "Study", store: "Store", *, total: int, shown: bool) -> NoReturn:
    """Let so many processes do the run, show how far they are, and end as they do."""
    from diffmem.cli.board import Board
    from diffmem.cli.relay import Relay
    from diffmem.runs import start

    board = Board(total, shown=shown)
    relay = Relay(board.hear)
    try:
        code = start(count, ["run", *arguments])
    finally:
        relay.close()
        board.close()
    if code == 0:
        echo(_ending(study, store))
    sys.exit(code)


def _one(value: str | None) -> Sequence[str]:
    return [] if value is None else [value]


def _options(given: Mapping[str, Sequence[str]]) -> list[str]:
    """Return options with their values as a command line has them."""
    return [part for option, values in given.items() for value in values for part in (option, value)]


def _shard(text: str | None) -> tuple[int, int]:
    """Read I/N."""
    if text is None:
        return 1, 1
    number, slash, count = text.partition("/")
    digits = slash and number.isdecimal() and count.isdecimal() and len(text) < 100
    if not (digits and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N, as in 2/8", param_hint="--shard")
    return int(number), int(count)


def _at_once(study: "Study", store: "Store", options: "Options") -> int:
    """Return how many cells of a study can be trained at once."""
    from diffmem.runs import side_by_side, waiting_cells

    return side_by_side(study, waiting_cells(study, store, options))


def _not_done(study: "Study", store: "Store", *, several: bool) -> tuple[int, int]:
    """Return how many cells have failed and how many need more memory; 0 from all but the last of several processes.

    A launcher takes another exit code than 0 for a reason to end the other processes.
    """
    from diffmem.errors import OutOfMemory
    from diffmem.store import Outcome, State, state_of

    cells = {cell.cell_id: cell for cell in store.progress(study.name) if not cell.finished}.values()
    states = [state_of(cell) for cell in cells]
    if several and State.RUNNING in states:
        return 0, 0
    out_of_memory = (Outcome.INTERRUPTED, str(OutOfMemory()))
    return states.count(State.FAILED), sum((cell.outcome, cell.error) == out_of_memory for cell in cells)
