"""OpenMP threads sleep soon while threads wait for cores, spin otherwise, and a user's own choice is left alone."""

import os
import subprocess
import sys
import textwrap

import pytest

from fitv2.system import openmp
from fitv2.system.limits import available_cores

SHOW = "import os, threading; print(os.environ.get('OMP_WAIT_POLICY'), [t.name for t in threading.enumerate()])"
linux = pytest.mark.skipif(not openmp.waited(), reason="needs Linux, and its statistics of scheduling")
two_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")


def python(code: str, **given: str) -> str:
    """What a new process prints, without the user's choice of how threads wait."""
    inherited = {k: v for k, v in os.environ.items() if k not in (*openmp.SETTINGS, "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=inherited | given, check=True).stdout


@linux
@pytest.mark.parametrize("entry", ["import fitv2", "import fitv2.cli", "from fitv2.training import trainer"])
def test_every_entry_point_watches(entry):
    assert python(f"{entry}; {SHOW}").startswith("None ['MainThread', 'fitv2-thread-watch'")


@pytest.mark.parametrize("name", openmp.SETTINGS)
def test_a_users_choice_stays(name):
    shown = python(f"import fitv2; {SHOW}", **{name: "7"})
    assert shown == f"{'7' if name == 'OMP_WAIT_POLICY' else None} ['MainThread']\n"


@linux
def test_without_statistics_threads_sleep_at_once():
    elsewhere = (
        "import pathlib; from fitv2.system import openmp; openmp.THREADS = pathlib.Path('x'); openmp.share_cores()"
    )
    assert python(f"{elsewhere}; {SHOW}").startswith("PASSIVE")


@linux
@two_cores
def test_spare_threads_stop_the_spinning_and_its_end_restores_it():
    """By the processor time that a thread burns while it has nothing to do, whatever else the machine does."""
    shown = python("""
        import threading, time, torch
        from fitv2.system import openmp

        openmp.BUSY = float("inf")  # The watch of this process does nothing.
        torch.set_num_threads(2)
        x = torch.ones(1 << 20)

        def burnt():
            time.sleep(0.5)
            start = time.process_time()
            for _ in range(20):
                x.neg_()
                time.sleep(0.02)
            return time.process_time() - start

        watch = openmp.ThreadWatch()
        burnt()
        spinning = burnt()
        watch.adapt(openmp.BUSY)
        sharing = burnt()
        watch.adapt(0)
        print(spinning, sharing, burnt())
        assert [t.name for t in threading.enumerate()] == ["MainThread", "fitv2-thread-watch"]
    """)
    spinning, sharing, again = map(float, shown.split())
    assert sharing < 0.5 * min(spinning, again)


@linux
@two_cores
def test_a_busy_machine_is_noticed():
    found = python("""
        import os, subprocess, sys, threading, time, torch, fitv2

        x = torch.ones(1 << 20)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
        end = time.monotonic() + 30
        while time.monotonic() < end and "fitv2-spare-threads" not in [t.name for t in threading.enumerate()]:
            x.neg_()
        for loop in loops:
            loop.kill()
        print([t.name for t in threading.enumerate()].count("fitv2-spare-threads") > 0)
    """)
    assert found == "True\n"


@linux
@two_cores
def test_results_are_the_same_with_spare_threads():
    different = python("""
        import torch
        from fitv2.system.openmp import ThreadWatch

        def sums():
            x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
            return torch.stack([(x @ x).softmax(-1).sum(), x.sum(), x.pow(3).mean()])

        alone, watch = sums(), ThreadWatch()
        watch.adapt(1)
        print((sums() != alone).sum().item())
        watch.adapt(0)
    """)
    assert different == "0\n"
