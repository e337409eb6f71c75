"""DiT and SiT behind the interface of FiT: diffusers' network on tokens, zero at first, one size alone."""

from dataclasses import asdict, replace

import pytest
import torch
from diffusers import DiTTransformer2DModel

import fitv2
from fitv2 import FiTPipeline, FiTTransformer2DModel, TokenBatch
from fitv2.build import build_base, build_model_config
from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained
from fitv2.model.config import DEFAULT_ROPE, DiTConfig, SiTConfig
from fitv2.model.dit import DiT
from fitv2.model.init import dit_modulations
from fitv2.profiling.formula import parameters
from fitv2.sampling.cache import BlockCache
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import SampleSpec, Sampling, default_solver
from fitv2.settings.read import build_recipe
from test_resume import assert_same_run, nothing
from tiny import CLASSES, garments, random_model, stop_at, trainer

SIZES = {"width": 48, "depth": 2, "heads": 3, "side": 5, "in_channels": 3, "num_classes": 10}
CONFIGS = [DiTConfig(**SIZES), SiTConfig(**SIZES)]
KINDS = pytest.mark.parametrize("config", CONFIGS, ids=["DiT", "SiT"])
SQUARES = {"max_tokens": 25, "preprocessing": "crop"}


def images(config: SiTConfig, number: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, times as that network takes them, and labels, the last of no class."""
    generator, side = torch.Generator().manual_seed(1), config.side * config.patch_size
    t = torch.rand(number, generator=generator) * (999 if config.prediction == "epsilon" else 1)
    latents = torch.randn(number, config.in_channels, side, side, generator=generator)
    return latents, t, torch.arange(number) % 10 + torch.tensor([*[0] * (number - 1), 10 - (number - 1) % 10])


def inputs(config: SiTConfig) -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    latents, t, y = images(config)
    return TokenBatch.from_latents(list(latents), config.patch_size), t, y


@KINDS
def test_what_only_fit_can_have_is_answered_with_none_and_not_stored(config):
    given = config.context, config.internal_head, config.position_range, config.target_blocks
    assert given == ("none", None, None, 0)
    assert asdict(config).keys() == {*SIZES, "patch_size", "prediction"}


def of_diffusers(model: DiT) -> DiTTransformer2DModel:
    """Their own class, its embedders all with the weights of our one."""
    config = model.config
    theirs = DiTTransformer2DModel(
        num_layers=config.depth,
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=(2 if config.prediction == "epsilon" else 1) * config.in_channels,
        sample_size=config.side * config.patch_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
    )
    own = {name.removeprefix("dit."): weight for name, weight in model.state_dict().items()}
    embedder = {name: weight for name, weight in own.items() if "norm1.emb." in name}
    for block in range(config.depth):
        own |= {name.replace("blocks.0", f"blocks.{block}"): weight for name, weight in embedder.items()}
    theirs.load_state_dict(own)
    return theirs.eval()


@KINDS
@torch.no_grad()
def test_tokens_give_what_the_image_gives_in_diffusers(config):
    """In and out: the order of channels inside a token, where noise comes before its variance."""
    model, (latents, t, y) = random_model(config), images(config)
    expected = of_diffusers(model)(latents, t, y).sample
    batch, *_ = inputs(config)
    output = batch.with_x(model(batch, t, y))
    torch.testing.assert_close(torch.stack(output.to_latents(2)), expected, atol=1e-5, rtol=1e-5)
    assert output.x.shape[1] == config.output_channels == 4 * expected.shape[1]
    if config.prediction == "epsilon":
        noise = torch.stack(output.with_x(output.x.chunk(2, dim=-1)[0]).to_latents(2))
        torch.testing.assert_close(noise, expected[:, :3], atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_an_image_depends_on_itself_and_its_label_alone(config):
    """No label is dropped in training: that is the work of the objective."""
    model, (batch, t, y) = random_model(config).train(), inputs(config)
    alone = torch.cat([model(batch.select([i]), t[[i]], y[[i]]) for i in range(len(batch))])
    together = [model(batch, t, y) for _ in range(20)]
    assert all(torch.equal(together[0], output) for output in together)
    torch.testing.assert_close(together[0], alone, atol=1e-5, rtol=1e-5)
    assert config.null_label == 10 and not torch.equal(together[0], model(batch, t, torch.full_like(y, 10)))


@KINDS
def test_at_first_every_block_is_the_identity_and_the_network_predicts_zero(config):
    model = DiT(config)
    batch, t, y = inputs(config)
    passed = []
    for block in model.dit.transformer_blocks:
        block.register_forward_hook(lambda module, given, output: passed.append((given[0], output)))
    assert not model(batch, t, y).any() and len(passed) == 2
    assert all(torch.equal(before, after) and before.any() for before, after in passed)


def test_one_embedder_serves_all_blocks():
    """Its weights have one name, and each block's gradient reaches them."""
    model, (batch, t, y) = random_model(CONFIGS[1]), inputs(CONFIGS[1])
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    assert sum("timestep_embedder.linear_1.weight" in name for name in model.state_dict()) == 1
    assert parameters(CONFIGS[1]) == sum(weight.numel() for weight in model.parameters())
    table = model.dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    of_all = torch.autograd.grad(model(batch, t, y).square().sum(), table)[0]
    with torch.no_grad():
        model.dit.transformer_blocks[1].norm1.linear.weight.zero_()
    assert (torch.autograd.grad(model(batch, t, y).square().sum(), table)[0] - of_all).abs().max() > 1e-3


@KINDS
def test_activation_checkpointing_changes_memory_not_gradients(config):
    model, (batch, t, y) = random_model(config), inputs(config)
    gradients = []
    for wanted in (False, True):
        model.activation_checkpointing = wanted
        assert model.activation_checkpointing == wanted
        loss = model(batch, t, y).square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)


@KINDS
@torch.no_grad()
def test_half_precision_keeps_the_residual_stream_its_factors_and_the_times(config):
    """Under autocast, and with weights in bfloat16."""
    model, (batch, t, y) = random_model(config), inputs(config)
    expected, seen = model(batch, t, y), []
    for block in model.get_submodule("dit.transformer_blocks").children():
        block.register_forward_hook(lambda module, given, output: seen.extend((given[0].dtype, output.dtype)))
    for modulation in dit_modulations(model.dit):
        modulation.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [model(batch, t, y)]
    outputs.append(model.to(torch.bfloat16)(batch, t, y))
    for output in outputs:
        assert 0 < (output.float() - expected).abs().max() < 0.03 * expected.abs().max()
    assert seen == [torch.float32] * 14
    close = torch.tensor([0.501, 0.502, 0.501, 0.502]) * t.max()
    two = model.to(torch.bfloat16)(batch.select([0, 0, 0, 0]), close, y[[0, 0, 0, 0]]).unflatten(0, (4, -1))
    assert not torch.equal(two[0], two[1])


def test_the_names_of_older_versions_are_the_same_classes():
    assert fitv2.GridTransformer is DiT and fitv2.GridConfig is SiTConfig and "GridConfig" in dir(fitv2)


def test_arguments_of_fit_are_refused():
    model, (batch, t, y) = random_model(CONFIGS[0]), inputs(CONFIGS[0])
    for extra in ({"rope": DEFAULT_ROPE}, {"context": batch}, {"cache": BlockCache(2)}):
        with pytest.raises(ValueError, match="no rope, no context"):
            model(batch, t, y, **extra)
    other = TokenBatch(batch.x[:24], [(4, 6)])
    with pytest.raises(ValueError, match=r"5x5 tokens.*\(4, 6\)"):
        model(other, t[:1], y[:1])
    for refuse in (FiTTransformer2DModel.from_fit, fitv2.to_official):
        with pytest.raises(ValueError, match="DiT"):
            refuse(model)
    with pytest.raises(ValueError, match="DiTTransformer2DModel"):
        FiTTransformer2DModel(architecture="SiT")
    for numbers in ({"heads": 5}, {"width": 45}):
        with pytest.raises(ValueError, match="multiple of the heads"):
            replace(CONFIGS[0], **numbers)


@KINDS
def test_a_saved_model_comes_back_and_makes_its_own_size(config, tmp_path):
    model, (batch, t, y) = random_model(config), inputs(config)
    save_pretrained(tmp_path, config, model.state_dict(), CLASSES, [[(10, 10, 1)]] * 10, torch.float32)
    loaded = load_pretrained(tmp_path)
    assert loaded.model.config == config and type(loaded.model.config) is type(config)
    assert torch.equal(loaded.model(batch, t, y), model(batch, t, y))
    sampling = Sampling(solver=default_solver(config), steps=2)
    for dtype in (torch.float32, torch.bfloat16):
        (made,) = generate(load_pretrained(tmp_path, dtype).model, [SampleSpec(3, (10, 10), 0)], sampling)
        assert made.shape == (3, 10, 10) and made.isfinite().all()
    with pytest.raises(ValueError, match=r"10x10 .*8x12"):
        generate(loaded.model, [SampleSpec(3, (10, 10), 0), SampleSpec(3, (8, 12), 0)], sampling)
    with pytest.raises(ValueError, match="fixed grid"):
        FiTPipeline.from_pretrained(tmp_path)
    recipe = build_recipe({}, [f"training.init_from={tmp_path}"])
    with pytest.raises(ValueError, match="fixed grid"):
        build_base(recipe.training)


@pytest.mark.parametrize("architecture", ["DiT", "SiT"])
def test_a_training_is_resumed_bit_for_bit(architecture, tmp_path):
    def run(name):
        settings = f"model.architecture={architecture}", "training.precision=bf16", "log.sample_every=5"
        return trainer(tmp_path / name, *settings, dataset=garments(**SQUARES))

    whole = run("whole")
    parameters = whole.learner.parameters
    before = {name: weight.clone() for name, weight in parameters.items()}
    whole.fit(nothing)
    moved = [
        name for name, weight in whole.learner.model.module.named_parameters() if not torch.equal(weight, before[name])
    ]
    assert len(moved) == len(before)
    with pytest.raises(KeyboardInterrupt):
        run("stopped").fit(stop_at(7))
    run("stopped").fit(nothing)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    trained = load_pretrained(tmp_path / "stopped").model.config
    assert trained.side == 5 and trained.prediction == {"DiT": "epsilon", "SiT": "velocity"}[architecture]


def test_only_squares_of_one_size_are_learned():
    recipe = build_recipe({}, ["model.architecture=DiT"])
    for images in (garments(), garments(preprocessing="mixed", max_tokens=25)):
        with pytest.raises(ValueError, match="preprocessing=crop"):
            build_model_config(recipe, images)
    assert build_model_config(recipe, garments(**SQUARES)).fixed_grid == (5, 5)
