"""Named random streams: reproducible, distinct, and without global state."""

import itertools
import zlib

import pytest
import torch

from diffmem.randomness import stream

NAMES = ("weights", "order", "training", "latents", "labels")


def first_draw(name: str, seed: int, index: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, dtype=torch.float64, generator=stream(name, seed, index)).tolist())


def test_the_same_name_seed_and_index_give_the_same_draws():
    assert first_draw("latents", 3, 17) == first_draw("latents", 3, 17)


def test_a_draw_does_not_depend_on_what_was_drawn_before():
    alone = first_draw("latents", 0, 5)
    torch.rand(100, generator=stream("latents", 0, 4))
    torch.rand(100, generator=stream("training", 0, 5))
    assert first_draw("latents", 0, 5) == alone


@pytest.mark.parametrize("changed", [("labels", 0, 0), ("latents", 1, 0), ("latents", 0, 1)])
def test_another_name_seed_or_index_gives_other_draws(changed):
    assert first_draw(*changed) != first_draw("latents", 0, 0)


def test_ten_thousand_draws_of_all_names_and_several_seeds_are_distinct():
    keys = list(itertools.product(NAMES, range(4), range(500)))
    assert len({first_draw(*key) for key in keys}) == len(keys)


def test_neighbouring_indices_are_uncorrelated():
    draws = torch.stack([torch.randn(64, dtype=torch.float64, generator=stream("latents", 0, i)) for i in range(400)])
    correlation = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert abs(correlation) < 4 / (399 * 64) ** 0.5


def test_the_streams_of_a_study_do_not_run_into_each_other():
    """Four million steps (the paper's longest training) and 50,000 images of ten seeds share no generator seed."""
    lengths = {"weights": 1, "order": 100_000, "training": 4_000_000, "latents": 50_000, "labels": 50_000}
    ranges = sorted((stream(name, seed, 0).initial_seed(), lengths[name]) for name in NAMES for seed in range(10))
    for (start, length), (following, _) in itertools.pairwise(ranges):
        assert start + length <= following
    assert ranges[-1][0] + ranges[-1][1] <= 2**32 + ranges[0][0]


def test_an_index_past_the_end_of_32_bits_wraps_around():
    base = zlib.crc32(b"latents/0")
    assert stream("latents", 0, 2**32 - 1).initial_seed() == (base - 1) % 2**32


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first_draw("latents", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_is_made_on_the_wanted_device():
    assert stream("latents", 0, 0, torch.device("cpu")).device == torch.device("cpu")
