"""Which training images count as one: how alike they are, and by which augmentations of each other."""

from typing import Literal, get_args

Augmentation = Literal["hflip", "shift"]

AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
"""What a training may have done to its images: mirrored them, or shifted them by a pixel in any direction."""

NEAR = 0.05
"""Root mean square of the differences, as a share of 255, below which two images are nearly identical."""
