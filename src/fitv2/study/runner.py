"""Runs as processes, some at a time: what is finished is left alone, what fails does not stop the others."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from ..cores import available_cores
from ..errors import UserError
from ..training.sigterm import STOPPED, Termination
from .job import Job
from .worker import OUTPUT, work

logger = logging.getLogger(__name__)
# Of one look at what the processes say: how soon a wish to stop is heard.
SECONDS = 0.5
# For a step and its checkpoint, after which a process that does not stop is killed.
PATIENCE = 120
# Gets a run's label, what it does, how much of it is done and of how much; at its end DONE or FAILED.
Show = Callable[[str, str, int, int], None]
DONE, FAILED = "done", "failed"


@dataclass(eq=False)
class Running:
    """A process and what it has said."""

    job: Job
    process: BaseProcess
    connection: Connection
    failure: str | None = None


def default_jobs() -> int:
    """As many as cores; one where there is a GPU, which one run fills."""
    return 1 if torch.cuda.is_available() else available_cores()


def threads_of_a_run(at_a_time: int) -> int:
    """All cores shared alike."""
    return max(1, available_cores() // at_a_time)


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Those without a record of their settings; a damaged one is named on the log and made again."""
    return [job for job in jobs if not is_done(job)]


def is_done(job: Job) -> bool:
    try:
        return job.is_done()
    except UserError as error:
        logger.warning("%s", error)
        return False


def run_all(jobs: Sequence[Job], at_a_time: int, show: Show) -> list[tuple[Job, str]]:
    """A process for each job, in order, so many at a time; those that failed, each with a sentence. A job waits for
    another one of the same training, and lets others pass meanwhile.

    Stops all of them, each with its step saved, on Ctrl-C (KeyboardInterrupt) and on SIGTERM (SystemExit).
    """
    waiting, running, failures = list(jobs), [], []
    threads = threads_of_a_run(at_a_time)
    termination = Termination()
    try:
        with termination:
            while waiting or running:
                while len(running) < at_a_time and (job := next_of(waiting, running)) is not None:
                    waiting.remove(job)
                    running.append(begin(job, threads))
                for one in listen(running, show):
                    running.remove(one)
                    failure = end(one)
                    show(one.job.label, FAILED if failure else DONE, 1, 1)
                    failures += [(one.job, failure)] if failure else []
                if termination.asked:
                    raise SystemExit(STOPPED)
    finally:
        stop(running)
    return failures


def next_of(waiting: Sequence[Job], running: Sequence[Running]) -> Job | None:
    """The first whose training is not under way."""
    busy = {one.job.folder for one in running}
    return next((job for job in waiting if job.folder not in busy), None)


def begin(job: Job, threads: int) -> Running:
    """A process that has loaded everything already, where the system can fork one from a server."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([work.__module__, "torch._dynamo"])  # The latter is what accelerate loads late.
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, threads, theirs), name=job.run.name, daemon=True)
    process.start()
    theirs.close()
    return Running(job, process, ours)


def listen(running: Sequence[Running], show: Show) -> list[Running]:
    """Passes on what has been said; returns those that have ended."""
    by_connection = {one.connection: one for one in running}
    ended = []
    for connection in wait(by_connection, SECONDS):
        one = by_connection[connection]
        try:
            message = connection.recv()
        except EOFError:
            ended.append(one)
            continue
        if message[0] == FAILED:
            one.failure = message[1]
        else:
            show(one.job.label, *message)
    return ended


def end(one: Running) -> str | None:
    """Of a process that has ended: a sentence where it failed."""
    one.process.join()
    one.connection.close()
    code = one.process.exitcode
    if code == 0:
        return None
    reason = one.failure or (f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
    return f"{one.job.label} failed: {reason} (see {one.job.folder / OUTPUT}); the others went on"


def stop(running: Sequence[Running]) -> None:
    """Asks all to end, and waits for them."""
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.join(PATIENCE)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
