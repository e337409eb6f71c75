"""The queue of a study: `fitv2 train` and `fitv2 evaluate` commands, some at a time, their figures in one table.

Each command resumes by itself and locks its folder. So the queue keeps no state: it looks at the table and at the
folders of the trainings, and runs what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.results import RESULT
from .outputs import has_diverged, last_log_lines, score_lines, training_lines
from .results import Table
from .runs import Run, Scoring, grouped, operations_of, scorings_of

# Between two looks at how far the trainings are.
SECONDS = 2.0
# What `fitv2 evaluate` says of a model that makes NaN or infinity: a result, if a poor one.
NOT_FINITE = "is not finite"


class CommandFailed(UserError):
    """A command ended with an error."""


class Queue:
    """Trains and scores what the table lacks.

    Args:
        table: The results, to which finished work is added.
        work: The folder of all trainings; each has a folder named by its id.
        threads: The threads of each command.
        sheets: Returns the folder for images of the final model of a run.
    """

    def __init__(self, table: Table, work: Path, threads: int, sheets: Callable[[Run], Path]) -> None:
        self.table, self.work, self.sheets = table, work, sheets
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.lock, self.stopping = threading.Lock(), False
        self.processes: set[subprocess.Popen[bytes]] = set()

    def work_off(self, runs: Sequence[Run], jobs: int, report: Callable[[list[Run]], None]) -> list[str]:
        """Runs what is missing, `jobs` trainings at a time; `report` gets the unfinished ones now and then.

        Returns a sentence for each training that failed. One that studies share is carried out once.
        """
        failures: list[str] = []
        with ThreadPoolExecutor(jobs) as pool:
            left: dict[Future[None], Run] = {pool.submit(self.perform, group): group[0] for group in grouped(runs)}
            try:
                while left:
                    done, _ = wait(left, SECONDS, FIRST_COMPLETED)
                    for future in done:
                        del left[future]
                        try:
                            future.result()
                        except (UserError, OSError) as error:
                            failures.append(str(error))
                    report([*left.values()])
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return failures

    def stop(self) -> None:
        """Asks all commands to save and end."""
        with self.lock:
            self.stopping = True
            for process in self.processes:
                process.terminate()

    def perform(self, runs: Sequence[Run]) -> None:
        """Does what is missing of a training and its scores, which several studies may share."""
        # The one that needs the most models of the training is the one to train.
        for run in sorted(runs, key=lambda run: -len(run.scorings)):
            folder, pending = self.work / run.id, run.pending(self.table)
            lacking = [scoring.step for scoring in pending if run.model(folder, scoring.step) is None]
            if lacking and not has_diverged(folder):
                self.train(run, folder, min(lacking))
            if pending and self.table.run_of(run.id) not in self.table.trainings:
                self.add(training_lines(run, folder))
            for scoring in pending:
                self.score(run, folder, scoring)
        for run in runs:
            self.show(run, folder)

    def train(self, run: Run, folder: Path, first: int) -> None:
        """Trains or resumes; from scratch if the checkpoint is beyond the first model that is missing."""
        steps = [int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")]
        if max(steps, default=0) >= first:
            shutil.rmtree(folder / "checkpoints")
        try:
            self.command(run.train_command(folder), folder, run.name)
        except CommandFailed:
            if not has_diverged(folder):
                raise

    def score(self, run: Run, folder: Path, scoring: Scoring) -> None:
        """One `fitv2 evaluate`, unless its result is already there; a model that diverged has no scores."""
        out = scores_of(run, folder, scoring)
        model, result = run.model(folder, scoring.step), out / RESULT
        finite = model is not None
        if model is None and not has_diverged(folder):
            raise UserError(f"{run.name} has left no model of step {scoring.step}: remove {folder}")
        if model is not None and not result.is_file():
            try:
                self.command(run.evaluate_command(model, scoring, out), folder, run.name)
            except CommandFailed as error:
                if NOT_FINITE not in str(error):
                    raise
                finite = False
        self.add(score_lines(run, scoring, result if finite else None, self.table.run_of(run.id)))

    def show(self, run: Run, folder: Path) -> None:
        """Keeps images of the final model: those of seed 0, or of a later one where they are missing."""
        wanted, shown = run.study.shown_of(run.variant), self.sheets(run) / f"{run.variant}.png"
        if run.tunes or run.variant not in run.study.drawn or (run.seed and shown.exists()):
            return
        scoring = next(scoring for scoring in run.scorings if scoring.name == wanted)
        found = scores_of(run, folder, scoring).glob("sheet-*.png")  # There is one: a score is of one size.
        if sheet := min(found, default=None):
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sheet, shown)

    def command(self, words: Sequence[str], folder: Path, name: str) -> None:
        """Runs one fitv2 command to its end, with its output in the folder. Raises CommandFailed."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "output.txt"
        with path.open("ab") as output:
            start = output.tell()
            with self.lock:
                if self.stopping:
                    raise CommandFailed(f"{name} was stopped")
                # Ctrl-C reaches this process alone, which then stops the others. A session of their own would do as
                # well, but Linux schedules sessions by themselves, and a lower priority of this one would be lost.
                process = subprocess.Popen(
                    [sys.executable, "-m", "fitv2.cli", *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=self.environment, process_group=0,
                )  # fmt: skip
                self.processes.add(process)
            code = process.wait()
            with self.lock:
                self.processes.remove(process)
        if code:
            lines = path.read_bytes()[start:].decode(errors="replace").splitlines()
            said = [line.strip("│ ") for line in lines if any(map(str.isalnum, line))]  # Rich draws boxes.
            raise CommandFailed(f"{name} failed: {said[-1] if said else 'it printed nothing'} (see {path})")

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        lines = list(lines)
        with self.lock:
            self.table.append(lines)


def scores_of(run: Run, folder: Path, scoring: Scoring) -> Path:
    """Returns where the result of a scoring is."""
    return folder / "scores" / f"step-{scoring.step:08d}-{run.scoring_id(scoring)}"


def done_of(runs: Sequence[Run], table: Table, work: Path) -> float:
    """The fraction of one training that is done: its steps, and the scores that all these studies want of it."""
    run, scorings = runs[0], scorings_of(runs)
    pending = sum(s.images for (step, name), s in scorings.items() if not table.has(run.id, step, name))
    if not pending:
        return 1.0
    scored = 1 - pending / sum(scoring.images for scoring in scorings.values())
    last = last_log_lines(work / run.id, 1)
    trained = min(last[0]["step"] / run.steps, 1.0) if last else 0.0
    training = run.costs["flops_total"] / operations_of(runs)
    return trained * training + scored * (1 - training)


class Clock:
    """Estimates the time left from what was done since it was made."""

    def __init__(self, runs: Sequence[Run], table: Table, work: Path) -> None:
        self.groups, self.table, self.work = grouped(runs), table, work
        self.start, self.before = time.monotonic(), self.done()

    def done(self) -> float:
        """The fraction of all FLOPs that is done."""
        costs = [operations_of(group) for group in self.groups]
        done = (done_of(group, self.table, self.work) for group in self.groups)
        return sum(cost * part for cost, part in zip(costs, done, strict=True)) / sum(costs)

    def left(self) -> tuple[float, float | None]:
        """The fraction that is done, and the seconds that the rest takes; None until that is known."""
        done, seconds = self.done(), time.monotonic() - self.start
        rate = (done - self.before) / max(seconds, SECONDS)
        return done, (1 - done) / rate if rate else None
