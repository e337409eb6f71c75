"""What is measured of reconstructions, against closed forms; and the two commands about autoencoders."""

import json

import numpy as np
import pytest
from PIL import Image

from fitv2.evaluation.extractors import EfficientNetExtractor
from fitv2.evaluation.reconstruction import (
    peak_signal_to_noise,
    reconstruct,
    score_reconstructions,
    structural_similarity,
)
from fitv2.images.autoencoder import LatentCodec
from image_folders import noise, save_image
from tiny import tiny_autoencoder

SMALL = ["model.widths=[8, 8, 8, 8]", "model.latent_channels=4", "data.crop=32", "data.resolution=64"]
SMALL += ["training.steps=2", "training.warmup_steps=0", "training.batch_size=2"]


def flat(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_the_ratio_of_signal_and_noise():
    assert peak_signal_to_noise(flat(100), flat(110)) == pytest.approx(20 * np.log10(255 / 10))
    assert peak_signal_to_noise(flat(0), flat(255)) == pytest.approx(0)
    assert peak_signal_to_noise(flat(7), flat(7)) == 100


def test_similarity_of_structure():
    """Flat images have closed forms; a negative image is unlike; scikit-image 0.26 gave the last figure."""
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert structural_similarity(flat(100), flat(120)) == pytest.approx(expected)
    assert structural_similarity(flat(100, 4, 30), flat(120, 4, 30)) == pytest.approx(expected)
    image = np.asarray(noise(24, 40))
    assert structural_similarity(image, image) == pytest.approx(1)
    assert structural_similarity(image, 255 - image) < -0.9
    other = (image // 2 + np.asarray(noise(24, 40, seed=1)) // 2).astype(np.uint8)
    assert structural_similarity(image, other) == pytest.approx(0.6574622469, abs=1e-9)


def test_reconstructions_have_the_size_of_their_images():
    codec = LatentCodec(tiny_autoencoder(), "cpu")
    image = noise(21, 30)
    made = reconstruct(codec, image)
    assert made.size == image.size
    padded = Image.fromarray(np.pad(np.asarray(image), ((0, 3), (0, 2), (0, 0)), mode="edge"))
    assert np.array_equal(np.asarray(made), np.asarray(reconstruct(codec, padded))[:21, :30])


def test_scores_of_an_autoencoder_that_loses_nothing(monkeypatch):
    monkeypatch.setattr("fitv2.evaluation.reconstruction.reconstruct", lambda codec, image: image)
    images = [noise(32, 40, seed) for seed in range(3)]
    pairs = []
    scores = score_reconstructions(
        LatentCodec(tiny_autoencoder(), "cpu"),
        iter(images),
        EfficientNetExtractor("cpu"),
        lambda _: None,
        lambda *pair: pairs.append(pair),
    )
    assert scores == {"images": 3, "psnr": 100, "ssim": pytest.approx(1), "fd": pytest.approx(0, abs=1e-3)}
    assert pairs == [(image, image) for image in images]


@pytest.mark.slow
def test_from_images_to_latents_and_back_by_the_commands(fitv2, tmp_path):
    for number in range(3):
        save_image(tmp_path / "images" / f"{number}.png", 40, 48)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    out = fitv2("autoencoder", "--data", "images", "--out", "ae", *settings).ok().out
    assert "trained 2 steps" in out and "--autoencoder ae" in out
    assert "nothing to do" in fitv2("autoencoder", "--resume", "--out", "ae").ok().out
    figures = fitv2("reconstruct", "ae", "--data", "images", "--json", "--sheet", "pairs.png").json
    assert figures["images"] == 3 and 0 < figures["psnr"] < 40 and figures["fd"] > 0
    assert Image.open(tmp_path / "pairs.png").width > 96
    prepare = ("prepare", "images", "--out", "prepared", "--max-tokens", 16, "--autoencoder", "ae", "--json")
    assert fitv2(*prepare).json["images"] == 3
    small = ["model.width=32", "model.depth=1", "model.heads=2", "training.steps=1", "training.warmup_steps=0"]
    settings = [word for setting in [*small, "training.holdout=0"] for word in ("--set", setting)]
    fitv2("train", "--recipe", "latents", "--data", "prepared", "--out", "run", *settings).ok()
    fitv2("sample", "run", "--size", "32x48", "--steps", 2, "--out", "samples").ok()
    fitv2("plot", "ae", "run", "--out", "plot.png").ok()
    (made,) = (tmp_path / "samples").glob("*32x48*.png")
    assert Image.open(made).size == (48, 32)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("autoencoder",), "--data"),
        (("autoencoder", "--data", "nowhere"), "there is no nowhere"),
        (("train", "--resume", "--out", "run"), "fitv2 autoencoder --resume --out run"),
        (("sample", "run"), "the training of an autoencoder"),
        (("autoencoder", "--resume", "--out", "flow"), "fitv2 train --resume --out flow"),
        (("reconstruct", "run", "--data", "run", "--sheet", "run"), "is a folder"),
        (("reconstruct", "run", "--data", "run", "--sheet", "run/recipe.json"), "--overwrite"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(fitv2, tmp_path, arguments, complaint):
    for name, recipe in (("run", {"kind": "autoencoder", "data": {"sources": ["images"]}}), ("flow", {"model": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
    assert complaint in fitv2(*arguments).sentence
