"""The most memory that `fitv2 sample` takes for one large image, and its seconds.

    python benchmarks/long.py --model FiTv2-XL/2 --size 2048x2048
    python benchmarks/long.py --model pixels --size 64x64 --size 512x512 --precision fp32
    python benchmarks/long.py --model pixels --size 256x4096 --window 128x128 --precision fp32

A preset is decoded by an autoencoder (the form of Stable Diffusion's); "pixels" is a small network of colour pixels in
patches of 8x8, as the recipe `emoji` has it. The weights are random, so the image is noise; what it takes is the same.
One unguided step of Euler, in a process of its own.
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

STEP = ["--steps", "1", "--solver", "euler", "--guidance", "1"]
PIXELS = {"in_channels": 3, "patch_size": 8, "width": 256, "depth": 8, "heads": 4, "num_classes": 10}


def write_random_model(name: str, folder: Path) -> None:
    """A model folder of that preset, and an autoencoder beside it; or of a small network of pixels."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from contenders import random_model
    from fitv2 import FiTConfig, preset
    from fitv2.checkpoints.model_folder import save_pretrained

    if name == "pixels":
        small = FiTConfig(**PIXELS)
        weights = random_model(small, torch.device("cpu")).state_dict()
        save_pretrained(folder / "model", small, weights, list("0123456789"), [], torch.float32)
        return
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


def sample_one(model: Path, size: str, out: Path, further: list[str]) -> tuple[float, int]:
    """Seconds, and the most bytes that the process held."""
    start = time.perf_counter()
    options = [model, "--labels", "1", "--size", size, "--num-images", "1", "--out", out, *further]
    process = subprocess.Popen([sys.executable, "-m", "fitv2.cli", "sample", *map(str, options), *STEP])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(1)
    return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="FiTv2-XL/2", help="a preset, or pixels; default FiTv2-XL/2")
    parser.add_argument("--size", action="append", metavar="HEIGHTxWIDTH", help="in pixels, repeatable; 2048x2048")
    parser.add_argument("--window", metavar="HEIGHTxWIDTH", help="sample in windows of this size")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    args = parser.parse_args()
    further = ["--precision", args.precision, *(["--window", args.window] if args.window else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a new one counts what its parent held before it as its own.
        writer = get_context("spawn").Process(target=write_random_model, args=(args.model, folder))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(1)
        for size in args.size or ["2048x2048"]:
            seconds, most = sample_one(folder / "model", size, folder / size, further)
            print(f"{args.model} at {size}: {seconds:.1f} s, {most / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
