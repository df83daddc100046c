"""Two halves: whether models of disjoint training sets generate the same image from the same latent."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmem.errors import RunError
from diffmem.measures.agreement import CENTRED_PIXELS, HalfPairs
from diffmem.measures.spaces import Space

Array = npt.NDArray[np.float64]

AT_ONCE = 4096
"""Training images whose features are compared at once."""


def compare_pairs(
    images: tuple[Tensor, Tensor],
    training_images: tuple[Tensor, Tensor],
    held_out: Tensor,
    *,
    labels: Tensor | None = None,
    space: Space = CENTRED_PIXELS,
) -> HalfPairs:
    """Compare images that two models generate from the same latents, uint8 [n, c, h, w] each, in their order.

    `training_images` are those of either model and `held_out` some of neither, of which the first n count; `labels`
    [n] those that the images were generated with: a mismatched pair has the same one.
    """
    count = len(images[0])
    first, second = (directions(each, space) for each in images)
    other = other_of_label(torch.zeros(count) if labels is None else labels)
    has_other = (other >= 0).numpy()
    unseen = directions(held_out[:count], space)
    nearest = [largest_similarity(each, own, space) for each, own in zip((first, second), training_images, strict=True)]
    nulls = [_padded(largest_similarity(unseen, own, space), count) for own in training_images]
    return HalfPairs(
        similarity=_dots(first, second),
        mse=squared_error(*images),
        mismatched=np.where(has_other, _dots(first, second[other]), np.nan),
        mismatched_mse=np.where(has_other, squared_error(images[0], images[1][other]), np.nan),
        nearest_a=nearest[0],
        nearest_b=nearest[1],
        held_out_a=nulls[0],
        held_out_b=nulls[1],
    )


def directions(images: Tensor, space: Space) -> Tensor:
    """Return the features of images, uint8 [n, c, h, w], with length 1, float64 [n, d + 1].

    Features that are all 0 have no direction: the last value is 1 for them, so that two of them are alike. RunError
    for features that are no numbers.
    """
    features = space.features(images).double().cpu()
    if not features.isfinite().all():
        raise RunError(f"the space {space.name} gives features that are no numbers, so no similarity can be computed")
    length = features.norm(dim=1, keepdim=True)
    none = (length == 0).double()
    return torch.cat([features / (length + none), none], dim=1)


def similarity(first: Tensor, second: Tensor, space: Space = CENTRED_PIXELS) -> Array:
    """Return the cosine of the features of images and of others, uint8 [n, c, h, w] each, in -1..1, float64 [n]."""
    return _dots(directions(first, space), directions(second, space))


def _dots(first: Tensor, second: Tensor) -> Array:
    return _numbers((first * second).sum(dim=1).clamp(-1, 1))


def squared_error(first: Tensor, second: Tensor) -> Array:
    """Return the mean squared difference of images and others, uint8 [n, c, h, w] each, on 0..1, float64 [n]."""
    return _numbers(((first.double() - second.double()) / 255).square().flatten(1).mean(dim=1))


def largest_similarity(unit: Tensor, training_images: Tensor, space: Space) -> Array:
    """Return the largest cosine of each of some directions [n, d + 1] to training images [N, c, h, w], float64 [n]."""
    largest = torch.full((len(unit),), -1.0, dtype=torch.float64)
    for start in range(0, len(training_images), AT_ONCE):
        part = training_images[start : start + AT_ONCE]
        largest = torch.maximum(largest, (unit @ directions(part, space).T).amax(dim=1))
    return _numbers(largest.clamp(-1, 1))


def other_of_label(labels: Tensor) -> Tensor:
    """Return the number of another image of the same label for each image, each once, int64 [n]; -1 if it has none."""
    other = torch.full((len(labels),), -1)
    for label in sorted(set(labels.tolist())):
        members = torch.nonzero(labels == label)[:, 0]
        if len(members) > 1:
            other[members] = members.roll(-1)
    return other


def _padded(values: Array, count: int) -> Array:
    return np.concatenate([values, np.full(count - len(values), np.nan)])


def _numbers(values: Tensor) -> Array:
    found: Array = values.detach().cpu().numpy()
    return found
