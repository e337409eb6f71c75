"""Images that a model makes for an evaluation.

They lie in shards on disk, so that an interrupted evaluation continues, several processes share the work, and
evaluations share images. Shards hold fixed indices, so neither the number of processes nor an interruption changes
their bytes. If a shard has fewer images than needed, the others are added; made in other company than at once, they may
be rounded differently.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints.model_folder import Pretrained
from ..checkpoints.state_dict import weights_digest
from ..distributed.ranks import Ranks, locked_on_rank0, on_rank0, shard_of_rank
from ..errors import UserError
from ..images.autoencoder import LatentCodec, Pixels
from ..images.make_images import make_images
from ..model.config import NetworkConfig
from ..model.presets import architecture_of
from ..randomness import Purpose, numpy_generator
from ..sampling.generate import computed_tokens, generate, max_tokens
from ..sampling.sizes import latent_size, scaled_size
from ..sampling.spec import SampleSpec, Sampling
from ..system.atomic import remove_drafts, write_file, write_text
from ..system.hashes import json_digest
from ..text import TextEncoder, encoder_digest
from .image_sets import Images, Mode, View
from .inputs import Samples
from .results import CLASSES, LABEL_SCHEME, LABELS, OWN_CHOICE, SEED_SCHEME, class_counts

SHARD = 250
SETTINGS, LIST = "settings.json", "images.jsonl"
# Increased when the same settings give other images. Since 2 the seeds are those of `fitv2 sample`.
FORMAT = 2
# Takes a title and a total, and returns a context whose value takes the number just finished.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

logger = logging.getLogger(__name__)


# Requests


@dataclass(frozen=True)
class SizeSpec:
    """(height, width) in pixels of every image; None for sizes drawn from those that training had of each class.

    scale, turned: A factor on both sides of these, and whether height and width are exchanged.
    """

    pixels: tuple[int, int] | None = None
    scale: float = 1.0
    turned: bool = False

    def __str__(self) -> str:
        if self.pixels is not None:
            return f"{self.pixels[0]}x{self.pixels[1]}"
        return "own" + (f":{self.scale:g}" if self.scale != 1 else "") + ("-turned" if self.turned else "")


def balanced_specs(pretrained: Pretrained, number: int, size: SizeSpec, seed: int, factor: int) -> list[SampleSpec]:
    """Returns `number` requests; the first ones are the same whatever the number.

    Image i is of class i modulo the number of classes and has the seed `seed` + i, so `fitv2 sample` with its class,
    size and seed makes the same image. For a model of text, captions of its training take turns instead, each at the
    size of its own image. The seed also decides which sizes are drawn and the order of captions; `factor` is the number
    of pixels per latent pixel. Raises UserError if a size is not divisible by the patch, or if the model does not know
    the sizes of its training.
    """
    config, texts = pretrained.model.config, drawn_captions(pretrained, number, seed)
    classes, patch = 0 if texts else config.num_classes, config.patch_size
    labels = [i % classes if classes else config.null_label for i in range(number)]
    if size.pixels is not None:
        sizes = [latent_size(size.pixels, factor, patch)] * number
    else:
        drawn = [own for _, own in texts] or _drawn_sizes(pretrained, number, seed)
        sizes = [scaled_size(own, size.scale, patch) for own in drawn]
    if size.turned:
        sizes = [(width, height) for height, width in sizes]
    prompts = [text for text, _ in texts] or [""] * number
    wanted = zip(labels, sizes, prompts, strict=True)
    return [SampleSpec(label, own, seed + i, prompt) for i, (label, own, prompt) in enumerate(wanted)]


def drawn_captions(pretrained: Pretrained, number: int, seed: int) -> list[tuple[str, tuple[int, int]]]:
    """Returns `number` captions of training with the sizes of their images, all of them in turn; none without text."""
    if not pretrained.examples:
        return []
    order = numpy_generator(Purpose.REQUESTS, seed).permutation(len(pretrained.examples))
    return [pretrained.examples[order[i % len(order)]] for i in range(number)]


def _drawn_sizes(pretrained: Pretrained, number: int, seed: int) -> list[tuple[int, int]]:
    """Returns `number` sizes (height, width), each as likely as it was frequent in training of the image's class.

    The shapes (height, width, count) of all classes stand for those of a class without any.
    """
    of_all = [shape for of_class in pretrained.shapes for shape in of_class]
    if not of_all:
        raise UserError("this model does not say which sizes it was trained on; give --size")
    classes = max(pretrained.model.config.num_classes, 1)
    sizes: list[tuple[int, int]] = [(0, 0)] * number
    for label in range(min(classes, number)):
        shapes = (pretrained.shapes[label : label + 1] or [[]])[0] or of_all
        counts = np.array([count for *_, count in shapes], dtype=float)
        generator, places = numpy_generator(Purpose.REQUESTS, seed, label), range(label, number, classes)
        chosen = generator.choice(len(shapes), len(places), p=counts / counts.sum())
        sizes[label::classes] = [shapes[i][:2] for i in chosen.tolist()]
    return sizes


# Their images

# Fields that came later: at their defaults they are left out, so that images made before keep their names.
LATER = {"internal_head", "position_range", "target_blocks", "internal_guidance", "internal_interval", "shift_tokens"}
LATER |= {"upscale_from", "upscale_side", "upscale_time", "window"}


def lasting(settings: NetworkConfig | Sampling) -> dict[str, Any]:
    """Returns the fields of a configuration as names of images and models are made of them."""
    defaults = {field.name: field.default for field in fields(settings)}
    found = {key: v for key, v in asdict(settings).items() if key not in LATER or v != defaults[key]}
    return found | ({"revision": 2} if isinstance(settings, Sampling) and is_revised(settings) else {})


def is_revised(sampling: Sampling) -> bool:
    """Whether earlier versions made other images: those of two passes, and of a cache together with times by size."""
    return sampling.upscale_from is not None or (sampling.cache_interval > 1 and sampling.shift_tokens is not None)


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A model with its name and what goes with it, how it is sampled, and the seed of the first image."""

    name: str
    pretrained: Pretrained
    codec: Pixels | LatentCodec
    precision: str
    seed: int
    samplings: Sequence[Sampling]
    text: TextEncoder | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the images depend on besides sampling and size."""
        config = self.pretrained.model.config
        about = json.dumps([architecture_of(config), lasting(config)], sort_keys=True)
        of_text = {} if self.text is None else {"text_encoder_sha256": encoder_digest(self.text.name)}
        return of_text | {
            "format": FORMAT,
            "model_sha256": weights_digest(self.pretrained.model.state_dict(), about),
            "autoencoder_sha256": self.codec.digest() if isinstance(self.codec, LatentCodec) else None,
            "precision": self.precision,
            "seed": self.seed,
            "labels": LABEL_SCHEME,
            "seeds": SEED_SCHEME,
        }

    def seconds(self, sampling: Sampling, specs: Sequence[SampleSpec]) -> float:
        """Estimates how long these images take, from one model call; 0 if the solver chooses how many it needs."""
        if sampling.model_calls is None or not specs:
            return 0.0
        patch, model = self.pretrained.model.config.patch_size, self.pretrained.model
        tokens = np.array([computed_tokens(spec, sampling, patch) for spec in specs])
        budget = max_tokens(sampling, next(model.parameters()).device)
        few = int((tokens.cumsum() <= budget).sum()) or 1
        kept = {name: getattr(sampling, name) for name in ("solver", "shift", "rope", "window")}
        once = Sampling(steps=1, guidance=1.0, **kept)
        generate(model, specs[:few], once, None, self.text)  # The first call is slower than all others.
        start = time.perf_counter()
        generate(model, specs[:few], once, None, self.text)
        seconds = (time.perf_counter() - start) / (once.model_calls or 1)
        low, high = sampling.interval
        passes = sampling.model_calls * (1 if sampling.guidance == 1 else 1 + high - low)
        return seconds * passes * float(tokens.sum() / tokens[:few].sum())


def make_samples(
    maker: Maker,
    sizes: Sequence[SizeSpec],
    number: int,
    out: Path,
    state: Ranks,
    progress: Progress,
    tell: Callable[[int, float], None],
) -> list[Samples]:
    """Returns `number` samples of each sampling and size, once their images have been made in folders below `out`.

    All processes of `state` share the work. `tell` is called with the number of images that are missing and an estimate
    of the seconds they take, if they would fill a shard.
    """
    sets = [GeneratedImages(maker, sampling, size, number, out) for sampling in maker.samplings for size in sizes]
    missing = [(images.sampling, images.missing()) for images in sets]
    if state.is_main_process and (total := sum(len(specs) for _, specs in missing)) >= SHARD:
        tell(total, sum(maker.seconds(*one) for one in missing) / state.num_processes)
    for images in sets:
        own = sum(shard.stop - shard.start for _, shard in shard_of_rank(images.shards, state))
        with progress(f"making images, {images.size} at guidance {images.sampling.guidance:g}", own) as done:
            images.make(maker, state, done)
    return [Samples(one, np.arange(number), one.size.pixels, str(one.size), one.about) for one in sets]


class GeneratedImages(Images):
    """A model's images in a folder of shards, in the order of the requests; some may still have to be made.

    The folder below `out` is named after all that the images depend on. A shard NUMBER.npz holds up to 250 images,
    uint8 (h, w) or (h, w, 3). images.jsonl has the index, class, size and seed of each image.
    """

    def __init__(self, maker: Maker, sampling: Sampling, size: SizeSpec, number: int, out: Path) -> None:
        factor, names = maker.codec.factor, maker.pretrained.class_names
        self.specs = balanced_specs(maker.pretrained, number, size, maker.seed, factor)
        labels = np.array([spec.label for spec in self.specs], dtype=np.int64)
        sizes = np.array([spec.size for spec in self.specs]) * factor
        super().__init__(maker.name, sizes, labels if names else np.zeros_like(labels), names)
        self.sampling, self.size = sampling, size
        self.settings = maker.settings | {"size": str(size), "sampling": lasting(sampling)}
        self.folder = out / f"{str(size).replace(':', '-')}-{json_digest(self.settings)[:12]}"
        self.shards = [
            (self.folder / f"{start // SHARD:05d}.npz", slice(start, min(start + SHARD, number)))
            for start in range(0, number, SHARD)
        ]
        # For stamps.
        self.about: dict[str, Any] = {
            "model": maker.name,
            "images": str(self.folder),
            "model_calls": sampling.model_calls,
            LABELS: class_counts(labels, maker.pretrained.model.config.num_classes) or OWN_CHOICE,
            CLASSES: list(names) or None,
            "step": maker.pretrained.step,
        }
        self.about |= {key: value for key, value in self.settings.items() if key not in ("format", "size", LABELS)}

    @cached_property
    def digest(self) -> str:
        content = hashlib.sha256()
        for shard in self.shards:
            for image in self.whole(*shard):
                content.update(repr(image.size).encode() + image.tobytes())
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Mode, view: View) -> Iterator[Image.Image]:
        wanted = set(indices)
        for path, shard in self.shards:
            if here := [index - shard.start for index in range(shard.start, shard.stop) if index in wanted]:
                images = self.whole(path, shard)
                yield from (view(images[place].convert(mode)) for place in here)

    def whole(self, path: Path, shard: slice) -> list[Image.Image]:
        """Returns the images of a shard. Raises UserError if it is not complete."""
        images = self.stored(path, shard)
        if len(images) < shard.stop - shard.start:
            raise UserError(f"{path} was removed or damaged; run the same command again")
        return images

    def stored(self, path: Path, shard: slice) -> list[Image.Image]:
        """Returns the first images of a shard, as many as exist and are needed; none of a damaged shard."""
        if not path.is_file():
            return []
        sizes = self.sizes[shard].tolist()
        try:
            with np.load(path) as archive:
                images = [Image.fromarray(archive[f"arr_{i}"]) for i in range(min(len(archive.files), len(sizes)))]
            if any([image.height, image.width] != size for image, size in zip(images, sizes, strict=False)):
                raise UserError("its images have other sizes")
            return images
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s is damaged, and its images are made again (%s)", path, error)
            return []

    def make(self, maker: Maker, state: Ranks, done: Callable[[int], None]) -> None:
        """Completes the shards, this process its part, and returns when all processes have finished.

        Raises UserError if the folder has images of other settings, another run makes images there, or the model makes
        none.
        """
        with locked_on_rank0(self.folder, "a fitv2 evaluate that makes these images"):
            on_rank0(self.begin)
            for path, shard in shard_of_rank(self.shards, state):
                images = self.stored(path, shard)
                done(len(images))
                if missing := self.specs[shard][len(images) :]:
                    model, codec = maker.pretrained.model, maker.codec
                    images += make_images(model, codec, missing, self.sampling, lambda *_: done(1), maker.text)
                    write_file(path, partial(write_shard, images=images))
            state.wait_for_everyone()

    def begin(self) -> None:
        """Prepares the folder, and removes what a kill may have left."""
        path, text = self.folder / SETTINGS, json.dumps(self.settings, indent=1, sort_keys=True)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{self.folder} holds images of other settings; choose another --out")
        write_text(path, text)
        listed, rows = self.folder / LIST, []
        for i, (spec, size) in enumerate(zip(self.specs, self.sizes.tolist(), strict=True)):
            name = self.class_names[spec.label] if self.class_names else None
            row = {"index": i, "class": name, "label": spec.label, "size": size, "seed": spec.seed}
            rows.append(row | ({"prompt": spec.prompt} if spec.prompt else {}))
        if not listed.is_file() or listed.read_bytes().count(b"\n") < len(rows):
            write_text(listed, "".join(json.dumps(row) + "\n" for row in rows))
        remove_drafts(self.folder)

    def missing(self) -> list[SampleSpec]:
        """Returns the requests of shards that do not exist."""
        return [spec for path, shard in self.shards if not path.is_file() for spec in self.specs[shard]]


def write_shard(path: Path, images: Sequence[Image.Image]) -> None:
    """Writes images of any sizes as arrays of an .npz file."""
    with path.open("wb") as file:  # Given a name, numpy would add to it.
        np.savez(file, *map(np.asarray, images))
