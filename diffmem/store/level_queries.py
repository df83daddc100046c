"""What is read of the measures of a denoiser: values at each noise level of a checkpoint."""

from diffmem.store.image_queries import ImageQueries
from diffmem.store.rows import StoredLevel, StudyLevel

COLUMNS = "epoch, measure, quantity, images, sigma, value, low, high, n"
ORDER = "epoch, measure, quantity, images DESC, sigma DESC"
"""Training images before held-out ones, and the highest noise first."""


class LevelQueries(ImageQueries):
    """What a store has of each noise level; every method opens the file to read it, and raises StoreError."""

    def levels(self, cell_id: str, epoch: int | None = None) -> list[StoredLevel]:
        """Return what measures of a denoiser have found of a cell, at all its checkpoints or at one."""
        return self.records(
            StoredLevel,
            f"SELECT {COLUMNS} FROM noise_levels WHERE cell_id = ? AND epoch = coalesce(?, epoch) ORDER BY {ORDER}",
            [cell_id, epoch],
        )

    def study_levels(self, study: str) -> list[StudyLevel]:
        """Return what measures of a denoiser have found of each place of a study."""
        return self.records(
            StudyLevel,
            f"""
            SELECT position, curve, name, (configuration->>'$.P.size')::BIGINT AS size, cell_id, {COLUMNS}
            FROM study_cells JOIN cells USING (cell_id) JOIN noise_levels USING (cell_id)
            WHERE study = ? ORDER BY position, {ORDER}
            """,
            [study],
        )
