"""A study as Markdown, plots and JSON, made from its records alone; and one table of all claims of all studies."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import UserError
from . import plots
from .circumstances import CIRCUMSTANCES, circumstances
from .claims import RULE, Claim, Finding
from .definition import Study
from .home import PAGE, RESULT, read_result, refuse_foreign_report, write_page
from .job import TRAINING, Job
from .page import CLAIMS_HEAD, WITHDRAWN, page
from .real import Real, read_real
from .record import Record, Records
from .tables import markdown

logger = logging.getLogger(__name__)


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
    def earlier(self) -> list[Record]:
        """Those whose training an earlier version carried out."""
        return [record for record in self.all if record.settings.get("training") != TRAINING]

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
        about = {"study": self.name, "title": self.study.title, "trial": self.trial, "earlier": len(self.earlier)}
        return about | {"circumstances": circumstances(self), "runs": runs, "claims": claims}


def read_records(jobs: Sequence[Job]) -> Records:
    """Of the jobs that are done, by an earlier version's training too. Records of other settings are left out, and
    named on the log.
    """
    records: Records = {variant: {} for variant in jobs[0].study.variants}
    for job in jobs:
        record = job.result(any_training=True)
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
        raise UserError(f"no run of the study {report.name} is done yet: there is nothing to report")
    refuse_foreign_report(folder)
    figures = plots.draw(folder, report.records, report.point)
    write_page(folder / PAGE, page(report, figures, folder))
    write_text(folder / RESULT, json.dumps(report.result(), indent=1) + "\n")
    if not report.trial:
        write_page(folder.parent / PAGE, overview(folder.parent))


def results_below(folder: Path) -> list[dict[str, Any]]:
    """Of all studies; other files of that name are left out, and named on the log."""
    found = {path: read_result(path) for path in sorted(folder.glob(f"*/{RESULT}"))}
    if foreign := [str(path) for path, result in found.items() if result is None]:
        logger.warning("left out of the overview, as no results of studies: %s", ", ".join(foreign))
    return [result for result in found.values() if result is not None]


def overview(folder: Path) -> Iterator[str]:
    """Every claim of every study in one table."""
    results = results_below(folder)
    yield "# The paper's claims, put to the test"
    yield ""
    if any(result.get("earlier", 1) for result in results):  # Results of before do not say it.
        yield from (WITHDRAWN, "")
    yield "Written by `fitv2 study NAME --report` from the JSON files of each study; not edited by hand."
    yield ""
    rows = [
        [f"[{result['study']}]({result['study']}/README.md): {claim['text']}"]
        + [claim[key] for key in ("paper", "figure", "conditions", "verdict")]
        for result in results
        for claim in result["claims"]
    ]
    yield from markdown(CLAIMS_HEAD, rows, len(CLAIMS_HEAD))
    yield from ("", "Each study on what, with which models, how long, scored by what, and where:", "")
    rows = [
        [f"[{result['study']}]({result['study']}/README.md)", *(told[key] for key in CIRCUMSTANCES)]
        for result in results
        if (told := result.get("circumstances"))  # Reports of before have none.
    ]
    yield from markdown(("study", *CIRCUMSTANCES), rows, 1 + len(CIRCUMSTANCES))
    yield from ("", RULE)
