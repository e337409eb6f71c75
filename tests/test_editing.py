"""Sampling that begins with an image, in two passes, and in windows."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.errors import UserError
from fitv2.flow.path import interpolate
from fitv2.model.config import SiTConfig
from fitv2.sampling.editing import Start
from fitv2.sampling.generate import MAX_TOKENS, computed_tokens, generate, guided_model, sample_batch
from fitv2.sampling.sizes import size_within
from fitv2.sampling.solver_names import ADAPTIVE, EDITING_SOLVERS
from fitv2.sampling.spec import SampleSpec, Sampling, check_sampling
from fitv2.sampling.windows import windows_of
from fitv2.tokens import TokenBatch
from tiny import CONFIG, random_model

ODE = [name for name in EDITING_SOLVERS if name != "transition"]
SPECS = [SampleSpec(3, (16, 40), 5), SampleSpec(1, (8, 8), 6), SampleSpec(2, (40, 8), 7)]
CPU = torch.device("cpu")


def settings(solver: str = "heun", **others) -> Sampling:
    return Sampling(**{"steps": None if solver in ADAPTIVE else 4, "solver": solver} | others)


def starts_of(specs, time=0.5, kept=None) -> list[Start]:
    generator = torch.Generator().manual_seed(0)
    return [Start(torch.randn(CONFIG.in_channels, *spec.size, generator=generator), time, kept) for spec in specs]


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def garments():
    return load_pretrained("builtin:fashion")


@pytest.mark.parametrize("solver", ODE)
@pytest.mark.parametrize("time", [0.0, 0.6])
def test_what_is_kept_ends_as_it_was(model, solver, time):
    kept = torch.zeros(16, 40, dtype=torch.bool)
    kept[:, :20] = True
    (start,) = starts_of(SPECS[:1], time, kept)
    (made,) = generate(model, SPECS[:1], settings(solver), starts=[start])
    assert torch.equal(made[:, kept], start.latent[:, kept])
    assert (made - start.latent)[:, ~kept].abs().mean() > 0.1
    # What is kept is seen by the rest: another image there makes another rest.
    other = replace(start, latent=torch.where(kept, start.latent.flip(1), start.latent))
    (changed,) = generate(model, SPECS[:1], settings(solver), starts=[other])
    assert (changed - made)[:, ~kept].abs().max() > 1e-3


@pytest.mark.parametrize("solver", ["heun", "ab2", "rk4", "dopri5"])
def test_the_network_sees_what_is_kept_with_the_noise_of_the_time(solver):
    seen = []

    class Watched(OwnToken):
        def __call__(self, batch, t_B, *others):
            seen.append((float(t_B), batch.x))
            return super().__call__(batch, t_B, *others)

    kept = torch.ones(8, 8, dtype=torch.bool)
    start = Start(torch.randn(CONFIG.in_channels, 8, 8), 0.3, kept)
    sampling = settings(solver, guidance=1.0)
    guided = guided_model(Watched(), CONFIG, SPECS[1:2], sampling, CPU)
    sample_batch(guided, [6], [start])
    (t, first), *rest = seen
    data = TokenBatch.from_latents([start.latent], 4).x
    noise = (first - t * data) / (1 - t)
    assert t == pytest.approx(0.3) and max(time for time, _ in rest) > 0.7
    for time, x in rest:
        torch.testing.assert_close(x, interpolate(data, noise, time), atol=1e-4, rtol=0)


def test_the_later_the_time_the_nearer_to_the_image(model):
    (start,) = starts_of(SPECS[:1])
    times = (0.0, 0.5, 0.9, 0.99)
    made = [generate(model, SPECS[:1], settings(), starts=[replace(start, time=t)])[0] for t in times]
    distances = [float((image - start.latent).abs().mean()) for image in made]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.05
    # At time 0 the image is hidden whole.
    hidden = replace(start, latent=start.latent.flip(1), time=0.0)
    torch.testing.assert_close(made[0], generate(model, SPECS[:1], settings(), starts=[hidden])[0])


def test_the_seed_that_made_an_image_redraws_it_otherwise(model):
    """With its own noise it would come back."""
    kept = torch.zeros(16, 40, dtype=torch.bool)
    kept[:, :20] = True
    (made,) = generate(model, SPECS[:1], settings(steps=50))
    start, changes = Start(made, 0.0, kept), []
    for seed in (SPECS[0].seed, 8):
        (redrawn,) = generate(model, [replace(SPECS[0], seed=seed)], settings(steps=50), starts=[start])
        changes.append(float((redrawn - made)[:, ~kept].abs().mean()))
    assert changes[0] > 0.7 * changes[1]


@pytest.mark.parametrize("shift_tokens", [None, 8])
def test_images_that_begin_at_other_times_do_not_change_each_other(model, shift_tokens):
    sampling = settings("euler", shift_tokens=shift_tokens)
    starts = [replace(start, time=time) for start, time in zip(starts_of(SPECS), (0.2, 0.7, 0.25), strict=True)]
    together = generate(model, SPECS, sampling, starts=starts)
    alone = [generate(model, [spec], sampling, starts=[start])[0] for spec, start in zip(SPECS, starts, strict=True)]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "starts", "message"),
    [
        ({"solver": "euler-maruyama"}, {}, "cannot begin with an image"),
        ({}, {"time": 1.0}, "below 1"),
        ({}, {"latent": torch.zeros(CONFIG.in_channels, 8, 8)}, "image of that size"),
        ({"solver": "sde-heun", "upscale_from": 4}, None, "needs one of the solvers"),
        ({"upscale_from": 0}, None, "1 or more"),
        ({"upscale_time": 0.5}, None, "no effect: .*without upscale_from"),
        ({"upscale_from": 9, "upscale_time": 1.0}, None, "between 0 and 1"),
        ({"window": (6, 8)}, None, "not divisible"),
        ({"window": 8}, None, "a height and a width"),
    ],
)
def test_what_cannot_be_edited(model, changes, starts, message):
    begun = None if starts is None else [replace(start, **starts) for start in starts_of(SPECS[:1])]
    with pytest.raises(UserError, match=message):
        generate(model, SPECS[:1], Sampling(**{"steps": 2} | changes), starts=begun)


def test_a_fixed_grid_has_no_other_sizes():
    config = SiTConfig(width=32, depth=2, heads=2, num_classes=3, side=2)
    for given in ({"window": (8, 8)}, {"upscale_from": 2}):
        with pytest.raises(UserError, match="fixed grid"):
            check_sampling(Sampling(steps=1, **given), config)


@pytest.mark.parametrize(
    ("size", "tokens", "longest", "expected"),
    [
        ((16, 40), 100, None, (16, 40)),
        ((16, 40), 10, None, (8, 20)),
        ((400, 4), 10, None, (40, 4)),
        ((40, 40), 1, None, (4, 4)),
        ((4, 4), 1, None, (4, 4)),
        ((40, 16), 49, 7, (28, 12)),
        ((56, 56), 49, 7, (28, 28)),
        ((28, 20), 49, 7, (28, 20)),
    ],
)
def test_the_size_of_the_first_pass(size, tokens, longest, expected):
    assert size_within(size, tokens, 4, longest) == expected


def test_two_passes_keep_the_composition(garments):
    """The same seed in one pass and in two: small images are equal, and large ones look like their small ones."""
    specs = [SampleSpec(0, (56, 48), 3), SampleSpec(3, (56, 24), 3), SampleSpec(8, (48, 56), 3)]
    small = [replace(spec, size=(spec.size[0] // 2, spec.size[1] // 2)) for spec in specs]
    specs, small = ([*some, SampleSpec(1, (28, 12), 4)] for some in (specs, small))
    sampling, finished = garments.sampling(), {}
    assert (sampling.upscale_from, sampling.upscale_side) == (49, 7)
    made = generate(garments.model, specs, sampling, finished.__setitem__)
    assert sorted(finished) == list(range(4)) and all(torch.equal(finished[i], made[i]) for i in range(4))
    first = generate(garments.model, small, garments.sampling())
    assert torch.equal(made[3], first[3])
    once = generate(garments.model, specs[:3], garments.sampling(upscale_from=0))

    def likeness(images) -> list[float]:
        pairs = [(F.avg_pool2d(image, 2).flatten(), one.flatten()) for image, one in zip(images, first, strict=False)]
        return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]

    two, one = likeness(made[:3]), likeness(once)
    assert sum(two) / 3 > 0.85 and all(more > less + 0.1 for more, less in zip(two, one, strict=True)), (two, one)


def test_recommended_passes_give_way_to_what_is_asked_for():
    advice = {"upscale_from": 49, "upscale_time": 0.6, "upscale_side": 7}

    def passes(**given) -> tuple:
        sampling = Sampling.of(CONFIG, advice, **given)
        return sampling.upscale_from, sampling.upscale_time, sampling.upscale_side

    assert passes() == passes(solver="heun") == (49, 0.6, 7)
    assert passes(upscale_from=16) == (16, 0.6, 7) and passes(upscale_time=0.8) == (49, 0.8, 7)
    rope = CONFIG.rope.named("vision-ntk")
    off = (None, Sampling.upscale_time, None)
    assert passes(upscale_from=0) == passes(rope=rope) == passes(solver="euler-maruyama") == off
    assert passes(upscale_from=16, rope=rope) == (16, 0.6, 7)


@pytest.mark.parametrize("size", [(8, 8), (4, 60), (60, 4), (36, 36), (9, 23)])
def test_windows_cover_an_image_and_overlap_by_half(size):
    windows = windows_of(size, (8, 8))
    covered = torch.zeros(size)
    for top, left, height, width in windows:
        assert height == min(8, size[0]) and width == min(8, size[1])
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1 and len(set(windows)) == len(windows)
    for axis in (0, 1):
        begins = sorted({window[axis] for window in windows})
        assert all(end - begin <= 4 for begin, end in pairwise(begins))


class OwnToken:
    """A denoiser whose output for a token depends on that token, its image's time and label alone."""

    config = CONFIG

    def __call__(self, batch, t_B, y_B, context=None, **options):
        return batch.x * batch.expand_to_tokens(t_B)[:, None] + batch.expand_to_tokens(y_B.float())[:, None]


@pytest.mark.parametrize("times", [torch.tensor(0.3), torch.tensor([0.2, 0.5, 0.9])])
def test_windows_of_a_network_without_attention_are_the_whole(times):
    x = torch.randn(sum(spec.tokens(4) for spec in SPECS), CONFIG.token_channels)
    whole, cut = (
        guided_model(OwnToken(), CONFIG, SPECS, Sampling(guidance=1.5, window=window), CPU)(x, times)
        for window in (None, (8, 16))
    )
    torch.testing.assert_close(cut, whole)


def test_windows_belong_to_their_image(model, monkeypatch):
    sampling = settings("ab2", window=(8, 16), shift_tokens=8)
    together = generate(model, SPECS, sampling)
    monkeypatch.setitem(MAX_TOKENS, "cpu", 1)
    alone = generate(model, SPECS[::-1], sampling)[::-1]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    # An image that is no larger than the window is sampled as without it.
    torch.testing.assert_close(together[1], generate(model, SPECS[1:2], replace(sampling, window=None))[0])
    assert (together[0] - generate(model, SPECS[:1], replace(sampling, window=None))[0]).abs().max() > 1e-3


def test_the_cost_of_windows_grows_with_the_area():
    sampling = Sampling(window=(32, 32))
    for columns in (64, 256, 1024):
        tokens = computed_tokens(SampleSpec(0, (32, columns), 0), sampling, 4)
        assert tokens <= 2 * 8 * columns // 4
    assert computed_tokens(SampleSpec(0, (32, 16), 0), sampling, 4) == 8 * 4
