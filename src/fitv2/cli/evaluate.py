"""`fitv2 evaluate`: how good images are, compared with real ones, at any sizes; and results side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from ..errors import UserError
from .evaluated import DEFAULT_NUMBER, Job, ModelOptions, is_model, parse_size_spec
from .given import refuse_without_effect, source
from .sampling import (
    AttentionScale,
    Autoencoder,
    CacheInterval,
    Device,
    Extrapolation,
    GuidanceChannels,
    GuidanceInterval,
    GuidancePower,
    Precision,
    Solver,
    Steps,
    TimeShift,
)

OUT = Path("outputs/evaluation")
T = TypeVar("T")
# Parameters that have an effect on images that exist already.
OF_SAMPLES = {"names", "reference", "size", "protocol", "extractor", "inception_weights", "metrics", "num_images"}
OF_SAMPLES |= {"num", "device", "out", "save_npz", "force", "as_json"}
INPUT, METRICS, GUIDANCE, OUTPUT = "Input", "Metrics", "Guidance", "Output"


def evaluate(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="a model: builtin:fashion, or the folder of a model, a run, a checkpoint or a saved FiTPipeline; or "
            "images: a folder, an .npz archive (arr_0) or one of fashion; or several result.json to compare",
            metavar="MODEL|SAMPLES|RESULT.json...",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            help="real images: a folder, with a sub-folder per class or none, or pixels of 'fitv2 prepare'; an .npz "
            "archive as ADM has it (arr_0, mu, sigma, mu_s, sigma_s); fashion, the bundled 10000 images; "
            "fashion:train[:FOLDER], all 60000, if Fashion-MNIST is installed or in FOLDER; fashion:test[:FOLDER], "
            "whose statistics ship with fitv2",
            rich_help_panel=INPUT,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            "-s",
            metavar="HxW",
            help="height and width in pixels, repeatable; for a model also own (the sizes that training had of each "
            "class; the default), own:1.5, own-turned; samples have their own sizes by default",
            rich_help_panel=INPUT,
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            "-n",
            min=2,
            help=f"images of each size; default {DEFAULT_NUMBER} from a model, or all samples. Fewer images make the "
            "Frechet distance larger; papers use 50000",
            rich_help_panel=INPUT,
        ),
    ] = None,
    num: Annotated[int | None, typer.Option("--num", "--number", min=2, hidden=True)] = None,
    protocol: Annotated[
        Literal["adm-square", "matched", "centre"] | None,
        typer.Option(
            help="adm-square: the extractor resizes samples and real images whole, which for all but garments "
            "stretches them to a square (default for own sizes and for statistics as the reference); matched: real "
            "images are scaled to cover the size and cropped to it (default otherwise); centre: both are cropped to "
            "the central square",
            show_default=False,
            rich_help_panel=METRICS,
        ),
    ] = None,
    extractor: Annotated[
        Literal["inception", "efficientnet-lite0", "garments"] | None,
        typer.Option(
            help="network that sees the images: efficientnet-lite0 (its distance is called FD-ENLite0), garments "
            "(FD-garments), inception (FID); default: garments with fashion, inception with --inception-weights, else "
            "efficientnet-lite0",
            show_default=False,
            rich_help_panel=METRICS,
        ),
    ] = None,
    inception_weights: Annotated[
        Path | None,
        typer.Option(help="pt_inception-2015-12-05 of pytorch-fid, .pth or .safetensors", rich_help_panel=METRICS),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            "-m",
            help="comma-separated: fd (Frechet distance), sfd (the same of spatial features), kid (kernel distance), "
            "cs (classifier score), pr (precision, recall, density, coverage), accuracy (of the requested classes); "
            "with inception they are FID, sFID, KID and Inception Score",
            rich_help_panel=METRICS,
        ),
    ] = "fd,sfd,kid,cs,pr,accuracy",
    guidance: Annotated[
        list[float] | None,
        typer.Option(
            "--guidance",
            "-g",
            help="scale of classifier-free guidance, repeatable; default: what the model recommends, else 2",
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    guidance_interval: GuidanceInterval = (0.0, 1.0),
    guidance_power: GuidancePower = 0.0,
    guidance_channels: GuidanceChannels = None,
    steps: Steps = None,
    solver: Solver = None,
    time_shift: TimeShift = 1.0,
    cache_interval: CacheInterval = 1,
    extrapolation: Extrapolation = None,
    attention_scale: AttentionScale = None,
    autoencoder: Autoencoder = None,
    precision: Precision = None,
    device: Device = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**62,
            help="seed of the first image; each further image takes the next. For independent samples, choose seeds "
            "at least --num-images apart",
            rich_help_panel=INPUT,
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="folder for the result, the plots and a model's images; default: one per evaluation below "
            f"{OUT}, where evaluations share a model's images",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_npz: Annotated[
        bool,
        typer.Option(
            "--save-npz",
            help="also write the samples of each size as an archive for ADM's evaluator",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="compare results that were measured differently", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Compare images with real ones: Frechet and kernel distance, precision, recall and more.

    [bold]Examples[/bold]

      fitv2 evaluate builtin:fashion --reference fashion --num-images 2000

      fitv2 evaluate runs/mine --reference my/images --size 96x96 --size 64x144 --guidance 1 --guidance 1.5

      fitv2 evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception-weights pt_inception.pth

      fitv2 evaluate first/result.json second/result.json

      torchrun --nproc_per_node 8 -m fitv2.cli evaluate runs/mine --reference my/images --size 256x256 -n 50000

    A model's images are kept. After a stop or a kill, the same command continues; without --out, evaluations with other
    metrics or references use the same images. They do not depend on the number of processes. images.jsonl beside them
    lists the class, size and seed of each, with which 'fitv2 sample' makes the same image. Each result records what it
    depends on; results of different protocols, numbers, references or extractors are compared only with --force. In a
    folder that 'fitv2 sample' filled, only the images of its last call count. Features of real images are cached in
    ~/.cache/fitv2 (or FITV2_CACHE), which may be removed at any time.
    """
    if all(name.endswith(".json") for name in names):
        refuse_without_effect(context, {"names", "force", "as_json"}, "on results that are only compared")
        compare(names, force, as_json)
        return
    name, reference = checked(context, names, reference, out)
    of_model = is_model(name)
    if num is not None:
        print("Note: --num and --number are now called --num-images (-n)", file=sys.stderr)

    def given(name: str, value: T) -> T | None:
        """What is not given is left to the model's recommendation."""
        return value if source(context, name) == "COMMANDLINE" else None

    plain = {
        "steps": steps,
        "shift": given("time_shift", time_shift),
        "cache_interval": given("cache_interval", cache_interval),
    }
    plain |= {"solver": solver, "extrapolation": extrapolation, "attention_scale": attention_scale}
    guiding = {"interval": given("guidance_interval", guidance_interval), "guidance_channels": guidance_channels}
    guiding |= {"power": given("guidance_power", guidance_power)}
    # With several scales, settings of guidance are for those that guide.
    scales = guidance or [None]
    some_guide = any(scale != 1 for scale in scales)
    options = [plain | {"guidance": scale} | ({} if some_guide and scale == 1 else guiding) for scale in scales]
    job = Job(
        name=name,
        reference=reference,
        extractor=extractor,
        inception_weights=inception_weights,
        metrics=metrics,
        protocol=protocol,
        sizes=[parse_size_spec(text) for text in size or (["own"] if of_model else [])],
        number=num_images if num_images is not None else num,
        root=OUT,
        out=out,
        save_npz=save_npz,
        model=ModelOptions(autoencoder, precision, seed, options) if of_model else None,
    )
    job.run(device, as_json)


def checked(context: typer.Context, names: list[str], reference: str | None, out: Path | None) -> tuple[str, str]:
    """Returns what is evaluated and the reference. Raises UserError for options that do not go with them."""
    if len(names) > 1:
        raise UserError(f"one model or set of samples at a time, not {len(names)}; only results (.json) are compared")
    (name,) = names
    if context.params["force"]:
        raise UserError("--force is for results (.json) that are compared")
    if not is_model(name):
        refuse_without_effect(context, OF_SAMPLES, f"on images that exist already, such as those of {name}")
    if reference is None:
        raise UserError("give real images to compare with: --reference FOLDER, an .npz archive, or fashion")
    if is_model(reference):
        raise UserError(f"--reference {reference} is a model or a run; give real images to compare with")
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return name, reference


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
