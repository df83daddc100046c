"""The loss gap and the gap to the optimum: where a denoiser knows its training images, by noise level."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffmem.measures.of_denoiser import DenoiserMeasure, ImageSet, LevelErrors, LevelValue, SetErrors, level_values

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

OF_EACH_SET = ("loss", "optimum_loss", "to_optimum")


def _values(errors: LevelErrors) -> list[LevelValue]:
    """Return the mean errors of both sets, and the gap between their losses."""
    from diffmem.measures.bootstrap import ends, resampled  # numpy: the other modules know the measure without it

    sigmas = errors.sigmas
    training = resampled(len(errors.training.loss), name="training", seed=errors.seed)
    held_out = resampled(len(errors.held_out.loss), name="held_out", seed=errors.seed)
    found = _of_set("training", errors.training, training, sigmas) + _of_set(
        "held_out", errors.held_out, held_out, sigmas
    )
    lower, higher = errors.training.loss.mean(axis=0), errors.held_out.loss.mean(axis=0)
    lowers, highers = training @ errors.training.loss, held_out @ errors.held_out.loss
    n = len(errors.training.loss) + len(errors.held_out.loss)
    for quantity, values, resamples in (
        ("loss_gap", higher - lower, highers - lowers),
        ("relative_loss_gap", relative(lower, higher), relative(lowers, highers)),
    ):
        found += level_values(quantity, "both", sigmas, values=values, ends=ends(values, resamples), n=n)
    return found


def _of_set(images: ImageSet, each: SetErrors, weights: "Array", sigmas: Sequence[float]) -> list[LevelValue]:
    from diffmem.measures.bootstrap import ends

    found: list[LevelValue] = []
    for quantity in OF_EACH_SET:
        values: Array = getattr(each, quantity)
        mean = values.mean(axis=0)
        found += level_values(quantity, images, sigmas, values=mean, ends=ends(mean, weights @ values), n=len(values))
    return found


def relative(training: "Array", held_out: "Array") -> "Array":
    """Return the gap as a share of the held-out loss: 1 if the training loss is 0; 0 if both are."""
    import numpy as np

    return np.divide(held_out - training, held_out, out=np.zeros_like(held_out), where=held_out > 0)


GAPS = DenoiserMeasure(
    name="gaps",
    source="Gu et al. 2023, Eq. 2 and Appendix A; Kadkhodaie et al. 2024",
    finds="how much lower the denoising loss is on training images than on held-out ones, and how far the denoiser is "
    "from the closed-form optimum",
    headline="relative_loss_gap",
    least=2,
    values=_values,
)
