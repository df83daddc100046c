"""Images that a diffusers pipeline generates, to be scored without writing them to files."""

import hashlib
import inspect
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from diffmem.data import Source, crop_and_resize, progress
from diffmem.errors import DataError
from diffmem.models import this_device
from diffmem.randomness import stream

MISSING = "--pipeline needs the package diffusers; `pip install diffmem[diffusers]` adds it"
ALLOWED = frozenset({"batch_size"})
"""What a pipeline may ask for without a default."""


def generated_by(
    pipeline: str, *, samples: int, batch_size: int, steps: int | None = None, resolution: int | None = None
) -> Source:
    """Return images that a pipeline generates without any input: of a local folder, or of the Hugging Face Hub.

    Image i has a noise of its own, so that neither the batch size nor the number of images changes it. `steps` are
    those of its sampler, or else its own default; with `resolution`, images are cropped and resized to it. Raises
    DataError where the pipeline is not to be had, or generates from a prompt or a class.
    """
    loaded = _loaded(pipeline)
    call = inspect.signature(loaded.__call__).parameters
    asked = [name for name, each in call.items() if each.default is each.empty and name not in ALLOWED]
    if "batch_size" not in call or "generator" not in call or [name for name in asked if name != "kwargs"]:
        wants = ", ".join(name for name in asked if name != "kwargs") or "other input"
        raise DataError(
            f"{pipeline}: {type(loaded).__name__} generates from {wants}, and score gives it none; generate images "
            "with it, and score these with --images"
        )
    loaded = loaded.to(this_device())
    loaded.set_progress_bar_config(disable=True)
    more = {} if steps is None else {"num_inference_steps": steps}
    tell, found = progress.get(), list[Image.Image]()
    while len(found) < samples:
        numbers = range(len(found), min(len(found) + batch_size, samples))
        noises = [stream("pipeline", 0, number) for number in numbers]
        found += _images(pipeline, loaded(batch_size=len(numbers), generator=noises, output_type="pil", **more))
        tell("generating", len(found), samples)
    return _source(found, resolution)


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


def _source(images: list[Image.Image], resolution: int | None) -> Source:
    """Return generated images as those of a folder are read."""
    modes = {"L" if each.mode == "L" else "RGB" for each in images}
    mode = "L" if modes == {"L"} else "RGB"
    size = None if resolution is None else (resolution, resolution)
    plain = [each.convert(mode) for each in images]
    arrays = [np.asarray(each if size is None else crop_and_resize(each, size)) for each in plain]
    pixels = np.stack([each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in arrays])
    content = hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).data)
    done = f"resized from {images[0].width}x{images[0].height} pixels"
    notes = (done,) if size not in (None, images[0].size) else ()
    return Source(pixels, np.zeros(len(pixels), dtype=np.int64), f"sha256:{content.hexdigest()[:32]}", notes)
