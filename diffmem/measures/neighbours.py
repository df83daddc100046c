"""The nearest training images of each generated one, exactly."""

from collections.abc import Iterator

import torch
from torch import Tensor

# A product of two values in -128..127 is at most 2^14, so a float32 sum of 1,024 of them is a whole number
# of at most 2^24: exact, whatever the order of the additions, and also where TF32 rounds its factors.
EXACT_TERMS = 1024

ROUNDING = 2.0**-24
"""Relative rounding of one float32 addition."""

CANDIDATES = 4

IMAGE_ROWS, TRAINING_ROWS, TRAINING_ROWS_ON_GPU = 4096, 2048, 16_384
"""Images compared at once: a CPU is fastest where they stay in its caches, a GPU where they fill it."""

SPARE = 4
"""Images that are kept beyond the nearest ones, whose ranks are rounded."""

WHOLE = 2**24
"""Up to which float32 holds every whole number."""

EXACT_SQUARES = 256
"""Squares of differences, each below 2^16, whose float32 sum is exact."""

MORE_ELEMENTS = 2**23
"""Values of training images that are compared one by one at once."""


@torch.inference_mode()
def two_nearest(images: Tensor, training_images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices [n, 2] and l2 distances [n, 2] of the two nearest training images of each image.

    `images` [n, c, h, w] and `training_images` [N, c, h, w] are uint8 on one device. Indices are int64; distances are
    float64, on the 0..255 scale, nearest first. Squared distances are exact whole numbers, and ties come in the order
    of their index. Memory beyond the data does not grow with n or N. Raises ValueError for fewer than two training
    images, for unequal shapes, or if either is not a uint8 tensor.
    """
    if any(getattr(each, "dtype", None) != torch.uint8 for each in (images, training_images)):
        raise ValueError("two nearest neighbours are of uint8 tensors; `memorization_ratio` takes arrays and lists too")
    if len(training_images) < 2:
        raise ValueError(f"two nearest neighbours need two training images, not {len(training_images)}")
    if images.shape[1:] != training_images.shape[1:]:
        shapes = f"{tuple(images.shape[1:])} and {tuple(training_images.shape[1:])}"
        raise ValueError(f"generated and training images differ in shape: {shapes}")
    parts = [_search(rows, training_images) for rows in torch.split(images, IMAGE_ROWS)]
    index = torch.cat([part[0] for part in parts]) if parts else images.new_empty((0, 2), dtype=torch.int64)
    squared = torch.cat([part[1] for part in parts]) if parts else images.new_empty((0, 2), dtype=torch.float64)
    return index, squared.double().sqrt()


@torch.inference_mode()
def nearest_distances(images: Tensor, training_images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices [n, 2] of the two nearest images and the l2 distances [n, count] (float64, on the 0..255
    scale) of the `count` nearest, ascending, in one pass over the training images.

    The arguments are those of `two_nearest`; there are `count` training images at least, and `count` is at least 2.
    Squared distances are exact; of equally near images the two with the lowest indices are named.
    """
    parts = [_search_more(rows, training_images, count) for rows in torch.split(images, IMAGE_ROWS)]
    index = torch.cat([part[0] for part in parts]) if parts else images.new_empty((0, 2), dtype=torch.int64)
    squared = torch.cat([part[1] for part in parts]) if parts else images.new_empty((0, count), dtype=torch.float64)
    return index, squared.sqrt()


def distances_between(images: Tensor, training_images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the squared l2 distances [n, m] of images to the training images from a position on, exact, and that."""
    x = _centred(images)
    x_norms = _squared_norms(x)
    for start, block in _blocks(training_images):
        yield start, _squared_distances(x, _centred(block), x_norms)


def _blocks(training_images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the training images in blocks of what their device compares best at once, each with its position."""
    rows = TRAINING_ROWS if training_images.device.type == "cpu" else TRAINING_ROWS_ON_GPU
    for start in range(0, len(training_images), rows):
        yield start, training_images[start : start + rows]


def _search(images: Tensor, training_images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and squared distances [n, 2] of the two nearest.

    One float32 product ranks them, and the best few are then computed exactly. Where another one could be nearer, as
    far as rounding goes, the row is computed exactly altogether.
    """
    x = _centred(images)
    x_norms = _squared_norms(x)
    kept, ranks = x.new_empty((len(x), 0), dtype=torch.int64), x.new_empty((len(x), 0))  # the best few so far
    guard, longest = torch.full((len(x),), torch.inf, device=x.device), x.new_zeros(())  # the best rank left out
    for start, block in _blocks(training_images):
        y = _centred(block)
        y_norms = _squared_norms(y)
        longest = torch.maximum(longest, y_norms.max().float())
        rank = torch.addmm((y_norms / 2).float(), x, y.T, alpha=-1)  # (||x - y||^2 - ||x||^2) / 2, rounded
        for _ in range(min(2, len(y))):
            column = rank.argmin(dim=1, keepdim=True)
            kept, ranks = torch.cat([kept, column + start], dim=1), torch.cat([ranks, rank.gather(1, column)], dim=1)
            rank.scatter_(1, column, torch.inf)
        guard = torch.minimum(guard, rank.amin(dim=1))
        ranks, order = ranks.sort(dim=1)
        if ranks.shape[1] > CANDIDATES:
            guard = torch.minimum(guard, ranks[:, CANDIDATES])
        kept, ranks = kept.gather(1, order)[:, :CANDIDATES], ranks[:, :CANDIDATES]
    chosen = kept.sort(dim=1).values  # lower index first
    index, squared = _exact_two(x, training_images, chosen)
    # n roundings, one after another, of a sum of products: n u / (1 - n u) of the sum of their sizes (Higham 2002, 3.1)
    roundings = (x.shape[1] + 3) * ROUNDING
    error = roundings / (1 - roundings) * (x_norms.sqrt() * longest.sqrt() + longest / 2)
    unsure = torch.nonzero(guard - error <= (squared[:, 1] - x_norms) / 2 + error)[:, 0]
    if len(unsure):
        index[unsure], squared[unsure] = _search_exactly(x[unsure], training_images)
    return index, squared


def _search_more(images: Tensor, training_images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices [n, 2] of the two nearest and the squared distances [n, count] of the `count` nearest.

    As `_search` does, but with products that are exact for most pairs, so that few are computed again.
    """
    x = _centred(images)
    x_norms = _squared_norms(x)
    ranks, kept, products, norms, heads = _best_ranked(x, training_images, count + SPARE + 1)
    longest, some = norms.amax(), min(count + SPARE, len(training_images))
    guard = ranks[:, -1].double() if some < len(training_images) else torch.full_like(x_norms, torch.inf)
    chosen, order = kept[:, :some].sort(dim=1)  # lower index first
    products = products[:, :some].gather(1, order)
    squared = x_norms[:, None] + norms[chosen] - 2 * products.double()
    # exact: sums of all parts but the last, at most WHOLE (Cauchy and Schwarz), and the whole sum, if it is below that
    inexact = (_head_norms(x)[:, None] * heads[chosen] > WHOLE**2) | (products.abs() >= WHOLE)
    rounded = torch.nonzero(inexact.any(dim=1))[:, 0]
    for rows in torch.split(rounded, max(1, MORE_ELEMENTS // (some * x.shape[1]))):
        squared[rows] = _exact_squared(x[rows], training_images, chosen[rows])
    squared, order = squared.sort(dim=1, stable=True)
    index, squared = chosen.gather(1, order[:, :2]), squared[:, :count]
    margin = guard + x_norms - _rank_error(x_norms, longest, x.shape[1])  # what is left out is at least as far away
    unsure = torch.nonzero((margin < squared[:, -1]) | (margin <= squared[:, 1]))[:, 0]
    if len(unsure):
        index[unsure] = _search_exactly(x[unsure], training_images)[0]
        squared[unsure] = _smallest(images[unsure], training_images, count)
    return index, squared


def _best_ranked(x: Tensor, training_images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ranks ||y||^2 - 2 x.y, rounded, indices and products x.y [n, count] of the images y of the lowest ranks,
    ascending, as many as there are; and the squared norms [N] of all of them, whole and without their last part."""
    ranks, products = (x.new_empty((len(x), 0)) for _ in range(2))
    kept, norms, heads = x.new_empty((len(x), 0), dtype=torch.int64), [], []
    for start, block in _blocks(training_images):
        y = _centred(block)
        norms.append(_squared_norms(y))
        heads.append(_head_norms(y))
        product = x[:, :EXACT_TERMS] @ y[:, :EXACT_TERMS].T
        for first in range(EXACT_TERMS, x.shape[1], EXACT_TERMS):
            part = slice(first, first + EXACT_TERMS)
            product += x[:, part] @ y[:, part].T
        rank = torch.sub(norms[-1].float(), product, alpha=2)
        best, column = rank.topk(min(count, len(y)), dim=1, largest=False, sorted=False)
        ranks, kept = torch.cat([ranks, best], dim=1), torch.cat([kept, column + start], dim=1)
        products = torch.cat([products, product.gather(1, column)], dim=1)
        ranks, order = ranks.topk(min(count, ranks.shape[1]), dim=1, largest=False)
        kept, products = kept.gather(1, order), products.gather(1, order)
    return ranks, kept, products, torch.cat(norms), torch.cat(heads)


def _head_norms(rows: Tensor) -> Tensor:
    """Return the squared norms of rows without the last part of a product, float64 [n]; 0 where there is one part."""
    head = (rows.shape[1] - 1) // EXACT_TERMS * EXACT_TERMS
    return _squared_norms(rows[:, :head]) if head else rows.new_zeros(len(rows), dtype=torch.float64)


def _rank_error(x_norms: Tensor, longest: Tensor, pixels: int) -> Tensor:
    """Return by how much rounding can change a rank ||y||^2 - 2 x.y of each x [n], for y up to a squared norm."""
    sizes = longest + 2 * (x_norms * longest).sqrt()
    roundings = (-(-pixels // EXACT_TERMS) + 2) * ROUNDING  # one a part of the product, the norm's, and the rank's
    return torch.where(sizes <= WHOLE, 0.0, roundings / (1 - roundings) * sizes)


def _exact_squared(x: Tensor, training_images: Tensor, chosen: Tensor) -> Tensor:
    """Return the squared distances of each row to its chosen training images [n, k], exact, float64."""
    y = _centred(training_images[chosen].flatten(0, 1)).view(*chosen.shape, x.shape[1])
    difference = torch.split((y - x[:, None]).square_(), EXACT_SQUARES, dim=2)
    return torch.stack([part.sum(dim=2) for part in difference]).double().sum(dim=0)


def _smallest(images: Tensor, training_images: Tensor, count: int) -> Tensor:
    """Return the squared distances [n, count] of the `count` nearest images, ascending, each computed exactly."""
    nearest = torch.empty((len(images), 0), dtype=torch.float64, device=images.device)
    for _, squared in distances_between(images, training_images):
        nearest = torch.cat([nearest, squared], dim=1)
        nearest = nearest.topk(min(count, nearest.shape[1]), dim=1, largest=False).values
    return nearest


def _exact_two(x: Tensor, training_images: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two nearest of the chosen training images [n, k] of each row, exact."""
    squared = torch.stack(
        [(x - _centred(training_images[column])).double().square().sum(dim=1) for column in chosen.unbind(dim=1)], dim=1
    )
    values, order = _two_smallest(squared)
    return chosen.gather(1, order), values


def _search_exactly(x: Tensor, training_images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and squared distances [n, 2] of the two nearest, keeping the best two block by block."""
    x_norms = _squared_norms(x)
    index = torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    values = torch.empty((len(x), 0), dtype=torch.float64, device=x.device)
    for start, block in _blocks(training_images):
        y = _centred(block)
        nearest, column = _two_smallest(_squared_distances(x, y, x_norms))
        values, order = _two_smallest(torch.cat([values, nearest], dim=1))
        index = torch.cat([index, column + start], dim=1).gather(1, order)
    return index, values


def _centred(images: Tensor) -> Tensor:
    """Return uint8 images as rows of whole numbers in -128..127, float32 [n, pixels]."""
    return images.flatten(1).float().sub_(128)


def _squared_norms(rows: Tensor) -> Tensor:
    parts = torch.split(rows, EXACT_TERMS, dim=1)
    return torch.stack([part.square().sum(dim=1) for part in parts]).double().sum(dim=0)


def _squared_distances(x: Tensor, y: Tensor, x_norms: Tensor) -> Tensor:
    """||x||^2 + ||y||^2 - 2 x.y for all pairs, exact, float64 [n, m]."""
    squared = x_norms[:, None] + _squared_norms(y)
    for start in range(0, x.shape[1], EXACT_TERMS):
        part = slice(start, start + EXACT_TERMS)
        squared.sub_(x[:, part] @ y[:, part].T, alpha=2)
    return squared


def _two_smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two smallest of each row and their columns, [n, 2] each; the lower column first where equal."""
    columns = []
    smallest = []
    for _ in range(min(2, values.shape[1])):
        value, column = values.min(dim=1, keepdim=True)
        values = values.scatter(1, column, torch.inf)
        smallest.append(value)
        columns.append(column)
    return torch.cat(smallest, dim=1), torch.cat(columns, dim=1)
