"""Studies as data: what is refused, how runs are told apart, what they will take, and whose results are whose."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from fitv2.build import build_dataset, build_model_config
from fitv2.hashes import json_digest
from fitv2.profiling.formula import parameters
from fitv2.study.definition import Run, build_study, load_study, shortened, study_names
from fitv2.study.home import refuse_another
from fitv2.study.job import given
from fitv2.study.plan import plans
from studies import BOTH, FURTHER, SIT, SQUARE, TREE, job, tree


@pytest.fixture
def work(tmp_path) -> Path:
    """The folder of trainings."""
    return tmp_path / "work"


def test_a_file_named_as_a_shipped_study_is_not_that_study(tmp_path):
    (tmp_path / "convergence/runs").mkdir(parents=True)
    shipped = load_study("convergence")
    refuse_another(tmp_path / "convergence", "convergence", shipped, None)
    with pytest.raises(ValueError, match="'convergence', which ships with the package"):
        refuse_another(tmp_path / "convergence", "convergence", shipped, Path("convergence.yaml"))
    (tmp_path / "convergence/convergence.yaml").write_text(yaml.safe_dump({"title": shipped.title}))
    with pytest.raises(ValueError, match="of a file convergence"):
        refuse_another(tmp_path / "convergence", "convergence", shipped, None)


def test_a_plan_counts_only_what_a_model_can_make(work):
    """Of two views, a grid makes its square alone."""
    changes = {"variants": {"SiT": SIT}, "claims": []}
    flops = [
        plans([job(work, "SiT", **changes, evaluation=TREE["evaluation"] | views)])["SiT-seed0"]["flops"]
        for views in (BOTH, {"views": {"square": SQUARE}}, {"guidance": [1.5]})
    ]
    assert flops[0] == flops[1] > flops[2] > 0


def test_without_a_name_the_studies_are_listed(fitv2):
    code, printed = fitv2("study")
    assert code == 0 and all(name in printed for name in study_names())


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_can_be_run(name):
    """Its settings hold, all variants can be built, and none is twice the size of another."""
    study, sizes, datasets = load_study(name), [], {}
    for variant in study.variants:
        recipe = study.recipe_of(variant, 0)
        key = recipe.data.model_dump_json()
        datasets[key] = datasets.get(key) or build_dataset(recipe.data, recipe.model.patch_size)
        sizes.append(parameters(build_model_config(recipe, datasets[key])))
    assert max(sizes) < 1.25 * min(sizes)


def test_shipped_studies_share_their_runs():
    of = {name: {run.digest: run.variant for run in load_study(name).runs(1)} for name in study_names()}
    assert shared(of["ablation"], of["convergence"]) == {"FiT": "FiT-flexible", "A": "FiT-flow", "FiTv2": "FiTv2"}
    assert shared(of["versus-sit"], of["convergence"]) == {"FiTv2": "FiTv2"}
    assert shared(of["samplers"], of["convergence"]) == {"FiT": "FiT", "FiTv2": "FiTv2"}
    assert shared(of["samplers"], of["versus-sit"]) == {"DiT": "DiT", "FiTv2": "FiTv2"}


def shared(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Of two studies, the variants that are the same runs."""
    return {one[digest]: other[digest] for digest in one.keys() & other.keys()}


def test_full_adaln_is_compared_at_equal_parameters():
    """Within what the study says of each."""
    study = load_study("ablation")
    dataset = build_dataset(study.recipe_of("FiTv2", 0).data, 4)
    counts = {
        name: parameters(build_model_config(study.recipe_of(name, 0), dataset))
        for name in ("FiTv2", "full-adaln", "full-adaln-narrow")
    }
    assert counts["full-adaln"] == pytest.approx(counts["FiTv2"], rel=0.004)
    assert counts["full-adaln-narrow"] == pytest.approx(counts["FiTv2"], rel=0.006)


def test_all_variants_come_before_the_next_seed():
    runs = build_study(tree(), "tiny").runs(2)
    assert [(run.variant, run.seed) for run in runs] == [("FiT", 0), ("FiTv2", 0), ("FiT", 1), ("FiTv2", 1)]
    assert [run.recipe.training.seed for run in runs] == [0, 0, 1, 1] and len({run.digest for run in runs}) == 4


def test_a_digest_knows_changes_and_not_defaults():
    study = build_study(tree(), "tiny")
    same = build_study(tree(set=TREE["set"] | {"training.max_grad_norm": 1.0}), "tiny")
    other = build_study(tree(set=TREE["set"] | {"training.max_grad_norm": 0.5}), "tiny")
    (one, *_), (two, *_), (three, *_) = (s.runs(1) for s in (study, same, other))
    assert one.digest == two.digest != three.digest


def test_a_digest_is_the_hash_of_sorted_json():
    assert json_digest({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a": "x", "b": [1, null]}').hexdigest()
    recipe = build_study(tree(recipe="fashion-study"), "tiny").recipe_of("FiT", 0)
    # Trainings that are there are found by it.
    assert Run("FiT", 0, recipe).digest == "65d37b428861ae26"


def test_settings_that_nobody_gives_are_none():
    """Else each new one would make all records those of another study."""
    assert given({"a": None, "b": [{"c": None, "d": 0}], "e": {"f": None}}) == {"b": [{"d": 0}], "e": {}}


def test_a_shorter_study_keeps_its_proportions():
    study = shortened(load_study("convergence"), 0.1)
    recipe, whole = study.recipe_of("FiTv2", 0), load_study("convergence").recipe_of("FiTv2", 0)
    assert recipe.training.steps == whole.training.steps / 10
    assert study.evaluation.points == tuple(step // 10 for step in load_study("convergence").evaluation.points)
    assert recipe.training.warmup_steps == whole.training.warmup_steps / 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": {}}, "variants"),
        ({"variants": {"a/b": {"about": "x"}}}, "pattern"),
        ({"variants": {"a": {"about": "x"}}}, "'faster' is about FiT, FiTv2, which is no variant"),
        ({"set": {"training.seed": 3}}, "training.seed is set by the study itself"),
        ({"set": {"model.widht": 3}}, "the nearest is 'model.width'"),
        ({"set": {"model.width": "many"}}, "the variant FiT: the recipe does not hold: model.width"),
        ({"recipe": "none"}, "there is no recipe 'none'"),
        ({"evaluation": {"points": [2], "point": {"view": "round", "guidance": 1}}}, "'round, unguided' is none of"),
        ({"evaluation": {"points": [2], "extractor": "eyes"}}, "evaluation.extractor"),
        ({"evaluation": {"points": [2], "conditions": [{"view": "round", "guidance": 1}]}}, "is of no view"),
        ({"evaluation": {"points": [2], "conditions": [{"view": "own", "guidance": 1}]}}, "'own, unguided' is there"),
        ({"evaluation": {"points": [2], "conditions": [FURTHER[0] | {"size": "24"}]}}, "conditions.0.size"),
        ({"evaluation": {"points": [2], "conditions": [FURTHER[0] | {"extrapolation": "x"}]}}, "extrapolation"),
        (
            {"evaluation": {"points": [2], "conditions": [FURTHER[2] | {"attention_scale": "paper"}]}},
            "an attention_scale belongs to an extrapolation",
        ),
        ({"evaluation": {"points": [2], "samplers": {"noise": {"solver": "ab2", "steps": 2}}}}, "ab2 is not for"),
        ({"evaluation": {"points": [2], "samplers": {"noise": {"solver": "dimm", "steps": 2}}}}, "'dimm'"),
        ({"evaluation": {"points": [2], "samplers": {"velocity": {"solver": "dopri5", "steps": 2}}}}, "its own steps"),
        ({"claims": [{"text": "x", "paper": "y", "measure": {"kind": "guess"}}]}, "claims.0.measure"),
        ({"questoin": "?"}, "questoin"),
    ],
)
def test_a_wrong_definition_is_a_sentence(tmp_path, changes, complaint):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(tree(**changes)))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_study(str(path))
