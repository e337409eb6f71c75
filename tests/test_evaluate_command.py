"""The command `fitv2 evaluate`: its results, files, options and mistakes."""

import inspect
import json
import os
import shutil
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from evaluations import noises
from fitv2.cli.evaluate import OF_SAMPLES, evaluate
from fitv2.cli.run_evaluation import is_model
from fitv2.evaluation import generated
from fitv2.evaluation.extractors import EXTRACTORS
from fitv2.system.locks import locked
from image_folders import contents
from tiny import command_line, exit_codes, processes, run_together

pytest_plugins = ["evaluations"]
pytestmark = pytest.mark.usefixtures("isolated")

FAST = ("--steps", "1", "--guidance", "1")


def test_no_result_takes_the_place_of_another(fitv2, garments, tmp_path):
    """By default each has its own folder; in a given one the same evaluation may run again."""
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--metrics", "fd", "-n")
    for number in (20, 21, 20):
        fitv2(*command, number).ok()
    assert len(list((tmp_path / "outputs/evaluation").glob("*/result.json"))) == 2
    for number in (20, 20):
        fitv2(*command, number, "--out", "o").ok()
    before = contents(tmp_path / "o")
    assert "another evaluation" in fitv2(*command, 21, "--out", "o").sentence and contents(tmp_path / "o") == before
    (tmp_path / "o/result.json").unlink()  # As one that was interrupted.
    fitv2(*command, 21, "--out", "o").ok()
    for name in ("result.json", "sheet-28x28.png", "samples-28x28.npz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("precious")
        assert "choose another --out" in fitv2(*command, 20, "--out", name).sentence
        assert (tmp_path / name / name).read_text() == "precious"
    with locked(tmp_path / "o", "a test"):
        assert "in use" in fitv2(*command, 21, "--out", "o").sentence


def option(parameter: str) -> list[str]:
    """A parameter as it is given in a command, with a value that is none of the defaults."""
    values = {"guidance_interval": ("0.1", "0.9"), "internal_interval": ("0.1", "0.9"), "solver": ("euler",)}
    values |= {"as_json": (), "save_npz": (), "force": ()}
    values |= {"precision": ("bf16",), "device": ("cpu",), "autoencoder": ("x",), "size": ("8x8",)}
    values |= {"extrapolation": ("yarn",), "attention_scale": ("yarn",), "protocol": ("centre",)}
    values |= {"extractor": ("garments",)}
    return [f"--{'json' if parameter == 'as_json' else parameter.replace('_', '-')}", *values.get(parameter, ("3",))]


EVERY = [name for name in inspect.signature(evaluate).parameters if name not in ("context", "names")]


def test_options_without_effect_are_refused(fitv2):
    """On samples that exist already, and on results."""
    for name in EVERY:
        if name not in OF_SAMPLES:
            said = fitv2("evaluate", "fashion", "--reference", "fashion", *option(name)).sentence
            assert "without effect" in said and option(name)[0] in said
        if name not in ("force", "as_json"):
            assert "without effect" in fitv2("evaluate", "a.json", "b.json", *option(name)).sentence, name
    (annotated, _) = get_args(get_type_hints(evaluate)["extractor"])
    assert {*get_args(annotated)} == {*EXTRACTORS}


def test_torchrun_takes_the_documented_command():
    """Its parser reads options behind the module's name as well, and refuses some that are short for two of its own."""
    from torch.distributed.run import get_args_parser

    documented = next(line for line in inspect.getdoc(evaluate).splitlines() if "torchrun" in line).split()[1:]
    assert get_args_parser().parse_args(documented).training_script == "fitv2.cli"


def test_what_is_a_model(model, garments, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    checkpoint = run / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    shutil.copy(model / "model.safetensors", checkpoint / "ema.safetensors")
    split, images = tmp_path / "split", tmp_path / "images"
    for folder, name in ((split, ".metadata"), (images, "a.png")):
        (folder / "shards").mkdir(parents=True)
        (folder / "shards" / name).touch()
    assert all(map(is_model, ("builtin:fashion", str(model), str(run), str(checkpoint), str(split))))
    assert not any(map(is_model, ("fashion", str(garments), str(images), str(tmp_path / "nothing.npz"))))


def test_command_measures_a_model_at_many_sizes(fitv2, model, garments, tmp_path):
    sizes = ("--size", "own", "--size", "20x8", "-s", "own:1.5-turned")
    command = ("evaluate", model, "-r", garments, "--extractor", "garments", *sizes, "-n", 24)
    found = fitv2(*command, "--steps", 1, "-g", 1, "-g", 2, "-o", "o", "--json", "--seed", 7).json
    written = json.loads((tmp_path / "o/result.json").read_text())
    assert written.pop("provenance").keys() >= {"commit", "device", "threads"} and found == written
    rows = [(r["stamp"]["size"], r["stamp"]["sampling"]["guidance"], r["stamp"]["protocol"]) for r in found["results"]]
    square = "adm-square"
    of_each = [("own", square), ("20x8", "matched"), ("own:1.5-turned", square)]
    assert rows == [(size, scale, protocol) for scale in (1, 2) for size, protocol in of_each]
    for result in found["results"]:
        keys = {"fd", "sfd", "kid", "kid_error", "classifier_score", "precision", "recall", "density", "coverage"}
        assert all(np.isfinite(result["scores"][key]) for key in keys | {"accuracy", "accuracy_error"})
        stamp = result["stamp"]
        assert (stamp["num"], stamp["seed"], stamp["model_calls"], stamp["step"]) == (24, 7, 1, 40)
        assert stamp["seeds"] == "seed + index" and stamp["labels"] == "10 classes, balanced"
        assert stamp["sampling"]["solver"] == "ab2" and stamp["sampling"]["interval"] == [0, 1]
        assert len(stamp["model_sha256"]) == len(stamp["extractor_sha256"]) == len(stamp["reference_sha256"]) == 64
    assert found["versions"].keys() == {"fitv2", "torch"}
    for name in ("scores.png", "sheet-own-at-1.png", "sheet-20x8-at-2.png", "sheet-own-1-5-turned-at-2.png"):
        assert Image.open(tmp_path / "o" / name).size > (100, 100)


def test_more_images_of_a_model_take_the_place_of_fewer(fitv2, model, garments, tmp_path):
    """In the same folder, and those that are there are kept; fewer or other ones are refused."""
    command = ("evaluate", model, "-r", garments, "--extractor", "garments", "-m", "fd", *FAST, "-o", "o", "-n")
    fitv2(*command, 6).ok()
    (shard,) = (tmp_path / "o/samples").glob("*/00000.npz")
    with np.load(shard) as archive:
        first = [archive[f"arr_{i}"] for i in range(6)]
    fitv2(*command, 9).ok()
    with np.load(shard) as archive:
        assert len(archive.files) == 9 and all(np.array_equal(archive[f"arr_{i}"], first[i]) for i in range(6))
    assert json.loads((tmp_path / "o/result.json").read_text())["results"][0]["stamp"]["num"] == 9
    before = contents(tmp_path / "o")
    for other in ((6,), (12, "--seed", 1), (12, "--protocol", "centre")):
        assert "another evaluation" in fitv2(*command, *other).sentence and contents(tmp_path / "o") == before
    (tmp_path / "o/evaluation.json").write_text("half of it")
    assert "another evaluation" in fitv2(*command, 12).sentence


def test_every_image_of_an_evaluation_can_be_made_alone(fitv2, model, garments, tmp_path):
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", "--metrics", "fd")
    fitv2(*command, "-n", 12, "--seed", 5, "--steps", 2, "--guidance", 2, "--out", "o").ok()
    (folder,) = (tmp_path / "o/samples").iterdir()
    listed = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert [row["index"] for row in listed] == list(range(12)) and listed[10]["seed"] == 15
    with np.load(folder / "00000.npz") as shard:
        made = shard["arr_10"].astype(float)
    row = listed[10]
    size = "{}x{}".format(*row["size"])
    alone = ("sample", "--model", model, "--labels", row["class"], "--size", size, "--seed", row["seed"])
    fitv2(*alone, "--steps", 2, "--guidance", 2, "--out", "s").ok()
    image = np.asarray(Image.open(next((tmp_path / "s").glob(f"*seed{row['seed']}.png"))), float)
    assert np.abs(image - made).max() <= 1 and image.std() > 1


def test_command_writes_what_the_authors_evaluator_reads(fitv2, model, garments, tmp_path):
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", "-n", 5, *FAST)
    fitv2(*command, "--size", "20x8", "--save-npz", "--out", "o").ok()
    with np.load(tmp_path / "o/samples-20x8-at-1.npz") as archive:
        assert archive["arr_0"].shape == (5, 20, 8, 3) and archive["arr_0"].dtype == np.uint8
    first = fitv2(*command, "--size", "20x8", "--out", "o", "--json").json["results"][0]
    again = fitv2("evaluate", "o/samples-20x8-at-1.npz", *command[2:6], "--out", "p", "--json").json
    assert again["results"][0]["scores"]["fd"] == pytest.approx(first["scores"]["fd"], rel=1e-6)
    assert "one size" in fitv2(*command, "--save-npz", "--out", "o").sentence


def test_command_compares_only_what_is_alike(fitv2, garments, tmp_path):
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--size", "28x8")
    command = (*command, "--metrics", "fd", "-n")
    for out, number in (("a", 30), ("c", 20)):
        fitv2(*command, number, "--out", out).ok()
    assert "number of images at 28x8" in fitv2("evaluate", "a/result.json", "c/result.json").sentence
    out = fitv2("evaluate", "a/result.json", "c/result.json", "--force").ok().out
    assert "Not comparable" in out and "number of images" in out
    # An archive has no labels and no seeds.
    noises(tmp_path / "theirs.npz", 30, (28, 8))
    fitv2("evaluate", "theirs.npz", *command[2:], 30, "--out", "e").ok()
    out = fitv2("evaluate", "a/result.json", "e/result.json").ok().out
    assert "a/result.json" in out and "e/result.json" in out
    assert "Not comparable" not in out and "not known" in out


def test_an_evaluation_without_a_figure_has_no_plot(fitv2, tmp_path):
    samples = noises(tmp_path / "noise.npz", 4, (28, 28))  # Without classes there is no accuracy.
    command = ("evaluate", samples, "--reference", "fashion", "--metrics", "accuracy", "--out", "o")
    assert "plots in" not in fitv2(*command).ok().out
    assert (tmp_path / "o/result.json").is_file() and not (tmp_path / "o/scores.png").exists()


def test_figures_of_a_table_are_not_called_by_names_of_another_network(fitv2, garments, tmp_path):
    out = fitv2("evaluate", garments, "--reference", garments, "--extractor", "garments").ok().out
    assert all(f" {name}-garments " in out for name in ("FD", "sFD", "KD", "CS"))
    assert f"against {garments}, seen by garments" in out and "outputs/evaluation/garments" in out
    assert "ankle boot" in out and "Note (own): " in out
    written = next((tmp_path / "outputs/evaluation").glob("*/result.json")).read_text()
    assert not any("inception" in text.lower() or "KID" in text or "FID" in text for text in (out, written))
    (result,) = json.loads(written)["results"]
    assert result["stamp"]["names"].keys() <= result["scores"].keys()


MODEL = ("builtin:fashion", "--reference", "fashion")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing", "--reference", "fashion"), "'nothing'"),
        (("builtin:fashion",), "--reference FOLDER"),
        (("fashion", "--reference", "builtin:fashion"), "is a model"),
        (("fashion", "--reference", "damaged.json"), "fitv2 prepare --autoencoder pixels"),
        (("fashion", "--reference", "fashion:half"), "'fashion:half'"),
        (("fashion", "--reference", "fashion:train"), "not installed/train-images-idx3-ubyte.gz"),
        (("fashion:test", "--reference", "fashion"), "not installed/t10k-images-idx3-ubyte.gz"),
        (("builtin:fashion", "--reference", "nothing"), "'nothing'"),
        ((*MODEL, "--size", "9x9", "-n", "10"), "nearest is 8x8"),
        ((*MODEL, "--size", "own:x"), "'own:x' is not a size"),
        ((*MODEL, "--metrics", "fid"), "'fid'"),
        ((*MODEL, "--extractor", "inception"), "--inception-weights FILE"),
        ((*MODEL, "--protocol", "matched"), "one size"),
        (("fashion", "--reference", "fashion:test", "--size", "own"), "for models"),
        (("fashion", "more", "--reference", "fashion"), "not 2"),
        (("fashion", "--reference", "fashion:test", "--extractor", "efficientnet-lite0"), "no images for"),
        (("builtin:fashion", "--reference", "fashion:test", "--size", "40000x40000"), "--ignore-memory"),
        (("fashion", "--reference", "fashion:test", "--force"), "--force"),
        (("missing.json", "missing.json"), "missing.json cannot be read"),
        (("damaged.json",), "not a result"),
        (("fashion", "--reference", "fashion", "--out", "damaged.json"), "is a file"),
    ],
)
def test_every_mistake_is_told_in_a_sentence(fitv2, tmp_path, arguments, complaint):
    (tmp_path / "damaged.json").write_text("{}")
    said = fitv2("evaluate", *arguments).sentence
    assert said.startswith("fitv2: ") and complaint in said
    assert not (tmp_path / "outputs").exists()


def command_in_company(cache: str, *arguments: str) -> None:
    """For `processes`, which do not see what the test has changed."""
    os.environ["FITV2_CACHE"] = cache
    generated.SHARD = 3
    command_line(*arguments)


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_processes(fitv2, garments, model, tmp_path, monkeypatch):
    """Two processes make them, and the first scores them; not while another command makes the same ones."""
    monkeypatch.setattr(generated, "SHARD", 3)
    command = ("evaluate", str(model), "--reference", str(garments), "--extractor", "garments", "-n", "11", *FAST)
    alone = fitv2(*command, "--out", "alone", "--json").json
    cache, out = str(tmp_path / "cache"), str(tmp_path / "together")
    run_together(2, command_in_company, cache, *command, "--out", out)
    assert sum(name.endswith(".npz") for name in contents(tmp_path / "alone/samples")) == 4
    assert contents(tmp_path / "together/samples") == contents(tmp_path / "alone/samples")
    together = json.loads((tmp_path / "together/result.json").read_text())
    seen_together, seen_alone = together["results"][0]["scores"], alone["results"][0]["scores"]
    assert seen_together.keys() == seen_alone.keys()
    for name, score in seen_alone.items():  # Features are sums, whose order changes with the number of threads.
        assert seen_together[name] == (pytest.approx(score, rel=1e-6) if isinstance(score, float) else score)
    (shard,) = (tmp_path / "together/samples").glob("*/00000.npz")
    shard.unlink()
    with locked(shard.parent, "a test"):
        assert exit_codes(processes(2, command_in_company, cache, *command, "--out", out)) == [1, 1]
    assert not shard.exists()
