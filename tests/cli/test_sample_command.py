"""`fitv2 sample`: exact files, recorded requests, and one sentence for every mistake."""

import json
import re
import shutil
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.adapters.pipeline import FiTPipeline
from fitv2.checkpoints.model_folder import Pretrained, load_pretrained, save_pretrained
from fitv2.cli.options import LoadedModel
from fitv2.cli.requests import check_memory, describe, edits_of, file_name, list_specs, showcase
from fitv2.cli.sample import make
from fitv2.cli.sample_folder import begin
from fitv2.errors import UserError
from fitv2.images.autoencoder import Pixels
from fitv2.images.make_images import make_images
from fitv2.sample_list import CONTACT_SHEET
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.system.locks import locked
from fitv2.text import load_text_encoder
from tiny import CLASSES, CONFIG, random_model


def test_every_class_at_every_size_exactly_and_a_sheet(fitv2, model, tmp_path):
    sizes = ["28x12", "12x40"]
    chosen = ["--labels", "trouser,9", "--labels", "bag", "--size", sizes[0], "--size", sizes[1], "--per-class", 2]
    result = fitv2("sample", "--model", model, *chosen, "--steps", 2, "--seed", 40).ok()
    assert "Note: the model is now the first word" in result.err
    expected = {}
    for i, (name, size) in enumerate((n, s) for n in ("trouser", "ankle-boot", "bag") for s in sizes for _ in (0, 1)):
        expected[f"{name}_{size}_seed{40 + i}.png"] = tuple(map(int, size.split("x")))
    found = {path.name: Image.open(path) for path in (tmp_path / "outputs").glob("*.png")}
    sheet = found.pop("sheet.png")
    assert {name: (image.height, image.width) for name, image in found.items()} == expected
    assert {image.mode for image in found.values()} == {"L"}
    assert sheet.width > 8 * 96 and sheet.height > 2 * 100
    assert (
        "made small first" not in result.out
        and "12 images by" in result.out
        and "ab2, 2 steps, 2 model calls, guidance 2" in result.out
    )


def test_the_report_in_json(fitv2, model, tmp_path):
    result = fitv2("sample", "--model", model, "--labels", "trouser", "--steps", 2, "--out", "deep/folder", "--json")
    report = result.json
    assert report["model_calls"] == 2 and report["guidance"] == 2.0 and report["seconds"] >= 0
    assert report["sheet"] == "deep/folder/sheet.png"
    rows = [(tuple(row["size"]), row["seen"], row["seed"]) for row in report["images"]]
    assert rows == [((8, 28), True, 0), ((12, 40), False, 1), ((28, 8), False, 2)]
    for row in report["images"]:
        with Image.open(tmp_path / row["file"]) as image:
            assert [image.height, image.width] == row["size"]


def test_a_number_of_images_is_that_of_each_size_as_in_evaluate(model):
    specs = list_specs(load_pretrained(model), ["bag,coat"], ["8x12", "4x8"], None, 3, 0)
    first, second = (8, 12), (4, 8)
    assert [(spec.label, spec.size, spec.seed) for spec in specs] == [
        (8, first, 0), (4, first, 1), (8, first, 2), (8, second, 3), (4, second, 4), (8, second, 5)
    ]  # fmt: skip


def test_a_number_of_images_without_a_size_takes_the_own_sizes_of_the_classes_in_turn(model):
    specs = list_specs(load_pretrained(model), ["t-shirt,bag"], None, None, 3, 0)
    assert [(spec.label, spec.size) for spec in specs] == [(0, (28, 8)), (8, (8, 28)), (0, (24, 8))]


def test_a_model_folder_recommends_settings(fitv2, model, tmp_path):
    """They are the defaults; what is given comes first, and a recommendation without effect beside it is dropped."""
    folder = shutil.copytree(model, tmp_path / "advised")
    advice = {"solver": "heun", "steps": 3, "guidance": 1.5, "interval": [0.2, 0.8]}
    (folder / "sampling.json").write_text(json.dumps(advice))

    def used(*options) -> tuple:
        report = fitv2("sample", folder, "-l", "bag", "-s", "8x8", "--json", *options).json
        return tuple(report[key] for key in ("solver", "steps", "guidance", "guidance_interval"))

    assert used() == ("heun", 3, 1.5, [0.2, 0.8])
    assert used("--steps", 2, "--guidance", 3) == ("heun", 2, 3.0, [0.2, 0.8])
    assert used("--solver", "euler", "--guidance", 1) == ("euler", 25, 1.0, [0.0, 1.0])
    for text, part in [("[]", "no settings"), ('{"step": 3}', "'step'"), ('{"steps": 0}', "step"), ("{", "damaged")]:
        (folder / "sampling.json").write_text(text)
        assert part in (told := fitv2("sample", folder).sentence) and "sampling.json" in told


def test_a_request_is_written_beside_its_images_and_nothing_else_is_overwritten(fitv2, model, tmp_path):
    command = ["sample", "--model", model, "--labels", "bag", "--size", "8x12", "--per-class", 2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/sheet.png").write_text("drawn by hand")
    told = fitv2(*command, "--steps", 1, "--out", "mine").sentence
    assert "sheet.png" in told and "--overwrite" in told
    assert (tmp_path / "mine/sheet.png").read_text() == "drawn by hand"
    with locked(tmp_path / "mine", "a fitv2 sample"):
        assert "in use" in fitv2(*command, "--steps", 1, "-o", "mine").sentence
    names = ["bag_8x12_seed0.png", "bag_8x12_seed1.png"]
    for out in ("outputs", "outputs-2"):  # By default, the first folder that is free.
        fitv2(*command, "--steps", 1).ok()
        manifest = json.loads((tmp_path / out / "samples.json").read_text())
        assert [row["file"] for row in manifest["images"]] == names and manifest["sheet"] == "sheet.png"
        assert manifest["request"]["steps"] == 1 and manifest["request"]["model"] == str(model)
        assert manifest["images"][1] == {
            **{"file": names[1], "class": "bag", "label": 8, "size": [8, 12], "seed": 1, "seen": False}
        }
        assert {path.name for path in (tmp_path / out).iterdir()} == {*names, "sheet.png", "samples.json", ".lock"}
    with Image.open(tmp_path / "outputs/sheet.png") as sheet, Image.open(tmp_path / "outputs" / names[0]) as image:
        assert sheet.text["Software"] == CONTACT_SHEET and not image.text
    fitv2(*command, "--steps", 1, "--out", "outputs").ok()  # The same request again.
    told = fitv2(*command, "--steps", 2, "--out", "outputs").sentence
    assert "another request" in told and "--overwrite" in told
    fitv2(*command, "--steps", 2, "--seed", 7, "--out", "outputs", "--overwrite").ok()
    left = {path.name for path in (tmp_path / "outputs").iterdir()}
    assert left == {"bag_8x12_seed7.png", "bag_8x12_seed8.png", "sheet.png", "samples.json", ".lock"}


def test_images_of_a_command_that_was_killed_are_known_as_ours(tmp_path):
    request = {"seed": 1}
    begin(tmp_path, {"seed": 3}, ["a.png"], False)
    begin(tmp_path, request, ["a.png"], False)  # There is no image of the other request yet.
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="another request"):
        begin(tmp_path, {"seed": 2}, ["a.png"], False)
    begin(tmp_path, request, ["a.png"], False)
    begin(tmp_path, {"seed": 2}, ["b.png"], True)
    assert not (tmp_path / "a.png").exists()


def test_more_classes_than_a_sheet_shows(fitv2, tmp_path):
    config = replace(CONFIG, num_classes=40)
    save_pretrained(tmp_path / "model", config, random_model(config).state_dict(), [], [[(8, 8, 1)]] * 40, None)
    shown = fitv2("sample", "--model", "model", "--size", "8x8", "--steps", 1)
    assert "16 of 40 classes" in shown.out
    chosen = fitv2("sample", "--model", "model", "--size", "8x8", "--size", "4x40", "--labels", "1", "--steps", 1)
    assert "--labels" not in chosen.out
    assert "4x40" in chosen.err and "8x8" not in chosen.err  # A warning of the size.


def test_a_saved_pipeline_makes_the_same_images(fitv2, model, tmp_path):
    FiTPipeline.from_pretrained(model).save_pretrained(tmp_path / "pipe")
    for name, out in ((model, "ours"), ("pipe", "theirs")):
        fitv2("sample", "--model", name, "--labels", "trouser", "--size", "8x12", "--steps", 2, "--out", out).ok()
    one, other = ((tmp_path / out / "trouser_8x12_seed0.png").read_bytes() for out in ("ours", "theirs"))
    assert one == other


def test_guidance_of_the_first_channels_and_by_a_power(fitv2, model, tmp_path):
    command = ["sample", "--model", model, "--labels", "trouser", "--size", "8x12", "--steps", 2, "--out"]
    changes = {"plain": [], "power": ["--guidance-power", 2], "shift": ["--time-shift", 3]}
    changes["channels"] = ["--guidance-channels", 1]  # The images have one.
    images = {}
    for name, change in changes.items():
        fitv2(*command, name, *change).ok()
        images[name] = (tmp_path / name / "trouser_8x12_seed0.png").read_bytes()
    assert images["plain"] == images["channels"]
    assert len(set(images.values())) == 3


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_made(fitv2, model, tmp_path):
    command = ["sample", model, "--steps", 3]
    for out, labels, number in [("one", 2, 1), ("again", 2, 1), ("more", "2,3,0", 3)]:
        made = fitv2(*command, "-l", labels, "--num", number, "-s", "28x12", "--seed", 5, "-o", out).ok()
        assert "--num is now called --per-class" in made.err
    files = [(tmp_path / out / "pullover_28x12_seed5.png").read_bytes() for out in ("one", "again", "more")]
    assert files[0] == files[1] == files[2]
    assert files[0] != (tmp_path / "more/pullover_28x12_seed6.png").read_bytes()


def test_sizes_that_a_class_is_shown_in():
    """A class without images has the sizes of the others; one with every turned and doubled size is still shown."""
    shapes = [[], *[[(8, 28, 3)]] * 4, *[[]] * 5]
    assert all(len(showcase(Pretrained(random_model(), CLASSES, shapes), label)) >= 3 for label in range(11))
    full = Pretrained(random_model(), CLASSES, [[(16, 16, 3), (16, 32, 2), (32, 16, 1)]])
    assert showcase(full, 0) == [(16, 16), (16, 32), (24, 24)]


def test_names_with_commas_and_slashes(fitv2, tmp_path):
    names = ["tench, Tinca tinca", "on/off", *CLASSES[2:]]
    save_pretrained(tmp_path / "model", CONFIG, random_model().state_dict(), names, [[(8, 28, 1)]], torch.float32)
    asked = ["--model", "model", "--labels", "tench, Tinca tinca", "--labels", "on/off,bag", "--size", "4x8"]
    report = fitv2("sample", *asked, "--steps", "1", "--json").json
    assert [row["class"] for row in report["images"]] == ["tench, Tinca tinca", "on/off", "bag"]
    assert all((tmp_path / row["file"]).is_file() for row in report["images"])
    # Long names leave room for the rest of the file's name.
    assert file_name("a cat/dog.") == "a-cat-dog" and file_name("日" * 85) == "日" * 50
    odd = {"-rf": "rf", "../x": "x", "हिन्दी": "हिन्दी", "cafe\u0301": "caf\u00e9", "📷!": "class3"}
    assert {name: file_name(name, "class3") for name in odd} == odd


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--size", "30x12"], "the nearest is 32x12"),
        (["--size", "big"], "'big' is not a size"),
        (["--size", "400000x400000"], "up to 400000x400000"),
        (["--labels", "spoon"], "no class 'spoon'"),
        (["--labels", "Trousers"], "did you mean trouser?"),
        (["--model", "builtin:fashon"], "did you mean builtin:fashion?"),
        (["--model", "nowhere"], "nowhere is not a model: there is no folder nowhere"),
        (["nowhere"], "two models are named, nowhere and --model"),
        (["--guidance", "-1"], "guidance -1"),
        (["--guidance", "nan"], "the guidance nan must be a finite number"),
        (["--guidance-power", "-1"], "the power -1 must be a finite number of 0 or more"),
        (["--guidance-channels", "9"], "1 channel: guidance of more has no effect"),
        (["--attention-scale", "paper"], "--attention-scale belongs to an --extrapolation"),
        (["--device", "cuda:99"], "there is no device cuda:99"),
        (["--num-images", "3", "--per-class", "2"], "give one"),
        (["--size", "8x8", "--labels", "1", "--out", "a file/x"], "fitv2: a file/x: Not a directory"),
        (["--size", "8x8", "--labels", "1", "--out", "a file"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_sentence(fitv2, model, tmp_path, arguments, part):
    (tmp_path / "a file").touch()
    assert part in fitv2("sample", "--model", model, "--steps", 1, *arguments).sentence


def test_an_image_is_extended_and_stays_as_it_was(fitv2, model, tmp_path):
    first = fitv2("sample", model, "--labels", "bag", "--size", "8x12", "--steps", 2, "--out", "first").ok()
    assert first
    image = tmp_path / "first" / "bag_8x12_seed0.png"
    beyond = ["--init-image", image, "--size", "8x24", "--anchor", "right", "--steps", 2, "--num-images", 2]
    fitv2("sample", model, "--labels", "bag", *beyond, "--out", "wide").ok()
    old = np.asarray(Image.open(image))
    wide = [np.asarray(Image.open(tmp_path / "wide" / f"bag_8x24_seed{seed}.png")) for seed in (0, 1)]
    assert all(np.array_equal(one[:, 12:], old) for one in wide) and not np.array_equal(*wide)
    # Without a size the canvas is the image's own.
    alike = ["--init-image", image, "--steps", 4, "--strength", 0.5, "--out", "like"]
    assert "2 model calls" in fitv2("sample", model, "--labels", "bag", *alike).ok().out
    twice = fitv2(
        "sample", model, *alike[:4], "--size", "8x12", "--size", "8x12", "--labels", "bag", "--out", "two"
    ).ok()
    assert "2 images" in twice.out, "as without an image"
    # Room around the image is made from noise alone, in all of the steps.
    both = ["--init-image", image, "--size", "8x12", "--size", "8x24", "--steps", 5, "--out", "both"]
    assert "5 model calls" in fitv2("sample", model, "--labels", "bag", *both).ok().out
    assert Image.open(tmp_path / "like" / "bag_8x12_seed0.png").size == (12, 8)
    request = json.loads((tmp_path / "wide" / "samples.json").read_bytes())["request"]
    assert request["init_image"] == sha256(image.read_bytes()).hexdigest() and request["anchor"] == "right"
    told = fitv2("sample", model, "--labels", "bag", "--init-image", image, "--upscale-from", 4, "--out", "no").sentence
    assert "omit --init-image" in told and not (tmp_path / "no").exists()
    wrong = fitv2("sample", model, "--labels", "bag", "--init-image", image, "--solver", "sde-heun", "--out", "no")
    assert "cannot begin with an image" in wrong.sentence and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init-image", "missing.png"], "missing.png: cannot be read"),
        (["--strength", "0.5"], "give --init-image"),
        (["--mask", "mask.png"], "give --init-image"),
        (["--window", "big"], "not a size"),
        (["--negative-prompt", "a dog", "--guidance", "1"], "--guidance 1 is none"),
    ],
)
def test_impossible_edits(fitv2, model, options, message):
    assert message in fitv2("sample", model, "--labels", "bag", "--size", "8x12", *options).sentence


def test_a_canvas_beyond_the_memory_is_refused_before_it_is_laid_out(model, monkeypatch, tmp_path):
    Image.new("L", (12, 8)).save(tmp_path / "image.png")
    monkeypatch.setattr("fitv2.system.device.free_bytes", lambda device: 10**6)
    monkeypatch.setattr("fitv2.images.edits.lay_out", None)
    with pytest.raises(UserError, match="400x4000"):
        edits_of(tmp_path / "image.png", None, None, "center", ["400x4000"], load_pretrained(model), Pixels())


def test_a_sheet_of_many_images_shows_the_first(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["fitv2.cli.sample"], "MOST_SHOWN", 3)
    pages, numbers, pretrained = [], [], load_pretrained(model)

    def counting(network, codec, specs, *others):
        numbers.append(len(specs))
        return make_images(network, codec, specs, *others)

    monkeypatch.setattr("fitv2.images.make_images.make_images", counting)
    monkeypatch.setattr("fitv2.images.sheets.contact_sheet", lambda *arguments: pages.append(arguments))
    monkeypatch.setattr("fitv2.images.sheets.save_sheet", lambda page, path: None)
    specs = [SampleSpec(0, (4, 4), seed) for seed in range(5)]
    rows = [describe(pretrained, spec, 1) for spec in specs]
    make(LoadedModel(pretrained, Pixels(), None, "fp32"), specs, Sampling(steps=1), tmp_path, rows, None, None)
    ((images, captions, note),) = pages
    assert len(images) == len(captions) == 3 and note == "the first 3 of 5 images"
    assert {path.name for path in tmp_path.glob("*.png")} == {row["file"] for row in rows}
    assert numbers == [3, 2]  # No more are in memory at once.


def test_large_images_in_windows_and_in_two_passes(fitv2, model, tmp_path):
    for name, options in (("windows", ["--window", "8x8"]), ("passes", ["--upscale-from", 6]), ("whole", [])):
        size = ["--labels", "bag", "--size", "8x64", "--steps", 2, "--out", name]
        result = fitv2("sample", model, *size, *options).ok()
        assert ("expect broken content" in result.err) == (name == "whole")
        assert ("made small first" in result.out) == (name == "passes")
    made = [np.asarray(Image.open(tmp_path / name / "bag_8x64_seed0.png")) for name in ("windows", "passes", "whole")]
    assert not any(np.array_equal(made[i], made[i - 1]) for i in range(3))


def test_a_request_beyond_the_memory_is_refused_with_a_size_that_fits(model, monkeypatch):
    monkeypatch.setattr("fitv2.system.device.free_bytes", lambda device: 10 * 2**20)
    pretrained, large = load_pretrained(model), [SampleSpec(0, (400, 200), 0)]
    with pytest.raises(UserError, match=r"ask for --size (\d+)x(\d+)") as told:
        check_memory(pretrained, large, Sampling(), 1, None)
    found = re.search(r"--size (\d+)x(\d+)", str(told.value))
    height, width = map(int, found.groups())
    assert height == pytest.approx(2 * width, abs=8) and 100 < height < 400
    check_memory(pretrained, [SampleSpec(0, (height, width), 0)], Sampling(), 1, None)
    with pytest.raises(UserError, match=r"\d{4}x\d{3,4} or less"):
        check_memory(pretrained, large, Sampling(), 8, None)


def test_long_texts_take_memory(monkeypatch):
    config = replace(CONFIG, context="joint", context_channels=384)
    pretrained, encoder = Pretrained(random_model(config), [], []), load_text_encoder("builtin:minilm")
    specs = [SampleSpec(0, (8, 8), seed, prompt="a cat " * 120) for seed in range(100)]
    monkeypatch.setattr("fitv2.system.device.free_bytes", lambda device: 20 * 2**20)
    check_memory(pretrained, [replace(spec, prompt="a cat") for spec in specs], Sampling(), 1, encoder)
    with pytest.raises(UserError, match=r"100 images .* would need"):
        check_memory(pretrained, specs, Sampling(), 1, encoder)


@pytest.mark.parametrize("text", [None, "builtin:minilm"])
def test_a_model_that_does_not_know_its_sizes_needs_one(text):
    config = replace(CONFIG, context="joint", context_channels=384) if text else CONFIG
    unknown = Pretrained(random_model(config), [], [], text_encoder=text)
    assert [spec.size for spec in list_specs(unknown, ["3"], ["8x12"], None, None, 0)] == [(8, 12)]
    with pytest.raises(UserError, match="give --size"):
        list_specs(unknown, ["3"], None, None, None, 0)
    for numbers in ((10**9, None), (None, 10**9)):
        with pytest.raises(UserError, match="too many"):
            list_specs(unknown, ["3"], ["8x12"], *numbers, 0)
