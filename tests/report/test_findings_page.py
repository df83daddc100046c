"""The page of findings: the paper's effects beside those of each scale, each where it belongs."""

import csv
import html
import io
import shutil
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from reading import draw
from selenium import webdriver
from selenium.webdriver.common.by import By

from diffmem.analysis.claims import FINDINGS
from diffmem.analysis.findings import FAILS, HOLDS, UNKNOWN, check_findings
from diffmem.analysis.scales import findings_at_scales
from diffmem.cli import main
from diffmem.report.findings_page import findings_figure, write_findings
from diffmem.store.store import Store

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
WIDTHS, SIDES = ["M.width", "P.draw"], ["P.resolution", "P.draw"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two scales that disagree about resolution, and one that alone has widths."""
    store = Store(tmp_path / "store.duckdb")
    tiny.fill(store, "width@laptop", {(8, 0): 0.1, (8, 1): 0.12, (16, 0): 0.9, (16, 1): 0.92}, WIDTHS)
    tiny.fill(store, "resolution@laptop", {(4, 0): 0.1, (4, 1): 0.12, (8, 0): 0.5, (8, 1): 0.52}, SIDES)
    wide = {(4, 0, 24): 0.8, (4, 1, 24): 0.82, (8, 0, 24): 0.3, (8, 1, 24): 0.32}
    tiny.fill(store, "resolution@desk", wide, [*SIDES, "M.width"])  # other cells than those of laptop
    tiny.fill(store, "another", {(8,): 0.5}, ["M.width"])
    return store


def test_each_scale_has_the_verdicts_of_its_own_studies(store: Store) -> None:
    found = findings_at_scales(store)
    assert found.scales == ["desk", "laptop"]  # "another" is about no finding
    for scale in found.scales:
        expected = {finding.number: verdict for finding, verdict, _ in check_findings(store, scale)}
        assert found.verdicts[scale] == expected
    assert found.verdicts["desk"][3] == HOLDS
    assert found.verdicts["laptop"][3] == FAILS
    assert found.counts("laptop") == {UNKNOWN: 15, HOLDS: 1, FAILS: 1}
    assert [each.claim for each in found.claims] == [claim for finding in FINDINGS for claim in finding.claims]
    assert len({each.name for each in found.claims}) == len(found.claims)


def test_the_paper_s_effects_are_there_without_its_studies(store: Store) -> None:
    published = {each.name: each.paper for each in findings_at_scales(store).claims}
    assert published["3  higher resolution: lower"] == "-0.422"
    assert published["16  unique labels: near 1"] == "0.998"
    assert published["1  more images: lower"] == "-"


def test_the_figure_has_each_value_on_the_line_of_its_claim_with_its_interval_and_range(store: Store) -> None:
    figure = findings_figure(findings_at_scales(store))
    (panel,) = figure.panels
    by_name = {series.name: dict(zip(series.x, series.y, strict=True)) for series in panel.series}
    assert by_name["the paper"]["3  higher resolution: lower"] == pytest.approx(-0.422, abs=0.001)
    assert by_name["desk"] == {"3  higher resolution: lower": pytest.approx(-0.5)}
    assert by_name["laptop"] == {
        "3  higher resolution: lower": pytest.approx(0.4),
        "6  wider: higher": pytest.approx(0.8),
    }
    assert panel.ranges["3  higher resolution: lower"] == (-1.05, 0)
    assert panel.ranges["14  random labels: alike"] == (-0.1, 0.1)
    _, *lines = csv.reader(io.StringIO(figure.as_csv()))
    (desk,) = (line for line in lines if line[0] == "desk")
    low, high = float(desk[3]), float(desk[4])
    assert low < -0.5 < high < 0

    drawn = draw(panel)
    bars, paper, one, other = drawn.data
    assert dict(zip(bars.y, bars.base, strict=True))["3  higher resolution: lower"] == -1.05
    assert paper.marker.symbol == "circle-open"
    assert [*one.y] == ["3  higher resolution: lower"]
    assert one.x[0] - one.error_x.arrayminus[0] == pytest.approx(low)
    assert one.x[0] + one.error_x.array[0] == pytest.approx(high)
    assert other.marker.color != one.marker.color
    assert [*drawn.layout.yaxis.categoryarray][-1] == "1  more images: lower"  # on top


def test_the_command_writes_the_page_beside_its_list(store: Store, tmp_path: Path) -> None:
    arguments = ["findings", "--profile", "laptop", "--store", str(store.path), "--report", str(tmp_path / "page.html")]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0
    assert result.stderr == f"findings: {tmp_path / 'page.html'}\n"
    assert result.stdout == CliRunner().invoke(main, [*arguments[:-2], "--json"]).stdout
    text = (tmp_path / "page.html").read_text()
    assert "desk (17 findings): inconclusive: 16, holds: 1" in text
    assert str(tmp_path) not in text  # neither the store's folder nor those of studies
    assert "laptop (17 findings): inconclusive: 15, does not hold: 1, holds: 1" in text


def test_the_page_says_what_stands_behind_a_value(store: Store, tmp_path: Path) -> None:
    tiny.fill(store, "width", {(12,): 0.3, (20,): 0.6}, ["M.width"])
    write_findings(store, tmp_path / "page.html")
    text = " ".join((tmp_path / "page.html").read_text().split())
    behind = (
        "one draw and seed: the interval has the images' noise only; not at the paper's scale: the study was run from"
    )
    assert f"0.300 to 0.600: +0.300 (+0.204 to +0.388); {behind} …/width.toml" in html.unescape(text)


def test_a_store_without_such_studies_says_what_adds_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    tiny.fill(store, "another", {(8,): 0.5}, ["M.width"])
    write_findings(store, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (
        "The store has no study of a finding yet: <code>diffmem run studies/condition.toml --profile laptop</code>"
        in text
    )


@pytest.mark.slow
@pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="needs chromium and its driver")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_is_drawn_in_a_browser_without_an_error_and_fits_a_phone(store: Store, tmp_path: Path) -> None:
    write_findings(store, tmp_path / "page.html")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.set_window_size(420, 900)
        driver.get((tmp_path / "page.html").as_uri())
        (plot,) = driver.find_elements(By.CSS_SELECTOR, ".plotly-graph-div")
        # every mark: the paper's, one of desk and two of laptop
        marks = plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .point")
        published = sum(each.published is not None for each in findings_at_scales(store).claims)
        assert len(marks) == published + 3
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    finally:
        driver.quit()
