"""Estimates against SciPy, curves against closed forms, and the rule of verdicts on records made up for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from fitv2.study import paper_cost
from fitv2.study.claims import FAILS, HOLDS, NONE, ONE_SEED, OPEN, Best, Difference, Diverged, PaperCost, SpeedUp
from fitv2.study.record import Point, Record, Records, read_record, write_record
from fitv2.study.statistics import Estimate, estimate, reach
from fitv2.study.tables import curve_rows, difference_rows, final_rows, markdown, reach_rows, seeds_cell, steps_of

POINT = "square, guidance 1.5"


def record(variant: str, seed: int, distances: list[float | None], final: float | None = None, **changes) -> Record:
    """Points every 100 steps, each step of 10 pictures, 1e9 operations and half a second."""
    points = [
        Point(step=s, images=10 * s, flops=1e9 * s, seconds=s / 2, cpu_seconds=s, scores={"distance": distance})
        for s, distance in zip(range(100, 100 * len(distances) + 1, 100), distances, strict=True)
    ]
    final = distances[-1] if final is None else final
    content = {
        "digest": "0",
        "recipe": {},
        "settings": {},
        "machine": {},
        "cost": {},
        "evaluations": {POINT: 2},
        "loss": [],
    }
    content |= {"study": "s", "skipped": 0, "diverged": False, "final": {POINT: {"distance": final}}}
    return Record(variant=variant, seed=seed, points=points, **(content | changes))


def records(**variants: list) -> Records:
    """A list of curves, or of final distances, one a seed."""
    return {
        name: {
            seed: record(name, seed, curve if isinstance(curve, list) else [curve]) for seed, curve in enumerate(seeds)
        }
        for name, seeds in variants.items()
    }


@pytest.mark.parametrize("count", [2, 3, 7])
def test_an_estimate_is_students_interval(count):
    values = np.random.default_rng(0).normal(5, 2, count)
    found = estimate(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_of_one_value_there_is_no_interval_and_of_none_nothing():
    assert estimate([3.0]) == Estimate(3.0, None, 1) and estimate([3.0]).high == math.inf
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(12.3456, 0.4249, 3), "12.35 ± 0.42"),
        (Estimate(12.3456, 9.961, 3), "12.3 ± 10.0"),
        (Estimate(12345.6, 123.4, 3), "12,346 ± 123"),
        (Estimate(0.00123, 0.00012, 3), "0.00123 ± 0.00012"),
        (Estimate(0.004, 0.12, 3), "0.00 ± 0.12"),
        (Estimate(12.3456, None, 1), "12.3"),
        (Estimate(12345.6, None, 1), "12,346"),
        (Estimate(2.0, 0.0, 2), "2.00"),
        (Estimate(128.4, None, 1), "128"),
    ],
)
def test_an_estimate_in_words_has_the_digits_it_knows(found, text):
    assert found.text() == text
    assert found.text("+") == f"+{text}"


def test_nothing_is_less_than_nothing():
    assert Estimate(-0.004, 0.12, 3).text() == "0.00 ± 0.12"


def test_a_curve_is_a_line_in_the_logarithm():
    steps = [100, 200, 300, 400]
    falling = [math.exp(-step / 50) for step in steps]
    for target_at in (137.0, 200.0, 399.9):
        assert reach(steps, falling, math.exp(-target_at / 50)) == pytest.approx(target_at, rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [
        ([8, 4, 2], 1.0, None),
        ([8, 4, 2], 9.0, 100),
        ([8, 2, 4, 2], 2.0, 200),
        ([None, 4, 2], 5.0, 200),
        ([8, None, 2], 4.0, 300),
        ([8, 4, 0], 0.0, 300),
        ([8, None], 8.0, 100),
    ],
)
def test_a_curve_reaches_a_score_once_or_never(scores, target, expected):
    assert reach([100, 200, 300, 400][: len(scores)], scores, target) == expected


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-1.0, -1.1, -0.9], HOLDS),
        ([1.0, 1.1, 0.9], FAILS),
        ([-1.0, 1.0, -1.2], OPEN),
        ([-1.0], ONE_SEED),
        ([], NONE),
    ],
)
def test_a_difference_is_decided_by_its_interval(differences, verdict):
    """Seed by seed: the scores themselves scatter far more than their differences."""
    levels = [10.0, 50.0, 90.0][: len(differences)]
    runs = records(a=[x + d for x, d in zip(levels, differences, strict=True)], b=levels)
    found = Difference(kind="difference", of="a", to="b").judge(runs, POINT)
    assert found.verdict == verdict
    if len(differences) > 1:
        low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
        assert found.figure == Estimate(np.mean(differences), (high - low) / 2, 3).text("+")


def test_a_threshold_other_than_none():
    runs = records(a=[9.0, 9.1, 8.9], b=[10.0, 10.0, 10.0])
    assert Difference(kind="difference", of="a", to="b", below=-2).judge(runs, POINT).verdict == FAILS


def test_seeds_that_one_of_two_lacks_do_not_count():
    runs = records(a=[1.0, 2.0, 3.0], b=[5.0, 6.1])
    assert "2 seeds" in Difference(kind="difference", of="a", to="b").judge(runs, POINT).conditions


# A baseline that halves with every point, and contenders that are at its end (2.0) after 150 steps, or never.
BASELINE, FAST, SLOW = [16.0, 8.0, 4.0, 2.0], [2 * math.sqrt(2), math.sqrt(2), 1.0, 0.7], [16.0, 8.0, 4.0, 3.0]


def speed_up(contenders: list[list[float]], at_least: float = 2, unit: str = "steps"):
    measure = SpeedUp(kind="speed-up", baseline="a", contender="b", unit=unit, at_least=at_least)
    return measure.judge(records(a=[BASELINE] * len(contenders), b=contenders), POINT)


@pytest.mark.parametrize("unit", ["steps", "operations", "seconds", "CPU seconds"])
def test_a_speed_up_is_the_ratio_of_costs(unit):
    found = speed_up([FAST, FAST], unit=unit)
    assert found.figure == f"2.67 (2.67 to 2.67) times fewer {unit}" and found.verdict == HOLDS


def test_a_speed_up_is_decided_by_its_interval():
    assert speed_up([FAST, FAST], at_least=3).verdict == FAILS
    assert speed_up([FAST, [4.0, 2.0, 1.0, 1.0]], at_least=2.5).verdict == OPEN
    assert speed_up([FAST]).verdict == ONE_SEED


def test_a_contender_that_never_gets_there_cannot_win():
    found = speed_up([SLOW, SLOW])
    assert (
        found.verdict == FAILS
        and found.figure.startswith("at most 1.00 (1.00 to 1.00) times")
        and "2 of 2 seeds" in found.figure
    )
    assert speed_up([SLOW, SLOW], at_least=0.5).verdict == OPEN


def test_a_contender_that_is_there_at_once_cannot_lose():
    found = speed_up([[1.0] * 4, [1.5] * 4], at_least=5)
    assert found.verdict == OPEN and found.figure.startswith("at least 4.00 (4.00 to 4.00) times")
    assert speed_up([[1.0] * 4, [1.5] * 4], at_least=3).verdict == HOLDS


def test_a_baseline_counts_until_it_first_had_its_last_score():
    measure = SpeedUp(kind="speed-up", baseline="a", contender="b", at_least=2)
    early, late = [16.0, 2.0, 4.0, 2.0], [16.0, 2.0, 1.0, 1.0]
    assert measure.judge(records(a=[early] * 2, b=[late] * 2), POINT).figure.startswith("1.00 (1.00 to 1.00) times")


def fail(runs: Records, variant: str, seeds: range, pictures: bool = False) -> Records:
    """The same, where those trainings diverged, or were finished and gave pictures that are not finite."""
    for seed in seeds:
        one = record(variant, seed, [5.0, None], diverged=not pictures, skipped=100)
        runs[variant][seed] = one if pictures else one.model_copy(update={"final": {}})
    return runs


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize(
    ("a_fails", "b_fails", "worse", "better"),
    [
        (0, 0, FAILS, HOLDS),
        (1, 0, FAILS, OPEN),
        (0, 1, OPEN, HOLDS),
        (2, 0, OPEN, OPEN),
        (3, 0, FAILS, FAILS),
        (0, 3, HOLDS, HOLDS),
        (3, 3, NONE, NONE),
    ],
)
def test_a_run_that_failed_is_worse_than_any_score(a_fails, b_fails, worse, better, pictures):
    """worse: the verdict of "a is below b" where a is above in the other seeds; better: where it is below."""
    for finals, verdict in (([11.0, 11.01, 10.99], worse), ([9.0, 9.01, 8.99], better)):
        runs = records(a=finals, b=[10.0, 10.0, 10.0])
        fail(fail(runs, "a", range(a_fails), pictures), "b", range(b_fails), pictures)
        found = Difference(kind="difference", of="a", to="b").judge(runs, POINT)
        assert found.verdict == verdict
        assert found.figure.count("∞") == (0 < a_fails != b_fails) + (0 < b_fails != a_fails)


def test_both_sides_failing_with_different_seeds_decide_nothing():
    runs = fail(fail(records(a=[9.0] * 2, b=[10.0] * 2), "a", range(1)), "b", range(1, 2))
    found = Difference(kind="difference", of="a", to="b").judge(runs, POINT)
    assert (found.figure, found.verdict) == ("-∞ with 1, +∞ with 1", OPEN)
    assert found.conditions.endswith("2 seeds, 1 of 2 of a diverged, 1 of 2 of b diverged")
    assert difference_rows(runs, "b", "distance") == [["a", "-∞ with 1, +∞ with 1"]]
    assert seeds_cell(runs["b"]) == "2, 1 diverged, 100 steps skipped"


def test_where_more_is_better_a_failure_is_below_any_score():
    runs = fail(records(a=[1.0] * 2, b=[1.0] * 2), "a", range(2))
    for run in runs["b"].values():
        run.final[POINT]["recognised"] = 0.5
    assert Difference(kind="difference", of="b", to="a", score="recognised").judge(runs, POINT).figure == "+∞ with 2"


def test_a_condition_that_a_model_cannot_meet_is_no_failure():
    runs = fail(records(a=[1.0] * 2, b=[1.0] * 2), "a", range(2))
    found = Difference(kind="difference", of="a", to="b", condition="elsewhere").judge(runs, POINT)
    assert (found.figure, found.verdict) == ("-", NONE)


def test_a_speed_up_over_what_diverged_has_no_end():
    measure = SpeedUp(kind="speed-up", baseline="a", contender="b", at_least=2)
    found = measure.judge(fail(records(a=[BASELINE] * 3, b=[FAST] * 3), "b", range(1)), POINT)
    assert found.figure == "2.67 (2.67 to 2.67) times fewer steps, -∞ with 1" and found.verdict == OPEN
    assert found.conditions.endswith("3 seeds, 1 of 3 of b diverged")
    assert measure.judge(fail(records(a=[BASELINE] * 3, b=[FAST] * 3), "a", range(1)), POINT).verdict == HOLDS
    found = measure.judge(fail(records(a=[BASELINE] * 2, b=[FAST] * 2), "a", range(2)), POINT)
    assert (found.figure, found.verdict) == ("+∞ with 2", HOLDS)


@pytest.mark.parametrize(
    ("a_fails", "b_fails", "verdict"),
    [(3, 0, HOLDS), (2, 0, OPEN), (3, 1, OPEN), (0, 0, OPEN), (2, 2, FAILS), (0, 1, FAILS)],
)
def test_divergence_is_counted(a_fails, b_fails, verdict):
    runs = fail(fail(records(a=[1.0] * 3, b=[1.0] * 3), "a", range(a_fails)), "b", range(b_fails))
    found = Diverged(kind="diverged", of="a", to="b").judge(runs, POINT)
    assert (found.figure, found.verdict) == (f"{a_fails} of 3 against {b_fails} of 3", verdict)


def test_divergence_with_one_seed_is_no_verdict():
    runs = fail(records(a=[1.0], b=[1.0]), "a", range(1))
    assert Diverged(kind="diverged", of="a", to="b").judge(runs, POINT).verdict == ONE_SEED
    assert Diverged(kind="diverged", of="a", to="b").judge({"a": {}, "b": {}}, POINT).verdict == NONE


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ({"b": [2.0, 3.1, 4.0], "c": [5.0, 6.1, 7.0]}, HOLDS),
        ({"b": [2.0, 3.1, 4.0], "c": [0.5, 1.6, 2.5]}, FAILS),
        ({"b": [2.0, 3.1, 4.0], "c": [1.5, 1.6, 3.4]}, OPEN),
        ({"b": [2.0], "c": [3.0]}, ONE_SEED),
        ({"b": [2.0, 3.1, 4.0], "c": []}, NONE),
    ],
)
def test_the_best_is_below_each_other_one(others, verdict):
    runs = records(a=[1.0, 2.0, 3.0], **others)
    assert Best(kind="best", best="a", others=("b", "c")).judge(runs, POINT).verdict == verdict


def test_the_best_may_be_so_because_others_diverged():
    best = Best(kind="best", best="a", others=("b", "c"))
    runs = fail(records(a=[1.0, 2.0, 3.0], b=[2.0, 3.1, 4.0], c=[9.0] * 3), "c", range(3))
    found = best.judge(runs, POINT)
    assert found.verdict == HOLDS and found.figure.endswith("to the nearest, b") and "3 of 3 of c" in found.conditions
    found = best.judge(fail(records(a=[1.0] * 3, b=[2.0] * 3, c=[9.0] * 3), "a", range(3)), POINT)
    assert (found.figure.split(" to ")[0], found.verdict) == ("+∞ with 3", FAILS)


def test_the_paper_s_cost_by_steps_and_by_operations():
    lines = paper_cost.account()
    assert lines["steps"].share == pytest.approx(2 / 7)
    assert lines["operations of Table I"].share == pytest.approx(0.368, abs=5e-4)
    # Table I itself, counted from the networks.
    assert lines["linear layers"].share == pytest.approx(lines["operations of Table I"].share, rel=0.01)
    assert lines["steps"].share < lines["packed"].share < lines["with attention"].share
    by_steps = PaperCost(kind="paper-cost", line="steps", at_most=0.286).judge({}, POINT)
    assert (by_steps.figure, by_steps.verdict) == ("28.6 %", HOLDS)
    assert PaperCost(kind="paper-cost", line="packed", at_most=0.286).judge({}, POINT).verdict == FAILS
    assert PaperCost(kind="paper-cost", line="seconds", at_most=0.286).judge({}, POINT).verdict == NONE
    assert all("by formula" in line.formula for line in lines.values())


def test_the_account_goes_beyond_operations_of_the_network():
    lines = paper_cost.account()
    assert lines["parameters"].share == pytest.approx(671.05 / 674.82, rel=1e-4)
    # Pictures have 256 tokens at most: what is padding costs what packing saves, attention aside.
    padded = lines["waste, padded"].share
    assert lines["packed"].share == pytest.approx(lines["with attention"].share * (1 - padded), rel=5e-3)
    assert 0 < lines["waste, packed"].share < 0.01 < padded < 0.1
    # The same added to both brings the shares nearer: little where it is done once, much in each step by the steps.
    assert 0 < lines["packed, encoded once"].share - lines["packed"].share < 1e-3
    assert 2 / 7 < lines["packed, encoded in each step"].share < lines["packed"].share


def test_the_operations_of_encoding_are_those_of_stable_diffusion_s_vae():
    channels = (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKL(**kinds, block_out_channels=channels, layers_per_block=2, latent_channels=4)
        vae.encode(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() == paper_cost.VAE_FLOPS


def test_tables_say_what_the_records_do():
    runs = records(a=[BASELINE, BASELINE], b=[FAST, SLOW])
    assert final_rows(runs, "distance")[0] == ["a", "2", "2.00"]
    ((name, cell),) = difference_rows(runs, "a", "distance")
    assert (name, cell) == ("b", Estimate(-0.15, 14.61, 2).text("+"))
    assert reach_rows(runs, "a")[1][1] == "150, not reached with 1 of 2 seeds"
    steps = steps_of([runs["a"][0]])
    assert curve_rows(runs, steps)[0][1:] == [str(Estimate(v, 0.0, 2).text()) for v in BASELINE]
    assert curve_rows(runs, [7])[0] == ["a", "-"]
    assert reach_rows(records(a=[BASELINE], b=[SLOW]), "a")[1][1] == "not reached"
    assert reach_rows(records(a=[BASELINE], b=[[1.0] * 4]), "a")[1][1] == "at most 100"
    assert list(markdown(("x", "y"), [["a|b", "c\nd"]])) == ["| x | y |", "| --- | ---: |", "| a\\|b | c d |"]


def test_a_record_is_read_as_it_was_written(tmp_path):
    one = record("a", 0, [3.0, None, 1.0])
    write_record(tmp_path / "a.json", one)
    assert read_record(tmp_path / "a.json") == one


def test_rounding_noise_is_no_interval():
    """Equal values whose mean is rounded: not 0.299999999999999989 ± 0.000000000000000080."""
    assert estimate([0.1 + 0.2, 0.3, 0.3]).text() == estimate([0.3]).text() == "0.300"
