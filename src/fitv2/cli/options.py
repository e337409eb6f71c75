"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import UserError
from ..messages import counted
from ..model.config import EXTRAPOLATIONS, AttentionFactor, Extrapolation, FiTConfig
from ..precision import Precision
from ..sampling.editing_defaults import UPSCALE_TIME
from ..sampling.solver_names import DIFFUSION_SOLVERS, FLOW_SOLVERS, Solver

if TYPE_CHECKING:
    import torch

    from ..checkpoints.model_folder import Pretrained
    from ..images.autoencoder import LatentCodec, Pixels
    from ..sampling.spec import Sampling
    from ..text import TextEncoder

sampling_option = partial(typer.Option, rich_help_panel="Sampling")
guidance_option = partial(typer.Option, rich_help_panel="Guidance")
machine_option = partial(typer.Option, rich_help_panel="Model and machine")
ADVISED = "default: the model's recommendation, else"
# Options, by the names under which samples.json records them, and the attributes of `Sampling` that they set.
OPTIONS = {"solver": "solver", "steps": "steps", "guidance_interval": "interval", "guidance_power": "power"}
OPTIONS |= {"guidance_channels": "channels", "internal_guidance": "internal_guidance"}
OPTIONS |= {"internal_interval": "internal_interval", "time_shift": "shift", "cache_interval": "cache_interval"}


def check_folder(path: Path | None) -> Path | None:
    """A callback for --out that refuses files."""
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; name a folder")
    return path


out_option = partial(typer.Option, "--out", "-o", callback=check_folder)
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Device = Annotated[
    str | None, machine_option(help="cuda, mps, xpu or cpu, or one by number (cuda:1); default: the best")
]
IgnoreMemory = Annotated[bool, machine_option("--ignore-memory", help="run even if memory seems too small")]


class LoadedModel(NamedTuple):
    """A model on its device with what decodes its latents, what encodes its prompts, and its precision."""

    pretrained: Pretrained
    codec: Pixels | LatentCodec
    text: TextEncoder | None
    precision: Precision


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded and sampled; None means not given."""

    steps: Annotated[int | None, sampling_option(min=1, help=f"solver steps; {ADVISED} 25")] = None
    solver: Annotated[
        Solver | None,
        sampling_option(
            metavar="NAME",
            help=f"{', '.join(FLOW_SOLVERS)}; for FiT and DiT {' or '.join(DIFFUSION_SOLVERS)}; {ADVISED} ab2 "
            "(FiT, DiT: ddim; few-step models: transition)",
        ),
    ] = None
    time_shift: Annotated[float | None, sampling_option(help="above 1: more steps near the image")] = None
    cache_interval: Annotated[int | None, sampling_option(min=1, help="compute inner blocks only every N calls")] = None
    extrapolation: Annotated[
        Extrapolation | None,
        sampling_option(metavar="NAME", help=f"positions beyond the training size: {', '.join(EXTRAPOLATIONS)}"),
    ] = None
    attention_scale: Annotated[
        AttentionFactor | None,
        sampling_option(
            metavar="NAME", help="with --extrapolation: none, yarn, pro1, pro2, or paper (Eq. 15 of FiTv2)"
        ),
    ] = None
    upscale_from: Annotated[
        int | None,
        sampling_option(
            min=0,
            help="make images with more tokens than this, or with a side longer than in training, in two passes: small "
            f"first, then enlarged and refined; 0: never; {ADVISED} 0",
        ),
    ] = None
    upscale_time: Annotated[
        float | None,
        sampling_option(
            help=f"time from 0 to 1 at which the second pass begins; later changes less; {ADVISED} {UPSCALE_TIME}"
        ),
    ] = None
    window: Annotated[
        str | None,
        sampling_option(help="sample larger images in overlapping windows of this size"),
    ] = None
    guidance_interval: Annotated[
        tuple[float, float] | None,
        guidance_option(help=f"time range to guide, 0 (noise) to 1 (image); {ADVISED} 0 1"),
    ] = None
    guidance_power: Annotated[
        float | None, guidance_option(help="lower the scale to 1 as the image emerges; 0: constant")
    ] = None
    guidance_channels: Annotated[int | None, guidance_option(min=1, help="guide only the first N channels")] = None
    internal_guidance: Annotated[
        float | None,
        guidance_option(help=f"scale of guidance by the model's internal head, if it has one; {ADVISED} 1"),
    ] = None
    internal_interval: Annotated[
        tuple[float, float] | None, guidance_option(help=f"time range of internal guidance; {ADVISED} 0 1")
    ] = None
    autoencoder: Annotated[str | None, machine_option(help="folder or hub id; default: the model's own")] = None
    text_encoder: Annotated[str | None, machine_option(help="folder or hub id; default: the model's own")] = None
    precision: Annotated[Precision | None, machine_option(help="default: depends on the device")] = None
    device: Device = None

    def load(self, model: str, device: torch.device) -> LoadedModel:
        """Loads a model and all that goes with it.

        Raises:
            UserError: The model does not fit the autoencoder or the text encoder.
        """
        from ..images.autoencoder import Pixels, load_autoencoder
        from ..model.numerics import lay_out_by_input
        from ..system.device import DTYPES, choose_precision

        precision = choose_precision(self.precision, device)
        pretrained = load_any(model, DTYPES[precision])
        pretrained.model.to(device)
        if precision == "bf16":
            lay_out_by_input(pretrained.model)
        channels = pretrained.model.config.in_channels
        codec = load_autoencoder(self.autoencoder or pretrained.autoencoder, str(device))
        if isinstance(codec, Pixels):
            check_pixels(model, channels)
        if codec.channels not in (None, channels):
            raise UserError(f"{model} makes {counted(channels, 'channel')}, and the autoencoder takes {codec.channels}")
        return LoadedModel(pretrained, codec, self.load_text(model, pretrained, device), precision)

    def load_text(self, model: str, pretrained: Pretrained, device: torch.device) -> TextEncoder | None:
        """Loads the text encoder of a model, if it has one. Raises UserError if that does not fit."""
        from ..text import load_text_encoder

        config, name = pretrained.model.config, self.text_encoder or pretrained.text_encoder
        if not isinstance(config, FiTConfig) or not config.takes_text:
            if self.text_encoder is not None:
                raise UserError(f"{model} is not conditioned on text; omit --text-encoder")
            return None
        if name is None:
            raise UserError(f"{model} is conditioned on text and names no text encoder; give --text-encoder")
        text = load_text_encoder(name).to(device)
        if text.channels != config.context_channels:
            raise UserError(
                f"{model} takes texts of {counted(config.context_channels, 'number')} a token, and {name} gives "
                f"{text.channels}: give its own encoder as --text-encoder"
            )
        return text

    def sampling(self, pretrained: Pretrained, guidance: float | None, factor: int) -> Sampling:
        """Returns what the options mean for a model with `factor` pixels per latent pixel.

        Raises UserError if they do not suit it.
        """
        from ..sampling.sizes import latent_size

        config, rope = pretrained.model.config, None
        window = None if self.window is None else latent_size(parse_size(self.window), factor, config.patch_size)
        if self.extrapolation is not None:
            if not isinstance(config, FiTConfig):
                raise UserError("a model of a fixed grid makes its own size only; omit --extrapolation")
            rope = config.rope.named(self.extrapolation, self.attention_scale)
        elif self.attention_scale is not None:
            raise UserError("--attention-scale belongs to an --extrapolation; name one (--extrapolation vision-ntk)")
        given = {name: getattr(self, option) for option, name in OPTIONS.items()}
        given["channels"] = self.guidance_channels and self.guidance_channels * config.patch_size**2
        return pretrained.sampling(
            **given,
            guidance=guidance,
            rope=rope,
            upscale_from=self.upscale_from,
            upscale_side=pretrained.longest_side if self.upscale_from else None,
            upscale_time=self.upscale_time,
            window=window,
        )


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the fields of its parameter `options`, a `ModelOptions`, as options of their own."""
    own = signature(command, eval_str=True)
    shared = signature(ModelOptions, eval_str=True).parameters.values()
    parameters = []
    for parameter in own.parameters.values():
        if parameter.name == "options":
            parameters += [field.replace(kind=parameter.kind) for field in shared]
        else:
            parameters.append(parameter)

    @wraps(command)
    def run(**given: Any) -> None:
        options = ModelOptions(**{field.name: given.pop(field.name) for field in fields(ModelOptions)})
        command(**given, options=options)

    run.__dict__["__signature__"] = own.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def refuse_options(context: typer.Context, names: Collection[str], why: str) -> None:
    """Raises UserError if one of these parameters was given, which have no effect; why: the end of the sentence."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and str(context.get_parameter_source(parameter.name)).endswith("COMMANDLINE")
    ]
    if given:
        raise UserError(f"{', '.join(given)}: without effect {why}; omit {'it' if len(given) == 1 else 'them'}")


def load_any(model: str, dtype: torch.dtype | None) -> Pretrained:
    """Loads a model of our own, or the one in the folder of a pipeline that diffusers has saved."""
    from ..checkpoints.model_folder import load_pretrained

    if not (Path(model) / "model_index.json").is_file():
        return load_pretrained(model, dtype)
    import torch
    from diffusers.utils import logging

    from ..adapters.saved_pipeline import read_model

    logging.disable_progress_bar()
    return read_model(model, dtype or torch.bfloat16)


def check_pixels(model: str, channels: int) -> None:
    """Raises UserError if what a model without an autoencoder makes cannot be pixels."""
    if channels not in (1, 3):
        raise UserError(
            f"{model} makes latents of {counted(channels, 'channel')} and names no autoencoder; give --autoencoder"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH. Raises UserError for any other text."""
    height, _, width = text.lower().partition("x")
    if not (height.strip().isdecimal() and width.strip().isdecimal()):
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH in pixels, such as 28x12")
    return int(height), int(width)
