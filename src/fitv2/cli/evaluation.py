"""One `fitv2 evaluate`: it checks what is given, makes a model's images, scores all samples and writes the result."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..messages import counted
from .options import ModelOptions, parse_size
from .specs import check_memory, file_name

if TYPE_CHECKING:
    import torch

    from ..evaluation.evaluate import Evaluation, Protocol
    from ..evaluation.requests import SizeSpec
    from ..evaluation.samples import Maker, Progress, Samples
    from ..sampling.spec import Sampling

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
    """Reads HxW, own or own:SCALE, and either of the last two with -turned."""
    from ..evaluation.requests import SizeSpec

    if not text.startswith("own"):
        return SizeSpec(parse_size(text))
    found = re.fullmatch(r"own(?::(\d*\.?\d+))?(-turned)?", text)
    scale = float(found[1] or 1) if found else 0
    if found is None or not 0 < scale < 100:
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH, own, or own:1.5 for enlarged sizes of training")
    return SizeSpec(scale=scale, turned=bool(found[2]))


@dataclass(kw_only=True)
class Job:
    """What a command asks for, and in the first process what it has found.

    Attributes:
        name: The model, or the images.
        number: The number of images of each size; None for the default.
        out: The folder of the result; None for one below `OUT`.
        samplings: Options and guidance of each sampling of a model; none for images that exist already.
        about: All that decides the result.
    """

    name: str
    reference: str
    extractor: str | None
    inception_weights: Path | None
    metrics: list[str]
    protocol: Protocol | None
    sizes: list[SizeSpec]
    number: int | None
    out: Path | None
    save_npz: bool
    seed: int
    samplings: list[tuple[ModelOptions, float | None]]
    samples: list[Samples] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    def run(self, device: str | None, as_json: bool) -> None:
        """Carries it out, together with the other processes if there are any."""
        from ..data.contents import refuse_among
        from ..distributed.ranks import destroy_process_group, join_processes, on_rank0
        from ..evaluation.samples import make_samples
        from .progress import image_progress

        root, number = self.out or OUT, self.number or DEFAULT_NUMBER
        refuse_among(root, Path(self.reference), Path(self.name))
        # Processes finish far apart, and none may give up waiting.
        state = join_processes(device, timedelta(days=30))
        progress = partial(image_progress, shown=state.is_main_process)
        try:
            with ExitStack() as held:
                on_rank0(lambda: self.check(str(state.device), root, progress))
                loaded = self.load(state.device, number) if self.samplings else None
                folder = on_rank0(lambda: self.claim(held))
                if loaded is not None:
                    sizes, to = self.sizes, root / "samples"
                    self.samples = make_samples(*loaded, sizes, number, to, state, progress, tell_seconds)
                    del loaded  # A large model takes gigabytes.
                if state.is_main_process:
                    self.finish(folder, as_json)
        finally:
            destroy_process_group()

    def check(self, device: str, root: Path, progress: Progress) -> None:
        """Finds the mistakes in what is asked for before images are made; for the first process alone."""
        from ..evaluation.comparison import METRICS
        from ..evaluation.evaluate import Evaluation
        from ..evaluation.extractors import load_extractor
        from ..evaluation.features import cache_folder
        from ..evaluation.references import default_extractor, open_reference

        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise UserError(f"there is no metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
        network = self.extractor or default_extractor(self.reference, self.inception_weights)
        self.evaluation = Evaluation(
            extractor=load_extractor(network, device, self.inception_weights),
            reference=open_reference(self.reference, cache_folder()),
            metrics=self.metrics,
            protocol=self.protocol,
            cache=cache_folder(),
            kept=root / "features",
            progress=progress,
        )
        if not self.samplings:
            self.samples = self.find_samples(cache_folder())
            self.about = {"samples": self.samples[0].images.digest, "num": self.number}
        for size in [of_size.size for of_size in self.samples] or [spec.pixels for spec in self.sizes]:
            if self.save_npz and size is None:
                raise UserError("--save-npz writes images of one size, as ADM's evaluator takes them; give --size HxW")
            self.evaluation.protocol_for(size)
        self.about |= self.evaluation.about() | {"size": sorted(map(str, self.sizes))}

    def find_samples(self, cache: Path) -> list[Samples]:
        """Returns images that exist already."""
        from ..evaluation.samples import given_samples
        from ..evaluation.sources import is_fashion, open_images

        if not is_fashion(self.name) and not Path(self.name).exists():
            raise UserError(f"there is no model, folder or archive {self.name!r}; builtin:fashion ships with fitv2")
        sizes = [spec.pixels for spec in self.sizes if spec.pixels is not None]
        if len(sizes) < len(self.sizes):
            raise UserError(f"--size own is for models; the images of {self.name} have sizes of their own")
        return list(given_samples(open_images(self.name, cache), sizes, self.number))

    def load(self, device: torch.device, number: int) -> tuple[Maker, list[Sampling]]:
        """Loads the model and checks how it is sampled."""
        from ..evaluation.requests import balanced_specs
        from ..evaluation.samples import SHARD, Maker

        pretrained, codec, precision = self.samplings[0][0].load(self.name, device)
        samplings = [options.sampling(pretrained, guidance) for options, guidance in self.samplings]
        # Stamps have the precision's older name.
        told = {"fp32": "float32"}.get(precision, precision)
        maker = Maker(name=self.name, pretrained=pretrained, codec=codec, precision=told, seed=self.seed)
        for size in self.sizes:
            few = balanced_specs(pretrained, min(number, SHARD), size, self.seed, codec.factor)
            check_memory(pretrained, few, samplings[0])
        self.about |= maker.settings | {"num": number, "sampling": [asdict(one) for one in samplings]}
        return maker, samplings

    def claim(self, held: ExitStack) -> Path:
        """Returns the folder of this evaluation, reserved for it; for the first process alone."""
        from ..evaluation.results import claimed, own_folder

        folder = self.out or own_folder(OUT, file_name(Path(self.name).resolve().name), self.about)
        held.enter_context(claimed(folder, self.about))
        return folder

    def finish(self, folder: Path, as_json: bool) -> None:
        """Scores all samples, writes what there is to see, and prints it."""
        from ..drawing import write_page
        from ..evaluation.plots import panels, write_sheet
        from ..evaluation.results import PLOT, RESULT, report, write_results
        from ..evaluation.sources import write_archive
        from .score_tables import show_results

        assert self.evaluation is not None
        results = [self.evaluation.score(of_size) for of_size in self.samples]
        write_results(folder / RESULT, results)
        write_page(folder / PLOT, panels(results))
        for of_size, result in zip(self.samples, results, strict=True):
            stem = file_name(result.name)
            write_sheet(folder / f"sheet-{stem}.png", of_size)
            if self.save_npz:
                write_archive(folder / f"samples-{stem}.npz", of_size.images, of_size.chosen.tolist())
        if as_json:
            print(json.dumps(report(results)))
            return
        show_results({"": results})
        print(f"Everything is in {folder / RESULT}, plots in {folder / PLOT}, samples in {folder}/sheet-*.png")


def tell_seconds(images: int, seconds: float) -> None:
    """Says how long a model's images will take."""
    if seconds >= LONG:
        print(f"Making {counted(images, 'image')}: about {seconds / 60:,.0f} minutes", file=sys.stderr, flush=True)
