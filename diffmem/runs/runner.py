"""A study over the processes of a run: which of them trains which cells, and in which order.

`run_study` is a generator of events; whoever consumes them prints, and stops it between two steps.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial

from diffmem.cells import Cell
from diffmem.errors import RunError
from diffmem.models import Group, this_device
from diffmem.runs.cell_run import Work, run_cell
from diffmem.runs.events import CellEnded, Ended, Event
from diffmem.runs.launch import leave
from diffmem.runs.search import enough
from diffmem.runs.spaces import check_spaces
from diffmem.runs.stopping import Interrupted, Stop, end_if
from diffmem.runs.waiting import Failures, Options, Rounds, begin, costliest_first, settled_cells, shard_of
from diffmem.store import Store
from diffmem.study import Study, StudyCell

SEARCH_POLL = 2.0
"""Seconds between two looks whether a search has something to do for this process."""


def run_study(
    study: Study, store: Store, *, stop: Stop = lambda: False, group: Group | None = None, options: Options = Options()
) -> Iterator[Event]:
    """Train and score every cell of a study that the store does not have yet, and yield an event for all that happens.

    The events are CellStarted, Trained, Saved, Generated, Measured, CellEnded and Noted. `stop` is called between
    steps; when it returns True, the state is saved and Interrupted is raised. A cell that fails is recorded with its
    reason, and the next one begins. Without a `group`, this process works alone, on its GPU if it has one. Raises
    DataError if images cannot be read, StoreError if the store cannot be used, and RunError if the machine fails.
    """
    store = store.waiting(partial(end_if, stop))  # giving up would cost work
    group = group or Group(device=this_device())
    check_spaces(study, store, group)
    if study.estimation.search == "bisect":
        if options.split == "batch":
            raise RunError("a search trains a cell in each process: use --split cells")
        if group.count > 1:
            leave()
        yield from _run_search(study, store, stop=stop, group=group, options=options)
        return
    if group.leads:
        yield from begin(study, store)
    group.any(True)  # the others read the store after this
    failures = Failures(store)
    entries = shard_of(study, options.shard)
    settled = settled_cells(study, store, options)
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


def _run_search(study: Study, store: Store, *, stop: Stop, group: Group, options: Options) -> Iterator[Event]:
    """Train what the search for each curve's EMM needs next, until it needs nothing; each process takes a cell."""
    rounds = Rounds(study, store, options)
    alone, line = Group(device=group.device), enough(study)
    work = Work(store, stop, alone, options.compile, enough=line, failed_elsewhere=rounds.failures.new)
    number = 1
    while not stop():
        said, wanted = rounds.next()
        if group.leads:
            yield from said
        if not wanted:
            return
        first = group.rank % len(wanted)
        ended = yield from _first_free(wanted[first:] + wanted[:first], work, number)
        if ended is None:
            time.sleep(SEARCH_POLL)  # all are in other processes' hands
            continue
        rounds.ended(ended)
        number += 1
        if ended.outcome is Ended.FAILED and options.fail_fast:
            return
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
    queue = costliest_first(waiting) if several else list(waiting)
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
