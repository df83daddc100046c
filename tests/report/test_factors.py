"""A ratio against an axis of its study: numbers as lines, names as bars, skips in words, intervals, published marks."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
import pytest
import tiny
from reading import draw

from diffmem.analysis.curves import CellWithSettings, study_cells
from diffmem.analysis.emm import bands, ratio_intervals
from diffmem.analysis.published import Beside, Published
from diffmem.measures.nearest import NEAREST
from diffmem.report.factors import factor_panels, factors, skips_in_words
from diffmem.report.figure import Panel, palette
from diffmem.store.store import Store


def panels(
    axes: Sequence[Sequence[str]], cells: list[CellWithSettings], published: Sequence[Beside] = ()
) -> list[Panel]:
    colours = palette([each.cell.curve for each in cells], [each.cell.size for each in cells])
    return factor_panels(axes, cells, NEAREST.ratio, colours, published)


def drawn(keys: tuple[str, ...], cells: list[CellWithSettings], published: Sequence[Beside] = ()) -> go.Figure:
    (panel,) = panels([keys], cells, published)
    return draw(panel)


AXIS = "[[axes]]\nM.dropout = [0.0, 0.2]\n"


def cells_of(folder: Path, axes: str, ratios: list[float]) -> list[CellWithSettings]:
    """Return the cells of a study with these axes, each with one checkpoint of 20 images."""
    study, store = tiny.load(folder, tiny.TEXT.replace(AXIS, axes)), Store(folder / "s.duckdb")
    tiny.register(store, study)
    for entry, ratio in zip(study.cells, ratios, strict=True):
        tiny.measure(store, entry.cell, [ratio])
    return study_cells(store, store.studies()[0])[0]


def test_sizes_draws_and_seeds_alone_are_no_factor():
    axes = [["P.size"], ["T.seed", "P.draw"], ["M.width"], ["P.size", "T.epochs"]]
    assert factors(axes) == [("M.width",), ("P.size", "T.epochs")]


def test_numbers_are_a_line_with_draws_averaged_and_their_interval(tmp_path):
    cells = cells_of(tmp_path, "[[axes]]\nM.width = [8, 4]\n[[axes]]\nP.draw = [0, 1]\n", [0.5, 0.7, 0.2, 0.3])
    band, line = drawn(("M.width",), cells).data
    assert line.name == "N = 8"
    assert line.mode == "lines+markers"
    assert list(line.x) == [4, 8]
    assert list(line.y) == pytest.approx([0.25, 0.6])
    expected = ratio_intervals(bands([1, 1, 0, 0], [0.5, 0.7, 0.2, 0.3], [20] * 4))
    assert list(band.x) == [4, 8, 8, 4]
    assert list(band.y) == pytest.approx([*expected[:, 0], *expected[::-1, 1]])


def test_names_are_bars_in_the_order_of_the_file_one_colour_for_each_choice_of_the_others(tmp_path):
    axes = '[[axes]]\nM.condition = ["unique", "none"]\n[[axes]]\nP.size = [8, 16]\n'
    bars = drawn(("M.condition",), cells_of(tmp_path, axes, [1.0, 0.9, 0.5, 0.4])).data
    assert [(bar.type, bar.name, list(bar.x), list(bar.y)) for bar in bars] == [
        ("bar", "N = 8", ["a label per image", "no labels"], [1.0, 0.5]),
        ("bar", "N = 16", ["a label per image", "no labels"], [0.9, 0.4]),
    ]
    assert len({bar.marker.color for bar in bars}) == 2


def test_several_keys_of_an_axis_stand_together(tmp_path):
    axes = '[[axes]]\nM.condition = ["random", "random"]\nM.labels = [2, 4]\n'
    (bars,) = drawn(("M.condition", "M.labels"), cells_of(tmp_path, axes, [0.5, 0.6])).data
    assert list(bars.x) == ["random labels, 2 labels", "random labels, 4 labels"]


@pytest.mark.parametrize(("values", "all_ticks"), [([4, 8], True), ([4, 5, 31], False)])
def test_numbers_far_enough_apart_are_all_ticks(tmp_path, values, all_ticks):
    cells = cells_of(tmp_path, f"[[axes]]\nT.batch_size = {values}\n", [0.1, 0.2, 0.3][: len(values)])
    axis = drawn(("T.batch_size",), cells).layout.xaxis
    assert axis.type != "log"
    assert axis.tickvals == (tuple(values) if all_ticks else None)


def test_wide_ranges_of_numbers_have_a_logarithmic_axis(tmp_path):
    cells = cells_of(tmp_path, "[[axes]]\nT.batch_size = [1, 2, 8]\n", [0.1, 0.2, 0.3])
    figure = drawn(("T.batch_size",), cells)
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.tickvals) == [1, 2, 8]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("111 111 111", "all"),
        ("000 000 000", "none"),
        ("010 000 000", "32x32: skip 2 of 3"),
        ("000 000 001", "8x8: skip 3 of 3"),
        ("000 110 000", "16x16: 2 skips"),
        ("100 100 000", "100 100 000"),
    ],
)
def test_skips_are_told_by_resolution_and_place(mask, words):
    assert skips_in_words(mask, 32) == words


def test_skips_of_one_resolution_have_one_colour(tmp_path):
    axes = '[[axes]]\nM.skips = ["11 11", "10 00", "01 00", "00 10"]\n'
    (bars,) = drawn(("M.skips",), cells_of(tmp_path, axes, [0.7, 0.8, 0.6, 0.0])).data
    assert list(bars.x) == ["all", "8x8: skip 1 of 2", "8x8: skip 2 of 2", "4x4: skip 1 of 2"]
    every, high, also_high, low = bars.marker.color
    assert high == also_high
    assert len({every, high, low}) == 3


def test_published_ratios_at_the_levels_of_the_axis_are_open_markers(tmp_path):
    cells = cells_of(tmp_path, "[[axes]]\nM.width = [4, 8]\n", [0.2, 0.6])
    numbers = [("M.width", 8, 0.5), ("M.blocks", 2, 0.1)]
    curve = cells[1].cell.curve
    published = [Beside(Published("", "", {key: at}, "ratio", value, ""), None, 0, curve) for key, at, value in numbers]
    *_, marks = drawn(("M.width",), cells, published).data
    assert (marks.name, marks.marker.symbol, list(marks.x), list(marks.y)) == ("published", "circle-open", [8], [0.5])


def test_several_factors_are_facets_of_the_one_with_most_levels_and_each_size_has_its_colour_in_all(tmp_path):
    axes = '[[axes]]\nM.condition = ["none", "true"]\n[[axes]]\nM.width = [4, 8, 12]\n[[axes]]\nP.size = [8, 16]\n'
    cells = cells_of(tmp_path, axes, [k / 20 for k in range(12)])
    no_labels, true_labels = panels([["M.condition"], ["M.width"], ["P.size"]], cells)
    assert (no_labels.label, true_labels.label) == ("no labels", "true labels")
    assert (no_labels.x.title, [*no_labels.series[0].x]) == ("width", [4, 8, 12])
    assert [(line.name, line.y) for line in true_labels.series] == [
        ("N = 8", pytest.approx([0.3, 0.4, 0.5])),
        ("N = 16", pytest.approx([0.35, 0.45, 0.55])),
    ]
    assert [line.colour for line in no_labels.series] == [line.colour for line in true_labels.series]
    assert no_labels.series[0].colour != no_labels.series[1].colour


def test_cells_without_a_checkpoint_are_left_out_and_so_is_a_panel_of_one_value(tmp_path):
    text = tiny.TEXT.replace("[0.0, 0.2]", "[0.0, 0.2, 0.4]")
    study, store = tiny.load(tmp_path, text), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    tiny.measure(store, study.cells[1].cell, [0.4])
    assert panels([["M.dropout"]], study_cells(store, store.studies()[0])[0]) == []
    tiny.measure(store, study.cells[2].cell, [0.5])
    _, line = drawn(("M.dropout",), study_cells(store, store.studies()[0])[0]).data
    assert (list(line.x), list(line.y)) == ([0.2, 0.4], [0.4, 0.5])
