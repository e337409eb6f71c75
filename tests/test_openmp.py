"""OpenMP threads must not spin for long, and a user's own choice is left alone."""

import os
import subprocess
import sys

import pytest

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"


def environment_after(code: str, **given: str) -> list[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    command = [sys.executable, "-c", f"{code}; {SHOW}"]
    return subprocess.check_output(command, text=True, env=inherited | given).split()


@pytest.mark.parametrize("entry", ["import fitv2", "import fitv2.cli", "from fitv2.training import trainer"])
def test_every_entry_point_limits_spinning(entry):
    policy, spins = environment_after(entry)
    assert policy == "PASSIVE" and 1000 <= int(spins) <= 10_000


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_users_choice_stays(name):
    assert environment_after("import fitv2", **{name: "7"}) == ["7", "None"][:: 1 if name == "OMP_WAIT_POLICY" else -1]


def test_the_library_knows_the_settings():
    """What libgomp itself says that it has taken from the environment."""
    shown = subprocess.run(
        [sys.executable, "-c", "import fitv2, os; os.environ['OMP_DISPLAY_ENV'] = 'VERBOSE'; import torch"],
        capture_output=True,
        text=True,
    ).stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
