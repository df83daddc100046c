"""Trained models are kept with their cell, whole or not at all, and give the images that were scored."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open

import diffmem
from diffmem.cells.settings import Scoring
from diffmem.cli import main
from diffmem.errors import MachineError, NotInStore, OutOfMemory, RunError
from diffmem.measures.neighbours import two_nearest
from diffmem.runs import cell_run, kept_models
from diffmem.runs.events import CellEnded
from diffmem.runs.kept_models import Made, find_model, generate_images, load_denoiser, save_weights
from diffmem.runs.runner import run_study
from diffmem.store.store import Store
from diffmem.study.study import Study

ONE_CELL = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "M.dropout = [0.0]")


def run(folder: Path, text: str = ONE_CELL, *, keep: str = "last", more: tuple[str, ...] = ()) -> tuple[Store, Study]:
    study = Study.load(tiny.write(folder, text), overrides=[f'score.keep="{keep}"', *more])
    store = Store(folder / "s.duckdb")
    outcomes = [event.outcome for event in run_study(study, store) if isinstance(event, CellEnded)]
    assert set(outcomes) == {"finished"}
    return store, study


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """Return a store with one conditional cell whose checkpoints are all kept, and its cell_id."""
    text = ONE_CELL.replace("[M]\n", '[M]\ncondition = "true"\n') if "[M]\n" in ONE_CELL else ONE_CELL
    store, study = run(tmp_path_factory.mktemp("trained"), text, keep="all", more=('M.condition="true"',))
    return store, study.cells[0].cell.cell_id


def epochs(store: Store) -> list[int]:
    return sorted(epoch for files in store.kept_weights().values() for epoch in files)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- which are kept ------------------------------------------------------------------------------------


def test_the_last_checkpoint_is_kept_unless_something_else_is_asked_for(tmp_path):
    store, study = run(tmp_path)
    (cell,) = [entry.cell for entry in study.cells]
    assert epochs(store) == [cell.checkpoints[-1][0]]
    assert not list(store.states.glob("*.pt"))


@pytest.mark.parametrize(("keep", "kept"), [("all", 3), ("none", 0)])
def test_all_or_none_are_kept(tmp_path, keep, kept):
    store, _ = run(tmp_path, keep=keep)
    assert len(epochs(store)) == kept


@pytest.mark.parametrize(("ratios", "kept"), [([0.2, 0.6, 0.4], 1), ([0.5, 0.5, 0.5], 0), ([0.0, 0.0, 0.1], 2)])
def test_the_best_checkpoint_is_kept_the_first_of_equals(tmp_path, monkeypatch, ratios, kept):
    given = iter(ratios)
    evidence = cell_run.Checkpoint.of

    def of(found, **where):
        samples, ratio = found.samples, next(given)
        memorized = np.arange(samples) < round(ratio * samples)
        changed = type(found)(
            nearest=found.nearest,
            d1=np.where(memorized, 0.0, 1.0),
            d2=np.ones(samples),
            memorized=int(memorized.sum()),
        )
        return evidence(changed, **where)

    monkeypatch.setattr(cell_run.Checkpoint, "of", of)
    store, study = run(tmp_path, keep="best", more=("score.samples=10", "score.pairs=0"))
    assert epochs(store) == [study.cells[0].cell.checkpoints[kept][0]]


def test_what_is_kept_is_no_part_of_a_cell(tmp_path):
    path = tiny.write(tmp_path, ONE_CELL)
    studies = [Study.load(path, overrides=[f'score.keep="{keep}"']) for keep in ("none", "last", "best", "all")]
    assert len({study.cells[0].cell.cell_id for study in studies}) == 1


def test_the_optimum_is_not_trained_and_has_nothing_to_keep(tmp_path):
    store, _ = run(tmp_path, more=('M.network="optimum"',))
    assert epochs(store) == []


# --- the file ------------------------------------------------------------------------------------------


def test_the_header_has_the_configuration_and_the_weights_are_those_that_generated(trained):
    store, cell_id = trained
    kept = find_model(store, cell_id)
    with safe_open(kept.path, framework="pt") as file:
        about = json.loads(file.metadata()["diffmem"])
    (row,) = store.cells("tiny")
    assert about["configuration"] == row.configuration
    assert kept.path == store.weights_path(cell_id, max(epochs(store)))
    assert set(kept.cell.model_dump()["M"]) == set(row.configuration["M"])


def test_a_run_killed_between_the_weights_and_the_row_goes_on_to_the_same_files(tmp_path, monkeypatch):
    expected, _ = run(_made(tmp_path / "whole"), keep="all")
    study = Study.load(tiny.write(_made(tmp_path / "killed"), ONE_CELL), overrides=['score.keep="all"'])
    store, append = Store(tmp_path / "killed" / "s.duckdb"), Store.append

    def killed(self, checkpoint, *, outcome=""):
        if checkpoint.epoch == study.cells[0].cell.checkpoints[1][0]:
            raise KeyboardInterrupt
        return append(self, checkpoint, outcome=outcome)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "append", killed)
        list(run_study(study, store))
    assert len(epochs(store)) == 2  # the second one is there before its row
    list(run_study(study, store))
    weights = [{path.name: path.read_bytes() for path in each.weights.iterdir()} for each in (expected, store)]
    assert weights[0] == weights[1]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_a_run_that_was_killed_has_left_beside_the_last_one_is_removed(tmp_path, monkeypatch):
    study = Study.load(tiny.write(tmp_path, ONE_CELL), overrides=['score.keep="best"'])
    store = Store(tmp_path / "s.duckdb")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cell_run, "remove_others", lambda *_: _interrupt() if len(epochs(store)) > 1 else None)
        patch.setattr(kept_models, "is_kept", lambda *_, **__: True)
        list(run_study(study, store))
    assert len(epochs(store)) == 2
    list(run_study(study, store))
    list(run_study(study, store))  # also where all is finished
    best = store.rows("SELECT arg_max(epoch, (ratio, -epoch)) AS best FROM checkpoints")[0]["best"]
    assert epochs(store) == [best]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_an_earlier_checkpoint_that_was_missing_takes_no_later_ones_place(tmp_path):
    store, study = run(tmp_path, keep="last")
    cell = study.cells[0].cell
    with store.writing() as connection:
        for table in ("checkpoints", "evidence", "pairs"):
            connection.execute(f"DELETE FROM {table} WHERE epoch = 12")
    assert [e.outcome for e in run_study(study, store) if isinstance(e, CellEnded)] == ["finished"]
    assert max(epochs(store)) == cell.checkpoints[-1][0]


def test_a_model_that_cannot_be_kept_is_no_failure_of_the_cell(tmp_path):
    study = Study.load(tiny.write(tmp_path, ONE_CELL))
    store = Store(tmp_path / "s.duckdb")
    store.weights.write_text("a file where the folder should be")
    with pytest.raises(MachineError) as caught:
        list(run_study(study, store))
    path = store.weights_path(study.cells[0].cell.cell_id, 30)
    assert str(caught.value).replace(str(path), "FILE").replace(str(store.weights), "FOLDER") == (
        "FILE: the trained model cannot be kept ([Errno 17] File exists: 'FOLDER'); free some space or check the "
        "folder's permissions, then"
        ' run the same command again, or set score.keep = "none"'
    )
    (cell,) = store.cells("tiny")
    assert cell.outcome == "interrupted"
    store.weights.unlink()
    assert [e.outcome for e in run_study(study, store) if isinstance(e, CellEnded)] == ["finished"]


OTHER = (
    "FILE: written by another diffmem, or of another cell; run its study with another --store to train the cell again"
)
BROKEN = "FILE: no weights that diffmem has written whole; run its study with another --store to train the cell again"


@pytest.mark.parametrize("damage", ["cut", "another cell's", "no safetensors", "one bit", "another epoch's", "deep"])
def test_damaged_weights_are_refused_in_a_sentence(tmp_path, damage):
    store, study = run(tmp_path)
    cell = study.cells[0].cell
    path = find_model(store, cell.cell_id).path
    if damage == "another cell's":
        other = cell.model_copy(update={"T": cell.T.model_copy(update={"seed": 7})})
        save_weights(path, other, load_denoiser(store, cell.cell_id), epoch=30, made=Made.here("cpu"))
        words = OTHER
    elif damage == "another epoch's":
        save_weights(path, cell, load_denoiser(store, cell.cell_id), epoch=29, made=Made.here("cpu"))
        words = OTHER
    else:
        content = path.read_bytes()
        damages = {
            "cut": content[:-100],
            "no safetensors": b"no safetensors at all",
            "one bit": content[:-1] + bytes([content[-1] ^ 1]),
            "deep": content.replace(b"batch_size", b"batch_sizE"),
        }
        path.write_bytes(damages[damage])
        words = BROKEN
    with pytest.raises(RunError) as caught:
        load_denoiser(store, cell.cell_id)
    assert str(caught.value).replace(str(path), "FILE") == words


def test_weights_that_are_not_there_are_missed_in_a_sentence(tmp_path, trained):
    store, study = run(tmp_path, keep="none")
    cell_id = study.cells[0].cell.cell_id
    with pytest.raises(NotInStore) as caught:
        diffmem.load_denoiser(store, cell_id)
    assert str(caught.value).replace(str(store.weights), "FOLDER").replace(cell_id, "CELL") == (
        "FOLDER: no weights of cell CELL; a run keeps them when it trains a cell to its end (score.keep), and `diffmem "
        "store prune` removes them"
    )
    store, cell_id = trained
    with pytest.raises(NotInStore) as caught:
        load_denoiser(store, cell_id, epoch=1)
    assert str(caught.value).replace(str(store.weights), "FOLDER").replace(cell_id, "CELL") == (
        "FOLDER: no weights of cell CELL at checkpoint 1; there are those of 12, 24, 30"
    )


# --- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 20, 33])
def test_images_are_those_that_were_scored_bit_for_bit(trained, count):
    store, cell_id = trained
    made = list(generate_images(store, cell_id, count))
    images = torch.cat([each.images for each in made])
    assert images.shape == (count, 1, 8, 8)
    from diffmem.data.training_sets import training_set

    known = torch.from_numpy(training_set(find_model(store, cell_id).cell).images)
    index, distance = two_nearest(images, known)
    rows = store.rows(
        "SELECT sample, nearest, d1, d2 FROM evidence WHERE epoch = (SELECT max(epoch) FROM evidence) ORDER BY sample"
    )
    for row in rows[:count]:
        number = row["sample"]
        assert (row["nearest"], row["d1"], row["d2"]) == (index[number, 0], *distance[number].tolist())


@pytest.mark.parametrize("batch_size", [300, 500, 700])
def test_batches_are_those_of_the_scoring_also_where_it_looks_at_its_precision(batch_size):
    scoring = Scoring(samples=1300, precision=0.01, batch_size=batch_size)
    expected = []
    for first in range(0, 1300, 500):  # as `CellRun._measure` and `_score` go about it
        part = range(first, min(first + 500, 1300))
        expected += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    assert list(kept_models._batches(scoring, 1300)) == expected
    assert next(kept_models._batches(scoring, 1)) == expected[0]
    beyond = list(kept_models._batches(scoring, 2000))
    assert beyond[: len(expected)] == expected
    assert [i for batch in beyond for i in batch][:2000] == list(range(2000))


def test_less_memory_makes_the_same_images_in_smaller_batches(trained, monkeypatch):
    store, cell_id = trained
    (whole,) = list(generate_images(store, cell_id, 12))
    solve = kept_models.heun

    def short_of_memory(denoiser, noise, labels, *, steps):
        if len(noise) > 4:
            raise MemoryError
        return solve(denoiser, noise, labels, steps=steps)

    monkeypatch.setattr(kept_models, "heun", short_of_memory)
    (halved,) = list(generate_images(store, cell_id, 12))
    assert (whole.images.int() - halved.images.int()).abs().max() <= 1
    monkeypatch.setattr(kept_models, "heun", lambda *_, **__: _no_memory())
    with pytest.raises(OutOfMemory):
        list(generate_images(store, cell_id, 12))


def _no_memory() -> None:
    raise MemoryError


def test_a_folder_with_files_in_it_is_refused_and_labels_come_as_a_dataset_json(trained, tmp_path):
    store, cell_id = trained
    arguments = ("generate", cell_id, "--count", 2, "--labels", "3,1", "-o", tmp_path / "images", "--store", store.path)
    assert command(*arguments).exit_code == 0
    assert json.loads((tmp_path / "images" / "dataset.json").read_text()) == {
        "labels": [["000000.png", 3], ["000001.png", 1]]
    }
    again = command(*arguments)
    assert again.exit_code == 2
    assert "images is not empty; name a new folder, or a .npz" in " ".join(again.stderr.split())


def test_a_denoiser_can_be_loaded_from_a_path(trained):
    store, cell_id = trained
    denoiser = diffmem.load_denoiser(store.path, cell_id, epoch=12)
    assert not denoiser.training
    assert denoiser(torch.zeros(2, 1, 8, 8), 1.0, torch.tensor([0, 1])).shape == (2, 1, 8, 8)


def test_generate_writes_png_files_or_one_npz(trained, tmp_path):
    store, cell_id = trained
    told = command("generate", cell_id[:6], "--count", 3, "-o", tmp_path / "images", "--store", store.path)
    assert (told.exit_code, told.stdout) == (0, f"3 images: {tmp_path / 'images'}\n"), told.output
    pixels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").glob("*.png"))]
    assert command("generate", cell_id, "--count", 3, "-o", tmp_path / "a.npz", "--store", store.path).exit_code == 0
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["images"][..., 0], np.stack(pixels))
        assert file["labels"].shape == (3,)


@pytest.mark.parametrize(("labels", "expected"), [("4", [4, 4, 4]), ("1,0,2", [1, 0, 2])])
def test_labels_can_be_chosen(trained, tmp_path, labels, expected):
    store, cell_id = trained
    arguments = ("--count", 3, "--labels", labels, "-o", tmp_path / "a.npz", "--store", store.path)
    assert command("generate", cell_id, *arguments).exit_code == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file["labels"].tolist() == expected


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("10", "cell CELL: no label 10; it has those from 0 to 9"),
        ("1,2", "cell CELL: 2 labels for 3 images; give one for all, or one for each"),
        ("one", "'one' is not a label, or labels with commas between them"),
    ],
)
def test_labels_that_a_model_does_not_have_are_refused(trained, tmp_path, labels, told):
    store, cell_id = trained
    arguments = ("--count", 3, "--labels", labels, "-o", tmp_path / "a.npz", "--store", store.path)
    result = command("generate", cell_id, *arguments)
    assert result.exit_code in (1, 2)
    assert told in result.stderr.replace(cell_id, "CELL")
    assert not (tmp_path / "a.npz").exists()


def test_an_unconditional_model_takes_no_labels(tmp_path):
    store, study = run(tmp_path)
    cell_id = study.cells[0].cell.cell_id
    with pytest.raises(RunError) as caught:
        list(generate_images(store, cell_id, 1, labels=[0]))
    assert str(caught.value).replace(cell_id, "CELL") == "cell CELL: an unconditional model, which takes no labels"


# --- what they take ------------------------------------------------------------------------------------


def test_info_and_plan_say_how_large_they_are(tmp_path):
    store, study = run(tmp_path, keep="all")
    sizes = [path.stat().st_size for path in store.weights.iterdir()]
    shown = json.loads(command("store", "info", store.path, "--json").stdout)
    assert (shown["trained_models"], shown["trained_model_bytes"]) == (3, sum(sizes))
    told = command(
        "plan", tmp_path / "tiny.toml", "--store", tmp_path / "new.duckdb", "--set", 'score.keep="all"'
    ).stdout
    assert f"B of trained models in {tmp_path / 'weights'} (score.keep)" in told
    assert (
        abs(sum(sizes) / 3 - 4 * diffmem.plan_cells(study, Store(tmp_path / "new.duckdb"))[0].cost.parameters) < 20_000
    )


def test_prune_says_what_it_cannot_do(tmp_path):
    store, study = run(tmp_path)
    missing = command("store", "prune", "--all", "--store", tmp_path / "typo.duckdb")
    assert (missing.exit_code, missing.stderr.replace(str(tmp_path), "FOLDER")) == (
        2,
        "FOLDER/typo.duckdb: no store there yet, so nothing is kept for it\n",
    )
    path = find_model(store, study.cells[0].cell.cell_id).path
    path.unlink()
    path.mkdir()
    told = command("store", "prune", "--all", "--store", store.path).stderr.replace(str(path), "FILE")
    assert told.startswith("FILE: cannot be removed: ")
    with pytest.raises(MachineError) as caught:
        load_denoiser(store, study.cells[0].cell.cell_id)
    assert str(caught.value).startswith(f"{path}: the trained model cannot be read: ")


def test_prune_removes_what_is_named_and_no_more(tmp_path):
    store, study = run(tmp_path, tiny.TEXT, keep="all")
    one, other = (entry.cell.cell_id for entry in study.cells)
    old = min(store.kept_weights()[other].items())[1]
    os.utime(old, (10**9, 10**9))
    prune = ("store", "prune", "--store", store.path)
    assert "say which: --study, --cell, --older-than DAYS or --all" in command(*prune).stderr
    assert command(*prune, "--cell", other, "--older-than", 1).stdout.startswith("1 trained model removed, ")
    assert not old.exists()
    assert command(*prune, "--cell", one).stdout.startswith("3 trained models removed")
    assert set(store.kept_weights()) == {other}
    removed = json.loads(command(*prune, "--study", "tiny", "--json").stdout)
    assert [set(row) for row in removed] == [{"file", "bytes"}] * 2
    assert epochs(store) == []
    assert [row.measured for row in store.cells("tiny")] == [3, 3]
