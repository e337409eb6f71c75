"""Schedulers of diffusers that integrate a rectified flow, and how to ask them to."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import UserError

FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
# These integrate a flow if told to.
CONFIGURED_SCHEDULERS = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)


def default_scheduler() -> UniPCMultistepScheduler:
    """Two-step, one model call a step, on the rectified path."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raises ValueError for a scheduler that would integrate something else than a rectified flow from noise to data,
    or draw noise of its own.
    """
    config = {} if scheduler is None else scheduler.config
    flow = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas", False)
    if not (isinstance(scheduler, FLOW_SCHEDULERS) or (flow and isinstance(scheduler, CONFIGURED_SCHEDULERS))):
        known = ", ".join(kind.__name__ for kind in (*FLOW_SCHEDULERS, *CONFIGURED_SCHEDULERS))
        raise UserError(
            f"{type(scheduler).__name__} as configured does not integrate a rectified flow: take one of {known}, the "
            'last two with prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0'
        )
    for option in ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas"):
        if config.get(option):
            raise UserError(f"a scheduler with {option} is not for this pipeline")
    if str(config.get("algorithm_type")).startswith("sde"):
        raise UserError('an SDE scheduler draws noise that no seed of a picture fixes; take solver="euler-maruyama"')


def set_steps(scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
    """From noise at sigma 1 to the picture at 0 in so many steps."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # By itself it would end at sigma 0.001 and spend a step on the rest.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
