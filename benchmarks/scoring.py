"""What scoring costs beside the paper's measure alone: its null, groups, other measures, and 50 neighbours for 2.

    python -m benchmarks.scoring --images 10000 --training 50000

Images are 32x32 RGB, coarse noise with some fine noise on it. All is measured in turn, in one run, and given as ratios.
A cell is ten checkpoints, each with as many generated images as there are held-out ones. How long generating takes is
measured on a few images, with the network "32x32, width 64, 2 blocks" of `python -m benchmarks` and 35 evaluations
each. Measures of the denoiser count by their evaluations. All measures are those, `grouped`, `calibrated`, a feature
space that costs next to nothing (means of 8x8 pixels), and quality in that space and in pixels. Groups under
augmentation are left out: each transform is one more search for neighbours. What is found once for a training set is
timed once.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.groups import seconds, textured
from benchmarks.speed import NETWORKS, cell_of
from diffmem.data import find_groups
from diffmem.measures import (
    PIXELS,
    Comparison,
    DeclaredSpace,
    ImageQuality,
    Spaces,
    local_distances,
    nearest_distances,
    spaces_of,
    two_nearest,
)
from diffmem.models import this_device
from diffmem.runs import EVALUATIONS, generation, seconds_in_turn, training_step

CHECKPOINTS = 10
"""Checkpoints of a cell."""
DENOISER_EVALUATIONS = 10_800
"""Evaluations of the denoiser that `gaps` and `membership` share at a checkpoint (docs/measures.md)."""
AT_ONCE = 500
"""Images that are generated and compared at once."""
SECONDS = 5.0
"""How long each is measured, at least."""
CHEAP = DeclaredSpace.of("cheap", {"features": lambda images: means(images), "rule": "nearest"})
IN_SPACE: Spaces = {"cheap": CHEAP.measure}
GROUPED, ALL = ["grouped"], ["grouped", "calibrated", "cheap"]


def means(images: Tensor) -> Tensor:
    """Return features that cost next to nothing: the means of 8x8 pixels [n, 48]."""
    return avg_pool2d(images.float(), 8).flatten(1)


def scored(images: Tensor, training_images: Tensor, others: Sequence[str]) -> Callable[[], object]:
    """Return what compares images with a training set by the paper's measure and others, whose groups are known."""

    def work() -> None:
        comparison = Comparison(training_images, pairs=0, others=others, spaces=IN_SPACE)
        for part in images.split(AT_ONCE):
            comparison.add(part)

    return work


def seconds_to_generate(device: torch.device) -> float:
    """Return the seconds that one image of 35 evaluations takes."""
    dataset, M, _, at_once = next(iter(NETWORKS.values()))
    cell = cell_of(dataset, M, at_once)
    state, _ = training_step(cell, at_once, device)
    (found,) = seconds_in_turn([generation(cell, state, at_once, device)], device, at_least=SECONDS)
    return found * 35 / EVALUATIONS / at_once


def bench(images: int, training: int, device: torch.device) -> list[tuple[str, float, float | None]]:
    """Return what was measured, the ratio, and what it is to be at most."""
    generator = np.random.default_rng(0)
    pixels = textured(training, generator)
    generated, held_out, against = (
        torch.from_numpy(each).to(device) for each in (*(textured(images, generator) for _ in range(2)), pixels)
    )
    works = [
        *(scored(generated, against, others) for others in ([], GROUPED, ALL)),
        lambda: two_nearest(generated, against),
        lambda: nearest_distances(generated, against, 50),
    ]
    alone, grouped, everything, two, fifty = seconds_in_turn(works, device, at_least=SECONDS)
    groups, density = (
        seconds(lambda: find_groups(pixels, thorough=True)),
        seconds(lambda: local_distances(against, against)),
    )
    qualities = [ImageQuality(against, held_out, space=each, device=device) for each in (PIXELS, *spaces_of(IN_SPACE))]
    first, again = (seconds(lambda: [each.of(generated) for each in qualities]) for _ in range(2))
    image = seconds_to_generate(device)
    base, denoised = CHECKPOINTS * (images * image + alone), DENOISER_EVALUATIONS / 35 * image
    with_groups = CHECKPOINTS * (images * image + grouped) + grouped + groups
    at_each = images * image + everything + denoised + again
    with_all = CHECKPOINTS * at_each + everything + groups + density + (first - again)
    return [
        ("50 neighbours, of 2", fifty / two, 1.3),
        ("a cell with null and groups, of the paper's measure alone", with_groups / base, 1.1),
        ("a cell with all measures, null, groups and local density, of the same", with_all / base, 2.0),
        ("comparing by `grouped` too, groups known, of the paper's measure alone", grouped / alone, None),
        ("comparing by `grouped`, `calibrated` and in a space too, of the same", everything / alone, None),
        ("quality in pixels and in a space, of comparing one checkpoint", again / alone, None),
        ("quality of real images, found once, of the same", (first - again) / alone, None),
        ("null and groups, found once, of comparing one checkpoint", (grouped + groups) / alone, None),
        ("local density, found once, of comparing one checkpoint", density / alone, None),
        ("comparing, of generating and comparing", alone / (images * image + alone), None),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--training", type=int, default=20_000)
    given = parser.parse_args(arguments)
    print(f"{given.images:,} generated and as many held-out images against {given.training:,} training images")
    for what, ratio, most in bench(given.images, given.training, this_device()):
        print(f"{ratio:9.4g}  {what}" + (f" (to reach: {most:g})" if most else ""))


if __name__ == "__main__":
    main()
