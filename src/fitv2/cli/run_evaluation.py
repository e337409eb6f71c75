"""One `fitv2 evaluate`: it checks what is given, makes a model's images, scores all samples and writes the result."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..messages import advised, check_known, counted
from .options import ModelOptions, parse_size
from .requests import check_memory, file_name

if TYPE_CHECKING:
    import torch

    from ..evaluation.evaluate import ComparisonProtocol, Evaluation
    from ..evaluation.generated import Maker, Progress, SizeSpec
    from ..evaluation.inputs import Samples
    from ..evaluation.results import Result

# The folder of all evaluations.
OUT = Path("outputs/evaluation")
DEFAULT_NUMBER = 10_000
# The time that images take is announced from this many seconds on.
LONG = 60


def is_model(name: str) -> bool:
    """Whether it is a name of a model, or of a run that has none yet; else it should be images."""
    from ..checkpoints.model_folder import is_own_model

    # Files of a saved pipeline, a checkpoint or a run; prepared images have shards as well.
    marks = ("model_index.json", "ema.safetensors", "shards/.metadata", "log.jsonl")
    return is_own_model(name) or any((Path(name) / mark).exists() for mark in marks)


def parse_size_spec(text: str) -> SizeSpec:
    """Reads HEIGHTxWIDTH, own or own:SCALE, and either of the last two with -turned."""
    from ..evaluation.generated import SizeSpec

    if not text.startswith("own"):
        return SizeSpec(parse_size(text))
    found = re.fullmatch(r"own(?::(\d*\.?\d+))?(-turned)?", text)
    scale = float(found[1] or 1) if found else 0
    if found is None or not 0 < scale < 100:
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH, own, or own:1.5 for enlarged sizes of training")
    return SizeSpec(scale=scale, turned=bool(found[2]))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command asks for.

    Attributes:
        name: The model, or the images.
        number: The number of images of each size; None for the default.
        out: The folder of the result; None for one below `OUT`.
        samplings: Options and guidance of each sampling of a model; none for images that exist already.
    """

    name: str
    reference: str
    extractor: str | None = None
    inception_weights: Path | None = None
    metrics: list[str]
    protocol: ComparisonProtocol | None = None
    sizes: list[SizeSpec]
    number: int | None
    out: Path | None
    save_npz: bool = False
    seed: int = 0
    samplings: list[tuple[ModelOptions, float | None]]


def run(request: Request, device: str | None, as_json: bool) -> None:
    """Carries out an evaluation, together with the other processes if there are any; the first alone scores."""
    from ..data.contents import refuse_among
    from ..distributed.ranks import destroy_process_group, join_processes, on_rank0, only_on_rank0
    from ..evaluation.generated import lasting, make_samples
    from .progress import image_progress

    root, number = request.out or OUT, request.number or DEFAULT_NUMBER
    refuse_among(root, Path(request.reference), Path(request.name))
    # Processes finish far apart, and none may give up waiting.
    ranks = join_processes(device, timedelta(days=30))
    progress = partial(image_progress, shown=ranks.is_main_process)
    try:
        with ExitStack() as held:
            # Mistakes are found before a model is loaded.
            opened = only_on_rank0(lambda: open_all(request, root, str(ranks.device), progress))
            evaluation, samples, about = opened or (None, [], {})
            maker = load(request, number, ranks.device) if request.samplings else None
            if maker is not None:
                about |= maker.settings | {"num": number, "sampling": [lasting(one) for one in maker.samplings]}
            folder = on_rank0(lambda: reserve(request, about, held))
            if maker is not None:
                samples = make_samples(maker, request.sizes, number, root / "samples", ranks, progress, tell_seconds)
                del maker  # A large model takes gigabytes.
            if evaluation is not None:
                finish(folder, [evaluation.score(one) for one in samples], samples, request.save_npz, as_json)
    finally:
        destroy_process_group()


def open_all(
    request: Request, root: Path, device: str, progress: Progress
) -> tuple[Evaluation, list[Samples], dict[str, Any]]:
    """Returns the evaluation, the samples if they are images that exist already, and what decides the result so far."""
    from ..evaluation.comparison import METRICS
    from ..evaluation.evaluate import Evaluation, cache_folder
    from ..evaluation.extractors import load_extractor
    from ..evaluation.inputs import default_extractor, open_reference

    for metric in request.metrics:
        check_known("metric", metric, METRICS)
    network = request.extractor or default_extractor(request.reference, request.inception_weights)
    evaluation = Evaluation(
        extractor=load_extractor(network, device, request.inception_weights),
        reference=open_reference(request.reference, cache_folder()),
        metrics=request.metrics,
        protocol=request.protocol,
        cache=cache_folder(),
        kept=root / "features",
        progress=progress,
    )
    samples = [] if request.samplings else find_samples(request, cache_folder())
    for size in [of_size.size for of_size in samples] or [spec.pixels for spec in request.sizes]:
        if request.save_npz and size is None:
            raise UserError(
                "--save-npz writes images of one size, as ADM's evaluator takes them; give --size HEIGHTxWIDTH"
            )
        evaluation.protocol_for(size)
    about = evaluation.about() | {"size": sorted(map(str, request.sizes))}
    if samples:
        about |= {"samples": samples[0].images.digest, "num": request.number}
    return evaluation, samples, about


def find_samples(request: Request, cache: Path) -> list[Samples]:
    """Returns images that exist already."""
    from ..checkpoints.model_folder import names_like
    from ..data.emoji import is_emoji
    from ..evaluation.image_sets import is_fashion, open_images
    from ..evaluation.inputs import given_samples

    name = request.name
    if not (is_fashion(name) or is_emoji(name) or Path(name).exists()):
        advice = advised(name, names_like(name), "give a folder, or builtin:fashion, which ships with fitv2")
        raise UserError(f"there is no model, folder or archive {name!r}{advice}")
    sizes = [spec.pixels for spec in request.sizes if spec.pixels is not None]
    if len(sizes) < len(request.sizes):
        raise UserError(f"--size own is for models; the images of {name} have sizes of their own")
    return list(given_samples(open_images(name, cache), sizes, request.number))


def load(request: Request, number: int, device: torch.device) -> Maker:
    """Loads the model and checks how it is sampled."""
    from ..evaluation.generated import SHARD, Maker, balanced_specs

    pretrained, codec, text, precision = request.samplings[0][0].load(request.name, device)
    maker = Maker(
        name=request.name,
        pretrained=pretrained,
        codec=codec,
        text=text,
        # Stamps have the precision's older name.
        precision={"fp32": "float32"}.get(precision, precision),
        seed=request.seed,
        samplings=[options.sampling(pretrained, guidance, codec.factor) for options, guidance in request.samplings],
    )
    for size in request.sizes:
        few = balanced_specs(pretrained, min(number, SHARD), size, request.seed, codec.factor)
        check_memory(pretrained, few, maker.samplings[0], codec.factor, text)
    return maker


def reserve(request: Request, about: dict[str, Any], held: ExitStack) -> Path:
    """Returns the folder of this evaluation, reserved for it until `held` ends."""
    from ..evaluation.results import reserved
    from ..system.hashes import json_digest

    folder = request.out or OUT / f"{file_name(Path(request.name).resolve().name)}-{json_digest(about)[:12]}"
    held.enter_context(reserved(folder, about))
    return folder


def finish(folder: Path, results: list[Result], samples: list[Samples], save_npz: bool, as_json: bool) -> None:
    """Writes what there is to see, and prints it."""
    from ..drawing import write_page
    from ..evaluation.image_sets import write_archive
    from ..evaluation.inputs import write_sheet
    from ..evaluation.results import PLOT, RESULT, panels, report, write_results
    from .score_tables import show_results

    write_results(folder / RESULT, results)
    if drawn := panels(results):  # Samples without classes have no accuracy, which may be all that was asked for.
        write_page(folder / PLOT, drawn)
    for of_size, result in zip(samples, results, strict=True):
        stem = file_name(result.name)
        write_sheet(folder / f"sheet-{stem}.png", of_size)
        if save_npz:
            write_archive(folder / f"samples-{stem}.npz", of_size.images, of_size.chosen.tolist())
    if as_json:
        print(json.dumps(report(results)))
        return
    show_results({"": results})
    plots = f" plots in {folder / PLOT}," if drawn else ""
    print(f"Everything is in {folder / RESULT},{plots} samples in {folder}/sheet-*.png")


def tell_seconds(images: int, seconds: float) -> None:
    """Says how long a model's images will take."""
    if seconds >= LONG:
        print(f"Making {counted(images, 'image')}: about {seconds / 60:,.0f} minutes", file=sys.stderr, flush=True)
