"""What held-out images that the store has, or is given, say of a score."""

import math
from collections.abc import Iterator, Sequence

from diffmem.external.asked import Asked, held_out_caveats
from diffmem.external.foreign import ForeignCell
from diffmem.external.scored import MeasureNull
from diffmem.measures import NEAREST, Evidence, Measure
from diffmem.store import Null, Store


def null_of(store: Store, study: str, cell: ForeignCell, measure: Measure) -> Null | None:
    """Return what a measure says of the held-out images that the store has of a cell's training set, None of none."""
    positions = [each.position for each in store.cells(study) if each.cell_id == cell.cell_id]
    nulls = store.nulls(study, measure, measure.threshold)
    return next((nulls[position] for position in positions if position in nulls), None)


def nulls_of(store: Store, study: str, cell: ForeignCell, asked: Sequence[str]) -> Iterator[MeasureNull]:
    """Yield what the measures asked for, but for the paper's, say of the held-out images that the store has."""
    measures = store.study(study).measures
    for measure in (measures[name] for name in asked if name != NEAREST.name):
        if (null := null_of(store, study, cell, measure)) is not None:
            at = None if math.isinf(null.at_one_percent) else measure.shown(null.at_one_percent)
            yield MeasureNull(measure.name, null.ratio, null.samples, at)


def caveats_of_held_out(
    asked: Asked, null: Evidence | None, store: Store, name: str, cell: ForeignCell, against: str
) -> tuple[str, ...]:
    """Return in what held-out images are no null: those that are given, or else those that the store has."""
    if null is not None:
        return held_out_caveats(str(asked.held_out), null.samples, int((null.d1 == 0).sum()), against)
    stored = null_of(store, name, cell, NEAREST) if store.exists() else None
    if stored is None:
        return ()
    return held_out_caveats("held-out images given before", stored.samples, stored.trained_on, against)
