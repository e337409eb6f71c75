"""How long idle OpenMP threads spin before they sleep, set before torch loads the OpenMP library.

By default they spin for milliseconds. On a busy machine this keeps the one thread that the others wait for from
running. Threads that sleep at once cost an idle machine a third of its speed. A short spin is nearly the fastest in
both cases: `benchmarks/waiting.py` measures it.
"""

from __future__ import annotations

import os

# Tens of microseconds: longer than the gaps between operations of one training step, shorter than a time slice.
SPINS = 3000
# The user's own choice, if any of these is set.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def limit_spinning() -> None:
    """Sets OMP_WAIT_POLICY and GOMP_SPINCOUNT for this process and those it starts, unless the user has chosen.

    Has no effect after torch has been imported.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
