"""Captions of every kind of source in prepared data, the features stored of them, and training on these."""

import json
from pathlib import Path

import datasets
import pytest

from fitv2.build import build_dataset
from fitv2.config import build_recipe
from fitv2.data.dataset import Dataset
from fitv2.data.prepared import COLUMNS
from fitv2.data.shards import LatentShards
from fitv2.errors import UserError
from fitv2.prepare.sources import open_source
from image_folders import as_bytes, noise, write_files
from test_sources import listed, taken, write_tar

CAPTIONS = [("a black card", "a dark card"), ("ein Kärtchen",), ()]
NAMES = ["0.png", "1.png", "2.png"]
IMAGES = {name: as_bytes(noise(24, 16, number)) for number, name in enumerate(NAMES)}
TEXTS = {"0.txt": b"a black card\n\n a dark card\n", "1.caption": "\ufeffein Kärtchen".encode()}
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


def data_of(folder: Path) -> Dataset:
    recipe = build_recipe({"data": {"source": str(folder)}})
    return build_dataset(recipe.data, 4, captioned=True)


@pytest.mark.parametrize("kind", ["texts", "table", "list", "archive", "hub"])
def test_captions_of_every_source_are_stored(fitv2, tmp_path, kind):
    code, shown = fitv2("prepare", source_of(tmp_path / "images", kind), *PREPARE)
    assert code in (0, None) and "2 of 3 images have a caption" in shown
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
    """Also those that come to data that had none; a repeated image keeps its own."""
    folder = write_files(tmp_path / "images", IMAGES | {"again.png": IMAGES["0.png"]})
    fitv2("prepare", "images", *PREPARE)
    shards = {path: path.read_bytes() for path in (tmp_path / "out/shards").glob("*.safetensors")}
    assert not LatentShards(tmp_path / "out").captioned
    with pytest.raises(UserError, match=r"needs captions, and .*out has none: .* run fitv2 prepare again"):
        data_of(tmp_path / "out")
    for text in ("a card", "another card"):
        (folder / "again.txt").write_text(text)
        report = json.loads(fitv2("prepare", "images", *PREPARE, "--json")[1])
        assert (report["encoded"], report["reused"], report["captioned"]) == (0, 0, 1)
        data = data_of(tmp_path / "out")
        assert [data.epoch(0, 0).caption(image) for image in range(4)] == ["", "", "", text]
        assert {path: path.read_bytes() for path in (tmp_path / "out/shards").glob("*.safetensors")} == shards
    assert data.ids[3] == "again.png"


def test_captions_do_not_need_labels_that_are_clear(tmp_path):
    text = "file_name,width,height,text\na.png,1,2,a cat"
    with pytest.raises(UserError, match="which of the columns width, height"):
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
    assert told in str(fitv2("prepare", "images", *PREPARE)[0])
