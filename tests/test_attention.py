"""Attention within images: every way of computing it gives the same, and a tail of padding leaves no trace."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from fitv2 import FiTConfig, TokenBatch
from fitv2.model import attention, numerics
from fitv2.tokens import pack_context
from tiny import random_model

IMAGES = TokenBatch(torch.zeros(70, 1), [(2, 5), (5, 6), (30, 1)])
CONTEXTS = TokenBatch(torch.zeros(12, 1), [(4, 1), (1, 1), (7, 1)])


def queries_keys_values(keys: TokenBatch) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(len(batch.x), 2, 8, requires_grad=True) for batch in (IMAGES, keys, keys)]


def one_by_one(q, k, v, lengths: list[int], key_lengths: list[int]) -> torch.Tensor:
    """Each image alone, by torch's own attention."""
    parts = zip(q.split(lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    images = ([x.transpose(0, 1) for x in part] for part in parts)
    return torch.cat([F.scaled_dot_product_attention(*image).transpose(0, 1) for image in images])


def test_the_parameters_of_torchs_varlen_attention():
    """It runs on a GPU only; that its parameters are still these can be seen anywhere."""
    given = inspect.signature(varlen_attn).bind("q", "k", "v", "from q", "from k", 1, 2).arguments
    assert list(given) == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def varlen_of_offsets(q, k, v, from_q, from_k, longest_q, longest_k):
    """What torch's kernel does, which a CPU has not: stands in for it, from the arguments that it gets."""
    assert from_q.dtype == from_k.dtype == torch.int32
    lengths, key_lengths = from_q.diff().tolist(), from_k.diff().tolist()
    assert (longest_q, longest_k) == (max(lengths), max(key_lengths))
    return one_by_one(q, k, v, lengths, key_lengths)


@pytest.mark.parametrize("keys", [IMAGES, CONTEXTS], ids=["own", "context"])
@pytest.mark.parametrize("backend", ["plain", "fused", "varlen"])
def test_every_backend_is_attention_one_by_one(monkeypatch, backend, keys):
    if backend == "fused":
        monkeypatch.setattr(attention, "fastest_attention", lambda q, k: F.scaled_dot_product_attention)
    if backend == "varlen":
        monkeypatch.setattr(attention, "takes_varlen", lambda q: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_of_offsets)
    qkv = queries_keys_values(keys)
    expected = one_by_one(*qkv, IMAGES.lengths, keys.lengths)
    made = attention.packed_attention(*qkv, IMAGES, keys)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(made)
    ours, theirs = (torch.autograd.grad((result * weight).sum(), qkv) for result in (made, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


PLAIN, FUSED = numerics.plain_attention, F.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("dtype", "longest"), [(torch.float32, 512), (torch.float64, 512), (torch.bfloat16, 256), (torch.float16, 0)]
)
def test_the_backend_is_chosen_by_length_and_precision(dtype, longest):
    for length, chosen in ((longest or 1, PLAIN if longest else FUSED), (longest + 1, FUSED)):
        q, k = torch.zeros(1, 1, 1, 8, dtype=dtype), torch.zeros(1, 1, length, 8, dtype=dtype)
        assert numerics.fastest_attention(q, k) is numerics.fastest_attention(k, q) is chosen


@pytest.mark.parametrize("way", [PLAIN, FUSED, None], ids=["plain", "fused", "as chosen"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.0027), (torch.float16, 0.0004)])
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_logits_are_not_rounded(monkeypatch, way, dtype, bound, autocast):
    """Against float64, at standard deviations of the logits of 1, 4 and 16; the error must not grow with them."""
    if way is not None:
        monkeypatch.setattr(attention, "fastest_attention", lambda q, k: way)
    torch.manual_seed(0)
    for pairs in ([(3, 9, 9), (2, 49, 49)], [(1, 300, 300)], [(2, 49, 7), (1, 20, 130)]):
        queries, keys = (columns([pair[side] for pair in pairs for _ in range(pair[0])]) for side in (1, 2))
        for deviation in (1, 4, 16):
            q, k, v = (torch.randn(len(batch.x), 2, 64) for batch in (queries, keys, keys))
            q, k, v = (x.to(dtype).requires_grad_() for x in (q * deviation, k, v))
            exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
            expected = one_by_one(*exact, queries.lengths, keys.lengths)
            with torch.autocast("cpu", dtype, enabled=autocast):
                made = attention.packed_attention(q, k, v, queries, keys)
            assert error(made, expected) < bound
            weight = torch.randn(made.shape).to(dtype)
            with torch.autocast("cpu", dtype, enabled=autocast):
                ours = torch.autograd.grad(made, (q, k, v), weight)
            gradients = zip(ours, torch.autograd.grad(expected, exact, weight.double()), strict=True)
            # The fused kernel rounds the gradients of the logits, three times more.
            assert max(error(one, other) for one, other in gradients) < bound * (1 if way is PLAIN else 3)


def columns(lengths: list[int]) -> TokenBatch:
    return TokenBatch(torch.zeros(sum(lengths), 1), [(length, 1) for length in lengths])


def error(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((made.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("context", ["none", "cross", "joint"])
def test_a_tail_up_to_the_budget_leaves_no_trace(context):
    """Values and gradients; a batch beyond the budget goes without."""
    config = FiTConfig(width=32, depth=2, heads=2, num_classes=3, context=context, context_channels=6)
    model = random_model(config)
    batch = TokenBatch(torch.randn(70, 16), IMAGES.sizes)
    given = {} if context == "none" else {"context": pack_context([torch.randn(n, 6) for n in (3, 1, 4)])}
    arguments = batch, torch.rand(3), torch.tensor([0, 3, 1])
    results = []
    for model.token_budget in (0, 96, 20):
        model.zero_grad()
        output = model(*arguments, **given)
        output.square().mean().backward()
        results.append((output, [p.grad.clone() for p in model.parameters()]))
    (plain, gradients), *others = results
    for output, other in others:
        assert output.shape == plain.shape
        torch.testing.assert_close(output, plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [3, 9], ids=["probabilities kept", "made again"])
def test_gradients_of_gradients(length):
    """Of a gradient penalty, say; the probabilities that are kept for one backward pass must not be constants there."""
    qkv = [torch.randn(2, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradgradcheck(numerics.plain_attention, qkv)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 64, (8, 0), True),
        ("cuda", torch.float16, 256, (9, 0), True),
        ("cuda", torch.bfloat16, 264, (8, 0), False),
        ("cuda", torch.bfloat16, 36, (8, 0), False),
        ("cuda", torch.bfloat16, 64, (7, 5), False),
        ("cuda", torch.float32, 64, (8, 0), False),
        ("cpu", torch.bfloat16, 64, (8, 0), False),
    ],
)
def test_takes_varlen_knows_the_kernels_limits(monkeypatch, device, dtype, head_dim, capability, expected):
    """A GPU is not at hand: what torch would say of one is put in its place."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(5, 2, head_dim))
    assert attention.takes_varlen(q) is expected
