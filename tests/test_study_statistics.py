"""Statistics of studies against SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitv2.study.statistics import TwoWayFit, at_cost, corrected, reach


def table(rows: int, columns: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(0, 1, (rows, columns))
    return pd.DataFrame(values + np.arange(columns) * 3, index=list("abcdefgh")[:rows])


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_a_fit_of_two_variants_is_the_paired_t_test(seeds):
    scores = table(2, seeds)
    found, expected = TwoWayFit(scores).contrast("a", "b"), stats.ttest_rel(*scores.to_numpy())
    assert (found.value, found.freedom) == (pytest.approx(expected.statistic * found.error), seeds - 1)
    assert found.p_differs() == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(expected.confidence_interval(0.95))


def test_more_variants_share_one_spread_and_a_missing_score_costs_one_degree():
    scores = table(5, 4)
    whole = TwoWayFit(scores)
    residuals = scores.sub(scores.mean(axis=1), axis=0).sub(scores.mean() - scores.to_numpy().mean())
    assert whole.freedom == 12 and whole.deviation == pytest.approx(math.sqrt((residuals**2).to_numpy().sum() / 12))
    found = whole.contrast("c", "a")
    assert found.value == pytest.approx(scores.loc["c"].mean() - scores.loc["a"].mean())
    assert found.error == pytest.approx(whole.deviation * math.sqrt(2 / 4))
    scores.iloc[0, 0] = math.nan
    fewer = TwoWayFit(scores).contrast("c", "a")
    assert (fewer.freedom, fewer.seeds) == (11, 3) and fewer.error > found.error * 0.9


def test_without_a_common_seed_or_a_second_one_there_is_no_test():
    scores = pd.DataFrame([[1.0, math.nan], [math.nan, 2.0], [3.0, math.nan]], index=list("abc"))
    assert TwoWayFit(scores).contrast("a", "b") is None and TwoWayFit(scores).contrast("a", "x") is None
    single = TwoWayFit(scores[[0]]).contrast("a", "c")
    assert single.value == pytest.approx(-2) and single.interval == (-math.inf, math.inf)
    assert math.isnan(single.p_differs())


def test_equal_scores_are_equivalent_and_not_different():
    found = TwoWayFit(pd.DataFrame([[0.1 + 0.2, 0.5], [0.3, 0.5]], index=list("ab"))).contrast("a", "b")
    assert found.p_differs() > 0.5 and found.p_within(0.01) < 1e-6


def test_the_two_tests_of_equivalence_are_students():
    found = TwoWayFit(table(2, 5)).contrast("a", "b")
    low = stats.t.sf((found.value + 2) / found.error, found.freedom)
    high = stats.t.cdf((found.value - 2) / found.error, found.freedom)
    assert found.p_within(2) == pytest.approx(max(low, high))


def test_p_values_are_corrected_by_holm():
    nothing = [math.nan] * 4
    decide, equal = corrected([0.01, 0.04, 0.03, math.nan], nothing)
    # The smallest times 3, the next times 2, and never less than the one before.
    assert decide[:3] == pytest.approx([0.03, 0.06, 0.06]) and np.isnan(decide[3]) and np.isnan(equal).all()
    # Both hypotheses of a claim cannot be true: with both tested, the factor is still the number of claims.
    decide, equal = corrected([0.01, 0.5], [0.9, 0.004])
    assert (decide[0], equal[1]) == pytest.approx((0.02, 0.008))


def test_a_curve_is_a_line_in_the_logarithm():
    steps = np.array([100, 200, 300, 400])
    falling = np.exp(-steps / 50)
    for cost in (137.0, 200.0, 399.9):
        assert reach(steps, falling, math.exp(-cost / 50)) == pytest.approx(cost)
        assert at_cost(steps, falling, cost) == pytest.approx(math.exp(-cost / 50))
    assert math.isnan(at_cost(steps, falling, 99))


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [([8, 4, 2], 1.0, None), ([8, 4, 2], 9.0, 100), ([8, 2, 4, 2], 2.0, 200), ([8, math.nan, 2], 4.0, 300)],
)
def test_a_curve_reaches_a_score_once_or_never(scores, target, expected):
    costs = np.array([100, 200, 300, 400])[: len(scores)]
    assert reach(costs, np.array(scores), target) == expected
