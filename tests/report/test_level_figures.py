"""The figures of measures of a denoiser: lines with bands, a heat map, and their tables."""

import csv
import io

import pytest
from reading import draw

from diffmem.report.figure import Figure, palette
from diffmem.report.noise_levels import MOST_MAPS, level_figures
from diffmem.store.rows import StudyLevel

SIGMAS = [80.0, 0.5, 0.002]


def level(quantity: str, images: str, sigma: float, value: float, *, epoch: int = 10, position: int = 0) -> StudyLevel:
    place = {"position": position, "curve": "", "name": f"N = {8 + position}", "size": 8 + position, "cell_id": "c"}
    interval = {"value": value, "low": value / 2, "high": value * 2, "n": 20}
    return StudyLevel(epoch=epoch, measure="gaps", quantity=quantity, images=images, sigma=sigma, **interval, **place)


def values(epochs: tuple[int, ...] = (10, 20), position: int = 0) -> list[StudyLevel]:
    return [
        level(quantity, images, sigma, epoch / 100 + k / 1000, epoch=epoch, position=position)
        for epoch in epochs
        for quantity, sets in (
            ("loss", ("training", "held_out")),
            ("relative_loss_gap", ("both",)),
            ("to_optimum", ("training", "held_out")),
        )
        for images in sets
        for k, sigma in enumerate(SIGMAS)
    ]


def shown(rows: list[StudyLevel]) -> list[Figure]:
    return level_figures(rows, "epoch", palette([each.curve for each in rows], [each.size for each in rows]))


def test_gaps_are_lines_with_bands_against_sigma_on_a_logarithmic_axis():
    gap, optimum, _ = shown(values())
    assert (gap.title, optimum.title) == ("Loss gap against sigma", "Gap to the optimum against sigma")
    losses, relative = gap.panels
    assert [series.name for series in losses.series] == ["N = 8, training images", "N = 8, held-out images"]
    assert (losses.x.log, losses.y.log, relative.x.log, relative.y.log) == (True, True, True, False)
    (line,) = relative.series
    assert (line.x, line.y) == (SIGMAS, pytest.approx([0.2, 0.201, 0.202]))  # of the last checkpoint
    assert line.intervals == [(y / 2, y * 2) for y in line.y]
    for panel in (losses, relative, *optimum.panels):
        drawn = draw(panel)
        assert drawn.layout.xaxis.type == "log"
        assert sum(trace.fill == "toself" for trace in drawn.data) == len(panel.series)
        low, high = panel.x.range
        assert low < -2.6
        assert high > 1.9


def test_a_gap_of_nothing_has_a_figure_too():
    nothing = [level("to_optimum", "training", sigma, 0.0) for sigma in SIGMAS]
    (figure,) = shown(nothing)
    draw(figure.panels[0]).to_json()


def test_the_heat_map_has_a_row_a_noise_level_and_a_column_a_checkpoint_and_its_numbers_as_csv():
    *_, heat = shown(values())
    assert heat.title == "Loss gap against sigma and epochs"
    (panel,) = heat.panels
    drawn = draw(panel)
    (trace,) = drawn.data
    assert trace.type == "heatmap"
    assert (list(trace.x), list(trace.y)) == (["10", "20"], ["0.002", "0.5", "80"])
    assert [list(row) for row in trace.z] == [
        pytest.approx(row) for row in ([0.102, 0.202], [0.101, 0.201], [0.1, 0.2])
    ]
    assert (drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text) == ("epochs", "noise level sigma")
    assert trace.colorbar.title.text == "loss gap / held-out loss"
    header, *lines = csv.reader(io.StringIO(heat.as_csv()))
    assert header == ["line", "epochs", "loss gap / held-out loss", "low", "high"]
    assert lines[0][:2] == ["N = 8, sigma = 0.002", "10"]
    assert [float(each) for each in lines[0][2:]] == pytest.approx([0.102, 0.051, 0.204])
    assert len(lines) == 6


def test_a_checkpoint_that_lacks_a_noise_level_is_a_hole_in_the_map():
    *_, heat = shown(values()[:-7])
    (trace,) = draw(heat.panels[0]).data
    assert list(trace.z[0])[1] is None


def test_one_checkpoint_has_no_map_and_of_many_cells_the_first_ones_have():
    assert len(shown(values((10,)))) == 2
    many = [each for position in range(MOST_MAPS + 3) for each in values(position=position)]
    *_, heat = shown(many)
    assert len(heat.panels) == MOST_MAPS
    assert heat.method.endswith(f"The first {MOST_MAPS} cells that have several.")
    assert shown([]) == []
