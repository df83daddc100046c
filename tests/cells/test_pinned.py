"""The numbers of five cells, as they were measured once: they cannot change without RESULTS_VERSION.

A store keeps what was measured under a cell's id. If the same settings came to mean other numbers, new checkpoints
would stand beside old ones of the same id in silence. So if this fails, the change is a fault, or RESULTS_VERSION must
be raised and the numbers measured again (`python test_pinned.py` in this folder prints them).
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny

from diffmem.cells.cell import RESULTS_VERSION
from diffmem.runs.runner import run_study
from diffmem.store.store import Store

VERSION = 2
"""The RESULTS_VERSION of these numbers."""

STEPS = """
[T]
epochs = 6
batch_size = 8
lr = 2e-3
warmup_epochs = 2

[score]
samples = 40
every = 3
steps = 4
"""
CELLS = {
    "ddpm++ with dropout, as in the paper": """
[P]
dataset = "digits"
size = 8
[M]
width = 8
channel_mult = [1, 2]
blocks = 1
""",
    "ncsn++ on enlarged sets, in random order": """
[P]
dataset = "digits"
size = 20
draw = "first"
[M]
network = "ncsn++"
precondition = "ve"
width = 8
channel_mult = [2, 2]
blocks = 1
skips = "11 01"
""",
    "edm with true labels, weight decay and momentum": """
[P]
dataset = "digits"
size = 12
classes = 3
draw = 2
[M]
precondition = "edm"
condition = "true"
width = 8
channel_mult = [1, 1]
blocks = 1
""",
    "unique labels, another seed, no dropout": """
[P]
dataset = "digits"
size = 10
[M]
precondition = "edm"
condition = "unique"
dropout = 0.0
embedding = "fourier"
width = 8
channel_mult = [2]
blocks = 2
""",
    "the optimum with random labels": """
[P]
dataset = "digits"
size = 30
[M]
network = "optimum"
condition = "random"
labels = 3
""",
}
MORE = {
    "ncsn++ on enlarged sets, in random order": 'shuffle = "epoch"\nema = 0.9\n',
    "edm with true labels, weight decay and momentum": 'optimizer = "sgd"\nmomentum = 0.8\nweight_decay = 1e-2\n',
    "unique labels, another seed, no dropout": "seed = 3\n",
}
PINNED = json.loads((Path(__file__).parents[1] / "golden" / "pinned.json").read_text())


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Return the id of a cell, and of its last checkpoint loss, memorized images and distances."""
    text = 'title = "Pinned"\n' + CELLS[name] + STEPS.replace("[T]\n", "[T]\n" + MORE.get(name, ""))
    study = tiny.load(folder, text, "pinned")
    store = Store(folder / "store.duckdb")
    list(run_study(study, store))
    (point,) = store.rows("SELECT * FROM checkpoints QUALIFY epoch = max(epoch) OVER ()")
    evidence = store.rows("SELECT * FROM evidence WHERE epoch = ? ORDER BY sample", [point["epoch"]])
    return {
        "cell_id": point["cell_id"],
        "loss": point["loss"],
        "memorized": point["memorized"],
        "nearest": [row["nearest"] for row in evidence],
        "d1": sum(row["d1"] for row in evidence),
        "d2": sum(row["d2"] for row in evidence),
    }


def test_the_numbers_below_are_of_this_version() -> None:
    assert RESULTS_VERSION == VERSION
    assert PINNED.keys() == CELLS.keys()


@pytest.mark.parametrize("name", CELLS)
def test_the_numbers_of_a_cell_are_what_they_were(name: str, tmp_path: Path) -> None:
    found, pinned = measured(name, tmp_path), PINNED[name]
    assert found["cell_id"] == pinned["cell_id"]
    # another machine rounds otherwise, in the seventh digit; other masks of dropout show in the fourth
    assert found["loss"] == (None if pinned["loss"] is None else pytest.approx(pinned["loss"], rel=2e-5))
    assert found["d1"] == pytest.approx(pinned["d1"], rel=2e-3)
    assert found["d2"] == pytest.approx(pinned["d2"], rel=2e-3)
    assert abs(found["memorized"] - pinned["memorized"]) <= 1
    assert sum(a != b for a, b in zip(found["nearest"], pinned["nearest"], strict=True)) <= 2


if __name__ == "__main__":
    with TemporaryDirectory() as outer:
        folders = {name: Path(outer) / str(number) for number, name in enumerate(CELLS)}
        for folder in folders.values():
            folder.mkdir()
        print(json.dumps({name: measured(name, folder) for name, folder in folders.items()}, indent=1))  # noqa: T201
