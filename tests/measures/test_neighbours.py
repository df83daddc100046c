"""Two nearest neighbours and the memorization ratio, against brute force in whole numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LargestTensor, random_images

from diffmem.measures import neighbours
from diffmem.measures.measure import is_copy
from diffmem.measures.nearest import NEAREST, memorized_share
from diffmem.measures.neighbours import (
    CANDIDATES,
    EXACT_TERMS,
    IMAGE_ROWS,
    TRAINING_ROWS,
    nearest_distances,
    two_nearest,
)


def brute_force(images, training_images):
    """Return indices and distances of the two nearest, image by image, from differences of whole numbers."""
    x = images.flatten(1).numpy().astype(np.int32)
    y = training_images.flatten(1).numpy().astype(np.int32)
    index, distance = np.empty((len(x), 2), dtype=np.int64), np.empty((len(x), 2))
    for i, row in enumerate(x):
        squared = np.square(y - row).sum(axis=1, dtype=np.int64)
        index[i] = np.argsort(squared, kind="stable")[:2]
        distance[i] = np.sqrt(squared[index[i]].astype(float))
    return index, distance


def assert_agrees(images, training_images):
    index, distance = two_nearest(images, training_images)
    expected_index, expected_distance = brute_force(images, training_images)
    assert index.dtype == torch.int64
    assert distance.dtype == torch.float64
    np.testing.assert_array_equal(index.numpy(), expected_index)
    np.testing.assert_allclose(distance.numpy(), expected_distance, rtol=0, atol=1e-4)


# --- neighbours ----------------------------------------------------------------------------------------


def test_random_colour_images_have_the_neighbours_of_brute_force():
    assert_agrees(random_images(30, 3, 32, 32, seed=1), random_images(300, 3, 32, 32, seed=2))


def test_many_training_images_have_the_neighbours_of_brute_force():
    assert_agrees(random_images(25, 1, 8, 8, seed=1), random_images(20_000, 1, 8, 8, seed=2))


@pytest.mark.parametrize("N", [2, 3, TRAINING_ROWS - 1, TRAINING_ROWS, TRAINING_ROWS + 1, TRAINING_ROWS + 2])
def test_training_sets_may_end_anywhere_in_a_block(N):
    """Few grey levels and pixels, so that most neighbours are tied within and between blocks."""
    assert_agrees(random_images(40, 1, 2, 2, seed=1, levels=3), random_images(N, 1, 2, 2, seed=2, levels=3))
    assert_agrees(random_images(20, 1, 4, 4, seed=1), random_images(N, 1, 4, 4, seed=2))


@pytest.mark.parametrize("n", [1, IMAGE_ROWS - 1, IMAGE_ROWS, IMAGE_ROWS + 1, 2 * IMAGE_ROWS + 1])
def test_generated_images_may_end_anywhere_in_a_block(n):
    assert_agrees(random_images(n, 1, 4, 4, seed=1), random_images(50, 1, 4, 4, seed=2))


@pytest.mark.parametrize("pixels", [1, EXACT_TERMS - 1, EXACT_TERMS, EXACT_TERMS + 1, 2 * EXACT_TERMS + 5])
def test_images_may_have_any_number_of_pixels(pixels):
    assert_agrees(random_images(10, 1, 1, pixels, seed=1), random_images(60, 1, 1, pixels, seed=2))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64)])
def test_exact_replicas_have_distance_zero(shape):
    training = random_images(100, *shape, seed=3)
    replicas = torch.tensor([99, 0, 41])
    index, distance = two_nearest(training[replicas], training)
    assert torch.equal(index[:, 0], replicas)
    assert torch.equal(distance[:, 0], torch.zeros(3, dtype=torch.float64))
    assert_agrees(training[replicas], training)


@pytest.mark.parametrize("grey", [0, 127, 254])
def test_near_duplicates_one_grey_level_apart_are_told_apart(grey):
    """Norms of 3 x 32 x 32 pixels near 255 are 2e8, past the whole numbers that float32 holds."""
    training = torch.full((5, 3, 32, 32), grey, dtype=torch.uint8)
    for i in range(5):
        training[i].view(-1)[: 3 * i] += 1  # image i is 3 i pixels away from image 0
    index, distance = two_nearest(training, training)
    assert index.tolist() == [[0, 1], [1, 0], [2, 1], [3, 2], [4, 3]]
    expected = torch.tensor([0.0, math.sqrt(3)], dtype=torch.float64).expand(5, 2)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)
    assert_agrees(training, training)


def test_the_brightest_and_darkest_images_are_as_far_apart_as_can_be():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    training = torch.cat([torch.zeros_like(white), white, white - 1])
    index, distance = two_nearest(torch.cat([white, 255 - white]), training)
    assert index.tolist() == [[1, 2], [0, 2]]
    expected = torch.tensor([[0.0, math.sqrt(3072)], [0.0, 254 * math.sqrt(3072)]], dtype=torch.float64)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)


def test_equally_near_images_come_in_the_order_of_their_index():
    assert_agrees(random_images(50, 1, 1, 3, levels=2), random_images(500, 1, 1, 3, seed=1, levels=2))
    same = torch.zeros(2 * TRAINING_ROWS + 1, 1, 2, 2, dtype=torch.uint8)
    assert two_nearest(same[:3], same)[0].tolist() == [[0, 1]] * 3


def test_a_tie_across_blocks_goes_to_the_earlier_image():
    training = torch.full((2 * TRAINING_ROWS, 1, 1, 2), 200, dtype=torch.uint8)
    training[TRAINING_ROWS - 1] = 7
    training[TRAINING_ROWS] = 7
    training[2 * TRAINING_ROWS - 1] = 7
    index, _ = two_nearest(torch.full((1, 1, 1, 2), 9, dtype=torch.uint8), training)
    assert index.tolist() == [[TRAINING_ROWS - 1, TRAINING_ROWS]]


def test_a_nearer_image_in_a_later_block_takes_the_first_place():
    training = torch.full((2 * TRAINING_ROWS + 1, 1, 1, 2), 200, dtype=torch.uint8)
    training[5], training[2 * TRAINING_ROWS] = 12, 10
    index, _ = two_nearest(torch.full((1, 1, 1, 2), 9, dtype=torch.uint8), training)
    assert index.tolist() == [[2 * TRAINING_ROWS, 5]]


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 5), st.integers(2, 256), st.integers(0, 2**20))
def test_any_images_have_the_neighbours_of_brute_force(n, N, pixels, levels, seed):
    generated = random_images(n, 1, 1, pixels, seed=seed, levels=levels)
    assert_agrees(generated, random_images(N, 1, 1, pixels, seed=seed + 1, levels=levels))


def test_images_that_are_not_contiguous_are_read_right():
    generated, training = random_images(20, 4, 6, 3), random_images(80, 4, 6, 3, seed=1)
    assert_agrees(generated.permute(0, 3, 1, 2)[::2], training.permute(0, 3, 1, 2)[::3])


def test_no_generated_images_give_no_neighbours():
    index, distance = two_nearest(random_images(0, 1, 4, 4), random_images(5, 1, 4, 4))
    assert index.shape == distance.shape == (0, 2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    largest = []
    for n, N in ((IMAGE_ROWS, TRAINING_ROWS), (2 * IMAGE_ROWS, 20_000)):
        generated, training = random_images(n, 1, 8, 8), random_images(N, 1, 8, 8, seed=1)
        with LargestTensor() as seen:
            two_nearest(generated, training)
        largest.append(seen.elements)
    assert largest[0] == largest[1]
    assert 0 < largest[1] <= IMAGE_ROWS * TRAINING_ROWS


@pytest.mark.parametrize("N", [0, 1])
def test_fewer_than_two_training_images_are_refused(N):
    with pytest.raises(ValueError, match=f"two training images, not {N}"):
        two_nearest(random_images(3, 1, 8, 8), random_images(N, 1, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 4), (1, 8, 9)])
def test_unequal_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="differ in shape"):
        two_nearest(random_images(3, 1, 8, 8), random_images(5, *shape))


@pytest.mark.parametrize("wrong", [lambda x: x.float(), lambda x: x.numpy(), lambda x: x.tolist()])
def test_what_is_no_uint8_tensor_is_an_error(wrong):
    images = random_images(4, 1, 8, 8)
    for pair in ((wrong(images), images), (images, wrong(images))):
        with pytest.raises(ValueError, match="are of uint8 tensors"):
            two_nearest(*pair)


# --- the distances of more neighbours ------------------------------------------------------------------


def assert_nearest_agree(images, training, count):
    """Check the `count` nearest against all distances in whole numbers: their squares to the bit."""
    x, y = (each.flatten(1).numpy().astype(np.int32) for each in (images, training))
    squared = np.stack([np.square(y - row).sum(axis=1, dtype=np.int64) for row in x])
    index, distance = nearest_distances(images, training, count)
    assert (index.dtype, distance.dtype) == (torch.int64, torch.float64)
    np.testing.assert_array_equal(index.numpy(), np.argsort(squared, axis=1, kind="stable")[:, :2])
    expected = np.sort(squared, axis=1)[:, :count]
    np.testing.assert_array_equal(np.rint(distance.numpy() ** 2), expected)
    np.testing.assert_allclose(distance.numpy(), np.sqrt(expected.astype(float)), rtol=1e-15)


@pytest.mark.parametrize("blocks", [(IMAGE_ROWS, TRAINING_ROWS), (7, 5), (7, 60)], ids=str)
@pytest.mark.parametrize("count", [2, 5, 56, 57, 61])
@pytest.mark.parametrize("levels", [2, 256])
def test_distances_of_the_nearest_are_those_of_brute_force(count, blocks, levels, monkeypatch):
    monkeypatch.setattr(neighbours, "IMAGE_ROWS", blocks[0])
    monkeypatch.setattr(neighbours, "TRAINING_ROWS", blocks[1])
    images = random_images(20, 1, 3, 3, seed=1, levels=levels)
    training = random_images(61, 1, 3, 3, seed=2, levels=levels)
    assert_nearest_agree(images, training, count)


def test_many_ties_are_told_apart_by_their_index():
    assert_nearest_agree(random_images(40, 1, 1, 3, levels=2), random_images(500, 1, 1, 3, seed=1, levels=2), 50)
    same = torch.zeros(2 * TRAINING_ROWS + 1, 1, 2, 2, dtype=torch.uint8)
    assert_nearest_agree(same[:3], same, 50)


@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize("pixels", [EXACT_TERMS, EXACT_TERMS + 1, 3 * EXACT_TERMS])
def test_distances_of_large_images_are_exact_to_the_bit(pixels, bright, monkeypatch):
    """Squared norms of bright images are past the whole numbers that float32 holds, and so are their products."""
    monkeypatch.setattr(neighbours, "TRAINING_ROWS", 64)
    monkeypatch.setattr(neighbours, "MORE_ELEMENTS", 10_000)
    images, training = random_images(9, 1, 1, pixels, seed=1), random_images(200, 1, 1, pixels, seed=2)
    if bright:
        images, training = 255 - images % 3, 255 - training % 5
        assert (images.double() - 128).square().flatten(1).sum(dim=1).min() > 2**23
    training[7], training[190] = images[0], images[0]
    assert_nearest_agree(images, training, 50)


def test_products_whose_parts_cancel_are_exact_too():
    """The sum of the first two parts is 3.3e7, past the whole numbers that float32 holds, and that of all is below."""
    images, training = 255 - random_images(9, 1, 1, 3072, seed=1) % 3, 255 - random_images(200, 1, 1, 3072, seed=2) % 5
    training[..., 2048:] = random_images(200, 1, 1, 1024, seed=3) % 4
    assert_nearest_agree(images, training, 50)


def test_more_neighbours_that_float32_cannot_tell_apart_are_told_apart():
    """All 200 are one to five levels away in one pixel of 3,072, of an image whose squared norm is 5e7."""
    image = random_images(1, 3, 32, 32, levels=2) * 255
    training = image.repeat(200, 1, 1, 1)
    flat, order = training.view(200, -1), torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for rank, number in enumerate(order.tolist()):
        step = 1 + rank // 40
        flat[number, number] = 255 - step if flat[number, number] == 255 else step
    assert_nearest_agree(image, training, 50)


def test_the_nearest_two_are_those_of_the_search_for_two():
    images, training = random_images(25, 3, 16, 16, seed=1), random_images(300, 3, 16, 16, seed=2)
    (index, distance), (expected_index, expected) = (
        nearest_distances(images, training, 50),
        two_nearest(images, training),
    )
    assert torch.equal(index, expected_index)
    assert torch.equal(distance[:, :2], expected)


def test_memory_for_more_neighbours_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(neighbours, "IMAGE_ROWS", 128)
    monkeypatch.setattr(neighbours, "TRAINING_ROWS", 512)
    largest = []
    for n, N in ((128, 600), (300, 3000)):
        images, training = random_images(n, 1, 8, 8), random_images(N, 1, 8, 8, seed=1)
        with LargestTensor() as seen:
            nearest_distances(images, training, 50)
        largest.append(seen.elements)
    assert largest[0] == largest[1] == 128 * 512


def test_no_generated_images_have_no_distances():
    index, distance = nearest_distances(random_images(0, 1, 4, 4), random_images(5, 1, 4, 4), 3)
    assert (index.shape, distance.shape) == ((0, 2), (0, 3))


# --- memorized -----------------------------------------------------------------------------------------


def is_memorized(distance: torch.Tensor, threshold: float = NEAREST.threshold) -> torch.Tensor:
    return is_copy(distance[:, 0], distance[:, 1], threshold)


@pytest.mark.parametrize(
    ("d1", "d2", "memorized"),
    [
        (0.0, 5.0, True),
        (0.99, 3.0, True),
        (1.0, 3.0, False),
        (1.01, 3.0, False),
        (0.0, 0.0, False),
        (7.0, 7.0, False),
        (math.nextafter(1.0, 0.0), 3.0, True),
    ],
)
def test_memorized_is_strictly_less_than_a_third(d1, d2, memorized):
    assert is_memorized(torch.tensor([[d1, d2]], dtype=torch.float64)).tolist() == [memorized]


def test_a_distance_of_exactly_a_third_is_not_memorized():
    distance = torch.tensor([[1.0, 3.0], [2.0, 6.0], [5.0, 15.0], [1.0, 3.0 + 1e-12]], dtype=torch.float64)
    assert is_memorized(distance).tolist() == [False, False, False, True]


def test_a_squared_distance_one_below_a_ninth_is_memorized():
    squared = torch.arange(1, 100_000, dtype=torch.float64)
    assert is_memorized(torch.stack([squared, 9 * squared + 1], dim=1).sqrt()).all()


def test_threshold_may_be_another():
    distance = torch.tensor([[1.0, 3.0], [1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    assert is_memorized(distance, 0.5).tolist() == [True, False, False]
    assert is_memorized(distance, 1.0).tolist() == [True, True, True]


def test_the_memorized_share_is_that_of_memorized_rows():
    distance = torch.tensor([[0.0, 9.0], [1.0, 9.0], [3.0, 9.0], [8.0, 9.0], [2.0, 9.0]], dtype=torch.float64)
    assert memorized_share(distance) == pytest.approx(3 / 5)
    assert memorized_share(distance, 0.9) == pytest.approx(1)
    assert memorized_share(distance[2:4]) == 0


def test_duplicates_in_the_training_set_hide_a_replica():
    """Both neighbours are at distance 0, so the image counts as not memorized: 0 is not less than 0."""
    training = random_images(5, 1, 4, 4)
    _, distance = two_nearest(training[:1], torch.cat([training, training[:1]]))
    assert memorized_share(distance) == 0


@pytest.mark.parametrize("seed", range(6))
def test_neighbours_that_float32_cannot_tell_apart_are_told_apart(seed):
    blocks, generator = 3 * CANDIDATES, torch.Generator().manual_seed(seed)
    image = torch.randint(2, (1, 3, 32, 32), dtype=torch.uint8, generator=generator) * 255
    training = (255 - image).repeat(blocks * TRAINING_ROWS, 1, 1, 1)
    # one in each block: changed by one level in 3, the last two in 2 and 1 pixels; squared norms of 5e7 hide that
    for block in range(blocks):
        near = image.clone().flatten()
        for pixel in range(min(3, blocks - block)):
            near[pixel] = 254 if near[pixel] == 255 else 1
        training[block * TRAINING_ROWS + 7] = near.view(3, 32, 32)
    index, distance = two_nearest(image, training)
    assert index.tolist() == [[(blocks - 1) * TRAINING_ROWS + 7, (blocks - 2) * TRAINING_ROWS + 7]]
    assert distance.square().tolist() == [[pytest.approx(1.0), pytest.approx(2.0)]]
