"""How what a measure found goes into the tables."""

from collections.abc import Iterable, Sequence

import duckdb
import numpy as np
import numpy.typing as npt

from diffmem.measures import NEAREST, LevelValue, MeasureEvidence, Pictured, wilson


def insert_levels(
    connection: duckdb.DuckDBPyConnection, cell_id: str, epoch: int, measure: str, values: Sequence[LevelValue]
) -> None:
    """Add what a measure of a denoiser found at each noise level of a checkpoint."""
    names = {key: texts(getattr(each, key) for each in values) for key in ("quantity", "images")}
    numbers = {key: np.array([getattr(each, key) for each in values]) for key in ("sigma", "value", "low", "high", "n")}
    connection.register("given_levels", {**names, **numbers})
    connection.execute(
        "INSERT INTO noise_levels SELECT ?, ?, ?, quantity, images, sigma, value, low, high, n FROM given_levels",
        [cell_id, epoch, measure],
    )


def forget_other_held_out(connection: duckdb.DuckDBPyConnection, training_set: str, distances: MeasureEvidence) -> int:
    """Remove what all measures say of held-out images against a training set, unless it is of these images, which have
    these distances by the paper's measure; return how many other images there were."""
    had = connection.execute(
        "SELECT distance, yardstick FROM held_out WHERE training_set = ? AND measure = ? ORDER BY sample",
        [training_set, NEAREST.name],
    ).fetchnumpy()
    if len(had["distance"]) == len(distances.nearest) and all(
        np.allclose(had[name], getattr(distances, name), rtol=1e-9, atol=0)  # devices round square roots differently
        for name in ("distance", "yardstick")
    ):
        return 0
    connection.execute("DELETE FROM held_out WHERE training_set = ?", [training_set])
    return len(had["distance"])


def insert_held_out(
    connection: duckdb.DuckDBPyConnection, training_set: str, measure: str, evidence: MeasureEvidence
) -> None:
    """Add what a measure says of held-out images against a training set, unless as many are there."""
    same, images = "training_set = ? AND measure = ?", len(evidence.nearest)
    ((had,),) = connection.execute(f"SELECT count(*) FROM held_out WHERE {same}", [training_set, measure]).fetchall()
    if had >= images:
        return
    rows = {
        "sample": np.arange(images, dtype=np.int32),
        "nearest": evidence.nearest.astype(np.int32),
        "distance": evidence.distance,
        "yardstick": evidence.yardstick,
    }
    connection.register("given_held_out", rows)
    connection.execute(f"DELETE FROM held_out WHERE {same}", [training_set, measure])
    connection.execute("INSERT INTO held_out SELECT ?, ?, * FROM given_held_out", [training_set, measure])


def insert_measure(
    connection: duckdb.DuckDBPyConnection, cell_id: str, epoch: int, measure: str, evidence: MeasureEvidence
) -> None:
    """Add what a measure says of the generated images of a checkpoint."""
    n = len(evidence.nearest)
    ratio = evidence.copies / n
    connection.execute(
        "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?)",
        [cell_id, epoch, measure, ratio, *wilson(ratio, n).tolist(), n],
    )
    arrays = {"distance": evidence.distance, "yardstick": evidence.yardstick}
    numbers = {"sample": np.arange(n, dtype=np.int32), "nearest": evidence.nearest.astype(np.int32)}
    connection.register("given_measure_evidence", {**numbers, **arrays})
    connection.execute(
        "INSERT INTO measure_evidence SELECT ?, ?, ?, sample, nearest, distance, yardstick FROM given_measure_evidence",
        [cell_id, epoch, measure],
    )


def complete_pairs(connection: duckdb.DuckDBPyConnection, cell_id: str, epoch: int, pairs: Sequence[Pictured]) -> None:
    """Add to the pairs of a checkpoint what an older diffmem did not keep, or an earlier score did not look for."""
    lack = connection.execute(
        "SELECT sample FROM pairs WHERE cell_id = ? AND epoch = ? AND (second IS NULL OR copy_of IS NULL)",
        [cell_id, epoch],
    ).fetchall()
    for (sample,) in lack:
        if sample < len(pairs):
            _, _, *more = pairs[sample]
            connection.execute(
                "UPDATE pairs SET second = ?, second_nearest = ?, name = ?, copy_of = ? "
                "WHERE (cell_id, epoch, sample) = (?, ?, ?)",
                [*more, cell_id, epoch, sample],
            )


def texts(values: Iterable[str]) -> npt.NDArray[np.object_]:
    """Return texts as an array that DuckDB scans as a column."""
    return np.array(list(values), dtype=object)
