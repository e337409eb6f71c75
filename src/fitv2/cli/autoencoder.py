"""`fitv2 autoencoder`: trains an autoencoder of one's own, which `fitv2 prepare` then encodes images with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import command, counted
from .options import Device, out_option

if TYPE_CHECKING:
    from ..autoencoding.trainer import AutoencoderTrainer
    from ..settings.autoencoder import AutoencoderRecipe


def autoencoder(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="a folder of images, a list of image files (.txt, .csv, ...), emoji, or emoji:FOLDER; repeatable",
        ),
    ] = None,
    out: Annotated[Path, out_option(help="the run's folder")] = Path("runs/autoencoder"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a setting, repeatable: section.key=value, such as training.steps=5000"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder, or begin it")] = False,
    device: Device = None,
) -> None:
    """Train a small autoencoder (AutoencoderKL, downsampling factor 8) on your images, for latent models.

    [bold]Examples[/bold]

      fitv2 autoencoder --data my/images --out runs/autoencoder
      fitv2 autoencoder --data my/images --data emoji --set training.steps=20000 --out runs/autoencoder
      fitv2 autoencoder --resume --out runs/autoencoder
      fitv2 prepare my/images --out prepared --max-tokens 256 --autoencoder runs/autoencoder

    It minimises the absolute error, a distance of EfficientNet-Lite0's features and a small KL divergence on random
    crops of images of any shape. The run's folder holds log.jsonl, samples/ (images beside reconstructions),
    checkpoints/ and vae/, which diffusers loads: float16 weights, and the latents' mean and standard deviation
    per channel.

    Ctrl-C and SIGTERM ('kill PID', for a run in the background) save the current step. --resume continues with
    the run's own settings, except those that --set changes; on a CPU the result equals an uninterrupted run bit for
    bit. 'fitv2 reconstruct' measures the result.
    """
    from .progress import stopped_before_the_first_step

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = chosen_recipe(out, data or [], settings or [], resume)
    with stopped_before_the_first_step():
        trainer = carry_out(chosen, out, resume, device)
    report_end(trainer, out)
    if trainer.progress.stopped_by is not None:
        raise typer.Exit(128 + trainer.progress.stopped_by)


def chosen_recipe(run: Path, sources: Sequence[str], overrides: Sequence[str], resume: bool) -> AutoencoderRecipe:
    """Returns the recipe of the run that is resumed, or else that of the sources, with the overrides on top.

    Raises UserError if there are neither, or the folder holds a run of another command.
    """
    from ..settings.autoencoder import AutoencoderRecipe
    from ..settings.read import build_autoencoder_recipe
    from ..training.run_folder import kept_recipe, no_run

    kept = kept_recipe(run, AutoencoderRecipe) if resume else None
    tree: dict[str, Any] = {} if kept is None else kept.model_dump(mode="json")
    if sources:
        tree["data"] = tree.get("data", {}) | {"sources": list(sources)}
    if not tree and not any(setting.startswith("data.sources=") for setting in overrides):
        if resume:
            raise UserError(f"{no_run(run)} To begin one there, give --data")
        raise UserError("name the images to train on with --data, or continue a run with --resume --out RUN")
    return build_autoencoder_recipe(tree, overrides)


def carry_out(chosen: AutoencoderRecipe, run: Path, resume: bool, device: str | None) -> AutoencoderTrainer:
    """Trains, alone in the run's folder; returns the trainer when it has ended."""
    from ..autoencoding.trainer import AutoencoderTrainer
    from ..build import with_precision
    from ..data.crop_sources import open_crop_source
    from ..distributed.ranks import join_processes
    from ..system.locks import locked
    from ..training.run_folder import check_run
    from .progress import training_progress

    ranks = join_processes(device)
    if ranks.num_processes > 1:
        raise UserError("an autoencoder is trained by one process: start it without a launcher")
    chosen = with_precision(chosen, ranks.device)
    check_run(run, chosen, resume)
    with locked(run, "a training"):
        images, factor = chosen.data, chosen.model.factor
        sources = [
            open_crop_source(name, images.resolution, images.min_scale, factor, run / f"images-{number}.json")
            for number, name in enumerate(images.sources)
        ]
        trainer = AutoencoderTrainer(chosen, sources, run, ranks)
        held = f", and measuring {len(trainer.crops.measured)} others" if len(trainer.crops.measured) else ""
        total = sum(map(len, sources)) - len(trainer.crops.measured)
        trained = len(trainer.crops) - len(trainer.crops.held_out)
        logging.info("training on %s in %s an epoch%s", counted(total, "image"), counted(trained, "crop"), held)
        with training_progress(chosen.training.steps) as progress:
            trainer.fit(progress)
    return trainer


def report_end(trainer: AutoencoderTrainer, run: Path) -> None:
    """Says what was reached, and how to continue."""
    from .progress import said_at_end

    told, finished = said_at_end(trainer.progress, trainer.begun, f"continue with: {trainer.progress.resume_command}")
    print(told)
    if not finished:
        return
    print(f"Images beside reconstructions in {run}/samples; now try: {command('reconstruct', run, '--data', 'FOLDER')}")
    print(f"Use it: {command('prepare', 'FOLDER', '--out', 'prepared', '--max-tokens', 256, '--autoencoder', run)}")
