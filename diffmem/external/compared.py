"""Images of other tools compared with a training set, by one process or a share each by several."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmem.data import progress
from diffmem.measures import NO_SPACES, Comparison, Evidence, Spaces
from diffmem.models import Group

BATCH = 1000
"""Images that are compared at once."""

MOST_OF_MEMORY = 0.5
"""Share of a GPU's free memory that a training set may take there."""

Pixels = npt.NDArray[np.uint8]


def compare(
    images: Pixels,
    training_images: Pixels,
    measures: Sequence[str],
    spaces: Spaces = NO_SPACES,
    *,
    group: Group,
    order: npt.NDArray[np.int64] | None = None,
    pairs: int = 0,
) -> Evidence:
    """Return what is found of images, in their own order or another one, to all processes of a group.

    Each compares a share of them; those of the first process are the first ones, of which it pictures `pairs`.
    """
    share = range(len(images))[group.share(len(images))]
    tell = progress.get()
    with group.memory():
        shown = pairs if group.leads else 0
        comparison = comparison_with(training_images, images.shape[1], measures, spaces, group=group, pairs=shown)
        for start in range(share.start, share.stop, BATCH):
            rows = slice(start, min(start + BATCH, share.stop))
            part = images[rows] if order is None else images[order[rows]]
            comparison.add(_beside(comparison, part))
            tell("scoring", rows.stop - share.start, len(share))
    comparison.gather(group, len(images))
    return comparison.evidence()


def comparison_with(
    training_images: Pixels,
    channels: int,
    measures: Sequence[str] = (),
    spaces: Spaces = NO_SPACES,
    *,
    group: Group,
    pairs: int = 0,
) -> Comparison:
    """Return what compares images of so many channels with a training set, on the device of this process.

    A training set that would take most of a GPU's free memory stays where it is, and is compared on the CPU.
    """
    device = group.device
    if device.type == "cuda" and training_images.nbytes > MOST_OF_MEMORY * torch.cuda.mem_get_info(device)[0]:
        device = torch.device("cpu")
    channels = max(channels, training_images.shape[1])
    return Comparison(_on(device, training_images, channels), pairs=pairs, others=measures, spaces=spaces)


def _beside(comparison: Comparison, images: Pixels) -> Tensor:
    """Return images as a comparison takes them: on its device, and in colour where its training images are."""
    training_images = comparison.training_images
    return _on(training_images.device, images, max(images.shape[1], training_images.shape[1]))


class Enough:
    """Tells, images after images, whether the paper's ratio of all so far is known to `half_width` (95%, Wilson)."""

    def __init__(self, training_images: Pixels, half_width: float, group: Group) -> None:
        self.training_images, self.half_width, self.group = training_images, half_width, group
        self._comparison: Comparison | None = None

    def __call__(self, images: Pixels) -> bool:
        """Compare some more images, which all processes have, and return whether these are enough."""
        share = images[self.group.share(len(images))]
        with self.group.memory():
            if self._comparison is None:
                self._comparison = comparison_with(self.training_images, images.shape[1], group=self.group)
            if len(share):
                self._comparison.add(_beside(self._comparison, share))
        self._comparison.gather(self.group, len(images))
        return self._comparison.half_width() <= self.half_width


def _on(device: torch.device, images: Pixels, channels: int) -> Tensor:
    """Return images as a tensor on a device, grey ones repeated to so many channels, without copying on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that those of a mapped file must not be written to, which nothing does
        tensor = torch.from_numpy(images)
    return tensor.to(device).expand(-1, channels, -1, -1)
