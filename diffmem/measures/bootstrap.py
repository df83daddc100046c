"""The bootstrap over images: 95% intervals of whatever is computed from means over them."""

import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 1000


@lru_cache(maxsize=8)
def resampled(n: int, *, name: str, seed: int) -> Array:
    """Return the weight of each of n images in each resample, [1000, n]; the rows add up to 1 (Efron 1979)."""
    generator = np.random.default_rng([zlib.crc32(f"bootstrap/{name}".encode()), seed])
    weights = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    weights.flags.writeable = False  # measures share it
    return weights


def ends(values: Array, resamples: Array) -> tuple[Array, Array]:
    """Return the ends of the 95% percentile intervals [...] of values [...], from their resamples [1000, ...]."""
    low, high = np.quantile(resamples, [0.025, 0.975], axis=0)
    return np.minimum(low, values), np.maximum(high, values)


def half_samples(n: int, count: int, *, name: str, seed: int) -> npt.NDArray[np.int64]:
    """Return the positions of random halves of n images without replacement, ascending, [count, n // 2].

    A statistic varies over halves as much as over new samples of n images, also one of nearest neighbours, which an
    image that is drawn twice would spoil (Politis & Romano 1994; Shao & Wu 1989).
    """
    generator = np.random.default_rng([zlib.crc32(f"halves/{name}".encode()), seed])
    return np.sort([generator.permutation(n)[: n // 2] for _ in range(count)], axis=1)
