"""Statistics of a study: contrasts of a two-way fit, the steps that a score takes, and Holm's correction.

Scores are compared on a logarithmic scale: their standard deviation grows with their level, and a difference of
logarithms is a ratio. All scores of a study share one estimate of the standard deviation, so that a claim over three
seeds need not rest on two degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05
# A standard error below this is that of equal values, and rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Contrast:
    """The mean difference of two variants in the logarithm of a score.

    Attributes:
        value: The difference.
        error: Its standard error.
        freedom: Degrees of freedom of the error; 0 if it cannot be estimated.
        seeds: The number of seeds for which both variants have a score.
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
        values = self.scores.to_numpy()[rows, columns]
        design = np.hstack([np.eye(len(self.scores))[rows], np.eye(self.scores.shape[1])[columns]])
        # The columns of variants and those of seeds have the same sum: hence the pseudo-inverse.
        self.solution = np.linalg.pinv(design)
        self.effects = self.solution @ values
        residuals = values - design @ self.effects
        self.freedom = len(values) - int(np.linalg.matrix_rank(design)) if len(values) else 0
        self.deviation = float(np.linalg.norm(residuals)) / math.sqrt(self.freedom) if self.freedom else math.nan

    def contrast(self, variant: str, other: str) -> Contrast | None:
        """The effect of one variant less that of another; None if they share no seed."""
        if not {variant, other} <= set(self.scores.index):
            return None
        seeds = int(self.scores.loc[[variant, other]].notna().all().sum())
        if not seeds:
            return None
        one, two = (list(self.scores.index).index(name) for name in (variant, other))
        error = self.deviation * float(np.linalg.norm(self.solution[one] - self.solution[two]))
        return Contrast(float(self.effects[one] - self.effects[two]), error, self.freedom, seeds)


def corrected(decide: Sequence[float], equal: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Holm's step-down correction of the p-values of m claims, over both hypotheses of each claim.

    Of the two hypotheses of a claim, no difference and a relevant one, at most one is true. So there are never more
    than m true hypotheses, and m replaces 2 m as the largest factor (Shaffer 1986).

    Args:
        decide: p-values of no difference; NaN for a claim without a test.
        equal: p-values of a relevant difference; NaN where it is not tested.

    Returns:
        The corrected p-values of both, with NaN where it was.
    """
    both = np.array([decide, equal], float)
    claims = int((~np.isnan(both)).any(0).sum())
    p = both.ravel()
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN is sorted to the end.
    factors = np.minimum(claims, np.arange(len(order), 0, -1))
    p[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return both[0], both[1]


def reach(costs: np.ndarray, scores: np.ndarray, target: float) -> float | None:
    """The cost at which a falling score first comes down to `target`; None if it never does.

    The logarithm of the score is linear between two points, and NaN is no score. If the first point is already below
    the target, its cost is an upper bound.
    """
    reached = np.flatnonzero(scores <= target)
    if not len(reached):
        return None
    last = reached[0]
    if last == 0 or math.isnan(scores[last - 1]):
        return float(costs[last])
    pair = slice(last - 1, last + 1)
    return float(np.interp(-math.log(target), -np.log(scores[pair]), costs[pair]))


def at_cost(costs: np.ndarray, scores: np.ndarray, cost: float) -> float:
    """The score at a cost, interpolated as in `reach`; NaN outside the curve."""
    return float(np.exp(np.interp(cost, costs, np.log(scores), left=math.nan, right=math.nan)))
