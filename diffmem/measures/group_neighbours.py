"""The nearest training image of each generated one, and the nearest one of another group, exactly."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from diffmem.data import find_groups, identical_groups, transforms_of
from diffmem.measures.measure import Compared
from diffmem.measures.neighbours import IMAGE_ROWS, TRAINING_ROWS, distances_between, two_nearest

CHUNK = 16 * TRAINING_ROWS
"""Training images that are transformed at once."""
REMEMBERED = 4
"""Training sets whose groups are remembered, so that the checkpoints of a cell share them."""

_remembered: OrderedDict[tuple[bytes, bool, tuple[str, ...]], Tensor] = OrderedDict()


def known_groups(training_images: Tensor, *, near: bool, augment: tuple[str, ...]) -> Tensor:
    """Return the group of each training image, int64 [N], on the CPU; found once for images of the same content."""
    pixels = training_images.cpu().contiguous().numpy()
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    key = (digest.digest(), near, augment)
    if key not in _remembered:
        if near:
            found = find_groups(pixels, augment=augment, thorough=True).near
        else:
            found = identical_groups(pixels, augment=augment)
        _remembered[key] = torch.from_numpy(found)
    _remembered.move_to_end(key)
    while len(_remembered) > REMEMBERED:
        _remembered.popitem(last=False)
    return _remembered[key]


@torch.inference_mode()
def two_groups(
    images: Tensor, training_images: Tensor, index: Tensor, distance: Tensor, *, groups: Tensor, augment: Iterable[str]
) -> Compared:
    """Compare d1, to the nearest training image, with d2, to the nearest one of another group.

    `index` and `distance` [n, 2] are those of the two nearest, `groups` [N] are of the training images. What the
    augmentations make of an image is of its group too. Where all are of one group, d2 is 0.
    """
    groups = groups.to(images.device)
    found = [_of_two_groups(images, training_images, groups, index, distance)]
    found += _among_transformed(images, training_images, groups, augment)
    indices, distances = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    d1 = distances.amin(dim=1)
    # the nearest of any part is in it, and so is the nearest of any other group: a part has the nearest of two groups
    nearest = indices.masked_fill(distances > d1[:, None], len(training_images)).amin(dim=1)
    others = groups[indices] != groups[nearest][:, None]
    d2 = distances.masked_fill(~others, torch.inf).amin(dim=1)
    return Compared(nearest, d1, d2.masked_fill(d2.isinf(), 0.0))


def _among_transformed(
    images: Tensor, training_images: Tensor, groups: Tensor, augment: Iterable[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the nearest of two groups [n, 2] among what each transform makes of each part of the training images."""
    parts = torch.arange(len(training_images)).tensor_split(-(-len(training_images) // CHUNK))
    for transform in transforms_of(augment):
        seen, shift = images, transform
        if transform.mirrored:  # distances stay the same if both sides are mirrored, and these are fewer
            seen, shift = images.flip(3), transform._replace(mirrored=False, right=-transform.right)
        sources = shift.sources(*images.shape[2:])
        rows, columns = (torch.from_numpy(each).to(images.device) for each in sources)
        for part in parts:
            start, stop = int(part[0]), int(part[-1]) + 1
            shifted = training_images[start:stop][:, :, rows, columns]
            index, distance = two_nearest(seen, shifted)
            index, distance = _of_two_groups(seen, shifted, groups[start:stop], index, distance)
            yield index + start, distance


def _of_two_groups(
    images: Tensor, training_images: Tensor, groups: Tensor, index: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the nearest image and the nearest one of another group [n, 2], given the two nearest; inf for no other."""
    own = groups[index]
    rows = torch.nonzero(own[:, 0] == own[:, 1])[:, 0]
    if not len(rows):
        return index, distance
    index, distance = index.clone(), distance.clone()
    for some in torch.split(rows, IMAGE_ROWS):
        index[some, 1], distance[some, 1] = _nearest_other(images[some], training_images, groups, own[some, 0])
    return index, distance


def _nearest_other(images: Tensor, training_images: Tensor, groups: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest training image [n] that is not of a group of each image's own, and the distance to it."""
    index = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    least = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    for start, squared in distances_between(images, training_images):
        squared.masked_fill_(groups[start : start + squared.shape[1]] == own[:, None], torch.inf)
        value, column = squared.min(dim=1)
        index = torch.where(value < least, column + start, index)
        least = torch.minimum(value, least)
    return index, least.sqrt()
