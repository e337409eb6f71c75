"""Which version of the code runs, where it is a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent
SECONDS = 10


def code_commit(package: Path = PACKAGE) -> str | None:
    """The commit of the package's checkout in 12 digits, and whether its files were changed since.

    None where git is not there, or the package is not under its control, as when installed within another project.
    """
    if said("ls-files", "--error-unmatch", "__init__.py", folder=package) is None:
        return None
    commit, changes = (
        said(*question, folder=package)
        for question in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--", "."))
    )
    if commit is None or changes is None:
        return None
    return f"{commit}, changed" if changes else commit


def said(*question: str, folder: Path) -> str | None:
    """What git answers; None where it cannot."""
    try:
        answer = subprocess.run(
            ["git", *question], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
