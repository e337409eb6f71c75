"""`fitv2 study`: runs, resumes and reports a named experiment."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..study.definition import Study
    from ..study.job import Job
    from ..study.report import Report


def study(
    name: Annotated[
        str | None, typer.Argument(help="a study that ships with the package, or a YAML file; none: list them")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="how many; default: as the study says")] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="a trial: at most 1, a share of the steps of every run, or above 1, steps of a run"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs at a time; default: as many as cores, and 1 on a GPU")
    ] = None,
    out: Annotated[Path, typer.Option(help="where results go, a folder per study; of trials below trials/")] = Path(
        "studies"
    ),
    work: Annotated[Path, typer.Option(help="where trainings are kept, which studies share")] = Path("runs/study"),
    report: Annotated[
        bool, typer.Option("--report", help="run nothing; make tables, plots and verdicts anew from the results")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="run nothing; list the runs and what they take")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Put claims to the test: train variants with several seeds, score them alike, and say what holds.

    [bold]Examples[/bold]

      fitv2 study

      fitv2 study convergence --dry-run

      fitv2 study convergence --budget 0.02 --seeds 1

      fitv2 study convergence

      fitv2 study convergence --report

    Results are in studies/NAME: README.md with tables, plots and verdicts, and a JSON file per run, from which all of
    it is made. Stopped at any moment, the same command continues; what is finished is left alone.
    """
    from ..study.definition import load_study, shortened

    if name is None:
        list_studies(as_json)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen, label, folder = load_study(name), Path(name).stem, out / Path(name).stem
    command = ["fitv2", "study", name, *(["--seeds", str(seeds)] if seeds else [])]
    if budget is not None:
        share = budget if budget <= 1 else budget / chosen.recipe_of(chosen.first, 0).training.steps
        chosen, folder = shortened(chosen, share), out / "trials" / f"{label}-{budget:g}"
        command += ["--budget", f"{budget:g}"]
    chosen = chosen.model_copy(update={"seeds": seeds or chosen.seeds})
    listed = list_jobs(label, chosen, folder, work)
    if dry_run:
        from .study_plan import show_plan

        show_plan(listed, jobs, as_json)
        return
    failures = [] if report else perform(listed, jobs)
    written = write(listed, folder, shlex.join(command), budget is not None)
    print(json.dumps(written.result() | {"failures": failures}) if as_json else "\n".join(text(written, folder)))
    if failures:
        raise typer.Exit(1)


def list_studies(as_json: bool) -> None:
    from ..study.definition import load_study, study_names

    found = {name: load_study(name) for name in study_names()}
    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in found.items()}))
        return
    for name, one in found.items():
        print(f"{name:14} {one.title}: {len(one.variants)} variants, {one.seeds} seeds")


def list_jobs(name: str, chosen: Study, folder: Path, work: Path) -> list[Job]:
    """Absolute folders, because the processes of the runs may have another one to start from."""
    from ..study.job import Job

    return [Job(name, chosen, run, folder.absolute(), work.absolute()) for run in chosen.runs(chosen.seeds)]


def perform(listed: list[Job], at_a_time: int | None) -> list[str]:
    """Runs what is not done yet, and looks at the real pictures; returns a sentence for each run that failed."""
    from ..study.real import write_real
    from ..study.runner import default_jobs, run_all, unfinished
    from .progress import study_progress

    waiting, failures = unfinished(listed), []
    if waiting:
        with study_progress(len(waiting)) as show:
            failures = run_all(waiting, at_a_time or default_jobs(), show)
    if len(failures) < len(listed):
        write_real(listed[0])
    for failure in failures:
        print(f"fitv2: {failure}", file=sys.stderr)
    return failures


def write(listed: list[Job], folder: Path, command: str, trial: bool) -> Report:
    from ..study.report import load_report, write_report

    made = load_report(listed, command, trial)
    write_report(made, folder)
    return made


def text(written: Report, folder: Path) -> list[str]:
    """The verdicts, and where the rest is."""
    result: dict[str, Any] = written.result()
    lines = [f"{claim['verdict']:>22}  {claim['text']}: {claim['figure']}" for claim in result["claims"]]
    return [written.study.title, *lines, f"Tables, plots and pictures are in {folder}/README.md"]
