"""Every command in the README and the documentation runs, or is marked as needing what a test does not have."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- hardware: [^>]+-->\s*)?^```(?P<language>\w*)\n(?P<body>.*?)^```", re.M | re.S)
# Unmarked in the README, where a mark would be in the way: these need a folder of the reader, or the network.
UNMARKED = ("pip ", "my/images", "runs/mine", "MODEL")


def blocks(language: str) -> list[tuple[Path, str, bool]]:
    """(page, text, whether it can run here) of every block of code in that language."""
    return [
        (page, found["body"], not found["mark"])
        for page in PAGES
        for found in BLOCK.finditer(page.read_text())
        if found["language"] == language
    ]


def commands(text: str) -> list[list[str]]:
    """The words of every fitv2 command of a block, comments removed, lines joined that end in a backslash."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts if not part.lstrip().startswith(("cc", "images ->"))]
    return [found[found.index("fitv2") :] for found in words if "fitv2" in found[:1]]


SHELL = [(page, words, runs) for page, text, runs in blocks("") for words in commands(text)]
RUNNABLE = [words for _, words, runs in SHELL if runs and not any(part in " ".join(words) for part in UNMARKED)]


def fitv2(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fitv2.cli", *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_there_are_commands():
    assert len(SHELL) > 25 and len(RUNNABLE) > 8


@pytest.mark.slow
@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_a_command_runs(words, tmp_path):
    done = fitv2(words, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_options_exist():
    """Of commands that cannot run here, too: an unknown option or command ends with exit code 2."""
    import typer.main

    from fitv2.cli import app

    known = {
        name: {option for p in command.params if not p.hidden for option in (*p.opts, *p.secondary_opts)}
        for name, command in typer.main.get_command(app).commands.items()
    }
    for page, (_, name, *words), _ in SHELL:
        options = {word for word in words if re.match(r"--?[a-z]", word)} - {"--help", "--debug"}
        assert options <= known[name], f"{page.name}: fitv2 {name} {options - known[name]}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows what is ignored")
def test_what_the_commands_write_is_ignored_by_git():
    written = {
        word for _, words, _ in SHELL for option, word in pairwise(words) if option in ("--out", "--sheet", "--plot")
    }
    paths = sorted(f"{path}/file" for path in {*written, "outputs-2", "my/images", "prepared-inspected"})
    asked = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert asked.stdout.split() == paths


@pytest.mark.slow
def test_python_runs(tmp_path):
    """The blocks of one page one after another, as a reader types them."""
    for page in PAGES:
        texts = [text for where, text, runs in blocks("python") if where == page and runs]
        if texts:
            script = "\n".join(texts)
            done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {done.stderr}"
