"""The bench: every figure is there, from real work, and is a ratio that can be."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import comparison, gpu, groups, growth, scoring, speed
from benchmarks.__main__ import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for module in (speed, comparison, scoring):
        monkeypatch.setattr(module, "SECONDS", 0.0)
        small = {name: ("digits", {"width": 8, "blocks": 1, "channel_mult": (2, 2)}, 4, 4) for name in ("one", "two")}
        monkeypatch.setattr(module, "NETWORKS", small)
    monkeypatch.setattr(speed, "SIDE", 256)
    monkeypatch.setattr(speed, "GENERATED", 20)
    monkeypatch.setattr(speed, "TRAINING_IMAGES", 200)
    monkeypatch.setattr(growth, "CELLS", (40, 80))
    fewer = growth.STUDY.replace("[4, 8, 16, 32, 64]", "[4, 8]").replace("T.epochs = 20", "T.epochs = 5")
    monkeypatch.setattr(growth, "STUDY", fewer)


def test_every_figure_has_a_value_and_stands_beside_the_peak_of_the_same_run():
    rows = speed.bench(CPU)
    by_name = {row["what"]: row for row in rows}
    assert by_name["matrix product, float32"]["of peak"] == 1.0
    for name in ("one", "two"):
        for figure in (f"training step, {name}, batch 4", f"generation, {name}, batch 4"):
            assert by_name[figure]["value"] > 0
            assert by_name[figure]["images per second"] > 0
        assert 0 <= by_name[f"step outside forward, backward and optimizer, {name}"]["value"] <= 1
    assert by_name["the same, over its matrix products alone"]["value"] > 0
    assert 0 <= by_name["the same, memory above the images"]["value"] < by_name["most memory of all of this"]["value"]


def test_what_one_would_otherwise_take_is_compared():
    names = [row["what"] for row in comparison.compare(CPU)]
    assert "two nearest with torch.cdist and topk" in names
    assert any("diffusers' UNet2DModel" in name for name in names)


def test_another_network_is_compared_by_its_operations(monkeypatch):
    """A network that does nothing but one convolution of 8 to 8 channels, in the place of another package's."""

    def build(width, levels, channels, side):
        assert (width, levels, channels, side) == (16, 2, 1, 8)
        network = torch.nn.Conv2d(1, 1, 3, padding=1)
        return network, lambda noisy, _: network(noisy)

    monkeypatch.setattr(comparison, "OTHER_NETWORKS", {"one convolution": build})
    rows = comparison._networks(CPU)
    assert [row["what"].split(":")[0] for row in rows] == ["training step, one, batch 4", "forward pass, one, batch 4"]
    assert all(row["value"] > 0 for row in rows)
    step, operations = comparison._training_step(*build(16, 2, 1, 8), torch.zeros(4, 1, 8, 8), torch.zeros(4))
    assert operations == 2 * 2 * 4 * 9 * 64  # forward, and backward to the weights: the images need no gradient
    step()


def test_the_command_prints_a_table_and_writes_its_data_and_the_plot_of_growth(tmp_path):
    file = tmp_path / "new" / "bench.json"
    table = CliRunner().invoke(main, ["--growth", "-o", str(file)])
    assert table.exit_code == 0, table.output
    assert "GFLOP/s" in table.stdout
    data = json.loads(file.read_text())
    assert {"what", "value", "unit"} <= data["speed"][0].keys()
    assert [row["cells"] for row in data["growth"]] == [40, 80]
    assert all(row[name] > 0 for row in data["growth"] for name in ("append", "status", "emm", "report"))
    assert [list(line.x) for line in growth.growth_figure(data["growth"]).data] == [[40, 80]] * 4
    assert "plotly" in file.with_suffix(".html").read_text()


@pytest.mark.parametrize("kind", groups.KINDS)
def test_grouping_stands_beside_a_neighbour_search(kind, capsys):
    groups.main(["--count", "60", "--rounds", "1", "--kind", kind])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("round 1: neighbour search ")
    in_groups = {"textured": 0, "alike": 0, "twins": 60}[kind]
    assert last == f"60 images ({kind}), {in_groups} of them in groups"


def test_the_bench_of_a_gpu_says_where_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu, "this_device", lambda: CPU)
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1
    assert result.stderr == "Error: this measures a CUDA GPU, and there is none here; see `python -m benchmarks`\n"


def test_scoring_stands_beside_that_by_the_paper_s_measure_alone(capsys):
    scoring.main(["--images", "20", "--training", "60"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "20 generated and as many held-out images against 60 training images"
    ratios = {line.split("  ")[-1]: float(line.split()[0]) for line in lines}
    assert len(ratios) == 10
    assert all(ratio > 0 for ratio in ratios.values())
    assert [name for name in ratios if "to reach" in name] == [
        "50 neighbours, of 2 (to reach: 1.3)",
        "a cell with null and groups, of the paper's measure alone (to reach: 1.1)",
        "a cell with all measures, null, groups and local density, of the same (to reach: 2)",
    ]
