"""A folder of images as a data set: the scan, its report and cache, and the epochs."""

import json
import logging
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.data import folder as folder_module
from fitv2.data.formats import UnreadableImage
from fitv2.data.scan import count_reasons
from fitv2.errors import UserError
from image_folders import open_folder, save_image

SIZES = {  # height, width in pixels; the tests' budget is 16 tokens of 4 x 4 pixels
    "cat/a.png": (60, 40),  # both sides over 16: may be cropped
    "cat/more/b.jpg": (16, 90),  # only resized
    "dog/a.webp": (9, 14),  # under the budget
    "dog/b.png": (4, 64),  # one patch high
    "dog/c.png": (33, 33),
}


@pytest.fixture
def root(tmp_path):
    for name, size in SIZES.items():
        save_image(tmp_path / "images" / name, *size)
    return tmp_path / "images"


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
def test_images_are_as_planned(root, channels, preprocessing):
    data = open_folder(root, channels=channels, preprocessing=preprocessing, min_scale=0.5)
    for epoch in range(4):
        view = data.epoch(epoch, seed=0)
        assert view.hw.shape == (5, 2) and (view.hw.prod(1) <= 16).all() and (view.hw >= 1).all()
        for index, (rows, columns) in enumerate(view.hw.tolist()):
            image = view.load(index)
            assert image.shape == (channels, rows * 4, columns * 4)
            assert image.dtype == torch.float32 and image.is_contiguous()
            assert image.min() >= -1 and image.max() <= 1


def test_each_epoch_draws_a_budget_for_each_image(root):
    data = open_folder(root, preprocessing="resize", further_tokens=(9, 4))  # 4 tokens are too few for two of them.
    alone = []
    for budget in (16, 9, 4):
        one = open_folder(root, preprocessing="resize", max_tokens=budget)
        alone.append({path: tuple(hw) for path, hw in zip(one.paths, one.epoch(0, 0).hw.tolist(), strict=True)})
    seen: dict[str, set] = {path: set() for path in data.paths}
    for epoch in range(30):
        view = data.epoch(epoch, seed=0)
        for index, (path, hw) in enumerate(zip(data.paths, view.hw.tolist(), strict=True)):
            seen[path].add(tuple(hw))
            assert view.load(index).shape == (3, hw[0] * 4, hw[1] * 4)
    assert seen == {path: {of_budget[path] for of_budget in alone if path in of_budget} for path in data.paths}
    with pytest.raises(UserError, match="one of them"):
        open_folder(root, preprocessing="resize", further_tokens=(9,), min_scale=0.5)


def test_sizes_without_scale(root):
    view = open_folder(root, preprocessing="resize").epoch(0, seed=0)
    assert view.hw.tolist() == [[4, 3], [1, 9], [2, 3], [1, 16], [4, 4]]
    view = open_folder(root, preprocessing="crop").epoch(0, seed=0)
    assert view.hw.tolist() == [[4, 4]] * 5


def test_black_and_white_are_the_ends_of_the_range(tmp_path):
    Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 8)[None].repeat(16, 0)).save(tmp_path / "a.png")
    image = open_folder(tmp_path, flip=False, preprocessing="resize").epoch(0, seed=0).load(0)
    assert (image[:, :, :8] == -1).all() and (image[:, :, 8:] == 1).all()


def test_flip_is_a_mirror(root):
    plain, mirrored = open_folder(root, flip=False), open_folder(root)
    assert not plain.epoch(0, seed=0).flip.any()
    seen = set()
    for epoch in range(4):
        a, b = plain.epoch(epoch, seed=0), mirrored.epoch(epoch, seed=0)
        assert np.array_equal(a.hw, b.hw)
        for index in range(5):
            flipped = bool(b.flip[index])
            assert torch.equal(b.load(index), a.load(index).flip(2) if flipped else a.load(index))
            seen.add(flipped)
    assert seen == {False, True}


def test_resized_images_stay_in_memory_up_to_a_limit(root, decoded, monkeypatch):
    data = open_folder(root, preprocessing="resize")
    decoded.clear()
    epochs = [data.epoch(epoch, seed=0) for epoch in range(3)]
    first, again = ([epoch.load(index) for epoch in epochs for index in range(5)] for _ in range(2))
    assert len(decoded) == 5 and all(map(torch.equal, first, again))
    monkeypatch.setattr(folder_module, "KEPT_BYTES", 2000)
    fresh = open_folder(root, preprocessing="resize")
    decoded.clear()
    assert all(torch.equal(fresh.epoch(epoch, seed=0).load(0), first[5 * epoch]) for epoch in range(3))
    for index in range(5):
        fresh.epoch(0, seed=0).load(index)
    assert fresh.kept_bytes == sum(pixels.nbytes for pixels in fresh.kept.values()) <= 2000
    assert 0 < len(fresh.kept) < 5 and len(decoded) == 5


def test_images_scaled_at_random_do_not_stay_in_memory(root):
    data = open_folder(root, preprocessing="resize", min_scale=0.5)
    data.epoch(0, seed=0).load(0)
    assert not data.kept


def test_bad_files_are_named_and_skipped(root, caplog):
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "page.jpg").write_text("<html>")
    whole = (root / "cat" / "more" / "b.jpg").read_bytes()
    (root / "dog" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "link.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "self.png").symlink_to("self.png")
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
        "dog/self.png": "not a file",
        "loose.png": "outside the class folders",
    }
    assert (report.found, report.usable) == (11, 5)
    assert report.ignored == {"without extension": 1, "hidden": 2, ".txt": 2, ".json": 1}
    for text in ("11 image files, 5 usable, 6 skipped", "dog/half.jpg: truncated", "2 .txt", "1 skipped: empty file"):
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


def test_nothing_to_train_on(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file") as error:
        open_folder(__file__)
    assert "prepare" not in str(error.value)
    (tmp_path / "list.csv").touch()
    with pytest.raises(UserError, match=r"list\.csv is a file .*fitv2 prepare"):
        open_folder(tmp_path / "list.csv")
    (tmp_path / "list.csv").unlink()
    for name, problem, reported in (
        ("a.txt", "no image files", "1 ignored, not images by their names: 1 .txt"),
        ("a.png", "no image .*can be used", "a.png: not an image"),
    ):
        (tmp_path / name).write_text("text")
        with pytest.raises(UserError, match=problem) as error:
            open_folder(tmp_path)
        assert "\n" not in str(error.value) and reported in caplog.text


def test_a_second_scan_decodes_only_changed_new_and_bad_files(root, tmp_path, decoded):
    cache = tmp_path / "caches" / "scan.json"
    first = open_folder(root, cache_file=cache)
    again = open_folder(root, cache_file=cache)
    assert len(decoded) == 5 and np.array_equal(first.sizes, again.sizes) and first.paths == again.paths
    assert os.listdir(cache.parent) == ["scan.json"]
    (root / "cat" / "bad.png").write_bytes(b"")
    decoded.clear()
    save_image(root / "dog" / "c.png", 20, 50)  # other content
    stamp = (root / "cat" / "a.png").stat().st_mtime_ns + 1
    os.utime(root / "cat" / "a.png", ns=(stamp, stamp))  # other time only
    save_image(root / "dog" / "new.png", 8, 8)
    (root / "dog" / "b.png").unlink()
    data = open_folder(root, cache_file=cache)
    assert sorted(decoded) == ["a.png", "bad.png", "c.png", "new.png"]
    assert dict(zip(data.paths, data.sizes.tolist(), strict=True))["dog/c.png"] == [20, 50]
    assert "dog/b.png" not in json.loads(cache.read_text())["names"]


@pytest.mark.parametrize(
    "content", ["", '{"version": 4, "pict', "[]", '{"version": 0}', '{"version": 4, "names": ["a"], "numbers": [1, 2]}']
)
def test_a_foreign_or_damaged_cache_is_made_again(root, tmp_path, decoded, content):
    cache = tmp_path / "scan.json"
    cache.write_text(content)
    assert len(open_folder(root, cache_file=cache)) == 5 and len(decoded) == 5
    assert len(open_folder(root, cache_file=cache)) == 5 and len(decoded) == 5


def test_cache_that_cannot_be_written_costs_only_a_warning(root, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert len(open_folder(root, cache_file=tmp_path / "file" / "scan.json")) == 5
    assert "cannot be written" in caplog.text


def test_an_interrupted_scan_resumes_where_it_stopped(root, tmp_path, monkeypatch):
    cache = tmp_path / "scan.json"
    check = folder_module._check

    def interrupted(path, mode):
        if path.as_posix().endswith("dog/b.png"):
            raise KeyboardInterrupt
        return check(path, mode)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_module, "_check", interrupted)
        open_folder(root, cache_file=cache)
    assert sorted(json.loads(cache.read_text())["names"]) == ["cat/a.png", "cat/more/b.jpg", "dog/a.webp"]
    assert len(open_folder(root, cache_file=cache)) == 5


def test_file_that_changes_during_training_is_named(root):
    view = open_folder(root).epoch(0, seed=0)
    save_image(root / "cat" / "a.png", 61, 40)
    with pytest.raises(UnreadableImage, match=r"cat/a.png was \(60, 40\) .*\(61, 40\)"):
        view.load(0)
    (root / "cat" / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/a.png .* No such file"):
        view.load(0)


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
        pytest.skip("the file system allows UTF-8 names only")
    cache = tmp_path / "scan.json"
    open_folder(root, cache_file=cache)
    data = open_folder(root, cache_file=cache)
    assert f"cat/{name}" in data.paths
    data.report.summary().encode()
    data.report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["skipped"] == [[f"cat/bad {name}", "empty file"]]


def test_reports_say_what_to_do_about_unfit_images_and_other_formats(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    save_image(root / "dog" / "dot.png", 1, 1)
    save_image(root / "dog" / "strip.png", 1, 2000)
    for number in range(3):
        (root / "cat" / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    for name in ("drawing.svg", "photo.dng", "photo.cr2", "notes.txt"):
        (root / "cat" / name).write_bytes(b"x")
    report = open_folder(root).report
    assert count_reasons(report.skipped) == {"HEIC needs pip install 'fitv2[heif]'": 3, "too small": 1, "too narrow": 1}
    shown = report.summary()
    assert "3 skipped: HEIC needs pip install 'fitv2[heif]'" in shown and "too narrow: 1x2000" in shown
    assert "1 of them: vector drawing, render it to PNG" in shown and "2 of them: raw camera file" in shown
