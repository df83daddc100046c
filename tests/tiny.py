"""A study so small that both its cells train in seconds, how to run it, and stores filled by hand."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from PIL import Image

from diffmem.cells.cell import Cell
from diffmem.measures import MeasureEvidence, Pictured
from diffmem.store import database
from diffmem.store.database import Row
from diffmem.store.given import Checkpoint, Provenance
from diffmem.store.schema import MIGRATIONS
from diffmem.store.store import Store
from diffmem.study.crossing import StudyCell
from diffmem.study.study import Study

TEXT = """
title = "Tiny"
figure = "Fig. 0"

[P]
dataset = "digits"
size = 8

[M]
precondition = "edm"
width = 4
channel_mult = [1, 1]
blocks = 1

[T]
epochs = 30         # 8 images in batches of 8: an epoch is a step
batch_size = 8
lr = 5e-3
warmup_epochs = 5
ema = 0.9

[[axes]]
M.dropout = [0.0, 0.2]

[score]
samples = 20
every = 12
steps = 3
batch_size = 12     # two batches of generated images at each checkpoint
pairs = 3
"""
DOTTED = """\
P.dataset = "digits"
P.size = 8
M.width = 8
M.channel_mult = [2, 2]
T.epochs = 10
"""
"""The least that a study says, a setting a line."""
EPOCHS = [12, 24, 30]
"""The checkpoints of each cell of TEXT."""

HERE = Provenance("a-host", 1, "cpu (a processor, 1 threads)", {"python": "3.0", "torch": "9.9"}, "c0ffee" * 6, True)


def write(folder: Path, text: str = TEXT, name: str = "tiny") -> Path:
    """Write a study file and return its path."""
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the command ---------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """Return an environment with one process of one thread, so that runs compare bit by bit, and unbuffered output."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    alone = {"OMP_NUM_THREADS": "1", "DIFFMEM_PROCESSES": "1"}
    return {**os.environ, **alone, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, **more}


def command(*arguments: str | Path) -> list[str]:
    """Return `diffmem` with arguments, by this Python."""
    return [sys.executable, "-m", "diffmem", *map(str, arguments)]


def diffmem(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `diffmem` in a process of its own, `more` in its environment."""
    return subprocess.run(
        command(*arguments), env=environment(**more), capture_output=True, text=True, check=False, timeout=300
    )


def here(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `diffmem` in this process, seconds faster than in one of its own; an error that nobody foresaw is raised."""
    import torch
    from click.testing import CliRunner

    from diffmem.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}  # `run` has its own
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        given = {"DIFFMEM_PROCESSES": "1", **more}
        result = CliRunner(env=given).invoke(main, list(map(str, arguments)), prog_name="diffmem")
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@contextmanager
def started(script: str, *arguments: str | Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script that can import this module; yield once it printed `ready`, kill it if it then still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == "ready\n", (first, process.communicate())
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read a process' output until a line has a text."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.communicate())


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills once for all processes of pytest-xdist; nobody may change what is in it."""
    shared = factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = factory.mktemp(name)
            make(making)
            making.rename(folder)
    return folder


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Let nobody read or write a file or a folder in the block: permissions do not bind root, who becomes nobody."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


def results(store: Store) -> dict[str, list[Row]]:
    """Return every number that a run measures, without times and attempts."""
    return {
        "checkpoints": store.rows(
            "SELECT cell_id, epoch, step, samples, memorized, ratio, loss FROM checkpoints ORDER BY ALL"
        ),
        "evidence": store.rows("SELECT * FROM evidence ORDER BY ALL"),
        "pairs": store.rows("SELECT * FROM pairs ORDER BY ALL"),
        "copied": store.rows("SELECT * FROM copied ORDER BY ALL"),
    }


def check_equal(found: dict[str, list[Row]], expected: dict[str, list[Row]]) -> None:
    """Check that two runs have measured the same, bit by bit; show only the first difference where not."""
    for table, rows in expected.items():
        assert len(found[table]) == len(rows), table
        assert [pair for pair in zip(found[table], rows, strict=True) if pair[0] != pair[1]][:1] == [], table


def check_close(found: dict[str, list[Row]], expected: dict[str, list[Row]]) -> None:
    """Check that losses agree to 1e-4 and ratios to one image in 200."""
    assert len(found["checkpoints"]) == len(expected["checkpoints"])
    for one, other in zip(found["checkpoints"], expected["checkpoints"], strict=True):
        assert (one["cell_id"], one["epoch"], one["samples"]) == (other["cell_id"], other["epoch"], other["samples"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["memorized"] == pytest.approx(other["memorized"], abs=max(1, one["samples"] / 200))
    nearest = [[row["nearest"] for row in results["evidence"]] for results in (found, expected)]
    assert np.mean(np.equal(*nearest)) > 0.99


class Moment:
    """A moment of a run: the `asks`-th question whether to stop after the `number`-th event of a kind."""

    def __init__(self, kind: str, number: int, asks: int) -> None:
        self.kind, self.number, self.asks = kind, number, asks

    def see(self, event: object) -> None:
        """Take note of an event of the run."""
        self.number -= type(event).__name__ == self.kind

    def __call__(self) -> bool:
        """Tell whether the moment has come; asked by the run."""
        if self.number > 0:
            return False
        self.asks -= 1
        return self.asks == 0


# --- stores filled by hand -----------------------------------------------------------------------------


def load(folder: Path, text: str, name: str = "tiny") -> Study:
    """Return the study of a text."""
    return Study.load(write(folder, text, name))


@cache
def _empty() -> bytes:
    """Return the file of a store that holds nothing yet."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, "empty.duckdb"))
        with store.writing(create=True):
            pass
        return store.path.read_bytes()


def make(store: Store) -> None:
    """Put a store that holds nothing where none is, in a third of the time that migrating one takes."""
    folder = store.path.parent
    if database.MIGRATIONS is MIGRATIONS and not [*folder.glob(f"{escape(store.path.name)}*")]:
        folder.mkdir(parents=True, exist_ok=True)
        store.path.write_bytes(_empty())


@contextmanager
def at_once(store: Store) -> Iterator[None]:
    """Let the block write and read through one connection, and commit once: DuckDB takes 40 ms to open a file."""
    if "writing" in vars(store):
        yield
        return
    make(store)
    with store.writing(create=True) as connection:

        @contextmanager
        def same(**_: Any) -> Iterator[Any]:
            yield connection
            connection.complete()  # what a block has asked for, and not read to its end

        store.writing, store._snapshot.connection = same, connection  # type: ignore[method-assign]
        try:
            yield
        finally:
            store._snapshot.connection = None
            del store.writing


def register(store: Store, study: Study, cells: Sequence[StudyCell] | None = None, **more: Any) -> None:
    """Make the study known to the store, as a run does, with its own cells or others."""
    make(store)
    store.register(study, study.cells if cells is None else cells, **{"folder": str(Path.cwd()), **more})


def checkpoint(
    cell_id: str,
    epoch: int,
    ratio: float,
    *,
    samples: int = 20,
    attempt: str = "by hand",
    pairs: Sequence[tuple[bytes, bytes]] = (),
    epoch_steps: int = 100,
) -> Checkpoint:
    """Return a checkpoint of which a share `ratio` has d1/d2 = 0.1, half of the rest 0.4 and half 0.8.

    An epoch has so many steps that a network would have learned something.
    """
    memorized = round(ratio * samples)
    middle = (samples - memorized) // 2
    share = np.repeat([0.1, 0.4, 0.8], [memorized, middle, samples - memorized - middle])
    d2 = 100.0 + np.arange(samples)
    return Checkpoint(
        cell_id=cell_id,
        epoch=epoch,
        step=epoch_steps * epoch,
        loss=1 / epoch,
        nearest=np.arange(samples) % 8,
        d1=share * d2,
        d2=d2,
        memorized=memorized,
        train_seconds=1.5,
        score_seconds=0.5,
        attempt_id=attempt,
        pairs=[Pictured(*pair, second=png(0), second_nearest=7) for pair in pairs],
    )


def calibrated(point: Checkpoint, ratio: float) -> Checkpoint:
    """Return a checkpoint that calibrated l2 has scored too: of a share `ratio` of its images the distance is 0.5 of
    the yardstick, of half of the rest 1.2, and of the others 1.8."""
    copies = round(ratio * point.samples)
    middle = (point.samples - copies) // 2
    share = np.repeat([0.5, 1.2, 1.8], [copies, middle, point.samples - copies - middle])
    yardstick = 10.0 + np.arange(point.samples)
    found = MeasureEvidence((point.nearest + 1) % 8, share * yardstick, yardstick, copies)
    return replace(point, others={"calibrated": found})


def measure(store: Store, cell: Cell, ratios: Sequence[float], **more: Any) -> None:
    """Append the first checkpoints of a cell with these ratios."""
    with at_once(store):
        for (epoch, _), ratio in zip(cell.checkpoints, ratios, strict=False):
            point = checkpoint(cell.cell_id, epoch, ratio, **more)
            store.append(replace(point, nearest=point.nearest % cell.P.size))


def png(seed: int) -> bytes:
    """Return an 8x8 grey PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


SAMPLES = 200
"""Images behind each ratio of `fill`."""


def fill(
    store: Store, name: str, ratios: dict[tuple[Any, ...], float], axes: Sequence[str], *, samples: int = SAMPLES
) -> None:
    """Put a study of the paper's with finished cells into the store: a ratio for each combination of axis values."""
    path = store.path.parent / f"{name.partition('@')[0]}.toml"
    lines = ['[P]\ndataset = "digits"\nsize = 8\n[M]\nchannel_mult = [2, 2]\nlabels = 2\n']
    for key in axes:
        values = list(dict.fromkeys(combination[axes.index(key)] for combination in ratios))
        lines.append(f"[[axes]]\n{key} = {json.dumps(values)}\n")
    lines.append(f"[score]\nsamples = {samples}\nevery = 1000000000\n")
    path.write_text("".join(lines))
    study = replace(Study.load(path), name=name)
    with at_once(store):
        register(store, study)
        for entry in study.cells:
            ratio = ratios.get(tuple(entry.axis_values[key] for key in axes))
            if ratio is not None:
                measure(store, entry.cell, [ratio], samples=samples)
