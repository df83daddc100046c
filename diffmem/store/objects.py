"""What a store consists of: exactly the tables and views of its schema, so that a name means what diffmem means."""

from collections.abc import Sequence
from functools import lru_cache

import duckdb

from diffmem.store.schema import Migration, apply

LISTED = """
    SELECT 'table' AS kind, schema_name, table_name AS name, sql
    FROM system.main.duckdb_tables() WHERE NOT internal
    UNION ALL
    SELECT 'view', schema_name, view_name, sql FROM system.main.duckdb_views() WHERE NOT internal
    UNION ALL
    SELECT 'schema', schema_name, schema_name, '' FROM system.main.duckdb_schemas() WHERE NOT internal
    UNION ALL
    SELECT 'sequence', schema_name, sequence_name, '' FROM system.main.duckdb_sequences()
    UNION ALL
    SELECT 'type', schema_name, type_name, '' FROM system.main.duckdb_types() WHERE NOT internal
    UNION ALL
    SELECT 'index', schema_name, index_name, '' FROM system.main.duckdb_indexes()
    UNION ALL
    SELECT 'trigger', schema_name, trigger_name, '' FROM system.main.duckdb_triggers()
    UNION ALL
    SELECT 'function', schema_name, function_name, '' FROM system.main.duckdb_functions() WHERE NOT internal
"""
"""Everything in a database that is not DuckDB's own; by its full name, which a macro in the file cannot take."""

Object = tuple[str, str, str, str]
"""Kind, schema, name, and the SQL that would make it."""


def objects(connection: duckdb.DuckDBPyConnection) -> set[Object]:
    """Return what the database of a connection consists of."""
    return {(kind, schema, name, sql or "") for kind, schema, name, sql in connection.execute(LISTED).fetchall()}


def is_plain(found: set[Object]) -> bool:
    """Return whether there are but tables and views, of one schema: no macro stands for a function of a query."""
    return {(kind, schema) for kind, schema, *_ in found} <= {("table", "main"), ("view", "main")}


def difference(found: set[Object], migrations: Sequence[Migration]) -> str:
    """Return in words the first thing in which objects differ from what migrations make; empty where in none."""
    expected = made_by(tuple(migrations))
    for kind, schema, name, _ in sorted(found - expected):
        own = {(each[0], each[2]) for each in expected}
        if (kind, name) in own and schema == "main":
            return f"its {kind} {name} is not as diffmem makes it"
        return f"it holds the {kind} {name!r}, which diffmem does not make"
    for kind, _, name, _ in sorted(expected - found):
        return f"its {kind} {name} is missing"
    return ""


@lru_cache(maxsize=16)
def made_by(migrations: tuple[Migration, ...]) -> set[Object]:
    """Return what a store consists of after these migrations."""
    connection = duckdb.connect()
    try:
        connection.execute(MIGRATIONS_TABLE)
        for migration in migrations:
            apply(connection, migration)
        return objects(connection)
    finally:
        connection.close()


MIGRATIONS_TABLE = "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied_at TIMESTAMP)"
"""The record of migrations, which is there before the first one."""
