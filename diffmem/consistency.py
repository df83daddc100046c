"""Whether a store agrees with itself: every ratio with its evidence, every row with those it belongs to."""

from diffmem.config import THRESHOLD
from diffmem.store import Store

COUNTED = """
    SELECT cell_id, epoch, count(*) AS rows, count(DISTINCT sample) AS numbers,
        count(*) FILTER (d1 < ? * d2) AS memorized
    FROM evidence GROUP BY cell_id, epoch
"""

FAULTS = {
    f"""
    SELECT cell_id, epoch, samples, coalesce(counted.rows, 0) AS rows
    FROM checkpoints LEFT JOIN ({COUNTED}) counted USING (cell_id, epoch) WHERE samples <> coalesce(counted.rows, 0)
    """: "{cell_id} at epoch {epoch}: {samples} images generated, but {rows} rows of evidence",
    f"""
    SELECT cell_id, epoch, counted.rows - numbers AS twice
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch) WHERE counted.rows <> numbers
    """: "{cell_id} at epoch {epoch}: {twice} rows of evidence for an image that has one already",
    f"""
    SELECT cell_id, epoch, checkpoints.memorized AS stored, counted.memorized AS counted
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch)
    WHERE checkpoints.memorized <> counted.memorized
    """: "{cell_id} at epoch {epoch}: {stored} images memorized, but {counted} by the evidence",
    f"""
    SELECT cell_id, epoch, ratio, counted.memorized / counted.rows AS counted
    FROM checkpoints JOIN ({COUNTED}) counted USING (cell_id, epoch)
    WHERE NOT abs(ratio - counted.memorized / counted.rows) < 1e-12
    """: "{cell_id} at epoch {epoch}: ratio {ratio}, but {counted} by the evidence",
    "SELECT DISTINCT cell_id, epoch FROM evidence ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at epoch {epoch}: evidence without its checkpoint"
    ),
    "SELECT DISTINCT cell_id, epoch FROM pairs ANTI JOIN checkpoints USING (cell_id, epoch)": (
        "{cell_id} at epoch {epoch}: image pairs without their checkpoint"
    ),
    "SELECT DISTINCT cell_id FROM copied ANTI JOIN checkpoints USING (cell_id)": (
        "{cell_id}: pictures of copied training images without a checkpoint"
    ),
    "SELECT cell_id, epoch FROM checkpoints ANTI JOIN cells USING (cell_id)": (
        "{cell_id} at epoch {epoch}: a checkpoint of a cell that is not there"
    ),
    "SELECT DISTINCT cell_id FROM attempts ANTI JOIN cells USING (cell_id)": (
        "{cell_id}: an attempt at a cell that is not there"
    ),
    "SELECT study, cell_id FROM study_cells ANTI JOIN cells USING (cell_id)": (
        "{study}: it lists the cell {cell_id}, which is not there"
    ),
    "SELECT DISTINCT study FROM study_cells ANTI JOIN studies USING (study)": (
        "{study}: its cells are listed, but the study is not there"
    ),
}
"""Queries that find nothing in a good store, and what to say of each row that they find."""


def faults(store: Store) -> list[str]:
    """Return one sentence for each thing in which a store disagrees with itself; an empty list if it is in order."""
    with store.snapshot():
        return [
            sentence.format(**row)
            for sql, sentence in FAULTS.items()
            for row in store.read(f"{sql} ORDER BY ALL", [THRESHOLD] * sql.count("?"))
        ]
