"""The commands to begin with: a study file to start from, what ships, and what people type out of habit."""

import json
import stat
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from diffmem.store.store import Store
from diffmem.study.study import Study

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "studies").glob("*.toml"))
QUICK = ("--set", "T.epochs=2", "--set", "T.batch_size=8", "--set", "score.samples=8", "--set", "score.every=2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    return tmp_path


def photos(folder: Path, count: int) -> Path:
    """Write photos of 40x30 pixels."""
    folder.mkdir()
    for n in range(count):
        pixels = np.random.default_rng(n).integers(256, size=(30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def stored() -> None:
    """Put a study of two cells, none of which has run, into the default store."""
    tiny.register(Store(Path("store/diffmem.duckdb")), tiny.load(Path(), tiny.TEXT))


# --- init ----------------------------------------------------------------------------------------------


def test_a_study_to_start_from_is_written_and_is_a_study():
    result = tiny.here("init")
    assert result.stdout == (
        "study.toml: written. `diffmem plan study --measure` shows what it trains and how long that takes, "
        "`diffmem run study` trains it.\n"
    )
    study = Study.load("study.toml")
    assert [entry.cell.P.size for entry in study.cells] == [8, 16, 32] * 2
    assert {entry.cell.P.dataset for entry in study.cells} == {"emoji"}
    assert min(entry.cell.last_step for entry in study.cells) >= 1000


def test_a_study_to_start_from_of_a_folder_of_photos_runs(tmp_path):
    photos(tmp_path / 'my "photos" {1}\x7f', 20)
    assert tiny.here("init", "mine", "--images", 'my "photos" {1}\x7f').returncode == 0
    study = Study.load("mine.toml")
    assert study.title == 'Memorization of my "photos" {1}\x7f'
    assert sorted({entry.cell.P.size for entry in study.cells}) == [5, 10]
    assert tiny.here("plan", "mine").stdout == tiny.here("plan", "mine.toml").stdout != ""
    result = tiny.here("run", "mine", *QUICK)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("mine: 4 of 4 cells are finished")


def test_a_study_to_start_from_replaces_no_file():
    Path("study.toml").write_text("mine")
    result = tiny.here("init")
    assert result.returncode == 2
    assert result.stderr == "study.toml: exists already; give another name, `diffmem init NAME`\n"
    assert Path("study.toml").read_text() == "mine"


def test_images_too_few_for_a_study_are_said_so_and_nothing_is_written(tmp_path):
    photos(tmp_path / "few", 3)
    result = tiny.here("init", "--images", "few")
    assert result.returncode == 2
    assert result.stderr == "few: 3 images, and a training set of a study to start from has at least 4\n"
    assert not Path("study.toml").exists()


@pytest.mark.parametrize("name", ["", "a\nb", ".toml", ".", "a/.."])
def test_what_is_no_name_for_a_study_is_refused(name, tmp_path):
    result = tiny.here("init", name)
    assert result.returncode == 2
    stem = Path(name).name.removesuffix(".toml")
    assert result.stderr == f"{stem!r} is no name for a study; give another one, `diffmem init NAME`\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_so():
    result = tiny.here("init", "missing/mine")
    assert result.returncode == 2
    assert result.stderr == "missing/mine.toml: cannot be written: No such file or directory\n"


# --- what ships ----------------------------------------------------------------------------------------


def test_the_list_has_what_is_stored_and_what_ships():
    stored()
    rows = json.loads(tiny.here("list", "--json").stdout)
    assert rows[0] == {"study": "tiny", "title": "Tiny", "finished": "0/2", "profiles": None}
    assert [row["study"] for row in rows[1:]] == SHIPPED
    (skip,) = [row for row in rows if row["study"] == "skip"]
    assert skip["profiles"] == "desk, laptop"


def test_ls_is_list():
    assert tiny.here("ls").stdout == tiny.here("list").stdout != ""


def test_a_study_that_ships_is_planned_and_run_by_its_name():
    plan = tiny.here("plan", "skip", "--profile", "laptop")
    assert plan.returncode == 0, plan.stderr
    result = tiny.here("run", "quickstart", *QUICK, "--set", "P.size=8", "--set", "M.condition='none'")
    assert result.returncode == 0, result.stderr
    assert [study.study for study in Store(Path("store/diffmem.duckdb")).studies()] == ["quickstart"]


def test_a_study_in_the_folder_studies_goes_before_one_that_ships():
    Path("studies").mkdir()
    tiny.write(Path("studies"), tiny.TEXT, name="quickstart")
    assert tiny.here("plan", "quickstart").stdout.startswith("Tiny (quickstart)\n")


def test_models_that_are_kept_are_measured_and_compared_by_the_name_of_their_study():
    Path("studies").mkdir()
    file = tiny.write(Path("studies"), tiny.TEXT)
    tiny.register(Store(Path("s.duckdb")), Study.load(file))
    for command in (["measure", "--measure", "calibrated"], ["halves"]):
        by_name, by_file = (tiny.here(*command, each, "--store", "s.duckdb") for each in ("tiny", file))
        assert (by_name.returncode, by_name.stdout, by_name.stderr) == (
            by_file.returncode,
            by_file.stdout,
            by_file.stderr,
        )
        assert by_name.stdout + by_name.stderr != ""


def test_a_folder_of_the_same_name_does_not_hide_a_study_that_ships():
    Path("condition").mkdir()
    assert tiny.here("plan", "condition", "--profile", "laptop").returncode == 0


def test_a_name_that_no_study_has_is_said_so():
    result = tiny.here("plan", "quikstart")
    assert result.returncode == 2
    no_file = "cannot be read: No such file or directory; no study that ships has this name either"
    assert result.stderr == f"quikstart: {no_file}; did you mean quickstart?\n"
    assert tiny.here("plan", "nothing").stderr == f"nothing: {no_file}; `diffmem list` shows them\n"


# --- habits --------------------------------------------------------------------------------------------


def test_a_dry_run_is_the_plan_and_stores_nothing(tmp_path):
    tiny.write(tmp_path)
    assert tiny.here("run", "tiny.toml", "--dry-run").stdout == tiny.here("plan", "tiny.toml").stdout != ""
    assert not Path("store").exists()


def test_version_has_a_short_option():
    assert version("diffmem") in tiny.here("-V").stdout
    assert tiny.here("-V").stdout == tiny.here("--version").stdout


def test_help_is_a_command_too():
    assert tiny.here("help").stdout == tiny.here("--help").stdout
    assert tiny.here("help", "run").stdout == tiny.here("run", "--help").stdout
    unknown = tiny.here("help", "nothing")
    assert (unknown.returncode, unknown.stderr.splitlines()[-1]) == (2, "Error: No such command 'nothing'.")
    assert "Did you mean 'emm'?" in tiny.here("help", "emmm").stderr


def test_several_values_for_a_key_are_answered_with_an_axis(tmp_path):
    tiny.write(tmp_path, tiny.TEXT.replace("width = 4", "width = [4, 8]"))
    result = tiny.here("plan", "tiny.toml")
    assert result.returncode == 2
    assert "several values are an axis: [[axes]] with M.width = [4, 8]" in result.stderr


def test_a_report_is_opened_in_the_browser(tmp_path):
    stored()
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    result = tiny.diffmem("report", "--open", BROWSER=f"{browser} %s")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "opened").read_text().startswith("file:///")


def test_without_a_browser_the_page_is_written_all_the_same(tmp_path):
    stored()
    result = tiny.diffmem("report", "--open", "--output", "page.html", BROWSER=f"{tmp_path}/nothing %s", PATH="")
    assert (result.returncode, result.stderr) == (0, "no browser could be started\n")
    assert Path("page.html").exists()
