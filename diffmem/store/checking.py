"""Whether a store agrees with itself: every ratio with its evidence, every row with those it belongs to."""

import tempfile
from collections import Counter
from pathlib import Path

from diffmem.errors import StoreError
from diffmem.measures import NEAREST, is_copy_sql
from diffmem.sql import identifier
from diffmem.store.database import Database
from diffmem.store.image_queries import evidence_of, thresholds
from diffmem.store.json_columns import from_json
from diffmem.store.pictures import is_png
from diffmem.store.store import Store
from diffmem.store.validity import EVIDENCE_RULES, RULES, broken
from diffmem.text import counted

COUNTED = f"""
    SELECT cell_id, epoch, count(*) AS rows, count(DISTINCT sample) AS numbers,
        count(*) FILTER {is_copy_sql(repr(NEAREST.threshold))} AS memorized
    FROM {evidence_of(NEAREST)} GROUP BY cell_id, epoch
"""

COUNTED_BY_MEASURE = f"""
    SELECT cell_id, epoch, measure, count(*) AS rows, count(DISTINCT sample) AS numbers,
        avg({is_copy_sql("threshold")}::INTEGER) AS counted
    FROM measure_evidence LEFT JOIN {thresholds()} USING (measure) GROUP BY ALL
"""
"""The share is null where the measure is not known here."""

FAULTS = {
    """
    SELECT training_set, count(*) - count(DISTINCT position) AS doubled
    FROM training_images GROUP BY ALL HAVING doubled > 0
    """: "training set {training_set}: {doubled} training images that are there already",
    """
    SELECT training_set, measure, count(*) - count(DISTINCT sample) AS doubled
    FROM held_out GROUP BY ALL HAVING doubled > 0
    """: "training set {training_set}, {measure}: {doubled} held-out images that are there already",
    f"""
    SELECT cell_id, epoch, samples, coalesce(counted.rows, 0) AS rows
    FROM checkpoints LEFT JOIN ({COUNTED}) counted USING (cell_id, epoch) WHERE samples <> coalesce(counted.rows, 0)
    """: "{cell_id} at checkpoint {epoch}: {samples} images generated, but {rows} rows of evidence",
    f"""
    SELECT cell_id, epoch, counted.rows - numbers AS twice
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch) WHERE counted.rows <> numbers
    """: "{cell_id} at checkpoint {epoch}: {twice} rows of evidence for an image that has one already",
    f"""
    SELECT cell_id, epoch, checkpoints.memorized AS stored, counted.memorized AS counted
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch)
    WHERE checkpoints.memorized <> counted.memorized
    """: "{cell_id} at checkpoint {epoch}: {stored} images memorized, but {counted} by the evidence",
    f"""
    SELECT cell_id, epoch, ratio, counted.memorized / counted.rows AS counted
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch)
    WHERE NOT abs(ratio - counted.memorized / counted.rows) < 1e-12
    """: "{cell_id} at checkpoint {epoch}: ratio {ratio}, but {counted} by the evidence",
    "SELECT DISTINCT cell_id, epoch FROM evidence ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at checkpoint {epoch}: evidence without its checkpoint"
    ),
    "SELECT DISTINCT cell_id, epoch FROM pairs ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at checkpoint {epoch}: image pairs without their checkpoint"
    ),
    f"""
    SELECT cell_id, epoch, measure, n, coalesce(counted.rows, 0) AS rows
    FROM measurements LEFT JOIN ({COUNTED_BY_MEASURE}) counted USING (cell_id, epoch, measure)
    WHERE n IS DISTINCT FROM counted.rows
    """: "{cell_id} at checkpoint {epoch}, {measure}: {n} images measured, but {rows} rows of evidence",
    f"""
    SELECT cell_id, epoch, measure, counted.rows - numbers AS twice
    FROM measurements JOIN ({COUNTED_BY_MEASURE}) counted USING (cell_id, epoch, measure) WHERE counted.rows <> numbers
    """: "{cell_id} at checkpoint {epoch}, {measure}: {twice} rows of evidence for an image that has one already",
    f"""
    SELECT cell_id, epoch, measure, value, counted
    FROM measurements JOIN ({COUNTED_BY_MEASURE}) counted USING (cell_id, epoch, measure)
    WHERE NOT abs(value - counted) < 1e-12
    """: "{cell_id} at checkpoint {epoch}, {measure}: {value}, but {counted} by the evidence",
    "SELECT DISTINCT cell_id, epoch FROM measurements ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at checkpoint {epoch}: measurements without their checkpoint"
    ),
    "SELECT DISTINCT cell_id, epoch, measure FROM measure_evidence ANTI JOIN measurements "
    "USING (cell_id, epoch, measure)": "{cell_id} at checkpoint {epoch}, {measure}: evidence without its measurement",
    "SELECT DISTINCT cell_id, epoch FROM noise_levels ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at checkpoint {epoch}: values at noise levels without their checkpoint"
    ),
    """
    SELECT cell_id, epoch, measure, count(*) - count(DISTINCT (quantity, images, sigma)) AS twice
    FROM noise_levels GROUP BY ALL HAVING twice > 0
    """: "{cell_id} at checkpoint {epoch}, {measure}: {twice} values at a noise level that has one already",
    "SELECT DISTINCT cell_id, epoch FROM quality ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at checkpoint {epoch}: values of quality without their checkpoint"
    ),
    """
    SELECT cell_id, epoch, space, count(*) - count(DISTINCT (quantity, against)) AS twice
    FROM quality GROUP BY ALL HAVING twice > 0
    """: "{cell_id} at checkpoint {epoch}, {space}: {twice} values of quality that are there already",
    """
    SELECT DISTINCT cell_a, cell_b, halves.epoch FROM halves
        LEFT JOIN checkpoints AS a ON a.cell_id = cell_a AND a.epoch = halves.epoch
        LEFT JOIN checkpoints AS b ON b.cell_id = cell_b AND b.epoch = halves.epoch
    WHERE a.cell_id IS NULL OR b.cell_id IS NULL
    """: "{cell_a} and {cell_b} at checkpoint {epoch}: two halves compared without their checkpoints",
    """
    SELECT cell_a, cell_b, epoch, space, count(*) - count(DISTINCT sample) AS twice
    FROM halves GROUP BY ALL HAVING twice > 0
    """: "{cell_a} and {cell_b} at checkpoint {epoch}, {space}: {twice} pairs of images that are there already",
    "SELECT DISTINCT cell_id FROM copied ANTI JOIN checkpoints USING (cell_id)": (
        "{cell_id}: pictures of copied training images without a checkpoint"
    ),
    "SELECT cell_id, epoch FROM checkpoints ANTI JOIN cells USING (cell_id)": (
        "{cell_id} at checkpoint {epoch}: a checkpoint of a cell that is not there"
    ),
    "SELECT DISTINCT cell_id FROM attempts ANTI JOIN cells USING (cell_id)": (
        "{cell_id}: an attempt at a cell that is not there"
    ),
    "SELECT DISTINCT cell_id FROM notes ANTI JOIN cells USING (cell_id)": (
        "{cell_id}: a note on a cell that is not there"
    ),
    "SELECT study, cell_id FROM study_cells ANTI JOIN cells USING (cell_id)": (
        "{study}: it lists the cell {cell_id}, which is not there"
    ),
    "SELECT DISTINCT study FROM study_cells ANTI JOIN studies USING (study)": (
        "{study}: its cells are listed, but the study is not there"
    ),
}
"""Queries that find nothing in a good store, and what to say of each row that they find."""

KEYED = "SELECT table_name FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY' ORDER BY table_name"
"""The tables with an index, which reading a table does not touch."""


def faults(store: Store) -> list[str]:
    """Return one sentence for each way in which a store is damaged or contradicts itself; none if it is sound.

    It reads every value, and tests on a copy whether the store can be written. StoreError if it cannot be opened.
    """
    unchecked = Store(store.path, patience=store.patience, check=False)
    read_all(unchecked)
    with unchecked.snapshot(), unchecked.reading() as connection:
        found = broken(connection, [*RULES, *EVIDENCE_RULES])
        found += [
            sentence.format(**row) for sql, sentence in FAULTS.items() for row in unchecked.read(f"{sql} ORDER BY ALL")
        ]
        found += _bad_json(unchecked) + _bad_pictures(unchecked)
    return found + _unwritable(unchecked)


def read_all(store: Database) -> None:
    """Read every value of a store; StoreError where one cannot be."""
    with store.reading() as connection:
        for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            connection.execute(f"SELECT bit_xor(hash(COLUMNS(*))) FROM {identifier(table)}").fetchall()


JSON_COLUMNS = {
    "cells": ["configuration"],
    "studies": ["axes", "estimation", "overrides"],
    "study_cells": ["axis_values"],
    "attempts": ["versions"],
}


def _bad_json(store: Store) -> list[str]:
    """Return a sentence for each JSON text that Python cannot read, though DuckDB may."""
    found = []
    for table, columns in JSON_COLUMNS.items():
        for column in columns:
            for row in store.read(f"SELECT DISTINCT {column} AS text FROM {table} ORDER BY ALL"):
                try:
                    from_json(row["text"], table)
                except StoreError:
                    found.append(f"{table}: {column} is not JSON that can be read: {row['text'][:40]!r}")
    return found


def _bad_pictures(store: Store) -> list[str]:
    """Return a sentence for each picture that is no PNG."""
    rows = store.read(
        """
        SELECT cell_id, generated AS picture FROM pairs UNION ALL SELECT cell_id, nearest FROM pairs
        UNION ALL SELECT cell_id, second FROM pairs WHERE second IS NOT NULL
        UNION ALL SELECT cell_id, picture FROM copied ORDER BY cell_id
        """
    )
    bad = Counter(row["cell_id"] for row in rows if not is_png(row["picture"]))
    return [f"{cell_id}: {counted(number, 'picture')} that no PNG decoder reads" for cell_id, number in bad.items()]


def _unwritable(store: Store) -> list[str]:
    """Return a sentence where a copy of a store cannot be written, as a run would do it; none where it can be."""
    with tempfile.TemporaryDirectory(prefix="diffmem-") as folder:
        copy = store.copy_to(Path(folder))
        try:
            with copy.writing() as connection:
                for (table,) in connection.execute(KEYED).fetchall():
                    connection.execute(f"INSERT OR IGNORE INTO {table} FROM {table}")  # looks each row up in the index
                    connection.execute(f"DELETE FROM {table}")  # and takes it out
        except StoreError as error:
            return [f"it can be read but not written: {str(error).removeprefix(f'{folder}/')}"]
    return []
