"""Small real parts for the tests: a network with no weight zero, and data and recipes that train in milliseconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from fitv2.build import build_base, build_model_config
from fitv2.data.fashion import CLASS_NAMES, Fashion
from fitv2.distributed.ranks import destroy_process_group
from fitv2.model.config import FiTConfig, NetworkConfig
from fitv2.model.network import Network, build_network
from fitv2.settings.read import build_recipe
from fitv2.settings.recipe import Recipe
from fitv2.training.trainer import Distance, Trainer

CONFIG = FiTConfig(width=32, depth=2, heads=2, patch_size=4, in_channels=1, num_classes=10)
CLASSES = CLASS_NAMES
# Sizes of images of each class, with their numbers, of most models that the tests save.
SHAPES = [[(28, 8, 7), (24, 8, 2)], *[[(8, 28, 3)]] * 9]
# What a log line says about the clock, which is never the same twice.
CLOCK = ("seconds", "cpu_seconds", "tokens_per_second", "holdout_seconds")

# Everything that the paper does not have.
MODERN = (
    *("model.prediction=data", "model.internal_head=1", "model.position_range=12"),
    *("training.shift_tokens=16", "training.optimizer=muon", "training.weight_decay=0.1"),
)


def random_model(config: NetworkConfig = CONFIG, seed: int = 0) -> Network:
    """A fresh model predicts zero whatever it is asked; this one does not."""
    torch.manual_seed(seed)
    model = build_network(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def garments(number: int = 60, seed: int = 0, **budget) -> Fashion:
    """Noise in the sizes of garments: sides of 4 to 28 pixels; max_tokens and preprocessing as of `Fashion`."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, (number, 2)) * 4
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes.tolist()]
    return Fashion(images, rng.integers(0, len(CLASSES), number), **budget)


def recipe(*overrides: str) -> Recipe:
    """Ten steps of a network of width 32 over two packs each, in float32, with a checkpoint in the middle."""
    training = {"steps": 10, "max_tokens_per_batch": 200, "batches_per_step": 2, "learning_rate": 3e-3}
    training |= {"warmup_steps": 0, "precision": "fp32", "workers": 1}
    log = {"checkpoint_every": 5, "sample_every": 1000, "sample_steps": 1}
    model = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}
    return build_recipe({"model": model, "training": training, "log": log}, overrides)


def trainer(run: Path, *overrides: str, dataset: Fashion | None = None, distance: Distance | None = None) -> Trainer:
    """A new trainer of the recipe's network."""
    chosen, dataset = recipe(*overrides), dataset or garments()
    base = build_base(chosen.training)
    return Trainer(chosen, dataset, build_model_config(chosen, dataset, base), run, base, distance=distance)


def stop_at(step: int):
    """A `report` that ends the run as Ctrl-C would, before a checkpoint of that step."""

    def report(figures):
        if figures["step"] == step:
            raise KeyboardInterrupt

    return report


def log_lines(run: Path) -> list[dict]:
    """The log without what the clock says, read as strict JSON."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def process(target, *arguments) -> BaseProcess:
    """A started process of its own. It is forked from a server that has imported torch once, which saves seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "fitv2.prepare.run", "diffusers.models.autoencoders.autoencoder_kl"]
    )
    started = context.Process(target=target, args=arguments)
    started.start()
    return started


def command_line(*arguments: str) -> None:
    """`fitv2 ARGUMENTS`, for `process`."""
    from fitv2.cli import main

    sys.argv = ["fitv2", *arguments]
    try:
        main()
    finally:
        if multiprocessing.parent_process():  # Whose forkserver would turn a later Ctrl-C into exit code 1.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def exit_code(target, *arguments) -> int | None:
    """Of a process of its own, at its end."""
    child = process(target, *arguments)
    child.join()
    return child.exitcode


def processes(world: int, target, *arguments) -> list[BaseProcess]:
    """Started processes that work together over gloo, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [process(as_one_of, world, rank, port, target, *arguments) for rank in range(world)]


def exit_codes(started: list[BaseProcess], timeout: float = 100) -> list[int | None]:
    for member in started:
        member.join(timeout)
    return [member.exitcode for member in started]


def run_together(world: int, target, *arguments, timeout: float = 100) -> None:
    """`processes` to their end, which must be a good one."""
    codes = exit_codes(processes(world, target, *arguments), timeout)
    assert codes == [0] * world, codes


def as_one_of(world: int, rank: int, port: int, target, *arguments) -> None:
    """One of `world` processes, for `process`."""
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank}
    # One thread each: more than there are cores would wait for each other.
    os.environ.update({key: str(value) for key, value in addresses.items()} | {"OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    target(*arguments)
    destroy_process_group()


def train(run: Path, *overrides: str) -> Trainer:
    """The trainer of a whole run, at its end; for `processes` too."""
    finished = trainer(run, *overrides)
    finished.fit(lambda figures: None)
    return finished


def small_blocks() -> dict:
    """The blocks of a small AutoencoderKL, 8 pixels a latent pixel."""
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 32, **types}


def tiny_autoencoder():
    """A real AutoencoderKL of random weights, 8 pixels a latent pixel."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(**small_blocks(), latent_channels=4, scaling_factor=0.5, shift_factor=0.1).eval()
