"""Measures of image quality from features or class probabilities: Fréchet distance, neighbours, classifier score.

The kernel distance (KID) has a module of its own, `kernel_distance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..randomness import Purpose, torch_generator

# What rounding of sums in float32 may do to a covariance, relative to its size.
COVARIANCE_ROUNDING = 1e-6
# Of precision and recall, of density and coverage (as their authors chose them), and of the vote on a class.
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS, VOTERS = 3, 5, 5
# Numbers in a block of squared distances: 128 MiB in float64.
BLOCK = 1 << 24
# Squared distances that differ by less, relative to the squared norms, count as equal.
DISTANCE_ROUNDING = 1e-12
# Images per part of the classifier score, as in ADM's evaluator and the first code, for 50 000.
PART = 5000


def check_features(*sets: Tensor) -> None:
    """Raises UserError unless all sets are finite features (N, F) of one network, with N at least 1."""
    for features in sets:
        if features.ndim != 2 or not len(features):
            raise UserError(f"features are (N, F) with at least one image, not {tuple(features.shape)}")
        if not features.isfinite().all():
            broken = int((~features.isfinite().all(1)).sum())
            raise UserError(f"the features of {broken} of {len(features)} images are not finite numbers")
    if len({features.shape[1] for features in sets}) > 1:
        numbers = " and ".join(str(features.shape[1]) for features in sets)
        raise UserError(f"the features are {numbers} numbers: not of the same network")


# Fréchet distance (FID: arXiv 1706.08500, Eq. 6)


@dataclass(frozen=True)
class Statistics:
    """A Gaussian: mean (F,) and unbiased covariance (F, F) in float64, of `count` feature vectors (0 if unknown)."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """The statistics of features (N, F). Raises UserError for fewer than two rows, and for NaN."""
        running = RunningStatistics()
        running.add(features)
        return running.result()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Writes a safetensors file with `metadata` in its header."""
        tensors = {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor(self.count)}
        save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Reads what `save` wrote."""
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["covariance"], int(tensors["count"]))


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
        """Raises UserError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"statistics need at least two feature vectors (N, F), and there are {self.count}")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), so the trace of its root is the sum of their
    roots. This is real and exact for singular covariances as well, where the root of the product itself is neither.
    Raises UserError if the numbers of features differ, or like `check_statistics`.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"the features are {len(a.mean)} and {len(b.mean)} numbers: not of the same network")
    check_statistics(a.mean, a.covariance)
    check_statistics(b.mean, b.covariance)
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float((a.mean - b.mean).square().sum() + spread), 0.0)


def check_statistics(mean: Tensor, covariance: Tensor) -> None:
    """Raises UserError unless a mean (F,) and a covariance (F, F) are finite, the latter symmetric and semidefinite.

    With negative eigenvalues in a covariance, the formula would give a distance that is too small, or none at all.
    """
    if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise UserError(f"a mean (F,) and a covariance (F, F) are wanted, and these are {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("the statistics hold numbers that are not finite: compute them again")
    covariance = covariance.double()
    size = torch.linalg.matrix_norm(covariance)
    if (covariance - covariance.T).abs().max() > COVARIANCE_ROUNDING * size:
        raise UserError("the covariance is not symmetric: compute it again")
    # It has a Cholesky factor if all eigenvalues are above minus what rounding may do.
    raised = (covariance + covariance.T) / 2
    raised.diagonal().add_(COVARIANCE_ROUNDING * size)
    if size > 0 and torch.linalg.cholesky_ex(raised).info:
        lowest = float(torch.linalg.eigvalsh(covariance)[0])
        raise UserError(
            f"the covariance has negative eigenvalues, down to {lowest:.3g}: it is wrong, or lost too many digits when "
            "it was stored; compute it again in float64"
        )


# Nearest neighbours


@dataclass(frozen=True)
class Neighbours:
    """What nearest neighbours say. Each set is a union of balls around its images, out to the k-th nearest other one.

    Attributes:
        precision: Fraction in [0, 1] of samples inside a ball of the real images (arXiv 1904.06991, Eq. 2; k = 3).
        recall: Fraction in [0, 1] of real images inside a ball of the samples (Eq. 3).
        density: Number of real balls that a sample lies in, on average and over k (arXiv 2002.09797, Eq. 4; k = 5).
        coverage: Fraction in [0, 1] of real balls that hold a sample (Eq. 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_neighbours(samples: Tensor, real: Tensor) -> Neighbours:
    """Compares features (N, F) of samples with features (M, F) of real images, in float64.

    Distances are computed in blocks of rows: 50 000 against 50 000 images with 2048 features need 2 GB. Raises
    UserError for a set of 5 images or fewer, and like `check_features`.
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
    return Neighbours(
        precision=precise / len(samples),
        recall=float(recalled.double().mean()),
        density=within / len(samples) / DENSITY_NEIGHBOURS,
        coverage=float(covered.double().mean()),
    )


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
    """Both in float64 around the mean of b: a common offset would only cost digits."""
    check_features(a, b)
    if min(len(a), len(b)) <= k:
        raise UserError(f"{k} nearest neighbours need more than {k} images, and there are {min(len(a), len(b))}")
    origin = b.mean(0, dtype=torch.float64)
    return a.to(torch.float64, copy=True).sub_(origin), b.to(torch.float64, copy=True).sub_(origin)


def _squared_norms(features: Tensor) -> Tensor:
    """(N,), without a second copy of the features, as their squares would be."""
    return torch.linalg.vector_norm(features, dim=1).square()


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields some rows of a (N, F) and their squared distances (n, M) to b (M, F)."""
    norms, step = _squared_norms(b), max(BLOCK // len(b), 1)
    for start in range(0, len(a), step):
        rows = a[start : start + step]
        block = (_squared_norms(rows)[:, None] + norms).addmm_(rows, b.T, alpha=-2).clamp_(min=0)
        yield slice(start, start + len(rows)), block


def _radii(features: Tensor, *neighbours: int) -> Tensor:
    """(N, K): the squared distance of each image to its k-th nearest other one, for each of the K `neighbours`."""
    # The nearest of all is the image itself, or its equal.
    nearest = [block.topk(max(neighbours) + 1, largest=False).values for _, block in _distances(features, features)]
    return torch.cat(nearest)[:, list(neighbours)]


# Classifier score (with Inception v3 the Inception Score: arXiv 1606.03498, Section 4)


def classifier_score(probabilities: Tensor, seed: int = 0) -> tuple[float, float]:
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
    p = p[torch.randperm(len(p), generator=torch_generator(Purpose.SPLITS, seed))]
    parts = p.tensor_split(max(round(len(p) / PART), 1))
    scores = torch.stack([(_entropy(part.mean(0)) - _entropy(part).mean()).exp() for part in parts])
    return float(scores.mean()), float(scores.std(correction=0))


def _entropy(p: Tensor) -> Tensor:
    """Of distributions (..., K), in nats."""
    return torch.special.entr(p).sum(-1)
