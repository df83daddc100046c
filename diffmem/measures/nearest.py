"""The paper's measure: an image is memorized if its nearest training image is much nearer than the second nearest."""

from torch import Tensor

from diffmem.cells import THRESHOLD


def is_memorized(distance: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Tell for each row of distances [n, 2] whether d1 < threshold * d2, strictly; bool [n]."""
    return distance[:, 0] < threshold * distance[:, 1]


def memorized_share(distance: Tensor, threshold: float = THRESHOLD) -> float:
    """Return the memorized share of generated images with nearest distances [n, 2], in 0..1."""
    return is_memorized(distance, threshold).double().mean().item()
