"""Sets of images to evaluate or to compare with, and references: what is read, and what is refused."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluations import evaluation, read_all, samples_of
from fitv2.data import fashion
from fitv2.data.decode import decode
from fitv2.data.preprocessing import prepare
from fitv2.errors import UserError
from fitv2.evaluation import image_sets, inputs
from fitv2.evaluation.evaluate import compute_features
from fitv2.evaluation.extractors import GarmentExtractor
from fitv2.evaluation.image_sets import ArchiveImages, FolderImages, open_images, write_archive
from fitv2.evaluation.inputs import balanced_subset, default_extractor, given_samples, open_reference
from fitv2.evaluation.metrics import Statistics, frechet_distance
from fitv2.evaluation.results import difference
from image_folders import good_files, noise, write_files
from tiny import CLASSES, tiny_autoencoder

pytest_plugins = ["evaluations"]
pytestmark = pytest.mark.usefixtures("isolated")


def test_given_samples_by_size_and_number(tmp_path):
    images = open_images("fashion", tmp_path)
    tall, wide = given_samples(images, [(28, 12), (8, 28)], 40)
    assert (images.sizes[tall.chosen] == (28, 12)).all() and (images.sizes[wide.chosen] == (8, 28)).all()
    assert len(tall.chosen) == len(wide.chosen) == 40 and tall.about["labels"] == "10 classes, 0 to 13 images of each"
    with pytest.raises(UserError, match="5x5"):
        list(given_samples(images, [(5, 5)], None))
    with pytest.raises(UserError, match="not 10001"):
        list(given_samples(images, [], 10001))


def test_subsets_have_classes_in_turn_and_grow():
    labels = np.array([0, 0, 0, 0, 2, 1, 2])
    assert sorted(labels[balanced_subset(labels, 3)].tolist()) == [0, 1, 2]
    assert labels[balanced_subset(labels, 5)].tolist() == [0, 0, 2, 1, 2]
    assert balanced_subset(labels, 99).tolist() == list(range(7))
    assert {*balanced_subset(labels, 3).tolist()} < {*balanced_subset(labels, 5).tolist()}
    # Not the first by name, which in many folders are of one kind: of each third there are about as many.
    chosen = balanced_subset(np.repeat([0, 1], 3000), 600)
    assert np.histogram(chosen % 3000, 3)[0] == pytest.approx(200, abs=45) and (chosen < 3000).sum() == 300


# Prepared images and the built-in data set


def test_prepared_pixels_are_read_whole(fitv2, tmp_path):
    """Fitted to the budget, without crops and mirror images."""
    root, names = write_files(tmp_path / "root", good_files(9)), sorted(good_files(9))
    settings = ("--max-tokens", 16, "--autoencoder", "pixels", "--patch-size")
    fitv2("prepare", root, "--out", "p", *settings, 4).ok()
    images = open_images(str(tmp_path / "p"), tmp_path)
    assert images.class_names == ["cat", "dog"]
    assert images.labels.tolist() == [int(name.startswith("dog")) for name in names]
    expected = [np.asarray(prepare(decode(root / name), 16, 4, "resize")) for name in names]
    assert all(map(np.array_equal, read_all(images), expected))
    assert images.sizes.tolist() == [list(array.shape[:2]) for array in expected]
    fitv2("prepare", root, "--out", "q", *settings, 8).ok()
    assert open_images(str(tmp_path / "q"), tmp_path).digest != images.digest


def test_prepared_pixels_are_a_reference_and_samples(fitv2, garments):
    grey = ("--autoencoder", "pixels", "--patch-size", 4, "--channels", 1)
    fitv2("prepare", garments, "--out", "p", "--max-tokens", 49, *grey).ok()
    command = ("--extractor", "garments", "--metrics", "fd,accuracy", "--json")
    for pair in ((garments, "--reference", "p"), ("p", "--reference", garments)):
        (result,) = fitv2("evaluate", *pair, *command).json["results"]
        assert result["scores"]["fd"] == pytest.approx(0, abs=1e-4)
        assert result["real"]["accuracy"] == pytest.approx(result["scores"]["accuracy"])


def test_latents_are_no_reference(fitv2, garments, tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    fitv2("prepare", garments / "bag", "--out", "p", "--max-tokens", 4, "--autoencoder", "vae").ok()
    (tmp_path / "official/from_16_to_256").mkdir(parents=True)
    for folder in ("p", "official"):
        for command in (("fashion", "--reference", folder), (folder, "--reference", "fashion")):
            assert f"{folder} holds latents" in fitv2("evaluate", *command).sentence


@pytest.fixture
def upstream(tmp_path, monkeypatch) -> Path:
    """A folder with files as those of Fashion-MNIST, of thirty garments each."""
    folder, rng = tmp_path / "idx", np.random.default_rng(0)
    folder.mkdir()
    for split in fashion.SPLITS:
        images, labels = fashion.split_files(split, folder)
        written = b"." * 16 + rng.integers(0, 256, (30, 28, 28), np.uint8).tobytes(), b"." * 8 + bytes(range(10)) * 3
        for path, content in zip((images, labels), written, strict=True):
            path.write_bytes(gzip.compress(content))
            monkeypatch.setitem(fashion.SHA256, path.name, hashlib.sha256(content).hexdigest())
    return folder


def test_all_garments_are_there_if_their_files_are(upstream, tmp_path, monkeypatch):
    train = open_images(f"fashion:train:{upstream}", tmp_path)
    assert len(train) == 30 and train.class_names == CLASSES
    assert all(map(np.array_equal, read_all(train, "L"), fashion.full("train", upstream).images))
    with pytest.raises(UserError, match="fashion:train:FOLDER"):
        open_images("fashion:train", tmp_path)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", upstream)
    test = open_images("fashion:test", tmp_path)
    assert open_images("fashion:train", tmp_path).digest == train.digest != test.digest
    assert default_extractor("fashion:train", None) == "garments"


def test_the_test_garments_are_one_reference_with_and_without_their_images(upstream, garments, tmp_path, monkeypatch):
    """The distance is to the statistics that ship; images add what these cannot give, and other protocols."""
    without, given = (open_reference(name, tmp_path) for name in ("fashion:test", f"fashion:test:{upstream}"))
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", upstream)
    installed = open_reference("fashion:test", tmp_path)
    assert without.digest == given.digest == installed.digest and without.images is None
    samples = samples_of(garments, tmp_path)
    first, *more = (evaluation(reference, tmp_path).score(samples) for reference in (without, given, installed))
    assert more[0].scores == more[1].scores and more[0].scores["fd"] == first.scores["fd"]
    assert {"kid", "recall"} <= more[0].scores.keys() - first.scores.keys()
    assert difference({"a": [first], "b": [more[0]]}) is None
    assert evaluation(given, tmp_path, protocol="centre").score(samples).stamp["reference_count"] == 30


# Folders


def test_lossy_samples_are_told(tmp_path):
    for number, kind in enumerate(("png", "jpg", "JPEG")):
        noise(8, 8, number).save(tmp_path / f"{number}.{kind}")
    assert samples_of(tmp_path, tmp_path).notes[0].startswith("2 of 3 samples")


def test_few_large_images_wait_at_once(tmp_path, monkeypatch):
    """After the first of a block, at most a number of images and of pixels; none is left out."""
    blocks = []
    monkeypatch.setattr(image_sets, "in_threads", lambda workers, work, block: blocks.append(block) or [])
    monkeypatch.setattr(image_sets, "AHEAD", 4)
    monkeypatch.setattr(image_sets, "AHEAD_PIXELS", 100)
    sizes = np.array([[1, 10]] * 9 + [[1, 60], [1, 60], [1, 300], [1, 10], [1, 10]])
    images = FolderImages(tmp_path, ["a"] * 14, sizes, np.zeros(14, int), [])
    for chosen in (range(14), [0, 9, 13]):
        blocks.clear()
        assert list(images.read(chosen, "RGB", lambda image: image)) == []
        assert [index for block in blocks for index in block] == list(chosen)
        assert all(len(block) <= 5 and sizes[block[1:]].prod(1).sum() <= 100 for block in blocks if block)
    assert list(images.read([], "RGB", lambda image: image)) == []


def sampled(folder: Path, *names: str, mark: str | None = None) -> None:
    """As `fitv2 sample` leaves a folder, without its list."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        noise(28, 12, number).save(folder / name)
    about = PngInfo()
    about.add_text("Software", "fitv2 contact sheet")
    noise(90, 90).save(folder / "sheet.png", pnginfo=about if mark else None)


NAMES = [f"bag_28x12_seed{number}.png" for number in range(3)]


@pytest.mark.parametrize(("names", "mark"), [(NAMES, None), (["a.png", "b.png", "c.png"], "marked")])
def test_contact_sheets_are_no_samples(tmp_path, names, mark):
    sampled(tmp_path / "s", *names, mark=mark)
    images = open_images(str(tmp_path / "s"), tmp_path)
    assert isinstance(images, FolderImages) and images.paths == names and "sheet.png" in images.notes[0]


def test_a_list_of_samples_says_which_images_are_of_the_last_call(tmp_path):
    sampled(tmp_path / "s", *NAMES, "old.png")
    listed = [{"file": name, "class": "bag", "label": 8, "size": [28, 12], "seed": 0} for name in NAMES]
    (tmp_path / "s/samples.json").write_text(json.dumps({"format": 1, "request": {}, "images": listed}))
    images = open_images(str(tmp_path / "s"), tmp_path)
    assert isinstance(images, FolderImages) and images.paths == NAMES
    assert images.class_names == ["bag"] and images.sizes.tolist() == [[28, 12]] * 3
    notes = samples_of(tmp_path / "s", tmp_path).notes
    assert "1 other image" in notes[0] and "old.png" in notes[0]
    (tmp_path / "s" / NAMES[1]).unlink()
    with pytest.raises(UserError, match=NAMES[1]):
        open_images(str(tmp_path / "s"), tmp_path)
    (tmp_path / "s/samples.json").write_text("{}")
    with pytest.raises(UserError, match="list of samples"):
        open_images(str(tmp_path / "s"), tmp_path)


@pytest.mark.parametrize("out", [(), ("--out", "mine")])
def test_an_evaluation_within_its_reference_does_not_change_it(fitv2, garments, tmp_path, out):
    """Nor do samples there."""
    for number, path in enumerate(sorted((garments / "bag").iterdir())):
        Image.open(path).save(tmp_path / f"{number}.png")
    sampled(tmp_path / "outputs", *NAMES)
    command = ("evaluate", "outputs", "--reference", ".", "--extractor", "garments", "--json", "--metrics", "fd,kid")
    found = [fitv2(*command, *out).json["results"][0] for _ in range(2)]
    assert found[0]["scores"] == found[1]["scores"] and found[1]["stamp"]["reference_count"] == 8
    assert "holds images" in fitv2(*command, "--out", ".").sentence


# Archives


def test_archives_are_those_of_numpy(tmp_path):
    """They have no labels."""
    for number in range(5):
        noise(6, 4, number).save(tmp_path / f"{number}.png")
    images = open_images(str(tmp_path), tmp_path)
    write_archive(tmp_path / "a.npz", images, list(range(5)))
    pixels = np.stack(read_all(images))
    with np.load(tmp_path / "a.npz") as archive:
        assert archive.files == ["arr_0"] and np.array_equal(archive["arr_0"], pixels)
    np.savez_compressed(tmp_path / "b.npz", arr_0=pixels)
    for name in ("a.npz", "b.npz"):
        chosen = ArchiveImages(tmp_path / name).read([1, 4], "RGB", lambda image: image)
        assert np.array_equal([np.asarray(image) for image in chosen], pixels[[1, 4]])
    assert samples_of(tmp_path / "a.npz", tmp_path).about["labels"] is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"arr_0": np.zeros((2, 3, 4, 3))}, "float64"),
        ({"arr_0": np.zeros((2, 3, 4), np.uint8)}, "not uint8 "),
        ({"images": np.zeros((2, 3, 4, 3), np.uint8)}, "not an archive"),
        ({"arr_0": np.array([{}])}, "object"),
        (b"PK no archive", "not an archive"),
        (None, "no file"),
    ],
)
def test_archives_of_anything_else_are_refused(tmp_path, arrays, complaint):
    path = tmp_path / "a.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif arrays:
        path.write_bytes(arrays)
    with pytest.raises(UserError, match=complaint):
        open_images(str(path), tmp_path)


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "real numbers"),
        ({"mu": np.zeros(4), "sigma": np.zeros((4, 5))}, "wanted"),
        ({"mu": np.zeros(4), "sigma": EYE - 3 * EYE}, "negative eigenvalues"),
        ({"mu": np.zeros(4), "sigma": 0 * EYE}, "zero"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "5 features"),
        ({"mu": np.zeros(4)}, "both must be there"),
        ({"mu": np.zeros(4), "sigma": EYE, "mu_s": np.zeros(3), "sigma_s": -np.eye(3)}, "mu_s and sigma_s"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "mu and sigma"),
        ({"other": np.zeros(3)}, "neither images"),
        (b"PK nothing", "damaged"),
        (np.zeros(3), "not an archive of a reference"),
    ],
)
def test_references_that_are_none_are_refused(tmp_path, monkeypatch, statistics, complaint):
    monkeypatch.setattr(inputs, "STATISTICS", {"": 4, "_s": 3})
    if isinstance(statistics, bytes):
        (tmp_path / "a.npz").write_bytes(statistics)
    elif isinstance(statistics, dict):
        np.savez(tmp_path / "a.npz", **statistics)
    else:
        with (tmp_path / "a.npz").open("wb") as file:
            np.save(file, statistics)
    with pytest.raises(UserError, match=complaint):
        open_reference(str(tmp_path / "a.npz"), tmp_path)


def test_statistics_of_an_adm_archive_are_used(garments, tmp_path, monkeypatch):
    """mu and sigma count for their extractor and protocol; arr_0 serves for the rest."""
    noises = [np.asarray(noise(8, 8, seed)) for seed in range(10)]
    statistics = {"mu": np.full(64, 3.0), "sigma": np.eye(64), "mu_s": np.zeros(343), "sigma_s": 2 * np.eye(343)}
    np.savez(tmp_path / "adm.npz", arr_0=np.stack(noises), **statistics)
    monkeypatch.setattr(inputs, "STATISTICS", {"": 64, "_s": 343})
    monkeypatch.setattr(inputs.InceptionExtractor, "name", "garments")
    reference = open_reference(str(tmp_path / "adm.npz"), tmp_path)
    samples = samples_of(garments, tmp_path)
    images = samples.images.read(range(80), "L", lambda image: image)
    seen = compute_features(GarmentExtractor("cpu"), images, samples.images.labels, lambda count: None)
    result = evaluation(reference, tmp_path).score(samples)
    for key, own, mean, scale in (("fd", seen.statistics, 3.0, 1), ("sfd", seen.spatial, 0.0, 2)):
        n = len(own.mean)
        known = Statistics(torch.full((n,), mean).double(), scale * torch.eye(n).double(), 0)
        assert result.scores[key] == pytest.approx(frechet_distance(own, known))
    assert result.scores["precision"] < 0.5 and result.stamp["reference_count"] == 0
    assert any("does not say how many" in note for note in result.notes)
    cut = evaluation(reference, tmp_path, protocol="centre").score(samples)
    assert cut.stamp["reference_statistics"] == "of its pictures" and cut.stamp["reference_count"] == 10
