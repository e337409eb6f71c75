"""The solvers by name, and what they cost. Loads nothing heavy, because the command line lists them in its help."""

from __future__ import annotations

from typing import Literal, get_args

OdeSolver = Literal["euler", "midpoint", "heun", "heun3", "rk4", "rk4_38", "ab2", "dopri5", "adaptive_heun"]
FewStepSolver = Literal["transition"]  # For a model trained for few steps.
SdeSolver = Literal["euler-maruyama", "sde-heun"]
DiffusionSolver = Literal["ddpm", "ddim"]  # For a model that predicts noise, such as FiT.
Solver = Literal[OdeSolver, FewStepSolver, SdeSolver, DiffusionSolver]
ODE_SOLVERS, SDE_SOLVERS, DIFFUSION_SOLVERS = map(get_args, (OdeSolver, SdeSolver, DiffusionSolver))
FLOW_SOLVERS = (*ODE_SOLVERS, *get_args(FewStepSolver), *SDE_SOLVERS)
SOLVER_NAMES = [*FLOW_SOLVERS, *DIFFUSION_SOLVERS]
# These can begin with an image: they integrate the velocity alone.
EDITING_SOLVERS = (*ODE_SOLVERS, *get_args(FewStepSolver))
# These choose their steps by the error over all that they integrate.
ADAPTIVE = ("dopri5", "adaptive_heun")
# Model calls per step; all others have one.
CALLS_PER_STEP = {"midpoint": 2, "heun": 2, "heun3": 3, "rk4": 4, "rk4_38": 4}


def model_calls(solver: str, steps: int | None) -> int | None:
    """Returns how often a solver calls the (guided) model for an image; None if it chooses its steps itself."""
    if solver in ADAPTIVE or steps is None:
        return None
    if solver == "sde-heun":  # Its last step is one of Euler.
        return 2 * steps - 1
    return CALLS_PER_STEP.get(solver, 1) * steps
