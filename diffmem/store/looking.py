"""Looking into a store: which cell or study a name means, all about one cell, queries, and what it holds."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from diffmem.cells import RESULTS_VERSION, dotted, epoch_of
from diffmem.errors import NotInStore, StoreError
from diffmem.measures import NEAREST
from diffmem.store.attempts import outcome_of, state_of
from diffmem.store.json_columns import from_json
from diffmem.store.names import listed, nearest
from diffmem.store.queries import PROGRESS
from diffmem.store.rows import (
    CellDescription,
    LatestAttempt,
    MeasuredPoint,
    Measurement,
    Place,
    StoreDescription,
    StoredStudy,
    StudySize,
    Try,
)
from diffmem.store.selecting import NO_LIMITS, Limits
from diffmem.store.standing import Outcome, State
from diffmem.store.store import Store

# --- names ---------------------------------------------------------------------------------------------


def find_study(store: Store, name: str, *, exact: bool = False) -> StoredStudy:
    """Return the study that a name or the beginning of one means.

    `text@profile` also means the one study of that profile that begins with the text. StoreError where there is
    none, or more than one.
    """
    studies = {each.study: each for each in store.studies()}
    stem, at, profile = name.partition("@")
    begun = [] if exact else [study for study in studies if study.startswith(name)]
    if not begun and at and not exact:
        begun = [study for study in studies if study.startswith(stem) and study.partition("@")[2] == profile]
    found = _meant(name, dict.fromkeys(studies, ""), begun, kind="study", place=store)
    if found is None:
        raise store.no_study(name, list(studies))
    return studies[found]


def find_cell(store: Store, name: str) -> str:
    """Return the cell_id that a text is or begins; StoreError where there is none, or more than one."""
    cells = cell_names(store)
    found = _meant(name, cells, [cell for cell in cells if cell.startswith(name)], kind="cell", place=store)
    if found is None:
        advice = "`diffmem status STUDY` lists those of a study"
        raise NotInStore(f"{store.path}: no cell {name!r}{nearest(name, cells)}; {advice}")
    return found


def cell_names(store: Store) -> dict[str, str]:
    """Return every cell_id with the study it was last run for and its axis values there."""
    rows = store.read(
        """
        SELECT cell_id, max_by(study || ': ' || name, registered_at) AS name
        FROM cells LEFT JOIN (FROM study_cells JOIN studies USING (study)) USING (cell_id)
        GROUP BY cell_id ORDER BY cell_id
        """
    )
    return {row["cell_id"]: row["name"] or "in no study" for row in rows}


def _meant(name: str, known: Mapping[str, str], begun: list[str], *, kind: str, place: Store) -> str | None:
    """Return the known name that is meant, given those that it begins; None where there is none."""
    if name in known:
        return name
    if len(begun) > 1:
        candidates = [f"{each} ({known[each]})" if known[each] else each for each in begun]
        advice = f"write more of the {kind} that is meant"
        raise StoreError(f"{place.path}: {name!r} begins {len(begun)} names: {listed(candidates)}; {advice}")
    return begun[0] if begun else None


# --- cells ---------------------------------------------------------------------------------------------


def cell_states(store: Store) -> list[State]:
    """Return how every cell of a store stands."""
    cells = store.records(
        LatestAttempt,
        f"""
        SELECT cells.checkpoints AS expected, coalesce(measured, 0) AS measured, outcome, error, host, pid, started_at
        FROM cells {PROGRESS} ORDER BY cell_id
        """,
        enums={"outcome": Outcome},
    )
    return list(map(state_of, cells))


def describe_cell(store: Store, cell_id: str) -> CellDescription:
    """Return all about a cell: its attempts, the earliest first, and its checkpoints by every measure."""
    with store.snapshot():
        (cell,) = store.read(
            "SELECT cell_id, created_at, configuration, checkpoints AS expected FROM cells WHERE cell_id = ?", [cell_id]
        )
        sql = "SELECT study, curve, name, axis_values FROM study_cells WHERE cell_id = ? ORDER BY study, position"
        studies = store.records(Place, sql, [cell_id], json=("axis_values",))
        checkpoints = store.records(
            MeasuredPoint,
            """
            SELECT epoch, step, samples, memorized, ratio, low, high, loss, train_seconds, score_seconds, measured_at
            FROM checkpoints JOIN measured USING (cell_id, epoch) WHERE cell_id = ? AND measure = ? ORDER BY epoch
            """,
            [cell_id, NEAREST.name],
        )
        attempts = store.records(
            Try,
            """
            SELECT outcome, host, pid, device, started_at, ended_at, epoch(ended_at - started_at) AS seconds, error,
                versions, git_commit, git_dirty
            FROM attempts WHERE cell_id = ? ORDER BY started_at
            """,
            [cell_id],
            json=("versions",),
            enums={"outcome": Outcome},
        )
        sql = "SELECT epoch, measure, value, low, high, n FROM measurements WHERE cell_id = ? ORDER BY measure, epoch"
        others = store.records(Measurement, sql, [cell_id])
        levels, quality = store.levels(cell_id), store.quality(cell_id)
        notes = store.read("SELECT note FROM notes WHERE cell_id = ? ORDER BY note", [cell_id])
    configuration = from_json(cell["configuration"], store.path)
    finished = 0 < cell["expected"] <= len(checkpoints)
    return CellDescription(
        cell_id=cell["cell_id"],
        created_at=cell["created_at"],
        configuration=configuration,
        expected=cell["expected"],
        studies=studies,
        checkpoints=[replace(each, epoch=epoch_of(configuration, int(each.epoch))) for each in checkpoints],
        measurements=[replace(each, epoch=epoch_of(configuration, int(each.epoch))) for each in others],
        levels=levels,
        quality=quality,
        attempts=[replace(each, outcome=outcome_of(each, finished=finished) or each.outcome) for each in attempts],
        notes=[row["note"] for row in notes],
    )


def differing_settings(store: Store, one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two cells (by cell_id) differ, each with both values; None if a cell lacks it."""
    first, second = (dotted(describe_cell(store, cell_id).configuration) for cell_id in (one, other))
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


# --- the store as a whole ------------------------------------------------------------------------------


def describe_store(store: Store) -> StoreDescription:
    """Return what a store holds, with the training states and trained models beside it."""
    with store.snapshot():
        (counts,) = store.read(
            """
            SELECT (SELECT max(version) FROM migrations) AS schema, (SELECT count(*) FROM checkpoints) AS checkpoints,
                (SELECT count(*) FROM evidence) AS evidence,
                (SELECT count(*) FROM cells WHERE results_version < ?) AS older_cells,
                (SELECT coalesce(sum(samples), 0)::BIGINT FROM checkpoints) AS generated
            """,
            [RESULTS_VERSION],
        )
        studies = store.records(
            StudySize,
            """
            SELECT study, title, count(cell_id) AS cells FROM studies LEFT JOIN study_cells USING (study)
            GROUP BY ALL ORDER BY study
            """,
        )
        loose = store.read("SELECT cell_id FROM cells ANTI JOIN study_cells USING (cell_id) ORDER BY cell_id")
    sizes = list(_sizes(path for files in store.state_files().values() for path in files if path.suffix == ".pt"))
    weights = list(_sizes(path for files in store.kept_weights().values() for path in files.values()))
    return StoreDescription(
        path=str(store.path),
        bytes=store.path.stat().st_size,
        schema=counts["schema"],
        checkpoints=counts["checkpoints"],
        evidence=counts["evidence"],
        generated=counts["generated"],
        older_cells=counts["older_cells"],
        training_states=len(sizes),
        training_state_bytes=sum(sizes),
        trained_models=len(weights),
        trained_model_bytes=sum(weights),
        studies=studies,
        in_no_study=[row["cell_id"] for row in loose],
    )


def _sizes(paths: Iterable[Path]) -> Iterator[int]:
    """Yield the bytes of files; a run may remove one in between."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.stat().st_size


BATCH = 10_000
"""Rows of a query that are fetched at once."""


def query(
    store: Store, sql: str, *, limits: Limits = NO_LIMITS, most: int | None = None
) -> tuple[list[str], list[tuple[Any, ...]], int]:
    """Return the column names of one SELECT, its rows, or the first `most` of them, and how many there are.

    StoreError where it is no SELECT, DuckDB refuses it, or it needs more than its limits.
    """

    def taken(found: duckdb.DuckDBPyConnection) -> tuple[list[str], list[tuple[Any, ...]], int]:
        names, count = _distinct([column[0] for column in found.description or ()]), 0
        rows: list[tuple[Any, ...]] = []
        while batch := found.fetchmany(BATCH):
            count += len(batch)
            rows += batch if most is None else batch[: max(0, most - len(rows))]
            limits.check_memory()
        return names, rows, count

    return store.select(sql, taken, limits=limits)


def _distinct(names: list[str]) -> list[str]:
    """Return column names with a number behind those that are there already."""
    seen: list[str] = []
    for name in names:
        new, number = name, 1
        while new in seen:
            new, number = f"{name}_{number}", number + 1
        seen.append(new)
    return seen
