"""`fitv2 study`: runs, resumes and reports experiments that test claims."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from .given import refuse_without_effect

if TYPE_CHECKING:
    from ..study.definition import Study
    from ..study.queue import Clock
    from ..study.results import Table
    from ..study.runs import Run

STATUS = "status"
# What a core does of a training in bfloat16, in operations a second, until results tell.
ASSUMED_SPEED = 8e10
SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True)
class Chosen:
    """A study as the command line names it; copy: the file that is kept beside its page, None of a shipped study."""

    name: str
    study: Study
    folder: Path
    copy: Path | None


def study(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="studies that ship with fitv2, or YAML files; 'status': what is done of them; none: list them",
            metavar="[status] [STUDY]...",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="run this variant only, repeatable")] = None,
    seeds: Annotated[int | None, typer.Option("-n", "--seeds", min=1, help="default: as each study says")] = None,
    trial: Annotated[
        str | None, typer.Option(help="shorten every training and its scoring to a fraction, such as 5%")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="a trial of this many steps for each training")] = None,
    budget: Annotated[float | None, typer.Option(min=0, hidden=True)] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, help="commands at a time; default: one per core, 1 on a GPU")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="the folder of pages and of the table; trials go below trials/")
    ] = Path("studies"),
    work: Annotated[Path, typer.Option(help="the folder of trainings, which studies share")] = Path("runs/study"),
    report: Annotated[bool, typer.Option("--report", help="run nothing; write the pages from the table")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="run nothing; list what is left and its time")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Test claims: train variants with several seeds, score them alike, and say which claims hold.

    [bold]Examples[/bold]

      fitv2 study

      fitv2 study convergence --dry-run

      fitv2 study convergence --trial 5% --seeds 1

      fitv2 study convergence ablation versus-sit

      fitv2 study status

      fitv2 study convergence --report

    A study is a queue of 'fitv2 train' and 'fitv2 evaluate' commands. The same command continues after any stop, on any
    machine that has the table of results, studies/results.jsonl; trainings that two studies share are run once. Pages
    with verdicts, plots and images are in studies/NAME.
    """
    if not names:
        refuse_without_effect(context, {"names", "as_json"}, "where studies are listed")
        list_studies(as_json)
        return
    require_extra()
    from ..study.definition import study_names
    from ..study.results import Table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    status = names[0] == STATUS
    if status or report or dry_run:
        unused = {"only", "jobs", "report" if status else "dry_run"} if status or report else set()
        every = {parameter.name for parameter in context.command.params} - {None}
        refuse_without_effect(context, {str(name) for name in every} - unused, "where nothing is run")
    chosen, place = choose(names[status:] or study_names(), trial, steps, budget, out)
    table = Table(place)
    runs = listed(chosen, table, seeds, only or ())
    if status or dry_run:
        show_plan(runs, table, work, jobs, as_json)
        return
    failures = [] if report else perform(chosen, runs, table, work, jobs, seeds, only or ())
    finish(chosen, table, place, failures, as_json)
    if failures:
        raise typer.Exit(1)


def require_extra() -> None:
    from importlib.util import find_spec

    if any(find_spec(package) is None for package in ("pandas", "jinja2")):
        raise UserError("fitv2 study needs pandas and Jinja2: pip install 'fitv2[study]'")


def choose(
    names: list[str], trial: str | None, steps: int | None, budget: float | None, out: Path
) -> tuple[list[Chosen], Path]:
    """The studies, shortened if it is a trial, and the folder of their table. Raises UserError."""
    from ..study.definition import load_study, shortened, study_names
    from ..study.report import refuse_foreign

    if budget is not None:
        logging.warning("--budget is called --trial (a fraction) or --steps (a number) now")
        trial, steps = (f"{budget:g}", steps) if budget <= 1 else (trial, int(budget))
    if trial is not None and steps is not None:
        raise UserError("--trial and --steps both shorten the trainings: give one of them")
    place = out if trial is None and steps is None else out / "trials" / (trial or f"{steps}-steps").replace("%", "pc")
    found = []
    for name in names:
        loaded = load_study(name)
        if trial is not None or steps is not None:
            whole = loaded.recipe_of(next(iter(loaded.variants)), 0).training.steps
            loaded = shortened(loaded, fraction_of(trial) if trial else (steps or whole) / whole)
        folder = place / Path(name).stem
        refuse_foreign(folder)
        found.append(Chosen(Path(name).stem, loaded, folder, None if name in study_names() else Path(name)))
        refuse_another(found[-1], found[:-1])
    refuse_foreign(place)
    return found, place


def fraction_of(text: str) -> float:
    """A fraction from 5% or 0.05. Raises UserError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UserError(f"--trial takes a fraction such as 5% or 0.05, not {text!r}") from None


def refuse_another(chosen: Chosen, others: list[Chosen]) -> None:
    """Raises UserError if the folder of a study is that of another one."""
    from ..yaml_text import read_yaml

    if any(other.folder == chosen.folder for other in others):
        raise UserError(f"two of these studies would have their pages in {chosen.folder}: omit one of them")
    copy = chosen.folder / "study.yaml"
    known = read_yaml(copy).get("title") if copy.is_file() else None
    if known not in (None, chosen.study.title) or (known is not None and chosen.copy is None):
        raise UserError(f"{chosen.folder} is of another study, {known!r}: choose another --out, or rename your file")


def listed(chosen: list[Chosen], table: Table, seeds: int | None, only: tuple[str, ...] | list[str]) -> list[Run]:
    """All trainings that can be named now, those of the first seed of all studies first."""
    from ..study.runs import runs_of

    known = {variant for one in chosen for variant in one.study.variants}
    if unknown := sorted(set(only) - known):
        raise UserError(f"--only {unknown[0]}: there is no such variant; the variants are {', '.join(sorted(known))}")
    found = [run for one in chosen for run in runs_of(one.study, table, seeds, only)]
    tuning = {one.study.tuning.seed for one in chosen if one.study.tuning}
    return sorted(found, key=lambda run: -1 if run.seed in tuning else run.seed)


def perform(
    chosen: list[Chosen], runs: list[Run], table: Table, work: Path, jobs: int | None, seeds: int | None, only: Any
) -> list[str]:
    """Runs what is not done; returns a sentence for each run that failed."""
    from ..atomic import write_text
    from ..cores import available_cores
    from ..locks import locked
    from ..study.queue import Clock, Commands, Queue
    from ..study.report import claim
    from ..training.preemption import signal_of, sigterm_interrupts

    jobs = jobs or default_jobs()
    with locked(table.path.parent, "a study"):
        places = {id(one.study): one.folder for one in chosen}
        for one in chosen:
            claim(one.folder, one.study.title)
            if one.copy is not None and one.copy.resolve() != (one.folder / "study.yaml").resolve():
                write_text(one.folder / "study.yaml", one.copy.read_text(encoding="utf-8"))
        commands, failures = Commands(max(1, available_cores() // jobs)), []
        try:
            with sigterm_interrupts():
                queue = Queue(table, work, commands, lambda run: places[id(run.study)] / "sheets")
                while todo := [run for run in runs if run.pending(table)]:
                    with progress(Clock(todo, table, work)) as show:
                        failures = queue.work_off(todo, jobs, show)
                    if failures:
                        break
                    runs = listed(chosen, table, seeds, only)  # After the tuning, all others can be named.
        except KeyboardInterrupt as interruption:
            print("stopped, with all steps saved; the same command continues", file=sys.stderr)
            raise typer.Exit(128 + signal_of(interruption)) from None
    for sentence in failures:
        print(f"fitv2: {sentence}", file=sys.stderr)
    return failures


def default_jobs() -> int:
    """One per core; one on a GPU, which one training fills."""
    import torch

    from ..cores import available_cores

    return 1 if torch.cuda.is_available() else available_cores()


def finish(chosen: list[Chosen], table: Table, place: Path, failures: list[str], as_json: bool) -> None:
    """Writes the pages, and prints the verdicts."""
    from ..study.definition import load_study, study_names
    from ..study.report import PAGE, Report, write_overview, write_report

    trial = place.parent.name == "trials"
    reports = [Report(one.name, one.study, table, trial) for one in chosen]
    for one, made in zip(chosen, reports, strict=True):
        write_report(made, one.folder)
    if not trial:
        known = {made.name: made for made in reports}
        others = [name for name in study_names() if name not in known]
        kept = [path.parent for path in place.glob("*/study.yaml") if path.parent.name not in known]
        known |= {name: Report(name, load_study(name), table) for name in others}
        known |= {folder.name: Report(folder.name, load_study(str(folder / "study.yaml")), table) for folder in kept}
        write_overview([known[name] for name in sorted(known)], place)
    if as_json:
        print(json.dumps([made.as_json() | {"failures": failures} for made in reports]))
        return
    for one, made in zip(chosen, reports, strict=True):
        print(made.study.title)
        for finding in made.findings:
            print(f"{finding.verdict:>12}  {finding.claim.text}: {finding.effect}")
        print(f"The page with plots and images is {one.folder / PAGE}")


def list_studies(as_json: bool) -> None:
    from ..study.definition import load_study, study_names

    found = {name: load_study(name) for name in study_names()}
    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in found.items()}))
        return
    for name, one in found.items():
        print(f"{name:14} {one.title}: {counted(len(one.variants), 'variant')}, {counted(one.seeds, 'seed')}")


def show_plan(runs: list[Run], table: Table, work: Path, jobs: int | None, as_json: bool) -> None:
    """What is done and what is left, with an estimate of the time."""
    from ..study.queue import done_of

    jobs = jobs or default_jobs()
    once = {run.id: run for run in reversed(runs)}
    done = {run.id: done_of(run, table, work) for run in once.values()}
    left = sum(run.operations * (1 - done[run.id]) for run in once.values())
    number = sum(part < 1 for part in done.values())
    speed, source = speed_of(table)
    hours = left / speed / min(jobs, max(number, 1)) / 3600
    rows = [{"run": run.name, "operations": run.operations, "done": done[run.id]} for run in reversed(once.values())]
    if as_json:
        print(json.dumps({"runs": rows, "left": number, "hours": hours, "speed": source}))
        return
    for row in rows:
        print(f"{row['run']:32} {row['operations'] / 1e12:6.1f} TFLOP  {100 * row['done']:3.0f} % done")
    print(f"{number} of {len(rows)} trainings are left: about {hours:.1f} hours, {jobs} at a time ({source})")
    if any(run.tuned is not None and run.study.tuning and run.seed == run.study.tuning.seed for run in runs):
        print("These tune a setting; the trainings that take its best value follow, and are not counted yet.")


def speed_of(table: Table) -> tuple[float, str]:
    """Operations a second of one training, and how that is known."""
    frame = table.frame
    taken = frame[frame["metric"].isin(["operations", "wall"])].pivot_table("value", "run", "metric", "max")
    if taken.empty:
        return ASSUMED_SPEED, f"assumed: {ASSUMED_SPEED / 1e9:.0f} GFLOP/s each"
    return float(taken["operations"].sum() / taken["wall"].sum()), f"as fast as the {len(taken)} that are done"


@contextmanager
def progress(clock: Clock) -> Iterator[Any]:
    """Shows how much is done and the time left, as a bar on a terminal and as a line a minute elsewhere."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console, printed = Console(stderr=True), [0.0]
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("study", total=1.0, told="")

        def show(unfinished: list[Run]) -> None:
            done, seconds = clock.left()
            left = "time left not known yet" if seconds is None else f"about {seconds / 3600:.1f} hours left"
            told = f"{100 * done:.0f} % done, {counted(len(unfinished), 'training')} to go, {left}"
            bar.update(task, completed=done, told=told)
            if not console.is_terminal and time.monotonic() - printed[0] > SECONDS_BETWEEN_LINES:
                printed[0] = time.monotonic()
                print(told, file=sys.stderr, flush=True)

        yield show
