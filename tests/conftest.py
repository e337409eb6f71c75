"""The command line, and a pipeline with its network.

What a machine cannot run is not collected, so that no test is skipped.
"""

import os
import signal

# Workers of pytest share the cores; and sums of several threads round otherwise than those of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from commands import run_command

# A shell that runs the tests in the background has them, and the commands that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("cuda")
elif torch.cuda.device_count() < 2:
    collect_ignore.append("cuda/test_several_gpus.py")


@pytest.fixture
def fitv2(tmp_path, capsys, monkeypatch):
    """Runs `fitv2 ARGUMENTS` in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(capsys, *map(str, arguments))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny random model of ten classes; no test may change it."""
    from fitv2.checkpoints.model_folder import save_pretrained
    from tiny import CLASSES, CONFIG, SHAPES, random_model

    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, random_model().state_dict(), CLASSES, SHAPES, torch.float32, step=40)
    return folder


@pytest.fixture
def pipe():
    """The built-in model as a pipeline."""
    from fitv2 import FiTPipeline

    pipe = FiTPipeline.from_pretrained("builtin:fashion")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def transformer():
    """A small random network of latents of four channels."""
    from fitv2 import FiTConfig, FiTTransformer2DModel
    from tiny import random_model

    model = random_model(FiTConfig(width=32, depth=2, heads=2, num_classes=5))
    return FiTTransformer2DModel.from_fit(model, sample_size=8)
