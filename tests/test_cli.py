"""The command line as people meet it: fast help, exact files, and one sentence for every mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.adapters.pipeline import FiTPipeline
from fitv2.checkpoints.model_folder import Pretrained, load_pretrained, save_pretrained
from fitv2.cli.requested import file_name, showcase
from fitv2.cli.samples import begin
from fitv2.config import recipe_folder, recipe_names
from fitv2.errors import UserError
from fitv2.locks import locked
from fitv2.model.config import EXTRAPOLATIONS
from fitv2.sample_list import CONTACT_SHEET
from fitv2.sampling.solvers import SOLVER_NAMES
from fitv2.training.sigterm import STOPPED
from tiny import CLASSES, CONFIG, command_line, process, random_model

FITV2 = str(Path(sys.executable).with_name("fitv2"))
SHAPES = [[(28, 8, 7), (24, 8, 2)], *[[(8, 28, 3)]] * 9]
SMALL = [
    *("model.width=32", "model.depth=1", "model.heads=2", "training.steps=4", "training.max_tokens_per_batch=300"),
    *("training.warmup_steps=0", "log.checkpoint_every=2", "log.sample_steps=1"),
]


class Result:
    """What a finished command left: exit code, and what it wrote to both streams."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        outputs = [folder / "stdout", folder / "stderr"]
        child = process(run_in, folder, outputs, arguments)
        child.join()
        self.code, (self.out, self.err) = child.exitcode, (path.read_text() for path in outputs)


def run_in(folder: Path, outputs: list[Path], arguments: tuple[str, ...]) -> None:
    """For `process`: the command line in a folder, its streams and its process id in files."""
    os.chdir(folder)
    Path("pid").write_text(str(os.getpid()))
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    command_line(*arguments)


@pytest.fixture
def fitv2(tmp_path):
    """Runs `fitv2 ARGUMENTS` in the test's own folder."""
    return lambda *arguments: Result(tmp_path, *map(str, arguments))


@pytest.fixture
def train(fitv2):
    """Runs `fitv2 train` of a tiny network on the folder "images"; further settings as section.key=value."""

    def run(*arguments: str, settings=(), data="images") -> Result:
        chosen = [word for setting in [*SMALL, *settings] for word in ("--set", setting)]
        return fitv2("train", "--recipe", "images", "--data", data, "--out", "run", *chosen, *arguments)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, random_model().state_dict(), CLASSES, SHAPES, torch.float32)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """Ten images of two classes, in many sizes, and a file that is none."""
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + 8 * i, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images/cat/broken.jpg").write_bytes(path.read_bytes()[:200])
    return tmp_path / "images"


def assert_sentence(result: Result, *parts: str) -> None:
    """Exit code 1 and a message with all the parts; no traceback."""
    assert result.code == 1
    assert "Traceback" not in result.err
    assert result.err.strip().rpartition("fitv2: ")[1], result.err
    for part in parts:
        assert part in result.err


def test_the_version_is_that_of_the_package():
    shown = subprocess.run([FITV2, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"fitv2 {version('fitv2')}\n"


def test_help_answers_in_under_half_a_second():
    """Of processor time, which a busy machine does not stretch."""
    times = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([FITV2, "--help"], capture_output=True, text=True, check=True).stdout
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert "sample" in shown and "train" in shown
    assert min(times) < 0.5


@pytest.mark.parametrize("command", ["train", "profile", "evaluate"])
def test_help_loads_nothing_heavy(command):
    code = (
        f"import sys; from fitv2.cli import main; sys.argv = ['fitv2', '{command}', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(loaded.splitlines()[-1].split())
    assert "fitv2" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "accelerate", "safetensors", "torchdiffeq", "matplotlib"}


def test_sampling_does_not_load_what_is_for_training_or_compiling(tmp_path):
    """torch's compiler alone takes a second and a half."""
    code = (
        "import sys; from fitv2.cli import main\n"
        f"sys.argv = ['fitv2', 'sample', '--labels', 'bag', '--steps', '1', '--out', {str(tmp_path)!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(loaded.splitlines()[-1].split())
    assert "fitv2.sampling.generate" in loaded
    assert not loaded & {"torch._dynamo", "accelerate", "diffusers", "matplotlib"}


def test_sample_writes_every_class_at_every_size_exactly_and_a_sheet(fitv2, model, tmp_path):
    sizes = ["28x12", "12x40"]
    chosen = ["--labels", "trouser,9", "--labels", "bag", "--size", sizes[0], "--size", sizes[1], "--per-class", 2]
    result = fitv2("sample", "--model", model, *chosen, "--steps", 2, "--seed", 40)
    assert result.code == 0, result.err
    expected = {}
    for i, (name, size) in enumerate((n, s) for n in ("trouser", "ankle-boot", "bag") for s in sizes for _ in (0, 1)):
        expected[f"{name}_{size}_seed{40 + i}.png"] = tuple(map(int, size.split("x")))
    found = {path.name: Image.open(path) for path in (tmp_path / "outputs").glob("*.png")}
    sheet = found.pop("sheet.png")
    assert {name: (image.height, image.width) for name, image in found.items()} == expected
    assert {image.mode for image in found.values()} == {"L"}
    assert sheet.width > 8 * 96 and sheet.height > 2 * 100
    assert "12 images by" in result.out and "ab2, 2 steps, 2 model calls, guidance 2" in result.out


def test_sample_reports_in_json(fitv2, model, tmp_path):
    result = fitv2("sample", "--model", model, "--labels", "trouser", "--steps", 2, "--out", "deep/folder", "--json")
    report = json.loads(result.out)
    assert report["model_calls"] == 2 and report["guidance"] == 2.0 and report["seconds"] >= 0
    assert Path(report["sheet"]) == Path("deep/folder/sheet.png")
    rows = [(tuple(row["size"]), row["seen"], row["seed"]) for row in report["images"]]
    assert rows == [((8, 28), True, 0), ((12, 40), False, 1), ((28, 8), False, 2)]
    for row in report["images"]:
        with Image.open(tmp_path / row["file"]) as image:
            assert [image.height, image.width] == row["size"]


def test_a_number_of_images_in_all_takes_the_classes_in_turn(fitv2, model):
    shown = fitv2("sample", model, "-l", "bag,coat", "-s", "8x12", "-s", "4x8", "-n", 5, "--steps", 1, "--json")
    rows = [(row["class"], row["size"], row["seed"]) for row in json.loads(shown.out)["images"]]
    first, second = [8, 12], [4, 8]
    assert rows == [
        ("bag", first, 0), ("coat", first, 1), ("bag", second, 2), ("coat", second, 3), ("bag", first, 4)
    ]  # fmt: skip


def test_a_folder_is_of_one_call_at_a_time(fitv2, model, tmp_path):
    with locked(tmp_path / "mine", "a fitv2 sample"):
        assert_sentence(fitv2("sample", model, "-l", "bag", "--steps", 1, "-o", "mine"), "mine", "in use")


def test_a_model_folder_recommends_settings(fitv2, model, tmp_path):
    """They are the defaults; what is given comes first, and a recommendation without effect beside it is dropped."""
    folder = shutil.copytree(model, tmp_path / "advised")
    advice = {"solver": "heun", "steps": 3, "guidance": 1.5, "interval": [0.2, 0.8]}
    (folder / "sampling.json").write_text(json.dumps(advice))

    def used(*options) -> tuple:
        report = json.loads(fitv2("sample", folder, "-l", "bag", "-s", "8x8", "--json", *options).out)
        return tuple(report[key] for key in ("solver", "steps", "guidance", "guidance_interval"))

    assert used() == ("heun", 3, 1.5, [0.2, 0.8])
    assert used("--steps", 2, "--guidance", 3) == ("heun", 2, 3.0, [0.2, 0.8])
    assert used("--solver", "euler", "--guidance", 1) == ("euler", 25, 1.0, [0.0, 1.0])
    for text, part in [("[]", "no settings"), ('{"step": 3}', "'step'"), ('{"steps": 0}', "step"), ("{", "damaged")]:
        (folder / "sampling.json").write_text(text)
        assert_sentence(fitv2("sample", folder), "sampling.json", part)


def test_a_request_is_written_beside_its_images_and_nothing_else_is_overwritten(fitv2, model, tmp_path):
    command = ["sample", "--model", model, "--labels", "bag", "--size", "8x12", "--per-class", 2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/sheet.png").write_text("drawn by hand")
    assert_sentence(fitv2(*command, "--steps", 1, "--out", "mine"), "sheet.png", "--overwrite")
    assert (tmp_path / "mine/sheet.png").read_text() == "drawn by hand"
    for out in ("outputs", "outputs-2"):  # By default, the first folder that is free.
        assert fitv2(*command, "--steps", 1).code == 0
        manifest = json.loads((tmp_path / out / "samples.json").read_text())
        names = ["bag_8x12_seed0.png", "bag_8x12_seed1.png"]
        assert [row["file"] for row in manifest["images"]] == names and manifest["sheet"] == "sheet.png"
        assert manifest["request"]["steps"] == 1 and manifest["request"]["model"] == str(model)
        assert manifest["images"][1] == {
            **{"file": names[1], "class": "bag", "label": 8, "size": [8, 12], "seed": 1, "seen": False}
        }
        assert {path.name for path in (tmp_path / out).iterdir()} == {*names, "sheet.png", "samples.json", ".lock"}
    with Image.open(tmp_path / "outputs/sheet.png") as sheet, Image.open(tmp_path / "outputs" / names[0]) as image:
        assert sheet.text["Software"] == CONTACT_SHEET and not image.text
    assert fitv2(*command, "--steps", 1, "--out", "outputs").code == 0  # The same request again.
    assert_sentence(fitv2(*command, "--steps", 2, "--out", "outputs"), "another request", "--overwrite")
    assert fitv2(*command, "--steps", 2, "--seed", 7, "--out", "outputs", "--overwrite").code == 0
    left = {path.name for path in (tmp_path / "outputs").iterdir()}
    assert left == {"bag_8x12_seed7.png", "bag_8x12_seed8.png", "sheet.png", "samples.json", ".lock"}


def test_a_class_name_leaves_room_in_the_name_of_a_file():
    assert file_name("a cat/dog") == "a-cat-dog" and file_name("日" * 85) == "日" * 50


def test_images_of_a_call_that_was_killed_are_known_as_ours(tmp_path):
    request = {"seed": 1}
    begin(tmp_path, {"seed": 3}, ["a.png"], False)
    begin(tmp_path, request, ["a.png"], False)  # Of the other there is no image yet.
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="another request"):
        begin(tmp_path, {"seed": 2}, ["a.png"], False)
    begin(tmp_path, request, ["a.png"], False)
    begin(tmp_path, {"seed": 2}, ["b.png"], True)
    assert not (tmp_path / "a.png").exists()


def test_the_step_of_a_model_and_a_run_that_has_none_yet(train, fitv2, images, tmp_path):
    assert train(settings=["training.steps=3"]).code == 0
    for name in ("run", "run/checkpoints", "run/checkpoints/step-00000003"):
        shown = fitv2("sample", "--model", name, "--labels", "cat", "--steps", 1)
        assert shown.code == 0 and f"by {name} (step 3)" in shown.out
    shutil.rmtree(tmp_path / "run/model")
    assert_sentence(fitv2("sample", "--model", "run"), "no model yet", "at step 2", "3 steps are done")


def test_more_classes_than_a_sheet_shows_are_said(fitv2, tmp_path):
    config = replace(CONFIG, num_classes=40)
    save_pretrained(tmp_path / "model", config, random_model(config).state_dict(), [], [[(8, 8, 1)]] * 40, None)
    shown = fitv2("sample", "--model", "model", "--size", "8x8", "--steps", 1)
    assert "16 of 40 classes; choose others with --labels" in shown.out
    chosen = fitv2("sample", "--model", "model", "--size", "8x8", "--size", "4x40", "--labels", "1", "--steps", 1)
    assert "classes" not in chosen.out.partition("One PNG")[0].replace("the class in training", "")
    assert "4x40" in chosen.err and "8x8" not in chosen.err


def test_sample_takes_a_saved_pipeline(fitv2, model, tmp_path):
    FiTPipeline.from_pretrained(model).save_pretrained(tmp_path / "pipe")
    chosen = ["--labels", "trouser", "--size", "8x12", "--steps", 2]
    for name, out in ((model, "ours"), ("pipe", "theirs")):
        result = fitv2("sample", "--model", name, *chosen, "--out", out)
        assert result.code == 0, result.err
    one, other = ((tmp_path / out / "trouser_8x12_seed0.png").read_bytes() for out in ("ours", "theirs"))
    assert one == other


def test_guidance_of_the_first_channels_and_by_a_power(fitv2, model, tmp_path):
    command = ["sample", "--model", model, "--labels", "trouser", "--size", "8x12", "--steps", 2, "--out"]
    changes = {"plain": [], "power": ["--guidance-power", 2], "shift": ["--time-shift", 3]}
    changes["channels"] = ["--guidance-channels", 1]  # The images have one.
    images = {}
    for name, change in changes.items():
        assert fitv2(*command, name, *change).code == 0
        images[name] = (tmp_path / name / "trouser_8x12_seed0.png").read_bytes()
    assert images["plain"] == images["channels"]
    assert len(set(images.values())) == 3


def test_sample_makes_the_same_bytes_of_the_same_seed_whatever_else_is_made(fitv2, model, tmp_path):
    command = ["sample", model, "--steps", 3]
    for out, labels, number in [("one", 2, 1), ("again", 2, 1), ("more", "2,3,0", 3)]:
        chosen = ["-l", labels, "--num", number, "-s", "28x12", "--seed", 5]
        made = fitv2(*command, *chosen, "-o", out)
        assert made.code == 0 and "--num is now called --per-class" in made.err
    files = [(tmp_path / out / "pullover_28x12_seed5.png").read_bytes() for out in ("one", "again", "more")]
    assert files[0] == files[1] == files[2]
    assert files[0] != (tmp_path / "more/pullover_28x12_seed6.png").read_bytes()


def test_a_class_that_had_no_image_is_shown_in_the_sizes_of_another(model):
    loaded = load_pretrained(model)
    pretrained = Pretrained(loaded.model, loaded.class_names, [[], *SHAPES[1:5], *[[]] * 5])
    assert all(len(showcase(pretrained, label)) >= 3 for label in range(11))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--size", "30x12"], ["30x12 is not divisible by the patch of 4; the nearest is 32x12"]),
        (["--size", "big"], ["'big' is not a size; write HEIGHTxWIDTH in pixels, such as 28x12"]),
        (["--size", "28"], ["'28' is not a size"]),
        (
            ["--size", "400000x400000"],
            ["1 image of up to 400000x400000 would need", "ask for a smaller --size"],
        ),
        (["--labels", "spoon"], ["no class 'spoon' in this model; its classes are 0 t-shirt, 1 trouser"]),
        (["--labels", "Trousers"], ["did you mean trouser?"]),
        (["--model", "builtin:fashon"], ["did you mean builtin:fashion?"]),
        (["--guidance", "-1"], ["guidance -1"]),
        (["--guidance-power", "-1"], ["the power 0 or more"]),
        (["--guidance-channels", "9"], ["1 channel: guidance of more has no effect"]),
        (["--device", "cuda:99"], ["there is no device cuda:99"]),
        (["--device", ""], ["'' is not a device"]),
        (["--size", "8x8", "--labels", "1", "--out", "stdout/x"], ["fitv2: stdout/x: Not a directory"]),
        (["--precision", "fp16"], ["the precision is fp32 or bf16, not 'fp16'"]),
        (["--labels", "10"], ["no class '10' in this model"]),
        (["--solver", "ddim"], ["ddim is not for this model, which predicts a velocity; choose from euler"]),
        (["nowhere"], ["two models are named, nowhere and --model"]),
        (["--num-images", "3", "--per-class", "2"], ["give one of them"]),
        (["--attention-scale", "paper"], ["--attention-scale belongs to an --extrapolation"]),
        (["--guidance", "nan"], ["guidance nan", "must be finite numbers"]),
        (["--guidance-interval", "0.8", "0.2"], ["must lie within 0 and 1, low end first"]),
        (["--model", "nowhere"], ["nowhere is not a model: there is no nowhere/config.json"]),
        (["--size", "8x8", "--labels", "1", "--out", "stdout"], ["is a file; name a folder"]),
    ],
)
def test_a_mistake_in_sample_is_one_sentence(fitv2, model, arguments, parts):
    assert_sentence(fitv2("sample", "--model", model, "--steps", 1, *arguments), *parts)


def test_a_damaged_model_is_one_sentence(fitv2, model, tmp_path):
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    assert_sentence(fitv2("sample", "--model", tmp_path), "is damaged", "copy or train it again")


def test_a_folder_with_a_broken_file_trains_to_the_end_and_the_file_is_named(train, fitv2, images, tmp_path):
    result = train("--set", "log.sample_every=2")
    assert result.code == 0, result.err
    assert "11 image files, 10 usable, 1 skipped" in result.err and "cat/broken.jpg: " in result.err
    (skipped,) = json.loads((tmp_path / "run/skipped.json").read_text())["skipped"]
    assert skipped[0] == "cat/broken.jpg" and skipped[1]
    assert "step 4/4  loss" in result.err and "tokens/s" in result.err
    assert "trained 4 steps" in result.out and "fitv2 sample --model run" in result.out
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    for sheet in ("step-00000002.png", "step-00000004.png"):
        with Image.open(tmp_path / "run/samples" / sheet) as image:
            assert image.width > 100
    assert json.loads((tmp_path / "run/recipe.json").read_text())["data"]["source"] == "./images"
    sampled = fitv2("sample", "--model", "run", "--steps", 1, "--json")
    assert {row["class"] for row in json.loads(sampled.out)["images"]} == {"cat", "dog"}


def test_a_model_of_a_fixed_grid_trains_goes_on_and_makes_its_own_size(train, fitv2, images, tmp_path):
    settings = ["model.architecture=SiT", "data.preprocessing=crop", "data.max_tokens=9", "log.sample_every=2"]
    assert train(settings=[*settings, "training.steps=2"]).code == 0
    assert (resumed := train("--resume", settings=settings)).code == 0, resumed.err
    assert (tmp_path / "run/samples/step-00000004.png").is_file()
    sampled = fitv2("sample", "--model", "run", "--steps", 1, "--json")
    side = 3 * json.loads((tmp_path / "run/model/config.json").read_text())["model"]["patch_size"]
    assert [row["size"] for row in json.loads(sampled.out)["images"]] == [[side, side]] * 2
    other = fitv2("sample", "--model", "run", "--size", f"{side}x{2 * side}")
    assert_sentence(other, f"makes {side}x{side} latent pixels alone, and {side}x{2 * side} is asked for")
    assert_sentence(fitv2("sample", "--model", "run", "--extrapolation", "ntk"), "makes its own size only")
    assert_sentence(
        train("--out", "other", settings=[*settings[:1], "data.flip=false"]), "SiT takes squares of one size"
    )
    assert json.loads(fitv2("profile", "run", "--json").out)["profiles"][0]["tokens"] == 9


def test_a_dry_run_shows_configuration_and_cost_and_writes_nothing(train, images, tmp_path):
    shown = train("--dry-run")
    assert shown.code == 0, shown.err
    for part in ("learning_rate: 0.0005", "parameters ", "10 in 2 classes", "minutes on this machine", "GiB"):
        assert part in shown.out
    figures = json.loads(train("--dry-run", "--json").out)
    assert figures["recipe"]["model"]["width"] == 32 and figures["images"] == 10 and figures["classes"] == 2
    assert all(figures[name] > 0 for name in ("parameters", "flops_per_step", "memory_bytes", "packing_efficiency"))
    assert figures["flops_total"] == 4 * figures["flops_per_step"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["imagenet-b", "imagenet-xl", "imagenet-3b", "imagenet-hr-xl", "imagenet-hr-3b"])
def test_the_recipes_of_the_paper_are_planned_without_their_data(fitv2, name):
    """The header's figure of device-hours is what the command in it prints."""
    header = recipe_folder().joinpath(f"{name}.yaml").read_text()
    options = re.search(r"--dry-run (--devices \d+ --peak-tflops \d+)", header).group(1).split()
    shown = fitv2("train", "--recipe", name, "--dry-run", *options).out
    assert "is not here: planned with sizes like those of ImageNet" in shown
    hours = re.search(r"time +([\d,]+) device-hours", shown).group(1)
    assert f"Expected time: {hours.replace(',', ' ')} device-hours" in header
    assert 250 < float(re.search(r"images a step +([\d.]+)", shown).group(1)) < 262


def test_a_plan_for_a_number_of_devices_that_cannot_train_is_refused(fitv2):
    result = fitv2("train", "--recipe", "imagenet-b", "--dry-run", "--devices", 3)
    assert_sentence(result, "8 packs a step cannot be shared evenly by 3 devices")
    bogus = fitv2("train", "--recipe", "imagenet-hr-xl", "--dry-run", "--set", "model.extrapolation=bogus")
    assert_sentence(bogus, "there is no extrapolation 'bogus'")


def test_post_training_goes_on_without_the_model_it_began_with(train, images, tmp_path):
    assert train(settings=["training.steps=2"]).code == 0
    (tmp_path / "run").rename(tmp_path / "base")
    settings = ["training.init_from=base", "training.trainable=high-resolution", "model.extrapolation=vision-ntk"]
    assert train(settings=[*settings, "training.steps=2"]).code == 0
    rope = json.loads((tmp_path / "run/model/config.json").read_text())["model"]["rope"]
    shutil.rmtree(tmp_path / "base")
    assert train("--resume", settings=settings).code == 0
    assert json.loads((tmp_path / "run/model/config.json").read_text())["model"]["rope"] == rope
    assert rope["method"] == "ntk-aware"


def test_a_run_is_continued_on_request_only_and_not_with_another_network(train, fitv2, images, tmp_path):
    first = train(settings=["training.steps=2"])
    assert first.code == 0, first.err
    assert_sentence(train(), "run already holds a run; add --resume to continue it, or choose another --out")
    assert_sentence(train("--resume", settings=["model.depth=2"]), "run was trained with model.depth=")
    assert_sentence(
        train("--resume", settings=["model.depth=2", "data.flip=false"]),
        "run was trained with model.depth=",
        "data.flip=",
    )
    result = train("--resume")
    assert result.code == 0 and "continuing from run/checkpoints/step-00000002" in result.err
    assert "training.steps stays" not in result.err
    bare = fitv2("train", "--recipe", "images", "--data", "images", "--out", "run", "--resume")
    assert "training.steps stays 4" in bare.err
    assert "10 known from an earlier start" in result.err


def test_a_folder_alone_is_enough_and_a_model_to_start_from_brings_its_size(fitv2, images, tmp_path):
    small = [word for setting in SMALL for word in ("-s", setting)]
    training = [word for setting in SMALL if not setting.startswith("model.") for word in ("-s", setting)]
    assert fitv2("train", "-d", "images", "-o", "base", *small, "-s", "model.patch_size=4").code == 0
    tuned = ["train", "-d", "images", "--init-from", "base", "-o", "tuned", "--resume", *training]
    for steps in (2, 3):  # The same command continues, also when the base is gone.
        assert (result := fitv2(*tuned, "-s", f"training.steps={steps}")).code == 0, result.err
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
    networks = [json.loads((tmp_path / "tuned" / file).read_text()) for file in ("recipe.json", "model/config.json")]
    assert networks[0]["model"]["width"] == networks[1]["model"]["width"] == 32
    assert networks[0]["model"]["patch_size"] == 4 and networks[0]["training"]["init_from"] == "base"
    assert_sentence(fitv2(*tuned, "--init-from", "builtin:fashion"), "--init-from cannot change")


def test_the_recipes_are_listed_with_size_and_time(fitv2):
    rows = {row["recipe"]: row for row in json.loads(fitv2("recipes", "--json").out)}
    assert set(rows) == set(recipe_names())
    assert rows["imagenet-xl"]["parameters"] == 671_045_776 and 1200 < rows["imagenet-xl"]["device_hours"] < 1400
    assert all(0 < len(row["about"]) < 80 for row in rows.values())
    assert "FiTv2-XL/2 on ImageNet" in fitv2("recipes").out.replace("\n", " ")


def test_a_first_attempt_that_failed_is_in_nobodys_way(train, images):
    assert_sentence(train(data="picturse"), "there is no folder picturse: give the folder that holds the images")
    assert_sentence(train(settings=["training.max_tokens_per_batch=999999999"]), "lower training.max_tokens_per_batch")
    assert train().code == 0


def test_no_training_begins_among_files_of_others(train, images, tmp_path):
    theirs = tmp_path / "run/model/config.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    assert_sentence(train(), "its model would be overwritten")
    assert_sentence(train("--resume"), "its model would be overwritten")
    assert theirs.read_text() == "precious"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["training.learning_rat=1"], ["no setting 'training.learning_rat'; the nearest is 'training.learning_rate'"]),
        (["training.steps=few"], ["training.steps: ", "'few'"]),
        (["training.steps"], ["'training.steps' is not of the form section.key=value"]),
        (["model.width=30"], ["width 30 with 2 heads", "multiple of 4"]),
        (["training.max_tokens_per_batch=30"], ["55 tokens does not fit a pack of 30 tokens"]),
        (["training.max_tokens_per_batch=999999999"], ["GiB are free; lower training.max_tokens_per_batch"]),
        (
            ["data.source=fashion", "data.flip=false"],
            ["data.flip: no effect with source fashion"],
        ),
    ],
)
def test_a_mistake_in_a_setting_is_one_sentence(train, images, settings, parts):
    assert_sentence(train(settings=settings), *parts)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model.patch_size=8", "fashion is cut into patches of 4; set model.patch_size=4"),
        ("data.folder=nowhere", "the bundled 10 000 images need neither"),
    ],
)
def test_a_mistake_with_the_built_in_set_is_one_sentence(fitv2, setting, part):
    assert_sentence(fitv2("train", "--recipe", "fashion", "--set", setting), part)


def test_a_class_that_has_every_turned_and_doubled_size_is_still_shown():
    shapes = [[(16, 16, 3), (16, 32, 2), (32, 16, 1)]]
    assert showcase(Pretrained(random_model(), CLASSES, shapes), 0) == [(16, 16), (16, 32), (24, 24)]


def test_names_with_commas_and_slashes(fitv2, tmp_path):
    names = ["tench, Tinca tinca", "on/off", *CLASSES[2:]]
    model = random_model()
    save_pretrained(tmp_path / "model", CONFIG, model.state_dict(), names, SHAPES, torch.float32)
    asked = ["--model", "model", "--labels", "tench, Tinca tinca", "--labels", "on/off,bag", "--size", "4x8"]
    report = json.loads(fitv2("sample", *asked, "--steps", "1", "--json").out)
    assert [row["class"] for row in report["images"]] == ["tench, Tinca tinca", "on/off", "bag"]
    assert all((tmp_path / row["file"]).is_file() for row in report["images"])


def test_what_a_resume_finds_and_what_json_is_for(train, images):
    first = train("--resume")
    assert first.code == 0 and "there is no run in run to continue: starting at step 0" in first.err
    assert_sentence(train("--resume", "--json"), "--json: without effect without --dry-run")


def test_a_training_that_is_asked_to_stop_says_so_and_goes_on_by_the_same_command(train, images, tmp_path):
    log, long = tmp_path / "run/log.jsonl", ["training.steps=100000"]

    def ask() -> None:
        while not (log.exists() and log.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    stopped = train("--resume", settings=long)
    asking.join()
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert stopped.code == STOPPED == 143, stopped.err
    assert f"stopped by SIGTERM at step {step}, which is saved; the same command with --resume" in stopped.out
    for told in ("trained", "nothing to do"):  # Which is no mistake either.
        ended = train("--resume", settings=[f"training.steps={step + 2}"])
        assert ended.code == 0 and told in ended.out and f"{step + 2} steps" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_alone_ends_as_the_run_that_nobody_interrupted(
    train, fitv2, images, tmp_path, number
):
    """`--resume` needs neither the recipe nor its settings again; a second training meanwhile is refused."""
    settings, log = ["training.steps=60", "log.checkpoint_every=50"], tmp_path / "run/log.jsonl"
    assert train(settings=settings).code == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    refused = []

    def ask() -> None:
        while not (log.exists() and log.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        with pytest.raises(UserError, match="in use"), locked(tmp_path / "run", "a training"):
            pass
        refused.append(True)
        os.kill(int((tmp_path / "pid").read_text()), number)

    asking = threading.Thread(target=ask)
    asking.start()
    stopped = train(settings=settings)
    asking.join()
    assert stopped.code == 128 + number and refused, stopped.err
    assert "which is saved" in stopped.out and "fitv2 train --resume --out run" in stopped.out
    assert fitv2("train", "--resume", "--out", "run").code == 0
    for part in ("model", "ema", "optimizer"):
        file = f"checkpoints/step-00000060/{part}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_data_that_vanishes_ends_the_training_before_anything_is_lost(train, fitv2, images, tmp_path):
    settings, log = ["training.steps=100000", "log.checkpoint_every=100000"], tmp_path / "run/log.jsonl"

    def rename() -> None:
        while not (log.exists() and log.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        images.rename(tmp_path / "elsewhere")

    renaming = threading.Thread(target=rename)
    renaming.start()
    lost = train(settings=settings)
    renaming.join()
    assert_sentence(lost, "cannot be read", "fitv2 train --resume --out run")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["skipped_images"] == 0 and [p.name for p in (tmp_path / "run/checkpoints").glob("step-*")] == [
        f"step-{last['step']:08d}"
    ]
    assert_sentence(fitv2("train", "--resume", "--out", "run"), "--data FOLDER")
    more = ["--set", f"training.steps={last['step'] + 2}"]
    assert fitv2("train", "--resume", "--out", "run", "--data", "elsewhere/", *more).code == 0
    # Other images of the same names, sizes and classes are other data; other classes are another training.
    for path in (tmp_path / "elsewhere").rglob("*.png"):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "other.png")
        target = tmp_path / "others" / path.relative_to(tmp_path / "elsewhere")
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other.png").rename(target)
    assert_sentence(fitv2("train", "--resume", "--out", "run", "--data", "others"), "are not those of")
    # A loose image makes unclear what is meant, and may be answered.
    shutil.copy(next((tmp_path / "elsewhere/cat").iterdir()), tmp_path / "elsewhere/loose.png")
    assert_sentence(fitv2("train", "--resume", "--out", "run"), "--set data.labels=folders")
    assert_sentence(fitv2("train", "--resume", "--out", "run", "--set", "data.labels=none"), "cat, dog", "no classes")
    assert fitv2("train", "--resume", "--out", "run", "--set", "data.labels=folders").code == 0
    (tmp_path / "elsewhere/loose.png").unlink()
    (tmp_path / "elsewhere/cat").rename(tmp_path / "elsewhere/kitten")
    assert_sentence(fitv2("train", "--resume", "--out", "run"), "cat, dog", "dog, kitten")


def test_a_plan_fails_as_the_training_would(train, images, tmp_path):
    nowhere = train("--dry-run", settings=["training.init_from=nowhere"])
    assert_sentence(nowhere, "nowhere is not a model")
    assert train(settings=["training.steps=2"]).code == 0
    assert_sentence(train("--dry-run"), "already holds a run")
    (tmp_path / "images/cow").mkdir()
    shutil.copy(next((tmp_path / "images/cat").glob("*.png")), tmp_path / "images/cow")
    assert_sentence(train("--dry-run", "--resume", settings=["training.steps=2"]), "cat, dog", "cow")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--recipe"),
        (["--recipe", "images"], "--data"),
        (["--recipe", "fashion", "--devices", "2", "--json"], "--devices, --json: without effect without --dry-run"),
        (["--recipe", "fashion", "--dry-run", "--ignore-memory"], "--ignore-memory: without effect with --dry-run"),
        (["--recipe", "fashion", "--dry-run", "--utilisation", "0.3"], "without effect without --peak-tflops"),
        (["--resume", "--out", "nothing"], "no run in nothing"),
        (
            ["--recipe", "fashion-tiny", "--set", "model.architecture=FiT", "--set", "log.sample_steps=2000"],
            "1000 steps",
        ),
        (["--recipe", "fashion-tiny", "--set", "log.sample_guidance=.nan"], "finite"),
    ],
)
def test_what_a_training_cannot_begin_with_is_one_sentence(fitv2, words, part):
    assert_sentence(fitv2("train", *words), part)


def test_the_classes_and_the_inputs_are_shown(train, images, tmp_path):
    shown = train()
    assert "2 classes: cat 5, dog 5" in shown.err
    with Image.open(tmp_path / "run/inputs.png") as page:
        assert min(page.size) > 100


def test_a_damaged_recipe_of_a_run_is_one_sentence(train, images, tmp_path):
    train()
    (tmp_path / "run" / "recipe.json").write_text('{"model": {"width": "wide"}}')
    assert_sentence(train("--resume"), "recipe.json is damaged", "remove it to continue")


@pytest.mark.parametrize(
    ("option", "names"),
    [("--solver", SOLVER_NAMES), ("--extrapolation", EXTRAPOLATIONS), ("--attention-scale", ["none", "pro1", "paper"])],
)
def test_names_of_options_are_those_that_exist(fitv2, option, names):
    wrong = fitv2("sample", option, "eular")
    assert wrong.code == 2 and all(f"'{name}'" in " ".join(wrong.err.replace("│", " ").split()) for name in names)


@pytest.mark.parametrize(
    ("option", "start", "names"),
    [("solver", "eul", ["euler", "euler-maruyama"]), ("extrapolation", "vision-p", ["vision-pi", "vision-parts"])],
)
def test_the_completion_knows_the_names_of_options(option, start, names):
    code = "import sys; from fitv2.cli import main; sys.argv = ['fitv2']; main()"
    asked = {"COMP_WORDS": f"fitv2 sample --{option} {start}", "COMP_CWORD": "3", "_FITV2_COMPLETE": "complete_bash"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert shown.stdout.split() == names, shown.stderr


def test_folders_without_images_are_one_sentence(train, fitv2, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_sentence(train(data="empty"), "no image files: put image files", "in one sub-folder per class")
    (tmp_path / "empty/a.jpg").write_text("no image")
    assert_sentence(train(data="empty"), "no image can be read", "a.jpg: not an image")
    assert_sentence(train(data="nowhere"), "there is no folder nowhere")
    assert_sentence(fitv2("train", "--recipe", "fashon"), "there is no recipe 'fashon'", "fashion-tiny")


def test_a_folder_of_any_name(train, images, tmp_path):
    for name in ("my #1: 'größe' 📷", os.fsdecode(b"caf\xe9")):
        images = images.rename(tmp_path / name)
        assert train("--dry-run", data=name).code == 0
    result = train(data=name)
    assert result.code == 0, result.err
    assert train("--resume", "--set", f"data.source={name}").code == 0


def test_a_damaged_checkpoint_is_one_sentence(train, images, tmp_path):
    assert train().code == 0
    weights = tmp_path / "run/checkpoints/step-00000004/ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_sentence(train("--resume"), "ema.safetensors is damaged", "delete its folder to continue from the one")
