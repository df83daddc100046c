"""The interval of a share of images."""

import numpy as np
import numpy.typing as npt

NORMAL = 1.959963984540054
"""The standard normal's 97.5% quantile."""


def p_value(copies: int, images: int, held_out_copies: int, held_out: int) -> float:
    """Return the chance of `copies` or more among so many images, if copies were as frequent among them as among
    held-out images (Fisher's exact test, one-sided)."""
    from scipy.stats import hypergeom  # two seconds that most commands do without

    together = copies + held_out_copies
    return float(hypergeom.sf(copies - 1, images + held_out, together, images))


def wilson(ratio: npt.ArrayLike, images: npt.ArrayLike, *, quantile: npt.ArrayLike = NORMAL) -> np.ndarray:
    """Return Wilson's 95% interval [..., 2] of ratios in 0..1 of so many generated images (Wilson 1927).

    `quantile` are the standard deviations on either side.
    """
    r, n, q = (np.asarray(value, dtype=float) for value in (ratio, images, quantile))
    centre = (r + q**2 / (2 * n)) / (1 + q**2 / n)
    width = q * np.sqrt(r * (1 - r) / n + q**2 / (4 * n**2)) / (1 + q**2 / n)
    low, high = np.where(r == 0, 0.0, centre - width), np.where(r == 1, 1.0, centre + width)  # exactly, as in SQL
    interval: np.ndarray = np.clip(np.stack([low, high], axis=-1), 0, 1)
    return interval
