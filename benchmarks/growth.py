"""How the cost of the store and of what reads it grows with the number of cells."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffmem.errors import RunError
from diffmem.store import Checkpoint, Outcome, Provenance, Store
from diffmem.study import Study

CELLS = (100, 1_000, 10_000)
CHECKPOINTS, SAMPLES = 20, 100
"""Checkpoints of a cell, and generated images of a checkpoint."""
APPENDS = 40
"""Appends whose median is one figure."""
STUDY = f"""
title = "One study of many"
P.dataset = "digits"
T.epochs = {CHECKPOINTS}
score = {{ samples = {SAMPLES}, every = 1 }}
[[axes]]
T.seed = [0, 1, 2, 3]
[[axes]]
P.size = [4, 8, 16, 32, 64]
"""
"""The study that is read: 20 cells."""
COMMANDS = (["status", "one"], ["emm", "one"], ["report", "one"])

Row = dict[str, Any]


def measure_growth() -> list[Row]:
    """Return for each number of cells the seconds of an append, and of status, emm and report as commands."""
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.toml"
        path.write_text(STUDY, encoding="utf-8")
        study = Study.load(path)
        for cells in CELLS:
            store = Store(Path(folder) / f"{cells}.duckdb")
            _fill(store, study, cells - len(study.cells))
            row: Row = {"cells": cells, "append": _append(store, study), "MB": store.path.stat().st_size / 1e6}
            for command in COMMANDS:
                row[command[0]] = _seconds([*command, "--store", str(store.path)])
            rows.append(row)
    return rows


def _fill(store: Store, study: Study, cells: int) -> None:
    """Make a store with so many finished cells of other studies, and this study without a checkpoint."""
    store.register(study, study.cells, folder=study.folder)
    with store.writing() as connection:
        connection.execute(
            "CREATE TEMP TABLE others AS SELECT i, printf('%016x', hash(i)) AS cell_id FROM range(?) r(i)", [cells]
        )
        for statement in OTHERS:
            connection.execute(statement)


OTHERS = [
    """
    INSERT INTO cells
    SELECT others.cell_id, configuration, 20, now()::TIMESTAMP, results_version FROM others, (FROM cells LIMIT 1)
    """,
    """
    INSERT INTO studies
    SELECT 'study' || i, title, figure, path, axes, estimation, registered_at, overrides, folder, kind
    FROM studies, range(100) r(i)
    """,
    """
    INSERT INTO study_cells
    SELECT 'study' || i % 100, i // 100, others.cell_id, curve, name, axis_values
    FROM others, (FROM study_cells LIMIT 1)
    """,
    """
    INSERT INTO attempts
    SELECT i::VARCHAR, cell_id, 'finished', NULL, now()::TIMESTAMP, now()::TIMESTAMP, 'host', 1, 'cpu', '{}', NULL, NULL
    FROM others
    """,
    f"""
    INSERT INTO checkpoints SELECT cell_id, e, e, {SAMPLES}, 50, 0.5, 1.0, 1.0, 1.0, i::VARCHAR, now()::TIMESTAMP
    FROM others, range({CHECKPOINTS}) r(e)
    """,
    f"""
    INSERT INTO evidence SELECT cell_id, e, k, k % 8, random(), 1 + random()
    FROM others, range({CHECKPOINTS}) r(e), range({SAMPLES}) s(k)
    """,
]
"""What fills a store, statement by statement."""


def _append(store: Store, study: Study) -> float:
    """Append all checkpoints of the study; return the median seconds of the last ones."""
    here = Provenance("host", 1, "cpu", {}, None, None)
    d1, d2 = np.random.default_rng(0).random((2, SAMPLES))
    seconds = []
    for entry in study.distinct:
        attempt = store.start_attempt(entry.cell.cell_id, here)
        for epoch, step in entry.cell.checkpoints:
            checkpoint = Checkpoint(
                cell_id=entry.cell.cell_id,
                epoch=epoch,
                step=step,
                loss=1.0,
                nearest=np.arange(SAMPLES) % 4,  # of the smallest training set
                d1=d1,
                d2=d2,
                memorized=int((d1 < d2 / 3).sum()),
                train_seconds=1.0,
                score_seconds=1.0,
                attempt_id=attempt,
            )
            started = time.perf_counter()
            store.append(checkpoint)
            seconds.append(time.perf_counter() - started)
        store.end_attempt(attempt, Outcome.FINISHED)
    return median(seconds[-APPENDS:])


def _seconds(arguments: list[str]) -> float:
    """Return the wall time of a command, its start included; the better of two, the first one reads cold files."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "diffmem", *arguments], capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - started)
        if result.returncode:
            raise RunError(f"diffmem {' '.join(arguments)} failed: {result.stderr.strip()}")
    return min(times)


def growth_figure(rows: list[Row]) -> go.Figure:
    """Draw seconds against the number of cells, a line for each thing that was timed."""
    figure = go.Figure()
    for name in ("append", *(command[0] for command in COMMANDS)):
        figure.add_scatter(
            x=[row["cells"] for row in rows], y=[row[name] for row in rows], name=name, mode="lines+markers"
        )
    figure.update_xaxes(type="log", title=f"cells in the store, {CHECKPOINTS} checkpoints each", dtick=1)
    figure.update_yaxes(type="log", title="seconds", dtick=1)
    return figure.update_layout(title="How the store and what reads it grow", template="plotly_white")
