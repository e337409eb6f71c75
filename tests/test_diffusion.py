"""FiT, the baseline: the authors' forward, losses and sampling steps, and packed images as if alone."""

import math

import pytest
import torch

import fitv2
from fitv2.diffusion.objective import diffusion_loss, diffusion_loss_at, variational_bound
from fitv2.diffusion.schedule import ddim_steps, ddpm_steps, denoise, diffuse, linear_schedule
from fitv2.sampling.ddpm import ddpm_step, sample_ddim, sample_ddpm
from fitv2.sampling.guidance import GuidedModel
from fitv2.sampling.spec import Sampling
from golden_fixtures import assert_matches, load, official_model

SCHEDULE, CPU = linear_schedule(), torch.device("cpu")
# The reference caps the integer step at 1.0 in the model; the call does it here.
CAPS = {"literal": lambda t: t.clamp(max=1), "uncapped": lambda t: t}


def packed(x_BCN: torch.Tensor, size_B12: torch.Tensor) -> fitv2.TokenBatch:
    """(B, C, N) with padding at the end to a packed batch."""
    hw = size_B12[:, 0]
    return fitv2.TokenBatch(torch.cat([x[:, :n].T for x, n in zip(x_BCN, hw.prod(1).tolist(), strict=True)]), hw)


@pytest.mark.parametrize("call", ["float_t", "int_t_literal", "int_t_uncapped"])
@torch.no_grad()
def test_forward(call):
    tensors = load("f07")
    batch = packed(tensors["in.padded.x"], tensors["in.padded.size"])
    t = tensors["in.padded.t"] if call == "float_t" else tensors["in.padded.t_int"]
    t = CAPS[call.removeprefix("int_t_")](t) if call != "float_t" else t
    output = official_model("f07", "fitv1")(batch, t.float(), tensors["in.padded.y"])
    assert_matches("f07", f"{call}.tokens", output)


@pytest.mark.parametrize("call", ["cfg_float_t", "cfg_int_t_uncapped"])
@torch.no_grad()
def test_guided_forward(call):
    tensors, model = load("f07"), official_model("f07", "fitv1")
    batch = packed(tensors["in.cfg.x"], tensors["in.cfg.size"])
    first, t = batch.select([0, 1]), tensors["in.cfg.t" if call == "cfg_float_t" else "in.cfg.t_int"].float()
    labels = tensors["in.cfg.y"][:2]
    guided = GuidedModel(model, model.config, first.hw, labels, Sampling(guidance=1.5, channels=12), CPU)
    expected = tensors[f"out.{call}.full"][:2].transpose(1, 2).flatten(0, 1)
    assert_matches("f07", f"{call}.full", guided(first.x, t[:2]), expected)


def test_schedule():
    for name, ours in (
        ("betas", SCHEDULE.betas),
        ("alphas_cumprod", SCHEDULE.alphas_cumprod),
        ("posterior_variance", SCHEDULE.posterior_variance),
    ):
        assert_matches("f12", name, ours)
    tensors = load("f12")
    assert list(ddpm_steps(6)) == tensors["out.timestep_map"].tolist()
    assert list(ddpm_steps(250)) == tensors["out.timestep_map_250"].tolist()
    assert list(ddim_steps(5)) == tensors["out.timestep_map_ddim"].tolist()
    assert_matches("f12", "spaced_betas", SCHEDULE.respaced(ddpm_steps(6)).betas)
    assert ddim_steps(300)[-1] == 996 and ddpm_steps(1) == (0,)
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        ddpm_steps(1001)


@pytest.mark.parametrize("cap", CAPS)
@torch.no_grad()
def test_training_losses(cap):
    tensors, model = load("f12"), official_model("f12", "fitv1")
    data = packed(tensors["in.train.x_start"], tensors["in.train.size"])
    noise = packed(tensors["in.train.noise"], tensors["in.train.size"]).x
    index = tensors["in.train.t"]
    state = diffuse(SCHEDULE, data.x, noise, index[data.image_index])
    assert_matches("f12", "x_t", state, packed(tensors["out.x_t"], tensors["in.train.size"]).x)
    losses = diffusion_loss_at(
        lambda batch, t, y, *_: model(batch, CAPS[cap](t), y), data, noise, index, tensors["in.train.y"], SCHEDULE
    )
    assert_matches("f12", f"train.{cap}.mse", losses.mse)
    # The reference's bound counts padding, too: data 0 and output 0 there, and the noise it was given.
    counted = losses.bound + bound_of_padding(tensors)
    assert_matches("f12", f"train.{cap}.vb", counted)
    assert_matches("f12", f"train.{cap}.loss", losses.mse + counted)


def bound_of_padding(tensors) -> torch.Tensor:
    total = torch.zeros(4)
    for i, tokens in enumerate(tensors["in.train.size"][:, 0].prod(1).tolist()):
        noise = tensors["in.train.noise"][i, :, tokens:].T
        zero, index = torch.zeros_like(noise), tensors["in.train.t"][i]
        state = diffuse(SCHEDULE, zero, noise, index)
        bits = variational_bound(SCHEDULE, zero, state, torch.zeros(len(noise), 32), index)
        total[i] = bits.sum() / (16 * tokens)
    return total


def sampled(cap: str, steps: tuple[int, ...], **guidance):
    """(model output of x and step, starting x, schedule) of the fixture's two images of 3x4 patches."""
    tensors, model = load("f12"), official_model("f12", "fitv1")
    start = packed(tensors["in.sample.x"], tensors["in.sample.size"])

    def denoiser(batch, step, labels, context):
        return model(batch, CAPS[cap](step), labels)

    sampling = Sampling(**guidance) if guidance else Sampling(guidance=1)
    output = GuidedModel(denoiser, model.config, start.hw, tensors["in.sample.y"], sampling, CPU)
    return output, start.x, SCHEDULE.respaced(steps)


def tokens_of(x_BCN: torch.Tensor) -> torch.Tensor:
    return x_BCN.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("step", [999, 700, 1, 0])
@torch.no_grad()
def test_one_ddpm_step(cap, step):
    tensors = load("f12")
    output, x, schedule = sampled(cap, tuple(range(1000)))
    index, name = torch.tensor(step), f"p_sample.{cap}.t{step}"
    out = output(x, index.float())
    draw = (lambda: tokens_of(tensors["in.sample.noise"][0])) if step else None
    before, after = denoise(schedule, x, out, index).data, ddpm_step(schedule, x, out, index, draw)
    assert_matches("f12", f"{name}.pred_xstart", before, tokens_of(tensors[f"out.{name}.pred_xstart"]))
    assert_matches("f12", f"{name}.sample", after, tokens_of(tensors[f"out.{name}.sample"]))


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize(("kind", "guidance"), [("", {}), ("_cfg", {"guidance": 1.5, "channels": 12})])
@torch.no_grad()
def test_ddpm_loop(cap, kind, guidance):
    tensors = load("f12")
    output, x, schedule = sampled(cap, ddpm_steps(6), **guidance)
    draws = iter(tensors[f"in.sample{kind}.noise"])
    final = sample_ddpm(output, x, schedule, lambda: tokens_of(next(draws)[:2]))
    name = f"p_sample_loop{kind}.{cap}.final"
    assert_matches("f12", name, final, tokens_of(tensors[f"out.{name}"]))


@pytest.mark.parametrize("cap", CAPS)
@torch.no_grad()
def test_ddim_loop(cap):
    tensors = load("f12")
    output, x, schedule = sampled(cap, ddim_steps(5))
    name = f"ddim_loop.{cap}.final"
    assert_matches("f12", name, sample_ddim(output, x, schedule), tokens_of(tensors[f"out.{name}"]))


def test_the_bound_teaches_the_variance_only():
    """Its gradient on the noise half of the output is the gradient of the squared error alone."""
    hw = torch.tensor([[2, 2], [1, 3]])
    data = fitv2.TokenBatch(torch.randn(7, 4), hw)
    output = torch.randn(7, 8, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    loss = diffusion_loss(lambda batch, t, y, *_: output, data, torch.tensor([0, 1]), 2, generator, SCHEDULE)
    loss.loss.backward()
    generator.manual_seed(0)
    torch.randint(1000, (2,), generator=generator)
    torch.rand(2, generator=generator)
    noise = torch.randn(7, 4, generator=generator)
    error = 2 * (output.detach()[:, :4] - noise)
    weights = torch.tensor([1 / (2 * 4 * 4)] * 4 + [1 / (2 * 3 * 4)] * 3)[:, None]
    torch.testing.assert_close(output.grad[:, :4], error * weights)
    assert output.grad[:, 4:].abs().min() > 0
    assert loss.loss.item() == pytest.approx((loss.mse + loss.bound).mean().item())
    assert math.isfinite(loss.loss.item())
