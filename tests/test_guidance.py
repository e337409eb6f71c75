"""Classifier-free guidance: parity with the authors, and what it does not compute."""

from dataclasses import replace

import pytest
import torch

from fitv2 import FiTConfig
from fitv2.errors import UserError
from fitv2.flow.path import shift_time
from fitv2.sampling.guidance import GuidedModel, guidance_scale
from fitv2.sampling.spec import Sampling, check_sampling
from golden_fixtures import assert_matches, kwargs, load, official_model

GUIDED_CHANNELS = 12  # the authors' three of four latent channels, in patches of 2 x 2
CPU = torch.device("cpu")
CONFIG = FiTConfig(width=32, depth=1, heads=2, num_classes=10)
HW = torch.tensor([[1, 2], [1, 3]])
X = torch.zeros(5, 16)


class Toy:
    """A denoiser whose output is 3 with a label and 1 without; it counts the images of each call."""

    def __init__(self, labels=(3, 4), **settings):
        self.images = []
        self.guided = GuidedModel(self, CONFIG, HW, torch.tensor(labels), Sampling(**settings), CPU)

    def __call__(self, batch, t, y, context):
        self.images.append(len(batch))
        assert len(t) == len(y) == len(batch)
        return batch.expand_to_tokens(torch.where(y == 10, 1.0, 3.0))[:, None].expand(-1, 16)

    def at(self, *times):
        """The output of both images, (2,), at a time for both or one for each."""
        t = torch.tensor(times[0] if len(times) == 1 else times)
        return self.guided(X, t)[[0, 2], 0]


@pytest.mark.parametrize("call", ["pow0", "pow1", "pow2.5", "pow1_shift3"])
@torch.no_grad()
def test_guidance_of_the_authors(call):
    tensors = load("f08")
    name = "fitv2_shift3" if call.endswith("shift3") else "fitv2"
    model, shift = official_model("f08", name), kwargs("f08", name).get("time_shifting", 1)
    power = float(call.removeprefix("pow").removesuffix("_shift3"))
    x, y, times, sizes = (tensors[f"in.cfg.{key}"] for key in ("x", "y", "t", "size"))
    images, outputs, rows = len(x) // 2, [], []

    def denoiser(batch, t, labels, context):
        outputs.append(model(batch, shift_time(t, shift), labels))
        return outputs[-1]

    sampling = Sampling(guidance=1.5, power=power, channels=GUIDED_CHANNELS)
    for i in range(images):
        guided = GuidedModel(denoiser, model.config, sizes[i].view(1, 2), y[i : i + 1], sampling, CPU)
        rows.append(guided(x[i], times[i]))
        # The authors' null half carries the same guided channels beside its own unguided ones.
        null = outputs[-1].chunk(2)[1]
        rows.append(torch.cat((rows[-1][:, :GUIDED_CHANNELS], null[:, GUIDED_CHANNELS:]), dim=1))
    assert_matches("f08", f"{call}.full", torch.stack(rows[::2] + rows[1::2]))


def test_scale_schedule():
    assert guidance_scale(0.0, 4.0, 0.0) == guidance_scale(1.0, 4.0, 0.0) == 4.0
    assert guidance_scale(0.0, 4.0, 2.0) == 4.0 and guidance_scale(1.0, 4.0, 2.0) == 1.0
    assert guidance_scale(0.5, 4.0, 1.0) == pytest.approx(2.5)


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_both_halves_are_one_call(scale):
    toy = Toy(guidance=scale)
    assert toy.at(0.5).tolist() == [1 + 2 * scale] * 2 and toy.images == [4]
    toy.guided.scale = 2.0
    assert toy.at(0.5).tolist() == [5.0] * 2


@pytest.mark.parametrize(
    ("settings", "time"),
    [
        ({"guidance": 1.0}, 0.5),
        ({"guidance": 4.0, "power": 1.0}, 1.0),
        ({"guidance": 2.0, "interval": (0.3, 0.7)}, 0.29),
        ({"guidance": 2.0, "labels": (10, 10)}, 0.5),
    ],
    ids=["scale", "power", "interval", "no label"],
)
def test_without_guidance_there_is_no_null_half(settings, time):
    toy = Toy(**settings)
    assert toy.at(time).tolist() == [1.0 if "labels" in settings else 3.0] * 2 and toy.images == [2]


@pytest.mark.parametrize("end", [k / 20 for k in range(21)])
def test_an_end_of_the_interval_meets_the_same_time_of_the_grid(end):
    """Half of such numbers are smaller in float32, the precision of times, and half are larger."""
    for interval in ((end, 1.0), (0.0, end)):
        toy = Toy(guidance=2.0, interval=interval)
        assert toy.at(end).tolist() == [5.0] * 2


def test_a_time_per_image():
    """The images may be on both sides of an interval, or at different scales."""
    toy = Toy(guidance=2.0, interval=(0.3, 0.7))
    assert toy.at(0.5, 0.8).tolist() == [5.0, 3.0] and toy.at(0.1, 0.8).tolist() == [3.0, 3.0]
    assert toy.images == [4, 2]
    powered = Toy(guidance=4.0, power=1.0).at(0.0, 0.5)
    torch.testing.assert_close(powered, torch.tensor([9.0, 6.0]))


def test_only_the_first_channels():
    value = Toy(guidance=2.0, channels=12).guided(X, torch.tensor(0.5))
    assert (value[:, :12] == 5).all() and (value[:, 12:] == 3).all()


HEADED = replace(CONFIG, depth=2, internal_head=1)


def headed(*times, labels=(3, 4), **settings):
    """The guided output of both images, for heads that differ by 10 * t + 1, and the `internal` of each call."""
    calls = []

    def denoiser(batch, t, y, context, internal=False):
        calls.append(internal)
        last = batch.expand_to_tokens(torch.where(y == 10, 1.0, 3.0))[:, None].expand(-1, 16)
        return torch.cat((last, last - 1 - 10 * batch.expand_to_tokens(t)[:, None]), dim=1) if internal else last

    guided = GuidedModel(denoiser, HEADED, HW, torch.tensor(labels), Sampling(**settings), CPU)
    return guided(X, torch.tensor(times[0] if len(times) == 1 else times))[[0, 2], 0].tolist(), calls


def test_internal_guidance_moves_away_from_the_internal_head():
    assert headed(0.5, guidance=1, internal_guidance=1.5) == ([3 + 0.5 * 6] * 2, [True])
    # It acts on both halves, and classifier-free guidance on what it makes of them.
    assert headed(0.5, guidance=2, internal_guidance=1.5) == ([5 + 0.5 * 6] * 2, [True])
    # An image of no class has it, too.
    assert headed(0.5, labels=(10, 10), guidance=2, internal_guidance=2) == ([1 + 6.0] * 2, [True])


def test_internal_guidance_has_its_own_interval():
    settings = {"guidance": 2, "internal_guidance": 1.5, "internal_interval": (0.2, 0.6)}
    assert headed(0.1, **settings) == ([5.0, 5.0], [False])
    assert headed(0.2, 0.7, **settings) == ([5 + 0.5 * 3, 5.0], [True])


def test_internal_guidance_needs_a_head_and_all_blocks():
    with pytest.raises(UserError, match="internal head"):
        check_sampling(Sampling(internal_guidance=1.5), CONFIG)
    with pytest.raises(UserError, match="all blocks"):
        Sampling(internal_guidance=1.5, cache_interval=2)
    with pytest.raises(UserError, match="no effect"):
        Sampling(internal_interval=(0.1, 0.5))
    with pytest.raises(UserError, match="within 0 and 1"):
        Sampling(internal_guidance=2, internal_interval=(0.5, 0.1))


def test_a_shift_by_size_stays_with_every_solver_that_has_a_grid():
    for solver, kept in (("heun", 16), ("euler-maruyama", 16), ("dopri5", None)):
        assert Sampling.of(CONFIG, {"shift_tokens": 16}, solver=solver).shift_tokens == kept
    advice = {"internal_guidance": 1.5}
    deep = replace(HEADED, depth=4)
    assert Sampling.of(deep, advice, cache_interval=2).internal_guidance == 1
    assert Sampling.of(deep, {"cache_interval": 2}, internal_guidance=1.5).cache_interval == 1
    with pytest.raises(UserError, match="twice"):
        spread = replace(CONFIG, position_range=9)
        check_sampling(Sampling(rope=spread.rope.named("vision-ntk")), spread)
