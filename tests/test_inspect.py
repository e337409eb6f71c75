"""Inspection: each figure against images whose fate is known, the table of all files, and shards that are damaged."""

import csv
import json
import re
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fitv2.data.latent_shards import LatentShards
from fitv2.data.packing import packing_efficiency, plan_packs
from fitv2.data.scan import MOST_LISTED
from fitv2.drawing import write_page
from fitv2.prepare.inspection import NUMBERS, numbers_of
from fitv2.prepare.plots import MOST_BARS, bars, points
from image_files import saved
from image_folders import contents, noise, write_files

# Height and width; 16 tokens of 4 x 4 pixels, so a square of 16 x 16.
SIZES = {"cat/a": (32, 64), "cat/b": (16, 8), "dog/c": (4, 60), "dog/d": (100, 100)}
PREPARE = ["prepare", "images", "--out", "out", "--autoencoder", "pixels"]
PREPARE += ["--max-tokens", 16, "--patch-size", 4, "--shard-size", 3]


@pytest.fixture
def prepared(fitv2, tmp_path):
    files = {f"{name}.png": saved(noise(*size)) for name, size in SIZES.items()}
    write_files(tmp_path / "images", files | {"cat/bad.png": b"x", "cat/no.txt": b"x"})
    write_files(tmp_path / "images", {"dog/again.png": files["cat/a.png"]})
    fitv2(*PREPARE).ok()
    return tmp_path / "out"


def test_the_table_tells_each_files_fate(fitv2, prepared, tmp_path):
    report = fitv2("inspect", "out", "--json", "--out", "seen").json
    with open(tmp_path / report["table"], newline="") as file:
        rows = list(csv.DictReader(file))
    told = {(row["id"], row["variant"]): row for row in rows}
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert {name: row["skipped"] for (name, _), row in told.items() if row["skipped"]} == {
        "cat/bad.png": "not an image",
        "cat/no.txt": "ignored extension: .txt",
    }
    resized, cropped = told["cat/a.png", "resize"], told["cat/a.png", "crop"]
    assert [resized[k] for k in ("class", "height", "width", "new_height", "new_width", "tokens", "cropped")] == [
        "cat", "32", "64", "8", "20", "10", "0.2"
    ]  # fmt: skip
    assert float(resized["stretched"]) == 0, "2:5 of 1:2 are cut out"
    assert [cropped[k] for k in ("new_height", "new_width", "tokens", "cropped", "stretched", "scale")] == [
        "16", "16", "16", "0.5", "0.0", "0.5"
    ]  # fmt: skip
    assert float(told["cat/b.png", "resize"]["scale"]) == 1 and ("cat/b.png", "crop") not in told


def test_the_summary_counts(fitv2, prepared, tmp_path):
    report = fitv2("inspect", "out", "--json", "--max-tokens-per-batch", 40).json
    assert [report[k] for k in ("files", "images", "duplicates", "skipped")] == [7, 5, 1, 2]
    assert report["classes"] == {"cat": 2, "dog": 3} and report["variants"] == {"resize": 5, "crop": 3}
    assert (report["height"], report["new_width"]) == ([4, 32, 100], [8, 16, 60])
    assert report["skipped_by_reason"] == {"not an image": 1, "ignored extension": 1}
    assert report["aspects"]["0.33 to 0.5"] == 0 and report["aspects"]["0.5 to 0.67"] == 1
    assert report["aspects"]["2 to 3"] == 2 and report["aspects"]["above 4"] == 1
    assert sum(report["token_counts"].values()) == 8 and report["token_counts"]["15 to 16"] == 5
    assert sum(report["cropped"].values()) == 5 and report["cropped"]["0.5 to 0.75"] == 2
    assert report["stretched_visibly"] == 0
    lengths = LatentShards(prepared).first_hw.prod(1)
    packs = plan_packs(lengths, 40, 0, 0)
    efficiency = packing_efficiency(lengths, packs, 40)
    assert report["packing"] == {"budget": 40, "packs": len(packs), "packing_efficiency": efficiency}
    with Image.open(tmp_path / report["plots"]) as plots:
        assert len(plots.convert("RGB").getcolors(100_000)) > 5
    assert report["table"].startswith("out-inspected") and "plots.png" not in {path.name for path in prepared.iterdir()}


def test_older_preparations_were_stretched_and_not_cropped():
    found = dict(zip(NUMBERS, numbers_of([32, 64], "resize", {"size": [8, 20]}, 4), strict=True))
    assert (found["cropped"], found["stretched"], found["tokens"]) == (0, 0.25, 10)


def test_text_for_people(fitv2, prepared):
    shown = fitv2("inspect", "out", "--verify").ok().out
    for part in ("5 images of 7 files as pixels", "8 variants", "5 resized, 3 centre squares", "2 lose a part"):
        assert part in shown
    for part in ("2 classes", "all of 3 shards as written", "% full", "variants by tokens", "images by class"):
        assert part in shown
    for part in ("not an image        1 ", "dog        3 #####", "Every file is in out-inspected"):
        assert part in shown


def test_preparation_says_of_how_many_images_a_square_is_stored(fitv2, prepared):
    assert "3 of 5 images also as a centre square" in (shown := fitv2(*PREPARE).ok().out) and "--preprocessing" in shown
    for only in ("resize", "crop"):
        assert "square" not in fitv2(*PREPARE, "--out", only, "--preprocessing", only).ok().out


def test_an_image_stretched_by_five_percent_is_not_stretched_by_more(fitv2, tmp_path):
    write_files(tmp_path / "images", {"a.png": saved(noise(20, 21))})
    fitv2(*PREPARE, "--max-tokens", 36).ok()
    report = fitv2("inspect", "out", "--json").json
    assert report["stretched_visibly"] == 0 and report["new_height"] == report["new_width"]


@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_a_damaged_shard_is_found_and_named(fitv2, prepared, damage):
    shard = sorted((prepared / "shards").glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content) if damage == "flip" else shard.unlink()
    fitv2("inspect", "out").ok()  # Only --verify looks.
    told = fitv2("inspect", "out", "--verify").sentence
    assert f"not as written: {shard.name}; the same fitv2 prepare" in told


def test_files_of_others_are_not_written_over(fitv2, prepared, tmp_path):
    for out in ("images", "out", "images/cat/bad.png"):
        assert re.search("choose another --out|is a file", fitv2("inspect", "out", "--out", out).sentence)
    assert not (tmp_path / "images" / "plots.png").exists()
    for _ in range(2):
        fitv2("inspect", "out", "--out", "seen").ok()


def test_an_inspection_lies_beside_its_folder_however_that_is_named(fitv2, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "out/shards")
    before = contents(tmp_path / "out")
    fitv2("inspect", "..").ok()
    assert (tmp_path / "out-inspected/plots.png").is_file()
    assert contents(tmp_path / "out") == before
    assert "is no prepared data set" in fitv2("inspect", "/").sentence


def test_a_budget_below_the_longest_image_is_one_sentence_and_leaves_nothing(fitv2, prepared, tmp_path):
    assert "\nfitv2: --max-tokens-per-batch 1: " in fitv2("inspect", "out", "--budget", 1).sentence
    assert not (tmp_path / "out-inspected").exists()


def test_long_reports_name_the_first_files_and_where_all_are(fitv2, tmp_path):
    bad = {f"{i:03}.png": b"x" for i in range(MOST_LISTED + 5)}
    write_files(tmp_path / "images", bad | {"good.png": saved(noise(9, 9))})
    shown = fitv2("prepare", "images", "--out", "out", "--max-tokens", 16, "--autoencoder", "pixels").ok().out
    assert "019.png: not an image" in shown and "020.png" not in shown
    assert "and 5 more, all of them in out/index.jsonl" in shown and "1 image of 26 files" in shown


def test_plots_of_any_names_and_sizes(tmp_path):
    """No name is a formula, none stops the drawing, and of many the rest is summed up."""
    names = ["$x_{", "\\frac{$", "猫", "not\udcff text", *map(str, range(MOST_BARS))]
    counts = dict.fromkeys(names, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_page(tmp_path / "names.png", [bars("classes", counts)])
        write_page(
            tmp_path / "page.png",
            [points("one size", {"before": np.array([(16, 16)]), "after": np.array([(8, 8)])})] * 3,
        )
    axes = Figure().add_subplot()
    bars("classes", counts)(axes)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:4] == ["$x_{", "\\frac{$", "猫", "not? text"] and shown[-1] == "5 more"
    assert [text.get_text() for text in axes.texts] == ["2"] * (MOST_BARS - 1) + ["10"]
    with Image.open(tmp_path / "names.png") as one, Image.open(tmp_path / "page.png") as three:
        assert (2 * one.width, 2 * one.height) == three.size and one.format == "PNG"


def test_what_others_and_a_killed_inspection_left_is_no_obstacle(fitv2, prepared, tmp_path):
    draft = tmp_path / f"seen/.images.csv.{'0' * 32}"
    write_files(tmp_path / "seen", {".DS_Store": b"x", draft.name: b"half"})
    fitv2("inspect", "out", "--out", "seen").ok()
    assert not draft.exists() and (tmp_path / "seen/.DS_Store").exists()


def test_names_that_are_no_text_are_in_the_table(fitv2, prepared, tmp_path):
    names = ["cat/a.png", "\ud83dx.png", "dog/c.png"]
    rows = [json.dumps({"file_name": name, "label": f"{i}\ud83d"}) for i, name in enumerate(names)]
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(rows))
    for name in ("cat/b.png", "dog/d.png", "dog/again.png", "cat/bad.png"):
        (tmp_path / "images" / name).unlink()
    fitv2(*PREPARE).ok()
    fitv2("inspect", "out").ok()
    table = (tmp_path / "out-inspected/images.csv").read_text()
    assert "0\\ud83d" in table and "\\ud83dx.png" in table
