"""Which scored images are copies, and of what: by the paper's rule, of a mirrored or shifted training image, or of one
that the training set has more than once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from diffmem.cells import AUGMENTATIONS
from diffmem.data import kept_names
from diffmem.measures import NEAREST, Evidence, grouped_name, is_copy
from diffmem.store import TrainingImages

TRANSFORMED = grouped_name("exact", AUGMENTATIONS)
"""The measure that also looks at what a mirror and shifts by a pixel make of each training image."""
MOST_COMPARED = {"cpu": 2e11, "cuda": 1e13}
"""Pixels compared with pixels above which nobody looks for these unasked: it is 18 comparisons in the place of one."""
MOST_TRAINING = 20_000
"""Training images above which nobody does either: what a mirror makes of them takes a millisecond for each."""

COPY, MIRRORED, DUPLICATED = "copy", "mirrored or shifted copy", "copy of a duplicate"
MORE_COPIES = {
    MIRRORED: ("copy of a mirrored or shifted training image", "copies of mirrored or shifted training images"),
    DUPLICATED: (
        "copy of a training image that is there more than once",
        "copies of training images that are there more than once",
    ),
}
"""What is said of one copy, and of several, beside those that are the paper's."""
NOT_LOOKED_FOR = (
    "copies of mirrored, shifted or doubled training images were not looked for among so many: --groups exact "
    "--augment hflip --augment shift does"
)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """A scored image and the training image that it is nearest to."""

    sample: str  # its file, or its collection and position there
    copy: str  # COPY, MIRRORED or DUPLICATED; empty if it is none
    distance_ratio: float | None  # of the nearest to the second nearest; None where both distances are 0
    nearest: str  # file, or dataset and position there
    group: str | None  # the first of the training images that are nearly identical with that one, if there are any


def looks_for_transformed(images: int, training_images: Sequence[int], device: torch.device) -> bool:
    """Return whether mirrored and shifted copies are looked for unasked among so many images, held-out ones included,
    beside training images of the shape [n, c, h, w]."""
    compared = images * float(np.prod(training_images, dtype=np.float64))
    return training_images[0] <= MOST_TRAINING and compared <= MOST_COMPARED[device.type]


def kinds(evidence: Evidence) -> list[str]:
    """Return of each image which kind of copy it is; empty of one that is none."""
    plain = is_copy(evidence.d1, evidence.d2, NEAREST.threshold)
    if (found := evidence.others.get(TRANSFORMED)) is None:
        return [COPY if each else "" for each in plain]
    also = is_copy(found.distance, found.yardstick, NEAREST.threshold) & ~plain
    nearer = found.distance < evidence.d1  # as a mirror or a shift makes it
    named: list[str] = np.select([plain, also & nearer, also], [COPY, MIRRORED, DUPLICATED], "").tolist()
    return named


def copies_of_others(evidence: Evidence, dataset: str, names: Sequence[str], count: int) -> list[str | None]:
    """Return of the first `count` images which mirrored, shifted or doubled training image each is a copy of; None of
    others. `names` are those of all images of the dataset, the training images."""
    if (found := evidence.others.get(TRANSFORMED)) is None:
        return [None] * count
    return [
        f"{kind} of {kept_names(dataset, [names[nearest]])[0]}" if kind in (MIRRORED, DUPLICATED) else None
        for kind, nearest in zip(kinds(evidence)[:count], found.nearest.tolist(), strict=False)
    ]


def more_copies(kind: str, count: int) -> str:
    """Return how many images are copies of a kind that are none by the paper's rule, as a clause."""
    one, several = MORE_COPIES[kind]
    return f"1 more image is a {one}" if count == 1 else f"{count} more images are {several}"


def counts(evidence: Evidence) -> Counter[str]:
    """Return how many images are copies of each kind."""
    return Counter(filter(None, kinds(evidence)))


def only(evidence: Evidence, measures: Sequence[str]) -> Evidence:
    """Return the evidence of the paper's measure and of these."""
    return replace(evidence, others={name: each for name, each in evidence.others.items() if name in measures})


def near_images(evidence: Evidence, dataset: str, names: Sequence[str], groups: Indices) -> TrainingImages:
    """Return the names and groups of the training images that any image is nearest to, or shown beside."""
    shown = [np.array([pair.second_nearest for pair in evidence.pairs], dtype=np.int64)]
    nearest = [evidence.nearest, *(each.nearest for each in evidence.others.values())]
    positions = np.unique(np.concatenate(nearest + shown))
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    named = kept_names(dataset, [names[position] for position in positions.tolist()])
    return TrainingImages(positions, named, sizes[group[positions]], np.full(len(positions), np.nan))


def matches(
    evidence: Evidence, order: Indices, *, samples: Sequence[str], training: Sequence[str], groups: Indices
) -> list[Match]:
    """Return what each image matches, the most similar first; image i of the evidence is `samples[order[i]]`."""
    nearest, d1, d2 = evidence.nearest, evidence.d1, evidence.d2
    which = np.array(kinds(evidence), dtype=object)
    if (found := evidence.others.get(TRANSFORMED)) is not None:
        by_groups = np.isin(which, [MIRRORED, DUPLICATED])
        nearest = np.where(by_groups, found.nearest, nearest)
        d1, d2 = np.where(by_groups, found.distance, d1), np.where(by_groups, found.yardstick, d2)
    ratios = np.divide(d1, d2, out=np.full(len(d1), np.nan), where=d2 > 0)
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    return [
        Match(
            samples[order[i]],
            which[i],
            None if np.isnan(ratios[i]) else float(ratios[i]),
            training[nearest[i]],
            training[first[group[nearest[i]]]] if sizes[group[nearest[i]]] > 1 else None,
        )
        for i in np.lexsort((order, np.nan_to_num(ratios, nan=0.0)))
    ]
