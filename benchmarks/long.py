"""The most memory that `fitv2 sample` takes for one large image, and its seconds, decoded by an autoencoder.

    python benchmarks/long.py --model FiTv2-XL/2 --size 2048x2048

Network and autoencoder (the form of Stable Diffusion's) have random weights, so the image is noise; what it takes is
the same. One unguided step of Euler in bfloat16, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STEP = ["--steps", "1", "--solver", "euler", "--guidance", "1", "--precision", "bf16"]


def write_random_model(name: str, folder: Path) -> None:
    """A model folder of that preset, and an autoencoder beside it."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from contenders import random_model
    from fitv2 import preset
    from fitv2.checkpoints.model_folder import save_pretrained

    channels = (128, 256, 512, 512)
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
    }
    AutoencoderKL(**shape, layers_per_block=2).save_pretrained(folder / "vae")
    config = preset(name)
    weights = random_model(config, torch.device("cpu")).state_dict()
    class_names = [str(number) for number in range(config.num_classes)]
    save_pretrained(folder / "model", config, weights, class_names, [], torch.bfloat16, str(folder / "vae"))


def sample_one(model: Path, size: str, out: Path) -> tuple[float, int]:
    """Seconds, and the most bytes that the process held."""
    start = time.perf_counter()
    options = ["--model", model, "--labels", "1", "--size", size, "--num", "1", "--out", out]
    process = subprocess.Popen([sys.executable, "-m", "fitv2.cli", "sample", *map(str, options), *STEP])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(1)
    return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="FiTv2-XL/2", help="a preset; default FiTv2-XL/2")
    parser.add_argument("--size", default="2048x2048", metavar="HEIGHTxWIDTH", help="in pixels; default 2048x2048")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a new one counts what its parent held before it as its own.
        writer = get_context("spawn").Process(target=write_random_model, args=(args.model, folder))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(1)
        seconds, most = sample_one(folder / "model", args.size, folder / "images")
    print(f"{args.model} at {args.size}: {seconds:.1f} s, {most / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
