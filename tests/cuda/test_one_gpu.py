"""What only a CUDA device can show; collected where there is one."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from fitv2 import FiTConfig, TokenBatch
from fitv2.flow.objective import flow_loss
from fitv2.model import attention
from fitv2.sampling.generate import guided_model, sample_batch
from fitv2.sampling.solver_names import ADAPTIVE, DIFFUSION_SOLVERS, SOLVER_NAMES
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.tokens import segment_sum, upload
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


@contextmanager
def no_waiting():
    """Torch raises an error where the host would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_of_the_model_and_its_gradients_wait_for_nothing(dtype):
    """Sizes that are unsorted and new, as every pack of a training brings them."""
    model, generator = random_model(CONFIG).cuda(), torch.Generator()
    data, _, labels = inputs("cpu")
    torch.cuda.synchronize()
    with no_waiting(), torch.autocast("cuda", dtype, enabled=dtype == torch.bfloat16):
        data, labels = data.to("cuda"), upload(labels, "cuda")
        flow_loss(model, data, labels, CONFIG.num_classes, generator).loss.backward()


@pytest.mark.parametrize("solver", [solver for solver in SOLVER_NAMES if solver not in ADAPTIVE])
@torch.inference_mode()
def test_a_step_of_sampling_waits_for_nothing(solver):
    config = replace(CONFIG, prediction="epsilon" if solver in DIFFUSION_SOLVERS else "velocity")
    model, device = random_model(config).cuda().bfloat16(), torch.device("cuda")
    sampling = Sampling(solver=solver, steps=4, interval=(0.2, 0.9), power=1.0)
    specs = [SampleSpec(i, (2 * h, 2 * w), i) for i, (h, w) in enumerate(SIZES)]
    with no_waiting():
        x, _ = sample_batch(guided_model(model, config, specs, sampling, device), [spec.seed for spec in specs])
    assert x.isfinite().all()


@pytest.mark.parametrize("shape", [(), (64,), (3, 5)])
def test_sums_over_images_agree_with_the_cpu(shape):
    batch, *_ = inputs("cpu")
    per_token = torch.randn(len(batch.x), *shape)
    expected = segment_sum(per_token, *batch.row_of_token)
    made = segment_sum(per_token.cuda(), *batch.to("cuda").row_of_token)
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
