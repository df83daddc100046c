"""Two halves in runs, the store and commands: the same latents, kept models or pictures, or the reason why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from diffmem.analysis import export, halves_of
from diffmem.data import held_out, training_set
from diffmem.errors import DataError, StoreError
from diffmem.measures import SIMILAR
from diffmem.measures.halves import compare_pairs
from diffmem.models import sample_labels
from diffmem.report.figure import palette
from diffmem.report.halves import half_galleries, halves_figure
from diffmem.report.page import render_page
from diffmem.runs.events import CellEnded
from diffmem.runs.halves import HalfNotCompared, HalvesCompared, compare_halves
from diffmem.runs.kept_models import generate_images
from diffmem.runs.runner import run_study
from diffmem.store.checking import faults
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study

TEXT = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", 'P.half = ["a", "b"]').replace("every = 12", "every = 30")
OPTIMUM = TEXT.replace("[M]\n", '[M]\nnetwork = "optimum"\n').replace(
    "[[axes]]", "[[axes]]\nP.size = [10, 20]\n[[axes]]"
)
NOT_KEPT = (
    'its trained model is not kept, and the store has no pictures of its images; score.keep = "last", the default, '
    "keeps the models of a run, so run the study with that and another --store"
)


def trained(folder: Path, *overrides: str, text: str = TEXT) -> tuple[Study, Store]:
    folder.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(folder, text), overrides=overrides), Store(folder / "s.duckdb")
    ended = [event for event in run_study(study, store) if isinstance(event, CellEnded)]
    assert {event.outcome for event in ended} == {"finished"}, ended
    return study, store


@pytest.fixture(scope="module")
def optima(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """Return a study of optima on two halves of two sizes, which are compared."""
    study, store = trained(tmp_path_factory.mktemp("optima"), text=OPTIMUM)
    assert [each.new for each in compare_halves(study, store)] == [True, True]
    return study, store


def test_both_models_generate_from_the_latents_that_were_scored(tmp_path):
    study, store = trained(tmp_path)
    (compared,) = compare_halves(study, store)
    first, second = (entry.cell for entry in study.cells)
    assert compared == HalvesCompared(first.cell_id, second.cell_id, "P.half = a", 30, 20, new=True)
    images = [torch.cat([each.images for each in generate_images(store, cell.cell_id, 20)]) for cell in (first, second)]
    own = [torch.from_numpy(np.ascontiguousarray(training_set(cell).images)) for cell in (first, second)]
    unseen = torch.from_numpy(np.ascontiguousarray(held_out(first, 20)))
    expected = compare_pairs((images[0], images[1]), (own[0], own[1]), unseen)
    (row,) = store.study_halves("tiny")
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(row, name), values)
    assert (row.size, row.draw, row.seed, row.epoch, row.space) == (8, "0", 0, 30, "centred pixels")
    assert faults(store) == []


def test_what_is_compared_is_left_as_it_is(optima, monkeypatch):
    study, store = optima
    monkeypatch.setattr("diffmem.runs.halves.compare_pairs", None)
    assert [(each.new, each.pairs) for each in compare_halves(study, store)] == [(False, 20)] * 2


def test_optima_need_no_weights_and_do_not_generalize(optima):
    _, store = optima
    for row in halves_of(store, store.study("tiny")):
        assert row.found.generalization.value < 0.05
        assert row.found.reproducible.value == row.found.reproducible_null.value == 0
        assert (row.pairs, row.threshold, row.found.generalization_null.n) == (20, SIMILAR, 20)


def test_images_of_a_conditional_model_are_mismatched_within_their_label(tmp_path):
    study, store = trained(
        tmp_path, "M.condition='true'", "P.size=20", text=TEXT.replace("[M]\n", '[M]\nnetwork = "optimum"\n')
    )
    assert [each.pairs for each in compare_halves(study, store)] == [20]
    labels = sample_labels(range(20), labels=10, seed=0)
    (row,) = store.study_halves("tiny")
    assert len(row.mismatched) == sum(int((labels == label).sum()) > 1 for label in labels) < 20


def test_pictures_are_compared_where_a_model_is_not_kept(tmp_path):
    study, store = trained(tmp_path, "score.keep='none'")
    (compared,) = compare_halves(study, store)
    assert (compared.pairs, compared.new) == (3, True)
    assert compared.note == (
        "from the pictures that the store has of the first images, as a trained model is not kept (score.keep)"
    )
    (row,) = store.study_halves("tiny")
    kept, from_models = trained(tmp_path / "kept")
    (compared,) = compare_halves(kept, from_models)
    (whole,) = from_models.study_halves("tiny")
    assert (compared.note, len(whole.mse)) == ("", 20)
    assert row.similarity == whole.similarity[:3]
    merge(store, from_models.path)  # which has more
    assert [len(each.mse) for each in store.study_halves("tiny")] == [20]
    assert faults(store) == []


def test_what_cannot_be_compared_is_told_with_its_reason(tmp_path):
    study, store = trained(tmp_path, "score.keep='none'", "score.pairs=0")
    assert [(each.name, each.reason) for each in compare_halves(study, store)] == [
        ("P.half = a", NOT_KEPT),
        ("P.half = b", NOT_KEPT),
    ]
    alone = Study.load(tiny.write(tmp_path, TEXT.replace('["a", "b"]', '["b"]')))
    (found,) = compare_halves(alone, store)
    assert found.reason == "no cell of the study differs from it in P.half alone"
    longer = Study.load(tiny.write(tmp_path, TEXT), overrides=["T.epochs=31"])
    assert {each.reason for each in compare_halves(longer, store)} == {
        "it is not trained to its end; run the study first"
    }
    assert all(isinstance(each, HalfNotCompared) for each in compare_halves(longer, store))


def test_a_study_without_halves_is_refused_with_what_to_write(tmp_path):
    path = tiny.write(tmp_path)
    with pytest.raises(DataError) as error:
        list(compare_halves(Study.load(path), Store(tmp_path / "s.duckdb")))
    assert str(error.value) == (
        f'{path}: no cell has P.half; put P.half = ["a", "b"] on an axis of its own, then run the study'
    )


def test_a_damaged_picture_is_named(tmp_path):
    study, store = trained(tmp_path, "score.keep='none'")
    with store.writing() as connection:
        connection.execute("UPDATE pairs SET generated = 'x'::BLOB")
    cell_id = study.cells[0].cell.cell_id
    with pytest.raises(StoreError) as error:
        list(compare_halves(study, store))
    assert str(error.value) == (
        f"{store.path}: a picture of cell {cell_id} is not a PNG that can be read; `diffmem store check` says more"
    )


def test_images_that_both_halves_have_are_noted(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "twice.npz", images=np.repeat(images[:20], 2, axis=0))
    text = TEXT.replace('"digits"', f'"{tmp_path / "twice.npz"}"\nbalance = false\ndraw = "first"\nresolution = 8')
    study, store = trained(tmp_path, text=text.replace("[M]\n", '[M]\nnetwork = "optimum"\n'))
    assert [each.new for each in compare_halves(study, store)] == [True]
    notes = {each.note: each.cells for each in store.notes("tiny")}
    assert notes["halves: 8 of the 8 images of half a are identical to one of half b"] == 2


def test_unique_labels_are_noted(tmp_path):
    text = TEXT.replace("[M]\n", '[M]\nnetwork = "optimum"\ncondition = "unique"\n')
    study, store = trained(tmp_path, text=text)
    assert [each.new for each in compare_halves(study, store)] == [True]
    assert "halves: each half has labels of its own, so that the two models are asked for different images" in {
        each.note for each in store.notes("tiny")
    }


# --- commands ------------------------------------------------------------------------------------------


def test_the_command_compares_a_file_and_shows_a_name(tmp_path):
    study, store = trained(tmp_path)
    path, place = tmp_path / "tiny.toml", ("--store", store.path)
    nothing = tiny.here("halves", "tiny", *place)
    assert nothing.returncode == 2
    assert nothing.stderr == (
        f"tiny: no halves are compared; `diffmem halves {path}` compares cells that differ in P.half alone\n"
    )
    by_file, by_name = tiny.here("halves", path, *place), tiny.here("halves", "tiny", *place)
    assert by_file.returncode == by_name.returncode == 0
    assert by_file.stdout == by_name.stdout
    assert "tiny: agreement of two halves, in centred pixels with t = 0.95" in by_name.stdout
    assert "both models of a row start from the same weights and see the same noise (T.seed)" in by_name.stdout
    (pair,) = json.loads(tiny.here("halves", "tiny", "--threshold", "0.5", "--json", *place).stdout)["pairs"]
    (row,) = store.study_halves("tiny")
    assert pair["found"]["reproducible"]["value"] == np.mean(np.array(row.similarity) > 0.5)
    assert pair["cell_a"] == study.cells[0].cell.cell_id


def test_a_name_is_the_beginning_of_a_stored_study_s_where_the_study_of_its_file_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, store = trained(tmp_path)
    with store.writing() as connection:
        for table in ("studies", "study_cells"):
            connection.execute(f"UPDATE {table} SET study = 'tiny@laptop'")
    told = tiny.here("halves", "tiny", "--store", store.path)
    assert told.stderr.startswith("tiny@laptop: no halves are compared; ")


def test_the_command_says_what_is_not_compared(tmp_path):
    _, store = trained(tmp_path, "score.keep='none'", "score.pairs=0")
    keep = ("--set", "score.keep='none'", "--set", "score.pairs=0")
    told = tiny.here("halves", tmp_path / "tiny.toml", *keep, "--store", store.path)
    assert told.returncode == 1
    assert f"2 cells not compared: {NOT_KEPT}" in told.stdout
    data = json.loads(tiny.here("halves", tmp_path / "tiny.toml", *keep, "--json", "--store", store.path).stdout)
    assert (data["pairs"], len(data["not_compared"])) == ([], 2)


def test_the_command_says_that_pictures_are_compared(tmp_path):
    _, store = trained(tmp_path, "score.keep='none'")
    told = tiny.here("halves", tmp_path / "tiny.toml", "--set", "score.keep='none'", "--store", store.path)
    assert told.returncode == 0
    assert (
        "note: P.half = a: 3 images compared from the pictures that the store has of the first images, as a trained "
        "model is not kept (score.keep)\n"
    ) in told.stderr


def test_export_and_page_need_no_model(optima, tmp_path):
    _, store = optima
    rows = halves_of(store, store.study("tiny"))
    export(store, "halves", tmp_path / "halves.json", form="json", study="tiny")
    table = json.loads((tmp_path / "halves.json").read_text())
    assert [(each["size"], each["cosine"], each["generalization_null"]) for each in table] == [
        (row.size, row.found.cosine.value, row.found.generalization_null.value) for row in rows
    ]
    colours = palette([f"curve {number}" for number in range(7)], [10, 20])
    figure = halves_figure(rows, colours)
    assert figure is not None
    assert not {*colours.curves.values()} & {each.colour for panel in figure.panels for each in panel.series}
    shown = {(name, x): y for name, x, y, _ in figure.rows()}
    for row in rows:
        assert shown["mean cosine, all cells", row.size] == row.found.cosine.value
        assert shown["mean cosine, all cells, null", row.size] == row.found.cosine_null.value
        assert shown["generalization GL, all cells", row.size] == row.found.generalization.value
    galleries = half_galleries(rows, store.half_images("tiny"))
    assert [(each.name, len(each.pairs)) for each in galleries] == [
        ("N = 10, P.draw = 0, T.seed = 0", 3),
        ("N = 20, P.draw = 0, T.seed = 0", 3),
    ]
    assert [pair.similarity for pair in galleries[0].pairs] == store.study_halves("tiny")[0].similarity[:3]
    page = render_page(store, ["tiny"])
    assert "Agreement of two halves against the number of training images" in page
    assert page.count('of half a">') == page.count('of half b">') == 6


def test_nothing_is_shown_where_nothing_is_compared(tmp_path):
    study, store = Study.load(tiny.write(tmp_path)), Store(tmp_path / "s.duckdb")
    tiny.register(store, study)
    assert halves_figure(halves_of(store, store.study("tiny")), palette([], [])) is None
    assert "two halves" not in render_page(store, ["tiny"])


# --- the store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", ["similarity = 1.1", "mse = -0.1", "mse = 'nan'", "held_out_a = -2", "mismatched_mse = 2", "sample = -1"]
)
def test_impossible_values_are_refused(optima, tmp_path, wrong):
    store = copied(optima[1], tmp_path)
    change(store, f"UPDATE halves SET {wrong} WHERE sample = 1")
    with pytest.raises(
        StoreError, match=r"two halves have a similarity outside of -1\.\.1, or a squared difference outside of 0\.\.1"
    ):
        Store(store.path).study_halves("tiny")


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("INSERT INTO halves FROM halves LIMIT 1", "centred pixels: 1 pairs of images that are there already"),
        ("UPDATE halves SET epoch = 7", "two halves compared without their checkpoints"),
    ],
)
def test_a_check_names_what_does_not_belong(optima, tmp_path, sql, fault):
    store = copied(optima[1], tmp_path)
    change(store, sql)
    assert [found for found in faults(store) if found.endswith(fault)]


def test_stores_are_merged_to_the_same_in_whatever_order(optima, tmp_path):
    def merged(name: str, *, turned: bool) -> object:
        one, other = (copied(optima[1], tmp_path / f"{name}{number}") for number in "12")
        change(other, "DELETE FROM halves WHERE sample >= 10")
        change(one, "UPDATE halves SET similarity = similarity - 1e-12 WHERE similarity > 0")
        first, second = (other, one) if turned else (one, other)
        merge(first, second.path)
        return first.rows("FROM halves ORDER BY ALL")

    assert merged("a", turned=False) == merged("b", turned=True)
    assert len(merged("c", turned=True)) == 40


def copied(store: Store, folder: Path) -> Store:
    folder.mkdir(exist_ok=True)
    copy = Store(folder / "copy.duckdb")
    copy.path.write_bytes(store.path.read_bytes())
    return copy


def change(store: Store, sql: str) -> None:
    with store.writing() as connection:
        connection.execute(sql)
