"""Generated images compared with a training set, which gives the evidence behind a ratio."""

import io

import torch
from PIL import Image
from torch import Tensor

from diffmem.measures.evidence import Evidence
from diffmem.measures.intervals import wilson
from diffmem.measures.nearest import is_memorized, memorized_share
from diffmem.measures.neighbours import two_nearest
from diffmem.models import Group

MOST_COPIED = 10
"""Training images of a checkpoint that the store keeps pictures of, those that most memorized images copy."""


class Comparison:
    """Generated images compared with a training set, batch by batch."""

    def __init__(self, training_images: Tensor, *, pairs: int) -> None:
        self.training_images, self.wanted_pairs = training_images, pairs
        self.added_nearest: list[Tensor] = []
        self.added_distances: list[Tensor] = []
        self.nearest: list[Tensor] = []
        self.distances: list[Tensor] = []
        self.pairs: list[tuple[bytes, bytes]] = []

    def add(self, generated: Tensor) -> None:
        """Score the next generated images, uint8 [n, c, h, w] on the device of the training images."""
        in_colour = self.training_images.expand(
            -1, generated.shape[1], -1, -1
        )  # where these are grey and those are not
        index, distance = two_nearest(generated, in_colour)
        self.added_nearest.append(index[:, 0].cpu())
        self.added_distances.append(distance.cpu())
        for image, nearest in zip(generated[: self.wanted_pairs - len(self.pairs)], index[:, 0], strict=False):
            self.pairs.append((png(image), png(self.training_images[nearest])))

    def gather(self, group: Group, count: int) -> None:
        """Put together what the processes of a group have added since last time, `count` images in their order."""
        nearest = torch.cat([torch.empty(0, dtype=torch.int64), *self.added_nearest])
        distances = torch.cat([torch.empty(0, 2, dtype=torch.float64), *self.added_distances])
        self.nearest.append(group.gather(nearest, count))
        self.distances.append(group.gather(distances, count))
        self.added_nearest, self.added_distances = [], []

    def half_width(self) -> float:
        """Return half the width of the 95% Wilson interval of the ratio so far."""
        distances = torch.cat(self.distances)
        low, high = wilson(memorized_share(distances), len(distances)).tolist()
        return float(high - low) / 2

    def evidence(self) -> Evidence:
        """Return what was found of all images."""
        distances, nearest = torch.cat(self.distances), torch.cat(self.nearest)
        memorized = is_memorized(distances)
        return Evidence(
            nearest=nearest.numpy(),
            d1=distances[:, 0].numpy().copy(),
            d2=distances[:, 1].numpy().copy(),
            memorized=int(memorized.sum()),
            pairs=self.pairs,
            copied=self._most_copied(nearest[memorized]) if self.wanted_pairs else (),
        )

    def _most_copied(self, copied: Tensor) -> list[tuple[int, bytes]]:
        """Return position and picture of the training images that occur most often in `copied`, the first of equals."""
        positions, copies = torch.unique(copied, return_counts=True)
        most = positions[torch.argsort(copies, descending=True, stable=True)][:MOST_COPIED]
        return [(position, png(self.training_images[position])) for position in most.tolist()]


def png(image: Tensor) -> bytes:
    """Return a uint8 image [c, h, w], grey or RGB, as PNG."""
    pixels = image.cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()
