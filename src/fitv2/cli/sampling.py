"""Options about models and sampling that several commands share, and what they mean."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from ..model.config import EXTRAPOLATIONS, AttentionFactor, FiTConfig
from ..model.config import Extrapolation as ExtrapolationName
from ..sampling.solvers import DIFFUSION_SOLVERS, FLOW_SOLVERS
from ..sampling.solvers import Solver as SolverName

if TYPE_CHECKING:
    import torch

    from ..autoencoder import KLAutoencoder, Pixels
    from ..checkpoints.model_folder import Pretrained
    from ..sampling.spec import Sampling

# Options of a panel of the help.
sampling_option = partial(typer.Option, rich_help_panel="Sampling")
guidance_option = partial(typer.Option, rich_help_panel="Guidance")
machine_option = partial(typer.Option, rich_help_panel="Model and machine")
ADVISED = "default: as recommended for the model, else"

Steps = Annotated[
    int | None, sampling_option(min=1, help=f"solver steps; {ADVISED} 25; dopri5 and adaptive_heun choose their own")
]
Solver = Annotated[
    SolverName | None,
    sampling_option(
        metavar="NAME",
        help=f"{', '.join(FLOW_SOLVERS)}; for FiT models {' or '.join(DIFFUSION_SOLVERS)}; {ADVISED} ab2, for FiT ddim",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    guidance_option(help=f"the times between which guidance acts; 0 is noise, 1 is the image; {ADVISED} 0 1"),
]
GuidancePower = Annotated[
    float | None,
    guidance_option(help="lower the scale to 1 towards the image, by a cosine of this power; 0 keeps it constant"),
]
GuidanceChannels = Annotated[
    int | None,
    guidance_option(min=1, help="guide only the first N channels of a latent (the authors: 3); default: all"),
]
TimeShift = Annotated[float | None, sampling_option(help="above 1: more steps near the image; below 1: near the noise")]
CacheInterval = Annotated[
    int | None,
    sampling_option(min=1, help="compute the inner blocks only every N model calls and reuse their output in between"),
]
Extrapolation = Annotated[
    ExtrapolationName | None,
    sampling_option(
        metavar="NAME",
        help=f"how positions extend beyond the training size: {', '.join(EXTRAPOLATIONS)}; the vision forms scale "
        "height and width separately; default: as saved with the model",
    ),
]
AttentionScale = Annotated[
    AttentionFactor | None,
    sampling_option(metavar="NAME", help="with --extrapolation: none, yarn, pro1, pro2, or paper (Eq. 15 of FiTv2)"),
]
Autoencoder = Annotated[str | None, machine_option(help="folder or hub id of an autoencoder; default: the model's own")]
Precision = Annotated[
    str | None,
    machine_option(
        metavar="fp32|bf16",
        help="of weights and computation (fp32 on CUDA: TF32); default: bf16 on CUDA, else fp32",
    ),
]
IgnoreMemory = Annotated[
    bool, machine_option("--ignore-memory", help="continue even if the estimate exceeds the free memory")
]
Device = Annotated[
    str | None,
    machine_option(help="cuda, mps, xpu or cpu, also with an index (cuda:1); default: the best one available"),
]


def build_sampling(
    pretrained: Pretrained,
    solver: str | None = None,
    guidance_channels: int | None = None,
    extrapolation: str | None = None,
    attention_scale: str | None = None,
    **given: Any,
) -> Sampling:
    """Returns what the options mean for a model; None means not given. Raises UserError if they do not suit it."""
    config = pretrained.model.config
    rope = None
    if extrapolation is not None:
        if not isinstance(config, FiTConfig):
            raise UserError("a model of a fixed grid makes its own size only; omit --extrapolation")
        rope = config.rope.named(extrapolation, attention_scale)
    elif attention_scale is not None:
        raise UserError("--attention-scale belongs to an --extrapolation; name one (--extrapolation vision-ntk)")
    return pretrained.sampling(
        solver=solver,
        channels=None if guidance_channels is None else guidance_channels * config.patch_size**2,
        rope=rope,
        **given,
    )


def load_for_sampling(
    model: str, autoencoder: str | None, precision: str, device: torch.device
) -> tuple[Pretrained, Pixels | KLAutoencoder]:
    """Returns the model on the device, and what decodes its latents. Raises UserError if they do not fit."""
    from ..autoencoder import Pixels, load_autoencoder
    from ..device import DTYPES
    from ..model.compute import lay_out_by_input

    pretrained = load_any(model, DTYPES[precision])
    pretrained.model.to(device)
    if precision == "bf16":
        lay_out_by_input(pretrained.model)
    channels = pretrained.model.config.in_channels
    codec = load_autoencoder(autoencoder or pretrained.autoencoder, str(device))
    if isinstance(codec, Pixels):
        check_pixels(model, channels)
    if codec.channels not in (None, channels):
        raise UserError(f"{model} makes {counted(channels, 'channel')}, and the autoencoder takes {codec.channels}")
    return pretrained, codec


def load_any(model: str, dtype: torch.dtype) -> Pretrained:
    """Loads a model of our own, or the one in the folder of a pipeline that diffusers has saved."""
    from ..checkpoints.model_folder import load_pretrained

    if not (Path(model) / "model_index.json").is_file():
        return load_pretrained(model, dtype)
    from diffusers.utils import logging

    from ..adapters.pipeline import FiTPipeline

    logging.disable_progress_bar()  # Of a loading that takes a moment.
    pipeline = FiTPipeline.from_pretrained(model, dtype=dtype, vae=None)
    return pipeline.to_model(autoencoder=model if (Path(model) / "vae").is_dir() else None)


def check_pixels(model: str, channels: int) -> None:
    """Raises UserError if what a model without autoencoder makes cannot be pixels."""
    if channels not in (1, 3):
        raise UserError(
            f"{model} makes latents of {counted(channels, 'channel')} and names no autoencoder; give --autoencoder"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH. Raises UserError for any other text."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.strip().isdecimal() and width.strip().isdecimal()):
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH in pixels, such as 28x12")
    return int(height), int(width)
