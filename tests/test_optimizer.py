"""Muon, and which parameters have it and which weight decay."""

import torch
from torch.optim import Muon as TorchMuon

from fitv2.model.network import build_network
from fitv2.training.optimizer import Muon, Optimizer, orthogonal
from tiny import CONFIG

SHAPES = [(6, 4), (6, 4), (4, 9), (5, 5)]


def weights() -> list[torch.nn.Parameter]:
    """The same at each call, with gradients."""
    torch.manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for weight in found:
        weight.grad = torch.randn_like(weight)
    return found


def test_singular_values_come_near_to_one():
    torch.manual_seed(0)
    for shape in ((3, 20, 8), (2, 8, 20), (1, 7, 7)):
        for dtype in (torch.float32, torch.float64):
            made = orthogonal(torch.randn(shape, dtype=dtype))
            assert made.shape == shape and made.dtype == dtype
            values = torch.linalg.svdvals(made)
            # Where the values of a square matrix were near zero, five iterations do not bring them up to one.
            assert values.max() < 1.25 and values.median() > 0.65


def test_the_steps_are_those_of_torch_within_bfloat16():
    ours, theirs = weights(), weights()
    first = Muon(ours, lr=0.1, weight_decay=0.2)
    second = TorchMuon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        first.step()
        second.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=0.02, rtol=0)


def test_matrices_can_be_made_orthogonal_in_bfloat16():
    ours, rough = weights(), weights()
    for weights_of, dtype in ((ours, torch.float32), (rough, torch.bfloat16)):
        Muon(weights_of, lr=0.1, dtype=dtype).step()
    assert not torch.equal(ours[0], rough[0])
    for one, other in zip(ours, rough, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, atol=0.01, rtol=0)


def test_a_gradient_that_is_not_finite_changes_nothing():
    found = weights()
    optimizer = Muon(found, lr=0.1, weight_decay=0.1)
    optimizer.step()
    before = [weight.detach().clone() for weight in found]
    moments = [optimizer.state[weight]["momentum_buffer"].clone() for weight in found]
    found[1].grad[0, 0] = torch.nan
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for weight, kept, moment in zip(found, before, moments, strict=True):
        assert torch.equal(weight, kept) and torch.equal(optimizer.state[weight]["momentum_buffer"], moment)


def test_matrices_of_blocks_have_muon_and_matrices_alone_have_decay():
    network = build_network(CONFIG)
    optimizer = Optimizer(dict(network.named_parameters()), 1e-3, 0.99, weight_decay=0.1, muon=True)
    (adamw, others), (muon, matrices) = optimizer.parts
    assert isinstance(muon, Muon) and matrices
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in matrices)
    assert {len(group["params"]): group["weight_decay"] for group in adamw.param_groups} == {
        len([n for n in others if n.endswith(".weight") and "embedding_table" not in n]): 0.1,
        len([n for n in others if n.endswith(".bias") or "embedding_table" in n]): 0.0,
    }
    assert sorted(others + matrices) == sorted(name for name, _ in network.named_parameters())
    plain = Optimizer(dict(network.named_parameters()), 1e-3, 0.99)
    assert [names for _, names in plain.parts] == [[name for name, _ in network.named_parameters()]]


def test_a_network_whose_blocks_alone_are_trained_has_muon_alone():
    network = build_network(CONFIG)
    names = [name for name, p in network.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    parameters = {name: dict(network.named_parameters())[name] for name in names}
    optimizer = Optimizer(parameters, 3e-3, 0.99, muon=True)
    assert len(optimizer.parts) == 1 and optimizer.learning_rate == 3e-3
