"""Claims, how each is measured, and the rule by which figures decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..config import Settings
from . import paper_cost
from .record import Record, Records, paired
from .statistics import Estimate, estimate, reach

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
ONE_SEED, NONE = "one seed: no verdict", "no result"
RULE = (
    "The rule: figures are taken seed by seed, because variants of the same seed are scored with the same noise and, "
    "where their data are the same, see them in the same order. Of these figures there is Student's 95 % interval, of "
    "ratios that of their logarithms; with three seeds it is 2.5 standard deviations wide on either side. Claims are "
    "many and intervals not corrected for that: of twenty, one may hold by chance. A claim **holds** "
    'where all of it is on the claim\'s side of the threshold (2 for "twice", 0 for a difference), **does not hold** '
    "where all of it is on the other side, and is **not decided** where the threshold lies within; one seed gives no "
    "verdict. That a variant is the best holds where it is better than each other one by this rule, and does not hold "
    "where any other is better than it. A figure by formula has no interval."
)
UNITS = {"steps": "step", "operations": "flops", "seconds": "seconds", "CPU seconds": "cpu_seconds"}


@dataclass(frozen=True)
class Finding:
    """The figure in words, under which conditions, and the verdict."""

    figure: str
    conditions: str
    verdict: str


def verdict(found: Estimate | None, threshold: float, above: bool) -> str:
    """Whether a figure is above (or below) a threshold, by the rule."""
    if found is None:
        return NONE
    if found.half is None:
        return ONE_SEED
    if found.low <= threshold <= found.high:
        return OPEN
    return HOLDS if (found.mean > threshold) == above else FAILS


def in_words(found: Estimate | None, sign: str = "") -> str:
    return "-" if found is None else found.text(sign)


def over_seeds(found: Estimate | None) -> str:
    count = found.count if found else 0
    return f"{count} seed{'' if count == 1 else 's'}"


class SpeedUp(Settings):
    """How many times less than the baseline the contender takes to first reach the last score of the baseline's curve.

    Seed by seed; the mean and its interval are those of logarithms. A contender that never gets there counts with its
    whole cost, which flatters it: such a claim can fail, and cannot hold. One that is there at its first point counts
    with that, which is too much: such a claim can hold, and cannot fail.
    """

    kind: Literal["speed-up"]
    baseline: str
    contender: str
    unit: Literal["steps", "operations", "seconds", "CPU seconds"] = "steps"
    at_least: float

    @property
    def variants(self) -> list[str]:
        return [self.baseline, self.contender]

    def judge(self, records: Records, point: str) -> Finding:
        missed = early = 0

        def logarithm(baseline: Record, contender: Record) -> float | None:
            nonlocal missed, early
            target = baseline.last.scores["distance"] if baseline.points else None
            if target is None or not (baseline.final and contender.final):  # One of them diverged.
                return None
            taken, least = cost_to_reach(contender, target, self.unit), getattr(contender.points[0], UNITS[self.unit])
            missed += taken is None
            early += taken == least
            own = getattr(contender.last, UNITS[self.unit]) if taken is None else taken
            return math.log(cost_to_reach(baseline, target, self.unit) / own)

        found = estimate(paired(records, self.baseline, self.contender, logarithm))
        decided = verdict(found, math.log(self.at_least), above=True)
        conditions = f"{point}, {over_seeds(found)}{diverged(records, self.variants)}"
        if found is None:
            return Finding("-", conditions, decided)
        figure = f"{ratio_in_words(found)} times fewer {self.unit}"
        if missed:
            decided = OPEN if decided == HOLDS else decided
            figure = f"at most {figure}: not reached with {missed} of {found.count} seeds"
        if early:
            decided = OPEN if decided == FAILS else decided
            figure = f"at least {figure}: reached before the first point with {early} of {found.count} seeds"
        return Finding(figure, conditions, decided)


def ratio_in_words(found: Estimate) -> str:
    """Of an estimate of logarithms."""
    mean, low, high = (f"{math.exp(value):#.3g}".rstrip(".") for value in (found.mean, found.low, found.high))
    return mean if found.half is None else f"{mean} ({low} to {high})"


def diverged(records: Records, variants: Sequence[str]) -> str:
    """Which runs came to no score."""
    counts = {name: (sum(run.diverged for run in records[name].values()), len(records[name])) for name in variants}
    return "".join(f", {count} of {runs} of {name} diverged" for name, (count, runs) in counts.items() if count)


def cost_to_reach(record: Record, target: float | None, unit: str) -> float | None:
    """Steps, operations or seconds until the distance of the curve is down to the target; None: never."""
    if target is None:
        return None
    costs = [getattr(point, UNITS[unit]) for point in record.points]
    return reach(costs, [point.scores["distance"] for point in record.points], target)


class Difference(Settings):
    """The final score of one variant less that of another, seed by seed; the claim is that it is below a threshold.

    condition: by name; default that of the curve.
    """

    kind: Literal["difference"]
    of: str
    to: str
    score: str = "distance"
    condition: str | None = None
    below: float = 0.0

    @property
    def variants(self) -> list[str]:
        return [self.of, self.to]

    def judge(self, records: Records, point: str) -> Finding:
        condition = self.condition or point
        found = difference(records, self.of, self.to, condition, self.score)
        decided = verdict(found, self.below, above=False)
        seeds = f"{over_seeds(found)}{diverged(records, self.variants)}"
        return Finding(in_words(found, "+"), f"{self.score}, {condition}, {seeds}", decided)


def difference(records: Records, a: str, b: str, condition: str, score: str) -> Estimate | None:
    """The final score of a less that of b, seed by seed."""

    def read(one: Record, other: Record) -> float | None:
        left, right = one.score(condition, score), other.score(condition, score)
        return None if left is None or right is None else left - right

    return estimate(paired(records, a, b, read))


class Best(Settings):
    """One variant has the lowest final score of several: it holds where it is below each other one, by the same rule,
    and does not hold where any other is below it.
    """

    kind: Literal["best"]
    best: str
    others: tuple[str, ...]
    score: str = "distance"
    condition: str | None = None

    @property
    def variants(self) -> list[str]:
        return [self.best, *self.others]

    def judge(self, records: Records, point: str) -> Finding:
        condition = self.condition or point
        found = {other: difference(records, self.best, other, condition, self.score) for other in self.others}
        if not all(found.values()):
            return Finding("-", condition, NONE)
        verdicts = [verdict(figure, 0.0, above=False) for figure in found.values()]
        nearest = max(found, key=lambda other: found[other].mean)
        figure = f"{in_words(found[nearest], '+')} to the nearest, {nearest}"
        worst = next((v for v in (ONE_SEED, FAILS, OPEN) if v in verdicts), HOLDS)
        return Finding(figure, f"{self.score}, {condition}, {over_seeds(found[nearest])}", worst)


class PaperCost(Settings):
    """A share of the account of the paper's own cost claim, by formula: see `fitv2.study.paper_cost`."""

    kind: Literal["paper-cost"]
    line: str
    at_most: float

    variants: tuple[()] = ()

    def judge(self, records: Records, point: str) -> Finding:
        line = paper_cost.account()[self.line]
        # As exact as the claim is written.
        return Finding(
            f"{100 * line.share:.1f} %", line.formula, HOLDS if round(line.share, 3) <= self.at_most else FAILS
        )


class Claim(Settings):
    """A sentence, what the paper says in figures, and how it is measured here."""

    text: str
    paper: str
    measure: Annotated[SpeedUp | Difference | Best | PaperCost, Field(discriminator="kind")]
