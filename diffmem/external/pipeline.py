"""Images that a diffusers pipeline generates, to be scored without writing them to files."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffmem.cells import PRECISION_CHECK
from diffmem.data import Size, Source, crop_and_resize, progress, shown_size
from diffmem.errors import DataError
from diffmem.external.compared import Pixels
from diffmem.models import Group
from diffmem.randomness import stream

MISSING = "--pipeline needs the package diffusers; `pip install diffmem[diffusers]` adds it"
CONDITIONS = ("prompt", "class_labels", "image")
"""What pipelines generate from, also where it has a default that does not work."""
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Sampling:
    """How many images a pipeline generates, how many at once, in how many steps of its sampler (None: its own number),
    and the resolution to which they are cropped and resized, if any."""

    samples: int
    batch_size: int = 50
    steps: int | None = None
    resolution: int | None = None


def generated_by(
    pipeline: str, sampling: Sampling, group: Group, enough: Callable[[Pixels], bool] | None = None
) -> Source:
    """Return images that a pipeline generates without any input: of a local folder, or of the Hugging Face Hub.

    Each process of a `group` generates a share. Image i has its own noise, so it is the same, up to rounding, for any
    batch size, number of images and number of processes. `enough` is given the images in parts, some hundred at a
    time; once it returns True, no more are generated. Raises DataError if the pipeline cannot be loaded, or if it needs
    a prompt or a class.
    """
    loaded = _loaded(pipeline)
    _check_input(pipeline, loaded, ["batch_size", "generator", "output_type", *_more(sampling)])
    loaded = loaded.to(group.device)
    loaded.set_progress_bar_config(disable=True)
    tell, parts, own = progress.get(), list[Pixels](), (0, 0)  # their size before it was changed
    # what several processes have made comes together in parts, which a GPU has room for
    at_once = PRECISION_CHECK if enough else 10 * sampling.batch_size * group.count
    for first in range(0, sampling.samples, at_once):
        numbers = range(first, min(first + at_once, sampling.samples))
        share = numbers[group.share(len(numbers))]
        made: list[Pixels] = []
        with group.memory():
            for start in range(0, len(share), sampling.batch_size):
                batch = share[start : start + sampling.batch_size]
                own, images = _generated(pipeline, loaded, batch, sampling)
                made.append(images)
                tell("generating", first + (start + len(batch)) * group.count, sampling.samples)
        own = _of_last(group, own)
        parts.append(_gathered(made, len(numbers), group))
        if enough is not None and enough(parts[-1]):
            break
    return _source(parts, own, sampling)


def _more(sampling: Sampling) -> dict[str, int]:
    return {} if sampling.steps is None else {"num_inference_steps": sampling.steps}


def _generated(pipeline: str, loaded: Any, numbers: Sequence[int], sampling: Sampling) -> tuple[Size, Pixels]:
    """Return the images of these numbers, uint8 [n, c, h, w], and the size that they had."""
    noises = [stream("pipeline", 0, number) for number in numbers]
    output = loaded(batch_size=len(numbers), generator=noises, output_type="pil", **_more(sampling))
    images = _images(pipeline, output)
    return images[0].size, _pixels(images, sampling.resolution)


def _gathered(made: list[Pixels], count: int, group: Group) -> Pixels:
    """Return the images of all processes, of which each has generated its share, in their order."""
    if group.count == 1:
        return np.concatenate(made)
    shape = _of_last(group, made[0].shape[1:] if made else (0, 0, 0))
    own = np.concatenate([np.empty((0, *shape), dtype=np.uint8), *made])
    return group.gather(torch.from_numpy(own), count).numpy()


def _of_last(group: Group, numbers: Sequence[int]) -> tuple[Any, ...]:
    """Return the numbers of the last process of a group, which has a share even of one image."""
    own = torch.tensor(numbers, device=group.device) * (group.rank == group.count - 1)
    group.sum_(own)
    return tuple(own.tolist())


def _check_input(pipeline: str, loaded: Any, given: Sequence[str]) -> None:
    """Refuse a pipeline that cannot be called with what is given alone."""
    call = inspect.signature(loaded.__call__).parameters
    required = [name for name, each in call.items() if each.default is each.empty and each.kind not in VARIADIC]
    wants = [name for name in call if name in CONDITIONS or (name in required and name not in given)]
    if wants:
        raise DataError(
            f"{pipeline}: {type(loaded).__name__} generates from {', '.join(wants)}, and score gives it none; generate "
            "images with it, and score these with --images"
        )
    if lacking := [name for name in given if name not in call]:
        raise DataError(
            f"{pipeline}: {type(loaded).__name__} takes no {', '.join(lacking)}; generate images with it, and score "
            "these with --images"
        )


def _loaded(pipeline: str) -> Any:
    """Return a pipeline, from the local cache if it is there; DataError where it cannot be had."""
    try:
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging
        from huggingface_hub import HfApi
    except ImportError as error:
        raise DataError(MISSING) from error
    logging.disable_progress_bar()
    try:
        with suppress(OSError):  # what is not in the local cache is fetched
            return DiffusionPipeline.from_pretrained(pipeline, local_files_only=True)
        HfApi().model_info(pipeline, timeout=10)  # fails at once without a network, where fetching tries for long
        return DiffusionPipeline.from_pretrained(pipeline)
    except Exception as error:  # files of others and a network: errors of many kinds
        raise DataError(
            f"{pipeline}: no pipeline could be loaded ({' '.join(str(error).split())[:300]}); name a folder that "
            "pipeline.save_pretrained has written, or one of the Hugging Face Hub"
        ) from error


def _images(pipeline: str, output: Any) -> list[Image.Image]:
    images = list(getattr(output, "images", ()))
    if not images or not all(isinstance(each, Image.Image) for each in images):
        raise DataError(f"{pipeline}: generates no images, and score compares images alone")
    return images


def _pixels(images: list[Image.Image], resolution: int | None) -> Pixels:
    """Return images as uint8 [n, c, h, w], grey if all of them are."""
    mode = "L" if all(each.mode == "L" for each in images) else "RGB"
    plain = [each if each.mode == mode else each.convert(mode) for each in images]
    arrays = [np.asarray(each if resolution is None else crop_and_resize(each, (resolution,) * 2)) for each in plain]
    return np.stack([each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in arrays])


def _source(parts: list[Pixels], own: Size, sampling: Sampling) -> Source:
    """Return generated images as those of a folder are read; they were of their own size before."""
    pixels, resolution = np.concatenate(parts), sampling.resolution
    content = hashlib.sha256(str(pixels.shape).encode())
    content.update(pixels.data)
    notes = [f"resized from {shown_size(own)} pixels"] if resolution and own != (resolution, resolution) else []
    if len(pixels) < sampling.samples:
        notes.append(f"{len(pixels)} of {sampling.samples} images generated, as their ratio is known to the precision")
    return Source(pixels, np.zeros(len(pixels), dtype=np.int64), f"sha256:{content.hexdigest()[:32]}", tuple(notes))
