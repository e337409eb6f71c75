"""Held-out images: never trained on, the same in every run, and measured with the averaged weights."""

import logging
from collections.abc import Iterable
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch

from fitv2.build import build_objective, build_times
from fitv2.data.formats import UnreadableImage
from fitv2.data.loader import DataCursor, PackLoader
from fitv2.diffusion.objective import diffusion_loss_at
from fitv2.diffusion.schedule import linear_schedule
from fitv2.flow.objective import flow_loss_at
from fitv2.tokens import TokenBatch
from fitv2.training.holdout import choose_held_out, held_out_of
from fitv2.training.run_folder import check_held_out
from fitv2.training.trainer import Trainer
from tiny import CONFIG, garments, log_lines, random_model, recipe, run_together, stop_at, trainer

SETTINGS = ["training.holdout=0.1", "log.holdout_every=4", "training.max_tokens_per_batch=400"]
NUMBER = 700


def with_random_weights(run: Trainer) -> Trainer:
    """A fresh network predicts zero; the averages get other weights than the network."""
    config = run.learner.model.module.config
    run.learner.model.module.load_state_dict(random_model(config, seed=1).state_dict())
    run.learner.ema.load(random_model(config, seed=2).state_dict())
    return run


def measured(run: Trainer) -> dict[str, float]:
    return run.holdout.measure(run.learner.model, run.learner.averaged())


def test_how_many_are_held_out():
    for images, fraction, expected in (
        *((639, 0.02, 0), (640, 0.02, 64), (5000, 0.02, 100), (10**6, 0.02, 256), (10**6, 0.0, 0), (700, 0.1, 70)),
    ):
        chosen = choose_held_out(named(range(images)), fraction)
        assert len(set(chosen.tolist())) == len(chosen) == expected
        assert not expected or (chosen.min() >= 0 and chosen.max() < images)
    transition = ("training.holdout=0.1", "training.objective=transition", "training.init_from=x")
    # A model teaches transitions: how well they agree with the data says nothing.
    assert not len(held_out_of(garments(NUMBER), recipe(*transition).training))


def named(numbers: Iterable[int], name: str = "{}.png") -> Mock:
    """A set that has names alone."""
    names = [name.format(number) for number in numbers]
    data = MagicMock(held_out=None, identity=lambda: (names, [], None))
    data.__len__.return_value = len(names)
    return data


def test_images_that_come_and_go_leave_the_choice_as_it_is():
    """Wherever they come, and of names that nearly are the same all parts are chosen from."""
    numbers = list(range(5000))
    before = {numbers[i] for i in choose_held_out(named(numbers), 0.02)}
    for changed in ([-1, *numbers], numbers[1:], numbers[:2000] + numbers[2005:], [*numbers, 5000]):
        after = {changed[i] for i in choose_held_out(named(changed), 0.02)}
        assert len(before & after) >= 98
    for digits in ("{}.png", "a/{:07}.jpg", "\udcff{:04}"):
        chosen = choose_held_out(named(numbers, digits), 0.05)
        counts = np.bincount(chosen // 500, minlength=10)
        assert counts.sum() == 250 and counts.min() > 10 and counts.max() < 42, (digits, counts)


def test_a_set_without_names_has_a_choice_of_places():
    assert choose_held_out(garments(5000), 0.02).tolist() != list(range(100))
    fewer, more = (set(choose_held_out(garments(number), 0.02).tolist()) for number in (5000, 5010))
    assert len(fewer & more) > 95, "a few new images leave most of the choice as it is"


def test_what_is_held_out_is_in_no_step_and_everything_else_once_an_epoch():
    data, held_out = garments(NUMBER), choose_held_out(garments(NUMBER), 0.1)
    data.labels = np.arange(NUMBER)
    seen = []
    for step in PackLoader(data, 400, held_out=held_out).steps(DataCursor()):
        seen += [int(label) for _, labels, _ in step.packs for label in labels]
        if step.after.epoch:
            break
    assert sorted(seen) == sorted(set(range(NUMBER)) - set(held_out.tolist()))


def expected_losses(run: Trainer, model) -> np.ndarray:
    """The loss of each use of a held-out image, one image at a time."""
    found, epoch = [], run.dataset.epoch(0, 0)
    for use, (image, t) in enumerate(zip(run.holdout.images.tolist(), run.holdout.times.tolist(), strict=True)):
        batch = TokenBatch.from_latents([epoch.load(image)], run.dataset.patch_size)
        noise, labels = run.holdout.noise(use, batch.x.shape[1]), torch.tensor([int(run.dataset.labels[image])])
        if model.config.prediction == "epsilon":
            index = torch.tensor([int((1 - torch.tensor(t).float()) * 1000)])
            found.append(float(diffusion_loss_at(model, batch, noise, index, labels, linear_schedule()).loss))
        else:
            found.append(float(flow_loss_at(model, batch, noise, torch.tensor([t]).float(), labels).loss))
    return np.array(found)


@pytest.mark.parametrize("architecture", ["FiTv2", "FiT"])
def test_the_figures_are_means_of_the_loss_of_the_averaged_weights(tmp_path, architecture):
    settings = [*SETTINGS, f"model.architecture={architecture}"]
    run = with_random_weights(trainer(tmp_path, *settings, dataset=garments(NUMBER)))
    weights = {name: tensor.clone() for name, tensor in run.learner.model.module.state_dict().items()}
    figures = measured(run)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.learner.model.module.state_dict().items())
    averaged = random_model(run.learner.model.module.config, seed=2)
    with torch.no_grad():
        losses = expected_losses(run, averaged)
    noises = {tuple(run.holdout.noise(use, 16)[0].tolist()) for use in range(210)}
    assert len(losses) == len(noises) == 3 * 70 and figures["holdout_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    shares = [0.25] * 4 if architecture == "FiT" else [0.136, 0.364, 0.364, 0.136]  # Of the density of training.
    for number, name in enumerate(("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")):
        of_time = losses[(run.holdout.times * 4).astype(int) == number]
        assert len(of_time) == pytest.approx(210 * shares[number], abs=2)
        assert figures[f"holdout_loss/time_{name}"] == pytest.approx(of_time.mean(), rel=1e-5)
    sizes = [name for name in figures if "/tokens_" in name]
    assert len(sizes) == 4
    lengths = run.dataset.first_hw[run.holdout.images].prod(1)
    for name in sizes:
        low, _, high = name.removeprefix("holdout_loss/tokens_").partition("-")
        low, high = int(low), int(high or low)
        of_size = losses[(lengths >= low) & (lengths <= high)]
        assert len(of_size) > 20 and figures[name] == pytest.approx(of_size.mean(), rel=1e-5)


@pytest.mark.parametrize("settings", [(), ("training.shift_tokens=4", "training.time_mean=-0.6")])
def test_held_out_times_are_spread_like_those_of_training(settings):
    training, tokens = recipe(*settings).training, torch.tensor([4, 16]).repeat(4000)
    batch = TokenBatch(torch.zeros(int(tokens.sum()), 1), [(2, 2), (4, 4)] * 4000)
    objective = build_objective(training, CONFIG)
    labels, generator = torch.zeros(len(batch), dtype=torch.int64), torch.Generator().manual_seed(0)
    trained = objective(lambda batch, *_: torch.zeros_like(batch.x), batch, labels, 10, generator).t
    even = (torch.arange(len(batch)) * 0.618034) % 1
    held_out = build_times(training, CONFIG)(even, tokens)
    for size in (4, 16):
        of_both = (times[tokens == size].sort().values for times in (trained, held_out))
        assert (next(of_both) - next(of_both)).abs().mean() < 0.02


def test_the_same_weights_have_the_same_figures_whatever_the_seed_and_the_packs(tmp_path):
    found = []
    for number, other in enumerate(([], ["training.seed=5"], ["training.max_tokens_per_batch=100"])):
        data = garments(NUMBER, min_scale=0.5)
        run = with_random_weights(trainer(tmp_path / str(number), *SETTINGS, *other, dataset=data))
        found.append(measured(run) | measured(run))
        del found[-1]["holdout_seconds"]
    assert found[0] == found[1] == pytest.approx(found[2], rel=1e-5) and len(found[0]) == 9


def test_the_log_has_them_at_their_steps_and_training_is_not_changed(tmp_path):
    """Without measurements but the last one, a run has the same other figures."""
    for name, every in (("often", 4), ("once", 1000)):
        settings = [*SETTINGS, f"log.holdout_every={every}"]
        trainer(tmp_path / name, *settings, dataset=garments(NUMBER)).fit(lambda figures: None)
    often, once = log_lines(tmp_path / "often"), log_lines(tmp_path / "once")
    assert [line["step"] for line in often if "holdout_loss" in line] == [4, 8, 10]
    assert [line["step"] for line in once if "holdout_loss" in line] == [10]
    assert often[-1] == once[-1] and [line["loss"] for line in often] == [line["loss"] for line in once]


def test_a_resumed_run_measures_the_same(tmp_path):
    trainer(tmp_path / "whole", *SETTINGS, dataset=garments(NUMBER)).fit(lambda figures: None)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", *SETTINGS, dataset=garments(NUMBER)).fit(stop_at(7))
    trainer(tmp_path / "run", *SETTINGS, dataset=garments(NUMBER)).fit(lambda figures: None)
    assert log_lines(tmp_path / "run") == log_lines(tmp_path / "whole")


def test_by_default_nothing_is_held_out_so_that_recipes_of_before_train_as_before(tmp_path):
    assert recipe().training.holdout == 0
    run = trainer(tmp_path, dataset=garments(NUMBER))
    assert len(run.holdout.chosen) == 0 and len(run.loader.images) == NUMBER and measured(run) == {}


def test_an_image_that_cannot_be_read_is_left_out(tmp_path, caplog):
    data = garments(NUMBER)
    bad = int(choose_held_out(data, 0.1)[0])
    load = data.load

    def spoilt(index, *rest):
        if index == bad:
            raise UnreadableImage("a.png: gone")
        return load(index, *rest)

    data.load = spoilt
    run = with_random_weights(trainer(tmp_path, *SETTINGS, dataset=data))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        figures = measured(run)
    assert "not measured: a.png: gone" in caplog.text
    good = run.holdout.images != bad
    data.load = load
    run.dataset = garments(NUMBER)
    with torch.no_grad():
        losses = expected_losses(run, random_model(run.learner.model.module.config, seed=2))
    assert figures["holdout_loss"] == pytest.approx(losses[good].mean(), rel=1e-5)
    assert figures["holdout_loss"] != pytest.approx(losses.mean(), rel=1e-5)


def train_many(run, *overrides) -> None:
    trainer(run, *overrides, dataset=garments(NUMBER)).fit(lambda figures: None)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_measure_as_one(tmp_path, sharding):
    settings = [*SETTINGS, f"training.sharding={sharding}", "training.max_tokens_per_batch=900"]
    train_many(tmp_path / "alone", *settings)
    assert len(trainer(tmp_path / "alone", *settings, dataset=garments(NUMBER)).holdout.plan) % 2, "uneven is harder"
    run_together(2, train_many, tmp_path / "run", *settings)
    lines, others = log_lines(tmp_path / "run"), log_lines(tmp_path / "alone")
    assert [line["step"] for line in lines if "holdout_loss" in line] == [4, 8, 10]
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=1e-4)


def test_another_choice_on_resume_is_mentioned(tmp_path, caplog):
    for kept, said in (({"held_out": "a"}, False), ({"held_out": "b"}, True), ({"held_out": ""}, True), ({}, False)):
        caplog.clear()
        check_held_out(kept, "a")
        assert ("other images are held out" in caplog.text) == said
