"""From noise to data along a velocity: ODE and SDE solvers, guidance, noise per image. Knows no model.

A velocity is a function `velocity(x_TC, t) -> v_TC` of packed tokens and a scalar time, with v in the dtype of x. All
solvers go from t = 0 (noise) to t = 1 (data). Gradients flow through them; sample under `torch.no_grad()`.
"""
