"""How long it takes to group a training set, as a share of one neighbour search among all its images.

    python -m benchmarks.groups [--count 12000] [--kind textured] [--augment hflip] [--rounds 3]

The images are 32x32 RGB. `textured` ones are coarse noise with fine noise on it, about as different as photographs;
`alike` ones differ by a little more than groups allow, so that all pairs have to be compared exactly, the worst case;
`twins` are the textured ones, half of them nearly twice. Both are measured in turn, in one run and on the CPU.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from diffmem.data import find_groups
from diffmem.measures import two_nearest

SIDE = 32


def textured(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return coarse noise with some fine noise on it, uint8 [n, 3, 32, 32]."""
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(256, size=(6, 6, 3), dtype=np.uint8))
        fine = generator.integers(-8, 9, size=(SIDE, SIDE, 3))
        images[number] = np.clip(np.asarray(coarse.resize((SIDE, SIDE)), dtype=np.int64) + fine, 0, 255)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def alike(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return images with the same coarse shape, whose fine noise alone keeps them just apart."""
    shape = textured(1, generator).astype(np.int64)
    fine = generator.integers(-17, 18, size=(count, 3, SIDE, SIDE))  # root mean square of differences: 14.3 of 255
    return np.clip(np.clip(shape, 17, 238) + fine, 0, 255).astype(np.uint8)


def twins(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return textured images, the second half of which are the first with other fine noise."""
    first = textured(count - count // 2, generator)
    noise = generator.integers(-4, 5, size=first[: count // 2].shape)
    return np.concatenate([first, np.clip(first[: count // 2].astype(np.int64) + noise, 0, 255).astype(np.uint8)])


KINDS = {"textured": textured, "alike": alike, "twins": twins}


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the seconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--kind", choices=list(KINDS), default="textured")
    parser.add_argument("--augment", choices=["hflip", "shift"], action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    images = KINDS[given.kind](given.count, np.random.default_rng(0))
    tensor = torch.from_numpy(images)
    for number in range(given.rounds):
        search = seconds(lambda: two_nearest(tensor, tensor))
        grouping = seconds(lambda: find_groups(images, augment=given.augment, thorough=True))
        took = f"neighbour search {search:.1f} s, groups {grouping:.1f} s"
        print(f"round {number + 1}: {took}, {grouping / search:.2f} of it")
    found = find_groups(images, augment=given.augment, thorough=True)
    print(f"{given.count:,} images ({given.kind}), {found.alike:,} of them in groups")


if __name__ == "__main__":
    main()
