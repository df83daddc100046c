"""Images that a diffusers pipeline generates, to be scored without writing them to files."""

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffmem.data import Size, Source, crop_and_resize, progress, shown_size
from diffmem.errors import DataError
from diffmem.models import this_device
from diffmem.randomness import stream

MISSING = "--pipeline needs the package diffusers; `pip install diffmem[diffusers]` adds it"
CONDITIONS = ("prompt", "class_labels", "image")
"""What pipelines generate from, also where it has a default that does not work."""
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

Pixels = npt.NDArray[np.uint8]


def generated_by(
    pipeline: str, *, samples: int, batch_size: int, steps: int | None = None, resolution: int | None = None
) -> Source:
    """Return images that a pipeline generates without any input: of a local folder, or of the Hugging Face Hub.

    Image i has a noise of its own, so that neither the batch size nor the number of images changes it. `steps` are
    those of its sampler, or else its own default; with `resolution`, images are cropped and resized to it. Raises
    DataError where the pipeline is not to be had, or generates from a prompt or a class.
    """
    loaded = _loaded(pipeline)
    more = {} if steps is None else {"num_inference_steps": steps}
    _check_input(pipeline, loaded, ["batch_size", "generator", "output_type", *more])
    loaded = loaded.to(this_device())
    loaded.set_progress_bar_config(disable=True)
    tell, parts, own = progress.get(), list[Pixels](), (0, 0)
    for first in range(0, samples, batch_size):
        numbers = range(first, min(first + batch_size, samples))
        noises = [stream("pipeline", 0, number) for number in numbers]
        images = _images(pipeline, loaded(batch_size=len(numbers), generator=noises, output_type="pil", **more))
        own = images[0].size
        parts.append(_pixels(images, resolution))
        tell("generating", numbers.stop, samples)
    return _source(parts, own, resolution)


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


def _source(parts: list[Pixels], own: Size, resolution: int | None) -> Source:
    """Return generated images as those of a folder are read; they were of their own size before."""
    pixels = np.concatenate(parts)
    content = hashlib.sha256(str(pixels.shape).encode())
    content.update(pixels.data)
    notes = (f"resized from {shown_size(own)} pixels",) if resolution and own != (resolution, resolution) else ()
    return Source(pixels, np.zeros(len(pixels), dtype=np.int64), f"sha256:{content.hexdigest()[:32]}", notes)
