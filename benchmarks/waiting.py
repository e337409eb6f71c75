"""What the waiting of OpenMP threads costs: on an idle machine, beside a busy loop, and beside another training.

    python benchmarks/waiting.py --repeats 5 --json waiting.json

Policies take turns, so that drifts of the machine hit all of them: `spin` is OpenMP's own default (300 000 turns of a
loop), `passive` sleeps at once, `fitv2` is what the package does (`fitv2.system.openmp`). Each measurement is a new
process: a short training (tokens per second of its steps after the first few) and `fitv2 sample` (wall time from a
cold start).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from fitv2.system.openmp import SETTINGS

POLICIES = {"spin": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "fitv2": {}}
SITUATIONS = ("idle", "busy loop", "second training")
FITV2 = [sys.executable, "-m", "fitv2.cli"]
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
WARM_UP = 3


def environment(policy: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | POLICIES[policy]


def training(out: Path, steps: int) -> list[str]:
    settings = [f"training.steps={steps}", "training.warmup_steps=2", "log.sample_every=null"]
    return [*FITV2, "train", "--recipe", "fashion-tiny", "--out", str(out), *(f"--set={value}" for value in settings)]


@contextmanager
def company(situation: str, policy: str, folder: Path) -> Iterator[None]:
    """What else runs for the length of a with block; a second training waits as the measured one does."""
    commands = {
        "idle": None,
        "busy loop": [sys.executable, "-c", "while True: pass"],
        "second training": training(folder / "company", 100_000),
    }
    if commands[situation] is None:
        yield
        return
    process = subprocess.Popen(
        commands[situation], env=environment(policy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0 if situation == "busy loop" else 15)  # It trains by then.
        yield
    finally:
        process.kill()
        process.wait()


def measure(policy: str, folder: Path, steps: int) -> dict[str, float]:
    """tokens per second of a training, and wall seconds of a cold `fitv2 sample`."""
    quiet = {"env": environment(policy), "check": True, **SILENT}
    subprocess.run(training(folder / "run", steps), **quiet)
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()][WARM_UP:]
    tokens = sum(line["tokens"] for line in lines)
    rate = tokens / sum(line["tokens"] / line["tokens_per_second"] for line in lines)
    start = time.perf_counter()
    subprocess.run([*FITV2, "sample", "--out", str(folder / "samples")], **quiet)
    return {"tokens per second": rate, "seconds of fitv2 sample": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, choices=range(1, 101), metavar="N", default=5)
    parser.add_argument("--steps", type=int, choices=range(10, 10_001), metavar="N", default=30)
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=SITUATIONS)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    args = parser.parse_args()
    rows = []
    for situation in args.situations:
        for turn in range(args.repeats):
            for policy in args.policies:
                with tempfile.TemporaryDirectory() as name, company(situation, policy, Path(name)):
                    figures = measure(policy, Path(name), args.steps)
                rows.append({"situation": situation, "policy": policy, "turn": turn} | figures)
        for policy in args.policies:
            for figure in ("tokens per second", "seconds of fitv2 sample"):
                values = [row[figure] for row in rows if (row["situation"], row["policy"]) == (situation, policy)]
                print(
                    f"{situation:16} {policy:8} {figure:24} {median(values):9.1f} "
                    f"({min(values):.1f} to {max(values):.1f})",
                    flush=True,
                )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
