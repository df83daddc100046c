"""The DuckDB file: opened by one writer at a time, migrated, and whatever goes wrong with it told in a sentence.

A writer opens, writes one transaction and closes, under a lock file, so that readers get in between.
"""

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import duckdb
import filelock

from diffmem.errors import StoreError, StoreUnavailable
from diffmem.schema import MIGRATIONS

Row = dict[str, Any]
Answer = TypeVar("Answer")

PATIENCE = 10.0
"""Seconds to wait for a file that another program holds, before a run starts and when reading."""
RUN_PATIENCE = 300.0
"""Seconds to wait within a run, where giving up would cost work."""


class Database:
    """The DuckDB file at `path`; every method opens and closes it, and raises StoreError with what to do."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._snapshot: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def writing(self, patience: float = RUN_PATIENCE, *, create: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open to write: one transaction, committed if the block ends well. Migrates the file.

        Without `create`, a file that is not there is an error: measurements without their cells are of no use.
        """
        deadline = time.monotonic() + patience
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.exists():
                raise StoreUnavailable(self._gone())
            with filelock.FileLock(f"{self.path}.lock", timeout=patience):
                if create and not self.exists():
                    self._create()
                with self._connected(read_only=False, deadline=deadline) as connection:
                    self._migrate(connection)
                    yield from self._transaction(connection)
        except filelock.Timeout:
            raise StoreUnavailable(self._locked()) from None
        except (OSError, duckdb.Error) as error:
            self._refuse(error)

    def _transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
        connection.begin()
        try:
            yield connection
            connection.commit()
            connection.execute("CHECKPOINT")  # at closing, DuckDB would keep its failure to itself
        except BaseException:
            with suppress(duckdb.Error):  # a full disk has ended the transaction already
                connection.rollback()
            raise

    def exists(self) -> bool:
        """Return whether the file is there; StoreError where that cannot be told."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._refuse(error)
        return True

    def _create(self) -> None:
        """Make an empty database: beside its place first, so that a file cut short is never taken for a store.

        It never replaces a store: if the lock file was deleted, another process may be making one at the same time.
        """
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        new.unlink(missing_ok=True)
        duckdb.connect(new.absolute()).close()
        try:
            self.path.hardlink_to(new)
        except OSError:
            if not self.exists():  # a file system without hard links
                new.replace(self.path)
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.*new"):  # also of processes that were killed
            left.unlink(missing_ok=True)

    @contextmanager
    def reading(self, patience: float = PATIENCE) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open to read, between the writes of a run that goes on."""
        if not self.exists():
            raise StoreError(f"{self.path}: no store there yet; `diffmem run STUDY` makes one, or name another store")
        try:
            with self._connected(read_only=True, deadline=time.monotonic() + patience) as connection:
                outdated = self._version(connection) < len(MIGRATIONS)
                if not outdated:
                    yield connection
            if outdated:
                self._update(patience)
                with self._connected(read_only=True, deadline=time.monotonic() + patience) as connection:
                    yield connection
        except (OSError, duckdb.Error) as error:
            self._refuse(error)

    def _update(self, patience: float) -> None:
        """Migrate a file that is to be read; StoreError says that this is why it must be written."""
        try:
            with self.writing(patience):
                pass
        except StoreError as error:
            raise type(error)(
                f"{error} (it is of an older diffmem, and is brought up to date before it is read)"
            ) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries of the block see the store at one moment; writers wait until it ends."""
        with self.reading() as connection:
            self._snapshot = connection
            try:
                yield
            finally:
                self._snapshot = None

    @contextmanager
    def _connected(self, *, read_only: bool, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """Connect, trying again while another program holds the file."""
        pause = 0.005
        while True:
            try:
                # absolute, for DuckDB gives `:memory:` and names like `s3:...` a meaning of their own
                connection = duckdb.connect(self.path.absolute(), read_only=read_only)
                break
            except duckdb.IOException as error:
                if "could not set lock" not in str(error).lower():
                    raise
                if time.monotonic() > deadline:
                    raise StoreUnavailable(self._locked(str(error))) from None
                time.sleep(pause)
                pause = min(2 * pause, 0.2)
        try:
            yield connection
        finally:
            connection.close()

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Return how many migrations the file has had; StoreError if it is no store or a newer one."""
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if "migrations" not in tables:
            if tables:
                raise StoreError(f"{self.path}: a DuckDB file, but not a diffmem store; name another one")
            return 0
        (version,) = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchall()[0]
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: made by a newer diffmem (schema {version}, this one knows {len(MIGRATIONS)}); "
                "upgrade diffmem, or name another store"
            )
        return int(version)

    def _migrate(self, connection: duckdb.DuckDBPyConnection) -> None:
        done = self._version(connection)
        for number, sql in enumerate(MIGRATIONS[done:], start=done + 1):
            connection.begin()
            try:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied_at TIMESTAMP)"
                )
                connection.execute(sql)
                connection.execute("INSERT INTO migrations VALUES (?, ?)", [number, utc_now()])
                connection.commit()
            except BaseException:
                with suppress(duckdb.Error):
                    connection.rollback()
                raise
            connection.execute("CHECKPOINT")

    def _locked(self, detail: str = "") -> str:
        _, found, holder = detail.partition("(PID ")
        who = f"process {holder.partition(')')[0]}" if found else "another program"
        return f"{self.path}: {who} holds the store open; close it (a notebook or a DuckDB shell?) and try again"

    def _gone(self) -> str:
        return (
            f"{self.path}: the store is gone (was it moved, or its disk taken away?); once it is back, the same "
            "command goes on from what was saved last"
        )

    def _refuse(self, error: Exception) -> NoReturn:
        """Turn what the system or DuckDB says into a sentence that tells what to do."""
        text = str(error).splitlines()[0]
        low = str(error).lower()
        kind = StoreError
        no_place = (
            "file exists",
            "is a directory",
            "no such file or directory",
            "not a directory",
            "file name too long",
        )
        if "not a valid duckdb" in low:
            advice = "not a DuckDB file; name another store"
        elif any(words in low for words in ("no space left", "disk quota", "file too large")):
            kind = StoreUnavailable
            advice = "the disk is full; free some space and run the same command again, nothing measured is lost"
        elif "permission denied" in low or "read-only file system" in low or "read-only mode" in low:
            advice = "cannot be written; check the permissions of the file and its folder, or name another store"
        elif "corrupt" in low or "could not read enough bytes" in low:
            advice = "damaged, or cut short while it was copied; copy it again, or name another store"
        elif "version number" in low:
            advice = "written by another DuckDB version; install the versions of constraints.txt"
        elif any(words in low for words in no_place):
            advice = "no file can be there; name another store"
        else:
            kind = StoreUnavailable
            advice = f"the store cannot be used: {text}"
        raise kind(f"{self.path}: {advice}") from error

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query of diffmem's own, each as a dict by column name; a fault is the store's."""
        with nullcontext(self._snapshot) if self._snapshot else self.reading() as connection:
            result = connection.execute(sql, list(parameters))
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def select(
        self, sql: str, form: Callable[[duckdb.DuckDBPyRelation], Answer], parameters: Sequence[Any] = ()
    ) -> Answer:
        """Return what one SELECT of a user gives, in some form; StoreError where it is none, or DuckDB refuses it."""
        if not sql.isascii() and sql != sql.encode(errors="replace").decode():
            raise StoreError(f"the query: not UTF-8 text: {sql!r}")
        with nullcontext(self._snapshot) if self._snapshot else self.reading() as connection:
            try:
                statements = connection.extract_statements(sql)
                if len(statements) != 1:
                    raise StoreError(f"the query: one SELECT at a time, not {len(statements)} statements")
                (statement,) = statements
                if statement.type not in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI):  # PIVOT is several
                    kind = statement.type.name.replace("_", " ")
                    raise StoreError(f"the query: only a SELECT is run, for a query changes nothing; this is {kind}")
                connection.execute("SET python_enable_replacements = false")  # tables of the store, not our variables
                return form(connection.sql(statement, params=list(parameters)))
            except duckdb.Error as error:
                message = " ".join(str(error).partition("\n\n")[0].split())
                if "'pytz'" in message:  # DuckDB adds a traceback
                    raise StoreError(
                        "the query: times with a time zone need the package pytz; cast them ::TIMESTAMP"
                    ) from error
                raise StoreError(f"the query: {message} (the query SHOW TABLES lists the tables)") from error


def utc_now() -> datetime:
    """Return the time in UTC, without a zone, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)
