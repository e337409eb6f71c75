"""Draws what options and sizes do to images of the built-in model, in a minute on two cores.

python tools/draw_sampling.py docs/images
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.images.sheets import contact_sheet, to_image
from fitv2.model.config import FiTConfig
from fitv2.sampling.generate import generate
from fitv2.sampling.sizes import scaled_size
from fitv2.sampling.spec import SampleSpec, Sampling

GUIDANCE = {
    **{f"guidance {scale:g}": Sampling(guidance=scale) for scale in (1.0, 1.5, 2.0, 4.0)},
    "1.8, 0.3 to 0.9": Sampling(guidance=1.8, interval=(0.3, 0.9)),
}
FACTORS = (1.0, 1.2, 1.43, 2.0)
METHODS = ("none", "vision-pi", "vision-ntk", "vision-parts", "vision-yarn")
PRETRAINED = load_pretrained("builtin:fashion")


def specs(classes: Sequence[str], factors: Sequence[float] = (1.0,)) -> Iterator[SampleSpec]:
    """Yields a request for each class and factor on its most frequent size; those of a class have the same seed."""
    for label in map(PRETRAINED.class_names.index, classes):
        height, width, _ = PRETRAINED.shapes[label][0]
        for factor in factors:
            size = scaled_size((height, width), factor, PRETRAINED.model.config.patch_size)
            yield SampleSpec(label, size, seed=label)


def guidance() -> Image.Image:
    """A row for each class, a column for each scale."""
    wanted = [*specs(("trouser", "dress", "sandal", "bag"))]
    columns = [generate(PRETRAINED.model, wanted, sampling) for sampling in GUIDANCE.values()]
    images = [to_image(column[row]) for row in range(len(wanted)) for column in columns]
    return contact_sheet(images, [*GUIDANCE] * len(wanted), columns=len(columns))


def methods() -> Image.Image:
    """A row for each method, a column for each class and factor."""
    wanted, images, captions = [*specs(("trouser", "coat"), FACTORS)], [], []
    config = PRETRAINED.model.config
    assert isinstance(config, FiTConfig)
    for method in METHODS:
        sampling = PRETRAINED.sampling(rope=config.rope.named(method))
        images += map(to_image, generate(PRETRAINED.model, wanted, sampling))
        captions += [f"{method} {factor:g}x" for factor in FACTORS] * 2
    images += map(to_image, generate(PRETRAINED.model, wanted, PRETRAINED.sampling()))
    captions += [f"two passes {factor:g}x" for factor in FACTORS] * 2
    return contact_sheet(images, captions, columns=len(wanted))


def sizes() -> Image.Image:
    """A row for each class, a column for each factor in one pass; the last one has the turned size."""
    wanted, captions = [], []
    for name in PRETRAINED.class_names:
        own, *larger = specs((name,), FACTORS)
        wanted += [own, *larger, replace(own, size=own.size[::-1])]
        captions += [f"{name} {factor:g}x" for factor in FACTORS] + [f"{name} turned"]
    made = generate(PRETRAINED.model, wanted, Sampling())
    return contact_sheet([*map(to_image, made)], captions, columns=len(FACTORS) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for the pictures (PNG)")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in {"guidance": guidance, "methods": methods, "sizes": sizes}.items():
        draw().save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
