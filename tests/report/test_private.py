"""What a page does not say of the machines and people behind it."""

import dataclasses
import getpass
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import tiny
from plotly.offline import get_plotlyjs

import diffmem
from diffmem.external.score import score_images
from diffmem.report.page import render_page
from diffmem.report.private import Private
from diffmem.store.standing import Outcome
from diffmem.store.store import Store


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/alice/photos", "…/photos"),
        ('File "/home/alice/x.py", line 3', 'File "…/x.py", line 3'),
        ("~/photos/cats against ~bob/train", "…/cats against …/train"),
        ("C:\\Users\\alice\\photos", "…/photos"),
        (
            "store/diffmem.duckdb: 3/4 of 1/2, and/or https://a.org/b/c",
            "store/diffmem.duckdb: 3/4 of 1/2, and/or https://a.org/b/c",
        ),
        ("data/train", "data/train"),
        ("/home/John Smith/data/x.npz", "…/x.npz"),
        ("file:///home/ann/x.png is gone", "…/x.png is gone"),
        ("open:/home/ann/x and -I /home/ann/lib", "open:…/x and -I …/lib"),
        ("//nas/ann/x", "…/x"),
        ("\\\\server\\share\\x", "…/x"),
        ("/home/ann", "…/(home)"),
        ("/home/ann(lab)/x", "…/x"),
        ("'/home/John Smith/x' is damaged", "'…/x' is damaged"),
        ("/home/John Smith/x/: 3 of 4 images are grey", "…/x: 3 of 4 images are grey"),
        ("C:\\Users\\John Smith\\x: as /home/ann/y", "…/x: as …/y"),
        ("train/: 3 of 4 images are grey", "train/: 3 of 4 images are grey"),
    ],
)
def test_folders_and_hosts_are_left_out_of_any_text(text: str, told: str) -> None:
    assert Private([])(text) == told


def test_hosts_are_left_out_of_errors_alone_since_other_words_may_be_called_like_one() -> None:
    row = Private(["node-7", "node-7.cluster"])({"error": "/a/b/c on node-7.cluster: node-7 died", "name": "node-7"})
    assert row == {"error": "…/c on (host): (host) died", "name": "node-7"}


@pytest.mark.parametrize("value", [0.1, 0, None, ["/a/b/c"]])
def test_a_setting_called_error_may_have_any_value(value: object) -> None:
    assert Private(["node-7"])({"error": value})["error"] == (["…/c"] if isinstance(value, list) else value)


def test_two_paths_of_one_name_are_still_two() -> None:
    private = Private([])
    assert private(["/a/b/photos", "/c/d/photos", "/a/b/photos"]) == ["…/photos", "…/photos (2)", "…/photos"]
    assert private({"rows": [("/a/b/photos", 3, None)]}) == {"rows": [["…/photos", 3, None]]}


def test_a_page_says_nothing_of_its_author_unless_it_is_asked_to(tmp_path: Path) -> None:
    home = tmp_path / "home" / "alice-lastname"
    for name in ("one", "two"):
        (home / name).mkdir(parents=True)
        np.savez(
            home / name / "samples.npz",
            images=np.random.default_rng(len(name)).integers(0, 256, (9, 8, 8), dtype=np.uint8),
        )
    store = Store(home / "diffmem.duckdb")
    where = dataclasses.replace(tiny.HERE, host="alices-laptop")
    study = tiny.load(home, tiny.TEXT)
    note = f"{home}/John Smith/train/: 3 of 40 images are grey"
    tiny.register(store, study, notes={study.cells[0].cell.cell_id: [note]})
    attempt = store.start_attempt(study.cells[0].cell.cell_id, where)
    store.end_attempt(attempt, Outcome.FAILED, f'Traceback: File "{home}/x.py", on alices-laptop')
    score_images(home / "one" / "samples.npz", str(home / "two" / "samples.npz"), store)
    diffmem.write_page(store, ["tiny", "samples"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    own = page.replace(get_plotlyjs(), "")
    for word in ("alices-laptop", "alice-lastname", "John Smith", str(tmp_path), socket.gethostname() + "<"):
        assert word not in own, word
    assert "…/train: 3 of 40 images are grey (in 1 of 2 cells)" in own
    assert not re.search(rf"/(home|root|Users)/\w*{re.escape(getpass.getuser())}", own)
    assert os.environ["PATH"] not in own
    asked = render_page(store, ["tiny", "samples"], hosts=True)
    assert "alices-laptop" in asked
    assert "alice-lastname" in asked
    assert note in asked
