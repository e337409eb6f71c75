"""Schedulers of diffusers in the pipeline: those that solve its equation, and those that are refused."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from fitv2 import FiTPipeline
from fitv2.adapters.schedulers import check_scheduler

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
SOLVED = {
    **{"class_labels": ["trouser", 8, 3], "sizes": [(28, 12), (20, 28), (40, 16)], "seeds": [1, 2, 3]},
    **{"output_type": "latent", "guidance_scale": 1.5},
}


@pytest.fixture(scope="module")
def solution() -> list[torch.Tensor]:
    """Of `SOLVED`, as good as exact: guidance begins and ends at times of the grid."""
    return FiTPipeline.from_pretrained("builtin:fashion")(**SOLVED, num_inference_steps=20, solver="rk4").images


def distance(made, reference) -> float:
    return max((ours - theirs).abs().mean().item() for ours, theirs in zip(made, reference, strict=True))


@pytest.mark.parametrize(
    ("scheduler", "largest"),
    [
        (UniPCMultistepScheduler(**FLOW), 0.01),
        (FlowMatchHeunDiscreteScheduler(), 0.01),
        (DPMSolverMultistepScheduler(**FLOW), 0.02),
        (FlowMatchEulerDiscreteScheduler(), 0.06),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedulers_of_diffusers_solve_the_same_equation(pipe, solution, scheduler, largest):
    """Against many steps of RK4, in units where an image spans 2. Euler's error is that of our own Euler."""
    pipe.scheduler = scheduler
    made = pipe(**SOLVED, num_inference_steps=20).images
    assert distance(made, solution) < largest
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        assert distance(made, pipe(**SOLVED, num_inference_steps=20, solver="euler").images) < 1e-4


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(shift=12), UniPCMultistepScheduler(**FLOW | {"flow_shift": 3.0})]
)
def test_schedulers_of_other_grids_are_accepted(scheduler):
    check_scheduler(scheduler)


@pytest.mark.parametrize(
    ("scheduler", "complaint"),
    [
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler as configured does not integrate a rectified flow"),
        (UniPCMultistepScheduler(), "does not integrate a rectified flow"),
        (DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "an SDE scheduler draws noise"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (FlowMatchLCMScheduler(), "FlowMatchLCMScheduler as configured does not integrate a rectified flow"),
        (SASolverScheduler(**FLOW), "does not integrate a rectified flow"),
        (None, "does not integrate a rectified flow"),
        # These end elsewhere.
        (DPMSolverMultistepScheduler(**FLOW, use_karras_sigmas=True), "cheduler"),
        (DPMSolverMultistepScheduler(**FLOW, use_lu_lambdas=True), "cheduler"),
        (UniPCMultistepScheduler(**FLOW, solver_type="bh1"), "cheduler"),
        (UniPCMultistepScheduler(**FLOW, thresholding=True), "cheduler"),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.2), "cheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_schedulers_that_would_make_garbage_are_refused(pipe, scheduler, complaint):
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=complaint):
        pipe(1, num_inference_steps=3)
