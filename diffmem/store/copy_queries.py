"""What is read of the evidence by training image: how often each is copied, and what those are like that are."""

from collections.abc import Sequence

from diffmem.measures import Measure, is_copy_sql
from diffmem.sql import literal
from diffmem.store.image_queries import TRAINING_SET, evidence_of
from diffmem.store.image_rows import (
    CopyFrequency,
    DensityBin,
    NearImage,
)
from diffmem.store.level_queries import LevelQueries

BINS = 10
"""Equal parts of a training set, by local density."""
SHOWN = 6
"""Training images of a cell, those copied most, that a gallery shows beside its pairs."""


class CopyQueries(LevelQueries):
    """What a store has of each training image; every method opens the file to read it, and raises StoreError."""

    def has_training_images(self, cell_id: str) -> bool:
        """Return whether it is known what the training images of a cell are like."""
        sql = f"SELECT 1 FROM training_images WHERE training_set = (SELECT {TRAINING_SET} FROM cells WHERE cell_id = ?)"
        return bool(self.read(f"{sql} LIMIT 1", [cell_id]))

    def copy_frequencies(self, study: str, measure: Measure, thresholds: Sequence[float]) -> list[CopyFrequency]:
        """Return how many training images the last checkpoint of each cell copies how often, at each threshold."""
        source = f"study_cells JOIN {_last(measure)} USING (cell_id) JOIN {evidence_of(measure)} USING (cell_id, epoch)"
        return self._frequencies(f"{source} WHERE study = ?", [study], thresholds)

    def held_out_frequencies(self, study: str, measure: Measure, thresholds: Sequence[float]) -> list[CopyFrequency]:
        """Return the same of held-out images in the place of generated ones."""
        source = f"""
            (
                SELECT position, {TRAINING_SET} AS training_set FROM study_cells JOIN cells USING (cell_id)
                WHERE study = ?
            ) JOIN held_out USING (training_set) WHERE measure = ?
            """
        return self._frequencies(source, [study, measure.name], thresholds)

    def _frequencies(self, source: str, parameters: Sequence[str], thresholds: Sequence[float]) -> list[CopyFrequency]:
        return self.records(
            CopyFrequency,
            f"""
            WITH scored AS (SELECT position, nearest, distance, yardstick FROM {source}),
            levels AS (SELECT unnest(?::DOUBLE[]) AS threshold),
            counted AS (
                SELECT position, threshold, nearest, count(*) AS copies
                FROM scored JOIN levels ON {is_copy_sql("threshold")} GROUP BY ALL
            )
            SELECT position, threshold, copies, count(*) AS images FROM counted GROUP BY ALL ORDER BY ALL
            """,
            [*parameters, list(thresholds)],
        )

    def density_bins(self, study: str, measure: Measure, threshold: float) -> list[DensityBin]:
        """Return how often the last checkpoint of each cell copies training images of each tenth of local density."""
        return self.records(
            DensityBin,
            f"""
            WITH last AS (
                SELECT position, {TRAINING_SET} AS training_set, cell_id, epoch
                FROM study_cells JOIN cells USING (cell_id) JOIN {_last(measure)} USING (cell_id) WHERE study = ?
            ), scored AS (SELECT * FROM last JOIN {evidence_of(measure)} USING (cell_id, epoch)),
            counted AS (
                SELECT position, nearest, count(*) AS copies FROM scored WHERE {is_copy_sql()} GROUP BY ALL
            ), known AS (
                SELECT last.position, t.position AS nearest, alike, local_distance,
                    ntile({BINS}) OVER (PARTITION BY last.position ORDER BY local_distance, t.position) AS bin
                FROM last JOIN training_images AS t USING (training_set)
                WHERE last.position IN (SELECT position FROM scored) AND local_distance IS NOT NULL
            )
            SELECT position, bin, median(local_distance) AS local_distance, count(*) AS images,
                count(copies) AS copied, coalesce(sum(copies), 0)::BIGINT AS copies,
                coalesce(sum(copies * copies), 0)::BIGINT AS squares,
                count(*) FILTER (alike > 1) AS grouped, count(copies) FILTER (alike > 1) AS grouped_copied
            FROM known LEFT JOIN counted USING (position, nearest) GROUP BY ALL ORDER BY ALL
            """,
            [study, threshold],
        )

    def near_images(self, study: str, measure: Measure, threshold: float) -> list[NearImage]:
        """Return what was generated near training images that are in a stored pair of the last checkpoint, or that are
        copied most."""
        return self.records(
            NearImage,
            f"""
            WITH last AS (
                SELECT position, {TRAINING_SET} AS training_set, cell_id, epoch
                FROM study_cells JOIN cells USING (cell_id) JOIN {_last(measure)} USING (cell_id) WHERE study = ?
            ), counted AS (
                SELECT position, any_value(training_set) AS training_set, nearest, count(*) AS near,
                    count(*) FILTER {is_copy_sql()} AS copies, bool_or(pairs.sample IS NOT NULL) AS paired
                FROM last JOIN {evidence_of(measure)} AS e USING (cell_id, epoch)
                    LEFT JOIN (SELECT cell_id, epoch, sample FROM pairs) AS pairs USING (cell_id, epoch, sample)
                GROUP BY position, nearest
            ), shown AS (
                FROM counted
                QUALIFY paired OR row_number() OVER (PARTITION BY position ORDER BY copies DESC, nearest) <= {SHOWN}
            )
            SELECT shown.position, nearest, near, copies, image, alike, local_distance
            FROM shown LEFT JOIN training_images AS t
                ON t.training_set = shown.training_set AND t.position = shown.nearest
            ORDER BY ALL
            """,
            [study, threshold],
        )


def _last(measure: Measure) -> str:
    """Return SQL for the last checkpoint of each cell that a measure has scored."""
    scored = f"SELECT cell_id, max(epoch) AS epoch FROM measured WHERE measure = {literal(measure.name)}"
    return f"({scored} GROUP BY cell_id)"
