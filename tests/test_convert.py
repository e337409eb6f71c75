"""The authors' checkpoints: keys, files of every kind, and the command that makes model folders of them."""

import json
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fitv2
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.checkpoints.official import official_config, read_official_config
from fitv2.checkpoints.state_dict import read_state_dict
from fitv2.errors import UserError
from fitv2.model.config import FiTv1Config
from golden_fixtures import FOLDER, INDEX, kwargs, load, weights
from tiny import command_line, exit_code

KWARGS = kwargs("f01")
YAML = """
diffusion:
  pretrained_first_stage_model_path: stabilityai/sd-vae-ft-ema
  network_config:
    target: fit.model.fit_model.FiT
    params: {params}
accelerate:
  optimizer:
    betas: ${{tuple:0.9, 0.999}}
"""


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return weights(load("f01"))


@pytest.fixture
def yaml_file(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(YAML.format(params=json.dumps(KWARGS)))
    return path


@pytest.mark.parametrize(
    ("name", "file", "preset"),
    [("fitv2_xl", "xl", "FiTv2-XL/2"), ("fitv2_3B", "3B", "FiTv2-3B/2"), ("fit_xl", "fit_xl", "FiT-XL/2")],
)
def test_published_models_have_the_authors_keys_and_shapes_and_are_presets(name, file, preset):
    expected = json.loads((FOLDER / f"state_dict_{file}.json").read_text())
    config = official_config(INDEX["state_dict_kwargs"][name], shared_modulation=name != "fit_xl")
    with torch.device("meta"):
        model = fitv2.FiT(config)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    ours, theirs = fitv2.preset(preset), official_config(INDEX["state_dict_kwargs"][name])
    assert type(ours) is type(theirs)
    for size in ("width", "depth", "heads", "modulation_rank"):
        assert getattr(ours, size) == getattr(theirs, size)


@pytest.mark.parametrize("fixture", [("f01", "fitv2"), ("f02", "fitv2"), ("f07", "fitv1")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_for_bit(fixture, dtype):
    before = {key: tensor.to(dtype) for key, tensor in weights(load(fixture[0])).items()}
    after = fitv2.to_official(fitv2.from_official(before, **kwargs(*fixture)))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == dtype for key in before)


def test_a_model_of_a_state_dict_does_not_share_its_memory(state):
    model = fitv2.from_official(state, **KWARGS)
    before = state["x_embedder.proj.bias"].clone()
    with torch.no_grad():
        model.x_embedder.proj.bias.add_(1)
    assert torch.equal(state["x_embedder.proj.bias"], before)


def write_shards(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    keys = sorted(state)
    names = {key: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, key in enumerate(keys)}
    for shard in sorted(set(names.values())):
        save_file({key: state[key] for key in keys if names[key] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return index


@pytest.mark.parametrize(
    "kind",
    [
        *("safetensors", "bin", "old bin", "misnamed", "nested", "distributed", "compiled", "averaged"),
        *("index", "folder", "wrapped"),
    ],
)
def test_every_kind_of_file(kind, state, tmp_path):
    path = tmp_path / "checkpoint.bin"
    if kind == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        save_file(state, path)
    elif kind in ("index", "folder", "wrapped"):
        prefix = "module." if kind == "wrapped" else ""
        path = write_shards(tmp_path, {prefix + key: tensor for key, tensor in state.items()})
        path = tmp_path if kind == "folder" else path
    else:
        path = path.with_suffix(".safetensors") if kind == "misnamed" else path
        content = {
            "nested": {"ema": state, "step": 7},
            "distributed": {f"module.{key}": tensor for key, tensor in state.items()},
            "compiled": {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
            "averaged": {f"module.{key}": t for key, t in state.items()} | {"n_averaged": torch.tensor(3)},
        }.get(kind, state)
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old bin")
    loaded = fitv2.to_official(fitv2.from_official(path, **KWARGS))
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("length", [128, 384, 640, 896, 1152, 1408, 19280])
def test_safetensors_whose_first_bytes_are_those_of_a_pickle(length, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    weights = {"weight": torch.arange(6.0)}
    save_file(weights, path, {"note": ""})
    shortest = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(weights, path, {"note": "x" * (length - shortest)})
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert torch.equal(read_state_dict(path)["weight"], weights["weight"])


def test_two_tensors_of_one_name_are_refused(state):
    with pytest.raises(UserError, match="more than once"):
        fitv2.from_official(state | {"_orig_mod.final_layer.linear.bias": torch.zeros(1)}, **KWARGS)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(zipped, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state | {"code": Malicious()}, "evil.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="is refused"):
        fitv2.from_official("evil.bin", **KWARGS)
    Path("plain.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"plain\.bin is refused"):
        fitv2.from_official("plain.bin", **KWARGS)
    assert not Path("executed").exists()


def test_a_conversion_keeps_dtypes_and_overwrites_no_model_or_settings_by_itself(request, state, yaml_file, tmp_path):
    run = request.getfixturevalue("fitv2")  # Here this is the name of the module.
    state["final_layer.linear.bias"] = state["final_layer.linear.bias"].bfloat16()
    save_file(state, tmp_path / "weights.safetensors")
    arguments = ["convert", "--config", yaml_file, "--checkpoint", "weights.safetensors", "--out", "my models"]
    (tmp_path / "my models").mkdir()
    (tmp_path / "my models/sampling.json").write_text("{}")
    assert "sampling.json already" in run(*arguments).sentence
    (tmp_path / "my models/sampling.json").unlink()
    assert "fitv2 sample 'my models'" in run(*arguments).ok().out
    before = (tmp_path / "my models/config.json").stat().st_mtime_ns
    converted = load_file(tmp_path / "my models" / "model.safetensors")
    assert all(converted[key].dtype == state[key].dtype and torch.equal(converted[key], state[key]) for key in state)
    assert "--overwrite" in run(*arguments).sentence
    assert (tmp_path / "my models/config.json").stat().st_mtime_ns == before
    run(*arguments, "--overwrite").ok()
    (tmp_path / "my models/model.safetensors").unlink()  # As of a conversion that was stopped.
    run(*arguments).ok()
    (tmp_path / "my models/model").mkdir()
    assert "folder of a run" in run(*arguments, "--overwrite").sentence


@pytest.mark.parametrize(
    ("kind", "part", "complaint"),
    [
        (fitv2.FiTConfig, {"context": "cross"}, "no model with context='cross'"),
        (fitv2.FiTConfig, {"prediction": "epsilon"}, "no form for FiTv2 with prediction=epsilon"),
        (fitv2.FiTConfig, {"modulation": "full"}, "no form for FiTv2 with modulation=full"),
        (FiTv1Config, {"qk_norm": True}, "no form for FiT with qk_norm=True"),
        (fitv2.FiTConfig, {"internal_head": 1}, "internal_head=1"),
        (fitv2.FiTConfig, {"position_range": 9}, "position_range=9"),
        (fitv2.FiTConfig, {"target_blocks": 1}, "target_blocks=1"),
    ],
)
def test_models_that_the_authors_do_not_have_are_refused(kind, part, complaint):
    config = kind(width=32, depth=2, heads=2, **part)
    with pytest.raises(ValueError, match=complaint):
        fitv2.to_official(fitv2.FiT(config))
    with pytest.raises(ValueError, match=complaint):
        fitv2.official_kwargs(config)


def test_wrong_keys_and_shapes_are_listed(state):
    del state["blocks.0.attn.qkv.bias"]
    state["pos_embed"] = torch.zeros(3)
    state["final_layer.linear.bias"] = torch.zeros(17)
    with pytest.raises(ValueError, match=r"\(17,\).*missing .*unexpected"):
        fitv2.from_official(state, **KWARGS)
    with pytest.raises(ValueError, match=r"\(32, 16\).*\(64, 16\)"):
        fitv2.from_official(state, **KWARGS | {"hidden_size": 64})


@pytest.mark.parametrize(("call", "model"), [(call, model) for call, of in INDEX["kwargs"].items() for model in of])
def test_arguments_come_back(call, model):
    """What the authors' code was built with is in what we say that it must be built with."""
    given = kwargs(call, model)
    config = official_config(given)
    back = fitv2.official_kwargs(config)
    assert official_config(back) == config
    told = given.keys() - {"context_size", "class_dropout_prob", "time_shifting"}
    assert {name: back[name] for name in told} == {name: given[name] for name in told}


def test_extrapolations_come_back_where_the_authors_have_them():
    config = fitv2.preset("FiTv2-B/2")
    with pytest.raises(ValueError, match=r"ntk-aware .* paper"):
        fitv2.official_kwargs(replace(config, rope=config.rope.named("vision-ntk", "paper")))
    online = config.rope.named("vision-yarn")
    for rope in (online, replace(online, target=(10, 30))):
        assert official_config(fitv2.official_kwargs(replace(config, rope=rope))).rope == rope


@pytest.mark.parametrize("value", [torch.nan, torch.inf, None])
def test_weights_that_are_no_numbers_are_refused(state, value):
    bias = state["final_layer.linear.bias"]
    state["final_layer.linear.bias"] = bias.long() if value is None else torch.full_like(bias, value)
    with pytest.raises(ValueError, match=r"final_layer\.linear\.bias"):
        fitv2.from_official(state, **KWARGS)


def test_keys_that_are_no_text_are_refused(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "c.bin")
    with pytest.raises(ValueError, match="state dict"):
        fitv2.from_official(tmp_path / "c.bin", **KWARGS)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"q_norm": None}, r"q_norm=None is not FiTv2, which has q_norm='layernorm'"),
        ({"norm_type": "rmsnorm"}, "norm_type='rmsnorm' is not FiTv2"),
        ({"depths": 3}, "the argument depths is not known here"),
        ({"custom_freqs": "ntk"}, "custom_freqs='ntk' is not known here; known are normal, linear"),
        ({"custom_freqs": None}, "custom_freqs=None is not known here"),
        ({"hidden_size": "32"}, "hidden_size is '32': .* valid integer"),
        ({"num_heads": 0}, "num_heads is 0: .* greater than 0"),
        ({"depth": 10_000_000}, "depth=10000000, and the checkpoint has 2 blocks"),
        ({"rope_theta": None}, "rope_theta is None: .* valid number"),
        ({"rope_theta": 0}, "rope_theta is 0: .* greater than 0"),
        ({"mlp_ratio": "a"}, "mlp_ratio is 'a': .* valid number"),
        ({"decouple": "no"}, "decouple is 'no': .* valid boolean"),
        ({"context_size": 0}, "context_size is 0: .* greater than 0"),
        ({"ori_max_pe_len": "16"}, "ori_max_pe_len is '16': .* valid integer"),
        ({"adaln_lora_dim": -3}, "adaln_lora_dim is -3: .* greater than 0"),
        ({"state": 1}, "the argument state is not known here"),
        ({"shared_modulation": 1}, "the argument shared_modulation is not known here"),
        ({"custom_freqs": "yarn"}, "needs ori_max_pe_len"),
        ({"custom_freqs": "yarn", "ori_max_pe_len": 16}, "needs max_pe_len_h and max_pe_len_w, or online_rope"),
    ],
)
def test_what_is_another_network_is_refused(changes, complaint, state):
    with pytest.raises(ValueError, match=complaint):
        fitv2.from_official(state, **KWARGS | changes)
    with pytest.raises(ValueError, match="depth is missing"):
        fitv2.from_official(state, hidden_size=32, num_heads=2)


def test_the_family_is_told_by_arguments_or_else_by_keys(state):
    sizes = {name: KWARGS[name] for name in ("hidden_size", "depth", "num_heads", "num_classes", "adaln_lora_dim")}
    assert type(fitv2.from_official(state, **sizes).config) is fitv2.FiTConfig
    first = weights(load("f07"))
    assert type(fitv2.from_official(first, **sizes).config) is FiTv1Config
    with pytest.raises(ValueError, match="global_adaLN_modulation"):
        fitv2.from_official(first, **sizes, use_sit=True)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.bin", None, "there is no file"),
        ("garbage.bin", b"garbage", "cannot be read"),
        ("half.bin", b"\x80\x02.", "cannot be read"),
        ("itself.index.json", b'{"weight_map": {"a": "itself.index.json"}}', "no file of its own folder"),
        ("number.index.json", b'{"weight_map": {"a": 7}}', "there is no file"),
        ("garbage.safetensors", b"garbage", "cannot be read"),
        ("garbage.index.json", b"{}", "cannot be read"),
        ("away.index.json", b'{"weight_map": {"a": "../a.safetensors"}}', "no file of its own folder"),
    ],
)
def test_damaged_files_are_said_in_a_sentence(name, content, complaint, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        fitv2.from_official(tmp_path / name, **KWARGS)


def test_a_missing_shard_and_a_shard_that_lacks_keys(state, tmp_path):
    index = write_shards(tmp_path, state)
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"lack blocks"):
        fitv2.from_official(index, **KWARGS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no file"):
        fitv2.from_official(index, **KWARGS)


def test_the_yaml_files_of_the_authors(yaml_file, tmp_path):
    assert read_official_config(yaml_file) == (KWARGS, "stabilityai/sd-vae-ft-ema")
    for text, complaint in (("a: b", "no diffusion.network_config.params"), ("a: [", "is not valid YAML")):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(ValueError, match=complaint):
            read_official_config(tmp_path / "other.yaml")


def test_the_command_makes_a_folder_that_samples_the_same(request, state, yaml_file, tmp_path):
    run = request.getfixturevalue("fitv2")  # Here this is the name of the module.
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    files = ("--config", yaml_file, "--checkpoint", "pytorch_model.bin", "--labels", "names.txt")
    assert "FiTv2 of 0.0 M parameters" in run("convert", *files, "--out", "model").ok().out
    converted = load_pretrained(tmp_path / "model")
    assert converted.autoencoder == "stabilityai/sd-vae-ft-ema" and converted.class_names == list("abcdefghij")
    assert converted.shapes == [[(32, 32, 1)]]
    assert all(torch.equal(tensor, state[key]) for key, tensor in converted.model.state_dict().items())


def convert_and_report_memory(folder: str) -> None:
    before, path = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Path(folder)
    arguments = ["convert", "--config", str(path / "c.yaml"), "--checkpoint", str(path / "c.safetensors")]
    try:
        command_line(*arguments, "--out", str(path / "out"))
    finally:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (path / "memory.json").write_text(json.dumps((after - before) * 1024))


def test_conversion_holds_one_copy_of_the_weights(tmp_path):
    changes = {"hidden_size": 512, "depth": 12, "num_heads": 8, "adaln_lora_dim": None}
    model = fitv2.FiT(official_config(KWARGS | changes))
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    (tmp_path / "c.yaml").write_text(YAML.format(params=json.dumps(KWARGS | changes)))
    assert exit_code(convert_and_report_memory, str(tmp_path)) == 0
    size = (tmp_path / "c.safetensors").stat().st_size
    assert (tmp_path / "out" / "model.safetensors").stat().st_size >= size
    assert 0.5 * size < json.loads((tmp_path / "memory.json").read_text()) < 1.4 * size
