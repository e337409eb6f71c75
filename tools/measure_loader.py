"""How fast a prepared set gives packed batches, against how fast FiTv2-B/2 trains on this machine, and what it holds.

    python tools/measure_loader.py DIR [--budget 16384] [--workers 2]

DIR: what `fitv2 prepare` made, of latents with 4 channels for the comparison with training to mean something.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import psutil
import torch

from fitv2.data.loader import DataCursor, PackLoader
from fitv2.data.shards import LatentShards
from fitv2.flow.objective import flow_loss
from fitv2.model.presets import preset
from fitv2.model.transformer import FiT
from fitv2.tokens import TokenBatch

# Enough for the speed of training, and little enough for its memory.
TRAINED_TOKENS = 2048


def load_epochs(data: LatentShards, budget: int, workers: int, epochs: int) -> tuple[list[float], list[int], int]:
    """Seconds of each pack, resident bytes after each epoch, and tokens in all."""
    seconds, held, tokens = [], [], 0
    stream = PackLoader(data, budget, workers=workers).steps(DataCursor())
    while len(held) < epochs:
        start = time.perf_counter()
        step = next(stream)
        seconds.append(time.perf_counter() - start)
        tokens += step.tokens
        if step.after.epoch > len(held):
            held.append(psutil.Process().memory_info().rss)
    stream.close()
    return seconds, held, tokens


def training_seconds(channels: int, steps: int = 3) -> float:
    """Of a training step of FiTv2-B/2 in bfloat16 over images of 16x16 patches."""
    torch.manual_seed(0)
    model = FiT(preset("FiTv2-B/2", in_channels=channels)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = TRAINED_TOKENS // 256
    batch = TokenBatch(torch.randn(TRAINED_TOKENS, model.config.token_channels), [(16, 16)] * images)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(model, batch, torch.zeros(images, dtype=torch.int64), 1000, torch.Generator()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a pack")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    data = LatentShards(args.folder)
    seconds, held, tokens = load_epochs(data, args.budget, args.workers, args.epochs)
    loading = tokens / sum(seconds)
    print(f"{len(data)} images, {args.epochs} epochs of {len(seconds) // args.epochs} packs of {args.budget} tokens")
    print(f"a pack: {1000 * statistics.median(seconds):.1f} ms; {loading:,.0f} tokens a second")
    print("resident after each epoch: " + ", ".join(f"{size / 2**20:.0f} MiB" for size in held))
    training = TRAINED_TOKENS / training_seconds(data.channels)
    print(f"FiTv2-B/2 trains {training:,.0f} tokens a second here: loading is {loading / training:.0f} times as fast")


if __name__ == "__main__":
    main()
