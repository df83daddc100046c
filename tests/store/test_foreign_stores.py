"""Stores that something else has made or damaged: refused in a sentence, nothing of this machine read or written."""

import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
from click.testing import CliRunner, Result
from PIL import Image
from test_store import can_mount

from diffmem import Monitor
from diffmem.cli import main
from diffmem.errors import StoreError
from diffmem.store.schema import MIGRATIONS, apply
from diffmem.store.store import Store

SECRET = "a secret of this machine"
COMMANDS = [
    ["status"],
    ["status", "tiny"],
    ["emm", "tiny"],
    ["report", "-o", "out/page.html"],
    ["findings"],
    ["show", "8"],
    ["query", "FROM results"],
    ["export", "cells", "-o", "out/cells.csv"],
    ["export", "emm", "-o", "out/emm.json"],
    ["store", "info"],
    ["store", "merge", "store/diffmem.duckdb", "-o", "out/merged.duckdb"],
    ["plan", "tiny.toml"],
]


@pytest.fixture(scope="module")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that has measured the study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        store = Store("store/diffmem.duckdb")
        study = tiny.load(Path(), tiny.TEXT)
        tiny.register(store, study)
        attempt = store.start_attempt(study.cells[0].cell.cell_id, tiny.HERE)
        ratios = [0.2, 0.5, 0.95]
        tiny.measure(store, study.cells[0].cell, ratios, attempt=attempt, pairs=[(tiny.png(1), tiny.png(2))])
        store.end_attempt(attempt, "finished")
        return store.path.parent.absolute()


@pytest.fixture(autouse=True)
def folder(_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a study, a store that has measured it, and a file that nobody may read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFMEM_STORE", raising=False)
    Path("secret.txt").write_text(SECRET)
    Path("out").mkdir()
    tiny.write(Path())
    shutil.copytree(_made_once, "store")
    return tmp_path


def change(sql: str, path: str = "store/diffmem.duckdb") -> None:
    """Do to the store what its owner's DuckDB can do."""
    with duckdb.connect(path) as connection:
        connection.execute(sql)


def run(*arguments: str) -> Result:
    """Run a command in this process; one that does not end in a sentence fails the test."""
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exc_info)
    assert "Traceback" not in result.output
    return result


def listing(folder: Path) -> dict[str, int]:
    """Return the checksum of every file."""
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def some_commands(number: int) -> list[list[str]]:
    """Return the report and two more commands, other ones for each number: all refuse a store in one place."""
    return [COMMANDS[3], *(COMMANDS[(number + step) % len(COMMANDS)] for step in (0, 5))]


def refused(folder: Path, commands: list[list[str]]) -> str:
    """Check that commands refuse the store in the same sentence and touch nothing; return the sentence."""
    before = listing(folder)
    sentences = set()
    for command in commands:
        result = run(*command)
        assert result.exit_code == 2, (command, result.output)
        (sentence,) = result.stderr.splitlines()
        sentences.add(sentence.removeprefix("store/diffmem.duckdb: "))
        assert SECRET not in result.output
    assert listing(folder) == before
    (sentence,) = sentences
    return sentence


# --- objects -------------------------------------------------------------------------------------------

OBJECTS = {
    "a view in the place of a table": (
        "DROP TABLE checkpoints CASCADE; CREATE VIEW checkpoints AS SELECT content FROM read_text('secret.txt')",
        "the view 'checkpoints'",
    ),
    "a view that shows a file": (
        "CREATE OR REPLACE VIEW results AS SELECT content AS study FROM read_text('secret.txt')",
        "its view results is not as diffmem makes it",
    ),
    "a macro of a table function": ("CREATE MACRO duckdb_tables() AS TABLE SELECT 1", "the function 'duckdb_tables'"),
    "a macro of a function": ("CREATE MACRO max(x) AS 7", "the function 'max'"),
    "a table of a name in our SQL": ("CREATE TABLE arrays (sample INTEGER)", "the table 'arrays'"),
    "a generated column": (
        "DROP TABLE copied; CREATE TABLE copied (cell_id VARCHAR, nearest INTEGER, picture BLOB AS ('x'::BLOB))",
        "its table copied is not as diffmem makes it",
    ),
    "a column of arrays": (
        "ALTER TABLE evidence ALTER d1 TYPE DOUBLE[] USING [d1]",
        "its table evidence is not as diffmem makes it",
    ),
    "columns in another order": (
        "DROP TABLE copied; CREATE TABLE copied (picture BLOB NOT NULL, nearest INTEGER, cell_id VARCHAR, "
        "PRIMARY KEY (cell_id, nearest))",
        "its table copied is not as diffmem makes it",
    ),
    "a column more": ("ALTER TABLE cells ADD COLUMN more INTEGER", "its table cells is not as diffmem makes it"),
    "a default that reads": (
        "ALTER TABLE studies ALTER title SET DEFAULT current_setting('home_directory')",
        "its table studies is not as diffmem makes it",
    ),
    "a table that is missing": ("DROP TABLE pairs", "its table pairs is missing"),
    "a sequence": ("CREATE SEQUENCE numbers", "the sequence 'numbers'"),
    "a type": ("CREATE TYPE mood AS ENUM ('good')", "the type 'mood'"),
    "a schema": ("CREATE SCHEMA other", "the schema 'other'"),
    "an index": ("CREATE INDEX mine ON evidence (d1)", "the index 'mine'"),
    "a table of another schema": ("CREATE SCHEMA s; CREATE TABLE s.cells (i INTEGER)", "'s'"),
}


@pytest.mark.parametrize("what", OBJECTS)
def test_a_store_of_other_objects_than_its_schema_has_is_refused_in_one_sentence(what: str, folder: Path) -> None:
    sql, says = OBJECTS[what]
    change(sql)
    sentence = refused(folder, some_commands([*OBJECTS].index(what)))
    assert says in sentence
    assert sentence.endswith("; drop or restore it with DuckDB, or name another store")
    result = run("store", "check")
    assert (result.exit_code, result.stdout) == (2, ""), result.output


def test_a_run_refuses_a_store_of_other_objects_before_it_trains(folder: Path) -> None:
    change("CREATE TABLE arrays (sample INTEGER, nearest INTEGER, d1 DOUBLE, d2 DOUBLE)")
    before = listing(folder)
    result = run("run", "tiny.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the table 'arrays', which diffmem does not make" in result.stderr
    assert listing(folder) == before


def test_a_store_of_other_objects_is_never_merged_from(folder: Path) -> None:
    shutil.copyfile("store/diffmem.duckdb", "other.duckdb")
    change("CREATE VIEW \"x' AS SELECT 1; COPY (SELECT 1) TO 'out/pwned' --\" AS SELECT 1", "other.duckdb")
    before = listing(folder)
    for command in (
        ["store", "merge", "other.duckdb", "-o", "store/diffmem.duckdb"],
        ["report", "--store", "store/diffmem.duckdb", "--store", "other.duckdb", "-o", "out/page.html"],
    ):
        result = run(*command)
        assert (result.exit_code, result.stderr.startswith("other.duckdb: it holds the view")) == (2, True), (
            result.output
        )
    assert listing(folder) == before


def test_a_store_that_cannot_be_merged_from_is_the_one_that_is_named() -> None:
    shutil.copyfile("store/diffmem.duckdb", "other.duckdb")
    change("""CREATE TABLE "ta""ble; DROP" (i INTEGER)""", "other.duckdb")
    result = run("store", "merge", "other.duckdb", "-o", "store/diffmem.duckdb")
    sentence = (
        """other.duckdb: it holds the table 'ta"ble; DROP', which diffmem does not make; drop or restore it with """
        "DuckDB, or name another store\n"
    )
    assert (result.exit_code, result.stderr) == (2, sentence)


def test_a_store_of_every_older_schema_is_merged_from_and_left_as_it_is() -> None:
    for version in range(1, len(MIGRATIONS) + 1):
        path = f"old-{version}.duckdb"
        change("CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_at TIMESTAMP)", path)
        for number, migration in enumerate(MIGRATIONS[:version], start=1):
            with duckdb.connect(path) as connection:
                apply(connection, migration)
            change(f"INSERT INTO migrations VALUES ({number}, now()::TIMESTAMP)", path)
        before = Path(path).read_bytes()
        assert run("store", "merge", path, "-o", "out/merged.duckdb").exit_code == 0
        assert Path(path).read_bytes() == before  # what is merged from is left as it is
        assert run("status", "--store", path).exit_code == 0


# --- values --------------------------------------------------------------------------------------------

VALUES = [
    "UPDATE studies SET axes = '5'",
    "UPDATE studies SET axes = '{\"a\": [1]}'",
    "UPDATE studies SET axes = '[[1]]'",
    "UPDATE studies SET axes = '[[\"M.width\"]]'",
    "UPDATE studies SET overrides = NULL",
    "UPDATE studies SET overrides = '[[[1]]]'",
    "UPDATE studies SET estimation = '[]'",
    'UPDATE studies SET estimation = \'{"epsilon": "x", "threshold": 0.3}\'',
    'UPDATE studies SET estimation = \'{"epsilon": 0.1, "threshold": 0}\'',
    "UPDATE studies SET registered_at = 'infinity'",
    "UPDATE studies SET registered_at = '290000-01-01'",
    "UPDATE cells SET configuration = 'null'",
    "UPDATE cells SET configuration = '[1, 2]'",
    "UPDATE cells SET configuration = '{\"P\": 7}'",
    'UPDATE cells SET configuration = \'{"P": {"size": "eight"}}\'',
    'UPDATE cells SET configuration = \'{"P": {"size": 1e300}}\'',
    'UPDATE cells SET configuration = \'{"P": {"size": -1}}\'',
    'UPDATE cells SET configuration = \'{"P": {"size": 8, "draw": [1]}}\'',
    'UPDATE cells SET configuration = \'{"P": {"size": 8, "dataset": {}}}\'',
    'UPDATE cells SET configuration = \'{"P": {"size": 8}, "T": {"seed": "x"}}\'',
    "UPDATE cells SET created_at = '-infinity'",
    "UPDATE cells SET checkpoints = -3",
    "UPDATE study_cells SET axis_values = '[]'",
    "UPDATE study_cells SET axis_values = '{}'",
    "UPDATE attempts SET outcome = 'perhaps'",
    "UPDATE attempts SET versions = '\"x\"'",
    "UPDATE attempts SET started_at = 'infinity'",
    "UPDATE attempts SET pid = -1",
    "UPDATE checkpoints SET ratio = 'nan'",
    "UPDATE checkpoints SET ratio = 'inf'",
    "UPDATE checkpoints SET ratio = 0.123",
    "UPDATE checkpoints SET samples = 0",
    "UPDATE checkpoints SET memorized = 10000",
    "UPDATE checkpoints SET train_seconds = 'nan'",
    "UPDATE checkpoints SET measured_at = 'infinity'",
    "UPDATE checkpoints SET epoch = -epoch",
    "INSERT INTO notes SELECT cell_id, ' ' FROM cells",
]
"""Values that have the right type and that diffmem never writes."""


@pytest.mark.parametrize("sql", VALUES)
def test_values_that_diffmem_never_writes_are_refused_in_one_sentence(sql: str, folder: Path) -> None:
    change(sql)
    sentence = refused(folder, some_commands(VALUES.index(sql)))
    assert re.fullmatch(r"\w+: .+; `diffmem store check` lists what else is wrong", sentence)
    result = run("store", "check")
    assert result.exit_code == 1
    assert result.stdout.strip()


ONLY_CHECKED = [
    "UPDATE cells SET configuration = ('{\"P\": {\"size\": 8, \"x\": ' || repeat('[', 60000) || repeat(']', 60000) "
    "|| '}}')",
    'UPDATE cells SET configuration = \'{"P": {"size": 8}, "x": 1,}\'',
    'UPDATE studies SET estimation = \'{"epsilon": 0.1, "threshold": 0.3,}\'',
    "UPDATE study_cells SET axis_values = '{\"M.dropout\": 0.5,}'",
    "UPDATE attempts SET versions = '{\"x\": ' || repeat('9', 5000) || '}'",
    "UPDATE evidence SET d1 = 'nan'",
    "UPDATE evidence SET d2 = -1",
    "UPDATE evidence SET nearest = 8",
    "UPDATE evidence SET nearest = -1",
    "UPDATE pairs SET generated = 'no picture'::BLOB",
    "UPDATE pairs SET nearest = substr(nearest::VARCHAR, 1, 40)::BLOB",
]


@pytest.mark.parametrize("sql", ONLY_CHECKED)
def test_a_check_reads_what_no_other_command_reads_whole(sql: str) -> None:
    change(sql)
    result = run("store", "check")
    assert result.exit_code == 1
    assert result.stdout.strip()
    for command in some_commands(ONLY_CHECKED.index(sql)):
        assert run(*command).exit_code in (0, 2), command


def test_the_first_value_that_is_wrong_is_told_in_these_words(folder: Path) -> None:
    change("UPDATE studies SET axes = '5', overrides = NULL")
    sentence = "tiny: its axes are not lists of keys; `diffmem store check` lists what else is wrong"
    assert refused(folder, COMMANDS[:3]) == sentence


def test_json_that_python_does_not_read_is_told_in_these_words() -> None:
    change('UPDATE cells SET configuration = \'{"P": {"size": 8}, "x": 1,}\'')
    sentence = """unreadable JSON: '{"P": {"size": 8}, "x": 1,}'; `diffmem store check` lists what is wrong\n"""
    for command in (["show", "8"], ["report", "-o", "out/page.html"]):
        result = run(*command)
        assert (result.exit_code, result.stderr) == (2, f"store/diffmem.duckdb: {sentence}")


def test_every_command_refuses_what_diffmem_never_writes(folder: Path) -> None:
    change("CREATE MACRO max(x) AS 7")
    assert "'max'" in refused(folder, COMMANDS)


def test_a_good_store_is_in_order() -> None:
    result = run("store", "check")
    assert (result.exit_code, result.stdout) == (0, "store/diffmem.duckdb: in order\n")
    for command in COMMANDS:
        assert run(*command).exit_code == 0, command


def test_pictures_of_a_page_are_png_and_nothing_else() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((100, 100), dtype=np.uint8)).save(buffer, format="GIF")
    with duckdb.connect("store/diffmem.duckdb") as connection:
        connection.execute("UPDATE pairs SET generated = ?", [buffer.getvalue()])
    result = run("report", "-o", "out/page.html")
    sentence = "a picture in the store is not a PNG that can be read; `diffmem store check` names its cell\n"
    assert (result.exit_code, result.stderr) == (2, sentence)
    (cell,) = Store("store/diffmem.duckdb").rows("SELECT DISTINCT cell_id FROM pairs")
    assert run("store", "check").stdout.startswith(f"{cell['cell_id']}: ")
    assert not Path("out/page.html").exists()


def test_texts_of_a_store_do_not_command_the_terminal() -> None:
    change("UPDATE studies SET title = 'a' || chr(27) || ']0;owned' || chr(7) || chr(13) || 'b'")
    for command in (["status"], ["store", "info"]):
        result = run(*command)
        assert result.exit_code == 0
        assert not {"\x1b", "\x07", "\r"} & set(result.stdout), result.stdout
        assert "owned" in result.stdout


def test_notes_of_a_store_do_not_command_the_terminal_and_are_no_line_of_their_own() -> None:
    change("INSERT INTO notes SELECT cell_id, 'a' || chr(27) || ']0;owned' || chr(7) || chr(10) || 'b' FROM cells")
    (cell_id,) = Store("store/diffmem.duckdb").rows("SELECT min(cell_id) AS cell_id FROM cells")
    for command in (["status", "tiny"], ["emm", "tiny"], ["show", cell_id["cell_id"]]):
        result = run(*command)
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == "note: a?]0;owned? b"


# --- queries -------------------------------------------------------------------------------------------

HOSTILE = [
    "COPY (PIVOT results ON epoch USING max(ratio)) TO 'out/pwned.csv'",
    "COPY (PIVOT results ON epoch USING max(ratio)) TO 'store/diffmem.duckdb'",
    "CREATE TABLE more AS PIVOT results ON epoch USING max(ratio)",
    "FROM read_text('secret.txt')",
    "FROM 'secret.txt'",
    "SELECT * FROM glob('*')",
    "FROM read_csv('secret.txt')",
    "FROM query('COPY (SELECT 1) TO ''out/pwned''')",
    "SELECT (SELECT content FROM read_text('secret.txt'))",
    "PIVOT (FROM read_text('secret.txt')) ON size USING max(content)",
    "SET enable_external_access = true",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CALL pragma_version()",
    "EXPORT DATABASE 'out'",
    "ATTACH 'out/new.duckdb'",
    "SELECT 1; COPY (SELECT 1) TO 'out/pwned'",
    "CHECKPOINT",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_query_reads_and_writes_no_file(sql: str, folder: Path) -> None:
    before = listing(folder)
    result = run("query", sql)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert SECRET not in result.output
    store = Store("store/diffmem.duckdb")
    for ask in (store.rows, store.columns, store.frame, store.arrow):
        with pytest.raises(StoreError):
            ask(sql)
    assert listing(folder) == before


def test_a_query_reads_files_where_it_is_let_and_still_writes_none(folder: Path) -> None:
    result = run("query", "--files", "--json", "SELECT content FROM read_text('secret.txt')")
    assert json.loads(result.stdout) == [{"content": SECRET}]
    before = listing(folder)
    assert run("query", "--files", "COPY (PIVOT results ON epoch USING max(ratio)) TO 'out/x.csv'").exit_code == 2
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("FROM read_text('secret.txt')", "the query: it opens files; --files lets it read them, but never write any"),
        ("FROM 'secret.txt'", "the query: no table secret.txt; if it is a file, --files lets the query read it"),
        (
            "COPY (PIVOT results ON epoch USING max(ratio)) TO 'out/pwned.csv'",
            "the query: only a SELECT is run, for a query changes nothing; this is several statements",
        ),
    ],
)
def test_a_query_that_names_files_is_refused_in_these_words(sql: str, sentence: str) -> None:
    result = run("query", sql)
    assert (result.exit_code, result.stderr) == (2, f"{sentence}\n")


def test_a_query_ends_at_its_limits_with_a_sentence() -> None:
    slow = run("query", "--seconds", "0.2", "SELECT count(*) FROM range(100000000000) WHERE range % 7 = 3")
    assert (slow.exit_code, slow.stderr) == (2, "the query: stopped after 0.2 seconds; narrow it, or raise --seconds\n")
    large = run("query", "--memory", "0.2", "FROM range(100000000) ORDER BY hash(range)")
    assert (large.exit_code, large.stderr) == (
        2,
        "the query: needs more than 0.2 GB of memory; narrow it, or raise --memory\n",
    )


@pytest.mark.parametrize(
    "sql", ["SELECT count(*) FROM range(100000000000) WHERE range % 7 = 3", "FROM range(10000000000)"]
)
def test_ctrl_c_ends_a_query_with_130_and_no_traceback(sql: str) -> None:
    script = """
import os, signal, sys, threading
from diffmem.store import selecting as query
from diffmem.cli import main
select = query._only_select
def soon(*given):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    print("ready", flush=True)
    return select(*given)
query._only_select = soon
main(["query", sys.argv[1]])
"""
    with tiny.started(script, sql) as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors) == (130, "", "")


def test_a_single_value_counts_as_memory_of_its_query() -> None:
    ended = tiny.diffmem("query", "--memory", "0.3", "SELECT length(repeat('x', 1500000000))")
    assert (ended.returncode in (1, 2), ended.stdout) == (True, "")
    assert "memory" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_rows_of_a_query_count_as_its_memory() -> None:
    script = ["query", "--json", "--memory", "0.2", "SELECT repeat('x', 1000) || range FROM range(100000000)"]
    ended = tiny.diffmem(*script)
    assert (ended.returncode in (1, 2), ended.stdout) == (True, "")
    assert "memory" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_long_answer_is_counted_and_not_kept() -> None:
    result = run("query", "FROM range(2000000)")
    assert result.stdout.endswith("... and 1999000 rows more, which --json prints\n2000000 rows\n")


# --- threads -------------------------------------------------------------------------------------------


def test_threads_of_one_process_read_and_write_in_turn() -> None:
    path, failures = "store/diffmem.duckdb", []
    shared = Store(path, patience=300)

    def work(number: int) -> None:
        try:
            for epoch in range(100, 115):
                if number % 2:
                    shared.append(tiny.checkpoint(f"cell-{number}", epoch, 0.5))
                else:
                    with (shared if number else Store(path, patience=300)).snapshot():
                        pass
                    assert shared.studies()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(shared.rows("SELECT * FROM checkpoints WHERE cell_id LIKE 'cell-%'")) == 3 * 15


def test_a_thread_that_would_wait_for_itself_is_told_so() -> None:
    store = Store("store/diffmem.duckdb")
    with store.snapshot(), pytest.raises(StoreError) as caught:
        store.append(tiny.checkpoint("cell", 1, 0.5))
    sentence = "store/diffmem.duckdb: already open in this thread; leave that `with` block first"
    assert str(caught.value) == sentence
    with store.snapshot(), Store(store.path).snapshot():
        assert store.studies()
    assert store.append(tiny.checkpoint("cell", 1, 0.5))


def test_a_connection_of_this_process_itself_is_named() -> None:
    with duckdb.connect("store/diffmem.duckdb", read_only=True), pytest.raises(StoreError) as caught:
        Store("store/diffmem.duckdb", patience=0.05).studies()
    assert str(caught.value) == (
        "store/diffmem.duckdb: this process itself (duckdb.connect?) holds the store open; "
        "close it (a notebook or a DuckDB shell?) and try again"
    )


# --- damage --------------------------------------------------------------------------------------------


def damaged(good: bytes, seed: int) -> bytes:
    """Return a file with some of its bytes flipped, zeroed, replaced or cut off."""
    draw = random.Random(seed)
    data = bytearray(good)
    kind = draw.choice(["flip", "zero", "cut", "header", "garbage"])
    place = draw.randrange(len(data) - 70_000)
    if kind == "flip":
        for _ in range(draw.choice([1, 5, 50])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        length = draw.choice([8, 4096, 65536])
        data[place : place + length] = bytes(length)
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "header":
        data[draw.randrange(3 * 4096)] ^= 0xFF
    else:
        data[place : place + 1000] = draw.randbytes(1000)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_whatever_is_damaged_every_command_ends_in_a_sentence_and_touches_nothing(part: int, folder: Path) -> None:
    """100 stores; of none does a check say that it is in order while a run could not go on with it."""
    good = Path("store/diffmem.duckdb").read_bytes()
    Path("store/diffmem.duckdb").unlink()
    study = tiny.load(Path(), tiny.TEXT)
    for seed in range(25 * part, 25 * (part + 1)):
        Path("store/diffmem.duckdb").write_bytes(damaged(good, seed))
        before = listing(folder)
        command = COMMANDS[seed % len(COMMANDS)]
        result, check = run(*command), run("store", "check")
        assert (result.exit_code in (0, 1, 2), check.exit_code in (0, 1, 2)) == (True, True), seed
        touched = {name for name, _ in listing(folder).items() ^ before.items()}
        assert all(name.startswith("out/") for name in touched), (seed, touched)
        if check.exit_code == 0:
            store = Store("store/diffmem.duckdb")
            tiny.register(store, study)
            attempt = store.start_attempt(study.cells[1].cell.cell_id, tiny.HERE)
            store.append(tiny.checkpoint(study.cells[1].cell.cell_id, 12, 0.5, attempt=attempt))
            store.end_attempt(attempt, "interrupted")
        for leftover in Path("store").glob("diffmem.duckdb*"):
            leftover.unlink()


def test_a_damaged_write_ahead_log_is_named_with_what_removing_it_costs() -> None:
    script = """
import os
from pathlib import Path
import tiny
from diffmem.store import Store
with Store("store/diffmem.duckdb").writing() as connection:
    connection.execute("INSERT INTO cells VALUES ('new', '{\\"P\\": {\\"size\\": 8}}', 1, now()::TIMESTAMP, 2)")
    connection.commit()
    print("ready", flush=True)
    os.kill(os.getpid(), 9)
"""
    with tiny.started(script):
        pass
    log = Path("store/diffmem.duckdb.wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data)
    for command in (["status"], ["run", "tiny.toml"]):
        result = run(*command)
        sentence = (
            "store/diffmem.duckdb: its write-ahead log store/diffmem.duckdb.wal is damaged; move that file away, which "
            "loses at most the append that was under way when the last process ended"
        )
        assert (result.exit_code, result.stderr) == (2, f"{sentence}\n")
    log.rename("moved.wal")
    assert run("status").exit_code == 0
    assert run("store", "check").exit_code == 0


@pytest.mark.slow
def test_a_check_of_a_store_that_is_written_to_meanwhile_finds_no_damage() -> None:
    script = """
import itertools, sys
from pathlib import Path
import tiny
from diffmem.store import Store
store = Store("store/diffmem.duckdb", patience=300)
print("ready", flush=True)
for epoch in itertools.takewhile(lambda _: not Path("enough").exists(), itertools.count(100)):
    cell_id = store.rows("SELECT min(cell_id) AS cell_id FROM cells")[0]["cell_id"]
    store.append(tiny.checkpoint(cell_id, epoch, 0.5, samples=2000, attempt="by hand"))
"""
    with tiny.started(script) as writer:
        found = {run("store", "check").stdout for _ in range(6)}
        Path("enough").touch()
        writer.communicate(timeout=120)
    assert not [line for line in found if "damaged" in line or "log" in line], found


def test_settings_full_of_brackets_are_read_as_they_were_written() -> None:
    images = np.random.default_rng(0).integers(256, size=(9, 1, 8, 8), dtype=np.uint8)
    for depth in (201, 150_000):
        watch = Monitor(images, store="store/diffmem.duckdb", name=f"m{depth}", settings={"config": "[" * depth})
        watch.score(images[:2], 0)
        watch.close()
    assert run("status").exit_code == 0
    assert run("store", "check").exit_code == 0


def test_stores_whose_studies_have_other_axes_merge_into_one_that_can_be_read() -> None:
    shutil.copyfile("store/diffmem.duckdb", "other.duckdb")
    for path, axes, values, search in (
        ("store/diffmem.duckdb", "[]", "{}", "bisect"),
        ("other.duckdb", '[["M.dropout"]]', '{"M.dropout": 0.5}', "bisect"),
    ):
        change(
            f"UPDATE studies SET axes = '{axes}', registered_at = registered_at + INTERVAL {len(axes)} MINUTE, "
            f'estimation = json_merge_patch(estimation, \'{{"search": "{search}"}}\')',
            path,
        )
        change(f"UPDATE study_cells SET axis_values = '{values}', curve = '{len(axes)}'", path)
    assert run("store", "merge", "other.duckdb", "-o", "store/diffmem.duckdb").exit_code == 0
    assert run("status", "tiny").exit_code == 0
    assert run("store", "check").exit_code == 0


def test_a_study_that_would_not_be_whole_in_the_merged_store_is_refused_in_these_words(folder: Path) -> None:
    shutil.copyfile("store/diffmem.duckdb", "other.duckdb")
    # cells without their study, which lack what the other store's study says of them
    change("UPDATE study_cells SET axis_values = '{}', position = position + 10; DELETE FROM studies")
    before = listing(folder)
    result = run("store", "merge", "other.duckdb", "-o", "store/diffmem.duckdb")
    assert (result.exit_code, result.stderr) == (
        2,
        "other.duckdb: cannot be merged with store/diffmem.duckdb: together, tiny: a cell has no value for one of its "
        "axes (and in 1 more rows); merge only one of the two\n",
    )
    assert listing(folder) == before


def test_a_check_whose_copy_has_no_room_says_so_and_blames_no_store() -> None:
    script = """
import resource, sys
from diffmem.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, -1))
main(sys.argv[1:])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, "store", "check"],
        env=tiny.environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.sub(r"/\S+(?=:)", "FOLDER", ended.stderr.replace("store/diffmem.duckdb", "STORE")) == (
        "STORE: cannot be copied to FOLDER: File too large; free some space, or name another folder with TMPDIR\n"
    )


def test_making_a_store_removes_no_file_of_anyone_else() -> None:
    for name in ("new.duckdb.new", "new.duckdb.brandnew", "new.duckdb.old.new"):
        Path(name).write_text("mine")
    Path("new.duckdb.123456.new").write_text("of a process that was killed")
    tiny.register(Store("new.duckdb"), tiny.load(Path(), tiny.TEXT))
    found = {path.name for path in Path().glob("new.duckdb*")} - {"new.duckdb.lock"}
    assert found == {"new.duckdb", "new.duckdb.new", "new.duckdb.brandnew", "new.duckdb.old.new"}


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a**b", "a*b", "[a]", "a#b", "a%b", "it's", 'a"b', "s3:x", "-x", "ä ö"])
def test_a_store_of_any_name_is_used_by_every_command(name: str) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile("store/diffmem.duckdb", path)
    for command in COMMANDS:
        if command[:2] == ["store", "merge"]:
            command = ["store", "merge", "-o", "out/merged.duckdb", "--", name]
            assert run(*command).exit_code == 0, command
        else:
            assert run(*command, f"--store={name}").exit_code == 0, command
    assert run("store", "check", f"--store={name}").stdout.endswith("in order\n")


@pytest.mark.parametrize(("name", "mark"), [("a\\b.duckdb", "\\"), ("a?b", "?"), ("what?/store", "?")])
def test_a_path_that_duckdb_reads_otherwise_is_refused(name: str, mark: str, folder: Path) -> None:
    before = listing(folder)
    for command in (["status", "--store", name], ["run", "tiny.toml", "--store", name]):
        result = run(*command)
        sentence = f"{name}: DuckDB cannot use a path with {mark} in it; name another store\n"
        assert (result.exit_code, result.stderr) == (2, sentence)
    assert listing(folder) == before


def test_a_link_whose_target_is_gone_is_no_place_for_a_new_store() -> None:
    Path("gone").symlink_to("disk/store.duckdb")
    for command in (["status", "--store", "gone"], ["run", "tiny.toml", "--store", "gone"]):
        result = run(*command)
        assert (result.exit_code, result.stderr.replace(str(Path().absolute()), "FOLDER")) == (
            1,
            "gone: a link to FOLDER/disk/store.duckdb, which is gone (was its disk removed?); bring it back, or remove "
            "the link to begin a new store\n",
        )
    assert Path("gone").is_symlink()
    assert not Path("gone").exists()


def test_a_hard_link_is_the_store_itself() -> None:
    Path("linked.duckdb").hardlink_to("store/diffmem.duckdb")
    assert run("status", "--store", "linked.duckdb").exit_code == 0
    result = run("store", "merge", "linked.duckdb", "-o", "store/diffmem.duckdb")
    assert (result.exit_code, result.stdout) == (0, "linked.duckdb: 0 checkpoints taken into store/diffmem.duckdb\n")


def test_a_pipe_is_no_store() -> None:
    os.mkfifo("pipe")
    for command in (*COMMANDS[:3], ["run", "tiny.toml"], ["store", "check"]):
        result = run(*command, "--store", "pipe")
        assert (result.exit_code, result.stderr) == (2, "pipe: a pipe or a device, not a file; name another store\n")


def test_an_sqlite_file_is_no_store_and_nothing_is_fetched() -> None:
    with closing(sqlite3.connect("other.sqlite")) as connection:
        connection.execute("CREATE TABLE birds (name)")
        connection.commit()
    for command in (*COMMANDS[:3], ["run", "tiny.toml"]):
        result = run(*command, "--store", "other.sqlite")
        assert (result.exit_code, result.stderr) == (2, "other.sqlite: not a DuckDB file; name another store\n")


def test_a_store_of_an_older_schema_is_read_where_nothing_can_be_written() -> None:
    if not can_mount():
        pytest.skip("needs to mount a file system that is only read")
    path = Path("old/old.duckdb")
    path.parent.mkdir()
    change("CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_at TIMESTAMP)", str(path))
    change(MIGRATIONS[0], str(path))
    change("INSERT INTO migrations VALUES (1, now()::TIMESTAMP)", str(path))
    script = 'mount --bind old old && mount -o remount,bind,ro old && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *tiny.command("store", "info", path)],
        env=tiny.environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"schema            {len(MIGRATIONS)}\n" in ended.stdout
    assert [each.name for each in path.parent.iterdir()] == ["old.duckdb"]


# --- runs that wait ------------------------------------------------------------------------------------

HELD = """
import duckdb, sys
connection = duckdb.connect("store/diffmem.duckdb", read_only=True)
print("ready", flush=True)
sys.stdin.readline()
"""
RUN = """
import sys
from diffmem.store import waiting
from diffmem.cli import main
waiting.SAY_AFTER = waiting.SHORT = 0.3
print("ready", flush=True)
main(["run", "tiny.toml"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("released", [True, False])
def test_a_run_waits_for_its_store_says_for_whom_and_goes_on_or_ends_when_it_is_told_to(released: bool) -> None:
    with tiny.started(HELD) as holder, tiny.started(RUN) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if not line.startswith("note:"))
        assert f"waiting, since process {holder.pid} holds the store open; close it" in said
        if released:
            holder.kill()
        else:
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=300)
    if released:
        assert process.returncode == 0, errors
        assert "free again after" in errors
        assert "tiny: 2 of 2 cells are finished" in out
    else:
        assert process.returncode == 130, errors
        assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
