"""Ships a finished run of the recipe `fashion` as builtin:fashion: float16 weights, and the figures of its card.

python tools/ship_fashion.py runs/fashion

Writes src/fitv2/builtin/fashion/{model.safetensors, config.json, training.json}; the card beside them is written by
hand from training.json and from the output of `fitv2 evaluate`.
"""

import json
import sys
from pathlib import Path

import torch

from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained

POINTS = 16

run = Path(sys.argv[1])
out = Path(__file__).parent.parent / "src/fitv2/builtin/fashion"
pretrained = load_pretrained(run)
model = pretrained.model
save_pretrained(out, model.config, model.state_dict(), pretrained.class_names, pretrained.shapes, torch.float16)

log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
span = max(len(log) // POINTS, 1)
parts = [log[i : i + span] for i in range(0, len(log), span)]
losses = [[f["loss"] for f in part if f["loss"] is not None] for part in parts]
curve = [
    {"step": part[-1]["step"], "loss": round(sum(loss) / len(loss), 4)}
    for part, loss in zip(parts, losses, strict=True)
]
figures = {
    "recipe": json.loads((run / "recipe.json").read_text()),
    "steps": log[-1]["step"],
    "epochs": log[-1]["epoch"],
    "images_seen": sum(f["images"] for f in log),
    "packing_efficiency": log[-1]["packing_efficiency"],
    "steps_skipped": log[-1]["skipped"],
    "hours": round(log[-1]["seconds"] / 3600, 2),
    "mean_loss_up_to_step": curve,
}
(out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB")
