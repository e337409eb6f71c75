"""Recipes: what is shipped is valid, overrides mean what they say, and mistakes are answered with what to do."""

import re

import pytest
from pydantic import ValidationError

from fitv2.build import build_dataset, build_model_config, build_objective
from fitv2.diffusion.schedule import STEPS
from fitv2.errors import UserError
from fitv2.model.presets import config_of
from fitv2.settings.read import ELSEWHERE, build_recipe, load_recipe, recipe_names, valid_keys
from fitv2.settings.recipe import DIFFUSION_STEPS, SECTIONS, Recipe
from tiny import garments

PARTS = ("qk_norm", "modulation", "prediction")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name):
    recipe = load_recipe(name)
    config = build_model_config(recipe, garments())
    build_objective(recipe.training, config)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=700", "training", "steps", 700),
        ("model.lora_rank=null", "model", "lora_rank", None),
        ("data.min_scale=0.5", "data", "min_scale", 0.5),
        ("training.precision=fp32", "training", "precision", "fp32"),
        (" training.compile =yes", "training", "compile", True),
        # YAML 1.1 reads numbers without a dot as strings.
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("training.learning_rate=1E-4", "training", "learning_rate", 1e-4),
    ],
)
def test_an_override_changes_its_key_and_nothing_else(override, section, key, value):
    changed, default = build_recipe({}, [override]).model_dump(), Recipe().model_dump()
    assert changed[section].pop(key) == value
    del default[section][key]
    assert changed == default


def test_overrides_go_before_the_file_and_the_last_one_wins():
    tree = {"training": {"steps": 500, "seed": 3}}
    recipe = build_recipe(tree, ["training.steps=600", "training.steps=800", "model.width=64"])
    assert (recipe.training.steps, recipe.training.seed, recipe.model.width) == (800, 3, 64)
    assert tree == {"training": {"steps": 500, "seed": 3}}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["model.architecture=SiT", "model.mlp_ratio=3"], r"model\.mlp_ratio: no effect with architecture SiT"),
        (["model.architecture=DiT", "training.compile=true"], r"training\.compile: no effect with .*=DiT"),
        (["model.architecture=SiT", "training.init_from=a"], r"training\.init_from: no effect"),
        (["model.architecture=SiT", "model.qk_norm=true"], r"model\.qk_norm: no effect with architecture SiT"),
        (["model.architecture=SiT", "training.sharding=fsdp"], r"training\.sharding: no effect with .*=SiT"),
        (["model.architecture=FiT", "training.time_density=mode"], r"training\.time_density: no effect .* predicts"),
        (["training.time_density=cosmap", "training.time_mean=2"], "time_mean: no effect with time_density=cosmap"),
        (["training.time_scale=1"], "time_scale: no effect with time_density=logit_normal"),
        (["data.flip=false"], r"data\.flip: no effect with source fashion; remove it"),
        (["data.source=my/images", "data.split=full"], r"data\.split: no effect with source folder"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        build_recipe({}, settings)


@pytest.mark.parametrize("changes", [["model.modulation=full", "model.lora_rank=8"], ["model.qk_norm_affine=true"]])
def test_parts_that_do_not_go_together_are_refused_when_the_network_is_built(changes):
    recipe = build_recipe({}, ["model.qk_norm=false", *changes])
    with pytest.raises(UserError, match=r"lora_rank|qk_norm_affine"):
        build_model_config(recipe, garments())


def test_the_parts_of_fit_can_be_changed_one_by_one():
    """The rows of Table II."""
    default = {"qk_norm": False, "modulation": "full", "prediction": "epsilon"}
    for changes in ({}, {"qk_norm": True}, {"prediction": "velocity"}, {"modulation": "low-rank"}):
        recipe = build_recipe({"model": {"architecture": "FiT", **changes}})
        config = build_model_config(recipe, garments())
        assert {part: getattr(config, part) for part in PARTS} == default | changes
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("architecture", ["FiTv2", "FiT", "DiT", "SiT"])
def test_the_settings_have_the_defaults_of_the_architectures(architecture):
    model = build_recipe({"model": {"architecture": architecture}}).model
    side = {"side": 5} if architecture in ("DiT", "SiT") else {}
    config = config_of(architecture, width=32, depth=1, heads=2, **side)
    for part in (part for part in PARTS if hasattr(config, part)):
        assert getattr(model, part) == getattr(config, part)


def test_what_an_override_replaces_is_dropped_from_the_file_and_not_from_other_overrides():
    baseline = load_recipe("images", ["model.architecture=FiT"])
    assert baseline.model.prediction == "epsilon" and not baseline.training.changed("time_mean", "time_std")
    assert load_recipe("images", ["model.architecture=SiT"]).model.prediction == "velocity"
    assert load_recipe("images", ["model.architecture=FiTv2"]).model.prediction == "data"
    kept = load_recipe("images", ["model.architecture=SiT", "model.prediction=data"])
    assert kept.model.prediction == "data" and kept.training.time_mean == -0.6
    few_steps = "training.objective=transition", "training.init_from=runs/mine"
    for name in ("images", "emoji"):
        training = load_recipe(name, few_steps).training
        assert not training.changed("time_mean", "time_std", "shift_tokens")
    assert load_recipe("images", ["training.time_density=uniform"]).training.time_density == "uniform"
    assert load_recipe("images", ["training.time_density=logit_normal"]).training.time_mean == -0.6
    for wrong in ([*few_steps, "training.time_mean=-1"], ["model.architecture=FiT", "training.time_mean=-1"]):
        with pytest.raises(UserError, match="time_mean"):
            load_recipe("images", wrong)


def test_the_budget_is_that_of_the_source_until_it_is_set():
    def budget(*settings):
        data = build_recipe({}, settings).data
        return data.max_tokens, data.preprocessing

    assert budget() == (49, "resize") and budget("data.source=my/images") == (256, "mixed")
    assert budget("data.max_tokens=25", "data.preprocessing=crop") == (25, "crop")
    with pytest.raises(ValueError, match=r"data\.source: .*\[1\]"):
        budget("data.source=[1]")
    recipe = build_recipe({}, ["data.max_tokens=25", "data.preprocessing=crop"])
    assert build_dataset(recipe.data, 4).epoch(0, 0).hw.tolist() == [[5, 5]] * 10_000


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "what"),
    [(100, 60, 0.5, "overlap"), (20, 200, 0, "exceeds"), (3, 3, 1, "overlap"), (1, 2, 0, "exceeds")],
)
def test_a_schedule_that_never_reaches_its_peak_is_refused_and_one_that_does_named(steps, warmup, decay, what):
    settings = [f"training.steps={steps}", f"training.warmup_steps={warmup}", f"training.decay_fraction={decay}"]
    with pytest.raises(UserError, match=what) as error:
        build_recipe({}, settings)
    build_recipe({}, [*settings, str(error.value).rpartition("--set ")[2]])
    # In floating point, 1000 * (1 - 0.8) is less than 200.
    build_recipe({}, ["training.steps=1000", "training.warmup_steps=200", "training.decay_fraction=0.8"])


def test_a_yaml_file_with_an_empty_section(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  width: 64\ntraining:\n  # steps: 3\n")
    recipe = load_recipe(str(path), ["training.seed=4"])
    assert (recipe.model.width, recipe.training.seed) == (64, 4)
    assert load_recipe(str(path)).training == Recipe().training


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValidationError):
        Recipe().training.steps = 3


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.learning_rat=1", "training.learning_rate"),
        ("trainig.steps=1", "training.steps"),
        ("steps=1", "training.steps"),
        ("model.hidden_heads=1", "model.heads"),
        ("data.max_tokens_per_batch=1", "training.max_tokens_per_batch"),
        ("log.sample_evry=1", "log.sample_every"),
        # Names that other trainers use.
        ("training.lr=1", "training.learning_rate"),
        ("lr=1", "training.learning_rate"),
        ("training.lr_warmup_steps=1", "training.warmup_steps"),
        ("training.epochs=1", "training.steps"),
        ("training.batch_size=1", "training.max_tokens_per_batch"),
        ("training.gradient-accumulation-steps=1", "training.batches_per_step"),
        ("training.ema=1", "training.ema_decay"),
        ("training.wd=1", "training.weight_decay"),
        ("model.num_layers=1", "model.depth"),
        ("data.image_size=1", "data.max_tokens"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(override, nearest):
    with pytest.raises(UserError, match=f"no setting '{override.partition('=')[0]}'; the nearest is '{nearest}'"):
        build_recipe({}, [override])


def test_other_trainers_names_stand_for_settings_that_exist():
    leaves = {key.partition(".")[2] for key in valid_keys()}
    assert leaves.issuperset(ELSEWHERE.values()) and not {"lr", "wd"} & leaves


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"model": {"widht": 3}}, r"no setting 'model\.widht'; the nearest is 'model\.width'"),
        ({"wobble": {"width": 3}}, r"no setting 'wobble\.width'; the nearest is 'model\.width'"),
        *[({"wobble": nothing}, "no setting 'wobble'; the nearest is") for nothing in (None, {}, 3)],
    ],
)
def test_an_unknown_key_or_section_of_a_file_is_an_error(tree, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_recipe(tree)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=many", r"training\.steps: .*whole number.*'many'"),
        ("training.steps=0", r"training\.steps: .*greater than 0"),
        ("training.steps=", r"training\.steps: .*whole number.*None"),
        ("training.seed=4294967296", r"training\.seed: .*less than"),
        ("training.time_density=unifrom", "did you mean uniform"),
        ("log.trackers=[wanb]", "did you mean wandb"),
        ("model.architecture=FITv2", "given: 'FITv2'.*did you mean FiTv2"),
        ("model.prediction=image", r"model\.prediction: .*'velocity'.*'epsilon'"),
        ("model.architecture=UNet", r"model: 'architecture' must be one of 'FiTv2'.*'SiT'"),
        ("training.precision=fp16", r"training\.precision: .*'bf16' or 'fp32'"),
        ("training.steps.x=3", r"training\.steps: .*whole number"),
        ("training.steps=yes", "training: steps must not be true or false"),
        ("log.sample_every=true", "log: sample_every must not be true or false"),
        ("data.further_tokens=on", "data: further_tokens must not be true or false"),
        ("training=5", r"training: must hold keys with values \(given: 5\)"),
        ("model=5", r"model: must hold keys with values"),
        ("data.source=2024", r"data\.source: must be text, in quotes .*2024"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message):
        build_recipe({}, [override])


def test_a_sheet_has_no_more_steps_than_the_process():
    """It would end the training at its first sheet. Without sheets, or with a flow, any number of steps is possible."""
    assert DIFFUSION_STEPS == STEPS
    of_noise = ["model.architecture=FiT", f"log.sample_steps={STEPS + 1}"]
    with pytest.raises(UserError, match="sample_steps=1001"):
        build_recipe({}, of_noise)
    for fine in ([*of_noise, "log.sample_every=null"], of_noise[1:], [of_noise[0], f"log.sample_steps={STEPS}"]):
        build_recipe({}, fine)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.steps", r"is not of the form section\.key=value, such as \w+\.\w+=\d"),
        ("", r"is not of the form section\.key=value"),
        ("training.steps=[1", "not valid YAML"),
        ("training.steps.x=3", r"cannot be set: 'steps' holds 10"),
    ],
)
def test_an_override_that_is_none(override, complaint):
    with pytest.raises(UserError, match=complaint):
        build_recipe({"training": {"steps": 10}}, [override])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# nothing yet\n", "is empty"),
        ("- a\n- b\n", "must hold sections"),
        ("just words\n", "must hold sections"),
        ("model: [1,\n", "not valid YAML"),
        ("training:\n  steps: 5\ntraining:\n  workers: 1\n", "'training' is there twice.* line 3"),
        ("training: {steps: 5, steps: 500}\n", "'steps' is there twice"),
    ],
)
def test_a_file_that_holds_no_recipe(tmp_path, text, complaint):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"file\.yaml .*{complaint}"):
        load_recipe(str(path))


def test_an_unknown_recipe_suggests_the_nearest_and_then_lists_all():
    with pytest.raises(UserError, match=r"did you mean fashion .*one of emoji"):
        load_recipe("fashon")
    with pytest.raises(UserError, match="one of emoji"):
        load_recipe("nothing like it")


@pytest.mark.parametrize("architecture", ["FiTv2", "SiT"])
@pytest.mark.parametrize(("width", "heads"), [(256, 5), (256, 300), (30, 4), (6, 5)])
def test_heads_that_do_not_divide_the_width_are_refused_and_some_that_do_named(architecture, width, heads):
    side = {"side": 2} if architecture == "SiT" else {}
    with pytest.raises(UserError, match="take") as error:
        config_of(architecture, width=width, depth=1, heads=heads, **side)
    advice = str(error.value).rpartition("; take ")[2]
    widths = [int(number) for number in re.findall(r"width of (\d+)", advice)]
    others = [int(number) for number in re.findall(r"\d+(?= or| heads)", advice)]
    assert len(widths) == 1 and bool(others) == (width == 256)
    for fit in [{"width": widths[0], "heads": heads}, *({"width": width, "heads": other} for other in others)]:
        config_of(architecture, depth=1, **fit, **side)


def test_every_setting_is_described_where_it_first_appears():
    described = {}
    for section, kinds in SECTIONS.items():
        for key, setting in ((key, setting) for kind in kinds for key, setting in kind.model_fields.items()):
            described.setdefault(f"{section}.{key}", setting.description)
    assert list(described) == valid_keys() and len(described) > 25 and all(described.values())
