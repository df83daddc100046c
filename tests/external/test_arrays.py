"""The public memorization ratio: images of any make and layout against their training set."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import diffmem
from diffmem.data import load_source
from diffmem.errors import DataError

COPIES = [5, 9, 700]


@pytest.fixture
def training() -> np.ndarray:
    """Return digits of which no two are alike, uint8 [1000, 1, 8, 8]."""
    return load_source("digits", None).images[:1000]


@pytest.fixture
def generated(training: np.ndarray) -> np.ndarray:
    """Return three copies of digits and one image of noise, uint8 [4, 1, 8, 8]."""
    noise = np.random.default_rng(0).integers(256, size=(1, 1, 8, 8), dtype=np.uint8)
    return np.concatenate([training[COPIES], noise])


def test_the_ratio_is_the_share_of_copies(generated, training):
    assert diffmem.memorization_ratio(generated, training) == 0.75


def test_the_threshold_decides_what_counts_as_a_copy(training):
    one, other = training[:1].astype(int), training[1:2].astype(int)
    quarter = (one + (other - one) * 0.25).round().astype(np.uint8)  # d1 / d2 is about a third
    assert diffmem.memorization_ratio(quarter, training[:2], threshold=0.5) == 1
    assert diffmem.memorization_ratio(quarter, training[:2], threshold=0.2) == 0
    for threshold in (0, 1.5, "1/3", None):
        with pytest.raises(DataError, match="threshold must be a number above 0 and at most 1"):
            diffmem.memorization_ratio(quarter, training[:2], threshold=threshold)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "form",
    [
        torch.from_numpy,
        lambda images: images.transpose(0, 2, 3, 1),
        lambda images: [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images],
        lambda images: list(torch.from_numpy(images)),
        lambda images: [
            Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
            for image in images
        ],
    ],
    ids=["tensor", "channels last", "list of arrays", "list of tensors", "PIL images"],
)
def test_every_form_of_the_same_images_gives_the_same_ratio(form, channels, generated, training):
    images, training_images = (np.repeat(each, channels, axis=1) for each in (generated, training))
    assert diffmem.memorization_ratio(form(images), training_images) == 0.75
    assert diffmem.memorization_ratio(images, form(training_images)) == 0.75


def test_grey_images_need_no_channel_and_a_palette_image_is_its_colours(generated, training):
    assert diffmem.memorization_ratio(generated[:, 0], training[:, 0]) == 0.75
    colours = [Image.fromarray(image[0]).convert("RGB").convert("P") for image in training[:3]]
    assert diffmem.memorization_ratio(colours, np.repeat(training[:50], 3, axis=1)) == 1


def test_what_is_given_stays_as_it_was(generated, training):
    generated.flags.writeable = False
    before = training.copy()
    assert diffmem.memorization_ratio(generated, training) == 0.75
    assert (training == before).all()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (
            np.full((2, 1, 8, 8), 255.0),
            r"generated images: the values are float64 in 255\.\.255, but must",
        ),
        (torch.full((2, 1, 8, 8), -1.5), r"the values are float32 in -1\.5\.\.-1\.5, but must be in"),
        (np.full((2, 1, 8, 8), np.nan), r"some of the float64 values are NaN or infinite"),
        (
            np.full((2, 1, 8, 8), 200),
            r"int64 in 200\.\.200, but must be in 0\.\.65535 with some above 255",
        ),
        (np.full((2, 1, 8, 8), 70_000), r"the values are int64 in 70000\.\.70000"),
        (np.zeros((2, 4, 8, 8), np.uint8), r"with 1 or 3 channels c, not \[2, 4, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"not \[8, 8\]"),
        (np.zeros((2, 1, 9, 8), np.uint8), "generated images have 8x9 pixels, but training images have 8x8 pixels"),
        (np.zeros((0, 1, 8, 8), np.uint8), "generated images: none"),
        ([], "generated images: none"),
        (
            [np.zeros((8, 8)), np.zeros((9, 9))],
            r"type, but there are float64 \[8, 8\] and float64 \[9, 9\]",
        ),
        (["a.png", "b.png"], "generated images: must be numbers, not <U5"),
        ("a.png", "generated images: must be an array, a tensor or a list of images, not str"),
        ([(np.zeros((8, 8), np.uint8), 3)], "each must be an image, not a tuple of image and label; give the images"),
        (DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4))), "join the batches of a loader with torch"),
        (None, "generated images: must be an array, a tensor or a list of images, not NoneType"),
    ],
)
def test_images_that_do_not_compare_are_refused_in_a_sentence(images, reason, training):
    with pytest.raises(DataError, match=reason):
        diffmem.memorization_ratio(images, training)


def test_one_training_image_has_no_second_nearest(generated, training):
    with pytest.raises(DataError, match="training images: 1 of them, but a second nearest one needs two"):
        diffmem.memorization_ratio(generated, training[:1])
