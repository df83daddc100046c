"""What the processes of a run say and how far they are, sent to the one process that has the terminal."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from tempfile import TemporaryDirectory
from typing import Any, TextIO

ADDRESS, KEY = "DIFFMEM_RELAY", "DIFFMEM_RELAY_KEY"
"""Environment variables with which `diffmem run` tells its processes where to send what they say."""

Message = Mapping[str, Any]
"""`rank`, the process, and what it says (`text`, `err`), or what its `Doing` tells of a cell."""


class Relay:
    """Receives what the processes of a run send, and hands each message on, in threads of its own.

    Messages are JSON, so that what another program sends can do no harm, and only who knows the key can send any.
    """

    def __init__(self, receive: Callable[[Message], None]) -> None:
        self.receive = receive
        key = os.urandom(32)
        # the path of a socket may have about 100 characters, and TMPDIR may be longer
        self.folder = TemporaryDirectory(prefix="diffmem-", dir="/tmp")
        self.listener = Listener(f"{self.folder.name}/relay", backlog=128, authkey=key)
        os.environ |= {ADDRESS: str(self.listener.address), KEY: key.hex()}
        self.threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # which `close` causes
            while True:
                try:
                    connection = self.listener.accept()
                except (EOFError, ConnectionError, AuthenticationError):  # died as it came, or does not know the key
                    continue
                self.threads.append(threading.Thread(target=self._read, args=(connection,), daemon=True))
                self.threads[-1].start()

    def _read(self, connection: Connection) -> None:
        with suppress(EOFError, OSError), connection:
            while True:
                self.receive(json.loads(connection.recv_bytes()))

    def close(self) -> None:
        """Wait for what the processes, which have ended, have sent last."""
        for thread in self.threads:
            thread.join(timeout=5)
        self.listener.close()
        self.folder.cleanup()
        for name in (ADDRESS, KEY):
            os.environ.pop(name, None)


class Sender:
    """Sends what this process says to the relay of its run."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lock = threading.Lock()
        self.connection = Client(os.environ[ADDRESS], authkey=bytes.fromhex(os.environ[KEY]))

    def send(self, **message: Any) -> bool:
        """Send a message; return whether somebody was there to take it."""
        try:
            with self.lock:
                self.connection.send_bytes(json.dumps({"rank": self.rank, **message}).encode())
        except OSError:
            return False
        return True


class SentText:
    """A text stream whose whole lines are sent, or go to a stream of its own once nobody takes them."""

    encoding = "utf-8"

    def __init__(self, sender: Sender, own: TextIO, *, err: bool) -> None:
        self.sender, self.own, self.err, self.rest = sender, own, err, ""

    def write(self, words: str) -> int:
        """Take a text; send the lines that are whole."""
        *lines, self.rest = (self.rest + words).split("\n")
        if lines:
            self._say("\n".join(lines))
        return len(words)

    def flush(self) -> None:
        """Send what is left of a line."""
        if self.rest:
            self._say(self.rest)
            self.rest = ""

    def _say(self, text: str) -> None:
        if not self.sender.send(text=text, err=self.err):
            self.own.write(f"{text}\n")
            self.own.flush()

    def isatty(self) -> bool:
        """Return that it is no terminal."""
        return False


def relayed(rank: int) -> Sender | None:
    """Send all that this process prints to the relay of its run; None if it has none, or its launcher has died."""
    if ADDRESS not in os.environ:
        return None
    try:
        sender = Sender(rank)
    except (OSError, EOFError):
        return None
    streams: tuple[Any, Any] = SentText(sender, sys.stdout, err=False), SentText(sender, sys.stderr, err=True)
    sys.stdout, sys.stderr = streams
    return sender
