"""The command line in a test's own process, and a pipeline with its network.

What a machine cannot run is not collected, so that no test is skipped.
"""

import os
import signal
import sys

# Workers of pytest share the cores; and sums of several threads round otherwise than those of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# A shell that runs the tests in the background has them, and the commands that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("cuda")
elif torch.cuda.device_count() < 2:
    collect_ignore.append("cuda/test_several_gpus.py")


@pytest.fixture
def fitv2(tmp_path, capsys, monkeypatch):
    """`fitv2 ARGUMENTS` in the test's folder: (exit code or sentence, what it printed)."""
    from tiny import command_line  # It loads the trainer, which few tests need.

    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple:
        monkeypatch.setattr(sys, "argv", sys.argv)
        with pytest.raises(SystemExit) as end:
            command_line(*map(str, arguments))
        return end.value.code, capsys.readouterr().out

    return run


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
