"""How many distinct training images are copied: by how many generated images, how often, and by which share of them.

All follows from how many training images are copied how often: f_k, the number of those with k copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffmem.measures import NORMAL

Array = npt.NDArray[np.float64]
Frequencies = Mapping[int, int]
"""f_k, by k: training images that k generated images are copies of, k at least 1."""

RESAMPLES = 1000
POISSON = {0: (0.0, 3.69), 1: (0.97, 4.57)}
"""How far Poisson's 95% interval reaches below and above a count of 0 and of 1 (Garwood 1936)."""


def distinct(frequencies: Frequencies) -> int:
    """Return how many training images are copied."""
    return sum(frequencies.values())


def accumulated(frequencies: Frequencies, images: int, counts: npt.ArrayLike, *, size: int) -> tuple[Array, Array]:
    """Return how many distinct training images n of `images` generated ones copy, on average over all orders, [counts],
    and its 95% interval over other images of the same model, [counts, 2] (Colwell et al. 2012, Eq. 4 and 5).

    With f_k training images of k copies, S(n) = sum (1 - a_k) f_k with a_k = C(M - k, n) / C(M, n), and its variance
    is sum (1 - a_k)^2 f_k - S(n)^2 / S, where S is Chao's estimate of all that are ever copied, `size` at most. Where
    one or none is copied once, which gives no variance, others may be as far as Poisson's interval of that number.
    """
    n = np.asarray(counts, dtype=float)
    k, f = (np.array([*each], dtype=float) for each in (frequencies.keys(), frequencies.values()))
    seen = 1 - _unseen(k[:, None], n, images)
    mean = (seen * f[:, None]).sum(axis=0)
    variance = (seen**2 * f[:, None]).sum(axis=0) - mean**2 / max(1.0, all_ever(frequencies, images, size=size))
    width = NORMAL * np.sqrt(np.maximum(0.0, variance))
    most, once = np.minimum(n, size), frequencies.get(1, 0)
    least = POISSON.get(once, (0.0, 0.0))
    below, above = np.maximum(width, least[0]), np.maximum(width, least[1])
    return mean, np.stack([np.clip(mean - below, 0, most), np.clip(mean + above, 0, most)], axis=-1)


def _unseen(k: Array, n: Array, images: int) -> Array:
    """Return the chance that none of k of `images` is among n of them, C(M - k, n) / C(M, n)."""
    from scipy.special import gammaln  # a tenth of a second that most commands do without

    left = images - k - n
    logs = gammaln(images - k + 1) - gammaln(np.maximum(left, 0) + 1) - gammaln(images + 1) + gammaln(images - n + 1)
    return np.where(left < 0, 0.0, np.exp(logs))


def all_ever(frequencies: Frequencies, images: int, *, size: int) -> float:
    """Return an estimate, from below, of how many of `size` training images any number of generated ones would copy
    (Chao 1984, bias-corrected)."""
    once, twice = frequencies.get(1, 0), frequencies.get(2, 0)
    more = (images - 1) / images * once * (once - 1) / (2 * (twice + 1))
    return min(float(size), distinct(frequencies) + more)


def at_least(frequencies: Frequencies, times: int) -> int:
    """Return how many training images are copied at least so many times (Carlini et al. 2023: eidetic memorization)."""
    return sum(images for copies, images in frequencies.items() if copies >= times)


# --- concentration -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concentration:
    """Which share of all copies the training images have that are copied most, a hundredth of them."""

    images: int  # a hundredth of the training images, rounded up
    share: float
    interval: tuple[float, float]  # 95%, over training images
    even: float  # what it would be if each copy were of any training image alike


def concentration(frequencies: Frequencies, *, size: int, seed: int = 0) -> Concentration | None:
    """Return the concentration of copies on the training images copied most; None where nothing is copied."""
    if not frequencies:
        return None
    copies = np.array([*sorted(frequencies, reverse=True), 0])
    having = np.array([frequencies.get(int(each), 0) for each in copies[:-1]] + [0])
    having[-1] = size - having.sum()
    top = -(-size // 100)
    resampled = np.random.default_rng(seed).multinomial(size, having / size, size=RESAMPLES)
    share, resampled_shares = _top_share(copies, having[None], top)[0], _top_share(copies, resampled, top)
    low, high = np.quantile(resampled_shares, [0.025, 0.975])
    interval = min(float(low), float(share)), max(float(high), float(share))
    return Concentration(top, float(share), interval, _even(int((copies * having).sum()), size, top))


def _top_share(copies: npt.NDArray[np.int64], having: npt.NDArray[np.int64], top: int) -> Array:
    """Return which share of all copies the `top` images have, where `having` [..., v] images have copies [v], the most
    first."""
    taken = np.minimum(having.cumsum(axis=1), top)
    taken = np.diff(taken, axis=1, prepend=0)
    shares: Array = (taken * copies).sum(axis=1) / np.maximum(1, (having * copies).sum(axis=1))
    return shares


def _even(copies: int, size: int, top: int) -> float:
    """Return which share of copies the `top` of `size` images have if each has a Poisson number of them: the sum over k
    of min(top, the images with at least k), for the copies beyond the k-th are in no image without it."""
    from scipy.stats import poisson

    mean = copies / size
    most = int(poisson.isf(1e-12, mean)) + 1
    having = size * poisson.sf(np.arange(most), mean)  # with at least 1, 2, ...
    return float(min(1.0, np.minimum(top, having).sum() / copies))
