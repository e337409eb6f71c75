"""`fitv2 convert`: the authors' checkpoints to model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..messages import command
from .options import out_option


def convert(
    config: Annotated[Path, typer.Option(help="the authors' YAML file, such as configs/fitv2/config_fitv2_xl.yaml")],
    checkpoint: Annotated[
        Path, typer.Option(help=".safetensors, pickled .bin (its code is never run), or a sharded checkpoint's folder")
    ],
    out: Annotated[Path, out_option(help="the model folder to write")],
    labels: Annotated[Path | None, typer.Option(help="file of class names, one per line; default: ImageNet's")] = None,
    autoencoder: Annotated[str | None, typer.Option(help="folder or hub id; default: the one in the YAML file")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model that --out already holds")] = False,
) -> None:
    """Convert one of the authors' FiT or FiTv2 checkpoints for 'fitv2 sample OUT'.

    [bold]Example[/bold]

      fitv2 convert --config config_fitv2_xl.yaml --checkpoint fitv2_xl.safetensors --out models/fitv2-xl
    """
    from math import isqrt

    from ..checkpoints.model_folder import save_pretrained
    from ..checkpoints.official import from_official, read_official_config
    from ..classes import imagenet_names, read_names
    from ..model.presets import architecture_of

    check_out(out, overwrite)
    params, named_autoencoder = read_official_config(config)
    if params.get("time_shifting", 1) != 1:
        raise UserError(
            f"{config} has time_shifting={params['time_shifting']}, which a model folder cannot say: load the weights "
            "with fitv2.from_official and give the network fitv2.flow.path.shift_time(t, time_shifting) as its time"
        )
    names = read_names(labels) if labels else imagenet_names()
    model = from_official(checkpoint, **params)
    classes = model.config.num_classes
    if labels and len(names) != classes:
        raise UserError(f"{labels} names {len(names)} classes, and the model has {classes}")
    names = list(names) if len(names) == classes else []
    side = isqrt(params.get("context_size", 256)) * model.config.patch_size
    codec, weights = autoencoder or named_autoencoder, model.state_dict()
    # As the authors' scripts sample: they guide three channels of a latent alone.
    guided, channels = 3, model.config.in_channels
    advice = {"guidance": 1.5} | ({"channels": guided * model.config.patch_size**2} if channels > guided else {})
    save_pretrained(out, model.config, weights, names, [[(side, side, 1)]], None, codec, recommended=advice)
    parameters, dtype = sum(weight.numel() for weight in model.parameters()), next(model.parameters()).dtype
    print(f"{out}: {architecture_of(model.config)} of {parameters / 1e6:.1f} M parameters, {dtype}")
    print(f"Sample from it with: {command('sample', out)}")


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError where --out holds files that would be lost."""
    from ..checkpoints.model_folder import SAMPLING, read_config

    if (out / "model").is_dir():
        raise UserError(f"{out} is the folder of a run, which has its own model; choose another --out")
    there = [name for name in ("config.json", SAMPLING, "model.safetensors") if (out / name).exists()]
    if "config.json" in there and "model.safetensors" not in there:
        try:
            read_config(out / "config.json")
            return  # A conversion that was stopped has written the configuration, and no weights yet.
        except (OSError, ValueError, KeyError, TypeError):
            pass
    if there and not overwrite:
        raise UserError(f"{out} holds {' and '.join(there)} already; choose another --out, or add --overwrite")
