"""How sure a classifier is of each picture, and how varied what it sees is.

Of Inception v3 alone it is the Inception Score (arXiv 1606.03498, Section 4); other classifiers give other numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..randomness import Purpose, torch_generator

# Pictures of a part, of which each gets a score; as ADM's evaluator and the first code had it for 50 000.
PART = 5000


def classifier_score(probabilities: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over parts of about 5 000 pictures, from probabilities (N, K); each in [1, K].

    exp(H(mean of p) - mean of H(p)), the same as the exponential of the mean divergence from the mean. The order is
    shuffled first, for sets that are sorted by class. Raises ValueError for no picture, or rows that do not sum to 1.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise UserError(f"probabilities are (N, K) with at least one picture, not {tuple(probabilities.shape)}")
    p = probabilities.double()
    # NaN is caught as well.
    if not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-3) or (p < 0).any():
        raise UserError("these are no probabilities: they are below 0, or do not sum to 1 for every picture")
    p = p[torch.randperm(len(p), generator=torch_generator(Purpose.SPLITS, seed))]
    parts = p.tensor_split(max(round(len(p) / PART), 1))
    scores = torch.stack([(entropy(part.mean(0)) - entropy(part).mean()).exp() for part in parts])
    return float(scores.mean()), float(scores.std(correction=0))


def entropy(p: Tensor) -> Tensor:
    """Of (..., K), in nats; a probability of 0 adds nothing."""
    return torch.special.entr(p).sum(-1)
