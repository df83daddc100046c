"""Stopping a run between two steps, with everything saved."""

from collections.abc import Callable

from torch import Tensor

from diffmem.models import (
    DenoiserFunction,
)

Stop = Callable[[], bool]


class Interrupted(Exception):
    """The run was asked to stop; all that is needed to go on is saved."""


def end_if(stop: Stop) -> None:
    """Raise Interrupted if the run was asked to stop."""
    if stop():
        raise Interrupted


class Interruptible:
    """A denoiser that is asked to stop between two noise levels, so that a long generation can be left."""

    def __init__(self, denoiser: DenoiserFunction, stop: Stop) -> None:
        self.denoiser, self.stop = denoiser, stop
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoise, or raise Interrupted."""
        if self.stop():
            raise Interrupted
        return self.denoiser(noisy, sigma, labels)
