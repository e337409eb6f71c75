"""Under which circumstances the figures of a study came about: all that somebody needs to know who doubts them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import counted
from .conditions import KINDS, SAMPLERS
from .tables import REAL
from .views import extractor_of

if TYPE_CHECKING:
    from .report import Report

# Of a record's, what a table of all studies tells.
CIRCUMSTANCES = ("data", "model", "training", "score", "machine")
MACHINE = ("device", "processor")
PRECISIONS = {"bf16": "bfloat16 autocast of float32 weights", "fp32": "float32"}


def real_lines(report: Report) -> Iterator[str]:
    """How the last rows come about, and what a view does to real pictures."""
    if report.real is None:
        return
    yield (
        f"{REAL.capitalize()} (last rows): at random as many of a view as a model makes, of each class so many and at "
        "most half, against all others. A model that does no worse is as good as can be seen here"
    )
    for name, place in report.real.places.items():
        found = [] if place.recognised is None else [f"{100 * place.recognised:.1f} % of real pictures are recognised"]
        if place.cut is not None and place.cut[1] > 0:
            mean, most = place.cut
            found.append(f"the crop leaves out {100 * mean:.0f} % of a picture on average, {100 * most:.0f} % at most")
        if found:
            yield f"{name}: {'; '.join(found)}"
    if report.real.croppable is not None:
        shares = ", ".join(f"{100 * share:.0f} % ({name})" for name, share in report.real.croppable.items())
        yield (
            "Mixed preprocessing crops only pictures of which both sides exceed the square of the token budget, and "
            f"never makes a square of the others; here it can crop {shares}"
        )


def condition_lines(report: Report) -> Iterator[str]:
    """All that somebody needs to know who doubts the figures."""
    study = report.study
    evaluation, extractor = study.evaluation, extractor_of(study.evaluation.extractor)
    views = "; ".join(f"{view}: {as_words(changes)}" for view, changes in evaluation.views.items())
    done = sum(len(runs) for runs in report.records.values())
    yield f"Command: `{report.command}`; `{report.command} --report` makes this page and its plots anew, without runs"
    number, seeds = len(study.variants), counted(study.seeds, "seed")
    yield f"Runs: {done} of {number * study.seeds}, {counted(number, 'variant')} with {seeds} each; {seeded(report)}"
    yield f"Recipe: `{study.recipe}`" + (f" with {as_words(study.set)}" if study.set else "") + f"; {training(report)}"
    yield from scale_lines(report)
    yield (
        f"Curves: {counted(len(evaluation.points), 'point')} and the last step, {evaluation.images} pictures each, "
        f"{evaluation.point.name}; the end: {evaluation.final_images} pictures under each condition; averaged weights"
    )
    yield (
        "Reference: the training pictures as a view has them, in ADM's manner, so memorising is not punished; "
        f"the shapes asked for are those of the view ({views})"
    )
    yield from real_lines(report)
    yield (
        f"Scores: {extractor.score}, the Frechet distance of features of `{extractor.name}` in 8-bit pictures "
        f"({extractor.resize}), which few pictures bias upwards: compare it only here, at equal numbers. Recognised: "
        "the share whose top-1 class is the one asked for"
    )
    precisions = dict.fromkeys(record.recipe["training"]["precision"] for record in report.all)
    yield f"Precision: {' and '.join(PRECISIONS[precision] for precision in precisions)}, in training and sampling"
    yield "The noise of a picture is fixed by its number and the seed, alike for all variants"
    for name in dict.fromkeys(name for record in report.all for name in record.machine):
        yield f"{name}: " + "; ".join(dict.fromkeys(record.machine.get(name, "unknown") for record in report.all))
    yield (
        "Seconds are of training steps alone, without scoring; runs shared the machine with each other, which CPU "
        "seconds show less. Operations: of matrix products with attention, of forward and backward pass, by formula"
    )


def seeded(report: Report) -> str:
    """What follows the seed of a training."""
    if report.earlier:
        return "weights and data order follow the seed; times, noise and dropped labels did not, in earlier versions"
    return "weights, data order, times, noise and dropped labels follow the seed"


def circumstances(report: Report) -> dict[str, str]:
    """The same for a table of all studies."""
    records = report.all
    machines = dict.fromkeys(", ".join(r.machine.get(key, "unknown") for key in MACHINE) for r in records)
    told = {
        "data": data(report),
        "model": f"{ends([r.cost['parameters'] / 1e6 for r in records], '.3g')} million parameters",
        "training": training(report),
        "score": f"{extractor_of(report.study.evaluation.extractor).score}, {report.point}",
        "machine": "; ".join(machines),
    }
    return {key: told[key] for key in CIRCUMSTANCES}


def data(report: Report) -> str:
    """What is trained on, without the folders that lead to it."""
    first = report.all[0]
    source, classes = Path(first.recipe["data"]["source"]).name, first.cost["classes"]
    tokens = ends([r.recipe["data"]["max_tokens"] for r in report.all], ",.0f")
    of = f" of {classes:.0f} classes" if classes else ""
    return f"{source}, {first.cost['pictures']:,.0f} pictures{of}, at most {tokens} tokens"


def training(report: Report) -> str:
    """How long the trainings were."""
    steps = ends([r.recipe["training"]["steps"] for r in report.all], ",.0f")
    epochs = ends([r.cost["epochs"] for r in report.all], ".3g")
    pictures = ends([r.cost["pictures_per_step"] for r in report.all], ".3g")
    return f"{steps} steps of {pictures} pictures, {epochs} epochs"


def ends(values: Sequence[float], form: str) -> str:
    """The lowest and the highest, or one where they read alike."""
    return " to ".join(dict.fromkeys(f"{value:{form}}" for value in (min(values), max(values))))


def scale_lines(report: Report) -> Iterator[str]:
    """What is small or unequal here, plainly."""
    of_all = circumstances(report)
    yield (
        f"**Small**: {of_all['model']} (FiTv2-B/2 has 128, FiTv2-XL/2 671), {of_all['training']}, on {of_all['data']}; "
        "the paper has 400 to 2,000 thousand steps of 256 pictures of ImageNet. What holds here may fail there, and "
        "the other way"
    )
    by_rate: dict[float, list[str]] = {}
    for variant, runs in report.records.items():
        for record in list(runs.values())[:1]:
            by_rate.setdefault(record.recipe["training"]["learning_rate"], []).append(variant)
    most, *others = sorted(by_rate, key=lambda rate: -len(by_rate[rate]))
    rates = f"{most:g}" + "".join(f", and {rate:g} for {', '.join(by_rate[rate])}" for rate in others)
    yield f"**Learning rate**: {rates}; the best one of a variant may be another"
    samplers = SAMPLERS | report.study.evaluation.samplers
    trained = dict.fromkeys(KINDS[report.study.recipe_of(variant, 0).model.prediction] for variant in report.records)
    words = {kind: f"{samplers[kind].steps} steps of {samplers[kind].solver}" for kind in trained}
    yield f"**Sampling**: {', '.join(f'{text} where a network predicts {kind}' for kind, text in words.items())}" + (
        "; between models of both kinds the figures compare objective and sampler together" if len(words) > 1 else ""
    )


def as_words(changes: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in changes.items()) or "as the recipe has them"
