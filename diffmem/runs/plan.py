"""Plans: what a study would train and generate, how much of it is there already, and what the rest costs."""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffmem.analysis import bracket, next_size, undertrained
from diffmem.cells import DATASETS, FEW_STEPS, Cell, Cost, cell_cost
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
        for entry in (next_round(study, store).wanted if study.estimation.search == "bisect" else study.distinct)
        for had in [min(measured.get(entry.cell.cell_id, 0), entry.cell.checkpoint_count)]
    ]


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
    """What is left of a search, beside a grid of sizes as fine as its tolerance; operations over all curves.

    Draws near the line, one more at a size, are left out, but those that the search needs next.
    """

    sizes: int  # at most, of the curve with the most
    cells: int  # at most
    expected: int  # operations, with every crossing in the middle, on a log scale, of where it may be
    worst: int  # with every crossing where it costs most
    grid_sizes: int
    grid: int  # of all its cells


class _Left(NamedTuple):
    """What is left of a search."""

    sizes: int = 0
    cells: int = 0
    operations: int = 0


def plan_search(study: Study, store: Store) -> SearchPlan:
    """Return what is left of the search of a study, each cell trained to its end; the store need not exist yet."""
    low, high = study.search_range
    measured = store.checkpoint_counts() if store.exists() else {}
    at = cache(study.at)  # which resolves the whole study
    curves = [_CurvePlan(study, each, at, measured) for each in curve_searches(study, store)]
    most = [each.most() for each in curves]
    more = [each.more_draws for each in curves]
    operations = sum(each.operations for each in more)
    steps = math.ceil(math.log(high / low) / math.log(1 + study.estimation.tolerance))
    grid = [low * (high / low) ** (i / steps) for i in range(steps + 1)]
    return SearchPlan(
        sizes=max(each.sizes for each in most),
        cells=sum(each.cells for each in [*most, *more]),
        expected=sum(each.expected for each in curves) + operations,
        worst=sum(each.operations for each in most) + operations,
        grid_sizes=len(grid),
        grid=sum(cell_cost(entry.cell).operations for size in grid for entry in at(round(size))),
    )


class _CurvePlan:
    """The sizes that the search along one curve may still train, and their work."""

    def __init__(
        self,
        study: Study,
        search: CurveSearch,
        at: Callable[[int], Sequence[StudyCell]],
        measured: Mapping[str, int],
    ) -> None:
        self.study, self.search, self._at, self._measured = study, search, at, measured
        self._work: dict[int, _Left] = {}

    @property
    def more_draws(self) -> _Left:
        """Return the work of the cells that are needed next on one more draw."""
        return self._left([each for each in self.search.wanted if each.cell.P.size in self.search.points])

    @property
    def expected(self) -> int:
        """Return the operations to come with the crossing in the middle, on a log scale, of where it may be."""
        points, operations = dict(self.search.points), 0
        low, high = self.study.search_range
        last, first_below = bracket(points, self.study.estimation.epsilon)
        crossing = math.sqrt((last or low) * (first_below or high))
        while (size := self._next(points)) is not None:
            points[size] = float(size <= crossing)
            operations += self.at(size).operations
        return operations

    def most(self, points: Mapping[int, float] | None = None) -> _Left:
        """Return the most of each kind of work to come: with the crossing where that is most."""
        points = self.search.points if points is None else points
        size = self._next(points)
        if size is None:
            return _Left()
        after = [self.most({**points, size: ratio}) for ratio in (0.0, 1.0)]
        return _Left(*(now + max(then) for now, *then in zip(self.at(size), *after, strict=True)))

    def at(self, size: int) -> _Left:
        """Return the work of a size."""
        if size not in self._work:
            self._work[size] = self._left([each for each in self._at(size) if each.curve == self.search.curve])
        return self._work[size]

    def _left(self, entries: Sequence[StudyCell]) -> _Left:
        waiting = [each.cell for each in entries if each.cell.cell_id not in self.search.settled]
        costs = [cell_cost(cell, measured=self._measured.get(cell.cell_id, 0)).operations for cell in waiting]
        return _Left(1, len(waiting), sum(costs))

    def _next(self, points: Mapping[int, float]) -> int | None:
        low, high = self.study.search_range
        emm = self.study.estimation
        return next_size(points, low, high, epsilon=emm.epsilon, tolerance=emm.tolerance)
