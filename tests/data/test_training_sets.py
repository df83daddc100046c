"""Training sets: the digits, the emoji, nested and balanced draws, resizing and labels."""

import io
from importlib import resources

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from diffmem.cells.cell import Cell
from diffmem.cells.datasets import DATASETS
from diffmem.cells.rules import impossible_data
from diffmem.cells.settings import Blend, DataDistribution, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.data.pixels import resized
from diffmem.data.training_sets import draw, held_out, load_source, training_set
from diffmem.errors import DataError, DiffmemError

PER_CLASS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def make(size, *, draw=0, classes=None, resolution=None, condition="none", labels=None, seed=0):
    return training_set(
        Cell.resolve(
            P=DataDistribution(dataset="digits", size=size, draw=draw, classes=classes, resolution=resolution),
            M=ModelConfiguration(condition=condition, labels=labels),
            T=TrainingProcedure(seed=seed),
            score=Scoring(),
        )
    )


def chosen(size, *, draw_key=0, classes=None):
    """Return the indices of a draw from the digits, or from the first so many classes of them."""
    available = load_source("digits", None).classes
    if classes is not None:
        available = available[available < classes]
    return draw(available, size, dataset="digits", number=draw_key)


def synthetic_classes(counts, seed=0):
    classes = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(classes)


# --- the digits ----------------------------------------------------------------------------------------


def test_digits_are_1797_grey_images_of_ten_classes():
    source = load_source("digits", None)
    assert source.images.shape == (1797, 1, 8, 8)
    assert source.images.dtype == np.uint8
    assert source.classes.shape == (1797,)
    assert source.classes.dtype == np.int64
    assert np.bincount(source.classes).tolist() == PER_CLASS


def test_digits_have_17_grey_levels_from_0_to_255():
    levels = [round(k * 255 / 16) for k in range(17)]
    assert np.unique(load_source("digits", None).images).tolist() == levels
    assert levels[0] == 0
    assert levels[-1] == 255


def test_no_two_digits_are_equal():
    assert len(np.unique(load_source("digits", None).images.reshape(1797, -1), axis=0)) == 1797


def test_digits_of_one_class_look_alike():
    """Labels belong to their images: the nearest other image of nearly every digit has the same label."""
    source = load_source("digits", None)
    x = source.images.reshape(1797, -1).astype(float)
    squared = (x**2).sum(axis=1)[:, None] + (x**2).sum(axis=1) - 2 * x @ x.T
    np.fill_diagonal(squared, np.inf)
    assert (source.classes[squared.argmin(axis=1)] == source.classes).mean() > 0.97


# --- the emoji -----------------------------------------------------------------------------------------


def test_emoji_are_1892_different_rgb_images_of_nine_classes():
    source = load_source("emoji", None)
    assert source.images.shape == (1892, 3, 32, 32)
    assert source.images.dtype == np.uint8
    assert len(np.unique(source.images.reshape(1892, -1), axis=0)) == 1892
    assert tuple(np.bincount(source.classes)) == DATASETS["emoji"].class_sizes
    assert (source.images[:, :, 0, 0] == 255).mean() > 0.7  # on white, red first


def test_emoji_and_their_classes_have_the_names_that_the_readme_gives():
    folder = resources.files("diffmem.data")
    with np.load(io.BytesIO((folder / "emoji.npz").read_bytes())) as file:
        classes, names, labels = file["classes"].tolist(), file["names"].tolist(), file["labels"]
    table = "\n".join(f"| {i} | {name} | {(labels == i).sum()} |" for i, name in enumerate(classes))
    assert table in (folder / "README.md").read_text()
    assert len(set(names)) == 1892
    assert [classes[labels[names.index(name)]] for name in ("grinning", "pizza", "flag-gr")] == [
        "Smileys & Emotion",
        "Food & Drink",
        "Flags",
    ]
    assert "Apache License" in (folder / "LICENSE.emoji.txt").read_text()


@pytest.mark.parametrize("resolution", [16, 8])
def test_emoji_are_made_smaller_as_pillow_does_and_that_is_said(resolution):
    source = load_source("emoji", resolution)
    image = Image.fromarray(load_source("emoji", None).images[7].transpose(1, 2, 0))
    expected = np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    np.testing.assert_array_equal(source.images[7], expected)
    assert source.notes == (
        f"all 1,892 images were resized: they were 32x32, and are read at {resolution}x{resolution} "
        "(centre crop, Lanczos)",
    )


# --- draws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw_key", [0, 1, 7, "first"])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(draw_key):
    largest = chosen(1740, draw_key=draw_key)
    for size in (2, 3, 9, 10, 11, 100, 777, 1739):
        np.testing.assert_array_equal(chosen(size, draw_key=draw_key), largest[:size])


@pytest.mark.parametrize("draw_key", [0, 3, "first"])
@pytest.mark.parametrize("size", [2, 7, 10, 23, 500, 1731, 1740])
def test_classes_have_equal_shares_up_to_one_image(draw_key, size):
    counts = np.bincount(load_source("digits", None).classes[chosen(size, draw_key=draw_key)], minlength=10)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("draw_key", [0, 5, "first"])
def test_no_image_is_drawn_twice(draw_key):
    assert len(np.unique(chosen(1740, draw_key=draw_key))) == 1740


def test_the_same_draw_is_the_same_set_and_other_draws_are_others():
    np.testing.assert_array_equal(chosen(100, draw_key=2), chosen(100, draw_key=2))
    sets = {tuple(sorted(chosen(100, draw_key=key).tolist())) for key in (*range(8), "first")}
    assert len(sets) == 9


def test_two_draws_share_no_more_images_than_chance():
    """50 of about 180 images per class: two independent draws share 500 * 50 / 180 = 139 on average."""
    shared = len(np.intersect1d(chosen(500, draw_key=0), chosen(500, draw_key=1)))
    assert 100 < shared < 180


def test_a_draw_prefers_no_part_of_the_file():
    positions = np.concatenate([chosen(100, draw_key=key) for key in range(20)])
    assert scipy.stats.kstest(positions / 1797, scipy.stats.uniform.cdf).pvalue > 0.01


def test_first_takes_the_first_images_of_each_class_in_file_order():
    classes = load_source("digits", None).classes
    indices = chosen(250, draw_key="first")
    for c in range(10):
        members = indices[classes[indices] == c]
        np.testing.assert_array_equal(members, np.flatnonzero(classes == c)[:25])


def test_training_images_are_those_of_the_draw():
    np.testing.assert_array_equal(make(123, draw=4).images, load_source("digits", None).images[chosen(123, draw_key=4)])


def test_the_seed_of_training_does_not_change_the_images():
    np.testing.assert_array_equal(make(50, seed=0).images, make(50, seed=9).images)


def test_resolution_and_labels_do_not_change_which_images_are_drawn():
    expected = [
        np.asarray(Image.fromarray(image[0]).resize((4, 4), Image.Resampling.LANCZOS)) for image in make(30).images
    ]
    np.testing.assert_array_equal(make(30, resolution=4, condition="unique").images[:, 0], expected)


@pytest.mark.parametrize("counts", [[5, 9, 7], [4, 4], [12], [3, 20, 3, 8]])
@pytest.mark.parametrize("draw_key", [0, "first"])
def test_any_source_can_be_used_up_to_its_smallest_class(counts, draw_key):
    classes = synthetic_classes(counts)
    limit = len(counts) * min(counts)
    indices = draw(classes, limit, dataset="digits", number=draw_key)
    assert np.bincount(classes[indices]).tolist() == [min(counts)] * len(counts)
    with pytest.raises(DataError, match=f"balanced set of {limit}"):
        draw(classes, limit + 1, dataset="digits", number=draw_key)


@pytest.mark.parametrize(("size", "classes", "limit"), [(1741, None, 1740), (357, 2, 356), (179, 1, 178)])
def test_more_images_than_the_smallest_class_allows_are_refused(size, classes, limit):
    assert len(make(limit, classes=classes).images) == limit
    with pytest.raises(DataError, match=rf"{size} images of digits: .* {limit}") as caught:
        make(size, classes=classes)
    assert isinstance(caught.value, DiffmemError)


# --- classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_classes_are_the_first_ones_in_equal_shares(classes):
    counts = np.bincount(make(60, classes=classes, condition="true").labels, minlength=10)
    assert counts.tolist() == [60 // classes] * classes + [0] * (10 - classes)


def test_images_of_fewer_classes_are_of_those_classes():
    source = load_source("digits", None)
    known = {image.tobytes(): c for image, c in zip(source.images, source.classes, strict=True)}
    drawn = make(80, classes=2, condition="true")
    assert [known[image.tobytes()] for image in drawn.images] == drawn.labels.tolist()


# --- resizing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 5, 8])
def test_resized_images_are_those_of_pillow(side):
    images = load_source("digits", None).images[:20]
    small = resized(images, (side, side))
    expected = [np.asarray(Image.fromarray(i[0]).resize((side, side), Image.Resampling.LANCZOS)) for i in images]
    assert small.dtype == np.uint8
    assert small.shape == (20, 1, side, side)
    np.testing.assert_array_equal(small[:, 0], expected)


def test_resized_colour_images_are_those_of_pillow():
    images = np.random.default_rng(0).integers(256, size=(5, 3, 32, 32), dtype=np.uint8)
    colour = [Image.fromarray(np.ascontiguousarray(i.transpose(1, 2, 0))) for i in images]
    expected = [np.asarray(i.resize((16, 16), Image.Resampling.LANCZOS)).transpose(2, 0, 1) for i in colour]
    np.testing.assert_array_equal(resized(images, (16, 16)), expected)


def test_images_of_the_wanted_side_are_left_as_they_are():
    images = load_source("digits", None).images[:5]
    np.testing.assert_array_equal(resized(images, (8, 8)), images)
    np.testing.assert_array_equal(make(40).images, make(40, resolution=8).images)


# --- halves --------------------------------------------------------------------------------------------


def half_of(size, half, *, classes=None, draw_key=0, balanced=True):
    available = load_source("digits", None).classes if classes is None else classes
    return draw(available, size, dataset="digits", number=draw_key, balanced=balanced, half=half)


@pytest.mark.parametrize("draw_key", [0, 3, "first"])
@pytest.mark.parametrize("balanced", [True, False])
def test_two_halves_share_no_image_at_any_two_sizes(draw_key, balanced):
    first, second = (half_of(870, half, draw_key=draw_key, balanced=balanced) for half in "ab")
    assert len(first) == len(second) == 870
    assert len(np.unique(np.concatenate([first, second]))) == 1740


@pytest.mark.parametrize("half", ["a", "b"])
def test_a_half_is_nested_and_balanced(half):
    largest = half_of(870, half)
    for size in (2, 9, 11, 100, 777):
        np.testing.assert_array_equal(half_of(size, half), largest[:size])
        counts = np.bincount(load_source("digits", None).classes[largest[:size]], minlength=10)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("size", [10, 230, 870])
def test_the_halves_together_are_the_draw_of_twice_the_size(size):
    """For whole rounds of the ten classes: half a and half b take turns in each class' order."""
    both = np.concatenate([half_of(size, half) for half in "ab"])
    np.testing.assert_array_equal(np.sort(both), np.sort(chosen(2 * size)))


def halves_of(size, **P):
    P = {"dataset": "digits", **P}
    return [
        Cell.resolve(DataDistribution(size=size, half=half, **P), ModelConfiguration(), TrainingProcedure(), Scoring())
        for half in "ab"
    ]


def pictures(images):
    return {each.tobytes() for each in images}


BLEND = {"classes": 5, "blend": Blend(dataset="digits", share=0.3, classes=(5, 6, 7, 8, 9))}


@pytest.mark.parametrize("draw_key", [0, 4, "first"])
@pytest.mark.parametrize(
    ("size", "P"),
    [(15, {}), (23, {}), (500, {}), (777, {"balance": False}), (41, {"classes": [3, 7]}), (37, BLEND), (400, BLEND)],
    ids=str,
)
def test_the_held_out_images_are_the_same_for_both_halves_and_in_neither(size, P, draw_key):
    cells = halves_of(size, draw=draw_key, **P)
    first, second = (pictures(training_set(cell).images) for cell in cells)
    assert len(first) == len(second) == size
    assert not first & second
    held = [held_out(cell, 1000) for cell in cells]
    np.testing.assert_array_equal(*held)
    assert len(held[0])
    assert not pictures(held[0]) & (first | second)


def test_halves_that_take_all_of_a_class_leave_nothing_held_out():
    """Class 8 has 174 images, 87 of which are in each half of 173 images of classes 8 and 0."""
    cells = halves_of(173, classes=[8, 0])
    used = set().union(*(pictures(training_set(cell).images) for cell in cells))
    assert len(used) == 346
    assert [len(held_out(cell, 1000)) for cell in cells] == [0, 0]


def test_a_cell_without_halves_keeps_its_name_and_its_images():
    P = DataDistribution(dataset="digits", size=30)
    cell = Cell.resolve(P, ModelConfiguration(), TrainingProcedure(), Scoring())
    assert "half" not in cell.identity["P"]
    assert len({cell.cell_id, *(each.cell_id for each in halves_of(30))}) == 3
    np.testing.assert_array_equal(training_set(cell).images, make(30).images)


@pytest.mark.parametrize(
    ("size", "balanced", "message"),
    [
        (
            871,
            True,
            "two halves of 871 images of digits need 1742, and it has images for balanced halves of up to 870; take a "
            "smaller P.size",
        ),
        (
            899,
            False,
            "two halves of 899 images of digits need 1798, and it has images for halves of up to 898; take a smaller "
            "P.size",
        ),
    ],
)
def test_halves_that_are_too_large_are_refused_with_the_numbers(size, balanced, message):
    for half in "ab":
        with pytest.raises(DataError) as error:
            half_of(size, half, balanced=balanced)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("balanced", "message"),
    [
        (
            True,
            "two halves of 900 images need 1800, and digits has images for balanced halves of up to 870; take a "
            "smaller size, or P.balance = false for halves of up to 898",
        ),
        (
            False,
            "two halves of 900 images need 1800, and digits has images for halves of up to 898; take a smaller size",
        ),
    ],
)
def test_a_plan_refuses_halves_that_are_too_large(balanced, message):
    P = DataDistribution(dataset="digits", size=900, half="a", balance=balanced)
    (fault,) = impossible_data(P, DATASETS)
    assert (fault.keys[0], fault.message) == ("P.size", message)


# --- labels --------------------------------------------------------------------------------------------


def test_no_condition_means_no_labels():
    assert make(20).labels is None


def test_true_labels_are_the_classes_of_the_images():
    drawn = make(200, draw=3, condition="true")
    assert drawn.labels.dtype == np.int64
    np.testing.assert_array_equal(drawn.labels, load_source("digits", None).classes[chosen(200, draw_key=3)])


def test_unique_labels_number_the_images():
    assert make(75, condition="unique").labels.tolist() == list(range(75))


def test_random_labels_are_uniform_and_independent_of_the_classes():
    random = make(1500, condition="random", labels=7).labels
    true = make(1500, condition="true").labels
    assert random.dtype == np.int64
    assert (random.min(), random.max()) == (0, 6)
    assert scipy.stats.chisquare(np.bincount(random)).pvalue > 0.01
    table = np.zeros((10, 7))
    np.add.at(table, (true, random), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 0.01


def test_random_labels_are_a_function_of_the_seed():
    first, again, other = (make(60, condition="random", labels=10, seed=seed).labels for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_an_image_keeps_its_random_label_when_the_set_grows():
    small, large = (make(size, condition="random", labels=10).labels for size in (33, 400))
    assert small.tolist() == large[:33].tolist()


@pytest.mark.parametrize("condition", ["none", "true", "random", "unique"])
def test_condition_does_not_change_the_images(condition):
    labels = 5 if condition == "random" else None
    np.testing.assert_array_equal(make(40, condition=condition, labels=labels).images, make(40).images)


def test_labels_stay_below_the_number_of_classes_of_the_network():
    for condition, labels in (("true", None), ("random", 3), ("unique", None)):
        P = DataDistribution(dataset="digits", size=30, classes=5)
        cell = Cell.resolve(P, ModelConfiguration(condition=condition, labels=labels), TrainingProcedure(), Scoring())
        drawn = training_set(cell).labels
        assert drawn.min() >= 0
        assert drawn.max() < cell.labels
