"""Trains the garment classifier and writes its weights and the statistics of the test images into the package.

On the 60 000 trimmed training images, a fixed number of epochs; the test images only measure the end. Needs the
Debian package dataset-fashion-mnist (or a folder with the upstream files as the only argument). About 21 s an epoch
on one core.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fitv2.data.fashion import CLASS_NAMES, Fashion, bundled, full
from fitv2.data.preprocessing import to_tensor
from fitv2.evaluation.comparison import fractions
from fitv2.evaluation.extractors import GarmentClassifier, GarmentExtractor, canvas
from fitv2.evaluation.metrics import Statistics, frechet_distance

OUT = Path(__file__).parent.parent / "src/fitv2/evaluation"
EPOCHS = 16
BATCH = 256
LEARNING_RATE = 4e-3
SHIFT = 2


def inputs(garments: Fashion) -> Tensor:
    """(N, 1, 28, 28)."""
    return torch.cat([canvas(to_tensor(image[None])[None]) for image in garments.images])


@torch.inference_mode()
def examine(garments: Fashion) -> tuple[Tensor, Tensor]:
    """Features (N, 64) and recognised classes (N,), by the weights as written."""
    classifier = GarmentExtractor("cpu").network
    features = torch.cat([classifier.trunk(x) for x in inputs(garments).split(500)])
    return features, classifier.head(features).argmax(1)


def augment(x: Tensor) -> Tensor:
    """(B, 1, 28, 28), each mirrored or not and shifted by up to two pixels both ways, black coming in."""
    batch, _, side, _ = x.shape
    x = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (SHIFT,) * 4, value=-1.0)
    rows, columns = torch.randint(2 * SHIFT + 1, (2, batch, 1)) + torch.arange(side)
    image = torch.arange(batch)[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(x: Tensor, labels: Tensor) -> GarmentClassifier:
    """x: (N, 1, 28, 28); labels: (N,) int64."""
    torch.manual_seed(0)
    # torch declares no such overload.
    model = GarmentClassifier().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(x) // BATCH * EPOCHS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for epoch in range(EPOCHS):
        total = 0.0
        batches = torch.randperm(len(x))[: steps // EPOCHS * BATCH].split(BATCH)
        for chosen in batches:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(x[chosen]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(batches):.4f}", flush=True)
    return model.eval()


def write_weights(model: GarmentClassifier) -> None:
    """As float16, counters as they are."""
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, OUT / "garment-classifier.safetensors")


def write_statistics(test: Fashion) -> Tensor:
    """By the weights as written, not as trained; returns the features of the test images."""
    features, classes = examine(test)
    labels, statistics = torch.from_numpy(test.labels), Statistics.of(features)
    metadata = {
        "accuracy": f"{(classes == labels).double().mean():.4f}",
        "recognised_per_class": json.dumps([*fractions(classes, labels, CLASS_NAMES).values()]),
        "parameters": str(sum(parameter.numel() for parameter in GarmentClassifier().parameters())),
    }
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance, "count": torch.tensor(statistics.count)}
    save_file(tensors, OUT / "fashion-test-statistics.safetensors", metadata)
    print(metadata)
    return features


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    garments, test = full("train", folder), full("test", folder)
    write_weights(train(inputs(garments), torch.from_numpy(garments.labels)))
    features = write_statistics(test)
    distance = frechet_distance(Statistics.of(examine(bundled())[0]), Statistics.of(features))
    halves = [Statistics.of(half) for half in features.split(len(features) // 2)]
    print(f"distance of the bundled training images to the test images: {distance:.4f}")
    print(f"distance of the two halves of the test images: {frechet_distance(*halves):.4f}")


if __name__ == "__main__":
    main()
