"""What is read of two halves: how alike images of two models are that come from the same latent."""

from dataclasses import dataclass

from diffmem.measures import CENTRED_PIXELS
from diffmem.store.level_queries import LevelQueries


@dataclass(frozen=True)
class StudyHalves:
    """What was found of two cells of a study that differ in P.half alone, in the order of the generated images."""

    position: int  # of the cell of half a
    curve: str
    size: int  # N, training images of each half
    draw: str
    seed: int
    cell_a: str
    cell_b: str
    epoch: int
    space: str
    similarity: list[float]
    mse: list[float]
    mismatched: list[float]  # of those images that have another one of their label
    mismatched_mse: list[float]
    nearest_a: list[float]
    nearest_b: list[float]
    held_out_a: list[float]  # of as many held-out images as there are
    held_out_b: list[float]


@dataclass(frozen=True)
class HalfImages:
    """Images that the models of two halves generated from one latent, as PNG."""

    position: int
    cell_a: str
    cell_b: str
    sample: int
    first: bytes  # of half a
    second: bytes
    similarity: float


PLACED = """
    SELECT a.position, a.curve, halves.* FROM halves
        JOIN study_cells AS a ON a.cell_id = cell_a
        JOIN study_cells AS b ON b.cell_id = cell_b AND b.study = a.study AND b.curve = a.curve
    WHERE a.study = ?
"""
"""SQL for the pairs of a study, with the place of half a in it."""

LISTS = ", ".join(
    f"coalesce(list({column} ORDER BY sample) FILTER ({column} IS NOT NULL), []) AS {column}"
    for column in (
        *("similarity", "mse", "mismatched", "mismatched_mse"),
        *("nearest_a", "nearest_b", "held_out_a", "held_out_b"),
    )
)


class HalfQueries(LevelQueries):
    """What a store has of two halves; every method opens the file to read it, and raises StoreError."""

    def study_halves(self, study: str) -> list[StudyHalves]:
        """Return what was found of each two cells of a study that differ in P.half alone, in its order."""
        return self.records(
            StudyHalves,
            f"""
            SELECT position, placed.curve, (configuration->>'$.P.size')::BIGINT AS size,
                configuration->>'$.P.draw' AS draw, (configuration->>'$.T.seed')::BIGINT AS seed,
                cell_a, cell_b, epoch, space, {LISTS}
            FROM ({PLACED}) AS placed JOIN cells ON cells.cell_id = cell_a
            GROUP BY ALL ORDER BY position, epoch, space
            """,
            [study],
        )

    def half_images(self, study: str) -> list[HalfImages]:
        """Return the pictures that the store has of both images of a latent, at each pair's last checkpoint, with
        their similarity in centred pixels."""
        return self.records(
            HalfImages,
            f"""
            SELECT position, cell_a, cell_b, placed.sample, one.generated AS first, other.generated AS second,
                similarity
            FROM ({PLACED} AND space = ? QUALIFY epoch = max(epoch) OVER (PARTITION BY cell_a, cell_b)) AS placed
                JOIN pairs AS one ON one.cell_id = cell_a AND one.epoch = placed.epoch AND one.sample = placed.sample
                JOIN pairs AS other
                    ON other.cell_id = cell_b AND other.epoch = placed.epoch AND other.sample = placed.sample
            ORDER BY position, placed.sample
            """,
            [study, CENTRED_PIXELS.name],
        )

    def half_pairs(self, cell_a: str, cell_b: str, epoch: int, space: str) -> int:
        """Return how many pairs of images the store has of two cells at a checkpoint, compared in a space."""
        (row,) = self.read(
            "SELECT count(*) AS pairs FROM halves WHERE cell_a = ? AND cell_b = ? AND epoch = ? AND space = ?",
            [cell_a, cell_b, epoch, space],
        )
        return int(row["pairs"])

    def pictures(self, cell_id: str, epoch: int) -> list[bytes]:
        """Return the first generated images of a checkpoint that the store has pictures of, as PNG, in their order."""
        sql = "SELECT generated FROM pairs WHERE cell_id = ? AND epoch = ? ORDER BY sample"
        rows = self.read(sql, [cell_id, epoch])
        return [row["generated"] for row in rows]
