"""Merging stores: what several machines have measured, as one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from diffmem.errors import StoreError
from diffmem.measures import SpaceIdentity
from diffmem.sql import literal
from diffmem.store.checking import read_all
from diffmem.store.database import PATIENCE
from diffmem.store.monitored import part_earlier_runs
from diffmem.store.naming import another_space
from diffmem.store.store import Store
from diffmem.store.validity import any_broken
from diffmem.store.waiting import Wait, holder_in

CONFLICTS = """
    WITH shared AS (FROM checkpoints SEMI JOIN other_.checkpoints USING (cell_id, epoch))
    SELECT cell_id, epoch FROM shared JOIN other_.checkpoints AS o USING (cell_id, epoch)
    WHERE (shared.samples, shared.memorized) IS DISTINCT FROM (o.samples, o.memorized)
    UNION
    SELECT cell_id, epoch
    FROM evidence JOIN other_.evidence AS o USING (cell_id, epoch, sample)
    WHERE (evidence.nearest, evidence.d1, evidence.d2) IS DISTINCT FROM (o.nearest, o.d1, o.d2)
    UNION
    SELECT cell_id, epoch
    FROM measurements JOIN other_.measurements AS o USING (cell_id, epoch, measure)
    WHERE (measurements.value, measurements.n) IS DISTINCT FROM (o.value, o.n)
    UNION
    SELECT cell_id, epoch
    FROM measure_evidence AS e JOIN other_.measure_evidence AS o USING (cell_id, epoch, measure, sample)
    WHERE (e.nearest, e.distance, e.yardstick) IS DISTINCT FROM (o.nearest, o.distance, o.yardstick)
    UNION
    SELECT cell_id, epoch
    FROM noise_levels AS l JOIN other_.noise_levels AS o USING (cell_id, epoch, measure, quantity, images, sigma)
    WHERE l.n <> o.n
    UNION
    SELECT cell_id, epoch
    FROM quality AS q JOIN other_.quality AS o USING (cell_id, epoch, space, quantity, against)
    WHERE (q.n, q.real, q.dimensions) <> (o.n, o.real, o.dimensions)
    ORDER BY ALL
"""
"""Checkpoints that two stores have measured differently."""

GROWING = """
    SELECT study FROM studies JOIN other_.studies AS o USING (study)
    WHERE studies.axes = o.axes AND studies.kind = o.kind
        AND (studies.estimation->>'$.search' = 'bisect' OR studies.kind <> 'trained')
"""
"""Studies of both stores that list a cell more as they go on: searches, monitored trainings, scored images."""

NULLS = """
    SELECT training_set, count(*) AS images, sum(distance + yardstick) AS total
    FROM {} WHERE measure = 'nearest' GROUP BY ALL
"""
"""How many held-out images each training set was compared with, and a checksum that identifies them."""

LEVELS = """
    SELECT cell_id, epoch, measure, list(value ORDER BY quantity, images, sigma) AS found FROM {} GROUP BY ALL
"""
"""SQL for all that a measure of a denoiser has found of a checkpoint."""

QUALITY = """
    SELECT cell_id, epoch, space, list(value ORDER BY quantity, against) AS found FROM {} GROUP BY ALL
"""
"""SQL for the quality of the images of a checkpoint in a space."""

HALVES = """
    SELECT cell_a, cell_b, epoch, space, count(*) AS pairs, list(similarity ORDER BY sample) AS found
    FROM {} GROUP BY ALL
"""
"""SQL for all that was found of two halves at a checkpoint."""

MERGE = [
    """
    INSERT OR REPLACE INTO cells FROM other_.cells AS o WHERE NOT EXISTS (
        FROM cells WHERE cells.cell_id = o.cell_id AND cells.created_at <= o.created_at
    )
    """,
    f"""
    DELETE FROM study_cells WHERE study NOT IN ({GROWING}) AND study IN (
        SELECT study FROM studies JOIN other_.studies AS o USING (study) WHERE o.registered_at > studies.registered_at
    )
    """,
    f"""
    INSERT INTO study_cells FROM other_.study_cells AS o
    WHERE study NOT IN (SELECT study FROM studies) OR study NOT IN ({GROWING}) AND study IN (
        SELECT study FROM studies JOIN other_.studies AS o USING (study) WHERE o.registered_at > studies.registered_at
    )
    """,
    f"""
    INSERT INTO study_cells
    SELECT study, position + 1 + last, cell_id, curve, name, axis_values
    FROM other_.study_cells AS o
        JOIN (SELECT study, max(position) AS last FROM study_cells GROUP BY study) USING (study)
    WHERE study IN ({GROWING}) AND NOT EXISTS (
        FROM study_cells AS s JOIN studies USING (study)
        WHERE s.study = o.study AND s.cell_id = o.cell_id AND (s.curve = o.curve OR kind = 'monitor')
    )
    """,
    """
    INSERT OR REPLACE INTO studies FROM other_.studies AS o WHERE NOT EXISTS (
        FROM studies WHERE studies.study = o.study AND studies.registered_at >= o.registered_at
    )
    """,
    """
    UPDATE attempts SET outcome = o.outcome, error = o.error, ended_at = o.ended_at FROM other_.attempts AS o
    WHERE attempts.attempt_id = o.attempt_id AND attempts.outcome = 'running' AND o.outcome <> 'running'
    """,
    "INSERT OR IGNORE INTO attempts FROM other_.attempts",
    """
    INSERT INTO evidence FROM other_.evidence AS o
    WHERE NOT EXISTS (FROM checkpoints AS c WHERE c.cell_id = o.cell_id AND c.epoch = o.epoch)
    """,
    """
    INSERT INTO measure_evidence FROM other_.measure_evidence AS o WHERE NOT EXISTS (
        FROM measurements AS m WHERE m.cell_id = o.cell_id AND m.epoch = o.epoch AND m.measure = o.measure
    )
    """,
    "INSERT OR IGNORE INTO measurements FROM other_.measurements",
    f"""
    DELETE FROM held_out WHERE training_set IN (
        SELECT training_set FROM ({NULLS.format("held_out")}) AS own
            JOIN ({NULLS.format("other_.held_out")}) AS o USING (training_set) WHERE o.images > own.images
    )
    """,
    f"""
    INSERT INTO held_out FROM other_.held_out AS o WHERE NOT EXISTS (
        FROM held_out AS h WHERE h.training_set = o.training_set AND h.measure = o.measure
    ) AND training_set NOT IN ( -- all measures of a training set are of the same held-out images
        SELECT training_set FROM ({NULLS.format("held_out")}) AS own
            JOIN ({NULLS.format("other_.held_out")}) AS o USING (training_set)
        WHERE own.images <> o.images OR abs(own.total - o.total) > 1e-9 * own.total
    )
    """,
    """
    UPDATE training_images AS t SET image = least(t.image, o.image) FROM other_.training_images AS o
    WHERE o.training_set = t.training_set AND o.position = t.position AND o.image <> t.image
    """,
    "INSERT INTO training_images FROM other_.training_images ANTI JOIN training_images USING (training_set, position)",
    f"""
    DELETE FROM noise_levels WHERE (cell_id, epoch, measure) IN (
        SELECT (cell_id, epoch, measure) FROM ({LEVELS.format("noise_levels")}) AS l
            JOIN ({LEVELS.format("other_.noise_levels")}) AS o USING (cell_id, epoch, measure)
        WHERE o.found < l.found -- devices round differently; in whatever order stores are merged, the same one stays
    )
    """,
    """
    INSERT INTO noise_levels FROM other_.noise_levels AS o WHERE NOT EXISTS (
        FROM noise_levels AS l WHERE l.cell_id = o.cell_id AND l.epoch = o.epoch AND l.measure = o.measure
    )
    """,
    "INSERT OR IGNORE INTO spaces FROM other_.spaces",
    f"""
    DELETE FROM quality WHERE (cell_id, epoch, space) IN (
        SELECT (cell_id, epoch, space) FROM ({QUALITY.format("quality")}) AS q
            JOIN ({QUALITY.format("other_.quality")}) AS o USING (cell_id, epoch, space)
        WHERE o.found < q.found
    )
    """,
    """
    INSERT INTO quality FROM other_.quality AS o WHERE NOT EXISTS (
        FROM quality AS q WHERE q.cell_id = o.cell_id AND q.epoch = o.epoch AND q.space = o.space
    )
    """,
    f"""
    DELETE FROM halves WHERE (cell_a, cell_b, epoch, space) IN (
        SELECT (cell_a, cell_b, epoch, space) FROM ({HALVES.format("halves")}) AS h
            JOIN ({HALVES.format("other_.halves")}) AS o USING (cell_a, cell_b, epoch, space)
        WHERE (o.pairs, o.found) > (h.pairs, h.found) -- the one of more images, as their number can be chosen later
    )
    """,
    """
    INSERT INTO halves FROM other_.halves AS o WHERE NOT EXISTS (
        FROM halves AS h
        WHERE h.cell_a = o.cell_a AND h.cell_b = o.cell_b AND h.epoch = o.epoch AND h.space = o.space
    )
    """,
    """
    UPDATE pairs AS p
    SET second = o.second, second_nearest = o.second_nearest, name = least(p.name, o.name),
        copy_of = least(p.copy_of, o.copy_of) -- of those that are not NULL
    FROM other_.pairs AS o
    WHERE o.cell_id = p.cell_id AND o.epoch = p.epoch AND o.sample = p.sample AND o.second IS NOT NULL
    """,
    "INSERT OR IGNORE INTO pairs FROM other_.pairs",
    "INSERT OR IGNORE INTO copied FROM other_.copied",
    "INSERT OR IGNORE INTO notes FROM other_.notes",
    """
    INSERT OR REPLACE INTO checkpoints FROM other_.checkpoints AS o WHERE NOT EXISTS (
        FROM checkpoints AS c
        WHERE c.cell_id = o.cell_id AND c.epoch = o.epoch
            AND (c.measured_at, c.attempt_id) <= (o.measured_at, o.attempt_id)
    )
    """,
]
"""How one store takes over another one, attached as `other_`; studies' cells before the studies that decide on them."""


def merge(store: Store, path: Path, *, name: str = "") -> int:
    """Copy into `store` what the store at `path` has and it lacks, and return how many checkpoints were copied.

    The order of merging does not change the result: of two equal measurements the older one stays, of two versions of
    a study the newer one, and a cell gets the notes of both. Merging a store into itself changes nothing. If the two
    have measured a checkpoint differently, nothing is changed and StoreError is raised; it calls the first store
    `name`, or by its path.
    """
    other = Store(path).current()  # says what is wrong with it, if anything
    if store.exists() and path.samefile(store.path):
        return 0
    try:
        return _take_over(store, other.path, path, name or str(store.path))
    except StoreError as error:
        if isinstance(error.__cause__, duckdb.Error):
            read_all(other)  # where it is the other one that is damaged, this says so
        raise


def _take_over(store: Store, place: Path, path: Path, name: str) -> int:
    """Take over what the store at `path`, which is read at `place`, has."""
    with store.writing(create=True, files=[place, Path(f"{place}.wal")]) as connection:
        _attach(connection, place)
        conflicts = connection.execute(CONFLICTS).fetchall()
        if conflicts:
            named = ", ".join(f"{cell_id} at checkpoint {epoch}" for cell_id, epoch in conflicts[:5])
            more = f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
            raise StoreError(f"{path}: measured otherwise than in {name}: {named}{more}; merge only one of the two")
        _check_spaces(connection, path, name)
        before = _checkpoints(connection)
        for statement in MERGE:
            connection.execute(statement)
        part_earlier_runs(connection)
        if fault := any_broken(connection):
            raise StoreError(f"{path}: cannot be merged with {name}: together, {fault}; merge only one of the two")
        return _checkpoints(connection) - before


def _check_spaces(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Raise StoreError where both stores have a feature space of one name, and not the same one."""
    for row in connection.execute("SELECT s, o FROM spaces AS s JOIN other_.spaces AS o USING (measure)").fetchall():
        had, other = (SpaceIdentity(**each) for each in row)
        if fault := another_space(had, other):
            raise StoreError(f"{path}: cannot be merged with {name}: {fault}")


def _attach(connection: duckdb.DuckDBPyConnection, place: Path) -> None:
    """Attach the other store to read, trying again while a run writes to it."""
    attach = f"ATTACH {literal(str(place.absolute()))} AS other_ (READ_ONLY)"
    Wait(place, PATIENCE, on_wait=lambda: None).until(lambda: connection.execute(attach), holder_in)


def _checkpoints(connection: duckdb.DuckDBPyConnection) -> int:
    return int(connection.execute("SELECT count(*) FROM checkpoints").fetchall()[0][0])


@contextmanager
def merged(paths: Sequence[Path]) -> Iterator[Store]:
    """Merge several stores into one that is there for the while of a block. Raises StoreError as `merge`."""
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "merged.duckdb")
        for number, path in enumerate(paths):
            merge(store, path, name=", ".join(map(str, paths[:number])))
        yield store
