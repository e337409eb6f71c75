"""Measures of image quality: Fréchet and kernel distance and nearest neighbours of features; the classifier score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..randomness import Purpose, torch_generator

# The error of a covariance by sums in float32, relative to its size.
COVARIANCE_ROUNDING = 1e-6
# Numbers of neighbours for precision and recall, for density and coverage (as their authors chose), and for votes.
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS, VOTERS = 3, 5, 5
# Of the papers' KID. Sets below twice the size use half of their images, so that subsets differ.
SUBSETS, SUBSET_SIZE = 100, 1000
# Numbers in a block of kernels or of squared distances: 128 MiB in float64.
BLOCK = 1 << 24
# Squared distances that differ by less than this, relative to the squared norms, count as equal.
DISTANCE_ROUNDING = 1e-12
# Images per part of the classifier score, as in ADM's evaluator and the first code, for 50 000.
PART = 5000


def check_features(*sets: Tensor) -> None:
    """Raises UserError unless all sets are finite features (N, F) of one network, with N at least 1."""
    for features in sets:
        if features.ndim != 2 or not len(features):
            raise UserError(f"features are (N, F) with at least one image, not {tuple(features.shape)}")
        if broken := int((~features.isfinite().all(1)).sum()):
            raise UserError(f"the features of {broken} of {len(features)} images are not finite numbers")
    if len(widths := {features.shape[1] for features in sets}) > 1:
        raise UserError(f"the features are {' and '.join(map(str, widths))} numbers: not of the same network")


# Fréchet distance (FID: arXiv 1706.08500, Eq. 6)


@dataclass(frozen=True)
class Statistics:
    """A Gaussian: mean (F,) and unbiased covariance (F, F) in float64, of `count` feature vectors (0 if unknown)."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Returns the statistics of features (N, F). Raises UserError for fewer than two rows, and for NaN."""
        running = RunningStatistics()
        running.add(features)
        return running.result()


class RunningStatistics:
    """Statistics of features that arrive in batches, for sets that do not fit into memory."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Adds features (N, F) by the update of Chan et al. (Stanford STAN-CS-79-773, Eq. 2.1).

        Raises UserError for features that are not finite.
        """
        check_features(features)
        features = features.double()
        mean = features.mean(0)
        difference, total = mean - self.mean, self.count + len(features)
        between = torch.outer(difference, difference) * (self.count * len(features) / total)
        self.scatter = self.scatter + (features - mean).T @ (features - mean) + between
        self.mean = self.mean + difference * (len(features) / total)
        self.count = total

    def result(self) -> Statistics:
        """Returns the statistics so far. Raises UserError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"statistics need at least two feature vectors (N, F), and there are {self.count}")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), so the trace of its root is the sum of their
    roots. This is real and exact for singular covariances as well, where the root of the product itself is neither.
    Raises UserError like `check_features` and `check_statistics`.
    """
    check_statistics(a)
    check_statistics(b)
    check_features(a.mean[None], b.mean[None])
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float((a.mean - b.mean).square().sum() + spread), 0.0)


def check_statistics(statistics: Statistics) -> None:
    """Raises UserError unless mean and covariance are finite, and the latter is symmetric and positive semidefinite.

    With negative eigenvalues in a covariance, the formula would give a distance that is too small, or none at all.
    """
    mean, covariance = statistics.mean, statistics.covariance.double()
    if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise UserError(f"a mean (F,) and a covariance (F, F) are wanted, and these are {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("the statistics hold numbers that are not finite: compute them again")
    size = torch.linalg.matrix_norm(covariance)
    if (covariance - covariance.T).abs().max() > COVARIANCE_ROUNDING * size:
        raise UserError("the covariance is not symmetric: compute it again")
    # It has a Cholesky factor if all eigenvalues are above minus what rounding may do.
    raised = (covariance + covariance.T) / 2
    raised.diagonal().add_(COVARIANCE_ROUNDING * size)
    if size > 0 and torch.linalg.cholesky_ex(raised).info:
        raise UserError("the covariance has negative eigenvalues: compute it again, in float64")


# Kernel distance (KID: arXiv 1801.01401, Section 4 and Appendix C.1)


def kernel_distance(
    a: Tensor, b: Tensor, strata_a: Tensor | None = None, strata_b: Tensor | None = None
) -> tuple[float, float]:
    """Returns the squared maximum mean discrepancy of features (N, F) and (M, F), and its standard error, in float64.

    The estimate is the U-statistic (arXiv 1206.0465, Eq. 3). It may be negative, and is unbiased for any number of
    images, provided that they are independent. In a set with equally many images of each class by construction they are
    not: two of its images share a class less often than by chance, so the plain mean over pairs is too low. For such
    sets the classes are given as strata, (N,) and (M,) int64; the kernel is averaged over each pair of classes and
    weighted by the classes' fractions. Raises UserError if a set or a class has fewer than two images, and like
    `check_features`.
    """
    check_features(a, b)
    # Both sets are one, whose classes have the weight of their fraction, those of b a negative one.
    of_a, of_b = (
        torch.zeros(len(x), dtype=torch.int64) if strata is None else strata.unique(return_inverse=True)[1]
        for x, strata in ((a, strata_a), (b, strata_b))
    )
    first = int(of_a.max()) + 1
    classes = torch.cat([of_a, of_b + first])
    counts = classes.bincount().double()
    if counts.min() < 2:
        raise UserError("the kernel distance needs at least two images of each set, and by classes of each class")
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
    return float(value), float(torch.maximum(variance, of_pairs / 2).sqrt())


def _by_class(values: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    """Returns the sums (C, ...) of values (N, ...) over the images of each class."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add_(0, classes, values)


def _kernel_sums(x: Tensor, classes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sums (N, C) of the kernel of each image with the others of each class, and (C, C) of squares over pairs.

    No image is paired with itself.
    """
    rows, squares = x.new_zeros(len(x), len(counts)), x.new_zeros(len(counts), len(counts))
    step = max(BLOCK // len(x), 1)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        # The polynomial kernel (x . y / F + 1)^3.
        block = torch.addmm(x.new_ones(()), x, x[part].T, alpha=1 / x.shape[1]).pow_(3)
        block.diagonal(-start).zero_()
        rows[part] = _by_class(block, classes, counts).T
        squares += _by_class(_by_class(block.square_(), classes, counts).T, classes[part], counts)
    return rows, squares


def _pair_variance(rows: Tensor, squares: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    """Returns the part (C, C) of the kernel's variance that belongs to pairs and not to single images.

    This is the variance of the kernel after subtracting its row and column means (within a class: arXiv 1310.2926, Eq.
    2.2).
    """
    n, m = counts[:, None], counts
    sums, by_row = _by_class(rows, classes, counts).square(), _by_class(rows.square(), classes, counts)
    centred = (squares - by_row / m - by_row.T / n + sums / (n * m)) / ((n - 1) * (m - 1))
    within = squares.diag() - 2 * by_row.diag() / (m - 2) + sums.diag() / ((m - 1) * (m - 2))
    # It cannot be estimated from three images or fewer.
    return centred.diagonal_scatter(torch.where(m > 3, within / (m * (m - 3)).clamp(min=1), 0))


def kid_of_subsets(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation over 100 random pairs of subsets of up to 1 000 images: the papers' KID.

    The standard deviation is that of one subset's value, several times the standard error of the mean. Images are
    treated as independent draws. Raises UserError like `kernel_distance`.
    """
    check_features(a, b)
    size = min(SUBSET_SIZE, max(min(len(a), len(b)) // 2, 2))
    generator = torch.Generator().manual_seed(0)  # Of the golden fixture.
    values = [
        kernel_distance(*(x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)))[0]
        for _ in range(SUBSETS)
    ]
    return float(np.mean(values)), float(np.std(values))


# Nearest neighbours


def compare_neighbours(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Returns precision, recall, density and coverage of features (N, F) of samples and (M, F) of real images.

    Each set is a union of balls around its images, out to the k-th nearest other one.

    precision: Fraction in [0, 1] of samples inside a ball of the real images (arXiv 1904.06991, Eq. 2; k = 3).
    recall: Fraction in [0, 1] of real images inside a ball of the samples (Eq. 3).
    density: Number of real balls that a sample lies in, on average and over k (arXiv 2002.09797, Eq. 4; k = 5).
    coverage: Fraction in [0, 1] of real balls that hold a sample (Eq. 5).

    Distances are float64 and computed in blocks of rows: 50 000 against 50 000 images with 2048 features need 2 GB.
    Raises UserError for a set of 5 images or fewer, and like `check_features`.
    """
    samples, real = _centred(samples, real, DENSITY_NEIGHBOURS)
    equal = DISTANCE_ROUNDING * float(max(_squared_norms(samples).max(), _squared_norms(real).max()))
    small, large = (_radii(real, PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS) + equal).T
    own = _radii(samples, PRECISION_NEIGHBOURS)[:, 0] + equal
    precise = within = 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, block in _distances(samples, real):
        precise += int((block <= small).any(1).sum())
        recalled |= (block <= own[rows, None]).any(0)
        inside = block <= large
        within += int(inside.sum())
        covered |= inside.any(0)
    return {
        "precision": precise / len(samples),
        "recall": float(recalled.double().mean()),
        "density": within / len(samples) / DENSITY_NEIGHBOURS,
        "coverage": float(covered.double().mean()),
    }


def vote(features: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Returns for each of the features (N, F) the most frequent label among its 5 nearest of `known`, (N,) int64.

    The features `known` (M, F) have the labels (M,). Ties go to the label that is nearer in sum. If `features` is
    `known`, an image has no vote on itself. Raises UserError like `compare_neighbours`.
    """
    itself = features is known
    features, known = _centred(features, known, VOTERS)
    chosen, classes = [], int(labels.max()) + 1
    for rows, block in _distances(features, known):
        if itself:
            block.diagonal(rows.start).fill_(torch.inf)
        nearest, index = block.topk(VOTERS, largest=False)
        # Nearness adds less than one vote in all, so it only decides between equal numbers.
        nearness = 1 - nearest / nearest[:, -1:].clamp(min=1e-300)
        votes = torch.zeros(len(block), classes, dtype=block.dtype)
        chosen.append(votes.scatter_add_(1, labels[index], 1 + nearness / (VOTERS + 1)).argmax(1))
    return torch.cat(chosen)


def _centred(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns both in float64 around the mean of b, because a common offset would only cost digits."""
    check_features(a, b)
    if min(len(a), len(b)) <= k:
        raise UserError(f"{k} nearest neighbours need more than {k} images, and there are {min(len(a), len(b))}")
    origin = b.mean(0, dtype=torch.float64)
    return a.to(torch.float64, copy=True).sub_(origin), b.to(torch.float64, copy=True).sub_(origin)


def _squared_norms(features: Tensor) -> Tensor:
    """Returns (N,), without a second copy of the features, as their squares would be."""
    return torch.linalg.vector_norm(features, dim=1).square()


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields some rows of a (N, F) and their squared distances (n, M) to b (M, F)."""
    norms, step = _squared_norms(b), max(BLOCK // len(b), 1)
    for start in range(0, len(a), step):
        rows = a[start : start + step]
        block = (_squared_norms(rows)[:, None] + norms).addmm_(rows, b.T, alpha=-2).clamp_(min=0)
        yield slice(start, start + len(rows)), block


def _radii(features: Tensor, *neighbours: int) -> Tensor:
    """Returns the squared distance (N, K) of each image to its k-th nearest other one, for each k of `neighbours`."""
    # The nearest of all is the image itself, or its equal.
    nearest = [block.topk(max(neighbours) + 1, largest=False).values for _, block in _distances(features, features)]
    return torch.cat(nearest)[:, list(neighbours)]


# Classifier score (with Inception v3 the Inception Score: arXiv 1606.03498, Section 4)


def classifier_score(probabilities: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation over parts of about 5 000 images of exp(H(mean of p) - mean of H(p)).

    Each score is in [1, K] for probabilities (N, K). The order is shuffled first, for sets that are sorted by class.
    Raises UserError without images, or if a row is not a distribution.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise UserError(f"probabilities are (N, K) with at least one image, not {tuple(probabilities.shape)}")
    p = probabilities.double()
    # NaN is caught as well.
    if not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-3) or (p < 0).any():
        raise UserError("these are not probabilities: some are below 0, or do not sum to 1 for every image")
    p = p[torch.randperm(len(p), generator=torch_generator(Purpose.SPLITS, 0))]
    parts = p.tensor_split(max(round(len(p) / PART), 1))
    entropy = torch.special.entr
    scores = torch.stack([(entropy(part.mean(0)).sum() - entropy(part).sum(1).mean()).exp() for part in parts])
    return float(scores.mean()), float(scores.std(correction=0))
