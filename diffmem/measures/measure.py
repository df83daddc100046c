"""What a measure is: a way to tell a copy of a training image, by one rule that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Compared(NamedTuple):
    """Generated images against a training set, as one measure sees them."""

    nearest: "Tensor"  # [n], int64, position of the training image that each would be a copy of
    distance: "Tensor"  # [n], float64, to it
    yardstick: "Tensor"  # [n], float64, what the distance is compared with


Compare = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], Compared]
"""From generated [n, c, h, w] and training images [N, c, h, w], uint8 on one device, the indices [n, 2] of the two
nearest, and the distances [n, k] of the nearest ones, as many as the measure asks for. They are found for all measures
at once."""


@dataclass(frozen=True)
class Measure:
    """A way to tell a copy: a generated image is one where its distance is below `threshold` times its yardstick."""

    name: str
    source: str
    ratio: str  # what the share of copies is called, as an axis has it
    copied: str  # what a copy is called: "memorized"
    rule: str  # what makes an image a copy, as a sentence goes on, for a threshold in words
    axis: str  # distance / yardstick, as an axis has it
    threshold: float
    largest: float  # that distance / yardstick can be
    compare: Compare
    prepare: "Callable[[Tensor], Compare] | None" = None
    """Of a measure that has to look through the training images [N, c, h, w] first: what compares with them."""
    neighbours: int = 2
    """Training images whose distances it is given; all of them, of a smaller training set."""
    features: "Callable[[Tensor], Tensor] | None" = None
    """Of a measure in a feature space: the features [n, d] of images, uint8 [n, c, h, w]."""
    similarity: bool = False
    """Whether the distance is 1 - a similarity, and a threshold is said as the similarity that copies exceed."""

    def shown(self, threshold: float) -> float:
        """Return a threshold of distance / yardstick as the measure's rule says it."""
        return 1 - threshold if self.similarity else threshold

    def says(self, threshold: str) -> str:
        """Return the rule at a threshold in words, as a sentence goes on."""
        if self.similarity:
            return self.rule.format(f"{self.shown(float(Fraction(threshold))):g}")
        return self.rule.format(threshold).replace("less than 1 times as far away as", "nearer than")


def is_copy(distance: Any, yardstick: Any, threshold: float) -> Any:
    """Tell whether an image is a copy: distance < threshold * yardstick, strictly; of numbers, arrays or tensors."""
    return distance < threshold * yardstick


def is_copy_sql(threshold: str = "?") -> str:
    """Return `is_copy` in SQL, over the columns distance and yardstick, at a threshold that SQL computes."""
    return f"(distance < {threshold} * yardstick)"
