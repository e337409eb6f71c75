"""Draws a run's loss, and the scores of its snapshots where given, over the steps of training.

python tools/plot_training.py runs/fashion docs/fashion-training.png 1000=o/1000/result.json 2000=o/2000/result.json ...

The scores are those of `fitv2 evaluate` against fashion:test; the first result in each file is drawn.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SMOOTHED_OVER = 50

run, image, *scored = sys.argv[1:]
log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
log = [figures for figures in log if figures["loss"] is not None]
blocks = [log[i : i + SMOOTHED_OVER] for i in range(0, len(log), SMOOTHED_OVER)]

figure, axes = plt.subplots(1, 3 if scored else 1, figsize=(11 if scored else 4.5, 3), squeeze=False)
loss = axes[0, 0]
loss.plot([b[-1]["step"] for b in blocks], [sum(f["loss"] for f in b) / len(b) for b in blocks])
loss.set(title="training loss", xlabel="step", yscale="log")
if scored:
    pairs = [text.split("=") for text in scored]
    steps = [int(step) for step, _ in pairs]
    results = [json.loads(Path(path).read_text())["results"][0] for _, path in pairs]
    stamp = results[0]["stamp"]
    about = f"{stamp['num']} images, guidance {stamp['sampling']['guidance']:g}"
    axes[0, 1].plot(steps, [result["scores"]["fd"] for result in results], "o-")
    axes[0, 1].set(title="Frechet distance", xlabel="step", yscale="log")
    axes[0, 2].plot(steps, [result["scores"]["accuracy"] for result in results], "o-", label="generated")
    axes[0, 2].axhline(results[0]["real"]["accuracy"], color="grey", linestyle="--", label="real")
    axes[0, 2].set(title="recognised", xlabel="step")
    figure.suptitle(f"scores of {about}", fontsize=9)
    axes[0, 2].legend()
for axis in axes[0]:
    axis.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(image, dpi=110)
print(image)
