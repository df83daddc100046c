"""Ending a process of a run whose launcher has ended: nobody else would."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

LAUNCHER = "DIFFMEM_LAUNCHER"
"""Environment variable in which `diffmem run --processes N` gives its processes its own process number."""
PARENT = os.getppid()
"""The launcher, if it is torchrun or `accelerate launch`; read early, before it can have died unnoticed."""
POLL = 1.0
"""Seconds between two looks whether the launcher is still there."""
GRACE = 40.0
"""Seconds that a process has to save its training state and end."""


class OrphanWatch:
    """Ends this process if its launcher ends: at once until `joined` is called, then by the `stop` given to that."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun, by `accelerate launch` or by ourselves
            threading.Thread(target=self._watch, daemon=True).start()

    def joined(self, stop: Callable[[], None]) -> None:
        """Note that the processes have found each other: from now on there may be something to save."""
        self.stop = stop

    def _watch(self) -> None:
        launcher = int(os.environ.get(LAUNCHER, "0")) or PARENT
        while os.getppid() == launcher and not _inherited(launcher):
            time.sleep(POLL)
        if self.stop is None:  # the main thread waits for the others in C++ and cannot be asked to stop
            os.write(2, b"the launcher of this run has ended, so this process ends too; run the same command again\n")
            os._exit(1)
        os.write(2, b"the launcher of this run has ended, so this process saves its training state and stops\n")
        self.stop()
        time.sleep(GRACE)
        os._exit(1)


def _inherited(launcher: int) -> bool:
    """Return whether a process was handed to the system's first one, and is not started by it, as in a container."""
    try:
        return launcher == 1 and "python" not in Path("/proc/1/exe").readlink().name
    except OSError:  # it is another user's, so it did not start this process
        return launcher == 1
