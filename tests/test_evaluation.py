"""The classifier on real garments, the Frechet distance against closed forms, and the scores of a tiny model.

data/fashion-test-500.npz: 50 test pictures of each class of Fashion-MNIST (MIT, Copyright 2017 Zalando SE), on which
nothing is trained; written by tools/build_fashion_bundle.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fitv2.checkpoints.model_folder import Pretrained, load_pretrained, shapes_of
from fitv2.data.fashion import CLASS_NAMES, bundled, to_latent
from fitv2.evaluation.classifier import canvas, examine, load_classifier
from fitv2.evaluation.frechet import Statistics, frechet_distance
from fitv2.evaluation.scores import (
    balanced_wishes,
    load_reference,
    real_distance,
    score_garments,
    shares_recognised,
)
from fitv2.generate import Sampling, generate
from fitv2.model.config import FiTConfig
from fitv2.model.transformer import FiT

SAMPLING = Sampling(steps=2, solver="euler", guidance=1.5)


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.fixture(scope="module")
def held_out() -> tuple[list[Tensor], Tensor]:
    """500 garments (1, h, w) of the test split and their labels (500,)."""
    with np.load(Path(__file__).parent / "data/fashion-test-500.npz") as archive:
        hw, pixels, labels = archive["hw"].astype(int), archive["pixels"], archive["labels"].astype(int)
    parts = np.split(pixels, np.cumsum(hw.prod(1))[:-1])
    latents = [to_latent(part.reshape(size)) for part, size in zip(parts, hw, strict=True)]
    return latents, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    """An untrained model that has seen the shapes of the bundled garments; its outputs are not all zero."""
    torch.manual_seed(0)
    model = FiT(FiTConfig(width=16, depth=1, heads=2, patch_size=4, in_channels=1, num_classes=10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Pretrained(model.eval(), CLASS_NAMES, shapes_of(bundled()))


def resized(latent: Tensor, factor: float) -> Tensor:
    size = [round(side * factor) for side in latent.shape[1:]]
    return F.interpolate(latent[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


def gaussian(features: int, seed: int, rank: int | None = None) -> Statistics:
    """Statistics with a random mean and a random covariance of the given rank (default full)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(features, rank or features, generator=generator, dtype=torch.float64)
    return Statistics(torch.randn(features, generator=generator, dtype=torch.float64), factor @ factor.T, 100)


def test_canvas_leaves_a_real_garment_as_it_is(held_out):
    latent = next(latent for latent in held_out[0] if latent.shape == (1, 28, 12))
    page = canvas([latent])
    assert page.shape == (1, 1, 28, 28)
    assert torch.equal(page[0, :, :, 8:20], latent)
    assert (page[0, :, :, :8] == -1).all() and (page[0, :, :, 20:] == -1).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_canvas_of_a_larger_garment_is_about_that_of_the_original(held_out, factor):
    original = canvas(held_out[0][:100])
    enlarged = canvas([resized(latent, factor) for latent in held_out[0][:100]])
    difference = (enlarged - original).abs().mean()
    assert difference < 0.05
    for axis in (2, 3):
        assert difference < (original.roll(1, axis) - original).abs().mean() / 2


def test_canvas_scales_small_garments_up():
    page = canvas([torch.ones(1, 14, 7)])[0, 0]
    rows, columns = (torch.nonzero((page > 0).any(axis))[:, 0] for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27) and (columns[0], columns[-1]) == (7, 20)


def test_canvas_of_extreme_shapes_and_values():
    page = canvas([torch.full((1, 4, 400), 9.0), torch.full((1, 1, 1), -9.0)])
    assert page.shape == (2, 1, 28, 28)
    assert page[0].max() == 1 and page[1].max() == -1


def test_canvas_refuses_what_is_no_garment():
    with pytest.raises(ValueError, match=r"\(1, h, w\), not \(3, 28, 28\)"):
        canvas([torch.zeros(3, 28, 28)])
    with pytest.raises(ValueError, match="picture 1 of 2 has values that are not finite"):
        canvas([torch.zeros(1, 28, 28), torch.full((1, 28, 28), float("nan"))])


def test_accuracy_on_held_out_garments_of_all_sizes(classifier, held_out):
    latents, labels = held_out
    features, classes = examine(classifier, latents)
    assert features.shape == (500, 64) and (features >= 0).all()
    assert (classes == labels).float().mean() >= 0.88
    assert (examine(classifier, [resized(latent, 2) for latent in latents])[1] == labels).float().mean() >= 0.86


def test_the_shipped_model_makes_what_it_is_asked_for(classifier):
    """A few steps are enough to tell it from noise and from another class; the model card has the real score."""
    pretrained = load_pretrained("builtin:fashion")
    wishes = balanced_wishes(pretrained, 100, seed=3)
    latents = generate(pretrained.model, wishes, Sampling(steps=8))
    _, classes = examine(classifier, latents)
    assert (classes == torch.tensor([wish.label for wish in wishes])).float().mean() >= 0.9


def test_accuracy_on_the_bundled_garments(classifier):
    garments = bundled()
    _, classes = examine(classifier, [to_latent(picture) for picture in garments.pictures])
    assert (classes == torch.from_numpy(garments.labels)).float().mean() >= 0.91


def test_shuffled_labels_are_recognised_by_chance(classifier, held_out):
    latents, labels = held_out
    shuffled = labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    shares = shares_recognised(examine(classifier, latents)[1], shuffled)
    assert 0.05 < sum(shares) / 10 < 0.15


def test_statistics_round_trip(tmp_path):
    statistics = gaussian(6, 0)
    statistics.save(tmp_path / "s.safetensors", {"what": "nothing"})
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.covariance, statistics.covariance)
    assert loaded.count == statistics.count


def test_distance_of_equals_is_zero():
    assert frechet_distance(gaussian(20, 0), gaussian(20, 0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(gaussian(20, 0, rank=7), gaussian(20, 0, rank=7)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("rank", [None, 5])
def test_distance_is_symmetric(rank):
    a, b = gaussian(16, 1, rank), gaussian(16, 2, rank)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_distance_refuses_features_of_another_network():
    with pytest.raises(ValueError, match="16 and 8"):
        frechet_distance(gaussian(16, 0), gaussian(8, 0))


def test_reference_is_of_the_shipped_weights(classifier, held_out):
    reference = load_reference()
    assert reference.statistics.count == 10_000 and reference.statistics.covariance.shape == (64, 64)
    assert sum(reference.recognised_per_class) / 10 >= 0.91
    sample = Statistics.of(examine(classifier, held_out[0])[0])
    assert frechet_distance(sample, reference.statistics) < 1.5


def test_distance_sees_blur_and_repetition(classifier):
    garments = bundled()
    latents = [to_latent(picture) for picture in garments.pictures]
    blurred = [resized(resized(latent, 0.5), 2) for latent in latents[::5]]
    few = [np.flatnonzero(garments.labels == label)[:5] for label in range(10)]
    repeated = [latents[i] for i in np.concatenate(few)] * 40
    reference = load_reference().statistics
    distances = [
        frechet_distance(Statistics.of(examine(classifier, pictures)[0]), reference)
        for pictures in (latents[::5], blurred, repeated)
    ]
    assert distances[0] < 0.5
    assert min(distances[1:]) > 5 * distances[0]


def test_real_training_pictures_are_near_the_test_pictures():
    assert 0 < real_distance() < 0.1


def test_scores_of_an_untrained_model(tiny):
    finished = []
    scores = score_garments(tiny, SAMPLING, 20, seed=3, progress=finished.append)
    assert sum(finished) == 20
    assert (scores.protocol, scores.num_images, scores.seed, scores.precision) == ("fashion-fd64", 20, 3, "float32")
    assert scores.sampling == SAMPLING and scores.model_calls == 2
    assert 0 <= scores.recognised <= 0.5 and list(scores.recognised_per_class) == CLASS_NAMES
    assert scores.recognised == pytest.approx(sum(scores.recognised_per_class.values()) / 10)
    assert scores.distance > 10 and scores.ratio == scores.distance / scores.distance_real
    again = score_garments(tiny, SAMPLING, 20, seed=3)
    assert again == replace(scores, seconds=again.seconds)
    assert score_garments(tiny, SAMPLING, 20, seed=4).distance != scores.distance


def test_scores_in_bf16_are_near_and_not_equal(tiny):
    full, half = (score_garments(tiny, SAMPLING, 20, precision=precision) for precision in ("float32", "bf16"))
    assert half.precision == "bf16" and half.distance != full.distance
    assert half.distance == pytest.approx(full.distance, rel=0.05)


def test_wishes_are_balanced_and_in_the_shapes_of_their_class(tiny):
    wishes = balanced_wishes(tiny, 2000, 7)
    assert [wish.label for wish in wishes[:12]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert [wish.seed for wish in wishes[:2]] == [7_000_000, 7_000_001]
    trousers = [wish.size for wish in wishes if wish.label == 1]
    shapes = {(h, w): count for h, w, count in tiny.shapes[1]}
    assert set(trousers) <= set(shapes)
    for size, count in list(shapes.items())[:2]:
        assert trousers.count(size) / 200 == pytest.approx(count / sum(shapes.values()), abs=0.1)
    assert balanced_wishes(tiny, 500, 7) == wishes[:500]


def test_scores_refuse_other_models_numbers_and_precisions(tiny):
    with pytest.raises(ValueError, match="ten garments"):
        score_garments(replace(tiny, class_names=["cat", "dog"]), SAMPLING, 20)
    for number in (9, 1_000_001):
        with pytest.raises(ValueError, match=f"not {number}"):
            score_garments(tiny, SAMPLING, number)
    with pytest.raises(ValueError, match="not 'fp16'"):
        score_garments(tiny, SAMPLING, 20, precision="fp16")
