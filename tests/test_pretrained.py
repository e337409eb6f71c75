"""Model folders: what is saved comes back, and what is damaged or missing is said in a sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained
from fitv2.errors import UserError
from fitv2.finite import NotFinite
from fitv2.model.config import FiTConfig, FiTv1Config
from tiny import CLASSES, CONFIG, SHAPES, random_model


def save(folder, dtype=torch.float32, config=CONFIG, names=CLASSES, shapes=SHAPES):
    model = random_model(config)
    save_pretrained(folder, config, model.state_dict(), names, shapes, dtype)
    return model


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_comes_back(tmp_path):
    config = FiTConfig(width=24, depth=1, heads=2, patch_size=2, in_channels=3, num_classes=10, lora_rank=5)
    model = save(tmp_path / "deep" / "model", config=config)
    loaded = load_pretrained(tmp_path / "deep" / "model")
    assert loaded.model.config == config
    assert loaded.class_names == CLASSES and loaded.shapes == SHAPES
    assert not loaded.model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert sorted(path.name for path in (tmp_path / "deep" / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", [FiTConfig, FiTv1Config])
def test_parts_come_back_and_those_of_older_folders_are_their_architectures(tmp_path, kind):
    sizes = {"width": 24, "depth": 1, "heads": 2, "num_classes": 10}
    mixed = kind(**sizes, qk_norm=kind is FiTv1Config, modulation="full", prediction="velocity")
    for folder, config in (("mixed", mixed), ("old", kind(**sizes))):
        save(tmp_path / folder, config=config)
    file = tmp_path / "old" / "config.json"
    content = json.loads(file.read_text())
    for part in ("qk_norm", "modulation", "prediction"):
        del content["model"][part]
    file.write_text(json.dumps(content))
    assert load_pretrained(tmp_path / "mixed").model.config == mixed
    assert load_pretrained(tmp_path / "old").model.config == kind(**sizes)


def test_weights_saved_in_half_the_bytes_are_float32_when_loaded(tmp_path, folder):
    model = save(tmp_path / "half", torch.bfloat16)
    loaded = load_pretrained(tmp_path / "half").model.state_dict()
    half, whole = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "model"))
    assert half < 0.6 * whole
    for name, weight in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.bfloat16().float())


def test_a_run_is_its_model_and_a_checkpoint_its_averaged_weights(folder):
    loaded = load_pretrained(folder.parent)
    assert loaded.classes.number(CLASSES[3]) == loaded.classes.number("3") == 3
    averaged = random_model(seed=5).state_dict()
    checkpoint = folder.parent / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    save_file(averaged, checkpoint / "ema.safetensors")
    loaded = load_pretrained(checkpoint)
    assert loaded.shapes == SHAPES
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in loaded.model.state_dict().items())


def test_saving_over_a_model_leaves_the_loaded_one_alone(folder):
    loaded = load_pretrained(folder)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    save_pretrained(folder, CONFIG, random_model(seed=9).state_dict(), CLASSES, SHAPES, torch.float32)
    assert all(torch.equal(before[name], weight) for name, weight in loaded.model.state_dict().items())
    assert not torch.equal(before["x_embedder.proj.weight"], load_pretrained(folder).model.x_embedder.proj.weight)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_models_that_are_not_there_or_not_complete(folder, missing):
    (folder / missing).unlink()
    for name in ("nowhere", "builtin:nothing", folder):
        what = rf".*(config\.json|{missing})" if name == folder else f"folder {name}"
        with pytest.raises(ValueError, match=rf"{name} is not a model: there is no {what}"):
            load_pretrained(name)


@pytest.mark.parametrize(
    "content",
    ["", '{"format": 1, "mod', "[]", "{}", '{"model": {"width": 8}}', '{"model": {"width": 8, "colour": 3}}', "\xff"],
)
def test_a_damaged_config(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"the model .* is damaged"):
        load_pretrained(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_cut_off_weights(folder, share):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"the model .* is damaged.*copy or train it again"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": {"depth": 3}}, r"missing blocks\.2\."),
        ({"model": {"depth": 1}}, r"unexpected blocks\.1\."),
        ({"model": {"depth": 2.0}}, "of another model"),
        ({"model": {"heads": 0}}, r"the model .* is damaged"),
        ({"class_names": CLASSES[:2]}, "it names 2 of 10 classes"),
        ({"shapes": [[[28, 28]]]}, "is damaged"),
        ({"shapes": [[["tall", "wide", 1]]]}, "is damaged"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(folder, changes, problem):
    config = json.loads((folder / "config.json").read_text())
    changes = {key: config[key] | value if key == "model" else value for key, value in changes.items()}
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=problem):
        load_pretrained(folder)


def test_weights_that_are_no_floating_point_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.int() for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"torch\.int32"):
        load_pretrained(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["final_layer.linear.bias"][1] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NotFinite, match=r"final_layer\.linear\.bias"):
        load_pretrained(folder)


@pytest.mark.parametrize(("part", "wrapped"), [("", "_orig_mod."), ("", "module."), ("attn.", "attn._orig_mod.")])
def test_names_that_wrappers_of_torch_have_changed(folder, part, wrapped):
    weights = load_file(folder / "model.safetensors")
    renamed = {key.replace(part, wrapped, 1): tensor for key, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    loaded = load_pretrained(folder).model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())


def test_the_only_label_of_a_model_without_classes(tmp_path):
    save(tmp_path, config=FiTConfig(**{**vars(CONFIG), "num_classes": 0}), names=[], shapes=[[(8, 8, 1)]])
    pretrained = load_pretrained(tmp_path)
    assert pretrained.classes.number("0") == pretrained.model.config.null_label == 0
    for name in ("1", "-1", "1.0", "", "Bag"):
        with pytest.raises(ValueError, match="no classes"):
            pretrained.classes.number(name)
