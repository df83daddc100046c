"""The DuckDB file: opened by one writer at a time, migrated, and whatever goes wrong with it said in a sentence.

A writer opens, writes one transaction and closes, under a lock file, so that readers get in between. Threads of one
process take turns.
"""

import math
import os
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import duckdb
import filelock

from diffmem.atomic import whole
from diffmem.errors import DiffmemError, StoreError, StoreHeld, StoreUnavailable
from diffmem.sql import CLOSED, LOCKED, lock
from diffmem.store.file import create_empty, is_there
from diffmem.store.objects import MIGRATIONS_TABLE, difference, is_plain, objects
from diffmem.store.refusals import DAMAGED, refuse
from diffmem.store.schema import MIGRATIONS, apply
from diffmem.store.selecting import NO_LIMITS, Limits, select
from diffmem.store.validity import any_broken
from diffmem.store.waiting import Wait, holder_in, logger, turn

Row = dict[str, Any]
Answer = TypeVar("Answer")

PATIENCE = 10.0
"""Seconds to wait for a file that another program holds, unless a store is given another patience."""


class _Snapshot(threading.local):
    """The connection that a thread's `snapshot` has open."""

    connection: duckdb.DuckDBPyConnection | None = None


class Database:
    """The DuckDB file at `path`; every method opens and closes it, and raises StoreError with what to do.

    While something else holds the file, methods wait `patience` seconds (ten by default), and from the third second on
    call `on_wait` at each look: what that raises ends the wait. Without `check`, values that diffmem never writes are
    no reason to refuse the file. Safe to use from several threads.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        patience: float | None = None,
        on_wait: Callable[[], None] = lambda: None,
        check: bool = True,
    ) -> None:
        self.path = Path(path)
        self.patience = PATIENCE if patience is None else patience
        self.on_wait, self.check = on_wait, check
        self._snapshot = _Snapshot()
        self.is_copy = False  # of which nothing needs to be kept
        self._checked = False  # whether its objects are known to be diffmem's
        self._copy: _Copy | None = None

    def waiting(self, on_wait: Callable[[], None]) -> Self:
        """Return the same store with endless patience, for a run, where giving up would cost work."""
        return type(self)(self.path, patience=math.inf, on_wait=on_wait)

    # --- writing ---

    @contextmanager
    def writing(self, *, create: bool = False, files: Sequence[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open to write: one transaction, committed if the block ends well. Migrates the file.

        Without `create`, a file that is not there is an error: measurements without their cells are of no use.
        SQL of the block can open `files` beside it, and no others.
        """
        wait = self._wait()
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.exists():
                raise StoreUnavailable(self._gone())
            with turn(self.path, wait, write=True), self._locked(wait):
                if create and not self.exists():
                    create_empty(self.path)
                with self._connected(wait, read_only=False, files=files) as connection:
                    done = self._version(connection)
                    if done == len(MIGRATIONS):
                        yield from self._transaction(connection)
                        return
                self._migrate(wait, done)
                with self._connected(wait, read_only=False, files=files) as connection:
                    yield from self._transaction(connection)
        except (OSError, duckdb.Error) as error:
            refuse(self.path, error)

    @contextmanager
    def _locked(self, wait: Wait) -> Iterator[None]:
        """Hold the lock file, which has host and process of the one that holds it."""
        path = Path(f"{self.path}.lock")
        lock = filelock.FileLock(path, timeout=0)
        wait.until(lock.acquire, lambda _: _holder(path))
        try:
            with suppress(OSError):  # a full disk keeps nobody from being named later
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            lock.release()

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
        """Return whether the file is there; StoreError if the system does not say, or it is not a regular file."""
        return is_there(self.path)

    # --- reading ---

    @contextmanager
    def reading(
        self, *, files: Sequence[Path] | None = (), settings: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open to read, between the writes of a run that goes on.

        SQL of the block can open `files` beside it, and no others; None: whatever it names. `settings` are DuckDB's.
        """
        self._must_exist()
        wait = self._wait()
        try:
            with (
                turn(self.path, wait, write=False),
                self._connected(wait, read_only=True, files=files, settings=settings) as connection,
            ):
                outdated = self._version(connection) < len(MIGRATIONS)
                if not outdated:
                    yield connection
            if outdated:
                with self._updated().reading(files=files, settings=settings) as connection:
                    yield connection
        except (OSError, duckdb.Error) as error:
            refuse(self.path, error)

    def _must_exist(self) -> None:
        if not self.exists():
            raise StoreError(
                f"{self.path}: no store there yet; `diffmem run`, `diffmem score` and a Monitor make one, or name "
                "another one with --store"
            )

    def _updated(self) -> "Database":
        """Return a file of an older diffmem brought up to date: itself, or a copy where it cannot be written."""
        try:
            with self.writing():
                return self
        except StoreHeld as error:
            raise StoreHeld(
                f"{error} (it is of an older diffmem, and is brought up to date before it is read)"
            ) from error
        except StoreError:
            return self.current()

    def current(self) -> "Database":
        """Return a store of the newest schema with all of this one: itself, or a temporary copy where it is older.

        The file is left as it is.
        """
        self._must_exist()
        wait = self._wait()
        try:
            with turn(self.path, wait, write=False), self._connected(wait, read_only=True) as connection:
                if self._version(connection) == len(MIGRATIONS):
                    return self
            return self._copied()
        except (OSError, duckdb.Error) as error:
            refuse(self.path, error)

    def _copied(self) -> "Database":
        """Return a copy of the newest schema, made once for as long as this file stays the same."""
        status = self.path.stat()
        key = status.st_mtime_ns, status.st_size
        if self._copy is None or self._copy.key != key:
            folder = tempfile.mkdtemp(prefix="diffmem-")
            try:
                copy = self.copy_to(Path(folder))
                with copy.writing():
                    self._copy = _Copy(key, copy)
                weakref.finalize(copy, shutil.rmtree, folder, ignore_errors=True)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return self._copy.store

    def copy_to(self, folder: Path) -> "Database":
        """Copy the file, and what it has not taken over from its write-ahead log, into a folder."""
        place, wait = folder / self.path.name, self._wait()
        # a file that was opened drops DuckDB's lock once it is closed, so this thread must have none
        with turn(self.path, wait, write=True), self._locked_if_possible(wait):
            try:
                before = None
                while before != (before := self._stamp()):  # where no lock keeps others from writing meanwhile
                    for suffix in ("", ".wal"):
                        Path(f"{place}{suffix}").unlink(missing_ok=True)
                        with suppress(FileNotFoundError):
                            shutil.copyfile(f"{self.path}{suffix}", f"{place}{suffix}")
            except OSError as error:
                raise StoreUnavailable(
                    f"{self.path}: cannot be copied to {folder}: {error.strerror or error}; "
                    "free some space, or name another folder with TMPDIR"
                ) from error
        copy = Database(place, check=self.check)
        copy.is_copy = True
        return copy

    @contextmanager
    def _locked_if_possible(self, wait: Wait) -> Iterator[None]:
        """Hold the lock file, unless its folder cannot be written."""
        with ExitStack() as stack:
            with suppress(OSError):
                stack.enter_context(self._locked(wait))
            yield

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        """Return when the file and its write-ahead log were written, and their sizes."""
        stats = [os.stat(name) for name in (self.path, f"{self.path}.wal") if os.path.exists(name)]  # noqa: PTH110, PTH116
        return tuple((each.st_mtime_ns, each.st_size) for each in stats)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries of the block in this thread see the store at one moment; writers wait until it ends."""
        with self.reading() as connection:
            self._snapshot.connection = connection
            try:
                yield
            finally:
                self._snapshot.connection = None

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query of diffmem's own, each as a dict by column name; a fault is the store's."""
        with self._reading_or_snapshot() as connection:
            try:
                result = connection.execute(sql, list(parameters))
                names = [column[0] for column in result.description or ()]
                return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
            except (ValueError, OverflowError) as error:  # a time or a text that Python cannot hold
                raise StoreError(f"{self.path}: {DAMAGED}") from error

    def select(
        self,
        sql: str,
        form: Callable[[duckdb.DuckDBPyConnection], Answer],
        parameters: Sequence[Any] = (),
        *,
        limits: Limits = NO_LIMITS,
    ) -> Answer:
        """Return what one SELECT of a user gives, in some form; StoreError where it is none, or DuckDB refuses it."""
        with self._reading_or_snapshot(files=None if limits.files else (), settings=limits.settings) as connection:
            return select(connection, sql, form, parameters, limits=limits)

    def _reading_or_snapshot(self, **how: Any) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        connection = self._snapshot.connection
        return nullcontext(connection) if connection else self.reading(**how)

    # --- opening ---

    def _wait(self) -> Wait:
        return Wait(self.path, self.patience, self.on_wait)

    @contextmanager
    def _connected(
        self,
        wait: Wait,
        *,
        read_only: bool,
        files: Sequence[Path] | None = (),
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Connect, looking again while another program holds the file."""
        config: dict[str, Any] = {**(CLOSED if files is None or files else LOCKED), **settings}
        # absolute, for DuckDB gives `:memory:` and names like `s3:...` a meaning of their own
        connect = partial(duckdb.connect, self.path.absolute(), read_only=read_only, config=config)
        connection = wait.until(connect, holder_in)
        wait.over()
        try:
            if files:
                lock(connection, [str(file.absolute()) for file in files])
            elif files is None:
                connection.execute("SET lock_configuration = true")
            yield connection
        finally:
            connection.close()

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Return how many migrations the file has had; StoreError if it is no store, a newer one, or holds what no
        diffmem makes."""
        found = None if self._checked else objects(connection)
        if found is not None and ("table", "main", "migrations") not in {each[:3] for each in found}:
            if found:
                raise StoreError(f"{self.path}: a DuckDB file, but not a diffmem store; name another one")
            return 0
        if found is not None and not is_plain(found):
            self._refuse_objects(difference(found, MIGRATIONS))
        version = max((row[0] for row in connection.execute("SELECT version FROM migrations").fetchall()), default=0)
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: made by a newer diffmem (schema {version}, this one knows {len(MIGRATIONS)}); "
                "upgrade diffmem, or name another store"
            )
        if found is not None and (fault := difference(found, MIGRATIONS[:version])):
            self._refuse_objects(fault)
        if found is not None and self.check and version == len(MIGRATIONS) and (fault := any_broken(connection)):
            raise StoreError(f"{self.path}: {fault}; `diffmem store check` lists what else is wrong")
        self._checked = version == len(MIGRATIONS)
        return int(version)

    def _migrate(self, wait: Wait, done: int) -> None:
        """Bring the file, which has had `done` migrations, up to date; what was there before is kept beside it."""
        if done and not self.is_copy:
            self._keep(wait, done)
        with self._connected(wait, read_only=False) as connection:
            done = self._version(connection)  # again: if the lock file was deleted, another process may have done it
            for number, migration in enumerate(MIGRATIONS[done:], start=done + 1):
                connection.begin()
                try:
                    connection.execute(MIGRATIONS_TABLE)
                    apply(connection, migration, self.path)
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", [number, utc_now()])
                    connection.commit()
                except BaseException:
                    with suppress(duckdb.Error):
                        connection.rollback()
                    raise
                if done or number == len(MIGRATIONS):  # of a new store, one is enough
                    connection.execute("CHECKPOINT")

    def _keep(self, wait: Wait, done: int) -> None:
        """Copy the file before it is migrated, for whoever goes back to the diffmem that wrote it."""
        with self._connected(wait, read_only=False) as connection:
            connection.execute("CHECKPOINT")  # so that the file alone has everything
        kept = self.path.with_name(f"{self.path.name}.schema-{done}")
        try:
            with whole(kept) as place:
                shutil.copyfile(self.path, place)
        except DiffmemError as error:
            raise StoreUnavailable(f"{self.path}: cannot be brought up to date: {error}") from error
        logger.warning("%s: brought up to date for this diffmem; as it was before, it is kept as %s", self.path, kept)

    # --- what goes wrong ---

    def _refuse_objects(self, fault: str) -> NoReturn:
        raise StoreError(f"{self.path}: {fault}; drop or restore it with DuckDB, or name another store")

    def _gone(self) -> str:
        return (
            f"{self.path}: the store is gone (was it moved, or its disk removed?); once it is back, run the same "
            "command to resume"
        )


class _Copy(NamedTuple):
    """A migrated copy of a store."""

    key: tuple[int, int]  # when the file was written that it is a copy of, and its bytes
    store: Database


def _holder(path: Path) -> tuple[str, int]:
    """Return who holds a lock file, as its holder has written into it, and when that was written."""
    with suppress(OSError, UnicodeDecodeError):
        if text := path.read_text(encoding="utf-8"):
            return text, path.stat().st_mtime_ns
    return "another program", 0


def utc_now() -> datetime:
    """Return the time in UTC, without a zone, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)
