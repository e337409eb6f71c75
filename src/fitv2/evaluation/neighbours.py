"""What nearest neighbours say of two sets of features: whether samples lie where real pictures are, and the other way.

Each set is a union of balls around its pictures, out to the k-th nearest other one; a ball holds its border. Distances
are taken some rows at a time, so that 50 000 against 50 000 pictures of 2048 features need 2 GB, nearly all for the
features in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .features import check_features

# Of precision and recall, of density and coverage, as their authors chose them; of the class of a picture.
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS, VOTERS = 3, 5, 5
# Numbers of some rows of distances: 128 MiB in float64.
BLOCK = 1 << 24
# Squared distances that differ by less, relative to the squared norms, are the same: what rounding can do.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Neighbours:
    """precision: share in [0, 1] of samples within the balls of real ones; recall: the reverse (arXiv 1904.06991,
    Eq. 2 and 3; k = 3). density: over k, the real balls that a sample lies in on average; coverage: share in [0, 1] of
    real balls that hold a sample (arXiv 2002.09797, Eq. 4 and 5; k = 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_neighbours(samples: Tensor, real: Tensor) -> Neighbours:
    """Of features (N, F) and (M, F), computed in float64.

    Raises ValueError for sets of 5 pictures or fewer, features that are not finite, or of two networks.
    """
    samples, real = centred(samples, real, DENSITY_NEIGHBOURS)
    equal = ROUNDING * float(max(squared_norms(samples).max(), squared_norms(real).max()))
    small, large = (radii(real, PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS) + equal).T
    own = radii(samples, PRECISION_NEIGHBOURS)[:, 0] + equal
    precise = within = 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, block in distances(samples, real):
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
    """(N,) int64: for each of the features (N, F) the most frequent label (M,) of its 5 nearest of `known` (M, F); of
    several, the one that is nearer in sum. Where both are one and the same, a picture has no vote on itself.

    Raises ValueError as `compare_neighbours`.
    """
    itself = features is known
    features, known = centred(features, known, VOTERS)
    chosen, classes = [], int(labels.max()) + 1
    for rows, block in distances(features, known):
        if itself:
            block.diagonal(rows.start).fill_(torch.inf)
        nearest, index = block.topk(VOTERS, largest=False)
        # Nearness adds less than one vote in all, so that it decides between equal numbers only.
        nearness = 1 - nearest / nearest[:, -1:].clamp(min=1e-300)
        votes = torch.zeros(len(block), classes, dtype=block.dtype)
        chosen.append(votes.scatter_add_(1, labels[index], 1 + nearness / (VOTERS + 1)).argmax(1))
    return torch.cat(chosen)


def centred(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both in float64 without what they have in common, which would only cost digits."""
    check_features(a, b)
    if min(len(a), len(b)) <= k:
        raise UserError(f"{k} nearest neighbours need more than {k} pictures, and there are {min(len(a), len(b))}")
    origin = b.mean(0, dtype=torch.float64)
    a, b = (features.to(torch.float64, copy=True).sub_(origin) for features in (a, b))
    return a, b


def squared_norms(features: Tensor) -> Tensor:
    """(N,), without a second copy of the features, as their squares would be."""
    return torch.linalg.vector_norm(features, dim=1).square()


def distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of (N, F) at a time, and their squared distances (n, M) to (M, F)."""
    norms, step = squared_norms(b), max(BLOCK // len(b), 1)
    for start in range(0, len(a), step):
        rows = a[start : start + step]
        block = (squared_norms(rows)[:, None] + norms).addmm_(rows, b.T, alpha=-2).clamp_(min=0)
        yield slice(start, start + len(rows)), block


def radii(features: Tensor, *neighbours: int) -> Tensor:
    """(N, K): the squared distance of each to its k-th nearest other one, for each of the K `neighbours`."""
    # The nearest of all is the picture itself, or its equal.
    nearest = [block.topk(max(neighbours) + 1, largest=False).values for _, block in distances(features, features)]
    return torch.cat(nearest)[:, list(neighbours)]
