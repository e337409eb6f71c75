"""Draws a run's loss, and the scores of its snapshots where given, over the steps of training.

python tools/plot_training.py runs/fashion docs/fashion-training.png 1000=scores-1000.json 2000=scores-2000.json ...

The scores are the --json output of tools/score_model.py; the first guidance scale in each is drawn.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SMOOTHED_OVER = 50

run, picture, *scored = sys.argv[1:]
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
    scores = [json.loads(Path(path).read_text())["scores"][0] for _, path in pairs]
    sampling = scores[0]["sampling"]
    about = f"{scores[0]['num_images']} pictures, guidance {sampling['guidance']:g}"
    axes[0, 1].plot(steps, [s["distance"] for s in scores], "o-")
    axes[0, 1].set(title="Frechet distance", xlabel="step", yscale="log")
    axes[0, 2].plot(steps, [s["recognised"] for s in scores], "o-", label="made")
    axes[0, 2].axhline(scores[0]["recognised_real"], color="grey", linestyle="--", label="real")
    axes[0, 2].set(title="recognised", xlabel="step")
    figure.suptitle(f"scores of {about}", fontsize=9)
    axes[0, 2].legend()
for axis in axes[0]:
    axis.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(picture, dpi=110)
print(picture)
