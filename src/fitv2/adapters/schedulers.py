"""Schedulers of diffusers that integrate a rectified flow."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ..errors import UserError
from ..sampling.ode import Velocity

FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
# These integrate a flow if told to.
CONFIGURED_SCHEDULERS = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
# Euler's method with a large shift is within the bound.
PROBE_STEPS, LARGEST_ERROR = 50, 0.2


def default_scheduler() -> UniPCMultistepScheduler:
    """Returns UniPC of second order on the rectified path, at one model call per step."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


def check_scheduler(scheduler: Any) -> None:
    """Raises UserError for a scheduler that does not integrate a rectified flow from noise to data, without noise."""
    config = {} if scheduler is None else scheduler.config
    flow = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas", False)
    if not (isinstance(scheduler, FLOW_SCHEDULERS) or (flow and isinstance(scheduler, CONFIGURED_SCHEDULERS))):
        known = ", ".join(kind.__name__ for kind in (*FLOW_SCHEDULERS, *CONFIGURED_SCHEDULERS))
        raise UserError(
            f"{type(scheduler).__name__} as configured does not integrate a rectified flow: take one of {known}, the "
            'last two with prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0'
        )
    for option in ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas", "shift_terminal"):
        if config.get(option):
            raise UserError(f"a scheduler with {option} is not for this pipeline")
    if str(config.get("algorithm_type")).startswith("sde"):
        raise UserError('an SDE scheduler draws noise that no seed of an image fixes; take solver="euler-maruyama"')
    try:
        error = f"on one whose solution is known it is off by {(off := probe_error(scheduler)):.0%}"
    except (ValueError, AssertionError, IndexError) as failure:  # Combinations of options that diffusers cannot do.
        off, error = np.inf, str(failure).rstrip(".") or repr(failure)
    if not off <= LARGEST_ERROR:
        raise UserError(
            f"{type(scheduler).__name__} as configured does not solve a rectified flow: {error}. Leave out options "
            "such as use_karras_sigmas or thresholding, or take fitv2.adapters.schedulers.default_scheduler()"
        )


def probe_error(scheduler: Any) -> float:
    """Returns the error of the scheduler, as a fraction, for normal data of two scales; NaN where it makes NaN.

    From noise n the flow to data of standard deviation s ends at s * n.
    """
    probe, scale = copy.deepcopy(scheduler), torch.tensor([[1.0, 2.0]])
    x = noise = torch.linspace(-2, 2, 16)[:, None].expand(-1, 2)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return x * (t * scale**2 - (1 - t)) / (t**2 * scale**2 + (1 - t) ** 2)

    set_steps(probe, PROBE_STEPS, noise.device)
    for i in range(len(probe.timesteps)):
        x = advance(probe, i, x, velocity)
    return float(((x - scale * noise).abs() / (2 * scale)).max())


def advance(scheduler: Any, i: int, x: Tensor, velocity: Velocity) -> Tensor:
    """Returns x (T, C) after step i of the scheduler, whose sigma runs from noise at 1 to the data at 0.

    Time comes from the sigmas: the timesteps of some schedulers are cut to integers. Some want more than two
    dimensions, so the packed tokens are one image to them.
    """
    output = -velocity(x, 1 - scheduler.sigmas[i].float())
    return scheduler.step(output[None], scheduler.timesteps[i], x[None], return_dict=False)[0][0]


def set_steps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Sets the steps of the scheduler, from noise at sigma 1 to the image at 0."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # By itself it would end at sigma 0.001 and spend a step on the rest.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
