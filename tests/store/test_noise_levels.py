"""Values at noise levels in the store: added once, merged, checked and exported."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from diffmem.errors import StoreError
from diffmem.measures import LevelValue
from diffmem.store.checking import faults
from diffmem.store.looking import describe_cell
from diffmem.store.merging import merge
from diffmem.store.store import Store
from diffmem.study.study import Study

VALUES = [LevelValue("loss_gap", "both", sigma, 0.5 / sigma, 0.4 / sigma, 0.6 / sigma, 30) for sigma in (80.0, 1.0)]


def filled(path: Path, values: list[LevelValue] = VALUES) -> tuple[Store, str]:
    """Return a store whose first cell has two checkpoints, the first one with values, and the cell's name."""
    path.mkdir(exist_ok=True)
    study, store = Study.load(tiny.write(path)), Store(path / "s.duckdb")
    tiny.register(store, study)
    cell_id = study.cells[0].cell.cell_id
    store.append(replace(tiny.checkpoint(cell_id, 12, 0.5), levels={"gaps": values} if values else {}))
    store.append(tiny.checkpoint(cell_id, 24, 0.5))
    return store, cell_id


def change(store: Store, sql: str) -> None:
    with store.writing() as connection:
        connection.execute(sql)


def test_values_come_with_their_checkpoint_or_later_and_once(tmp_path):
    store, cell_id = filled(tmp_path)
    assert not store.add_levels(cell_id, 12, "gaps", VALUES[:1])
    assert store.add_levels(cell_id, 24, "gaps", VALUES)
    assert store.add_levels(cell_id, 24, "membership", VALUES[:1])
    found = store.levels(cell_id, 24)
    assert [(each.measure, each.sigma, each.value, each.n) for each in found] == [
        ("gaps", 80.0, 0.5 / 80, 30),
        ("gaps", 1.0, 0.5, 30),
        ("membership", 80.0, 0.5 / 80, 30),
    ]
    assert describe_cell(store, cell_id).levels == store.levels(cell_id)
    assert len(store.levels(cell_id)) == 5
    first, *_ = store.study_levels("tiny")
    assert (first.position, first.size, first.cell_id, first.epoch) == (0, 8, cell_id, 12)
    assert (store.lacking("tiny", "gaps"), store.lacking("tiny", "membership")) == (0, 1)
    assert faults(store) == []


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        (
            "INSERT INTO noise_levels SELECT * FROM noise_levels LIMIT 1",
            "gaps: 1 values at a noise level that has one already",
        ),
        ("UPDATE noise_levels SET epoch = 13", "at checkpoint 13: values at noise levels without their checkpoint"),
    ],
)
def test_a_check_names_values_that_do_not_belong(tmp_path, sql, fault):
    store, cell_id = filled(tmp_path)
    change(store, sql)
    (found,) = faults(store)
    assert found.startswith(cell_id)
    assert found.endswith(fault)


@pytest.mark.parametrize(
    "wrong", ["value = 'nan'", "high = 'inf'", "value = low - 1", "sigma = 0", "n = 0", "images = 'x'"]
)
def test_a_value_that_is_no_number_within_its_interval_is_refused(tmp_path, wrong):
    store, cell_id = filled(tmp_path)
    change(store, f"UPDATE noise_levels SET {wrong}")
    with pytest.raises(StoreError, match="a value at a noise level is no number within its interval") as refused:
        Store(store.path).levels(cell_id)
    assert cell_id in str(refused.value)


def test_stores_are_merged_to_the_same_values_in_whatever_order(tmp_path):
    rounded = [replace(each, value=math.nextafter(each.value, 0)) for each in VALUES]

    def merged(name: str, *, turned: bool) -> list[object]:
        (one, cell_id), (other, _) = filled(tmp_path / f"{name} a"), filled(tmp_path / f"{name} b", rounded)
        assert other.add_levels(cell_id, 24, "membership", VALUES[:1])
        first, second = (other, one) if turned else (one, other)
        merge(first, second.path)
        assert faults(first) == []
        return list(first.levels(cell_id))

    assert merged("one way", turned=False) == merged("the other way", turned=True)
    assert len(merged("third", turned=False)) == 3


def test_values_of_another_number_of_images_are_not_merged(tmp_path):
    (store, cell_id), (other, _) = (
        filled(tmp_path / "a"),
        filled(tmp_path / "b", [replace(each, n=31) for each in VALUES]),
    )
    with pytest.raises(StoreError, match=f"measured otherwise than in .*: {cell_id} at checkpoint 12; merge only one"):
        merge(store, other.path)
