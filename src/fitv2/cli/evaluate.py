"""`fitv2 evaluate`: how good images are, compared with real ones, at any sizes; and results side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UserError
from ..messages import command
from .options import Json, ModelOptions, guidance_option, out_option, refuse_options, with_model_options
from .requests import MOST_IMAGES
from .run_evaluation import DEFAULT_NUMBER, OUT, Request, is_model, parse_size_spec, run

# Parameters that have an effect on images that exist already.
OF_SAMPLES = {"names", "reference", "size", "protocol", "extractor", "inception_weights", "metrics", "num_images"}
OF_SAMPLES |= {"device", "out", "save_npz", "force", "as_json"}
input_option = partial(typer.Option, rich_help_panel="Input")
metric_option = partial(typer.Option, rich_help_panel="Metrics", show_default=False)


@with_model_options
def evaluate(
    *,
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="a model (builtin:fashion, or a folder of a model, run, checkpoint or FiTPipeline), images (a folder, "
            "an .npz archive, fashion), or several result.json files to compare",
            metavar="MODEL|SAMPLES|RESULT.json...",
        ),
    ],
    reference: Annotated[
        str | None,
        input_option(
            *("--reference", "-r"),
            help="real images: a folder, pixels from 'fitv2 prepare', an ADM .npz archive, fashion (the bundled "
            "images), fashion:train or fashion:test, or emoji (images of one drawing each)",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        input_option(
            *("--size", "-s"),
            help="HEIGHTxWIDTH in pixels, repeatable; for a model also own (default: its training sizes), "
            "own:1.5 (1.5 times), own-turned (height and width swapped)",
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        input_option(
            *("--num-images", "-n"),
            min=2,
            max=MOST_IMAGES,
            help=f"images of each --size; default: all, or {DEFAULT_NUMBER} for a model",
        ),
    ] = None,
    protocol: Annotated[
        Literal["adm-square", "matched", "centre"] | None,
        metric_option(
            help="adm-square: nothing is cropped; the extractor resizes whole images (default for own sizes and "
            "statistics); matched: real images are cropped to the samples' size (default otherwise); centre: all are "
            "cropped to squares"
        ),
    ] = None,
    extractor: Annotated[
        Literal["inception", "efficientnet-lite0", "garments", "drawings"] | None,
        metric_option(
            help="default: garments for fashion, inception if given its weights, else efficientnet-lite0; drawings is "
            "efficientnet-lite0 with a probe that recognises the bundled drawings"
        ),
    ] = None,
    inception_weights: Annotated[Path | None, metric_option(help="pytorch-fid's pt_inception-2015-12-05")] = None,
    metrics: Annotated[
        str,
        metric_option(
            *("--metrics", "-m"),
            help="comma-separated; default: all of fd (Frechet distance), sfd (of spatial features), kid (kernel), "
            "cs (classifier score), pr (precision, recall, density, coverage), accuracy (of the requested classes)",
        ),
    ] = "fd,sfd,kid,cs,pr,accuracy",
    guidance: Annotated[
        list[float] | None,
        guidance_option("--guidance", "-g", help="scale of classifier-free guidance, repeatable; default as in sample"),
    ] = None,
    options: ModelOptions,
    seed: Annotated[int, input_option(min=0, max=2**62, help="seed of the first image; later ones count up")] = 0,
    out: Annotated[Path | None, out_option(help=f"folder for results and images; default: in {OUT}")] = None,
    save_npz: Annotated[bool, typer.Option("--save-npz", help="also write samples for ADM's evaluator")] = False,
    force: Annotated[bool, typer.Option("--force", help="compare results even if measured differently")] = False,
    as_json: Json = False,
) -> None:
    """Compare images with real ones: Frechet and kernel distance, precision, recall and more.

    [bold]Examples[/bold]

      fitv2 evaluate builtin:fashion --reference fashion --num-images 2000
      fitv2 evaluate runs/mine --reference my/images --size 96x96 --size 64x144 --guidance 1 --guidance 1.5
      fitv2 evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception-weights pt_inception.pth
      fitv2 evaluate first/result.json second/result.json
      torchrun --nproc_per_node 8 -m fitv2.cli evaluate runs/mine --reference my/images --size 256x256 -n 50000

    After an interruption, the same command continues and keeps the images already made; without --out, later
    evaluations with other metrics or references reuse the images. Results that differ in protocol, number of images,
    reference or extractor are compared only with --force. Features of real images are cached in ~/.cache/fitv2 (or
    FITV2_CACHE), which you may delete at any time.
    """
    if all(name.endswith(".json") for name in names):
        others = context.params.keys() - {"names", "force", "as_json"}
        refuse_options(context, others, "on results that are only compared")
        compare(names, force, as_json)
        return
    name = names[0]
    if len(names) > 1:
        from ..evaluation.results import RESULT

        found = [Path(name) / RESULT for name in names]
        advice = command("evaluate", *found) if all(path.is_file() for path in found) else "name their .json files"
        raise UserError(f"one model or set of samples at a time, not {len(names)}; to compare results: {advice}")
    if force:
        raise UserError("--force is for results (.json) that are compared")
    of_model = is_model(name)
    if not of_model:
        refuse_options(context, context.params.keys() - OF_SAMPLES, f"on images that exist already, as in {name}")
    if reference is None:
        raise UserError("give real images to compare with: --reference FOLDER, an .npz archive, or fashion")
    if is_model(reference):
        raise UserError(f"--reference {reference} is a model or a run; give real images to compare with")
    scales = guidance or [None]
    # With several scales, settings of guidance are for those that guide.
    plain = replace(options, guidance_interval=None, guidance_power=None, guidance_channels=None)
    guides = any(scale != 1 for scale in scales)
    request = Request(
        name=name,
        reference=reference,
        extractor=extractor,
        inception_weights=inception_weights,
        metrics=[metric.strip() for metric in metrics.split(",")],
        protocol=protocol,
        sizes=[parse_size_spec(text) for text in size or (["own"] if of_model else [])],
        number=num_images,
        out=out,
        save_npz=save_npz,
        seed=seed,
        samplings=[(plain if guides and scale == 1 else options, scale) for scale in scales] if of_model else [],
    )
    run(request, options.device, as_json)


def compare(names: list[str], force: bool, as_json: bool) -> None:
    """Prints results of several files side by side. Raises UserError if they were measured differently."""
    from ..evaluation.results import difference, read_results, remarks, report
    from .score_tables import show_results

    files = {name: read_results(Path(name)) for name in names}
    found = difference(files)
    if found is not None and not force:
        raise UserError(f"these results are not comparable, because they differ in {found} (--force shows them anyway)")
    if as_json:
        print(json.dumps({name: report(results) for name, results in files.items()}))
        return
    show_results(files)
    for remark in remarks(files):
        print(f"Note: {remark}")
    if found is not None:
        print(f"Not comparable: they differ in {found}")
