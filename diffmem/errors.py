"""The errors that diffmem raises for things a user can put right."""

from collections.abc import Sequence


class DiffmemError(Exception):
    """Base of every error that a user can cause: one sentence says what is wrong, where, and what to do next."""

    exit_code = 2  # the user's input is wrong; 1: it was right, but the work could not be done


class StudyError(DiffmemError):
    """The mistakes in a study file, all of them, each as `file:line: key: what is wrong`."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class DataError(DiffmemError):
    """A training set that cannot be made."""


class NoSuchData(DataError):
    """A path or a pattern that names no file and no folder."""


class SizeError(DataError):
    """Images that have no common size, or would be enlarged to it: the command says how to ask for one."""


class ImageWarning(UserWarning):
    """Images were read in a way that their caller may not have meant."""


class StoreError(DiffmemError):
    """A store that is missing, is not a store, or cannot be written."""


class NotInStore(StoreError):
    """A name that a store does not have."""


class StoreUnavailable(StoreError):
    """A store that is right but cannot be used now: locked, or its disk is full."""

    exit_code = 1


class StoreHeld(StoreUnavailable):
    """A store that another program, process or thread has open."""


class RunError(DiffmemError):
    """A run that cannot start, or a cell that cannot be finished."""

    exit_code = 1


class MachineError(RunError):
    """Space, memory, a lock or a permission that the machine lacked: no fault of a cell, which the next run resumes."""


class OutOfMemory(MachineError):
    """Memory that one cell needs and the machine lacks; other cells may need less."""

    def __init__(self) -> None:
        super().__init__(
            "out of memory; lower T.batch_size or M.width, or only score.batch_size if it was while generating"
        )
