"""Prepared data sets as data: what an epoch draws, what it reads, and what damage does."""

import hashlib
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch

from fitv2.build import build_dataset
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.cli.progress import image_progress
from fitv2.data import columns
from fitv2.data.decode import decode
from fitv2.data.formats import UnreadableImage
from fitv2.data.latent_shards import LatentShards
from fitv2.data.preprocessing import prepare, to_array
from fitv2.distributed.ranks import join_processes
from fitv2.prepare.encode import build_encoder
from fitv2.prepare.run import prepare as run_prepare
from fitv2.prepare.sources import FolderSource
from fitv2.settings.read import build_recipe
from image_files import saved
from image_folders import good_files, noise, write_files
from tiny import recipe, tiny_autoencoder, trainer


def make(root, out, autoencoder="pixels", max_tokens=16, patch_size=4, flip=True, preprocessing="mixed", channels=None):
    encoder, preparation = build_encoder(autoencoder, max_tokens, patch_size, preprocessing, flip, channels, "cpu")
    run_prepare(FolderSource(root), "images", out, encoder, preparation, 5, 2, join_processes("cpu"), image_progress)
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("root"), good_files(12))


@pytest.fixture(scope="module")
def pixels(root, tmp_path_factory):
    return make(root, tmp_path_factory.mktemp("pixels") / "out")


@pytest.fixture(scope="module")
def moments(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    tiny_autoencoder().save_pretrained(folder / "vae")
    return make(root, folder / "out", str(folder / "vae"), patch_size=2)


def test_pixels_are_the_images_as_a_folder_gives_them(root, pixels):
    data = LatentShards(pixels)
    assert (len(data), data.patch_size, data.channels, data.factor, data.autoencoder) == (12, 4, 3, 1, None)
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2 and data.ids == sorted(good_files(12))
    seen = set()
    for epoch in range(6):
        view = data.epoch(epoch, seed=3)
        assert view.labels.tolist() == [int(name.startswith("dog")) for name in data.ids]
        for i, name in enumerate(data.ids):
            variant = ("resize", "crop")[view.variant[i]]
            expected = torch.from_numpy(to_array(prepare(decode(root / name), 16, 4, variant))) / 127.5 - 1
            expected = expected.flip(2) if view.flip[i] else expected
            latent = view.load(i)
            assert torch.equal(latent, expected) and latent.dtype == torch.float32 and latent.is_contiguous()
            assert latent.shape[1:] == tuple(view.hw[i] * 4)
            seen.add((variant, bool(view.flip[i])))
    assert len(seen) == 4


def test_latents_are_drawn_from_the_moments_of_the_flip(moments):
    data = LatentShards(moments)
    assert (data.patch_size, data.channels, data.factor) == (2, 4, 8) and data.autoencoder.endswith("vae")
    views = [data.epoch(epoch, seed=0) for epoch in range(300)]
    for flip in (0, 1):
        chosen = [view for view in views if view.flip[0] == flip and view.variant[0] == 0]
        mean, std = data.stored(0, 0, flip).astype(np.float32)
        drawn = np.stack([view.load(0).numpy() for view in chosen])
        assert len(chosen) > 50 and drawn.shape[1:] == mean.shape
        normal = (drawn - mean) / std
        assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
        # Neither over space nor over epochs is noise used twice.
        assert abs(np.corrcoef(normal[:2].reshape(2, -1))[0, 1]) < 0.3
    assert not np.array_equal(data.stored(0, 0, 0), data.stored(0, 0, 1))


def test_an_epoch_follows_from_seed_and_epoch_alone_in_any_order_and_thread(moments):
    data, again = LatentShards(moments), LatentShards(moments)
    view, copy = data.epoch(2, seed=5), pickle.loads(pickle.dumps(again.epoch(2, seed=5)))
    expected = [view.load(i) for i in range(12)]
    order = [i for _ in range(20) for i in np.random.default_rng(0).permutation(12).tolist()]
    with ThreadPoolExecutor(8) as pool:
        for i, latent in zip(order, pool.map(copy.load, order), strict=True):
            assert torch.equal(latent, expected[i])
    for other in (data.epoch(3, seed=5), data.epoch(2, seed=6)):
        assert not torch.equal(other.load(0), expected[0])
    noise_0, noise_1 = (
        (view.load(i).numpy() - data.stored(i, view.variant[i], int(view.flip[i]))[0])[0, :2, :2] for i in (0, 1)
    )
    assert not np.allclose(noise_0, noise_1)


def test_grey_pixels_and_latents_without_flip(root, moments, tmp_path):
    data = LatentShards(make(root, tmp_path / "grey", channels=1))
    assert data.channels == 1 and data.epoch(0, 0).load(0).shape[0] == 1
    data = LatentShards(make(root, tmp_path / "out", str(moments.parent / "vae"), patch_size=2, flip=False))
    assert not data.epoch(0, 0).flip.any() and len(data.stored(0, 0, 0)) == 2
    size = sum(path.stat().st_size for path in (tmp_path / "out/shards").glob("*.safetensors"))
    assert size < 0.7 * sum(path.stat().st_size for path in (moments / "shards").glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_shard_is_named_and_the_others_are_read(root, tmp_path, damage):
    data = LatentShards(make(root, tmp_path / "out"))
    path = tmp_path / "out/shards" / data.shards[data.shard[0]]
    content = bytearray(path.read_bytes())
    if damage == "lose":
        path.unlink()
    else:
        content[int(data.offset[0, 0]) + 5] ^= 1
        path.write_bytes(content if damage == "flip" else content[: int(data.offset[0, 0]) + 5])
    view = data.epoch(0, 0)
    view.variant[0] = 0
    with pytest.raises(UnreadableImage, match=rf"{data.ids[0]} .*{path.name}"):
        view.load(0)
    view.load(11)


def test_unfinished_or_damaged_data_is_one_sentence(root, tmp_path):
    out = make(root, tmp_path / "out")
    index = (out / "index.jsonl").read_bytes()
    (out / "index.jsonl").write_bytes(index[:-20])
    with pytest.raises(ValueError, match=r"index\.jsonl is damaged"):
        LatentShards(out)
    (out / "index.jsonl").write_bytes(index)
    LatentShards(out)
    (out / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        LatentShards(out)
    (out / "dataset.json").unlink()
    with pytest.raises(ValueError, match="not finished"):
        LatentShards(out)
    (out / "settings.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        LatentShards(out)
    with pytest.raises(ValueError, match="no prepared data"):
        LatentShards(root)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "lose", "stale"])
def test_columns_that_are_damaged_are_made_again(pixels, tmp_path, caplog, damage):
    out = shutil.copytree(pixels, tmp_path / "out")
    path, before = out / "index.columns", LatentShards(pixels)
    whole = path.read_bytes()
    if damage == "lose":  # As in data prepared by an earlier version.
        path.unlink()
    elif damage == "stale":  # Another index, though of the same images.
        index = (out / "index.jsonl").read_bytes().replace(b", ", b",")
        dataset = json.loads((out / "dataset.json").read_text()) | {"index_sha256": hashlib.sha256(index).hexdigest()}
        (out / "index.jsonl").write_bytes(index)
        (out / "dataset.json").write_text(json.dumps(dataset))
    else:
        path.write_bytes({"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-1], "empty": b""}[damage])
    assert LatentShards(out).digest() == before.digest() and (damage == "lose") == ("made again" not in caplog.text)
    assert (path.read_bytes() == whole) == (damage != "stale")
    caplog.clear()
    assert LatentShards(out).ids == before.ids and not caplog.text


def test_columns_that_cannot_be_written_are_no_obstacle(pixels, tmp_path, monkeypatch, caplog):
    out = shutil.copytree(pixels, tmp_path / "out")
    (out / "index.columns").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns, "write_file", full)
    assert len(LatentShards(out)) == 12 and "cannot be written" in caplog.text


def settings(source, *overrides):
    return build_recipe({"data": {"source": str(source)}}, overrides).data


def test_a_recipe_takes_a_prepared_folder(moments, pixels):
    data = build_dataset(settings(moments, "data.max_tokens=16", "data.channels=3"), 2)
    assert isinstance(data, LatentShards) and data.channels == 4 and data.flip
    assert not build_dataset(settings(pixels, "data.flip=false"), 4).flip


@pytest.mark.parametrize(
    ("override", "patch", "part"),
    [
        ("data.max_tokens=25", 4, "prepared with max_tokens 16, and data.max_tokens is 25: set data.max_tokens=16, or"),
        ("data.channels=1", 4, "prepared with channels 3, and data.channels is 1"),
        ("data.preprocessing=crop", 4, "prepared with preprocessing mixed, and data.preprocessing is crop"),
        ("data.min_scale=0.5", 4, "prepared with min_scale 1.0, and data.min_scale is 0.5"),
        ("data.canvas={objects: [1, 2]}", 4, "prepared with canvas None"),
        ("data.labels=none", 4, "data.labels=none would have no effect"),
        ("data.flip=true", 2, "holds latents for patches of 4; set model.patch_size=4"),
    ],
)
def test_settings_that_contradict_the_preparation_are_refused(pixels, override, patch, part):
    with pytest.raises(ValueError) as error:
        build_dataset(settings(pixels, override), patch)
    assert part in str(error.value)


def test_memory_is_flat_over_an_epoch(tmp_path):
    root = write_files(tmp_path / "root", {f"{i:03}.png": saved(noise(8, 8, i)) for i in range(400)})
    data = LatentShards(make(root, tmp_path / "out", max_tokens=1024, patch_size=8, preprocessing="crop", channels=1))
    assert sum(path.stat().st_size for path in (tmp_path / "out/shards").iterdir()) > 25e6
    view = data.epoch(0, 0)
    view.load(0)
    before = psutil.Process().memory_info().rss
    for i in range(400):
        view.load(i)
    assert psutil.Process().memory_info().rss - before < 5e6


def test_training_on_latents_draws_its_sheet_and_names_the_autoencoder(moments, tmp_path, caplog):
    settings = [f"data.source={json.dumps(str(moments))}", "model.patch_size=2", "training.steps=2"]
    chosen = recipe(*settings, "data.max_tokens=16", "data.preprocessing=mixed", "log.sample_every=2")
    dataset = build_dataset(chosen.data, 2)
    run = trainer(tmp_path / "run", *settings, "log.sample_every=2", dataset=dataset)
    run.fit(lambda figures: None)
    saved = load_pretrained(tmp_path / "run")
    assert saved.autoencoder == dataset.autoencoder and saved.model.config.in_channels == 4
    assert saved.class_names == ["cat", "dog"] and run.progress.sheet.is_file()
    run.progress.sheet.unlink()
    dataset.autoencoder = str(tmp_path / "nowhere")
    run.draw_sheet()
    told = caplog.text
    assert "nowhere cannot be loaded" in told and ": the autoencoder" in told and not run.progress.sheet.exists()
