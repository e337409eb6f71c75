"""Path conversions, time densities and the flow-matching loss."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fitv2 import TokenBatch
from fitv2.flow import path
from fitv2.flow.objective import flow_loss, flow_loss_at
from fitv2.flow.path import TimeDensity, sample_times, shift_time
from golden_fixtures import INDEX, assert_matches, load, official_model, unpad

# Of a million draws of the authors' logit-normal sampler; 0.002 is the tolerance stated with them.
AUTHORS_QUANTILES = {0.05: 0.162375, 0.1: 0.217749, 0.25: 0.337695, 0.5: 0.500030}
AUTHORS_QUANTILES |= {0.75: 0.662803, 0.9: 0.782883, 0.95: 0.838392}
AUTHORS_MEAN, AUTHORS_STD = 0.500237, 0.208189


@pytest.fixture
def point():
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = 0.01 + 0.98 * torch.rand(50, 1, generator=generator, dtype=torch.float64)
    return data, noise, t, path.interpolate(data, noise, t)


@pytest.mark.parametrize("kind", ["logit_normal", "uniform", "cosmap", "mode"])
def test_even_numbers_become_times_of_the_density(kind):
    density = TimeDensity(kind=kind, mean=-0.6, std=0.9)
    even = density.times((torch.arange(10**5) + 0.5) / 10**5).sort().values
    drawn = sample_times(10**5, torch.Generator().manual_seed(5), density).sort().values
    assert (even - drawn).abs().mean() < 0.003


def test_path_runs_from_noise_to_data(point):
    data, noise, t, _ = point
    assert torch.equal(path.interpolate(data, noise, 0.0), noise)
    assert torch.equal(path.interpolate(data, noise, 1.0), data)
    slope = (path.interpolate(data, noise, t + 1e-3) - path.interpolate(data, noise, t - 1e-3)) / 2e-3
    torch.testing.assert_close(slope, data - noise)


def test_the_score_follows_from_the_velocity(point):
    data, noise, t, x_t = point
    torch.testing.assert_close(path.velocity_to_score(data - noise, x_t, t), -noise / (1 - t))


def test_logit_normal_matches_the_authors_sampler():
    t = sample_times(10**6, torch.Generator().manual_seed(1), TimeDensity())
    assert t.dtype == torch.float32 and t.shape == (10**6,) and t.min() >= 0 and t.max() <= 1
    assert abs(t.mean().item() - AUTHORS_MEAN) < 0.002
    assert abs(t.std().item() - AUTHORS_STD) < 0.002
    for level, quantile in AUTHORS_QUANTILES.items():
        assert abs(t.quantile(level).item() - quantile) < 0.002, level


def test_time_densities():
    generator = torch.Generator().manual_seed(2)
    uniform = sample_times(10**5, generator, TimeDensity(kind="uniform"))
    assert abs(uniform.mean().item() - 1 / 2) < 0.005 and abs(uniform.var().item() - 1 / 12) < 0.002
    late = sample_times(10**5, generator, TimeDensity(mean=1.0, std=0.5))
    assert abs(late.median().item() - torch.sigmoid(torch.tensor(1.0)).item()) < 0.005
    assert abs(torch.logit(late).std().item() - 0.5) < 0.01


def distribution(t: np.ndarray, kind: str, scale: float) -> np.ndarray:
    """Of the densities of Stable Diffusion 3, in closed form: for cosmap 2 / (pi - 2 pi t + 2 pi t^2) integrated, for
    mode the inverse of its map from uniform numbers, found on a fine grid.
    """
    if kind == "cosmap":
        return 0.5 + 2 / np.pi * np.arctan(2 * t - 1)
    u = np.linspace(0, 1, 200_001)
    return np.interp(t, (1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u))[::-1], 1 - u[::-1])


@pytest.mark.parametrize(("kind", "scale"), [("cosmap", 1.29), ("mode", 1.29), ("mode", -1.0), ("mode", 1.75)])
def test_the_densities_of_stable_diffusion_3(kind, scale):
    """By the test of Kolmogorov and Smirnov; other scales and the uniform density fail it."""
    density = TimeDensity(kind=kind, scale=scale)
    t = sample_times(10**5, torch.Generator().manual_seed(3), density).double().numpy()
    assert t.min() >= 0 and t.max() <= 1
    assert kstest(t, distribution, args=(kind, scale)).pvalue > 0.01
    # Their time runs the other way, which makes no difference: the densities are symmetric.
    assert kstest(1 - t, distribution, args=(kind, scale)).pvalue > 0.01
    assert kstest(t, "uniform").pvalue < 1e-6 and kstest(t, distribution, args=("mode", 0.9)).pvalue < 1e-6


@pytest.mark.parametrize("kind", ["uniform", "cosmap", "mode"])
def test_no_time_is_beyond_the_path(kind, monkeypatch):
    """At the first and the last number that a float32 generator gives."""
    ends = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends)
    t = sample_times(4, torch.Generator(), TimeDensity(kind=kind))
    assert t.min() >= 0 and t.max() <= 1 and t[2] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"kind": "normal"}, {"std": 0.0}, {"scale": 1.8}, {"scale": -1.1}])
def test_impossible_density(wrong):
    with pytest.raises(ValueError):
        TimeDensity(**wrong)


def test_shift_time():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(t, 1.0), t)
    torch.testing.assert_close(shift_time(shift_time(t, 3.0), 1 / 3), t)
    torch.testing.assert_close(shift_time(t, 3.0)[5].item(), 0.75)
    torch.testing.assert_close(1 - shift_time(1 - t, 3.0), shift_time(t, 1 / 3))
    with pytest.raises(ValueError):
        shift_time(t, 0.0)


def test_loss_of_the_authors():
    tensors = load("f09")
    mask = tensors["in.kw.mask"]
    data = TokenBatch(unpad(tensors["in.x1"], mask), tensors["in.kw.size"][:, 0])
    noise = unpad(tensors["in.x0"], mask)
    model = official_model("f09")
    seen = {}

    def velocity(batch, t, y, *_):
        seen.update(x=batch.x, output=model(batch, t, y))
        return seen["output"]

    result = flow_loss_at(velocity, data, noise, tensors["in.t"], tensors["in.kw.y"])
    result.loss.backward()
    assert not result.per_image.requires_grad

    def expected(name):
        return unpad(tensors[f"out.{name}"], mask)

    assert_matches("f09", "xt", seen["x"], expected("xt"))
    assert_matches("f09", "ut", data.x - noise, expected("ut"))
    assert_matches("f09", "model_output", seen["output"].detach(), expected("model_output"))
    assert_matches("f09", "loss", result.per_image)
    assert_matches("f09", "loss_mean", result.loss.detach().view(1))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key in tensors:
        if key.startswith("out.grad."):
            assert_matches("f09", key.removeprefix("out."), gradients[key.removeprefix("out.grad.")])
    norms = torch.stack([gradients.pop(name).norm() for name in INDEX["grad_norm_order"]])
    assert not gradients
    assert_matches("f09", "grad_norms", norms)
    assert_matches("f09", "grad_total_norm", norms.norm().view(1))


SIZES = [[2, 3], [5, 1], [4, 4]]


def toy_batch(sizes=SIZES):
    hw = torch.tensor(sizes)
    x = torch.randn(int(hw.prod(1).sum()), 4, generator=torch.Generator().manual_seed(0))
    return TokenBatch(x, hw)


def zero(batch, t, y, *_):
    return torch.zeros_like(batch.x)


def test_loss_weighs_every_image_the_same():
    data = toy_batch()
    noise = torch.randn(data.x.shape, generator=torch.Generator().manual_seed(1))
    result = flow_loss_at(zero, data, noise, torch.tensor([0.2, 0.5, 0.8]), torch.zeros(3, dtype=torch.int64))
    by_hand = torch.stack([part.square().mean() for part in (data.x - noise).split(data.lengths)])
    torch.testing.assert_close(result.per_image, by_hand)
    torch.testing.assert_close(result.loss, by_hand.mean())


def test_loss_is_zero_for_the_true_velocity_at_each_images_own_time():
    data = toy_batch()
    noise = torch.randn(data.x.shape, generator=torch.Generator().manual_seed(1))

    def true_velocity(batch, t, y, *_):
        return (data.x - batch.x) / (1 - data.expand_to_tokens(t)[:, None])

    result = flow_loss_at(true_velocity, data, noise, torch.tensor([0.2, 0.5, 0.8]), torch.zeros(3, dtype=torch.int64))
    assert result.loss < 1e-10


def test_loss_is_float32_for_bfloat16_tokens():
    data = toy_batch().to(torch.bfloat16)
    labels = torch.zeros(3, dtype=torch.int64)
    result = flow_loss_at(
        lambda *inputs: zero(*inputs).bfloat16(), data, torch.zeros_like(data.x), torch.zeros(3), labels
    )
    assert result.loss.dtype == result.per_image.dtype == torch.float32
    exact = torch.stack([part.float().square().mean() for part in data.x.split(data.lengths)])
    torch.testing.assert_close(result.per_image, exact)


def test_loss_draws_all_from_its_generator():
    data = toy_batch()
    labels = torch.tensor([0, 1, 2])
    calls = []

    def velocity(batch, t, y, *_):
        calls.append((batch.x, t, y))
        return zero(batch, t, y)

    torch.manual_seed(0)
    first = flow_loss(velocity, data, labels, 10, torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    second = flow_loss(velocity, data, labels, 10, torch.Generator().manual_seed(7))
    assert torch.equal(first.per_image, second.per_image) and torch.equal(first.t, second.t)
    for one, other in zip(*calls, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first.t, sample_times(3, torch.Generator().manual_seed(7), TimeDensity()))
    third = flow_loss(zero, data, labels, 10, torch.Generator().manual_seed(8))
    assert not torch.equal(first.t, third.t)
    late = TimeDensity(mean=3.0, std=0.1)
    density = flow_loss(zero, data, labels, 10, torch.Generator().manual_seed(7), density=late)
    assert torch.equal(density.t, sample_times(3, torch.Generator().manual_seed(7), late))


@pytest.mark.parametrize("class_dropout_prob", [0.0, 0.1, 1.0])
def test_labels_are_dropped_one_by_one(class_dropout_prob):
    count = 4000
    data = toy_batch([[1, 1]] * count)
    labels = torch.arange(count) % 10
    seen = []

    def velocity(batch, t, y, *_):
        seen.append(y)
        return zero(batch, t, y)

    flow_loss(velocity, data, labels, 10, torch.Generator().manual_seed(0), class_dropout_prob=class_dropout_prob)
    dropped = seen[0] == 10
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    # Four standard deviations of the fraction dropped.
    assert (
        abs(dropped.float().mean().item() - class_dropout_prob)
        <= 4 * (class_dropout_prob * (1 - class_dropout_prob) / count) ** 0.5
    )


SIZED = TokenBatch(torch.randn(4 + 16 + 64, 3, generator=torch.Generator().manual_seed(5)), [(2, 2), (2, 8), (8, 8)])


def loss_of(velocity=None, **settings):
    """The loss of a network that predicts zero unless another is given, always with the same random numbers."""
    zero = velocity or (lambda batch, t, y, *_: torch.zeros_like(batch.x))
    return flow_loss(zero, SIZED, torch.zeros(3).long(), 1, torch.Generator().manual_seed(1), **settings)


def test_larger_images_train_at_noisier_times():
    plain, shifted = loss_of().t, loss_of(shift_tokens=16).t
    # Stable Diffusion 3: the odds of the noise level grow by the root of the ratio.
    odds, by = (1 - plain) / plain, torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close((1 - shifted) / shifted, odds * by)
    assert shifted[1] == plain[1]


def test_the_internal_head_has_its_share_of_the_loss_and_none_of_the_report():
    def two_heads(batch, t, y, *_, internal):
        assert internal
        return torch.cat((torch.zeros_like(batch.x), torch.ones_like(batch.x)), dim=1)

    plain = loss_of()
    ones = loss_of(lambda batch, t, y, *_: torch.ones_like(batch.x))
    both = loss_of(two_heads, internal_weight=0.25)
    torch.testing.assert_close(both.loss, plain.loss + 0.25 * ones.loss)
    assert torch.equal(both.per_image, plain.per_image)


def test_positions_are_drawn_after_everything_else():
    seen = {}

    def network(batch, t, y, *_, positions_T2):
        seen["positions"] = positions_T2
        return torch.zeros_like(batch.x)

    assert torch.equal(loss_of(network, position_range=9).loss, loss_of().loss)
    assert seen["positions"].shape == (84, 2) and seen["positions"].max() <= 8
