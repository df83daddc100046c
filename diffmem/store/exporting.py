"""What a store holds as a file for other programs: CSV, Parquet or JSON."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from diffmem.atomic import unwritable, whole
from diffmem.cells import leaves
from diffmem.measures import NEAREST, is_copy_sql
from diffmem.sql import identifier, literal
from diffmem.store.image_queries import TRAINING_SET, thresholds
from diffmem.store.json_columns import from_json
from diffmem.store.queries import PROGRESS
from diffmem.store.store import Store

FORMATS = {
    "csv": "FORMAT csv, HEADER, USE_TMP_FILE false",
    "parquet": "FORMAT parquet, USE_TMP_FILE false",
    "json": "FORMAT json, ARRAY true, USE_TMP_FILE false",
}
"""The formats, and how DuckDB is asked for each."""

EMM = """
    study VARCHAR, curve VARCHAR, measure VARCHAR, epsilon DOUBLE, threshold DOUBLE, sizes INTEGER, emm VARCHAR,
    value DOUBLE, lower DOUBLE, upper DOUBLE, lower95 DOUBLE, upper95 DOUBLE, last_emm VARCHAR,
    last_value DOUBLE, last_lower DOUBLE, last_upper DOUBLE,
    null_ratio DOUBLE, null_samples INTEGER, note VARCHAR
"""
"""The columns of the EMM of each curve: by the best checkpoints as in the paper, and by the last ones."""

ONSETS = """
    study VARCHAR, curve VARCHAR, measure VARCHAR, threshold DOUBLE, level DOUBLE, size INTEGER, cells INTEGER,
    tau_mem VARCHAR, tau_mem_value DOUBLE, tau_mem_lower DOUBLE, tau_mem_upper DOUBLE,
    tau_mem_low95 DOUBLE, tau_mem_high95 DOUBLE,
    tau_half VARCHAR, tau_half_value DOUBLE, tau_half_lower DOUBLE, tau_half_upper DOUBLE,
    tau_half_low95 DOUBLE, tau_half_high95 DOUBLE,
    slope DOUBLE, slope_low95 DOUBLE, slope_high95 DOUBLE,
    gen_space VARCHAR, gen_cells INTEGER, tau_gen VARCHAR, tau_gen_value DOUBLE, tau_gen_lower DOUBLE,
    tau_gen_upper DOUBLE, tau_gen_low95 DOUBLE, tau_gen_high95 DOUBLE,
    gen_slope DOUBLE, gen_slope_low95 DOUBLE, gen_slope_high95 DOUBLE
"""
"""The columns of the onsets at each size of a curve; slopes are the curve's. tau_gen needs a quality."""

EXTRACTION = """
    study VARCHAR, position INTEGER, curve VARCHAR, name VARCHAR, cell_id VARCHAR, size INTEGER, measure VARCHAR,
    epoch BIGINT, against VARCHAR, threshold DOUBLE, images INTEGER, times INTEGER, extracted DOUBLE, low DOUBLE,
    high DOUBLE, null_extracted DOUBLE
"""
"""The columns of how many training images a cell copies, against a threshold, generated images, or copies of each."""

HALVES = """
    study VARCHAR, curve VARCHAR, size INTEGER, draw VARCHAR, seed BIGINT, cell_a VARCHAR, cell_b VARCHAR,
    epoch INTEGER, space VARCHAR, threshold DOUBLE, pairs INTEGER,
    cosine DOUBLE, cosine_low95 DOUBLE, cosine_high95 DOUBLE, cosine_null DOUBLE,
    psnr DOUBLE, psnr_low95 DOUBLE, psnr_high95 DOUBLE, psnr_null DOUBLE,
    reproducible DOUBLE, reproducible_low95 DOUBLE, reproducible_high95 DOUBLE, reproducible_null DOUBLE,
    generalization DOUBLE, generalization_low95 DOUBLE, generalization_high95 DOUBLE, generalization_null DOUBLE,
    null_pairs INTEGER, held_out INTEGER
"""
"""The columns of how far the models of two halves agree, a row for each two."""

GIVEN = {"emm": EMM, "onsets": ONSETS, "extraction": EXTRACTION, "halves": HALVES}
"""The columns of what is not in the store, but read off it."""


def write_table(
    store: Store, what: str, path: Path, *, form: str, study: str | None = None, rows: Sequence[Sequence[Any]] = ()
) -> None:
    """Write what a store has, or one study, of a kind that `diffmem export` names, to a file.

    The file is written whole or not at all. With a study, all but evidence and notes come once for each place that
    they have in it; the rows of GIVEN are given. DiffmemError where the file cannot be written.
    """
    with whole(path) as temporary, store.reading(files=[temporary]) as connection:
        if what in GIVEN:
            connection.execute(f"CREATE TEMP TABLE given ({GIVEN[what]})")
            if rows:
                connection.executemany(f"INSERT INTO given VALUES ({', '.join('?' * len(rows[0]))})", rows)
            sql = "FROM given"
        else:
            sql = _sql(connection, what, study)
        try:
            connection.execute(f"COPY ({sql}) TO {literal(str(temporary))} ({FORMATS[form]})")
        except duckdb.IOException as error:
            reason = str(error).splitlines()[0].removeprefix("IO Error: ")
            raise unwritable(path, reason) from error  # the error itself would be taken for the store's


def _sql(connection: duckdb.DuckDBPyConnection, what: str, study: str | None) -> str:
    """Return the query of what is in the store."""
    place, source, order = "", "cells", ""
    if study is not None:
        place, order = "study, position, curve, name, ", "position, "
        source = f"(FROM study_cells WHERE study = {literal(study)}) JOIN cells USING (cell_id)"
    if what == "cells":
        return f"""
            SELECT {place}cell_id, created_at, cells.checkpoints AS expected, coalesce(measured, 0) AS measured, best,
                last, outcome, error, host, device, started_at, ended_at, {_setting_columns(connection)}
            FROM {source} {PROGRESS} ORDER BY {order}cell_id
            """
    if what == "checkpoints":
        return _checkpoints(connection, place, source, order)
    if what == "results":
        chosen = "" if study is None else f"WHERE study = {literal(study)}"
        axes = [f"{column}, " for column in _value_columns(connection, "study_cells", "axis_values", chosen)]
        places = f"(FROM study_cells {chosen}) JOIN cells USING (cell_id)"
        place = f"study, position, curve, name, {''.join(axes)}"
        return _checkpoints(connection, place, places, "study, position, ")
    if what == "gaps":
        return f"""
            SELECT {place}cell_id, (configuration->>'$.P.size')::INTEGER AS size,
                configuration->>'$.P.draw' AS draw, (configuration->>'$.T.seed')::BIGINT AS seed,
                {_epochs(connection, "noise_levels")} AS epoch, measure, quantity, images, sigma, value, low, high, n
            FROM {source} JOIN noise_levels USING (cell_id)
            ORDER BY {order}cell_id, noise_levels.epoch, measure, quantity, images DESC, sigma DESC
            """
    if what == "images":
        return _of_images(connection, place, source, order)
    if what == "quality":
        return f"""
            SELECT {place}cell_id, (configuration->>'$.P.size')::INTEGER AS size,
                configuration->>'$.P.draw' AS draw, (configuration->>'$.T.seed')::BIGINT AS seed,
                {_epochs(connection)} AS epoch, step, space, quantity, against, value, low, high, n, real, dimensions,
                null_value, null_n
            FROM {source} JOIN quality USING (cell_id) JOIN checkpoints USING (cell_id, epoch)
            ORDER BY {order}cell_id, checkpoints.epoch, space, against DESC, quantity
            """
    only = "" if study is None else f"WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = {literal(study)})"
    if what == "notes":
        return f"SELECT cell_id, note FROM notes {only} ORDER BY cell_id, note"
    evidence = f"SELECT cell_id, epoch, sample, nearest, d1, d2 FROM evidence {only}"
    for (name,) in connection.execute("SELECT DISTINCT measure FROM measure_evidence ORDER BY measure").fetchall():
        distance, yardstick = (identifier(f"{name}_{column}") for column in ("distance", "yardstick"))
        evidence = f"""
            SELECT e.*, m.distance AS {distance}, m.yardstick AS {yardstick}
            FROM ({evidence}) AS e
                LEFT JOIN (FROM measure_evidence WHERE measure = {literal(name)}) AS m USING (cell_id, epoch, sample)
            """
    return f"""
        SELECT e.* REPLACE ({_epochs(connection, "e")} AS epoch) FROM ({evidence}) AS e LEFT JOIN cells USING (cell_id)
        ORDER BY cell_id, e.epoch, sample
        """


def _checkpoints(connection: duckdb.DuckDBPyConnection, place: str, source: str, order: str) -> str:
    """Return the query of each checkpoint by each measure."""
    return f"""
        SELECT {place}cell_id, (configuration->>'$.P.size')::INTEGER AS size, configuration->>'$.P.draw' AS draw,
            (configuration->>'$.T.seed')::BIGINT AS seed, {_epochs(connection)} AS epoch, step,
            measured.measure, n AS samples, round(value * n)::INTEGER AS memorized, value AS ratio, low, high,
            null_ratio, coalesce(null_samples, 0) AS null_samples, loss,
            train_seconds, score_seconds, attempt_id, host, device, measured_at
        FROM {source} JOIN checkpoints USING (cell_id) JOIN measured USING (cell_id, epoch) {_nulls()}
            LEFT JOIN attempts USING (cell_id, attempt_id)
        ORDER BY {order}cell_id, checkpoints.epoch, measured.measure DESC
        """


def _of_images(connection: duckdb.DuckDBPyConnection, place: str, source: str, order: str) -> str:
    """Return the query of each training image at each checkpoint by each measure."""
    return f"""
        WITH counted AS (
            SELECT cell_id, epoch, measure, nearest, count(*) AS nearest_of,
                count(*) FILTER {is_copy_sql("threshold")} AS copies
            FROM ({_all_evidence()}) JOIN {thresholds()} USING (measure) GROUP BY ALL
        ), each_image AS (
            SELECT {place}cell_id, (configuration->>'$.P.size')::INTEGER AS size,
                configuration->>'$.P.draw' AS draw, (configuration->>'$.T.seed')::BIGINT AS seed,
                checkpoints.epoch AS known_by, {_epochs(connection)} AS epoch, measured.measure,
                unnest(range(size)) AS training_image, {TRAINING_SET} AS training_set
            FROM {source} JOIN checkpoints USING (cell_id) JOIN measured USING (cell_id, epoch)
        )
        SELECT e.* EXCLUDE (known_by, training_set), image, alike, local_distance,
            coalesce(nearest_of, 0) AS nearest_of, coalesce(copies, 0) AS copies
        FROM each_image AS e
            LEFT JOIN counted AS c ON (c.cell_id, c.epoch, c.measure, c.nearest)
                = (e.cell_id, e.known_by, e.measure, e.training_image)
            LEFT JOIN training_images AS t
                ON t.training_set = e.training_set AND t.position = e.training_image
        ORDER BY {order and "e.position, "}e.cell_id, e.known_by, e.measure, e.training_image
        """


def _all_evidence() -> str:
    """Return SQL for the evidence of every measure, the paper's too."""
    return f"""
        SELECT cell_id, epoch, {literal(NEAREST.name)} AS measure, nearest, d1 AS distance, d2 AS yardstick
        FROM evidence
        UNION ALL SELECT cell_id, epoch, measure, nearest, distance, yardstick FROM measure_evidence
        """


BY_STEP = "(configuration->>'$.score.points' IS NOT NULL OR configuration->>'$.T.steps' IS NOT NULL)"
"""SQL for whether the checkpoints of a cell are known by their step, as `clock_of` has it."""


def _epochs(connection: duckdb.DuckDBPyConnection, table: str = "checkpoints") -> str:
    """Return SQL for the epochs at a checkpoint: whole numbers where all cells' checkpoints end epochs."""
    if connection.execute(f"FROM cells WHERE {BY_STEP} LIMIT 1").fetchone() is None:
        return f"{table}.epoch"
    batch, size = (f"(configuration->>'$.{key}')::DOUBLE" for key in ("T.batch_size", "P.size"))
    return f"CASE WHEN {BY_STEP} THEN {table}.epoch * {batch} / {size} ELSE {table}.epoch END"


def _nulls() -> str:
    """Return SQL that joins to measurements of cells what their measure says of held-out images, at its threshold."""
    return f"""
        LEFT JOIN (
            SELECT training_set, measure, avg({is_copy_sql("threshold")}::INTEGER) AS null_ratio,
                count(*) AS null_samples
            FROM held_out JOIN {thresholds()} USING (measure) GROUP BY ALL
        ) AS nulls ON nulls.measure = measured.measure AND nulls.training_set = {TRAINING_SET}
        """


def _setting_columns(connection: duckdb.DuckDBPyConnection) -> str:
    """Return SQL for a column for each setting that any cell has."""
    columns = _value_columns(connection, "cells", "configuration", "ORDER BY created_at, cell_id")
    return ", ".join(columns) or "configuration"


def _value_columns(connection: duckdb.DuckDBPyConnection, table: str, column: str, chosen: str) -> list[str]:
    """Return SQL for a column for each value that a JSON column of the chosen rows of a table has, of the type that its
    values have."""
    values: dict[str, list[Any]] = {}
    places: dict[str, dict[str, None]] = {}  # a setting may be a key of its own, as of an axis, or in a table
    for (text,) in connection.execute(f"SELECT {column} FROM {table} {chosen}").fetchall():
        for keys, value in leaves(from_json(text, "the store")).items():
            pointer = "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in keys)  # RFC 6901
            values.setdefault(".".join(keys), []).append(value)
            places.setdefault(".".join(keys), {})[f"{column}->>{literal(pointer)}"] = None
    return [
        f"coalesce({', '.join(places[name])})::{_type(of_name)} AS {identifier(name)}"
        for name, of_name in values.items()
    ]


def _type(values: Iterable[Any]) -> str:
    """Return the DuckDB type of a setting with these values; lists and tables stay JSON text."""
    values = list(values)
    kinds = {type(value) for value in values if value is not None}
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
        return "VARCHAR"
    for name, allowed in (("BOOLEAN", {bool}), ("BIGINT", {int}), ("DOUBLE", {int, float})):
        if kinds and kinds <= allowed:
            return name
    return "VARCHAR"
