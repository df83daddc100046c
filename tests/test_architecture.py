"""Imports go one way through the rooms, and a quick command loads no torch."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import diffmem

PACKAGE = Path(diffmem.__file__).parent

ROOMS = [
    *("errors", "text", "atomic", "sql", "randomness", "settings", "notebook"),
    *("networks", "cells", "data", "models", "measures", "study"),
    *("store", "analysis", "runs", "external", "report", "cli"),
]
"""Modules that stand alone, and then the rooms in the order in which data flows: each imports from those before it."""

NOT_FROM = {
    "networks": {"text", "atomic", "sql", "notebook"},
    "models": {"data", "sql"},
    "study": {"models", "randomness"},
    "measures": {"networks", "sql"},
    "store": {"models", "study", "data", "networks", "randomness", "settings"},
    "analysis": {"models", "study", "data", "networks", "randomness", "settings"},
    "external": {"runs", "study", "networks"},
    "report": {"runs", "external", "models", "study", "data", "networks", "randomness"},
}
"""Rooms before a room that it has no business with."""

MATHEMATICS = {
    "randomness": {"torch"},
    "settings": {"pydantic"},
    "networks": {"torch", "lazy_loader", "pydantic", "pydantic_core"},
    "models/denoiser": {"torch"},
    "models/preconditioning": {"torch"},
    "models/processes": {"torch"},
    "models/sampling": {"torch"},
    "models/training": {"torch"},
    "measures/agreement": {"numpy", "torch"},
    "measures/bootstrap": {"numpy"},
    "measures/calibrated": {"torch"},
    "measures/denoising": {"torch"},
    "measures/features": {"numpy", "torch"},
    "measures/gaps": {"numpy"},
    "measures/grouped": {"torch"},
    "measures/group_neighbours": {"torch"},
    "measures/image_quality": {"numpy", "scipy"},
    "measures/halves": {"numpy", "torch"},
    "measures/intervals": {"numpy", "scipy"},
    "measures/local_density": {"numpy", "torch"},
    "measures/measure": {"torch"},
    "measures/membership": {"numpy"},
    "measures/nearest": {"torch"},
    "measures/neighbours": {"torch"},
    "measures/of_denoiser": {"numpy"},
    "measures/similarity": {"torch"},
    "measures/of_images": set(),
    "measures/quality": {"numpy", "scipy"},
    "analysis/emm": {"numpy", "scipy"},
    "analysis/extraction": {"numpy", "scipy"},
}
"""Which packages the mathematics may use; it knows no file and no database."""

FILES_AND_PROCESSES = {"io", "multiprocessing", "os", "pathlib", "shutil", "sqlite3", "subprocess", "tempfile"}

WITHOUT_TORCH = [
    *("errors", "text", "atomic", "sql", "settings", "networks/layers", "networks/unets", "cells", "data", "study"),
    *("notebook", "analysis", "report", "cli"),
    *("runs/plan", "runs/search", "runs/time_left", "runs/events", "runs/orphan"),
    *("measures/evidence", "measures/intervals", "measures/members", "measures/bootstrap"),
    *("measures/of_denoiser", "measures/gaps", "measures/membership"),
    *("measures/of_images", "measures/quality", "measures/image_quality"),
    *("store/store", "store/database", "store/merging", "store/looking", "store/checking", "store/exporting"),
    *("store/rows", "store/records", "store/given", "store/standing", "store/attempts"),
    *("store/queries", "store/image_queries", "store/copy_queries", "store/half_queries"),
]
"""What quick commands use."""

TORCH_FOR_TYPES = [
    *("measures/measure", "measures/nearest", "measures/calibrated", "measures/grouped"),
    *("measures/spaces", "measures/declared", "measures/agreement"),
]
"""What they use too, and what names tensors: for type checkers alone."""


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


def test_the_package_is_its_rooms():
    assert module_names() - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_before_it_alone(room):
    allowed = set(ROOMS[: ROOMS.index(room)]) - NOT_FROM.get(room, set())
    assert own(imports(room)) - {room} <= allowed


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_a_room_is_entered_by_its_door(room):
    """What one room imports of another is what that one exports."""
    deep = {name for name in imports(room) if name.startswith("diffmem.") and name.count(".") > 1}
    assert {name for name in deep if name.split(".")[1] != room} == set()


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir() and room != "cli"])
def test_a_room_exports_only_what_somebody_uses(room):
    package = importlib.import_module(f"diffmem.{room}")
    root = PACKAGE.parent
    users = [*PACKAGE.rglob("*.py"), *PACKAGE.glob("*.pyi"), *root.glob("benchmarks/*.py"), *root.glob("docs/*.md")]
    used = "\n".join(path.read_text() for path in users if PACKAGE / room not in path.parents)
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", used)] == []


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


@pytest.mark.parametrize("module", TORCH_FOR_TYPES)
def test_a_measure_names_tensors_for_type_checkers_alone(module):
    (path,) = sources(module)
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING" and not branch.orelse
        for node in ast.walk(branch)
    }
    loaded = (node for node in ast.walk(tree) if id(node) not in for_types)
    assert not foreign(imported(loaded, ("diffmem", "measures"))) & {"torch", "accelerate"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_what_is_heavy_only_where_it_is_used(path):
    tree = ast.parse(path.read_text())
    at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    allowed = {"cli", "errors", "measures", "runs", "store", "text"}
    assert own(imported(iter(at_start), ("diffmem",))) <= allowed


def length(function: ast.FunctionDef) -> int:
    """Return the lines of a function without its docstring, which of a command is its help."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_functions_fit_in_a_glance_and_modules_in_one_sitting():
    lengths = {
        f"{path.relative_to(PACKAGE)}: {node.name}": length(node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    modules = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in modules.items() if lines > 400} == {}


def test_the_page_keeps_its_style_and_its_script_in_files_of_their_own():
    template = (PACKAGE / "report" / "page.html").read_text()
    assert re.findall(r"<style>(.*?)</style>", template, re.DOTALL) == ["{{ css|safe }}"]
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", template, re.DOTALL)
    assert all(re.fullmatch(r"\{\{[^}]*\}\}", script.strip()) for script in scripts)
    for name in ("page.html", "page.css", "page.js"):
        assert max(map(len, (PACKAGE / "report" / name).read_text().splitlines())) <= 120


def test_no_module_is_imported_under_a_computed_name():
    calls = {
        ast.unparse(node.func)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not calls & {"importlib.import_module", "import_module", "__import__", "exec", "eval"}


SQL = re.compile(r"\s*(--.*\n\s*)*(SELECT|WITH|INSERT|UPDATE|DELETE|FROM|CREATE|ALTER|DROP|COPY)\s+($|[^\s.])")
"""How a statement begins, or what is put behind one."""

WITH_SQL = ["sql.py", "data/parquet.py", *(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "store").glob("*.py"))]
"""Modules with SQL: the store's, and what DuckDB reads of Parquet files."""


def statements(path: Path) -> list[str]:
    """Return the SQL among the texts of a module that are no docstrings, each by its beginning."""
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value[:60] for node in texts if id(node) not in said and SQL.match(node.value)]


def test_sql_is_in_the_store_alone():
    found = {str(path.relative_to(PACKAGE)): statements(path) for path in PACKAGE.rglob("*.py")}
    assert {path: texts for path, texts in found.items() if texts and path not in WITH_SQL} == {}
    assert len([path for path in WITH_SQL if found[path]]) > 8  # it is found where it is


TYPED_ROOMS = ["store", "analysis", "report", "runs", "external"]
"""Rooms that hand the rows of the store on as records."""

USERS_SQL = {"read", "rows"}
"""Methods of a store that give the rows of any SQL, which only whoever has written it knows."""


def functions_of_rows(room: str) -> set[str]:
    """Return the functions of a room that take or give a row as a dict."""
    return {
        node.name
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for part in (node.returns, *(each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg)))
        if part is not None and re.search(r"\bRow\b", ast.unparse(part))
    }


@pytest.mark.parametrize("room", TYPED_ROOMS)
def test_rows_are_handed_on_as_records(room):
    assert functions_of_rows(room) == (USERS_SQL if room == "store" else set())


def loaded_by(script: str, folder: Path) -> set[str]:
    """Run a script in a new Python, and return the packages that it has loaded at its end."""
    script += "\nimport sys; print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False, env=tiny.environment()
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("LOADED ")[2].split())


def test_importing_everything_but_the_work_loads_no_torch(tmp_path):
    modules = ("cli", "study.study", "store.store", "analysis.emm", "analysis.curves", "report.page")
    loaded = loaded_by("import " + ", ".join(f"diffmem.{name}" for name in modules), tmp_path)
    assert "diffmem" in loaded
    assert not loaded & {"torch", "accelerate"}


def test_a_run_does_not_load_torchs_compiler_which_takes_seconds(tmp_path):
    study = tiny.write(tmp_path, tiny.TEXT.replace("epochs = 30", "epochs = 2"))
    script = f"from diffmem.cli import main\nmain(['run', {str(study)!r}, '--quiet'], standalone_mode=False)"
    loaded = loaded_by(script, tmp_path)
    assert "torch" in loaded
    assert "sympy" not in loaded  # which the compiler imports


STUDY = '[P]\ndataset = "digits"\nsize = 8\n'

FILL = """
from pathlib import Path
from diffmem.store import Store
from diffmem.study import Study
study = Study.load(Path("small.toml"))
Store(Path("small.duckdb")).register(study, study.cells)
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
    if "--help" in arguments:  # which is to be there at once
        assert not loaded & {"duckdb", "scipy"}
