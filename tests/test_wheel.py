"""What a user installs: the wheel, without the source tree, in an empty folder."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
PARTS = ("diffmem", "studies", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the wheel has in it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in PARTS:  # building writes into the source tree
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    shutil.rmtree(folder / "source")
    return folder / "site"


def diffmem(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as it is installed."""
    env = tiny.environment() | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        tiny.command(*arguments), env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_study_and_the_numbers_of_the_paper_are_in_the_wheel(installed: Path) -> None:
    for name in ("*.toml", "*.json"):
        shipped = {path.name for path in (ROOT / "studies").glob(name)}
        assert {path.name for path in (installed / "diffmem" / "studies").glob(name)} == shipped != set()
    for kind in ("*.csv", "*.npz", "*.html", "*.css", "*.js", "*.toml", "py.typed", "*.pyi"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / "diffmem").rglob(kind)}
        assert here <= {str(path.relative_to(installed)) for path in installed.rglob(kind)}


def test_it_runs_a_study_by_name_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = [sys.executable, "-c", "import diffmem; print(diffmem.__file__)"]
    told = subprocess.run(
        where, env=os.environ | {"PYTHONPATH": str(installed)}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(told.stdout.strip()).is_relative_to(installed)
    rows = json.loads(diffmem(installed, tmp_path, "list", "--json").stdout)
    assert {"quickstart", "skip"} <= {row["study"] for row in rows}
    planned = diffmem(installed, tmp_path, "plan", "skip", "--profile", "laptop")
    assert planned.returncode == 0, planned.stderr
    small = ("--set", "T.epochs=2", "--set", "score.every=2", "--set", "score.samples=8", "--set", "P.size=8")
    ran = diffmem(installed, tmp_path, "run", "quickstart", *small, "--set", 'M.condition="none"')
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "quickstart: 1 of 1 cells are finished in store/diffmem.duckdb"
    assert diffmem(installed, tmp_path, "report").returncode == 0


OPTIONAL = {
    *("diffusers", "fsspec", "matplotlib", "ray"),  # extras of their own
    *("onnxruntime", "pandas", "pyarrow", "timm", "transformers"),  # a sentence says what to install
}
"""What the package imports only where it is asked for."""
COMES_WITH = {"markupsafe": "jinja2", "pydantic_core": "pydantic"}


def test_a_plain_install_pulls_what_the_package_imports_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", each)[0].replace("-", "_").lower() for each in project["dependencies"]}
    imported = set()
    for path in (ROOT / "diffmem").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "diffmem"}
    assert {COMES_WITH.get(name, {"PIL": "pillow"}.get(name, name)) for name in imported - OPTIONAL} == declared
    assert {"diffusers", "figures", "ray", "dev", "docs"} == set(project["optional-dependencies"])


def test_every_torch_since_2_9_and_python_since_3_11_may_be_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "torch>=2.9" in project["dependencies"]
