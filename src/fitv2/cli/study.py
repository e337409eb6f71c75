"""`fitv2 study`: runs, resumes and reports a named experiment."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from .given import refuse_without_effect

if TYPE_CHECKING:
    from ..study.definition import Study
    from ..study.job import Job

OUT = Path("studies")
EFFECTIVE = {"names", "seeds", "budget", "jobs", "out", "work", "report", "dry_run", "as_json"}


@dataclass(frozen=True)
class Chosen:
    """A study as the command line wants it. file: its own, None of a shipped one; folder: of its results; command: that
    repeats it.
    """

    name: str
    file: Path | None
    folder: Path
    command: str
    trial: bool
    jobs: list[Job]


def study(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="studies that ship with the package, or YAML files; none: list them")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds; default: as each study says")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="a trial: shorten every run and its scoring, to a fraction of its steps (0.05) or to a number (200)",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs at a time; default: one per core, or 1 on a GPU")
    ] = None,
    out: Annotated[Path, typer.Option(help="where results go, a folder per study; trials go below trials/")] = OUT,
    work: Annotated[Path, typer.Option(help="where trainings are kept; studies share them")] = Path("runs/study"),
    report: Annotated[
        bool, typer.Option("--report", help="run nothing; make tables, plots and verdicts again from the results")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="run nothing; list the runs and their cost")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print JSON instead of text: an object, or a list for several studies"),
    ] = False,
) -> None:
    """Test claims: train variants with several seeds, score them alike, and say which claims hold.

    [bold]Examples[/bold]

      fitv2 study

      fitv2 study convergence --dry-run

      fitv2 study convergence --budget 0.02 --seeds 1

      fitv2 study convergence ablation versus-sit

      fitv2 study convergence --report

    Results are in studies/NAME: README.md with tables, plots and verdicts, all made from a JSON file per run. The same
    command continues after any stop, and never repeats a finished run. Several studies form one queue of runs, which
    begins with all runs of the first seed.
    """
    if not names:
        refuse_without_effect(context, {"names", "as_json"}, "where studies are listed")
        list_studies(as_json)
        return
    if report and dry_run:
        raise UserError("--report makes pages and --dry-run a plan: give one of both")
    if report:
        refuse_without_effect(context, EFFECTIVE - {"jobs", "work"}, "with --report, which runs nothing")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = [choose(name, seeds, budget, out, work) for name in names]
    refuse_one_folder(chosen)
    from ..locks import locked

    if dry_run:
        from .study_plan import show_plan

        show_plan([one.jobs for one in chosen], jobs, as_json)
        return
    with ExitStack() as held:
        for one in [] if report else chosen:
            held.enter_context(locked(one.folder, "a study"))
        failures = [] if report else perform(chosen, jobs)
        finish(chosen, failures, as_json)
    if failures:
        raise typer.Exit(1)


def choose(name: str, seeds: int | None, budget: float | None, out: Path, work: Path) -> Chosen:
    """Raises ValueError for an unknown study, or a folder that is another's."""
    from ..study.definition import file_of, load_study, shortened
    from ..study.home import PAGE, copy_of, refuse_another, refuse_fewer_seeds, refuse_foreign, refuse_foreign_page

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    wanted, label, file = load_study(name), Path(name).stem, file_of(name)
    folder = out / label if budget is None else out / "trials" / f"{label}-{budget:g}"
    refuse_another(folder, label, wanted, file)
    refuse_foreign(folder)
    refuse_fewer_seeds(folder, seeds or wanted.seeds)
    if budget is None:
        refuse_foreign_page(out / PAGE)
    command = ["fitv2", "study", name if file is None else str(copy_of(folder, label))]
    command += ["--seeds", str(seeds)] if seeds else []
    command += ["--out", str(out)] if file is not None and out != OUT else []
    if budget is not None:
        share = budget if budget <= 1 else budget / wanted.recipe_of(wanted.first, 0).training.steps
        wanted = shortened(wanted, share)
        command += ["--budget", f"{budget:g}"]
    wanted = wanted.model_copy(update={"seeds": seeds or wanted.seeds})
    listed = list_jobs(label, wanted, folder, work)
    return Chosen(label, file, folder, shlex.join(command), budget is not None, listed)


def refuse_one_folder(chosen: list[Chosen]) -> None:
    """Raises ValueError for studies that would share a folder."""
    folders = [one.folder for one in chosen]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"two of these studies would have their results in {folder}; leave one of them away")


def list_studies(as_json: bool) -> None:
    from ..study.definition import load_study, study_names

    found = {name: load_study(name) for name in study_names()}
    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in found.items()}))
        return
    for name, one in found.items():
        print(f"{name:14} {one.title}: {counted(len(one.variants), 'variant')}, {counted(one.seeds, 'seed')}")


def list_jobs(name: str, chosen: Study, folder: Path, work: Path) -> list[Job]:
    """Absolute folders, because the processes of the runs may have another one to start from."""
    from ..study.job import Job

    return [Job(name, chosen, run, folder.absolute(), work.absolute()) for run in chosen.runs(chosen.seeds)]


def perform(chosen: list[Chosen], at_a_time: int | None) -> list[tuple[Job, str]]:
    """Runs what is not done yet, and looks at the real pictures; returns the runs that failed, each with a sentence."""
    from ..study.home import keep_file
    from ..study.real import write_real
    from ..study.runner import default_jobs, run_all, unfinished
    from .progress import study_progress

    for one in chosen:
        if one.file is not None:
            keep_file(one.folder, one.name, one.file)
    listed = sorted((job for one in chosen for job in one.jobs), key=lambda job: job.run.seed)
    waiting, failures = unfinished(listed), []
    if waiting:
        with study_progress(len(waiting)) as show:
            failures = run_all(waiting, at_a_time or default_jobs(), show)
    for _, sentence in failures:
        print(f"fitv2: {sentence}", file=sys.stderr)
    for one in chosen:
        if sum(job.name == one.name for job, _ in failures) < len(one.jobs):
            write_real(one.jobs[0])
    return failures


def finish(chosen: list[Chosen], failures: list[tuple[Job, str]], as_json: bool) -> None:
    """Writes the reports and prints what they say. Raises ValueError, after all others, where one cannot be written."""
    from ..study.report import load_report, write_report

    results, complaints = [], []
    for one in chosen:
        try:
            made = load_report(one.jobs, one.command, one.trial)
            write_report(made, one.folder)
        except UserError as error:
            complaints.append(str(error))
            continue
        results.append(made.result() | {"failures": [text for job, text in failures if job.name == one.name]})
        if not as_json:
            print("\n".join(text_of(results[-1], one.folder)))
    if as_json and results:
        print(json.dumps(results[0] if len(chosen) == 1 else results))
    if complaints:
        raise UserError("; ".join(complaints))


def text_of(result: dict[str, Any], folder: Path) -> list[str]:
    """The verdicts, and where the rest is."""
    lines = [f"{claim['verdict']:>22}  {claim['text']}: {claim['figure']}" for claim in result["claims"]]
    return [result["title"], *lines, f"Tables, plots and pictures are in {folder}/README.md"]
