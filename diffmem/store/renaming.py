"""Results of version 2: which cells of version 1 have the numbers that they would have today, and their new names.

Since the commit d52e88e dropout draws other masks, and the cells kept their names; all else is the same before and
after. A cell without dropout is renamed. One with dropout is renamed if every attempt at it says that it ran a commit
that has the new masks. The others keep their names and their numbers, and get a note.
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from diffmem.sql import identifier
from diffmem.store.commits import WITH_NEW_MASKS

VERSION = 2

CAME_LATER: dict[str, dict[str, Any]] = {"P": {"blend": None}, "T": {"precision": "fp32"}}
"""Keys that the first cells did not have, with what they did."""

OF_THE_OPTIMUM = ("network", "condition", "labels")
"""The keys of M that the optimum kept: the others were there with their defaults."""

CHANNELS = {"digits": 1, "cifar10": 3, "imagenet-dogs": 3}
"""The colour channels of the datasets that have a name; those of a user's own images are not in an older store."""

NOTE = "measured by an older diffmem, perhaps with other dropout masks: its numbers stay, and a run measures it anew"

SUSPECTS = """
    SELECT cell_id, coalesce(list_distinct(list(left(git_commit, 10)) FILTER (git_commit IS NOT NULL)), []) AS commits,
        count(*) FILTER (git_commit IS NULL) AS unknown
    FROM (
        SELECT cell_id, git_commit FROM attempts
        UNION ALL SELECT cell_id, NULL FROM checkpoints ANTI JOIN attempts USING (attempt_id)
    ) GROUP BY cell_id
"""
"""The commits that each cell was measured by, and how many attempts do not say it."""


STORED = """
    SELECT cell_id, configuration FROM cells LEFT JOIN checkpoints USING (cell_id)
    GROUP BY ALL ORDER BY count(epoch) DESC, cell_id
"""
"""The cells with the most checkpoints first: of two that would have one new name, the first gets it."""


def to_version_2(connection: duckdb.DuckDBPyConnection, path: Path | None) -> None:
    """Give cells whose numbers are unchanged their new names, in the store at `path` and in the names of its files."""
    connection.execute("ALTER TABLE cells ADD COLUMN results_version INTEGER DEFAULT 1")
    stored = dict(connection.execute(STORED).fetchall())
    if not stored:
        return
    suspect = {
        cell_id
        for cell_id, commits, unknown in connection.execute(SUSPECTS).fetchall()
        if unknown or not WITH_NEW_MASKS.issuperset(commits)
    }
    rows = list(_renamed(stored, suspect))
    columns = ("old", "new", "configuration", "version")
    given = {key: np.array([row[n] for row in rows], dtype=object) for n, key in enumerate(columns)}
    connection.register("given_names", given)
    _write(connection)
    connection.unregister("given_names")
    for old, new, *_ in rows:
        if path is not None and old != new:
            _rename_files(path, old, new)


def _renamed(stored: Mapping[str, str], suspect: set[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield of each cell its old name, its new one, its new configuration, and the version of its numbers."""
    taken = set(stored)
    for old, text in stored.items():
        try:
            configuration = json.loads(text)
            identity = _identity(configuration)
            _with_channels(identity)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # which `store check` lists
            yield old, old, text, "1"
            continue
        new, version = old, 1
        if old == _name(VERSION, configuration):  # of the one commit that had raised the version before
            version = VERSION
        elif old == _name(1, configuration) and not (old in suspect and _drops_out(configuration)):
            named = _name(VERSION, identity)
            if named not in taken:
                new, version = named, VERSION
        taken.add(new)
        yield old, new, json.dumps(_with_channels(identity if new != old else configuration)), str(version)


def _name(version: int, configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([version, configuration], sort_keys=True).encode()).hexdigest()[:16]


def _drops_out(configuration: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a network that was trained with dropout."""
    M = configuration.get("M", {})
    return bool(M) and M["network"] != "optimum" and M["dropout"] != 0


def _identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what names a cell in version 2; of a score or a monitor, what named it before."""
    if "M" not in configuration:
        return dict(configuration)
    whole = {section: {**CAME_LATER.get(section, {}), **values} for section, values in configuration.items()}
    if whole["M"]["network"] == "optimum":
        whole["M"] = {key: whole["M"][key] for key in OF_THE_OPTIMUM}
    return whole


def _with_channels(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a cell with the colour channels of its images, if they are known."""
    P = configuration["P"]
    datasets = [P["dataset"], *([P["blend"]["dataset"]] if P.get("blend") else [])]
    if "M" not in configuration or not set(datasets) <= CHANNELS.keys():
        return dict(configuration)
    return {**configuration, "P": {**P, "channels": max(CHANNELS[name] for name in datasets)}}


def _write(connection: duckdb.DuckDBPyConnection) -> None:
    """Write the new names in every table that has them, and a note on each cell that keeps its old one."""
    connection.execute(
        """
        UPDATE cells SET configuration = g.configuration, results_version = g.version::INTEGER
        FROM given_names AS g WHERE cells.cell_id = g.old
        """
    )
    tables = connection.execute(
        "SELECT table_name FROM duckdb_columns() WHERE column_name = 'cell_id' AND table_name <> 'results'"
    ).fetchall()
    for (table,) in tables:
        connection.execute(
            f"UPDATE {identifier(table)} AS t SET cell_id = g.new FROM given_names AS g "
            "WHERE t.cell_id = g.old AND g.old <> g.new"
        )
    connection.execute("INSERT INTO notes SELECT new, ? FROM given_names WHERE version = '1'", [NOTE])


def _rename_files(path: Path, old: str, new: str) -> None:
    """Rename the training state and the trained models of a cell; those that have been renamed already stay."""
    for folder, ending in ((path.parent / "states", "pt"), (path.parent / "weights", "*.safetensors")):
        for file in folder.glob(f"{glob.escape(path.stem)}.{old}.{ending}"):
            file.rename(file.with_name(file.name.replace(f".{old}.", f".{new}.")))
