"""What is read of a store: its studies, their cells, and what is behind each ratio."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from json import dumps
from typing import TYPE_CHECKING, Any

import duckdb
import numpy.typing as npt

from diffmem.errors import NotInStore, StoreError
from diffmem.store.copy_queries import CopyQueries
from diffmem.store.database import Row as Row
from diffmem.store.half_queries import HalfQueries
from diffmem.store.names import listed, nearest
from diffmem.store.quality_queries import QualityQueries
from diffmem.store.rows import (
    AlikeCells,
    Attempt,
    CellProgress,
    Note,
    OpenAttempt,
    StoredCell,
    StoredStudy,
)
from diffmem.store.standing import Kind, Outcome

if TYPE_CHECKING:
    import pandas
    import pyarrow

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


def _cells(more: str) -> str:
    """Return SQL for the cells of a study, in its order, with `more` columns."""
    return f"""
        SELECT position, cell_id, curve, name, axis_values, {more} {SIZE} AS size, cells.checkpoints AS expected,
            coalesce(measured, 0) AS measured, outcome, error, host, pid, started_at
        FROM study_cells JOIN cells USING (cell_id) {PROGRESS}
        WHERE study = ? ORDER BY position
        """


class Queries(CopyQueries, QualityQueries, HalfQueries):
    """What a store has, as rows; every method opens the file to read it, and raises StoreError."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a SELECT, each as a dict by column name; StoreError if the query is wrong or writes."""
        return self.select(
            sql,
            lambda found: [dict(zip(_names(found), row, strict=True)) for row in found.fetchall()],
            parameters,
        )

    def columns(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a SELECT as arrays by name; masked arrays if values are missing.

        Raises StoreError if the query is wrong or writes.
        """
        columns: dict[str, npt.NDArray[Any]] = self.select(sql, lambda found: found.fetchnumpy(), parameters)
        return columns

    def frame(self, sql: str, parameters: Sequence[Any] = ()) -> "pandas.DataFrame":
        """Return the rows of a SELECT as a pandas data frame; StoreError without pandas, or if the query is wrong."""
        _check_installed("pandas", "a data frame")
        return self.select(sql, lambda found: found.df(), parameters)

    def arrow(self, sql: str, parameters: Sequence[Any] = ()) -> "pyarrow.Table":
        """Return the rows of a SELECT as an Arrow table; StoreError without pyarrow, or if the query is wrong."""
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

    def open_attempts(self) -> list[OpenAttempt]:
        """Return the attempts that have not said how they ended."""
        return self.records(
            OpenAttempt,
            """
            SELECT attempts.attempt_id, outcome, error, host, pid, started_at, any_value(cells.checkpoints) AS expected,
                count(epoch) AS measured
            FROM attempts JOIN cells USING (cell_id) LEFT JOIN checkpoints USING (cell_id)
            WHERE outcome = 'running' GROUP BY ALL
            """,
            enums={"outcome": Outcome},
        )

    def failures(self) -> dict[str, int]:
        """Return how often each cell has failed."""
        rows = self.read("SELECT cell_id, count(*) AS failures FROM attempts WHERE outcome = 'failed' GROUP BY cell_id")
        return {row["cell_id"]: row["failures"] for row in rows}

    def last_failed(self) -> set[str]:
        """Return the cells whose latest attempt has failed."""
        rows = self.read("SELECT cell_id FROM attempts GROUP BY cell_id HAVING max_by(outcome, started_at) = 'failed'")
        return {row["cell_id"] for row in rows}

    def hosts(self) -> list[str]:
        """Return the machines that anything was measured on."""
        return [row["host"] for row in self.read("SELECT DISTINCT host FROM attempts")]

    def studies(self) -> list[StoredStudy]:
        """Return every study, the latest first."""
        return self.records(
            StoredStudy,
            "SELECT *, (SELECT coalesce(to_json(list(spaces)), '[]') FROM spaces) AS spaces FROM studies "
            "ORDER BY registered_at DESC",
            json=("axes", "estimation", "overrides", "spaces"),
            enums={"kind": Kind},
        )

    def study(self, name: str) -> StoredStudy:
        """Return a study by its name; StoreError with the names that the store has if it is none of them."""
        studies = self.studies()
        found = next((each for each in studies if each.study == name), None)
        if found is None:
            raise self.no_study(name, [each.study for each in studies])
        return found

    def no_study(self, name: str, studies: Sequence[str]) -> NotInStore:
        """Return the error of a study that the store does not have, with the names that there are."""
        advice = f"it has {listed(studies) or 'none yet'}. `diffmem run STUDY` adds one"
        return NotInStore(f"{self.path}: no study {name!r}{nearest(name, studies)}; {advice}")

    def progress(self, study: str) -> list[CellProgress]:
        """Return how far each cell of a study is, in its order."""
        return self.records(CellProgress, _cells(""), [study], json=("axis_values",), enums={"outcome": Outcome})

    def cells(self, study: str) -> list[StoredCell]:
        """Return the cells of a study with their settings, in its order."""
        json = ("axis_values", "configuration")
        return self.records(StoredCell, _cells("configuration,"), [study], json=json, enums={"outcome": Outcome})

    def ratios(self, cell_id: str) -> dict[int, float]:
        """Return the ratio of each checkpoint of a cell, by epoch."""
        rows = self.read("SELECT epoch, ratio FROM checkpoints WHERE cell_id = ? ORDER BY epoch", [cell_id])
        return {row["epoch"]: row["ratio"] for row in rows}

    def checkpoint_counts(self) -> dict[str, int]:
        """Return how many checkpoints each cell has that has any."""
        rows = self.read("SELECT cell_id, count(*) AS measured FROM checkpoints GROUP BY cell_id")
        return {row["cell_id"]: row["measured"] for row in rows}

    def counted(self, cell_id: str, epoch: int) -> tuple[int, int]:
        """Return how many images of a checkpoint are memorized, and how many there are."""
        sql = "SELECT memorized, samples FROM checkpoints WHERE cell_id = ? AND epoch = ?"
        (row,) = self.read(sql, [cell_id, epoch])
        return row["memorized"], row["samples"]

    def measured_sizes(self, low: int, high: int) -> list[int]:
        """Return the training set sizes between two that anything is measured of."""
        rows = self.read(
            f"SELECT DISTINCT {SIZE} AS size FROM cells SEMI JOIN checkpoints USING (cell_id) "
            "WHERE size BETWEEN ? AND ?",
            [low, high],
        )
        return [row["size"] for row in rows]

    def alike_cells(self, study: str, free: Mapping[str, Any]) -> list[AlikeCells]:
        """Return the cells of a study by what they cost and how far they are; `free` are the settings that cost
        nothing, with null for each."""
        return self.records(
            AlikeCells,
            """
            SELECT json_merge_patch(configuration, ?)::VARCHAR AS settings,
                least(coalesce(measured, 0), cells.checkpoints) AS measured, list(cell_id) AS cells,
                sum(training) AS training, sum(scoring) AS scoring
            FROM cells LEFT JOIN (
                SELECT cell_id, count(*) AS measured, sum(train_seconds) AS training, sum(score_seconds) AS scoring
                FROM checkpoints GROUP BY cell_id
            ) USING (cell_id)
            WHERE cell_id IN (SELECT cell_id FROM study_cells WHERE study = ?)
            GROUP BY ALL
            """,
            [dumps(free), study],
            json=("settings",),
        )

    def attempts(self, study: str) -> list[Attempt]:
        """Return every attempt at the cells of a study, the first one first, with the seconds that its checkpoints
        took: position, and the columns of `attempts`, train_seconds, score_seconds and measured."""
        return self.records(
            Attempt,
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
            json=("versions",),
            enums={"outcome": Outcome},
        )

    def notes(self, study: str) -> list[Note]:
        """Return what was done to the images of a study: each `note`, a sentence, and how many `cells` have it.

        The most common notes come first.
        """
        return self.records(
            Note,
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


def _check_installed(package: str, what: str) -> None:
    """Raise StoreError unless a package that only some have is installed."""
    if find_spec(package) is None:
        raise StoreError(
            f"{what} needs {package}, which is not installed: `pip install {package}`, or take `Store.columns`"
        )


def _names(found: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of a result."""
    return [column[0] for column in found.description or ()]
