"""The drawings: those that ship, those that are never trained on, and how they are made from packages."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitv2.build import build_dataset, build_model_config
from fitv2.data.contents import read_contents
from fitv2.data.cutouts import every, held_out
from fitv2.data.emoji import HELD_BACK, cutouts, read_drawings
from fitv2.errors import UserError
from fitv2.evaluation.image_sets import open_images
from fitv2.prepare import emoji
from fitv2.prepare.emoji_names import Catalogue
from fitv2.prepare.emoji_sets import EMOJIBASE, PERMISSIVE, SETS
from fitv2.settings.read import build_recipe
from fitv2.training.trainer import Trainer
from image_folders import write_tar
from tiny import log_lines, recipe

GROUPS = {"groups": {"4": "food-drink", "8": "symbols"}, "subgroups": {"42": "food-fruit", "95": "alphanum"}}
FRUIT = {"group": 4, "subgroup": 42}
ENTRIES = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["fruit"], **FRUIT},
    {"label": "grapes", "hexcode": "1F347", **FRUIT},
    {"label": "eggplant", "hexcode": "1F346", **FRUIT},
    {"label": "A button", "hexcode": "1F170-FE0F", "group": 8, "subgroup": 95},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]
SVG = '<rect x="2" y="4" width="10" height="5" fill="#f00"/>'
ICONS = {"width": 16, "height": 16, "icons": {name: {"body": SVG} for name in ("red-apple", "grapes-2", "nothing")}}


@pytest.fixture(scope="module")
def bundled():
    return read_drawings()


def test_the_bundle_is_small_permissive_and_of_three_styles(bundled):
    archive = files("fitv2.data").joinpath("emoji.zip")
    assert len(bundled) == 1500 and len(archive.read_bytes()) < 8e6
    assert {drawing.set for drawing in bundled} <= {drawn.name for drawn in SETS if drawn.licence in PERMISSIVE}
    assert len({drawing.style for drawing in bundled}) == 3 and len({drawing.name for drawing in bundled}) == 500
    for drawing in bundled[::100]:
        image = Image.open(io.BytesIO(drawing.content))
        assert (image.height, image.width) == drawing.size and max(image.size) <= 128
    assert not {drawing.group for drawing in bundled} & {"flags", "symbols", "component"}


def test_the_lists_in_the_repository_are_of_what_is_never_trained_on(bundled):
    lists = json.loads(files("fitv2.data").joinpath("emoji-held.json").read_text())
    assert all(every(name, HELD_BACK) for name in lists["names"]) and 80 < len(lists["names"]) < 160
    assert {drawing.name for drawing in bundled if drawing.held_back} <= set(lists["names"])
    data = cutouts(bundled)
    assert {data.ids[i] for i in held_out(data.ids)} <= set(lists["drawings"])
    assert not {drawing.id for drawing in bundled if drawing.held_back} & set(lists["drawings"])


def test_a_training_has_no_name_that_is_held_back_and_measures_drawings_that_are_held_out(bundled, tmp_path):
    settings = ["data.source=emoji", "data.max_tokens=16", "model.patch_size=8", "training.holdout=0.02"]
    chosen = recipe(*settings)
    data = build_dataset(chosen.data, 8)
    back = {drawing.label for drawing in bundled if drawing.held_back}
    assert back and not back & set(data.cutouts.names) and len(data) < 1500
    run = Trainer(chosen, data, build_model_config(chosen, data), tmp_path)
    assert np.array_equal(run.holdout.chosen, data.held_out) and 40 < len(data.held_out) < 100
    run.fit(lambda figures: None)
    assert log_lines(tmp_path)[-1]["step"] == 10 and "holdout_loss" in log_lines(tmp_path)[-1]
    assert "food-drink" in data.class_names and data.num_classes < 10


def test_without_canvases_each_drawing_fills_its_own_and_names_are_classes():
    tree = {"model": {"patch_size": 8}, "data": {"source": "emoji", "canvas": None, "classes": "name", "min_scale": 1}}
    data = build_dataset(build_recipe(tree).data, 8)
    view = data.epoch(1, 0)
    assert data.num_classes > 400 and view.labels.max() < data.num_classes and not view.variant.any()
    assert view.caption(0).startswith(("a", "an")) and data.class_names[int(view.labels[0])] in view.caption(0)


def test_a_catalogue_knows_names_of_every_set_and_leaves_signs_out():
    catalogue = Catalogue(ENTRIES, GROUPS, [{"1f347": "bunch-of-grapes"}])
    found = [catalogue.by_name(name) for name in ("red-apple", "redapple", "apple-of-no-set", "bunch-of-grapes-2")]
    assert [thing and thing.name for thing in found] == ["red-apple", "red-apple", None, "grapes"]
    assert catalogue.by_name("aubergine").label == "eggplant" and catalogue.by_code("1f34e").tags == ("fruit",)
    assert catalogue.by_name("a-button") is None and catalogue.by_code("1f170-fe0f") is None


def tarball(path: Path, contents: dict[str, bytes]) -> str:
    """Writes a package as npm does, and returns its SHA-256."""
    members = {f"package/{name}": content for name, content in contents.items()}
    return hashlib.sha256(write_tar(path, members, "w:gz").read_bytes()).hexdigest()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that has small packages of the known names; the calls it got."""
    (tmp_path / "registry").mkdir()
    drawing = io.BytesIO()
    Image.new("RGBA", (20, 10), "blue").save(drawing, "WEBP")
    packages = {
        EMOJIBASE: {"en/data.json": json.dumps(ENTRIES).encode(), "meta/groups.json": json.dumps(GROUPS).encode()}
    }
    for drawn in SETS:
        packages[drawn] = {"icons.json": json.dumps(ICONS).encode(), "chars.json": b"{}"}
        if drawn.images:
            packages[drawn] = {f"{drawn.images}/1f347.webp": drawing.getvalue()}
    known = {
        package: replace(package, sha256=tarball(tmp_path / "registry" / package.tarball, contents))
        for package, contents in packages.items()
    }
    monkeypatch.setattr(emoji, "EMOJIBASE", known.pop(EMOJIBASE))
    monkeypatch.setattr(emoji, "SETS", tuple(known.values()))
    calls = []

    def run(command, **options):
        calls.append(command[2])
        package = command[2].removeprefix("@").replace("/", "-").replace("@", "-")
        shutil.copy(tmp_path / "registry" / f"{package}.tgz", command[4])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(emoji.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(emoji.subprocess, "run", run)
    return calls


def made(out: Path, *groups: str) -> list[emoji.Written]:
    return emoji.make_emoji(out, 32, lambda what, total: nullcontext(lambda count: None), emoji.SETS, groups)


def test_drawings_are_fetched_rendered_and_trimmed_once(npm, tmp_path):
    first, out = made(tmp_path / "out"), tmp_path / "out"
    assert len(npm) == 10 and all(archive.made for archive in first)
    assert [archive.drawings for archive in first] == [1 if drawn.images else 2 for drawn in SETS]
    drawings = {drawing.id: drawing for drawing in read_drawings(out)}
    assert drawings["noto/red-apple"].size == (15, 30) and drawings["noto/grapes-2"].label == "grapes"
    image = Image.open(io.BytesIO(drawings["noto/red-apple"].content)).convert("RGBA")
    assert image.getpixel((15, 7)) == (255, 0, 0, 255) and drawings["fluent-3d/grapes"].size == (10, 20)
    assert "Twitter" in (out / "ATTRIBUTION.md").read_text()
    contents = {path: path.read_bytes() for path in out.glob("*.zip")}
    (out / "noto.zip").unlink()
    (out / "twemoji.zip").write_bytes(b"half")
    again = made(out)
    assert [archive.path.stem for archive in again if archive.made] == ["noto", "twemoji"] and len(npm) == 10
    assert {path: path.read_bytes() for path in out.glob("*.zip")} == contents
    with pytest.raises(ValueError, match=r"data\.folder"):
        read_contents(out)


def test_a_group_of_things_is_drawn_alone(npm, tmp_path):
    fox = {"label": "fox", "hexcode": "1F98A", "group": 3, "subgroup": 30}
    groups = {"groups": GROUPS["groups"] | {"3": "animals-nature"}, "subgroups": GROUPS["subgroups"] | {"30": "mammal"}}
    catalogue = Catalogue([*ENTRIES, fox], groups, [])
    catalogue.keep(["animals-nature"])
    assert catalogue.by_name("fox") is not None and catalogue.by_name("red-apple") is None
    assert [archive.drawings for archive in made(tmp_path, "food-drink")] == [
        1 if drawn.images else 2 for drawn in SETS
    ]
    with pytest.raises(UserError, match="food-drink"):
        made(tmp_path, "food")


def test_what_cannot_be_fetched_is_one_sentence(npm, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made(out)
    (out / "packages" / SETS[0].tarball).write_bytes(b"another")
    (tmp_path / "registry" / SETS[0].tarball).write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256"):
        made(out)
    failed = subprocess.CompletedProcess([], 1, "", "npm error code E404\nmore")
    monkeypatch.setattr(emoji.subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(ValueError, match="E404"):
        made(out)
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"Node\.js"):
        made(out)


def test_a_missing_renderer_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"fitv2\[emoji\]"):
        made(tmp_path)


def test_folders_without_drawings_and_damaged_archives_are_reported(tmp_path):
    with pytest.raises(ValueError, match="fitv2 emoji --out"):
        read_drawings(tmp_path)
    for content in (b"no zip", files("fitv2.data").joinpath("emoji.zip").read_bytes()[:100_000]):
        (tmp_path / "noto.zip").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read_drawings(tmp_path)


def test_drawings_are_a_reference_for_scores(tmp_path):
    images = open_images("emoji", tmp_path)
    assert len(images) > 1000 and len(images.class_names) > 5 and images.labels.max() < len(images.class_names)
    for index in range(0, len(images), 397):
        pixels = images.pixels(index)
        assert pixels.dtype == np.uint8 and pixels.shape == (*images.sizes[index], 3)
    trained = build_dataset(build_recipe({"data": {"source": "emoji"}, "model": {"patch_size": 8}}).data, 8)
    assert np.array_equal(images.epochs[0].hw, trained.epoch(0, 0).hw), "they are those of the recipe"
    assert images.digest == open_images("emoji", tmp_path).digest
    with pytest.raises(UserError, match="no drawings"):
        open_images(f"emoji:{tmp_path}", tmp_path)


def test_a_damaged_deflated_index_is_reported_and_the_archive_made_again(tmp_path):
    path = tmp_path / "noto.zip"
    emoji.write_archive(path, [{"set": "noto", "style": "flat" * 9}], [])
    content = bytearray(path.read_bytes())
    start = content.index(b"index.json") + len("index.json")
    content[start] = 7  # A block of a kind that there is not.
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_drawings(tmp_path)
    assert not emoji.holds(path, {}, [])
