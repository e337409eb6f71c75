"""The network over packed tokens: an image's result depends on that image alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fitv2 import FiT, FiTConfig, FiTv1Config, TokenBatch, preset
from fitv2.build import build_loss_at
from fitv2.model import attention, layers, modulation
from fitv2.model.block import BlockInputs
from fitv2.model.numerics import lay_out_by_input
from fitv2.model.rope import RopeScheme, rotate, rotation_table
from fitv2.positions import random_positions
from fitv2.sampling.cache import BlockCache
from fitv2.tokens import pack_context
from tiny import random_model

SIZES = [(4, 6), (1, 2), (40, 3), (3, 4), (4, 3), (5, 5), (1, 2)]
CONFIG = FiTConfig(width=48, depth=2, heads=3, num_classes=5)


def random_batch(sizes=SIZES, seed: int = 1) -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(h * w for h, w in sizes), CONFIG.token_channels, generator=generator)
    t = torch.rand(len(sizes), generator=generator)
    y = torch.randint(0, CONFIG.num_classes + 1, (len(sizes),), generator=generator)
    return TokenBatch(x, torch.tensor(sizes)), t, y


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_packed_equals_one_by_one_in_bfloat16_within_its_rounding(weights):
    """Other shapes sum in another order, and bfloat16 rounds each sum by up to 2^-9 of it: 2 % of the largest value."""
    model, (batch, t, y) = random_model(CONFIG).to(weights), random_batch()
    with torch.autocast("cpu", torch.bfloat16):
        together = model(batch, t, y).float()
        alone = torch.cat([model(batch.select([i]), t[[i]], y[[i]]) for i in range(len(batch))]).float()
    assert (together - alone).abs().max() < 0.02 * together.abs().max()


def test_weights_laid_out_by_input_are_the_same_weights():
    model, (batch, t, y) = random_model(CONFIG), random_batch()
    expected, weights = model(batch, t, y), {name: value.clone() for name, value in model.state_dict().items()}
    lay_out_by_input(model)
    assert model.blocks[0].attn.qkv.weight.stride() == (1, 3 * CONFIG.width)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    # Another layout sums in another order: a few units in the last place of the largest value, on some processors.
    assert (model(batch, t, y) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_images_of_equal_time_and_label_share_their_conditioning_in_sampling_alone():
    """Both values are told apart: equal times with other labels, and the other way round."""
    model, (batch, _, _) = random_model(CONFIG), random_batch()
    t = torch.tensor([0.5, 0.25, 0.5, 0.5, 0.25, 0.5, 0.25])
    y = torch.tensor([1, 1, 2, 1, 2, 2, 1])
    rows = []
    model.blocks[1].adaLN_modulation.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    expected = model(batch, t, y)
    with torch.no_grad():
        shared = model(batch, t, y)
    assert rows == [7, 4]
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)


def gradients(model: FiT, parts) -> list[torch.Tensor]:
    """Of the sum of squares over all parts, relative to the largest entry of each."""
    model.zero_grad()
    for part in parts:
        model(*part).square().sum().backward()
    return [p.grad / p.grad.abs().max().clamp(min=1e-12) for p in model.parameters()]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        FiTv1Config(width=48, depth=2, heads=3, num_classes=5),
        replace(CONFIG, prediction="data"),
        replace(CONFIG, position_range=12),
    ],
    ids=["v2", "v1", "data", "positions"],
)
def test_packed_equals_one_by_one_and_any_order(config):
    """Values and gradients."""
    model, (batch, t, y) = random_model(config), random_batch()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2)).tolist()
    alone = [(batch.select([i]), t[[i]], y[[i]]) for i in range(len(batch))]
    shuffled = [(batch.select(order), t[order], y[order])]
    atol = 2e-4 if config.prediction == "data" else 1e-5  # Divided by 1 - t, rounding is up to 20 times larger.
    together, one_by_one = model(batch, t, y), torch.cat([model(*part) for part in alone])
    torch.testing.assert_close(together, one_by_one, atol=atol, rtol=0)
    torch.testing.assert_close(batch.with_x(together).select(order).x, model(*shuffled[0]), atol=atol, rtol=0)
    packed = gradients(model, [(batch, t, y)])
    torch.testing.assert_close(packed, gradients(model, alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed, gradients(model, shuffled), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_internal_head_and_given_positions_belong_to_each_image(prediction):
    """Packed equals one by one; the last head's output is what it is without the other."""
    model = random_model(replace(CONFIG, prediction=prediction, internal_head=1))
    batch, t, y = random_batch()
    positions = random_positions(batch, 50, torch.Generator().manual_seed(3))
    both = model(batch, t, y, positions_T2=positions, internal=True)
    places = positions.split(batch.lengths)
    for i, alone in enumerate(batch.with_x(both).x.split(batch.lengths)):
        made = model(batch.select([i]), t[[i]], y[[i]], positions_T2=places[i], internal=True)
        torch.testing.assert_close(alone, made, atol=1e-4, rtol=1e-4)
    last, head = both.chunk(2, dim=1)
    torch.testing.assert_close(last, model(batch, t, y, positions_T2=positions), atol=1e-5, rtol=0)
    assert (last - head).abs().max() > 1e-2 and (last - model(batch, t, y)).abs().max() > 1e-2


def test_the_velocity_follows_from_a_predicted_image():
    model, (batch, t, y) = random_model(replace(CONFIG, prediction="data")), random_batch()
    clean = torch.randn(CONFIG.token_channels)
    with torch.no_grad():
        model.final_layer.linear.weight.zero_()
        model.final_layer.linear.bias.copy_(clean)
        t[:3] = torch.tensor([0.0, 0.96, 1.0])
        expected = (clean - batch.x) / batch.expand_to_tokens((1 - t).clamp(min=0.05))[:, None]
        torch.testing.assert_close(model(batch, t, y), expected)


def test_the_clean_image_is_the_best_prediction_at_any_time():
    model, (batch, t, y) = random_model(replace(CONFIG, prediction="data")), random_batch()
    clean = torch.randn(CONFIG.token_channels)
    data = batch.with_x(clean.expand_as(batch.x))
    with torch.no_grad():
        model.final_layer.linear.weight.zero_()
        model.final_layer.linear.bias.copy_(clean)
        t[:4] = torch.tensor([0.0, 0.949, 0.96, 0.999])
        loss_at = build_loss_at(model.config)
        assert loss_at(model, data, batch.x, t, y).max() < 1e-5
        model.final_layer.linear.bias.add_(0.05)
        expected = (0.05 / (1 - t).clamp(min=0.05)).square()
        torch.testing.assert_close(loss_at(model, data, batch.x, t, y), expected, rtol=1e-3, atol=1e-5)


def test_height_and_width_are_not_interchangeable():
    model, (batch, t, y) = random_model(CONFIG), random_batch([(2, 6)])
    turned = TokenBatch(batch.x, torch.tensor([[6, 2]]))
    assert (model(batch, t, y) - model(turned, t, y)).abs().max() > 1e-3


def table_at(*positions: list[int], head_dim: int = 16):
    """The rotation of tokens at these (row, column) of one image."""
    index, hw = torch.zeros(len(positions), dtype=torch.int64), torch.tensor([[40, 40]])
    return rotation_table(torch.tensor(positions), index, hw, head_dim, RopeScheme())


def test_transposed_image_with_swapped_axes_of_rope_is_equivalent():
    """Rows turn the first half of a head and columns the second: swapping both halves undoes a transposition."""
    cos, sin = table_at([2, 5], head_dim=8)
    cos_t, sin_t = table_at([5, 2], head_dim=8)
    assert torch.equal(cos, cos_t.roll(2, -1)) and torch.equal(sin, sin_t.roll(2, -1))
    assert not torch.equal(cos, cos_t)


def test_rotation_depends_on_relative_position_only():
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float32).unbind(0)

    def score(first, second):
        return (rotate(q, table_at(first)) * rotate(k, table_at(second))).sum()

    torch.testing.assert_close(score([3, 1], [5, 9]), score([13, 21], [15, 29]), atol=1e-4, rtol=0)
    assert (score([3, 1], [5, 9]) - score([3, 1], [9, 5])).abs() > 1e-3


def test_a_new_block_is_the_identity_and_a_new_model_predicts_zero():
    batch, t, y = random_batch()
    model = FiT(CONFIG)
    x, c = torch.randn(batch.x.shape[0], CONFIG.width), torch.randn(len(batch), CONFIG.width)
    shared = torch.zeros(len(batch), 6 * CONFIG.width)
    table = table_at(*batch.positions.tolist())
    assert torch.equal(model.blocks[0](x, *BlockInputs(c, shared, batch.row_of_token, batch, table)), x)
    assert model(batch, t, y).abs().max() == 0


@pytest.mark.parametrize("context", ["none", "cross", "joint"])
def test_activation_checkpointing_changes_memory_not_gradients(context):
    model, data = random_model(replace(CONFIG, context=context, context_channels=12)), random_batch()
    if context != "none":
        torch.manual_seed(3)
        data = *data, pack_context([torch.randn(n, 12) for n in (5, 2, 7, 2, 1, 3, 1)])
    plain = gradients(model, [data])
    model.activation_checkpointing = True
    torch.testing.assert_close(plain, gradients(model, [data]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("nested", [False, True])
def test_recomputation_gives_the_same_gradients(monkeypatch, nested):
    """To the last bit, under autocast, inside activation checkpointing too, and of a learned scale of the QK-norm."""
    model, (batch, t, y) = random_model(replace(CONFIG, qk_norm_affine=True)), random_batch()
    model.activation_checkpointing = nested

    def bfloat16_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch, t, y)
        output.float().square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    again = bfloat16_gradients()
    for module in (attention, layers, modulation):
        monkeypatch.setattr(module, "recomputed", lambda function, *inputs: function(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(again, bfloat16_gradients(), strict=True))


def test_time_stays_float32_under_autocast():
    """In bfloat16, 0.501 and 0.502 are the same time."""
    model, (batch, _, y) = random_model(CONFIG), random_batch([(2, 3)])
    times = []
    model.t_embedder.mlp[0].register_forward_pre_hook(lambda module, args: times.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        for t in (0.501, 0.502):
            model(batch, torch.tensor([t]), y)
    assert times[0].dtype == torch.float32 and not torch.equal(*times)


@pytest.mark.parametrize("token_budget", [0, 250])
def test_compiled_blocks_agree_with_eager(monkeypatch, token_budget):
    """Captured and differentiated as for training, but run without generated C++, which a bare machine cannot build."""
    graphs = counted_graphs(monkeypatch)
    model, data = random_model(CONFIG), random_batch()
    eager, eager_gradients = model(*data), gradients(model, [data])
    model.compile_blocks(token_budget)
    torch.testing.assert_close(model(*data), eager, atol=1e-5, rtol=0)
    torch.testing.assert_close(eager_gradients, gradients(model, [data]), atol=1e-5, rtol=0)
    assert graphs.frame_count


def test_blocks_are_compiled_for_any_number_of_images_at_once(monkeypatch):
    """After a second number of images nothing is compiled any more: torch gives up on the ninth graph of a function."""
    graphs = counted_graphs(monkeypatch)
    model, counts = random_model(CONFIG), []
    model.compile_blocks(token_budget=200)
    for images in range(2, 12):
        gradients(model, [random_batch([(2, 3), (3, 4)] * images)])
        counts.append(graphs.frame_count)
    assert 0 < counts[1] == counts[-1]


def test_a_cache_of_blocks_goes_with_a_token_budget():
    model, data = random_model(CONFIG), random_batch()
    expected = model(*data, cache=BlockCache(1))
    model.token_budget = 250
    torch.testing.assert_close(model(*data, cache=BlockCache(1)), expected, atol=1e-5, rtol=0)


def counted_graphs(monkeypatch) -> CompileCounterWithBackend:
    """Makes torch.compile trace and differentiate as ever, and run what comes out without generated code."""
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    return graphs


def test_fit_is_fitv2_with_other_parts():
    """All but the width of its SwiGLU, which two thirds of half as much again give, is said by fields."""
    parts = {"qk_norm": False, "modulation": "full", "prediction": "epsilon"}
    config = FiTConfig(width=48, depth=2, heads=3, num_classes=5, mlp_ratio=6.0, **parts)
    first = random_model(FiTv1Config(width=48, depth=2, heads=3, num_classes=5))
    other, (batch, t, y) = FiT(config).eval(), random_batch()
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(batch, t, y), first(batch, t, y)) and first(batch, t, y).shape == (len(batch.x), 32)


def test_each_part_changes_what_it_says_and_no_more():
    (batch, t, y), plain = random_batch(), {name: w.shape for name, w in FiT(CONFIG).state_dict().items()}

    def of(**parts) -> tuple[FiT, dict[str, torch.Size]]:
        model = random_model(replace(CONFIG, **parts))
        return model, {name: weight.shape for name, weight in model.state_dict().items()}

    model, shapes = of(qk_norm=False)
    assert shapes == plain
    before = model(batch, t, y)
    with torch.no_grad():  # Queries of twice the size are the same queries to a norm alone.
        for block in model.blocks:
            block.attn.qkv.weight[: CONFIG.width] *= 2
            block.attn.qkv.bias[: CONFIG.width] *= 2
    assert (model(batch, t, y) - before).abs().max() > 1e-2
    _, shapes = of(modulation="full")
    changed = {name for name in plain.keys() | shapes.keys() if plain.get(name) != shapes.get(name)}
    assert changed and all("adaLN" in name and "final" not in name for name in changed)
    assert shapes["blocks.0.adaLN_modulation.1.weight"] == (6 * 48, 48)
    assert not any(name.startswith("global") for name in shapes)
    _, shapes = of(prediction="epsilon")
    assert {name for name in plain if plain[name] != shapes[name]} == {
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    }


def test_impossible_configurations_are_refused():
    with pytest.raises(ValueError, match="there is no preset"):
        preset("FiTv2-S/2")
    with pytest.raises(ValueError, match="multiple of 4"):
        FiTConfig(width=30, depth=1, heads=3)
    for wrong, complaint in (
        ({"modulation": "full", "lora_rank": 3}, "lora_rank 3 is of low-rank modulation"),
        ({"qk_norm": False, "qk_norm_affine": True}, "qk_norm_affine is a scale in the norm"),
        ({"prediction": "image"}, "there is no prediction 'image'; choose from velocity, data, epsilon"),
        ({"internal_head": 2}, "internal_head 2 must be from 1 to 1"),
        ({"internal_head": 1, "prediction": "epsilon"}, "predicts epsilon"),
        ({"position_range": 1}, "at least 2"),
        ({"position_range": 9, "rope": RopeScheme(method="ntk-aware")}, "would move positions twice"),
        *(
            ({name: 0}, f"{name} 0 must be at least 1")
            for name in ("width", "depth", "heads", "patch_size", "lora_rank")
        ),
        ({"num_classes": -1}, "num_classes -1 must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio 0.0 leaves nothing"),
        ({"modulation": "none"}, "there is no modulation 'none'; choose from low-rank, full"),
    ):
        with pytest.raises(ValueError, match=complaint):
            replace(CONFIG, **wrong)
    with pytest.raises(ValueError, match="lora_rank 3"):
        FiTv1Config(width=48, depth=1, heads=3, lora_rank=3)
    with pytest.raises(ValueError, match="side 0 must be at least 1"):
        preset("SiT-B/2", side=0)


def test_times_and_labels_of_another_number_are_refused():
    batch, t, y = random_batch([(2, 3), (3, 2)])
    model = random_model(CONFIG)
    for times, labels in ((t[:1], y), (t, y[:1])):
        with pytest.raises(ValueError, match=r"labels for 2 images"):
            model(batch, times, labels)
