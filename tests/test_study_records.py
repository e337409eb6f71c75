"""The withdrawn table, which an earlier version wrote: it is still read, and agrees with the pages."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from fitv2.study.results import REAL, Table
from fitv2.study.verdicts import HOLDS, OPEN, judge
from studies import study_of

WITHDRAWN = Path(__file__).parents[1] / "studies/withdrawn"
METRICS = {"Frechet distance at the end": "fd", "Share recognised at the end": "accuracy"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    frame = Table(WITHDRAWN).frame
    assert set(frame["trained"].map(lambda line: line["training"])) == {"training-1"}
    assert all({"images", "images_per_step", "tokens_per_image"} <= line.keys() for line in frame["trained"])
    return frame.assign(study=[scored["study"] if scored else None for scored in frame["scored"]])


def of_study(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["run"].isin(set(table.loc[table["study"] == name, "run"]))]


def in_words(values: pd.Series) -> str:
    """The mean and half of Student's 95 % interval, as the withdrawn pages have it."""
    values = values.dropna()
    if values.empty:
        return "-"
    mean, half = math.fsum(values) / len(values), 0.0
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values))
    if half < 1e-9 * abs(mean) or not half:
        return f"{mean:#.3g}".rstrip(".")
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:z,.{decimals}f} ± {half:,.{decimals}f}"


@pytest.mark.parametrize("name", ["ablation", "convergence", "samplers", "versus-sit"])
def test_final_scores_on_the_withdrawn_pages_are_in_the_table(table, name):
    frame, checked = of_study(table, name), 0
    for part in (WITHDRAWN / name / "README.md").read_text().split("\n## "):
        lines = re.findall(r"^\|.*(?=\n)", part, re.MULTILINE)
        if part.splitlines()[0] not in METRICS or not lines[0].startswith("| variant"):
            continue
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
        final = frame[(frame["metric"] == METRICS[part.splitlines()[0]]) & (frame["variant"] != REAL)]
        for row in (row for row in rows if row[0] in set(final["variant"]) and len(row) == len(head)):
            scores = [final[(final["variant"] == row[0]) & (final["condition"] == c)]["value"] for c in head[2:]]
            assert row[2:] == [in_words(values) for values in scores]
            checked += 1
    assert checked > 3


def test_the_withdrawn_figures_are_judged_with_all_trainings_together(table):
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
