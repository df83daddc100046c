"""The store: every cell, attempt, checkpoint and the evidence behind each ratio, in one DuckDB file."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from types import MappingProxyType

import duckdb
import numpy as np

from diffmem.cells import RESULTS_VERSION
from diffmem.errors import StoreError
from diffmem.measures import (
    NEAREST,
    Evidence,
    HalfPairs,
    LevelValue,
    MeasureEvidence,
    QualityValue,
    SpaceIdentity,
)
from diffmem.notebook import html_table
from diffmem.store.database import utc_now
from diffmem.store.given import Checkpoint, Listed, Provenance, Registrable, TrainingImages, new_attempt_id
from diffmem.store.image_queries import TRAINING_SET
from diffmem.store.inserting import (
    complete_pairs,
    forget_other_held_out,
    insert_held_out,
    insert_levels,
    insert_measure,
    texts,
)
from diffmem.store.monitored import part_earlier_runs
from diffmem.store.naming import another_space
from diffmem.store.quality_queries import insert_quality
from diffmem.store.queries import Queries
from diffmem.store.standing import Kind, Outcome
from diffmem.text import counted, readable

LOST = "its process died"
"""Why an attempt is lost that never said how it ended."""


REPLACE_NOTES = [
    """
    DELETE FROM notes WHERE cell_id IN (SELECT cell_id FROM noted_cells)
        AND NOT EXISTS (FROM given_notes AS g WHERE g.cell_id = notes.cell_id AND g.note = notes.note)
    """,
    """
    INSERT INTO notes
    SELECT DISTINCT cell_id, note FROM given_notes ANTI JOIN notes USING (cell_id, note) ORDER BY ALL
    """,
]
"""How given notes replace those of the cells that they are given for; those that stay are not written again, as that
would take most of the time."""


class Store(Queries):
    """All results, in the DuckDB file at `path`; the first run creates it.

    Each method opens the file and closes it again. If another program holds it, a method waits `patience` seconds (ten
    by default), and calls `on_wait` at each look from the third second on. Without `check`, values that diffmem never
    writes are no reason to refuse the file. A store can be used from several threads. Every method raises StoreError
    if the file is missing, damaged or locked.
    """

    def _repr_html_(self) -> str:
        """Return what a notebook shows: its studies, and how far their cells are."""
        from diffmem.store.attempts import state_of  # which asks stores

        rows: list[dict[str, object]] = []
        for study in self.studies() if self.exists() else []:
            cells = self.progress(study.study)
            states = Counter(state_of(cell) for cell in cells).most_common()
            state = ", ".join(f"{count} {state}" for state, count in states)
            measured = sum(cell.measured for cell in cells)
            rows.append({"study": study.study, "cells": state, "checkpoints": measured, "title": study.title})
        return html_table(f"{self.path}: {counted(len(rows), 'study')}", rows)

    @property
    def states(self) -> Path:
        """Return the folder of training states."""
        return self.path.parent / "states"

    @property
    def weights(self) -> Path:
        """Return the folder of trained models that are kept."""
        return self.path.parent / "weights"

    def weights_path(self, cell_id: str, epoch: int) -> Path:
        """Return where the averaged weights of a checkpoint of this store are kept; stores may share the folder."""
        return self.weights / f"{self.path.stem}.{cell_id}.{epoch}.safetensors"

    def kept_weights(self) -> dict[str, dict[int, Path]]:
        """Return the files of averaged weights that this store's cells have, by cell_id and epoch."""
        name = re.compile(rf"{re.escape(self.path.stem)}\.([0-9a-f]{{16}})\.(\d+)\.safetensors")
        found: dict[str, dict[int, Path]] = defaultdict(dict)
        for path in sorted(self.weights.glob("*")):
            if known := name.fullmatch(path.name):
                found[known[1]][int(known[2])] = path
        return found

    def state_files(self) -> dict[str, list[Path]]:
        """Return the files of training states that this store's cells have, by cell_id; other stores may share the
        folder, and the name of one may begin another's."""
        name = re.compile(rf"{re.escape(self.path.stem)}\.([0-9a-f]{{16}})\.(pt|lock|\d+\.tmp)")
        found: dict[str, list[Path]] = defaultdict(list)
        for path in self.states.glob("*"):
            if known := name.fullmatch(path.name):
                found[known[1]].append(path)
        return found

    def state_path(self, cell_id: str) -> Path:
        """Return where the training state of a cell of this store is kept; other stores may share the folder."""
        return self.states / f"{self.path.stem}.{cell_id}.pt"

    def register(
        self,
        study: Registrable,
        cells: Sequence[Listed],
        *,
        kind: Kind = Kind.TRAINED,
        folder: str | None = None,
        keep: bool = False,
        notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Record a study, whose path begins in `folder` if it is relative, and its cells.

        They replace what it listed before, or with `keep` come after it where they are not in it. `notes` say what was
        done to the images of a cell, a sentence each, by cell_id: they replace those that the store has of these
        cells, and the other cells keep theirs.
        """
        now = utc_now()
        written = [json.dumps(each) for each in (study.axes, dict(study.estimated), study.overrides)]
        with self.writing(create=True) as connection:
            _give_cells(connection, cells)
            connection.execute(
                f"""
                INSERT OR REPLACE INTO studies (study, title, figure, path, folder, kind, axes, estimation, overrides,
                    registered_at)
                SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, {_later("registered_at", "studies")}
                """,
                [study.name, study.title, study.figure, study.path, folder, str(kind), *written, now],
            )
            if not keep:
                connection.execute("DELETE FROM study_cells WHERE study = ?", [study.name])
            connection.execute(
                """
                INSERT INTO cells SELECT cell_id, configuration, expected, ?, ? FROM given_cells
                ON CONFLICT (cell_id) DO UPDATE SET configuration = excluded.configuration
                    WHERE cells.configuration->>'$.P.channels' IS NULL -- an older diffmem did not keep them
                """,
                [now, RESULTS_VERSION],
            )
            connection.execute(
                """
                WITH listed AS (FROM study_cells WHERE study = ?)
                INSERT INTO study_cells
                SELECT ?, position + (SELECT coalesce(max(position) + 1, 0) FROM listed),
                    cell_id, curve, name, axis_values
                FROM given_members WHERE cell_id NOT IN (SELECT cell_id FROM listed)
                """,
                [study.name, study.name],
            )
            if kind is Kind.MONITOR:
                part_earlier_runs(connection)
            if notes:
                _replace_notes(connection, notes)

    def start_attempt(self, cell_id: str, where: Provenance, *, attempt_id: str = "") -> str:
        """Record that work on a cell starts, and return the attempt's id; an older open attempt counts as lost.

        An `attempt_id` that is given, and is there already, is left as it is.
        """
        attempt_id = attempt_id or new_attempt_id()
        with self.writing() as connection:
            connection.execute(
                "UPDATE attempts SET outcome = 'lost', error = ? "
                "WHERE cell_id = ? AND outcome = 'running' AND attempt_id <> ?",
                [LOST, cell_id, attempt_id],
            )
            connection.execute(
                f"""
                INSERT OR IGNORE INTO attempts SELECT ?, ?, 'running', NULL,
                    {_later("started_at", "attempts WHERE cell_id = ?")}, NULL, ?, ?, ?, ?, ?, ?
                """,
                [
                    attempt_id,
                    cell_id,
                    utc_now(),
                    cell_id,
                    where.host,
                    where.pid,
                    where.device,
                    json.dumps(where.versions),
                    where.git_commit,
                    where.git_dirty,
                ],
            )
        return attempt_id

    def end_attempt(self, attempt_id: str, outcome: Outcome, error: str | None = None) -> None:
        """Record how an attempt ended: finished, crossed, interrupted, failed or lost."""
        with self.writing() as connection:
            _end(connection, attempt_id, outcome, error)

    def close_attempts(self, outcomes: Mapping[str, Outcome]) -> None:
        """Record how attempts (by attempt_id) ended, finished or lost; those that have said so meanwhile stay."""
        with self.writing() as connection:
            for attempt_id, outcome in outcomes.items():
                connection.execute(
                    """
                    UPDATE attempts SET outcome = $outcome, error = CASE $outcome WHEN 'lost' THEN $lost END,
                        ended_at = CASE $outcome WHEN 'finished' THEN (
                            SELECT max(measured_at) FROM checkpoints WHERE checkpoints.cell_id = attempts.cell_id
                        ) END
                    WHERE attempt_id = $attempt_id AND outcome = 'running'
                    """,
                    {"outcome": str(outcome), "lost": LOST, "attempt_id": attempt_id},
                )

    def append(self, checkpoint: Checkpoint, *, outcome: Outcome | None = None) -> bool:
        """Append a checkpoint and its evidence in one transaction; False if the store has that point already.

        With an `outcome`, the same transaction records that the attempt ended with it.
        """
        c = checkpoint
        with self.writing() as connection:
            if outcome:
                _end(connection, c.attempt_id, outcome, None)
            known = connection.execute(
                "SELECT 1 FROM checkpoints WHERE cell_id = ? AND epoch = ?", [c.cell_id, c.epoch]
            ).fetchone()
            if known:
                complete_pairs(connection, c.cell_id, c.epoch, c.pairs)
                return False
            spent = [c.train_seconds, c.score_seconds]
            connection.execute(
                "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [c.cell_id, c.epoch, c.step, c.samples, c.memorized, c.ratio, c.loss, *spent, c.attempt_id, utc_now()],
            )
            arrays = {"nearest": c.nearest.astype(np.int32), "d1": c.d1, "d2": c.d2}
            connection.register("given_evidence", {"sample": np.arange(c.samples, dtype=np.int32), **arrays})
            connection.execute(
                "INSERT INTO evidence SELECT ?, ?, sample, nearest, d1, d2 FROM given_evidence", [c.cell_id, c.epoch]
            )
            if c.pairs:
                connection.executemany(
                    "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(c.cell_id, c.epoch, i, *pair) for i, pair in enumerate(c.pairs)],
                )
            if c.copied:
                connection.executemany(
                    "INSERT OR IGNORE INTO copied VALUES (?, ?, ?)", [(c.cell_id, *image) for image in c.copied]
                )
            for measure, evidence in c.others.items():
                insert_measure(connection, c.cell_id, c.epoch, measure, evidence)
            for measure, values in c.levels.items():
                insert_levels(connection, c.cell_id, c.epoch, measure, values)
            insert_quality(connection, c.cell_id, c.epoch, c.quality)
        return True

    def add_held_out(self, cell_id: str, evidence: Evidence, *, newest: bool = False) -> int:
        """Keep the evidence of images that were not trained on, for all trained cells of the same training set, in the
        place of what a measure had of fewer; with `newest`, in the place of what was there of other images: return how
        many of those there were."""
        distances = MeasureEvidence(evidence.nearest, evidence.d1, evidence.d2, evidence.memorized)
        with self.writing() as connection:
            ((name,),) = connection.execute(f"SELECT {TRAINING_SET} FROM cells WHERE cell_id = ?", [cell_id]).fetchall()
            others = forget_other_held_out(connection, name, distances) if newest else 0
            for measure, found in {NEAREST.name: distances, **evidence.others}.items():
                insert_held_out(connection, name, measure, found)
        return others

    def add_training_images(self, cell_id: str, images: TrainingImages) -> None:
        """Keep what training images of a cell are like, for all cells of the same training set, but for those that are
        there already."""
        rows = {
            "position": images.positions.astype(np.int32),
            "image": texts(images.names),
            "alike": images.alike.astype(np.int32),
            "local_distance": images.local_distance,
        }
        with self.writing() as connection:
            connection.register("given_images", rows)
            connection.execute(
                f"""
                WITH own AS (SELECT {TRAINING_SET} AS training_set FROM cells WHERE cell_id = ?)
                INSERT INTO training_images
                SELECT training_set, given_images.* REPLACE (
                    CASE WHEN isnan(local_distance) THEN NULL ELSE local_distance END AS local_distance
                ) FROM own CROSS JOIN given_images ANTI JOIN training_images USING (training_set, position)
                """,
                [cell_id],
            )

    def add_spaces(self, spaces: Sequence[SpaceIdentity]) -> None:
        """Record what the names of feature spaces stand for; StoreError where the store has another one of a name."""
        with self.writing(create=True) as connection:
            known = {row[0]: SpaceIdentity(*row) for row in connection.execute("FROM spaces").fetchall()}
            for space in spaces:
                if had := known.get(space.measure):
                    if fault := another_space(had, space):
                        raise StoreError(f"{self.path}: {fault}")
                else:
                    connection.execute("INSERT INTO spaces VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(astuple(space)))

    def add_note(self, cell_id: str, note: str) -> None:
        """Add a sentence to what is to be said of a cell."""
        with self.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO notes VALUES (?, ?)", [cell_id, note])

    def add_measure(self, cell_id: str, epoch: int, measure: str, evidence: MeasureEvidence) -> bool:
        """Add what another measure has found of a checkpoint that is there; False if the store has that already."""
        with self.writing() as connection:
            known = connection.execute(
                "SELECT 1 FROM measurements WHERE cell_id = ? AND epoch = ? AND measure = ?", [cell_id, epoch, measure]
            ).fetchone()
            if not known:
                insert_measure(connection, cell_id, epoch, measure, evidence)
        return not known

    def add_levels(self, cell_id: str, epoch: int, measure: str, values: Sequence[LevelValue]) -> bool:
        """Add what a measure of a denoiser has found of a checkpoint that is there; False if the store has that
        already."""
        with self.writing() as connection:
            known = connection.execute(
                "SELECT 1 FROM noise_levels WHERE cell_id = ? AND epoch = ? AND measure = ?", [cell_id, epoch, measure]
            ).fetchone()
            if not known:
                insert_levels(connection, cell_id, epoch, measure, values)
        return not known

    def add_quality(self, cell_id: str, epoch: int, values: Sequence[QualityValue], *, anew: bool = False) -> bool:
        """Add the quality of the images of a checkpoint that is there; False if the store has that already, and it is
        not measured `anew`."""
        with self.writing() as connection:
            return insert_quality(connection, cell_id, epoch, values, anew=anew)

    def add_halves(self, cell_a: str, cell_b: str, epoch: int, space: str, found: HalfPairs) -> None:
        """Keep what was found of the models of two halves at a checkpoint, in the place of what was there of them."""
        same, key = "cell_a = ? AND cell_b = ? AND epoch = ? AND space = ?", [cell_a, cell_b, epoch, space]
        names = [field.name for field in fields(found)]
        columns = {name: getattr(found, name) for name in names}
        with self.writing() as connection:
            connection.register("given_halves", {"sample": np.arange(len(found.mse), dtype=np.int32), **columns})
            connection.execute(f"DELETE FROM halves WHERE {same}", key)
            values = ", ".join(f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END" for name in names)
            connection.execute(f"INSERT INTO halves SELECT ?, ?, ?, ?, sample, {values} FROM given_halves", key)


def _give_cells(connection: duckdb.DuckDBPyConnection, listed: Sequence[Listed]) -> None:
    """Let SQL see cells as `given_cells`, each once, and their places in a study as `given_members`."""
    distinct = {place.cell.cell_id: place.cell for place in listed}.values()
    rows = {
        "cell_id": texts(cell.cell_id for cell in distinct),
        "configuration": texts(json.dumps(cell.configuration) for cell in distinct),
        "expected": np.array([cell.checkpoint_count for cell in distinct], dtype=np.int32),
    }
    members = {
        "position": np.arange(len(listed), dtype=np.int32),
        "cell_id": texts(place.cell.cell_id for place in listed),
        "curve": texts(place.curve for place in listed),
        "name": texts(place.name for place in listed),
        "axis_values": texts(json.dumps(dict(place.axis_values)) for place in listed),
    }
    connection.register("given_cells", rows)
    connection.register("given_members", members)


def _replace_notes(connection: duckdb.DuckDBPyConnection, notes: Mapping[str, Sequence[str]]) -> None:
    """Replace the notes of some cells, by cell_id."""
    said = [(cell_id, text) for cell_id, texts in notes.items() for each in texts if (text := readable(each.strip()))]
    connection.register("noted_cells", {"cell_id": texts(notes)})
    connection.register(
        "given_notes", {"cell_id": texts(cell_id for cell_id, _ in said), "note": texts(text for _, text in said)}
    )
    for statement in REPLACE_NOTES:
        connection.execute(statement)


def _end(connection: duckdb.DuckDBPyConnection, attempt_id: str, outcome: Outcome, error: str | None) -> None:
    connection.execute(
        "UPDATE attempts SET outcome = ?, error = ?, ended_at = greatest(?, started_at) WHERE attempt_id = ?",
        [str(outcome), error, utc_now(), attempt_id],
    )


def _later(column: str, rows: str) -> str:
    """Return SQL for the time given as its first parameter, or just after the latest of some rows if that is later.

    The order in which things were done must survive a clock that was set back.
    """
    return f"greatest(?::TIMESTAMP, (SELECT max({column}) + INTERVAL 1 MICROSECOND FROM {rows}))"
