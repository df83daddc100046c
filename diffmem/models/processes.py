"""The processes that train one cell together: who of them this one is, its share, and how they add up."""

import ctypes
import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from diffmem.errors import DiffmemError, OutOfMemory, RunError

CPU = torch.device("cpu")


def this_device() -> torch.device:
    """Return the device that would train here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


NO_MEMORY = re.compile(
    "can't allocate memory"  # torch's allocator on a CPU
    "|std::bad_alloc"  # C++ beneath torch
    "|could not create a primitive$"  # oneDNN, without room for a kernel's code; more words after it: another failure
    "|CUDA error: out of memory"
    "|CUBLAS_STATUS_ALLOC_FAILED"
    "|CUDNN_STATUS_ALLOC_FAILED"
)
"""What libraries say of too little memory, in errors that have no type of their own."""


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether the memory of the device or of the machine has run out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def give_back_memory(error: BaseException | None) -> None:
    """Let go of what the frames of an error and of its causes hold, as the tensors of a step that failed, and give back
    to the system what the allocator would keep for later."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    with suppress(OSError, AttributeError):  # a system whose C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


class LostProcess(RunError):
    """Another process of the group has ended in the middle of the work."""


@dataclass(frozen=True)
class Group:
    """Process number `rank` of `count`; every method is called by all of them, in the same order."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Return whether this is the process that writes for all."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Return which of `size` things are this process's, in one piece."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes, equal to the last bit in all of them."""
        if self.count > 1:
            with _Together():
                distributed.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; waits for the device."""
        if self.count == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        self.sum_(flags)
        return bool(flags.item())

    def first(self, values: list[int]) -> list[int]:
        """Return the values of the first process, whatever the others have, which is as many."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64, device=self.device)
        with _Together():
            distributed.broadcast(tensor, src=0)
        return tensor.tolist()

    def gather(self, tensor: Tensor, size: int) -> Tensor:
        """Return the shares [n, ...] of all processes as one [size, ...], on the device of `tensor`."""
        if self.count == 1:
            return tensor
        whole = torch.zeros(size, *tensor.shape[1:], dtype=tensor.dtype, device=self.device)
        whole[self.share(size)] = tensor.to(self.device)
        self.sum_(whole)
        return whole.to(tensor.device)

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Raise OutOfMemory in every process if memory runs out in one of them in the block, which sends nothing.

        What is wrong with its input, an error of diffmem's own, ends the block in all of them too: as it is where it
        was met, and as a RunError that says so in the others.
        """
        short: Exception | None = None
        wrong: DiffmemError | None = None
        try:
            yield
        except Exception as error:
            if ran_out_of_memory(error):
                short = error
            elif isinstance(error, DiffmemError) and not isinstance(error, LostProcess):
                wrong = error
            else:
                raise
        if self.any(short is not None):
            raise OutOfMemory from short
        if self.any(wrong is not None):
            raise wrong or RunError("it failed in another process of the run, whose own message says why")


ALONE = Group()


class _Together:
    """Turns what torch says of a broken connection into LostProcess."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End, or raise LostProcess."""
        if isinstance(error, RuntimeError):
            raise LostProcess(f"another process of the run has ended ({str(error).splitlines()[0]})") from error
