"""The figures of quality: values against N and against steps, with bands, nulls and the ratio beside them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from reading import draw

from diffmem.report.figure import Figure, palette
from diffmem.report.figures import MOST_CURVES
from diffmem.report.quality import quality_figures
from diffmem.store.quality_rows import StudyQuality


def value(quantity: str, against: str, *, epoch: int = 10, position: int = 0, space: str = "pixels") -> StudyQuality:
    size = 8 * (position + 1)
    place = {"position": position, "curve": "", "name": f"N = {size}", "size": size, "cell_id": "c"}
    number = epoch + position / 10 + (against == "held_out")
    return StudyQuality(
        *(space, quantity, against, number, number - 1, number + 2, 100, 100, 64, number + 5, 50),
        **{**place, "epoch": epoch, "step": 3 * epoch, "ratio": 0.25 * (position + 1)},
    )


def values(epochs: tuple[int, ...] = (10, 20), positions: tuple[int, ...] = (0, 1)) -> list[StudyQuality]:
    return [
        value(quantity, against, epoch=epoch, position=position)
        for position in positions
        for epoch in epochs
        for quantity in ("frechet_distance", "recall")
        for against in ("training", "held_out")
    ]


def figures(of: Sequence[StudyQuality], clock: str = "epoch") -> list[Figure]:
    return quality_figures(of, clock, palette([each.curve for each in of], [each.size for each in of]))


def test_the_last_checkpoints_are_shown_against_the_size_beside_the_ratio():
    by_size, _ = figures(values())
    assert by_size.title == "Quality (pixels) against the number of training images"
    assert [panel.label for panel in by_size.panels] == [
        "memorization ratio",
        "Frechet distance beside training images",
        "Frechet distance beside held-out images",
        "recall beside training images",
        "recall beside held-out images",
    ]
    ratio, distance, other, recall, _ = by_size.panels
    assert [(series.x, series.y) for series in ratio.series] == [([8, 16], [0.25, 0.5])]
    assert [(series.name, series.look) for series in distance.series] == [
        ("all cells", "line"),
        ("all cells: null", "dotted"),
    ]
    (training, null), (held_out, _) = distance.series, other.series
    assert (training.x, training.y, training.intervals) == ([8, 16], [20, 20.1], [(19, 22), (19.1, 22.1)])
    assert (null.y, held_out.y) == ([25, 25.1], [21, 21.1])
    assert {each.colour for panel in by_size.panels for each in panel.series} == {palette([""], [8]).curves[""]}
    assert (recall.y.range, distance.y.range, distance.x.log) == ((-0.03, 1.05), None, True)
    for panel in by_size.panels:
        draw(panel).to_json()
    header, *lines = csv.reader(io.StringIO(by_size.as_csv()))
    assert header == ["line", "training images N", "value", "low", "high"]
    assert ["Frechet distance beside training images, all cells", "8", "20.0", "19.0", "22.0"] in lines


def test_all_checkpoints_are_shown_against_epochs_or_steps_a_line_a_model():
    (_, by_epoch), (_, by_step) = (figures(values(), clock) for clock in ("epoch", "step"))
    assert (by_epoch.title, by_step.title) == ("Quality (pixels) against epochs", "Quality (pixels) against steps")
    assert [series.x for series in by_epoch.panels[1].series[:2]] == [[10, 20]] * 2
    assert [series.x for series in by_step.panels[1].series[:2]] == [[30, 60]] * 2
    assert [series.name for series in by_step.panels[0].series] == ["N = 8", "N = 16"]


def test_each_of_several_curves_has_a_figure_against_epochs_in_the_colours_of_the_sizes():
    wide = [replace(each, curve="M.width = 8", position=each.position + 2) for each in values()]
    narrow = [replace(each, curve="M.width = 4") for each in values()]
    by_size, *by_epoch = figures([*narrow, *wide])
    assert [each.title for each in by_epoch] == [
        "Quality (pixels) against epochs, width 4",
        "Quality (pixels) against epochs, width 8",
    ]
    known = palette(["M.width = 4", "M.width = 8"], [8, 16])
    for figure in by_epoch:
        assert [series.colour for series in figure.panels[0].series] == [known.sizes[8], known.sizes[16]]
    assert [series.colour for series in by_size.panels[0].series] == [*known.curves.values()]


def test_of_many_curves_those_with_several_checkpoints_are_shown_against_epochs_the_first_ones():
    curves = [f"T.seed = {number}" for number in range(9)]
    many = [replace(e, curve=c, position=e.position + 2 * n) for n, c in enumerate(curves) for e in values()]
    _, *by_epoch = figures(many)
    assert len(by_epoch) == MOST_CURVES < len(curves)
    assert all(each.text.endswith(f"The first {MOST_CURVES} of 9 settings.") for each in by_epoch)
    once = [each for each in many if each.epoch == 20 or each.curve == curves[3]]
    _, only = figures(once)
    assert only.title.endswith("seed 3")


def test_models_of_one_size_are_lines_of_their_own_with_one_entry_in_the_legend():
    twins = [replace(each, position=each.position + 2, value=each.low) for each in values()]
    by_size, _ = figures([*values(), *twins])
    lines = [series for series in by_size.panels[1].series if series.look == "line"]
    assert [(series.y, series.in_legend) for series in lines] == [([20, 20.1], True), ([19, 19.1], False)]


def test_each_space_has_figures_and_one_size_with_one_checkpoint_none():
    spaces = [*values(), *(value("recall", "training", position=p, space="sscd") for p in (0, 1))]
    assert [figure.title for figure in figures(spaces)] == [
        "Quality (pixels) against the number of training images",
        "Quality (pixels) against epochs",
        "Quality (sscd) against the number of training images",
    ]
    assert figures(values(epochs=(10,), positions=(0,))) == []
    assert figures([]) == []


def test_a_distance_of_too_few_images_is_said_in_the_text():
    few = [value("frechet_distance", "training", position=p) for p in (0, 1)]
    (figure,) = figures([replace(each, real=8) for each in few])
    assert "8 images in 64 dimensions are too few (n <= d)" in figure.text
