"""What a store holds, and what is read off it, as a file for other programs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffmem.analysis.curves import by_each_measure, study_curves
from diffmem.store import Store, write_table


def export(store: Store, what: str, path: Path, *, form: str, study: str | None = None) -> None:
    """Write the cells, checkpoints, evidence, notes or emm of a store, or of one study, to a file, whole or not at all.

    With a study, cells and checkpoints come once for each place that they have in it. `form` is csv, parquet or json.
    DiffmemError where the file cannot be written.
    """
    rows = list(_emm_rows(store, study)) if what == "emm" else []
    write_table(store, what, path, form=form, study=study, emm=rows)


def _emm_rows(store: Store, study: str | None) -> Iterator[list[Any]]:
    """Yield a row of EMM for each curve by each measure that its study has."""
    for stored in store.studies():
        for found in by_each_measure(store, stored) if study in (None, stored.study) else ():
            for curve in study_curves(store, found):
                given = [found.study, curve.label, found.measure.name, curve.epsilon, found.threshold]
                best, last = (
                    (str(e), e.value, e.lower, e.upper) if e else (None,) * 4
                    for e in (curve.estimate, curve.last_estimate)
                )
                interval = curve.interval or (None, None)
                yield [*given, len(curve.points), *best, *interval, *last, curve.note]
