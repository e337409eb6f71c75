"""Measures on features: closed forms, independent implementations, brute force, and what cannot be measured.

data/metrics.npz: features of 300 real and 300 generated garments, logits of the latter, and what torchmetrics, SciPy,
prdc and torch-fidelity make of them; written by tools/make_metric_fixtures.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluations import classified
from fitv2.data.fashion import bundled
from fitv2.errors import UserError
from fitv2.evaluation import metrics
from fitv2.evaluation.comparison import FeatureSet
from fitv2.evaluation.inputs import disjoint_subsets
from fitv2.evaluation.metrics import (
    RunningStatistics,
    Statistics,
    classifier_score,
    compare_neighbours,
    frechet_distance,
    kernel_distance,
    kid_of_subsets,
    vote,
)


def normal(number: int, features: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, features, generator=generator, dtype=torch.float64) + shift


def correlated(number: int, features: int, seed: int) -> Tensor:
    """Like features of networks: not below zero, and some depend on others."""
    return (normal(number, features, seed) @ normal(features, features, 99) + 1).clamp(min=0)


# Known answers

with np.load(Path(__file__).parent / "data/metrics.npz") as archive:
    GENERATED, REAL, LOGITS = (torch.from_numpy(archive[name]) for name in ("generated", "real", "logits"))
    GOLDEN = json.loads(str(archive["about"]))["golden"]


def test_figures_are_those_of_independent_implementations():
    """Of features in float32, as extractors give them; prdc takes one k for all, so four of its eight figures count."""
    mean, deviation = kid_of_subsets(GENERATED, REAL)
    neighbours = compare_neighbours(GENERATED, REAL)
    found = {
        "fd": frechet_distance(Statistics.of(GENERATED), Statistics.of(REAL)),
        "discrepancy": kernel_distance(GENERATED, REAL)[0],
        "kid": mean,
        "kid_std": deviation,
        "precision_3": neighbours["precision"],
        "recall_3": neighbours["recall"],
        "density_5": neighbours["density"],
        "coverage_5": neighbours["coverage"],
        "classifier_score": classifier_score(LOGITS.double().softmax(1))[0],
    }
    compared = {name: found[name.partition(".")[2]] for name in GOLDEN if name.partition(".")[2] in found}
    assert {name.partition(".")[2] for name in compared} == found.keys() and len(compared) == 14
    assert compared == pytest.approx({name: GOLDEN[name] for name in compared}, rel=1e-6)


# Frechet distance


@pytest.mark.parametrize("blocks", [1, 7, 200])
def test_statistics_some_at_a_time_are_those_of_all(blocks):
    features = correlated(200, 12, 0) + 1e4  # Far from the origin, where plain sums of squares lose their digits.
    running = RunningStatistics()
    for block in features.tensor_split(blocks):
        running.add(block.float())
    expected = features.float().double().numpy()
    result = running.result()
    assert result.count == 200
    np.testing.assert_allclose(result.mean, expected.mean(0), rtol=1e-13)
    np.testing.assert_allclose(result.covariance, np.cov(expected, rowvar=False), rtol=1e-9, atol=1e-9)


def test_distance_of_fewer_samples_than_features_is_finite_and_right():
    """Without full rank, the overlap is the nuclear norm of A^T B, with C_a = A A^T and C_b = B B^T."""
    a, b = correlated(10, 40, 5), correlated(15, 40, 6)
    halves = [(x - x.mean(0)).T / (len(x) - 1) ** 0.5 for x in (a, b)]
    overlap = torch.linalg.matrix_norm(halves[0].T @ halves[1], "nuc")
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(half.square().sum() for half in halves) - 2 * overlap
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(float(expected), rel=1e-6)


def test_distance_of_constant_features_is_that_of_the_means():
    a, b = torch.full((5, 3), 2.0), torch.full((4, 3), 3.0)
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(3, rel=1e-12)
    assert frechet_distance(Statistics.of(a), Statistics.of(a)) == 0


TURNED = torch.tensor([[1.0, 2], [2, 1]]).double()
PLAIN = torch.eye(2).double()


@pytest.mark.parametrize(
    ("mean", "covariance", "complaint"),
    [
        (torch.zeros(2), PLAIN - 3 * PLAIN, "negative eigenvalues"),
        (torch.zeros(2), TURNED, "negative eigenvalues"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0, 1]]), "symmetric"),
        (torch.zeros(2), PLAIN * float("nan"), "not finite"),
        (torch.tensor([0, float("inf")]), PLAIN, "not finite"),
        (torch.zeros(2), torch.eye(3), "wanted"),
        (torch.zeros(2), torch.zeros(2), "wanted"),
        (torch.zeros(0), torch.zeros(0, 0), "wanted"),
    ],
)
def test_impossible_statistics_are_refused_on_either_side(mean, covariance, complaint):
    bad, good = Statistics(mean.double(), covariance.double(), 9), Statistics(torch.zeros(len(mean)), PLAIN, 9)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(UserError, match=complaint):
            frechet_distance(*pair)


def test_covariances_that_rounding_made_indefinite_are_accepted():
    """As sums in float32 are, of features that depend on each other or never change."""
    features = torch.cat([correlated(40, 60, 0).float(), torch.zeros(40, 3)], 1)
    centred = features - features.mean(0)
    covariance = (centred.T @ centred / 39).double()
    covariance[0, 1] += 1e-9
    assert torch.linalg.eigvalsh(covariance)[0] < 0
    rounded, exact = Statistics(features.mean(0).double(), covariance, 40), Statistics.of(features)
    assert frechet_distance(rounded, exact) == pytest.approx(0, abs=1e-2)


# KID


def test_kernel_distance_does_not_depend_on_the_size_of_blocks(monkeypatch):
    a, b = correlated(60, 5, 0), correlated(50, 5, 1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 200)
    assert kernel_distance(a.float(), b.float()) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("by_class", [True, False])
def test_kernel_distance_is_the_weighted_mean_over_pairs_of_classes(by_class):
    """Without classes, over all pairs."""
    a, b = correlated(9, 3, 0), correlated(8, 3, 1)
    of_a, of_b = torch.tensor([5, 2, 5, 2, 2, 5, 7, 7, 7]) * by_class, torch.tensor([0, 1] * 4) * by_class

    def mean(x, of_x, y, of_y):
        total = 0.0
        for c in of_x.unique():
            for d in of_y.unique():
                pairs = [(i, j) for i in (of_x == c).nonzero()[:, 0] for j in (of_y == d).nonzero()[:, 0]]
                kernel = [float(x[i] @ y[j] / 3 + 1) ** 3 for i, j in pairs if not (x is y and i == j)]
                total += float((of_x == c).double().mean() * (of_y == d).double().mean()) * np.mean(kernel)
        return total

    expected = mean(a, of_a, a, of_a) + mean(b, of_b, b, of_b) - 2 * mean(a, of_a, b, of_b)
    classes = (of_a, of_b) if by_class else (None, None)
    assert kernel_distance(a, b, *classes)[0] == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, Tensor]:
    """Features and classes of a hundred garments of each class."""
    garments = bundled()
    chosen = np.concatenate([np.flatnonzero(garments.labels == label)[:100] for label in range(10)])
    return classified([garments.images[i] for i in chosen])[0], torch.from_numpy(garments.labels[chosen])


@pytest.mark.parametrize("balanced", [True, False])
def test_real_images_are_at_no_distance_and_the_error_is_the_spread(real, balanced):
    """Over splits of a thousand into 100 and 900, by class or not; a mean over all pairs is at -0.8 if by class."""
    features, labels = real
    found, generator = [], torch.Generator().manual_seed(0)
    for _ in range(200):
        order = torch.randperm(1000, generator=generator)
        first = torch.cat([order[labels[order] == c][:10] for c in range(10)]) if balanced else order[:100]
        second = order[~torch.isin(order, first)]
        classes = (labels[first], labels[second]) if balanced else (None, None)
        found.append(kernel_distance(features[first], features[second], *classes))
    values, errors = torch.tensor(found).T
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


def test_the_error_of_a_large_distance_is_the_spread():
    found = [kernel_distance(normal(80, 4, i), normal(60, 4, i + 500, shift=0.7)) for i in range(200)]
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_kid_of_subsets_ignores_the_global_generator():
    a, b = correlated(300, 5, 0), correlated(200, 5, 1)
    torch.manual_seed(5)
    assert kid_of_subsets(a.float(), b.float()) == pytest.approx(kid_of_subsets(a, b), rel=1e-5)


def test_kernel_distance_of_few_and_of_constant_features_is_finite():
    assert np.isfinite(kernel_distance(normal(2, 4, 0), normal(3, 4, 1))).all()
    assert kernel_distance(torch.ones(30, 4), torch.ones(20, 4)) == pytest.approx((0, 0), abs=1e-6)
    for few, classes in ((1, None), (3, torch.tensor([0, 0, 1]))):
        with pytest.raises(UserError, match="two images"):
            kernel_distance(normal(few, 4, 0), normal(30, 4, 1), classes)


# Classifier score


def test_classifier_score_of_sure_and_of_unsure_classifiers():
    sure = torch.eye(8).repeat(25, 1)
    assert classifier_score(sure) == pytest.approx((8, 0))
    assert classifier_score(torch.full((50, 8), 1 / 8)) == pytest.approx((1, 0))
    assert classifier_score(torch.eye(8)[:1].repeat(9, 1)) == pytest.approx((1, 0))


def test_classifier_score_of_sorted_images_is_that_of_shuffled_ones():
    """Ten thousand make two parts; unshuffled, each would see half of the classes."""
    mean, deviation = classifier_score(torch.eye(10).repeat_interleave(1000, 0))
    assert mean == pytest.approx(10, rel=0.01) and 0 < deviation < 0.01


LESS = torch.tensor([[1.5, -0.5, 0]])


@pytest.mark.parametrize("p", [torch.zeros(0, 3), torch.full((4, 3), float("nan")), torch.ones(4, 3), LESS])
def test_classifier_score_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="probabilities"):
        classifier_score(p)


# Neighbours


def brute_force(samples: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """By the definitions, with all distances at once."""

    def apart(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def radius(x, k):
        return np.sort(apart(x, x), 1)[:, k]

    between = apart(samples, real)
    return {
        "precision": (between <= radius(real, 3)).any(1).mean(),
        "recall": (between <= radius(samples, 3)[:, None]).any(0).mean(),
        "density": (between <= radius(real, 5)).sum(1).mean() / 5,
        "coverage": (between <= radius(real, 5)).any(0).mean(),
    }


@pytest.mark.parametrize("block", [1, 1000, 1 << 24])
@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_neighbours_are_those_of_brute_force(monkeypatch, block, shift):
    monkeypatch.setattr(metrics, "BLOCK", block)
    samples, real = normal(90, 3, 0) * 0.7 + shift + 100, normal(70, 3, 1) + 100
    expected = brute_force(samples.numpy(), real.numpy())
    assert all(0.05 < value < 2 for value in expected.values())
    assert compare_neighbours(samples, real) == pytest.approx(expected, rel=1e-6)


def test_neighbours_of_equal_and_of_distant_sets():
    features = normal(60, 4, 0)
    same, far = compare_neighbours(features, features), compare_neighbours(features, features + 100)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1) and same["density"] >= 1
    assert [*far.values()] == [0, 0, 0, 0]


def test_rounding_puts_no_centre_out_of_its_ball():
    """Balls have a radius of zero: of constant features far from the origin, and where there are four of each image."""
    a, b = torch.full((8, 50), 1234.567), torch.full((9, 50), 1234.567)
    assert compare_neighbours(a, b) == {"precision": 1, "recall": 1, "density": 9 / 5, "coverage": 1}
    features = correlated(50, 300, 0) * 50
    found = compare_neighbours(features.repeat(5, 1).flip(0)[:237], features.repeat(4, 1))
    assert (found["precision"], found["recall"]) == (1, 1)


@pytest.mark.parametrize("itself", [False, True])
def test_votes_are_those_of_brute_force(monkeypatch, itself):
    monkeypatch.setattr(metrics, "BLOCK", 500)
    known = normal(60, 3, 0)
    labels = (known[:, 0] > 0).long() + (known[:, 1] > 0.3).long()
    features = known if itself else normal(40, 3, 1)
    apart = ((features[:, None] - known[None]) ** 2).sum(-1).numpy()
    if itself:
        np.fill_diagonal(apart, np.inf)
    for row, found in zip(apart, vote(features, known, labels).tolist(), strict=True):
        nearest = np.argsort(row)[:5]
        counts = np.bincount(labels.numpy()[nearest], minlength=3)
        best = np.flatnonzero(counts == counts.max())
        sums = [row[nearest[labels.numpy()[nearest] == label]].sum() for label in best]
        assert found == best[np.argmin(sums)]


# All


@pytest.mark.parametrize("measure", [kernel_distance, compare_neighbours])
def test_features_that_cannot_be_measured_are_refused(measure):
    good = normal(20, 4, 0)
    broken = good.clone()
    broken[3, 1] = float("nan")
    for bad, complaint in ((broken, "1 of 20"), (normal(20, 5, 0), "4 and 5"), (good[:0], "at least one")):
        with pytest.raises(ValueError, match=complaint):
            measure(good, bad)
    with pytest.raises(ValueError, match="more than 5"):
        compare_neighbours(good, good[:5])
    with pytest.raises(ValueError, match="4 and 5"):
        frechet_distance(Statistics.of(good), Statistics.of(normal(20, 5, 0)))


def test_draws_are_disjoint_and_have_equal_frequencies():
    labels = torch.tensor([0] * 14 + [1] * 4 + [2] * 2)
    first, second = disjoint_subsets(labels, torch.tensor([0, 0, 0, 1, 1, 1, 1]), seed=0)
    assert not set(first.tolist()) & set(second.tolist())
    assert labels[first].tolist() == labels[second].tolist() == [0, 0, 0, 1, 1]  # Of 4, at most half.
    assert not torch.equal(disjoint_subsets(labels, labels, seed=1)[0], disjoint_subsets(labels, labels, seed=0)[0])


@pytest.mark.parametrize(
    ("counts", "balanced"), [((4, 4, 4), True), ((5, 4, 5), True), ((9, 4, 4), False), ((1, 2, 2), False)]
)
def test_sets_balanced_by_class_are_told_from_free_draws(counts, balanced):
    labels, unknown = torch.arange(3).repeat_interleave(torch.tensor(counts)), Statistics.of(normal(9, 2, 0))
    features = FeatureSet(labels, labels, labels, labels, unknown, unknown, ["a", "b", "c"])
    assert (features.strata is not None) == balanced
