"""Held-out images that do not compare with a training set are refused."""

import numpy as np
import pytest
from PIL import Image

from diffmem.errors import DataError
from diffmem.external.score import score_images
from diffmem.store.store import Store


def test_held_out_images_in_colour_are_not_compared_with_grey_ones(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("mine", (8, 8)), ("unseen", (8, 8, 3))):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    unseen = tmp_path / "unseen"
    with pytest.raises(DataError) as refused:
        score_images(tmp_path / "mine", "digits", Store(tmp_path / "s.duckdb"), held_out=unseen)
    assert str(refused.value) == f"{unseen}: held-out images in colour, but the training images are grey"
