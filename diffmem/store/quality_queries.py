"""The quality of the images of checkpoints: how it goes into the store, and what is read of it."""

from collections.abc import Sequence

import duckdb

from diffmem.measures import QualityValue
from diffmem.store.level_queries import LevelQueries
from diffmem.store.quality_rows import StoredQuality, StudyQuality

COLUMNS = "epoch, space, quantity, against, value, low, high, n, real, dimensions, null_value AS null, null_n"
ORDER = "epoch, space, against DESC, quantity"
"""Training images before held-out ones."""


class QualityQueries(LevelQueries):
    """What a store has of the quality of images; every method opens the file to read it, and raises StoreError."""

    def quality(self, cell_id: str, epoch: int | None = None) -> list[StoredQuality]:
        """Return the quality of the images of a cell, at all its checkpoints or at one."""
        return self.records(
            StoredQuality,
            f"SELECT {COLUMNS} FROM quality WHERE cell_id = ? AND epoch = coalesce(?, epoch) ORDER BY {ORDER}",
            [cell_id, epoch],
        )

    def study_quality(self, study: str) -> list[StudyQuality]:
        """Return the quality of the images of each place of a study."""
        return self.records(
            StudyQuality,
            f"""
            SELECT position, curve, name, (configuration->>'$.P.size')::BIGINT AS size, cell_id, step, ratio, {COLUMNS}
            FROM study_cells JOIN cells USING (cell_id) JOIN quality USING (cell_id)
                JOIN checkpoints USING (cell_id, epoch)
            WHERE study = ? ORDER BY position, {ORDER}
            """,
            [study],
        )


def insert_quality(
    connection: duckdb.DuckDBPyConnection,
    cell_id: str,
    epoch: int,
    values: Sequence[QualityValue],
    *,
    anew: bool = False,
) -> bool:
    """Add the quality of the images of a checkpoint; False, with nothing done, if it has that in this space already.

    If it is measured `anew`, as beside other held-out images, it takes the place of what was there.
    """
    if not values:
        return False
    spaces = {each.space for each in values}
    for space in sorted(spaces) if anew else ():
        connection.execute("DELETE FROM quality WHERE cell_id = ? AND epoch = ? AND space = ?", [cell_id, epoch, space])
    rows = connection.execute("SELECT DISTINCT space FROM quality WHERE cell_id = ? AND epoch = ?", [cell_id, epoch])
    had = {space for (space,) in rows.fetchall()}
    new = [each for each in values if each.space not in had]
    if new:
        connection.executemany(
            "INSERT INTO quality VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(cell_id, epoch, each.space, each.quantity, each.against),
                    *(each.value, each.low, each.high, each.n, each.real, each.dimensions, each.null, each.null_n),
                )
                for each in new
            ],
        )
    return bool(spaces - had)
