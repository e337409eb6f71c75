"""The Frechet distance between two sets of features, each summarised as a Gaussian (FID: arXiv 1706.08500, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """mean (F,) and covariance (F, F), unbiased, in float64, of `count` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features (N, F). Raises ValueError for fewer than two, which have no covariance."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"statistics need at least two feature vectors (N, F), not {tuple(features.shape)}")
        features = features.double()
        return cls(features.mean(0), features.T.cov(), len(features))

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Writes safetensors with the given metadata in its header."""
        tensors = {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor(self.count)}
        save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["covariance"], int(tensors["count"]))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), so the trace of its root is the sum of their
    roots: real and exact also for singular covariances, where the root of the product itself is neither.
    Raises ValueError when the two do not have the same number of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the features are {len(a.mean)} and {len(b.mean)} numbers: not of the same network")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float((a.mean - b.mean).square().sum() + spread), 0.0)
