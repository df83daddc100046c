"""The public memorization ratio: images of any make and layout against their training set."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffmem
from diffmem.data import load_source
from diffmem.errors import DataError

COPIES = [5, 9, 700]


@pytest.fixture
def training() -> np.ndarray:
    """Return the digits, uint8 [1797, 1, 8, 8]."""
    return load_source("digits", None).images


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
    for threshold in (0, 1.5):
        with pytest.raises(DataError, match="threshold must be above 0 and at most 1"):
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
        (np.zeros((2, 1, 8, 8)), r"generated images: must be uint8 on the 0\.\.255 scale, not float64; a tensor x"),
        (torch.zeros(2, 1, 8, 8), r"not float32"),
        (np.zeros((2, 4, 8, 8), np.uint8), r"with 1 or 3 channels c, not \[2, 4, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"not \[8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), "generated images are RGB with 8x8 pixels, but training images are grey"),
        (np.zeros((2, 1, 9, 8), np.uint8), "grey with 8x9 pixels, but training images are grey with 8x8 pixels"),
        (np.zeros((0, 1, 8, 8), np.uint8), "generated images: none"),
        ([], "generated images: none"),
        ([np.zeros((8, 8)), np.zeros((9, 9))], r"must all have one shape, but there are \(8, 8\) and \(9, 9\)"),
        (["a.png", "b.png"], r"generated images: must be uint8"),
        (None, "generated images: must be an array, a tensor or a list of images, not NoneType"),
    ],
)
def test_images_that_do_not_compare_are_refused_in_a_sentence(images, reason, training):
    with pytest.raises(DataError, match=reason):
        diffmem.memorization_ratio(images, training)


def test_one_training_image_has_no_second_nearest(generated, training):
    with pytest.raises(DataError, match="training images: 1 of them, but a second nearest one needs two"):
        diffmem.memorization_ratio(generated, training[:1])
