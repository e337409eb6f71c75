"""A `fitv2` command in the test's own process, and what it left."""

import json
import logging
import sys
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Result:
    """What a finished command left: exit code, and what it wrote to both streams."""

    code: int
    out: str
    err: str

    def ok(self) -> "Result":
        assert self.code == 0, self.err
        return self

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        return json.loads(self.ok().out)

    @property
    def sentence(self) -> str:
        """What the user is told of a mistake."""
        assert self.code == 1 and "Traceback" not in self.err and "fitv2: " in self.err, self.err
        return self.err


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    """`fitv2 ARGUMENTS`, with streams and logging as a process of its own has them."""
    from fitv2.cli import main

    argv, log = sys.argv, logging.getLogger()
    handlers, level = log.handlers, log.level
    sys.argv, log.handlers = ["fitv2", *arguments], []
    capsys.readouterr()
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv, log.handlers = argv, handlers
        log.setLevel(level)
    (out, err), code = capsys.readouterr(), end.value.code
    if isinstance(code, str):  # As Python does at its end.
        code, err = 1, f"{err}{code}\n"
    return Result(code or 0, out, err)
