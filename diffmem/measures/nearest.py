"""The paper's measure: an image is memorized if its nearest training image is much nearer than the second nearest."""

from typing import TYPE_CHECKING

from diffmem.measures.measure import Compared, Measure, is_copy

if TYPE_CHECKING:
    from torch import Tensor


def _compare(_images: "Tensor", _training_images: "Tensor", index: "Tensor", distance: "Tensor") -> Compared:
    return Compared(index[:, 0], distance[:, 0], distance[:, 1])


NEAREST = Measure(
    name="nearest",
    source="Gu et al. 2023, Sec. 2",
    ratio="memorization ratio",
    copied="memorized",
    rule="its nearest training image is less than {} times as far away as the second nearest, by the l2 distance of "
    "pixels on the scale 0..255",
    axis="nearest distance / second nearest distance",
    threshold=1 / 3,
    largest=1.0,
    compare=_compare,
)


def memorized_share(distance: "Tensor", threshold: float = NEAREST.threshold) -> float:
    """Return the memorized share of generated images with nearest distances [n, 2], in 0..1."""
    share: float = is_copy(distance[:, 0], distance[:, 1], threshold).double().mean().item()
    return share
