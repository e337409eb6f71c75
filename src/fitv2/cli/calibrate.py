"""`fitv2 calibrate`: which way of sampling suits sizes beyond those of training, measured and kept with the model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..system.atomic import write_text
from .options import Json, ModelOptions, out_option
from .output import show, show_table
from .requests import file_name
from .run_evaluation import Request, is_model, load, open_all, parse_size_spec, tell_seconds

if TYPE_CHECKING:
    from ..checkpoints.model_folder import Pretrained
    from ..evaluation.inputs import Samples

OUT = Path("outputs/calibration")
SIZES = ("own:1.43", "own:2")
ONE_PASS, TWO, ENLARGED = "one pass", "two passes", "enlarged alone"
EXTRAPOLATIONS = ("vision-pi", "vision-ntk", "vision-yarn")
TIMES = (0.4, 0.55, 0.7, 0.85)
# Distances up to this factor apart score alike.
ALIKE = 1.03
# From here on the second pass changes nothing that could be seen.
END = 0.99
TABLE, SHEET, SHOWN = "calibration.json", "sheet.png", 8


def calibrate(
    model: Annotated[str, typer.Argument(help="a model folder, a run, or builtin:fashion")],
    reference: Annotated[
        str, typer.Option("--reference", "-r", help="real images, as for fitv2 evaluate", show_default=False)
    ],
    size: Annotated[
        list[str] | None,
        typer.Option("--size", "-s", help=f"as for fitv2 evaluate; default: {' and '.join(SIZES)}"),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", min=20, help="images for each size and method")
    ] = 200,
    steps: Annotated[int | None, typer.Option(min=1, help="solver steps; default: as in sample")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps, xpu or cpu; default: the best")] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="write one or two passes into the model's sampling.json")
    ] = True,
    out: Annotated[Path | None, out_option(help=f"folder for table, sheet and images; default: in {OUT}")] = None,
    as_json: Json = False,
) -> None:
    """Compare methods for sizes beyond training, and make one or two passes, whichever is better, the model's default.

    [bold]Examples[/bold]

      fitv2 calibrate runs/mine --reference my/images
      fitv2 calibrate builtin:fashion --reference fashion --size own:1.43 --num-images 100

    The methods are one pass, with the original positions or an extrapolation, and two passes: a small image is
    enlarged, and sampling continues from one of several times. "Enlarged alone" only enlarges the small image, for
    comparison. An extrapolation is never stored: if it is best, one pass becomes the default; pass --extrapolation
    yourself. Images of training sizes are sampled as before. The same command continues after an interruption.
    """
    from ..distributed.ranks import Ranks
    from ..evaluation.generated import make_samples
    from ..system.device import choose_device
    from ..system.locks import locked
    from .progress import image_progress

    if not is_model(model):
        raise UserError(f"{model} is not a model; name a model folder, a run, or builtin:fashion")
    out, progress = out or OUT / file_name(Path(model).resolve().name), partial(image_progress, shown=True)
    where = choose_device(device)
    ways = ways_of(ModelOptions(steps=steps, device=device), *facts_of(model))
    request = Request(
        name=model,
        reference=reference,
        metrics=["fd", "accuracy"],
        sizes=[parse_size_spec(text) for text in size or SIZES],
        number=num_images,
        out=out,
        samplings=[(options, None) for options in ways.values()],
    )
    with locked(out, "a fitv2 calibrate"):
        evaluation, _, _ = open_all(request, out, str(where), progress)
        maker = load(request, num_images, where)
        made = out / "samples", Ranks(0, 1, where), progress, tell_seconds
        samples = make_samples(maker, request.sizes, num_images, *made)
        named = [(name, str(one)) for name in ways for one in request.sizes]
        rows = [
            {"way": name, "size": text, **evaluation.score(one).scores}
            for (name, text), one in zip(named, samples, strict=True)
        ]
        best = best_way(rows)
        write_sheet(out / SHEET, named, samples)
        report = {"model": model, "reference": reference, "rows": rows, "best": best}
        write_text(out / TABLE, json.dumps(report, indent=1))
    lines = keep_best(model, maker.pretrained, ways[best], best, keep)
    if not as_json:
        tell(rows, best)
        lines.insert(0, f"Images side by side are in {out / SHEET}, all figures in {out / TABLE}")
    show(report, lines, as_json)


def ways_of(options: ModelOptions, tokens: int, extrapolates: bool) -> dict[str, ModelOptions]:
    """Returns the ways to sample, by name.

    tokens: of the largest image of training. extrapolates: whether the positions of the model can be changed.
    """
    ways = {ONE_PASS: replace(options, upscale_from=0)}
    if extrapolates:
        ways |= {name: replace(options, upscale_from=0, extrapolation=name) for name in EXTRAPOLATIONS}
    ways |= {f"{TWO}, {t:g}": replace(options, upscale_from=tokens, upscale_time=t) for t in TIMES}
    return ways | {ENLARGED: replace(options, upscale_from=tokens, upscale_time=END)}


def facts_of(model: str) -> tuple[int, bool]:
    """Returns the tokens of the largest image of training, and whether the positions of the model can be changed.

    Raises UserError if the model does not know its sizes.
    """
    from .options import load_any

    pretrained = load_any(model, None)
    config, tokens = pretrained.model.config, pretrained.most_tokens
    if tokens is None or config.fixed_grid is not None:
        raise UserError(f"{model} has one size, or does not say which sizes it was trained on: nothing to calibrate")
    return tokens, not config.position_range


def best_way(rows: list[dict[str, Any]]) -> str:
    """Returns the way of the least geometric mean of the Frechet distance over the sizes.

    Of two passes that score alike, the one that begins earliest: it makes more new detail, which extractors that shrink
    images do not see.
    """
    logs: dict[str, list[float]] = {}
    for row in rows:
        if row["way"] != ENLARGED:
            logs.setdefault(row["way"], []).append(math.log(max(row["fd"], 1e-9)))
    means = {way: sum(own) / len(own) for way, own in logs.items()}
    best = min(means, key=means.__getitem__)
    alike = [way for way in means if way.startswith(TWO) and means[way] <= means[best] + math.log(ALIKE)]
    return alike[0] if best.startswith(TWO) else best


def write_sheet(path: Path, named: list[tuple[str, str]], samples: list[Samples]) -> None:
    """Writes the first images of each way and size, a row each."""
    from ..images.sheets import contact_sheet, save_sheet

    images, captions = [], []
    for (way, size), of_size in zip(named, samples, strict=True):
        chosen = of_size.chosen[:SHOWN].tolist()
        images += of_size.images.read(chosen, "RGB", lambda image: image)
        captions += [f"{way} {size}"[:22]] * len(chosen)
    save_sheet(contact_sheet(images, captions, columns=SHOWN), path)


def tell(rows: list[dict[str, Any]], best: str) -> None:
    """Prints the table."""
    cells = []
    for row in sorted(rows, key=lambda row: row["size"]):
        accuracy = "-" if row.get("accuracy") is None else f"{100 * row['accuracy']:.1f} %"
        way = row["way"] + (" (best)" if row["way"] == best else "")
        cells.append([row["size"], way, f"{row['fd']:.3g}", accuracy])
    show_table(["size", "way", "Frechet distance", "accuracy"], cells, words=["size", "way"])


def keep_best(model: str, pretrained: Pretrained, options: ModelOptions, best: str, keep: bool) -> list[str]:
    """Makes one or two passes, if they are best, the default of a model folder, without former advice of two passes.

    Returns lines that say which options the best way needs, and what was kept.
    """
    from ..checkpoints.model_folder import SAMPLING, files_of
    from ..sampling.spec import TWO_PASSES

    sampling = options.sampling(pretrained, None, 1)
    passes = {key: value for key in TWO_PASSES if (value := getattr(sampling, key)) is not None}
    if sampling.upscale_from is None:
        passes, chosen = {}, "" if options.extrapolation is None else f"--extrapolation {options.extrapolation}"
    else:
        chosen = f"--upscale-from {sampling.upscale_from} --upscale-time {sampling.upscale_time:g}"
    lines = [f"Best is {best}{chosen and f': {chosen}'}"]
    folder = files_of(Path(model))[0].parent
    if not keep:
        return lines
    if not (folder / "config.json").is_file():
        return [*lines, f"Nothing was kept, as {model} is no model folder: give fitv2 sample the options above"]
    kept = {key: value for key, value in pretrained.recommended.items() if key not in TWO_PASSES} | passes
    write_text(folder / SAMPLING, json.dumps(kept))
    told = f"{folder / SAMPLING} now recommends {'two passes' if passes else 'one pass'}"
    if options.extrapolation is None:
        return [*lines, f"{told}; fitv2 sample uses this by default"]
    return [*lines, f"{told}, as it cannot hold an extrapolation: give fitv2 sample the option above"]
