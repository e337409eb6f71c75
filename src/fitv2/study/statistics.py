"""Statistics of a study: contrasts of a two-way fit, the steps that a score takes, and Holm's correction.

Scores are compared on a logarithmic scale: their spread grows with their level, and a difference of logarithms is a
ratio. All scores of a study share one estimate of the spread, so that a claim over three seeds need not rest on two
degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05
# A spread below this is that of equal values, and rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Contrast:
    """The mean difference of two variants in the logarithm of a score.

    Attributes:
        value: The difference.
        error: Its standard error.
        freedom: Degrees of freedom of the error; 0 if it cannot be estimated.
        seeds: Seeds for which both variants have a score.
    """

    value: float
    error: float
    freedom: int
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval; infinite without degrees of freedom."""
        if not self.freedom:
            return -math.inf, math.inf
        half = float(stats.t.ppf(1 - LEVEL / 2, self.freedom)) * self.error
        return self.value - half, self.value + half

    def p_differs(self, beyond: float = 0.0) -> float:
        """The two-sided p-value of the hypothesis that the difference is at most `beyond` in size."""
        return float(np.minimum(2 * self._tail(abs(self.value) - beyond), 1))

    def p_within(self, margin: float) -> float:
        """The p-value of the hypothesis that the difference is `margin` or more in size (two one-sided tests)."""
        return self._tail(margin - abs(self.value))

    def _tail(self, distance: float) -> float:
        if not self.freedom:
            return math.nan
        return float(stats.t.sf(distance / max(self.error, ROUNDING), self.freedom))


class TwoWayFit:
    """Least squares of logarithmic scores on an effect of the variant and one of the seed.

    Args:
        scores: Variants in rows, seeds in columns; NaN where there is no score.
    """

    def __init__(self, scores: pd.DataFrame) -> None:
        self.scores = scores.dropna(how="all").dropna(axis=1, how="all")
        rows, columns = np.nonzero(self.scores.notna().to_numpy())
        design = np.hstack([np.eye(len(self.scores))[rows], np.eye(self.scores.shape[1])[columns]])
        values = self.scores.to_numpy()[rows, columns]
        # The pseudo-inverse takes care of the redundant column of ones.
        self.inverse = np.linalg.pinv(design.T @ design)
        residuals = values - design @ (self.inverse @ (design.T @ values))
        self.effects = self.inverse @ (design.T @ values)
        self.freedom = len(values) - int(np.linalg.matrix_rank(design)) if len(values) else 0
        self.deviation = math.sqrt(float(residuals @ residuals) / self.freedom) if self.freedom else math.nan

    def contrast(self, variant: str, other: str) -> Contrast | None:
        """The effect of one variant less that of another; None if they share no seed."""
        if not {variant, other} <= set(self.scores.index):
            return None
        seeds = int(self.scores.loc[[variant, other]].notna().all().sum())
        if not seeds:
            return None
        weights = np.zeros(len(self.inverse))
        weights[self.scores.index.get_loc(variant)], weights[self.scores.index.get_loc(other)] = 1, -1
        error = self.deviation * math.sqrt(float(weights @ self.inverse @ weights)) if self.freedom else math.nan
        return Contrast(float(weights @ self.effects), error, self.freedom, seeds)


def corrected(decide: Sequence[float], equal: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Holm's step-down correction of the p-values of m claims, over both hypotheses of each claim.

    Of the two hypotheses of a claim, no difference and a relevant one, at most one is true. So there are never more
    than m true hypotheses, and m replaces 2 m as the largest factor (Shaffer 1986).

    Args:
        decide: p-values of no difference; NaN for a claim without a test.
        equal: p-values of a relevant difference; NaN where it is not tested.

    Returns:
        The corrected p-values of both, NaN where they were.
    """
    both = np.concatenate([np.asarray(decide, float), np.asarray(equal, float)])
    tested = np.flatnonzero(~np.isnan(both))
    claims = int((~np.isnan(both.reshape(2, -1))).any(0).sum())
    order = tested[np.argsort(both[tested], kind="stable")]
    factors = np.minimum(claims, np.arange(len(order), 0, -1))
    both[order] = np.minimum(np.maximum.accumulate(both[order] * factors), 1)
    return both[: len(decide)], both[len(decide) :]


def p_of_counts(failed: int, of: int, others_failed: int, of_others: int) -> float:
    """Fisher's exact test: the two-sided p-value of equal probabilities."""
    _, p = stats.fisher_exact([[failed, of - failed], [others_failed, of_others - others_failed]])
    return float(np.asarray(p))


def reach(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, target: float) -> float | None:
    """The cost at which a falling score first comes down to `target`; None if it never does.

    The logarithm of the score is a line between two points, and NaN is no score. If the first point is down already,
    its cost is an upper bound.
    """
    before: tuple[float, float] | None = None
    for cost, score in zip(costs, scores, strict=True):
        if score <= target:
            if before is None:
                return cost
            done = math.log(before[1] / target) / math.log(before[1] / score)
            return before[0] + done * (cost - before[0])
        before = None if math.isnan(score) else (cost, score)
    return None


def at_cost(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, cost: float) -> float:
    """The score at a cost, interpolated as in `reach`; NaN outside the curve."""
    if len(costs) == 0:
        return math.nan
    return float(np.exp(np.interp(cost, costs, np.log(scores), left=math.nan, right=math.nan)))
