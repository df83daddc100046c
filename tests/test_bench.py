"""The bench: every figure is there and is a ratio that can be."""

import json

import pytest
import torch
from click.testing import CliRunner

from diffmem import bench
from diffmem.cli import main


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "SIDE", 256)
    monkeypatch.setattr(bench, "GENERATED", 20)
    monkeypatch.setattr(bench, "TRAINING_IMAGES", 200)
    small = {name: ("digits", {"width": 8, "blocks": 1, "channel_mult": (2, 2)}, 4, 4) for name in ("one", "two")}
    monkeypatch.setattr(bench, "NETWORKS", small)


def test_every_figure_has_a_value_and_stands_beside_the_peak_of_the_same_run():
    rows = bench.bench(torch.device("cpu"))
    by_name = {row["what"]: row for row in rows}
    assert by_name["matrix product, float32"]["of peak"] == 1.0
    for name in ("one", "two"):
        for figure in (f"training step, {name}, batch 4", f"generation, {name}, batch 4"):
            assert by_name[figure]["value"] > 0
            assert by_name[figure]["images per second"] > 0
        assert 0 <= by_name[f"step outside forward, backward and optimizer, {name}"]["value"] <= 1
    assert by_name["the same, over its matrix products alone"]["value"] > 0


def test_what_one_would_otherwise_take_is_compared():
    names = [row["what"] for row in bench.compare(torch.device("cpu"))]
    assert "two nearest with torch.cdist and topk" in names


def test_the_command_prints_a_table_or_data():
    table = CliRunner().invoke(main, ["bench"])
    assert table.exit_code == 0, table.output
    assert "GFLOP/s" in table.stdout
    rows = json.loads(CliRunner().invoke(main, ["bench", "--compare", "--json"]).stdout)
    assert {"what", "value", "unit"} <= rows[0].keys()
