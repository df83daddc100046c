"""A study of a training set with twins: the ratio between groups goes wherever the paper's does."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from reference import random_images

from diffmem.cli import main
from diffmem.report.page import render_page
from diffmem.store.store import Store

STUDY = """
P.dataset = "twins.npz"
P.draw = "first"
M.network = "optimum"
axes = [{P.size = [20, 40]}]
[score]
samples = 12
steps = 4
groups = "near"
held_out = 20
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFMEM_STORE", "s.duckdb")
    images = random_images(40, 1, 8, 8).numpy().repeat(2, axis=0)  # each beside its twin
    np.savez("twins.npz", images=images)
    Path("s.toml").write_text(STUDY)


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_study_with_twins_is_read_between_groups() -> None:
    said = printed("run", "s.toml", "--processes", "1")
    assert said.count("takes them for") >= 1
    by_paper, by_groups = (json.loads(printed("emm", "s", "--json", *more)) for more in ([], ["--measure", "grouped"]))
    (paper,), (grouped,) = by_paper["curves"], by_groups["curves"]
    assert paper["ratios"] == {"20": 0.0, "40": 0.0}
    assert grouped["ratios"] == paper["grouped_ratios"] == {"20": 1.0, "40": 1.0}
    assert (paper["emm"], grouped["emm"]) == ("< 20", ">= 40")
    assert grouped["null_ratios"] == {"20": 0.0, "40": 0.0}
    assert grouped["null_samples"] == {"20": 20, "40": 20}
    rows = json.loads(printed("status", "s", "--json"))
    assert [(row["best ratio"], row["grouped_ratio"]) for row in rows] == [(0.0, 1.0), (0.0, 1.0)]
    assert "grouped_distance" in printed("export", "evidence").splitlines()[0]
    page = render_page(Store(Path("s.duckdb")), ["s"])
    for words in ("Grouped ratio against the number of training images", "the nearest one of another group"):
        assert words in page
    assert printed("store", "check", "s.duckdb") == "s.duckdb: in order\n"


def test_another_grouping_is_measured_beside_the_first() -> None:
    printed("run", "s.toml", "--processes", "1")
    printed("measure", "s.toml", "--measure", "grouped-exact")
    rows = Store(Path("s.duckdb")).rows("SELECT measure, max(value) AS value FROM measured GROUP BY ALL ORDER BY ALL")
    assert rows == [  # the optimum gives training images to the bit
        {"measure": "grouped", "value": 1.0},
        {"measure": "grouped-exact", "value": 1.0},
        {"measure": "nearest", "value": 0.0},
    ]
