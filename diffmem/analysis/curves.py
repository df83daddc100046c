"""From the store's checkpoints to EMM curves: the best checkpoint of each size, averaged over draws and seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from diffmem.analysis.emm import Estimate, Interval, bands, emm_interval, estimate_emm, mean_ratios, rises, still_rises
from diffmem.store import Row, Store, is_finished, outcome_of


@dataclass(frozen=True)
class Point:
    """The memorization ratio at one training set size, each in 0..1."""

    size: int
    best: float  # mean over draws and seeds of the highest ratio of any checkpoint: the paper's number
    last: float  # mean over draws and seeds of the ratio of the last checkpoint: without that upward bias
    cells: int  # draws and seeds behind the means
    low: float  # 95% interval of `best`, over images, draws and seeds
    high: float


@dataclass(frozen=True)
class Curve:
    """Ratio against size for one combination of the other axes, and the EMM read off it."""

    label: str
    points: list[Point]
    epsilon: float
    estimate: Estimate | None  # from the best checkpoints; None where nothing is measured
    interval: Interval | None  # 95%, of `estimate`
    last_estimate: Estimate | None  # from the last checkpoints
    caveat: str  # what to know of the trainings: unfinished, or ended too early
    noise: str = ""  # which of the rises with N that the estimate names are none to rely on

    @property
    def note(self) -> str:
        """Return what to know of the trainings, which may change all, and of the estimate."""
        return "; ".join(filter(None, [self.caveat, self.estimate.note if self.estimate else "", self.noise]))


def study_curves(store: Store, study: Row | str) -> list[Curve]:
    """Return the curves of a study, by its name or as a row of `store.studies`, in the order of its file.

    StoreError where the store has no study of this name.
    """
    with store.snapshot():
        row = store.study(study) if isinstance(study, str) else study
        cells = measured_cells(store, row)
    return curves_of(cells, row["estimation"]["epsilon"])


def study_cells(store: Store, study: Row) -> tuple[list[Row], list[Row]]:
    """Return the cells and the checkpoints of a study, all ratios counted at the study's threshold."""
    points = store.curve_points(study["study"], study["estimation"]["threshold"])
    return _with_ratios(store.cells(study["study"]), points), points


def measured_cells(store: Store, study: Row) -> list[Row]:
    """Return the cells of a study without their settings, all ratios counted at the study's threshold."""
    points = store.curve_points(study["study"], study["estimation"]["threshold"])
    return _with_ratios(store.progress(study["study"]), points)


def _with_ratios(cells: list[Row], points: list[Row]) -> list[Row]:
    measured = by_position(points)  # one cell may be at several
    for cell in cells:
        own = measured[cell["position"]]
        epochs, ratios, samples = ([point[key] for point in own] for key in ("epoch", "ratio", "samples"))
        cell["best"], cell["samples"] = max(zip(ratios, samples, strict=True), default=(None, None))
        cell["last"] = ratios[-1] if ratios else None
        cell["rises"] = bool(own) and still_rises(epochs, ratios, samples)
    return cells


def curves_of(cells: list[Row], epsilon: float) -> list[Curve]:
    """Return the curves that the cells of a study make, in its order."""
    by_curve: dict[str, list[Row]] = defaultdict(list)
    for cell in cells:
        by_curve[cell["curve"]].append(cell)
    return [_curve(label, members, epsilon) for label, members in by_curve.items()]


def _curve(label: str, cells: list[Row], epsilon: float) -> Curve:
    measured = [cell for cell in cells if cell["best"] is not None]
    sizes = [size_of(cell) for cell in measured]
    best, samples = [cell["best"] for cell in measured], [cell["samples"] for cell in measured]
    last: dict[float, list[float]] = defaultdict(list)
    for size, cell in zip(sizes, measured, strict=True):
        last[size].append(cell["last"])
    points = [
        Point(int(mean.group), mean.ratio, fmean(last[mean.group]), mean.models, mean.low, mean.high)
        for mean in (mean_ratios(sizes, best, samples) if measured else [])
    ]
    to_finish = [cell for cell in cells if cell["expected"] and cell["outcome"] != "crossed"]
    unfinished = sum(not is_finished(cell) for cell in to_finish)
    rising = {size_of(cell) for cell in cells if cell["rises"] and cell_state(cell) in ("finished", "ended")}
    caveats = [f"{unfinished} of {len(cells)} cells are not finished"] * bool(unfinished)
    if rising:
        at = ", ".join(map(str, sorted(rising)))
        caveats.append(f"the ratio still rises at the end of training at N = {at}")
    caveat = "; ".join(caveats)
    if not points:
        return Curve(label, points, epsilon, None, None, None, caveat)
    interval = emm_interval(sizes, best, samples, epsilon=epsilon)
    estimate, last_estimate = (
        estimate_emm([p.size for p in points], ratios, epsilon=epsilon)
        for ratios in ([p.best for p in points], [p.last for p in points])
    )
    noise = _noise(points, rises(bands(sizes, best, samples)).tolist())
    return Curve(label, points, epsilon, estimate, interval, last_estimate, caveat, noise)


def _noise(points: Sequence[Point], significant: Sequence[bool]) -> str:
    """Name the rises from a size to the next one that may be noise; empty where there are none."""
    steps = zip(pairwise(points), significant, strict=True)
    within = [
        f"{before.size} to {after.size}" for (before, after), above in steps if after.best > before.best and not above
    ]
    return f"from {', '.join(within)} it may be the noise of images, draws and seeds (95%)" if within else ""


def only_size(cells: Sequence[Row]) -> int | None:
    """Return the N of a study whose cells have one alone, and that therefore tells no EMM; None for several."""
    sizes = {size_of(cell) for cell in cells}
    return sizes.pop() if len(sizes) == 1 else None


def size_of(cell: Row) -> int:
    """Return the training set size N of a cell (a row of `store.cells`)."""
    return int(cell["size"])


def by_position(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Return rows by the place in their study that they are of; none for a place without any."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["position"]].append(row)
    return found


GOING_ON = ("running", "waiting", "interrupted", "lost")
"""States of a cell that a run can still change."""


def going_on(store: Store, studies: list[str]) -> bool:
    """Return whether a run can still change a cell of these studies."""
    return any(cell_state(cell) in GOING_ON for study in studies for cell in store.progress(study))


def cell_state(cell: Row) -> str:
    """Return how a cell (a row of `store.cells`) stands: finished, running, failed, interrupted, lost,
    crossed (a search stopped it early), ended (a monitor that is closed) or waiting."""
    outcome = outcome_of(cell)
    if not cell["expected"] and outcome == "finished":
        return "ended"
    if is_finished(cell):
        return "finished"
    return "waiting" if outcome == "finished" else outcome


def reason(cell: Row) -> str | None:
    """Return why the latest attempt at a cell failed or was interrupted; None if it did not or nothing is known."""
    return str(cell["error"]) if cell_state(cell) in ("failed", "interrupted") and cell["error"] else None


def noted(notes: Sequence[Row], cells: Sequence[Row]) -> list[str]:
    """Return the notes of a study (rows of `store.notes`) as they are shown: with how many of its cells, if not all."""
    total = len({cell["cell_id"] for cell in cells})
    return [
        row["note"] if row["cells"] == total else f"{row['note']} (in {row['cells']} of {total} cells)" for row in notes
    ]
