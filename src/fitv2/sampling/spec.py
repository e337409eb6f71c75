"""A request to a model: the images (`SampleSpec`) and how to sample them (`Sampling`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Self

from ..diffusion.schedule import check_count
from ..errors import UserError
from ..messages import check_known, counted
from ..model.config import NetworkConfig, RopeScheme
from ..randomness import check_seed
from .cache import SHALLOWEST_CACHED
from .editing_defaults import UPSCALE_TIME
from .sizes import check_divisible, size_within
from .solver_names import ADAPTIVE, DIFFUSION_SOLVERS, EDITING_SOLVERS, FLOW_SOLVERS, SOLVER_NAMES, model_calls

DEFAULT_STEPS = 25
# Times in float32 cannot tell many more apart.
MOST_STEPS = 10**7
# Without guidance these have no effect; and without internal guidance its own.
GUIDANCE_SETTINGS = ("interval", "power", "channels")
SHIFTS = ("shift", "shift_tokens")
# Settings that are numbers of something.
COUNTS = {
    **{"steps": "steps", "cache_interval": "model calls", "channels": "channels", "upscale_side": "patches"},
    **dict.fromkeys(("shift_tokens", "upscale_from"), "tokens"),
}
# Without upscale_from the others have no effect.
TWO_PASSES = ("upscale_from", "upscale_time", "upscale_side")


@dataclass(frozen=True)
class SampleSpec:
    """One image to make.

    Attributes:
        label: Its class, or the null label.
        size: (height, width) in latent pixels.
        seed: Of its noise.
        prompt: What it shows, for a model of text.
        negative_prompt: What guidance leads away from; empty: from no text.
    """

    label: int
    size: tuple[int, int]
    seed: int
    prompt: str = ""
    negative_prompt: str = ""

    def tokens(self, patch_size: int) -> int:
        """Returns the length of the image as a sequence."""
        return self.size[0] * self.size[1] // patch_size**2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to integrate and guide.

    Attributes:
        steps: Steps of the solver; None means 25, or the choice of an adaptive solver.
        solver: One of `SOLVER_NAMES`.
        guidance: The scale of classifier-free guidance; 1 means none.
        interval: The times in [0, 1] between which guidance acts, both included; 1 is data (arXiv 2404.07724).
        power: Above 0, the scale falls to 1 towards the data, see `guidance_scale`; 0 keeps it constant.
        channels: How many channels of a token are guided, the first ones; None means all. The authors guide three
            latent channels, 3 p^2.
        internal_guidance: The scale w of internal guidance, for a model with an internal head: the output of its last
            layer is moved away from that of the head, head + w (last - head); 1 means none (arXiv 2512.24176).
        internal_interval: The times in [0, 1] between which internal guidance acts, both included.
        shift: Warps the grid of times: above 1 more steps are near the data, below 1 near the noise.
        shift_tokens: Images of more tokens than this have more of their steps near the noise, see
            `fitv2.flow.path.shift_by_size`, as a model needs that was trained so; None means all have the same grid.
        rope: The RoPE scheme, for sizes beyond those of training; None means that of the model's configuration.
        cache_interval: One model call in this many computes all blocks, see `BlockCache`.
        upscale_from: Images of more tokens than this are first made with at most this many, then enlarged and finished
            in their own size, so that the composition comes from a training size. None: all in one pass.
        upscale_side: The longest side in patches that the first pass may have, besides; None: any.
        upscale_time: The time in (0, 1) at which the enlarged image goes on; near 1 it keeps more of what it shows.
        window: (height, width) in latent pixels. Larger images are sampled in overlapping windows of at most this size,
            see `fitv2.sampling.windows`. None: each image as a whole.

    Raises:
        UserError: A solver that is not known, an impossible number, or a setting that would have no effect.
    """

    steps: int | None = None
    solver: str = "ab2"
    guidance: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    power: float = 0.0
    channels: int | None = None
    internal_guidance: float = 1.0
    internal_interval: tuple[float, float] = (0.0, 1.0)
    shift: float = 1.0
    shift_tokens: int | None = None
    rope: RopeScheme | None = None
    cache_interval: int = 1
    upscale_from: int | None = None
    upscale_side: int | None = None
    upscale_time: float = UPSCALE_TIME
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_known("solver", self.solver, SOLVER_NAMES)
        if self.steps is None and self.solver not in ADAPTIVE:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        for name in ("interval", "internal_interval"):
            object.__setattr__(self, name, checked_interval(name, getattr(self, name)))
        if self.window is not None:
            object.__setattr__(self, "window", checked_window(self.window))
        self._check_numbers()
        if self.cache_interval > 1 and self.solver in ADAPTIVE:
            raise UserError(f"a cache interval does not go with the adaptive solver {self.solver}: remove it")
        if self.internal_guidance != 1 and self.cache_interval > 1:
            raise UserError("internal guidance needs all blocks in every model call: remove it, or the cache interval")
        if useless := self._without_effect():
            raise UserError(f"these settings would have no effect: {'; '.join(useless)}. Remove them")

    def _check_numbers(self) -> None:
        """Raises UserError for a number out of its range."""
        for name, what in COUNTS.items():
            value = getattr(self, name)
            if value is not None and (not is_count(value) or value < 1):
                raise UserError(f"{name} {value} must be a whole number of {what}, 1 or more")
        if self.steps is not None and self.steps > MOST_STEPS:
            raise UserError(f"a sampler takes at most {MOST_STEPS:,} steps, not {self.steps:,}")
        if self.solver in DIFFUSION_SOLVERS and self.steps is not None:
            check_count(self.steps)
        for name in ("guidance", "internal_guidance", "power"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"the {name.replace('_', ' ')} {value:g} must be a finite number of 0 or more")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise UserError(f"the shift {self.shift:g} must be a finite number above 0")
        if not 0 < self.upscale_time < 1:
            raise UserError(f"the upscale time {self.upscale_time:g} must lie between 0 and 1")

    def _without_effect(self) -> list[str]:
        """Returns the settings that would have no effect, and why."""
        adaptive, diffusion = self.solver in ADAPTIVE, self.solver in DIFFUSION_SOLVERS
        dependent: list[tuple[bool, tuple[str, ...], str]] = [
            (self.upscale_from is None, TWO_PASSES, "without upscale_from there is one pass"),
            (adaptive, ("steps",), f"the solver {self.solver} chooses its own"),
            (adaptive or diffusion, SHIFTS, f"the solver {self.solver} has no grid of times to shift"),
            (self.internal_guidance == 1, ("internal_interval",), "internal guidance 1 means none"),
            (self.guidance == 1, GUIDANCE_SETTINGS, "guidance 1 means none"),
        ]
        return [
            f"{name} {getattr(self, name)} ({why})"
            for useless, names, why in dependent
            for name in names
            if useless and getattr(self, name) != getattr(Sampling, name)
        ]

    @classmethod
    def of(cls, config: NetworkConfig, recommended: Mapping[str, Any], **given: Any) -> Self:
        """Returns the settings for a model: those given, else the recommended ones, else the defaults.

        Args:
            config: The configuration of the model.
            recommended: The recommendations of the model folder, by the names of the attributes; those that have no
                effect with the given settings are omitted.
            **given: The settings of the caller. None means not given. upscale_from=0 means one pass, whatever is
                recommended. A rope given without upscale_from replaces recommended passes.

        Raises:
            UserError: As `Sampling` and `check_sampling` do.
        """
        given = {name: value for name, value in given.items() if value is not None}
        advice: dict[str, Any] = dict(recommended)
        solver = given.get("solver")
        if solver not in (None, advice.get("solver", default_solver(config))):
            advice = without(advice, "steps", "shift", "cache_interval")
            if solver in ADAPTIVE or solver in DIFFUSION_SOLVERS:
                advice = without(advice, "shift_tokens")
        if given.get("upscale_from") == 0:
            given, advice = without(given, *TWO_PASSES), without(advice, *TWO_PASSES)
        elif "upscale_from" not in given and ("rope" in given or given.get("solver", "ab2") not in EDITING_SOLVERS):
            advice = without(advice, *TWO_PASSES)
        if given.get("guidance") == 1:
            advice = without(advice, *GUIDANCE_SETTINGS)
        if given.get("internal_guidance") == 1 or given.get("cache_interval", 1) > 1:
            advice = without(advice, "internal_guidance", "internal_interval")
        elif "internal_guidance" in given:
            advice = without(advice, "cache_interval")
        settings: dict[str, Any] = {"solver": default_solver(config), **advice, **given}
        sampling = cls(**settings)
        check_sampling(sampling, config)
        return sampling

    def in_one_pass(self) -> Self:
        """Returns the same settings without a first pass."""
        return replace(self, **{name: getattr(Sampling, name) for name in TWO_PASSES})

    @property
    def model_calls(self) -> int | None:
        """Evaluations of the (guided) model per image (NFE) in one pass; None if the solver decides."""
        return model_calls(self.solver, self.steps)


# The settings that a model folder may recommend. Extrapolation is part of the configuration, a window of one request.
RECOMMENDABLE = tuple(field.name for field in fields(Sampling) if field.name not in ("rope", "window"))


def check_recommended(content: Any) -> dict[str, Any]:
    """Returns recommended settings as read from JSON, checked. Raises UserError for others."""
    if not isinstance(content, dict):
        raise UserError("it holds no settings by name")
    for name in content:
        check_known("setting", name, RECOMMENDABLE)
    try:
        Sampling(**content)
    except (TypeError, AttributeError) as error:
        raise UserError(f"it holds a value of a wrong type ({error})") from None
    return content


def checked_interval(name: str, interval: Any) -> tuple[float, float]:
    """Returns two times in [0, 1], the earlier first. Raises UserError for anything else."""
    try:
        low, high = interval
        if 0 <= low <= high <= 1:
            return low, high
    except (TypeError, ValueError):
        pass
    called = "guidance interval" if name == "interval" else "interval of internal guidance"
    raise UserError(f"the {called} {interval} must lie within 0 and 1, low end first")


def is_count(value: Any) -> bool:
    """Whether it is a whole number, also of NumPy; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def checked_window(window: Any) -> tuple[int, int]:
    """Returns (height, width) of a window. Raises UserError for anything but two whole numbers above 0."""
    sides = tuple(window) if isinstance(window, Sequence) else ()
    if len(sides) != 2 or not all(is_count(side) and side > 0 for side in sides):
        raise UserError(f"the window {window!r} must be a height and a width, two whole numbers above 0")
    return sides


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns the settings except those of these names."""
    return {name: value for name, value in settings.items() if name not in names}


def default_solver(config: NetworkConfig) -> str:
    """Returns the solver to use when none is named."""
    if config.target_blocks:
        return "transition"
    return "ddim" if config.prediction == "epsilon" else "ab2"


def check_sampling(sampling: Sampling, config: NetworkConfig) -> None:
    """Raises UserError for a solver or setting that the model has no use for."""
    what, fitting = ("noise", DIFFUSION_SOLVERS) if config.prediction == "epsilon" else ("a velocity", FLOW_SOLVERS)
    if sampling.solver not in fitting:
        raise UserError(
            f"the solver {sampling.solver} is not for this model, which predicts {what}; "
            f"choose from {', '.join(fitting)}"
        )
    if sampling.solver == "transition" and not config.target_blocks:
        raise UserError(
            "the solver transition is for models trained for few steps (training.objective=transition); choose another"
        )
    if sampling.solver == "transition" and (sampling.guidance != 1 or sampling.cache_interval > 1):
        raise UserError(
            "guidance is part of this model, which was trained for few steps: sample it with guidance 1 and without a "
            "cache interval"
        )
    if sampling.rope is not None and sampling.rope.method != "none" and config.position_range:
        raise UserError("this model has positions for every size (position_range): extrapolation would move them twice")
    if config.fixed_grid is not None and sampling.rope is not None:
        raise UserError("a model of a fixed grid has no rotary positions that could be changed; remove rope")
    if config.fixed_grid is not None and (sampling.upscale_from or sampling.window):
        raise UserError("a model of a fixed grid makes its own size only: remove upscale_from and window")
    if sampling.upscale_from and sampling.solver not in EDITING_SOLVERS:
        raise UserError(f"upscale_from needs one of the solvers {', '.join(EDITING_SOLVERS)}, not {sampling.solver}")
    if sampling.window is not None:
        check_divisible(sampling.window, config.patch_size)
    if sampling.channels is not None and sampling.channels > config.token_channels:
        raise UserError(
            f"the latents of this model have {counted(config.in_channels, 'channel')}: guidance of more has no effect"
        )
    if sampling.internal_guidance != 1 and config.internal_head is None:
        raise UserError(
            "this model has no internal head, which internal guidance needs: train it with --set model.internal_head=2"
        )
    if sampling.cache_interval > 1 and (config.fixed_grid is not None or config.depth < SHALLOWEST_CACHED):
        raise UserError(
            f"cache_interval {sampling.cache_interval} would have no effect: only models of FiT and FiTv2 with at "
            f"least {SHALLOWEST_CACHED} blocks can reuse inner ones; remove it"
        )


def check_spec(spec: SampleSpec, config: NetworkConfig) -> None:
    """Raises UserError for a seed, size or label that the model cannot take."""
    check_seed(spec.seed)
    check_divisible(spec.size, config.patch_size)
    classes, own = config.num_classes, tuple(side * config.patch_size for side in config.fixed_grid or ())
    if own and own != tuple(spec.size):
        (rows, columns), (height, width) = own, spec.size
        raise UserError(f"this model makes {rows}x{columns} latent pixels alone, and {height}x{width} is asked for")
    if (spec.prompt or spec.negative_prompt) and not config.takes_text:
        raise UserError("this model knows classes and no text: give labels instead of prompts")
    if not 0 <= spec.label <= classes:
        raise UserError(f"label {spec.label} is out of range: 0 to {classes - 1} are classes, {classes} is none")


def check_texts(config: NetworkConfig, text: object) -> None:
    """Raises UserError for a model of text without a text encoder; one is not needed for other models."""
    if config.takes_text and text is None:
        raise UserError("this model is conditioned on text, and no text encoder is given")


def first_size(size: tuple[int, int], sampling: Sampling, patch_size: int) -> tuple[int, int]:
    """Returns the size in latent pixels of the first of two passes, or the size itself if there is one."""
    most, side = sampling.upscale_from, sampling.upscale_side
    return size if most is None else size_within(size, most, patch_size, side)
