"""The Frechet distance between two sets of features, each summarised as a Gaussian (FID: arXiv 1706.08500, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .features import check_features

# What rounding may do to a covariance, relative to its size: of sums in float32.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Statistics:
    """mean (F,) and covariance (F, F), unbiased, in float64, of `count` feature vectors; 0 where nobody knows."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features (N, F). Raises ValueError for fewer than two, which have no covariance, and for NaN."""
        running = RunningStatistics()
        running.add(features)
        return running.result()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Writes safetensors with the given metadata in its header."""
        tensors = {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor(self.count)}
        save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["covariance"], int(tensors["count"]))


class RunningStatistics:
    """Statistics of features that come some at a time, for sets that do not fit into memory."""

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, features: Tensor) -> None:
        """Features (N, F); what came before and they are joined as of Chan et al. (Stanford STAN-CS-79-773, Eq. 2.1).

        Raises ValueError for features that are not finite.
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
        """Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"statistics need at least two feature vectors (N, F), and there are {self.count}")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), so the trace of its root is the sum of their
    roots: real and exact also for singular covariances, where the root of the product itself is neither.
    Raises UserError when the two do not have the same number of features, or as `check_statistics`.
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
    """Raises UserError for anything but a mean (F,) and a covariance (F, F): finite, symmetric, no variance below zero.

    Of a covariance of negative eigenvalues the formula would make a distance that is too small, or none at all.
    """
    if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise UserError(f"a mean (F,) and a covariance (F, F) are wanted, and these are {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("the statistics hold numbers that are not finite: make them again")
    covariance = covariance.double()
    size = torch.linalg.matrix_norm(covariance)
    if (covariance - covariance.T).abs().max() > ROUNDING * size:
        raise UserError("the covariance is not symmetric, so it is none: make it again")
    # It has a Cholesky factor where all eigenvalues are above minus what rounding may do.
    raised = (covariance + covariance.T) / 2
    raised.diagonal().add_(ROUNDING * size)
    if size > 0 and torch.linalg.cholesky_ex(raised).info:
        lowest = float(torch.linalg.eigvalsh(covariance)[0])
        raise UserError(
            f"the covariance has negative eigenvalues, down to {lowest:.3g}: it is none, or lost too many digits when "
            "it was stored; make it again in float64"
        )
