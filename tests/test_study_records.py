"""Records of before as a table of results: every figure on the withdrawn pages comes from it again, digit by digit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from convert_records import convert
from fitv2.study.results import CURVE, REAL, TRAINING, Table
from fitv2.study.statistics import reach
from fitv2.study.verdicts import HOLDS, OPEN, judge
from studies import study_of

ROOT = Path(__file__).parents[1]
WITHDRAWN = ROOT / "studies/withdrawn"
METRICS = {"Frechet distance at the end": "fd", "Share recognised at the end": "accuracy"}
COSTS = {"steps": "step", "TFLOP": "operations", "operations": "operations", "seconds": "wall"}
COSTS |= {"CPU seconds": "cpu_seconds"}
# What each claim of the overview compares, in the order of its rows.
PAIRS = "A-FiT B-A C-B C-B D-A D-A E-B E-B F-E FiTv2-F FiTv2-FiT FiTv2-no/qk/norm - FiTv2-full/adaln"
PAIRS += " FiTv2-full/adaln/narrow FiTv2-ddpm FiTv2-uniform FiTv2-mode FiTv2-FiT FiTv2-FiT FiTv2-FiT"
PAIRS += " FiTv2-FiT/flexible FiTv2/slower-FiT/slower FiTv2-FiT/flow FiTv2-SiT FiTv2-SiT FiTv2-SiT FiTv2-DiT FiTv2-SiT"
PAIRS += " FiTv2/squares-SiT"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    frame = Table(WITHDRAWN).frame
    assert set(frame["trained"].map(lambda line: line["training"])) == {"training-1"}
    return frame.assign(study=[scored["study"] if scored else None for scored in frame["scored"]])


def of_study(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["run"].isin(set(table.loc[table["study"] == name, "run"]))]


def sections(page: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The heading above each table of a page, its head, and its rows."""
    for part in page.split("\n## "):
        for block in re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE):
            head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
            yield part.splitlines()[0], head, rows


def wide(frame: pd.DataFrame, metric: str, condition: str) -> pd.DataFrame:
    rows = frame[(frame["metric"] == metric) & (frame["condition"] == condition) & (frame["variant"] != REAL)]
    return rows.pivot_table("value", "seed", "variant", "last")


def in_words(values: pd.Series, sign: str = "") -> str:
    """Mean and half of Student's 95 % interval, as pages had it until now."""
    values = values.dropna()
    if values.empty:
        return "-"
    mean, half = fmean(values), 0.0  # Of exact sums, as pages had it: a digit may depend on it.
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    if half < 1e-9 * abs(mean) or not half:
        return f"{mean:{sign},.0f}" if abs(mean) >= 1000 else f"{mean:{sign}#.3g}".rstrip(".")
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:{sign}z,.{decimals}f} ± {half:,.{decimals}f}"


def costs(frame: pd.DataFrame, variant: str, seed: int, unit: str) -> tuple[np.ndarray, np.ndarray]:
    own = frame[(frame["variant"] == variant) & (frame["seed"] == seed)].sort_values("step")
    curve = own[(own["condition"] == CURVE) & (own["metric"] == "fd")]
    taken = curve["step"] if unit == "step" else own[(own["condition"] == TRAINING) & (own["metric"] == unit)]["value"]
    return taken.to_numpy(), curve["value"].to_numpy()


@pytest.mark.parametrize("name", ["ablation", "convergence", "samplers", "versus-sit"])
def test_every_score_on_the_withdrawn_pages_is_in_the_table(table, name):
    frame, checked = of_study(table, name), 0
    for heading, head, rows in sections((WITHDRAWN / name / "README.md").read_text()):
        if heading in METRICS and head[0] == "variant":
            cells = {c: wide(frame, METRICS[heading], c) for c in head[2:]}
            expected = [[in_words(cells[c].get(row[0], pd.Series())) for c in head[2:]] for row in rows[:-1]]
            assert [row[2:] for row in rows[:-1]] == expected
        elif heading in METRICS:
            first = head[0].removeprefix("less that of ")
            for row in rows:
                both = [wide(frame, METRICS[heading], c) for c in head[1:]]
                assert row[1:] == [
                    in_words(b[row[0]] - b[first], "+") if {row[0], first} <= {*b} else "-" for b in both
                ]
        elif heading.startswith("Other measures"):
            condition = heading.partition(", ")[2]
            for row in rows[:-1]:
                assert row[1:] == [in_words(wide(frame, m, condition).get(row[0], pd.Series())) for m in head[1:]]
        elif heading == "On the way" and head[1] != "steps":
            points = frame[(frame["condition"] == CURVE) & (frame["metric"] == "fd")]
            for row in rows:
                own = points[points["variant"] == row[0]]
                steps = [own[own["step"] == int(s.replace(",", ""))]["value"] for s in head[1:]]
                assert row[1:] == [in_words(values) for values in steps]
        else:
            continue
        checked += len(rows)
    assert checked > 15


@pytest.mark.parametrize("name", ["ablation", "convergence", "samplers", "versus-sit"])
def test_every_real_score_on_the_withdrawn_pages_is_in_the_table(table, name):
    real = of_study(table, name).query("variant == @REAL")
    for heading, head, rows in sections((WITHDRAWN / name / "README.md").read_text()):
        if heading in METRICS and head[0] == "variant":
            for condition, cell in zip(head[2:], rows[-1][2:], strict=True):
                (row,) = real[(real["condition"] == condition) & (real["metric"] == METRICS[heading])].itertuples()
                ends = row.range if isinstance(row.range, list) else []
                told = [f"{value:#.3g}".rstrip(".") for value in (row.value, *ends)]
                assert cell == (f"{told[0]} ({told[1]} to {told[2]})" if ends else told[0])


def test_every_claim_on_the_withdrawn_overview_comes_from_the_table(table):
    (_, _, claims), *_ = sections((WITHDRAWN / "README.md").read_text())
    checked = 0
    for row, pair in zip(claims, PAIRS.split(), strict=False):
        if pair == "-":
            continue
        frame = of_study(table, re.match(r"\[(.+?)\]", row[0])[1])
        of, to = pair.replace("/", "~").split("-")
        of, to = of.replace("~", "-"), to.replace("~", "-")
        if "times fewer" not in row[2]:
            scores = wide(frame, "fd", re.match(r"distance, (.*), \d seed", row[3])[1])
            assert row[2].partition(" to the nearest")[0] == in_words(scores[of] - scores[to], "+"), row[0]
        else:
            assert speed(frame, of, to, COSTS[row[2].partition(" times fewer ")[2].partition(":")[0]]) in row[2], row[0]
        checked += 1
    assert checked == 29


def speed(frame: pd.DataFrame, of: str, to: str, unit: str) -> str:
    """The mean ratio of costs and its interval; what is never reached counts with its whole cost."""
    ratios = []
    for seed in range(3):
        (own, scores), (other, others) = costs(frame, of, seed, unit), costs(frame, to, seed, unit)
        base, taken = reach(other, others, others[-1]), reach(own, scores, others[-1])
        ratios.append(math.log(base / (own[-1] if taken is None else taken)))
    half = stats.t.ppf(0.975, 2) * stats.sem(ratios)
    mean, low, high = (f"{math.exp(np.mean(ratios) + x):#.3g}".rstrip(".") for x in (0, -half, half))
    return f"{mean} ({low} to {high}) times fewer"


def test_the_engine_judges_the_old_figures(table):
    """Means as published; verdicts from all 57 trainings together, which six of them at a time did not give."""
    speed_ups = [("FiT", "step", "3.63"), ("FiT", "operations", "3.88"), ("FiT", "cpu_seconds", "3.38")]
    measures = [
        {"kind": "faster", "of": "FiTv2", "than": than, "at_least": 2, "cost": cost}
        for than, cost, _ in [*speed_ups, ("FiT-flow", "step", "1.69")]
    ]
    frame = of_study(table, "convergence")
    study = study_of(*measures, variants=[*frame["variant"].unique()], evaluation={"points": [1]})
    found = judge(study, frame)
    assert [f.effect.split()[0] for f in found] == ["3.63", "3.88", "3.38", "1.69"]
    assert [f.verdict for f in found] == [HOLDS] * 3 + [OPEN]
    frame, condition = of_study(table, "ablation"), "square, guidance 1.5"
    pairs = ["FiTv2-FiT", "A-FiT", "B-A", "E-B", "F-E", "FiTv2-F"]
    measures = [{"kind": "better", "of": p.split("-")[0], "than": p.split("-")[1]} for p in pairs]
    study = study_of(*measures, variants=[*frame["variant"].unique()], evaluation={"conditions": {condition: {}}})
    assert [f.verdict for f in judge(study, frame)] == [HOLDS, HOLDS, OPEN, HOLDS, HOLDS, OPEN]


def test_a_record_becomes_lines_that_say_what_is_known(tmp_path, table):
    assert convert(ROOT / "tests/data/study_records", tmp_path) > 30
    frame = Table(tmp_path).frame
    same = table[table["run"].isin(set(frame["run"])) & (table["variant"] != REAL)].drop(columns="study")
    both = [
        one.sort_values(["condition", "step", "variant", "metric"], ignore_index=True).dropna(axis=1, how="all")
        for one in (frame[frame["variant"] != REAL], same)
    ]
    assert both[0].equals(both[1])
    line = frame["trained"].iloc[0]
    assert line["by"] == [] and line["data"] is None and line["settings"]["model"]["architecture"] == "FiT"
    assert frame["scored"].dropna().iloc[0]["torch"] == "2.13.0+cpu"
