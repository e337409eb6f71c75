"""The formulas of cost against what torch counts, saves and holds, and the paper's claim of cost."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from fitv2 import FiT, FiTConfig, TokenBatch, preset
from fitv2.flow.objective import flow_loss_at
from fitv2.model.config import NetworkConfig, SiTConfig
from fitv2.model.network import build_network
from fitv2.profiling.formula import (
    attention_flops,
    forward_bytes,
    forward_flops,
    linear_macs,
    parameters,
    training_bytes,
)
from fitv2.profiling.measure import most_bytes
from fitv2.profiling.training_plan import optimizer_flops, with_two_blocks
from fitv2.training.optimizer import Optimizer
from paper_cost import VAE_FLOPS, account

SMALL = FiTConfig(width=48, depth=2, heads=3, num_classes=5)
ODD = FiTConfig(width=64, depth=3, heads=2, patch_size=4, in_channels=1, mlp_ratio=2.5, lora_rank=5)
# Nearly all that is kept is in the blocks: no more than 16 channels a token.
BLOCKS = FiTConfig(width=128, depth=6, heads=2, patch_size=4, in_channels=1, num_classes=10)


def batch_of(config: NetworkConfig, sizes, device: str = "cpu") -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    """Zeros of the given sizes, with times and labels."""
    tokens = sum(h * w for h, w in sizes)
    x = torch.zeros(tokens, config.token_channels, device=device)
    images = torch.zeros(len(sizes), device=device)
    return TokenBatch(x, torch.tensor(sizes)), images, images.long()


def counted_flops(config: FiTConfig, sizes) -> dict[str, int]:
    """By operation, on the meta device: torch's counter takes attention on a CPU for free."""
    with torch.device("meta"):
        model = FiT(config)
    with FlopCounterMode(display=False) as counter:
        model(*batch_of(config, sizes, "meta"))
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("config", [SMALL, ODD, preset("FiTv2-B/2"), preset("FiT-B/2")])
@pytest.mark.parametrize("sizes", [[(1, 1)], [(4, 6), (1, 2), (40, 3)], [(16, 16)] * 3 + [(24, 32)]])
def test_flops_are_those_that_torch_counts(config, sizes):
    lengths, counted = [h * w for h, w in sizes], counted_flops(config, sizes)
    assert 2 * linear_macs(config, lengths) == counted.pop("aten.addmm")
    assert attention_flops(config, lengths) == sum(counted.values()) > 0
    assert forward_flops(config, lengths) == 2 * linear_macs(config, lengths) + attention_flops(config, lengths)


def test_flops_of_xl_are_those_of_the_authors_code():
    """Counted by torch in the authors' FiTv2-XL/2 on one image of 256 tokens."""
    assert forward_flops(preset("FiTv2-XL/2"), [256]) == 304_616_374_272


def test_parameters_of_the_presets():
    expected = {"B": 128_149_072, "L": 458_186_812, "XL": 671_045_776, "3B": 2_971_928_080}
    assert {scale: parameters(preset(f"FiTv2-{scale}/2")) for scale in expected} == expected


def saved_bytes(config: NetworkConfig, sizes, precision: str, activation_checkpointing: bool = False) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, the weights themselves left out."""
    torch.manual_seed(0)
    model = build_network(config)
    model.activation_checkpointing = activation_checkpointing
    kept: dict[int, torch.Tensor] = {}  # the tensors too: an address must not be freed and counted as an old one

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch, t, labels = batch_of(config, sizes)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        flow_loss_at(model, batch, torch.randn_like(batch.x), t, labels)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


def estimated_saved_bytes(config: FiTConfig, sizes, precision: str, activation_checkpointing: bool = False) -> int:
    """What the estimate of a whole step holds beyond weights, gradients, two moments and the average."""
    tokens = sum(h * w for h, w in sizes)
    return training_bytes(config, tokens, activation_checkpointing, precision) - 5 * 4 * parameters(config)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("sizes", [[(7, 5)] * 40, [(16, 16)] * 4, [(16, 32)] * 2, [(24, 24)] * 2])
def test_memory_of_a_step_is_near_the_bytes_that_autograd_keeps(sizes, precision):
    measured = saved_bytes(BLOCKS, sizes, precision)
    assert estimated_saved_bytes(BLOCKS, sizes, precision) == pytest.approx(measured, rel=0.25)


def test_memory_with_activation_checkpointing_is_each_blocks_input_and_one_block():
    sizes = [(16, 16)] * 4
    one_block = saved_bytes(replace(BLOCKS, depth=1), sizes, "bf16")
    measured = saved_bytes(BLOCKS, sizes, "bf16", activation_checkpointing=True) + one_block
    assert estimated_saved_bytes(BLOCKS, sizes, "bf16", True) == pytest.approx(measured, rel=0.25)


def test_sharded_and_frozen_weights_take_less_memory():
    """Of autocast's copies each device holds two blocks' at a time."""
    whole, split = (training_bytes(BLOCKS, 1000, shards=shards) for shards in (1, 4))
    weights = parameters(BLOCKS)
    assert whole - split == pytest.approx(weights * (20 * 3 / 4 + 2 * (1 - 2 / BLOCKS.depth)), rel=1e-6)
    frozen = training_bytes(BLOCKS, 1000, trained=0.25)
    assert whole - frozen == pytest.approx(weights * 12 * 3 / 4, rel=1e-6)


def inference_bytes(config: NetworkConfig, sizes, precision: str) -> int:
    """What a forward holds at most beyond the weights."""
    model = build_network(config).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    arguments = batch_of(config, sizes)
    return most_bytes(torch.inference_mode()(lambda: model(*arguments)), torch.device("cpu"))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("side", [8, 16, 32])
def test_memory_of_sit_is_near_the_measured_memory(side, precision):
    config = SiTConfig(width=128, depth=6, heads=2, side=side)
    sizes, tokens = [(side, side)] * (2048 // side**2), 2048
    assert estimated_saved_bytes(config, sizes, precision) == pytest.approx(
        saved_bytes(config, sizes, precision), rel=0.25
    )
    held = inference_bytes(config, sizes, precision)
    assert forward_bytes(config, tokens, precision) == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("config", [BLOCKS, replace(preset("FiT-B/2"), width=128, depth=3, heads=2)])
@pytest.mark.parametrize("sizes", [[(7, 5)] * 40, [(16, 16)] * 4, [(16, 32)] * 2, [(32, 32)] * 2])
def test_memory_of_inference_is_near_the_peak_of_a_forward_pass(config, sizes, precision):
    estimate = forward_bytes(config, sum(h * w for h, w in sizes), precision)
    assert estimate == pytest.approx(inference_bytes(config, sizes, precision), rel=0.25)


def test_the_flops_of_muon_are_those_that_torch_counts():
    model = build_network(SMALL)
    optimizer = Optimizer(dict(model.named_parameters()), 1e-3, 0.99, muon=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step(1e-3, torch.ones((), dtype=torch.bool))
    assert optimizer_flops(SMALL) == counter.get_total_flops() > 0


def test_a_step_of_a_large_network_with_heads_and_targets_is_measured_over_two_blocks():
    for changes in ({"internal_head": 3}, {"target_blocks": 3}):
        small = with_two_blocks(replace(SMALL, depth=6, **changes))
        assert (small.depth, bool(small.internal_head), bool(small.target_blocks)) == (
            2,
            "internal_head" in changes,
            "target_blocks" in changes,
        )


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
