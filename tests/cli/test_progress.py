"""What a run of several cells at once says, each line of its own cell, and what it tells of each."""

from pathlib import Path
from typing import Any

import tiny

from diffmem.cli.board import Board
from diffmem.cli.progress import show
from diffmem.runs import CellEnded, CellLost, CellStarted, Connected, Ended, Event, Generated, Measured, Saved, Trained


def events(folder: Path) -> list[Event]:
    """Return what two cells do in turn, of which the second loses its node once."""
    first, second = tiny.load(folder, tiny.TEXT).distinct
    return [
        Connected(nodes=3, cpus=2, gpus=0, at_once=2),
        CellStarted(first, 0, 30),
        CellStarted(second, 0, 30),
        Trained(first.cell, 12, 0.5),
        Saved(first.cell, 12),
        Generated(second.cell, 12, 12),
        Measured(first.cell, 12, 0.25, 0.5),
        CellLost(second, "its node or its process died (NodeDiedError)"),
        CellStarted(second, 12, 30),
        Measured(second.cell, 12, 0.75, 0.5),
        CellEnded(first, Ended.FINISHED),
        CellEnded(second, Ended.FAILED, "too large"),
    ]


def test_each_line_names_its_cell(tmp_path: Path) -> None:
    said: list[str] = []
    outcomes = show(iter(events(tmp_path)), total=2, say=said.append, tell=lambda **_: None, several=True)
    assert said == [
        "a cluster of 3 nodes, 2 CPUs and 0 GPUs: 2 cells at once",
        "cell M.dropout = 0.0, 30 steps",
        "cell M.dropout = 0.2, 30 steps",
        "M.dropout = 0.0: epoch 12: memorization ratio 0.250  loss 0.5",
        "cell M.dropout = 0.2: its node or its process died (NodeDiedError); another one goes on from its last saved "
        "state",
        "cell M.dropout = 0.2, going on at step 12 of 30",
        "M.dropout = 0.2: epoch 12: memorization ratio 0.750  loss 0.5",
        "cell M.dropout = 0.2 failed: too large",
    ]
    assert outcomes == {"finished": 1, "failed": 1}


def test_a_cluster_without_room_says_that_cells_wait() -> None:
    said: list[str] = []
    show(iter([Connected(1, 0, 0, 0)]), total=2, say=said.append, tell=lambda **_: None, several=True)
    assert said == ["a cluster of 1 node, 0 CPUs and 0 GPUs: no cell has room on it yet, so all wait"]


def test_each_cell_has_a_row_of_its_own_until_it_ends(tmp_path: Path) -> None:
    board = Board(2, shown=False)
    shown: list[str] = []

    def tell(**message: Any) -> None:
        board.tell(**message)
        shown.append(str(board))

    show(iter(events(tmp_path)), total=2, say=lambda _: None, tell=tell, several=True)
    assert shown[0] == "0 of 2 cells done; M.dropout = 0.0: step 0 of 30"
    assert shown[1] == "0 of 2 cells done; M.dropout = 0.0: step 0 of 30; M.dropout = 0.2: step 0 of 30"
    assert shown[-2].startswith("1 of 2 cells done; M.dropout = 0.2: step 12 of 30")
    assert shown[-1] == "2 of 2 cells done"
