"""Weights in half precision: one pass through the network, and so one call of its hooks."""

import pytest
import torch

from fitv2 import FiTConfig, FiTTransformer2DModel, TokenBatch
from fitv2.model.config import DiTConfig, FiTv1Config, SiTConfig
from tiny import random_model

SIZES = {"width": 32, "depth": 1, "heads": 2, "num_classes": 3}
CONFIGS = [FiTConfig(**SIZES), FiTv1Config(**SIZES), DiTConfig(**SIZES, side=3), SiTConfig(**SIZES, side=3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("autocast", [False, True])
def test_hooks_run_once(config, dtype, autocast):
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
