"""Measures computed later, from trained models that are kept: bit for bit what a run would have stored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner, Result

from diffmem.cli import main
from diffmem.errors import DataError, RunError
from diffmem.measures import GROUPED
from diffmem.runs import cell_run
from diffmem.runs.events import CellEnded
from diffmem.runs.measuring import Later, NotMeasured, measure_study
from diffmem.runs.nulls import NullMeasured
from diffmem.runs.runner import run_study
from diffmem.store.store import Store
from diffmem.study.study import Study

ONE_CELL = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "M.dropout = [0.0]")
TABLES = {
    "evidence": "SELECT * FROM evidence WHERE cell_id = ? ORDER BY ALL",
    "measure_evidence": "SELECT * FROM measure_evidence WHERE cell_id = ? ORDER BY ALL",
    "measured": "SELECT * FROM measured WHERE cell_id = ? ORDER BY ALL",
    "pairs": "SELECT * FROM pairs WHERE cell_id = ? ORDER BY ALL",
    "copied": "SELECT * FROM copied WHERE cell_id = ? ORDER BY ALL",
}


def trained(path: Path, *overrides: str, text: str = ONE_CELL) -> tuple[Study, Store]:
    path.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(path, text), overrides=overrides), Store(path / "s.duckdb")
    assert {event.outcome for event in run_study(study, store) if isinstance(event, CellEnded)} == {"finished"}
    return study, store


def rows(store: Store, cell_id: str) -> dict[str, list[dict[str, object]]]:
    return {table: store.rows(sql, [cell_id]) for table, sql in TABLES.items()}


def measured(study: Study, store: Store, **asked: Any) -> Iterator[Later | NotMeasured]:
    """Measure a study; what is found of its models, not of held-out images."""
    found = measure_study(study, store, **asked)
    return (each for each in found if not isinstance(each, NullMeasured))


def diffmem(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_measure_added_later_is_the_one_that_a_run_stores_bit_by_bit(tmp_path: Path) -> None:
    study, store = trained(tmp_path / "later", "score.keep='all'")
    asked, other = trained(tmp_path / "asked", "score.keep='all'", "score.measures=['calibrated']")
    assert [entry.cell.cell_id for entry in asked.cells] == [entry.cell.cell_id for entry in study.cells]
    (entry,) = study.cells
    found = list(measured(study, store, measures=["calibrated"]))
    assert [(each.epoch, each.new, each.note) for each in found] == [(epoch, True, "") for epoch in tiny.EPOCHS]
    expected = rows(other, entry.cell.cell_id)
    assert len(expected["measure_evidence"]) == 3 * 20
    assert rows(store, entry.cell.cell_id) == expected


def test_a_measure_that_is_there_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = trained(tmp_path, "score.measures=['calibrated']")
    monkeypatch.setattr("diffmem.runs.checkpoint_model.images_of", None)
    (found,) = measured(study, store, measures=["calibrated"])
    assert (found.epoch, found.n, found.new) == (30, 20, False)


@pytest.mark.parametrize("key", ["samples", "steps"])
def test_more_images_or_noise_levels_are_those_of_a_run_with_that_scoring(tmp_path: Path, key: str) -> None:
    value = {"samples": 32, "steps": 4}[key]
    text = ONE_CELL.replace("[M]\n", '[M]\ncondition = "true"\n')
    study, store = trained(tmp_path / "later", text=text)
    asked, other = trained(tmp_path / "asked", f"score.{key}={value}", "score.every=30", text=text)
    measures = ["calibrated"]
    assert [each.measure for each in measured(study, store, **{key: value})] == ["nearest"]
    found = list(measured(study, store, measures=measures, **{key: value}))  # which the new cell lacks so far
    (cell,) = [entry.cell for entry in asked.cells]
    assert [(each.cell_id, each.measure) for each in found] == [(cell.cell_id, "nearest"), (cell.cell_id, "calibrated")]
    list(measured(asked, other, measures=measures))
    assert rows(store, cell.cell_id) == rows(other, cell.cell_id)
    assert [(each.cell_id, each.finished) for each in store.cells(f"tiny+{key}={value}")] == [(cell.cell_id, True)]
    assert [each.cell_id for each in store.cells("tiny")] == [entry.cell.cell_id for entry in study.cells]
    again = list(measured(study, store, measures=measures, **{key: value}))
    assert [each.new for each in again] == [False, False]


def test_a_scoring_that_ends_by_itself_cannot_be_given_a_number_of_images(tmp_path: Path) -> None:
    study, store = trained(tmp_path, "score.precision=0.2")
    with pytest.raises(RunError) as refused:
        list(measured(study, store, samples=40))
    assert str(refused.value) == (
        "score.precision ends generating by itself; --samples and --steps are for studies without it"
    )
    assert [each.study for each in store.studies()] == ["tiny"]


def test_damaged_weights_are_told_of_before_anything_is_listed(tmp_path: Path) -> None:
    study, store = trained(tmp_path)
    store.weights_path(study.cells[0].cell.cell_id, 30).write_bytes(b"no weights")
    with pytest.raises(RunError):
        list(measured(study, store, samples=40))
    assert [each.study for each in store.studies()] == ["tiny"]


def test_the_optimum_is_measured_without_weights(tmp_path: Path) -> None:
    text = ONE_CELL.replace("[M]\n", '[M]\nnetwork = "optimum"\n')
    study, store = trained(tmp_path / "later", text=text)
    _, other = trained(tmp_path / "asked", "score.measures=['calibrated']", text=text)
    (found,) = measured(study, store, measures=["calibrated"])
    assert (found.new, found.note) == (True, "")
    assert rows(store, study.cells[0].cell.cell_id) == rows(other, study.cells[0].cell.cell_id)
    (more,) = measured(study, store, samples=30)
    assert more.n == 30


def test_a_checkpoint_that_the_store_lacks_is_told_of(tmp_path: Path) -> None:
    study, store = trained(tmp_path)
    with store.writing() as connection:
        connection.execute("DELETE FROM checkpoints")
    (found,) = measured(study, store, measures=["calibrated"])
    assert found.reason == "nothing is in the store yet; run the study first"


def test_a_kept_model_that_is_not_of_the_last_checkpoint_is_told_of(tmp_path: Path) -> None:
    study, store = trained(tmp_path, "score.keep='all'")
    store.weights_path(study.cells[0].cell.cell_id, 30).unlink()
    (found,) = measured(study, store, samples=30)
    assert found.reason == "the model that is kept is not that of the last checkpoint (score.keep)"


def test_a_measurement_that_fails_ends_its_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = trained(tmp_path)

    def fails(*_arguments: object, **_options: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffmem.runs.checkpoint_model.images_of", fails)
    with pytest.raises(KeyboardInterrupt):
        list(measured(study, store, samples=30))
    (cell,) = store.cells("tiny+samples=30")
    assert (cell.outcome, cell.error) == ("interrupted", "KeyboardInterrupt")


def test_evidence_that_is_not_of_all_images_is_refused(tmp_path: Path) -> None:
    study, store = trained(tmp_path)
    with store.writing() as connection:
        connection.execute("DELETE FROM evidence WHERE sample = 19")
    with pytest.raises(RunError) as refused:
        list(measured(study, store, measures=["calibrated"]))
    assert str(refused.value) == (
        f"{store.path}: {study.cells[0].cell.cell_id} at checkpoint 30 has evidence of 19 images instead of 20; "
        "`diffmem store check` lists what else is wrong"
    )


def test_a_measure_that_nobody_knows_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    study, store = trained(tmp_path)
    with pytest.raises(DataError) as refused:
        list(measured(study, store, measures=["nosuch"]))
    known = ", ".join(["nearest", "calibrated", *GROUPED, "gaps", "membership", "quality"])
    assert str(refused.value) == f"no measure 'nosuch'; there are {known}"


SEARCH = ONE_CELL.replace("size = 8\n", "", 1) + '\n[emm]\nsearch = "bisect"\nrange = [4, 8]\ntolerance = 1.0\n'


def test_a_search_by_a_measure_that_finished_cells_lack_ends_in_a_sentence_and_measure_adds_it(tmp_path: Path) -> None:
    text = SEARCH.replace("[M]\n", '[M]\nnetwork = "optimum"\n')
    study, store = Study.load(tiny.write(tmp_path, text)), Store(tmp_path / "s.duckdb")
    list(run_study(study, store))
    by_other = Study.load(tiny.write(tmp_path, text + 'measure = "calibrated"\n'))
    with pytest.raises(RunError) as refused:
        list(run_study(by_other, store))
    assert str(refused.value).endswith(
        ": finished, but not scored by calibrated; `diffmem measure` adds it where trained models are kept, or search "
        "in another --store"
    )
    assert all(each.new for each in measured(by_other, store, measures=["calibrated"]))
    list(run_study(by_other, store))


def test_cells_whose_model_is_not_kept_are_counted(tmp_path: Path) -> None:
    study, store = trained(tmp_path, text=tiny.TEXT)
    gone, there = (entry.cell.cell_id for entry in study.cells)
    store.weights_path(gone, 30).unlink()
    assert [type(each) for each in measured(study, store, measures=["calibrated"])] == [NotMeasured, Later]
    assert [type(each) for each in measured(study, store, samples=30)] == [NotMeasured, Later]
    said = diffmem("measure", tmp_path / "tiny.toml", "--store", store.path, "--measure", "calibrated")
    assert (said.exit_code, said.stderr) == (1, "")
    said_how = 'score.keep = "last" keeps it, in a run with another --store'
    assert f"1 cell not measured: no trained model is kept; {said_how}\n" in said.stdout
    said = diffmem("measure", tmp_path / "tiny.toml", "--store", store.path, "--measure", "grouped")
    assert said.stderr == f"measured {study.cells[1].name}, epoch 30: grouped\n"  # as it comes
    said = diffmem("measure", tmp_path / "tiny.toml", "--store", store.path, "--samples", 30, "--json")
    assert said.exit_code == 1
    data = json.loads(said.stdout)
    assert [each["cell_id"] for each in data["not_measured"]] == [gone]
    assert [each["name"] for each in data["measured"]] == ["M.dropout = 0.2"]
    assert there not in {each["cell_id"] for each in data["measured"]}


def test_images_that_are_not_those_that_were_scored_are_counted_with_the_reason(tmp_path: Path) -> None:
    study, store = trained(tmp_path)
    with store.writing() as connection:
        connection.execute("UPDATE evidence SET d2 = d2 * 1.0000001 WHERE sample < 3")
    (found,) = measured(study, store, measures=["calibrated"])
    threads = "cpu (1 thread)" if cell_run.torch.get_num_threads() == 1 else found.note.rpartition(" on ")[2]
    assert found.note == (f"3 of 20 images differ from those scored, which were made on {threads}, these on {threads}")


def test_a_run_names_the_checkpoints_that_a_measure_lacks(tmp_path: Path) -> None:
    _, store = trained(tmp_path)
    path = tmp_path / "tiny.toml"
    said = diffmem("run", path, "--store", store.path, "--processes", 1, "--set", "score.measures=['calibrated']")
    assert said.exit_code == 0, said.stderr
    assert said.stdout.splitlines()[-1] == (
        "3 checkpoints measured before without calibrated; `diffmem measure "
        f"{path} --set 'score.measures=['\"'\"'calibrated'\"'\"']' --measure calibrated --store {store.path}` adds it "
        "where the trained model is kept"
    )
