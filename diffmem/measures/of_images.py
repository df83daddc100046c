"""What the quality of generated images is: numbers of a checkpoint against real images, training ones and held-out."""

from dataclasses import dataclass
from typing import Literal

Against = Literal["training", "held_out"]

QUALITY = "quality"
"""The name by which score.measures asks for it."""
LEAST_GENERATED, LEAST_TRAINING, LEAST_HELD_OUT = 12, 6, 24
"""Images that it needs: half of the generated ones, and a quarter of the held-out ones, have five neighbours."""


@dataclass(frozen=True)
class QualityValue:
    """One number about generated images in one feature space, with its 95% interval and its null."""

    space: str  # the name of the feature space
    quantity: str  # "frechet_distance"
    against: Against  # the real images that they are compared with
    value: float
    low: float
    high: float
    n: int  # generated images
    real: int  # real images
    dimensions: int  # of the space
    null: float | None  # the same of new real images in the place of the generated ones
    null_n: int  # new real images


@dataclass(frozen=True)
class ImageMeasure:
    """A measure of the images of a checkpoint as a whole: it calls no image a copy, so there is no ratio by it."""

    name: str
    source: str
    finds: str  # what it measures, as a sentence goes on


IMAGE_QUALITY = ImageMeasure(
    name=QUALITY,
    source="Heusel et al. 2017; Kynkäänniemi et al. 2019; Naeem et al. 2020; Alaa et al. 2022; Meehan et al. 2020",
    finds="how far generated images are from training images and from held-out ones, as distributions",
)


def too_few(*, generated: int, training: int, held_out: int) -> str:
    """Say why the quality cannot be measured on so many images; empty if it can."""
    if generated >= LEAST_GENERATED and training >= LEAST_TRAINING and held_out >= LEAST_HELD_OUT:
        return ""
    return (
        f"quality needs {LEAST_GENERATED} generated images, {LEAST_TRAINING} training images and {LEAST_HELD_OUT} "
        f"held-out ones, and there are {generated}, {training} and {held_out}"
    )


def small_sample(value: QualityValue) -> str:
    """Say where a Frechet distance is mostly the bias of a small sample; empty if it is not."""
    fewest = min(value.n, value.real)
    if value.quantity != "frechet_distance" or fewest > value.dimensions:
        return ""
    return (
        f"Frechet distance ({value.space}) to {value.against.replace('_', '-')} images: {fewest} images in "
        f"{value.dimensions} dimensions are too few (n <= d), so it is biased upwards; compare it with its null and "
        "with distances of as many images only"
    )
