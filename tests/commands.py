"""A `fitv2` command in a process of its own, and what it left."""

import os
from pathlib import Path

from tiny import command_line, process


class Result:
    """What a finished command left: exit code, and what it wrote to both streams."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        outputs = [folder / "stdout", folder / "stderr"]
        child = process(run_in, folder, outputs, arguments)
        child.join()
        self.code, (self.out, self.err) = child.exitcode, (path.read_text() for path in outputs)

    def ok(self) -> "Result":
        assert self.code == 0, self.err
        return self

    @property
    def sentence(self) -> str:
        """What the user is told of a mistake."""
        assert self.code == 1 and "Traceback" not in self.err and "fitv2: " in self.err, self.err
        return self.err


def run_in(folder: Path, outputs: list[Path], arguments: tuple[str, ...]) -> None:
    """For `process`: the command line in a folder, its streams and its process id in files."""
    os.chdir(folder)
    Path("pid").write_text(str(os.getpid()))
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    command_line(*arguments)
