"""What is read of a store: its studies, their cells, and what is behind each ratio."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy.typing as npt

from diffmem.cells import THRESHOLD
from diffmem.errors import StoreError
from diffmem.store.database import Database
from diffmem.store.database import Row as Row
from diffmem.store.json_columns import from_json

if TYPE_CHECKING:
    import pandas
    import pyarrow

THRESHOLD_LEVELS = 120
"""Steps of the threshold between 0 and 1; the paper's third is one of them."""


PROGRESS = """
    LEFT JOIN (
        SELECT cell_id, count(*) AS measured, max(epoch) AS epoch, max(ratio) AS best, max_by(ratio, epoch) AS last
        FROM checkpoints GROUP BY cell_id
    ) USING (cell_id)
    LEFT JOIN (
        FROM attempts QUALIFY row_number() OVER (PARTITION BY cell_id ORDER BY started_at DESC) = 1
    ) USING (cell_id)
"""
"""SQL that joins to cells how far they are, and their latest attempt."""

SIZE = "CAST(configuration->>'$.P.size' AS BIGINT)"
"""SQL for the number of training images of a cell."""


class Queries(Database):
    """What a store has, as rows; every method opens the file to read it, and raises StoreError."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query, each as a dict by column name; StoreError where the query has a fault."""
        return self.select(
            sql,
            lambda found: [dict(zip(_names(found), row, strict=True)) for row in found.fetchall()],
            parameters,
        )

    def columns(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a query as arrays by their names; masked arrays where some values are missing.

        StoreError where the query has a fault.
        """
        columns: dict[str, npt.NDArray[Any]] = self.select(sql, lambda found: found.fetchnumpy(), parameters)
        return columns

    def frame(self, sql: str, parameters: Sequence[Any] = ()) -> "pandas.DataFrame":
        """Return the rows of a query as a pandas data frame; StoreError without pandas, or where it has a fault."""
        _check_installed("pandas", "a data frame")
        return self.select(sql, lambda found: found.df(), parameters)

    def arrow(self, sql: str, parameters: Sequence[Any] = ()) -> "pyarrow.Table":
        """Return the rows of a query as an Arrow table; StoreError without pyarrow, or where it has a fault."""
        _check_installed("pyarrow", "an Arrow table")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the rows are copied once more
            return self.select(sql, lambda found: found.to_arrow_table(), parameters)

    def measured_epochs(self, cell_id: str) -> set[int]:
        """Return the epochs of a cell that the store already has."""
        rows = self.read("SELECT epoch FROM checkpoints WHERE cell_id = ?", [cell_id])
        return {row["epoch"] for row in rows}

    def finished_cells(self) -> set[str]:
        """Return the cells of all studies that have all their checkpoints."""
        rows = self.read(
            "SELECT cell_id FROM cells JOIN checkpoints USING (cell_id) "
            "GROUP BY cell_id HAVING count(*) >= any_value(cells.checkpoints)"
        )
        return {row["cell_id"] for row in rows}

    def open_attempts(self) -> list[Row]:
        """Return the attempts that have not said how they ended: attempt_id, outcome, host, pid, started_at, and the
        checkpoints of their cell, measured and expected."""
        return self.read(
            """
            SELECT attempts.attempt_id, outcome, host, pid, started_at, any_value(cells.checkpoints) AS expected,
                count(epoch) AS measured
            FROM attempts JOIN cells USING (cell_id) LEFT JOIN checkpoints USING (cell_id)
            WHERE outcome = 'running' GROUP BY ALL
            """
        )

    def failures(self) -> dict[str, int]:
        """Return how often each cell has failed."""
        rows = self.read("SELECT cell_id, count(*) AS failures FROM attempts WHERE outcome = 'failed' GROUP BY cell_id")
        return {row["cell_id"]: row["failures"] for row in rows}

    def studies(self) -> list[Row]:
        """Return every study, the one registered last first; JSON columns decoded."""
        rows = self.read("SELECT * FROM studies ORDER BY registered_at DESC")
        columns = ("axes", "estimation", "overrides")
        return [{**row, **{key: from_json(row[key], self.path) for key in columns}} for row in rows]

    def study(self, name: str) -> Row:
        """Return a study by its name; StoreError, with the names that there are, where there is none."""
        rows = self.studies()
        found = next((row for row in rows if row["study"] == name), None)
        if found is None:
            known = ", ".join(row["study"] for row in rows) or "none yet"
            raise StoreError(f"{self.path}: no study {name!r}; it has {known}. `diffmem run STUDY.toml` adds one")
        return found

    def progress(self, study: str) -> list[Row]:
        """Return how far each cell of a study is, in its order: curve, axis values, size, checkpoints had and expected,
        best and last ratio, and the latest attempt's outcome, error, host, pid and start."""
        rows = self.read(
            f"""
            SELECT position, cell_id, curve, axis_values, {SIZE} AS size, cells.checkpoints AS expected,
                coalesce(measured, 0) AS measured, best, last, outcome, error, host, pid, started_at
            FROM study_cells JOIN cells USING (cell_id) {PROGRESS}
            WHERE study = ?
            ORDER BY position
            """,
            [study],
        )
        return _decoded(rows, self.path, "axis_values")

    def cells(self, study: str) -> list[Row]:
        """Return the cells of a study in its order: name, curve, axis values, configuration, size, checkpoints had and
        expected, best and last ratio, and the latest attempt's outcome, error, host, pid and times."""
        rows = self.read(
            f"""
            SELECT position, cell_id, curve, name, axis_values, configuration, {SIZE} AS size,
                cells.checkpoints AS expected, coalesce(measured, 0) AS measured, epoch, best, last, outcome, error,
                host, pid, device, versions, git_commit, git_dirty, started_at, ended_at
            FROM study_cells JOIN cells USING (cell_id) {PROGRESS}
            WHERE study = ?
            ORDER BY position
            """,
            [study],
        )
        return _decoded(rows, self.path, "axis_values", "configuration", "versions")

    def curve_points(self, study: str, threshold: float) -> list[Row]:
        """Return every checkpoint of a study: position, curve, size, draw, seed, cell_id, epoch, samples, ratio, loss.

        The ratio is the share of generated images with d1 < threshold * d2, counted from the evidence unless the
        threshold is the one of the stored ratio.
        """
        columns = "position, curve, size, draw, seed, cell_id, epoch, samples, loss"
        if threshold == THRESHOLD:
            return self.read(f"SELECT {columns}, ratio FROM results WHERE study = ? ORDER BY position, epoch", [study])
        return self.read(
            f"""
            SELECT {columns}, counted.ratio
            FROM results JOIN (
                SELECT cell_id, epoch, count(*) FILTER (d1 < ? * d2) / count(*) AS ratio
                FROM evidence WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
                GROUP BY ALL
            ) counted USING (cell_id, epoch)
            WHERE study = ?
            ORDER BY position, epoch
            """,
            [threshold, study, study],
        )

    def sample_counts(self, study: str, threshold: float) -> list[Row]:
        """Return how far each cell's last ratio depends on the number of generated images: position, curve, name, size,
        samples and ratio (of all), images, first (the ratio of the first so many), deviation (the standard deviation
        between disjoint groups of so many, None where there are fewer than ten)."""
        return self.read(
            """
            WITH last AS (
                SELECT position, results.curve, name, results.cell_id, size, max(epoch) AS epoch,
                    max_by(samples, epoch) AS samples
                FROM results JOIN study_cells USING (study, position) WHERE study = ? GROUP BY ALL
            ), counts AS (
                SELECT unnest([10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000]) AS images
            ), groups AS (
                SELECT position, curve, name, size, samples, images, sample // images AS number,
                    count(*) FILTER (d1 < ? * d2) AS memorized, count(*) AS members
                FROM last JOIN evidence USING (cell_id, epoch) JOIN counts ON images <= samples
                GROUP BY ALL
            )
            SELECT position, curve, name, size, samples, images,
                sum(memorized) / samples AS ratio,
                any_value(memorized / images) FILTER (number = 0) AS first,
                CASE WHEN samples >= 10 * images
                    THEN stddev_samp(memorized / images) FILTER (members = images) END AS deviation
            FROM groups GROUP BY position, curve, name, size, samples, images ORDER BY position, images
            """,
            [study, threshold],
        )

    def distance_counts(self, study: str) -> list[Row]:
        """Return how alike the images of each checkpoint of a study are to training images: position, epoch, level
        and images.

        `level` is the smallest k with d1 < k / THRESHOLD_LEVELS * d2, so that the images memorized at a threshold of
        k / THRESHOLD_LEVELS are those of levels up to k; THRESHOLD_LEVELS + 1 where there is none.
        """
        return self.read(
            f"""
            WITH rounded AS (
                SELECT cell_id, epoch, d1, d2,
                    CASE WHEN d2 > 0 THEN floor({THRESHOLD_LEVELS} * d1 / d2) ELSE {THRESHOLD_LEVELS} END AS k
                FROM evidence WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
            ), levels AS (  -- the division may round across a level
                SELECT cell_id, epoch, CAST(least({THRESHOLD_LEVELS} + 1, CASE
                    WHEN d1 < k / {THRESHOLD_LEVELS} * d2 THEN k
                    WHEN d1 < (k + 1) / {THRESHOLD_LEVELS} * d2 THEN k + 1
                    ELSE k + 2 END) AS INTEGER) AS level
                FROM rounded
            )
            SELECT position, epoch, level, count(*) AS images
            FROM levels JOIN study_cells USING (cell_id) WHERE study = ?
            GROUP BY ALL ORDER BY ALL
            """,
            [study, study],
        )

    def copies(self, study: str, threshold: float) -> list[Row]:
        """Return which training images the memorized images of each cell's last checkpoint are nearest to: position,
        nearest (position in the training set), copies, and picture (PNG, None where the store has none), most
        copied first."""
        return self.read(
            """
            WITH counted AS (
                SELECT position, cell_id, nearest, count(*) AS copies
                FROM evidence JOIN study_cells USING (cell_id)
                    JOIN (SELECT cell_id, max(epoch) AS epoch FROM checkpoints GROUP BY cell_id) USING (cell_id, epoch)
                WHERE study = ? AND d1 < ? * d2
                GROUP BY ALL
            ), shown AS (  -- one pair for each image: pictures are read for no others
                SELECT cell_id, evidence.nearest, max(epoch) AS epoch, max_by(sample, epoch) AS sample
                FROM (SELECT cell_id, epoch, sample FROM pairs) JOIN evidence USING (cell_id, epoch, sample)
                WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
                GROUP BY ALL
            )
            SELECT position, counted.nearest, copies, coalesce(copied.picture, pairs.nearest) AS picture
            FROM counted LEFT JOIN copied USING (cell_id, nearest)
                LEFT JOIN shown USING (cell_id, nearest) LEFT JOIN pairs USING (cell_id, epoch, sample)
            ORDER BY position, copies DESC, counted.nearest
            """,
            [study, threshold, study],
        )

    def attempts(self, study: str) -> list[Row]:
        """Return every attempt at the cells of a study, the first one first, with the seconds that its checkpoints
        took: position, and the columns of `attempts`, train_seconds, score_seconds and measured."""
        return self.read(
            """
            SELECT position, attempts.*, coalesce(train_seconds, 0) AS train_seconds,
                coalesce(score_seconds, 0) AS score_seconds, coalesce(measured, 0) AS measured
            FROM study_cells JOIN attempts USING (cell_id) LEFT JOIN (
                SELECT attempt_id, sum(train_seconds) AS train_seconds, sum(score_seconds) AS score_seconds,
                    count(*) AS measured
                FROM checkpoints GROUP BY attempt_id
            ) USING (attempt_id)
            WHERE study = ? ORDER BY position, started_at
            """,
            [study],
        )

    def notes(self, study: str) -> list[Row]:
        """Return what was done to the images of a study: note (a sentence) and cells (how many have it), those of most
        cells first."""
        return self.read(
            """
            SELECT note, count(*) AS cells FROM notes
            WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
            GROUP BY note ORDER BY cells DESC, note
            """,
            [study],
        )

    def cell_notes(self, study: str) -> dict[str, list[str]]:
        """Return the notes of each cell of a study that has any, by cell_id, in the order of `notes`."""
        found: dict[str, list[str]] = defaultdict(list)
        rows = self.read(
            """
            SELECT cell_id, note FROM notes
            WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
            ORDER BY count(*) OVER (PARTITION BY note) DESC, note, cell_id
            """,
            [study],
        )
        for row in rows:
            found[row["cell_id"]].append(row["note"])
        return dict(found)

    def replicated(self, cell_id: str) -> list[Row]:
        """Return the training images that memorized images of a cell's last checkpoint are nearest to, most copied
        first: nearest (position in the training set) and copies."""
        return self.read(
            """
            SELECT nearest, count(*) AS copies FROM evidence
            WHERE cell_id = ? AND epoch = (SELECT max(epoch) FROM checkpoints WHERE cell_id = ?) AND d1 < ? * d2
            GROUP BY nearest ORDER BY copies DESC, nearest
            """,
            [cell_id, cell_id, THRESHOLD],
        )

    def pairs(self, study: str) -> list[Row]:
        """Return generated images above their nearest training images, at each cell's last checkpoint: position,
        cell_id, epoch, sample, generated and nearest (PNG bytes), number (position of the nearest one), d1, d2."""
        return self.read(
            """
            SELECT position, cell_id, epoch, sample, generated, pairs.nearest, evidence.nearest AS number, d1, d2
            FROM study_cells
                JOIN (SELECT cell_id, max(epoch) AS epoch FROM checkpoints GROUP BY cell_id) USING (cell_id)
                JOIN pairs USING (cell_id, epoch) JOIN evidence USING (cell_id, epoch, sample)
            WHERE study = ?
            ORDER BY position, sample
            """,
            [study],
        )


def _check_installed(package: str, what: str) -> None:
    """Raise StoreError unless a package that only some have is installed."""
    if find_spec(package) is None:
        raise StoreError(
            f"{what} needs {package}, which is not installed: `pip install {package}`, or take `Store.columns`"
        )


def _names(found: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of a result."""
    return [column[0] for column in found.description or ()]


def _decoded(rows: list[Row], place: Path, *keys: str) -> list[Row]:
    """Return rows with their JSON columns decoded, a text that occurs again only once."""
    for key in keys:
        known: dict[str | None, Any] = {}
        for row in rows:
            if row[key] not in known:
                known[row[key]] = from_json(row[key], place)
            row[key] = known[row[key]]
    return rows
