"""Files that an earlier version wrote (commit ae82e1f) still load, with the same numbers: see data/frozen/README.md."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.settings.read import build_recipe, load_recipe
from fitv2.tokens import TokenBatch
from tiny import log_lines

FROZEN = Path(__file__).parent / "data/frozen"
FACTS = json.loads((FROZEN / "facts.json").read_text())
EXPECTED = {
    "fit": {
        "model": {"architecture": "FiT", "prediction": "epsilon", "qk_norm": True, "width": 64},
        "data": {"source": "fashion", "max_tokens": 25, "preprocessing": "mixed"},
        "training": {
            "max_tokens_per_batch": 512,
            "batches_per_step": 4,
            "max_grad_norm": 0.5,
            "class_dropout_prob": 0.2,
            "decay_fraction": 0.25,
        }
        | {"precision": "fp32"},
    },
    "sit": {
        "model": {"architecture": "SiT", "prediction": "velocity", "width": 64},
        "data": {"preprocessing": "crop"},
        "training": {"time_density": "mode", "time_scale": 0.5, "precision": "fp32"},
    },
    "folder": {
        "model": {"architecture": "FiTv2", "lora_rank": None, "qk_norm": True, "patch_size": 8},
        "data": {"source": "my/pictures", "max_tokens": 144, "preprocessing": "resize", "flip": False, "channels": 1},
        "training": {"precision": "fp32", "max_tokens_per_batch": 1024},
    },
    "finetune": {
        "model": {"extrapolation": "vision-ntk"},
        "data": {"max_tokens": 256, "preprocessing": "mixed"},
        "training": {"init_from": "runs/base", "reinit": ("labels", "patches"), "trainable": "high-resolution"},
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recipes_with_old_keys(name):
    """As written by hand, and as a run folder kept it with all defaults: bf16 then, "auto" now."""
    written = load_recipe(str(FROZEN / f"{name}.yaml"))
    kept = build_recipe(json.loads((FROZEN / f"{name}.json").read_text()))
    older = written.training.model_copy(update={"precision": kept.training.precision})
    assert written.training.precision in ("auto", older.precision)
    assert written.model_copy(update={"training": older}) == kept
    for section, values in EXPECTED[name].items():
        found = getattr(written, section)
        assert {key: getattr(found, key) for key in values} == values


def test_a_model_folder():
    loaded = load_pretrained(FROZEN / "model")
    assert loaded.class_names == ["a", "b", "c"] and loaded.shapes == [[(4, 6, 2)]] * 3 and loaded.step == 7
    batch = TokenBatch(torch.linspace(-1, 1, 9 * 4).view(9, 4), [(2, 3), (1, 3)])
    with torch.no_grad():
        output = loaded.model(batch, torch.tensor([10.0, 700.0]), torch.tensor([1, 3]))
    facts = FACTS["model"]
    torch.testing.assert_close(output[0], torch.tensor(facts["first"]))
    torch.testing.assert_close(output[-1], torch.tensor(facts["last"]))
    assert float(output.double().sum()) == pytest.approx(facts["sum"], rel=1e-5)


@pytest.mark.parametrize("name", ["run", "run-sharded"])
def test_a_run_continues_with_the_same_losses(tmp_path, fitv2, name):
    """Two more steps. The sharded checkpoint was written by two processes, and is read by one."""
    if name == "run":
        shutil.copytree(FROZEN / name, tmp_path / "run")
    else:
        shutil.unpack_archive(FROZEN / f"{name}.tar.xz", tmp_path, filter="data")
        (tmp_path / name).rename(tmp_path / "run")
    fitv2("train", "--resume", "--out", "run", "--set", "training.steps=5").ok()
    losses = [line["loss"] for line in log_lines(tmp_path / "run")]
    assert len(losses) == 5 and losses[3:] == pytest.approx(FACTS[name]["losses"], rel=1e-4)


def test_prepared_images_of_an_older_version_are_counted(tmp_path, fitv2):
    shutil.copytree(Path(__file__).parent / "data/prepared/pixels", tmp_path / "prepared")
    assert fitv2("inspect", "prepared", "--json").json["images"] == 6
