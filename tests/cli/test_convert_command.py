"""`fitv2 convert` and then `fitv2 sample`: a converted model is sampled as its authors do."""

import json

import pytest
from safetensors.torch import save_file

from fitv2.checkpoints.model_folder import load_pretrained
from golden_fixtures import kwargs, load, weights
from tiny import tiny_autoencoder


@pytest.mark.parametrize("fixture", [("f01", "fitv2"), ("f07", "fitv1")], ids=["FiTv2", "FiT"])
def test_the_authors_guide_three_latent_channels_of_four(fitv2, tmp_path, fixture):
    save_file(weights(load(fixture[0])), tmp_path / "weights.safetensors")
    network = {"target": "fit.model.fit_model.FiT", "params": kwargs(*fixture)}
    content = {"diffusion": {"pretrained_first_stage_model_path": "vae", "network_config": network}}
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    fitv2("convert", "--config", "config.yaml", "--checkpoint", "weights.safetensors", "--out", "model").ok()
    assert load_pretrained(tmp_path / "model").recommended == {"guidance": 1.5, "channels": 3 * 2**2}
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    fitv2("sample", "model", "--labels", "0", "--size", "32x32", "--steps", "2").ok()
    asked = json.loads((tmp_path / "outputs/samples.json").read_text())["request"]
    assert (asked["guidance"], asked["guidance_channels"]) == (1.5, 3)
