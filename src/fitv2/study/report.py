"""The pages of studies, made from the table of results alone: one for each study, and one of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.listing import STUDY_MARK as MARK
from ..data.listing import STUDY_PAGE as PAGE
from ..errors import UserError
from ..messages import counted
from ..system.atomic import write_text
from .definition import Study
from .outputs import FIGURES
from .plots import compared, draw_curves, draw_forest
from .results import REAL, Table
from .runs import Run, frame_of, runs_of
from .verdicts import EQUIVALENT, HOLDS, NO_RESULT, OPEN, REFUTED, Figures, Finding, judge

FOREST, CURVES, SHEETS = "forest.png", "curves.png", "sheets"
# What is said of one claim, and of several.
WORDS = {
    HOLDS: ("holds", "hold"),
    REFUTED: ("is refuted", "are refuted"),
    EQUIVALENT: ("makes no relevant difference", "make no relevant difference"),
    OPEN: ("stays open", "stay open"),
    NO_RESULT: ("has no result", "have no result"),
}
# The columns of the table of provenance.
TOLD = ("fitv2", "commit", "torch", "device", "threads")
NOT_RUN = "This study has not been run yet."
# Figures that have the same expectation for any number of images.
COMPARABLE = ("kid", "accuracy")


@dataclass(frozen=True)
class Report:
    """A study with its results.

    Attributes:
        trial: Whether its trainings were shortened, so that nothing is decided.
        more_seeds: Seeds that were asked for; those that the study has itself are always planned.
    """

    name: str
    study: Study
    table: Table = field(repr=False)
    trial: bool = False
    more_seeds: int | None = None

    @property
    def seeds(self) -> int:
        return max(self.study.seeds, self.more_seeds or 0)

    @cached_property
    def runs(self) -> list[Run]:
        """The trainings that are done, without those that tune."""
        found = [run for run in runs_of(self.study, self.table, self.seeds) if not run.tunes]
        return [run for run in found if self.table.run_of(run.id) in self.table.trainings]

    @property
    def planned(self) -> int:
        return self.seeds * len(self.study.variants)

    @cached_property
    def scored(self) -> int:
        """The number of trainings that have all their scores."""
        return sum(not run.pending(self.table) for run in self.runs)

    @property
    def so_far(self) -> str:
        """What is added to every verdict as long as scores are missing."""
        return " so far" if self.scored < self.planned else ""

    @cached_property
    def frame(self) -> pd.DataFrame:
        return frame_of(self.runs, self.table)

    @cached_property
    def findings(self) -> list[Finding]:
        return judge(self.study, self.frame)

    @property
    def trainings(self) -> pd.DataFrame:
        return pd.DataFrame([self.table.trainings[self.table.run_of(run.id)] for run in self.runs])

    @property
    def answer(self) -> str:
        """The first claim in a sentence, and what is decided of all."""
        if not self.runs:
            return NOT_RUN
        if not self.findings:
            return "The study makes no claims: its table of scores is the answer."
        extent = f", after {self.scored} of {counted(self.planned, 'planned training run')}" if self.so_far else ""
        found = []
        for verdict, words in WORDS.items():
            if of := [compared(finding) for finding in self.findings if finding.verdict == verdict]:
                found.append(f"{len(of)} {words[len(of) > 1]} ({'; '.join(of)})")
        told = f"Of {counted(len(self.findings), 'claim')}{extent}, {', '.join(found)}."
        if (first := self.findings[0]).verdict == NO_RESULT:
            return told
        figure = f"{first.effect}; p {in_words(first.p)}; {first.where}"
        return f"“{first.claim.text}” **{WORDS[first.verdict][0]}{self.so_far}** ({figure}). {told}"

    @property
    def tuned(self) -> dict[str, float]:
        """The chosen value of each variant that was tuned."""
        own = (run for run in self.runs if self.study.tuned_like(run.variant) == run.variant)
        return {run.variant: run.tuned for run in own if run.tuned is not None}

    @property
    def tuned_at_an_end(self) -> dict[str, list[str]]:
        """Variants whose chosen value is the smallest or the largest one that was tried."""
        values = self.study.tuning.values if self.study.tuning else ()
        ends = {"smallest": min(values, default=None), "largest": max(values, default=None)}
        found = {end: [name for name, chosen in self.tuned.items() if chosen == value] for end, value in ends.items()}
        return {end: names for end, names in found.items() if names}

    @property
    def taken_over(self) -> dict[str, str]:
        """Variants that were not tuned themselves, with the one whose value they take."""
        return {run.variant: of for run in self.runs if (of := self.study.tuned_like(run.variant)) != run.variant}

    def scores(self, condition: str, column: str = "value") -> pd.DataFrame:
        """The final scores: the mean of each variant over its seeds, and the mean and range of real images.

        column: "value", the scores that decide; or "equal", with as many samples and real images as in the row of real
        images. Beside the former, real images have only the figures that do not depend on numbers.
        """
        rows = self.frame[self.frame["condition"] == condition]
        real = rows[rows["variant"] == REAL].drop_duplicates("metric")
        own = rows[rows["variant"] != REAL]
        if column == "equal":
            own = own.dropna(subset=column)
        means = own.pivot_table(column, "variant", "metric", "mean", dropna=False)
        table = means.map(lambda value: f"{value:.3g}" if np.isfinite(value) else "failed")
        figures = [key for key in FIGURES if key in table]
        table["seeds"] = own[own["metric"] == "fd"].groupby("variant")[column].agg(seeds_of)
        for row in real[real["metric"].isin(figures if column == "equal" else COMPARABLE)].itertuples():
            ends = f" ({row.range[0]:.3g} to {row.range[1]:.3g})" if isinstance(row.range, list) else ""
            table.loc[REAL, row.metric] = f"{row.value:.3g}{ends}"
        order = [name for name in (*self.study.variants, REAL) if name in table.index]
        return table.reindex(order)[["seeds", *figures]].fillna("-").reset_index()

    @property
    def scores_at_equal_numbers(self) -> dict[str, pd.DataFrame]:
        """By condition; lines of earlier versions have none."""
        found = {name: self.scores(name, "equal") for name in self.study.evaluation.conditions}
        return {name: table for name, table in found.items() if len(table)}

    @property
    def provenance(self) -> pd.DataFrame:
        """Which code trained and scored on which machine: a row for each, and the number of trainings or figures."""
        entries = [(entry, "trained") for by in self.trainings["by"] for entry in by]
        entries += [(entry, "scored") for entry in self.frame["scored"] if isinstance(entry, dict)]
        rows = [{"what": what} | {key: entry.get(key) or "unknown" for key in TOLD} for entry, what in entries]
        return pd.DataFrame(rows, columns=["what", *TOLD]).value_counts(sort=False).rename("number").reset_index()

    def as_json(self) -> dict[str, Any]:
        claims = [
            {"text": f.claim.text, "paper": f.claim.paper, "figure": f.effect, "conditions": f.where}
            | {"p": None if np.isnan(f.p) else f.p, "verdict": f.verdict}
            for f in self.findings
        ]
        about = {"study": self.name, "title": self.study.title, "trial": self.trial, "answer": self.answer}
        about |= {"planned": self.planned, "scored": self.scored}
        return about | {"runs": [run.name for run in self.runs], "claims": claims}


def write_report(report: Report, folder: Path) -> None:
    """The page of a study and its plots. Raises UserError if nothing is done, or a file there is not of a study."""
    if not report.runs:
        raise UserError(f"no training run of the study {report.name} is done yet: there is nothing to report")
    refuse_foreign(folder)
    plots = []
    if draw_forest(folder / FOREST, {report.name: report.findings}):
        plots.append(FOREST)
    if draw_curves(folder / CURVES, Figures(report.frame), report.study.drawn):
        plots.append(CURVES)
    sheets = {v: f"{SHEETS}/{v}.png" for v in report.study.drawn if (folder / SHEETS / f"{v}.png").is_file()}
    write_page(folder / PAGE, "study.md.j2", r=report, plots=plots, sheets=sheets)


def write_overview(reports: Sequence[Report], folder: Path) -> None:
    """The page of all studies, with a forest of all their claims.

    A study counts if it has a page: others may share some of its trainings.
    """
    refuse_foreign(folder)
    pages = {report.name for report in reports if (folder / report.name / PAGE).is_file()}
    done = {report.name: report.findings for report in reports if report.name in pages}
    plots = [FOREST] if draw_forest(folder / FOREST, done) else []
    withdrawn = (folder / "withdrawn" / PAGE).is_file()
    write_page(folder / PAGE, "overview.md.j2", reports=reports, pages=pages, plots=plots, withdrawn=withdrawn)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fills a template of this package, which becomes a page marked as one of ours."""
    loader = PackageLoader("fitv2.study", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"table": as_markdown, "p": in_words, "counted": counted, "ends": ends}
    write_text(path, f"{MARK}\n{environment.get_template(template).render(content).strip()}\n")


def reserve(folder: Path, title: str) -> None:
    """Marks a folder as that of a study, until its page is there. Raises UserError if it has files of others."""
    refuse_foreign(folder)
    if not (folder / PAGE).exists():
        write_text(folder / PAGE, f"{MARK}\n# {title}\n\nThis study is under way.\n")


def refuse_foreign(folder: Path) -> None:
    """Raises UserError if the folder has a page or plots that no study wrote."""
    if (folder / PAGE).exists() and (folder / PAGE).read_bytes().startswith(MARK.encode()):
        return
    if there := [name for name in (PAGE, FOREST, CURVES, SHEETS) if (folder / name).exists()]:
        raise UserError(
            f"{folder / there[0]} was not written by fitv2 study and would be overwritten: choose another --out"
        )


def as_markdown(table: pd.DataFrame) -> str:
    """Returns a table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def in_words(p: float) -> str:
    """Returns a p-value as text; a dash for NaN."""
    return "-" if np.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.2g}"


def seeds_of(scores: pd.Series) -> str:
    """How many scores there are, and how many failed."""
    failed = int(scores.isna().sum())
    return f"{len(scores) - failed}" + f", {failed} failed" * bool(failed)


def ends(values: pd.Series) -> str:
    """The lowest and the highest, or one of them if they read alike."""
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max())))
