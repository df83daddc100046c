"""How far a run is: the lines of a board without a terminal, and what its processes send to it."""

import json
import os
import subprocess
import sys
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
import tiny

from diffmem.cli.board import Board
from diffmem.cli.relay import ADDRESS, KEY, Relay

STEP = {"rank": 0, "doing": "N = 8", "unit": "step", "done": 10, "of": 100, "about": "loss 1.5"}
SPEAKS = """
import sys
from diffmem.cli.relay import relayed
sender = relayed(int(sys.argv[1]))
print("one line\\nand a half", end="")
print("an error", file=sys.stderr)
sender.send(ended="finished")
sys.stdout.flush()
"""


def test_a_line_says_how_many_cells_are_done_and_what_each_process_does():
    board = Board(4, shown=False)
    board.hear(STEP)
    board.hear(STEP | {"rank": 1, "doing": "N = 16", "unit": "image", "done": 8, "of": 20})
    assert str(board) == "0 of 4 cells done; N = 8: step 10 of 100; N = 16: image 8 of 20"
    board.hear({"rank": 1, "ended": "finished"})
    assert str(board) == "1 of 4 cells done; N = 8: step 10 of 100"


def test_a_line_has_the_rate_and_the_time_left_of_what_is_done_now():
    now = iter([0.0, 10.0, 20.0, 24.0, 30.0, 36.0]).__next__
    board = Board(1, shown=False, clock=now)
    board.hear(STEP)
    board.hear(STEP | {"done": 60})
    assert str(board) == "0 of 1 cells done; N = 8: step 60 of 100, 5 a second, 8 s left"
    images = STEP | {"unit": "image", "of": 40}
    board.hear(images)  # the time of generating is none of the steps
    board.hear(images | {"done": 30})
    assert str(board) == "0 of 1 cells done; N = 8: image 30 of 40, 5 a second, 2 s left"
    board.hear(STEP | {"done": 60})
    board.hear(STEP | {"done": 70})
    assert str(board) == "0 of 1 cells done; N = 8: step 70 of 100, 1.67 a second, 18 s left"


def test_a_cell_that_another_process_has_is_not_done():
    board = Board(2, shown=False)
    board.hear({"rank": 0, "ended": "busy elsewhere"})
    assert str(board) == "0 of 2 cells done"
    board.hear({"rank": 0, "ended": "failed"})
    assert str(board) == "1 of 2 cells done"


def test_without_a_terminal_a_line_comes_now_and_then(capsys):
    board = Board(3, every=0.01)
    board.hear(STEP)
    printed = ""
    for _ in range(500):
        threading.Event().wait(0.01)
        printed += capsys.readouterr().out
        if "N = 8" in printed:
            break
    board.close()
    assert "0 of 3 cells done; N = 8: step 10 of 100" in printed


def test_what_processes_print_arrives_whole_with_its_stream():
    heard = []
    relay = Relay(heard.append)
    workers = [subprocess.Popen([sys.executable, "-c", SPEAKS, str(rank)], env=tiny.environment()) for rank in (0, 1)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    relay.close()
    for rank in (0, 1):
        assert [message for message in heard if message["rank"] == rank] == [
            {"rank": rank, "text": "one line", "err": False},
            {"rank": rank, "text": "an error", "err": True},
            {"rank": rank, "ended": "finished"},
            {"rank": rank, "text": "and a half", "err": False},
        ]


def test_only_who_knows_the_key_is_heard():
    heard = []
    relay = Relay(heard.append)
    address, key = os.environ[ADDRESS], bytes.fromhex(os.environ[KEY])
    with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
        Client(address, authkey=b"another")
    with Client(address, authkey=key) as connection:  # who comes after is heard all the same
        connection.send_bytes(json.dumps({"rank": 0, "text": "heard", "err": False}).encode())
    for _ in range(500):
        if heard:
            break
        threading.Event().wait(0.01)
    relay.close()
    assert [message["text"] for message in heard] == ["heard"]
    assert ADDRESS not in os.environ
