"""`fitv2 plot`: pictures of runs, and what is said of folders that are none."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fitv2.training.plots import panels


@pytest.fixture
def run(tmp_path):
    """A log as a training leaves it, whose last line was not finished."""
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, 501):
        line = {"step": step, "loss": 1 / step, "grad_norm": None if step == 7 else 0.5, "images": 30}
        line |= {"learning_rate": 1e-3, "tokens_per_second": 1e4}
        if step % 100 == 0:
            line |= {"holdout_loss": 0.2, "holdout_loss/time_0.00-0.25": 0.3, "holdout_loss/tokens_9-49": 0.1}
        lines.append(json.dumps(line) + "\n")
    (folder / "log.jsonl").write_text("".join([*lines, '{"step": 501, "lo']))
    return folder


def test_one_run_and_two_side_by_side(fitv2, run, tmp_path):
    assert "Drawn in runs/mine/plot.png" in fitv2("plot", "runs/mine").ok().out
    shutil.copytree(run, tmp_path / "other/mine")
    log = tmp_path / "other/mine/log.jsonl"
    log.write_text(log.read_text().replace('"holdout_loss": 0.2', '"holdout_loss": 0.4'))
    fitv2("plot", "runs/mine", "other/mine", "--out", "both.png").ok()
    pages = []
    for name in ("runs/mine/plot.png", "both.png"):
        with Image.open(tmp_path / name) as page:
            pages.append(np.asarray(page.convert("RGB"), int))
    assert pages[0].shape == pages[1].shape and min(pages[0].shape[:2]) > 800
    assert (pages[0] != pages[1]).any(), "the second run has lines and names of its own"


def test_figures_that_are_not_positive_are_drawn(fitv2, run):
    log = run / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()[:-1]]
    kept = [line | {"grad_norm": None, "kid": 0.1 - 0.3 * (line["step"] % 2)} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert "Drawn in runs/mine/plot.png" in fitv2("plot", "runs/mine").ok().out
    scales = {}
    for draw in panels({"mine": kept}):
        axes = Figure().add_subplot()
        draw(axes)
        scales[axes.get_title()] = axes.get_yscale()
    assert scales["kernel distance to real images"] == scales["gradient norm (smoothed)"] == "linear"
    assert scales["training loss (smoothed)"] == "log"


def test_a_picture_is_replaced_only_on_request(fitv2, run, tmp_path):
    (tmp_path / "my.png").write_text("precious")
    assert "--out my.png is there already" in fitv2("plot", "runs/mine", "-o", "my.png").sentence
    assert (tmp_path / "my.png").read_text() == "precious"
    fitv2("plot", "runs/mine", "-o", "my.png", "--overwrite").ok()
    (run / "plot.png").write_text("its own, which is replaced")
    fitv2("plot", "runs/mine").ok()
    assert Image.open(run / "plot.png").format == "PNG"
    assert "--out runs is a folder; name a PNG file" in fitv2("plot", "runs/mine", "-o", "runs").sentence


def test_folders_that_are_no_runs(fitv2, run, tmp_path):
    assert "there is no folder nowhere: name" in fitv2("plot", "nowhere").sentence
    assert "did you mean runs/mine?" in fitv2("plot", "runs/mien").sentence
    assert "it holds no log.jsonl; name one of runs/mine" in fitv2("plot", "runs").sentence
    (tmp_path / "runs/none").mkdir()
    assert "it holds no log.jsonl; name the folder" in fitv2("plot", "runs/none").sentence
    assert "the same run is given twice" in fitv2("plot", "runs/mine", "runs/../runs/mine").sentence
    (run / "log.jsonl").write_text('{"loss": 1}\nnothing\n')
    assert "runs/mine/log.jsonl holds no step yet" in fitv2("plot", "runs/mine").sentence
    assert not (run / "plot.png").exists()
