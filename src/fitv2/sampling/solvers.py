"""The solvers by name, and what they cost. Loads nothing heavy, because the command line lists them in its help."""

from __future__ import annotations

from enum import StrEnum

# Model calls per step of the ODE solvers with fixed steps.
CALLS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2, "heun3": 3, "rk4": 4, "rk4_38": 4, "ab2": 1}
# These choose their steps by the error over all that they integrate.
ADAPTIVE = ("dopri5", "adaptive_heun")
ODE_SOLVERS = (*CALLS_PER_STEP, *ADAPTIVE)
SDE_SOLVERS = ("euler-maruyama", "sde-heun")
FLOW_SOLVERS = (*ODE_SOLVERS, *SDE_SOLVERS)
# For a model that predicts noise, such as FiT.
DIFFUSION_SOLVERS = ("ddpm", "ddim")
SOLVER_NAMES = [*FLOW_SOLVERS, *DIFFUSION_SOLVERS]
Solver = StrEnum("Solver", [(name, name) for name in SOLVER_NAMES])


def model_calls(solver: str, steps: int | None) -> int | None:
    """Returns how often a solver calls the (guided) model for an image; None if it chooses its steps itself."""
    if solver in ADAPTIVE or steps is None:
        return None
    if solver == "sde-heun":  # Its last step is one of Euler.
        return 2 * steps - 1
    return CALLS_PER_STEP.get(solver, 1) * steps
