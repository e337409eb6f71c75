"""The paper's claim of cost, counted from the networks."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from paper_cost import VAE_FLOPS, account


def test_the_claim_counts_steps_alone():
    share = {name: line.share for name, line in account().items()}
    assert share["steps"] == pytest.approx(2 / 7)
    # Table I itself, counted from the networks.
    assert share["operations of Table I"] == pytest.approx(0.368, abs=5e-4)
    assert share["linear layers"] == pytest.approx(share["operations of Table I"], rel=0.01)
    assert share["packed"] == pytest.approx(0.341, abs=5e-4) and share["steps"] < share["packed"]
    assert share["parameters"] == pytest.approx(671.05 / 674.82, rel=1e-4)
    # Images have 256 tokens at most: packing saves what padding wastes, attention aside.
    padded = share["waste, padded"]
    assert share["packed"] == pytest.approx(share["with attention"] * (1 - padded), rel=5e-3)
    assert 0 < share["waste, packed"] < 0.01 < padded < 0.1
    # The same added to both brings the costs nearer: little if it is encoded once, much if in each step.
    assert 0 < share["packed, encoded once"] - share["packed"] < 1e-3
    assert 2 / 7 < share["packed, encoded in each step"] < share["packed"]


def test_the_operations_of_encoding_are_those_of_stable_diffusion_s_vae():
    channels = (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKL(**kinds, block_out_channels=channels, layers_per_block=2, latent_channels=4)
        vae.encode(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() == VAE_FLOPS
