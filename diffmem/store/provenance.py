"""Where a measurement was made and with what: host, device, versions, and the commit of the code that ran."""

import os
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from diffmem.store.given import Provenance


def provenance(device: torch.device, *, processes: int = 1, compiled: bool = False) -> Provenance:
    """Return where this process runs and with what, how many of its kind work together, and whether compiled."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    tracked = (
        _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    )  # not a copy inside another's project
    commit = _git("rev-parse", "HEAD") if tracked else None
    changes = _git("status", "--porcelain", "--untracked-files=no") if tracked else None
    text = f"{device.type} ({name}, {torch.get_num_threads()} threads)" if device.type == "cpu" else name
    text += ", compiled" * compiled
    return Provenance(
        host=socket.gethostname(),
        pid=os.getpid(),
        device=text if processes == 1 else f"{processes} x {text}",
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,  # with what it is built for, which the package's version may leave out
            **{package: version(package) for package in ("diffmem", "accelerate", "numpy", "duckdb")},
        },
        git_commit=commit,
        git_dirty=None if changes is None else bool(changes),
    )


def _git(*arguments: str) -> str | None:
    """Return what git says of the source that runs; None where it is no checkout or git is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
