"""The kernel distance between two sets of features (KID: arXiv 1801.01401, Section 4 and Appendix C.1).

The estimate is the U-statistic of the squared maximum mean discrepancy (arXiv 1206.0465, Eq. 3). It is unbiased for any
number of images, provided that they are independent. In a set with equally many images of each class by construction
they are not: two of its images share a class less often than by chance, so the plain mean over pairs is too low. For
such sets, the kernel is averaged over each pair of classes and weighted by the classes' fractions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .metrics import BLOCK, check_features

# As in the papers' KID. Sets below twice the size use half of their images, so that subsets differ.
SUBSETS, SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate, which may be negative, and its standard error over draws of the images, at least 0."""

    value: float
    error: float


def kernel_distance(
    a: Tensor, b: Tensor, classes_a: Tensor | None = None, classes_b: Tensor | None = None
) -> KernelDistance:
    """Returns the squared maximum mean discrepancy of features (N, F) and (M, F), computed in float64.

    Args:
        a: (N, F).
        b: (M, F).
        classes_a: (N,) int64, for a set with a fixed number of images of each class, at least two of each class that
            occurs; None for independent draws.
        classes_b: (M,), the same for the other set.

    Raises:
        UserError: A set or a class has fewer than two images, or features are not finite, or from different networks.
    """
    check_features(a, b)
    if min(len(a), len(b)) < 2:
        raise UserError("the kernel distance needs at least two images of each set, and one has fewer")
    # Both sets are one, whose classes have the weight of their fraction, those of b a negative one.
    of_a, of_b = (_numbered(x, classes) for x, classes in ((a, classes_a), (b, classes_b)))
    first = int(of_a.max()) + 1
    classes = torch.cat([of_a, of_b + first])
    counts = classes.bincount().double()
    if counts.min() < 2:
        raise UserError("the kernel distance by classes needs at least two images of each class")
    weights = torch.cat([counts[:first] / len(a), -counts[first:] / len(b)])
    rows, squares = _kernel_sums(torch.cat([a, b]).double(), classes, counts)
    pairs = counts[:, None] * counts - counts.diag()
    sums = _by_class(rows, classes, counts)
    value = (torch.outer(weights, weights) * sums / pairs).sum()
    # How much each image changes the estimate. The spread of these changes (a jackknife) counts the variance of pairs
    # twice (Efron and Stein 1981), so it is subtracted once.
    influence = torch.linalg.vecdot(rows, (weights * counts[:, None] / pairs)[classes])
    means = _by_class(influence, classes, counts) / counts
    spread = _by_class((influence - means[classes]).square(), classes, counts) / (counts - 1)
    by_pair = torch.outer(weights, weights).square() * _pair_variance(rows, squares, classes, counts) / pairs
    within_a, within_b, between = by_pair[:first, :first], by_pair[first:, first:], by_pair[:first, first:]
    of_pairs = 2 * sum((part.sum().clamp(min=0) for part in (within_a, within_b, between, between)), torch.zeros(()))
    variance = 4 * (weights.square() / counts * spread).sum() - of_pairs
    # For equal distributions the true variance is `of_pairs`, but the jackknife scatters widely. With half of it as
    # minimum, the error is within 15 % of the true spread on average (simulated, from no difference to a large one).
    return KernelDistance(float(value), float(torch.maximum(variance, of_pairs / 2).sqrt()))


def _numbered(features: Tensor, classes: Tensor | None) -> Tensor:
    """The classes of a set (N,), from 0 on without gaps; one class for independent draws."""
    classes = torch.zeros(len(features), dtype=torch.int64) if classes is None else classes
    return classes.unique(return_inverse=True)[1]


def _by_class(values: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    """(N, ...) summed over the images of each class: (C, ...)."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add_(0, classes, values)


def _kernel_sums(x: Tensor, classes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (N, C) of the kernel of each image with the others of each class, and (C, C) of squares over pairs.

    No image is paired with itself.
    """
    rows, squares = x.new_zeros(len(x), len(counts)), x.new_zeros(len(counts), len(counts))
    step = max(BLOCK // len(x), 1)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        block = cubic(x, x[part])
        block.diagonal(-start).zero_()
        rows[part] = _by_class(block, classes, counts).T
        squares += _by_class(_by_class(block.square_(), classes, counts).T, classes[part], counts)
    return rows, squares


def _pair_variance(rows: Tensor, squares: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    """(C, C): the part of the kernel's variance that belongs to pairs and not to single images.

    This is the variance of the kernel after subtracting its row and column means (within a class: arXiv 1310.2926, Eq.
    2.2).
    """
    n, m = counts[:, None], counts
    sums, by_row = _by_class(rows, classes, counts).square(), _by_class(rows.square(), classes, counts)
    centred = (squares - by_row / m - by_row.T / n + sums / (n * m)) / ((n - 1) * (m - 1))
    within = squares.diag() - 2 * by_row.diag() / (m - 2) + sums.diag() / ((m - 1) * (m - 2))
    # It cannot be estimated from three images or fewer.
    return centred.diagonal_scatter(torch.where(m > 3, within / (m * (m - 3)).clamp(min=1), 0))


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """Returns the polynomial kernel (x . y / F + 1)^3 of (N, F) and (M, F), as (N, M)."""
    return torch.addmm(a.new_ones(()), a, b.T, alpha=1 / a.shape[1]).pow_(3)


def kid_of_subsets(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation over 100 random pairs of subsets of up to 1 000 images: the papers' KID.

    The standard deviation is that of one subset's value, several times the standard error of the mean. Images are
    treated as independent draws. Raises UserError like `kernel_distance`.
    """
    check_features(a, b)
    size = min(SUBSET_SIZE, max(min(len(a), len(b)) // 2, 2))
    generator = torch.Generator().manual_seed(0)  # Those of the golden fixture.

    def draw(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]]

    values = [kernel_distance(draw(a), draw(b)).value for _ in range(SUBSETS)]
    return float(np.mean(values)), float(np.std(values))
