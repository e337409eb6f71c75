"""Solvers: parity with the authors' samplers, convergence orders, marginals of the SDE, numbers of model calls."""

import math

import pytest
import torch

from fitv2 import FiTConfig
from fitv2.flow.path import shift_time
from fitv2.sampling.guidance import GuidedModel
from fitv2.sampling.noise import ImageNoise
from fitv2.sampling.ode import SOLVERS, adaptive, time_grid
from fitv2.sampling.sde import DIFFUSION_COEFFICIENTS, LAST_STEPS, METHOD_OF, SDE_METHODS, sample_sde, sde_grid
from fitv2.sampling.solver_names import ADAPTIVE, CALLS_PER_STEP, ODE_SOLVERS, SDE_SOLVERS, model_calls
from fitv2.sampling.spec import Sampling
from golden_fixtures import assert_matches, load, official_model
from tiny import random_model

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "heun3": 3, "rk4": 4, "rk4_38": 4, "ab2": 2}
CPU = torch.device("cpu")


class Counted:
    """A velocity that remembers the times of its evaluations."""

    def __init__(self, velocity):
        self.velocity = velocity
        self.times = []

    def __call__(self, x, t):
        self.times.append(t.item())
        return self.velocity(x, t)


class Fixture:
    """The sampling fixture f10: starting noise (T, C) of two images, its model and its guided model as velocities."""

    def __init__(self):
        self.tensors = load("f10")
        self.model = official_model("f10")
        self.x = self.tensors["in.x"].flatten(0, 1)
        self.hw = self.tensors["in.kw.size"][:, 0]
        self.labels = self.tensors["in.kw.y"]

    def velocity(self, guidance):
        settings = {"": {"guidance": 1.0}, "cfg": {}, "cfg_pow1": {"power": 1.0}}[guidance]
        if guidance:
            settings |= {"guidance": 1.5, "channels": 12}
        return Counted(GuidedModel(self.model, self.model.config, self.hw, self.labels, Sampling(**settings), CPU))

    def recorded_noise(self, name):
        """The draws of a recorded run; of a guided one only the first half of the doubled batch is ever seen."""
        draws = iter(self.tensors[f"in.{name}.noise"])
        return lambda: next(draws)[:2].flatten(0, 1)

    def check(self, output, x):
        assert_matches("f10", output, x.unflatten(0, (2, -1)))

    def check_trajectory(self, output, states):
        expected = self.tensors[f"out.{output}"][:, :2]
        assert_matches("f10", output, torch.stack(states).unflatten(1, (2, -1)), expected)


@pytest.fixture(scope="module")
def fixture():
    return Fixture()


@pytest.mark.parametrize(
    ("output", "solver", "steps", "guidance"),
    [
        ("ode_euler9", "euler", 8, ""),
        ("ode_euler9_cfg", "euler", 8, "cfg"),
        ("ode_euler9_cfg_pow1", "euler", 8, "cfg_pow1"),
        ("ode_heun2", "heun", 4, ""),
        ("ode_heun3", "heun3", 4, ""),
        ("ode_midpoint", "midpoint", 4, ""),
        ("ode_rk4", "rk4_38", 4, ""),
    ],
)
@torch.no_grad()
def test_fixed_steps_of_the_authors(fixture, output, solver, steps, guidance):
    velocity, states = fixture.velocity(guidance), [fixture.x]
    x = SOLVERS[solver](velocity, fixture.x, time_grid(steps), lambda step, t, x: states.append(x))
    fixture.check(f"{output}.final", x)
    assert_matches("f10", f"{output}.t_evals", torch.tensor(velocity.times))
    if f"out.{output}.traj" in fixture.tensors:
        fixture.check_trajectory(f"{output}.traj", states)


@pytest.mark.parametrize(
    ("output", "solver", "guidance"),
    [("ode_dopri5", "dopri5", ""), ("ode_dopri5_cfg", "dopri5", "cfg"), ("ode_adaptive_heun", "adaptive_heun", "")],
)
@torch.no_grad()
def test_adaptive_steps_of_the_authors(fixture, output, solver, guidance):
    velocity, states = fixture.velocity(guidance), [fixture.x]
    direct = SOLVERS[solver](velocity, fixture.x, time_grid(1))
    fixture.check(f"{output}.final", direct)
    assert max(velocity.times) <= 1
    x = SOLVERS[solver](velocity, fixture.x, time_grid(4), lambda step, t, x: states.append(x))
    fixture.check(f"{output}.final", x)
    if f"out.{output}.traj" in fixture.tensors:
        fixture.check_trajectory(f"{output}.traj", states)


@pytest.mark.parametrize("guidance", ["", "cfg"])
@torch.no_grad()
def test_accurate_solution_of_the_authors_ode(fixture, guidance):
    output = "ode_dopri5_cfg.accurate" if guidance else "ode_dopri5.accurate"
    fixture.check(output, SOLVERS["rk4"](fixture.velocity(guidance), fixture.x, time_grid(32)))
    fixture.check(output, adaptive(fixture.velocity(guidance), fixture.x, time_grid(1), rtol=1e-6, atol=1e-6))


@pytest.mark.parametrize(
    ("output", "options", "guidance"),
    [
        ("sde_euler", {}, ""),
        ("sde_euler_cfg", {}, "cfg"),
        ("sde_euler_cfg_pow1", {}, "cfg_pow1"),
        ("sde_heun", {"method": "heun"}, ""),
        ("sde_heun_cfg", {"method": "heun"}, "cfg"),
        ("sde_euler_norm2", {"diffusion_norm": 2.0}, ""),
        ("sde_euler_constant", {"diffusion": "constant"}, ""),
        ("sde_euler_linear", {"diffusion": "linear"}, ""),
        ("sde_euler_decreasing", {"diffusion": "decreasing"}, ""),
        ("sde_euler_increasing-decreasing", {"diffusion": "increasing-decreasing"}, ""),
        ("sde_euler_lastTweedie", {"last_step": "tweedie"}, ""),
        ("sde_euler_lastEuler", {"last_step": "euler"}, ""),
        ("sde_euler_lastNone", {"last_step": "none"}, ""),
    ],
)
@torch.no_grad()
def test_sde_of_the_authors(fixture, output, options, guidance):
    velocity, states = fixture.velocity(guidance), []
    draw = fixture.recorded_noise("sde_cfg" if guidance else "sde")
    times = time_grid(8) if options.get("last_step") == "none" else sde_grid(9)
    x = sample_sde(velocity, fixture.x, times, draw, lambda step, t, x: states.append(x), **options)
    fixture.check(f"{output}.final", x)
    if f"out.{output}.traj" in fixture.tensors:
        fixture.check_trajectory(f"{output}.traj", states)
    if f"out.{output}.t_evals" in fixture.tensors:
        # The authors evaluate the model twice for each drift, we once.
        expected = fixture.tensors[f"out.{output}.t_evals"][::2]
        assert_matches("f10", f"{output}.t_evals", torch.tensor(velocity.times), expected)


def riccati(x, t):
    """dx/dt = -2 t x^2, solved by 1 / (1 / x_0 + t^2): neither linear nor independent of time."""
    return -2 * t * x**2


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(solver, shift):
    start = torch.linspace(0.5, 2, 4, dtype=torch.float64)[:, None]
    exact = 1 / (1 / start + 1)

    def error(steps):
        times = time_grid(steps, shift).double()
        return (SOLVERS[solver](riccati, start, times) - exact).abs().max().item()

    assert math.log2(error(128) / error(256)) == pytest.approx(ORDERS[solver], abs=0.2)


def test_multistep_is_exact_for_a_linear_slope_on_uneven_steps():
    times, seen = torch.tensor([0, 0.3, 0.35, 0.8, 1], dtype=torch.float64), []
    SOLVERS["ab2"](lambda x, t: 2 * t + 0 * x, torch.zeros(1, 1), times, lambda step, t, x: seen.append(x.item()))
    # The first step is Euler's and goes nowhere: the slope is 0 at its start.
    assert seen == pytest.approx((times[1:] ** 2 - 0.3**2).tolist())


@pytest.mark.parametrize("solver", ["dopri5", "adaptive_heun"])
def test_adaptive_steps_never_look_beyond_the_data(solver):
    # A slow field makes torchdiffeq probe far ahead for the width of its first step.
    velocity = Counted(lambda x, t: 1e-3 * x)
    x = SOLVERS[solver](velocity, torch.ones(3, 2), time_grid(3))
    torch.testing.assert_close(x, torch.full((3, 2), math.exp(1e-3)))
    assert min(velocity.times) == 0 and max(velocity.times) == 1


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.3])
@pytest.mark.parametrize("solver", ORDERS)
def test_model_calls_and_times(solver, shift):
    for steps in (1, 2, 7):
        velocity, seen = Counted(lambda x, t: -x), []
        times = time_grid(steps, shift)
        x = SOLVERS[solver](velocity, torch.ones(3, 2), times, lambda step, t, x, seen=seen: seen.append((step, t, x)))
        assert len(velocity.times) == model_calls(solver, steps)
        assert min(velocity.times) == 0 and max(velocity.times) <= 1
        assert [step for step, _, _ in seen] == list(range(1, steps + 1))
        assert torch.equal(torch.stack([t for _, t, _ in seen]), times[1:])
        assert torch.equal(seen[-1][2], x)


def test_every_solver_that_is_named_exists():
    assert SOLVERS.keys() == {*ODE_SOLVERS, "transition"} and tuple(METHOD_OF) == SDE_SOLVERS
    # One without an order would be left out of the tests of convergence and of model calls.
    assert ORDERS.keys() == set(ODE_SOLVERS) - set(ADAPTIVE)
    assert CALLS_PER_STEP.keys() < ORDERS.keys() and set(ADAPTIVE) < set(ODE_SOLVERS)
    assert {model_calls(solver, 4) for solver in ADAPTIVE} == {None}


CONFIG = FiTConfig(width=32, depth=2, heads=2, num_classes=5)
HW, LABELS = torch.tensor([[2, 3], [4, 1], [3, 3]]), torch.tensor([1, 4, 2])
SHIFTS = (0.4, 1.0, 3.0)


def solved(model, solver: str, shifts, images: list[int]) -> list[torch.Tensor]:
    """The tokens of these images in one batch, each on the grid of its own shift."""
    hw, noise = HW[images], ImageNoise(images, HW[images].prod(1).tolist(), 16)
    sampling = Sampling(guidance=2.0, interval=(0.2, 0.7), power=0.5)
    guided = GuidedModel(model, CONFIG, hw, LABELS[images], sampling, CPU)
    if solver in SOLVERS:
        grids = [time_grid(5, shifts[i]) for i in images]
        x = SOLVERS[solver](guided, noise.draw(), torch.stack(grids, 1), expand=guided.expand)
    else:
        diffusion, method = solver.split(" ")
        grids = [sde_grid(5, shift=shifts[i]) for i in images]
        options = {"expand": guided.expand, "diffusion": diffusion, "method": method}
        x = sample_sde(guided, noise.draw(), torch.stack(grids, 1), noise.draw, **options)
    return list(x.split(hw.prod(1).tolist()))


@pytest.mark.parametrize("solver", [*ORDERS, "sigma euler", "sbdm heun", "decreasing euler"])
@torch.no_grad()
def test_images_with_different_grids_in_one_batch_equal_each_alone(solver):
    model = random_model(CONFIG)
    together = solved(model, solver, SHIFTS, [0, 1, 2])
    for i, image in enumerate(together):
        (alone,) = solved(model, solver, SHIFTS, [i])
        torch.testing.assert_close(image, alone, atol=1e-4, rtol=1e-4)
    (other,) = solved(model, solver, (1.0,), [0])
    assert (together[0] - other).abs().max() > 1e-3


def test_time_grid():
    assert torch.equal(time_grid(4), torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    for shift in (0.3, 1.7, 3.0):
        grid = time_grid(7, shift)
        assert grid.dtype == torch.float32 and len(grid) == 8 and grid[0] == 0 and grid[-1] == 1
        assert (grid.diff() > 0).all()
    with pytest.raises(ValueError):
        time_grid(0)


def test_gradients_flow_through_a_solver():
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = SOLVERS["rk4"](lambda x, t: rate * x, torch.ones(1, 1, dtype=torch.float64), time_grid(20).double())
    x.sum().backward()
    torch.testing.assert_close(rate.grad, torch.tensor(0.5, dtype=torch.float64).exp(), rtol=1e-6, atol=0)


def test_sde_grid():
    torch.testing.assert_close(sde_grid(9)[:-1], torch.linspace(0, 0.96, 9))
    shifted = sde_grid(9, 0.1, shift=0.3)
    assert len(shifted) == 10 and shifted[-1] == 1 and (shifted.diff() > 0).all()
    torch.testing.assert_close(shifted[-2].item(), 0.9)
    for steps, last in ((0, 0.04), (5, 0.0), (5, 1.0)):
        with pytest.raises(ValueError):
            sde_grid(steps, last)


def test_unknown_names_and_a_grid_per_image_without_expand_are_refused():
    for options in ({"method": "rk4"}, {"diffusion": "SBDM"}, {"last_step": "Mean"}):
        with pytest.raises(ValueError, match="is one of"):
            sample_sde(riccati, torch.ones(3, 2), sde_grid(3), lambda: torch.zeros(3, 2), **options)
    grids = torch.stack([shift_time(time_grid(4), shift) for shift in SHIFTS], 1)
    for solver in ODE_SOLVERS:
        with pytest.raises(ValueError, match="expand"):
            SOLVERS[solver](lambda x, t: -x, torch.ones(3, 3), grids)
    with pytest.raises(ValueError):
        ImageNoise([0, 1], [4, 4, 4], 4)


@pytest.mark.parametrize("last_step", LAST_STEPS)
@pytest.mark.parametrize("method", SDE_METHODS)
def test_sde_model_calls(method, last_step):
    for steps in (1, 2, 6):
        velocity, noise = Counted(lambda x, t: -x), ImageNoise([0], [3], 2)
        times = time_grid(steps) if last_step == "none" else sde_grid(steps)
        x = sample_sde(velocity, torch.ones(3, 2), times, noise.draw, method=method, last_step=last_step)
        assert len(velocity.times) == model_calls({"euler": "euler-maruyama", "heun": "sde-heun"}[method], steps)
        assert max(velocity.times) < 1 and x.isfinite().all()


def test_diffusion_coefficients():
    values = {name: form(torch.tensor(0.25), 2.0).item() for name, form in DIFFUSION_COEFFICIENTS.items()}
    expected = {"constant": 2.0, "sbdm": 6.0, "sigma": 1.5, "linear": 1.5, "increasing-decreasing": 1.0}
    assert values == pytest.approx(expected | {"decreasing": (math.sqrt(2) + 1) ** 2 / 4})


MEAN, STD = 1.5, 0.7


def gaussian_velocity(x, t):
    """The exact velocity when the data are normal, so that x_t is normal of mean t m and variance (1-t)^2 + (t s)^2."""
    variance = (1 - t) ** 2 + (t * STD) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize("method", SDE_METHODS)
@pytest.mark.parametrize("diffusion", DIFFUSION_COEFFICIENTS)
def test_sde_keeps_the_marginals(diffusion, method):
    noise, times = ImageNoise([0, 1], [20000, 20000], 1), sde_grid(100, last_step_size=0.01)
    statistics = []

    def keep(step, t, x):
        statistics.append((t.item(), x.mean().item(), x.std().item()))

    sample_sde(gaussian_velocity, noise.draw(), times, noise.draw, keep, method=method, diffusion=diffusion)
    for t, mean, std in statistics[24::25]:
        assert mean == pytest.approx(t * MEAN, abs=0.03), t
        assert std == pytest.approx(math.hypot(1 - t, t * STD), abs=0.03), t


def test_noise_of_an_image_depends_on_its_seed_only():
    together = ImageNoise([3, 4, 5], [6, 20, 6], 4)
    first, second = (together.draw().split([6, 20, 6]) for _ in range(2))
    for i, (seed, length) in enumerate([(3, 6), (4, 20), (5, 6)]):
        alone = ImageNoise([seed], [length], 4)
        assert torch.equal(alone.draw(), first[i]) and torch.equal(alone.draw(), second[i])
    turned = ImageNoise([5, 4, 3], [6, 20, 6], 4).draw().split([6, 20, 6])
    assert all(torch.equal(one, other) for one, other in zip(turned, reversed(first), strict=True))
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], first[2])


def test_noise_is_standard_normal_and_leaves_the_global_state():
    state = torch.get_rng_state()
    noise = ImageNoise([0], [10000], 4).draw()
    assert noise.dtype == torch.float32 and noise.shape == (10000, 4)
    assert abs(noise.mean().item()) < 0.02 and abs(noise.std().item() - 1) < 0.02
    assert torch.equal(torch.get_rng_state(), state)
