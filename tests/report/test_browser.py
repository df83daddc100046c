"""The page in a browser: figures drawn, no error, nothing fetched, the controls work, and it fits a phone."""

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import tiny
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from diffmem.analysis.emm import estimate_emm
from diffmem.measures import Pictured
from diffmem.report.page import write_page
from diffmem.store.given import Checkpoint
from diffmem.store.store import Store
from diffmem.study.study import Study

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
SIZES = [4, 8, 16]
TEXT = tiny.TEXT.replace('"Tiny"', '"<script>document.title = 1</script> & more"') + f"[[axes]]\nP.size = {SIZES}\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="needs chromium and its driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def distances(cell_number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return d1 and d2 of 200 images, more alike at later epochs and in smaller training sets."""
    generator = np.random.default_rng([cell_number, epoch])
    share = generator.beta(1.0 + cell_number / 4, 1 + epoch / 6, 200)
    return share * 100, np.full(200, 100.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    folder = tmp_path_factory.mktemp("browser")
    study, store = tiny.load(folder, TEXT), Store(folder / "store.duckdb")
    tiny.register(store, study)
    for number, entry in enumerate(study.cells):
        for epoch, step in entry.cell.checkpoints:
            d1, d2 = distances(number, epoch)
            store.append(
                Checkpoint(
                    cell_id=entry.cell.cell_id,
                    epoch=epoch,
                    step=step,
                    loss=1.0,
                    nearest=np.arange(200) % 4,
                    d1=d1,
                    d2=d2,
                    memorized=int((d1 < d2 / 3).sum()),
                    train_seconds=1.0,
                    score_seconds=1.0,
                    attempt_id="by hand",
                    pairs=[Pictured(tiny.png(2 * i), tiny.png(2 * i + 1), tiny.png(99), 7) for i in range(12)],
                )
            )
    return study, store


@pytest.fixture(scope="module")
def browser(study: tuple[Study, Store], tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Open the page in headless Chromium that logs its console and every request."""
    folder = tmp_path_factory.mktemp("page")
    write_page(study[1], ["tiny"], folder / "page.html")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.set_window_size(1100, 900)
        driver.get((folder / "page.html").as_uri())
        yield driver
    finally:
        driver.quit()


def ratio(study: Study, size: int, dropout: float, threshold: float) -> float:
    """Return the ratio of the best checkpoint at a threshold, counted anew."""
    (number,) = (i for i, e in enumerate(study.cells) if e.cell.P.size == size and e.cell.M.dropout == dropout)
    counts = []
    for epoch, _ in study.cells[number].cell.checkpoints:
        d1, d2 = distances(number, epoch)
        counts.append(np.mean(d1 < threshold * d2))
    return max(counts)


def table(browser: webdriver.Chrome) -> list[list[str]]:
    rows = browser.find_elements(By.CSS_SELECTOR, ".at-threshold tbody tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


def expected_table(study: Study, threshold: float) -> list[list[str]]:
    rows = []
    for dropout in (0.0, 0.2):
        ratios = [ratio(study, size, dropout, threshold) for size in SIZES]
        rows.append(
            [f"dropout {dropout}", str(estimate_emm(SIZES, ratios)).replace(">=", "≥"), *(f"{r:.3f}" for r in ratios)]
        )
    return rows


def test_figures_are_drawn_without_an_error_and_nothing_is_fetched(browser: webdriver.Chrome) -> None:
    plots = browser.find_elements(By.CSS_SELECTOR, ".plotly-graph-div")
    # against N; ratio and loss against steps (two a curve); copies by image, and how many images are copied (two); the
    # histogram and the curves at its threshold; samples (two a curve)
    assert len(plots) == 14
    assert all(plot.find_elements(By.CSS_SELECTOR, "svg.main-svg") for plot in plots)
    assert browser.execute_script(  # none over its neighbour
        "return [...document.querySelectorAll('.plotly-graph-div')].every(plot => "
        "plot.querySelector('svg.main-svg').getBoundingClientRect().width <= plot.getBoundingClientRect().width + 1)"
    )
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert "<script>" in browser.title  # the study's title is text and has not run
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in requests if e["method"] == "Network.requestWillBeSent"]
    assert {urlparse(url).scheme for url in urls} <= {"file", "data", "blob", "chrome"}  # chrome: its own first tab
    assert sum(urlparse(url).scheme == "file" for url in urls) == 1


def test_legends_are_whole_and_below_the_titles_of_their_axes(browser: webdriver.Chrome) -> None:
    method = browser.find_element(By.CSS_SELECTOR, "details.method")
    browser.execute_script("arguments[0].open = true", method)
    drawn = "return arguments[0].querySelector('.cartesianlayer .xy').getBoundingClientRect().width > 150"
    hidden = method.find_element(By.CSS_SELECTOR, ".plotly-graph-div")
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(drawn, hidden))  # what was folded away
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].filter(plot => plot.querySelector('.legend'))"
        ".map(plot => { const box = name => plot.querySelector(name).getBoundingClientRect();"
        "const ends = [...plot.querySelectorAll('.legend .traces')].map(each => each.getBoundingClientRect().bottom);"
        "return [box('.xtitle').bottom, box('.legend').top, Math.max(...ends), plot.getBoundingClientRect().bottom,"
        "plot.querySelector('.legend .scrollbar').getBoundingClientRect().height,"
        "box('.cartesianlayer .xy').height]; })"
    )
    browser.execute_script("arguments[0].open = false", method)
    assert len(plots) >= 6
    for title, legend, lowest, bottom, scrollbar, axes in plots:
        assert legend >= title - 1
        assert lowest <= bottom + 1
        assert scrollbar == 0
        assert axes > 150


def test_the_threshold_starts_at_a_third_with_the_numbers_of_the_store(
    browser: webdriver.Chrome, study: tuple[Study, Store]
) -> None:
    assert browser.find_element(By.CSS_SELECTOR, ".evidence output").text == "0.333 (1/3, the paper's)"
    assert table(browser) == expected_table(study[0], 1 / 3)


@pytest.mark.parametrize("level", [30, 60, 119])
def test_the_slider_moves_ratios_emms_curves_and_the_line(
    browser: webdriver.Chrome, study: tuple[Study, Store], level: int
) -> None:
    slider = browser.find_element(By.CSS_SELECTOR, ".evidence input[type=range]")
    key = Keys.ARROW_RIGHT if level > 40 else Keys.ARROW_LEFT
    slider.send_keys(key * abs(level - 40))
    try:
        assert table(browser) == expected_table(study[0], level / 120)
        line, y = browser.execute_script(
            "const [h, c] = document.querySelectorAll('.evidence .plotly-graph-div');"
            "return [h.layout.shapes[0].x0, Array.from(c.data[3].y)]"
        )
        assert line == pytest.approx(level / 120)
        band, named = browser.execute_script(
            "const [h, c] = document.querySelectorAll('.evidence .plotly-graph-div');"
            "return [Array.from(c.data[2].y), h.layout.annotations[0].text]"
        )
        assert all(low <= at <= high for low, at, high in zip(band[:3], y, band[:2:-1], strict=True))
        assert named == f"threshold {level / 120:.3f}"
        alike = [float(pair.get_attribute("data-alike")) for pair in all_pairs(browser)]
        assert [outlined(pair) for pair in all_pairs(browser)] == [at < level / 120 for at in alike]
        assert y == pytest.approx([ratio(study[0], size, 0.2, level / 120) for size in SIZES])
    finally:
        browser.find_element(By.CSS_SELECTOR, ".evidence button").click()
    assert table(browser) == expected_table(study[0], 1 / 3)


def all_pairs(browser: webdriver.Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "details[open] .pair")


def outlined(pair: WebElement) -> bool:
    return "memorized" in str(pair.get_attribute("class"))


def test_the_gallery_filters_and_sorts(browser: webdriver.Chrome) -> None:
    gallery = browser.find_element(By.CSS_SELECTOR, "details[open] .gallery")
    details = gallery.find_element(By.XPATH, "..")

    def shown() -> list[tuple[bool, float]]:
        pairs = [pair for pair in gallery.find_elements(By.CSS_SELECTOR, ".pair") if pair.is_displayed()]
        return [("memorized" in pair.get_attribute("class"), float(pair.get_attribute("data-alike"))) for pair in pairs]

    def choose(which: str, value: str) -> None:
        details.find_element(By.CSS_SELECTOR, f"select.{which} option[value={value}]").click()

    everything = shown()
    assert len(everything) == 12
    choose("show", "memorized")
    assert shown() == [pair for pair in everything if pair[0]]
    choose("show", "others")
    assert shown() == [pair for pair in everything if not pair[0]]
    choose("show", "all")
    assert everything == sorted(everything, key=lambda pair: pair[1])  # the most similar first
    choose("sort", "number")
    numbers = [int(pair.get_attribute("data-number")) for pair in gallery.find_elements(By.CSS_SELECTOR, ".pair")]
    assert numbers == list(range(12))
    choose("sort", "alike")
    assert shown() == everything


def test_a_pair_is_enlarged_beside_the_difference_of_the_two(browser: webdriver.Chrome) -> None:
    first, second, *_ = browser.find_elements(By.CSS_SELECTOR, "details[open] .pair")
    first.find_element(By.CSS_SELECTOR, ".enlarge").send_keys(Keys.ENTER)
    dialog = browser.find_element(By.ID, "enlarged")
    title = dialog.find_element(By.TAG_NAME, "h3")
    WebDriverWait(browser, 20).until(lambda _: dialog.is_displayed())
    captions = [each.text for each in dialog.find_elements(By.TAG_NAME, "figcaption")]
    assert captions == ["generated", "nearest training image", "difference", "second nearest in pixels, number 7"]
    assert dialog.find_elements(By.TAG_NAME, "img")[2].get_attribute("src") == first.get_attribute("data-second")
    assert title.text == f"Generated image {first.get_attribute('data-number')}"
    said = dialog.find_element(By.CSS_SELECTOR, ".about").text
    assert said.startswith("Nearest distance / second nearest distance: 0.")
    assert str(first.get_attribute("data-about")) in said
    assert said.endswith("8 pixels wide, as stored.")
    differs = browser.execute_script(
        "const [one, other] = arguments[0].querySelectorAll('img'), canvas = arguments[0].querySelector('canvas');"
        "const pixels = image => { const made = document.createElement('canvas'), draw = made.getContext('2d');"
        "[made.width, made.height] = [8, 8]; draw.drawImage(image, 0, 0); return draw.getImageData(0, 0, 8, 8).data; };"
        "const [a, b, c] = [one, other, canvas].map(pixels);"
        "return [...c].filter((value, i) => i % 4 < 3 && Math.abs(value - Math.abs(a[i] - b[i])) > 1).length;",
        dialog,
    )
    assert differs == 0
    dialog.send_keys(Keys.ARROW_RIGHT)
    WebDriverWait(browser, 20).until(lambda _: title.text == f"Generated image {second.get_attribute('data-number')}")
    dialog.find_element(By.CSS_SELECTOR, ".close").click()
    assert not dialog.is_displayed()


def test_a_ratio_leads_to_its_copies_by_a_link_and_by_a_click_on_its_point(browser: webdriver.Chrome) -> None:
    details = browser.find_elements(By.XPATH, GALLERIES)
    closed = next(each for each in details if each.get_attribute("open") is None)
    place = f"{closed.get_attribute('data-curve')}-{closed.get_attribute('data-size')}"
    browser.execute_script("location.hash = ''")
    browser.find_element(By.CSS_SELECTOR, f"a[href='#tiny-copies-{place}']").send_keys(Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: closed.get_attribute("open") is not None)
    browser.execute_script("arguments[0].open = false; location.hash = ''", closed)
    browser.execute_script(
        "const plot = document.querySelector('.opens .plotly-graph-div');"
        "plot.emit('plotly_click', {points: [{x: Number(arguments[1]), customdata: [0, 1, Number(arguments[0])]}]})",
        *place.split("-"),
    )
    WebDriverWait(browser, 20).until(lambda _: closed.get_attribute("open") is not None)
    browser.execute_script("arguments[0].open = false; location.hash = ''", closed)


def test_the_contents_stay_in_sight_and_a_link_to_the_method_opens_it(browser: webdriver.Chrome) -> None:
    contents = browser.find_element(By.CSS_SELECTOR, ".contents")
    contents.find_element(By.CSS_SELECTOR, "a[href='#tiny-method']").send_keys(Keys.ENTER)
    method = browser.find_element(By.CSS_SELECTOR, "details.method")
    WebDriverWait(browser, 20).until(lambda _: method.get_attribute("open") is not None)
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", contents)
    assert top == pytest.approx(0, abs=1)
    browser.execute_script("arguments[0].open = false; location.hash = ''; scrollTo(0, 0)", method)


def test_names_at_the_ends_of_lines_give_way_to_a_legend_on_a_phone(browser: webdriver.Chrome) -> None:
    state = (
        "const {layout} = document.querySelector('.opens .plotly-graph-div');"
        "const names = layout.annotations.filter(each => each.name === 'end' && each.visible !== false);"
        "return [layout.showlegend, names.length]"
    )
    assert browser.execute_script(state) == [False, 2]
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(state) == [True, 0])
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(state) == [False, 2])


def test_a_click_on_a_training_image_shows_what_was_generated_near_it(browser: webdriver.Chrome) -> None:
    gallery = browser.find_element(By.CSS_SELECTOR, "details[open] .gallery")
    details = gallery.find_element(By.XPATH, "..")
    about = details.find_element(By.CSS_SELECTOR, ".about")

    def shown() -> list[str | None]:
        pairs = [pair for pair in gallery.find_elements(By.CSS_SELECTOR, ".pair") if pair.is_displayed()]
        return [pair.get_attribute("data-of") for pair in pairs]

    assert len(shown()) == 12
    assert not about.is_displayed()
    copied, *_ = details.find_elements(By.CSS_SELECTOR, ".copied .near")
    copied.send_keys(Keys.ENTER)
    assert shown() == [copied.get_attribute("data-of")] * 3  # of 12 images near 4 training images in turn
    said = f"{copied.get_attribute('data-about')}. 3 of these are shown."
    assert about.find_element(By.TAG_NAME, "span").text == said
    assert "nearest to 50 generated images" in said
    about.find_element(By.TAG_NAME, "button").click()
    pair = gallery.find_element(By.CSS_SELECTOR, ".pair")
    pair.find_element(By.CSS_SELECTOR, ".enlarge").click()
    dialog = browser.find_element(By.ID, "enlarged")
    WebDriverWait(browser, 20).until(lambda _: dialog.is_displayed())
    dialog.find_element(By.CSS_SELECTOR, ".others").click()
    assert shown() == [pair.get_attribute("data-of")] * 3
    about.find_element(By.TAG_NAME, "button").click()
    assert len(shown()) == 12
    assert not about.is_displayed()


def test_the_numbers_of_a_figure_are_given_as_a_plain_csv_file(browser: webdriver.Chrome) -> None:
    link = browser.find_element(By.CSS_SELECTOR, "a.packed")
    details = link.find_element(By.XPATH, "ancestor::details")
    browser.execute_script("arguments[0].open = true", details)
    WebDriverWait(browser, 20).until(lambda _: str(link.get_attribute("href")).startswith("blob:"))
    text = browser.execute_async_script(
        "fetch(arguments[0].href).then(file => file.text()).then(arguments[1])",
        link,
    )
    header, *lines = csv.reader(io.StringIO(text))
    assert header == ["line", "training images N", "memorization ratio", "low", "high"]
    rows = [row.find_elements(By.TAG_NAME, "td") for row in details.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert [line[0] for line in lines] == [row[0].text for row in rows]
    for line, row in zip(lines, rows, strict=True):  # the table has the digits that the interval allows
        digits = len(row[2].text.partition(".")[2])
        assert row[2].text == f"{float(line[2]):.{digits}f}" or abs(float(row[2].text) - float(line[2])) < 1e-4
    assert str(link.get_attribute("download")).endswith(".csv")
    browser.execute_script("arguments[0].open = false", details)


def test_every_control_can_be_reached_with_the_keyboard(browser: webdriver.Chrome) -> None:
    for selector in ("input", "button", "select", "summary", "a"):
        for element in browser.find_elements(By.CSS_SELECTOR, f"section {selector}"):
            assert browser.execute_script("return arguments[0].tabIndex", element) >= 0 or "modebar" in (
                element.get_attribute("class") or ""
            )
    for scrolled in browser.find_elements(By.CSS_SELECTOR, ".scroll"):
        assert scrolled.get_attribute("tabindex") == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_light_and_dark(browser: webdriver.Chrome, scheme: str) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    wanted = {"light": "#1c2430", "dark": "#e4e9f0"}[scheme]
    font = "return document.querySelector('.plotly-graph-div').layout.font.color"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(font) == wanted)  # the change is an event
    body, axis = browser.execute_script(
        "const style = getComputedStyle(document.body);"
        "return [[style.color, style.backgroundColor], document.querySelector('.plotly-graph-div').layout.font.color]"
    )
    text, page = ([int(v) for v in colour[4:-1].split(",")] for colour in body)
    assert abs(sum(text) - sum(page)) > 450
    drawn = [int(axis[i : i + 2], 16) for i in (1, 3, 5)]
    assert abs(sum(drawn) - sum(page)) > 450


def test_nothing_scrolls_sideways_on_a_phone(browser: webdriver.Chrome) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for element in browser.find_elements(By.CSS_SELECTOR, "details:not([open]) > summary"):
            browser.execute_script("arguments[0].parentElement.open = true", element)
        deadline = time.monotonic() + 20  # figures follow the new width in their own time
        while browser.execute_script("return document.documentElement.scrollWidth") > 360:
            assert time.monotonic() < deadline, browser.execute_script(
                "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 361 "
                "&& !e.closest('.scroll, .contents')).map(e => e.tagName + '.' + e.className + ' of ' + "
                "(e.closest('.plot')?.dataset.name ?? e.closest('.ratios')?.className)).slice(0, 10)"
            )
            time.sleep(0.2)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_opened_and_chosen_stays_when_a_watched_page_loads_itself_anew(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    store, path = Store(tmp_path / "store.duckdb"), tmp_path / "page.html"
    study = tiny.load(tmp_path, TEXT, "watched")
    tiny.register(store, study)
    pairs = [(tiny.png(2 * i), tiny.png(2 * i + 1)) for i in range(4)]
    first, *others = study.cells
    for entry in others:
        tiny.measure(store, entry.cell, [0.5] * 3, pairs=pairs)
    write_page(store, ["watched"], path, refresh=600)
    before = browser.current_url
    try:
        browser.get(path.as_uri())
        assert browser.find_element(By.CSS_SELECTOR, "meta[http-equiv=refresh]").get_attribute("content") == "600"
        browser.find_element(By.CSS_SELECTOR, ".evidence input[type=range]").send_keys(Keys.ARROW_RIGHT * 20)
        galleries = {d.text.partition(" epoch")[0]: d for d in browser.find_elements(By.XPATH, GALLERIES)}
        chosen = list(galleries)[2]
        summary = galleries[chosen].find_element(By.TAG_NAME, "summary")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)  # not below the contents
        summary.click()
        galleries[chosen].find_element(By.CSS_SELECTOR, "select.show option[value=memorized]").click()

        tiny.measure(store, first.cell, [0.5] * 3, pairs=pairs)  # which ends the run, and adds a gallery before it
        write_page(store, ["watched"], path, refresh=600)
        browser.refresh()
        assert browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv=refresh]") == []
        assert browser.find_element(By.CSS_SELECTOR, ".evidence output").text == "0.500"
        shown = {d.text.partition(" epoch")[0]: d for d in browser.find_elements(By.XPATH, GALLERIES)}
        assert len(shown) == len(galleries) + 1
        opened = {name for name, d in shown.items() if d.get_attribute("open")}
        newest, *_ = shown
        open_before, *_, also_open = galleries
        assert opened == {newest, open_before, chosen, also_open}
        filtered = {
            name: d.find_element(By.CSS_SELECTOR, ".gallery").get_attribute("data-show") for name, d in shown.items()
        }
        assert {name for name, show in filtered.items() if show == "memorized"} == {chosen}
    finally:
        browser.get(before)


GALLERIES = "//details[.//*[contains(@class, 'gallery')]]"


def test_a_threshold_between_two_steps_of_the_slider_is_named(
    browser: webdriver.Chrome, study: tuple[Study, Store], tmp_path: Path
) -> None:
    finer = tiny.load(tmp_path, TEXT + "[emm]\nthreshold = 0.33\n", "finer")
    tiny.register(study[1], finer)
    write_page(study[1], ["finer"], tmp_path / "page.html")
    page = browser.current_url
    try:
        browser.get((tmp_path / "page.html").as_uri())
        output = browser.find_element(By.CSS_SELECTOR, ".evidence output")
        assert output.text == "0.333 (1/3, the paper's) (the step nearest to the study's 0.33)"
        browser.find_element(By.CSS_SELECTOR, ".evidence input[type=range]").send_keys(Keys.ARROW_RIGHT)
        assert output.text == "0.342"
    finally:
        browser.get(page)
