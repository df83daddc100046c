"""What is read of the evidence: which generated images are copies, at any threshold of any measure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmem.measures import MEASURES, NEAREST, QUALITY, Measure, is_copy_sql
from diffmem.sql import literal
from diffmem.store.image_rows import (
    CopyCount,
    ImagePair,
    LevelCount,
    Replicated,
    SampleCount,
)
from diffmem.store.records import Records
from diffmem.store.rows import (
    Measurement,
    Null,
    Point,
    Reached,
)

THRESHOLD_LEVELS = 120
"""Steps of the threshold between 0 and the largest that a measure has; the paper's third is one of them."""

LAST = "(SELECT cell_id, max(epoch) AS epoch FROM checkpoints GROUP BY cell_id)"
"""SQL for the last checkpoint of each cell."""


def evidence_of(measure: Measure) -> str:
    """Return SQL for a measure's evidence of each image: cell_id, epoch, sample, nearest, distance and yardstick."""
    if measure is NEAREST:
        return "(SELECT cell_id, epoch, sample, nearest, d1 AS distance, d2 AS yardstick FROM evidence)"
    return f"(FROM measure_evidence WHERE measure = {literal(measure.name)})"


def thresholds() -> str:
    """Return SQL for the table of each measure's own threshold: measure and threshold."""
    rows = ", ".join(f"({literal(each.name)}, {each.threshold!r})" for each in MEASURES.values())
    return f"""
        (
            FROM (VALUES {rows}) AS known (measure, threshold)
            UNION ALL
            SELECT measure, CASE rule WHEN 'similarity' THEN 1 - threshold ELSE threshold END FROM spaces
        ) AS known
        """


AT_ONE_PERCENT = """
    list_sort(list(CASE WHEN yardstick > 0 THEN distance / yardstick ELSE 'inf'::DOUBLE END))[count(*) // 100 + 1]
"""
"""SQL for the largest threshold at which at most a hundredth of some images are called copies."""

TRAINING_SET = "CASE WHEN json_exists(configuration, '$.M') THEN md5(configuration->>'$.P') ELSE cell_id END"
"""SQL for what tells the training set of a cell from others: cells of one P share it."""


class ImageQueries(Records):
    """What the evidence of a store says; every method opens the file to read it, and raises StoreError."""

    def measures_of(self, study: str) -> set[str]:
        """Return the names of the measures that a checkpoint of a study has been scored by."""
        rows = self.read(f"SELECT DISTINCT measure FROM measured WHERE {_of_study()}", [study])
        return {row["measure"] for row in rows}

    def lacking(self, study: str, measure: str) -> int:
        """Return how many checkpoints of a study a measure has not scored."""
        (row,) = self.read(
            f"SELECT count(*) AS lacking FROM checkpoints WHERE {_of_study('$1')} AND (cell_id, epoch) NOT IN "
            "(SELECT (cell_id, epoch) FROM measured WHERE measure = $2 "
            "UNION SELECT (cell_id, epoch) FROM noise_levels WHERE measure = $2 "
            f"UNION SELECT (cell_id, epoch) FROM quality WHERE $2 = {literal(QUALITY)})",
            [study, measure],
        )
        return int(row["lacking"])

    def measurements(self, cell_id: str, epoch: int) -> list[Measurement]:
        """Return what each measure has found at a checkpoint, the paper's first."""
        return self.records(
            Measurement,
            "SELECT epoch, measure, value, low, high, n FROM measured WHERE cell_id = ? AND epoch = ? "
            "ORDER BY measure <> ?, measure",
            [cell_id, epoch, NEAREST.name],
        )

    def distances(self, cell_id: str, epoch: int) -> dict[str, npt.NDArray[Any]]:
        """Return the evidence of a checkpoint in the order of its images: nearest, d1 and d2, each [samples]."""
        sql = "SELECT nearest, d1, d2 FROM evidence WHERE cell_id = ? AND epoch = ? ORDER BY sample"
        rows = self.read(sql, [cell_id, epoch])
        return {key: np.array([row[key] for row in rows]) for key in ("nearest", "d1", "d2")}

    def curve_points(self, study: str, measure: Measure, threshold: float) -> list[Point]:
        """Return every checkpoint of a study that has been scored by a measure, with its ratio at a threshold.

        The ratio is counted from the evidence, unless the threshold is the one of the stored ratio.
        """
        ratios, parameters = _ratios(measure, threshold)
        return self.records(
            Point,
            f"""
            SELECT position, curve, size, draw, seed, cell_id, epoch, step, counted.samples, counted.ratio, results.loss
            FROM results JOIN ({ratios}) AS counted USING (cell_id, epoch) JOIN checkpoints USING (cell_id, epoch)
            WHERE study = ? ORDER BY position, epoch
            """,
            [*parameters, study],
        )

    def reached(self, measure: Measure, threshold: float) -> dict[str, Reached]:
        """Return how high the ratio of every cell has come, by cell_id, its images counted at a threshold."""
        ratios, parameters = _ratios(measure, threshold)
        found = self.records(
            Reached,
            f"""
            SELECT cell_id, max(ratio) AS best, max_by(samples, ratio) AS samples,
                count(*) >= any_value(cells.checkpoints) AS finished
            FROM ({ratios}) JOIN cells USING (cell_id) GROUP BY cell_id
            """,
            parameters,
        )
        return {each.cell_id: each for each in found}

    def nulls(self, study: str, measure: Measure, threshold: float) -> dict[int, Null]:
        """Return how many held-out images a measure calls copies, by the place of a cell in a study; none of a cell
        without any."""
        found = self.records(
            Null,
            f"""
            WITH sets AS (
                SELECT position, {TRAINING_SET} AS training_set FROM study_cells JOIN cells USING (cell_id)
                WHERE study = ?
            ), counted AS (
                SELECT training_set, count(*) FILTER {is_copy_sql()} AS copies, count(*) AS samples,
                    count(*) FILTER (distance = 0) AS trained_on, {AT_ONE_PERCENT} AS at_one_percent
                FROM held_out SEMI JOIN sets USING (training_set) WHERE measure = ? GROUP BY ALL
            )
            SELECT position, copies, samples, trained_on, at_one_percent FROM sets JOIN counted USING (training_set)
            """,
            [study, threshold, measure.name],
        )
        return {each.position: each for each in found}

    def held_out_counts(self, cell_id: str) -> dict[str, int]:
        """Return how many held-out images each measure has compared with the training set of a cell."""
        rows = self.read(
            f"""
            SELECT measure, count(*) AS images FROM held_out
            WHERE training_set = (SELECT {TRAINING_SET} FROM cells WHERE cell_id = ?) GROUP BY measure
            """,
            [cell_id],
        )
        return {row["measure"]: row["images"] for row in rows}

    def sample_counts(self, study: str, measure: Measure, threshold: float) -> list[SampleCount]:
        """Return how far each cell's last ratio depends on the number of generated images."""
        return self.records(
            SampleCount,
            f"""
            WITH last AS (
                SELECT position, study_cells.curve, name, cell_id, any_value(size) AS size, max(epoch) AS epoch,
                FROM results JOIN study_cells USING (study, position, cell_id) WHERE study = ? GROUP BY ALL
            ), counts AS (
                SELECT unnest([10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000]) AS images
            ), own AS (
                SELECT *, count(*) OVER (PARTITION BY position) AS samples
                FROM last JOIN {evidence_of(measure)} USING (cell_id, epoch)
            ), groups AS (
                SELECT position, curve, name, size, samples, images, sample // images AS number,
                    count(*) FILTER {is_copy_sql()} AS copies, count(*) AS members
                FROM own JOIN counts ON images <= samples
                GROUP BY ALL
            )
            SELECT position, curve, name, size, samples, images,
                sum(copies) / samples AS ratio,
                any_value(copies / images) FILTER (number = 0) AS first,
                CASE WHEN samples >= 10 * images
                    THEN stddev_samp(copies / images) FILTER (members = images) END AS deviation
            FROM groups GROUP BY position, curve, name, size, samples, images ORDER BY position, images
            """,
            [study, threshold],
        )

    def distance_counts(self, study: str, measure: Measure) -> list[LevelCount]:
        """Return how alike the images of each checkpoint of a study are to training images.

        A level is the smallest k at which they are copies at the threshold k / THRESHOLD_LEVELS of the measure's
        largest, so that the copies at a threshold are the images of levels up to it; THRESHOLD_LEVELS + 1 where there
        is none.
        """
        source = f"study_cells JOIN {evidence_of(measure)} USING (cell_id) WHERE study = ?"
        return self.records(LevelCount, _levels(source, "epoch", measure), [study])

    def held_out_distance_counts(self, study: str, measure: Measure) -> list[LevelCount]:
        """Return the same of the held-out images of each cell, at epoch 0."""
        source = f"""
            (
                SELECT position, {TRAINING_SET} AS training_set FROM study_cells JOIN cells USING (cell_id)
                WHERE study = ?
            ) JOIN held_out USING (training_set) WHERE measure = ?
            """
        return self.records(LevelCount, _levels(source, "0", measure), [study, measure.name])

    def copies(self, study: str, measure: Measure, threshold: float) -> list[CopyCount]:
        """Return which training images the copies of each cell's last checkpoint are of, most copied first."""
        return self.records(
            CopyCount,
            f"""
            WITH counted AS (
                SELECT position, cell_id, nearest, count(*) AS copies
                FROM {evidence_of(measure)} JOIN study_cells USING (cell_id) JOIN {LAST} USING (cell_id, epoch)
                WHERE study = ? AND {is_copy_sql()}
                GROUP BY ALL
            ), shown AS (  -- one pair for each image: pictures are read for no others
                SELECT cell_id, evidence.nearest, max(epoch) AS epoch, max_by(sample, epoch) AS sample
                FROM (SELECT cell_id, epoch, sample FROM pairs) JOIN evidence USING (cell_id, epoch, sample)
                WHERE {_of_study()}
                GROUP BY ALL
            )
            SELECT position, counted.nearest, copies, coalesce(copied.picture, pairs.nearest) AS picture
            FROM counted LEFT JOIN copied USING (cell_id, nearest)
                LEFT JOIN shown USING (cell_id, nearest) LEFT JOIN pairs USING (cell_id, epoch, sample)
            ORDER BY position, copies DESC, counted.nearest
            """,
            [study, threshold, study],
        )

    def replicated(self, cell_id: str) -> list[Replicated]:
        """Return the training images that memorized images of a cell's last checkpoint are nearest to, most copied
        first."""
        return self.records(
            Replicated,
            f"""
            SELECT nearest, count(*) AS copies FROM {evidence_of(NEAREST)} JOIN {LAST} USING (cell_id, epoch)
            WHERE cell_id = ? AND {is_copy_sql()}
            GROUP BY nearest ORDER BY copies DESC, nearest
            """,
            [cell_id, NEAREST.threshold],
        )

    def pairs(self, study: str, measure: Measure) -> list[ImagePair]:
        """Return generated images with their two nearest training images, at each cell's last checkpoint."""
        return self.records(
            ImagePair,
            f"""
            SELECT study_cells.position, cell_id, epoch, sample, pairs.name, copy_of, generated, pairs.nearest, second,
                found.nearest AS number, evidence.nearest AS pictured, second_nearest AS second_number,
                t.image AS second_image, found.distance, found.yardstick
            FROM study_cells JOIN {LAST} USING (cell_id)
                JOIN pairs USING (cell_id, epoch) JOIN evidence USING (cell_id, epoch, sample)
                JOIN {evidence_of(measure)} AS found USING (cell_id, epoch, sample)
                JOIN (SELECT cell_id, {TRAINING_SET} AS training_set FROM cells) AS own USING (cell_id)
                LEFT JOIN training_images AS t
                    ON t.training_set = own.training_set AND t.position = second_nearest
            WHERE study = ?
            ORDER BY study_cells.position, sample
            """,
            [study],
        )


def _of_study(study: str = "?") -> str:
    return f"cell_id IN (SELECT cell_id FROM study_cells WHERE study = {study})"


def _ratios(measure: Measure, threshold: float) -> tuple[str, Sequence[Any]]:
    """Return SQL for cell_id, epoch, samples and ratio of every checkpoint at a threshold, and its parameters."""
    if threshold != measure.threshold:
        counted = f"count(*) AS samples, count(*) FILTER {is_copy_sql()} / count(*) AS ratio"
        return f"SELECT cell_id, epoch, {counted} FROM {evidence_of(measure)} GROUP BY ALL", [threshold]
    return "SELECT cell_id, epoch, n AS samples, value AS ratio FROM measured WHERE measure = ?", [measure.name]


def _levels(source: str, epoch: str, measure: Measure) -> str:
    """Return SQL that counts the images of a source, which has position, distance and yardstick, by level."""
    step = measure.largest / THRESHOLD_LEVELS
    return f"""
        WITH rounded AS (
            SELECT position, {epoch} AS epoch, distance, yardstick, CASE WHEN yardstick > 0
                THEN floor(distance / yardstick / {step}) ELSE {THRESHOLD_LEVELS} END AS k
            FROM {source}
        ), levels AS (  -- the division may round across a level
            SELECT position, epoch, CAST(least({THRESHOLD_LEVELS} + 1, CASE
                WHEN {is_copy_sql(f"(k * {measure.largest} / {THRESHOLD_LEVELS})")} THEN k
                WHEN {is_copy_sql(f"((k + 1) * {measure.largest} / {THRESHOLD_LEVELS})")} THEN k + 1
                ELSE k + 2 END) AS INTEGER) AS level
            FROM rounded
        )
        SELECT position, epoch, level, count(*) AS images FROM levels GROUP BY ALL ORDER BY ALL
        """
