"""The quality of images in the store: added once or anew, merged, checked and exported."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from diffmem.errors import StoreError
from diffmem.measures import QualityValue
from diffmem.store.checking import faults
from diffmem.store.looking import describe_cell
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study

VALUES = [
    QualityValue("pixels", "frechet_distance", against, 500.0, 400.0, 600.0, 20, 30, 64, 450.0, 15)
    for against in ("training", "held_out")
]
NO_NULL = replace(VALUES[0], quantity="c_t", value=-3.0, low=-4.0, high=-2.0, null=None, null_n=0)


def filled(path: Path, values: list[QualityValue] = VALUES) -> tuple[Store, str]:
    """Return a store whose first cell has two checkpoints, the first one with values, and the cell's name."""
    path.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(path)), Store(path / "s.duckdb")
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.append(replace(tiny.checkpoint(cell_id, 12, 0.5), quality=values))
    store.append(tiny.checkpoint(cell_id, 24, 0.5))
    return store, cell_id


def change(store: Store, sql: str) -> None:
    with store.writing() as connection:
        connection.execute(sql)


def test_values_come_with_their_checkpoint_or_later_once_in_each_space(tmp_path):
    store, cell_id = filled(tmp_path)
    worse, other = [replace(each, value=550.0) for each in VALUES], [replace(VALUES[0], space="features")]
    assert not store.add_quality(cell_id, 12, worse)
    assert [each.value for each in store.quality(cell_id, 12)] == [500.0, 500.0]
    assert store.add_quality(cell_id, 12, other)
    assert store.add_quality(cell_id, 24, [*VALUES, NO_NULL])
    assert [(each.space, each.against, each.quantity) for each in store.quality(cell_id, 24)] == [
        ("pixels", "training", "c_t"),
        ("pixels", "training", "frechet_distance"),
        ("pixels", "held_out", "frechet_distance"),
    ]
    assert [(each.null, each.null_n) for each in store.quality(cell_id, 24)] == [(None, 0), (450.0, 15), (450.0, 15)]
    assert describe_cell(store, cell_id).quality == store.quality(cell_id)
    first, *_ = store.study_quality("tiny")
    assert (first.position, first.size, first.cell_id, first.epoch, first.step, first.ratio) == (
        *(0, 8, cell_id, 12, 1200, 0.5),
    )
    assert store.lacking("tiny", "quality") == 0
    assert faults(store) == []


def test_values_that_are_measured_anew_take_the_place_of_the_old_ones_in_their_space(tmp_path):
    store, cell_id = filled(tmp_path, [*VALUES, replace(VALUES[0], space="features")])
    assert store.add_quality(cell_id, 12, [replace(VALUES[1], value=410.0)], anew=True)
    assert [(each.space, each.value) for each in store.quality(cell_id)] == [("features", 500.0), ("pixels", 410.0)]


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("INSERT INTO quality SELECT * FROM quality LIMIT 1", "pixels: 1 values of quality that are there already"),
        ("UPDATE quality SET epoch = 13", "at checkpoint 13: values of quality without their checkpoint"),
    ],
)
def test_a_check_names_values_that_do_not_belong(tmp_path, sql, fault):
    store, cell_id = filled(tmp_path)
    change(store, sql)
    (found,) = faults(store)
    assert found.startswith(cell_id)
    assert found.endswith(fault)


@pytest.mark.parametrize(
    "wrong", ["value = 'nan'", "high = 'inf'", "value = low - 1", "n = 0", "real = 0", "against = 'x'", "null_n = -1"]
)
def test_a_value_that_is_no_number_within_its_interval_is_refused(tmp_path, wrong):
    store, cell_id = filled(tmp_path)
    change(store, f"UPDATE quality SET {wrong}")
    with pytest.raises(StoreError, match="a value of quality is no number within its interval") as refused:
        Store(store.path).quality(cell_id)
    assert cell_id in str(refused.value)


def test_stores_are_merged_to_the_same_values_in_whatever_order(tmp_path):
    rounded = [replace(each, value=math.nextafter(each.value, 0)) for each in VALUES]

    def merged(name: str, *, turned: bool) -> list[object]:
        (one, cell_id), (other, _) = filled(tmp_path / f"{name} a"), filled(tmp_path / f"{name} b", rounded)
        assert other.add_quality(cell_id, 24, VALUES[:1])
        first, second = (other, one) if turned else (one, other)
        merge(first, second.path)
        assert faults(first) == []
        return list(first.quality(cell_id))

    assert merged("one way", turned=False) == merged("the other way", turned=True)
    assert len(merged("third", turned=False)) == 3


def test_values_of_another_number_of_images_are_not_merged(tmp_path):
    (store, cell_id), (other, _) = (
        filled(tmp_path / "a"),
        filled(tmp_path / "b", [replace(each, real=31) for each in VALUES]),
    )
    with pytest.raises(StoreError, match=f"measured otherwise than in .*: {cell_id} at checkpoint 12; merge only one"):
        merge(store, other.path)


def test_values_are_exported_with_the_place_of_their_cell(tmp_path):
    store, cell_id = filled(tmp_path, [*VALUES, NO_NULL])
    said = tiny.here("export", "quality", "--study", "tiny", "--store", store.path, "--json")
    rows = json.loads(said.stdout)
    assert [(row["cell_id"], row["against"], row["quantity"], row["null_value"]) for row in rows] == [
        (cell_id, "training", "c_t", None),
        (cell_id, "training", "frechet_distance", 450.0),
        (cell_id, "held_out", "frechet_distance", 450.0),
    ]
    assert {(row["study"], row["size"], row["step"], row["space"], row["n"], row["real"]) for row in rows} == {
        ("tiny", 8, 1200, "pixels", 20, 30)
    }
