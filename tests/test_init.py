"""Initial values against those of the authors' code, for every layer of every kind of network."""

import math
import re

import pytest
import torch
from torch import nn

from fitv2.model.config import FiTConfig
from fitv2.model.network import build_network
from fitv2.model.presets import PRESETS, preset

# What the authors' initialisation leaves in each layer, by its name here: the first pattern that matches counts.
# "xavier" is uniform within sqrt(6 / (fan in + fan out)), a number the deviation of a normal distribution.
FIT = {
    r"y_embedder\.embedding_table|t_embedder\.mlp\.[02]": 0.02,
    r"global_adaLN_modulation\.1|final_layer\..*": 0.0,
    r"blocks\.\d+\.adaLN_modulation\.2": 0.0,
    r"blocks\.\d+\.adaLN_modulation\.1": "xavier",
    r"x_embedder\.proj|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc(1_g|1_x|2))": "xavier",
    r"context_embedder\.mlp\.[02]|blocks\.\d+\.cross\.(q|kv|proj)": "xavier",
}
FULL = FIT | {r"blocks\.\d+\.adaLN_modulation\.1": 0.0}
GRID = {
    r"dit\..*(class_embedder\.embedding_table|timestep_embedder\.linear_[12])": 0.02,
    r"dit\.(.*norm1\.linear|proj_out_[12])": 0.0,
    r"dit\..*\.to_[qkv]": "xavier of three",  # The authors' are one layer, from D to 3 D.
    r"dit\.(pos_embed\.proj|.*(to_out\.0|ff\.net\.(0\.proj|2)))": "xavier",
}
CONTEXTS = {
    kind: FiTConfig(width=128, depth=1, heads=4, context=kind, context_channels=96) for kind in ("cross", "joint")
}
CONFIGS = {name: preset(name, depth=1) for name in PRESETS} | CONTEXTS  # All blocks are alike.


@pytest.mark.parametrize("name", CONFIGS)
def test_initial_values_of_every_layer_are_those_of_the_authors(name):
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = build_network(config)
    table = GRID if config.fixed_grid else FULL if getattr(config, "modulation", "") == "full" else FIT
    layers = {
        key: layer for key, layer in model.named_modules() if next(layer.parameters(recurse=False), None) is not None
    }
    for key, layer in layers.items():
        if key.endswith("cross"):
            assert not layer.gate.any()
            continue
        rule = next(rule for pattern, rule in table.items() if re.fullmatch(pattern, key))
        weight = layer.weight.detach().flatten(1)
        if rule == 0:
            assert not weight.any(), key
        else:
            check(key, weight, rule)
        bias = getattr(layer, "bias", None)
        assert bias is None or not bias.any(), f"{key}: the biases begin at zero"
    norms = [layer for layer in model.modules() if isinstance(layer, nn.LayerNorm) and layer.weight is not None]
    assert all((norm.weight == 1).all() for norm in norms)


def check(key: str, weight: torch.Tensor, rule: float | str) -> None:
    """Mean, deviation and, of a uniform distribution, its bound."""
    outputs, inputs = weight.shape
    xavier = math.sqrt(2 / (inputs + outputs * (3 if rule == "xavier of three" else 1)))
    std = rule if isinstance(rule, float) else xavier
    noise = 5 / math.sqrt(weight.numel())
    assert abs(float(weight.mean())) < noise * std, key
    assert float(weight.std()) == pytest.approx(std, rel=noise), key
    if isinstance(rule, str):
        assert float(weight.abs().max()) == pytest.approx(math.sqrt(3) * std, rel=0.01), key
    else:
        assert float(weight.abs().max()) > 3 * std, key


def test_the_learned_scale_of_queries_and_keys_starts_at_one():
    model = build_network(FiTConfig(width=32, depth=1, heads=2, qk_norm_affine=True))
    assert (model.blocks[0].attn.q_norm.weight == 1).all() and (model.blocks[0].attn.k_norm.weight == 1).all()
