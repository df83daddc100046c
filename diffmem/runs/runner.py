"""A study over the processes of a run: which of them trains which cells, and in which order.

`run_study` is a generator of events; whoever consumes them prints, and stops it between two steps.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from diffmem.cells import Cell, cell_cost
from diffmem.data import notes_of
from diffmem.errors import RunError
from diffmem.models import Compile, Group, this_device
from diffmem.runs.cell_run import Work, run_cell
from diffmem.runs.events import CellEnded, Ended, Event, Noted
from diffmem.runs.launch import leave
from diffmem.runs.plan import undertrained_cells
from diffmem.runs.search import enough, next_round
from diffmem.runs.spaces import check_spaces
from diffmem.runs.stopping import Interrupted, Stop
from diffmem.store import Outcome, Store, close_attempts
from diffmem.study import Study, StudyCell

SEARCH_POLL = 2.0
"""Seconds between two looks whether a search has something to do for this process."""


@dataclass(frozen=True)
class Options:
    """How a run works through its cells.

    `split` is "cells" (each process trains its own cell), "batch" (all processes train one cell) or "auto". `shard` is
    (I, N): only every N-th cell, from the I-th on. `fail_fast` ends the run at the first failed cell; `retry_failed`
    tries cells again that have failed before. `compile` is "on", "off" or "auto" (torch.compile if it pays).
    """

    split: str = "auto"  # cells: each process its own; batch: all processes one cell; auto
    shard: tuple[int, int] = (1, 1)  # number I of N: only every N-th cell, from the I-th on
    fail_fast: bool = False  # the first failed cell ends the run
    retry_failed: bool = False  # cells that have failed before are tried again
    compile: Compile = "auto"  # torch.compile: where it pays, always, never


def run_study(
    study: Study, store: Store, *, stop: Stop = lambda: False, group: Group | None = None, options: Options = Options()
) -> Iterator[Event]:
    """Train and score every cell of a study that the store does not have yet, and yield an event for all that happens.

    The events are CellStarted, Trained, Saved, Generated, Measured, CellEnded and Noted. `stop` is called between
    steps; when it returns True, the state is saved and Interrupted is raised. A cell that fails is recorded with its
    reason, and the next one begins. Without a `group`, this process works alone, on its GPU if it has one. Raises
    DataError if images cannot be read, StoreError if the store cannot be used, and RunError if the machine fails.
    """
    store = store.waiting(partial(_end_if, stop))  # giving up would cost work
    group = group or Group(device=this_device())
    check_spaces(study, store, group)
    if study.estimation.search == "bisect":
        if options.split == "batch":
            raise RunError("a search trains a curve in each process: use --split cells")
        if group.count > 1:
            leave()
        yield from _run_search(study, store, stop=stop, group=group, options=options)
        return
    if group.leads:
        notes = _notes(study.distinct, store)
        _register(store, study, study.cells, notes)
        close_attempts(store)
        yield from _told(notes)
        yield from _undertrained(study.distinct)
    group.any(True)  # the others read the store after this
    failures = Failures(store)
    entries = shard_of(study, options.shard)
    settled = _settled(study, store, options)
    # as the first process sees it, for the others look a moment later
    flags = group.first([int(entry.cell.cell_id in settled) for entry in entries])
    waiting = [entry for entry, flag in zip(entries, flags, strict=True) if not flag]
    (together,) = group.first([int(group.count > 1 and work_together(options, waiting, group.count))])
    if group.leads:
        for entry in entries:
            if outcome := settled.get(entry.cell.cell_id):
                yield CellEnded(entry, outcome)
    if together:
        for event in _run_together(waiting, Work(store, stop, group, options.compile), options):
            if group.leads:
                yield event
        return
    if group.count > 1:
        leave()
    alone = Work(store, stop, Group(device=group.device), options.compile, failed_elsewhere=failures.new)
    yield from _run_apart(waiting, alone, options, several=group.count > 1)


def _register(
    store: Store,
    study: Study,
    cells: Sequence[StudyCell],
    notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    store.register(study, cells, folder=study.folder, notes=notes)


def _notes(entries: Sequence[StudyCell], store: Store) -> dict[str, tuple[str, ...]]:
    """Return by cell what is to be said of the training images of those that are not finished; reads these images."""
    finished = store.finished_cells() if store.exists() else set()
    return {entry.cell.cell_id: notes_of(entry.cell) for entry in entries if entry.cell.cell_id not in finished}


def read_ahead(study: Study, store: Store, options: Options) -> None:
    """Fetch and read the training images of what a run will train first, so that what is wrong with them is said once,
    before processes start; DataError where they cannot be had."""
    _notes(waiting_cells(study, store, options), store)


def _told(notes: Mapping[str, tuple[str, ...]]) -> list[Noted]:
    """Return each note once, with how many cells have it."""
    cells = Counter(note for said in notes.values() for note in said)
    return [Noted(note, count, len(notes)) for note, count in cells.items()]


def _undertrained(entries: Sequence[StudyCell]) -> Iterator[Noted]:
    """Yield what is to be said of cells with too few optimizer steps, if there are any."""
    count, note = undertrained_cells([entry.cell for entry in entries])
    if count:
        yield Noted(note, count, len(entries))


def _end_if(stop: Stop) -> None:
    if stop():
        raise Interrupted


def _run_search(study: Study, store: Store, *, stop: Stop, group: Group, options: Options) -> Iterator[Event]:
    """Train what the search for each curve's EMM needs next, until it needs nothing; each process takes a curve."""
    _register(store, study, study.cells)
    close_attempts(store)
    failures = Failures(store)
    alone, line = Group(device=group.device), enough(study)
    work = Work(store, stop, alone, options.compile, enough=line, failed_elsewhere=failures.new)
    left_out = set() if options.retry_failed else store.last_failed()  # and what this process has no memory for
    told: set[Noted] = set()
    already: set[str] = set()
    number = 1
    while not stop():
        state = next_round(study, store)
        notes = _notes(state.wanted, store)
        _register(store, study, [*state.used, *state.wanted], notes)
        if group.leads:
            said = [*_told(notes), *_undertrained(state.wanted)]
            yield from (each for each in said if each not in told)
            told.update(said)
        wanted = [e for e in state.wanted if e.cell.cell_id not in left_out and not failures.new(e.cell)]
        if not wanted:
            return
        first = group.rank % len(wanted)
        ended = yield from _first_free(wanted[first:] + wanted[:first], work, number)
        if ended is None:
            time.sleep(SEARCH_POLL)  # every curve is in another process' hands
            continue
        if ended.outcome is Ended.ALREADY:  # by another process meanwhile, which the next round sees
            name = ended.entry.cell.cell_id
            if name in already:
                raise RunError(
                    f"{ended.entry.name}: finished, but not scored by {study.measure.name}; `diffmem measure` adds it "
                    "where trained models are kept, or search in another --store"
                )
            already.add(name)
        number += 1
        if ended.outcome is Ended.FAILED and options.fail_fast:
            return
        if ended.outcome is Ended.UNFINISHED:
            left_out.add(ended.entry.cell.cell_id)
    raise Interrupted


def _first_free(entries: Sequence[StudyCell], work: Work, number: int) -> Generator[Event, None, CellEnded | None]:
    """Work on the first cell that no other process works on, as the `number`-th; return how it ended, None: all are
    taken."""
    for entry in entries:
        for event in run_cell(replace(entry, number=number), work):
            if not isinstance(event, CellEnded):
                yield event
            elif event.outcome is not Ended.BUSY:
                yield event
                return event
    return None


class Failures:
    """What has failed since, in this process or another one of the run."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before = store.failures()

    def new(self, cell: Cell) -> bool:
        """Return whether a cell has failed since."""
        return self.store.failures().get(cell.cell_id, 0) > self.before.get(cell.cell_id, 0)


def waiting_cells(study: Study, store: Store, options: Options) -> list[StudyCell]:
    """Return the cells that a run would train; of a search those of its next round."""
    failed = store.last_failed() if store.exists() and not options.retry_failed else set()
    if study.estimation.search == "bisect":
        low, high = study.search_range
        wanted = next_round(study, store).wanted if store.exists() else [*study.at(low), *study.at(high)]
    else:
        finished = store.finished_cells() if store.exists() else set()
        wanted = [entry for entry in shard_of(study, options.shard) if entry.cell.cell_id not in finished]
    return [entry for entry in wanted if entry.cell.cell_id not in failed]


def shard_of(study: Study, shard: tuple[int, int]) -> list[StudyCell]:
    """Return the cells of shard I of N, dealt out from the costliest on."""
    part, count = shard
    if count == 1:
        return study.distinct
    return sorted(_largest_first(study.distinct)[part - 1 :: count], key=lambda entry: entry.number)


def _largest_first(entries: Sequence[StudyCell]) -> list[StudyCell]:
    return sorted(entries, key=lambda entry: (-cell_cost(entry.cell).operations, entry.number))


def _settled(study: Study, store: Store, options: Options) -> dict[str, Ended]:
    """Return the cells that need no work, and why: finished, or failed before and not to be tried again."""
    left_behind = store.state_files()  # by a run killed after a cell's last checkpoint
    found = {}
    for cell in store.progress(study.name):
        if cell.finished:
            if cell.cell_id not in left_behind:
                found[cell.cell_id] = Ended.ALREADY
        elif cell.outcome is Outcome.FAILED and not options.retry_failed:
            found[cell.cell_id] = Ended.FAILED_BEFORE
    return found


def work_together(options: Options, waiting: Sequence[StudyCell], processes: int) -> bool:
    """Return whether all processes train one cell, by default where there are fewer cells than processes."""
    if options.split == "auto":
        return len(waiting) < processes and all(_batch_is_shared(entry.cell, processes) for entry in waiting)
    return options.split == "batch"


def _batch_is_shared(cell: Cell, processes: int) -> bool:
    return not cell.M.trained or cell.T.batch_size >= processes


def _run_together(waiting: Sequence[StudyCell], work: Work, options: Options) -> Iterator[Event]:
    """Train one cell after another with all processes of a group."""
    for entry in waiting:
        if work.group.any(work.stop()):
            raise Interrupted
        if not _batch_is_shared(entry.cell, work.group.count):
            raise RunError(
                f"{entry.name}: a batch of {entry.cell.T.batch_size} images cannot be split over {work.group.count} "
                "processes; start fewer, or use --split cells"
            )
        for event in run_cell(entry, work):
            yield event
            if options.fail_fast and isinstance(event, CellEnded) and event.outcome is Ended.FAILED:
                return


BY_OTHERS = (Ended.BUSY, Ended.FAILED_ELSEWHERE, Ended.ALREADY)
"""How a cell is done with that another process works on, or has."""


def _run_apart(waiting: Sequence[StudyCell], work: Work, options: Options, *, several: bool) -> Iterator[Event]:
    """Train one cell after another in this process, leaving out those that another one works on, or that failed there.

    The lock of each cell is what deals the cells out: nothing is sent between processes, and the cell of one that
    dies is free for the others, which look again once they are through.
    """
    queue = _largest_first(waiting) if several else list(waiting)
    for last_look in (False, True):
        busy = []
        for entry in queue:
            if work.stop():
                raise Interrupted
            for event in run_cell(entry, work):
                outcome = event.outcome if isinstance(event, CellEnded) else None
                if outcome is Ended.BUSY:
                    busy.append(entry)
                by_others = several and outcome in BY_OTHERS
                if not by_others and (outcome is not Ended.BUSY or last_look):
                    yield event
                if outcome is Ended.FAILED and options.fail_fast:
                    return
        queue = busy
