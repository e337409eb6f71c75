"""The speed of another version of fitv2 and of this one, in turn: a forward pass, a training, and `fitv2 sample`.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before/src --repeats 10 --json versions.json

All in float32; the versions take turns, so that drifts of the machine hit both: two trainings of which one stands still
for some seconds while the other runs, and new processes for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "src"
TURNS_OF_TRAINING = 4  # Short ones, for each repeat of the rest.
WARM_UP, TURN = 5, 4.0  # Steps before the first turn, and seconds of each.
# All versions know "no", which is called fp32 now.
SETTINGS = ("training.warmup_steps=2", "training.precision=no", "log.sample_every=null", "log.checkpoint_every=1000000")
SETTINGS += ("training.steps=1000000",)
# FiTv2-B/2 on eight images of mixed sizes: tokens per second of the fastest of five passes.
FORWARD = """
import time, torch, fitv2
torch.manual_seed(0)
model = fitv2.FiT(fitv2.preset("FiTv2-B/2")).eval()
sizes = [(16, 16), (14, 18), (18, 14), (12, 21), (21, 12), (10, 24), (24, 10), (16, 12)]
latents = [torch.randn(4, 2 * h, 2 * w) for h, w in sizes]
batch, t, y = fitv2.TokenBatch.from_latents(latents, patch_size=2), torch.rand(8), torch.arange(8)
seconds = []
with torch.inference_mode():
    for _ in range(6):
        start = time.perf_counter()
        model(batch, t, y)
        seconds.append(time.perf_counter() - start)
print(len(batch.x) / min(seconds[1:]))
"""


def run(source: Path, *words: object) -> str:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment(source), check=True, capture_output=True, text=True).stdout


def environment(source: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(source)}


def measure(source: Path) -> dict[str, float]:
    """Returns the tokens per second of a forward pass, and the seconds of a cold `fitv2 sample`."""
    forward = float(run(source, "-c", FORWARD))
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        run(source, "-m", "fitv2.cli", "sample", "--guidance", 2, "--guidance-interval", 0, 1, "--out", name)
        seconds = time.perf_counter() - start
    return {"forward, tokens/s": forward, "fitv2 sample, s": seconds}


def train_in_turn(sources: dict[str, Path], folder: Path, turns: int) -> Iterator[dict[str, Any]]:
    """Yields the tokens per second of each version in each turn; one training stands still while the other runs."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    train = [sys.executable, "-m", "fitv2.cli", "train", "--recipe", "fashion-tiny", *settings, "--out"]
    runs = {
        version: subprocess.Popen([*train, folder / version], env=environment(source), stdout=subprocess.DEVNULL)
        for version, source in sources.items()
    }

    def log(version: str) -> list[str]:
        """A line for each step so far."""
        path = folder / version / "log.jsonl"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_for(version: str, steps: int) -> None:
        while len(log(version)) < steps:
            if runs[version].poll() is not None:
                raise SystemExit("a training ended before it was measured")
            time.sleep(0.01)

    try:
        for version in runs:
            wait_for(version, WARM_UP)
        for process in runs.values():
            process.send_signal(signal.SIGSTOP)
        for turn in range(turns):
            for version in sorted(runs, reverse=turn % 2 == 1):
                runs[version].send_signal(signal.SIGCONT)
                # From the end of a step to the end of another: whole steps.
                first = len(log(version)) + 1
                wait_for(version, first)
                start = time.perf_counter()
                while time.perf_counter() - start < TURN:
                    wait_for(version, len(log(version)) + 1)
                seconds = time.perf_counter() - start
                rate = sum(json.loads(line)["tokens"] for line in log(version)[first:]) / seconds
                runs[version].send_signal(signal.SIGSTOP)
                yield {"version": version, "turn": turn, "training, tokens/s": rate}
    finally:
        for process in runs.values():
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the src folder of the other version")
    parser.add_argument("--repeats", type=int, choices=range(1, 101), metavar="N", default=5)
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    args = parser.parse_args()
    if not (args.before / "fitv2").is_dir():
        parser.error(f"there is no package fitv2 in {args.before}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that no training is left behind.
    sources, rows = {"before": args.before.resolve(), "now": HERE}, []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))

    with tempfile.TemporaryDirectory() as name:
        for row in train_in_turn(sources, Path(name), TURNS_OF_TRAINING * args.repeats):
            keep(row)
    for turn in range(args.repeats):
        for version, source in sources.items():
            keep({"version": version, "turn": turn} | measure(source))
    for figure in ("forward, tokens/s", "training, tokens/s", "fitv2 sample, s"):
        before, now = (
            [row[figure] for row in rows if row["version"] == version and figure in row] for version in sources
        )
        change = 100 * (median(now) / median(before) - 1)
        ranges = (f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})" for values in (before, now))
        print(f"{figure:20} {' -> '.join(ranges)}: {change:+.1f} %")


if __name__ == "__main__":
    main()
