"""A study as Markdown, plots and JSON, made from its records alone; and one table of all claims of all studies."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_text
from . import plots
from .claims import RULE, UNITS, Claim, Finding
from .definition import Study
from .job import Job
from .paper_cost import account
from .real import DRAWS, Real, read_real
from .record import Record, Records
from .tables import (
    COST_HEAD,
    OTHER_SCORES,
    REAL,
    TITLES,
    conditions,
    cost_rows,
    difference_rows,
    final_rows,
    markdown,
    other_rows,
    reach_rows,
    real_other_row,
    real_row,
    variant_rows,
)
from .views import extractor_of

logger = logging.getLogger(__name__)
RESULT = "result.json"
CLAIMS_HEAD = ("claim", "figure in the paper", "figure here", "conditions", "verdict")


@dataclass(frozen=True)
class Report:
    """A study with what its runs have given. real: what real pictures score, None where nobody has looked; command:
    that gives all this; trial: whether the runs were shortened.
    """

    name: str
    study: Study
    records: Records
    real: Real | None
    command: str
    trial: bool = False

    @property
    def point(self) -> str:
        return self.study.evaluation.point.name

    @property
    def all(self) -> list[Record]:
        return [record for runs in self.records.values() for record in runs.values()]

    def findings(self) -> list[tuple[Claim, Finding]]:
        return [(claim, claim.measure.judge(self.records, self.point)) for claim in self.study.claims]

    def result(self) -> dict[str, Any]:
        """What a table of all studies needs."""
        claims = [
            {"text": c.text, "paper": c.paper, "figure": f.figure, "conditions": f.conditions, "verdict": f.verdict}
            for c, f in self.findings()
        ]
        runs = {variant: sorted(of_seeds) for variant, of_seeds in self.records.items()}
        return {"study": self.name, "title": self.study.title, "trial": self.trial, "runs": runs, "claims": claims}


def read_records(jobs: Sequence[Job]) -> Records:
    """Of the jobs that are done. Records of other settings are left out, and named on the log."""
    records: Records = {variant: {} for variant in jobs[0].study.variants}
    for job in jobs:
        record = job.result()
        if record is not None:
            records[job.run.variant][job.run.seed] = record
        elif job.record.is_file():
            logger.warning("%s is of other settings than the study has now, and left out", job.record)
    return records


def load_report(jobs: Sequence[Job], command: str, trial: bool = False) -> Report:
    """Of what is there of the runs. Raises ValueError for a damaged file."""
    real = read_real(jobs[0])
    if real is None and jobs[0].real.is_file():
        logger.warning("%s is of other settings than the study has now, and left out", jobs[0].real)
    return Report(jobs[0].name, jobs[0].study, read_records(jobs), real, command, trial)


def write_report(report: Report, folder: Path) -> None:
    """README.md, its plots and result.json in the study's folder, and the table of all studies beside it.

    Raises ValueError where no run is done.
    """
    if not report.all:
        raise ValueError(f"no run of the study {report.name} is done yet: there is nothing to report")
    figures = plots.draw(folder, report.records, report.point)
    write_text(folder / "README.md", "\n".join(page(report, figures, folder)) + "\n")
    write_text(folder / RESULT, json.dumps(report.result(), indent=1) + "\n")
    if not report.trial:
        write_text(folder.parent / "README.md", "\n".join(overview(folder.parent)) + "\n")


def overview(folder: Path) -> Iterator[str]:
    """Every claim of every study in one table."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{RESULT}"))]
    yield "# The paper's claims, put to the test"
    yield ""
    yield "Written by `fitv2 study NAME --report` from the JSON files of each study; not edited by hand."
    yield ""
    rows = [
        [f"[{result['study']}]({result['study']}/README.md): {claim['text']}"]
        + [claim[key] for key in ("paper", "figure", "conditions", "verdict")]
        for result in results
        for claim in result["claims"]
    ]
    yield from markdown(CLAIMS_HEAD, rows, len(CLAIMS_HEAD))
    yield from ("", RULE)


def page(report: Report, figures: Sequence[str], folder: Path) -> Iterator[str]:
    study = report.study
    yield from (f"# {study.title}", "", study.question.strip(), "")
    if report.trial:
        yield from ("**A trial: every run was shortened, and nothing here decides a claim.**", "")
    yield "Written by the command below from the JSON files in `runs/`; not edited by hand."
    yield from section("Claims", claim_lines(report))
    if study.remarks:
        yield from section("What to make of it", (study.remarks.strip(),))
    yield from section("Conditions", (f"- {line}" for line in condition_lines(report)))
    yield from section("Variants", variant_lines(study))
    for score, title in TITLES.items():
        if has_score(report, score):
            yield from section(f"{title} at the end", score_lines(report, score))
    yield from ("", "Means over the seeds, with Student's 95 % interval; differences are taken seed by seed.")
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
    yield from markdown(("variant", "seeds", *conditions(records)), rows)
    yield ""
    head = (f"less that of {study.first}", *conditions(records))
    yield from markdown(head, difference_rows(records, study.first, score))


def real_lines(report: Report) -> Iterator[str]:
    """How the last rows come about, and what a view does to real pictures."""
    if report.real is None:
        return
    yield (
        f"{REAL.capitalize()} (last rows): at random as many of a view as a model makes, but at most half, against all "
        f"others of it; the mean of {DRAWS} draws. A model that does no worse is as good as can be seen here"
    )
    for name, place in report.real.places.items():
        found = [] if place.recognised is None else [f"{100 * place.recognised:.1f} % of real pictures are recognised"]
        if place.cut is not None and place.cut[1] > 0:
            mean, most = place.cut
            found.append(f"the crop leaves out {100 * mean:.0f} % of a picture on average, {100 * most:.0f} % at most")
        if found:
            yield f"{name}: {'; '.join(found)}"


def condition_lines(report: Report) -> Iterator[str]:
    """All that somebody needs to know who doubts the figures."""
    study = report.study
    evaluation, extractor = study.evaluation, extractor_of(study.evaluation.extractor)
    samplers = ", ".join(f"{s.steps} steps of {s.solver} for {kind}" for kind, s in evaluation.samplers.items())
    views = "; ".join(f"{view}: {as_words(changes)}" for view, changes in evaluation.views.items())
    done = sum(len(runs) for runs in report.records.values())
    yield f"Command: `{report.command}`; `{report.command} --report` makes this page and its plots anew, without runs"
    wanted = f"{len(study.variants) * study.seeds}, {len(study.variants)} variants with {study.seeds} seeds each"
    yield f"Runs: {done} of {wanted}; weights, data order and noise follow the seed"
    yield f"Recipe: `{study.recipe}`" + (f" with {as_words(study.set)}" if study.set else "") + f"; {steps(report)}"
    yield (
        f"Curves: {len(evaluation.points)} points and the last step, {evaluation.images} pictures each, "
        f"{evaluation.point.name}; the end: {evaluation.final_images} pictures under each condition; averaged weights"
    )
    yield (
        "Reference: the training pictures as a view has them, in ADM's manner, so memorising is not punished; "
        f"the shapes asked for are those of the view ({views})"
    )
    yield from real_lines(report)
    yield (
        f"Scores: {extractor.score}, the Frechet distance of features of `{extractor.name}` in 8-bit pictures "
        f"({extractor.resize}), which few pictures bias upwards: compare it only here, at equal numbers. Recognised: "
        "the share whose top-1 class is the one asked for"
    )
    yield f"Sampling: {samplers}; the noise of a picture is fixed by its number and the seed, alike for all variants"
    for name in dict.fromkeys(name for record in report.all for name in record.machine):
        yield f"{name}: " + "; ".join(dict.fromkeys(record.machine.get(name, "unknown") for record in report.all))
    yield (
        "Seconds are of training steps alone, without scoring; runs shared the machine with each other, which CPU "
        "seconds show less. Operations: of matrix products with attention, of forward and backward pass, by formula"
    )


def steps(report: Report) -> str:
    """How long and how large the trainings were."""
    longest = sorted({record.recipe["training"]["steps"] for record in report.all})
    seen = sorted({record.last.images for record in report.all if record.points})
    pictures = f"{seen[0]:,} to {seen[-1]:,}" if len(seen) > 1 else f"{seen[0]:,}" if seen else "no"
    return f"{', '.join(f'{count:,}' for count in longest)} steps, {pictures} pictures seen"


def as_words(changes: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in changes.items()) or "as the recipe has them"


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
