"""Generated images compared with a training set, which gives the evidence behind a ratio."""

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from diffmem.measures.evidence import Evidence, MeasureEvidence, Pictured
from diffmem.measures.intervals import wilson
from diffmem.measures.measure import Compared, Measure, is_copy
from diffmem.measures.members import NO_SPACES, Spaces, measure_named
from diffmem.measures.nearest import NEAREST
from diffmem.measures.neighbours import nearest_distances, two_nearest
from diffmem.models import Group

MOST_COPIED = 10
"""Training images of a checkpoint that the store keeps pictures of, those that most memorized images copy."""


class Comparison:
    """Generated images compared with a training set, batch by batch, by the paper's measure and the `others` named,
    which may be of feature `spaces`.

    The first `keep` of them stay in memory as `images`, a tensor on the CPU, once they are gathered.
    """

    def __init__(
        self,
        training_images: Tensor,
        *,
        pairs: int,
        others: Sequence[str] = (),
        spaces: Spaces = NO_SPACES,
        keep: int = 0,
    ) -> None:
        self.training_images, self.wanted_pairs = training_images, pairs
        self.measures = [NEAREST, *(measure_named(name, spaces) for name in others if name != NEAREST.name)]
        self.prepared = {each.name: each.prepare(training_images) for each in self.measures if each.prepare}
        self.added: list[list[Compared]] = [[] for _ in self.measures]
        self.gathered: list[list[Compared]] = [[] for _ in self.measures]
        self.pairs: list[Pictured] = []
        self.keep, self.kept, self.images = keep, list[Tensor](), torch.empty(0, dtype=torch.uint8)

    def add(self, generated: Tensor) -> None:
        """Score the next generated images, uint8 [n, c, h, w] on the device of the training images."""
        in_colour = self.training_images.expand(
            -1, generated.shape[1], -1, -1
        )  # where these are grey and those are not
        index, distance = neighbours_for(self.measures, generated, in_colour)
        found = [
            self.prepared.get(measure.name, measure.compare)(
                generated, in_colour, index, distance[:, : measure.neighbours]
            )
            for measure in self.measures
        ]
        on_cpu = [Compared(*(each.cpu() for each in compared)) for compared in found]
        room = self.wanted_pairs - len(self.pairs)
        two = index[:room].tolist()
        pictures = [self._pictured(image, *each) for image, each in zip(generated[:room], two, strict=True)]
        # all or nothing: where memory runs out before this, the batch is added again in parts
        keeps = [generated.cpu()] if len(self.images) + sum(map(len, self.kept)) < self.keep else []
        self.pairs += pictures
        self.kept += keeps
        for added, compared in zip(self.added, on_cpu, strict=True):
            added.append(compared)

    def gather(self, group: Group, count: int) -> None:
        """Put together what the processes of a group have added since last time, `count` images in their order."""
        for added, gathered in zip(self.added, self.gathered, strict=True):
            own = _joined([NOTHING, *added])
            gathered.append(Compared(*(group.gather(each, count) for each in own)))
            added.clear()
        if room := min(self.keep - len(self.images), count):
            self._gather_images(group, count, room)

    def _gather_images(self, group: Group, count: int, room: int) -> None:
        """Put together the first `room` of the `count` images of which each process has the beginning of its share."""
        share = group.share(count)
        own = torch.cat(self.kept or [self.training_images[:0].cpu()])[: max(0, room - share.start)]
        whole = torch.zeros(room, *own.shape[1:], dtype=torch.uint8, device=group.device)
        whole[share.start : share.start + len(own)] = own.to(group.device)
        group.sum_(whole)
        self.images = torch.cat([self.images, whole.cpu()] if len(self.images) else [whole.cpu()])
        self.kept.clear()

    def half_width(self) -> float:
        """Return half the width of the 95% Wilson interval of the paper's ratio so far."""
        copies = _copies(NEAREST, _joined(self.gathered[0]))
        low, high = wilson(copies.double().mean().item(), len(copies)).tolist()
        return float(high - low) / 2

    def evidence(self) -> Evidence:
        """Return what was found of all images."""
        (nearest, d1, d2), *others = map(_joined, self.gathered)
        memorized = _copies(NEAREST, Compared(nearest, d1, d2))
        return Evidence(
            nearest=nearest.numpy(),
            d1=d1.numpy(),
            d2=d2.numpy(),
            memorized=int(memorized.sum()),
            pairs=self.pairs,
            copied=self._most_copied(nearest[memorized]) if self.wanted_pairs else (),
            others={
                measure.name: MeasureEvidence(
                    found.nearest.numpy(),
                    found.distance.numpy(),
                    found.yardstick.numpy(),
                    copies=int(_copies(measure, found).sum()),
                )
                for measure, found in zip(self.measures[1:], others, strict=True)
            },
        )

    def _pictured(self, image: Tensor, nearest: int, second: int) -> Pictured:
        return Pictured(png(image), png(self.training_images[nearest]), png(self.training_images[second]), second)

    def _most_copied(self, copied: Tensor) -> list[tuple[int, bytes]]:
        """Return position and picture of the training images that occur most often in `copied`, the first of equals."""
        positions, copies = torch.unique(copied, return_counts=True)
        most = positions[torch.argsort(copies, descending=True, stable=True)][:MOST_COPIED]
        return [(position, png(self.training_images[position])) for position in most.tolist()]


def neighbours_for(measures: Sequence[Measure], images: Tensor, training_images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices [n, 2] of the two nearest training images and the distances [n, k] of as many as one of some
    measures asks for, found in one pass."""
    count = min(max(measure.neighbours for measure in measures), len(training_images))
    if count <= 2:
        return two_nearest(images, training_images)
    return nearest_distances(images, training_images, count)


NOTHING = Compared(torch.empty(0, dtype=torch.int64), *(torch.empty(0, dtype=torch.float64) for _ in range(2)))


def _joined(parts: Sequence[Compared]) -> Compared:
    return Compared(*map(torch.cat, zip(*parts, strict=True)))


def _copies(measure: Measure, found: Compared) -> Tensor:
    """Return which images are copies at the measure's own threshold, bool [n]."""
    copies: Tensor = is_copy(found.distance, found.yardstick, measure.threshold)
    return copies


def png(image: Tensor) -> bytes:
    """Return a uint8 image [c, h, w], grey or RGB, as PNG."""
    pixels = image.cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()
