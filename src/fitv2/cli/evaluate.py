"""`fitv2 evaluate`: how good images are, compared with real ones, at any sizes; and results side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError
from .evaluated import build_evaluation, find_samples, is_model, parse_size_wish
from .given import refuse_without_effect
from .sample import check_memory, file_name
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
    build_sampling,
    load_for_sampling,
)

if TYPE_CHECKING:
    from ..evaluation.run import Evaluation, Samples

OUT = Path("outputs/evaluation")
DEFAULT_NUM = 10_000
DEFAULT_GUIDANCE = 2.0
# What does something where images are made already.
OF_SAMPLES = {"names", "reference", "size", "protocol", "extractor", "inception_weights", "metrics", "num", "device"}
OF_SAMPLES |= {"out", "save_npz", "force", "as_json"}


def evaluate(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="builtin:fashion or the folder of a model, a run, a checkpoint or a saved FiTPipeline; or images: a "
            "folder, an .npz archive (arr_0) or garments as for --reference; or several result.json to compare",
            metavar="MODEL|SAMPLES|RESULT.json...",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="real images: a folder, with a sub-folder per class or none, or pixels of fitv2 prepare; an .npz "
            "archive as ADM has it (arr_0, mu, sigma, mu_s, sigma_s); fashion, the bundled garments; "
            "fashion:train[:FOLDER], all 60000, where Fashion-MNIST is installed or in FOLDER; fashion:test[:FOLDER], "
            "whose statistics ship with fitv2"
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="HEIGHTxWIDTH in pixels, repeatable; for a model also own (the sizes that training had of each class; "
            "the default), own:1.5, own-turned; samples have their own sizes by default"
        ),
    ] = None,
    protocol: Annotated[
        Literal["adm-square", "matched", "centre"] | None,
        typer.Option(
            help="adm-square: the extractor resizes samples and real images whole, which for all but garments "
            "stretches them to a square (default for own sizes and for statistics as the reference); matched: real "
            "images are scaled to cover the size and cropped to it (default otherwise); centre: both are cropped to "
            "the central square",
            show_default=False,
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0 (its distance is called FD-ENLite0), garments (FD-garments), inception (FID); "
            "default: garments with fashion, inception with --inception-weights, else efficientnet-lite0"
        ),
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="pt_inception-2015-12-05 of pytorch-fid, .pth or .safetensors")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="comma-separated: fd (Frechet distance), sfd (the same of spatial features), kid (kernel distance), "
            "cs (classifier score), pr (precision, recall, density, coverage), accuracy (of the requested classes); "
            "with inception they are FID, sFID, KID and Inception Score"
        ),
    ] = "fd,sfd,kid,cs,pr,accuracy",
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "--number",  # torchrun takes the shorter one for its own --numa-binding, also behind -m.
            min=2,
            help=f"images of each size; default {DEFAULT_NUM} from a model, or all samples. The fewer there are, the "
            "larger the Frechet distance; papers use 50000",
        ),
    ] = None,
    guidance: Annotated[
        list[float] | None, typer.Option(help=f"guidance scale, repeatable; default {DEFAULT_GUIDANCE:g}")
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
    seed: Annotated[int, typer.Option(min=0, max=2**40, help="image i has the seed SEED * 1000000 + i")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for the result, the plots and a model's images; default: one per evaluation below "
            f"{OUT}, where evaluations share a model's images",
            show_default=False,
        ),
    ] = None,
    save_npz: Annotated[
        bool, typer.Option("--save-npz", help="also write the samples of each size as an archive for ADM's evaluator")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="compare results that were measured in different ways")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Compare images with real ones: Frechet and kernel distance, precision, recall and more.

    [bold]Examples[/bold]

      fitv2 evaluate builtin:fashion --reference fashion --num 2000

      fitv2 evaluate runs/mine --reference my/pictures --size 96x96 --size 64x144 --guidance 1 --guidance 1.5

      fitv2 evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception-weights pt_inception.pth

      fitv2 evaluate first/result.json second/result.json

      torchrun --nproc_per_node 8 -m fitv2.cli evaluate runs/mine --reference my/pictures --size 256x256 --number 50000

    A model's images are kept. After a stop or a kill, the same command continues; without --out, evaluations with other
    metrics or references use the same images. They do not depend on the number of processes (with torchrun write
    --number, because it takes --num for an option of its own). Each result records what it depends on; results of
    different protocols, numbers, references or extractors are compared only with --force. In a folder that 'fitv2
    sample' filled, only the images of its last call count. Features of real images are cached in ~/.cache/fitv2 (or
    FITV2_CACHE), which may be removed at any time.
    """
    if all(name.endswith(".json") for name in names):
        refuse_without_effect(context, {"names", "force", "as_json"}, "on results that are only compared")
        compare(names, force, as_json)
        return
    if len(names) > 1:
        raise UserError(f"one model or set of samples at a time, not {len(names)}; only results (.json) are compared")
    if force:
        raise UserError("--force goes with results (.json) that are to be compared")
    (name,) = names
    if not is_model(name):
        refuse_without_effect(context, OF_SAMPLES, f"on images that are made already, as those of {name}")
    if reference is None:
        raise UserError("name real pictures to compare with: --reference FOLDER, an .npz archive, or fashion")
    if is_model(reference):
        raise UserError(f"--reference {reference} is a model or a run; name real pictures to compare with")
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    from contextlib import ExitStack
    from datetime import timedelta

    from ..data.contents import refuse_among
    from ..device import choose_precision
    from ..distributed.ranks import destroy_process_group, join_processes, on_rank0
    from ..evaluation.generation import SHARD
    from ..evaluation.home import claimed, own_folder
    from ..evaluation.models import all_of, make_samples
    from ..evaluation.wishes import balanced_wishes
    from .progress import image_progress

    refuse_among(out or OUT, Path(reference), Path(name))
    wanted = [parse_size_wish(text) for text in size or (["own"] if is_model(name) else [])]
    check_archive(save_npz, [wish.pixels for wish in wanted])
    # Processes finish far apart: whoever waits must not give up.
    state = join_processes(device, timedelta(days=30))
    precision = choose_precision(precision, state.device)
    progress = partial(image_progress, shown=state.is_main_process)
    evaluation: Evaluation | None = None
    samples: list[Samples] = []
    about: dict[str, Any] = {}

    def check() -> None:
        """All that can be wrong with what is asked for is found before pictures are made."""
        nonlocal evaluation
        options = (reference, extractor, inception_weights, metrics, protocol, out or OUT, str(state.device), progress)
        evaluation = build_evaluation(*options)
        for wish in wanted:
            evaluation.protocol_for(wish.pixels)
        if not is_model(name):
            samples.extend(find_samples(name, wanted, num, evaluation.cache))
            for of_size in samples:
                evaluation.protocol_for(of_size.size)
            check_archive(save_npz, [of_size.size for of_size in samples])
            about.update(samples=samples[0].pictures.digest, num=num)

    def claim() -> Path:
        """The folder of this evaluation, for the first process alone."""
        about.update(evaluation.about(), size=sorted(map(str, wanted)))
        folder = own_folder(OUT, file_name(Path(name).resolve().name), about) if out is None else out
        held.enter_context(claimed(folder, about))
        return folder

    try:
        with ExitStack() as held:
            on_rank0(check)
            if is_model(name):
                pretrained, codec = load_for_sampling(name, autoencoder, precision, state.device)
                plain = {"steps": steps, "shift": time_shift, "cache_interval": cache_interval, "solver": solver}
                plain |= {"extrapolation": extrapolation, "attention_scale": attention_scale}
                guiding = {
                    "interval": guidance_interval,
                    "power": guidance_power,
                    "guidance_channels": guidance_channels,
                }
                scales = guidance or [DEFAULT_GUIDANCE]
                # Of several scales, how guidance acts is a matter of those that guide.
                some_guide = any(scale != 1 for scale in scales)
                samplings = [
                    build_sampling(
                        pretrained, **plain, guidance=scale, **({} if some_guide and scale == 1 else guiding)
                    )
                    for scale in scales
                ]
                for wish in wanted:
                    few = balanced_wishes(pretrained, min(num or SHARD, SHARD), wish, seed, codec.factor)
                    check_memory(pretrained, few, samplings[0])
                # The word that results have.
                settings = all_of(pretrained, codec, {"fp32": "float32"}.get(precision, precision), seed)
                about.update(settings, num=num or DEFAULT_NUM, sampling=[asdict(one) for one in samplings])
                folder = on_rank0(claim)
                samples = make_samples(
                    pretrained,
                    codec,
                    samplings,
                    wanted,
                    num or DEFAULT_NUM,
                    name=name,
                    settings=settings,
                    out=(out or OUT) / "samples",
                    state=state,
                    progress=progress,
                )
                del pretrained, codec  # Gigabytes, of a large model.
            else:
                folder = on_rank0(claim)
            if state.is_main_process:
                finish(evaluation, samples, folder, save_npz, as_json)
    finally:
        destroy_process_group()


def check_archive(save_npz: bool, sizes: list[tuple[int, int] | None]) -> None:
    if save_npz and None in sizes:
        raise UserError("--save-npz writes pictures of one size, as ADM's evaluator takes them; give --size HxW")


def finish(evaluation: Evaluation, samples: list[Samples], out: Path, save_npz: bool, as_json: bool) -> None:
    """Scores all samples, writes what there is to see, and prints it."""
    from ..drawing import write_page
    from ..evaluation.home import PLOT, RESULT
    from ..evaluation.plots import panels
    from ..evaluation.results import report, write_results
    from ..evaluation.sheet import write_archive, write_sheet
    from .score_tables import show_results

    results = [evaluation.score(of_size) for of_size in samples]
    write_results(out / RESULT, results)
    write_page(out / PLOT, panels(results))
    for of_size, result in zip(samples, results, strict=True):
        stem = file_name(result.name)
        write_sheet(out / f"sheet-{stem}.png", of_size)
        if save_npz:
            write_archive(out / f"samples-{stem}.npz", of_size)
    if as_json:
        print(json.dumps(report(results)))
        return
    show_results({"": results})
    print(f"Everything is in {out / RESULT}, plots in {out / PLOT}, samples in {out}/sheet-*.png")


def compare(names: list[str], force: bool, as_json: bool) -> None:
    """Prints results of several files side by side; raises ValueError where they were measured in different ways."""
    from ..evaluation.results import difference, read_results, remarks, report
    from .score_tables import show_results

    files = {name: read_results(Path(name)) for name in names}
    found = difference(files)
    if found is not None and not force:
        raise UserError(f"these results are not comparable, for they differ in {found} (--force shows them anyway)")
    if as_json:
        print(json.dumps({name: report(results) for name, results in files.items()}))
        return
    show_results(files)
    for remark in remarks(files):
        print(f"Note: {remark}")
    if found is not None:
        print(f"Not comparable: they differ in {found}")
