"""What a store holds, and what is read off it, as a file for other programs."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from diffmem.analysis.copied import copied_images
from diffmem.analysis.curves import Curve, by_each_measure, curves_of, measured_cells
from diffmem.analysis.emm import Estimate
from diffmem.analysis.halves import halves_of
from diffmem.analysis.onsets import LEVEL, onsets_of, space_of
from diffmem.measures import Bounded
from diffmem.store import Store, StoredStudy, write_table


@dataclass(frozen=True)
class EmmRow:
    """The EMM of a curve, by the best checkpoints as in the paper, and by the last ones.

    `lower` and `upper` are the sizes around the crossing, None at an open end; lower95 and upper95 the 95% interval.
    """

    study: str
    curve: str
    measure: str
    epsilon: float
    threshold: float
    sizes: int
    emm: str | None
    value: float | None
    lower: float | None
    upper: float | None
    lower95: float | None
    upper95: float | None
    last_emm: str | None
    last_value: float | None
    last_lower: float | None
    last_upper: float | None
    null_ratio: float | None  # the highest share of held-out images, over the sizes, that are called copies
    null_samples: int  # held-out images at all sizes
    note: str


def emm_row(study: StoredStudy, curve: Curve) -> EmmRow:
    """Return what is told of a curve of a study, whose measure and threshold its ratios are by."""
    about = (study.study, curve.label, study.measure.name, curve.epsilon, study.threshold, len(curve.points))
    low, high = curve.interval or (None, None)
    null = curve.highest_null, sum(point.null_samples for point in curve.points)
    best = (curve.answer, *_told(curve.estimate)[1:]) if curve.estimate else _told(None)
    return EmmRow(*about, *best, low, high, *_told(curve.last_estimate), *null, curve.note)


def _told(estimate: Estimate | None) -> tuple[str | None, float | None, float | None, float | None]:
    """Return an estimate in words, its value and the sizes around it."""
    return (str(estimate), *estimate[:3]) if estimate else (None, None, None, None)


def export(store: Store, what: str, path: Path, *, form: str, study: str | None = None) -> None:
    """Write what a store (or one study of it) has to a file, whole or not at all.

    `what` is a word that `diffmem export` accepts, such as "checkpoints"; `form` is csv, parquet or json. With a
    study, a row comes once for each place that its cell has in the study, except for evidence and notes. Raises
    DiffmemError if the file cannot be written.
    """
    rows: list[tuple[Any, ...]] = []
    if what == "emm":
        rows = list(map(astuple, _emm_rows(store, study)))
    elif what == "onsets":
        rows = list(_onset_rows(store, study))
    elif what == "extraction":
        rows = list(_extraction_rows(store, study))
    elif what == "halves":
        rows = list(_half_rows(store, study))
    write_table(store, what, path, form=form, study=study, rows=rows)


def _onset_rows(store: Store, study: str | None) -> Iterator[tuple[Any, ...]]:
    """Yield a row of onsets for each size of each curve, by each measure that its study has."""
    for stored in store.studies():
        for found in by_each_measure(store, stored) if study in (None, stored.study) else ():
            with store.snapshot():
                points = store.curve_points(found.study, found.measure, found.threshold)
                quality = store.study_quality(found.study)
            for curve in onsets_of(points, quality=quality):
                about = (found.study, curve.label, found.measure.name, found.threshold, LEVEL)
                slopes = [astuple(each)[:3] if each else (None,) * 3 for each in (curve.slope, curve.gen_slope)]
                for each in curve.sizes:
                    mem, half = ((str(onset), *astuple(onset)) for onset in (each.mem, each.half))
                    gen = (None,) * 6 if each.gen is None else (str(each.gen), *astuple(each.gen))
                    by = (space_of(quality) or None, each.gen_cells)
                    yield (*about, each.size, each.cells, *mem, *half, *slopes[0], *by, *gen, *slopes[1])


def _extraction_rows(store: Store, study: str | None) -> Iterator[tuple[Any, ...]]:
    """Yield how many training images each cell copies, by each measure that its study has."""
    for stored in store.studies():
        for found in by_each_measure(store, stored) if study in (None, stored.study) else ():
            for cell in copied_images(store, found):
                about = (found.study, cell.position, cell.curve, cell.name, cell.cell_id, cell.size)
                known = (*about, found.measure.name, cell.epoch)
                for against, rows in (("threshold", cell.by_threshold), ("images", cell.by_images)):
                    for each in rows:
                        at = (against, each.threshold, each.images, 1)
                        yield (*known, *at, each.extracted, each.low, each.high, each.null)
                for often in cell.eidetic:
                    at = ("times", found.threshold, cell.samples, often.times)
                    yield (*known, *at, often.images, often.low, often.high, None)


def _half_rows(store: Store, study: str | None) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each two cells that differ in P.half alone."""
    for stored in store.studies():
        for each in halves_of(store, stored) if study in (None, stored.study) else ():
            found = each.found
            yield (
                *(stored.study, each.curve, each.size, each.draw, each.seed, each.cell_a, each.cell_b),
                *(each.epoch, each.space, each.threshold, each.pairs),
                *_beside_null(found.cosine, found.cosine_null),
                *_beside_null(found.psnr, found.psnr_null),
                *_beside_null(found.reproducible, found.reproducible_null),
                *_beside_null(found.generalization, found.generalization_null),
                *(null.n if null else 0 for null in (found.cosine_null, found.generalization_null)),
            )


def _beside_null(found: Bounded, null: Bounded | None) -> tuple[float | None, ...]:
    return found.value, found.low, found.high, null.value if null else None


def _emm_rows(store: Store, study: str | None) -> Iterator[EmmRow]:
    """Yield a row of EMM for each curve by each measure that its study has."""
    for stored in store.studies():
        for found in by_each_measure(store, stored) if study in (None, stored.study) else ():
            with store.snapshot():
                curves = curves_of(measured_cells(store, found), found.epsilon)  # none where nothing is scored by it
            yield from (emm_row(found, curve) for curve in curves)
