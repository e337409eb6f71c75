"""Which code ran, on what: kept with every training and every score, so that a figure can be traced."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
SECONDS = 10


def provenance() -> dict[str, str | int | None]:
    """The versions and the commit of the code that runs now, the machine, and the threads of torch."""
    import torch  # Takes a second to load, which not every caller needs.

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "fitv2": version("fitv2"),
        "commit": code_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def code_commit(package: Path = PACKAGE) -> str | None:
    """The commit of the package's checkout in 12 digits, followed by ", changed" if its files were changed since.

    Returns None if git is not installed, or if the package is not under its control, as in an installation.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py", folder=package) is None:
        return None
    commit = _git("rev-parse", "--short=12", "HEAD", folder=package)
    changes = _git("status", "--porcelain", "--", ".", folder=package)
    if commit is None or changes is None:
        return None
    return f"{commit}, changed" if changes else commit


def _git(*question: str, folder: Path) -> str | None:
    """What git answers; None if it cannot."""
    try:
        answer = subprocess.run(
            ["git", *question], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
