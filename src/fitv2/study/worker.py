"""The process of one run: it tells how far it is, and ends when asked to, or when nobody listens any more."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ..locks import locked
from ..training.sigterm import STOPPED
from .job import Job
from .one_run import perform

OUTPUT = "output.txt"
WAITING = "waiting for another study with the same run"
SECONDS_BETWEEN_MESSAGES = 0.25


def work(job: Job, threads: int, connection: Connection) -> None:
    """Performs a job. A failure is sent as ("failed", sentence), and written with its traceback to OUTPUT.

    Messages otherwise are (what is under way, how much is done, of how much). SIGTERM ends it with the step under way
    saved; Ctrl-C is left to the program that started it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    torch.set_num_threads(threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_to(job.folder / OUTPUT)
    reporter = Reporter(connection)
    try:
        with locked(job.folder, "a study with the same run", lambda: reporter.tell(WAITING, 0, 1)):
            perform(job, reporter.tell)
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", " ".join(str(error).split()) or repr(error)))
        sys.exit(1)


class Reporter:
    """Sends progress, not too often; the last message of a phase always."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.sent = connection, 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.sent < SECONDS_BETWEEN_MESSAGES and done < total:
            return
        self.sent = now
        try:
            self.connection.send((what, done, total))
        except BrokenPipeError:  # Whoever started this was killed.
            sys.exit(STOPPED)


def write_to(path: Path) -> None:
    """All output of this process from here on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
