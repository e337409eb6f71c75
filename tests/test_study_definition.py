"""Studies as data: what is refused, how trainings are told apart, and what a trial shortens."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from fitv2.build import build_model_config
from fitv2.profiling.formula import parameters
from fitv2.study.loading import build_study, load_study, shortened, study_names
from fitv2.study.results import Table
from fitv2.study.runs import Run, base_digest, reference_digest, runs_of
from studies import TREE, home, tree


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_can_be_run(name):
    """Its settings hold, all variants can be built, and none is much larger than another."""
    study = load_study(name)
    runs = [Run(study, variant, 0) for variant in study.variants]
    sizes = [parameters(build_model_config(run.recipe, run.dataset)) for run in runs]
    assert max(sizes) < 1.25 * min(sizes)


def test_variants_are_compared_at_equal_cost():
    costs = [Run(load_study("versus-sit"), variant, 0).costs["images_per_step"] for variant in ("SiT", "FiTv2")]
    assert costs[0] == pytest.approx(costs[1], rel=0.03)
    costs = [Run(load_study("ablation"), v, 0).costs["parameters"] for v in ("FiTv2", "full-adaln-narrow")]
    assert costs[0] == pytest.approx(costs[1], rel=0.006)


def test_shipped_studies_share_their_trainings():
    ids = {name: {v: Run(load_study(name), v, 0).id for v in load_study(name).variants} for name in study_names()}
    assert ids["ablation"]["FiT"] == ids["convergence"]["FiT"] == ids["samplers"]["FiT"]
    assert ids["ablation"]["A"] == ids["convergence"]["FiT-flow"]
    of_garments = ids.keys() - {"mixed", "modern-colour", "stability"}
    assert len({ids[name]["FiTv2"] for name in of_garments}) == 1


def test_a_training_is_known_by_its_settings_and_its_data():
    def id_of(**changes) -> str:
        return Run(build_study(tree(**changes), "tiny"), "FiTv2", 0).id

    def with_setting(key: str, value: object) -> str:
        return id_of(set=TREE["set"] | {key: value})

    one = id_of()
    assert {one} == {id_of(seeds=5), id_of(evaluation={"points": [1, 2]}), with_setting("training.max_grad_norm", 1)}
    assert one not in (with_setting("training.max_grad_norm", 0.5), with_setting("data.preprocessing", "crop"))


def test_an_earlier_version_with_fewer_settings_trained_the_same(tmp_path):
    run, table = Run(build_study(tree(), "tiny"), "FiTv2", 0), Table(tmp_path)
    settings = run.identity["settings"]
    fewer = settings | {"training": {k: v for k, v in settings["training"].items() if k != "max_grad_norm"}}
    other = settings | {"training": settings["training"] | {"max_grad_norm": 0.5}}
    for known, told in (("other", other), ("fewer", fewer)):
        table.append([{"kind": "training", "run": known} | run.identity | {"settings": told}])
    assert table.run_of(run.id) == "fewer"
    table.append([{"kind": "training", "run": run.id} | run.identity])
    assert table.run_of(run.id) == run.id


def test_a_reference_and_a_base_model_are_known_by_their_content(tmp_path):
    """Those that ship with the package keep the ids of results that are there."""
    base, images = tmp_path / "base", tmp_path / "images"
    shutil.copytree(home() / "images", images)
    weights = {"a": torch.zeros(2)}

    def ids() -> tuple[str, str]:
        reference_digest.cache_clear()
        base_digest.cache_clear()
        run = Run(build_study(tree(**changes), "tiny"), "FiTv2", 0)
        return run.id, run.scoring_id(run.scorings[-1])

    changes = {"set": TREE["set"] | {"training.init_from": str(base)}, "evaluation": {"reference": str(images)}}
    with pytest.MonkeyPatch.context() as patch:
        model = SimpleNamespace(model=SimpleNamespace(state_dict=lambda: weights))
        patch.setattr("fitv2.study.runs.load_pretrained", lambda name: model)
        before = ids()
        weights["a"] = torch.ones(2)
        first, *_, last = sorted(images.rglob("*.png"))
        first.write_bytes(last.read_bytes())
        assert not set(before) & set(ids())
    assert "base" not in Run(build_study(tree(), "tiny"), "FiTv2", 0).identity
    assert reference_digest("fashion") is reference_digest("emoji") is None


def test_a_trial_shortens_trainings_and_scores():
    whole, trial = load_study("convergence"), shortened(load_study("convergence"), 0.1)
    before, after = (study.recipe_of("FiTv2", 0).training for study in (whole, trial))
    assert (after.steps, after.warmup_steps) == (before.steps / 10, before.warmup_steps / 10)
    assert trial.evaluation.points == tuple(step // 10 for step in whole.evaluation.points)
    assert (trial.evaluation.images, trial.evaluation.final_images) == (40, 100)
    with pytest.raises(ValueError, match="fraction"):
        shortened(whole, 1.5)


def test_the_best_value_of_a_tuned_setting_is_taken(tmp_path):
    tuning = {"values": [1e-3, 2e-3, 4e-3], "variants": ["FiT"]}
    variants = {"FiT": TREE["variants"]["FiT"], "FiTv2": TREE["variants"]["FiTv2"] | {"tuned_as": "FiT"}}
    study, table = build_study(tree(variants=variants, tuning=tuning), "tiny"), Table(tmp_path)
    trials = runs_of(study, table)
    assert [(run.variant, run.seed, run.tuned) for run in trials] == [("FiT", 1000, v) for v in tuning["values"]]
    assert runs_of(study, table, only=["FiTv2"])[0].variant == "FiT"
    for run, value in zip(trials, (3.0, 2.0, None), strict=True):
        (scoring,) = run.scorings
        row = {"run": run.id, "step": scoring.step, "scoring": run.scoring_id(scoring), "metric": "fd"}
        table.append([row | {"variant": "FiT", "seed": run.seed, "value": value}])
    runs = runs_of(study, table)
    assert [(run.variant, run.seed) for run in runs] == [("FiT", 0), ("FiTv2", 0), ("FiT", 1), ("FiTv2", 1)]
    assert {run.recipe.training.learning_rate for run in runs} == {2e-3}


BETTER = {"kind": "better", "of": "FiTv2", "than": "FiT"}
TWINS = {"twin": {"about": "x", "set": {"training.time_density": "logit_normal"}}}
TUNING = {"values": [1e-3, 2e-3], "variants": ["FiT", "FiTv2", "twin"]}
CROPPED = TREE["variants"] | {"FiTv2": {"about": "x", "set": {"data.preprocessing": "crop"}}}
ONLY = {"own": {"guidance": 1}, "wide": {"variants": ["FiT"]}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": {}}, "variants"),
        ({"variants": TREE["variants"] | {"twin": {"about": "x"}}}, "variants FiTv2 and twin have the same settings"),
        ({"variants": TREE["variants"] | TWINS, "tuning": TUNING}, "variants FiTv2 and twin have the same settings"),
        ({"variants": {"a/b": {"about": "x"}}}, "pattern"),
        ({"variants": {"a": {"about": "x"}}}, "'FiTv2', which does not exist; choose from a"),
        ({"set": {"training.seed": 3}}, "training.seed"),
        ({"set": {"model.widht": 3}}, "model.width"),
        ({"set": {"model.width": "many"}}, "the variant FiT"),
        ({"recipe": "none"}, "'none'"),
        ({"questoin": "?"}, "questoin"),
        ({"lines": ["FiT3"]}, "did you mean FiT"),
        ({"evaluation": {"extractor": "eyes"}}, "evaluation.extractor"),
        ({"evaluation": {"curve": "wide"}}, "evaluation.curve"),
        ({"evaluation": {"conditions": {}}}, "evaluation.conditions"),
        ({"evaluation": {"conditions": {"own": {"size": "24"}}}}, "size"),
        ({"evaluation": {"conditions": {"own": {"variants": ["DiT"]}}}}, "'DiT'"),
        ({"evaluation": {"conditions": {"own": {"sampler": {"solver": "ddim", "steps": 2}}}}}, "predict velocity"),
        ({"evaluation": {"samplers": {"velocity": {"solver": "huen", "steps": 2}}}}, "did you mean heun"),
        ({"evaluation": {"samplers": {"velocity": {"solver": "dopri5", "steps": 2}}}}, "number of steps 'dopri5'"),
        ({"evaluation": {"points": [3]}}, "before the first point"),
        ({"tuning": {"values": [1, 2], "variants": ["FiT"]}}, "tuned_as"),
        ({"measure": {"kind": "guess"}}, "claims.0.measure"),
        ({"measure": BETTER | {"metric": "kid"}}, "metric"),
        ({"measure": BETTER | {"condition": "round"}}, "'round'"),
        ({"measure": BETTER | {"condition": "wide"}, "evaluation": {"conditions": ONLY}}, "not for FiTv2"),
        ({"measure": BETTER, "variants": CROPPED}, "images in their own sizes differ"),
        ({"measure": BETTER | {"within": 0.1}}, "within"),
        ({"measure": BETTER | {"than": "FiTv2"}}, "FiTv2 is named twice"),
        ({"measure": BETTER | {"than": ["FiT", "FiT"]}}, "FiT is named twice"),
        ({"measure": BETTER | {"than": []}}, "no other variant"),
        ({"measure": {"kind": "faster", "of": "FiT", "than": "FiT", "at_least": 2}}, "FiT is named twice"),
    ],
)
def test_a_wrong_definition_is_a_sentence(tmp_path, changes, complaint):
    if measure := changes.pop("measure", None):
        changes["claims"] = [{"text": "x", "paper": "y", "measure": measure}]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(tree(**changes)))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_study(str(path))
