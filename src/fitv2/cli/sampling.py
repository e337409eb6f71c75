"""How pictures are sampled: the options that several commands have, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import counted

if TYPE_CHECKING:
    import torch

    from ..autoencoder import KLAutoencoder, Pixels
    from ..checkpoints.model_folder import Pretrained
    from ..generate import Sampling

Steps = Annotated[
    int | None, typer.Option(min=1, help="solver steps; default 25; dopri5 and adaptive_heun choose their own")
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="euler, midpoint, heun, heun3, rk4, rk4_38, ab2, dopri5, adaptive_heun, euler-maruyama, sde-heun; "
        "for FiT models ddpm or ddim; default: ab2, for FiT ddim"
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float],
    typer.Option(help="the times between which guidance acts, such as 0.3 0.9; 0 is noise, 1 is the image"),
]
GuidancePower = Annotated[
    float, typer.Option(help="lower the scale to 1 towards the image, by a cosine of this power; 0 keeps it constant")
]
GuidanceChannels = Annotated[
    int | None,
    typer.Option(min=1, help="guide only the first N channels of a latent (the authors: 3); default: all"),
]
TimeShift = Annotated[float, typer.Option(help="above 1: more steps near the image; below 1: near the noise")]
CacheInterval = Annotated[
    int,
    typer.Option(
        "--cache-interval",
        "--full-every",
        min=1,
        help="compute the inner blocks only every N model calls and reuse their output in between",
    ),
]
Extrapolation = Annotated[
    str | None,
    typer.Option(
        help="how positions extend beyond the training size: none, pi, ntk, parts, yarn, or vision-pi, vision-ntk "
        "and so on, which scale height and width separately; default: as saved with the model"
    ),
]
AttentionScale = Annotated[
    str | None, typer.Option(help="with --extrapolation: none, yarn, pro1, pro2, or paper (Eq. 15 of FiTv2)")
]
Autoencoder = Annotated[str | None, typer.Option(help="folder or hub id of an autoencoder; default: the model's own")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16",
        help="of weights and computation (fp32 on CUDA: TF32); default: bf16 on CUDA, else fp32",
    ),
]
IgnoreMemory = Annotated[
    bool, typer.Option("--ignore-memory", help="continue even if the estimate exceeds the free memory")
]
Device = Annotated[
    str | None, typer.Option(help="cuda, mps, xpu or cpu, also with an index (cuda:1); default: the best one available")
]


def build_sampling(
    pretrained: Pretrained,
    solver: str | None,
    guidance_channels: int | None = None,
    extrapolation: str | None = None,
    attention_scale: str | None = None,
    **plain,
) -> Sampling:
    """What the options mean for that model; plain: what needs no translation. Raises ValueError for what is wrong."""
    from ..generate import Sampling, check_sampling, default_solver

    config = pretrained.model.config
    if extrapolation is not None and config.fixed_grid is not None:
        raise UserError("a model of a fixed grid makes its own size only; omit --extrapolation")
    if extrapolation is None and attention_scale is not None:
        raise UserError("--attention-scale belongs to an --extrapolation; name one (--extrapolation vision-ntk)")
    sampling = Sampling(
        solver=solver or default_solver(config),
        channels=None if guidance_channels is None else guidance_channels * config.patch_size**2,
        rope=None if extrapolation is None else config.rope.named(extrapolation, attention_scale),
        **{name: value for name, value in plain.items() if value is not None},
    )
    check_sampling(sampling, config)
    return sampling


def load_for_sampling(
    model: str, autoencoder: str | None, precision: str, device: torch.device
) -> tuple[Pretrained, Pixels | KLAutoencoder]:
    """The model on the device, and what makes pictures of its latents. Raises ValueError where they do not fit."""
    from ..autoencoder import Pixels, load_autoencoder
    from ..device import DTYPES
    from ..model.transformer import lay_out_by_input

    pretrained = load_any(model, DTYPES[precision])
    pretrained.model.to(device)
    if precision == "bf16":
        lay_out_by_input(pretrained.model)
    channels = pretrained.model.config.in_channels
    codec = load_autoencoder(autoencoder or pretrained.autoencoder, device)
    if isinstance(codec, Pixels):
        check_pixels(model, channels)
    if codec.channels not in (None, channels):
        raise UserError(f"{model} makes {counted(channels, 'channel')}, and the autoencoder takes {codec.channels}")
    return pretrained, codec


def load_any(model: str, dtype: torch.dtype) -> Pretrained:
    """A model of our own, or the one in the folder of a pipeline that diffusers has saved."""
    from ..checkpoints.model_folder import load_pretrained

    if not (Path(model) / "model_index.json").is_file():
        return load_pretrained(model, dtype)
    from diffusers.utils import logging

    from ..adapters.pipeline import FiTPipeline

    logging.disable_progress_bar()  # Of a loading that takes a moment.
    pipeline = FiTPipeline.from_pretrained(model, dtype=dtype, vae=None)
    return pipeline.to_model(autoencoder=model if (Path(model) / "vae").is_dir() else None)


def check_pixels(model: str, channels: int) -> None:
    """Raises ValueError where what a model without autoencoder makes cannot be pixels."""
    if channels not in (1, 3):
        raise UserError(
            f"{model} makes latents of {counted(channels, 'channel')} and names no autoencoder; give --autoencoder"
        )


def parse_size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.strip().isdecimal() and width.strip().isdecimal()):
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH in pixels, such as 28x12")
    return int(height), int(width)
