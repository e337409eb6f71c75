"""Post-training for few steps: the loss has its minimum at the true mean velocity, and sampling uses it."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitv2 import TokenBatch
from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained
from fitv2.errors import UserError
from fitv2.flow.transition import derivative, transition_loss, transition_loss_at
from fitv2.model.config import FiTConfig
from fitv2.model.network import bare_model
from fitv2.sampling.cache import BlockCache
from fitv2.sampling.generate import generate
from fitv2.sampling.guidance import GuidedModel
from fitv2.sampling.ode import transitions
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.training.run_folder import check_run
from test_model import counted_graphs
from tiny import CLASSES, CONFIG, log_lines, random_model, recipe, stop_at, trainer

RATE = -1.5
SIZES = [(2, 3), (1, 2), (4, 4)]
DATA = TokenBatch(torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), SIZES)
NOISE = torch.randn(24, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T, R = torch.tensor([0.0, 0.3, 0.5]).double(), torch.tensor([1.0, 0.3, 0.75]).double()
LABELS = torch.tensor([0, 1, 2])


def teacher(batch, t_B, y_B, *_):
    """The velocity of z' = a z."""
    return RATE * batch.x


def exact(batch, t_B, y_B, *_, target_B):
    """The mean velocity of z' = a z from t to the target."""
    width = batch.expand_to_tokens(target_B - t_B)[:, None]
    return batch.x * torch.where(width == 0, RATE, torch.expm1(RATE * width) / torch.where(width == 0, 1, width))


def test_the_true_mean_velocity_has_no_loss_and_any_other_has():
    loss = transition_loss_at(exact, DATA, NOISE, T, R, LABELS, teacher)
    # What is left is the error of the difference, which at t = 0 is one-sided.
    assert loss.per_image[0] < 1e-4 and loss.per_image[1:].max() < 1e-9
    wrong = lambda *inputs, **options: 1.1 * exact(*inputs, **options)  # noqa: E731
    other = transition_loss_at(wrong, DATA, NOISE, T, R, LABELS, teacher)
    assert other.per_image.min() > 1e-3


def test_for_equal_times_the_target_is_the_velocity_of_the_teacher():
    network = lambda batch, t, y, *_, target_B: torch.zeros_like(batch.x)  # noqa: E731
    loss = transition_loss_at(network, DATA, NOISE, T, T, LABELS, teacher)
    z = DATA.expand_to_tokens(T)[:, None] * DATA.x + (1 - DATA.expand_to_tokens(T)[:, None]) * NOISE
    torch.testing.assert_close(loss.per_image, DATA.image_mean((RATE * z).square().mean(1)))


def test_the_derivative_is_along_the_path_and_stays_within_the_times():
    seen = []

    def network(batch, t_B, y_B, *_, target_B):
        seen.append(t_B)
        return batch.x * batch.expand_to_tokens(2 * t_B + target_B)[:, None]

    velocity = torch.ones_like(DATA.x)
    made = derivative(network, DATA, velocity, T, R, LABELS)
    # d/dt [z (2 t + r)] = z' (2 t + r) + 2 z
    expected = DATA.expand_to_tokens(2 * T + R)[:, None] + 2 * DATA.x
    torch.testing.assert_close(made[6:].double(), expected[6:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        made[:6].double(), expected[:6], atol=0.02, rtol=0
    )  # At t = 0 the difference is one-sided.
    assert min(t.min() for t in seen) == 0 and max(t.max() for t in seen) <= 1


def test_times_are_in_order_and_equal_for_a_quarter():
    seen = []

    def network(batch, t_B, y_B, *_, target_B):
        seen.append((t_B, target_B))
        return torch.zeros_like(batch.x)

    sizes = [(1, 1)] * 4000
    batch = TokenBatch(torch.zeros(4000, 1), sizes)
    transition_loss(network, batch, torch.zeros(4000).long(), 1, torch.Generator().manual_seed(0), teacher)
    t, r = seen[-1]  # The differences come first.
    assert (t <= r).all() and abs((t == r).float().mean() - 0.25) < 0.03


def test_a_guided_teacher_reads_nothing_back_from_the_device():
    """Copying out of tensors without values is an error."""
    meta = torch.device("meta")
    network = bare_model(replace(CONFIG, target_blocks=1))

    def guided(batch, t_B, labels_B, *_):
        sampling = Sampling(guidance=2.0, interval=(0.2, 0.7), power=1.0)
        return GuidedModel(bare_model(CONFIG), CONFIG, batch.hw, labels_B, sampling, meta)(batch.x, t_B)

    batch = TokenBatch(torch.zeros(24, 16, device=meta), SIZES)
    loss = transition_loss(network, batch, LABELS, CONFIG.null_label, torch.Generator(), guided)
    assert loss.loss.device == loss.t.device == meta


def test_one_step_is_as_good_as_many():
    x = DATA.x
    for times in (torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 5)):
        made = transitions(lambda x, t, r: exact(DATA.with_x(x), t.expand(3), LABELS, target_B=r.expand(3)), x, times)
        torch.testing.assert_close(made, x * torch.tensor(RATE).double().exp(), atol=1e-6, rtol=1e-5)


def test_the_last_blocks_see_the_target_time_alone():
    """For r = t it is the network without any; packed images do not see each other's."""
    model = random_model(FiTConfig(width=32, depth=3, heads=2, num_classes=5, target_blocks=1))
    batch = TokenBatch(torch.randn(28, 16), [(2, 2), (4, 5), (2, 2)])
    t, y = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    r = torch.tensor([0.8, 0.6, 1.0])
    plain = model(batch, t, y)
    torch.testing.assert_close(model(batch, t, y, target_B=t), plain, atol=1e-5, rtol=0)
    made = model(batch, t, y, target_B=r)
    assert (made - plain).abs().max() > 1e-3
    for i, alone in enumerate(batch.with_x(made).x.split(batch.lengths)):
        single = model(batch.select([i]), t[[i]], y[[i]], target_B=r[[i]])
        torch.testing.assert_close(alone, single, atol=1e-5, rtol=0)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    model = random_model(FiTConfig(**(vars(CONFIG) | {"internal_head": 1})))
    settings = {"guidance": 1.5, "internal_guidance": 1.2, "interval": (0.2, 0.8)}
    shapes = [[(8, 8, 1)]] * len(CLASSES)
    save_pretrained(folder, model.config, model.state_dict(), list(CLASSES), shapes, None, recommended=settings)
    return folder


def test_a_trained_model_becomes_one_of_few_steps_and_resumes_bit_for_bit(tmp_path, base):
    overrides = ["training.objective=transition", f"training.init_from={base}", "log.sample_every=10"]
    trainer(tmp_path / "whole", *overrides).fit(lambda figures: None)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", *overrides).fit(stop_at(7))
    trainer(tmp_path / "run", *overrides).fit(lambda figures: None)
    assert log_lines(tmp_path / "run") == log_lines(tmp_path / "whole")
    assert json.loads((tmp_path / "run/model/sampling.json").read_text())["solver"] == "transition"
    made = load_pretrained(str(tmp_path / "run"))
    assert made.model.config.target_blocks == 1 and made.model.config.internal_head is None
    sampling = made.sampling(steps=2)
    assert (sampling.solver, sampling.guidance, sampling.model_calls) == ("transition", 1.0, 2)
    specs = [SampleSpec(0, (8, 8), 1), SampleSpec(3, (4, 12), 2)]
    together = generate(made.model, specs, sampling)
    for spec, latent in zip(specs, together, strict=True):
        torch.testing.assert_close(latent, generate(made.model, [spec], sampling)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", ["weights", "sampling"])
def test_another_teacher_on_resume_is_refused(tmp_path, base, changed):
    """As the newest model of a run that goes on training is."""
    overrides = ["training.objective=transition", f"training.init_from={base}"]
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", *overrides).fit(stop_at(7))
    advice = json.loads((base / "sampling.json").read_text()) | {"steps": 9, "upscale_from": 20}
    (base / "sampling.json").write_text(json.dumps(advice))
    trainer(tmp_path / "run", *overrides)  # Neither changes what is taught.
    if changed == "weights":
        weights = load_file(base / "model.safetensors")
        next(iter(weights.values())).view(-1)[0] += 1e-3
        save_file(weights, base / "model.safetensors")
    else:
        (base / "sampling.json").write_text('{"guidance": 4.0}')
    with pytest.raises(UserError, match="not the model"):
        trainer(tmp_path / "run", *overrides)


@pytest.mark.slow
def test_a_compiled_training_has_the_losses_of_an_eager_one(tmp_path, base, monkeypatch):
    """And the halves of a block have fewer graphs, with and without gradients, than torch makes before it gives up."""
    overrides = ["training.objective=transition", f"training.init_from={base}", "log.sample_every=null"]
    trainer(tmp_path / "eager", *overrides).fit(lambda figures: None)
    graphs = counted_graphs(monkeypatch)
    monkeypatch.setenv("CXX", sys.executable)  # Only has to be there.
    trainer(tmp_path / "run", *overrides, "training.compile=true").fit(lambda figures: None)
    assert 0 < graphs.frame_count < 2 * torch._dynamo.config.recompile_limit
    for line, eager in zip(log_lines(tmp_path / "run"), log_lines(tmp_path / "eager"), strict=True):
        assert line == pytest.approx(eager, rel=1e-3)


def other(folder, **changes):
    """A model folder of another configuration or with other classes."""
    names = changes.pop("names", list(CLASSES))
    model = random_model(FiTConfig(**(vars(CONFIG) | changes)))
    save_pretrained(folder, model.config, model.state_dict(), names, [[(8, 8, 1)]] * len(names), None)
    return folder


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"target_blocks": 1}, "many steps"),
        ({"num_classes": 5, "names": list(CLASSES)[:5]}, "same classes"),
        ({"prediction": "data"}, "prediction"),
        ({"position_range": 9}, "position_range"),
        ({"in_channels": 4}, "token_channels"),
    ],
)
def test_a_model_that_cannot_teach_is_refused(tmp_path, changes, part):
    start = f"training.init_from={other(tmp_path / 'other', **changes)}"
    with pytest.raises(UserError, match=part):
        trainer(tmp_path / "run", "training.objective=transition", start)


def test_guidance_a_cache_and_another_objective_do_not_go_with_it(tmp_path, base):
    model = random_model(FiTConfig(**(vars(CONFIG) | {"depth": 4, "target_blocks": 2})))
    for settings in ({"guidance": 2.0}, {"guidance": 1.0, "cache_interval": 2}):
        with pytest.raises(UserError, match="guidance 1"):
            generate(model, [SampleSpec(0, (8, 8), 0)], Sampling(solver="transition", steps=2, **settings))
    batch = TokenBatch(torch.randn(4, 16), [(2, 2)])
    with pytest.raises(ValueError, match="stages"):
        model(batch, torch.zeros(1), torch.zeros(1).long(), cache=BlockCache(2), target_B=torch.ones(1))
    run = tmp_path / "run"
    trainer(run, f"training.init_from={base}").fit(lambda figures: None)
    with pytest.raises(UserError, match="cannot change"):
        check_run(run, recipe(f"training.init_from={base}", "training.objective=transition"), resume=True)


def test_what_it_cannot_start_from_or_sample_is_refused(tmp_path, base):
    with pytest.raises(UserError, match="init_from"):
        trainer(tmp_path, "training.objective=transition")
    with pytest.raises(UserError, match="shift_tokens"):
        trainer(tmp_path, "training.objective=transition", f"training.init_from={base}", "training.shift_tokens=9")
    with pytest.raises(UserError, match="few steps"):
        generate(random_model(), [SampleSpec(0, (8, 8), 0)], Sampling(solver="transition", steps=1))
