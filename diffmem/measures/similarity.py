"""Nearest training images by their features: by cosine similarity, and by l2 distance; exact up to float rounding."""

import torch
from torch import Tensor

from diffmem.measures.measure import Compared

ROWS, TRAINING_ROWS = 1024, 4096
"""Images and training images whose distances are there at once: 32 MiB in float64."""
CANDIDATES = 4
"""Of each chunk, how many are compared once more by the difference of the features themselves."""


def normalised(features: Tensor) -> Tensor:
    """Return features [n, d] scaled to length 1, float64; those of length 0 stay 0."""
    wide = features.double()
    scaled = wide / wide.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    unit: Tensor = scaled / scaled.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return unit


@torch.inference_mode()
def most_similar(features: Tensor, training_features: Tensor) -> Compared:
    """Return the training image of the highest cosine similarity s to each image, and 1 - s beside a yardstick of 1.

    1 - s = ||u - v||^2 / 2 of features scaled to length 1, which is exact for copies, where 1 - u.v rounds (Somepalli
    et al. 2023, Sec. 4: SSCD). The first of equally similar ones.
    """
    index, squared = _nearest(features, training_features, 1, unit=True)
    distance = (squared[:, 0] / 2).clamp(max=2.0)
    return Compared(index[:, 0], distance, torch.ones_like(distance))


@torch.inference_mode()
def two_nearest_features(features: Tensor, training_features: Tensor) -> Compared:
    """Return the nearest training image, the l2 distance to it and the one to the second nearest, of [N >= 2, d]."""
    index, squared = _nearest(features, training_features, 2, unit=False)
    distance = squared.sqrt()
    return Compared(index[:, 0], distance[:, 0], distance[:, 1])


def _nearest(features: Tensor, training_features: Tensor, count: int, *, unit: bool) -> tuple[Tensor, Tensor]:
    """Return indices and squared l2 distances [n, count] of the nearest, float64, the lower index first if equal."""
    parts = [_of_rows(rows, training_features, count, unit=unit) for rows in torch.split(features, ROWS)]
    index, squared = (torch.cat(each) for each in zip(*parts, strict=True))
    return index, squared


def _of_rows(rows: Tensor, training_features: Tensor, count: int, *, unit: bool) -> tuple[Tensor, Tensor]:
    x = normalised(rows) if unit else rows.double()
    index = torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    squared = torch.empty((len(x), 0), dtype=torch.float64, device=x.device)
    for start in range(0, len(training_features), TRAINING_ROWS):
        part = training_features[start : start + TRAINING_ROWS]
        y = normalised(part) if unit else part.double()
        rank = torch.addmm(y.square().sum(dim=1) / 2, x, y.T, alpha=-1)  # (||x - y||^2 - ||x||^2) / 2
        columns, _ = _smallest(rank, CANDIDATES)
        found = torch.stack([(x - y[column]).square().sum(dim=1) for column in columns.unbind(dim=1)], dim=1)
        index, squared = torch.cat([index, columns + start], dim=1), torch.cat([squared, found], dim=1)
        order = index.argsort(dim=1, stable=True)
        index, squared = index.gather(1, order), squared.gather(1, order)
        order, squared = _smallest(squared, count)
        index = index.gather(1, order)
    return index, squared


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the columns and values [n, k] of the smallest of each row, the lower column first where equal."""
    columns, smallest = [], []
    values = values.clone()
    for _ in range(min(count, values.shape[1])):
        value, column = values.min(dim=1, keepdim=True)
        values.scatter_(1, column, torch.inf)
        smallest.append(value)
        columns.append(column)
    return torch.cat(columns, dim=1), torch.cat(smallest, dim=1)
