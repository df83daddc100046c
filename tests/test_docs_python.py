"""The Python of the documents runs: the blocks of a section, one after another, as in a notebook."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
import tiny

import diffmem
from diffmem.cli import main
from diffmem.store.store import Store

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def python_of(document: str) -> str:
    """Return all Python of a document as one script."""
    return "\n".join(BLOCK.findall(document))


def run(script: str, folder: Path) -> str:
    """Run a script in a folder, with the package under test, and return what it prints."""
    path = os.pathsep.join([str(Path(diffmem.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=tiny.environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_document_on_python_runs_from_top_to_bottom(tmp_path):
    printed = run(python_of((DOCS / "python.md").read_text()), tmp_path)
    assert printed.startswith("0.5\n")
    assert "34.9" in printed
    assert printed.count("Measured") == 4
    assert (tmp_path / "report.html").exists()


def test_the_document_on_python_names_every_name_of_the_api():
    text = (DOCS / "python.md").read_text() + (DOCS / "monitor.md").read_text()
    assert [name for name in diffmem.__all__ if name not in text] == []


SECTIONS = {
    "# Watching": ("my-model", [0, 100, 200]),
    "## A plain PyTorch loop": ("mlp", [0, 250, 500]),
    "## With diffusers": ("ddpm", [0, 10, 20]),
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_loop_of_the_document_on_the_monitor_trains_and_is_measured(heading, tmp_path):
    name, steps = SECTIONS[heading]
    (section,) = [
        part for part in re.split(r"\n(?=## )", (DOCS / "monitor.md").read_text()) if part.startswith(heading)
    ]
    script = python_of(section)
    run(script, tmp_path)
    rows = Store(tmp_path / "store" / "diffmem.duckdb").rows(
        "SELECT study, epoch, ratio, loss FROM results ORDER BY epoch"
    )
    assert [(row["study"], row["epoch"]) for row in rows] == [(name, step) for step in steps]
    if name == "mlp":
        assert rows[0]["ratio"] < 0.1
        assert rows[-1]["ratio"] > 0.5
        assert rows[-1]["loss"] < rows[0]["loss"]


def test_every_command_is_a_documented_function():
    rows = re.findall(r"^\| `diffmem ([a-z ]+)` \| (.*) \|$", (DOCS / "python.md").read_text(), re.MULTILINE)
    groups = {name: command for name, command in main.commands.items() if isinstance(command, click.Group)}
    plain = set(main.commands) - set(groups) - {"help"}
    assert {name for name, _ in rows} == plain | {
        f"{g} {name}" for g, group in groups.items() for name in group.commands
    }
    for command, functions in rows:
        calls = re.findall(r"`([\w.]+)\(", functions)
        assert calls, command
        for call in calls:
            assert function_of(call).__doc__, call


def function_of(call: str) -> object:
    """Return the function that a name of the table means."""
    place, _, name = call.rpartition(".")
    if place == "store":
        return getattr(Store, name)
    return getattr(diffmem, name) if not place else getattr(import_module(place), name)
