"""`fitv2 study`: runs, resumes and reports experiments that test claims."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import check_known, counted
from .options import Json, out_option, refuse_options
from .output import show

if TYPE_CHECKING:
    from ..study.definition import Study
    from ..study.queue import Clock
    from ..study.report import Report
    from ..study.results import Table
    from ..study.runs import Run

STATUS = "status"
# FLOPs per second of a training on one core, until there are results.
ASSUMED_SPEED = 5e10
SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True)
class Chosen:
    """A study of the command line; file: its own, of which a copy is kept beside its page, None if it ships."""

    name: str
    study: Study
    folder: Path
    file: Path | None

    @property
    def copy(self) -> Path:
        return self.folder / f"{self.name}.yaml"


def study(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="studies that ship with fitv2, or YAML files; 'status': show progress; nothing: list the studies",
            metavar="[status] [STUDY]...",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="run only this variant, repeatable")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="seeds per variant; default: as in the study's file, which also sets the minimum that a page counts "
            "as planned",
        ),
    ] = None,
    trial: Annotated[str | None, typer.Option(help="shorten training and scoring to a fraction, such as 5%")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="a trial with this many steps per training run")] = None,
    budget: Annotated[float | None, typer.Option(min=0, max=1e9, hidden=True)] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="commands to run at once; default: one per core")
    ] = None,
    out: Annotated[Path, out_option(help="folder for the pages and the table; trials go under trials/")] = Path(
        "studies"
    ),
    work: Annotated[Path, typer.Option(help="folder for training runs, shared by all studies")] = Path("runs/study"),
    report: Annotated[bool, typer.Option("--report", help="run nothing; write the pages from the table")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="run nothing; list what is left, with time")] = False,
    as_json: Json = False,
) -> None:
    """Test claims: train variants with several seeds, score them alike, and say which claims hold.

    [bold]Examples[/bold]

      fitv2 study
      fitv2 study convergence --dry-run
      fitv2 study convergence --trial 5% --seeds 1
      fitv2 study convergence ablation versus-sit
      fitv2 study status
      fitv2 study convergence --report

    A study is defined by a YAML file, which becomes a queue of 'fitv2 train' and 'fitv2 evaluate' commands. After any
    interruption, run the same command again to continue, also on another machine that has the table of results,
    studies/results.jsonl. Training that several studies share is run only once.
    Pages with verdicts, plots and images are in studies/NAME.
    """
    from importlib.util import find_spec

    if not names:
        refuse_options(context, context.params.keys() - {"names", "as_json"}, "where studies are listed")
        list_studies(as_json)
        return
    if any(find_spec(package) is None for package in ("pandas", "jinja2")):
        raise UserError("fitv2 study needs pandas and Jinja2: pip install 'fitv2[study]'")
    import torch

    from ..study.loading import study_names
    from ..study.report import Report
    from ..study.results import Table
    from ..system.limits import available_cores

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if status := names[0] == STATUS:
        refuse_options(context, {"dry_run", "jobs", "only", "report"}, "where nothing is run")
    elif report:
        refuse_options(context, {"dry_run", "jobs", "only"}, "where nothing is run")
    if budget is not None:
        logging.warning("--budget is called --trial (a fraction) or --steps (a number) now")
        trial, steps = (f"{budget:g}", steps) if budget <= 1 else (trial, int(budget))
    if trial is not None and steps is not None:
        raise UserError("--trial and --steps both shorten training: give one of them")
    if is_trial := trial is not None or steps is not None:
        out = out / "trials" / (trial or f"{steps} steps").replace("%", " percent").replace(" ", "-")
    chosen, table = choose(names[status:] or study_names(), trial, steps, out), Table(out)
    jobs = jobs or (1 if torch.cuda.is_available() else available_cores())
    if status or dry_run:
        show_plan(listed(chosen, table, seeds, only), table, work, jobs, as_json)
        return
    failures = [] if report else perform(chosen, table, work, jobs, seeds, only)
    reports = {one.name: Report(one.name, one.study, table, is_trial, seeds) for one in chosen}
    write_pages(chosen, reports, out, failures, as_json)
    if failures:
        raise typer.Exit(1)


def choose(names: Sequence[str], trial: str | None, steps: int | None, out: Path) -> list[Chosen]:
    """Returns the studies, shortened if it is a trial. Raises UserError if a folder holds something else."""
    from ..settings.yaml_text import read_yaml
    from ..study.loading import load_study, shortened, study_names
    from ..study.report import refuse_foreign

    found: list[Chosen] = []
    for name in names:
        loaded, file, stem = load_study(name), None if name in study_names() else Path(name), Path(name).stem
        if trial is not None:
            loaded = shortened(loaded, fraction_of(trial))
        elif steps is not None:
            loaded = shortened(loaded, steps / loaded.recipe_of(next(iter(loaded.variants)), 0).training.steps)
        if file is not None and stem in study_names():
            raise UserError(f"{file} has the name of a study that ships, whose page it would replace: rename the file")
        one = Chosen(stem, loaded, out / stem, file)
        known = read_yaml(one.copy).get("title") if one.copy.is_file() else None
        if known is not None and (known != loaded.title or file is None):
            raise UserError(f"{one.folder} is of another study, {known!r}: choose another --out, or rename your file")
        if one.folder in [other.folder for other in found]:
            raise UserError(f"two of these studies would have their pages in {one.folder}: omit one of them")
        refuse_foreign(one.folder)
        found.append(one)
    refuse_foreign(out)
    return found


def fraction_of(text: str) -> float:
    """A fraction from 5% or 0.05. Raises UserError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UserError(f"--trial takes a fraction such as 5% or 0.05, not {text!r}") from None


def listed(chosen: Sequence[Chosen], table: Table, seeds: int | None, only: Sequence[str] | None) -> list[Run]:
    """All trainings that can be named now: those that tune, then those of the first seed of all studies, and so on."""
    from ..study.runs import runs_of

    known = {variant for one in chosen for variant in one.study.variants}
    for name in only or ():
        check_known("variant", name, sorted(known))
    found = [run for one in chosen for run in runs_of(one.study, table, seeds, only or ())]
    return sorted(found, key=lambda run: (not run.tunes, run.seed))


def perform(
    chosen: Sequence[Chosen], table: Table, work: Path, jobs: int, seeds: int | None, only: Sequence[str] | None
) -> list[str]:
    """Runs what is not done; returns a sentence for each training that failed."""
    from ..study.queue import Clock, Queue
    from ..study.report import SHEETS, reserve
    from ..system.atomic import write_text
    from ..system.limits import available_cores
    from ..system.locks import locked
    from ..training.signals import signal_of, sigterm_interrupts

    sheets = {id(one.study): one.folder / SHEETS for one in chosen}
    queue = Queue(table, work, max(1, available_cores() // jobs), lambda run: sheets[id(run.study)])
    failures: list[str] = []
    with locked(table.path.parent, "a study"):
        for one in chosen:
            reserve(one.folder, one.study.title)
            if one.file is not None and one.file.resolve() != one.copy.resolve():
                write_text(one.copy, one.file.read_text(encoding="utf-8"))
        try:
            with sigterm_interrupts():
                # After those that tune, all others can be named.
                while not failures and (todo := [r for r in listed(chosen, table, seeds, only) if r.pending(table)]):
                    failures = queue.work_off(todo, jobs, printer(Clock(todo, table, work)))
                for run in listed(chosen, table, seeds, only):  # Another study may have brought the scores.
                    queue.show(run, work / run.id)
        except KeyboardInterrupt as interruption:
            print("stopped, with all steps saved; the same command continues", file=sys.stderr)
            raise typer.Exit(128 + signal_of(interruption)) from None
    for sentence in failures:
        print(f"fitv2: {sentence}", file=sys.stderr)
    return failures


def printer(clock: Clock) -> Callable[[list[Run]], None]:
    """Prints a line a minute: how much is done, and the time left."""
    printed = 0.0

    def show(unfinished: list[Run]) -> None:
        nonlocal printed
        if unfinished and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            done, seconds = clock.left()
            left = "time left not known yet" if seconds is None else f"about {seconds / 3600:.1f} hours left"
            told = f"{100 * done:.0f} % done, {counted(len(unfinished), 'training')} to go, {left}"
            print(told, file=sys.stderr, flush=True)

    return show


def write_pages(
    chosen: Sequence[Chosen], reports: dict[str, Report], out: Path, failures: Sequence[str], as_json: bool
) -> None:
    """Writes the page of each study and, unless they are trials, that of all; prints the verdicts."""
    from ..study.loading import load_study, study_names
    from ..study.report import PAGE, Report, write_overview, write_report

    for one in chosen:
        write_report(reports[one.name], one.folder)
    first = reports[chosen[0].name]
    if not first.trial:
        others = {name: name for name in study_names()}
        others |= {path.stem: str(path) for path in out.glob("*/*.yaml") if path.stem == path.parent.name}
        every = {name: Report(name, load_study(other), first.table) for name, other in others.items()} | reports
        write_overview([every[name] for name in sorted(every) if name in reports or has_its_data(every[name])], out)
    lines = []
    for one in chosen:
        report = reports[one.name]
        lines.append(f"{one.study.title}: {report.scored} of {counted(report.planned, 'planned training run')} scored")
        lines += [f"{f.verdict + report.so_far:>18}  {f.claim.text}: {f.effect}" for f in report.findings]
        lines.append(f"The page with plots and images is {one.folder / PAGE}")
    show([reports[one.name].as_json() | {"failures": failures} for one in chosen], lines, as_json)


def has_its_data(report: Report) -> bool:
    """Whether data, base model and reference of a study can be read; says which one cannot."""
    try:
        for run in report.runs:
            run.pending(report.table)
    except UserError as error:
        logging.warning("the overview leaves out %s: %s", report.name, error)
        return False
    return True


def list_studies(as_json: bool) -> None:
    """Prints the name, the title and the size of every study."""
    from ..study.loading import load_study, study_names

    found = {name: load_study(name) for name in study_names()}
    lines = (
        f"{name:14} {one.title}: {counted(len(one.variants), 'variant')}, {counted(one.seeds, 'seed')}"
        for name, one in found.items()
    )
    show({name: one.model_dump(mode="json") for name, one in found.items()}, lines, as_json)


def show_plan(runs: Sequence[Run], table: Table, work: Path, jobs: int, as_json: bool) -> None:
    """What is done and what is left, with an estimate of the time."""
    from ..study.queue import done_of
    from ..study.runs import grouped, operations_of
    from .plan import duration

    speed, source = table.speed or ASSUMED_SPEED, "as fast as those that are done" if table.speed else "assumed speed"
    rows = [
        {"run": group[0].name, "operations": flops, "seconds": flops / speed, "done": done_of(group, table, work)}
        for group in grouped(runs)
        for flops in (operations_of(group),)
    ]
    left = [row for row in rows if row["done"] < 1]
    hours = sum(row["seconds"] * (1 - row["done"]) for row in left) / min(jobs, len(left) or 1) / 3600
    lines = [f"{r['run']:32} {duration(r['seconds']):>12}  {100 * r['done']:3.0f} % done" for r in rows]
    lines.append(
        f"{len(left)} of {len(rows)} training runs are left: about {hours:.1f} hours, {jobs} at a time ({source})"
    )
    if any(run.tunes for run in runs):
        lines.append("Some of them tune a setting; the training runs that take its best value are not counted yet.")
    show({"runs": rows, "left": len(left), "hours": hours, "speed": source}, lines, as_json)
