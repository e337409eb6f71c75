"""The converted model computes what the authors' code computed, from the same weights and inputs."""

import pytest
import torch

import fitv2
from fitv2.flow.path import shift_time
from golden_fixtures import assert_matches, batch_of, kwargs, load, models, official_model, unpad


@pytest.mark.parametrize("name", ["f01", "f02"])
@pytest.mark.parametrize("call", ["padded", "single"])
@torch.no_grad()
def test_forward(name, call):
    tensors = load(name)
    # The reference caps the time at 1 inside the model; here it is the caller who gives times in [0, 1].
    t = tensors[f"in.{call}.t"].clamp(max=1)
    output = official_model(name)(batch_of(tensors, call), t, tensors[f"in.{call}.y"])
    assert_matches(name, f"{call}.full", output, unpad(tensors[f"out.{call}.full"], tensors[f"in.{call}.mask"]))
    if f"out.{call}.tokens" in tensors:
        assert_matches(name, f"{call}.tokens", output)


@pytest.mark.parametrize("call", ["shift1", "shift3"])
@torch.no_grad()
def test_time_shift_outside_the_model(call):
    tensors = load("f03")
    t = shift_time(tensors["in.padded.t"], kwargs("f03", call)["time_shifting"]).clamp(max=1)
    output = official_model("f03", call)(batch_of(tensors, "padded"), t, tensors["in.padded.y"])
    assert_matches("f03", f"{call}.tokens", output)


@pytest.mark.parametrize(("call", "patch_size"), [("case0", 2), ("case1", 1), ("case2", 4)])
def test_tokens_and_latents(call, patch_size):
    tensors = load("f11")
    tokens_BNC, latents = tensors[f"in.{call}.tokens"], tensors[f"out.{call}.image"]
    hw = torch.tensor([[side // patch_size for side in latents.shape[2:]]] * len(latents))
    batch = fitv2.TokenBatch(tokens_BNC.flatten(0, 1), hw)
    assert_matches("f11", f"{call}.image", torch.stack(batch.to_latents(patch_size)))
    back = fitv2.TokenBatch.from_latents(list(latents), patch_size)
    assert torch.equal(back.x, batch.x) and torch.equal(back.hw, hw)


@pytest.mark.parametrize("model", models("f06"))
@torch.no_grad()
def test_forward_at_other_sizes(model):
    tensors, call = load("f06"), "padded" if model.startswith("online") else "single"
    output = official_model("f06", model)(batch_of(tensors, call), tensors[f"in.{call}.t"], tensors[f"in.{call}.y"])
    assert_matches("f06", f"{model}.tokens", output)
