"""Every name of an older version is still understood, in files and on the command line."""

import pytest

from fitv2.legacy import KEYS, PRECISIONS, PREDICTIONS, current_recipe, current_request
from fitv2.model.config import FiTConfig
from fitv2.settings.read import build_recipe

OLD = {
    **{"start_from": "runs/a", "begin_anew": ["labels"], "train_only": "high-resolution", "tokens_per_pack": 7},
    **{"packs_per_step": 3, "decay_share": 0.5, "clip": 0.25, "label_drop": 0.5},
}


def test_old_keys_of_files_and_overrides_are_the_new_ones(caplog):
    """The table has every key once, and names settings that exist."""
    assert {*(f"training.{key}" for key in OLD), "log.tensorboard"} == set(KEYS)  # The last one has a test of its own.
    with caplog.at_level("INFO"):
        of_file = build_recipe({"training": OLD})
        assert not caplog.messages
        overrides = build_recipe({}, [f"training.{key}={value}" for key, value in OLD.items()])
    assert len(caplog.messages) == len(OLD) and "training.clip is called training.max_grad_norm now" in caplog.text
    assert of_file == overrides
    new = {KEYS[f"training.{key}"].partition(".")[2]: value for key, value in OLD.items()}
    assert of_file == build_recipe({"training": new})
    assert of_file.training.changed(*new) == list(new)


def test_an_override_with_either_name_replaces_what_a_file_says():
    for file in ({"clip": 2.0}, {"max_grad_norm": 2.0}):
        for key in ("clip", "max_grad_norm"):
            assert build_recipe({"training": file}, [f"training.{key}=3"]).training.max_grad_norm == 3


@pytest.mark.parametrize(("old", "trackers"), [(True, ("tensorboard",)), (False, ())])
def test_the_old_switch_for_tensorboard(old, trackers):
    assert build_recipe({"log": {"tensorboard": old}}).log.trackers == trackers
    assert build_recipe({}, [f"log.tensorboard={str(old).lower()}"]).log.trackers == trackers


@pytest.mark.parametrize("value", PRECISIONS)
def test_old_precisions(value):
    assert build_recipe({"training": {"precision": value}}).training.precision == "fp32"
    assert build_recipe({}, [f"training.precision={'no' if value is False else value}"]).training.precision == "fp32"


@pytest.mark.parametrize(("old", "new"), PREDICTIONS.items())
def test_old_predictions_in_recipes_and_networks(old, new):
    assert build_recipe({"model": {"prediction": old}}).model.prediction == new
    assert FiTConfig(width=32, depth=1, heads=2, prediction=old).prediction == new


def test_what_older_versions_wrote_without_effect_is_ignored_but_no_other_value():
    flat = {"lora_rank": None, "qk_norm": None, "modulation": None, "prediction": None, "extrapolation": None}
    flat |= {"mlp_ratio": 4.0, "qk_norm_affine": False}
    for architecture in ("FiTv2", "FiT", "DiT", "SiT"):
        assert build_recipe({"model": {"architecture": architecture, **flat}}) == build_recipe(
            {"model": {"architecture": architecture}}
        )
    with pytest.raises(ValueError, match=r"model\.mlp_ratio"):
        build_recipe({"model": {"architecture": "SiT", "mlp_ratio": 3.0}})


def test_other_content_stays_as_it_is():
    tree = {"model": None, "data": 5, "training": {"steps": [1], "unknown": False}}
    assert current_recipe(tree) == {"model": {}, "data": 5, "training": {"steps": [1], "unknown": False}}
    assert current_request({"full_every": 2, "steps": 3}) == {"cache_interval": 2, "steps": 3}
