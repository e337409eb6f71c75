"""Training from another model's weights: what is taken, what is reinitialised, and what stays frozen."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch

from fitv2.build import build_model_config
from fitv2.checkpoints.model_folder import Pretrained, load_pretrained, save_pretrained, suitable
from fitv2.errors import UserError
from fitv2.model.network import bare_model
from fitv2.model.presets import preset
from fitv2.model.transformer import FiT
from fitv2.settings.read import build_recipe
from fitv2.training.finetune import LABELS, PATCHES, init_from, trained_fraction, trained_names
from fitv2.training.trainer import Trainer
from tiny import CLASSES, CONFIG, garments, random_model, recipe, train, trainer


def base(names=CLASSES, **changes) -> Pretrained:
    return Pretrained(random_model(replace(CONFIG, **changes)), list(names), [[(8, 8, 1)]])


def beginning(*settings: str):
    return recipe("training.init_from=theirs", *(f"training.{setting}" for setting in settings)).training


def fresh() -> FiT:
    torch.manual_seed(1)
    return FiT(CONFIG)


def changed(model: FiT, other: FiT) -> set[str]:
    weights = dict(other.named_parameters())
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])}


def test_the_same_classes_and_latents_take_everything():
    model, start = fresh(), base()
    found = init_from(model, start, garments(), beginning())
    assert found.notes == [] and found.reinitialised == set() == changed(model, start.model)
    (note,) = init_from(fresh(), replace(start, autoencoder="some/vae"), garments(), beginning()).notes
    assert "latents of some/vae" in note


@pytest.mark.parametrize("start", [base(names="abcdefghij"), base(names="abcde", num_classes=5)])
def test_other_classes_begin_with_a_new_table_but_the_old_row_of_no_class(start):
    model = fresh()
    found = init_from(model, start, garments(), beginning("trainable=high-resolution"))
    assert len(found.notes) == 1 and "label embedding" in found.notes[0]
    assert changed(model, start.model) <= {LABELS}
    table = model.y_embedder.embedding_table.weight
    assert torch.equal(table[-1], start.model.y_embedder.embedding_table.weight[-1])
    assert torch.equal(table[:-1], fresh().y_embedder.embedding_table.weight[:-1])
    # Nothing random stays frozen.
    names = [name for name, _ in model.named_parameters()]
    assert LABELS not in trained_names(names, "high-resolution")
    assert LABELS in trained_names(names, "high-resolution", found.reinitialised)


@pytest.mark.parametrize(("changes", "reinit"), [({"in_channels": 4}, []), ({}, ["patches"])])
def test_other_latents_or_reinit_begin_with_new_patch_layers(changes, reinit):
    model, start = fresh(), base(**changes)
    (note,) = init_from(model, start, garments(), beginning(f"reinit={json.dumps(reinit)}")).notes
    assert "patch layers" in note
    theirs, before = start.model.state_dict(), fresh().state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name] if name in PATCHES else theirs[name]), name


@pytest.mark.parametrize("names", [CLASSES, "abcdefghij"])
def test_a_base_of_another_width_is_refused(names):
    """Whether its classes are others or not, and by a plan as by a training."""
    start = base(names, width=64)
    with pytest.raises(UserError, match=r"another shape.*\(64,\)"):
        init_from(fresh(), start, garments(), beginning())
    with pytest.raises(UserError, match="another shape"):
        init_from(bare_model(CONFIG), start, garments(), beginning())


def test_the_fraction_trained_at_high_resolution_is_that_of_the_paper():
    assert round(100 * trained_fraction(preset("FiTv2-XL/2"), "high-resolution"), 2) == 14.15
    assert trained_fraction(CONFIG, "all") == 1.0


def test_post_training_moves_what_it_should_and_resumes(tmp_path, caplog):
    train(tmp_path / "base", "training.steps=5")
    settings = [
        f"training.init_from={tmp_path / 'base'}",
        "training.trainable=high-resolution",
        "model.extrapolation=vision-ntk",
    ]
    start = load_pretrained(tmp_path / "base")
    config = build_model_config(recipe(*settings), garments(), start)
    assert (config.rope.method, config.rope.per_axis) == ("ntk-aware", True)
    assert config.rope.train_side == start.model.config.rope.train_side
    whole = trainer(tmp_path / "whole", *settings)
    assert changed(whole.learner.model.module, start.model) == set()
    whole.fit(lambda figures: None)
    moved = changed(whole.learner.model.module, start.model)
    assert {"blocks.0.attn.qkv.bias", "final_layer.linear.weight", "x_embedder.proj.weight"} <= moved
    assert not {name for name in moved if name.endswith(("qkv.weight", "fc2.weight", "embedding_table.weight"))}
    train(tmp_path / "half", *settings, "training.steps=5")
    with caplog.at_level(logging.INFO):
        again = train(tmp_path / "half", *settings)
    assert "continuing from" in caplog.text and again.progress.done == 10
    assert changed(again.learner.model.module, whole.learner.model.module) == set()


def test_post_training_with_other_classes_continues_bit_for_bit_without_its_base(tmp_path):
    start = base(names="abcdefghij")
    save_pretrained(tmp_path / "base", CONFIG, start.model.state_dict(), start.class_names, start.shapes, None)
    settings = [f"training.init_from={tmp_path / 'base'}", "training.trainable=high-resolution"]
    whole = train(tmp_path / "whole", *settings)
    assert LABELS in changed(whole.learner.model.module, start.model)
    train(tmp_path / "half", *settings, "training.steps=5")
    shutil.rmtree(tmp_path / "base")
    chosen = recipe(*settings)
    again = Trainer(chosen, garments(), build_model_config(chosen, garments()), tmp_path / "half")
    again.fit(lambda figures: None)
    assert changed(again.learner.model.module, whole.learner.model.module) == set()
    assert again.learner.trained == whole.learner.trained


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.trainable=high-resolution", "go with init_from"),
        ("training.reinit=[labels]", "go with init_from"),
        ("model.extrapolation=vision-ntk", "goes with training.init_from"),
    ],
)
def test_settings_of_a_start_need_one(override, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_recipe({}, [override])


def test_a_run_keeps_the_recommendations_of_its_base_unless_they_are_changed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    advice, start = {"guidance": 1.5, "interval": [0.2, 0.8]}, random_model().state_dict()
    save_pretrained(tmp_path / "base", CONFIG, start, CLASSES, [[(8, 8, 1)]], None, recommended=advice)
    settings = ["log.checkpoint_every=2", "log.export_at=[1,3]", f"training.init_from={tmp_path / 'base'}"]
    run = tmp_path / "run"
    train(run, *settings, "training.steps=2")
    for folder in (run, run / "exports/step-00000001", run / "checkpoints"):
        assert load_pretrained(folder).recommended == advice
    (run / "model/sampling.json").write_text('{"guidance": 3}')
    train(run, *settings, "training.steps=4")
    assert (
        load_pretrained(run).recommended
        == load_pretrained(run / "exports/step-00000003").recommended
        == {"guidance": 3}
    )
    # Without a recommendation there is no such file, and one for another kind of network is not kept.
    train(tmp_path / "other", "training.steps=1")
    assert not (tmp_path / "other/model/sampling.json").exists()
    assert suitable({"channels": 100}, CONFIG, "a model") == {} and "not kept" in caplog.text


def test_another_prediction_is_refused_and_an_internal_head_is_trained_anew(tmp_path):
    with pytest.raises(UserError, match="predicts data"):
        init_from(fresh(), base(prediction="data"), garments(), beginning())
    model = FiT(replace(CONFIG, internal_head=1))
    found = init_from(model, base(), garments(), beginning())
    assert found.reinitialised == {name for name, _ in model.named_parameters() if name.startswith("internal_layer.")}
    # Without a head of its own it leaves that of the base behind.
    assert not init_from(fresh(), base(internal_head=1), garments(), beginning()).reinitialised


def test_advice_of_a_base_that_does_not_fit_the_training_is_left_behind(tmp_path):
    weights, advice = random_model().state_dict(), {"solver": "dopri5"}
    save_pretrained(tmp_path / "base", CONFIG, weights, CLASSES, [[(8, 8, 1)]], None, recommended=advice)
    run = train(tmp_path / "run", f"training.init_from={tmp_path / 'base'}", "training.shift_tokens=16")
    assert run.progress.done and load_pretrained(tmp_path / "run").recommended == {"shift_tokens": 16}
