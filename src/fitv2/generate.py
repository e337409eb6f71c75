"""From a model and wishes (class, size, seed) to latents: images of all sizes together in packed forwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion.sampling import sample_ddim, sample_ddpm
from .diffusion.schedule import STEPS, check_count, ddim_steps, ddpm_steps, linear_schedule
from .errors import UserError
from .finite import check_finite
from .messages import counted, suggestion
from .model.block_cache import SHALLOWEST_CACHED, BlockCache
from .model.config import NetworkConfig
from .model.network import Network as Model
from .model.rope import RopeScheme
from .randomness import check_seed
from .samplers.guidance import guide
from .samplers.noise import ImageNoise
from .samplers.ode import SOLVERS, Velocity, ode_model_calls, time_grid
from .samplers.sde import sample_sde, sde_grid, sde_model_calls
from .tokens import TokenBatch, upload

SDE_SOLVERS = {"euler-maruyama": "euler", "sde-heun": "heun"}
FLOW_SOLVERS = (*SOLVERS, *SDE_SOLVERS)
# For a network that predicts noise, as FiT's does.
DIFFUSION_SOLVERS = ("ddpm", "ddim")
SOLVER_NAMES = [*FLOW_SOLVERS, *DIFFUSION_SOLVERS]
DEFAULT_STEPS = 25
# These choose their steps by the error of all that they integrate: alone, an image's steps depend on nothing else.
ADAPTIVE = ("dopri5", "adaptive_heun")
# (packed images, t (B,) in [0, 1] with 1 = data (of noise: the step), labels (B,)) to the network's output per token.
Network = Callable[[TokenBatch, Tensor, Tensor], Tensor]
# Of one pass, before guidance doubles them, on a CPU and elsewhere: enough to keep the device busy, and few enough that
# pictures are finished now and then. A longer image is a pass of its own.
TOKENS_PER_PASS = {"cpu": 1024, "other": 8192}
# Gets the number of a wish and its latent.
Finished = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Wish:
    """One image to make: its class (or the null label), height and width in latent pixels, and seed."""

    label: int
    size: tuple[int, int]
    seed: int

    def tokens(self, patch_size: int) -> int:
        """Length of the image as a sequence."""
        return self.size[0] * self.size[1] // patch_size**2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to integrate and guide. interval: times in [0, 1] (1 is data) in which guidance acts; channels: see `guide`.

    steps: of a solver that does not choose its own; None: 25.
    rope: how positions are turned, for sizes beyond those of training; None: as the model's configuration says.
    cache_interval: of so many model calls one computes all blocks, see `BlockCache`.
    Raises UserError for an unknown solver, impossible numbers, and settings that would have no effect.
    """

    steps: int | None = None
    solver: str = "ab2"
    guidance: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    power: float = 0.0
    channels: int | None = None
    shift: float = 1.0
    rope: RopeScheme | None = None
    cache_interval: int = 1

    def __post_init__(self) -> None:
        if self.solver not in SOLVER_NAMES:
            near = suggestion(self.solver, SOLVER_NAMES)
            raise UserError(f"there is no solver {self.solver!r}; the solvers are {', '.join(SOLVER_NAMES)}{near}")
        if self.steps is None and self.solver not in ADAPTIVE:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        if self.steps is not None and self.steps < 1:
            raise UserError(f"a sampler needs at least one step, not {self.steps}")
        if self.solver in DIFFUSION_SOLVERS:
            check_count(self.steps)
        numbers = (self.guidance, self.power, self.shift)
        if not all(map(math.isfinite, numbers)) or self.shift <= 0 or self.power < 0:
            raise UserError(
                f"guidance {self.guidance}, power {self.power} and shift {self.shift} must be finite numbers, "
                "the power 0 or more and the shift above 0"
            )
        if self.guidance < 0:
            raise UserError(f"guidance {self.guidance:g} would lead away from the class: give 1 for none, or more")
        try:
            low, high = self.interval
            within = 0 <= low <= high <= 1
        except TypeError:
            within = False
        if not within:
            raise UserError(f"the guidance interval {self.interval} must lie within 0 and 1, low end first")
        object.__setattr__(self, "interval", (low, high))
        if self.channels is not None and self.channels < 1:
            raise UserError("guidance needs at least one channel to act on; guidance 1 is none")
        if self.cache_interval < 1 or (self.cache_interval > 1 and self.solver in ADAPTIVE):
            raise UserError(
                f"one model call of every {self.cache_interval} cannot be a full one with the solver {self.solver}: "
                "from 1 on, and with 1 for solvers that choose their steps by the error of each"
            )
        if useless := "; ".join(self._without_effect()):
            raise UserError(f"these settings would have no effect: {useless}. Remove them")

    def _without_effect(self) -> Iterator[str]:
        """Settings that change nothing, each with the reason."""
        if self.solver in ADAPTIVE and self.steps is not None:
            yield f"steps {self.steps} (the solver {self.solver} chooses its own)"
        if self.shift != 1 and self.solver in (*ADAPTIVE, *DIFFUSION_SOLVERS):
            yield f"shift {self.shift} (the solver {self.solver} has no grid of times to shift)"
        defaults = {"interval": (0.0, 1.0), "power": 0.0, "channels": None}
        for name, default in defaults.items() if self.guidance == 1 else ():
            if getattr(self, name) != default:
                yield f"{name} {getattr(self, name)} (guidance 1 means none)"

    @property
    def model_calls(self) -> int | None:
        """Evaluations of the (guided) velocity per image; None where the solver decides."""
        if self.solver in SDE_SOLVERS:
            return sde_model_calls(SDE_SOLVERS[self.solver], self.steps)
        if self.solver in DIFFUSION_SOLVERS:
            return self.steps
        return ode_model_calls(self.solver, self.steps)


@torch.inference_mode()
def generate(
    model: Model,
    wishes: Sequence[Wish],
    sampling: Sampling,
    finished: Finished | None = None,
) -> list[Tensor]:
    """One latent (c, height, width) in float32 on the CPU per wish, in the order of the wishes.

    An image depends on its own wish alone, not on the others. `finished` gets each image as soon as it is made.
    Raises ValueError for a size that the patch does not divide or that is not the model's only one, a label out of
    range, or a solver of another kind of model; NotFinite where the model makes NaN or infinity.
    """

    def network() -> Network:
        cache = None if sampling.cache_interval == 1 else BlockCache(sampling.cache_interval)
        return lambda batch, t, y: model(batch, t, y, rope=sampling.rope, cache=cache).float()

    return generate_with(network, model.config, wishes, sampling, next(model.parameters()).device, finished)


def generate_with(
    new_network: Callable[[], Network],
    config: NetworkConfig,
    wishes: Sequence[Wish],
    sampling: Sampling,
    device: torch.device,
    finished: Finished | None = None,
) -> list[Tensor]:
    """`generate` with networks of that configuration, a new one for each pass: what it keeps is of those images."""
    check_sampling(sampling, config)
    for wish in wishes:
        check_wish(wish, config)
    latents: dict[int, Tensor] = {}
    for chosen in passes([wish.tokens(config.patch_size) for wish in wishes], pass_budget(sampling, device)):
        batch = generate_pass(new_network(), config, [wishes[i] for i in chosen], sampling, device)
        for i, latent in zip(chosen, batch.to_latents(config.patch_size), strict=True):
            check_finite(latent, "the image that the model made", detail=f"seed {wishes[i].seed}")
            latents[i] = latent
            if finished is not None:
                finished(i, latent)
    return [latents[i] for i in range(len(wishes))]


def default_solver(config: NetworkConfig) -> str:
    """What to take when nothing else is said."""
    return "ddim" if config.prediction == "epsilon" else "ab2"


def check_solver(solver: str, config: NetworkConfig) -> None:
    """Raises ValueError for a solver of what the network does not predict."""
    what, fitting = ("noise", DIFFUSION_SOLVERS) if config.prediction == "epsilon" else ("a velocity", FLOW_SOLVERS)
    if solver not in fitting:
        raise UserError(
            f"the solver {solver} is not for this model, which predicts {what}; choose from {', '.join(fitting)}"
        )


def check_sampling(sampling: Sampling, config: NetworkConfig) -> None:
    """Raises UserError for a solver or setting that the network has no use for."""
    check_solver(sampling.solver, config)
    if config.fixed_grid is not None and sampling.rope is not None:
        raise UserError("a model of a fixed grid has no rotary positions that could be changed; remove rope")
    if sampling.channels is not None and sampling.channels > config.token_channels:
        raise UserError(
            f"the latents of this model have {counted(config.in_channels, 'channel')}: guidance of more has no effect"
        )
    if sampling.cache_interval > 1 and (config.fixed_grid is not None or config.depth < SHALLOWEST_CACHED):
        raise UserError(
            f"cache_interval {sampling.cache_interval} would have no effect: only models of FiT and FiTv2 with at "
            f"least {SHALLOWEST_CACHED} blocks can reuse inner ones; remove it"
        )


def check_wish(wish: Wish, config: NetworkConfig) -> None:
    check_seed(wish.seed)
    check_divisible(wish.size, config.patch_size)
    only = config.fixed_grid and tuple(side * config.patch_size for side in config.fixed_grid)
    if only not in (None, tuple(wish.size)):
        height, width = wish.size
        raise UserError(f"this model makes {only[0]}x{only[1]} latent pixels alone, and {height}x{width} is asked for")
    classes = config.num_classes
    if not 0 <= wish.label <= classes:
        raise UserError(f"label {wish.label} is out of range: 0 to {classes - 1} are classes, {classes} is none")


def check_divisible(size: tuple[int, int], unit: int) -> None:
    """Raises ValueError, naming the nearest size, where a side is no multiple of `unit`."""
    if min(size) < 1 or any(side % unit for side in size):
        nearest = "x".join(map(str, scaled_size(size, 1.0, unit)))
        raise UserError(f"{size[0]}x{size[1]} is not divisible by the patch of {unit}; the nearest is {nearest}")


def scaled_size(size: tuple[int, int], scale: float, unit: int) -> tuple[int, int]:
    """Both sides times `scale`, each rounded to a multiple of `unit`, at least one."""
    height, width = (max(round(side * scale / unit), 1) * unit for side in size)
    return height, width


def pass_budget(sampling: Sampling, device: torch.device) -> int:
    """The most tokens of a pass, unless one image has more."""
    return 1 if sampling.solver in ADAPTIVE else TOKENS_PER_PASS["cpu" if device.type == "cpu" else "other"]


def passes(tokens: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of images of these token counts, short ones first, in groups of at most `most` tokens or one image."""
    group: list[int] = []
    held = 0
    for i in sorted(range(len(tokens)), key=tokens.__getitem__):
        if group and held + tokens[i] > most:
            yield group
            group, held = [], 0
        group.append(i)
        held += tokens[i]
    if group:
        yield group


def generate_pass(
    network: Network, config: NetworkConfig, wishes: Sequence[Wish], sampling: Sampling, device: torch.device
) -> TokenBatch:
    """All wishes together, both guidance halves included, as one packed batch (on the CPU, float32)."""
    hw = torch.tensor([wish.size for wish in wishes]) // config.patch_size
    noise = ImageNoise([wish.seed for wish in wishes], hw.prod(1).tolist(), config.token_channels)
    labels = torch.tensor([wish.label for wish in wishes])
    x = integrate(network, config, hw, labels, sampling, lambda: upload(noise.draw(), device))
    return TokenBatch(x.float().cpu(), hw)


def integrate(
    network: Network,
    config: NetworkConfig,
    hw: Tensor,
    labels: Tensor,
    sampling: Sampling,
    draw: Callable[[], Tensor],
) -> Tensor:
    """From noise to tokens (T, C) of a packed batch; draw() gives the starting noise, then what a solver needs.

    hw (B, 2) and labels (B,) are on the CPU, the noise where the network is.
    """
    if sampling.solver in DIFFUSION_SOLVERS:
        return denoise_steps(network, config, hw, labels, sampling, draw)
    x = draw()
    velocity = guided(network, config, hw, labels, sampling, x.device)
    if sampling.solver in SDE_SOLVERS:
        times = sde_grid(sampling.steps, shift=sampling.shift)
        return sample_sde(velocity, x, times, draw=draw, method=SDE_SOLVERS[sampling.solver])
    return SOLVERS[sampling.solver](velocity, x, time_grid(sampling.steps or 1, sampling.shift))


def denoise_steps(
    network: Network, config: NetworkConfig, hw: Tensor, labels: Tensor, sampling: Sampling, draw: Callable[[], Tensor]
) -> Tensor:
    """The same for a network of noise, told the step of 1000."""

    def at_step(batch: TokenBatch, t: Tensor, y: Tensor) -> Tensor:
        return network(batch, ((1 - t) * STEPS).round(), y)

    x = draw()
    output = guided(at_step, config, hw, labels, sampling, x.device)

    def at_time(x: Tensor, step: Tensor) -> Tensor:
        return output(x, 1 - step / STEPS)

    if sampling.solver == "ddim":
        return sample_ddim(at_time, x, linear_schedule().respaced(ddim_steps(sampling.steps)))
    return sample_ddpm(at_time, x, linear_schedule().respaced(ddpm_steps(sampling.steps)), draw)


def guided(
    network: Network,
    config: NetworkConfig,
    hw: Tensor,
    labels: Tensor,
    sampling: Sampling,
    device: torch.device,
    scale: float | None = None,
) -> Velocity:
    """output(x, t) of a packed batch with classifier-free guidance; one forward holds both halves.

    There each image is followed by itself without its label, so that a batch sorted by length stays sorted. hw and
    labels are on the CPU; what follows from them is uploaded once, before the first step. scale: instead of that of
    `sampling`. The variance that a network of noise predicts is not guided.
    """
    scale = sampling.guidance if scale is None else scale
    nulls = torch.full_like(labels, config.num_classes)
    lengths = hw.prod(1).tolist()
    own = torch.arange(sum(lengths)).split(lengths)
    twice_hw = hw.repeat_interleave(2, 0)
    first = torch.tensor([True, False]).repeat(len(hw)).repeat_interleave(twice_hw.prod(1))
    conditioned, unconditioned = (upload(half.nonzero().flatten(), device) for half in (first, ~first))
    twice_index = upload(torch.cat([tokens for image in own for tokens in (image, image)]), device)
    once_labels, twice_labels = (upload(y, device) for y in (labels, torch.stack((labels, nulls), 1).flatten()))
    blank = torch.empty(len(twice_index), 0, device=device)
    once, twice = TokenBatch(blank[: sum(lengths)], hw), TokenBatch(blank, twice_hw)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return network(once.with_x(x), times_of(t, len(hw), device), once_labels)

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = network(twice.with_x(x[twice_index]), times_of(t, len(twice_hw), device), twice_labels)
        return v[conditioned], v[unconditioned]

    if torch.equal(labels, nulls):  # Nothing to guide towards.
        return conditional
    of_variance = config.prediction == "epsilon" and sampling.channels is None
    channels = config.token_channels if of_variance else sampling.channels
    return guide(both, conditional, scale, sampling.interval, sampling.power, channels)


def times_of(t: Tensor, images: int, device: torch.device) -> Tensor:
    """(images,) on the device, without a copy from the CPU: there a single time is but a number."""
    if t.device.type == device.type:
        return t.expand(images)
    return torch.full((images,), float(t), dtype=t.dtype, device=device)
