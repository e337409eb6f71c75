"""Ships a training run as a built-in model: its averaged weights in float16, and how they came about.

python tools/ship_model.py runs/fashion fashion

python tools/ship_model.py runs/drawings drawings --showcase showcase.txt

Writes model.safetensors, config.json and training.json to src/fitv2/builtin/NAME, its autoencoder, if it has one, to
NAME/vae, and the run's sampling.json if there is none yet; the card beside them is written by hand. A run that began
with the weights of builtin:NAME is one more stage in training.json, and keeps its showcase unless another is given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fitv2.checkpoints.model_folder import BUILTIN, SAMPLING, VAE, Example, load_pretrained, save_pretrained
from fitv2.cli.options import parse_size
from fitv2.images.autoencoder import LatentCodec, load_autoencoder, read_factor
from fitv2.system.atomic import write_text
from fitv2.training.log import read_log

BUILT_IN = Path(__file__).parent.parent / "src/fitv2/builtin"
POINTS = 16


def stage_of(run: Path) -> dict[str, Any]:
    """Returns the recipe and the figures of a run."""
    log = read_log(run / "log.jsonl")
    span = max(len(log) // POINTS, 1)
    parts = [log[i : i + span] for i in range(0, len(log), span)]
    losses = [[f["loss"] for f in part if f["loss"] is not None] for part in parts]
    return {
        "recipe": json.loads((run / "recipe.json").read_text()),
        "steps": log[-1]["step"],
        "epochs": log[-1]["epoch"],
        "images_seen": sum(f["images"] for f in log),
        "packing_efficiency": log[-1]["packing_efficiency"],
        "steps_skipped": log[-1]["skipped"],
        "hours": round(log[-1]["seconds"] / 3600, 2),
        "mean_loss_up_to_step": [
            {"step": part[-1]["step"], "loss": round(sum(loss) / len(loss), 4)}
            for part, loss in zip(parts, losses, strict=True)
        ],
        "held_out": [{"step": f["step"], "loss": f["holdout_loss"]} for f in log if "holdout_loss" in f][-POINTS:],
    }


def read_showcase(file: Path, factor: int) -> list[Example]:
    """Returns the prompts of lines such as "64x192 a red apple", with their sizes in latent pixels."""
    lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    sizes = [parse_size(size) for size, _ in lines]
    return [(prompt.strip(), (h // factor, w // factor)) for (_, prompt), (h, w) in zip(lines, sizes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a training run")
    parser.add_argument("name", help="the model becomes builtin:NAME")
    parser.add_argument("--showcase", type=Path, help="a file with what 'fitv2 sample' draws, such as '64x192 a cat'")
    arguments = parser.parse_args()

    pretrained, out, stage = load_pretrained(arguments.run), BUILT_IN / arguments.name, stage_of(arguments.run)
    model, name, stages, showcase = pretrained.model, BUILTIN + arguments.name, [stage], []
    if stage["recipe"]["training"]["init_from"] == name:
        before = json.loads((out / "training.json").read_text())
        stages = [*before.get("stages", [before]), stage]
        showcase = load_pretrained(name).showcase
    if arguments.showcase:
        if pretrained.text_encoder is None:
            parser.error(f"{arguments.run} is not a text-conditioned model, and a showcase is of prompts")
        showcase = read_showcase(arguments.showcase, read_factor(pretrained.autoencoder))
    autoencoder = pretrained.autoencoder
    if autoencoder is not None:
        codec, autoencoder = load_autoencoder(autoencoder, dtype=torch.float16), VAE
        assert isinstance(codec, LatentCodec)
        codec.network.save_pretrained(out / VAE)
        file = out / VAE / "config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        write_text(file, json.dumps(config, indent=1) + "\n")
    save_pretrained(
        out,
        model.config,
        model.state_dict(),
        pretrained.class_names,
        pretrained.shapes,
        torch.float16,
        autoencoder,
        recommended=None if (out / SAMPLING).exists() else pretrained.recommended,
        text_encoder=pretrained.text_encoder,
        examples=pretrained.examples,
        showcase=showcase,
    )
    write_text(out / "training.json", json.dumps({"stages": stages}, indent=1) + "\n")
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*.*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
