"""Images compared in a feature space: its file opened once, features found in batches, neighbours exactly."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffmem.errors import DataError, OutOfMemory
from diffmem.measures.declared import DeclaredSpace, SpaceIdentity
from diffmem.measures.measure import Compare, Compared
from diffmem.measures.similarity import most_similar, two_nearest_features
from diffmem.measures.sources import Stamp, is_function, open_source, stamp_of
from diffmem.measures.spaces import Space
from diffmem.models import ran_out_of_memory

AT_ONCE = 256
"""Images whose features are found at once; half as many where memory runs out."""
REMEMBERED = 2
"""Training sets whose features are remembered, so that the checkpoints of a cell share them."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels on 0..1, as torchvision has them."""

_remembered: OrderedDict[tuple[DeclaredSpace, str, bytes], Tensor] = OrderedDict()


def opened(declared: DeclaredSpace, device: torch.device) -> tuple[Space, str]:
    """Return a space on a device, and the hash of its content; DataError where it cannot be had.

    It is opened once, unless its file is another one by now.
    """
    return _opened(declared, device, stamp_of(declared))


@lru_cache(maxsize=4)
def _opened(declared: DeclaredSpace, device: torch.device, _stamp: Stamp) -> tuple[Space, str]:
    function, content = open_source(declared, device)
    as_uint8 = is_function(declared)

    def features(images: Tensor) -> Tensor:
        return _in_batches(declared, function, images, as_uint8=as_uint8)

    return Space(declared.name, features), content


def identity_of(declared: DeclaredSpace, shape: tuple[int, int, int], device: torch.device) -> SpaceIdentity:
    """Return what tells a space from others, tried on two images of noise [c, h, w]; DataError if it fails on them."""
    noise = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    space, content = opened(declared, noise.device)
    settings, dimensions = declared.settings, space.features(noise).shape[1]
    about = declared.shown, content, settings.resize, settings.pixels, settings.rule
    return SpaceIdentity(declared.name, *about, declared.threshold, dimensions)


def compare_in(declared: DeclaredSpace, training_images: Tensor) -> Compare:
    """Return what compares images with training images in a space, whose features are found once."""
    own = _known_features(declared, training_images)

    def compare(images: Tensor, others: Tensor, _index: Tensor, _distance: Tensor) -> Compared:
        # grey training images are repeated as RGB beside generated ones in colour, and then have other features
        same = others.shape[1] == training_images.shape[1]
        training = own if same else _known_features(declared, others.contiguous())
        space, _ = opened(declared, images.device)
        features = space.features(images)
        if features.shape[1] != training.shape[1]:
            raise DataError(
                f"{declared.label}: features of {features.shape[1]} numbers, but {training.shape[1]} of training images"
            )
        search = two_nearest_features if declared.settings.rule == "nearest" else most_similar
        return search(features, training.to(images.device))

    return compare


def _known_features(declared: DeclaredSpace, training_images: Tensor) -> Tensor:
    """Return the features of training images [N, d]; found once for images of the same content."""
    pixels = training_images.cpu().contiguous().numpy()
    digest = hashlib.sha256(f"{pixels.shape} {training_images.device}".encode())
    digest.update(pixels.data)
    space, content = opened(declared, training_images.device)
    key = (declared, content, digest.digest())
    if key not in _remembered:
        while len(_remembered) >= REMEMBERED:
            _remembered.popitem(last=False)
        _remembered[key] = space.features(training_images)
    _remembered.move_to_end(key)
    return _remembered[key]


# --- features ------------------------------------------------------------------------------------------


@torch.inference_mode()
def _in_batches(declared: DeclaredSpace, function: Callable[[Any], Any], images: Tensor, *, as_uint8: bool) -> Tensor:
    """Return the features of images [n, d], float32 or float64, on their device; DataError where they are none."""
    found: list[Tensor] = []
    done, size = 0, AT_ONCE
    while done < len(images):
        batch = images[done : done + size]
        try:
            part = _of_batch(declared, function, batch, as_uint8=as_uint8)
        except Exception as error:
            if isinstance(error, DataError):
                raise
            if not ran_out_of_memory(error):
                channels, height, width = images.shape[1:]
                of = f"{len(batch)} images of {channels} x {height} x {width}"
                reason = f"{type(error).__name__}: {_reason(error)}"
                raise DataError(f"{declared.label}: it failed on {of}: {reason}") from error
            if size == 1:
                raise OutOfMemory from error
            size = (len(batch) + 1) // 2
            continue
        if found and part.shape[1] != found[0].shape[1]:
            lengths = f"{part.shape[1]} numbers, and of the images before of {found[0].shape[1]}"
            raise DataError(f"{declared.label}: it has returned features of {lengths}")
        found.append(part)
        done += len(batch)
    return torch.cat(found) if found else images.new_empty((0, 0), dtype=torch.float32)


def _of_batch(declared: DeclaredSpace, function: Callable[[Any], Any], images: Tensor, *, as_uint8: bool) -> Tensor:
    returned = function(prepared(images, declared.settings.resize, declared.settings.pixels, as_uint8=as_uint8))
    if not isinstance(returned, Tensor | np.ndarray):
        kind = type(returned).__name__
        raise DataError(f"{declared.label}: it has returned a {kind}, not a tensor or an array [n, d]")
    if isinstance(returned, np.ndarray) and returned.dtype.kind not in "buif":
        raise DataError(f"{declared.label}: it has returned {returned.dtype} values, not numbers")
    features = torch.as_tensor(returned).detach()
    if features.is_complex():
        raise DataError(f"{declared.label}: it has returned {features.dtype} values, not numbers")
    if features.ndim != 2 or len(features) != len(images) or not features.shape[1]:
        shape = list(features.shape)
        raise DataError(f"{declared.label}: it has returned {shape} for {len(images)} images, not [{len(images)}, d]")
    features = features.to(images.device, features.dtype if features.dtype == torch.float64 else torch.float32)
    return _checked(declared, features)


def _checked(declared: DeclaredSpace, features: Tensor) -> Tensor:
    """Return features; DataError where they are no numbers, or have no direction though that is compared."""
    if bad := int((~features.isfinite()).any(dim=1).sum()):
        raise DataError(f"{declared.label}: the features of {bad} of {len(features)} images are NaN or infinite")
    if declared.settings.rule == "similarity" and (bad := int((features == 0).all(dim=1).sum())):
        raise DataError(
            f"{declared.label}: the features of {bad} of {len(features)} images are all 0, which is similar to "
            'nothing; rule = "nearest" compares them all the same'
        )
    return features


def _reason(error: BaseException) -> str:
    """Return the last line of what an error says, which is the reason in a model's own traceback."""
    return (str(error).strip() or "no reason given").splitlines()[-1]


# --- images --------------------------------------------------------------------------------------------


def prepared(images: Tensor, resize: str, pixels: str, *, as_uint8: bool = False) -> Tensor:
    """Return uint8 images [n, c, h, w] as a space is given them: resized, float32 on its scale, or `as_uint8`."""
    values = resized(images.float(), resize) if resize != "none" else images.float()
    if pixels == "0..255":
        return values.round().clamp(0, 255).to(torch.uint8) if as_uint8 else values
    if pixels == "0..1":
        return values / 255
    mean, deviation = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in IMAGENET)
    return (values.expand(-1, 3, -1, -1) / 255 - mean) / deviation


def resized(images: Tensor, rule: str) -> Tensor:
    """Return images [n, c, h, w], float, by a resize rule: bilinear with antialiasing."""
    kind, *numbers = re.findall(r"[a-z]+|\d+", rule.replace("crop", ""))
    side, (height, width) = int(numbers[0]), images.shape[2:]
    shape = (side, side)
    if kind == "short":
        shorter = min(height, width)
        shape = (int(side * height / shorter), int(side * width / shorter))
    if (height, width) != shape:
        images = interpolate(images, size=shape, mode="bilinear", antialias=True, align_corners=False)
    if len(numbers) == 1:
        return images
    crop = int(numbers[1])
    top, left = (round((length - crop) / 2) for length in images.shape[2:])
    return images[:, :, top : top + crop, left : left + crop]
