"""The paper's numbers beside the measured ones, and how many generated images a ratio needs."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import tiny
from scipy.stats import binomtest

from diffmem.analysis.curves import CellWithSettings, curves_of, study_cells
from diffmem.analysis.published import PUBLISHED, beside, published_values
from diffmem.errors import StoreError
from diffmem.measures.nearest import NEAREST
from diffmem.report import figures
from diffmem.report.drawing import draw
from diffmem.report.figure import Figure, Panel, palette
from diffmem.report.page import render_page
from diffmem.store.store import Store
from diffmem.study.study import Study

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"


def register(store: Store, stem: str, *, profile: str | None = None) -> Study:
    study = Study.load(STUDIES / f"{stem}.toml", profile=profile)
    tiny.register(store, study)
    return study


def measure(store: Store, cell_id: str, memorized: np.ndarray, epoch: int = 40_000) -> None:
    found = tiny.checkpoint(cell_id, epoch, memorized.mean(), samples=len(memorized))
    store.append(replace(found, d1=np.where(memorized, 1.0, 2.0), d2=np.full(len(memorized), 4.0)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def published_studies() -> list[str]:
    with PUBLISHED.open() as file:
        return sorted({row["study"] for row in csv.DictReader(file)})


@pytest.mark.parametrize("stem", published_studies())
def test_every_published_ratio_has_a_cell_in_its_study(store, stem):
    register(store, stem)
    cells = [
        CellWithSettings(cell, 0.5, 100, 0.5, rises=False, steps=1000, scored=1, null=None)
        for cell in store.cells(stem)
    ]
    rows = beside(published_values(store, stem), cells)
    alone = [row.settings for row in rows if not row.cells]
    assert alone == []


def test_shares_are_read_as_shares(store):
    values = published_values(store, "weight_decay@laptop")
    found = {(v.settings["T.weight_decay"], v.settings["P.size"]): v.value for v in values}
    assert found[0.1, 1000] == pytest.approx(0.0133)
    assert found[0, 2000] == pytest.approx(0.6093)


def test_a_file_beside_the_store_comes_first(store):
    store.path.parent.joinpath("published.csv").write_text(
        "source,kind,study,factor,level,size,metric,value,note\nMine,table,ema,T.ema,0.5,1000,ratio_pct,12,\n"
    )
    assert [(v.source, v.value) for v in published_values(store, "ema")] == [("Mine", 0.12)]


def test_the_page_shows_published_and_measured_ratios_at_the_paper_s_scale(store):
    study = register(store, "batch_size")
    cell = next(e.cell for e in study.cells if e.cell.T.batch_size == 128 and e.cell.P.size == 1000)
    measure(store, cell.cell_id, np.arange(100) < 93)
    page = render_page(store, ["batch_size"])
    row = next(line for line in page.splitlines() if "T.batch_size = 128, P.size = 1000" in line and "Table 1" in line)
    assert ">0.8952<" in row
    assert ">0.9300<" in row
    assert ">+0.0348<" in row


def test_the_page_at_another_scale_shows_the_direction_alone(store):
    study = register(store, "batch_size", profile="laptop")
    for entry in study.cells:
        for epoch, _ in entry.cell.checkpoints:
            measure(store, entry.cell.cell_id, np.arange(100) < 5 * entry.cell.T.batch_size // 2, epoch=epoch)
    page = render_page(store, ["batch_size@laptop"])
    assert "The paper&#39;s ratios" not in page
    assert "The paper's ratios" not in page
    assert "larger batches: higher" in page
    assert "+0.043" in page


def test_published_ratios_are_open_markers_in_the_colour_of_their_curve(store):
    study = register(store, "weight_decay")
    for entry in study.cells:
        measure(store, entry.cell.cell_id, np.arange(100) < 50)
    page_cells, _ = study_cells(store, store.studies()[0])
    rows = beside(published_values(store, "weight_decay"), page_cells)
    curves = curves_of(page_cells, 0.1)
    colours = palette([curve.label for curve in curves], [])
    figure = drawn(figures.ratio_against_size(curves, NEAREST.ratio, colours, rows))
    line = next(trace for trace in figure.data if trace.name == "weight decay 0.1")
    marks = next(trace for trace in figure.data if trace.name == "published: weight decay 0.1")
    assert marks.marker.symbol == "circle-open"
    assert marks.marker.color == line.line.color
    assert dict(zip(marks.x, marks.y, strict=True)) == pytest.approx({1000: 0.0133, 2000: 0.0})


def test_settings_of_a_cell_have_the_axis_values_too(store):
    study = register(store, "blend", profile="laptop")
    shares = {cell.settings["P.blend.share"] for cell in study_cells(store, store.study(study.name))[0]}
    assert shares == {0.0, 0.5, 1.0}


def test_sample_counts_are_those_of_the_evidence(store):
    study = register(store, "paper")
    cell_id = study.cells[0].cell.cell_id
    flags = np.random.default_rng(3).random(1000) < 0.3
    measure(store, cell_id, flags)
    rows = {row.images: row for row in store.sample_counts("paper", NEAREST, 1 / 3)}
    assert sorted(rows) == [10, 20, 50, 100, 200, 500, 1000]
    for images, row in rows.items():
        assert row.first == pytest.approx(flags[:images].mean())
        assert row.ratio == pytest.approx(flags.mean())
        groups = flags.reshape(-1, images).mean(axis=1)
        if len(groups) < 10:
            assert row.deviation is None
        else:
            assert row.deviation == pytest.approx(groups.std(ddof=1))


def test_sample_counts_leave_an_incomplete_group_out(store):
    study = register(store, "paper")
    flags = np.random.default_rng(3).random(1005) < 0.3
    measure(store, study.cells[0].cell.cell_id, flags)
    row = next(row for row in store.sample_counts("paper", NEAREST, 1 / 3) if row.images == 100)
    assert row.deviation == pytest.approx(flags[:1000].reshape(10, 100).mean(axis=1).std(ddof=1))


def against_samples(store: Store) -> list[Panel]:
    counts = store.sample_counts("paper", NEAREST, 1 / 3)
    return figures.ratio_against_samples(counts, NEAREST.ratio, palette([], [each.size for each in counts]))


def drawn(panel: Panel) -> go.Figure:
    return go.Figure(draw(panel))


def test_the_figure_of_sample_counts_has_the_bootstrap_s_deviation(store):
    study = register(store, "paper")
    flags = np.random.default_rng(3).random(1000) < 0.3
    measure(store, study.cells[0].cell.cell_id, flags)
    _, panel = against_samples(store)
    figure = drawn(panel)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    deviations = dict(zip(lines[0].x, lines[0].y, strict=True))
    resampled = np.random.default_rng(1).choice(flags, (4000, 100)).mean(axis=1).std()
    assert deviations[100] == pytest.approx(resampled, rel=0.05)
    assert deviations[1000] == pytest.approx(math.sqrt(flags.mean() * (1 - flags.mean()) / 1000))


def test_the_figure_of_sample_counts_has_95_percent_intervals(store):
    study = register(store, "paper")
    flags = np.random.default_rng(3).random(1000) < 0.3
    measure(store, study.cells[0].cell.cell_id, flags)
    panels = against_samples(store)
    shown = {(x, round(y, 9)): interval for _, x, y, interval in Figure("", "", panels).rows() if interval}
    for n in (10, 100, 1000):
        memorized = int(flags[:n].sum())
        found = binomtest(memorized, n).proportion_ci(method="wilson")
        assert shown[n, round(memorized / n, 9)] == pytest.approx((found.low, found.high), abs=1e-9)


@pytest.mark.parametrize(
    "text", ["study,level\nskip", "study,factor,level,size,metric,value,source,note\nskip,M.x,1,many,ratio,2,,\n"]
)
def test_a_damaged_table_of_the_papers_numbers_is_refused_in_a_sentence(store, text):
    path = store.path.parent / "published.csv"
    path.write_text(text)
    with pytest.raises(StoreError) as caught:
        published_values(store, "skip")
    told = str(caught.value).replace(str(path.parent), "FOLDER")
    assert told == "FOLDER/published.csv: not the table of the paper's numbers; restore it or move it away"
