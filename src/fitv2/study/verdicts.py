"""Which claims of a study hold: the figures of its table, judged together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ..messages import counted
from .claims import LOWER_IS_BETTER, Best, Better, Claim, Diverges, Equal, Faster
from .definition import Study
from .results import CURVE, REAL, TRAINING
from .statistics import LEVEL, Contrast, TwoWayFit, at_cost, corrected, p_of_counts, reach

HOLDS, REFUTED, EQUIVALENT, OPEN, NO_RESULT = "holds", "refuted", "equivalent", "open", "no result"


@dataclass(frozen=True)
class Finding:
    """What a study says of a claim.

    Attributes:
        effect: The figure in words.
        where: Metric, condition and number of seeds, in words.
        p_decide: The p-value of no difference, p_equal that of a relevant difference; corrected by `judge`.
        favours: The verdict if there is a difference.
        contrast: In logarithms, negative in favour of the claim; None without one.
    """

    claim: Claim
    effect: str
    where: str
    p_decide: float = math.nan
    p_equal: float = math.nan
    favours: str = OPEN
    contrast: Contrast | None = None

    @property
    def verdict(self) -> str:
        if math.isnan(self.p_decide):
            return NO_RESULT
        if self.p_equal < LEVEL:
            return HOLDS if isinstance(self.claim.measure, Equal) else EQUIVALENT
        return self.favours if self.p_decide < LEVEL else OPEN

    @property
    def p(self) -> float:
        """The corrected p-value that belongs to the verdict."""
        equal = isinstance(self.claim.measure, Equal) and self.favours == HOLDS
        return self.p_equal if equal or self.verdict == EQUIVALENT else self.p_decide


class Figures:
    """The figures of a study by variant and seed; `frame` as `fitv2.study.runs.frame_of` makes it."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame[frame["variant"] != REAL]
        self.fits: dict[tuple[str, str], TwoWayFit] = {}

    def fit(self, metric: str, condition: str) -> TwoWayFit:
        if (metric, condition) not in self.fits:
            self.fits[metric, condition] = TwoWayFit(np.log(self.scores(metric, condition)))
        return self.fits[metric, condition]

    def scores(self, metric: str, condition: str) -> pd.DataFrame:
        """Variants by seeds; of curves, the last points."""
        rows = self.frame[(self.frame["metric"] == metric) & (self.frame["condition"] == condition)]
        return rows.sort_values("step").groupby(["variant", "seed"])["value"].last(skipna=False).unstack()

    def curve(self, variant: str, seed: int, cost: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Costs and Frechet distances of one training, in the order of its steps."""
        own = self.frame[(self.frame["variant"] == variant) & (self.frame["seed"] == seed)]
        points = own[(own["condition"] == CURVE) & (own["metric"] == "fd")].set_index("step")["value"].sort_index()
        if cost != "step":
            taken = own[(own["condition"] == TRAINING) & (own["metric"] == cost)].set_index("step")["value"]
            points.index = taken.reindex(points.index).to_numpy()
        return points.index.to_numpy(float), points.to_numpy(float)

    @cached_property
    def failed(self) -> dict[str, set[int]]:
        """The seeds with which a variant diverged, or makes no finite images at its end."""
        diverged = self.frame[self.frame["metric"] == "diverged"]
        final = self.frame[(self.frame["metric"] == "fd") & ~self.frame["condition"].isin([CURVE, TRAINING])]
        both = pd.concat([diverged, final[final["value"].isna()]])
        return {name: {int(seed) for seed in rows["seed"]} for name, rows in both.groupby("variant")}

    def seeds(self, variant: str) -> set[int]:
        return {int(seed) for seed in self.frame.loc[self.frame["variant"] == variant, "seed"]}


def judge(study: Study, frame: pd.DataFrame) -> list[Finding]:
    """A finding for each claim, their p-values corrected together."""
    figures = Figures(frame)
    found = [_judge_one(study, claim, figures) for claim in study.claims]
    decide, equal = corrected([f.p_decide for f in found], [f.p_equal for f in found])
    return [replace(f, p_decide=d, p_equal=e) for f, d, e in zip(found, decide.tolist(), equal.tolist(), strict=True)]


def _judge_one(study: Study, claim: Claim, figures: Figures) -> Finding:
    match claim.measure:
        case Diverges() as measure:
            return _divergence(claim, measure, figures)
        case Faster() as measure:
            return _speed_up(study, claim, measure, figures)
        case Best() as measure:
            return _best(study, claim, measure, figures)
        case measure:
            return _difference(study, claim, measure, figures)


def _difference(study: Study, claim: Claim, measure: Better | Equal, figures: Figures) -> Finding:
    condition = measure.condition or study.evaluation.deciding
    found = figures.fit(measure.metric, condition).contrast(measure.of, measure.than)
    where = f"{measure.metric}, {condition}{_seeds(found, figures, measure.variants)}"
    if found is None:
        return _without_scores(claim, figures, measure, where)
    margin = math.log1p(measure.within if isinstance(measure, Equal) else study.equal_within)
    effect, found = in_words(found), _for_the_claim(found, measure.metric)
    p_equal, p_differs, favours = found.p_within(margin), found.p_differs(), HOLDS if found.value < 0 else REFUTED
    if isinstance(measure, Equal):
        p_differs, favours = found.p_differs(margin), REFUTED if abs(found.value) > margin else HOLDS
        p_differs = p_differs if favours == REFUTED else 1.0
    return _with_failures(Finding(claim, effect, where, p_differs, p_equal, favours, found), figures, measure)


def _best(study: Study, claim: Claim, measure: Best, figures: Figures) -> Finding:
    """Holds if better than each other variant: each test at full level. Refuted if any is better: Bonferroni."""
    condition = measure.condition or study.evaluation.deciding
    fit = figures.fit(measure.metric, condition)
    contrasts = {other: fit.contrast(measure.of, other) for other in measure.than}
    found = {name: (c, _for_the_claim(c, measure.metric)) for name, c in contrasts.items() if c is not None}
    if len(found) < len(measure.than):
        return Finding(claim, "-", f"{measure.metric}, {condition}")
    nearest = max(found, key=lambda name: found[name][1].value)
    first = found[nearest][1]
    where = f"{measure.metric}, {condition}{_seeds(first, figures, measure.variants)}"
    effect = f"{in_words(found[nearest][0])} against {nearest}, the nearest"
    p = [c.p_differs() for _, c in found.values()]
    if first.value < 0:
        finding = Finding(claim, effect, where, max(p), math.nan, HOLDS, first)
    else:
        p_better = [c.p_differs() for _, c in found.values() if c.value > 0]
        finding = Finding(claim, effect, where, min(1.0, len(p) * min(p_better)), math.nan, REFUTED, first)
    return _with_failures(finding, figures, measure)


def _speed_up(study: Study, claim: Claim, measure: Faster, figures: Figures) -> Finding:
    """Compares scores where the claim sets them equal; the ratio of costs is told, and decides nothing."""
    ratios, early, scores = [], {}, figures.scores("fd", CURVE)
    missed = bounds = 0
    for seed in sorted(figures.seeds(measure.of) & figures.seeds(measure.than)):
        costs, own = figures.curve(measure.of, seed, measure.cost)
        other_costs, others = figures.curve(measure.than, seed, measure.cost)
        if not len(costs) or not len(others) or math.isnan(others[-1]):
            continue
        early[seed] = at_cost(costs, own, other_costs[-1] / measure.at_least)
        taken, base = reach(costs, own, others[-1]), reach(other_costs, others, others[-1])
        missed += taken is None
        bounds += taken == costs[0] or base == other_costs[0]
        ratios += [math.log(base / taken)] if taken is not None and base is not None else []
    name = f"{measure.of} at 1/{measure.at_least:g}"
    together = pd.concat([scores, pd.DataFrame([early], index=pd.Index([name]))])
    found = TwoWayFit(np.log(together.astype(float))).contrast(name, measure.than)
    where = f"curve, by {measure.cost.replace('_', ' ')}{_seeds(found, figures, measure.variants)}"
    if missed:
        effect = f"not reached with {missed} of {counted(len(early), 'seed')}"
    else:
        effect = _speed_in_words(ratios) + (", a bound: the first point is there already" if bounds else "")
    if found is None:
        return _without_scores(claim, figures, measure, where)
    favours = HOLDS if found.value < 0 else REFUTED
    return _with_failures(Finding(claim, effect, where, found.p_differs(), math.nan, favours, found), figures, measure)


def _divergence(claim: Claim, measure: Diverges, figures: Figures) -> Finding:
    counts = [(len(figures.failed.get(name, ())), len(figures.seeds(name))) for name in measure.variants]
    (own, of), (others, of_others) = counts
    effect = f"{own} of {of} against {others} of {of_others}"
    p = p_of_counts(own, of, others, of_others) if of and of_others else math.nan
    return Finding(claim, effect, "trainings that failed", p, math.nan, HOLDS if own > others else REFUTED)


def _without_scores(claim: Claim, figures: Figures, measure: Better | Best | Faster, where: str) -> Finding:
    """One of both has no score at all: because all its trainings failed, or because there is none yet."""
    others = measure.than if isinstance(measure, Best) else (measure.than,)
    own, worst = figures.failed.get(measure.of, set()), figures.failed.get(others[0], set())
    if not own and not worst:
        return Finding(claim, "-", where)
    p = p_of_counts(len(own), len(figures.seeds(measure.of)), len(worst), len(figures.seeds(others[0])))
    return Finding(claim, "-", where, p, math.nan, REFUTED if len(own) > len(worst) else HOLDS)


def _with_failures(finding: Finding, figures: Figures, measure: Better | Best | Faster) -> Finding:
    """The scores of what failed are missing, and would have been worse than any: they cannot count in its favour."""
    own, *others = (len(figures.failed.get(name, ())) for name in measure.variants)
    against = own > min(others) if finding.favours == HOLDS else max(others) > own
    return replace(finding, favours=OPEN, p_equal=math.nan) if against else finding


def _for_the_claim(found: Contrast, metric: str) -> Contrast:
    return found if metric in LOWER_IS_BETTER else replace(found, value=-found.value)


def _seeds(found: Contrast | None, figures: Figures, variants: Sequence[str]) -> str:
    failed = {name: len(figures.failed.get(name, ())) for name in variants}
    told = [f", {count} of {len(figures.seeds(name))} of {name} failed" for name, count in failed.items() if count]
    return f", {counted(0 if found is None else found.seeds, 'seed')}{''.join(told)}"


def in_words(found: Contrast) -> str:
    """A contrast of logarithms as a relative change with its interval."""
    low, high = found.interval
    mean = _percent(found.value)
    if not found.freedom or high - low < 1e-6:
        return f"{mean} %"
    return f"{mean} % ({_percent(low)} to {_percent(high)})"


def _percent(logarithm: float) -> str:
    """A relative change in percent with as many digits as it has; never -0."""
    change = 100 * math.expm1(min(logarithm, 20))
    return f"{change:+.{0 if abs(change) >= 10 else 1}f}" if abs(change) >= 0.05 else "0"


def _speed_in_words(ratios: Sequence[float]) -> str:
    """The geometric mean of ratios from their logarithms, and the range over the seeds."""
    if not ratios:
        return "-"
    mean, low, high = (f"{math.exp(x):.3g}" for x in (float(np.mean(ratios)), min(ratios), max(ratios)))
    return f"{mean} times faster" + (f" ({low} to {high} over the seeds)" if low != high else "")
