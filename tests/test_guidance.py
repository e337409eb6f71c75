"""Classifier-free guidance: parity with the authors, and what it does not compute."""

import pytest
import torch

from fitv2 import TokenBatch
from fitv2.flow.path import shift_time
from fitv2.samplers.guidance import guidance_scale, guide
from golden_fixtures import assert_matches, kwargs, load, official_model

GUIDED_CHANNELS = 12  # the authors' three of four latent channels, in patches of 2 x 2


class Toy:
    """Constant velocities 3 (conditional) and 1 (null) that count their evaluations."""

    def __init__(self):
        self.pairs = self.singles = 0

    def both(self, x, t):
        self.pairs += 1
        return torch.full_like(x, 3.0), torch.full_like(x, 1.0)

    def conditional(self, x, t):
        self.singles += 1
        return torch.full_like(x, 3.0)


X = torch.zeros(5, 16)


@pytest.mark.parametrize("call", ["pow0", "pow1", "pow2.5", "pow1_shift3"])
@torch.no_grad()
def test_guidance_of_the_authors(call):
    tensors = load("f08")
    name = "fitv2_shift3" if call.endswith("shift3") else "fitv2"
    model = official_model("f08", name)
    shift = kwargs("f08", name).get("time_shifting", 1)
    power = float(call.removeprefix("pow").removesuffix("_shift3"))
    x, y, times, sizes = (tensors[f"in.cfg.{key}"] for key in ("x", "y", "t", "size"))
    images = len(x) // 2
    conditional_rows, null_rows = [], []
    for i in range(images):
        hw = sizes[i].expand(2, 2)

        def both(x_TC, t, hw=hw, labels=y[[i, i + images]]):
            pair = TokenBatch(x_TC.repeat(2, 1), hw)
            return model(pair, shift_time(t, shift).expand(2), labels).chunk(2)

        def single(x_TC, t):
            raise AssertionError("guidance is on at every time of this fixture")

        velocity = guide(both, single, scale=1.5, power=power, channels=GUIDED_CHANNELS)
        conditional_rows.append(velocity(x[i], times[i]))
        # The authors' null half carries the same guided channels beside its own unguided ones.
        _, v_null = both(x[i], times[i])
        null_rows.append(torch.cat((conditional_rows[-1][:, :GUIDED_CHANNELS], v_null[:, GUIDED_CHANNELS:]), dim=1))
    assert_matches("f08", f"{call}.full", torch.stack(conditional_rows + null_rows))


def test_scale_schedule():
    assert guidance_scale(0.0, 4.0, 0.0) == guidance_scale(1.0, 4.0, 0.0) == 4.0
    assert guidance_scale(0.0, 4.0, 2.0) == 4.0 and guidance_scale(1.0, 4.0, 2.0) == 1.0
    assert guidance_scale(0.5, 4.0, 1.0) == pytest.approx(2.5)


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guided_velocity(scale):
    toy = Toy()
    expected = torch.full_like(X, 1 + 2 * scale)
    torch.testing.assert_close(guide(toy.both, toy.conditional, scale)(X, torch.tensor(0.5)), expected)
    assert (toy.pairs, toy.singles) == (1, 0)


def test_guidance_off_is_one_conditional_forward():
    toy = Toy()
    assert torch.equal(guide(toy.both, toy.conditional, 1.0)(X, torch.tensor(0.5)), torch.full_like(X, 3.0))
    assert (toy.pairs, toy.singles) == (0, 1)
    guide(toy.both, toy.conditional, 4.0, power=1.0)(X, torch.tensor(1.0))
    assert (toy.pairs, toy.singles) == (0, 2)


@pytest.mark.parametrize(("t", "active"), [(0.0, False), (0.29, False), (0.3, True), (0.7, True), (0.71, False)])
def test_interval_has_both_its_ends(t, active):
    toy = Toy()
    value = guide(toy.both, toy.conditional, 2.0, interval=(0.3, 0.7))(X, torch.tensor(t))
    assert torch.equal(value, torch.full_like(X, 5.0 if active else 3.0))
    assert (toy.pairs, toy.singles) == ((1, 0) if active else (0, 1))


@pytest.mark.parametrize("end", [k / 20 for k in range(21)])
def test_an_end_of_the_interval_meets_the_same_time_of_the_grid(end):
    """Half of such numbers are smaller in float32, the precision of times, and half are larger."""
    for interval in ((end, 1.0), (0.0, end)):
        toy = Toy()
        guide(toy.both, toy.conditional, 2.0, interval=interval)(X, torch.tensor(end))
        assert toy.pairs == 1


def test_only_the_first_channels():
    toy = Toy()
    value = guide(toy.both, toy.conditional, 2.0, channels=12)(X, torch.tensor(0.5))
    assert torch.equal(value[:, :12], torch.full((5, 12), 5.0))
    assert torch.equal(value[:, 12:], torch.full((5, 4), 3.0))
