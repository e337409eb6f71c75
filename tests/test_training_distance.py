"""The distance to real images during a training."""

import json
from pathlib import Path

import pytest
import torch

from fitv2.build import sampling_advice
from fitv2.errors import UserError
from fitv2.evaluation.during_training import TrainingDistance
from fitv2.training.log import read_log
from fitv2.training.plots import panels
from tiny import log_lines, recipe, trainer


def test_distances_are_measured_on_their_steps_and_change_nothing_else(tmp_path):
    seen = []

    def distance(model: Path) -> dict[str, float]:
        seen.append(json.loads((model / "config.json").read_bytes())["step"])
        return {"fd": 100.0 - seen[-1], "kid": 1.0}

    trainer(tmp_path / "with", "log.distance_every=4", distance=distance).fit(lambda figures: None)
    trainer(tmp_path / "without").fit(lambda figures: None)
    assert seen == [4, 8, 10]
    lines, plain = log_lines(tmp_path / "with"), log_lines(tmp_path / "without")
    assert {line["step"]: line["fd"] for line in lines if "fd" in line} == {4: 96.0, 8: 92.0, 10: 90.0}
    assert [{key: v for key, v in line.items() if key not in ("fd", "kid")} for line in lines] == plain
    logs = {name: read_log(tmp_path / name / "log.jsonl") for name in ("with", "without")}
    assert len(panels(logs)) == len(panels({"without": logs["without"]})) + 2


def gone(model: Path) -> dict[str, float]:
    raise UserError("the real images are gone")


def too_large(model: Path) -> dict[str, float]:
    return {"fd": float(torch.empty(2**46).sum())}


@pytest.mark.parametrize(("distance", "told"), [(gone, "the real images are gone"), (too_large, "memory")])
def test_a_distance_that_cannot_be_measured_is_a_warning(tmp_path, caplog, distance, told):
    run = trainer(tmp_path, "log.distance_every=4", distance=distance)
    run.fit(lambda figures: None)
    (warning,) = (text for text in caplog.messages if text.startswith("no distance at step 4: "))
    assert run.progress.done == 10 and told in warning


def test_passes_of_a_base_are_not_those_of_a_model_of_other_sizes():
    advice = {"guidance": 1.8, "upscale_from": 49, "upscale_side": 7, "upscale_time": 0.7}
    assert sampling_advice(recipe().training, advice) == {"guidance": 1.8}


def test_a_model_in_training_is_compared_with_real_images(tmp_path, monkeypatch):
    monkeypatch.setenv("FITV2_CACHE", str(tmp_path / "cache"))
    trainer(tmp_path / "run", "training.steps=1").fit(lambda figures: None)
    distance = TrainingDistance("fashion", 20, torch.device("cpu"))
    found = distance(tmp_path / "run" / "model")
    assert found.keys() == {"fd", "kid", "accuracy"} and found["fd"] > 20 and 0 <= found["accuracy"] <= 1
    assert found == distance(tmp_path / "run" / "model")
    good = distance(Path("builtin:fashion"))
    assert good["fd"] < found["fd"] / 4 and good["accuracy"] > 0.7


def test_a_reference_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        TrainingDistance(str(tmp_path / "nowhere"), 30, torch.device("cpu"))
    with pytest.raises(UserError, match="distance_images"):
        recipe("log.distance_images=3")
