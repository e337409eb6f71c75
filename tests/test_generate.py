"""From specs to latents: an image depends on its own spec alone, in any batch and order."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fitv2 import TokenBatch
from fitv2.errors import UserError
from fitv2.model.config import FiTConfig, SiTConfig
from fitv2.model.rope import RopeScheme
from fitv2.sampling.cache import BlockCache
from fitv2.sampling.generate import MAX_TOKENS, batches, generate
from fitv2.sampling.solver_names import ADAPTIVE, DIFFUSION_SOLVERS, SOLVER_NAMES
from fitv2.sampling.spec import SampleSpec, Sampling
from tiny import CONFIG, random_model

SPECS = [
    SampleSpec(label=3, size=(28, 8), seed=5),
    SampleSpec(label=7, size=(8, 28), seed=6),
    SampleSpec(label=3, size=(28, 8), seed=7),
    SampleSpec(label=CONFIG.num_classes, size=(4, 4), seed=5),  # the null label, and a seed used before
    SampleSpec(label=0, size=(40, 24), seed=2**40),
]


class Calls:
    """The (batch, times, labels) of each call of a model while the `with` block runs."""

    def __init__(self, model):
        self.model = model
        self.seen = []

    def __enter__(self):
        self.hook = self.model.register_forward_pre_hook(lambda module, arguments: self.seen.append(arguments[:3]))
        return self.seen

    def __exit__(self, *error):
        self.hook.remove()


@pytest.fixture(scope="module")
def model():
    return random_model()


def assert_same(images, expected):
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", ["heun", "ab2", "euler-maruyama", "sde-heun", "dopri5"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_same_seed_gives_the_same_image_in_any_batch_and_order(model, monkeypatch, solver, guidance):
    sampling = Sampling(steps=None if solver in ADAPTIVE else 4, solver=solver, guidance=guidance)
    together = generate(model, SPECS, sampling)
    assert_same([generate(model, [spec], sampling)[0] for spec in SPECS], together)
    assert_same(generate(model, SPECS[::-1], sampling)[::-1], together)
    assert_same(generate(model, [SPECS[1], *SPECS], sampling)[1:], together)
    monkeypatch.setitem(MAX_TOKENS, "cpu", 60)
    assert_same(generate(model, SPECS, sampling), together)


@pytest.mark.parametrize("solver", ["heun", "euler-maruyama"])
def test_seed_label_and_size_each_make_another_image(model, solver):
    """Seeds of more than 32 bits included."""
    sampling, seeds = Sampling(steps=3, solver=solver), (5, 5, 6, 2**32 + 5, 2**33 + 5)
    specs = [*((3, (8, 12), seed) for seed in seeds), (4, (8, 12), 5), (3, (12, 8), 5)]
    one, again, *seeds, label, turned = generate(model, [SampleSpec(*spec) for spec in specs], sampling)
    assert torch.equal(one, again) and (one - label).abs().max() > 0.01
    assert all((a - b).abs().max() > 0.1 for a, b in pairwise([one, *seeds]))
    assert turned.shape == (1, 12, 8) and (one.flatten() - turned.flatten()).abs().max() > 0.1


def test_images_are_float32_on_the_cpu_in_the_order_and_of_the_size_of_their_requests():
    """A model without classes has only the null label, 0."""
    model = random_model(FiTConfig(**{**vars(CONFIG), "num_classes": 0}))
    specs = [SampleSpec(0, size, 1) for size in ((28, 8), (8, 28), (4, 4), (40, 24))]
    images = generate(model, specs, Sampling(steps=1, solver="euler"))
    assert [tuple(image.shape) for image in images] == [(1, *spec.size) for spec in specs]
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and p.isfinite().all() for p in images)


def test_one_model_call_holds_all_sizes_and_classes_and_both_halves_of_guidance(model):
    with Calls(model) as seen:
        generate(model, SPECS, Sampling(steps=3, solver="heun", guidance=2.0))
    assert len(seen) == Sampling(steps=3, solver="heun").model_calls == 6
    batch, times, labels = seen[0]
    assert len(batch) == 2 * len(SPECS) == len(times)
    assert batch.sizes[::2] == batch.sizes[1::2] and batch.lengths == sorted(batch.lengths)
    assert sorted(batch.sizes[::2]) == sorted((h // 4, w // 4) for h, w in (spec.size for spec in SPECS))
    assert sorted(labels[::2].tolist()) == sorted(spec.label for spec in SPECS)
    assert labels[1::2].tolist() == [model.config.null_label] * len(SPECS)


def test_an_adaptive_solver_takes_each_image_alone(model):
    with Calls(model) as seen:
        generate(model, SPECS[:2], Sampling(solver="dopri5", guidance=1.0))
    assert {len(batch) for batch, _, _ in seen} == {1}
    assert Sampling(solver="dopri5").model_calls is None


def test_every_image_is_handed_over_when_its_batch_is_done(model, monkeypatch):
    monkeypatch.setitem(MAX_TOKENS, "cpu", 60)
    finished = {}
    with Calls(model) as seen:

        def keep(number, latent):
            finished[number] = len(seen), latent

        images = generate(model, SPECS, Sampling(steps=1, solver="euler"), keep)
    assert sorted(finished) == list(range(len(SPECS))) and {calls for calls, _ in finished.values()} == {1, 2}
    assert all(torch.equal(finished[i][1], image) for i, image in enumerate(images))


@pytest.mark.parametrize(("cache_interval", "full"), [(1, 12), (2, 6), (3, 6), (4, 3)])
def test_inner_blocks_are_computed_in_one_of_every_n_calls(cache_interval, full, monkeypatch):
    """Where guidance begins and where it ends, after four calls each, the cache starts again with a full call.

    The cache belongs to one batch, and in it to each image: other images change nothing.
    """
    deep = random_model(FiTConfig(**{**vars(CONFIG), "depth": 4}))
    runs = [0] * 4
    for number, block in enumerate(deep.blocks):
        block.attn.qkv.register_forward_pre_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))
    settings = {"steps": 12, "solver": "euler", "interval": (0.33, 0.6)}
    sampling = Sampling(**settings, cache_interval=cache_interval)
    together = generate(deep, SPECS, sampling)
    assert runs == [12, full, full, 12]
    monkeypatch.setitem(MAX_TOKENS, "cpu", 60)
    assert_same(generate(deep, SPECS, sampling), together)
    exact = generate(deep, SPECS, Sampling(**settings))
    far = max(float((a - b).abs().max()) for a, b in zip(together, exact, strict=True))
    assert far < 1e-4 if cache_interval == 1 else 1e-3 < far < 1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_cache_of_full_calls_changes_nothing_at_any_depth(depth):
    shallow = random_model(FiTConfig(**{**vars(CONFIG), "depth": depth}))
    batch, t = TokenBatch(torch.randn(6, 16), [(2, 3)]), torch.tensor([0.5])
    plain = shallow(batch, t, torch.tensor([1]))
    assert torch.equal(shallow(batch, t, torch.tensor([1]), cache=BlockCache(1)), plain)


@pytest.mark.parametrize("most_tokens", [1, 14, 15, 60, 75, 10_000])
def test_batches_hold_every_request_once_within_the_budget(most_tokens):
    tokens = [spec.size[0] * spec.size[1] // 16 for spec in SPECS]
    groups = list(batches(tokens, most_tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(SPECS)))
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        assert len(group) == 1 or sum(tokens[i] for i in group) <= most_tokens
        assert after is None or sum(tokens[i] for i in group) + tokens[after[0]] > most_tokens
    assert [tokens[i] for group in groups for i in group] == sorted(tokens)
    assert list(batches([], 10)) == []


@pytest.mark.parametrize(
    ("size", "nearest"), [((30, 8), "32x8"), ((13, 27), "12x28"), ((1, 8), "4x8"), ((0, 8), "4x8"), ((-4, 8), "4x8")]
)
def test_a_size_that_the_patch_does_not_divide_is_answered_with_the_nearest(model, size, nearest):
    with pytest.raises(ValueError, match=f"is not divisible by the patch of 4; the nearest is {nearest}"):
        generate(model, [*SPECS, SampleSpec(0, size, 0)], Sampling())


@pytest.mark.parametrize("label", [-1, 11])
def test_a_label_out_of_range(model, label):
    with pytest.raises(ValueError, match=f"label {label} is out of range: 0 to 9 are classes, 10 is none"):
        generate(model, [SampleSpec(label, (8, 8), 0)], Sampling())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dpm"}, "no solver 'dpm'.*euler, .*sde-heun, ddpm, ddim"),
        ({"steps": 10**20}, "at most 10,000,000 steps"),
        ({"steps": 0}, "steps 0 must be a whole number of steps"),
        ({"steps": 2.5}, "steps 2.5 must be a whole number of steps"),
        ({"steps": 3.0, "solver": "ddim"}, "steps 3.0 must be a whole number of steps"),
        ({"interval": (0.5, 0.2)}, "must lie within 0 and 1, low end first"),
        ({"interval": (0.0, 1.5)}, "must lie within 0 and 1"),
        ({"cache_interval": 0}, "cache_interval 0"),
        ({"cache_interval": 2, "solver": "dopri5"}, "adaptive solver"),
    ],
)
def test_impossible_sampling_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


EFFECTS = {
    "steps": (7, set(ADAPTIVE)),
    "shift": (3.0, {*ADAPTIVE, *DIFFUSION_SOLVERS}),
    "cache_interval": (2, set(ADAPTIVE)),
    "interval": ((0.2, 0.8), set()),
    "power": (1.0, set()),
    "channels": (3, set()),
    "guidance": (1.5, set()),
}


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("setting", EFFECTS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_setting_without_effect_is_refused(solver, setting, guidance):
    """What `Sampling` accepts changes the call of the solver or of guidance; its own defaults are always accepted."""
    Sampling(solver=solver)
    settings = {"guidance": guidance} | {setting: EFFECTS[setting][0]}
    useless = solver in EFFECTS[setting][1] or (guidance == 1 and setting in ("interval", "power", "channels"))
    if useless:
        with pytest.raises(UserError, match=setting.replace("cache_interval", "cache interval")):
            Sampling(solver=solver, **settings)
    else:
        assert getattr(Sampling(solver=solver, **settings), setting) == EFFECTS[setting][0]


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 1001), ("ddpm", 2000), ("ddim", 0)])
def test_a_process_of_a_thousand_steps_has_no_more(solver, steps):
    with pytest.raises(UserError, match="step"):
        Sampling(solver=solver, steps=steps)
    assert Sampling(solver=solver, steps=1000).model_calls == 1000
    assert Sampling(solver=solver) == Sampling(solver=solver, steps=25)


GRID = SiTConfig(width=32, depth=3, heads=2, num_classes=3, side=3)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CONFIG, {"cache_interval": 2}),
        (GRID, {"cache_interval": 2}),
        (GRID, {"rope": RopeScheme(method="yarn")}),
        (GRID, {"solver": "ddim"}),
    ],
    ids=["two blocks", "a cache of a grid", "positions of a grid", "solver"],
)
def test_a_setting_that_the_model_has_no_use_for_is_refused(config, settings):
    side = config.patch_size * 3
    with pytest.raises(UserError, match=r"no effect|rotary|not for"):
        generate(random_model(config), [SampleSpec(0, (side, side), 0)], Sampling(**settings))


def test_gradients_that_the_caller_has_switched_off_stay_off(model):
    """With them, the activations of all steps would stay in memory."""
    seen = []
    hook = model.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.no_grad():
        (made,) = generate(model, SPECS[:1], Sampling(steps=2))
    hook.remove()
    assert seen and not any(seen) and not made.requires_grad and not made.is_inference()


def test_the_cache_counts_the_calls_of_an_image_and_not_of_its_batch():
    """With times by size, guidance ends for large images in another call, which its end makes a full one."""
    model = random_model(replace(CONFIG, depth=4))
    specs = [SampleSpec(1, (8, 8), 0), SampleSpec(2, (40, 40), 1)]
    sampling = Sampling(steps=12, solver="euler", shift_tokens=4, cache_interval=3, interval=(0.3, 0.9))
    assert_same(generate(model, specs, sampling)[:1], generate(model, specs[:1], sampling))


def test_a_grid_of_times_per_image_belongs_to_its_size():
    """An image sampled with others has the times of its own size; those of the base size have the plain grid."""
    model, specs = random_model(), [SampleSpec(1, (8, 8), 0), SampleSpec(2, (16, 16), 1), SampleSpec(3, (8, 24), 2)]
    for solver in ("ab2", "heun", "euler-maruyama"):
        sampling = Sampling(steps=4, solver=solver, shift_tokens=4)
        together = generate(model, specs, sampling)
        for spec, latent in zip(specs, together, strict=True):
            torch.testing.assert_close(latent, generate(model, [spec], sampling)[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(*(generate(model, specs[:1], s)[0] for s in (sampling, Sampling(steps=4, solver=solver))))
        assert not torch.equal(together[1], generate(model, specs, Sampling(steps=4, solver=solver))[1])
