"""Checks a model of drawings: does it draw what the prompt says, at any size, in its place, without copying?

    python tools/check_drawings.py MODEL --out checks

Writes checks/checks.json and checks/nearest.png, and prints

- how many images of trained names are recognised, at each size;
- whether names that were never trained land in their group, against chance and against shuffled prompts;
- how often two things of one prompt are each in the right half;
- the nearest training drawings of 32 images, by the features of the judge: side by side on nearest.png.

The judge is the extractor "drawings". For comparison, the tool also prints how often such a judge is right on real
drawings of a set that it was not fitted to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fitv2.cli.options import ModelOptions, parse_size
from fitv2.data.canvas_layout import with_article
from fitv2.data.emoji import cutouts, read_drawings
from fitv2.evaluation.extractors import DrawingExtractor, extract
from fitv2.images.make_images import make_images
from fitv2.images.sheets import contact_sheet, save_sheet
from fitv2.sampling.sizes import latent_size
from fitv2.sampling.spec import SampleSpec
from fitv2.system.atomic import write_text
from fitv2.system.device import choose_device

SIZES = ("64x64", "128x128", "64x128", "128x64", "64x192", "192x64", "192x192")
PAIRS = 64, 128
SHOWN = 32


class Checks:
    """A model and its judge; number: images of each check and size."""

    def __init__(self, model: str, number: int, seed: int, drawings: Path | None, steps: int | None) -> None:
        device = choose_device()
        options = ModelOptions(steps=steps)
        self.loaded, self.number, self.seed = options.load(model, device), number, seed
        self.sampling = options.sampling(self.loaded.pretrained, None, self.loaded.codec.factor)
        self.judge = DrawingExtractor(str(device))
        self.names = list(self.judge.class_names or ())
        self.drawings = read_drawings(drawings)
        self.group_of = {drawing.label: drawing.group for drawing in self.drawings}
        known = [drawing.label for drawing in self.drawings if drawing.label in self.names]
        held_back = {drawing.label for drawing in self.drawings if drawing.held_back}
        order = np.random.default_rng(seed).permutation(sorted(set(known)))
        self.trained = [str(name) for name in order if name not in held_back]
        self.untrained = [str(name) for name in order if name in held_back]

    def draw(self, prompts: Sequence[str], size: tuple[int, int]) -> list[Image.Image]:
        """Returns an image of each prompt in a size of pixels."""
        config, factor = self.loaded.pretrained.model.config, self.loaded.codec.factor
        latent = latent_size(size, factor, config.patch_size)
        specs = [SampleSpec(config.null_label, latent, self.seed + i, prompt) for i, prompt in enumerate(prompts)]
        model, codec = self.loaded.pretrained.model, self.loaded.codec
        return make_images(model, codec, specs, self.sampling, text=self.loaded.text)

    def features_of(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Returns pooled features and the probabilities of names."""
        found = list(extract(self.judge, (image.convert("RGB") for image in images), lambda count: None))
        return torch.cat([one.pooled for one in found]), torch.cat([one.probabilities for one in found])

    def recognised(self, images: Sequence[Image.Image], wanted: Sequence[str]) -> dict[str, float]:
        """Returns the fractions of images whose wanted name is the likeliest, and among the five likeliest."""
        best = self.features_of(images)[1].topk(5).indices
        right = best == torch.tensor([self.names.index(name) for name in wanted])[:, None]
        return {"first": float(right[:, 0].double().mean()), "five": float(right.any(1).double().mean())}

    def at_sizes(self, sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
        names = [self.trained[i % len(self.trained)] for i in range(self.number)]
        prompts = [with_article(name) for name in names]
        return {f"{h}x{w}": self.recognised(self.draw(prompts, (h, w)), names) for h, w in sizes}

    def of_untrained_names(self, size: tuple[int, int]) -> dict[str, float]:
        """Returns how often the group is right, by chance, and with the prompts shuffled among the images."""
        names = [self.untrained[i % len(self.untrained)] for i in range(self.number)]
        _, probabilities = self.features_of(self.draw([with_article(name) for name in names], size))
        groups = sorted(set(self.group_of.values()))
        of_name = torch.tensor([groups.index(self.group_of[name]) for name in self.names])
        summed = torch.zeros(len(names), len(groups)).index_add_(1, of_name, probabilities)
        wanted = torch.tensor([groups.index(self.group_of[name]) for name in names])
        right = summed.argmax(1) == wanted
        shuffled = wanted[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(wanted)))]
        chance = float((torch.bincount(of_name).double() / len(of_name)).square().sum())
        return {
            "right": float(right.double().mean()),
            "shuffled": float((summed.argmax(1) == shuffled).double().mean()),
            "chance": chance,
        }

    def in_their_places(self) -> dict[str, float]:
        """Returns how often the left and the right half of an image of two things are recognised, and both."""
        firsts = [self.trained[i % len(self.trained)] for i in range(self.number)]
        seconds = firsts[1:] + firsts[:1]
        prompts = [f"{with_article(a)} to the left of {with_article(b)}" for a, b in zip(firsts, seconds, strict=True)]
        images, middle = self.draw(prompts, PAIRS), PAIRS[1] // 2
        found = []
        for wanted, box in ((firsts, (0, 0, middle, PAIRS[0])), (seconds, (middle, 0, PAIRS[1], PAIRS[0]))):
            best = self.features_of([image.crop(box) for image in images])[1].topk(5).indices
            numbers = torch.tensor([self.names.index(name) for name in wanted])
            found.append((best == numbers[:, None]).any(1))
        left, right = (one.double() for one in found)
        return {"left": float(left.mean()), "right": float(right.mean()), "both": float((left * right).mean())}

    def nearest(self, size: tuple[int, int], path: Path) -> list[float]:
        """Writes images beside the nearest training drawings, and returns the cosines of their features."""
        drawings = cutouts(self.drawings)
        real = []
        for index in range(len(drawings)):
            cut = drawings.read(index)
            page = Image.new("RGBA", (max(cut.size), max(cut.size)), "white")
            page.alpha_composite(cut, ((page.width - cut.width) // 2, (page.height - cut.height) // 2))
            real.append(page.convert("RGB").resize((size[1], size[0])))
        images = self.draw([with_article(name) for name in self.trained[:SHOWN]], size)
        ours, theirs = (torch.nn.functional.normalize(self.features_of(some)[0], dim=1) for some in (images, real))
        alike, where = (ours @ theirs.T).max(1)
        pairs = [image for own, i in zip(images, where.tolist(), strict=True) for image in (own, real[i])]
        captions = [
            text
            for name, i, cosine in zip(self.trained, where.tolist(), alike.tolist(), strict=False)
            for text in (name[:20], f"{drawings.names[i][:14]} {cosine:.2f}")
        ]
        save_sheet(contact_sheet(pairs, captions), path)
        return alike.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path("checks"))
    parser.add_argument("--size", action="append", metavar="HEIGHTxWIDTH", help=f"default: {', '.join(SIZES)}")
    parser.add_argument("--number", type=int, default=100, help="images of each check and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the solver; default: as the model recommends")
    parser.add_argument("--drawings", type=Path, help="folder of `fitv2 emoji`; default: the bundled drawings")
    args = parser.parse_args()
    checks = Checks(args.model, args.number, args.seed, args.drawings, args.steps)
    sizes = [parse_size(text) for text in args.size or SIZES]
    args.out.mkdir(parents=True, exist_ok=True)
    report = {
        "model": args.model,
        "judge, on drawings of an unseen set": checks.judge.unseen,
        "recognised": checks.at_sizes(sizes),
        "groups of untrained names": checks.of_untrained_names(sizes[0]),
        "two things in their halves": checks.in_their_places(),
        "cosines to the nearest training drawing": checks.nearest(sizes[0], args.out / "nearest.png"),
    }
    write_text(args.out / "checks.json", json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if not key.startswith("cosines")}, indent=1))
    print(f"{args.out / 'nearest.png'}: {SHOWN} images beside the nearest training drawings")


if __name__ == "__main__":
    main()
