"""The command line in the test's folder, and a tiny model, training and images for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Result
from fitv2.checkpoints.model_folder import save_pretrained
from tiny import CLASSES, CONFIG, random_model

SHAPES = [[(28, 8, 7), (24, 8, 2)], *[[(8, 28, 3)]] * 9]
SMALL = [
    *("model.width=32", "model.depth=1", "model.heads=2", "training.steps=4", "training.max_tokens_per_batch=300"),
    *("training.warmup_steps=0", "log.checkpoint_every=2", "log.sample_steps=1"),
]


@pytest.fixture
def fitv2(tmp_path):
    """Runs `fitv2 ARGUMENTS` in the test's own folder."""
    return lambda *arguments: Result(tmp_path, *map(str, arguments))


@pytest.fixture
def train(fitv2):
    """Runs `fitv2 train` of a tiny network on the folder "images"; further settings as section.key=value."""

    def run(*arguments: str, settings=(), data="images") -> Result:
        chosen = [word for setting in [*SMALL, *settings] for word in ("--set", setting)]
        return fitv2("train", "--recipe", "images", "--data", data, "--out", "run", *chosen, *arguments)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, random_model().state_dict(), CLASSES, SHAPES, torch.float32)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """Ten images of two classes, in many sizes, and a file that is none."""
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + 8 * i, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images/cat/broken.jpg").write_bytes(path.read_bytes()[:200])
    return tmp_path / "images"
