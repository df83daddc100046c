"""The settings of a feature space: what makes features of an image, and which of them are copies."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from diffmem.settings import Settings

SPACE_NAME = r"[a-z][a-z0-9_-]*"
"""What the name of a space looks like."""
RESIZES = re.compile(r"none|(?:short|square) [1-9][0-9]{0,3}|short [1-9][0-9]{0,3} crop [1-9][0-9]{0,3}")


def _resize(text: str) -> str:
    """Return a resize rule; an error of pydantic's where it is none."""
    numbers = [int(each) for each in re.findall("[0-9]+", text)]
    if not RESIZES.fullmatch(text) or numbers != sorted(numbers, reverse=True):
        raise PydanticCustomError("resize", '"none", "short 288", "short 256 crop 224" or "square 320"')
    return text


class SpaceSettings(Settings):
    """A feature space: images are compared by their features instead of their pixels."""

    features: str = Field(
        description="What computes features [n, d] of images: `module:function`, a TorchScript file, an ONNX file "
        "(.onnx), `timm:NAME` or `transformers:NAME`."
    )
    resize: Annotated[str, AfterValidator(_resize)] = Field(
        "none",
        description="Resizing before that, bilinear and antialiased: `none`, `short S` (the shorter side), "
        "`short S crop C` (and its centre), `square S`.",
    )
    pixels: Literal["0..255", "0..1", "imagenet"] = Field(
        "0..255",
        description="The scale of pixels: 0..255 (a function is given uint8), 0..1, or ImageNet's mean and standard "
        "deviation, with grey images as RGB.",
    )
    rule: Literal["similarity", "nearest"] = Field(
        "similarity",
        description="A copy is more similar to a training image than the threshold (cosine), or nearer than the "
        "threshold times the second nearest (l2).",
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="The threshold; needed for similarity; default for nearest: 1/3."
    )
