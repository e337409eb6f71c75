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
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from ..errors import UserError
from .outputs import RESULT, has_diverged, last_step, score_lines, training_lines
from .results import Table
from .runs import Run, Scoring

# Between two looks at how far the trainings are.
SECONDS = 2.0
# What `fitv2 evaluate` says of a model that makes NaN or infinity: a result, if a poor one.
NOT_FINITE = "is not finite"


class Stopped(Exception):
    """The queue was asked to stop."""


class CommandFailed(UserError):
    """A command ended with an error; said: its last line of output."""

    def __init__(self, name: str, output: Path, said: str) -> None:
        super().__init__(f"{name} failed: {said or 'without a word'} (see {output})")
        self.said = said


class Commands:
    """Runs fitv2 commands as processes of some threads each, until `stop` ends them all."""

    def __init__(self, threads: int) -> None:
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.lock, self.stopping = threading.Lock(), False
        self.processes: set[subprocess.Popen[bytes]] = set()

    def run(self, words: Sequence[str], folder: Path, name: str) -> None:
        """Runs one command to its end, its output in the folder. Raises CommandFailed, or Stopped."""
        folder.mkdir(parents=True, exist_ok=True)
        path, command = folder / "output.txt", [sys.executable, "-m", "fitv2.cli", *words]
        with path.open("ab") as output:
            start = output.tell()
            with self.lock:
                if self.stopping:
                    raise Stopped
                # Ctrl-C reaches this process alone, which then stops the others.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment,
                    start_new_session=True,
                )  # fmt: skip
                self.processes.add(process)
            code = process.wait()
            with self.lock:
                self.processes.remove(process)
        if self.stopping:
            raise Stopped
        if code:
            said = path.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            raise CommandFailed(name, path, said[-1] if said else "")

    def stop(self) -> None:
        """Asks all processes to save and end."""
        with self.lock:
            self.stopping = True
            for process in self.processes:
                process.terminate()


class Queue:
    """Works off trainings and their scores.

    Args:
        table: The results, to which finished work is added.
        work: The folder of all trainings; each has one that is named by its id.
        commands: What runs the commands.
        sheets: The folder for images of the final model of a run.
    """

    def __init__(self, table: Table, work: Path, commands: Commands, sheets: Callable[[Run], Path]) -> None:
        self.table, self.work, self.commands, self.sheets = table, work, commands, sheets
        self.writing = threading.Lock()

    def work_off(self, runs: Sequence[Run], jobs: int, report: Callable[[list[Run]], None]) -> list[str]:
        """Runs what is missing, `jobs` trainings at a time; `report` gets the unfinished ones now and then.

        Returns a sentence for each training that failed. One that studies share is carried out once.
        """
        shared: dict[str, list[Run]] = {}
        for run in runs:
            shared.setdefault(run.id, []).append(run)
        failures: list[str] = []
        with ThreadPoolExecutor(jobs) as pool:
            left = {pool.submit(self.perform, group): group[0] for group in shared.values()}
            try:
                while left:
                    done, _ = wait(left, SECONDS, FIRST_COMPLETED)
                    failures += [sentence for future in done if (sentence := failure_of(future)) is not None]
                    left = {future: run for future, run in left.items() if future not in done}
                    report([*left.values()])
            except BaseException:
                self.commands.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return failures

    def perform(self, runs: Sequence[Run]) -> None:
        """Trains and scores a run, which several studies may share, as far as that is not done."""
        # The one that needs the most models of the training is the one to train.
        for run in sorted(runs, key=lambda run: -len(run.scorings())):
            folder, groups = self.work / run.id, run.pending(self.table)
            lacking = [group[0].step for group in groups if run.model(folder, group[0].step) is None]
            if lacking and not has_diverged(folder):
                self.train(run, folder, min(lacking))
            if groups and run.recorded(self.table) not in self.table.trainings:
                self.add(training_lines(run, folder))
            for group in groups:
                if (model := run.model(folder, group[0].step)) is not None:
                    self.score(run, folder, model, group)
                elif has_diverged(folder):
                    self.add(list(score_lines(run, group, None, run.recorded(self.table))))
                else:
                    raise UserError(f"{run.name} has left no model of step {group[0].step}: remove {folder}")

    def train(self, run: Run, folder: Path, first: int) -> None:
        """Trains or resumes; from scratch if the checkpoint is beyond the first model that is missing."""
        steps = [int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")]
        if max(steps, default=0) >= first:
            shutil.rmtree(folder / "checkpoints")
        try:
            self.commands.run(run.train_command(folder), folder, run.name)
        except CommandFailed:
            if not has_diverged(folder):
                raise

    def score(self, run: Run, folder: Path, model: Path, group: list[Scoring]) -> None:
        """One `fitv2 evaluate`, unless its result is there already."""
        first = group[0]
        out = folder / "scores" / f"step-{first.step:08d}-{run.scoring_id(first)}"
        result: Path | None = out / RESULT
        if not (out / RESULT).is_file():
            try:
                self.commands.run(run.evaluate_command(model, group, out), folder, run.name)
            except CommandFailed as error:
                if NOT_FINITE not in error.said:
                    raise
                result = None
        self.add(list(score_lines(run, group, result, run.recorded(self.table))))
        sizes = [s.condition.size for s in group if run.seed == 0 and s.name == next(iter(run.conditions))]
        for sheet in sorted(out.glob(f"sheet-{sizes[0].replace(':', '?')}*.png"))[:1] if sizes else ():
            self.sheets(run).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sheet, self.sheets(run) / f"{run.variant}.png")

    def add(self, lines: list[dict]) -> None:
        with self.writing:
            self.table.append(lines)


def failure_of(future: Future[None]) -> str | None:
    """What a training failed with, as a sentence; None if it did not. A fault of the program is raised."""
    error = future.exception()
    if error is not None and not isinstance(error, UserError | OSError | Stopped):
        raise error
    return str(error) if isinstance(error, UserError | OSError) else None


def done_of(run: Run, table: Table, work: Path) -> float:
    """The part of a run that is done, from 0 to 1: steps of its training, and its scores."""
    pending = sum(scoring.images for group in run.pending(table) for scoring in group)
    scored = 1 - pending / sum(scoring.images for scoring in run.scorings())
    trained = min(last_step(work / run.id) / run.steps, 1.0) if pending else 1.0
    training = run.costs["flops_total"] / run.operations
    return trained * training + scored * (1 - training)


class Clock:
    """Estimates the time left from what was done since it was made."""

    def __init__(self, runs: Sequence[Run], table: Table, work: Path) -> None:
        self.runs, self.table, self.work = runs, table, work
        self.total = sum(run.operations for run in runs)
        self.start, self.before = time.monotonic(), self.done()

    def done(self) -> float:
        return sum(run.operations * done_of(run, self.table, self.work) for run in self.runs)

    def left(self) -> tuple[float, float | None]:
        """The fraction that is done, and the seconds that the rest takes; None as long as that is not known."""
        done, seconds = self.done(), time.monotonic() - self.start
        rate = (done - self.before) / max(seconds, SECONDS)
        return done / self.total, (self.total - done) / rate if rate else None
