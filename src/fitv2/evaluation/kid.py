"""The kernel distance between two sets of features (KID: arXiv 1801.01401, Section 4 and Appendix C.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from .features import check_features

SUBSETS = 100
# Of a subset, as everybody has it; of sets below twice as many the half, so that no two subsets are the same.
SUBSET_SIZE = 1000


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over 100 random pairs of subsets of features (N, F) and (M, F), in float64.

    Each pair is an unbiased estimate of the squared maximum mean discrepancy, so that the mean of few pictures is as
    right as that of many, and may be below zero. Raises ValueError for fewer than two pictures, features that are not
    finite, or of two networks.
    """
    check_features(a, b)
    fewest = min(len(a), len(b))
    if fewest < 2:
        raise UserError("the kernel distance needs two pictures of each set at least, and one has fewer")
    size = min(SUBSET_SIZE, max(fewest // 2, 2))
    generator = torch.Generator().manual_seed(seed)

    def draw(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]].double()

    values = torch.tensor([unbiased_discrepancy(draw(a), draw(b)) for _ in range(SUBSETS)], dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def unbiased_discrepancy(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of (N, F) and (M, F), N and M at least 2: pictures are not compared with
    themselves (arXiv 1206.0465, Eq. 3).
    """
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for n, kernel in ((len(x), cubic(x, x)) for x in (a, b))]
    return float(within[0] + within[1] - 2 * cubic(a, b).mean())


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """(N, F) and (M, F) to (N, M): the polynomial kernel (x . y / F + 1)^3."""
    return torch.addmm(a.new_ones(()), a, b.T, alpha=1 / a.shape[1]).pow_(3)
