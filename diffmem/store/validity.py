"""What the values of a store may be, so that no file that something else wrote or damaged is read as measured."""

from enum import StrEnum
from typing import NamedTuple

import duckdb

from diffmem.measures import MEASURES
from diffmem.store.standing import Kind, Outcome


class Rule(NamedTuple):
    """What holds of every row of a table in a store that diffmem has written."""

    table: str
    key: str  # SQL that names the row
    holds: str
    broken: str  # what to say of a row of which it does not hold


def _time(*columns: str) -> str:
    return " AND ".join(f"({c} IS NULL OR {c} BETWEEN '1970-01-01' AND '9999-12-31')" for c in columns)


def _one_of(column: str, members: type[StrEnum]) -> str:
    return f"{column} IN {tuple(map(str, members))}"


def _count(column: str, least: int = 0) -> str:
    return f"{column} >= {least}"


def _json(column: str, kinds: str) -> str:
    """Return SQL for JSON of one of these kinds; of malformed JSON, DuckDB's other functions make an error."""
    return f"CASE WHEN json_valid({column}) THEN json_type({column}) IN ({kinds}) ELSE false END"


def _texts(column: str, *structures: str) -> str:
    """Return SQL for JSON of one of these structures."""
    listed = ", ".join(f"'{structure}'" for structure in structures)
    return f"CASE WHEN json_valid({column}) THEN json_structure({column})::VARCHAR IN ({listed}) ELSE false END"


def _number(column: str, path: str, holds: str) -> str:
    number = f"try_cast({column}->>'{path}' AS DOUBLE)"
    return f"CASE WHEN json_valid({column}) THEN {number} IS NOT NULL AND {number} {holds} ELSE false END"


def _kind(column: str, path: str, kinds: str) -> str:
    """Return SQL for a member of a JSON object that is of one of these kinds, or missing."""
    return (
        f"CASE WHEN json_valid({column}) THEN coalesce(json_type({column}, '{path}'), 'NULL') IN ('NULL', {kinds}) "
        "ELSE false END"
    )


_MEASURE = "coalesce(CASE WHEN json_valid(estimation) THEN estimation->>'$.measure' END, 'nearest')"
_LARGEST_OF = " ".join(f"WHEN '{each.name}' THEN {each.largest}" for each in MEASURES.values())
LARGEST = f"CASE {_MEASURE} {_LARGEST_OF} ELSE 'inf'::DOUBLE END"
THRESHOLD = "coalesce(CASE WHEN json_valid(estimation) THEN try_cast(estimation->>'$.threshold' AS DOUBLE) END, 0)"

SECONDS = "isfinite({0}) AND {0} >= 0"

RULES = [
    Rule("studies", "study", _time("registered_at"), "it has no time that can be read"),
    Rule("studies", "study", _texts("axes", '["NULL"]', '[["VARCHAR"]]'), "its axes are not lists of keys"),
    Rule("studies", "study", _texts("overrides", '["NULL"]', '["VARCHAR"]'), "its overrides are not a list of texts"),
    Rule("studies", "study", _json("estimation", "'OBJECT'"), "its estimation is not a JSON object"),
    Rule("studies", "study", _number("estimation", "$.epsilon", "BETWEEN 0 AND 1"), "its epsilon is not in 0..1"),
    Rule("studies", "study", _kind("estimation", "$.measure", "'VARCHAR'"), "its measure is no text"),
    Rule("studies", "study", f"{THRESHOLD} <= {LARGEST}", "its threshold is more than its measure can be"),
    Rule(
        "studies",
        "study",
        _number("estimation", "$.threshold", "> 0 AND isfinite(try_cast(estimation->>'$.threshold' AS DOUBLE))"),
        "its threshold is not above 0",
    ),
    Rule("studies", "study", _one_of("kind", Kind), "it is of an unknown kind"),
    Rule("cells", "cell_id", _time("created_at"), "it has no time that can be read"),
    Rule("cells", "cell_id", _count("checkpoints"), "its number of checkpoints is negative"),
    Rule("cells", "cell_id", _json("configuration", "'OBJECT'"), "its configuration is not a JSON object"),
    Rule("cells", "cell_id", _kind("configuration", "$.P.size", "'UBIGINT'"), "its P.size is not a whole number"),
    Rule("cells", "cell_id", _number("configuration", "$.P.size", "BETWEEN 1 AND 1000000000"), "it has no P.size"),
    Rule("cells", "cell_id", _kind("configuration", "$.T.seed", "'UBIGINT'"), "its T.seed is not a whole number"),
    Rule(
        "cells",
        "cell_id",
        _kind("configuration", "$.P.draw", "'UBIGINT', 'VARCHAR'"),
        "its P.draw is not a draw",
    ),
    Rule("cells", "cell_id", _kind("configuration", "$.P.dataset", "'VARCHAR'"), "its P.dataset is not text"),
    Rule(
        "cells",
        "cell_id",
        _kind("configuration", "$.P.resolution", "'UBIGINT'"),
        "its P.resolution is no number",
    ),
    Rule("study_cells", "study", _count("position"), "the position of a cell is negative"),
    Rule("study_cells", "study", _json("axis_values", "'OBJECT'"), "the axis values of a cell are not a JSON object"),
    Rule(
        "study_cells JOIN studies USING (study)",
        "study",
        "CASE WHEN json_valid(axes) AND json_valid(axis_values) "
        "THEN list_has_all(json_keys(axis_values), coalesce(flatten(try_cast(axes AS VARCHAR[][])), [])) "
        "ELSE false END",
        "a cell has no value for one of its axes",
    ),
    Rule("attempts", "cell_id", _one_of("outcome", Outcome), "an attempt has an unknown outcome"),
    Rule("attempts", "cell_id", _time("started_at", "ended_at"), "an attempt has no time that can be read"),
    Rule("attempts", "cell_id", _count("pid"), "the process number of an attempt is negative"),
    Rule("attempts", "cell_id", _json("versions", "'OBJECT'"), "the versions of an attempt are not a JSON object"),
    Rule("checkpoints", "cell_id", _time("measured_at"), "a checkpoint has no time that can be read"),
    Rule(
        "checkpoints",
        "cell_id",
        f"{_count('epoch')} AND {_count('step')}",
        "an epoch or a step is negative",
    ),
    Rule("checkpoints", "cell_id", _count("samples", 1), "a checkpoint has no generated images"),
    Rule("checkpoints", "cell_id", "memorized BETWEEN 0 AND samples", "more images are memorized than generated"),
    Rule("checkpoints", "cell_id", "abs(ratio - memorized / samples) < 1e-9", "a ratio is not memorized / samples"),
    Rule("checkpoints", "cell_id", SECONDS.format("train_seconds"), "the training time of a checkpoint is impossible"),
    Rule("checkpoints", "cell_id", SECONDS.format("score_seconds"), "the scoring time of a checkpoint is impossible"),
    Rule(
        "measurements",
        "cell_id",
        "0 <= low AND low <= value + 1e-9 AND value <= high + 1e-9 AND high <= 1 AND n >= 1",
        "a measurement is no share of images within its interval",
    ),
    Rule(
        "noise_levels",
        "cell_id",
        "isfinite(sigma) AND sigma > 0 AND isfinite(low) AND isfinite(high) AND low <= value + 1e-9 "
        "AND value <= high + 1e-9 AND n >= 1 AND images IN ('training', 'held_out', 'both')",
        "a value at a noise level is no number within its interval",
    ),
    Rule(
        "spaces",
        "measure",
        "threshold > 0 AND threshold < 1 AND dimensions >= 1 AND rule IN ('similarity', 'nearest')",
        "a feature space has no rule, threshold or length that there is",
    ),
    Rule(
        "quality",
        "cell_id",
        "isfinite(low) AND isfinite(high) AND low <= value + 1e-9 AND value <= high + 1e-9 AND n >= 1 AND real >= 1 "
        "AND dimensions >= 1 AND null_n >= 0 AND isfinite(coalesce(null_value, 0)) "
        "AND against IN ('training', 'held_out')",
        "a value of quality is no number within its interval",
    ),
    Rule(
        "halves",
        "cell_a",
        " AND ".join(
            f"({column} IS NULL OR {column} BETWEEN -1 AND 1)"
            for column in ("similarity", "mismatched", "nearest_a", "nearest_b", "held_out_a", "held_out_b")
        )
        + " AND mse BETWEEN 0 AND 1 AND (mismatched_mse IS NULL OR mismatched_mse BETWEEN 0 AND 1) AND sample >= 0",
        "two halves have a similarity outside of -1..1, or a squared difference outside of 0..1",
    ),
    Rule("notes", "cell_id", r"regexp_matches(note, '\S')", "a note is empty"),
]
"""Rules of the tables that every command reads."""

EVIDENCE_RULES = [
    Rule("evidence", "cell_id", "isfinite(d1) AND isfinite(d2) AND 0 <= d1 AND d1 <= d2", "impossible distances"),
    Rule("evidence", "cell_id", f"{_count('sample')} AND {_count('nearest')}", "an impossible image number"),
    Rule(
        "measure_evidence",
        "cell_id",
        "isfinite(distance) AND isfinite(yardstick) AND 0 <= distance AND 0 <= yardstick "
        f"AND {_count('sample')} AND {_count('nearest')}",
        "impossible evidence of a measure",
    ),
    Rule(
        "held_out",
        "training_set",
        "isfinite(distance) AND isfinite(yardstick) AND 0 <= distance AND 0 <= yardstick "
        f"AND {_count('sample')} AND {_count('nearest')}",
        "impossible evidence of held-out images",
    ),
    Rule(
        "training_images",
        "training_set",
        "coalesce(isfinite(local_distance) AND local_distance >= 0, true) "
        f"AND {_count('alike', 1)} AND {_count('position')}",
        "an impossible training image",
    ),
    Rule(
        "evidence JOIN cells USING (cell_id)",
        "cell_id",
        "nearest < coalesce(try_cast(configuration->>'$.P.size' AS BIGINT), 0)",
        "evidence names a training image beyond the last one",
    ),
]
"""Rules of the large tables, which only a check reads whole."""


def broken(connection: duckdb.DuckDBPyConnection, rules: list[Rule]) -> list[str]:
    """Return one sentence for each rule that does not hold: of which row, of how many, and what is wrong."""
    return [sentence for rule in rules if (sentence := _broken(connection, rule))]


def any_broken(connection: duckdb.DuckDBPyConnection) -> str:
    """Return the first sentence of `broken` for the tables that every command reads; empty where all is well."""
    by_table: dict[str, list[Rule]] = {}
    for rule in RULES:
        by_table.setdefault(rule.table, []).append(rule)
    for table, rules in by_table.items():
        all_hold = " AND ".join(f"coalesce({rule.holds}, false)" for rule in rules)
        if connection.execute(f"SELECT 1 FROM {table} WHERE NOT ({all_hold}) LIMIT 1").fetchone():
            return broken(connection, rules)[0]
    return ""


def _broken(connection: duckdb.DuckDBPyConnection, rule: Rule) -> str:
    where = f"FROM {rule.table} WHERE NOT coalesce({rule.holds}, false)"
    name, rows = connection.execute(f"SELECT any_value({rule.key}), count(*) {where}").fetchall()[0]
    more = f" (and in {rows - 1} more rows)" if rows > 1 else ""
    return f"{name}: {rule.broken}{more}" if rows else ""
