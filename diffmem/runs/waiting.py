"""Which cells of a study wait for work, in which order, and what is to be said of them before it begins."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from diffmem.cells import Cell, cell_cost
from diffmem.data import notes_of
from diffmem.errors import RunError
from diffmem.models import Compile
from diffmem.runs.events import CellEnded, Ended, Noted
from diffmem.runs.plan import undertrained_cells
from diffmem.runs.search import next_round
from diffmem.store import Outcome, Store, close_attempts
from diffmem.study import Study, StudyCell


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


def begin(study: Study, store: Store) -> list[Noted]:
    """Register a study and its cells, and return what is to be said of their images and trainings."""
    notes = notes_by_cell(study.distinct, store)
    register(store, study, study.cells, notes)
    close_attempts(store)
    return [*_told(notes), *_undertrained(study.distinct)]


def register(
    store: Store,
    study: Study,
    cells: Sequence[StudyCell],
    notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Record a study and cells of it in a store."""
    store.register(study, cells, folder=study.folder, notes=notes)


def notes_by_cell(entries: Sequence[StudyCell], store: Store) -> dict[str, tuple[str, ...]]:
    """Return by cell what is to be said of the training images of those that are not finished; reads these images."""
    finished = store.finished_cells() if store.exists() else set()
    return {entry.cell.cell_id: notes_of(entry.cell) for entry in entries if entry.cell.cell_id not in finished}


def read_ahead(study: Study, store: Store, options: Options) -> None:
    """Fetch and read the training images of what a run will train first, so that what is wrong with them is said once,
    before processes start; DataError where they cannot be had."""
    notes_by_cell(waiting_cells(study, store, options), store)


def _told(notes: Mapping[str, tuple[str, ...]]) -> list[Noted]:
    """Return each note once, with how many cells have it."""
    cells = Counter(note for said in notes.values() for note in said)
    return [Noted(note, count, len(notes)) for note, count in cells.items()]


def _undertrained(entries: Sequence[StudyCell]) -> Iterator[Noted]:
    """Yield what is to be said of cells with too few optimizer steps, if there are any."""
    count, note = undertrained_cells([entry.cell for entry in entries])
    if count:
        yield Noted(note, count, len(entries))


class Rounds:
    """The rounds of a search: which cells it needs next, once what is known of them is registered."""

    def __init__(self, study: Study, store: Store, options: Options) -> None:
        self.study, self.store = study, store
        register(store, study, study.cells)
        close_attempts(store)
        self.failures = Failures(store)
        self.left_out = left_out(store, options)  # and what there is no memory for
        self._said: set[Noted] = set()
        self._already: set[str] = set()

    def next(self) -> tuple[list[Noted], list[StudyCell]]:
        """Return what has not been said yet of the cells that are needed next, and those that may be tried."""
        state = next_round(self.study, self.store)
        notes = notes_by_cell(state.wanted, self.store)
        register(self.store, self.study, [*state.used, *state.wanted], notes)
        said = [note for note in [*_told(notes), *_undertrained(state.wanted)] if note not in self._said]
        self._said.update(said)
        may = [e for e in state.wanted if e.cell.cell_id not in self.left_out and not self.failures.new(e.cell)]
        return said, may

    def ended(self, event: CellEnded) -> None:
        """Note how a cell has ended; RunError where it is finished but has no number of the study's measure."""
        name = event.entry.cell.cell_id
        if event.outcome is Ended.ALREADY:  # by another process meanwhile, which the next round sees
            if name in self._already:
                raise RunError(
                    f"{event.entry.name}: finished, but not scored by {self.study.measure.name}; `diffmem measure` "
                    "adds it where trained models are kept, or search in another --store"
                )
            self._already.add(name)
        if event.outcome is Ended.UNFINISHED:
            self.left_out.add(name)


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
    failed = left_out(store, options)
    if study.estimation.search == "bisect":
        wanted = next_round(study, store).wanted
    else:
        finished = store.finished_cells() if store.exists() else set()
        wanted = [entry for entry in shard_of(study, options.shard) if entry.cell.cell_id not in finished]
    return [entry for entry in wanted if entry.cell.cell_id not in failed]


def left_out(store: Store, options: Options) -> set[str]:
    """Return the cells that a run leaves out because they have failed before."""
    return store.last_failed() if store.exists() and not options.retry_failed else set()


def side_by_side(study: Study, waiting: Sequence[StudyCell]) -> int:
    """Return how many cells can be trained at once: all that wait; for a search, one size of each unfinished curve."""
    if study.estimation.search != "bisect":
        return len(waiting)
    curves = {entry.curve for entry in waiting}
    return len({entry.cell.cell_id for entry in study.at(study.search_range[0]) if entry.curve in curves})


def shard_of(study: Study, shard: tuple[int, int]) -> list[StudyCell]:
    """Return the cells of shard I of N, dealt out from the costliest on."""
    part, count = shard
    if count == 1:
        return study.distinct
    return sorted(costliest_first(study.distinct)[part - 1 :: count], key=lambda entry: entry.number)


def costliest_first(entries: Sequence[StudyCell]) -> list[StudyCell]:
    """Return cells by their cost, those that cost the same in their order."""
    return sorted(entries, key=lambda entry: (-cell_cost(entry.cell).operations, entry.number))


def settled_cells(study: Study, store: Store, options: Options) -> dict[str, Ended]:
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
