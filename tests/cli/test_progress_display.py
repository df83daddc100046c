"""How far a run is, on a terminal."""

import os
import pty
import re
import subprocess
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest
import tiny


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    return tmp_path


def on_terminal(*arguments: object) -> tuple[int, str]:
    """Run `diffmem` on a terminal; return its exit code and all that it has drawn, control sequences included."""
    screen, side = pty.openpty()
    ioctl(side, TIOCSWINSZ, pack("HHHH", 40, 140, 0, 0))
    env = tiny.environment(TERM="xterm-256color", COLUMNS="140")
    with subprocess.Popen(tiny.command(*map(str, arguments)), env=env, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        seen = b""
        with suppress(OSError):  # how a terminal ends that nobody has open any more
            while drawn := os.read(screen, 65536):
                seen += drawn
    os.close(screen)
    return process.returncode, seen.decode(errors="replace")


LONGER = tiny.TEXT.replace("epochs = 30 ", "epochs = 300").replace("every = 12", "every = 120")


def test_several_processes_have_one_display_and_each_line_names_its_cell(folder):
    tiny.write(folder, LONGER)
    code, seen = on_terminal("run", "tiny.toml", "--processes", "2", "--split", "cells")
    assert code == 0, seen[-2000:]
    assert "━" in seen, "bars"
    assert "0/2" in seen
    assert re.search(r"M\.dropout = 0\.0 .*\d+/300", seen)
    assert re.search(r"M\.dropout = 0\.2 .*\d+/300", seen)
    assert "M.dropout = 0.2: epoch 300: memorization ratio " in seen
    assert "[0]" not in seen
    assert "[1]" not in seen


def test_one_process_shows_its_cell_and_its_steps(folder):
    tiny.write(folder, LONGER)
    code, seen = on_terminal("run", "tiny.toml")
    assert code == 0, seen[-2000:]
    assert re.search(r"M\.dropout = 0\.0 .*\d+/300", seen)
    assert "cell 2/2 M.dropout = 0.2, 300 steps" in seen


def test_a_quiet_run_draws_nothing(folder):
    tiny.write(folder)
    code, seen = on_terminal("run", "tiny.toml", "--quiet")
    assert code == 0
    assert "━" not in seen
