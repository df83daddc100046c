"""The memorization ratio of images as arrays, tensors or PIL images, whatever has made them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffmem.errors import DataError
from diffmem.images import grey_or_rgb
from diffmem.memorization import THRESHOLD, memorized_share, two_nearest

Images = Tensor | npt.NDArray[Any] | Sequence[Any]
"""uint8 [n, c, h, w], [n, h, w, c] or [n, h, w] with c of 1 or 3, or a list of such images, also PIL ones."""


def memorization_ratio(images: Images, training_images: Images, *, threshold: float = THRESHOLD) -> float:
    """Return the share of generated images that are memorized: d1 < threshold * d2, in 0..1 (Gu et al. 2023, Sec. 2).

    d1 and d2 are the l2 distances to the nearest and the second nearest training image. Both are uint8 on the 0..255
    scale, as `Images` says, and are compared on the device of `images`. Raises DataError where they do not compare.
    """
    if not 0 < threshold <= 1:
        raise DataError(f"the threshold must be above 0 and at most 1 (the paper's is 1/3), not {threshold}")
    training = as_training_images(training_images)
    generated = as_generated_images(images, training)
    _, distance = two_nearest(generated, training.to(generated.device))
    return memorized_share(distance, threshold)


def as_training_images(images: Images) -> Tensor:
    """Return training images as uint8 [N, c, h, w]; DataError unless they are two or more images."""
    training = as_pixels(images, name="training images")
    if len(training) < 2:
        raise DataError(f"training images: {len(training)} of them, but a second nearest one needs two")
    return training


def as_generated_images(images: Images, training_images: Tensor) -> Tensor:
    """Return generated images as uint8 [n, c, h, w], one or more, of the shape of `training_images`; DataError."""
    generated = as_pixels(images, name="generated images")
    if len(generated) == 0:
        raise DataError("generated images: none, so they have no ratio; give one or more")
    kinds = [_kind(each) for each in (generated, training_images)]
    if kinds[0] != kinds[1]:
        raise DataError(f"generated images are {kinds[0]}, but training images are {kinds[1]}; make them alike first")
    return generated


def as_pixels(images: Images, *, name: str) -> Tensor:
    """Return images as a uint8 tensor [n, c, h, w]; DataError, which calls them `name`, where that cannot be."""
    array = images if isinstance(images, Tensor | np.ndarray) else _stacked(images, name)
    shape, dtype = list(array.shape), str(array.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise DataError(
            f"{name}: must be uint8 on the 0..255 scale, not {dtype}; a tensor x in -1..1 is that as "
            "(x * 127.5 + 128).clip(0, 255).to(torch.uint8), one in 0..1 as (x * 255).round().to(torch.uint8)"
        )
    # torch shares memory only with arrays that may be written
    pixels = array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4 and shape[1] in (1, 3):
        return pixels
    if pixels.ndim == 4 and shape[3] in (1, 3):
        return pixels.permute(0, 3, 1, 2).contiguous()
    raise DataError(f"{name}: must be [n, c, h, w], [n, h, w, c] or [n, h, w] with 1 or 3 channels c, not {shape}")


def _stacked(images: Sequence[Any], name: str) -> npt.NDArray[Any]:
    """Return a list of images as one array."""
    if not isinstance(images, Iterable):
        raise DataError(f"{name}: must be an array, a tensor or a list of images, not {type(images).__name__}")
    members = [_member(image) for image in images]
    shapes = sorted({member.shape for member in members})
    if len(shapes) > 1:
        raise DataError(
            f"{name}: must all have one shape, but there are {shapes[0]} and {shapes[1]}; crop or resize them first"
        )
    return np.stack(members) if members else np.empty((0, 1, 1), dtype=np.uint8)


def _member(image: Any) -> npt.NDArray[Any]:
    if isinstance(image, Image.Image):
        return np.asarray(grey_or_rgb(image))
    return image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)


def _kind(images: Tensor) -> str:
    _, channels, height, width = images.shape
    return f"{'grey' if channels == 1 else 'RGB'} with {width}x{height} pixels"
