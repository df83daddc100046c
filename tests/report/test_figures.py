"""Figures hold the data that they were given, the line at 1 - epsilon, and the EMM."""

import json
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
from reading import draw

from diffmem.analysis.curves import Curve, SizePoint
from diffmem.analysis.emm import Estimate, Interval, estimate_emm, mean_ratios
from diffmem.measures.nearest import NEAREST
from diffmem.report import figures
from diffmem.report.figure import Figure, Panel, palette
from diffmem.report.threshold import distance_histogram
from diffmem.store.image_queries import THRESHOLD_LEVELS
from diffmem.store.image_rows import LevelCount, SampleCount
from diffmem.store.rows import Point

SIZES = [8, 16, 32]


def curve(label: str, ratios: list[float], epsilon: float = 0.1, null: float | None = None) -> Curve:
    points = [
        SizePoint(size, ratio, ratio / 2, 3, ratio * 0.9, ratio, null, 1000, None)
        for size, ratio in zip(SIZES, ratios, strict=False)
    ]
    estimate = estimate_emm(SIZES[: len(ratios)], ratios, epsilon=epsilon) if ratios else None
    interval = Interval(9.0, None) if ratios else None
    return Curve(label, points, epsilon, estimate, interval, estimate)


def test_what_is_called_a_copy_of_held_out_images_is_a_dotted_line_without_an_entry_in_the_legend() -> None:
    figure = against_size([curve("a", [1.0, 0.5], null=0.02)])
    (dotted,) = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert (list(dotted.x), list(dotted.y), list(dotted.customdata)) == ([8, 16], [0.02, 0.02], [1000, 1000])
    assert (dotted.showlegend, dotted.legendgroup, dotted.meta) == (False, "a", "held-out images: a")
    assert not [t for t in against_size([curve("a", [1.0, 0.5])]).data if t.line.dash == "dot"]


def row(label: str, size: int, epoch: int, ratio: float, position: int = 0) -> Point:
    return Point(position, label, size, "0", 0, f"cell {position}", epoch, 10 * epoch, 200, ratio, 1 / epoch)


def against_size(curves: list[Curve]) -> go.Figure:
    return draw(size_panel(curves))


def size_panel(curves: list[Curve]) -> Panel:
    return figures.ratio_against_size(curves, NEAREST.ratio, palette([each.label for each in curves], []))


def table(*panels: Panel) -> list[tuple]:
    return list(Figure("", "", panels).rows())


def traces(figure: go.Figure, mode: str = "lines+markers") -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == mode]


def band(figure: go.Figure, number: int = 0) -> list[tuple[float, float, float]]:
    """Return x, low and high of a shaded band: it goes along its lower end and back along the upper one."""
    trace = [trace for trace in figure.data if trace.fill == "toself"][number]
    count = len(trace.x) // 2
    assert list(trace.x[:count]) == list(reversed(trace.x[count:]))
    return list(zip(trace.x[:count], trace.y[:count], reversed(trace.y[count:]), strict=True))


def drawable(figure: go.Figure) -> go.Figure:
    """Check that a figure can be written as JSON, and return it."""
    json.loads(figure.to_json())
    return figure


# --- ratio against size --------------------------------------------------------------------------------


def test_each_curve_is_a_line_through_its_best_checkpoints() -> None:
    figure = drawable(against_size([curve("one", [1.0, 0.8, 0.1]), curve("two", [0.5, 0.25, 0.0])]))
    one, two = traces(figure)
    assert (one.name, list(one.x), list(one.y)) == ("one", SIZES, [1.0, 0.8, 0.1])
    assert (two.name, list(two.x), list(two.y)) == ("two", SIZES, [0.5, 0.25, 0.0])
    assert one.line.color != two.line.color
    assert figure.layout.xaxis.type == "log"


def test_a_band_shades_the_95_per_cent_interval_behind_each_line() -> None:
    figure = against_size([curve("one", [1.0, 0.8, 0.1]), curve("two", [0.5, 0.25, 0.0])])
    assert band(figure) == [(8, 0.9, 1.0), (16, 0.8 * 0.9, 0.8), (32, pytest.approx(0.09), 0.1)]
    assert band(figure, 1) == [(8, 0.45, 0.5), (16, 0.225, 0.25), (32, 0.0, 0.0)]
    shaded, one, *_ = figure.data
    assert shaded.legendgroup == one.legendgroup  # they are switched off together
    assert one.error_y.array is None
    panel = size_panel([curve("one", [1.0, 0.8, 0.1])])
    assert table(panel)[:2] == [("one", 8, 1.0, (0.9, 1.0)), ("one", 16, 0.8, (0.8 * 0.9, 0.8))]


def test_one_point_alone_has_a_bar() -> None:
    figure = against_size([curve("one", [0.5])])
    (line,) = traces(figure)
    assert line.error_y.arrayminus == pytest.approx((0.05,))


def test_hovering_tells_the_last_checkpoint_and_the_number_of_cells() -> None:
    (line,) = traces(against_size([curve("one", [1.0, 0.8, 0.1])]))
    assert [list(data) for data in line.customdata] == [[0.5, 3, 0], [0.4, 3, 0], [0.05, 3, 0]]


@pytest.mark.parametrize("epsilon", [0.1, 0.25])
def test_the_line_is_at_one_minus_epsilon(epsilon: float) -> None:
    figure = against_size([curve("one", [1.0, 0.5, 0.0], epsilon)])
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1) == (1 - epsilon, 1 - epsilon)
    assert line.line.dash == "dash"
    assert f"{1 - epsilon:g}" in figure.layout.annotations[0].text
    low, high = figure.layout.yaxis.range
    assert low < 0
    assert high > 1


def test_the_emm_is_marked_on_the_line_where_the_curve_crosses_it() -> None:
    figure = against_size([curve("one", [1.0, 0.8, 0.1]), curve("two", [0.95, 0.45, 0.1], 0.1)])
    one, two = traces(figure, "markers")
    assert list(one.x) == [pytest.approx(12)]
    assert list(two.x) == [pytest.approx(8.8)]
    assert list(one.y) == list(two.y) == [0.9]
    assert one.name == "EMM 12: one"
    assert one.marker.color == traces(figure)[0].line.color
    assert two.marker.color == traces(figure)[1].line.color


@pytest.mark.parametrize(
    ("ratios", "arrows"),
    [
        ([1.0, 1.0, 1.0], [("arrow-right", 32, "EMM ≥ 32: one")]),
        ([0.5, 0.2, 0.1], [("arrow-left", 8, "EMM &lt; 8: one")]),
        ([], []),
    ],
    ids=["above", "below", "not measured"],
)
def test_a_curve_that_does_not_cross_has_an_arrow_at_its_bound(
    ratios: list[float], arrows: list[tuple[str, int, str]]
) -> None:
    figure = drawable(against_size([curve("one", ratios)]))
    found = traces(figure, "markers")
    assert [(each.marker.symbol, each.x[0], each.name) for each in found] == arrows
    assert all(each.y[0] == 0.9 for each in found)
    assert len(traces(figure)) == 1
    assert len(figure.layout.shapes) == 1


def test_an_estimate_that_is_not_known_has_no_mark() -> None:
    unknown = replace(curve("one", [0.1, 0.0]), estimate=Estimate(None, None, None, "undertrained"))
    assert traces(against_size([unknown]), "markers") == []


def test_few_sizes_are_all_ticks() -> None:
    figure = against_size([curve("one", [1.0, 0.5, 0.0]), curve("two", [1.0])])
    assert list(figure.layout.xaxis.tickvals) == SIZES
    assert list(figure.layout.xaxis.ticktext) == ["8", "16", "32"]


def test_no_curve_at_all_makes_an_empty_figure() -> None:
    assert len(drawable(against_size([])).data) == 0


def test_more_curves_than_colours_are_all_drawn() -> None:
    many = [curve(f"curve {number}", [1.0, 0.5, 0.0]) for number in range(25)]
    assert len(traces(drawable(against_size(many)))) == 25


def test_the_only_curve_of_a_study_has_a_name() -> None:
    (line,) = traces(against_size([curve("", [1.0, 0.5, 0.0])]))
    assert line.name == "all cells"


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    label = "M.skips = <b>111</b> & 000"
    figure = against_size([curve(label, [1.0, 0.5, 0.0])])
    assert all("<b>" not in trace.name for trace in figure.data if trace.name)
    assert traces(figure)[0].name == "skips &lt;b&gt;111&lt;/b&gt; &amp; 000"


# --- ratio and loss against steps ------------------------------------------------------------------------------

POINTS = [
    row("one", 8, 10, 0.1),
    row("one", 8, 20, 0.4),
    row("one", 16, 10, 0.2, position=1),
    row("one", 16, 20, 0.3, position=1),
    row("one", 16, 30, 1.0, position=1),
    row("one", 16, 10, 0.4, position=2),  # another draw or seed, that is not as far
    row("one", 16, 20, 0.25, position=2),
    row("two", 8, 10, 0.6),
    row("two", 8, 20, 0.7),
    row("three", 32, 10, 0.7),
    row("three", 32, 20, 0.8),
    row("four", 8, 10, 0.7),  # one dot, which is no panel
]


def panels(points: list[Point] = POINTS) -> dict[str, go.Figure]:
    return {panel.label.partition(":")[0]: drawable(draw(panel)) for panel in trained(points)[::2]}


def trained(points: list[Point]) -> list[Panel]:
    """Return a panel of ratios and one of losses for each curve."""
    colours = palette([each.curve for each in points], [each.size for each in points])
    return figures.against_steps(points, NEAREST.ratio, colours)


def test_each_curve_has_a_panel_in_which_each_size_is_a_line_through_the_means_of_its_draws_and_seeds() -> None:
    found = {label: [(list(line.x), list(line.y)) for line in traces(figure)] for label, figure in panels().items()}
    assert found == {
        "one": [([100, 200], [pytest.approx(0.3), 0.275]), ([100, 200], [0.1, 0.4])],
        "two": [([100, 200], [0.6, 0.7])],
        "three": [([100, 200], [0.7, 0.8])],
    }
    line = traces(panels()["one"])[0]
    assert list(line.customdata) == [2, 2]
    assert "cells: %{customdata}" in line.hovertemplate


def test_a_band_shades_what_images_draws_and_seeds_leave_open_at_each_epoch() -> None:
    figure = panels()["one"]
    assert len([trace for trace in figure.data if trace.fill == "toself"]) == 2
    first = mean_ratios([8, 16, 16], [0.1, 0.2, 0.4], [200] * 3)  # at epoch 10, all sizes of the curve
    last = mean_ratios([8, 16, 16], [0.4, 0.3, 0.25], [200] * 3)
    for number in (0, 1):  # the larger size is drawn first
        size = 1 - number
        assert band(figure, number) == [(100, first[size].low, first[size].high), (200, *last[size][2:4])]


def test_the_loss_stands_beside_the_ratio() -> None:
    ratio, loss, *_ = trained(POINTS)
    assert (ratio.label, loss.label, loss.y.log) == ("one: ratio", "one: training loss", True)
    assert [(line.name, line.x, line.y) for line in loss.series] == [
        ("N = 16", [100, 200], [0.1, 0.05]),
        ("N = 8", [100, 200], [0.1, 0.05]),
    ]
    assert len(trained([replace(point, loss=None) for point in POINTS])) == 3


def test_steps_are_logarithmic_where_the_checkpoints_are() -> None:
    even, far = [[row("a", 8, epoch, 0.5) for epoch in epochs] for epochs in ([10, 20, 30], [1, 10, 100])]
    assert [trained(points)[0].x.log for points in (even, far)] == [False, True]


def test_larger_sizes_are_darker_and_lines_on_each_other_are_told_apart_by_their_widths() -> None:
    found = {line.name: line for panel in trained(POINTS) for line in panel.series}
    light, middle, dark = (sum(bytes.fromhex(found[f"N = {size}"].colour[1:])) for size in (8, 16, 32))
    assert light > middle > dark
    ratio, *_ = trained(POINTS)
    wide, narrow = ratio.series  # the wide one is below
    assert wide.width > narrow.width


def test_the_names_of_lines_stand_at_their_ends_and_never_on_each_other() -> None:
    figure = against_size([curve(name, [1.0, 1.0, 1.0 - number / 100]) for number, name in enumerate("abc")])
    names = [each for each in figure.layout.annotations if each.name == "end"]
    assert [each.text for each in names] == ["a", "b", "c"]
    assert figure.layout.showlegend is False
    pixels = [each.yshift + each.y * (420 - 90) / 1.08 for each in names]
    assert pixels[0] - pixels[1] >= 14.9
    assert pixels[1] - pixels[2] >= 14.9
    assert all(each.x == pytest.approx(1.50515) for each in names)  # log10(32)


def test_a_size_has_one_colour_in_all_panels() -> None:
    colours: dict[str, set[str]] = {}
    for figure in panels().values():
        for line in traces(figure):
            colours.setdefault(line.name, set()).add(line.line.color)
    assert {name: len(used) for name, used in colours.items()} == {"N = 8": 1, "N = 16": 1, "N = 32": 1}
    assert len(set.union(*colours.values())) == 3


def test_panels_share_one_scale() -> None:
    assert len({tuple(figure.layout.yaxis.range) for figure in panels().values()}) == 1


def test_of_many_curves_the_training_of_the_first_is_shown() -> None:
    many = [row(f"curve {k}", 8, epoch, 0.5, position=k) for k in range(9) for epoch in (10, 20)]
    assert len(trained(many)) == 2 * figures.MOST_CURVES


def test_no_point_at_all_makes_no_panel_of_training() -> None:
    assert trained([]) == []


def counted(n: int, **more: Any) -> SampleCount:
    """Return a row of `store.sample_counts`."""
    return replace(SampleCount(0, "", "a", 8, 20, n, 0.5, 0.5, None), **more)


def against_samples(counts: list[SampleCount]) -> list[Panel]:
    return figures.ratio_against_samples(counts, NEAREST.ratio, palette([], [each.size for each in counts]))


def test_a_table_says_what_x_and_y_are() -> None:
    assert Figure("", "", trained(POINTS)).axis_titles == ("optimizer steps", "value")
    counts = [counted(n) for n in (10, 20)]
    samples = against_samples(counts)
    assert Figure("", "", samples).axis_titles == ("generated images n", "value")
    assert {name for name, *_ in table(*samples)} == {
        "ratio of n images, a",
        "its standard deviation, a: expected",
    }


def test_lines_of_one_size_on_two_curves_have_names_of_their_own_in_the_table() -> None:
    names = {name for name, *_ in table(*trained(POINTS)[::2])}
    assert names == {"one: ratio, N = 8", "one: ratio, N = 16", "two: ratio, N = 8", "three: ratio, N = 32"}


@pytest.mark.parametrize(
    ("ratio", "images", "ends"),
    [(0.5, (10, 20), (0.1, 0.2)), (0.9, (10, 10_000), (0.002, 0.1)), (0.0, (10, 20), (1, 1))],
)
def test_the_axis_of_deviations_ends_at_the_ticks_around_them(ratio, images, ends) -> None:
    rows = [counted(n, samples=images[-1], ratio=ratio, first=ratio) for n in images]
    _, panel = against_samples(rows)
    axis = drawable(draw(panel)).layout.yaxis
    assert [10**end for end in axis.range] == pytest.approx(ends, rel=0.1)
    assert all(any(tick == pytest.approx(end) for tick in axis.tickvals) for end in ends)


def test_lines_of_one_size_share_an_entry_in_the_legend_and_have_full_names_in_the_table() -> None:
    cells = [counted(n, position=i, name=f"<b>{i}</b>") for i in (0, 1) for n in (10, 20)]
    both = against_samples(cells)
    apart = against_samples(
        [replace(row, curve=f"<b>{row.position}", first=0.25 * (1 + row.position)) for row in cells]
    )
    first_n = "ratio of n images"
    deviation = "its standard deviation"
    assert [panel.label for panel in apart] == [f"<b>{i}: {what}" for what in (first_n, deviation) for i in (0, 1)]
    shown = {(name, y) for name, _, y, interval in table(*apart) if interval}
    assert shown == {(f"<b>0: {first_n}, <b>0</b>", 0.25), (f"<b>1: {first_n}, <b>1</b>", 0.5)}
    for panel in (*apart, *both):  # each legend has the size, however many panels show it
        assert sum(trace.showlegend is not False for trace in draw(panel).data if trace.fill != "toself") == 1
    interval = pytest.approx((0.237, 0.763), abs=5e-4)
    assert ("ratio of n images, <b>1</b>", 10, 0.5, interval) in table(*both)


def test_the_last_bar_of_the_histogram_has_images_with_two_nearest_equally_far_away() -> None:
    levels = {1: 5, 40: 7, THRESHOLD_LEVELS + 1: 2}
    counts = [LevelCount(0, 3, level, images) for level, images in levels.items()]
    (bars,) = draw(distance_histogram(counts, [], NEAREST, 1 / 3)).data
    assert sum(bars.y) == pytest.approx(1)
    found = {round(x * THRESHOLD_LEVELS + 0.5): round(14 * y) for x, y in zip(bars.x, bars.y, strict=True) if y}
    assert found == levels


def test_held_out_images_are_behind_the_generated_ones_as_shares_and_the_threshold_is_named() -> None:
    generated, unseen = [LevelCount(0, 3, 10, 30)], [LevelCount(0, 0, 90, 5), LevelCount(1, 0, 91, 5)]
    figure = draw(distance_histogram(generated, unseen, NEAREST, 1 / 3))
    behind, front = figure.data
    assert (behind.name, front.name, figure.layout.barmode) == ("held-out images", "generated images", "overlay")
    assert (max(behind.y), sum(behind.y), max(front.y)) == (0.5, 1.0, 1.0)
    assert figure.layout.annotations[0].text == "threshold 0.333"
