"""Calibrated l2: an image is extracted if a training image is much nearer than training images near it mostly are."""

from typing import TYPE_CHECKING

from diffmem.measures.measure import Compared, Measure

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = 0.5
"""Scale of the mean distance (Carlini et al. 2023, Sec. 4.2)."""
NEIGHBOURS = 50
"""Training images whose mean distance calibrates; all of them, in a training set of fewer."""


def _compare(_images: "Tensor", _training_images: "Tensor", index: "Tensor", distance: "Tensor") -> Compared:
    """l = d1 / (alpha mean of the distances to the 50 training images nearest to the generated one)."""
    return Compared(index[:, 0], distance[:, 0], ALPHA * distance.mean(dim=1))


CALIBRATED = Measure(
    name="calibrated",
    source="Carlini et al. 2023, Sec. 4.2",
    ratio="extracted share (calibrated l2)",
    copied="extracted",
    rule="its nearest training image is less than {} times as far away as half the mean distance to its "
    f"{NEIGHBOURS} nearest training images (all, of a smaller training set), by the l2 distance of pixels on the "
    "scale 0..255",
    axis="nearest distance / half the mean of the 50 nearest",
    threshold=1.0,
    largest=2.0,
    compare=_compare,
    neighbours=NEIGHBOURS,
)
