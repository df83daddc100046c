"""The ratio between groups, against brute force: groups of scipy, distances in float64 image by image."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference import random_images
from scipy.sparse.csgraph import connected_components

from diffmem.cells import AUGMENTATIONS, NEAR
from diffmem.data import find_groups, identical_groups
from diffmem.errors import DataError
from diffmem.measures import GROUPED, MEASURES, Comparison, grouped_name, neighbours, two_nearest
from diffmem.measures import group_neighbours as searched
from diffmem.measures.evidence import Evidence
from diffmem.models import ALONE

Array = npt.NDArray[np.float64]


def made_of(image: Array, augment: tuple[str, ...]) -> list[Array]:
    """Return an image [c, h, w] and all that augmentations make of it, by padding and cropping."""
    seen = [image, image[..., ::-1]] if "hflip" in augment else [image]
    if "shift" not in augment:
        return seen
    size = image.shape[1:]
    padded = [np.pad(each, ((0, 0), (1, 1), (1, 1)), mode="edge") for each in seen]
    corners = list(itertools.product(range(3), range(3)))
    return [each[:, i : i + size[0], j : j + size[1]] for each in padded for i, j in corners]


def distances(images: Array, others: Array, augment: tuple[str, ...]) -> Array:
    """Return the l2 distance of each image to each other one, the nearest of what augmentations make of that."""
    versions = np.stack([made_of(other, augment) for other in others])
    return np.stack([np.sqrt(((versions - image) ** 2).sum(axis=(2, 3, 4))).min(axis=1) for image in images])


def expected_groups(training: torch.Tensor, limit: float, augment: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return the groups by `distances` below a limit, or of nothing between images for a limit of 0."""
    y = training.numpy().astype(float)
    apart = distances(y, y, augment) / (255 * np.sqrt(y[0].size))
    edges = apart < limit if limit else apart == 0
    groups: npt.NDArray[np.int64] = connected_components(edges | edges.T, directed=False)[1]
    return groups


def by_definition(
    images: torch.Tensor, training: torch.Tensor, groups: npt.NDArray[np.int64], augment: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], Array, Array]:
    x, y = (each.numpy().astype(float) for each in (images, training))
    d = distances(x, y, augment)
    nearest = d.argmin(axis=1)
    others = np.where(groups[nearest][:, None] != groups, d, np.inf)
    d2 = others.min(axis=1)
    return nearest, d.min(axis=1), np.where(np.isinf(d2), 0, d2)


def same_partition(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> bool:
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


def families(count: int, copies: int, *shape: int, noise: int = 3, seed: int = 0) -> torch.Tensor:
    """Return images, each with noisy copies of it further on."""
    base = random_images(count, *shape, seed=seed).numpy().astype(int)
    rng = np.random.default_rng(seed + 1)
    parts = [base, *(np.clip(base + rng.integers(-noise, noise + 1, base.shape), 0, 255) for _ in range(copies))]
    return torch.from_numpy(np.concatenate(parts).astype(np.uint8))


def evidence_of(images: torch.Tensor, training: torch.Tensor, name: str) -> Evidence:
    comparison = Comparison(training, pairs=0, others=[name])
    for part in images.split(7):
        comparison.add(part)
    comparison.gather(ALONE, len(images))
    return comparison.evidence()


def ratios(images: torch.Tensor, training: torch.Tensor, name: str) -> tuple[float, float]:
    """Return the paper's ratio and the one between groups."""
    found = evidence_of(images, training, name)
    return found.ratio, found.others[name].copies / len(images)


# --- what it is for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grouped", "grouped-exact"])
def test_without_duplicates_it_is_the_papers_ratio_to_the_bit(name):
    training = random_images(200, 1, 8, 8)
    images = torch.cat([training[:40], families(30, 0, 1, 8, 8, seed=5)])
    found = evidence_of(images, training, name)
    own = found.others[name]
    assert np.array_equal(own.nearest, found.nearest)
    assert np.array_equal(own.distance, found.d1)
    assert np.array_equal(own.yardstick, found.d2)
    assert own.copies == found.memorized


def test_noisy_twins_hide_copies_from_the_papers_ratio_and_not_from_the_one_between_groups():
    twins = families(50, 1, 1, 8, 8)
    copies = families(50, 1, 1, 8, 8, noise=1)[50:]  # of the first 50, with other noise
    assert ratios(copies, twins, "grouped") == (0.0, 1.0)
    assert ratios(copies, twins, "grouped-exact")[1] == 0.0  # noisy twins are not identical


def test_identical_twins_are_one_image():
    training = random_images(50, 1, 8, 8)
    assert ratios(training, torch.cat([training, training]), "grouped-exact") == (0.0, 1.0)


@pytest.mark.parametrize("groups", ["near", "exact"])
def test_mirrored_copies_are_found_where_mirroring_is_told(groups):
    training = random_images(50, 1, 8, 8)
    mirrored = training.flip(3)
    assert ratios(mirrored, training, grouped_name(groups)) == (0.0, 0.0)
    assert ratios(mirrored, training, grouped_name(groups, ["hflip"])) == (0.0, 1.0)
    both = torch.cat([training, mirrored])
    assert ratios(training, both, grouped_name(groups, ["hflip"]))[1] == 1.0


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (-1, 1), (-1, -1)])
def test_copies_shifted_by_a_pixel_are_found_where_shifting_is_told(down, right):
    training = random_images(50, 1, 8, 8)
    shifted = torch.from_numpy(np.pad(training.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"))
    shifted = shifted[:, :, 1 - down : 9 - down, 1 - right : 9 - right].contiguous()
    assert ratios(shifted, training, "grouped")[1] == 0.0
    assert ratios(shifted, training, "grouped-shift")[1] == 1.0
    assert ratios(shifted.flip(3), training, "grouped-hflip-shift")[1] == 1.0


# --- by its definition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 6, 6)])
def test_groups_and_distances_are_those_of_brute_force(name, shape):
    augment = tuple(each for each in AUGMENTATIONS if each in name)
    base = families(20, 2, *shape, noise=20)
    extra = [base[:3].flip(3), base[3:5].roll(1, dims=2), base[:2]]
    training = torch.cat([base, *extra])
    training = training[torch.from_numpy(np.random.default_rng(2).permutation(len(training)))]
    images = torch.cat([families(10, 1, *shape, noise=9, seed=4), training[:9], base[9:12].flip(3)])
    groups = expected_groups(training, 0 if "exact" in name else NEAR, augment)
    assert len(set(groups)) < len(training)
    found = evidence_of(images, training, name).others[name]
    nearest, d1, d2 = by_definition(images, training, groups, augment)
    np.testing.assert_array_equal(found.nearest, nearest)
    np.testing.assert_allclose(found.distance, d1, rtol=1e-12)
    np.testing.assert_allclose(found.yardstick, d2, rtol=1e-12)


@pytest.mark.parametrize("augment", [(), ("hflip",), ("shift",), ("hflip", "shift")], ids="-".join)
@pytest.mark.parametrize("delta", [0.001, 0.02, 0.05, 0.2, 0.9])
def test_groups_at_any_delta_are_the_components_of_brute_force(delta, augment):
    training = torch.cat([families(12, 3, 1, 6, 5, noise=round(255 * delta)), random_images(5, 1, 6, 5).flip(3)])
    found = find_groups(training.numpy(), delta=delta, augment=augment).near
    assert found is not None
    assert same_partition(found, expected_groups(training, delta, augment))
    exact = identical_groups(training.numpy(), augment=augment)
    assert same_partition(exact, expected_groups(training, 0, augment))


@pytest.mark.parametrize("rows", [3, 8])
@pytest.mark.parametrize("sparse", [0, 10**9])
def test_groups_across_blocks_are_those_within_one(rows, sparse, monkeypatch):
    training = families(15, 2, 1, 8, 8, noise=18)
    expected = expected_groups(training, NEAR, ())
    monkeypatch.setattr("diffmem.data.near.ROWS", rows)
    monkeypatch.setattr("diffmem.data.near.SPARSE", sparse)
    found = find_groups(training.numpy()).near
    assert found is not None
    assert same_partition(found, expected)


def test_a_chain_of_near_images_is_one_group():
    training = np.full((30, 1, 8, 8), 20, dtype=np.uint8) + 7 * np.arange(30, dtype=np.uint8)[:, None, None, None]
    groups = find_groups(training).near
    assert groups is not None
    assert set(groups.tolist()) == {0}  # the ends differ by 203 of 255
    groups = find_groups(training, delta=6.9 / 255).near
    assert groups is not None
    assert len(set(groups.tolist())) == 30


def test_images_that_are_all_nearly_alike_are_grouped_where_that_is_asked(monkeypatch):
    monkeypatch.setattr("diffmem.data.near.MOST_PAIRS", 10)
    monkeypatch.setattr("diffmem.data.duplicates.MOST", 5)
    training = families(1, 60, 3, 8, 8, noise=2)
    assert find_groups(training.numpy()).near is None
    groups = find_groups(training.numpy(), thorough=True).near
    assert groups is not None
    assert set(groups.tolist()) == {0}


@pytest.mark.parametrize("name", ["grouped", "grouped-hflip-shift"])
def test_blocks_and_chunks_change_nothing(name, monkeypatch):
    training, images = families(30, 2, 1, 6, 6, noise=15), families(12, 1, 1, 6, 6, noise=9)
    whole = evidence_of(images, training, name).others[name]
    monkeypatch.setattr(searched, "CHUNK", 16)
    monkeypatch.setattr(searched, "IMAGE_ROWS", 5)
    monkeypatch.setattr(neighbours, "TRAINING_ROWS", 7)
    parts = evidence_of(images, training, name).others[name]
    assert parts.nearest.tolist() == whole.nearest.tolist()
    assert parts.distance.tolist() == whole.distance.tolist()
    assert parts.yardstick.tolist() == whole.yardstick.tolist()


def test_where_all_images_are_one_no_image_is_a_copy():
    training = families(1, 9, 1, 8, 8)
    found = evidence_of(training, training, "grouped").others["grouped"]
    assert (found.yardstick == 0).all()
    assert found.copies == 0


def test_grey_training_images_group_as_they_do_in_colour():
    training = families(20, 1, 1, 8, 8)
    images = training[:10].expand(-1, 3, -1, -1).contiguous()
    assert ratios(images, training, "grouped-hflip") == (ratios(training[:10], training, "grouped-hflip"))


def test_the_groups_of_a_training_set_are_found_once(monkeypatch):
    training, calls = families(20, 1, 1, 8, 8, seed=77), []

    def counted(*given, **named):
        calls.append(named)
        return find_groups(*given, **named)

    monkeypatch.setattr(searched, "find_groups", counted)
    for _ in range(3):
        Comparison(training, pairs=0, others=["grouped", "grouped-hflip"])
    assert [each["augment"] for each in calls] == [(), ("hflip",)]


def test_a_measure_compares_without_being_prepared():
    training, images = families(20, 1, 1, 8, 8), random_images(5, 1, 8, 8)
    index, distance = two_nearest(images, training)
    found = MEASURES["grouped"].compare(images, training, index, distance)
    own = evidence_of(images, training, "grouped").others["grouped"]
    assert found.yardstick.tolist() == own.yardstick.tolist()


# --- names ---------------------------------------------------------------------------------------------


def test_each_way_to_group_has_a_name_of_its_own():
    assert list(GROUPED) == [
        "grouped",
        "grouped-hflip",
        "grouped-shift",
        "grouped-hflip-shift",
        "grouped-exact",
        "grouped-exact-hflip",
        "grouped-exact-shift",
        "grouped-exact-hflip-shift",
    ]
    assert grouped_name("near", ["shift", "hflip", "shift"]) == "grouped-hflip-shift"
    assert len({each.rule for each in GROUPED.values()}) == len({each.ratio for each in GROUPED.values()}) == 8


@pytest.mark.parametrize("delta", [0, -0.1, 1, 20, float("nan")])
def test_a_delta_that_cannot_be_is_refused(delta):
    said = rf"^delta must be above 0 and below 1, a share of the scale of pixels, not {delta:g}$"
    with pytest.raises(DataError, match=said):
        find_groups(random_images(3, 1, 4, 4).numpy(), delta=delta)


def test_an_augmentation_that_is_not_known_is_refused():
    with pytest.raises(DataError, match=r"^no augmentation 'rotate'; there are hflip, shift$"):
        find_groups(random_images(3, 1, 4, 4).numpy(), augment=["hflip", "rotate"])
