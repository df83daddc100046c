"""The documents: what they show works. Commands parse and, where they are quick, run; SQL, Python and study files do
what the text says.

Every document is read as it is, in a copy of the project's folder with a small store that is filled by hand.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import duckdb
import numpy as np
import pytest
import tiny
from click.testing import CliRunner

import diffmem
from diffmem.cli import main
from diffmem.external.score import score_images
from diffmem.store.standing import Outcome
from diffmem.store.store import Store
from diffmem.study.study import Study

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "store/README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))]

OWN_TESTS = {"docs/python.md", "docs/monitor.md"}
"""Documents whose Python blocks have a test of their own."""

NOT_RUN = {
    ("run",): "trains; its study file is planned instead",
    ("-m", "benchmarks"): "measures for minutes",
    ("-m", "benchmarks.images"): "measures for minutes",
    ("generate",): "needs a trained model",
    ("measure",): "needs trained models",
    ("halves",): "needs trained models",
    ("gaps",): "needs a study whose denoisers are measured",
    ("score", "--space"): "needs a file of features",
    ("quality",): "needs a study whose images are measured",
    ("emm", "--measure"): "needs a study that the measure has scored",
    ("store", "prune"): "needs to be told which models",
    ("plan", "--measure"): "trains a little with each network, at the paper's scale",
}
"""Commands that are only parsed, by words that they have, and why."""

PLACEHOLDERS = {"STUDY.toml": "studies/quickstart.toml", "STUDY": "quickstart", "NAME": "quickstart"}
"""Words in capitals that stand for something, and what is put in their place; a command with others is only parsed."""

PROGRAMS = ["diffmem", "pip", "ray", "srun", "python", "make", "sbatch", "accelerate", "torchrun"]
"""What shell blocks start; a stand-in notes it down instead."""


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)


def generate(count: int) -> np.ndarray:
    """Return images of a model that copies."""
    return IMAGES[np.arange(count) % len(IMAGES)]


# --- a folder to work in -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a folder with the studies, a filled store, parts of it for merging, and images to score."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "studies", folder / "studies")
    for name in ("results", "samples", "photos", "data/train", "data/heldout", "store"):
        (folder / name).mkdir(parents=True)
    numbers = Path("diffmem/analysis/published.csv")
    (folder / numbers).parent.mkdir(parents=True)
    shutil.copy(ROOT / numbers, folder / numbers)
    for i in range(6):
        (folder / "data" / "train" / f"{i}.png").write_bytes(tiny.png(i))
        (folder / "data" / "heldout" / f"{i}.png").write_bytes(tiny.png(100 + i))
        (folder / "samples" / f"{i}.png").write_bytes(tiny.png(i % 3))
        (folder / "photos" / f"{i}.png").write_bytes(tiny.png(200 + i))
    store = Store(folder / "store" / "diffmem.duckdb")
    fill(store, folder / "studies")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFMEM_CACHE", str(folder / "cache"))
        score_images(Path("samples"), "data/train", store)
    diffmem.Monitor(IMAGES, store=store.path, name="my-model", every=1, samples=4)(0, generate)
    for name in ("1", "2", "quickstart.1", "sample_size.1"):
        shutil.copy(store.path, folder / "results" / f"{name}.duckdb")
    return folder


def fill(store: Store, studies: Path) -> None:
    """Fill a store with the quickstart, with falling ratios, and laptop studies: one cell failed, one is shared."""
    loaded = [Study.load(studies / "quickstart.toml")]
    loaded += [Study.load(studies / f"{name}.toml", profile="laptop") for name in ("condition", "paper", "width")]
    for study in (*loaded, Study.load(studies / "sample_size.toml")):
        tiny.register(store, study)
    for position, entry in enumerate(loaded[0].cells):
        attempt = store.start_attempt(entry.cell.cell_id, tiny.HERE)
        best = [1.0, 0.95, 0.7][position % 3]
        tiny.measure(store, entry.cell, [best / 2, best], attempt=attempt, samples=40)
        store.end_attempt(attempt, Outcome.FINISHED)
    failed = store.start_attempt(loaded[1].cells[0].cell.cell_id, tiny.HERE)
    store.end_attempt(failed, Outcome.FAILED, "the loss is not a number")


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    """Work in the folder, with nothing said by the environment, and no study that another document has written."""
    (project / "mine.toml").unlink(missing_ok=True)
    monkeypatch.chdir(project)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DIFFMEM_CACHE", str(project / "cache"))
    return project


# --- reading documents ---------------------------------------------------------------------------------


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str, *languages: str) -> list[str]:
    """Return the fenced blocks of some languages; "" are those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def inline(document: str) -> list[str]:
    """Return what stands in backquotes outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def written_commands(document: str) -> list[list[str]]:
    """Return the commands in backquotes and in blocks without a language: `diffmem emm STUDY [--json]   what for`."""
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    usages = [re.split(r"\s{2,}|\s#", line)[0] for line in lines] + inline(document)
    commands = [shlex.split(re.sub(r"[\[\]]|(?<=\w)\.\.\.", "", usage)) for usage in usages if is_command(usage)]
    return [command[1 if "=" in command[0] else 0 :] for command in commands]


def is_command(usage: str) -> bool:
    return re.match(r"(diffmem|make|(\w+=\w+ )?(accelerate|torchrun) .*-m diffmem) \S", usage) is not None


def shell_commands(document: str, folder: Path, log: Path) -> list[list[str]]:
    """Return what the shell blocks of a document start, as bash expands it in a folder."""
    stand_ins = folder / "stand-ins"
    stand_ins.mkdir(exist_ok=True)
    for program in PROGRAMS:
        script = stand_ins / program
        script.write_text(f'#!/bin/bash\nprintf "%s\\0" {program} "$@" >> "$LOG"; echo >> "$LOG"\n')
        script.chmod(0o755)
    settings = {
        "PATH": f"{stand_ins}:/usr/bin:/bin",
        "STUDY": "quickstart",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_CPUS_PER_TASK": "16",
    }
    log.touch()
    for block in blocks(document, "bash", "sh"):
        environment = {**os.environ, **settings, "LOG": str(log)}
        script = f"set -eu\n{block}"
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, (block, done.stderr)
    return [line.split("\0") for line in log.read_text().split("\0\n")[:-1]]


# --- commands ------------------------------------------------------------------------------------------


def arguments_of(command: list[str]) -> list[str] | None:
    """Return the arguments of diffmem in a command, placeholders filled; None for another program's."""
    if command[0] in ("accelerate", "torchrun", "python"):
        if "-m" not in command:
            return None
        command = command[command.index("-m") + 1 :]
    if command[0] != "diffmem":
        return None
    words = [PLACEHOLDERS.get(word, word) for word in command[1:]]
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*.duckdb" in word else [word])]


def parsed(arguments: list[str]) -> click.Context:
    """Return the context of a command line; click's error where there is no such command, option or value."""
    command: click.Command = main
    context = click.Context(main, info_name="diffmem", **main.context_settings)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        inner = command.get_command(context, name)
        if inner is None:
            raise click.UsageError(f"no such command: {name}")
        command = inner
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    return (
        context
        if isinstance(command, click.Group)
        else command.make_context(command.name, list(arguments), parent=context)
    )


def fault_of(arguments: list[str]) -> str | None:
    """Parse a command line, and run it where it is quick and complete; return what is wrong with it."""
    open_ = any(re.search(r"^[A-Z]+(\.\w+)?$|\.\.\.|\|", word) for word in arguments)
    try:
        context = parsed(arguments)
    except (click.MissingParameter, click.exceptions.Exit):  # the text names the command alone; --help
        return None
    except click.ClickException as error:
        return None if open_ and isinstance(error, click.BadParameter) else error.format_message()
    if open_ or isinstance(context.command, click.Group):
        return None
    if arguments[0] == "run":
        arguments = plan_of(context)
    if any(set(words) <= set(arguments) for words in NOT_RUN):
        return None
    result = CliRunner().invoke(main, arguments)
    return None if result.exit_code == 0 else f"exit code {result.exit_code}: {result.output}{result.exception!r}"


def plan_of(run: click.Context) -> list[str]:
    """Return the plan of what a run would train."""
    study, profile = run.params["study"], run.params["profile"]
    file = study if study.suffix == ".toml" else Path("studies") / f"{study}.toml"
    overrides = [part for override in run.params["overrides"] for part in ("--set", override)]
    return ["plan", str(file), *([] if profile is None else ["--profile", profile]), *overrides]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_parses_and_the_quick_ones_run(document, inside, tmp_path):
    commands = written_commands(document) + shell_commands(document, inside, tmp_path / "log")
    lines = {tuple(arguments) for command in commands if (arguments := arguments_of(command))}
    faults = {shlex.join(line): fault for line in sorted(lines) if (fault := fault_of(list(line))) is not None}
    assert faults == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_of_make_that_a_document_names_is_there(document, inside, tmp_path):
    commands = written_commands(document) + shell_commands(document, inside, tmp_path / "log")
    named = {word for command in commands if command[0] == "make" for word in command[1:]}
    assert named <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_documents_show_commands_to_check():
    """A change of their layout that hides commands from these tests is noticed."""
    shown = {command[1] for document in DOCUMENTS for command in written_commands(document) if len(command) > 1}
    assert {"plan", "run", "status", "emm", "report", "findings", "schema", "score", "store"} <= shown


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "line", ["plan studies/quickstart.toml --nonsense", "nonsense", "run studies/quickstart.toml --split thirds"]
)
def test_a_wrong_command_in_a_document_would_be_found(line):
    assert fault_of(shlex.split(line)) is not None


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("line", ["emm nowhere", "run studies/nowhere.toml", "run studies/skip.toml --set T.epohcs=1"])
def test_a_command_that_fails_would_be_found(line):
    assert "exit code" in (fault_of(shlex.split(line)) or "")


# --- blocks of SQL, Python and TOML --------------------------------------------------------------------


def statements() -> list[str]:
    found = [(document, block) for document in DOCUMENTS for block in blocks(document, "sql")]
    return [statement.strip() for _, block in found for statement in block.split(";") if statement.strip()]


def test_the_store_is_explained_with_queries():
    assert len(blocks("store/README.md", "sql")) >= 10


@pytest.mark.parametrize("statement", statements(), ids=lambda text: " ".join(text.split())[:50])
def test_every_query_of_a_document_finds_rows_in_a_small_store(statement, inside):
    with duckdb.connect(inside / "store" / "diffmem.duckdb", read_only=True) as connection:
        assert connection.execute(statement).fetchall()


def test_the_queries_around_the_crossing_and_at_another_threshold_agree_with_emm(inside):
    crossing = next(text for text in statements() if "next_size" in text)
    counted = next(text for text in statements() if "WITH counted" in text)
    with duckdb.connect(inside / "store" / "diffmem.duckdb", read_only=True) as connection:
        around = {curve: (size, following) for curve, size, _, following, _ in connection.execute(crossing).fetchall()}
        ratios = connection.execute(counted).fetchall()
    told = json.loads(CliRunner().invoke(main, ["emm", "quickstart", "--json"]).stdout)["curves"]
    assert around == {curve["curve"]: (curve["lower"], curve["upper"]) for curve in told}
    # the images of the store have d1 / d2 = 0.1, 0.4 or 0.8: a quarter finds the same as a third
    assert {(curve, str(size)): ratio for curve, size, ratio in ratios} == {
        (curve["curve"], size): ratio for curve in told for size, ratio in curve["ratios"].items()
    }


def test_the_tables_of_the_store_are_described_with_all_their_columns(inside):
    described = {}
    for name, columns in re.findall(r"^\| `(\w+)`(?: \(view\))? \|[^|]*\| (.*) \|$", text_of("store/README.md"), re.M):
        without_remarks = re.sub(r"\([^)]*\)", "", columns)
        described[name] = [column.strip() for column in without_remarks.split(",")]
    with duckdb.connect(inside / "store" / "diffmem.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
            "WHERE NOT internal GROUP BY ALL"
        ).fetchall()
    assert described == dict(rows)


def examples(document: str) -> list[tuple[str, str | None]]:
    """Return each Python block of a document with the `text` block right after it, which is what it prints."""
    found = re.findall(
        r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text_of(document), re.MULTILINE | re.DOTALL
    )
    return [(code, printed or None) for code, printed in found]


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("document", sorted(d for d in set(DOCUMENTS) - OWN_TESTS if examples(d)))
def test_the_python_of_a_document_prints_what_it_says(document):
    names: dict[str, object] = {"training_images": IMAGES, "generate": generate, "batches": range(3)}
    for code, expected in examples(document):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)
        if expected is not None:
            assert output.getvalue() == expected, code


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_on_a_command_line_within_the_text_runs(document):
    for span in inline(document):
        if span.startswith("python -c "):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(shlex.split(span)[2], {})
            assert output.getvalue()


def study_files() -> list[tuple[str, int]]:
    return [(document, i) for document in DOCUMENTS for i in range(len(blocks(document, "toml")))]


@pytest.mark.parametrize(("document", "number"), study_files())
def test_every_study_file_of_a_document_resolves(document, number, inside):
    path = inside / "studies" / "example.toml"
    path.write_text(blocks(document, "toml")[number])
    try:
        assert Study.load(path).cells
    finally:
        path.unlink()


# --- what the texts say in numbers ---------------------------------------------------------------------


def cost_table() -> list[str]:
    (table,) = re.findall(
        r"<!-- table: .*? -->\n\n(.*?)\n\n<!-- end of table -->", text_of("docs/reproducing.md"), re.S
    )
    return table.splitlines()


@pytest.mark.usefixtures("inside")
def test_the_cost_of_the_studies_is_what_the_python_of_the_document_prints():
    (code,) = blocks("docs/reproducing.md", "python")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    assert output.getvalue().splitlines() == cost_table()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", ["skip", "width"])
def test_the_cost_of_a_study_is_that_of_its_plan(name):
    plan = CliRunner().invoke(main, ["plan", f"studies/{name}.toml", "--json", "--store", "none.duckdb"])
    cells = json.loads(plan.stdout)
    (row,) = [line for line in cost_table() if line.startswith(f"| {name} |")]
    _, count, images, operations, hours, longest, *_ = [cell.strip() for cell in row.strip("| ").split("|")[1:]]
    assert int(count) == len(cells)
    assert images == f"{sum(cell['images to train'] for cell in cells) / 1e6:,.0f} M"
    assert operations == f"{sum(cell['operations'] for cell in cells):.3g}"
    per_hour = 10e12 * 3600
    assert hours == f"{sum(cell['operations'] for cell in cells) / per_hour:,.0f}"
    assert longest == f"{max(cell['operations'] for cell in cells) / per_hour:,.0f}"


def test_every_study_of_the_paper_is_in_the_cost_table():
    named = {line.split("|")[1].strip() for line in cost_table()[2:-1]}
    assert named == {path.stem for path in (ROOT / "studies").glob("*.toml")} - {"quickstart", "onset", "two_halves"}


def test_the_worked_example_of_the_emm_is_right_in_its_table_and_its_formula():
    text = text_of("docs/emm.md")
    rows = [
        list(map(float, row)) for row in re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M)
    ]
    means = {int(size): mean for size, _, _, mean in rows}
    assert means == {int(size): pytest.approx((one + other) / 2) for size, one, other, _ in rows}
    above, below = 16, 32
    value = above + (means[above] - 0.9) / (means[above] - means[below]) * (below - above)
    assert f"= {value:.2f}\n" in text
    assert f"{above * (below / above) ** (1 / 3):.1f} here" in text


def test_the_keys_that_the_readme_of_the_store_calls_outcomes_are_those_of_the_code():
    (outcomes,) = re.findall(r"outcome \((.*?)\)", text_of("store/README.md"))
    assert {word.partition(":")[0].strip() for word in outcomes.split(",")} == set(Outcome)
