"""Queries of a user: one SELECT that changes nothing, within limits of memory and time."""

import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from diffmem.errors import StoreError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What a query may use; None: as much as there is."""

    gigabytes: float | None = None
    seconds: float | None = None
    files: bool = False  # whether it may read files of this machine beside the store

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of DuckDB that keep a query within its memory, and off the disk."""
        return {"memory_limit": f"{self.gigabytes}GB", "temp_directory": ""} if self.gigabytes else {}

    def check_memory(self) -> None:
        """Raise StoreError once this process has needed more memory than a query may: its rows are Python's."""
        if self.gigabytes and resident_gigabytes() > self.gigabytes + OWN_GIGABYTES:
            raise StoreError(self.too_large)

    @property
    def too_large(self) -> str:
        """Return what to say of a query that needs too much memory."""
        return f"the query: needs more than {self.gigabytes:g} GB of memory; narrow it, or raise --memory"


NO_LIMITS = Limits()
OWN_GIGABYTES = 0.5
"""What the process needs before it has any row."""


@contextmanager
def bounded_memory(gigabytes: float) -> Iterator[None]:
    """Let this process take only so much more memory in the block, so that no single value takes all of a machine's."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = taken + int((gigabytes + ADDRESSES) * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (most if before[1] < 0 else min(most, before[1]), before[1]))
    except (OSError, ValueError):  # a system without such limits
        pass
    try:
        yield
    except MemoryError as error:
        raise StoreError(Limits(gigabytes=gigabytes).too_large) from error
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, before)


ADDRESSES = 4.0
"""Gigabytes of addresses that DuckDB, its threads and the allocator reserve without using them."""


def resident_gigabytes() -> float:
    """Return the most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def select(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    form: Callable[[duckdb.DuckDBPyConnection], Answer],
    parameters: Sequence[Any],
    *,
    limits: Limits,
) -> Answer:
    """Return what one SELECT gives, in some form; StoreError where it is none, or DuckDB refuses it."""
    if not sql.isascii() and sql != sql.encode(errors="replace").decode():
        raise StoreError(f"the query: not UTF-8 text: {sql!r}")
    try:
        statement = _only_select(connection, sql)
        return _interruptible(connection, lambda: form(connection.execute(statement, list(parameters))), limits.seconds)
    except duckdb.InterruptException as error:
        raise StoreError(
            f"the query: stopped after {limits.seconds or 0:g} seconds; narrow it, or raise --seconds"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise StoreError(limits.too_large if limits.gigabytes else f"the query: {error}") from error
    except duckdb.PermissionException as error:
        raise StoreError("the query: it opens files; --files lets it read them, but never write any") from error
    except (duckdb.Error, ValueError, OverflowError) as error:
        message = " ".join(str(error).partition("\n\n")[0].split())
        if limits.gigabytes and "bad_alloc" in message:
            raise StoreError(limits.too_large) from error
        if named := re.match(r"Catalog Error: Table with name (\S*[./]\S*) does not exist", message):
            raise StoreError(
                f"the query: no table {named[1]}; if it is a file, --files lets the query read it"
            ) from error
        if "'pytz'" in message:  # DuckDB adds a traceback
            raise StoreError(
                "the query: times with a time zone need the package pytz; cast them ::TIMESTAMP"
            ) from error
        raise StoreError(f"the query: {message} (the query SHOW TABLES lists the tables)") from error


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], Answer], seconds: float | None) -> Answer:
    """Return what some work with a connection gives; Ctrl-C and the end of its time interrupt it.

    It is done in another thread, since Python sees no signal while this one is inside DuckDB.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():
                raise
        finally:
            while not future.done():  # between two batches of rows there is nothing that an interrupt would end
                connection.interrupt()
                wait([future], timeout=0.1)
        return future.result()


def _only_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Return the one SELECT of a text; StoreError for anything else."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise StoreError(f"the query: one SELECT at a time, not {len(statements)} statements")
    (statement,) = statements
    if statement.type is duckdb.StatementType.SELECT or _is_pivot(connection, statement):
        return statement
    several = statement.type is duckdb.StatementType.MULTI
    kind = "several statements" if several else str(statement.type.name).replace("_", " ")
    raise StoreError(f"the query: only a SELECT is run, for a query changes nothing; this is {kind}")


def _is_pivot(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> bool:
    """Return whether a statement of several is a PIVOT, which can stand for a table, and no COPY or CREATE of one."""
    if statement.type is not duckdb.StatementType.MULTI:
        return False
    try:
        return len(connection.extract_statements(f"FROM (\n{statement.query.rstrip(' ;')}\n)")) == 1
    except duckdb.Error:
        return False
