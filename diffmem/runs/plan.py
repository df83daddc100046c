"""Plans: what a study would train and generate, how much of it is there already, and what the rest costs."""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffmem.analysis import bracket, next_size, undertrained
from diffmem.cells import DATASETS, FEW_STEPS, Cell, Cost, cell_cost, kept_bytes
from diffmem.data import notes_of
from diffmem.runs.search import CurveSearch, curve_searches, next_round
from diffmem.store import Store
from diffmem.study import FirstFault, Layer, Study, StudyCell, read_study


class Throughput(NamedTuple):
    """How fast a device works, in floating-point operations per second."""

    training: float
    generation: float


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a study, how far the store is with it, and what is left to do."""

    entry: StudyCell
    measured: int  # checkpoints that the store has
    shared: int  # other studies of the same folder that have this cell too
    cost: Cost  # of what is left
    notes: tuple[str, ...]  # what is to be said of its training images, where they are at hand

    @property
    def cell(self) -> Cell:
        """Return the cell itself."""
        return self.entry.cell

    @property
    def finished(self) -> bool:
        """Return whether the store has all of it."""
        return self.measured >= self.cell.checkpoint_count

    def seconds(self, throughput: Throughput) -> float:
        """Return the time that the rest takes on one device."""
        cost = self.cost
        return cost.training / throughput.training + (cost.generation + cost.scoring) / throughput.generation


def plan_cells(study: Study, store: Store, *, profile: str | None = None) -> list[PlannedCell]:
    """Return each cell of a study once, in its order, with what the store has of it and what the rest costs.

    Of a search, these are the cells that it needs next.

    `profile` is the one that the study was loaded with: with it, cells are counted that other studies in the folder
    share. It trains nothing, and the store need not exist yet. Raises StoreError if the store cannot be read.
    """
    measured = store.checkpoint_counts() if store.exists() else {}
    elsewhere = _cells_of_other_studies(study, profile)
    return [
        PlannedCell(
            entry,
            had,
            elsewhere[entry.cell.cell_id],
            cell_cost(entry.cell, measured=had),
            notes_of(entry.cell, fetch=False),
        )
        for entry in (_next_cells(study, store) if study.estimation.search == "bisect" else study.distinct)
        for had in [min(measured.get(entry.cell.cell_id, 0), entry.cell.checkpoint_count)]
    ]


def _next_cells(study: Study, store: Store) -> list[StudyCell]:
    """Return the cells that a search needs next, each once."""
    return list({entry.cell.cell_id: entry for entry in next_round(study, store).wanted}.values())


MOST_BYTES_BESIDE, MOST_CELLS_BESIDE = 50_000, 1000
"""What another study of the folder may have to be looked at: the bytes of each of its files, and its cells."""


def _cells_of_other_studies(study: Study, profile: str | None) -> Counter[str]:
    """Count in how many of the other study files beside a study each cell is; files with faults have none."""
    found: Counter[str] = Counter()
    path = Path(study.path)
    for other in sorted(path.parent.glob("*.toml")):
        if os.path.realpath(other) == os.path.realpath(path):
            continue
        with suppress(Exception):  # whatever is wrong with another study is said when it is asked for
            found.update(_cells_beside(study, other, profile))
    return found


def _cells_beside(study: Study, other: Path, profile: str | None) -> list[str]:
    """Return the cells of another study file, if no other images than those of `study` must be read to know them."""
    layer = read_study(other, profile=profile, overrides=(), faults=FirstFault(), most_bytes=MOST_BYTES_BESIDE)
    cells = math.prod(len(next(iter(axis.values())).value) for axis in layer.axes or [])
    if cells > MOST_CELLS_BESIDE or not _own_images(layer) <= _own_images(study.layer):
        return []
    return [entry.cell.cell_id for entry in Study.load(other, profile=profile).distinct]


def _own_images(layer: Layer) -> set[tuple[str, int | None]]:
    """Return the files of images that a study names, at the resolutions at which it may want them."""

    def values(key: str) -> list[Any]:
        on_axis = [value for axis in layer.axes or [] if key in axis for value in axis[key].value]
        return on_axis or [layer.settings[key].value for _ in range(key in layer.settings)]

    names = {*values("P.dataset"), *values("P.blend.dataset")} - set(DATASETS)
    return set(product(names, values("P.resolution") or [None]))


def without_steps_between(cells: Sequence[Cell]) -> int:
    """Return how many cells have two checkpoints with no optimizer step between them."""
    examples = {_pace(cell): cell for cell in cells}
    idle = {
        pace for pace, cell in examples.items() if len({step for _, step in cell.checkpoints}) < cell.checkpoint_count
    }
    return sum(_pace(cell) in idle for cell in cells)


def undertrained_cells(cells: Sequence[Cell]) -> tuple[int, str]:
    """Return how many cells have too few optimizer steps for a network to learn anything, and what to say of them."""
    few = [cell for cell in cells if cell.M.trained and cell.last_step < FEW_STEPS]
    return len(few), undertrained([cell.last_step for cell in few], {cell.P.size for cell in few}) if few else ""


def _pace(cell: Cell) -> tuple[int | None, ...]:
    """Return what the optimizer steps at a cell's checkpoints follow from."""
    return cell.P.size, cell.T.epochs, cell.T.steps, cell.T.batch_size, cell.score.every, cell.score.points


@dataclass(frozen=True)
class SearchPlan:
    """What is left of a search.

    Extra draws of sizes near the line are not counted, except those that the search needs next. A cell that several
    curves share counts once in `expected`, and once for each curve in the upper bounds.
    """

    sizes: int  # at most, of the curve with the most
    cells: int  # at most
    kept: int  # bytes of trained models at most
    expected: int  # operations, with every crossing in the middle, on a log scale, of the sizes where it may be
    worst: int  # operations, with every crossing where it costs most


class _Work(NamedTuple):
    """The work on some cells."""

    sizes: int = 0
    cells: int = 0
    operations: int = 0


def plan_search(study: Study, store: Store, *, failed: Set[str] = frozenset()) -> SearchPlan:
    """Return what is left of the search of a study, each cell trained to its end; the store need not exist yet.

    A curve whose next cells include one that has `failed` goes no further.
    """
    measured = store.checkpoint_counts() if store.exists() else {}
    at = cache(study.at)  # which resolves the whole study

    def cost(cell: Cell) -> int:
        return cell_cost(cell, measured=measured.get(cell.cell_id, 0)).operations

    curves = [_CurvePlan(study, each, at, cost, failed) for each in curve_searches(study, store)]
    most = [each.most() for each in curves]
    expected = {cell.cell_id: cell for each in curves for cell in each.expected()}
    largest = [entry.cell for entry in at(study.search_range[1])]
    cells = sum(each.cells for each in most)
    return SearchPlan(
        sizes=max(each.sizes for each in most),
        cells=cells,
        kept=cells * max(kept_bytes(cell, cell_cost(cell).parameters) for cell in largest),
        expected=sum(map(cost, expected.values())),
        worst=sum(each.operations for each in most),
    )


class _CurvePlan:
    """The cells that the search along one curve may still train."""

    def __init__(
        self,
        study: Study,
        search: CurveSearch,
        at: Callable[[int], Sequence[StudyCell]],
        cost: Callable[[Cell], int],
        failed: Set[str],
    ) -> None:
        self.study, self.search, self._at, self._cost = study, search, at, cost
        wanted = [entry.cell for entry in search.wanted]
        self._now = [cell for cell in wanted if cell.cell_id not in failed]
        self._goes_on = len(self._now) == len(wanted)
        self._work_at: dict[int, _Work] = {}

    def expected(self) -> list[Cell]:
        """Return the cells to come if the crossing is in the middle, on a log scale, of the sizes where it may be."""
        cells = list(self._now)
        points = dict(self.search.points)
        low, high = self.study.search_range
        last, first_below = bracket(points, self.study.estimation.epsilon)
        crossing = math.sqrt((last or low) * (first_below or high))
        while (size := self._next(points)) is not None:
            points[size] = float(size <= crossing)
            cells += self._waiting(size)
        return cells

    def most(self) -> _Work:
        """Return the most work that may come: sizes, cells and operations, each for the crossing that takes most."""
        if not self._goes_on:
            return self._work(1, self._now)
        more_draws = self._work(0, [cell for cell in self._now if cell.P.size in self.search.points])
        return _Work(*map(sum, zip(more_draws, self._most_from(self.search.points), strict=True)))

    def _most_from(self, points: Mapping[int, float]) -> _Work:
        size = self._next(points)
        if size is None:
            return _Work()
        if size not in self._work_at:
            self._work_at[size] = self._work(1, self._waiting(size))
        now = self._work_at[size]
        after = [self._most_from({**points, size: ratio}) for ratio in (0.0, 1.0)]
        return _Work(*(one + max(then) for one, *then in zip(now, *after, strict=True)))

    def _work(self, sizes: int, cells: Sequence[Cell]) -> _Work:
        return _Work(sizes, len(cells), sum(map(self._cost, cells)))

    def _waiting(self, size: int) -> list[Cell]:
        entries = [entry for entry in self._at(size) if entry.curve == self.search.curve]
        return [entry.cell for entry in entries if entry.cell.cell_id not in self.search.settled]

    def _next(self, points: Mapping[int, float]) -> int | None:
        if not self._goes_on:
            return None
        low, high = self.study.search_range
        emm = self.study.estimation
        return next_size(points, low, high, epsilon=emm.epsilon, tolerance=emm.tolerance)


def grid_as_fine(study: Study) -> tuple[int, int]:
    """Return how many sizes a grid has that is as fine as a search's tolerance, and the operations of all its cells."""
    low, high = study.search_range
    steps = math.ceil(math.log(high / low) / math.log(1 + study.estimation.tolerance))
    sizes = [round(low * (high / low) ** (i / steps)) for i in range(steps + 1)]
    return len(sizes), sum(cell_cost(entry.cell).operations for size in sizes for entry in study.at(size))
