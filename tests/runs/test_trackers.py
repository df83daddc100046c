"""Trackers: what of a run they are told, by which process, and what is refused before anything starts."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from accelerate.tracking import GeneralTracker
from click.testing import CliRunner

import diffmem
from diffmem.cli import main
from diffmem.errors import RunError
from diffmem.runs.events import CellEnded, CellLost, CellStarted, Ended, Event, Measured
from diffmem.runs.runner import run_study
from diffmem.runs.stopping import Interrupted
from diffmem.runs.trackers import check_trackers, log_events, trackers_of
from diffmem.store.store import Store
from diffmem.study.study import Study


class Notebook(GeneralTracker):
    """A tracker that keeps what it is told in order."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self, run: str = "", fails_at: str = "") -> None:
        super().__init__()
        self.run, self.fails_at = run, fails_at
        self.told: list[tuple[str, Any]] = []

    @property
    def tracker(self) -> list[tuple[str, Any]]:
        return self.told

    def note(self, kind: str, what: Any = None) -> None:
        if kind == self.fails_at:
            raise ConnectionError("no network\nand more")
        self.told.append((kind, what))

    def start(self) -> None:
        self.note("start")

    def store_init_configuration(self, values: dict) -> None:
        self.note("settings", values)

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self.note("log", (step, values))

    def finish(self) -> None:
        self.note("finish")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return tiny.load(tmp_path, tiny.TEXT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.duckdb")


def test_each_cell_is_logged_by_trackers_of_its_own_from_start_to_end(study, store):
    opened: dict[str, Notebook] = {}

    def one(started: CellStarted) -> list[GeneralTracker]:
        opened[started.entry.cell.cell_id] = Notebook()
        return [opened[started.entry.cell.cell_id]]

    plain = [type(event) for event in log_events(run_study(study, store), one)]
    assert plain.count(CellStarted) == 2
    assert list(opened) == [entry.cell.cell_id for entry in study.cells]
    for entry in study.cells:
        told = opened[entry.cell.cell_id].told
        assert [kind for kind, _ in told] == ["start", "settings", "log", "log", "log", "finish"]
        assert told[1][1]["M.dropout"] == entry.cell.M.dropout
        assert told[1][1]["P.size"] == 8
        measured = store.rows(
            "SELECT epoch, ratio, loss FROM checkpoints WHERE cell_id = ? ORDER BY epoch", [entry.cell.cell_id]
        )
        assert [what for kind, what in told if kind == "log"] == [
            (row["epoch"], {"memorization_ratio": row["ratio"], "loss": row["loss"]}) for row in measured
        ]
        assert all(isinstance(value, str | int | float) for value in told[1][1].values())
    again: list[CellStarted] = []
    list(log_events(run_study(study, store), lambda started: again.append(started) or []))
    assert again == []


def test_cells_that_are_trained_at_once_are_logged_each_by_its_own_trackers(study):
    first, second = study.distinct
    opened: dict[str, Notebook] = {}

    def one(started: CellStarted) -> list[GeneralTracker]:
        opened[started.entry.name] = Notebook()
        return [opened[started.entry.name]]

    events = [
        CellStarted(first, 0, 30),
        CellStarted(second, 0, 30),
        Measured(first.cell, 12, 0.25, None),
        CellLost(second, "its node died"),
        Measured(first.cell, 24, 0.5, None),
        CellEnded(first, Ended.FINISHED),
    ]
    assert list(log_events(iter(events), one)) == events
    kinds = {name: [what for kind, what in each.told if kind == "log"] for name, each in opened.items()}
    assert kinds == {
        first.name: [(12, {"memorization_ratio": 0.25}), (24, {"memorization_ratio": 0.5})],
        second.name: [],
    }
    assert [each.told[-1][0] for each in opened.values()] == ["finish", "finish"]


def test_a_run_that_is_stopped_finishes_its_trackers(study, store):
    tracker = Notebook()
    moment = tiny.Moment("Measured", 1, 1)
    with pytest.raises(Interrupted):
        for event in log_events(run_study(study, store, stop=moment), lambda _: [tracker]):
            moment.see(event)
    assert [kind for kind, _ in tracker.told] == ["start", "settings", "log", "finish"]


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_named_in_a_sentence_and_nothing_measured_is_lost(moment, study, store):
    tracker = Notebook(fails_at=moment)

    def events() -> Iterator[Event]:
        yield from log_events(run_study(study, store), lambda _: [tracker])

    with pytest.raises(RunError, match=r"the tracker notebook has failed: no network; .*leave out --log-with notebook"):
        list(events())
    measured = {"start": 0, "log": 1, "finish": 3}[moment]
    assert store.rows("SELECT count(*) AS n FROM checkpoints") == [{"n": measured}]


def test_a_tracker_is_told_study_and_cell(study, tmp_path, monkeypatch):
    def told(*arguments: Any, **named: Any) -> Notebook:
        tracker = Notebook()
        tracker.told.append((arguments, named))
        return tracker

    class Files(Notebook):
        requires_logging_directory = True

    entry = replace(study.cells[0], name="P.dataset = a/b")
    started = CellStarted(entry, 0, 30)
    run = f"P.dataset = a_b ({entry.cell.cell_id})"
    kinds = {"wandb": told, "files": told, "plain": told}
    told.requires_logging_directory = False
    for name, kind in kinds.items():
        monkeypatch.setitem(sys.modules["accelerate.tracking"].LOGGER_TYPE_TO_CLASS, name, kind)
    opened = trackers_of(["wandb", "plain", "wandb"], study="tiny", folder=tmp_path)(started)
    assert [tracker.told for tracker in opened] == [[(("tiny",), {"name": run})], [((f"tiny: {run}",), {})]]
    told.requires_logging_directory = True
    (tracker,) = trackers_of(["files"], study="tiny", folder=tmp_path)(started)
    assert tracker.told == [((run, str(tmp_path / "tiny")), {})]


def test_a_tracker_that_is_missing_or_unknown_is_refused_and_nothing_starts(study, tmp_path, monkeypatch):
    monkeypatch.setattr("diffmem.runs.trackers.get_available_trackers", list)
    for name, reason in [
        ("tensorboard", "the package tensorboard is not installed; `pip install tensorboard`, or leave out"),
        ("comet_ml", "`pip install comet-ml`"),
        ("tensorbord", "no such tracker; Accelerate knows aim, clearml, comet_ml"),
        ("all", "no such tracker"),
    ]:
        result = CliRunner().invoke(
            main, ["run", study.path, "--store", str(tmp_path / "new" / "s.duckdb"), "--log-with", name]
        )
        assert result.exit_code == 2
        assert result.stderr.startswith(f"--log-with {name}: ")
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_tracker_that_a_user_has_registered_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules["accelerate.tracking"].LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    check_trackers(["notebook"])


def test_tensorboard_has_the_ratio_and_the_loss_of_each_checkpoint(study, tmp_path):
    result = tiny.here("run", study.path, "--store", tmp_path / "s.duckdb", "--log-with", "tensorboard")
    assert result.returncode == 0, result.stderr
    read = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
logged = EventAccumulator(sys.argv[1])
logged.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in logged.Scalars(tag)] for tag in logged.Tags()["scalars"]}))
"""
    store = Store(tmp_path / "s.duckdb")
    for cell in store.cells("tiny"):
        folder = tmp_path / "logs" / "tiny" / f"{cell.name} ({cell.cell_id})"
        # in a process of its own, for importing tensorboard warns
        found = subprocess.run([sys.executable, "-c", read, folder], capture_output=True, text=True, check=True)
        logged = json.loads(found.stdout)
        rows = store.rows("SELECT epoch, ratio, loss FROM checkpoints WHERE cell_id = ? ORDER BY epoch", [cell.cell_id])
        for tag, key in (("memorization_ratio", "ratio"), ("loss", "loss")):
            assert [step for step, _ in logged[tag]] == tiny.EPOCHS
            assert [value for _, value in logged[tag]] == pytest.approx([row[key] for row in rows], rel=1e-6)


REGISTERED = """
import json, os, sys
from accelerate.tracking import GeneralTracker, register_tracker_class, on_main_process
from diffmem.cli import main

class Lines(GeneralTracker):
    name = "lines"
    requires_logging_directory = True
    def __init__(self, run, folder):
        super().__init__()
        self.path = os.path.join(folder, f"{os.getpid()}.jsonl")
        self.run = run
    @property
    def tracker(self):
        return self.path
    @on_main_process
    def log(self, values, step=None, **_):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps([self.run, step, values]) + "\\n")

register_tracker_class(Lines)
main(["run", *sys.argv[1:], "--log-with", "lines"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", ["cells", "batch"])
def test_of_two_processes_each_logs_the_cells_it_trains_and_a_cell_of_both_is_logged_once(split, tmp_path):
    (tmp_path / "script.py").write_text(REGISTERED)
    study = tiny.write(tmp_path, tiny.TEXT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    above = Path(diffmem.__file__).parents[1]
    result = subprocess.run(
        [*torchrun, str(study), "--store", str(tmp_path / "s.duckdb"), "--split", split],
        cwd=above,
        env={**tiny.environment(ACCELERATE_USE_CPU="1"), "PYTHONPATH": str(above)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    files = {path: path.read_text().splitlines() for path in (tmp_path / "logs" / "tiny").iterdir()}
    assert len(files) == {"cells": 2, "batch": 1}[split]
    lines = [json.loads(line) for text in files.values() for line in text]
    logged = sorted((run, step, values["memorization_ratio"]) for run, step, values in lines)
    names = {row.cell_id: f"{row.name} ({row.cell_id})" for row in Store(tmp_path / "s.duckdb").cells("tiny")}
    rows = Store(tmp_path / "s.duckdb").rows("SELECT cell_id, epoch, ratio FROM checkpoints")
    assert logged == sorted((names[row["cell_id"]], row["epoch"], row["ratio"]) for row in rows)
    assert len(logged) == 6
