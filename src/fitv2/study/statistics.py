"""Means over seeds with their uncertainty, and when a curve reaches a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

CONFIDENCE = 0.95
# Half widths below this share of the mean are those of equal values, and rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """The mean of `count` values, and half the width of Student's 95 % interval; None of a single value."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        return -math.inf if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        return math.inf if self.half is None else self.mean + self.half

    def text(self, sign: str = "") -> str:
        """Mean and half width, which has two digits; a single value has three. sign: "+" shows it always."""
        if not self.half or self.half < ROUNDING * abs(self.mean):
            return f"{self.mean:{sign},.0f}" if abs(self.mean) >= 1000 else f"{self.mean:{sign}#.3g}".rstrip(".")
        decimals = max(0, 1 - math.floor(math.log10(self.half)))
        return f"{self.mean:{sign}z,.{decimals}f} ± {self.half:,.{decimals}f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Of independent values, one a seed; None where there are none."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


@dataclass(frozen=True)
class Compared:
    """Comparisons seed by seed: those with a number, and how many are minus or plus infinite, where one side failed."""

    estimate: Estimate | None
    minus: int
    plus: int

    @property
    def count(self) -> int:
        return self.minus + self.plus + (self.estimate.count if self.estimate else 0)

    @property
    def worst(self) -> float:
        """The mean, however few seeds are infinite."""
        if self.plus or self.estimate is None:
            return math.inf if self.plus else -math.inf
        return self.estimate.mean

    @property
    def infinite(self) -> str:
        """In words, after those with a number."""
        return ", ".join(f"{sign}∞ with {n}" for sign, n in (("-", self.minus), ("+", self.plus)) if n)

    def text(self, sign: str = "") -> str:
        found = [self.estimate.text(sign)] if self.estimate else []
        return ", ".join(found + ([self.infinite] if self.infinite else [])) or "-"


def compare(values: Sequence[float]) -> Compared:
    """Of values that may be infinite."""
    finite = [value for value in values if math.isfinite(value)]
    return Compared(estimate(finite), values.count(-math.inf), values.count(math.inf))


def reach(costs: Sequence[float], scores: Sequence[float | None], target: float) -> float | None:
    """The cost at which a falling score first comes down to `target`; None where it never does.

    Between two points the logarithm of the score is a line over the cost. Where the first point is there already, the
    answer is its cost: it may have been earlier. None among the scores is no score.
    """
    before: tuple[float, float] | None = None
    for cost, score in zip(costs, scores, strict=True):
        if score is not None and score <= target:
            if before is None or target <= 0 or score <= 0:
                return cost
            done = math.log(before[1] / target) / math.log(before[1] / score)
            return before[0] + done * (cost - before[0])
        before = None if score is None else (cost, score)
    return None
