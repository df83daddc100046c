"""The paper's measure, counted between groups: training images that are copies of each other count as one."""

from collections.abc import Iterable
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from diffmem.cells import AUGMENTATIONS as AUGMENTATIONS
from diffmem.cells import NEAR
from diffmem.measures.measure import Compare, Compared, Measure

if TYPE_CHECKING:
    from torch import Tensor

NAME = "grouped"


def grouped_name(groups: str, augment: Iterable[str] = ()) -> str:
    """Return the name of the measure that groups so: groups "exact" or "near", each with some augmentations.

    How images are grouped is part of the name, so that evidence by one grouping is never taken for that by another.
    """
    wanted = set(augment)
    exact = ["exact"] if groups == "exact" else []
    return "-".join([NAME, *exact, *(each for each in AUGMENTATIONS if each in wanted)])


def _prepare(training_images: "Tensor", *, near: bool, augment: tuple[str, ...]) -> Compare:
    """Find the groups of the training images."""
    from diffmem.measures.group_neighbours import known_groups, two_groups  # torch: other modules do without it

    groups = known_groups(training_images, near=near, augment=augment)
    return partial(two_groups, groups=groups, augment=augment)


def _compare(
    images: "Tensor",
    training_images: "Tensor",
    index: "Tensor",
    distance: "Tensor",
    *,
    near: bool,
    augment: tuple[str, ...],
) -> Compared:
    return _prepare(training_images, near=near, augment=augment)(images, training_images, index, distance)


def _member(groups: str, augment: tuple[str, ...]) -> Measure:
    near = groups == "near"
    kind = (
        f"whose pixels differ by less than {NEAR:g} of the scale (root mean square)" if near else "that are identical"
    )
    also = {"hflip": "mirrored", "shift": "shifted by a pixel"}
    made = f", also {' or '.join(also[each] for each in augment)}," if augment else ""
    name = grouped_name(groups, augment)
    of = name.removeprefix(NAME).removeprefix("-").replace("-", ", ")
    return Measure(
        name=name,
        source="Gu et al. 2023, Sec. 2, between groups",
        ratio=f"grouped ratio ({of})" if of else "grouped ratio",
        copied="memorized between groups",
        rule="its nearest training image is less than {} times as far away as the nearest one of another group, by the "
        f"l2 distance of pixels on the scale 0..255; images {kind}{made} are of one group, and so are those that "
        "others connect",
        axis="nearest distance / nearest distance in another group",
        threshold=1 / 3,
        largest=1.0,
        compare=partial(_compare, near=near, augment=augment),
        prepare=partial(_prepare, near=near, augment=augment),
    )


AUGMENTED = [some for count in range(len(AUGMENTATIONS) + 1) for some in combinations(AUGMENTATIONS, count)]

GROUPED: dict[str, Measure] = {
    measure.name: measure for groups in ("near", "exact") for measure in (_member(groups, some) for some in AUGMENTED)
}
"""By name, the one of nearly identical images first."""
