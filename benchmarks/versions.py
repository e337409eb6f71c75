"""The speed of another version of fitv2 and of this one, in turn: a forward pass, a training, and `fitv2 sample`.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before/src --repeats 10 --json versions.json

Each measurement is a new process, in float32; the versions take turns, so that drifts of the machine hit both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent.parent / "src"
WARM_UP = 3
# All versions know "no", which is called fp32 now.
SETTINGS = ("training.warmup_steps=2", "training.precision=no", "log.sample_every=null")
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


def measure(source: Path, folder: Path, steps: int) -> dict[str, float]:
    """Returns the tokens per second of a forward pass and of a training, and the seconds of a cold `fitv2 sample`."""
    environment = os.environ | {"PYTHONPATH": str(source)}

    def run(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    forward = float(run("-c", FORWARD))
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"training.steps={steps}")]
    run("-m", "fitv2.cli", "train", "--recipe", "fashion-tiny", "--out", folder / "run", *settings)
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()][WARM_UP:]
    training = sum(line["tokens"] for line in lines) / sum(line["tokens"] / line["tokens_per_second"] for line in lines)
    start = time.perf_counter()
    run("-m", "fitv2.cli", "sample", "--guidance", 2, "--guidance-interval", 0, 1, "--out", folder / "samples")
    seconds = time.perf_counter() - start
    return {"forward, tokens/s": forward, "training, tokens/s": training, "fitv2 sample, s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the src folder of the other version")
    parser.add_argument("--repeats", type=int, choices=range(1, 101), metavar="N", default=5)
    parser.add_argument("--steps", type=int, choices=range(10, 10_001), metavar="N", default=40)
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    args = parser.parse_args()
    if not (args.before / "fitv2").is_dir():
        parser.error(f"there is no package fitv2 in {args.before}")
    rows = []
    for turn in range(args.repeats):
        for version, source in (("before", args.before.resolve()), ("now", HERE)):
            with tempfile.TemporaryDirectory() as name:
                rows.append({"version": version, "turn": turn} | measure(source, Path(name), args.steps))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    for figure in list(rows[0])[2:]:
        before, now = ([row[figure] for row in rows if row["version"] == version] for version in ("before", "now"))
        change = 100 * (median(now) / median(before) - 1)
        ranges = (f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})" for values in (before, now))
        print(f"{figure:20} {' -> '.join(ranges)}: {change:+.1f} %")


if __name__ == "__main__":
    main()
