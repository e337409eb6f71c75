"""The paper's claim of cost, counted from the networks."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from paper_cost import VAE_FLOPS, account


def test_the_claim_counts_steps_alone():
    lines = account()
    assert lines["steps"].share == pytest.approx(2 / 7)
    assert lines["operations of Table I"].share == pytest.approx(0.368, abs=5e-4)
    # Table I itself, counted from the networks.
    assert lines["linear layers"].share == pytest.approx(lines["operations of Table I"].share, rel=0.01)
    assert lines["packed"].share == pytest.approx(0.341, abs=5e-4)
    assert lines["steps"].share < lines["packed"].share < lines["with attention"].share


def test_the_account_goes_beyond_operations_of_the_network():
    lines = account()
    assert lines["parameters"].share == pytest.approx(671.05 / 674.82, rel=1e-4)
    # Images have 256 tokens at most: what is padding costs what packing saves, attention aside.
    padded = lines["waste, padded"].share
    assert lines["packed"].share == pytest.approx(lines["with attention"].share * (1 - padded), rel=5e-3)
    assert 0 < lines["waste, packed"].share < 0.01 < padded < 0.1
    # The same added to both brings the shares nearer: little where it is done once, much in each step by the steps.
    assert 0 < lines["packed, encoded once"].share - lines["packed"].share < 1e-3
    assert 2 / 7 < lines["packed, encoded in each step"].share < lines["packed"].share


def test_the_operations_of_encoding_are_those_of_stable_diffusion_s_vae():
    channels = (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKL(**kinds, block_out_channels=channels, layers_per_block=2, latent_channels=4)
        vae.encode(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() == VAE_FLOPS
