"""A tiny training and images for the command line."""

from pathlib import Path

import pytest

from commands import Result
from image_files import saved
from image_folders import noise, write_files

SMALL = [
    *("model.width=32", "model.depth=1", "model.heads=2", "training.steps=4", "training.max_tokens_per_batch=300"),
    *("training.warmup_steps=0", "log.checkpoint_every=2", "log.sample_steps=1"),
]


@pytest.fixture
def train(fitv2):
    """Runs `fitv2 train` of a tiny network on the folder "images"; further settings as section.key=value."""

    def run(*arguments: str, settings=(), data="images") -> Result:
        chosen = [word for setting in [*SMALL, *settings] for word in ("--set", setting)]
        return fitv2("train", "--recipe", "images", "--data", data, "--out", "run", *chosen, *arguments)

    return run


@pytest.fixture
def images(tmp_path) -> Path:
    """Ten images of two classes, in many sizes, and a file that is none."""
    files = {f"{('cat', 'dog')[i % 2]}/{i}.png": saved(noise(16 + 8 * i, 40, i)) for i in range(10)}
    return write_files(tmp_path / "images", files | {"cat/broken.jpg": files["dog/9.png"][:200]})
