"""Context tokens of each image's own length: packed as one by one, and off by default."""

from dataclasses import replace

import pytest
import torch

from fitv2 import FiT, FiTConfig, TokenBatch
from fitv2.model import attention
from fitv2.model.context import join
from fitv2.model.numerics import plain_attention
from fitv2.positions import random_positions
from fitv2.tokens import pack_context
from tiny import random_model

HW = torch.tensor([[2, 3], [4, 1], [2, 2], [1, 4], [3, 3]])
LENGTHS = [5, 2, 7, 2, 1]


def config(kind: str) -> FiTConfig:
    return FiTConfig(width=32, depth=2, heads=2, num_classes=0, context=kind, context_channels=12)


def given() -> tuple[TokenBatch, torch.Tensor, torch.Tensor, TokenBatch]:
    torch.manual_seed(1)
    batch = TokenBatch(torch.randn(int(HW.prod(1).sum()), 16), HW)
    context = pack_context([torch.randn(length, 12) for length in LENGTHS])
    return batch, torch.linspace(0, 1, 5), torch.zeros(5, dtype=torch.int64), context


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_packed_equals_one_by_one_and_any_order(kind):
    """Values, and gradients of weights and context."""
    model = random_model(config(kind))
    batch, t, y, context = given()
    context.x.requires_grad_()
    together = model(batch, t, y, context=context)
    together.square().sum().backward()
    gradients = [context.x.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    alone_context = TokenBatch(context.x.detach().clone().requires_grad_(), context.hw)
    alone = [
        model(batch.select([i]), t[i : i + 1], y[i : i + 1], context=alone_context.select([i])) for i in (3, 0, 4, 2, 1)
    ]
    ordered = torch.cat([alone[i] for i in (1, 4, 3, 0, 2)])
    torch.testing.assert_close(together, ordered, atol=1e-5, rtol=1e-5)
    ordered.square().sum().backward()
    one_by_one = [alone_context.x.grad, *(parameter.grad for parameter in model.parameters())]
    torch.testing.assert_close(one_by_one, gradients, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_joint_context_is_sorted_by_whole_sequences(monkeypatch):
    """Two images of 4 and 6 tokens with texts of 5 and 3 are one product of attention."""
    model, calls = random_model(config("joint")), []
    monkeypatch.setattr(attention, "fastest_attention", lambda q, k: calls.append(q.shape) or plain_attention)
    batch = TokenBatch(torch.randn(17, 16), [(2, 2), (1, 7), (2, 3)])
    context = pack_context([torch.randn(length, 12) for length in (5, 1, 3)])
    model(batch, torch.zeros(3), torch.zeros(3, dtype=torch.int64), context=context)
    assert [(shape[0], shape[2]) for shape in calls] == [(1, 8), (2, 9)] * 2


@torch.no_grad()
def test_a_new_cross_attention_adds_nothing():
    """So that a model of classes can be given one: with the same other weights it computes what it did."""
    plain, crossed = FiT(config("none")), FiT(config("cross"))
    for model in (plain, crossed):
        for name, parameter in model.named_parameters():
            if "cross" not in name and "context" not in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    batch, t, y, context = given()
    assert torch.equal(plain(batch, t, y), crossed(batch, t, y, context=context))


def test_joined_positions_are_the_diagonal_and_then_the_image():
    batch = TokenBatch(torch.arange(6.0)[:, None], torch.tensor([[1, 2], [2, 2]]))
    context = pack_context([torch.tensor([[10.0], [11.0], [12.0]]), torch.tensor([[20.0]])])
    joined, positions, own = join(batch, batch.positions, context)
    assert joined.x[:, 0].tolist() == [10, 11, 12, 0, 1, 20, 2, 3, 4, 5] and joined.lengths == [5, 5]
    first, second = [[-3, -3], [-2, -2], [-1, -1], [0, 0], [0, 1]], [[-1, -1], [0, 0], [0, 1], [1, 0], [1, 1]]
    assert positions.tolist() == first + second
    assert torch.equal(joined.x[own], batch.x)


@torch.no_grad()
def test_a_joint_context_goes_with_positions_of_ones_own():
    model = random_model(replace(config("joint"), position_range=9))
    batch, t, y, context = given()
    drawn = random_positions(batch, 9, torch.Generator().manual_seed(0))
    for places in (None, drawn):
        together = batch.with_x(model(batch, t, y, context, positions_T2=places))
        for i in range(len(batch)):
            own = None if places is None else batch.with_x(places).select([i]).x
            alone = model(batch.select([i]), t[i : i + 1], y[i : i + 1], context.select([i]), positions_T2=own)
            torch.testing.assert_close(together.select([i]).x, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(batch, t, y, context), model(batch, t, y, context, positions_T2=drawn))


def test_a_context_that_is_missing_or_not_wanted():
    batch, t, y, context = given()
    with pytest.raises(ValueError, match="none given"):
        FiT(config("cross"))(batch, t, y)
    with pytest.raises(ValueError, match=r"context='none'.* 5 given"):
        FiT(config("none"))(batch, t, y, context=context)
    with pytest.raises(ValueError, match="2 given for 5"):
        FiT(config("joint"))(batch, t, y, context=context.select([0, 1]))
    with pytest.raises(ValueError, match="no context 'text'"):
        config("text")
