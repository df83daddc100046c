"""The closed-form optimum of the training objective, which can only replicate training images."""

import torch
from torch import Tensor


class OptimalDenoiser:
    """The denoiser that minimises the training loss over all functions (Gu et al. 2023, Eq. 2 and Appendix A).

    D*(z; sigma) = sum_n softmax_n(-||x_n - z||^2 / (2 sigma^2)) x_n over the training images x_n, [N, c, h, w]
    in -1..1. With `labels` [N], the sum is over the images of the class that is asked for (A.3).
    """

    sigma_min, sigma_max = 0.0, float("inf")
    largest_block = 1 << 24  # entries of a distance matrix held at once

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images.flatten(1).double()
        self.norms = self.images.square().sum(dim=1)
        self.labels = labels

    def __call__(self, noisy: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Return the posterior mean [n, c, h, w], float32, of `noisy` at `sigma` ([n] or scalar).

        Raises ValueError for a label that no training image has: the mean over no images does not exist.
        """
        if labels is not None and self.labels is not None and not torch.isin(labels, self.labels).all():
            raise ValueError("a label that no training image has: its optimum does not exist")
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).expand(len(noisy))
        rows = max(1, self.largest_block // len(self.images))
        parts = []
        for start in range(0, len(noisy), rows):
            block = slice(start, start + rows)
            wanted = None if labels is None else labels[block]
            parts.append(self._mean(noisy[block].flatten(1).double(), sigma[block], wanted))
        return torch.cat(parts).reshape(noisy.shape).float()

    def _mean(self, z: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        # ||z||^2 is the same for all n, so the softmax does not need it
        logits = (z @ self.images.T).sub_(self.norms / 2).div_(sigma[:, None] ** 2)
        if labels is not None and self.labels is not None:
            logits.masked_fill_(labels[:, None] != self.labels, -torch.inf)
        return logits.softmax(dim=1) @ self.images
