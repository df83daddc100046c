"""Reading .npz files without trusting them: what an array claims is checked before memory is taken for it."""

import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffmem.data.limits import first_line
from diffmem.errors import DataError

CHUNK = 1 << 24
"""Bytes that are read at once."""


class Claim(NamedTuple):
    """What the header of an array says it is."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Npz:
    """An open .npz: the names of its arrays, what they claim to be, and their values."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file
        self.names = [name.removesuffix(".npy") for name in file.namelist()]
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ValueError(f"it has {twice[0]!r} twice")

    def claim(self, name: str) -> Claim | None:
        """Return what an array claims to be; None if there is none of this name."""
        if name not in self.names:
            return None
        with self.file.open(self._entry(name)) as stream:
            return _header(stream, name)

    def read(self, claim: Claim) -> npt.NDArray[Any]:
        """Return the values of an array, if it has as many as it claims."""
        return np.concatenate([np.empty((0, *claim.shape[1:]), claim.dtype), *self.blocks(claim)])

    def blocks(self, claim: Claim) -> Iterator[npt.NDArray[Any]]:
        """Yield the rows of an array in blocks, if it has as many as it claims; one in Fortran's order as a whole."""
        entry = self._entry(claim.name)
        with self.file.open(entry) as stream:
            _header(stream, claim.name)
            held = entry.file_size - stream.tell()
            if held != claim.nbytes:
                raise ValueError(f"{claim.name!r} claims {claim.nbytes} bytes, but has {held}")
            if claim.fortran:
                yield _filled(stream, claim.nbytes).view(claim.dtype).reshape(claim.shape, order="F")
                return
            count = claim.shape[0] if claim.shape else 1
            row = claim.nbytes // max(count, 1)
            at_once = max(1, CHUNK // max(row, 1))
            for start in range(0, count, at_once):
                rows = min(at_once, count - start)
                yield _filled(stream, rows * row).view(claim.dtype).reshape(rows, *claim.shape[1:])

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.file.NameToInfo.get(f"{name}.npy") or self.file.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without bounds
            raise ValueError(f"{name!r} is compressed in another way than numpy does it")
        return entry


def _filled(stream: IO[bytes], length: int) -> npt.NDArray[np.uint8]:
    """Return so many bytes of a stream; ValueError if it ends early."""
    values = np.empty(length, dtype=np.uint8)
    for start in range(0, length, CHUNK):
        part = stream.read(min(CHUNK, length - start))
        values[start : start + CHUNK] = np.frombuffer(part, dtype=np.uint8)
    return values


@contextmanager
def opened(path: Path) -> Iterator[Npz]:
    """Open a .npz; whatever is wrong with it inside the block is a DataError."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a .npz that can be read (no zip file)")
    try:
        with zipfile.ZipFile(path) as file:
            yield Npz(file)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise errors of many kinds on damaged files
        raise DataError(f"{path}: not a .npz that can be read ({first_line(error)})") from error


def _header(stream: IO[bytes], name: str) -> Claim:
    """Read the header of an array of plain values, as numpy writes it: of version 1, which is short."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name!r} has a header of version {version[0]}.{version[1]}, not 1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that Python 2 has written
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which are not loaded")
    if any(length < 0 for length in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    return Claim(name, dtype, shape, fortran)
