"""A study over the processes of a run: which of them trains which cells, and in which order.

`run_study` is a generator of events; whoever consumes them prints, and stops it between two steps.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from diffmem.cells import Cell, cell_cost
from diffmem.data import notes_of
from diffmem.errors import RunError
from diffmem.models import Compile, Group, this_device
from diffmem.runs.cell_run import run_cell
from diffmem.runs.events import CellEnded, Event, Noted
from diffmem.runs.launch import leave
from diffmem.runs.search import enough, next_round
from diffmem.runs.stopping import Interrupted, Stop
from diffmem.store import Store, close_attempts, is_finished
from diffmem.study import Study, StudyCell

SEARCH_POLL = 2.0
"""Seconds between two looks whether a search has something to do for this process."""


@dataclass(frozen=True)
class Options:
    """How a run goes about its cells."""

    split: str = "auto"  # cells: each process its own; batch: all processes one cell; auto
    shard: tuple[int, int] = (1, 1)  # number I of N: only every N-th cell, from the I-th on
    fail_fast: bool = False  # the first failed cell ends the run
    retry_failed: bool = False  # cells that have failed before are tried again
    compile: Compile = "auto"  # torch.compile: where it pays, always, never


def run_study(
    study: Study, store: Store, *, stop: Stop = lambda: False, group: Group | None = None, options: Options = Options()
) -> Iterator[Event]:
    """Train and score every cell of a study that the store does not have yet; yield what happens, as it does.

    `stop` is asked between steps; once it says so, the state is saved and Interrupted raised. A cell that
    fails is recorded with its reason and the next one begins. StoreError where the store itself cannot be used.
    Without a `group` this process works alone, on its GPU where it has one.
    """
    store = store.waiting(partial(_end_if, stop))  # giving up would cost work
    group = group or Group(device=this_device())
    if study.estimation.search == "bisect":
        if options.split == "batch":
            raise RunError("a search trains a curve in each process: use --split cells")
        if group.count > 1:
            leave()
        yield from _run_search(study, store, stop=stop, group=group, options=options)
        return
    if group.leads:
        notes = _notes(study.distinct, store)
        store.register(**study.listing(), notes=notes)
        close_attempts(store)
        yield from _told(notes)
    group.any(True)  # the others read the store after this
    failures = Failures(store)
    numbered = shard_of(study, options.shard)
    settled = _settled(study, store, options)
    # as the first process sees it, for the others look a moment later
    flags = group.first([int(entry.cell.cell_id in settled) for _, entry in numbered])
    waiting = [item for item, flag in zip(numbered, flags, strict=True) if not flag]
    (together,) = group.first([int(group.count > 1 and _work_together(options, waiting, group.count))])
    if group.leads:
        for number, entry in numbered:
            if outcome := settled.get(entry.cell.cell_id):
                yield CellEnded(entry.cell, entry.name, number, outcome)
    if together:
        for event in _run_together(waiting, store, stop=stop, group=group, options=options):
            if group.leads:
                yield event
        return
    if group.count > 1:
        leave()
    yield from _run_apart(waiting, store, stop=stop, group=group, options=options, failures=failures)


def _notes(entries: Sequence[StudyCell], store: Store) -> dict[str, tuple[str, ...]]:
    """Return by cell what is to be said of the training images of those that are not finished; reads these images."""
    finished = store.finished_cells() if store.exists() else set()
    return {entry.cell.cell_id: notes_of(entry.cell) for entry in entries if entry.cell.cell_id not in finished}


def _told(notes: Mapping[str, tuple[str, ...]]) -> list[Noted]:
    """Return each note once, with how many cells have it."""
    cells = Counter(note for said in notes.values() for note in said)
    return [Noted(note, count, len(notes)) for note, count in cells.items()]


def _end_if(stop: Stop) -> None:
    if stop():
        raise Interrupted


def _run_search(study: Study, store: Store, *, stop: Stop, group: Group, options: Options) -> Iterator[Event]:
    """Train what the search for each curve's EMM needs next, until it needs nothing; each process takes a curve."""
    alone, line = Group(device=group.device), enough(study.estimation)
    store.register(**study.listing())
    close_attempts(store)
    failures = Failures(store)
    failed = set() if options.retry_failed else failures.latest()
    short_of_memory: set[str] = set()  # not tried again by this process; others may have more
    told: set[Noted] = set()
    number = 0
    while not stop():
        state = next_round(study, store)
        notes = _notes(state.wanted, store)
        store.register(**study.listing([*state.used, *state.wanted]), notes=notes)
        if group.leads:
            yield from (each for each in _told(notes) if each not in told)
            told.update(_told(notes))
        left_out = failed | short_of_memory
        wanted = [e for e in state.wanted if e.cell.cell_id not in left_out and not failures.new(e.cell)]
        if not wanted:
            return
        first = group.rank % len(wanted)
        for entry in wanted[first:] + wanted[:first]:
            outcome = ""
            for event in run_cell(
                entry.cell,
                store,
                name=entry.name,
                number=number + 1,
                stop=stop,
                group=alone,
                enough=line,
                failed_elsewhere=partial(failures.new, entry.cell),
                compiling=options.compile,
            ):
                outcome = event.outcome if isinstance(event, CellEnded) else ""
                if outcome != "busy elsewhere":
                    yield event
            if outcome == "failed" and options.fail_fast:
                return
            if outcome == "unfinished":
                short_of_memory.add(entry.cell.cell_id)
            if outcome != "busy elsewhere":
                number += 1
                break
        else:
            time.sleep(SEARCH_POLL)  # every curve is in another process' hands
    raise Interrupted


class Failures:
    """What has failed before, and what has failed since, in this process or another one of the run."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before = store.failures()

    def latest(self) -> set[str]:
        """Return the cells whose last attempt had failed."""
        rows = self.store.read(
            "SELECT cell_id FROM attempts GROUP BY cell_id HAVING max_by(outcome, started_at) = 'failed'"
        )
        return {row["cell_id"] for row in rows}

    def new(self, cell: Cell) -> bool:
        """Return whether a cell has failed since."""
        return self.store.failures().get(cell.cell_id, 0) > self.before.get(cell.cell_id, 0)


def shard_of(study: Study, shard: tuple[int, int]) -> list[tuple[int, StudyCell]]:
    """Return the cells of shard I of N with their positions in the study, dealt out from the costliest on."""
    number, count = shard
    numbered = list(enumerate(study.distinct, start=1))
    if count == 1:
        return numbered
    return sorted(_largest_first(numbered)[number - 1 :: count])


def _largest_first(numbered: list[tuple[int, StudyCell]]) -> list[tuple[int, StudyCell]]:
    return sorted(numbered, key=lambda item: (-cell_cost(item[1].cell).operations, item[0]))


def _settled(study: Study, store: Store, options: Options) -> dict[str, str]:
    """Return the cells that need no work, and why: finished, or failed before and not to be tried again."""
    left_behind = store.state_files()  # by a run killed after a cell's last checkpoint
    found = {}
    for cell in store.progress(study.name):
        if is_finished(cell):
            if cell["cell_id"] not in left_behind:
                found[cell["cell_id"]] = "already finished"
        elif cell["outcome"] == "failed" and not options.retry_failed:
            found[cell["cell_id"]] = "failed before"
    return found


def _work_together(options: Options, waiting: list[tuple[int, StudyCell]], processes: int) -> bool:
    """Return whether all processes train one cell, by default where there are fewer cells than processes."""
    if options.split == "auto":
        return len(waiting) < processes and all(_batch_is_shared(entry.cell, processes) for _, entry in waiting)
    return options.split == "batch"


def _batch_is_shared(cell: Cell, processes: int) -> bool:
    return not cell.M.trained or cell.T.batch_size >= processes


def _run_together(
    waiting: list[tuple[int, StudyCell]], store: Store, *, stop: Stop, group: Group, options: Options
) -> Iterator[Event]:
    """Train one cell after another with all processes of a group."""
    for number, entry in waiting:
        if group.any(stop()):
            raise Interrupted
        if not _batch_is_shared(entry.cell, group.count):
            raise RunError(
                f"{entry.name}: a batch of {entry.cell.T.batch_size} images cannot be split over {group.count} "
                "processes; start fewer, or use --split cells"
            )
        for event in run_cell(
            entry.cell, store, name=entry.name, number=number, stop=stop, group=group, compiling=options.compile
        ):
            yield event
            if options.fail_fast and isinstance(event, CellEnded) and event.outcome == "failed":
                return


def _run_apart(
    waiting: list[tuple[int, StudyCell]],
    store: Store,
    *,
    stop: Stop,
    group: Group,
    options: Options,
    failures: Failures,
) -> Iterator[Event]:
    """Train one cell after another in this process, leaving out those that another one works on, or that failed there.

    The lock of each cell is what deals the cells out: nothing is sent between processes, and the cell of one that
    dies is free for the others, which look again once they are through.
    """
    alone = Group(device=group.device)
    queue = _largest_first(waiting) if group.count > 1 else waiting
    for last_look in (False, True):
        busy = []
        for number, entry in queue:
            if stop():
                raise Interrupted
            for event in run_cell(
                entry.cell,
                store,
                name=entry.name,
                number=number,
                stop=stop,
                group=alone,
                failed_elsewhere=partial(failures.new, entry.cell),
                compiling=options.compile,
            ):
                outcome = event.outcome if isinstance(event, CellEnded) else ""
                if outcome == "busy elsewhere":
                    busy.append((number, entry))
                by_others = outcome in ("busy elsewhere", "failed elsewhere", "already finished") and group.count > 1
                if not by_others and (outcome != "busy elsewhere" or last_look):
                    yield event
                if outcome == "failed" and options.fail_fast:
                    return
        queue = busy
