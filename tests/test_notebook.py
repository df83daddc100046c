"""The notebook: its code runs from top to bottom, with fewer steps, and prints what its stored outputs look like."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
FEWER = {
    "STEPS = 800": "STEPS = 2",
    "samples = 200": "samples = 4",
    "points = 4": "points = 1",
    "P.size = [2, 4, 8, 16]": "P.size = [2, 4]",
}
"""What is made smaller: enough to run everything, too little to memorize anything."""


def stored(cell: dict) -> str:
    """Return what a cell has printed."""
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def shape_of(printed: str) -> set[str]:
    """Return the kinds of lines that were printed, whatever their numbers are."""
    return {re.sub(r"[-+\d.]+(e[-+]\d+)?", "#", line) for line in printed.splitlines()}


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> list[str]:
    """Return what each cell prints, run one after another in a folder of their own."""
    names: dict[str, object] = {}
    found = []
    with contextlib.chdir(tmp_path_factory.mktemp("notebook")):
        for cell in CODE:
            code = "".join(cell["source"])
            for size, smaller in FEWER.items():
                code = code.replace(size, smaller)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(code, str(PATH), "exec"), names)
            found.append(output.getvalue())
        assert Path("notebook/report.html").exists()
    return found


def test_the_notebook_has_what_is_made_smaller():
    text = "".join(line for cell in CODE for line in cell["source"])
    assert [size for size in FEWER if text.count(size) != 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CODE)))
def test_a_cell_prints_lines_of_the_kind_that_its_stored_output_has(number, printed):
    kinds = shape_of(printed[number])
    assert bool(kinds) == bool(stored(CODE[number]))
    assert kinds & shape_of(stored(CODE[number])) or not kinds


def test_the_stored_outputs_are_small_and_end_with_an_answer_and_a_figure():
    assert PATH.stat().st_size < 30_000
    assert re.search(r"^EMM [\d.]+ \(95% [\d.]+ to [\d.]+\)$", "".join(map(stored, CODE)), re.MULTILINE)
    assert [output for cell in CODE for output in cell["outputs"] if "image/png" in output.get("data", {})]
