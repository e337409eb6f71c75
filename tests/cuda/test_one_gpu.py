"""What only a CUDA device can show; collected where there is one."""

import copy

import pytest
import torch

from fitv2 import FiTConfig, TokenBatch
from fitv2.model import attention
from fitv2.tokens import sum_images
from tiny import random_model

CONFIG = FiTConfig(width=64, depth=2, heads=2, num_classes=5)
SIZES = [(4, 6), (16, 16), (1, 9), (30, 20)]


def inputs(device: str) -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(h * w for h, w in SIZES), CONFIG.token_channels, generator=generator)
    t = torch.rand(len(SIZES), generator=generator)
    return TokenBatch(x, SIZES).to(device), t.to(device), torch.arange(len(SIZES), device=device)


def test_float32_agrees_with_the_cpu():
    model = random_model(CONFIG)
    expected = model(*inputs("cpu"))
    made = model.cuda()(*inputs("cuda"))
    torch.testing.assert_close(made.cpu(), expected, atol=2e-4, rtol=2e-4)


def test_sums_over_images_agree_with_the_cpu():
    batch, *_ = inputs("cpu")
    per_token = torch.randn(len(batch.x), 64)
    expected = sum_images(per_token, *batch.rows)
    made = sum_images(per_token.cuda(), *batch.to("cuda").rows)
    torch.testing.assert_close(made.cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_attention_agrees_with_runs(dtype, monkeypatch):
    batch, *_ = inputs("cuda")
    q, k, v = (torch.randn(len(batch.x), 4, 32, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    if not attention.takes_varlen(q):
        pytest.skip("Flash Attention needs compute capability 8")
    results = []
    for takes in (True, False):
        monkeypatch.setattr(attention, "takes_varlen", lambda q, takes=takes: takes)
        output = attention.packed_attention(q, k, v, batch, batch)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), (q, k, v))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


def test_training_steps_compiled_checkpointed_and_plain_agree():
    """Under bfloat16 autocast, with the padded tail that makes shapes static."""
    plain = random_model(CONFIG).cuda().train()
    compiled, checkpointed = copy.deepcopy(plain), copy.deepcopy(plain)
    compiled.compile_blocks(token_budget=1024)
    checkpointed.activation_checkpointing = True
    losses, gradients = [], []
    for model in (plain, compiled, checkpointed):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(*inputs("cuda")).float().square().mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=2e-2)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 5e-2 * gradients[0].norm()
