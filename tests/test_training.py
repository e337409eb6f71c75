"""A training step: its gradient is that of one big batch, whoever computes it, and a bad one leaves no trace."""

import json
import logging
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from fitv2 import TokenBatch
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.data.fashion import Fashion
from fitv2.data.formats import UnreadableImage
from fitv2.data.loader import DataCursor, Pack
from fitv2.diffusion.objective import diffusion_loss
from fitv2.diffusion.schedule import linear_schedule
from fitv2.flow.objective import flow_loss_at
from fitv2.flow.path import LOGIT_NORMAL, TimeDensity, sample_times
from fitv2.model.config import FiTv1Config
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import SampleSpec, Sampling, default_solver
from fitv2.training.ema import EMA
from fitv2.training.learner import learning_rate
from fitv2.training.malloc_trim import TRIM_EVERY, c_library, trim_heap
from fitv2.training.trainer import Trainer
from fitv2.training.watch import DataGone, DataWatch
from tiny import garments, log_lines, random_model, recipe, trainer


def with_random_weights(trainer: Trainer) -> Trainer:
    """A fresh network has gradients in its last layer only."""
    trainer.learner.model.module.load_state_dict(random_model(trainer.learner.model.module.config).state_dict())
    return trainer


def step_and_its_gradients(trainer: Trainer, step) -> tuple[dict, list[torch.Tensor]]:
    """The figures and the gradients as the optimiser gets them."""
    found = []
    (optimizer, _), parameters = trainer.learner.optimizer.parts[0], list(trainer.learner.model.module.parameters())
    hook = optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in parameters))
    result = trainer.train_step(step)
    hook.remove()
    return result, found


def one_big_batch(trainer: Trainer, step) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of all images of the step at once, at the times and with the noise that their packs draw."""
    times, noises, labels_of_packs = [], [], []
    for number, (batch, labels, _) in enumerate(step.packs):
        generator = trainer.pack_generator(number)
        times.append(sample_times(len(batch), generator, LOGIT_NORMAL))
        dropped = torch.rand(len(batch), generator=generator) < trainer.recipe.training.class_dropout_prob
        noises.append(torch.randn(batch.x.shape, generator=generator))
        labels_of_packs.append(labels.masked_fill(dropped, trainer.learner.model.module.config.null_label))
    whole = TokenBatch(torch.cat([b.x for b, *_ in step.packs]), torch.cat([b.hw for b, *_ in step.packs]))
    model = trainer.learner.model.module
    loss = flow_loss_at(model, whole, torch.cat(noises), torch.cat(times), torch.cat(labels_of_packs)).loss
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


def assert_one_big_batch(trainer: Trainer, step, readable=None) -> dict:
    """Trains the step; its loss and gradients must be those of all readable images at once."""
    expected_loss, expected = one_big_batch(trainer, readable or step)
    result, gradients = step_and_its_gradients(trainer, step)
    assert result["loss"] == pytest.approx(expected_loss, rel=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5 * float(other.abs().max()), rtol=0)
    return result


def test_gradients_of_four_packs_add_up_to_those_of_one_big_batch(tmp_path):
    overrides = ["training.batches_per_step=4", "training.max_grad_norm=1e9", "training.class_dropout_prob=0.3"]
    run = with_random_weights(trainer(tmp_path, *overrides))
    for _, step in zip(range(3), run.loader.steps(DataCursor()), strict=False):
        assert len({len(batch) for batch, *_ in step.packs}) > 1, "packs of equal numbers of images prove nothing"
        assert_one_big_batch(run, step)


@pytest.mark.parametrize(
    ("architecture", "prediction", "solver"),
    [("FiT", "epsilon", "ddim"), ("FiT", "velocity", "ab2"), ("FiTv2", "epsilon", "ddim")],
)
def test_the_prediction_decides_the_loss_and_the_sampler(tmp_path, architecture, prediction, solver):
    """FiT by diffusion and with a rectified flow (row A of Table II), and FiTv2 by diffusion."""
    settings = f"model.architecture={architecture}", f"model.prediction={prediction}", "training.batches_per_step=1"
    run = with_random_weights(trainer(tmp_path, *settings))
    step = next(run.loader.steps(DataCursor()))
    if prediction == "velocity":
        expected, _ = one_big_batch(run, step)
    else:
        ((batch, labels, _),) = step.packs
        model, generator = run.learner.model.module, run.pack_generator(0)
        expected = float(diffusion_loss(model, batch, labels, 10, generator, linear_schedule()).loss.detach())
    assert run.train_step(step)["loss"] == pytest.approx(expected, rel=1e-5)
    run.save()
    run.write_sheet()
    saved = load_pretrained(tmp_path).model
    assert saved.config.prediction == prediction and default_solver(saved.config) == solver
    assert isinstance(saved.config, FiTv1Config) == (architecture == "FiT") and run.progress.sheet.is_file()
    assert generate(saved, [SampleSpec(0, (8, 8), 0)], Sampling(solver=solver, steps=2))[0].isfinite().all()


def test_a_network_of_clean_images_learns_velocities_that_are_divided_as_its_own_are(tmp_path):
    run = with_random_weights(
        trainer(tmp_path, "model.prediction=data", "training.time_mean=4", "training.batches_per_step=1")
    )
    step = next(run.loader.steps(DataCursor()))
    ((batch, labels, _),), generator = step.packs, run.pack_generator(0)
    times = sample_times(len(batch), generator, TimeDensity(mean=4.0))
    labels = labels.masked_fill(torch.rand(len(batch), generator=generator) < 0.1, 10)
    inputs = run.learner.model.module, batch, torch.randn(batch.x.shape, generator=generator), times, labels
    divided, whole = (float(flow_loss_at(*inputs, least_noise=least).loss.detach()) for least in (0.05, 0.0))
    assert abs(divided - whole) > 1e-3 * whole
    assert run.train_step(step)["loss"] == pytest.approx(divided, rel=1e-5)


def test_no_sheet_is_written_of_images_that_are_not_finite(tmp_path, caplog):
    run = trainer(tmp_path)
    next(iter(run.learner.ema.average.values())).fill_(torch.nan)
    run.draw_sheet()
    assert not run.progress.sheet.exists() and "no sample sheet step-00000000.png" in caplog.text


@pytest.mark.parametrize("lack", ["room on the disk", "memory"])
def test_a_training_survives_a_sheet_that_cannot_be_drawn_or_written(tmp_path, caplog, lack):
    run = trainer(tmp_path, "training.steps=2", "log.sample_every=1")
    if lack == "memory":
        run.facts["shapes"] = [[(4 * 10**6, 4 * 10**6, 1)]]
    else:
        (tmp_path / "samples").write_text("where the folder would be")
    run.fit(lambda figures: None)
    assert run.progress.saved == 2 and "no sample sheet step-00000001.png" in caplog.text


def test_freed_memory_goes_back_to_the_system():
    """A heap full of holes: small blocks between those that are freed keep glibc from shrinking it by itself."""
    if c_library() is None:
        return  # Not glibc: nothing to do there.
    process = psutil.Process()
    blocks = [bytearray(100_000) for _ in range(4000)]
    blocks[::2] = [b""] * 2000
    before = process.memory_info().rss
    trim_heap(7)
    kept = process.memory_info().rss
    trim_heap(TRIM_EVERY)
    assert before - kept < 20e6 < kept - process.memory_info().rss


def test_learning_rate_rises_stays_and_falls(tmp_path):
    settings = "training.warmup_steps=4", "training.decay_fraction=0.5", "training.steps=10"
    training = recipe(*settings).training
    rates = [learning_rate(step, training) for step in range(10)]
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [rate / training.learning_rate for rate in rates] == pytest.approx(expected)
    constant = recipe("training.warmup_steps=0").training
    assert {learning_rate(step, constant) for step in range(10)} == {constant.learning_rate}
    trainer(tmp_path, *settings).fit(lambda figures: None)
    assert [line["learning_rate"] for line in log_lines(tmp_path)] == rates


def test_average_follows_the_weights_ever_more_slowly_up_to_its_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema, expected = EMA(model, decay=0.5), 0.0
    for step in range(20):
        torch.nn.init.constant_(model.weight, step + 1)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-6)
    assert decay == 0.5


def test_average_is_float32_and_is_lent_to_the_model_only_for_a_while():
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    ema = EMA(model, decay=0.999)
    assert {average.dtype for average in ema.average.values()} == {torch.float32}
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    for average in ema.average.values():
        average.fill_(3)
    with pytest.raises(KeyError), ema.applied_to(model):
        assert all((weight == 3).all() for weight in model.parameters())
        raise KeyError
    assert all(torch.equal(own[name], weight) for name, weight in model.state_dict().items())


class SpoiltOnce(Fashion):
    """Garments of which one holds a value that is no number, in the first epoch only."""

    def __init__(self, value: float) -> None:
        whole = garments()
        super().__init__(whole.images, whole.labels)
        self.value = value

    def epoch(self, epoch: int, seed: int):
        view = super().epoch(epoch, seed)
        if epoch == 0:
            load = view.load
            view.load = lambda index: load(index) * (self.value if index == 5 else 1)
        return view


class SomeGone(Fashion):
    """Garments of which every fifth cannot be read any more."""

    def load(self, index, *drawn):
        if index % 5 == 1:
            raise UnreadableImage(f"image {index} is gone")
        return super().load(index, *drawn)


def test_unreadable_images_do_not_count_in_loss_gradient_and_log(tmp_path):
    whole = garments()
    dataset = SomeGone(whole.images, whole.labels)
    run = with_random_weights(trainer(tmp_path, "training.max_grad_norm=1e9", dataset=dataset))
    step = next(run.loader.steps(DataCursor()))
    loaded = sum(len(batch) for batch, *_ in step.packs)
    assert loaded < step.images and assert_one_big_batch(run, step)["images"] == loaded


@pytest.mark.parametrize(
    ("steps", "gone"),
    [
        ([(20, 0, True)], True),
        ([(0, 5, False)], True),
        ([(20, 1, False)] * 40, False),
        ([(90, 10, False)] * 6, True),
        ([(10, 10, False)] * 5 + [(500, 0, False)] * 4 + [(10, 10, False)] * 4, False),
        ([(3900, 100, False)] * 3, False),
        ([(3700, 300, False)], True),
    ],
)
def test_a_training_ends_when_its_data_is_gone_or_too_much_of_it_cannot_be_read(steps, gone):
    """(readable, unreadable, gone) of steps: more than 5 % of the last images, at least 1 000, are too many."""
    watch = DataWatch()
    with pytest.raises(DataGone) if gone else nullcontext():
        for step in steps:
            watch.check(*step)


def test_an_unreadable_pack_adds_nothing_to_the_gradient(tmp_path):
    run = with_random_weights(trainer(tmp_path, "training.max_grad_norm=1e9"))
    step = next(run.loader.steps(DataCursor()))
    first = replace(step, packs=step.packs[:1], readable=step.readable[:1])
    stand_in = Pack(TokenBatch(torch.zeros(1, 16), [(1, 1)]), torch.zeros(1, dtype=torch.long), [])
    both = replace(step, packs=[step.packs[0], stand_in], readable=[step.readable[0], 0])
    assert_one_big_batch(run, both, readable=first)


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, average and the state of the optimiser, copied."""
    parts = trainer.learner.parts().items()
    return {f"{part}.{name}": tensor.clone() for part, tensors in parts for name, tensor in tensors.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_a_finite_gradient_leaves_no_trace_but_in_the_log(tmp_path, caplog, value, precision):
    run = trainer(tmp_path, f"training.precision={precision}", dataset=SpoiltOnce(value))
    skipped = 0
    for number, step in zip(range(1, 7), run.loader.steps(DataCursor()), strict=False):
        before = everything(run)
        spoilt = any(not batch.x.abs().max() <= 1 for batch, *_ in step.packs)
        assert not (spoilt and number == 1), "before the first step there is nothing that a trace could show in"
        with caplog.at_level(logging.WARNING):
            norm = run.train_step(step)["grad_norm"]
        after = everything(run)
        same = after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        assert same == spoilt and math.isfinite(norm) != spoilt
        skipped += spoilt
        assert (run.progress.gradients.skipped, run.progress.done, run.progress.cursor) == (skipped, number, step.after)
        assert (f"step {number}: the gradient is not finite" in caplog.text) == spoilt
    assert skipped == 1


def test_a_skipped_step_is_a_line_of_the_log_like_any_other(tmp_path):
    trainer(tmp_path, dataset=SpoiltOnce(math.nan)).fit(lambda figures: None)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["skipped"] for line in lines] == sorted(line["skipped"] for line in lines)
    (bad,) = [line for line in lines if line["loss"] is None]
    assert bad["grad_norm"] is None and lines[-1]["skipped"] == 1


def test_the_report_gets_the_lines_of_the_log(tmp_path):
    seen = []
    run = trainer(tmp_path, "training.steps=3", "training.max_grad_norm=0.01", "log.sample_every=null")
    run.fit(seen.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == seen and [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad_norm"] > 0.01 and line["tokens_per_second"] > 0 for line in lines)
    assert np.diff([line["seconds"] for line in lines]).min() > 0
    assert not (tmp_path / "samples").exists()


def test_training_learns(tmp_path):
    run = trainer(tmp_path, "training.steps=60", "training.class_dropout_prob=0", "log.checkpoint_every=100")
    losses = []
    run.fit(lambda figures: losses.append(figures["loss"]))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_run_decides_on_its_precision_when_it_begins(tmp_path, monkeypatch, supported, expected):
    monkeypatch.setattr("fitv2.build.computes_bf16", lambda device: supported)
    run = trainer(tmp_path, "training.precision=auto", "training.steps=1")
    assert run.recipe.training.precision == expected
    assert trainer(tmp_path, "training.precision=bf16").recipe.training.precision == "bf16"
    run.fit(lambda figures: None)
    assert json.loads((tmp_path / "recipe.json").read_text())["training"]["precision"] == expected
