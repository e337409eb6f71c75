"""A folder of images as a data set: the scan, its report and cache, and the plan of an epoch."""

import json
import logging
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.build import build_dataset
from fitv2.config import build_recipe
from fitv2.data import folder as folder_module
from fitv2.data.folder import ImageFolder
from fitv2.data.formats import UnreadableImage
from fitv2.errors import UserError
from fitv2.prepare.sources import FolderSource
from fitv2.sheets import save_sheet
from fitv2.training.run_folder import check_run, keep_recipe

SIZES = {  # height, width in pixels; the tests' budget is 16 tokens of 4 x 4 pixels
    "cat/a.png": (60, 40),  # both sides over 16: may be cropped
    "cat/more/b.jpg": (16, 90),  # only resized
    "dog/a.webp": (9, 14),  # under the budget
    "dog/b.png": (4, 64),  # one patch high
    "dog/c.png": (33, 33),
}


def save_image(path, height, width):
    """A gradient along both axes, so that mirrored, turned and cropped images differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    red, green = rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1)
    Image.fromarray(np.stack([red, green, 255 - green], axis=2).astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for name, size in SIZES.items():
        save_image(tmp_path / "images" / name, *size)
    return tmp_path / "images"


def open_folder(root, max_tokens=16, patch=4, **options) -> ImageFolder:
    return ImageFolder(root, max_tokens, patch, **options)


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The names of the files that get decoded from now on."""
    names = []

    def spy(path, mode):
        names.append(path.name)
        return decode(path, mode)

    decode = folder_module.decode
    monkeypatch.setattr(folder_module, "decode", spy)
    return names


def test_classes_sizes_and_order(root):
    data = open_folder(root)
    assert (len(data), data.patch_size, data.channels) == (5, 4, 3)
    assert (data.num_classes, data.class_names) == (2, ["cat", "dog"])
    assert dict(zip(data.paths, map(tuple, data.sizes.tolist()), strict=True)) == SIZES
    assert data.paths == sorted(SIZES)
    view = data.epoch(0, seed=0)
    assert view.labels.tolist() == [0, 0, 1, 1, 1]
    assert view.labels.dtype == view.hw.dtype == np.int64


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preprocessing", ["resize", "crop", "mixed"])
def test_latents_are_as_planned(root, channels, preprocessing):
    data = open_folder(root, channels=channels, preprocessing=preprocessing, min_scale=0.5)
    for epoch in range(4):
        view = data.epoch(epoch, seed=0)
        assert view.hw.shape == (5, 2) and (view.hw.prod(1) <= 16).all() and (view.hw >= 1).all()
        for index, (rows, columns) in enumerate(view.hw.tolist()):
            latent = view.latent(index)
            assert latent.shape == (channels, rows * 4, columns * 4)
            assert latent.dtype == torch.float32 and latent.is_contiguous()
            assert latent.min() >= -1 and latent.max() <= 1


def test_sizes_without_scale(root):
    view = open_folder(root, preprocessing="resize").epoch(0, seed=0)
    assert view.hw.tolist() == [[4, 3], [1, 9], [2, 3], [1, 16], [4, 4]]
    view = open_folder(root, preprocessing="crop").epoch(0, seed=0)
    assert view.hw.tolist() == [[4, 4]] * 5


def test_black_and_white_are_the_ends_of_the_range(tmp_path):
    Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 8)[None].repeat(16, 0)).save(tmp_path / "a.png")
    latent = open_folder(tmp_path, flip=False, preprocessing="resize").epoch(0, seed=0).latent(0)
    assert (latent[:, :, :8] == -1).all() and (latent[:, :, 8:] == 1).all()


def test_flip_is_a_mirror(root):
    plain, mirrored = open_folder(root, flip=False), open_folder(root)
    assert not plain.epoch(0, seed=0).flip.any()
    seen = set()
    for epoch in range(4):
        a, b = plain.epoch(epoch, seed=0), mirrored.epoch(epoch, seed=0)
        assert np.array_equal(a.hw, b.hw)
        for index in range(5):
            flipped = bool(b.flip[index])
            assert torch.equal(b.latent(index), a.latent(index).flip(2) if flipped else a.latent(index))
            seen.add(flipped)
    assert seen == {False, True}


def test_bad_files_are_named_and_skipped(root, caplog):
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "page.jpg").write_text("<html>")
    whole = (root / "cat" / "more" / "b.jpg").read_bytes()
    (root / "dog" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "link.png").symlink_to(root / "nowhere.png")
    save_image(root / "loose.png", 20, 20)
    (root / "dog" / "notes.txt").write_text("a dog")
    (root / "dog" / "more.TXT").write_text("another dog")
    (root / "README").write_text("dogs and cats")
    (root / "dog" / "._a.webp").write_bytes(b"resource fork")
    save_image(root / ".cache" / "a.png", 20, 20)
    (root / "lists").mkdir()
    (root / "lists" / "all.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        data = open_folder(root, labels_from="folders")
    assert data.paths == sorted(SIZES) and data.class_names == ["cat", "dog"]
    report = data.report
    reasons = {path: reason.partition(":")[0] for path, reason in report.skipped}
    assert reasons == {
        "cat/empty.png": "empty file",
        "cat/page.jpg": "not an image",
        "dog/half.jpg": "truncated or damaged",
        "dog/link.png": "not a file",
        "loose.png": "outside the class folders",
    }
    assert (report.found, report.usable) == (10, 5)
    assert report.ignored == {"without extension": 1, "hidden": 2, ".txt": 2, ".json": 1}
    for text in ("10 image files, 5 usable, 5 skipped", "dog/half.jpg: truncated", "2 .txt", "1 skipped: empty file"):
        assert text in report.summary() and text in caplog.text


def test_long_reports_name_the_first_files(root, tmp_path):
    for number in range(25):
        (root / "cat" / f"bad{number:02}.png").write_bytes(b"")
    report = open_folder(root).report
    summary = report.summary()
    assert summary.count("bad") == 20 and "bad19.png" in summary and "and 5 more" in summary
    report.write(tmp_path / "new" / "report.json")
    written = json.loads((tmp_path / "new" / "report.json").read_text())
    assert len(written["skipped"]) == 25 and written["skipped_by_reason"] == {"empty file": 25}
    assert (written["found"], written["usable"], written["root"]) == (30, 5, str(root))


def test_class_without_a_readable_image_keeps_its_label(root, caplog):
    (root / "cow").mkdir()
    (root / "cow" / "a.png").write_bytes(b"")
    data = open_folder(root)
    assert data.class_names == ["cat", "cow", "dog"] and data.labels.tolist() == [0, 0, 2, 2, 2]
    assert "class 'cow' has no readable image" in caplog.text


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere: give the folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image files: put image files"):
        open_folder(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no image files(.|\n)*1 \.txt"):
        open_folder(tmp_path)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"no image can be read(.|\n)*a.png: not an image"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 4},
        {"min_scale": 0.0},
        {"min_scale": 1.5},
        {"preprocessing": "bucket"},
        {"max_tokens": 0},
        {"patch": 0},
    ],
)
def test_bad_options(root, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        open_folder(root, **options)


def test_cache_saves_the_second_scan(root, tmp_path, decoded):
    cache = tmp_path / "caches" / "scan.json"
    first = open_folder(root, cache_file=cache)
    assert len(decoded) == 5
    second = open_folder(root, cache_file=cache)
    assert len(decoded) == 5
    assert np.array_equal(first.sizes, second.sizes) and first.paths == second.paths
    assert os.listdir(cache.parent) == ["scan.json"]


def test_cache_checks_changed_new_and_bad_files(root, tmp_path, decoded):
    cache = tmp_path / "scan.json"
    (root / "cat" / "bad.png").write_bytes(b"")
    open_folder(root, cache_file=cache)
    decoded.clear()
    save_image(root / "dog" / "c.png", 20, 50)  # other content
    stamp = (root / "cat" / "a.png").stat().st_mtime_ns + 1
    os.utime(root / "cat" / "a.png", ns=(stamp, stamp))  # other time only
    save_image(root / "dog" / "new.png", 8, 8)
    (root / "dog" / "b.png").unlink()
    data = open_folder(root, cache_file=cache)
    assert sorted(decoded) == ["a.png", "bad.png", "c.png", "new.png"]
    assert dict(zip(data.paths, data.sizes.tolist(), strict=True))["dog/c.png"] == [20, 50]
    assert "dog/b.png" not in json.loads(cache.read_text())["images"]


@pytest.mark.parametrize(
    "content", ["", '{"version": 1, "pict', "[]", '{"version": 0, "images": {}}', '{"version": 1}']
)
def test_foreign_or_damaged_cache_is_made_anew(root, tmp_path, decoded, content):
    cache = tmp_path / "scan.json"
    cache.write_text(content)
    assert len(open_folder(root, cache_file=cache)) == 5 and len(decoded) == 5
    assert len(open_folder(root, cache_file=cache)) == 5 and len(decoded) == 5


def test_cache_that_cannot_be_written_costs_only_a_warning(root, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert len(open_folder(root, cache_file=tmp_path / "file" / "scan.json")) == 5
    assert "cannot be written" in caplog.text


def test_interrupted_scan_goes_on_where_it_stopped(root, tmp_path, monkeypatch):
    cache = tmp_path / "scan.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_module, "_check", lambda path, mode: _interrupt_at(path, "dog/b.png"))
        open_folder(root, cache_file=cache)
    assert sorted(json.loads(cache.read_text())["images"]) == ["cat/a.png", "cat/more/b.jpg", "dog/a.webp"]
    assert len(open_folder(root, cache_file=cache)) == 5


def _interrupt_at(path, name):
    if path.as_posix().endswith(name):
        raise KeyboardInterrupt
    return list(SIZES["/".join(path.parts[path.parts.index("images") + 1 :])])


def test_file_that_changes_during_training_is_named(root):
    view = open_folder(root).epoch(0, seed=0)
    save_image(root / "cat" / "a.png", 61, 40)
    with pytest.raises(UnreadableImage, match=r"cat/a.png was \(60, 40\) pixels .* now is \(61, 40\)"):
        view.latent(0)
    (root / "cat" / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/a.png could be read .* No such file"):
        view.latent(0)


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    save_image(tmp_path / "elsewhere" / "a.png", 20, 20)
    (root / "fox").symlink_to(tmp_path / "elsewhere")
    (root / "fox" / "back").symlink_to(root)
    data = open_folder(root)
    assert data.paths == [*sorted(SIZES), "fox/a.png"] and data.class_names == ["cat", "dog", "fox"]


def test_file_names_of_any_bytes(root, tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    try:
        save_image(root / "cat" / name, 20, 20)
        (root / "cat" / f"bad {name}").write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    cache = tmp_path / "scan.json"
    open_folder(root, cache_file=cache)
    data = open_folder(root, cache_file=cache)
    assert f"cat/{name}" in data.paths
    data.report.summary().encode()
    data.report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["skipped"] == [[f"cat/bad {name}", "empty file"]]


def both_readings(root, labels="auto") -> dict[str, str | None]:
    """Image to class, as training and as preparation read a folder, which have to agree."""
    folder, source = open_folder(root, labels_from=labels), FolderSource(root, labels)
    names = folder.class_names
    assert names == source.class_names
    read = {path: names[label] if names else None for path, label in zip(folder.paths, folder.labels, strict=True)}
    prepared = {item.id: names[item.label] if names else None for item in source.items if item.refused is None}
    assert read == prepared
    return read


def save_all(root, *names):
    for name in names:
        save_image(root / name, 20, 20)


def test_images_beside_class_folders_are_asked_about(tmp_path):
    save_all(tmp_path, *(f"{i}.png" for i in range(58)), "rejected/a.png", "rejected/b.png")
    for read, option in ((open_folder, "--set data.labels="), (FolderSource, "--labels ")):
        with pytest.raises(UserError) as error:
            read(tmp_path)
        parts = ("58 images", "rejected/ (2)", f"{option}folders uses the sub-folders", f"{option}none all images")
        assert all(part in str(error.value) for part in parts), error.value
    assert set(both_readings(tmp_path, "folders").items()) == {
        ("rejected/a.png", "rejected"),
        ("rejected/b.png", "rejected"),
    }
    assert len(both_readings(tmp_path, "none")) == 60


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "#recycle"])
def test_folders_of_a_system_are_no_classes_and_counted_by_name(tmp_path, folder):
    save_all(tmp_path, "a.png", f"{folder}/a.png")
    (tmp_path / "Thumbs.db").touch()
    assert both_readings(tmp_path) == {"a.png": None}
    assert open_folder(tmp_path).report.ignored == {folder: 1, "Thumbs.db": 1}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train/cat/a.png", "train/dog/a.png"), ["sub-folder train", "cat, dog", "/train"]),
        (("test/cat/a.png", "Train/cat/a.png"), ["Train, test", "such as", "/Train"]),
    ],
)
def test_folders_that_hold_the_class_folders_are_no_classes(tmp_path, names, parts):
    save_all(tmp_path, *names)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert all(part in str(error.value) for part in parts), error.value
    assert set(both_readings(tmp_path, "folders").values()) == {name.partition("/")[0] for name in names}


def test_one_class_and_numbers_out_of_order_are_remarked(tmp_path, caplog):
    save_all(tmp_path, "all/a.png")
    assert both_readings(tmp_path) == {"all/a.png": "all"} and "the only class" in caplog.text
    save_all(tmp_path, "10/a.png", "2/a.png", "9/a.png")
    (tmp_path / "all" / "a.png").unlink()
    assert open_folder(tmp_path).class_names == ["10", "2", "9"] and "alphabetical" in caplog.text


TABLES = {
    "metadata.jsonl": '{"file_name": "x/a.png", "label": "cat"}\n{"file_name": "b.png", "label": "dog"}\n',
    "metadata.csv": "file_name,label\nx/a.png,cat\nb.png,dog\n",
    "dataset.json": '{"labels": [["x/a.png", "cat"], ["b.png", "dog"]]}',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_beside_the_images_has_the_labels(tmp_path, caplog, name):
    save_all(tmp_path, "x/a.png", "b.png", "c.png")
    (tmp_path / name).write_text(TABLES[name])
    assert both_readings(tmp_path) == {"x/a.png": "cat", "b.png": "dog"}
    assert f"the labels are those of {name}; the sub-folders" in caplog.text
    assert open_folder(tmp_path).report.skipped == [("c.png", f"not in {name}")]
    assert both_readings(tmp_path, "none").keys() == {"x/a.png", "b.png", "c.png"}
    save_all(tmp_path, "d.png", "e.png")
    with pytest.raises(UserError, match=f"{name} lists 2 of the 5 images"):
        open_folder(tmp_path)
    assert set(both_readings(tmp_path, "folders").values()) == {"x"}


def test_class_ids_of_a_table_keep_their_number_and_its_missing_files_are_listed(tmp_path):
    save_all(tmp_path, *(f"{i}.png" for i in range(4)))
    labels = [["0.png", 11], ["1.png", 2], ["./2.png", 10], ["3.png", 0], ["nowhere.png", 1]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert both_readings(tmp_path) == {"0.png": "11", "1.png": "2", "2.png": "10", "3.png": "0"}
    assert open_folder(tmp_path).report.skipped == [("nowhere.png", "not a file")]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("dataset.json", '{"labels": null}', "have no labels"),
        ("metadata.csv", "file_name,text\nx/a.png,a cat\ny/b.png,a dog\n", "holds no labels, only file_name, text"),
        ("dataset.json", '{"version": 1}', "is not used"),
        ("metadata.parquet", "PAR1", "is not read"),
    ],
)
def test_a_table_that_has_no_labels_is_said_to_have_none(tmp_path, caplog, name, content, note):
    save_all(tmp_path, "x/a.png", "y/b.png")
    (tmp_path / name).write_text(content)
    classes = set(both_readings(tmp_path).values())
    assert classes == ({None} if "null" in content else {"x", "y"}) and note in caplog.text


def test_several_tables_and_ones_further_down_are_asked_about(tmp_path):
    save_all(tmp_path, "x/a.png", "b.png", "train/a.png")
    for name in ("metadata.csv", "dataset.json"):
        (tmp_path / name).write_text(TABLES[name])
    with pytest.raises(UserError, match=r"dataset\.json and in metadata\.csv"):
        open_folder(tmp_path)
    for name in ("metadata.csv", "dataset.json"):
        (tmp_path / name).unlink()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.png,cat")
    with pytest.raises(UserError, match=r"in train/metadata\.csv"):
        open_folder(tmp_path)


OWN = {
    "a training run": ("recipe.json", "checkpoints/x", "samples/1.png"),
    "prepared data": ("settings.json", "shards/0.safetensors", "view.png"),
    "an inspection": ("images.csv", "plots.png"),
    "an evaluation": ("result.json", "scores.png", "sheet-x.png"),
    "a study": ("result.json", "final.png", "sheets/a.png"),
    "samples": ("sheet.png", "cat_20x20_seed0.png"),
}


@pytest.mark.parametrize("what", OWN)
def test_what_fitv2_made_is_no_data(tmp_path, what):
    root = tmp_path / "root"
    save_all(root, "cat/a.png", "dog/a.png", *(f"cat/out/{name}" for name in OWN[what] if name.endswith(".png")))
    for name in OWN[what]:
        (root / "cat/out" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cat/out" / name).touch()
    (root / "runs").symlink_to(root / "cat")
    assert [name.partition("/")[2] for name in both_readings(root)] == ["a.png"] * 3
    assert ("cat/out", f"made by fitv2: {what}") in open_folder(root).report.skipped
    if what == "samples":
        save_all(root, "cat/out/cat_20x20_seed0.png", "cat/out/sheet.png")
        assert list(both_readings(root / "cat/out")) == ["cat_20x20_seed0.png"]
    else:
        with pytest.raises(UserError, match=f"is {what}, made by fitv2"):
            open_folder(root / "cat/out")


def test_samples_among_images_hide_none_of_them(tmp_path):
    names = ["cat/a.png", "cat/more/b.png", "dog/a.png"]
    save_all(tmp_path, *names)
    for folder in ("", "cat", "cat/more", "dog"):
        save_all(tmp_path, *(f"{folder}/{name}" for name in OWN["samples"]))
    assert list(both_readings(tmp_path)) == names
    (tmp_path / "cat/sheet.png").rename(tmp_path / "cat/.samples.json.partial")  # As a call leaves it that was killed.
    assert list(both_readings(tmp_path)) == names
    (tmp_path / "cat/more/b.png").unlink()
    assert list(both_readings(tmp_path)) == ["cat/a.png", "dog/a.png"]
    save_sheet(Image.new("RGB", (40, 40)), tmp_path / "dog/copy.png")
    skipped = open_folder(tmp_path).report.skipped
    assert {("cat/more", "made by fitv2: samples"), ("dog/copy.png", "made by fitv2: a contact sheet")} <= {*skipped}


def test_a_run_does_not_lie_among_the_images(tmp_path):
    save_all(tmp_path, "cat/a.png", "dog/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "cat")
    recipe, mine = build_recipe({"data": {"source": str(tmp_path)}}), tmp_path / "cat/runs/mine"
    for run in ("", "cat", "link", "cat/../dog"):
        with pytest.raises(UserError, match="holds images"):
            check_run(tmp_path / run, recipe, False)
    with pytest.raises(UserError, match="holds images"):
        check_run(tmp_path / "cat", build_recipe({"data": {"source": "fashion"}}), False)
    for _ in range(2):  # The scan of a first start may have been interrupted.
        check_run(mine, recipe, False)
        assert len(build_dataset(recipe.data, 4, mine / "images.json")) == 3
    save_all(tmp_path, "cat/runs/mine/samples/a.png")
    keep_recipe(mine, recipe)
    check_run(mine, recipe, True)
    assert len(build_dataset(recipe.data, 4, mine / "images.json")) == 3


def test_lists_and_archives_are_sent_to_prepare(tmp_path):
    (tmp_path / "list.csv").touch()
    with pytest.raises(UserError, match="fitv2 prepare"):
        open_folder(tmp_path / "list.csv")


def test_unfit_images_and_other_formats_are_told_with_what_to_do(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    save_image(root / "dog" / "dot.png", 1, 1)
    save_image(root / "dog" / "strip.png", 1, 2000)
    for number in range(3):
        (root / "cat" / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    for name in ("drawing.svg", "photo.dng", "photo.cr2", "notes.txt"):
        (root / "cat" / name).write_bytes(b"x")
    report = open_folder(root).report
    assert report.skipped_by_reason == {"HEIC needs pip install 'fitv2[heif]'": 3, "too small": 1, "too narrow": 1}
    shown = report.summary()
    assert "3 skipped: HEIC needs pip install 'fitv2[heif]'" in shown and "too narrow: 1x2000" in shown
    assert "1 of them: vector drawing, render it to PNG" in shown and "2 of them: raw camera file" in shown
