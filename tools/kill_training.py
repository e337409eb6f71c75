"""Ends a training by a signal at random moments, resumes it each time, and compares it with one that nobody ended.

python tools/kill_training.py --kills 20
python tools/kill_training.py --kills 20 --signal INT
python tools/kill_training.py --kills 20 --processes 2 --sharding fsdp

A short run of a tiny network on the built-in garments; with several processes, torchrun starts them and one is killed.
Exit code 0 when log, weights, averages, moments and exported model are the same to the last bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from fitv2.checkpoints.training_state import checkpoints, read_part

STEPS = 150
SETTINGS = [
    *(
        "model.width=32",
        "model.depth=2",
        "model.heads=2",
        "training.max_tokens_per_batch=512",
        "training.batches_per_step=4",
    ),
    *(f"training.steps={STEPS}", "training.warmup_steps=10", "training.decay_fraction=0.3"),
    *("log.checkpoint_every=2", "log.sample_every=50", "log.sample_steps=2"),
]
CLOCK = ("seconds", "cpu_seconds", "tokens_per_second")


def start(run: Path, processes: int, sharding: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [word for s in [*SETTINGS, f"training.sharding={sharding}"] for word in ("--set", s)]
    command = ["-m", "fitv2.cli", "train", "--recipe", "fashion-tiny", "--resume", "--out", str(run), *words]
    before = launcher if processes > 1 else []
    return subprocess.Popen([sys.executable, *before, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(run: Path, processes: int, sharding: str) -> None:
    started = start(run, processes, sharding)
    output, _ = started.communicate()
    if started.returncode:
        sys.exit(f"the training failed with {started.returncode}:\n{output.decode()}")


def lines(run: Path) -> list[str]:
    return (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []


def kill_once(run: Path, processes: int, sharding: str, moments: random.Random, number: signal.Signals) -> int:
    """Waits for some new steps, then a moment more, and kills; returns the step that was reached."""
    target = len(lines(run)) + moments.randint(0, 6)
    started = start(run, processes, sharding)
    while started.poll() is None and len(lines(run)) <= target:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.05))
    members = psutil.Process(started.pid).children() if processes > 1 else [psutil.Process(started.pid)]
    moments.choice(members).send_signal(number)
    started.communicate()
    return len(lines(run))


def difference(run: Path, other: Path) -> str | None:
    """What differs between two finished runs."""
    logs = [[{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines(r)] for r in (run, other)]
    if logs[0] != logs[1] or len(logs[0]) != STEPS:
        return "the logs"
    newest, expected = (checkpoints(r / "checkpoints")[-1] for r in (run, other))
    for part in ("model", "ema", "optimizer"):
        tensors, others = read_part(newest, part, {}), read_part(expected, part, {})
        if tensors.keys() != others.keys() or not all(torch.equal(tensors[name], others[name]) for name in others):
            return part
    file = "model/model.safetensors"
    return None if (run / file).read_bytes() == (other / file).read_bytes() else file


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--sharding", choices=["none", "fsdp"], default="none")
parser.add_argument("--signal", choices=["KILL", "INT", "TERM"], default="KILL")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
how = options.processes, options.sharding
with tempfile.TemporaryDirectory() as folder:
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    finish(whole, *how)
    moments = random.Random(options.seed)
    reached = [kill_once(killed, *how, moments, signal.Signals[f"SIG{options.signal}"]) for _ in range(options.kills)]
    finish(killed, *how)
    print(f"ended {options.kills} times, at the steps {reached}, then run to step {STEPS}")
    differs = difference(killed, whole)
if differs:
    sys.exit(f"{differs} differ from those of the run that was not killed")
print("weights, averages, optimiser, log and model are those of the run that was not killed, to the last bit")
