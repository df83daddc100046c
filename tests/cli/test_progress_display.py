"""How far a run is, on a terminal."""

import re
from pathlib import Path

import pytest
import tiny
from terminal import left_on_screen, on_terminal

LONGER = tiny.TEXT.replace("epochs = 30 ", "epochs = 100").replace("every = 12", "every = 40")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    return tmp_path


def plain(drawn: str) -> list[str]:
    """Return the lines that are left on the screen, without numbers that were measured."""
    return [re.sub(r" 0\.\d{3}  loss .*", "", line) for line in left_on_screen(drawn)]


def test_several_processes_have_one_display_and_each_line_names_its_cell(folder):
    tiny.write(folder, LONGER)
    code, seen = on_terminal("run", "tiny.toml", "--processes", "2", "--split", "cells")
    assert code == 0, seen[-2000:]
    assert "━" in seen, "bars"
    assert "0/2" in seen
    for dropout in ("0.0", "0.2"):
        assert re.search(rf"M\.dropout = {re.escape(dropout)}  steps.*\d+/100", seen)
    cells = [f"M.dropout = {dropout}" for dropout in ("0.0", "0.2")]
    *lines, last = plain(seen)
    started = [f"cell {cell}, 100 steps" for cell in cells]
    measured = [f"{cell}: epoch {epoch}: memorization ratio" for cell in cells for epoch in (40, 80, 100)]
    assert sorted(lines) == sorted([*started, *measured])
    assert last == "tiny: 2 of 2 cells are finished in store/diffmem.duckdb"


def test_one_process_shows_its_cell_and_leaves_only_its_lines(folder):
    tiny.write(folder, LONGER)
    code, seen = on_terminal("run", "tiny.toml")
    assert code == 0, seen[-2000:]
    assert re.search(r"M\.dropout = 0\.0  steps.*\d+/100", seen)
    measured = [f"  epoch {epoch}: memorization ratio" for epoch in (40, 80, 100)]
    first, second = (f"cell {n}/2 M.dropout = {dropout}, 100 steps" for n, dropout in ((1, "0.0"), (2, "0.2")))
    last = "tiny: 2 of 2 cells are finished in store/diffmem.duckdb"
    assert plain(seen) == [first, *measured, second, *measured, last]


def test_images_are_counted_while_they_are_generated(folder):
    tiny.write(folder, LONGER.replace("samples = 20", "samples = 500").replace("epochs = 100", "epochs = 1"))
    code, seen = on_terminal("run", "tiny.toml")
    assert code == 0, seen[-2000:]
    assert re.search(r"M\.dropout = 0\.0  images.*\d+/500", seen)


def test_several_processes_run_where_the_name_of_the_temporary_folder_is_long(folder):
    long = folder / ("a" * 100)
    long.mkdir()
    tiny.write(folder)
    code, seen = on_terminal("run", "tiny.toml", "--processes", "2", "--split", "cells", TMPDIR=str(long))
    assert code == 0, seen[-2000:]
    assert "Traceback" not in seen


def test_a_quiet_run_draws_nothing(folder):
    tiny.write(folder)
    code, seen = on_terminal("run", "tiny.toml", "--quiet")
    assert (code, left_on_screen(seen)) == (0, ["tiny: 2 of 2 cells are finished in store/diffmem.duckdb"])
    assert "━" not in seen
