"""Which claims of a study hold: the figures of its table, judged together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from ..messages import counted
from .definition import Better, Claim, Diverges, Equal, Faster, Study
from .results import CURVE, REAL, TRAINING
from .statistics import LEVEL, Contrast, TwoWayFit, at_cost, corrected, reach

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
        about_equality = isinstance(self.claim.measure, Equal) and not self.p_decide < LEVEL
        return self.p_equal if self.p_equal < LEVEL or about_equality else self.p_decide


class Figures:
    """The figures of a study by variant and seed; `frame` as `fitv2.study.runs.frame_of` makes it."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame[frame["variant"] != REAL]

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

    def failures(self, variant: str) -> tuple[int, int]:
        """The number of seeds with which a variant diverged or makes no finite images at its end, and of all seeds."""
        own = self.frame[self.frame["variant"] == variant]
        final = (own["metric"] == "fd") & ~own["condition"].isin([CURVE, TRAINING])
        failed = (own["metric"] == "diverged") | (final & own["value"].isna())
        return own.loc[failed, "seed"].nunique(), own["seed"].nunique()


def judge(study: Study, frame: pd.DataFrame) -> list[Finding]:
    """A finding for each claim, with the p-values corrected together."""
    figures, found = Figures(frame), []
    for claim in study.claims:
        match claim.measure:
            case Diverges() as measure:
                found.append(_divergence(claim, measure, figures))
            case Faster() as measure:
                found.append(_without_failures(_speed_up(claim, measure, figures), figures))
            case measure:
                found.append(_without_failures(_difference(study, claim, measure, figures), figures))
    decide, equal = corrected([f.p_decide for f in found], [f.p_equal for f in found])
    return [replace(f, p_decide=d, p_equal=e) for f, d, e in zip(found, decide.tolist(), equal.tolist(), strict=True)]


def _difference(study: Study, claim: Claim, measure: Better | Equal, figures: Figures) -> Finding:
    """Compares final scores.

    Against several variants, it must be better than each of them, every test at the full level; it is refuted if any
    of them is better after a Bonferroni correction.
    """
    condition, sign = study.condition_of(measure), 1 if measure.metric == "fd" else -1
    # Zero has no logarithm: none of 1,000 images counts as half of one.
    fit = TwoWayFit(figures.scores(measure.metric, condition).clip(lower=5e-4).apply(np.log))
    found = {other: c for other in measure.others if (c := fit.contrast(measure.of, other)) is not None}
    finding = Finding(claim, "-", f"{measure.metric}, {condition}")
    if len(found) < len(measure.others):
        return finding
    nearest = max(found, key=lambda other: sign * found[other].value)
    contrast, several = replace(found[nearest], value=sign * found[nearest].value), len(found) > 1
    p_decide, p_equal = max(c.p_differs() for c in found.values()), math.nan
    if several and contrast.value >= 0:
        p_decide = min(len(found) * min(c.p_differs() for c in found.values() if sign * c.value >= 0), 1.0)
    if isinstance(measure, Equal):
        margin = math.log1p(measure.within)
        p_decide, p_equal = contrast.p_differs(margin), contrast.p_within(margin)
    elif not several:
        p_equal = contrast.p_within(math.log1p(study.equal_within))
    return replace(
        finding,
        effect=_change(found[nearest]) + f" against {nearest}, the nearest" * several,
        p_decide=p_decide,
        p_equal=p_equal,
        favours=HOLDS if contrast.value < 0 and not isinstance(measure, Equal) else REFUTED,
        contrast=contrast,
    )


def _speed_up(claim: Claim, measure: Faster, figures: Figures) -> Finding:
    """Compares scores where the claim sets them equal; the ratio of costs is shown, and decides nothing."""
    ratios, sooner, missed, bound = [], {}, 0, False
    for seed in sorted(figures.frame["seed"].unique()):
        costs, own = figures.curve(measure.of, seed, measure.cost)
        other_costs, others = figures.curve(measure.than, seed, measure.cost)
        if not len(costs) or not len(others) or math.isnan(others[-1]):
            continue
        sooner[seed] = at_cost(costs, own, other_costs[-1] / measure.at_least)
        taken, base = reach(costs, own, others[-1]), reach(other_costs, others, others[-1])
        missed += taken is None
        bound |= bool(taken == costs[0] or base == other_costs[0])
        ratios += [math.log(base / taken)] if taken is not None and base is not None else []
    name = f"{measure.of} at 1/{measure.at_least:g}"
    # The end of `of` depends on its earlier point, and the fit takes all scores for independent.
    ends = figures.scores("fd", CURVE).drop(index=measure.of, errors="ignore")
    scores = pd.concat([ends, pd.DataFrame([sooner], index=pd.Index([name]), dtype=float)])
    found = TwoWayFit(scores.apply(np.log)).contrast(name, measure.than)
    finding = Finding(claim, "-", f"curve, over {measure.unit}")
    if found is None:
        return finding
    effect = f"not reached with {missed} of {counted(len(sooner), 'seed')}" if missed else _speed(ratios)
    effect += ", a bound: the first point already reaches it" * bound
    effect += f"; score at 1/{measure.at_least:g} of the {measure.unit} {_change(found)}"
    favours = HOLDS if found.value < 0 else REFUTED
    return replace(finding, effect=effect, p_decide=found.p_differs(), favours=favours, contrast=found)


def _divergence(claim: Claim, measure: Diverges, figures: Figures) -> Finding:
    own, other = figures.failures(measure.of), figures.failures(measure.than)
    p, favours = math.nan, HOLDS if own[0] > other[0] else REFUTED
    if own[1] and other[1]:
        p = float(np.asarray(stats.fisher_exact([[failed, seeds - failed] for failed, seeds in (own, other)])[1]))
    effect = f"{own[0]} of {own[1]} against {other[0]} of {other[1]}"
    return Finding(claim, effect, "training runs that failed", p, favours=favours)


def _without_failures(finding: Finding, figures: Figures) -> Finding:
    """Adds the seeds. The scores of failed trainings would have been worse than any: they favour no variant."""
    failed = {name: figures.failures(name) for name in finding.claim.variants}
    told = [f", {n} of {seeds} of {name} failed" for name, (n, seeds) in failed.items() if n]
    own, *others = (n for n, _ in failed.values())
    seeds = counted(finding.contrast.seeds if finding.contrast else 0, "seed")
    against = own > min(others) if finding.favours == HOLDS else max(others) > own
    return replace(
        finding,
        where=f"{finding.where}, {seeds}{''.join(told)}",
        favours=OPEN if against else finding.favours,
        p_equal=finding.p_equal if {own} == {*others} else math.nan,
    )


def _change(found: Contrast) -> str:
    """A contrast of logarithms as a relative change with its interval."""
    low, high = found.interval
    known = found.freedom and high - low > 1e-6
    return f"{_percent(found.value)} %" + (f" ({_percent(low)} to {_percent(high)})" if known else "")


def _percent(logarithm: float) -> str:
    """A relative change in percent with its significant digits; never -0."""
    change = 100 * math.expm1(min(logarithm, 20))
    return f"{change:+.{0 if abs(change) >= 10 else 1}f}" if abs(change) >= 0.05 else "0"


def _speed(ratios: list[float]) -> str:
    """The geometric mean of ratios from their logarithms, and the range over the seeds."""
    mean, low, high = (f"{math.exp(x):.3g}" for x in (float(np.mean(ratios)), min(ratios), max(ratios)))
    return f"{mean} times faster" + (f" ({low} to {high} over the seeds)" if low != high else "")
