"""The local density of a training set around each of its images: how far its nearest other images are."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffmem.measures.neighbours import nearest_distances

OTHERS = 5
"""Other training images whose mean distance says how dense the training set is around one; fewer in a smaller set."""


def local_distances(images: Tensor, training_images: Tensor) -> npt.NDArray[np.float64]:
    """Return the mean l2 distance (float64 [n], on the 0..255 scale) of training images [n, c, h, w] to their 5 nearest
    others among all of them [N, c, h, w], uint8 on one device; 0 of an image that is the only one."""
    if len(training_images) < 2:
        return np.zeros(len(images))
    count = min(OTHERS + 1, len(training_images))
    _, distance = nearest_distances(images, training_images, count)
    squared = np.rint(distance[:, 1:].cpu().numpy() ** 2)  # those of others; NumPy rounds roots alike everywhere
    means: npt.NDArray[np.float64] = np.sqrt(squared).mean(axis=1)
    return means
