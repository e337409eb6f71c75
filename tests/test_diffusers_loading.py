"""Pipelines saved, loaded and pushed, whole or in parts."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig
from safetensors.torch import load_file

from fitv2 import FiTConfig, FiTPipeline, FiTTransformer2DModel
from fitv2.adapters.schedulers import default_scheduler
from fitv2.checkpoints.model_folder import save_pretrained
from fitv2.cli.options import load_any
from fitv2.errors import UserError
from fitv2.text import load_text_encoder
from test_diffusers_pipeline import QUICK
from tiny import exit_code, random_model, tiny_autoencoder

SAVED = Path(__file__).parent / "data" / "saved-pipeline"


@pytest.mark.parametrize("solver", [None, "ab2"])
def test_hooks_of_offloading_run_at_every_call_of_the_network(pipe, solver):
    """Moving a model to a device and away is a hook of accelerate; without such a device it can be watched at work."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Watch(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Watch.calls += 1
            return args, kwargs

    expected = pipe(**QUICK, solver=solver, output_type="latent").images
    add_hook_to_module(pipe.transformer, Watch())
    made = pipe(**QUICK, solver=solver, output_type="latent").images
    assert Watch.calls == 3 and all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.slow
def test_saved_folder_loads_in_a_fresh_process_without_training_code(pipe, tmp_path):
    """By the lines of the classes' docstrings: diffusers' own class, and an adapter on top."""
    expected = pipe(**QUICK, output_type="latent").images
    pipe.save_pretrained(tmp_path / "saved")
    again = FiTPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    for ours, theirs in zip(again(**QUICK, output_type="latent").images, expected, strict=True):
        assert torch.equal(ours, theirs)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["qkv", "proj"], init_lora_weights=False), "mine")
    pipe.transformer.save_lora_adapter(tmp_path / "adapter", adapter_name="mine")
    adapted = pipe(**QUICK, output_type="latent").images
    torch.save([expected, adapted], tmp_path / "expected.pt")
    code = f"""
import sys, torch
from diffusers import DiffusionPipeline
folder = {str(tmp_path / "saved")!r}
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
for expected in torch.load({str(tmp_path / "expected.pt")!r}):
    made = pipe(**{QUICK!r}, output_type="latent").images
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, expected, strict=True))
    pipe.transformer.load_lora_adapter({str(tmp_path / "adapter")!r})
assert type(pipe).__name__ == "FiTPipeline"
assert not [name for name in sys.modules if name.startswith(("fitv2.training", "fitv2.cli", "fitv2.evaluation"))]
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("scheduler", {}),
        ("ab2", {"solver": "ab2"}),
        ("interval", {"guidance_interval": (0.2, 0.7), "guidance_scale": 1.5}),
    ],
)
def test_a_pipeline_saved_by_version_0_1_0_makes_the_same_images(name, settings):
    """In `made.safetensors` are the latents that the version which saved it made, before diffusers' convention held."""
    pipe = FiTPipeline.from_pretrained(SAVED)
    pipe.set_progress_bar_config(disable=True)
    call = {"class_labels": ["dog", 0, 2], "sizes": [(8, 12), (12, 4), (6, 10)], "seeds": [1, 2, 3]}
    made = pipe(**call, num_inference_steps=4, output_type="latent", **settings).images
    expected = load_file(SAVED / "made.safetensors")
    for i, latent in enumerate(made):
        torch.testing.assert_close(latent, expected[f"{name}.{i}"], atol=1e-5, rtol=0)


def report_memory_of_loading(folder: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe = FiTPipeline.from_pretrained(f"{folder}/pipeline", torch_dtype=torch.bfloat16)
    assert next(pipe.transformer.parameters()).dtype == torch.bfloat16
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(folder, "memory.json").write_text(json.dumps((after - before) * 1024))


@pytest.mark.slow
def test_loading_holds_one_copy_of_the_weights(tmp_path):
    transformer = FiTTransformer2DModel(num_attention_heads=8, attention_head_dim=64, num_layers=24)
    FiTPipeline(transformer.to(torch.bfloat16), default_scheduler()).save_pretrained(tmp_path / "pipeline")
    del transformer
    assert exit_code(report_memory_of_loading, str(tmp_path)) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "pipeline").rglob("*.safetensors"))
    assert json.loads((tmp_path / "memory.json").read_text()) < 1.5 * size


def test_a_pipelines_folder_says_what_it_is(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "FiTPipeline"] and index["id2label"]["1"] == "trouser"
    assert index["transformer"] == ["fit_transformer", "FiTTransformer2DModel"]
    # What diffusers checks of a hub repository before it downloads.
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    components, folders = _get_custom_components_and_folders("user/repository", index, files)
    assert components == {"transformer": "fit_transformer"} and "transformer" in folders


def test_a_hub_id_is_downloaded_and_loaded_as_a_folder(pipe, tmp_path, monkeypatch):
    """The download itself stands in: no hub can be reached in a test."""
    pipe.save_pretrained(tmp_path)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("fitv2.adapters.saved_pipeline.snapshot_download", download)
    loaded = FiTPipeline.from_pretrained("user/repository", revision="main", torch_dtype=torch.bfloat16)
    ((name, options),) = asked
    unwanted = options.pop("ignore_patterns")
    assert (name, options) == ("user/repository", {"revision": "main"}) and loaded.transformer.dtype == torch.bfloat16
    files = ["transformer/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors"]
    assert list(filter_repo_objects([*files, "vae/pytorch_model.bin"], ignore_patterns=unwanted)) == files[:1]


def test_a_push_keeps_what_it_was_told(pipe, tmp_path, monkeypatch):
    """The upload itself stands in."""
    pushed = []
    monkeypatch.setattr(FiTPipeline, "push_to_hub", lambda self, **options: pushed.append(options))
    told = {"repo_id": "me/mine", "private": True, "token": "secret", "commit_message": "first"}
    pipe.save_pretrained(tmp_path / "pipe", push_to_hub=True, variant="fp16", **told)
    pipe.save_pretrained(tmp_path / "pipe", push_to_hub=True)
    assert pushed == [{**told, "variant": "fp16"}, {"repo_id": "pipe"}]


def test_a_saved_pipeline_loads_each_part_as_it_is_told(transformer, tmp_path):
    pipe = FiTPipeline(transformer, default_scheduler(), tiny_autoencoder())
    pipe.save_pretrained(tmp_path)
    dtypes = {"transformer": torch.bfloat16, "default": torch.float16}
    loaded = FiTPipeline.from_pretrained(tmp_path, torch_dtype=dtypes)
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float16)
    assert FiTPipeline.from_pretrained(tmp_path, vae=None).vae is None
    given = FiTPipeline.from_pretrained(tmp_path, transformer=transformer)
    assert given.transformer is transformer


def test_of_a_saved_pipeline_commands_load_the_transformer_and_each_other_part_once(tmp_path):
    text = load_text_encoder("builtin:minilm")
    model = random_model(FiTConfig(width=32, depth=1, heads=2, context="cross", context_channels=text.channels))
    parts = {"text_encoder": text.network, "tokenizer": text.tokenizer, "id2label": {0: "cat"}}
    parts |= {"transformer": FiTTransformer2DModel.from_fit(model, 8), "sampling": {"guidance": 1.5}}
    FiTPipeline(scheduler=default_scheduler(), vae=tiny_autoencoder(), **parts).save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"cut off")
    loaded = load_any(str(tmp_path), torch.float32)
    assert loaded.autoencoder == loaded.text_encoder == str(tmp_path) and loaded.recommended == {"guidance": 1.5}
    assert loaded.class_names[:2] == ["cat", "1"] and loaded.shapes == [[(8, 8, 1)]]
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    with pytest.raises(UserError, match="text encoder"):
        load_text_encoder(str(tmp_path))


def test_a_model_of_our_own_can_do_without_its_autoencoder(tmp_path):
    model = random_model(FiTConfig(width=32, depth=1, heads=2, num_classes=5))
    save_pretrained(tmp_path, model.config, model.state_dict(), [], [[(8, 8, 1)]], None, "nowhere/to-be-found")
    pipe = FiTPipeline.from_pretrained(tmp_path, vae=None)
    pipe.set_progress_bar_config(disable=True)
    (latent,) = pipe(1, (8, 8), num_inference_steps=1, output_type="latent").images
    assert latent.shape == (4, 8, 8)
