"""Recipes: what is shipped holds, overrides mean what they say, and mistakes are answered with what to do."""

import pytest
from pydantic import ValidationError

from fitv2.build import build_dataset, build_model_config, build_objective
from fitv2.config import PARTS, Recipe, build_recipe, load_recipe, recipe_names, valid_keys
from fitv2.diffusion.schedule import STEPS
from fitv2.errors import UserError
from fitv2.model.presets import config_of
from tiny import garments


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_holds(name):
    recipe = load_recipe(name)
    config = build_model_config(recipe, garments())
    build_objective(recipe.training, config)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_shipped_recipes_are_there():
    assert {"fashion", "fashion-tiny", "pictures"} <= set(recipe_names())


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_numbers_may_be_written_without_a_dot(text):
    """YAML 1.1 reads 1e-4 as a string."""
    assert build_recipe({}, [f"training.learning_rate={text}"]).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=700", "training", "steps", 700),
        ("model.lora_rank=null", "model", "lora_rank", None),
        ("data.min_scale=0.5", "data", "min_scale", 0.5),
        ("training.precision=no", "training", "precision", "no"),  # YAML reads a bare `no` as false
        (" log.tensorboard =yes", "log", "tensorboard", True),
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


def test_a_setting_without_effect_on_the_architecture_is_refused():
    recipe = build_recipe({}, ["model.architecture=FiT"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    for settings, complaint in (
        (
            ["model.architecture=FiT", "model.lora_rank=8"],
            "FiT model.lora_rank .* with modulation=full; remove it",
        ),
        (["model.modulation=full", "model.lora_rank=8"], "model.lora_rank would have no effect with modulation=full"),
        (["model.architecture=FiT", "model.qk_norm_affine=true"], "model.qk_norm_affine .* with qk_norm=false"),
        (["model.qk_norm=false", "model.qk_norm_affine=true"], "model.qk_norm_affine .* with qk_norm=false"),
        (
            ["model.architecture=FiT", "training.time_std=2", "training.time_density=mode"],
            "training.time_density, training.time_std would have no effect with prediction=noise",
        ),
        (["model.prediction=noise", "training.time_mean=2"], "training.time_mean .* with prediction=noise"),
        (["training.time_density=cosmap", "training.time_mean=2"], "training.time_mean .* with time_density=cosmap"),
        (["training.time_scale=1"], "training.time_scale would have no effect with time_density=logit_normal"),
    ):
        with pytest.raises(ValueError, match=complaint):
            build_recipe({}, settings)


def test_the_parts_of_fit_can_be_changed_one_by_one():
    """The rows of Table II: what a recipe does not say is as the architecture has it."""
    settings = ["model.architecture=FiT", "model.qk_norm=true", "model.prediction=velocity"]
    settings += ["model.modulation=low-rank", "model.lora_rank=8", "model.qk_norm_affine=true", "training.time_std=2"]
    for number, changes in enumerate(({}, {"qk_norm": True}, {"prediction": "velocity"}, {"modulation": "low-rank"})):
        recipe = build_recipe({}, [settings[0], *settings[number : number + 1]])
        config = build_model_config(recipe, garments())
        parts = {part: getattr(config, part) for part in PARTS["FiT"]}
        assert parts == PARTS["FiT"] | changes == recipe.model.parts
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    recipe = build_recipe({}, settings)
    config = build_model_config(recipe, garments())
    assert (config.modulation_rank, config.qk_norm_affine, config.mlp_hidden) == (8, True, 4 * 256)


@pytest.mark.parametrize("architecture", PARTS)
def test_the_settings_know_what_the_architectures_have(architecture):
    side = {"side": 5} if architecture in ("DiT", "SiT") else {}
    config = config_of(architecture, width=32, depth=1, heads=2, **side)
    assert PARTS[architecture] == {part: getattr(config, part) for part in PARTS[architecture]}


def test_the_budget_is_that_of_the_source_until_it_is_set():
    def budget(*settings):
        data = build_recipe({}, settings).data
        return data.max_tokens, data.preprocessing

    assert budget() == (49, "resize") and budget("data.source=my/pictures") == (256, "mixed")
    assert budget("data.max_tokens=25", "data.preprocessing=crop") == (25, "crop")
    with pytest.raises(ValueError, match=r"data\.source: .*valid string \(given: \[1\]\)$"):
        budget("data.source=[1]")
    recipe = build_recipe({}, ["data.max_tokens=25", "data.preprocessing=crop"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert build_dataset(recipe.data, 4).epoch(0, 0).hw.tolist() == [[5, 5]] * 10_000


def test_a_setting_without_effect_on_the_source_is_refused():
    with pytest.raises(ValueError, match="flip would have no effect on the source 'fashion'; remove it"):
        build_recipe({}, ["data.flip=false"])
    with pytest.raises(ValueError, match="split would have no effect on the source 'my/pictures'"):
        build_recipe({}, ["data.source=my/pictures", "data.split=full"])
    folder = build_recipe({}, ["data.source=my/pictures", "data.flip=false"])
    assert folder.model_dump()["data"].keys().isdisjoint({"split", "folder"}) and not folder.data.flip


def test_a_schedule_that_never_reaches_its_peak_is_refused():
    with pytest.raises(ValueError, match=r"training: warmup_steps=60 and decay_fraction=0.5 overlap within 100 steps"):
        build_recipe({}, ["training.steps=100", "training.warmup_steps=60", "training.decay_fraction=0.5"])


def test_a_yaml_file_with_an_empty_section(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  width: 64\ntraining:\n  # steps: 3\n")
    recipe = load_recipe(str(path), ["training.seed=4"])
    assert (recipe.model.width, recipe.training.seed) == (64, 4)
    assert load_recipe(str(path)).training == Recipe().training


def test_an_empty_recipe_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    with pytest.raises(UserError, match="is empty"):
        load_recipe(str(tmp_path / "empty.yaml"))


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
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(override, nearest):
    with pytest.raises(ValueError, match=f"no setting '{override.partition('=')[0]}'; the nearest is '{nearest}'"):
        build_recipe({}, [override])


def test_an_unknown_key_or_section_of_a_file_is_an_error():
    with pytest.raises(ValueError, match=r"no setting 'model\.widht'; the nearest is 'model\.width'"):
        build_recipe({"model": {"widht": 3}})
    with pytest.raises(ValueError, match=r"no setting 'wobble\.width'; the nearest is 'model\.width'"):
        build_recipe({"wobble": {"width": 3}})
    for nothing in (None, {}, 3):
        with pytest.raises(ValueError, match="no setting 'wobble'; the nearest is"):
            build_recipe({"wobble": nothing})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=many", r"training\.steps: .*integer.*'many'"),
        ("training.steps=0", r"training\.steps: .*greater than 0"),
        ("training.steps=", r"training\.steps: .*integer.*None"),
        ("training.ema_decay=1", r"training\.ema_decay: .*less than 1"),
        ("training.seed=-1", r"training\.seed: .*greater than or equal to 0"),
        ("training.seed=4294967296", r"training\.seed: .*less than"),
        ("training.time_scale=1.8", r"training\.time_scale: .*less than or equal to 1\.75"),
        ("model.prediction=data", r"model\.prediction: .*'velocity' or 'noise'"),
        ("data.channels=2", r"data\.channels: .*1 or 3"),
        ("training.precision=fp16", r"training\.precision: .*'bf16' or 'no'"),
        ("training.steps.x=3", r"training\.steps: .*integer"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message):
        build_recipe({}, [override])


def test_a_sheet_has_no_more_steps_than_the_process():
    """It would end the training at its first sheet. Without sheets, or of a flow, any number does."""
    of_noise = ["model.architecture=FiT", f"log.sample_steps={STEPS + 1}"]
    with pytest.raises(UserError, match=r"log\.sample_steps=1001"):
        build_recipe({}, of_noise)
    for fine in ([*of_noise, "log.sample_every=null"], of_noise[1:], [of_noise[0], f"log.sample_steps={STEPS}"]):
        build_recipe({}, fine)


def test_an_override_that_is_none():
    for override in ("training.steps", "", "--resume"):
        with pytest.raises(ValueError, match=r"is not of the form section\.key=value"):
            build_recipe({}, [override])
    with pytest.raises(ValueError, match="not valid YAML"):
        build_recipe({}, ["training.steps=[1"])


def test_an_override_below_something_that_is_no_section():
    with pytest.raises(ValueError, match=r"'training\.steps\.x=3' cannot be set: 'steps' holds 10"):
        build_recipe({"training": {"steps": 10}}, ["training.steps.x=3"])
    with pytest.raises(ValueError, match="cannot be set: 'model' holds 5"):
        build_recipe({"model": 5}, ["model.width=3"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "7\n", "[]\n"])
def test_a_file_without_sections(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"list\.yaml must hold sections with keys"):
        load_recipe(str(path))


def test_a_file_that_is_not_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [1,\n")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no recipe 'fashon'; give a YAML file, or one of .*fashion-tiny"):
        load_recipe("fashon")


def test_every_setting_is_described_or_speaks_for_itself():
    assert len(valid_keys()) == len(set(valid_keys())) > 25
    plain = {"training.weight_decay"}
    for section, field in Recipe.model_fields.items():
        for key, setting in field.annotation.model_fields.items():
            assert setting.description or f"{section}.{key}" in plain
