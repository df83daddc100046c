"""The page of a study that is scored by more than one measure: a table, figures and a slider of each."""

import base64
import csv
import gzip
import html
import io
import json
import re
from pathlib import Path

import pytest
import tiny
from reading import PAIRS, STUDY, Page, rendered

from diffmem.measures.calibrated import CALIBRATED
from diffmem.report.figure import Figure
from diffmem.report.threshold import distance_histogram
from diffmem.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def scored(store: Store, text: str = STUDY) -> None:
    """Score the checkpoints of the two smaller sizes by both measures: 1.0 and 0.5 of the images, 0.5 and 0.25."""
    study = tiny.load(store.path.parent, text)
    tiny.register(store, study)
    for entry, nearest, extracted in zip(study.cells, (0.5, 0.25), (1.0, 0.5), strict=False):
        for epoch, _ in entry.cell.checkpoints:
            point = tiny.checkpoint(entry.cell.cell_id, epoch, nearest, pairs=PAIRS)
            store.append(tiny.calibrated(point, extracted))


@pytest.fixture
def page(store: Store) -> Page:
    scored(store)
    return rendered(store)


def rows(page: Page) -> list[list[str]]:
    """Return the rows of the EMM tables: curve, EMM, interval, last, ratios at N = 8 and 16, null."""
    tables = page.source.split('<table class="found">')[1:]
    found = [re.findall(r"<td[^>]*>(.*?)</td>", table.partition("</table>")[0], re.DOTALL) for table in tables]
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in found]


def test_each_measure_has_an_emm_table_of_its_own(page: Page) -> None:
    paper, calibrated = rows(page)
    assert (paper[1], paper[3:]) == ("< 8", ["< 8", "0.50", "0.25", "-"])
    assert (calibrated[1], calibrated[3:]) == ("9.6", ["9.6", "1.00", "0.50", "-"])
    assert "Extracted share (calibrated l2)" in page.texts["h4"]


def test_each_measure_has_figures_of_its_own(page: Page) -> None:
    headings = page.texts["h4"]
    for title in ("against the number of training images", "and loss against steps"):
        assert f"Memorization ratio {title}" in headings
        assert f"Extracted share (calibrated l2) {title}" in headings
    assert "How many generated images the ratio needs" in headings
    assert "How many generated images the extracted share (calibrated l2) needs" in headings
    titles = [layout["yaxis"]["title"]["text"] for _, _, layout, _ in page.plots()]
    assert titles.count("memorization ratio") == titles.count("extracted share (calibrated l2)") == 4
    drawn = [data for _, data, layout, _ in page.plots() if "calibrated" in layout["yaxis"]["title"]["text"]]
    line = next(trace for trace in drawn[0] if trace["mode"] == "lines+markers")
    assert (line["x"], line["y"]) == ([8, 16], [1.0, 0.5])


def test_each_measure_has_a_slider_over_its_own_thresholds(page: Page) -> None:
    sliders = [attributes for attributes in page.of("input") if attributes.get("type") == "range"]
    assert [attributes["value"] for attributes in sliders] == ["40", "60"]  # a third of 1, and 1 of 2
    assert len({attributes["id"] for attributes in sliders}) == len({a["data-keep"] for a in sliders}) == 2
    paper, calibrated = page.data()
    assert (paper["largest"], paper["threshold"], paper["ownText"]) == (1.0, 1 / 3, "1/3, the paper's")
    assert (calibrated["largest"], calibrated["own"], calibrated["ownText"]) == (2.0, 1.0, "the measure's own")
    (curve,) = calibrated["curves"]
    ratios = {entry["size"]: entry["ratios"] for entry in curve["sizes"]}
    at = {threshold: {size: found[threshold * 60 // 100] for size, found in ratios.items()} for threshold in (49, 100)}
    assert at == {49: {8: 0.0, 16: 0.0}, 100: {8: 1.0, 16: 0.5}}
    assert ratios[16][round(1.5 * 60)] == 0.75  # at 1.2 of its yardstick is half of the others
    assert curve["emms"][60] == "9.6"
    headings = page.texts["h4"]
    assert "Histogram of distances" in headings
    assert "Histogram of distances, extracted share (calibrated l2)" in headings


def test_the_page_says_what_makes_an_image_a_copy_by_each_measure(page: Page) -> None:
    said = page.text[page.text.index("Method and cells How") :]
    assert said.index("A generated image is memorized if its nearest training image is less than 1/3 times") < (
        said.index("A generated image is extracted if its nearest training image is nearer than half the mean")
    )
    assert "(Carlini et al. 2023, Sec. 4.2)" in said


def test_a_study_by_another_measure_shows_that_first_and_the_paper_s_beside_it(store: Store) -> None:
    scored(store, STUDY + '\n[emm]\nmeasure = "calibrated"\nthreshold = 1.5\n')
    page = rendered(store)
    calibrated, paper = rows(page)
    assert (calibrated[1], calibrated[4:6]) == ("11.2", ["1.00", "0.75"])
    assert (paper[1], paper[4:6]) == ("< 8", ["0.50", "0.25"])
    assert "Memorization ratio" in page.texts["h4"]
    pairs = [(a["class"], text.strip()) for a, text in zip(page.of("figure"), page.texts["figure"], strict=True)]
    assert [pair for pair in pairs if pair[0].startswith("pair")][:2] == [("pair memorized", "0.50")] * 2
    assert "less than 1.5 times as far away as half the mean distance to its 50 nearest" in page.text


def test_a_study_that_no_other_measure_has_scored_has_the_paper_s_alone(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5])
    assert "calibrated" not in rendered(store).text


# --- downloads -----------------------------------------------------------------------------------------


def downloads(page: Page) -> dict[str, list[list[str]]]:
    """Return the rows of each CSV file that the page offers, by its name."""
    prefix = "data:application/gzip;base64,"
    found = {}
    for attributes in page.of("a"):
        if name := attributes.get("download"):
            assert attributes["href"].startswith(prefix)
            packed = base64.b64decode(attributes["href"].removeprefix(prefix), validate=True)
            text = gzip.decompress(packed).decode()
            assert name.removesuffix(".csv.gz") not in found  # two files of one name would be taken for one
            found[name.removesuffix(".csv.gz")] = list(csv.reader(io.StringIO(text)))
    return found


def test_the_download_of_a_figure_has_its_numbers_in_full(store: Store) -> None:
    text = STUDY.replace("samples = 20", "samples = 30")
    study = tiny.load(store.path.parent, text)
    tiny.register(store, study)
    for entry, ratio in zip(study.cells, (2 / 3, 1 / 30), strict=False):
        tiny.measure(store, entry.cell, [ratio] * 3, samples=30)
    page = rendered(store)
    found = downloads(page)
    header, *lines = found["tiny_Memorization_ratio_against_the_number_of_training_images"]
    assert header == ["line", "training images N", "memorization ratio", "low", "high"]
    assert lines.pop() == ["EMM < 8: all cells", "8.0", "0.9", "", ""]  # the arrow
    assert [(name, int(x), float(y)) for name, x, y, *_ in lines] == [
        ("all cells", 8, 20 / 30),
        ("all cells", 16, 1 / 30),
    ]
    (_, data, _, _), *_ = page.plots()
    line = next(trace for trace in data if trace["mode"] == "lines+markers")
    band = next(trace for trace in data if trace.get("fill") == "toself")
    assert [float(y) for _, _, y, *_ in lines] == line["y"]
    assert [float(low) for *_, low, _ in lines] == band["y"][:2]
    assert [float(high) for *_, high in lines] == band["y"][:1:-1]
    assert "0.67" in page.texts["td"]  # which the table rounds to what the interval allows


def test_every_figure_offers_its_numbers(page: Page) -> None:
    found = downloads(page)
    tables = [text for text in page.texts["summary"] if text == "numbers, CSV and SVG"]
    offered = [attributes["download"] for attributes in page.of("a") if "download" in attributes]
    assert len(tables) == len(offered) == 11
    assert [name for name in found if "Histogram" in name] == [
        "tiny_Histogram_of_distances",
        "tiny_calibrated_Histogram_of_distances_extracted_share_(calibrated_l2)",
    ]
    assert [each["data-name"] for each in page.of("button") if each.get("class") == "svg"] == list(found)
    for lines in found.values():
        assert len({len(line) for line in lines}) == 1
        assert len(lines) > 1


def test_a_series_without_intervals_has_empty_ends_in_its_csv() -> None:
    panel = distance_histogram([], [], CALIBRATED, 1.0)
    lines = list(csv.reader(io.StringIO(Figure("", "", [panel]).as_csv())))
    assert lines[0] == ["line", "nearest distance / half the mean of the 50 nearest", "share of images", "low", "high"]
    assert {(low, high) for *_, low, high in lines[1:]} == {("", "")}
    assert len(lines) == 1 + 121
    assert panel.mark == 1.0
    assert json.dumps(panel.x.range) == "[0, 2.02]"
