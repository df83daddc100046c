"""Ray, which is imported where a cluster is asked for, and connected to one."""

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffmem.errors import DiffmemError, RunError

CLIENT_PORT = "10001"
"""Where Ray listens for programs that run on no node of the cluster, which a driver does."""

ANSWER = 10.0
"""Seconds in which a cluster answers."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Give Ray, connected to a cluster; DiffmemError where it is not installed, RunError where no cluster answers."""
    with _own_signals():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise DiffmemError("--cluster ray needs Ray: `pip install 'diffmem[ray]'`, on every node") from None
        own = not ray.is_initialized()
        if own:
            try:
                if address is not None:
                    _check_answers(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray's own are of many kinds
                where = address or "this machine"
                raise RunError(
                    f"--cluster: no Ray cluster can be used at {where}: {' '.join(str(error).split())}; `ray start "
                    "--head` starts one, and prints its address"
                ) from error
    try:
        yield ray
    finally:
        if own:
            with _own_signals():
                ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError where nobody answers at an address, at which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port == CLIENT_PORT:
        raise ValueError(f"port {CLIENT_PORT} is that of Ray Client, and the head's own is needed (6379)")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def raise_file_limit() -> None:
    """Let this process have as many files open as the system allows, as each cell that is trained holds a lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of this process, some of which Ray replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    had = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, had[number])
