"""A folder of pictures as a data set: the scan, its report and cache, and the plan of an epoch."""

import json
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.data import folder as folder_module
from fitv2.data.folder import ImageFolder
from fitv2.data.images import UnreadableImage

SIZES = {  # height, width in pixels; the tests' budget is 16 tokens of 4 x 4 pixels
    "cat/a.png": (60, 40),  # both sides over 16: may be cropped
    "cat/more/b.jpg": (16, 90),  # only resized
    "dog/a.webp": (9, 14),  # under the budget
    "dog/b.png": (1, 100),  # under one patch
    "dog/c.png": (33, 33),
}


def save_picture(path, height, width):
    """A gradient along both axes, so that mirrored, turned and cropped pictures differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    red, green = rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1)
    Image.fromarray(np.stack([red, green, 255 - green], axis=2).astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for name, size in SIZES.items():
        save_picture(tmp_path / "pictures" / name, *size)
    return tmp_path / "pictures"


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


def same_plan(a, b) -> bool:
    return a.variant == b.variant and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("flip", "scale", "hw"))


def test_classes_sizes_and_order(root):
    data = open_folder(root)
    assert (len(data), data.patch_size, data.channels) == (5, 4, 3)
    assert (data.num_classes, data.class_names) == (2, ["cat", "dog"])
    assert dict(zip(data.paths, map(tuple, data.sizes.tolist()), strict=True)) == SIZES
    assert data.paths == sorted(SIZES)
    view = data.epoch(0, seed=0)
    assert view.labels.tolist() == [0, 0, 1, 1, 1]
    assert view.labels.dtype == view.hw.dtype == np.int64


def test_no_classes(root):
    data = open_folder(root / "dog")
    assert (data.num_classes, data.class_names, data.paths) == (0, [], ["a.webp", "b.png", "c.png"])
    assert data.epoch(0, seed=0).labels.tolist() == [0, 0, 0]


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


def test_plan_follows_from_seed_and_epoch_alone(root):
    data, again = open_folder(root, min_scale=0.5), open_folder(root, min_scale=0.5)
    assert same_plan(data.epoch(3, seed=7), again.epoch(3, seed=7))
    for other in (data.epoch(4, seed=7), data.epoch(3, seed=8), data.epoch(7, seed=3)):
        assert not same_plan(data.epoch(3, seed=7), other)
    view = data.epoch(3, seed=7)
    expected = [view.latent(index) for index in range(5)]
    worker_view = pickle.loads(pickle.dumps(view))
    for index in (4, 0, 2, 2, 1, 3):
        assert torch.equal(worker_view.latent(index), expected[index])


def test_plan_of_a_picture_survives_new_pictures_after_it(root):
    before = open_folder(root, min_scale=0.5).epoch(0, seed=0)
    save_picture(root / "eel" / "a.png", 50, 50)
    after = open_folder(root, min_scale=0.5).epoch(0, seed=0)
    assert after.variant[:5] == before.variant
    assert np.array_equal(after.hw[:5], before.hw) and (after.scale[:5] == before.scale).all()


def test_draws_have_the_stated_probabilities(root):
    data = open_folder(root, min_scale=0.25)
    views = [data.epoch(epoch, seed=1) for epoch in range(400)]
    assert {view.variant[1] for view in views} == {"resize"}
    assert 160 < sum(view.variant[0] == "crop" for view in views) < 240
    assert 160 < sum(bool(view.flip[0]) for view in views) < 240
    scales = np.array([view.scale[0] for view in views])
    assert 0.25 <= scales.min() < 0.27 and 0.98 < scales.max() <= 1 and abs(scales.mean() - 0.625) < 0.05
    # The three draws are independent: no crop, flip or scale predicts another.
    draws = np.array([[view.variant[0] == "crop", view.flip[0], view.scale[0]] for view in views], dtype=float)
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.2


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


def test_crop_takes_the_middle(tmp_path):
    columns = np.zeros((64, 192, 3), np.uint8)
    columns[:, 64:128] = 255
    Image.fromarray(columns).save(tmp_path / "a.png")
    crop = open_folder(tmp_path, preprocessing="crop").epoch(0, seed=0).latent(0)
    assert crop.shape == (3, 16, 16) and (crop[:, :, 1:-1] > 0.9).all()


def test_bad_files_are_named_and_skipped(root, caplog):
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "page.jpg").write_text("<html>")
    whole = (root / "cat" / "more" / "b.jpg").read_bytes()
    (root / "dog" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "link.png").symlink_to(root / "nowhere.png")
    save_picture(root / "loose.png", 20, 20)
    (root / "dog" / "notes.txt").write_text("a dog")
    (root / "dog" / "more.TXT").write_text("another dog")
    (root / "README").write_text("dogs and cats")
    (root / "dog" / "._a.webp").write_bytes(b"resource fork")
    save_picture(root / ".cache" / "a.png", 20, 20)
    (root / "lists").mkdir()
    (root / "lists" / "all.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        data = open_folder(root, labels_from="folders")
    assert data.paths == sorted(SIZES) and data.class_names == ["cat", "dog"]
    report = data.report
    reasons = {path: reason.partition(":")[0] for path, reason in report.skipped}
    assert reasons == {
        "cat/empty.png": "empty file",
        "cat/page.jpg": "not a picture",
        "dog/half.jpg": "truncated or damaged",
        "dog/link.png": "not a file",
        "loose.png": "outside the class folders",
    }
    assert (report.found, report.usable) == (10, 5)
    assert report.ignored == {"without extension": 1, "hidden": 2, ".txt": 2, ".json": 1}
    for text in ("10 picture files, 5 usable, 5 skipped", "dog/half.jpg: truncated", "2 .txt", "1 skipped: empty file"):
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


def test_class_without_a_readable_picture_keeps_its_label(root, caplog):
    (root / "cow").mkdir()
    (root / "cow" / "a.png").write_bytes(b"")
    data = open_folder(root)
    assert data.class_names == ["cat", "cow", "dog"] and data.labels.tolist() == [0, 0, 2, 2, 2]
    assert "class 'cow' has no readable picture" in caplog.text


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere: give the folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no picture files: put picture files"):
        open_folder(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no picture files(.|\n)*1 \.txt"):
        open_folder(tmp_path)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"no picture can be read(.|\n)*a.png: not a picture"):
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
    save_picture(root / "dog" / "c.png", 20, 50)  # other content
    stamp = (root / "cat" / "a.png").stat().st_mtime_ns + 1
    os.utime(root / "cat" / "a.png", ns=(stamp, stamp))  # other time only
    save_picture(root / "dog" / "new.png", 8, 8)
    (root / "dog" / "b.png").unlink()
    data = open_folder(root, cache_file=cache)
    assert sorted(decoded) == ["a.png", "bad.png", "c.png", "new.png"]
    assert dict(zip(data.paths, data.sizes.tolist(), strict=True))["dog/c.png"] == [20, 50]
    assert "dog/b.png" not in json.loads(cache.read_text())["pictures"]


@pytest.mark.parametrize(
    "content", ["", '{"version": 1, "pict', "[]", '{"version": 0, "pictures": {}}', '{"version": 1}']
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
    assert sorted(json.loads(cache.read_text())["pictures"]) == ["cat/a.png", "cat/more/b.jpg", "dog/a.webp"]
    assert len(open_folder(root, cache_file=cache)) == 5


def _interrupt_at(path, name):
    if path.as_posix().endswith(name):
        raise KeyboardInterrupt
    return list(SIZES["/".join(path.parts[path.parts.index("pictures") + 1 :])])


def test_file_that_changes_during_training_is_named(root):
    view = open_folder(root).epoch(0, seed=0)
    save_picture(root / "cat" / "a.png", 61, 40)
    with pytest.raises(UnreadableImage, match=r"cat/a.png was \(60, 40\) pixels .* now is \(61, 40\)"):
        view.latent(0)
    (root / "cat" / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/a.png could be read .* No such file"):
        view.latent(0)


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    save_picture(tmp_path / "elsewhere" / "a.png", 20, 20)
    (root / "fox").symlink_to(tmp_path / "elsewhere")
    (root / "fox" / "back").symlink_to(root)
    data = open_folder(root)
    assert data.paths == [*sorted(SIZES), "fox/a.png"] and data.class_names == ["cat", "dog", "fox"]


def test_file_names_of_any_bytes(root, tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    try:
        save_picture(root / "cat" / name, 20, 20)
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
