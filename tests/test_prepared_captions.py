"""Captions of every kind of source in prepared data, the features stored of them, and training on these."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fitv2.build import build_dataset, build_model_config, build_text_encoder
from fitv2.data.canvases import Canvases
from fitv2.data.dataset import Dataset
from fitv2.data.emoji import cutouts, read_drawings
from fitv2.data.latent_shards import LatentShards
from fitv2.data.prepared import COLUMNS
from fitv2.data.text_features import TEXT, TextFeatures, feature_files, is_whole, write_features
from fitv2.errors import UserError
from fitv2.prepare.sources import open_source
from fitv2.settings.read import build_recipe
from fitv2.text import BUILTIN, BUILTIN_FOLDER, StoredTexts, TextEncoder, encoder_digest, load_text_encoder
from fitv2.training.trainer import Trainer
from image_files import saved
from image_folders import noise, write_files, write_tar
from test_sources import listed, taken

BYTES_READ = Path("/proc/self/io")
CAPTIONS = [("a black card", "a dark card"), ("ein Kärtchen",), ()]
NAMES = ["0.png", "1.png", "2.png"]
IMAGES = {name: saved(noise(24, 16, number)) for number, name in enumerate(NAMES)}
TEXTS = {"0.txt": b"a black card\n\n a dark card\n", "1.caption": "\ufeffein Kärtchen".encode()}
CROPPED = ["--out", "other", "--preprocessing", "crop"]
PREPARE = ["--out", "out", "--max-tokens", "16", "--autoencoder", "pixels", "--patch-size", "4"]


def source_of(folder: Path, kind: str) -> str:
    """Makes a source of three images with CAPTIONS."""
    if kind == "texts":
        return str(write_files(folder, IMAGES | TEXTS))
    rows = [{"file_name": name, "text": list(texts)} for name, texts in zip(NAMES, CAPTIONS, strict=True)]
    if kind == "table":
        content = "\n".join(map(json.dumps, rows)).encode()
        return str(write_files(folder, IMAGES | {"metadata.jsonl": content}))
    if kind == "list":
        # A line for each caption, as in the tables of COCO.
        lines = [
            "file_name,caption",
            *(f"{name},{text}" for name, texts in zip(NAMES, CAPTIONS, strict=True) for text in texts),
        ]
        return str(write_files(folder, IMAGES | {"list.csv": "\n".join([*lines, "2.png,"]).encode()}) / "list.csv")
    if kind == "archive":
        told = {"0.json": b'{"caption": "a dark card"}', "0.caption": b"a black card", "2.txt": b"", "readme.txt": b"x"}
        return str(write_tar(folder / "all.tar", IMAGES | told | {"1.txt": TEXTS["1.caption"]}))
    features = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    columns = {
        "image": [{"bytes": content, "path": None} for content in IMAGES.values()],
        "caption": list(map(list, CAPTIONS)),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(folder))
    return str(folder)


def data_of(folder: Path, patch: int = 4) -> Dataset:
    recipe = build_recipe({"data": {"source": str(folder)}})
    return build_dataset(recipe.data, patch, captioned=True)


def test_canvases_of_drawings_are_prepared_with_their_captions(fitv2, tmp_path):
    drawings = ["--epochs", 2, "--objects", 2, "--min-scale", 0.8]
    options = ["--max-tokens", 4, "--patch-size", 16, "--autoencoder", "pixels"]
    shown = fitv2("prepare", "emoji", *drawings, *options, "--out", "out").ok().out
    canvases = Canvases(cutouts(read_drawings(), "none"), 4, 16, objects=(1, 2), min_scale=0.8)
    trained = [i for i in range(len(canvases)) if i not in set(canvases.held_out.tolist())]
    assert f"{2 * len(trained):,} images of {2 * len(trained):,} files" in shown
    made, epochs = data_of(tmp_path / "out", 16), [canvases.epoch(number, 0) for number in (0, 1)]
    for image in (0, 7, len(trained), 2 * len(trained) - 1):
        epoch, index = epochs[image // len(trained)], trained[image % len(trained)]
        assert made.captions(image, 0, (1, 1), False, None) == (epoch.caption(index),)
        torch.testing.assert_close(made.epoch(0, 0).load(image), epoch.load(index), atol=1e-6, rtol=0)
    assert not made.flip, "left would be right"
    told = fitv2("prepare", write_files(tmp_path / "mine", IMAGES), *drawings, *options, "--out", "other").sentence
    assert "--epochs, --objects, --min-scale: without effect" in told
    assert "--preprocessing: without effect with emoji" in fitv2("prepare", "emoji", *options, *CROPPED).sentence


def test_a_folder_called_emoji_has_a_name_of_its_own(fitv2, tmp_path):
    write_files(tmp_path / "emoji", IMAGES)
    assert "3 images of 3 files" in fitv2("prepare", "./emoji", *PREPARE).ok().out


@pytest.mark.parametrize("kind", ["texts", "table", "list", "archive", "hub"])
def test_captions_of_every_source_are_stored(fitv2, tmp_path, kind):
    shown = fitv2("prepare", source_of(tmp_path / "images", kind), *PREPARE).ok().out
    assert "2 of 3 images have a caption" in shown
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    images = [line for line in lines if "skipped" not in line]
    assert [tuple(line.get("captions", ())) for line in images] == CAPTIONS
    skipped = {"table": ["metadata.jsonl"], "archive": ["all.tar/readme.txt"]}.get(kind, [])
    assert [line["id"] for line in lines if "skipped" in line] == skipped
    stored = [data_of(out).captions(image, 0, (1, 1), False, None) for image in range(3)]
    (out / COLUMNS).unlink()  # From the index, as after an update.
    again = [data_of(out).captions(image, 0, (1, 1), False, None) for image in range(3)]
    assert stored == again == CAPTIONS


def test_captions_change_the_index_and_no_shard(fitv2, tmp_path):
    """Also those that come to data that had none; a repeated image has its own, here none."""
    folder = write_files(tmp_path / "images", IMAGES | {"again.png": IMAGES["0.png"]})
    fitv2("prepare", "images", *PREPARE).ok()
    shards = {path: path.read_bytes() for path in (tmp_path / "out/shards").glob("*.safetensors")}
    assert not LatentShards(tmp_path / "out").captioned
    with pytest.raises(UserError, match="needs captions"):
        data_of(tmp_path / "out")
    for text in ("a card", "another card"):
        (folder / "0.txt").write_text(text)
        report = fitv2("prepare", "images", *PREPARE, "--json").json
        assert (report["encoded"], report["reused"], report["captioned"]) == (0, 0, 1)
        data = data_of(tmp_path / "out")
        assert [data.epoch(0, 0).caption(image) for image in range(4)] == [text, "", "", ""]
        assert {path: path.read_bytes() for path in (tmp_path / "out/shards").glob("*.safetensors")} == shards
    assert data.ids[3] == "again.png"


def test_captions_do_not_need_labels_that_are_clear(tmp_path):
    text = "file_name,width,height,text\na.png,1,2,a cat"
    with pytest.raises(UserError, match="columns width, height"):
        listed(tmp_path, "list.csv", text)
    source = open_source(str(tmp_path / "list.csv"), "none")
    assert list(taken(source)) == ["a.png"] and source.captions(0) == ("a cat",)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("0.txt", b"\xff", "the caption images/0.txt cannot be read"),
        ("metadata.csv", b"file_name,text\n0.png,caf\xe9", "line 2: the caption is not text in UTF-8"),
        ("all.tar", b"\xff", "the caption all.tar/0.txt cannot be read"),
    ],
)
def test_a_caption_that_is_no_text_is_one_sentence(fitv2, tmp_path, name, content, told):
    if name == "all.tar":
        write_tar(tmp_path / "images" / name, IMAGES | {"0.txt": content})
    else:
        write_files(tmp_path / "images", IMAGES | {name: content})
    assert told in fitv2("prepare", "images", *PREPARE).sentence


def features(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in feature_files(next((out / TEXT).iterdir()))}


@pytest.fixture
def with_features(fitv2, tmp_path, monkeypatch) -> Path:
    """A folder of images with captions, prepared with the features of these, two in a file."""
    monkeypatch.setattr("fitv2.prepare.texts.CAPTIONS_PER_FILE", 2)
    source_of(tmp_path / "images", "texts")
    shown = fitv2("prepare", "images", *PREPARE, "--text-encoder", BUILTIN).ok().out
    assert "the features of 4 captions stored now" in shown
    return tmp_path / "out"


def refuse_encoder(*_: object) -> None:
    pytest.fail("the encoder was loaded")


def test_features_are_those_of_the_encoder_which_other_prompts_load(with_features, monkeypatch):
    texts, other = [*CAPTIONS[0], *CAPTIONS[1], ""], "a cat"
    expected = load_text_encoder(BUILTIN)([*texts, other])
    settings = build_recipe({"model": {"context": "cross"}}).model
    stored = build_text_encoder(settings, LatentShards(with_features))
    assert isinstance(stored, StoredTexts)
    with monkeypatch.context() as patch:
        patch.setattr("fitv2.text.load_text_encoder", refuse_encoder)
        found = stored(texts)
    for one, features in zip(found, expected, strict=False):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, features, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(stored([other, texts[0]])[0], expected[-1], atol=1e-5, rtol=1e-5)
    assert stored.pack(texts).hw[:, 0].tolist() == [len(one) for one in expected[:-1]]


def test_training_does_not_load_the_encoder(with_features, tmp_path, monkeypatch):
    monkeypatch.setattr("fitv2.text.load_text_encoder", refuse_encoder)
    training = {"steps": 2, "max_tokens_per_batch": 16, "warmup_steps": 1, "precision": "fp32"}
    model = {"patch_size": 4, "context": "joint", "width": 32, "depth": 1, "heads": 2}
    recipe = build_recipe({"data": {"source": str(with_features)}, "training": training, "model": model})
    data = data_of(with_features)
    losses = []
    Trainer(recipe, data, build_model_config(recipe, data), tmp_path / "run").fit(losses.append)
    assert len(losses) == 2


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_features_are_computed_instead(with_features, caplog):
    first, second = sorted((with_features / TEXT).glob("*/*.safetensors"))
    spoil(first)
    second.write_bytes(second.read_bytes()[:100])
    texts = [*CAPTIONS[0], *CAPTIONS[1], ""]
    stored = StoredTexts(TextFeatures(first.parent), BUILTIN)
    assert sum(stored.features.get(text) is None for text in texts * 2) == 6
    assert caplog.text.count(f"{first} is damaged (another checksum)") == caplog.text.count(f"{second} is damaged") == 1
    for one, features in zip(stored(texts), load_text_encoder(BUILTIN)(texts), strict=True):
        torch.testing.assert_close(one, features, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not BYTES_READ.exists(), reason="only Linux counts the bytes that a process reads")
def test_no_more_is_read_than_the_features_that_are_asked_for(tmp_path):
    """Reading whole files took half of the time of a training."""
    captions = [f"a caption with the number {number}" for number in range(200)]
    written = [np.random.default_rng(number).standard_normal((9, 384)).astype(np.float16) for number in range(200)]
    write_features(tmp_path, captions, written)
    stored = TextFeatures(tmp_path)
    before = int(BYTES_READ.read_text().split()[1])
    read = stored.get(captions[57])
    after = int(BYTES_READ.read_text().split()[1])
    assert read is not None and np.array_equal(read, written[57]) and after - before < 2 * read.nbytes


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(ends=np.array([0, 9, 3])),
        lambda arrays: arrays.update(ends=np.array([0, 2, 2**40])),
        lambda arrays: arrays.update(features=arrays["features"].astype(np.float32)),
        lambda arrays: arrays.update(features=arrays["features"][:, 0].copy()),
        lambda arrays: arrays.update(crc32=arrays["crc32"][:1]),
    ],
)
def test_a_file_of_other_features_counts_as_damaged(tmp_path, caplog, change):
    write_features(tmp_path, ["one", "two"], [np.ones((2, 4), np.float16), np.ones((1, 4), np.float16)])
    (path,) = feature_files(tmp_path)
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    assert TextFeatures(tmp_path).get("one") is None and not is_whole(path) and "is damaged" in caplog.text


def test_features_are_stored_once_and_what_is_missing_or_damaged_again(fitv2, with_features, tmp_path):
    before, again = features(with_features), ("prepare", "images", *PREPARE, "--text-encoder", BUILTIN, "--json")
    first, second = sorted((with_features / TEXT).glob("*/*.safetensors"))
    written = first.stat().st_mtime_ns
    second.unlink()  # As if the preparation had been killed before.
    assert fitv2(*again).json["texts_encoded"] == 2
    assert features(with_features) == before and first.stat().st_mtime_ns == written
    spoil(first)
    assert f"not as written: {first.name}" in fitv2("inspect", "out", "--verify").sentence
    assert fitv2(*again).json["texts_encoded"] == 2
    assert features(with_features) == before
    (tmp_path / "images" / "2.txt").write_text("a new card\nein Kärtchen", encoding="utf-8")
    assert fitv2(*again).json["texts_encoded"] == 1


def test_features_of_another_encoder_are_not_used(with_features, tmp_path, caplog):
    """The files of an encoder tell, not its name: a copy of the folder is the same one, until it is changed."""
    copy = shutil.copytree(BUILTIN_FOLDER, tmp_path / "copy")
    assert encoder_digest(str(copy)) == encoder_digest(BUILTIN)
    settings = build_recipe({"model": {"context": "cross", "text_encoder": str(copy)}}).model
    assert isinstance(build_text_encoder(settings, LatentShards(with_features)), StoredTexts)
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + " ")
    assert encoder_digest(str(copy)) != encoder_digest(BUILTIN)
    other = settings.model_copy(update={"text_encoder": BUILTIN})
    next((with_features / TEXT).iterdir()).rename(with_features / TEXT / "other")
    assert isinstance(build_text_encoder(other, LatentShards(with_features)), TextEncoder)
    assert "features of another text encoder" in caplog.text


def test_of_a_hub_id_name_and_commit_tell(tmp_path):
    """In a cache as the hub's own client makes it, without a network."""
    cache, commits = tmp_path / "hub" / "models--some--encoder", ["a" * 40, "b" * 40]
    for commit in commits:
        (cache / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(BUILTIN_FOLDER / "config.json", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    code = (
        "import pathlib, sys; from fitv2.text import encoder_digest\n"
        "for commit in sys.argv[2:]:\n"
        "    pathlib.Path(sys.argv[1]).write_text(commit)\n"
        "    print(encoder_digest('some/encoder'))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", code, str(cache / "refs/main"), *commits]
    found = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split()
    assert len(set(found)) == len(found) == 2


def test_an_encoder_without_captions_is_one_sentence(fitv2, tmp_path):
    write_files(tmp_path / "images", IMAGES)
    for name, told in ((BUILTIN, "no image of images has a caption"), ("builtin:none", "no text encoder builtin:none")):
        assert told in fitv2("prepare", "images", *PREPARE, "--text-encoder", name).sentence
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_an_inspection_tells_of_captions(fitv2, with_features):
    told = fitv2("inspect", "out", "--json").json["captions"]
    size = sum(map(len, features(with_features).values()))
    assert told == {
        "images": 2,
        "captions": 3,
        "mean_words": 2.67,
        "examples": ["a black card", "ein Kärtchen"],
        "encoders": [{"encoder": BUILTIN, "captions": 4, "bytes": size}],
    }
    shown = fitv2("inspect", "out").ok().out
    assert "2 of 3 images with 3 captions of 2.67 words on average, such as\n    a black card\n" in shown
    assert f"features of 4 captions by {BUILTIN}, {size:,} bytes" in shown


def test_images_beside_tables_are_all_read(tmp_path):
    """A table of other things is no data set; metadata.parquet holds the captions."""
    other, own = (write_files(tmp_path / name, {f"{name}/{n}": c for n, c in IMAGES.items()}) for name in ("a", "b"))
    write_files(other, {f"test_{name}": content for name, content in IMAGES.items()})
    datasets.Dataset.from_dict({"numbers": [1.0, 2.0]}).to_parquet(str(other / "embeddings.parquet"))
    assert len(taken(open_source(str(other), "none"))) == 6
    files = [f"b/{name}" for name in NAMES]
    datasets.Dataset.from_dict({"file_name": files, "text": NAMES}).to_parquet(str(own / "metadata.parquet"))
    assert {open_source(str(own)).captions(i) for i in range(3)} == {(name,) for name in NAMES}


def test_splits_that_are_not_read_are_told(tmp_path):
    rows = datasets.load_from_disk(source_of(tmp_path / "rows", "hub"))
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "splits"))
    assert open_source(str(tmp_path / "splits")).notes == ["of the splits only train is used, not test (3 rows)"]
