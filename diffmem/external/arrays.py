"""The memorization ratio of images as arrays, tensors or PIL images, whatever has made them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffmem.data import (
    Meaning,
    OtherMeaning,
    Seen,
    eight_bits,
    find_groups,
    note,
    plain,
    range_fault,
    transforms_of,
    treatments,
    unlike_scales,
)
from diffmem.errors import DataError, ImageWarning
from diffmem.measures import GROUPED, NEAREST, DeclaredSpace, Measure, grouped_name, memorized_share, two_nearest

Images = Tensor | npt.NDArray[Any] | Sequence[Any]
"""[n, c, h, w], [n, h, w, c] or [n, h, w] with c of 1 or 3, or a list of such images, also PIL ones: uint8; or
floating-point values in 0..1 or -1..1, or whole ones of 16 bits, as a warning then says."""


def memorization_ratio(
    images: Images,
    training_images: Images,
    *,
    threshold: float = NEAREST.threshold,
    groups: str = "none",
    augment: Sequence[str] = (),
    space: Mapping[str, Any] | None = None,
) -> float:
    """Return the share of generated images that are memorized: d1 < threshold * d2, in 0..1 (Gu et al. 2023, Sec. 2).

    d1 and d2 are the l2 distances to the nearest and the second nearest training image. Both are taken on the 0..255
    scale, as `Images` says, and are compared on the device of `images`. With `groups` "exact" or "near", d2 is to the
    nearest one of another group of identical or nearly identical training images, which also have what `augment`
    ("hflip", "shift") makes of them. `space` is a feature space, a table as [spaces.NAME] of a study has it: the share
    is then of copies by its rule and threshold. Its features may also be a function. Raises DataError where they do not
    compare; warns (ImageWarning) of what they are taken to mean, and of training images that are alike if they are not
    grouped.
    """
    if not (isinstance(threshold, SupportsFloat) and 0 < float(threshold) <= 1):
        raise DataError(f"the threshold must be a number above 0 and at most 1 (the paper's is 1/3), not {threshold!r}")
    measure = _grouping(groups, augment) if space is None else _in_space(space, threshold, groups, augment)
    training = as_training_images(training_images)
    if measure is NEAREST and (duplicates := duplicates_in(training)):
        warnings.warn(f"training images: {duplicates}", ImageWarning, stacklevel=2)
    generated = as_generated_images(images, training, signed=has_negative(training_images))
    against = in_colour(training, generated).to(generated.device)
    found = measure.compare(generated, against, *two_nearest(generated, against))
    at = threshold if space is None else measure.threshold
    return memorized_share(torch.stack([found.distance, found.yardstick], dim=1), at)


def _in_space(space: Mapping[str, Any], threshold: float, groups: str, augment: Sequence[str]) -> Measure:
    """Return the measure in a feature space; DataError where its table, or an argument beside it, is at fault."""
    if threshold != NEAREST.threshold or groups != "none" or augment:
        raise DataError(
            "space has its own threshold, and groups are of pixels; leave out threshold, groups and augment"
        )
    return DeclaredSpace.of("given", space).measure


def _grouping(groups: str, augment: Sequence[str]) -> Measure:
    """Return the measure that groups training images so; DataError where that cannot be."""
    transforms_of(augment)
    if groups not in ("none", "exact", "near"):
        raise DataError(f"groups must be none, exact or near, not {groups!r}")
    if groups == "none" and augment:
        raise DataError('augment is of groups of training images; add groups="near", or "exact"')
    return NEAREST if groups == "none" else GROUPED[grouped_name(groups, augment)]


def duplicates_in(training_images: Tensor) -> str:
    """Return in a sentence which training images are alike, and what follows; empty where none are."""
    return note(find_groups(training_images.cpu().numpy()))


def as_training_images(images: Images) -> Tensor:
    """Return training images as uint8 [N, c, h, w]; DataError unless they are two or more images."""
    training = as_pixels(images, name="training images")
    if len(training) < 2:
        raise DataError(f"training images: {len(training)} of them, but a second nearest one needs two")
    return training


def as_generated_images(images: Images, training_images: Tensor, *, signed: bool | None = None) -> Tensor:
    """Return generated images as uint8 [n, c, h, w], one or more, of the size of `training_images`; DataError.

    Grey ones are repeated as RGB beside RGB. `signed` says whether floating-point values are on the scale -1..1, where
    that is known of others; else their own values tell.
    """
    generated = as_pixels(images, name="generated images", signed=signed)
    if len(generated) == 0:
        raise DataError("generated images: none, so they have no ratio; give one or more")
    if generated.shape[2:] != training_images.shape[2:]:
        kinds = [f"{each.shape[3]}x{each.shape[2]} pixels" for each in (generated, training_images)]
        raise DataError(f"generated images have {kinds[0]}, but training images have {kinds[1]}; make them alike first")
    if generated.shape[1] != training_images.shape[1]:
        warnings.warn(
            f"generated images are {_kind(generated)}, but training images are {_kind(training_images)}; grey was "
            "repeated as RGB",
            ImageWarning,
            stacklevel=3,
        )
    if scale := unlike_scales(generated.cpu().numpy(), training_images.cpu().numpy()):
        warnings.warn(scale, ImageWarning, stacklevel=3)
    return in_colour(generated, training_images)


def in_colour(images: Tensor, others: Tensor) -> Tensor:
    """Return images with as many channels as others have, if these have more."""
    return images.expand(-1, max(images.shape[1], others.shape[1]), -1, -1)


def has_negative(images: Images) -> bool | None:
    """Return whether floating-point images have negative values, which -1..1 has; None where they are others."""
    parts = [images] if isinstance(images, Tensor | np.ndarray) else list(images)
    arrays = [each for each in parts if isinstance(each, Tensor | np.ndarray)]
    floats = [each for each in arrays if str(each.dtype).removeprefix("torch.").startswith(("float", "bfloat"))]
    return any(bool((each < 0).any()) for each in floats) if floats else None


def as_pixels(images: Images, *, name: str, signed: bool | None = None) -> Tensor:
    """Return images as a uint8 tensor [n, c, h, w]; DataError, which calls them `name`, where that cannot be."""
    array = images if isinstance(images, Tensor | np.ndarray) else _stacked(images, name)
    pixels = _uint8(array, name, signed)
    shape = list(pixels.shape)
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4 and shape[1] in (1, 3):
        return pixels
    if pixels.ndim == 4 and shape[3] in (1, 3):
        return pixels.permute(0, 3, 1, 2).contiguous()
    raise DataError(f"{name}: must be [n, c, h, w], [n, h, w, c] or [n, h, w] with 1 or 3 channels c, not {shape}")


def _uint8(array: Tensor | npt.NDArray[Any], name: str, signed: bool | None) -> Tensor:
    """Return an array of any type as uint8 on its device, and warn of what its values were taken to mean."""
    if isinstance(array, Tensor):
        if array.dtype == torch.uint8:
            return array
        values = array.detach().cpu()
        plain_values: npt.NDArray[Any] = (values.double() if values.is_floating_point() else values).numpy()
        return torch.from_numpy(_from_others(plain_values, str(array.dtype), name, signed)).to(array.device)
    pixels = array if array.dtype == np.uint8 else _from_others(array, str(array.dtype), name, signed)
    # torch shares memory only with arrays that may be written
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _from_others(values: npt.NDArray[Any], dtype: str, name: str, signed: bool | None) -> npt.NDArray[np.uint8]:
    if values.dtype.kind not in "buif":
        raise DataError(f"{name}: must be numbers, not {dtype}")
    if not values.size or values.dtype == np.bool_:
        return eight_bits(values.astype(np.bool_), 0, 1)
    least, most = float(values.min()), float(values.max())
    if fault := range_fault(dtype, least, most):
        raise DataError(f"{name}: {fault}")
    if signed is False and least < 0:
        raise DataError(f"{name}: have negative values, but the training images are in 0..1; scale both alike")
    least = -1.0 if signed else least
    read = "value >> 8" if values.dtype.kind != "f" else "(x + 1) * 127.5" if least < 0 else "x * 255"
    warnings.warn(
        f"{name}: {dtype.removeprefix('torch.')} values in {least:g}..{most:g} were read as {read}",
        ImageWarning,
        stacklevel=5,
    )
    return eight_bits(values, least, most)


def _stacked(images: Sequence[Any], name: str) -> npt.NDArray[Any]:
    """Return a list of images as one array."""
    if not isinstance(images, Iterable) or isinstance(images, str | bytes):
        raise DataError(f"{name}: must be an array, a tensor or a list of images, not {type(images).__name__}")
    listed = list(images)
    odd = next((each for each in listed if not isinstance(each, Image.Image | Tensor | np.ndarray)), None)
    if isinstance(odd, dict):
        raise DataError(f"{name}: a dict is no image")
    if isinstance(odd, tuple | list) and any(isinstance(part, Image.Image | Tensor | np.ndarray) for part in odd):
        raise DataError(
            f"{name}: each must be an image, not a {type(odd).__name__} of image and label; give the images alone, as "
            "[image for image, label in dataset] does, and join the batches of a loader with torch.cat"
        )
    if listed and all(isinstance(each, Image.Image) for each in listed):
        members = _from_pictures(listed, name)
    else:
        members = [_member(image, name) for image in listed]
    kinds = sorted({(member.shape, str(member.dtype)) for member in members})
    if len(kinds) > 1:
        first, other = (f"{kind} {list(shape)}" for shape, kind in kinds[:2])
        raise DataError(f"{name}: must all have one shape and type, but there are {first} and {other}")
    return np.stack(members) if members else np.empty((0, 1, 1), dtype=np.uint8)


def _member(image: Any, name: str) -> npt.NDArray[Any]:
    if isinstance(image, Image.Image):
        (array,) = _from_pictures([image], name)
        return array
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        plain_values: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return plain_values
    try:
        return np.asarray(image)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: a {type(image).__name__} is no image") from error


def _from_pictures(images: Sequence[Image.Image], name: str) -> list[npt.NDArray[np.uint8]]:
    """Return PIL images as uint8 arrays, read as files of them are, and warn of what was done to them."""
    meaning = Meaning()
    while True:
        seen = Seen(images=len(images))
        try:
            arrays = [
                np.asarray(plain(image, f"{name}, number {number}", meaning, seen))
                for number, image in enumerate(images)
            ]
            break
        except OtherMeaning as other:
            meaning = other.meaning
    if seen.done["deep"] and (fault := range_fault("whole numbers", seen.least, seen.most)):
        raise DataError(f"{name}: {fault}")
    grey = sum(array.ndim == 2 for array in arrays)
    mixed = [f"{grey} of {len(arrays)} images are grey; they were repeated as RGB"] if 0 < grey < len(arrays) else []
    for said in [*treatments(seen), *mixed]:
        warnings.warn(f"{name}: {said}", ImageWarning, stacklevel=6)
    if meaning.channels == 3:
        return [np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array for array in arrays]
    return arrays


def _kind(images: Tensor) -> str:
    return "grey" if images.shape[1] == 1 else "RGB"
