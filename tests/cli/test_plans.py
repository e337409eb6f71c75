"""What is shown before a training: its plan, and the recipes."""

import os
import re

import pytest

from fitv2.build import build_dataset, build_model_config
from fitv2.profiling.formula import parameters
from fitv2.settings.read import load_recipe, recipe_folder, recipe_names


def test_a_dry_run_shows_configuration_and_cost_and_writes_nothing(train, images, tmp_path):
    shown = train("--dry-run").ok()
    for part in ("learning_rate: 0.002", "parameters ", "10 in 2 classes", "minutes on this machine", "GiB"):
        assert part in shown.out
    figures = train("--dry-run", "--json").json
    assert figures["recipe"]["model"]["width"] == 32 and figures["images"] == 10 and figures["classes"] == 2
    assert all(figures[name] > 0 for name in ("parameters", "flops_per_step", "memory_bytes", "packing_efficiency"))
    assert figures["flops_total"] == 4 * figures["flops_per_step"]
    assert not (tmp_path / "run").exists()


def test_a_plan_names_classes_that_are_not_text(train, images, tmp_path):
    folder = tmp_path / "images"
    next(path for path in sorted(folder.iterdir()) if path.is_dir()).rename(folder / os.fsdecode(b"caf\xe9"))
    assert r"caf\udce9" in train("--dry-run", "--peak-tflops", "1").ok().out


@pytest.mark.parametrize("name", ["imagenet-b", "imagenet-xl", "imagenet-3b", "imagenet-hr-xl", "imagenet-hr-3b"])
def test_the_recipes_of_the_paper_are_planned_without_their_data(fitv2, name):
    """The header's figure of device-hours is what the command in it prints."""
    header = recipe_folder().joinpath(f"{name}.yaml").read_text()
    options = re.search(r"--dry-run (--devices \d+ --peak-tflops \d+)", header).group(1).split()
    shown = fitv2("train", "--recipe", name, "--dry-run", *options).out
    assert "is not here" in shown
    hours = re.search(r"time +([\d,]+) device-hours", shown).group(1)
    assert f"Expected time: {hours} device-hours" in header
    assert 250 < float(re.search(r"images a step +([\d.]+)", shown).group(1)) < 262


def test_the_recipes_are_listed_with_size_and_time(fitv2):
    rows = {row["recipe"]: row for row in fitv2("recipes", "--json").json}
    assert set(rows) == set(recipe_names())
    assert rows["imagenet-xl"]["parameters"] == 671_045_776 and 1200 < rows["imagenet-xl"]["device_hours"] < 1400
    assert all(0 < len(row["about"]) < 80 for row in rows.values())
    assert "FiTv2-XL/2 on ImageNet" in fitv2("recipes").out.replace("\n", " ")
    for name in ("emoji", "emoji-study", "fashion"):  # Their data is here.
        recipe = load_recipe(name)
        data = build_dataset(recipe.data, recipe.model.patch_size, captioned=recipe.model.encoder is not None)
        assert rows[name]["parameters"] == parameters(build_model_config(recipe, data))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.min_scale=0.2", "training.max_tokens_per_batch=9"], "tokens does not fit a pack of 9"),
        (["log.distance_every=2", "log.distance_to=gone"], "there is no folder, archive (.npz) or data set 'gone'"),
    ],
)
def test_a_plan_is_refused_as_the_training_would_be(train, images, settings, told):
    """Even where the images of the first epoch would fit."""
    for arguments in (["--dry-run", "--peak-tflops", "1"], []):
        assert told in train(*arguments, settings=settings).sentence
