"""Feature spaces: where images are compared. Pixels are one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Space:
    """A name and a function from images, uint8 [n, c, h, w], to their features, float [n, d]."""

    name: str
    features: "Callable[[Tensor], Tensor]"


PIXELS = Space("pixels", lambda images: images.flatten(1).float())
"""The values of the pixels, 0 to 255."""
