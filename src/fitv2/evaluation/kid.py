"""The kernel distance between two sets of features (KID: arXiv 1801.01401, Section 4 and Appendix C.1).

The estimate is the U-statistic of the squared maximum mean discrepancy (arXiv 1206.0465, Eq. 3). It is unbiased for any
number of images, provided that they are independent. In a set with equally many images of each class by construction
they are not: two of its images share a class less often than by chance, so the plain mean over pairs is too low. For
such sets, the kernel is averaged over each pair of classes and weighted by the classes' fractions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import UserError
from .features import check_features

# Of the usual KID. Sets below twice the size use half of their images, so that subsets differ.
SUBSETS, SUBSET_SIZE = 100, 1000
# Kernel values that are computed at a time: 128 MiB in float64.
BLOCK = 1 << 24


@dataclass(frozen=True)
class KernelDistance:
    """value: unbiased, so it may be negative. error: its standard error over draws of the images, at least 0."""

    value: float
    error: float


def kernel_distance(
    a: Tensor, b: Tensor, classes_a: Tensor | None = None, classes_b: Tensor | None = None
) -> KernelDistance:
    """The squared maximum mean discrepancy of features (N, F) and (M, F), in float64.

    Args:
        classes_a: (N,) int64, for a set with a fixed number of images of each class, at least two of each class that
            occurs; None for independent draws.
        classes_b: (M,), the same for the other set.

    Raises:
        UserError: A set or a class has fewer than two images, or features are not finite, or from different networks.
    """
    check_features(a, b)
    if min(len(a), len(b)) < 2:
        raise UserError("the kernel distance needs at least two images of each set, and one has fewer")
    of_a, of_b = Strata.of(a, classes_a), Strata.of(b, classes_b)
    a, b = a.double(), b.double()
    within_a, within_b, between = Pairs.of(a, of_a, a, of_a), Pairs.of(b, of_b, b, of_b), Pairs.of(a, of_a, b, of_b)
    value = within_a.mean() + within_b.mean() - 2 * between.mean()
    # How much each image changes the estimate. The spread of these changes (a jackknife) counts the variance of pairs
    # twice (Efron and Stein 1981), so it is subtracted once.
    influence_a = within_a.of_rows() - between.of_rows()
    influence_b = within_b.of_rows() - between.transposed().of_rows()
    pairs = 2 * within_a.variance() + 2 * within_b.variance() + 4 * between.variance()
    variance = 4 * (of_a.variance(influence_a) + of_b.variance(influence_b)) - pairs
    # For equal distributions the true variance is `pairs`, but the jackknife scatters widely. With half of `pairs` as
    # minimum, the error is within 15 % of the true spread on average (simulated, from no difference to a large one).
    return KernelDistance(float(value), float(torch.maximum(variance, pairs / 2).sqrt()))


@dataclass(frozen=True)
class Strata:
    """classes: (N,), of each image, among K; counts, fractions: (K,), float64."""

    classes: Tensor
    counts: Tensor
    fractions: Tensor

    @classmethod
    def of(cls, features: Tensor, classes: Tensor | None) -> Strata:
        if classes is None:
            classes = torch.zeros(len(features), dtype=torch.int64)
        classes = classes.unique(return_inverse=True)[1]
        counts = classes.bincount().double()
        if counts.min() < 2:
            raise UserError("the kernel distance by classes needs at least two images of each class")
        return cls(classes, counts, counts / len(features))

    def variance(self, influence: Tensor) -> Tensor:
        """The variance of the weighted sum of the classes' mean influence, from that of each image (N,)."""
        means = influence.new_zeros(len(self.counts)).index_add_(0, self.classes, influence) / self.counts
        squares = (influence - means[self.classes]).square()
        of_class = squares.new_zeros(len(self.counts)).index_add_(0, self.classes, squares)
        return (self.fractions.square() / self.counts * of_class / (self.counts - 1)).sum()


@dataclass(frozen=True)
class Pairs:
    """The kernel between two sets, or within one, summed by class.

    rows: (N, D) sums over the columns of each class; columns: (M, C) sums over the rows of each class; squares: (C, D)
    sums of squares. Within a set no image is paired with itself, and `own` is True.
    """

    of_rows_set: Strata
    of_columns_set: Strata
    own: bool
    rows: Tensor
    columns: Tensor
    squares: Tensor

    @classmethod
    def of(cls, a: Tensor, of_a: Strata, b: Tensor, of_b: Strata) -> Pairs:
        own, step = a is b, max(BLOCK // len(b), 1)
        members_a, members_b = (one_hot(of.classes).double() for of in (of_a, of_b))
        rows, columns = a.new_zeros(len(a), len(of_b.counts)), a.new_zeros(len(b), len(of_a.counts))
        squares = a.new_zeros(len(of_a.counts), len(of_b.counts))
        for start in range(0, len(a), step):
            part = slice(start, start + step)
            block = cubic(a[part], b)
            if own:
                block.diagonal(start).zero_()
            rows[part] = block @ members_b
            columns += block.T @ members_a[part]
            squares += members_a[part].T @ (block.square_() @ members_b)
        return cls(of_a, of_b, own, rows, columns, squares)

    def transposed(self) -> Pairs:
        return Pairs(self.of_columns_set, self.of_rows_set, self.own, self.columns, self.rows, self.squares.T)

    @property
    def sums(self) -> Tensor:
        """(C, D)."""
        return self.rows.new_zeros(self.squares.shape).index_add_(0, self.of_rows_set.classes, self.rows)

    @property
    def numbers(self) -> Tensor:
        """(C, D), of pairs."""
        n, m = self.of_rows_set.counts, self.of_columns_set.counts
        return n[:, None] * m - (n.diag() if self.own else 0)

    def mean(self) -> Tensor:
        weights = torch.outer(self.of_rows_set.fractions, self.of_columns_set.fractions)
        return (weights * self.sums / self.numbers).sum()

    def of_rows(self) -> Tensor:
        """(N,): the mean kernel of each row's image with the other set, or with all other images of its own."""
        partners = self.numbers / self.of_rows_set.counts[:, None]
        return self.rows / partners[self.of_rows_set.classes] @ self.of_columns_set.fractions

    def variance(self) -> Tensor:
        """The part of the mean's variance that belongs to pairs and not to single images: the variance of the kernel
        after subtracting its row and column means (within a class: arXiv 1310.2926, Eq. 2.2), over the number of pairs.
        """
        n, m = self.of_rows_set.counts[:, None], self.of_columns_set.counts
        by_row = self.rows.new_zeros(self.squares.shape).index_add_(0, self.of_rows_set.classes, self.rows.square())
        by_column = self.columns.new_zeros(self.squares.T.shape)
        by_column = by_column.index_add_(0, self.of_columns_set.classes, self.columns.square()).T
        sums = self.sums.square()
        centred = (self.squares - by_row / m - by_column / n + sums / (n * m)) / ((n - 1) * (m - 1))
        if self.own:
            n = self.of_rows_set.counts
            diagonal = self.squares.diag() - 2 * by_row.diag() / (n - 2) + sums.diag() / ((n - 1) * (n - 2))
            # It cannot be estimated from three images or fewer.
            centred.diagonal().copy_(torch.where(n > 3, diagonal / (n * (n - 3)).clamp(min=1), 0))
        weights = torch.outer(self.of_rows_set.fractions, self.of_columns_set.fractions).square()
        return (weights * centred / self.numbers).sum().clamp(min=0)


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """(N, F) and (M, F) to (N, M): the polynomial kernel (x . y / F + 1)^3."""
    return torch.addmm(a.new_ones(()), a, b.T, alpha=1 / a.shape[1]).pow_(3)


def kid_of_subsets(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over 100 random pairs of subsets of up to 1 000 images: the KID of the papers.

    The standard deviation is that of one subset's value, several times the standard error of the mean. Images are
    treated as independent draws. Raises UserError like `kernel_distance`.
    """
    check_features(a, b)
    size = min(SUBSET_SIZE, max(min(len(a), len(b)) // 2, 2))
    generator = torch.Generator().manual_seed(0)  # Those of the golden fixture.

    def draw(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]].double()

    values = torch.tensor([unbiased_discrepancy(draw(a), draw(b)) for _ in range(SUBSETS)], dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def unbiased_discrepancy(a: Tensor, b: Tensor) -> float:
    """The squared maximum mean discrepancy of independent draws (N, F) and (M, F), N and M at least 2."""
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for n, kernel in ((len(x), cubic(x, x)) for x in (a, b))]
    return float(within[0] + within[1] - 2 * cubic(a, b).mean())
