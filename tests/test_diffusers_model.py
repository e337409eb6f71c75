"""The network at home in diffusers: saving and loading, offloading, casting, compiling, LoRA."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from fitv2 import FiTConfig, FiTPipeline, FiTTransformer2DModel, FiTv1Config, RopeScheme, TokenBatch, to_official
from fitv2.adapters.schedulers import default_scheduler
from fitv2.adapters.transformer import from_timestep, to_timestep
from fitv2.errors import UserError
from fitv2.model.config import DiTConfig, SiTConfig
from fitv2.sampling.guidance import GuidedModel
from fitv2.sampling.ode import SOLVERS, time_grid
from fitv2.sampling.spec import Sampling
from fitv2.tokens import pack_context
from tiny import random_model

TIMESTEP = torch.tensor([900.0, 500.0, 100.0])
CONFIG = FiTConfig(width=32, depth=2, heads=2, num_classes=5, rope=RopeScheme(train_side=4))


@pytest.fixture
def transformer() -> FiTTransformer2DModel:
    return FiTTransformer2DModel.from_fit(random_model(CONFIG), sample_size=8)


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    latents = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"hidden_states": latents, "timestep": TIMESTEP, "class_labels": torch.tensor([0, 1, 5])}


@torch.no_grad()
def test_latents_and_packed_batches_give_the_same(transformer):
    given = inputs()
    latents = given.pop("hidden_states")
    batch = TokenBatch.from_latents(list(latents), 2)
    plain = transformer(latents, **given).sample
    packed = transformer(batch, **given, return_dict=False)[0]
    torch.testing.assert_close(plain, torch.stack(batch.with_x(packed).to_latents(2)))
    direct = transformer.fit(batch, 1 - TIMESTEP / 1000, given["class_labels"])
    assert torch.equal(packed, -direct)
    for one_time in (torch.tensor(500), 500.0):
        again = transformer(latents, timestep=one_time, class_labels=given["class_labels"]).sample
        torch.testing.assert_close(again[1], plain[1])
    with pytest.raises(ValueError, match=r"7x6 .*2x2"):
        transformer(latents[:, :, :7], **given)


@torch.no_grad()
def test_a_scheduler_of_diffusers_integrates_it_directly(transformer):
    """The loop of the class's docstring, against our own Euler: diffusers' convention holds at the border."""
    given, scheduler = inputs(), FlowMatchEulerDiscreteScheduler()
    latents, labels = given["hidden_states"], given["class_labels"]
    batch = TokenBatch.from_latents(list(latents), 2)
    guided = GuidedModel(transformer.fit, CONFIG, batch.hw, labels, Sampling(guidance=1), torch.device("cpu"))
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    for t in scheduler.timesteps:
        velocity = transformer(latents, timestep=t, class_labels=labels).sample
        latents = scheduler.step(velocity, t, latents).prev_sample
    expected = batch.with_x(SOLVERS["euler"](guided, batch.x, time_grid(4))).to_latents(2)
    torch.testing.assert_close(latents, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_times_survive_the_border_to_the_last_bit():
    times = torch.rand(10_000)
    assert torch.equal(from_timestep(to_timestep(times)).float(), times)


SMALL = {"width": 32, "depth": 1, "heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        FiTv1Config(**SMALL, qk_norm=True, modulation="low-rank", prediction="velocity"),
        FiTConfig(**SMALL, context="cross", context_channels=12),
        FiTConfig(**SMALL, context="joint", context_channels=12),
    ],
    ids=["FiTv2", "between FiT and FiTv2", "cross", "joint"],
)
@torch.no_grad()
def test_saved_and_loaded_whole_sharded_and_as_a_variant(config, tmp_path):
    model, given = FiTTransformer2DModel.from_fit(random_model(config)), inputs()
    if config.context != "none":
        given["encoder_hidden_states"] = tokens = torch.randn(3, 4, 12)
        packed = model(**inputs(), encoder_hidden_states=pack_context(list(tokens))).sample
        assert torch.equal(model(**given).sample, packed)
        assert not torch.equal(packed, model(**inputs(), encoder_hidden_states=tokens + 1).sample)
    expected = model(**given).sample
    for name, saving, loading in (
        ("whole", {}, {}),
        ("sharded", {"max_shard_size": "20KB"}, {}),
        ("variant", {"variant": "ema"}, {"variant": "ema"}),
    ):
        model.save_pretrained(tmp_path / name, **saving)
        loaded = FiTTransformer2DModel.from_pretrained(tmp_path / name, **loading)
        assert loaded.fit.config == config
        torch.testing.assert_close(loaded(**given).sample, expected)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert (tmp_path / "variant/diffusion_pytorch_model.ema.safetensors").is_file()
    with pytest.raises(OSError, match="no file named"):
        FiTTransformer2DModel.from_pretrained(tmp_path / "variant")


def test_averaged_by_the_ema_of_diffusers(transformer, tmp_path):
    average = EMAModel(
        transformer.parameters(), decay=0.5, model_cls=type(transformer), model_config=transformer.config
    )
    optimizer = torch.optim.SGD(transformer.parameters(), lr=1.0)
    before = transformer.fit.final_layer.linear.bias.detach().clone()
    transformer.train()(**inputs()).sample.square().mean().backward()
    optimizer.step()
    average.step(transformer.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, model_cls=type(transformer))
    loaded.copy_to(transformer.parameters())
    after = transformer.fit.final_layer.linear.bias.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(
        after, dict(FiTTransformer2DModel.from_pretrained(tmp_path).named_parameters())["fit.final_layer.linear.bias"]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "config",
    [FiTConfig(**SMALL), FiTv1Config(**SMALL), DiTConfig(**SMALL, side=3), SiTConfig(**SMALL, side=3)],
    ids=lambda config: type(config).__name__,
)
@pytest.mark.parametrize("autocast", [False, True])
def test_hooks_run_once(config, dtype, autocast):
    """In half precision, too: one pass through the network."""
    model, calls = random_model(config).to(dtype), []
    networks = [model]
    if not config.fixed_grid:
        networks.append(FiTTransformer2DModel.from_fit(model))
    for network in networks:
        network.register_forward_pre_hook(lambda module, given: calls.append("before"))
        network.register_forward_hook(lambda module, given, output: calls.append("after"))
    half = torch.float16 if dtype == torch.float16 else torch.bfloat16
    batch, t, y = TokenBatch(torch.randn(18, 16, dtype=dtype), [(3, 3)] * 2), torch.rand(2), torch.tensor([0, 3])
    for number, network in enumerate(networks, 1):
        calls.clear()
        with torch.autocast("cpu", half, enabled=autocast), torch.no_grad():
            network(batch, t, y)
        assert calls == ["before"] * number + ["after"] * number


@torch.no_grad()
def test_groups_of_blocks_offloaded(transformer):
    """Onto the same device, which is all that a CPU can show: the hooks see every call and change nothing."""
    expected = transformer(**inputs()).sample
    kind = {"offload_type": "block_level", "num_blocks_per_group": 1}
    transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), **kind)
    torch.testing.assert_close(transformer(**inputs()).sample, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(transformer, tmp_path, dtype):
    expected = transformer(**inputs()).sample
    transformer.save_pretrained(tmp_path)
    half = FiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    output = half(**inputs(dtype)).sample
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 0.03 * expected.abs().max()


@torch.no_grad()
def test_layerwise_casting(transformer):
    expected = transformer(**inputs()).sample
    transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert transformer.fit.blocks[0].mlp.fc2.weight.dtype == torch.bfloat16
    output = transformer(**inputs()).sample
    assert 0 < (output - expected).abs().max() < 0.03 * expected.abs().max()


def test_gradient_checkpointing_gives_the_same_gradients(transformer):
    gradients = []
    for enable in (transformer.disable_gradient_checkpointing, transformer.enable_gradient_checkpointing):
        enable()
        transformer.zero_grad()
        transformer.train()(**inputs()).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in transformer.parameters()])
    assert transformer.is_gradient_checkpointing and transformer.fit.activation_checkpointing
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_lora_is_added_trained_saved_and_loaded(transformer, tmp_path):
    expected = transformer(**inputs()).sample
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["qkv", "fc2"], init_lora_weights=False)
    transformer.add_adapter(config)
    adapted = transformer(**inputs()).sample
    assert (adapted - expected).abs().max() > 1e-3
    transformer.save_lora_adapter(tmp_path)
    transformer.disable_adapters()
    torch.testing.assert_close(transformer(**inputs()).sample, expected)
    other = FiTTransformer2DModel.from_fit(random_model(CONFIG), sample_size=8)
    other.load_lora_adapter(tmp_path)
    torch.testing.assert_close(other(**inputs()).sample, adapted)


def test_a_lora_among_the_weights_is_not_saved_as_a_part_of_them(transformer, tmp_path):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False), "mine")
    pipe = FiTPipeline(transformer, default_scheduler())
    saves = [transformer.save_pretrained, pipe.save_pretrained, lambda _: to_official(transformer.fit)]
    for save in saves:
        with pytest.raises(UserError, match=r"unload"):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    expected = transformer(**inputs()).sample
    transformer.fuse_lora()
    transformer.unload_lora()
    transformer.save_pretrained(tmp_path / "saved")
    fused = FiTTransformer2DModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(fused(**inputs()).sample, expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [("name", "blocks.7.attn.qkv"), ("value", "not finite"), ("width", r"lora_A.weight is \(2, 31\), for weights")],
)
def test_a_lora_that_does_not_belong_is_refused(transformer, tmp_path, change, problem):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    transformer.save_lora_adapter(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    if change == "name":
        weights = {key.replace("blocks.0", "blocks.7"): tensor for key, tensor in weights.items()}
    elif change == "width":
        weights = {key: tensor[:, 1:] if "lora_A" in key else tensor for key, tensor in weights.items()}
        weights = {key: tensor.contiguous() for key, tensor in weights.items()}
    else:
        next(iter(weights.values()))[0, 0] = torch.nan
    other = FiTTransformer2DModel.from_fit(random_model(CONFIG), sample_size=8)
    for source in (weights, save_file(weights, file, {"format": "pt"}) or tmp_path):
        with pytest.raises(UserError, match=problem):
            other.load_lora_adapter(source)
    assert other.state_dict().keys() == FiTTransformer2DModel.from_fit(random_model(CONFIG)).state_dict().keys()


def test_an_adapter_without_anything_for_this_model_is_refused(transformer, tmp_path):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    transformer.save_lora_adapter(tmp_path)
    other = FiTTransformer2DModel.from_fit(random_model(CONFIG), sample_size=8)
    for source, options in ((tmp_path, {"prefix": "unet"}), ({}, {}), (other.state_dict(), {})):
        with pytest.raises(UserError, match="no LoRA"):
            other.load_lora_adapter(source, **options)


@pytest.mark.parametrize(("layers", "problem"), [(1, r"unexpected fit\.blocks\.1"), (3, r"missing fit\.blocks\.2")])
def test_a_folder_of_another_depth_is_refused(transformer, tmp_path, layers, problem):
    FiTPipeline(transformer, default_scheduler()).save_pretrained(tmp_path)
    config = tmp_path / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": layers}))
    for load in (FiTPipeline.from_pretrained, lambda path: FiTTransformer2DModel.from_pretrained(path / "transformer")):
        with pytest.raises(UserError, match=problem):
            load(tmp_path)


@torch.no_grad()
def test_disk_offload(transformer, tmp_path):
    expected = transformer(**inputs()).sample
    transformer.save_pretrained(tmp_path / "model")
    device_map = {"fit.x_embedder": "cpu", "fit.t_embedder": "cpu", "fit.y_embedder": "cpu"}
    device_map |= {"fit.global_adaLN_modulation": "cpu", "fit.final_layer": "cpu"}
    device_map |= {"fit.blocks.0": "cpu", "fit.blocks.1": "disk"}
    loaded = FiTTransformer2DModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert loaded.fit.blocks[1].mlp.fc2.weight.device.type == "meta"
    torch.testing.assert_close(loaded(**inputs()).sample, expected)


@pytest.mark.slow
def test_compiled_whole_without_a_break_for_any_size(transformer):
    """Ordinary latents of other sizes do not compile again; packed batches do, once for each mix of sizes."""
    given = inputs()
    latents = given.pop("hidden_states")
    batch = TokenBatch.from_latents([latents[0], latents[1, :, :4], latents[2]], 2)
    compiled = torch.compile(transformer, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for some in (latents, torch.randn(3, 4, 4, 10), torch.randn(3, 4, 16, 6)):
            torch.testing.assert_close(compiled(some, **given).sample, transformer(some, **given).sample)
    compiled = torch.compile(transformer.fit, fullgraph=True, backend="eager")
    packed = batch, given["timestep"], given["class_labels"]
    torch.testing.assert_close(compiled(*packed), transformer.fit(*packed))
    other = TokenBatch.from_latents([latents[0, :, :4], latents[1], latents[2, :, :2]], 2), *packed[1:]
    torch.testing.assert_close(compiled(*other), transformer.fit(*other))


@torch.no_grad()
def test_compiled(transformer):
    expected = transformer(**inputs()).sample
    compiled = torch.compile(transformer, backend="eager")
    torch.testing.assert_close(compiled(**inputs()).sample, expected)
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(transformer(**inputs()).sample, expected)


@torch.no_grad()
def test_a_callers_autocast_stays_in_force(transformer):
    seen = []
    transformer.fit.blocks[0].attn.qkv.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        transformer(**inputs())
    transformer(**inputs())
    assert seen == [torch.bfloat16, torch.float32]


def test_models_of_our_own_load_in_any_dtype_and_refuse_other_arguments(tmp_path):
    for kind in (FiTPipeline, FiTTransformer2DModel):
        assert kind.from_pretrained("builtin:fashion", dtype=torch.bfloat16).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="float8_e4m3fn"):
            kind.from_pretrained("builtin:fashion", torch_dtype=torch.float8_e4m3fn)
        with pytest.raises(ValueError, match=r"without device_map"):
            kind.from_pretrained("builtin:fashion", device_map="auto")
