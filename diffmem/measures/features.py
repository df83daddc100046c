"""The quality of images, through their features in a space."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmem.errors import DataError
from diffmem.measures.image_quality import MOST_DIMENSIONS, RealImages, shuffled
from diffmem.measures.members import Spaces
from diffmem.measures.of_images import QualityValue, small_sample, too_few
from diffmem.measures.spaces import PIXELS, Space
from diffmem.text import counted

GENERATED_IMAGES, TRAINING_IMAGES, HELD_OUT_IMAGES = 10_000, 50_000, 20_000
"""Images that quality is measured on, at most; half of the held-out ones are for the null."""
FEW_HELD_OUT = 200
"""Held-out images below which intervals are wide."""
AT_ONCE = 500
"""Images whose features are found at once."""
ROOM = 2**30
"""Bytes that the pixels of one set may have as float32."""

Images = Tensor | npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class Quality(NamedTuple):
    """The quality of some images, and what is to be said of it; or why it cannot be measured."""

    values: list[QualityValue]
    notes: list[str]
    reason: str


class ImageQuality:
    """Compares generated images with training and held-out ones as distributions.

    All are uint8 [n, c, h, w]. Features of the real images, in `space`, are found once for all generated images.
    """

    def __init__(
        self, training: Images, held_out: Images, *, space: Space = PIXELS, device: torch.device | str = "cpu"
    ) -> None:
        self.training, self.held_out, self.space, self.device = training, held_out, space, device

    def of(self, generated: Images) -> Quality:
        """Return the quality of generated images: its `values`, `notes`, and the `reason` if there is none.

        Each value has its 95% interval and its null. Raises DataError if a feature is not a number.
        """
        images = generated[: most_images(generated, GENERATED_IMAGES)]
        sizes = {"training": len(self.training), "held_out": len(self.held_out)}
        if reason := too_few(generated=len(images), **sizes):
            return Quality([], [], reason)
        values = self._real.values(features_of(self.space, images, self.device))
        return Quality(values, [f"quality: {each}" for each in self._notes(values)], "")

    @cached_property
    def _real(self) -> RealImages:
        most = most_images(self.training, TRAINING_IMAGES)
        some = np.sort(shuffled(len(self.training), "training images")[:most])
        training = self.training if most == len(self.training) else self.training[some]
        held_out = self.held_out[: most_images(self.held_out, HELD_OUT_IMAGES)]
        features = (features_of(self.space, each, self.device) for each in (training, held_out))
        return RealImages(*features, space=self.space.name)

    def _notes(self, values: list[QualityValue]) -> Iterator[str]:
        training, held_out = len(self._real.features["training"]), len(self.held_out)
        if training < len(self.training):
            yield (
                f"beside {training} of {len(self.training)} training images, at random; copies of the others are not "
                "seen"
            )
        if held_out < FEW_HELD_OUT:
            yield f"only {counted(held_out, 'held-out image')}, half of them for the null, so intervals are wide"
        yield from filter(None, map(small_sample, values))
        if (d := self._real.features["training"].shape[1]) > MOST_DIMENSIONS:
            yield (
                f"no Frechet distance in {self.space.name}: {d:,} values an image take too long, {MOST_DIMENSIONS:,} "
                "at most; a feature space ([spaces.NAME]) has fewer"
            )
        missing = {"training", "held_out"} - {each.against for each in values if each.quantity == "c_t"}
        for against in sorted(missing, reverse=True):
            yield (
                f"no C_T against {against.replace('_', '-')} images: no k-means cell has more than 20 generated images "
                "and a test image"
            )


def spaces_of(measures: Spaces) -> list[Space]:
    """Return the feature spaces that measures are in."""
    return [Space(name, each.features) for name, each in measures.items() if each.features]


def joined(found: Sequence[Quality]) -> Quality:
    """Return what was found in several spaces as one."""
    notes = dict.fromkeys(note for each in found for note in each.notes)
    return Quality([value for each in found for value in each.values], list(notes), found[0].reason if found else "")


def most_images(images: Images, wanted: int) -> int:
    """Return how many of some images are measured: `wanted`, or as many as there are, or as have room."""
    pixels = int(np.prod(images.shape[1:]))
    return min(len(images), wanted, ROOM // (4 * max(1, pixels)))


@torch.inference_mode()
def features_of(space: Space, images: Images, device: torch.device | str) -> Features:
    """Return the features of images, uint8 [n, c, h, w], float32 [n, d]; DataError where one is no finite number."""
    parts = []
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))  # a copy may be written to
        parts.append(space.features(part.to(device)).float().cpu().numpy())
    found: Features = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise DataError(f"{space.name}: a feature is no finite number, so the quality cannot be measured")
    return found
