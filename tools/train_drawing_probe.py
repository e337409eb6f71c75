"""Fits the probe that names drawings, and says how well it names drawings of a set that it never saw.

    python tools/train_drawing_probe.py --views 6

The probe is a linear discriminant on the features of EfficientNet-Lite0: one mean per name and one covariance for all.
It sees each bundled drawing on several canvases, as models of drawings do in training. The weights of the probe go into
the package (`--extractor drawings`), with the accuracies. It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fitv2.data.canvases import Canvases
from fitv2.data.cutouts import Cutouts
from fitv2.data.emoji import cutouts, read_drawings
from fitv2.evaluation.extractors import PROBE, EfficientNetExtractor, extract
from fitv2.images.sheets import to_image

# The fraction of the mean variance that is added to all: there are fewer drawings than features.
SHRINKAGE = 0.1
TOKENS, PATCH = 144, 8


def features_of(drawings: Cutouts, views: int) -> tuple[Tensor, np.ndarray]:
    """Returns features (N * views, 1280) and the index of the drawing of each."""
    canvases = Canvases(drawings, TOKENS, PATCH, (0.5, 2.0), (1, 1), min_scale=0.5)
    epochs = [canvases.epoch(number, seed=1) for number in range(views)]
    images = (to_image(epoch.load(index)) for epoch in epochs for index in range(len(canvases)))
    extractor, seen = EfficientNetExtractor("cpu"), 0

    def tell(count: int) -> None:
        nonlocal seen
        seen += count
        if seen % 1000 < count:
            print(f"{seen} of {views * len(canvases)} images", flush=True)

    found = torch.cat([features.pooled for features in extract(extractor, images, tell)])
    return found, np.tile(np.arange(len(canvases)), views)


def fit(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Returns weights (classes, F) and biases of the linear discriminant, in float64."""
    x = features.double()
    means = torch.stack([x[labels == label].mean(0) for label in range(classes)])
    rest = x - means[labels]
    covariance = rest.T @ rest / len(x)
    covariance += SHRINKAGE * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(covariance, means.T).T
    return weights, -(weights * means).sum(1) / 2


def right(logits: Tensor, labels: Tensor, best: int) -> float:
    """Returns the fraction of images whose name is among the `best` most likely ones."""
    return float((logits.topk(best).indices == labels[:, None]).any(1).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=6, help="canvases of each drawing")
    parser.add_argument("--out", type=Path, default=Path(str(PROBE)), help="the file to write")
    args = parser.parse_args()
    drawings = cutouts(read_drawings(), "name", everything=True)
    found, index = features_of(drawings, args.views)
    labels, sets = torch.from_numpy(drawings.labels[index]), drawings.sets[index]
    classes, accuracies = len(drawings.class_names), {}
    for number, style in enumerate(drawings.styles):
        unseen = torch.from_numpy(sets == number)
        weights, biases = fit(found[~unseen], labels[~unseen], classes)
        logits = found[unseen].double() @ weights.T + biases
        accuracies[style] = [right(logits, labels[unseen], best) for best in (1, 5)]
        print("set {}: first {:.1%}, among five {:.1%}".format(style, *accuracies[style]))
    weights, biases = fit(found, labels, classes)
    about = {"names": list(drawings.class_names), "unseen": accuracies, "views": args.views}
    tensors = {"weights": weights.half(), "biases": biases.float()}
    save_file(tensors, args.out, {"about": json.dumps(about)})
    print(f"{args.out}: {classes} names, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
