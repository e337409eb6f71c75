"""The page of a study: its claims, tables, plots and pictures as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import counted
from .circumstances import condition_lines
from .claims import RULE, UNITS
from .definition import Study
from .paper_cost import account
from .tables import (
    COST_HEAD,
    OTHER_SCORES,
    REAL_CAPTION,
    TITLES,
    condition_names,
    cost_rows,
    curve_rows,
    difference_rows,
    final_rows,
    markdown,
    other_rows,
    reach_rows,
    real_other_row,
    real_row,
    steps_of,
    variant_rows,
)

if TYPE_CHECKING:
    from .report import Report

# Of trainings by an earlier version; see `Report.earlier`.
WITHDRAWN = (
    "> **All figures are withdrawn until the studies have been repeated.** The runs' seeds shared training times, "
    "noise and dropped labels: a seed reached only the initial weights and the order of the data. AdaLN-LoRA was "
    "initialised with torch's default instead of Xavier, 2.19 times smaller. On a CPU, attention in bfloat16 rounded "
    "its logits. Kernel distances were too low by a bias of class-balanced samples, and are not shown."
)
CLAIMS_HEAD = ("claim", "figure in the paper", "figure here", "conditions", "verdict")


def page(report: Report, figures: Sequence[str], folder: Path) -> Iterator[str]:
    study = report.study
    yield from (f"# {study.title}", "", study.question.strip(), "")
    if report.trial:
        yield from ("**A trial: every run was shortened, and nothing here decides a claim.**", "")
    if report.earlier:
        yield from (f"{WITHDRAWN} It concerns {len(report.earlier)} of {counted(len(report.all), 'run')} here.", "")
    yield "Written by the command below from the JSON files in `runs/`; not edited by hand."
    if study.claims:
        yield from section("Claims", claim_lines(report))
    if study.remarks:
        yield from section("What to make of it", (study.remarks.strip(),))
    yield from section("Conditions", (f"- {line}" for line in condition_lines(report)))
    yield from section("Variants", variant_lines(study))
    for score, title in TITLES.items():
        if has_score(report, score):
            yield from section(f"{title} at the end", score_lines(report, score))
    yield from ("", "Means over the seeds, with Student's 95 % interval; differences are taken seed by seed.")
    if report.real is not None:
        yield from ("", REAL_CAPTION)
    yield from section(f"Other measures at the end, {report.point}", other_lines(report))
    yield from section("On the way", reach_lines(report))
    yield from ("", *(f"![{name}]({name})" for name in figures))
    yield from section("What it costs", cost_lines(report))
    if study.paper_cost:
        yield from section("The paper's own claim of cost", paper_lines())
    yield from section("Pictures", sheet_lines(report, folder))
    yield from section("On ImageNet", [study.imagenet.strip()])


def section(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "", *lines)


def claim_lines(report: Report) -> Iterator[str]:
    rows = [[c.text, c.paper, f.figure, f.conditions, f.verdict] for c, f in report.findings()]
    yield from markdown(CLAIMS_HEAD, rows, len(CLAIMS_HEAD))
    yield from ("", RULE)


def variant_lines(study: Study) -> Iterator[str]:
    yield from markdown(("variant", "what it is", "changes in the recipe"), variant_rows(study), 3)


def has_score(report: Report, score: str) -> bool:
    return any(scores.get(score) is not None for record in report.all for scores in record.final.values())


def score_lines(report: Report, score: str) -> Iterator[str]:
    """A score of the end, that of real pictures, and differences."""
    study, records = report.study, report.records
    rows = final_rows(records, score)
    if report.real is not None:
        rows.append(real_row(records, report.real, study.evaluation.final, score))
    yield from markdown(("variant", "seeds", *condition_names(records)), rows)
    yield ""
    head = (f"less that of {study.first}", *condition_names(records))
    yield from markdown(head, difference_rows(records, study.first, score))


def other_lines(report: Report) -> Iterator[str]:
    rows = other_rows(report.records, report.point)
    if report.real is not None:
        rows.append(real_other_row(report.real, report.study.evaluation.point))
    yield from markdown(("variant", *OTHER_SCORES), rows)
    yield ""
    yield (
        "Kernel distance (unbiased: few pictures do not raise it), precision and recall (3 neighbours), density and "
        "coverage (5), as `fitv2 evaluate` has them. Fewer pictures than there are real ones cover fewer of them."
    )


def reach_lines(report: Report) -> Iterator[str]:
    first = report.study.first
    yield (
        f"What each variant took until its curve was down to the last point of {first} with the same seed, the "
        "logarithm of the distance being a line between two points:"
    )
    yield ""
    head = ("variant", *(unit if unit != "operations" else "TFLOP" for unit in UNITS))
    yield from markdown(head, reach_rows(report.records, first))
    yield from ("", f"The distance by steps, of {report.study.evaluation.images} pictures each:", "")
    steps = steps_of(report.all)
    yield from markdown(("variant", *(f"{step:,}" for step in steps)), curve_rows(report.records, steps))


def cost_lines(report: Report) -> Iterator[str]:
    yield from markdown(COST_HEAD, cost_rows(report.records))
    yield ""
    yield (
        "Waste: the share of a step's room that holds no token, in packs as trained here, and if each picture took the "
        "room of the longest. Evaluations: of the network for one picture, without and with guidance."
    )


def paper_lines() -> Iterator[str]:
    """The account, and what it rests on."""
    rows = [
        [name, line.formula, "not known" if line.share is None else f"{100 * line.share:.1f} %"]
        for name, line in account().items()
    ]
    yield "FiTv2-XL/2 against SiT-XL/2, counted ever more fully: the share of SiT's cost, of waste that of the room."
    yield ""
    yield from markdown(("counted", "formula", "share"), rows, 2)
    yield ""
    yield (
        "All by formula, nothing measured. ImageNet was not at hand: the sizes of its pictures are drawn after what is "
        "known of them (`fitv2.data.imagenet`), and mean tokens and waste rest on that. Encoding takes the same for "
        "both if each picture is encoded once and kept, and then hardly counts; in each step anew it is the same for a "
        "picture, and favours whoever takes fewer steps. Pictures both resized and cropped at most double it."
    )


def sheet_lines(report: Report, folder: Path) -> Iterator[str]:
    """The sheets of the first seed that are there."""
    yield f"Of the first seed, the same wishes for all, guidance {report.study.evaluation.point.guidance:g}."
    for variant in report.records:
        if (folder / "sheets" / f"{variant}.png").is_file():
            yield from ("", f"{variant}:", "", f"![pictures of {variant}](sheets/{variant}.png)")
