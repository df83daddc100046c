"""The import table of design.md, read off the source, and what a quick command may load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffmem

PACKAGE = Path(diffmem.__file__).parent

LAYERS = [
    "errors",
    "layout",
    "config",
    "cost",
    "sql",
    "data",
    "studyfile",
    "study",
    "streams",
    "group",
    "launch",
    "unet",
    "denoiser",
    "sampling",
    "memorization",
    "training",
    "compiling",
    "emm",
    "store",
    "attempts",
    "search",
    "provenance",
    "scoring",
]
"""Everything above runner, in the order in which data flows."""

MAY_IMPORT = {
    "__init__": {
        "emm",
        "errors",
        "memorization",
        "merging",
        "monitor",
        "plan",
        "ratio",
        "report",
        "runner",
        "scoring",
        "store",
        "study",
    },
    "__main__": {"cli"},
    "datasets": set(),
    "errors": set(),
    "layout": set(),
    "config": {"errors", "layout"},
    "cost": {"config", "layout"},
    "plan": {"config", "cost", "data", "emm", "store", "study", "studyfile"},
    "bench": {"compiling", "config", "cost", "denoiser", "memorization", "streams", "throughput", "training"},
    "comparison": {"bench", "cost", "memorization", "throughput"},
    "scaling": {"errors", "store", "study"},
    "throughput": {"config", "cost", "denoiser", "group", "plan", "sampling", "training"},
    "studyfile": {"config", "errors"},
    "sql": set(),
    "data": {"config", "errors", "files", "sql", "units"},
    "study": {"studyfile", "data", "config", "errors"},
    "reference": {"config", "study", "studyfile"},
    "streams": set(),
    "group": {"errors"},
    "orphan": set(),
    "launch": {"errors", "group", "orphan"},
    "unet": {"layout", "streams"},
    "denoiser": {"config", "unet"},
    "sampling": {"streams"},
    "memorization": set(),
    "training": {"config", "denoiser", "group", "streams"},
    "compiling": {"config", "cost", "errors", "training"},
    "emm": set(),
    "schema": set(),
    "values": {"schema"},
    "stored_json": {"errors"},
    "objects": set(),
    "waiting": {"errors"},
    "query": {"errors"},
    "pictures": set(),
    "database": {"errors", "files", "objects", "query", "schema", "sql", "values", "waiting"},
    "store": {"config", "database", "errors", "stored_json", "units"},
    "attempts": {"files", "store"},
    "merging": {"consistency", "database", "errors", "sql", "store", "values", "waiting"},
    "inspection": {"attempts", "config", "emm", "errors", "query", "store", "stored_json"},
    "consistency": {"config", "database", "errors", "pictures", "sql", "store", "stored_json", "units", "values"},
    "remaining": {"config", "cost", "store", "stored_json"},
    "files": {"errors"},
    "export": {"config", "files", "inspection", "report", "sql", "store", "stored_json"},
    "provenance": {"store"},
    "search": {"config", "emm", "store", "study"},
    "scoring": {"config", "data", "emm", "errors", "group", "memorization", "provenance", "store", "units"},
    "ratio": {"data", "errors", "memorization"},
    "pending": {"errors", "store", "units"},
    "monitor": {"config", "errors", "group", "pending", "provenance", "ratio", "scoring", "store"},
    "trackers": {"config", "errors", "events"},
    "events": {"config"},
    "states": {"config", "errors", "group", "training"},
    "cellrun": {*LAYERS, "events", "states"} - {"search"},
    "runner": {*LAYERS, "events", "cellrun"},
    "report": {"attempts", "config", "cost", "emm", "errors", "files", "pictures", "store", "stored_json", "units"},
    "units": set(),
    "cli": {
        "attempts",
        "data",
        "orphan",
        "query",
        "study",
        "studyfile",
        "store",
        "runner",
        "cellrun",
        "events",
        "merging",
        "inspection",
        "consistency",
        "remaining",
        "export",
        "files",
        "scoring",
        "report",
        "config",
        "errors",
        "plan",
        "throughput",
        "launch",
        "bench",
        "comparison",
        "scaling",
        "search",
        "compiling",
        "trackers",
        "reference",
        "units",
    },
}

MATHEMATICS = {
    "streams": {"torch"},
    "group": {"torch"},
    "unet": {"torch"},
    "denoiser": {"torch"},
    "sampling": {"torch"},
    "memorization": {"torch"},
    "training": {"torch"},
    "emm": {"numpy", "scipy"},
}
"""Which packages the mathematics may use; it knows no file and no database."""

FILES_AND_PROCESSES = {"io", "multiprocessing", "os", "pathlib", "shutil", "sqlite3", "subprocess", "tempfile"}

WITHOUT_TORCH = [
    "errors",
    "layout",
    "config",
    "cost",
    "plan",
    "search",
    "studyfile",
    "study",
    "reference",
    "emm",
    "store",
    "merging",
    "inspection",
    "consistency",
    "remaining",
    "export",
    "report",
    "cli",
]


def sources(module: str) -> list[Path]:
    """Return the files of a module: one, or all of a folder."""
    folder = PACKAGE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


def module_names() -> set[str]:
    return {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}


def imported(nodes: Iterator[ast.AST], package: tuple[str, ...]) -> set[str]:
    """Return the dotted names that import statements load, those of relative imports written out."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, [*above, node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "diffmem" else {base}
    return names


def imports(module: str) -> set[str]:
    """Return the dotted names that a module imports anywhere, in functions and for type checkers too."""
    names: set[str] = set()
    for path in sources(module):
        package = ("diffmem", *path.relative_to(PACKAGE).parent.parts)
        names |= imported(ast.walk(ast.parse(path.read_text())), package)
    return names


def own(names: set[str]) -> set[str]:
    """Return which of diffmem's modules are among dotted names."""
    return {name.split(".")[1] for name in names if name.startswith("diffmem.")}


def foreign(names: set[str]) -> set[str]:
    """Return which packages from outside Python and diffmem are among dotted names."""
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"diffmem"}


def test_every_module_has_a_row_in_the_table():
    assert module_names() == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_the_table_lists(module):
    assert own(imports(module)) - {module} <= MAY_IMPORT[module]


def test_the_table_itself_has_no_cycle():
    done: set[str] = set()
    while ready := {module for module, below in MAY_IMPORT.items() if module not in done and below <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MATHEMATICS))
def test_mathematics_uses_only_its_packages_and_knows_no_file_and_no_database(module):
    names = imports(module)
    assert foreign(names) <= MATHEMATICS[module]
    assert not {name.partition(".")[0] for name in names} & FILES_AND_PROCESSES
    called = {
        node.func.id
        for path in sources(module)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_module_that_quick_commands_use_never_imports_torch(module):
    assert not foreign(imports(module)) & {"torch", "accelerate"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_what_is_heavy_only_where_it_is_used(path):
    tree = ast.parse(path.read_text())
    at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    allowed = {"cli", "errors", "orphan", "units"}
    if path.stem == "progress":  # only `run` loads it
        allowed |= {"events"}
    assert own(imported(iter(at_start), ("diffmem",))) <= allowed


def test_no_module_is_imported_under_a_computed_name():
    calls = {
        ast.unparse(node.func)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not calls & {"importlib.import_module", "import_module", "__import__", "exec", "eval"}


def loaded_by(script: str, folder: Path) -> set[str]:
    """Run a script in a new Python, and return the packages that it has loaded at its end."""
    script += "\nimport sys; print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("LOADED ")[2].split())


def test_importing_everything_but_the_work_loads_no_torch(tmp_path):
    loaded = loaded_by("import diffmem.cli, diffmem.study, diffmem.store, diffmem.emm, diffmem.report.page", tmp_path)
    assert "diffmem" in loaded
    assert not loaded & {"torch", "accelerate"}


STUDY = '[P]\ndataset = "digits"\nsize = 8\n'

FILL = """
from pathlib import Path
from diffmem.store import Store
from diffmem.study import Study
study = Study.load(Path("small.toml"))
Store(Path("small.duckdb")).register(**study.listing())
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["schema"],
        ["schema", "--markdown"],
        ["plan", "small.toml", "--store", "small.duckdb"],
        ["status", "small", "--store", "small.duckdb"],
        ["emm", "small", "--store", "small.duckdb"],
        ["report", "small", "--store", "small.duckdb"],
        ["query", "FROM cells", "--store", "small.duckdb"],
        ["export", "emm", "--store", "small.duckdb"],
        ["store", "info", "small.duckdb"],
        ["store", "check", "small.duckdb"],
    ],
    ids=" ".join,
)
def test_a_command_that_trains_nothing_loads_no_torch(arguments, tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    fill = FILL if "small.duckdb" in arguments and arguments[0] != "plan" else ""
    run = f"from diffmem.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
    loaded = loaded_by(fill + run, tmp_path)
    assert "click" in loaded
    assert not loaded & {"torch", "accelerate"}
