"""The closed-form optimum of the training objective, which is not trained: it can only replicate training images."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from diffmem.errors import RunError
from diffmem.networks.member import UntrainedModel, Work

if TYPE_CHECKING:
    from torch import Tensor

    from diffmem.networks.closed_form import OptimalDenoiser


class Optimum(UntrainedModel):
    """M of the closed-form optimum (Gu et al. 2023, Eq. 2 and Appendix A)."""

    refusal: ClassVar[str] = "the optimum is no network: use OptimalDenoiser(training_images)"

    network: Literal["optimum"] = Field("optimum", description="the closed-form optimal denoiser, which is not trained")

    def work(self, *, resolution: int, channels: int, labels: int, size: int) -> Work:
        """Return the operations of two products with the training images."""
        return Work(0, 4 * size * channels * resolution**2)

    def from_images(self, images: "Tensor", labels: "Tensor | None", *, count: int) -> "OptimalDenoiser":
        """Return the optimum on training images; RunError if a label is on none of them."""
        from diffmem.networks.closed_form import OptimalDenoiser  # which loads torch

        used = 0 if labels is None else len(set(labels.tolist()))
        if used < count:
            raise RunError(
                f"only {used} of {count} labels are on a training image, and the others have no "
                "optimum; take fewer labels or a larger size"
            )
        return OptimalDenoiser(images, labels)
