"""No step of a training or a sampling waits for its device: nothing is read back from it, nothing is copied to it.

The "meta" device stands in for a GPU. It computes nothing, so reading from it fails by itself; copies to it, and the
operators that would make a GPU wait, are found among all that torch is asked to do. `tests/cuda` asks a GPU itself.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fitv2 import FiTConfig, TokenBatch
from fitv2.diffusion.objective import diffusion_loss
from fitv2.diffusion.schedule import linear_schedule
from fitv2.flow.objective import flow_loss
from fitv2.model.config import DiTConfig, FiTv1Config, SiTConfig
from fitv2.model.network import bare_model
from fitv2.sampling.editing import Start
from fitv2.sampling.generate import guided_model, sample_batch
from fitv2.sampling.noise import ImageNoise
from fitv2.sampling.solver_names import ADAPTIVE, CALLS_PER_STEP, DIFFUSION_SOLVERS, SOLVER_NAMES
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.tokens import pack_context

META = torch.device("meta")
SIZES = {"width": 32, "depth": 3, "heads": 2, "num_classes": 3}
UNSORTED, SQUARES = [(4, 3), (1, 2), (3, 5)], [(3, 3)] * 3
SPECS = [SampleSpec(i, (2 * h, 2 * w), i) for i, (h, w) in enumerate(UNSORTED)]
# From these the host gets a number, or the shape of the result.
WAITING = {"_local_scalar_dense", "item", "nonzero", "unique_consecutive", "_unique2", "masked_select", "equal"}


class NoWaiting(TorchDispatchMode):
    """Fails at copies to or from the device, and at operators that read from it, while it is active."""

    active = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not self.active:
            return output
        name = func.overloadpacket.__name__
        inputs = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        waits = name in WAITING and any(x.device == META for x in inputs)
        assert not waits, f"{func} waits for the device"
        if name in ("_to_copy", "copy_"):
            moved = {x.device.type for x in (*inputs, output)}
            assert len(moved) == 1, f"{func} copies between the host and the device"
        by_mask = name in ("index", "index_put_") and any(x.dtype == torch.bool for x in inputs[1:])
        assert not by_mask, f"{func} by a mask waits for the number of its entries"
        return output


def network_and_batch(config, sizes):
    batch = TokenBatch(torch.empty(sum(h * w for h, w in sizes), config.token_channels, device=META), sizes)
    return bare_model(config), batch, torch.empty(3, device=META), torch.zeros(3, dtype=torch.int64, device=META)


@pytest.mark.parametrize("context", ["none", "cross", "joint"])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_call_of_the_model(context, gradients):
    """The first call uploads what follows from the sizes, unsorted and of many lengths; the next finds it there."""
    config = FiTConfig(**SIZES, context=context, context_channels=6)
    model, *given = network_and_batch(config, UNSORTED)
    more = {}
    if context != "none":
        more["context"] = pack_context([torch.empty(n, 6, device=META) for n in (2, 4, 1)])
    with torch.set_grad_enabled(gradients):
        model(*given, **more)
        with NoWaiting():
            output = model(*given, **more)
            if gradients:
                output.sum().backward()


@pytest.mark.parametrize("config", [DiTConfig(**SIZES, side=3), SiTConfig(**SIZES, side=3)], ids=["DiT", "SiT"])
def test_a_call_of_a_grid(config):
    model, *given = network_and_batch(config, SQUARES)
    model.to(META)(*given)  # The table of positions is no weight, and has values.
    with NoWaiting(), torch.no_grad():
        model(*given)


def sampled(monkeypatch, config, sampling: Sampling, starts=None) -> list[int]:
    """The lengths of the batches of a sampling, watched from the second call on of a length, guided or not."""
    model, batch, *_ = network_and_batch(config, UNSORTED)
    watch, calls = NoWaiting(), []

    def denoiser(*given, **options):
        watch.active = len(given[0]) in calls
        calls.append(len(given[0]))
        return model(*given, **options)

    # Noise comes from the host, which is no wait.
    monkeypatch.setattr(ImageNoise, "draw", lambda self: torch.empty(batch.x.shape, device=META))
    watch.active = False
    with torch.no_grad(), watch:
        guided = guided_model(denoiser, config, SPECS, sampling, META)
        sample_batch(guided, [spec.seed for spec in SPECS], starts)
    assert watch.active
    return calls


@pytest.mark.parametrize("solver", [solver for solver in SOLVER_NAMES if solver not in ADAPTIVE])
@pytest.mark.parametrize(
    "settings",
    [{}, {"interval": (0.2, 0.8), "power": 1.0, "channels": 4}, {"guidance": 1.0}, {"window": (4, 4)}],
    ids=["plain", "interval", "unguided", "windows"],
)
def test_a_step_of_sampling(monkeypatch, solver, settings):
    config = (FiTv1Config if solver in DIFFUSION_SOLVERS else FiTConfig)(**SIZES)
    sampling = Sampling(solver=solver, steps=3 if CALLS_PER_STEP.get(solver, 1) > 1 else 5, **settings)
    assert len(sampled(monkeypatch, config, sampling)) >= 5


def test_a_step_of_sampling_that_begins_with_images(monkeypatch):
    config = FiTConfig(**SIZES)
    kept = (torch.ones(spec.size, dtype=torch.bool) for spec in SPECS)
    starts = [Start(torch.zeros(config.in_channels, *own.shape), 0.2, own) for own in kept]
    assert len(sampled(monkeypatch, config, Sampling(steps=5), starts)) == 4


@pytest.mark.parametrize(
    ("config", "loss"),
    [(FiTConfig, flow_loss), (FiTv1Config, partial(diffusion_loss, schedule=linear_schedule()))],
    ids=["flow", "diffusion"],
)
def test_a_loss_and_its_gradients_read_nothing(config, loss):
    """Times, noise and dropped labels come from the host, which is no wait; nothing goes back."""
    model, batch, _, labels = network_and_batch(config(**SIZES), UNSORTED)
    loss(model, batch, labels, 3, torch.Generator()).loss.backward()
