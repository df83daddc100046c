"""Membership: whether an image's denoising loss gives away that the model was trained on it."""

import zlib
from typing import TYPE_CHECKING

from diffmem.measures.intervals import wilson
from diffmem.measures.of_denoiser import DenoiserMeasure, ImageSet, LevelErrors, LevelValue, SetErrors, level_values

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

FALSE_POSITIVES = 0.01
"""Share of held-out images that may be called members (Carlini et al. 2022, Sec. 4)."""


def _values(errors: LevelErrors) -> list[LevelValue]:
    """Return how well two scores tell members from held-out images: at each noise level, and as an attack would."""
    found: list[LevelValue] = []
    for name, score in (("loss", loss), ("excess", excess)):
        members, others = score(errors.training), score(errors.held_out)
        found += _at_each_level(name, members, others, errors)
        found += _told(name, members, others, errors)
    return found


def loss(errors: SetErrors) -> "Array":
    """Return the score that is the denoising loss, [n, levels]; that of a member is lower."""
    return errors.loss


def excess(errors: SetErrors) -> "Array":
    """Return the score that is the denoising loss beyond that of the optimum, [n, levels]."""
    return errors.loss - errors.optimum_loss


def _at_each_level(name: str, members: "Array", others: "Array", errors: LevelErrors) -> list[LevelValue]:
    """Return area under the curve and true-positive rate at 1% false positives at each noise level, of all images."""
    import numpy as np

    n, levels = len(members) + len(others), range(len(errors.sigmas))
    weights = _weights(members, others, errors.seed)
    curves = [area_with_interval(members[:, k], others[:, k], weights) for k in levels]
    areas, lows, highs = (np.array(each) for each in zip(*curves, strict=True))
    rates = np.array([(members[:, k] < threshold(others[:, k])).mean() for k in levels])
    intervals = wilson(rates, len(members))
    return [
        *level_values(f"auc_{name}", "both", errors.sigmas, values=areas, ends=(lows, highs), n=n),
        *level_values(
            f"tpr_{name}",
            "training",
            errors.sigmas,
            values=rates,
            ends=(intervals[:, 0], intervals[:, 1]),
            n=len(members),
        ),
    ]


def _told(name: str, members: "Array", others: "Array", errors: LevelErrors) -> list[LevelValue]:
    """Return what an attack achieves on one half of the images with the noise level and threshold of the other half."""
    chosen_members, told_members = halves(members, name="training", seed=errors.seed)
    chosen_others, told_others = halves(others, name="held_out", seed=errors.seed)
    areas = [area(chosen_members[:, k], chosen_others[:, k]) for k in range(len(errors.sigmas))]
    k = areas.index(max(areas))
    sigma, at = errors.sigmas[k], threshold(chosen_others[:, k])
    weights = _weights(told_members, told_others, errors.seed)
    value, low, high = area_with_interval(told_members[:, k], told_others[:, k], weights)
    n = len(told_members) + len(told_others)
    found = [LevelValue(f"told_auc_{name}", "both", sigma, value, low, high, n)]
    sets: tuple[tuple[str, ImageSet, Array], ...] = (
        ("tpr", "training", told_members),
        ("fpr", "held_out", told_others),
    )
    for rate, images, scores in sets:
        share = float((scores[:, k] < at).mean())
        low, high = wilson(share, len(scores)).tolist()
        found.append(LevelValue(f"told_{rate}_{name}", images, sigma, share, low, high, len(scores)))
    return found


def halves(values: "Array", *, name: str, seed: int) -> "tuple[Array, Array]":
    """Return two halves of images at random, so that their order, by classes, does not matter."""
    import numpy as np

    order = np.random.default_rng([zlib.crc32(f"halves/{name}".encode()), seed]).permutation(len(values))
    half = len(values) // 2
    return values[order[:half]], values[order[half:]]


def threshold(others: "Array") -> float:
    """Return the largest score below which no more than 1% of others lie."""
    import numpy as np

    allowed = int(FALSE_POSITIVES * len(others))
    return float(np.partition(others, allowed)[allowed])


def area(members: "Array", others: "Array") -> float:
    """Return the area under the ROC curve: the share of pairs in which the member's score is lower, a tie half."""
    return float(_lower(members, others).mean())


def area_with_interval(members: "Array", others: "Array", weights: "tuple[Array, Array]") -> tuple[float, float, float]:
    """Return the area and its 95% interval, given the weights of members and of others in each resample."""
    import numpy as np

    from diffmem.measures.bootstrap import ends

    lower, (of_members, of_others) = _lower(members, others), weights
    value = np.asarray(lower.mean())
    low, high = ends(value, ((of_members @ lower) * of_others).sum(axis=1))
    return float(value), float(low), float(high)


def _weights(members: "Array", others: "Array", seed: int) -> "tuple[Array, Array]":
    """Return the weights of members and others in each resample."""
    from diffmem.measures.bootstrap import resampled  # numpy: the other modules know the measure without it

    return resampled(len(members), name="training", seed=seed), resampled(len(others), name="held_out", seed=seed)


def _lower(members: "Array", others: "Array") -> "Array":
    """Return 1 where a member's score is lower than another's, 0.5 where they are equal, [members, others]."""
    import numpy as np

    return np.heaviside(others[None, :] - members[:, None], 0.5)


MEMBERSHIP = DenoiserMeasure(
    name="membership",
    source="Carlini et al. 2022 and 2023; Matsumoto et al. 2023",
    finds="how well an image's denoising loss tells whether the model was trained on it",
    headline="told_auc_loss",
    least=4,
    values=_values,
)
