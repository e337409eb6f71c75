"""Claims, how each is measured, and the rule by which figures decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..messages import counted
from ..settings import Settings
from . import paper_cost
from .record import Record, Records, paired
from .statistics import Compared, Estimate, compare, reach

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
ONE_SEED, NONE = "one seed: no verdict", "no result"
# As Markdown.
RULE = """\
The rule:

- Figures are taken seed by seed, because variants of the same seed are scored with the same noise and, where their data
  are the same, see them in the same order. Of these figures there is Student's 95 % interval, of ratios that of their
  logarithms; with three seeds it is 2.5 standard deviations wide on either side. Claims are many and intervals not
  corrected for that: of twenty, one may hold by chance. A figure by formula has no interval.
- A claim **holds** where all of the interval is on its side of the threshold (2 for "twice", 0 for a difference),
  **does not hold** where all of it is on the other side, and is **not decided** where the threshold lies within; one
  seed gives no verdict.
- A run that diverged, or makes no finite pictures, is worse than any score: with its seed the figure is infinite. The
  interval is that of the other seeds; a claim does not hold while an infinite figure is against it, nor fail while one
  is for it. Where no seed has a number, two or more infinite figures on one side decide. A seed with which both runs
  failed says nothing.
- That a training diverges and another does not holds where it is so with every seed, two at least, and does not hold
  where the other diverges with as many seeds or more; while neither does, a longer training might still.
- That a variant is the best holds where it is better than each other one by this rule, and does not hold where any
  other is better than it.\
"""
UNITS = {"steps": "step", "operations": "flops", "seconds": "seconds", "CPU seconds": "cpu_seconds"}


@dataclass(frozen=True)
class Finding:
    """The figure in words, under which conditions, and the verdict."""

    figure: str
    conditions: str
    verdict: str


def verdict(found: Compared, threshold: float, above: bool) -> str:
    """Whether figures are above (or below) a threshold, by the rule."""
    supporting, opposing = (found.plus, found.minus) if above else (found.minus, found.plus)
    if found.count < 2:
        return ONE_SEED if found.count else NONE
    if found.estimate is None:
        return OPEN if supporting and opposing else HOLDS if supporting else FAILS
    if found.estimate.low <= threshold <= found.estimate.high:
        return OPEN
    holds = (found.estimate.mean > threshold) == above
    return OPEN if (opposing if holds else supporting) else HOLDS if holds else FAILS


def in_words(found: Estimate | None, sign: str = "") -> str:
    return "-" if found is None else found.text(sign)


def seeds_in_words(count: int) -> str:
    return counted(count, "seed")


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
            if baseline.failed or contender.failed:
                return None if baseline.failed and contender.failed else math.inf if baseline.failed else -math.inf
            target = baseline.last.scores["distance"]
            taken = cost_to_reach(contender, target, self.unit)
            missed += taken is None
            early += is_bound(contender, taken, self.unit)
            own = getattr(contender.last, UNITS[self.unit]) if taken is None else taken
            return math.log(cost_to_reach(baseline, target, self.unit) / own)

        found = compare(paired(records, self.baseline, self.contender, logarithm))
        decided = verdict(found, math.log(self.at_least), above=True)
        conditions = f"{point}, {seeds_in_words(found.count)}{diverged(records, self.variants)}"
        if found.estimate is None:
            return Finding(found.text(), conditions, decided)
        figure = f"{ratio_in_words(found.estimate)} times fewer {self.unit}"
        if missed:
            decided = OPEN if decided == HOLDS else decided
            figure = f"at most {figure}: not reached with {missed} of {found.count} seeds"
        if early:
            decided = OPEN if decided == FAILS else decided
            figure = f"at least {figure}: reached before the first point with {early} of {found.count} seeds"
        return Finding(figure + (f", {found.infinite}" if found.infinite else ""), conditions, decided)


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


def is_bound(record: Record, taken: float | None, unit: str) -> bool:
    """Whether the first point of the curve was down to the target already, so that less may have been enough."""
    return taken == getattr(record.points[0], UNITS[unit])


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
        seeds = f"{seeds_in_words(found.count)}{diverged(records, self.variants)}"
        return Finding(found.text("+"), f"{self.score}, {condition}, {seeds}", decided)


def difference(records: Records, a: str, b: str, condition: str, score: str) -> Compared:
    """The final score of a less that of b, seed by seed; infinite where one of both has none because it failed."""

    def read(one: Record, other: Record) -> float | None:
        left, right = one.outcome(condition, score), other.outcome(condition, score)
        return None if left is None or right is None else left - right

    return compare(paired(records, a, b, read))


class Diverged(Settings):
    """With how many seeds the training of one variant diverged, and of another; the claim is that the one does and the
    other does not.
    """

    kind: Literal["diverged"]
    of: str
    to: str

    @property
    def variants(self) -> list[str]:
        return [self.of, self.to]

    def judge(self, records: Records, point: str) -> Finding:
        differences = paired(records, self.of, self.to, lambda one, other: one.diverged - other.diverged)
        own, others = ([run.diverged for run in records[name].values()] for name in self.variants)
        figure = f"{sum(own)} of {len(own)} against {sum(others)} of {len(others)}"
        decided = self.decided(differences, any((*own, *others)))
        return Finding(figure, f"trainings that diverged, {seeds_in_words(len(differences))}", decided)

    def decided(self, differences: Sequence[float], some: bool) -> str:
        """Of 1, 0 or -1 for each seed; some: whether any training diverged at all."""
        if len(differences) < 2:
            return ONE_SEED if differences else NONE
        if not some:
            return OPEN
        return HOLDS if all(d == 1 for d in differences) else FAILS if sum(differences) <= 0 else OPEN


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
        if not all(compared.count for compared in found.values()):
            return Finding("-", condition, NONE)
        verdicts = [verdict(figure, 0.0, above=False) for figure in found.values()]
        nearest = max(found, key=lambda other: found[other].worst)
        figure = f"{found[nearest].text('+')} to the nearest, {nearest}"
        worst = next((v for v in (ONE_SEED, FAILS, OPEN) if v in verdicts), HOLDS)
        seeds = f"{seeds_in_words(found[nearest].count)}{diverged(records, self.variants)}"
        return Finding(figure, f"{self.score}, {condition}, {seeds}", worst)


class PaperCost(Settings):
    """A share of the account of the paper's own cost claim, by formula: see `fitv2.study.paper_cost`."""

    kind: Literal["paper-cost"]
    line: str
    at_most: float

    variants: tuple[()] = ()

    def judge(self, records: Records, point: str) -> Finding:
        line = paper_cost.account()[self.line]
        if line.share is None:
            return Finding("-", line.formula, NONE)
        # As exact as the claim is written.
        return Finding(
            f"{100 * line.share:.1f} %", line.formula, HOLDS if round(line.share, 3) <= self.at_most else FAILS
        )


class Claim(Settings):
    """A sentence, what the paper says in figures, and how it is measured here."""

    text: str
    paper: str
    measure: Annotated[SpeedUp | Difference | Diverged | Best | PaperCost, Field(discriminator="kind")]
