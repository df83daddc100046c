"""The page: one file that opens offline, shows what the store has as it is, and is written whole or not at all."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from plotly.offline import get_plotlyjs
from reading import PAIRS, REASON, STUDY, Page, fill, rendered
from scipy.stats import binomtest

from diffmem.analysis.emm import emm_interval
from diffmem.cells.cell import Cell
from diffmem.cells.cost import cell_cost
from diffmem.errors import DiffmemError
from diffmem.measures.nearest import NEAREST
from diffmem.report.page import render_page, write_page
from diffmem.store.given import ListedCell, Listing
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.text import with_unit

EVIL = "<script>alert(1)</script> & <b>bold</b> \"quoted\" 'too' {{ 7 * 7 }} ${1}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("filled") / "store.duckdb")
    fill(store)
    return store


@pytest.fixture(scope="module")
def page(filled: Store) -> Page:
    return rendered(filled)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the page of a study with hostile text wherever text can be."""
    store = Store(tmp_path_factory.mktemp("evil") / "store.duckdb")
    text = STUDY.replace('"Tiny"', json.dumps(EVIL)).replace('"Fig. 0"', json.dumps(EVIL))
    study = tiny.load(store.path.parent, text)
    cells = [ListedCell(entry.cell, f"{EVIL} {number}", EVIL, {EVIL: EVIL}) for number, entry in enumerate(study.cells)]
    listing = Listing("tiny", study.title, EVIL, study.estimated, figure=study.figure, axes=[[EVIL]])
    store.register(listing, cells, notes={study.cells[0].cell.cell_id: [EVIL]})
    where = dataclasses.replace(tiny.HERE, host=EVIL, device=EVIL, versions={EVIL: EVIL}, git_commit=EVIL)
    for entry, ratios in zip(study.cells, ([1.0] * 3, [0.5], []), strict=True):
        tiny.measure(store, entry.cell, ratios, pairs=PAIRS)
        store.end_attempt(store.start_attempt(entry.cell.cell_id, where), Outcome.FAILED, EVIL)
    return rendered(store)


# --- one file, offline ---------------------------------------------------------------------------------


def test_plotly_is_in_the_page_exactly_once(page: Page) -> None:
    assert page.source.count(get_plotlyjs()) == 1
    assert "plotly.js v" not in page.without_plotly
    assert len(page.without_plotly) < 500_000


def test_a_page_of_two_studies_has_plotly_once(store: Store) -> None:
    fill(store)
    fill(store, STUDY, "other")
    assert rendered(store, "tiny", "other").source.count(get_plotlyjs()) == 1


def test_nothing_is_fetched_from_anywhere(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
                assert value.startswith(("data:", "#")), (tag, name, value[:80])
            assert "url(" not in (value or "")
    for style in page.texts["style"]:
        assert "url(" not in style
        assert "@import" not in style
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page.without_plotly)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts|sendBeacon)\b", page.without_plotly)


def test_no_figure_offers_to_send_its_data_away(page: Page) -> None:
    plots = page.plots()
    assert len(plots) == len(page.without_plotly.split("Plotly.newPlot(")) - 1 == 10
    for _, _, _, config in plots:
        assert config["showSendToCloud"] is False
        assert not config.get("showLink", False)
        assert config.get("plotlyServerURL", "").startswith("https://") is False


def test_the_tags_of_a_page_nest(page: Page) -> None:
    assert page.open == []
    assert page.source.startswith("<!doctype html>")
    assert {"charset": "utf-8"} in page.of("meta")


# --- text as it is -------------------------------------------------------------------------------------


def test_text_of_the_store_is_shown_and_never_run(evil: Page, page: Page) -> None:
    assert (
        len(evil.of("script")) == len(page.of("script")) + 2
    )  # two of its three curves have a checkpoint more than one
    assert evil.of("b") == []
    assert evil.texts["title"] == [f"diffmem: {EVIL}"]
    assert EVIL in evil.texts["h2"]
    assert f"{EVIL} (in 1 of 3 cells)" in evil.texts["li"]
    assert evil.text.count("alert(1)") > 10
    assert "<script>alert" not in evil.source
    assert not [name for _, attributes in evil.tags for name in attributes if name.startswith("on")]


def test_no_text_ends_the_script_that_it_is_in(evil: Page) -> None:
    for script in evil.texts["script"]:
        assert "</" + "script" not in script.replace(get_plotlyjs(), "").lower()
    assert evil.without_plotly.lower().count("</script") == len(evil.of("script"))
    assert all("alert(1)" not in re.sub(r'"(\\.|[^"\\])*"', '""', script) for script in evil.scripts())


def test_names_in_a_figure_are_no_markup_for_plotly(evil: Page) -> None:
    names = [trace["name"] for _, data, _, _ in evil.plots() for trace in data if "name" in trace]
    assert any("alert(1)" in name for name in names)
    assert all("<" not in name for name in names)


def test_text_is_no_template(evil: Page) -> None:
    assert "{{ 7 * 7 }}" in evil.text
    assert "49" not in evil.texts["h2"][0]


# --- what is shown -------------------------------------------------------------------------------------


def test_the_title_and_where_the_study_is_from_are_shown(page: Page, filled: Store) -> None:
    assert page.texts["title"] == ["diffmem: Tiny"]
    assert page.texts["h2"] == ["Tiny"]
    assert "tiny, Fig. 0, from …/tiny.toml" in page.text
    assert "Store …/store.duckdb, written" in page.text
    named = Page(render_page(filled, ["tiny"], hosts=True))
    assert f"tiny, Fig. 0, from {filled.path.parent / 'tiny.toml'}" in named.text
    assert str(filled.path) in named.text


def test_the_table_has_the_ratios_the_emm_and_what_is_missing(page: Page) -> None:
    assert [text for text in page.texts["th"] if text.startswith("N = ")][:2] == ["N = 8", "N = 16"]
    cells = [text.strip() for text in page.texts["td"]][:7]
    # best: 1.0 and 0.75, so the line at 0.9 is crossed at 8 + 0.1 / 0.25 * 8; last: 0.95 and 0.75
    interval = emm_interval([8, 16], [1.0, 0.75], [20, 20])
    assert interval.low is not None
    assert interval.high is None
    assert cells == ["all cells", "11.2", f"≥ {interval.low:.1f}", "10.0", "", "", "-"]
    assert [text for text in page.texts["a"] if text in ("1.00", "0.75")] == ["1.00", "0.75"]  # links to their copies
    assert page.texts["li"][0] == "2 of 3 cells are not finished."


def test_the_answer_opens_the_study_and_says_what_is_measured(page: Page) -> None:
    (said,) = [text for text, found in answers(page) if found == "answer"]
    assert said.startswith("So far, the model memorizes up to about 11.2 training images (95%: at least ")
    assert [text for text in page.texts["h3"] if text][:2] == ["Answer", "Curve"]


def answers(page: Page) -> list[tuple[str, str | None]]:
    return [(text, each.get("class")) for text, each in zip(page.texts["p"], page.of("p"), strict=True)]


def test_what_was_done_to_the_images_is_listed_where_there_is_something(store: Store, page: Page) -> None:
    heading = "Notes"
    assert heading not in page.texts["h4"]
    study = fill(store)
    one, two, three = [entry.cell.cell_id for entry in study.cells]
    tiny.register(store, study, notes={one: ["resized"], two: ["2 of 9 are grey", "resized"], three: ["resized"]})
    found = rendered(store)
    assert heading in found.texts["h4"]
    assert found.texts["li"][1:3] == ["resized", "2 of 9 are grey (in 1 of 3 cells)"]


def test_the_figures_hold_the_measured_points(page: Page) -> None:
    (_, against_size, _, _), (_, against_steps, _, _), (_, losses, _, _), *_ = page.plots()
    line = next(trace for trace in against_size if trace["mode"] == "lines+markers")
    assert (line["x"], line["y"]) == ([8, 16], [1.0, 0.75])
    assert [(trace["x"], trace["y"]) for trace in against_steps if "fill" not in trace] == [
        ([1200], [0.75]),
        ([1200, 2400, 3000], [0.5, 1.0, 0.95]),
    ]
    assert [trace["y"] for trace in losses] == [[1 / 12], [1 / 12, 1 / 24, 1 / 30]]


def test_a_study_of_one_size_has_ratios_with_their_intervals_and_no_emm(store: Store) -> None:
    study = tiny.load(store.path.parent, tiny.TEXT)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5, 0.55, 0.4])
    page = rendered(store)
    found = [text.strip() for text in page.texts["td"]]
    rows = {text: found[i + 1 : i + 4] for i, text in reversed([*enumerate(found)])}
    low, high = binomtest(11, 20).proportion_ci(method="wilson")
    assert rows["dropout 0.0"] == ["0.55", f"{low:.2f} to {high:.2f}", "0.40"]
    assert rows["dropout 0.2"] == ["-", "-", "not measured"]
    assert page.texts["li"][0] == "1 of 1 cells are not finished (dropout 0.2)."
    assert "A single size gives no EMM." in page.text
    assert "EMM" not in page.texts["th"]
    assert "no size reaches the line" not in page.text


def test_a_study_of_several_sizes_has_an_emm_from_its_first_size_on(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    tiny.measure(store, study.cells[0].cell, [0.5])
    page = rendered(store)
    assert "EMM" in page.texts["th"]
    assert "< 8" in page.texts["td"]


def test_another_threshold_is_used_and_named(store: Store) -> None:
    fill(store, STUDY + "\n[emm]\nthreshold = 0.5\n")
    page = rendered(store)
    line = next(trace for trace in page.plots()[0][1] if trace["mode"] == "lines+markers")
    assert line["y"] == [1.0, 0.85]
    assert "if its nearest training image is less than 0.5 times as far away as the second nearest" in page.text
    assert "a third" not in page.text


def test_another_threshold_counts_everywhere(store: Store) -> None:
    fill(store, STUDY + "\n[emm]\nthreshold = 0.5\n")
    page = rendered(store)
    assert "N = 16 epoch 12, ratio 0.850" in page.text
    assert "failed N = 16 1 of 3 checkpoints, best ratio 0.850" in page.text


def test_epsilon_is_that_of_the_study(store: Store) -> None:
    fill(store, STUDY + "\n[emm]\nepsilon = 0.2\n")
    page = rendered(store)
    assert "ratio ≥ 0.8" in page.text
    assert page.plots()[0][2]["shapes"][0]["y0"] == pytest.approx(0.8)


def test_the_provenance_of_each_cell_is_shown(page: Page, filled: Store) -> None:
    assert "finished N = 8 3 of 3 checkpoints, best ratio 1.000" in page.text
    assert page.texts["td"].count("cpu (a processor, 1 threads)") == 2
    assert "a-host" not in page.text
    named = Page(render_page(filled, ["tiny"], hosts=True))
    assert named.texts["td"].count("a-host") == 2
    assert page.text.count("python 3.0, torch 9.9") == 2
    assert page.text.count("c0ffeec0ff with local changes") == 2
    assert "4 s of training and 2 s of generating" in page.text  # three checkpoints of 1.5 and 0.5 seconds each
    assert "Apart from the study's most common settings: P.size = 16" in page.text
    for cell in filled.cells("tiny"):
        assert cell.cell_id in page.text
    configurations = [json.loads(text) for text in page.texts["pre"] if text.startswith("{")]
    assert configurations == [cell.configuration for cell in filled.cells("tiny")]


@pytest.mark.parametrize(("sizes", "drawn"), [("[8, 16, 32]", 1), ("[8]", 0)])
def test_the_curves_at_the_slider_s_threshold_are_drawn_where_they_have_more_than_a_point(
    store: Store, sizes: str, drawn: int
) -> None:
    study = tiny.load(store.path.parent, STUDY.replace("[8, 16, 32]", sizes))
    tiny.register(store, study)
    for entry in study.cells:
        tiny.measure(store, entry.cell, [0.5])
    page = rendered(store)
    assert sum(attributes.get("class") == "ratios" for attributes in page.of("div")) == drawn
    assert sum(attributes.get("class") == "at-threshold" for attributes in page.of("table")) == 1


def test_the_cost_of_a_cell_is_that_of_its_plan(store: Store) -> None:
    cell = fill(store).cells[0].cell
    cost = cell_cost(cell)
    words = f"{with_unit(cost.parameters)} parameters, {with_unit(cost.operations)} floating-point operations for all"
    assert words in rendered(store).text


def with_own_images(store: Store) -> Cell:
    """Fill a store with cells of a user's own grey images; return the first one."""
    np.savez(store.path.parent / "mine.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8))
    return fill(store, STUDY.replace('"digits"', f'"{store.path.parent}/mine.npz"')).cells[0].cell


def test_the_cost_with_a_users_own_images_is_that_of_its_plan(store: Store) -> None:
    cell = with_own_images(store)
    assert cell.channels == 1
    assert f" {with_unit(cell_cost(cell).operations)} floating-point operations for all" in rendered(store).text


def test_the_cost_is_not_guessed_where_an_older_store_does_not_have_the_channels(store: Store) -> None:
    with_own_images(store)
    without = """UPDATE cells SET configuration = json_merge_patch(configuration, '{"P": {"channels": null}}')"""
    with store.writing() as connection:
        connection.execute(without)
    text = rendered(store).text
    assert "not known: an older diffmem did not keep the colour channels of its images" in text
    assert "floating-point operations" not in text


def test_the_optimum_has_operations_and_no_parameters(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY.replace("[M]", '[M]\nnetwork = "optimum"'))
    tiny.register(store, study)
    page, cell = rendered(store), study.cells[0].cell
    assert f" {with_unit(cell_cost(cell).operations)} floating-point operations" in page.text
    assert "parameters" not in page.text


def test_a_study_of_one_checkpoint_a_cell_has_no_figure_of_its_training(store: Store) -> None:
    study = tiny.load(store.path.parent, STUDY)
    tiny.register(store, study)
    for entry in study.cells:
        tiny.measure(store, entry.cell, [0.5])
    title = "Memorization ratio and loss against steps"
    assert title not in rendered(store).texts["h4"]
    tiny.measure(store, study.cells[0].cell, [0.5, 0.6])
    assert title in rendered(store).texts["h4"]


def test_a_failed_cell_is_shown_with_its_reason(page: Page) -> None:
    assert [text for text in page.texts["pre"] if not text.startswith("{")] == [REASON]
    assert "failed N = 16 1 of 3 checkpoints, best ratio 0.750" in page.text


def test_a_cell_that_waits_is_shown_as_that(page: Page) -> None:
    assert "waiting N = 32 0 of 3 checkpoints" in page.text


def test_the_reason_of_an_attempt_that_was_made_good_is_not_shown(store: Store) -> None:
    cell = fill(store).cells[1].cell
    tiny.measure(store, cell, [0.75, 0.75, 0.75])
    store.end_attempt(store.start_attempt(cell.cell_id, tiny.HERE), Outcome.FINISHED)
    assert REASON not in rendered(store).text


def test_studies_come_in_the_order_asked_for(store: Store) -> None:
    for name in ("one", "two"):
        fill(store, STUDY.replace("Tiny", name.title()), name)
    assert rendered(store, "one", "two").texts["h2"] == ["One", "Two"]
    page = rendered(store, "two", "one")
    assert page.texts["h2"] == ["Two", "One"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_several_studies_begin_with_their_answers_and_links_to_each_that_can_be_shared(store: Store) -> None:
    for name in ("one", "two b"):
        fill(store, STUDY.replace("Tiny", name.title()), name)
    page = rendered(store, "one", "two b")
    links = [attributes["href"] for attributes in page.of("a") if attributes["href"].startswith("#")]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    copies = re.compile(r"#.*-copies-\d+-\d+")  # which the page's script follows
    assert {link[1:] for link in links if not copies.fullmatch(link)} <= ids
    assert links[:2] == ["#one", "#two-b"]
    assert "#two-b-threshold" in links
    rows = [text for text in page.texts["td"][:8] if text.startswith("So far, the model memorizes up to about 11.2")]
    assert len(rows) == 2
    assert page.source.count('<svg class="sparkline"') == page.source.count("<polyline") == 2


def test_method_and_cells_are_folded_away(page: Page) -> None:
    (method,) = [each for each in page.of("details") if each.get("class") == "method"]
    assert "open" not in method


# --- little or nothing to show -------------------------------------------------------------------------


def test_a_store_without_a_study_makes_a_page_that_says_so(store: Store) -> None:
    with store.writing(create=True):
        pass
    page = Page(render_page(store, []))
    assert "The store has no study yet" in page.text
    assert "diffmem run STUDY" in page.text
    assert page.texts["title"] == ["diffmem: no studies"]
    assert page.open == []


def test_a_study_of_which_nothing_is_measured_makes_a_page_that_says_so(store: Store) -> None:
    tiny.register(store, tiny.load(store.path.parent, STUDY))
    page = rendered(store)
    assert "Nothing is measured yet." in page.text
    assert "3 of 3 cells are not finished" in page.text
    assert page.plots() == []
    assert page.of("img") == []


def test_the_command_writes_the_page_of_all_studies_beside_the_store(filled: Store) -> None:
    result = tiny.here("report", "--store", filled.path)
    assert (result.returncode, result.stderr) == (0, "")
    path = filled.path.parent / "report.html"
    assert result.stdout == f"report: {path}, 1 study: tiny\n"
    assert tiny.here("report", "--store", filled.path).stdout == f"report: {path} (replaced), 1 study: tiny\n"
    assert Page(path.read_text(encoding="utf-8")).texts["h2"] == ["Tiny"]


# --- whole or not at all -------------------------------------------------------------------------------


def others(path: Path) -> list[str]:
    """Return what is beside a page, and is not of the store."""
    return sorted(p.name for p in path.parent.iterdir() if p != path)


def test_a_page_is_written_with_its_folder_and_nothing_beside_it(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "page.html"
    write_page(filled, ["tiny"], path)
    assert Page(path.read_text(encoding="utf-8")).texts["h2"] == ["Tiny"]
    assert others(path) == []


def test_a_page_replaces_the_one_before(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the page before")
    write_page(filled, ["tiny"], path)
    assert "the page before" not in path.read_text(encoding="utf-8")
    assert others(path) == []


def test_the_page_before_stays_when_the_store_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the page before")
    (tmp_path / "store.duckdb").write_text("no store" * 1000)
    with pytest.raises(DiffmemError):
        write_page(Store(tmp_path / "store.duckdb"), [], path)
    assert path.read_text() == "the page before"


def test_a_page_that_cannot_take_its_place_is_an_error_and_leaves_nothing(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    (path / "a folder in its place").mkdir(parents=True)
    with pytest.raises(DiffmemError, match="cannot be written") as caught:
        write_page(filled, ["tiny"], path)
    assert str(path) in str(caught.value)
    assert others(path) == []


def test_a_page_that_finds_no_space_is_an_error_and_the_one_before_stays(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the page before")
    limited = subprocess.run(
        [
            *("sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"),
            *tiny.command("report", "--store", filled.path, "-o", path),
        ],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert limited.returncode == 1
    (said,) = limited.stderr.splitlines()
    assert said == f"{path}: cannot be written, the disk is full; free some space and try again"
    assert path.read_text() == "the page before"
    assert others(path) == []


# --- while a run goes on -------------------------------------------------------------------------------


def test_all_queries_of_a_snapshot_see_one_moment(store: Store) -> None:
    """No writer gets in between: DuckDB refuses one, which then waits and tries again."""
    fill(store)
    write = f"import duckdb; duckdb.connect({str(store.path)!r}).execute('DELETE FROM pairs')"
    with store.snapshot():
        before = store.pairs("tiny", NEAREST)
        result = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True)
        assert "Could not set lock" in result.stderr
        assert store.pairs("tiny", NEAREST) == before
    assert subprocess.run([sys.executable, "-c", write]).returncode == 0
    assert store.pairs("tiny", NEAREST) == []


WRITER = """
import sys
from pathlib import Path
import tiny
from diffmem.store import Store
from diffmem.study import Study
store, study = Store(Path(sys.argv[1])), Study.load(Path(sys.argv[2]))
print("ready", flush=True)
for entry in study.cells:
    attempt = store.start_attempt(entry.cell.cell_id, tiny.HERE)
    for epoch, _ in entry.cell.checkpoints:
        store.append(tiny.checkpoint(entry.cell.cell_id, epoch, 0.5, pairs=[(tiny.png(1), tiny.png(2))]))
    store.end_attempt(attempt, "finished")
"""


@pytest.mark.slow
def test_a_page_can_be_written_at_any_time_while_a_run_goes_on(store: Store, tmp_path: Path) -> None:
    text = STUDY.replace("[8, 16, 32]", "[8, 16, 24, 32, 40, 48]")
    study = tiny.load(tmp_path, text)
    tiny.register(store, study)
    with tiny.started(WRITER, store.path, study.path) as run:
        while run.poll() is None:
            assert rendered(store).texts["h2"] == ["Tiny"]
        assert (run.returncode, run.stderr.read()) == (0, "")
    assert "are not finished" not in rendered(store).text


# --- in a browser --------------------------------------------------------------------------------------


def test_the_page_needs_no_torch(filled: Store, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from diffmem.report.page import write_page; "
        "from diffmem.store import Store; write_page(Store(Path(sys.argv[1])), ['tiny'], Path(sys.argv[2])); "
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(filled.path), str(tmp_path / "page.html")],
        env=tiny.environment(),
        check=False,
    )
    assert result.returncode == 0
