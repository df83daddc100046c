"""A terminal for tests: a command with a pseudo-terminal as its screen and keyboard, and what is on the screen then."""

import os
import pty
import re
import signal
import subprocess
from contextlib import suppress
from fcntl import ioctl
from select import select
from struct import pack
from termios import TIOCSCTTY, TIOCSWINSZ

import tiny

ROWS, COLUMNS = 40, 200
LOOK, LONGEST = 10.0, 300.0
"""Seconds between two looks whether something is drawn, and after which a command hangs."""
ECHO = b"^C"
"""What a terminal shows of a Ctrl-C that nobody has heard yet."""
CONTROL = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def on_terminal(
    *arguments: object, answer: tuple[str, str] = ("", ""), until: str | None = None, **more: str
) -> tuple[int | None, str]:
    """Run `diffmem` on a terminal; return its exit code and all that it has drawn, control sequences included.

    Once the words `answer[0]` are drawn, `answer[1]` is typed, and again as long as nothing comes of it: a Ctrl-C
    before readline waits for keys is kept until the next one. Once the words `until` are drawn, the command is killed
    and its exit code is None. A command from which nothing comes for minutes is killed too, which fails the test.
    """
    screen, side = pty.openpty()
    ioctl(side, TIOCSWINSZ, pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(
        tiny.command(*map(str, arguments)),
        env=tiny.environment(TERM="xterm-256color", COLUMNS=str(COLUMNS), **more),
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, TIOCSCTTY, 0),  # a typed Ctrl-C goes to who has the terminal
    ) as process:
        os.close(side)
        drawn, question, typed = b"", answer[0].encode(), b""
        with suppress(OSError):  # how a terminal ends that nobody has open any more
            while new := _drawn_next(screen, process, typed if drawn.replace(ECHO, b"").endswith(question) else b""):
                drawn += new
                if question and question in drawn and not typed:
                    typed = answer[1].encode()
                    os.write(screen, typed)
                if until is not None and until.encode() in drawn:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
        killed = until is not None and until.encode() in drawn
    os.close(screen)
    return None if killed else process.returncode, drawn.decode(errors="replace")


def _drawn_next(screen: int, process: subprocess.Popen[bytes], again: bytes) -> bytes:
    """Return what is drawn next, typing `again` as long as nothing is."""
    for _ in range(int(LONGEST / LOOK)):
        if select([screen], [], [], LOOK)[0]:
            return os.read(screen, 65536)
        if again:
            os.write(screen, again)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(f"nothing has been drawn for {LONGEST} seconds")


def left_on_screen(drawn: str) -> list[str]:
    """Return the lines of a terminal after all of this has been drawn: what is erased or overwritten is gone."""
    lines, row, column = [""], 0, 0
    for numbers, code, feed, text in CONTROL.findall(drawn):
        count = int(numbers) if numbers.isdecimal() else 1
        if feed == "\n":
            row, column = row + 1, 0
        elif feed == "\r":
            column = 0
        elif code == "A":
            row = max(0, row - count)
        elif code == "K" and numbers == "2":
            lines[row] = ""
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines if line.strip()]
