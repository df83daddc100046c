"""Training states and trained models where every node of a cluster reaches them: a folder, or an fsspec address."""

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec

from diffmem.atomic import replacing
from diffmem.errors import MachineError

STATE, WEIGHTS = "pt", "safetensors"
"""What the files of a cell end in: its training state at an optimizer step, its averaged weights at a checkpoint."""


@dataclass(frozen=True)
class Workplace:
    """Files of a store's cells at `address`, each named by its cell and the step or epoch that it is of.

    Every method raises MachineError where the address cannot be reached, or its files not be read or written.
    """

    address: str  # a folder, or what fsspec knows, as s3://bucket/folder
    store: str = "store"  # the beginning of all names: others may keep files there too
    mark: str = ""  # the name of a file by which a node tells that it sees the same files

    @classmethod
    def opened(cls, address: str, store: Path) -> "Workplace":
        """Return the files of a store at an address, with a new mark among them, and without what runs that were killed
        have left."""
        path = os.path.realpath(store)
        name = f"{store.stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        place = cls(address, name, f"{name}.{secrets.token_hex(8)}.run")
        with place._files() as (files, folder):
            files.makedirs(folder, exist_ok=True)
            files.pipe_file(f"{folder}/{place.mark}", b"")  # first, as some know no empty folders
            for left in files.ls(folder, detail=False):
                # a mark may be of a run that takes weeks, and is empty
                if left.rpartition("/")[2].startswith(f"{name}.") and left.endswith(".partial"):
                    with suppress(FileNotFoundError):
                        place._remove_old(files, left)
        return place

    @staticmethod
    def _remove_old(files: Any, path: str) -> None:
        if datetime.now(UTC) - files.modified(path).astimezone(UTC) > timedelta(days=1):
            files.rm_file(path)

    def close(self) -> None:
        """Remove the mark."""
        self._remove(self.mark)

    def check(self) -> None:
        """Raise MachineError unless this machine sees the files of the process that has opened them."""
        with self._files() as (files, folder):
            seen = files.exists(f"{folder}/{self.mark}")
        if not seen:
            raise MachineError(
                f"{self.address}: not the same files on {socket.gethostname()} as where the run was started; give a "
                "folder that all nodes share, or an address such as s3://bucket/folder, with --work"
            )

    def put(self, path: Path, cell_id: str, number: int, kind: str) -> None:
        """Copy a file of this machine there, whole or not at all."""
        with self._files() as (files, folder):
            target = f"{folder}/{self.store}.{cell_id}.{number}.{kind}"
            partial = f"{target}.{secrets.token_hex(4)}.partial"
            try:
                files.put_file(str(path), partial)
                files.mv(partial, target)
            finally:
                with suppress(FileNotFoundError):
                    files.rm_file(partial)

    def get(self, path: Path, cell_id: str, number: int, kind: str) -> None:
        """Copy a file to this machine, whole or not at all."""
        with self._files() as (files, folder), replacing(path) as partial:
            files.get_file(f"{folder}/{self.store}.{cell_id}.{number}.{kind}", str(partial))

    def numbers(self, cell_id: str, kind: str) -> list[int]:
        """Return the steps, or epochs, of which there are files of a cell, in order."""
        return sorted(number for found, number, each in self._names() if (found, each) == (cell_id, kind))

    def cells(self) -> set[str]:
        """Return the cells of which there are files."""
        return {cell_id for cell_id, _, _ in self._names()}

    def _names(self) -> list[tuple[str, int, str]]:
        """Return the files of cells, each as cell, number and kind."""
        name = re.compile(rf"{re.escape(self.store)}\.([0-9a-f]{{16}})\.(\d+)\.({STATE}|{WEIGHTS})")
        with self._files() as (files, folder):
            found = [name.fullmatch(each.rpartition("/")[2]) for each in files.ls(folder, detail=False)]
        return [(each[1], int(each[2]), each[3]) for each in found if each]

    def remove(self, cell_id: str, numbers: Iterable[int], kind: str) -> None:
        """Remove the files of a cell of these steps, or epochs, as far as they are there."""
        for number in numbers:
            self._remove(f"{self.store}.{cell_id}.{number}.{kind}")

    def remove_all(self, cell_id: str) -> None:
        """Remove all files of a cell."""
        for found, number, kind in self._names():
            if found == cell_id:
                self.remove(cell_id, [number], kind)

    def _remove(self, name: str) -> None:
        with self._files() as (files, folder), suppress(FileNotFoundError):
            files.rm_file(f"{folder}/{name}")

    @contextmanager
    def _files(self) -> Iterator[tuple[Any, str]]:
        """Give the file system of the address, as it is now, and the folder in it."""
        try:
            files, folder = fsspec.url_to_fs(self.address)
            files.invalidate_cache()  # other machines write there too
            yield files, folder
        except MachineError:
            raise
        except ImportError as error:
            raise MachineError(f"{self.address}: {error}") from error
        except Exception as error:  # a network's errors are of many kinds
            said = (error.strerror if isinstance(error, OSError) else "") or " ".join(str(error).split())
            raise MachineError(f"{self.address}: cannot keep the files of a run there: {said}") from error
