"""A collection with a name is added as its facts and its reader; studies then take it by that name."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.cells.datasets import DATASETS, Dataset
from diffmem.data.collection import Source
from diffmem.data.training_sets import READERS, training_set
from diffmem.study.study import Study

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)


def test_facts_and_a_reader_are_all_that_a_collection_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "noise", Dataset((6, 6), resolution=8, channels=1))
    monkeypatch.setitem(READERS, "noise", lambda _size, _enlarge: Source(IMAGES, np.repeat([0, 1], 6)))
    study = Study.load(tiny.write(tmp_path, tiny.TEXT.replace('"digits"', '"noise"')))
    found = training_set(study.cells[0].cell)
    assert found.images.shape == (8, 1, 8, 8)
    assert all((image == IMAGES).all(axis=(1, 2, 3)).any() for image in found.images)
