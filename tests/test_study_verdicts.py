"""How claims are judged: on figures made up for each case, and by their rates of error."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from scipy import stats

from fitv2.study.definition import Better, Faster, Study
from fitv2.study.loading import load_study
from fitv2.study.plots import draw_forest
from fitv2.study.results import CURVE, TRAINING, Table
from fitv2.study.runs import frame_of
from fitv2.study.statistics import LEVEL
from fitv2.study.verdicts import EQUIVALENT, HOLDS, NO_RESULT, OPEN, REFUTED, judge
from studies import MadeUp, curves, diverged, frame, study_of, work_off

BETTER = {"kind": "better", "of": "a", "than": "b"}
LOW, HIGH, NEAR = [2.0, 2.2, 1.9, 2.1], [4.0, 4.2, 4.1, 3.9], [2.01, 2.19, 1.91, 2.1]


def verdict(measure: dict, table: pd.DataFrame, variants: str = "ab", **changes) -> str:
    (found,) = judge(study_of(measure, variants=variants, **changes), table)
    return found.verdict


@pytest.mark.parametrize(
    ("measure", "a", "b", "expected"),
    [
        (BETTER, LOW, HIGH, HOLDS),
        (BETTER, HIGH, LOW, REFUTED),
        (BETTER, LOW, [2.5, 1.9, 2.0, 2.4], OPEN),
        (BETTER, LOW, NEAR, EQUIVALENT),
        (BETTER, [2.0], [4.0], NO_RESULT),
        (BETTER, [], HIGH, NO_RESULT),
        (BETTER | {"kind": "equal"}, LOW, NEAR, HOLDS),
        (BETTER | {"kind": "equal"}, LOW, HIGH, REFUTED),
        (BETTER | {"kind": "equal", "within": 1.5}, LOW, HIGH, HOLDS),
        (BETTER | {"kind": "equal"}, LOW, [2.5, 1.9, 2.0, 2.4], OPEN),
    ],
)
def test_a_difference_is_decided_in_both_directions(measure, a, b, expected):
    assert verdict(measure, frame(a=a, b=b)) == expected


@pytest.mark.parametrize(
    ("metric", "a", "b"),
    [("accuracy", [0.9, 0.91, 0.92], [0.5, 0.52, 0.51]), ("coverage", [0.2, 0.3, 0.2], [0, 0.001, 0])],
)
def test_more_is_better_for_fractions_and_zero_is_no_failure(metric, a, b):
    (found,) = judge(study_of(BETTER | {"metric": metric}), frame(metric=metric, a=a, b=b))
    assert found.verdict == HOLDS and math.isfinite(found.contrast.value)


def test_the_standard_deviation_is_estimated_from_all_variants():
    """Three seeds of two variants decide nothing here; with four more variants of the same deviation they do."""
    rng = np.random.default_rng(0)
    others = {name: np.exp(rng.normal(1, 0.05, 3)).tolist() for name in "cdef"}
    a, b = [2.0, 2.2, 2.1], [2.6, 2.5, 2.9]
    assert verdict(BETTER, frame(a=a, b=b)) == OPEN
    assert verdict(BETTER, frame(a=a, b=b, **others), variants="abcdef") == HOLDS


def test_claims_are_corrected_together():
    table = frame(a=[2.0, 2.3, 2.0, 2.2], b=[2.5, 2.6, 2.6, 2.5], c=[2.2, 2.4, 2.3, 2.3])
    alone = judge(study_of(BETTER, variants="abc"), table)[0]
    together = judge(study_of(BETTER, *[BETTER | {"than": "c"}] * 4, variants="abc"), table)[0]
    assert together.p == pytest.approx(5 * alone.p)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"b": HIGH, "c": HIGH[::-1]}, HOLDS),
        ({"b": HIGH, "c": [1.0, 1.1, 1.0, 1.1]}, REFUTED),
        ({"b": HIGH, "c": NEAR}, OPEN),
        ({"b": HIGH, "c": []}, NO_RESULT),
    ],
)
def test_the_best_is_better_than_each_of_the_others(others, expected):
    measure = {"kind": "better", "of": "a", "than": ["b", "c"]}
    assert verdict(measure, frame(a=LOW, **others), variants="abc") == expected


FASTER = {"kind": "faster", "of": "a", "than": "b", "at_least": 2}
BASE = [[16.0, 8.0, 4.0, 2.0], [17.0, 8.5, 4.2, 2.1], [15.0, 7.8, 3.9, 1.9]]
SLOW = [[40.0, 20.0, 10.0, 5.0], [41.0, 20.0, 11.0, 5.2], [39.0, 20.0, 10.0, 4.9]]
FAST = [[4.0, 1.0, 0.5, 0.3], [4.1, 1.1, 0.5, 0.3], [3.9, 0.9, 0.5, 0.3]]


@pytest.mark.parametrize(
    ("a", "expected", "told"),
    [(FAST, HOLDS, "times faster (2.6"), (SLOW, REFUTED, "not reached with 3 of 3 seeds"), (BASE, REFUTED, "1 times")],
)
def test_a_speed_up_is_decided_where_it_would_be_seen(a, expected, told):
    evaluation = {"points": [1, 2, 3]}
    (found,) = judge(study_of(FASTER, evaluation=evaluation), curves(a=a, b=BASE))
    assert found.verdict == expected and told in found.effect and "; score at 1/2 of the steps " in found.effect
    by_operations = judge(study_of(FASTER | {"cost": "operations"}, evaluation=evaluation), curves(a=a, b=BASE))[0]
    assert by_operations.p == pytest.approx(found.p)


def test_a_speed_up_is_not_tested_by_two_points_of_one_training():
    """The fit has the point of one variant and the end of the other: with two variants it is the paired t-test."""
    a, b = np.array(BASE) * [[1.0, 0.3, 1.0, 2.0], [1.0, 0.2, 1.0, 1.0], [1.0, 0.3, 1.0, 3.0]], np.array(BASE)
    (found,) = judge(study_of(FASTER, evaluation={"points": [1, 2, 3]}), curves(a=a.tolist(), b=BASE))
    assert found.p == pytest.approx(stats.ttest_rel(np.log(a[:, 1]), np.log(b[:, 3])).pvalue)
    assert found.contrast.freedom == 2


def test_a_curve_without_its_end_is_not_used(tmp_path):
    queue = MadeUp(tmp_path)
    runs, _ = work_off(queue)
    lines = [json.loads(line) for line in queue.table.path.read_text().splitlines()]
    kept = [line for line in lines if (line.get("condition"), line.get("step"), line.get("seed")) != ("curve", 4, 0)]
    (tmp_path / "part").mkdir()
    (tmp_path / "part/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    points = frame_of(runs, Table(tmp_path / "part")).query("condition == 'curve' and metric == 'fd'")
    assert len(kept) < len(lines) and set(points["seed"]) == {1} and set(points["step"]) == {2, 4}


def test_a_score_that_the_first_point_reaches_is_called_a_bound():
    (found,) = judge(study_of(FASTER), curves(a=[[1.0] * 4, [1.1] * 4, [0.9] * 4], b=BASE))
    assert found.verdict == HOLDS and "a bound" in found.effect


@pytest.mark.parametrize(
    ("seeds", "a_fails", "b_fails", "expected"),
    [(3, 3, 0, OPEN), (5, 5, 0, HOLDS), (5, 0, 5, REFUTED), (3, 0, 0, OPEN)],
)
def test_divergence_needs_five_seeds(seeds, a_fails, b_fails, expected):
    table = diverged(diverged(frame(a=[2.0] * seeds, b=[2.0] * seeds), "a", a_fails), "b", b_fails)
    assert verdict({"kind": "diverges", "of": "a", "than": "b"}, table) == expected


def test_failed_trainings_do_not_count_in_favour_of_their_variant():
    assert verdict(BETTER, frame(a=LOW, b=HIGH)) == HOLDS
    (found,) = judge(study_of(BETTER), diverged(frame(a=LOW, b=HIGH), "a", 1))
    assert found.verdict == OPEN and "1 of 4 of a failed" in found.where
    assert verdict(BETTER, diverged(frame(a=LOW, b=HIGH), "b", 1)) == HOLDS
    assert verdict(BETTER | {"kind": "equal"}, diverged(frame(a=LOW, b=NEAR), "b", 1)) == OPEN
    assert verdict(BETTER, frame(a=LOW, b=[4.0, 4.2, 4.1, None])) == HOLDS
    (found,) = judge(study_of(BETTER), diverged(frame(a=LOW, b=HIGH), "a", 4))
    assert found.verdict == NO_RESULT and "4 of 4 of a failed" in found.where


def test_equal_values_have_no_seventeen_digits():
    (found,) = judge(study_of(BETTER), frame(a=[0.1 + 0.2, 0.3, 0.3], b=[0.6, 0.6, 0.6]))
    assert found.effect == "-50 %"


# Rates of error of the studies that ship, with their own claims, variants and seeds. The logarithms of the scores of a
# variant have the standard deviation DEVIATION, and all variants of a seed share an effect.
DEVIATION, STUDIES = 0.1, 200


def simulated(study: Study, rng: np.random.Generator, levels: dict[str, float]) -> pd.DataFrame:
    """Figures of a study. Its curves fall so that each claim of a speed-up is exactly at its limit."""
    common = rng.normal(0, DEVIATION, study.seeds)
    own = {v: rng.normal(levels.get(v, 0.0), DEVIATION, study.seeds) + common for v in study.variants}
    tables = [
        frame(condition, **{v: np.exp(x).tolist() for v, x in own.items() if c.suits(v)})
        for condition, c in study.evaluation.conditions.items()
    ]
    ratios = {c.measure.of: c.measure.at_least for c in study.claims if isinstance(c.measure, Faster)}
    rows = [
        {"variant": v, "seed": seed, "step": step, "condition": condition, "metric": metric, "value": value}
        for v, values in own.items()
        for seed, level in enumerate(values)
        for step in (*study.evaluation.points, 2000)
        for condition, metric, value in (
            (CURVE, "fd", math.exp(level + 3 * (1 - step * ratios.get(v, 1.0) / 2000) + rng.normal(0, DEVIATION / 2))),
            (TRAINING, "operations", 1.0 * step),
        )
    ]
    return pd.concat([*tables, pd.DataFrame(rows)], ignore_index=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablation", "convergence", "mixed", "versus-sit"])
def test_at_most_one_study_in_twenty_has_a_false_verdict(name):
    """All variants are equal, and all speed-ups are those of the claims: none holds, and none is refuted."""
    rng, study = np.random.default_rng(1), load_study(name)
    false = sum(
        any(f.verdict in (HOLDS, REFUTED) for f in judge(study, simulated(study, rng, {}))) for _ in range(STUDIES)
    )
    # Two standard errors of the simulation above 5 %.
    assert false <= STUDIES * 0.05 + 2 * math.sqrt(STUDIES * 0.05 * 0.95)


def power(study: Study, seeds: int) -> float:
    """The chance to decide a claim about two variants whose scores differ by two standard deviations of a difference.

    This is the difference of two trainings, sqrt(2) times the standard deviation of one. It is the hardest case: no
    other claim is decided, so that Holm's correction takes the full number of claims.
    """
    freedom = (len(study.variants) - 1) * (seeds - 1)
    critical = stats.t.ppf(1 - LEVEL / len(study.claims) / 2, freedom)
    return float(stats.nct.sf(critical, freedom, 2 * math.sqrt(seeds)))


@pytest.mark.parametrize(
    ("name", "by_seeds"),
    [
        ("ablation", {3: 0.645, 4: 0.834}),
        ("versus-sit", {3: 0.532, 4: 0.786, 5: 0.915}),
        ("mixed", {3: 0.471, 4: 0.755, 5: 0.909}),
        ("convergence", {3: 0.453, 4: 0.736, 5: 0.892}),
    ],
)
def test_three_seeds_decide_fewer_than_four_of_five_effects(name, by_seeds):
    """Four seeds are enough for many variants only, which share one estimate of the standard deviation."""
    study = load_study(name)
    assert {seeds: power(study, seeds) for seeds in by_seeds} == pytest.approx(by_seeds, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablation", "versus-sit", "mixed"])
def test_four_of_five_effects_of_two_standard_deviations_of_a_difference_are_decided(name):
    rng, study, decided = np.random.default_rng(2), load_study(name), 0
    everywhere = {name for name, condition in study.evaluation.conditions.items() if condition.variants is None}
    at = [
        number
        for number, claim in enumerate(study.claims)
        if isinstance(claim.measure, Better) and len(claim.measure.others) == 1
        if study.condition_of(claim.measure) in everywhere
    ]
    for _ in range(STUDIES):
        number = int(rng.choice(at))
        table = simulated(study, rng, {study.claims[number].measure.of: -2 * math.sqrt(2) * DEVIATION})
        decided += judge(study, table)[number].verdict == HOLDS
    assert decided >= 0.8 * STUDIES
    # Two standard errors of the simulation.
    assert decided / STUDIES == pytest.approx(power(study, study.seeds), abs=2 * math.sqrt(0.8 * 0.2 / STUDIES))


@pytest.mark.slow
def test_four_of_five_speed_ups_are_decided_if_the_score_at_half_the_cost_is_two_standard_deviations_better():
    """A point of a curve has the deviation of its training and that of its own score. Two claims are of one pair."""
    rng, study, decided = np.random.default_rng(3), load_study("convergence"), 0
    deviation = math.hypot(DEVIATION, DEVIATION / 2)
    for _ in range(STUDIES):
        number = int(rng.integers(len(study.claims)))
        slow = study.claims[number].measure.than
        table = simulated(study, rng, {slow: 2 * math.sqrt(2) * deviation})
        decided += judge(study, table)[number].verdict == HOLDS
    assert decided >= 0.8 * STUDIES
    assert decided / STUDIES == pytest.approx(power(study, study.seeds), abs=2 * math.sqrt(0.8 * 0.2 / STUDIES))


def test_a_change_beyond_the_plot_is_drawn_as_an_arrow(tmp_path, monkeypatch):
    markers = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda axes, *given, **rest: (markers.append(given[2:]), plot(axes, *given, **rest))
    )
    scores = frame(a=[1.0, 1.1], b=[1.2, 1.0], c=[90.0, 99.0])
    found = judge(
        study_of(*({"kind": "better", "of": x, "than": y} for x, y in ("ab", "ac", "ca")), variants="abc"), scores
    )
    assert draw_forest(tmp_path / "forest.png", {"made up": found})
    assert [given[0] for given in markers if given] == ["o", "<", ">"]
