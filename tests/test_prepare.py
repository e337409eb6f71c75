"""Preparation: what is stored, what is named, and that interruptions, company and changes do not show in the bytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fitv2.cli.prepare import lines_of
from fitv2.data.decode import decode
from fitv2.data.latent_shards import LatentShards
from fitv2.data.preprocessing import prepare, target_size, to_array, variants
from fitv2.finite import NotFinite
from fitv2.images.autoencoder import LatentCodec
from fitv2.prepare import run as run_module
from fitv2.prepare.encode import build_encoder
from fitv2.prepare.run import Report
from fitv2.system.locks import locked
from image_files import saved
from image_folders import bad_files, contents, good_files, noise, open_folder, write_files
from tiny import tiny_autoencoder

SETTINGS = ["--max-tokens", "16", "--shard-size", "5", "--workers", "2"]
PIXELS = [*SETTINGS, "--autoencoder", "pixels", "--patch-size", "4"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    tiny_autoencoder().save_pretrained(folder)
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_files(tmp_path / "images", good_files(12))


@pytest.fixture
def fitv2(fitv2):
    """`fitv2 prepare ARGUMENTS`: its JSON report, or its one sentence."""

    def run(*arguments) -> Any:
        result = fitv2("prepare", *arguments, "--json")
        return result.sentence if result.code else result.json

    return run


def index(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    return {line["id"]: line for line in lines}


def stored(out: Path, line: dict, variant: str):
    with safe_open(out / "shards" / line["shard"], "np") as file:
        return file.get_tensor(line["variants"][variant]["tensor"])


def test_pixels_are_stored_as_prepared(fitv2, root, tmp_path):
    report = fitv2("images", "--out", "out", *PIXELS)
    assert (report["images"], report["encoded"], report["reused"], report["shards"]) == (12, 12, 0, 3)
    lines = index(tmp_path / "out")
    assert list(lines) == sorted(good_files(12))
    both = 0
    for name, line in lines.items():
        image = decode(root / name)
        assert line["size"] == [image.height, image.width] and line["label"] == int(name.startswith("dog"))
        possible = variants(*line["size"], 16, 4, "mixed")
        assert tuple(line["variants"]) == possible
        both += len(possible) == 2
        for variant in possible:
            expected = to_array(prepare(image, 16, 4, variant))
            assert np.array_equal(stored(tmp_path / "out", line, variant), expected[None])
            assert line["variants"][variant]["size"] == list(target_size(*line["size"], 16, 4, variant))
    assert both >= 3
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert dataset["class_names"] == ["cat", "dog"] and dataset["kind"] == "pixels" and dataset["autoencoder"] is None
    assert dataset["counts"] == {"files": 12, "images": 12, "duplicates": 0, "skipped": 0}


def test_moments_are_those_of_the_autoencoder_of_both_flips(fitv2, root, vae, tmp_path):
    fitv2("images", "--out", "out", *SETTINGS, "--autoencoder", vae)
    codec = LatentCodec(tiny_autoencoder(), "cpu")
    for name, line in index(tmp_path / "out").items():
        pixels = torch.from_numpy(to_array(prepare(decode(root / name), 16, 16, "resize")))[None] / 127.5 - 1
        moments = stored(tmp_path / "out", line, "resize")
        assert moments.dtype == np.float16 and moments.shape[:3] == (2, 2, 4)
        for flip, face in enumerate([pixels, pixels.flip(3)]):
            expected = torch.cat(codec.encode(face)).numpy()
            np.testing.assert_allclose(moments[flip], expected, rtol=2e-3, atol=2e-3)
    assert not np.allclose(moments[1, 0], moments[0, 0][:, :, ::-1], atol=1e-2), "a flip is not a mirrored latent"
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    expected = {"kind": "moments", "dtype": "float16", "scaling_factor": 0.5, "shift_factor": 0.1}
    expected |= {"factor": 8, "channels": 4}
    assert {key: dataset[key] for key in expected} == expected
    assert dataset["autoencoder"] == str(vae) and len(dataset["autoencoder_sha256"]) == 64


def test_images_of_equal_size_share_a_pass(fitv2, vae, tmp_path, monkeypatch):
    write_files(tmp_path / "images", {f"{i}.png": saved(noise(*((40, 30), (16, 16))[i % 2], i)) for i in range(10)})
    passes = []
    encode = LatentCodec.encode
    monkeypatch.setattr(LatentCodec, "encode", lambda self, x: passes.append(tuple(x.shape)) or encode(self, x))
    fitv2("images", "--out", "out", *SETTINGS, "--shard-size", 10, "--no-flip", "--autoencoder", vae)
    assert sorted(passes) == [(5, 3, 16, 16), (5, 3, 32, 16)]


def test_every_bad_file_is_named_and_every_good_one_present(fitv2, root, tmp_path):
    bad = bad_files()
    write_files(root / "cat", {name: content for name, (content, _) in bad.items()})
    (root / "dog" / "link.png").symlink_to(tmp_path / "nowhere")
    report = fitv2("images", "--out", "out", *PIXELS)
    expected = {f"cat/{name}": kind for name, (_, kind) in bad.items()} | {"dog/link.png": "not a file"}
    assert {name: reason.partition(":")[0] for name, reason in report["skipped_files"]} == expected
    assert report["skipped_by_reason"]["ignored extension"] == 4 and report["skipped"] == len(expected)
    lines = index(tmp_path / "out")
    assert {name for name, line in lines.items() if "skipped" not in line} == set(good_files(12))
    assert set(lines) == set(good_files(12)) | set(expected)


def test_a_training_and_a_preparation_name_what_they_leave_out_alike(fitv2, root, tmp_path):
    bad = {"cat/bad.png": b"x", "cat/draft.svg": b"x", "dog/photo.dng": b"x", "notes.txt": b"x", ".hidden": b"x"}
    write_files(root, bad)
    report = fitv2("images", "--out", "out", *PIXELS)
    _, preparation = build_encoder("pixels", 16, 4, "mixed", False, None, "cpu")
    skipped = Report(skipped=[*map(tuple, report["skipped_files"])])
    of_prepare = lines_of(skipped, tmp_path / "out", 0, preparation, drawn=False)
    assert [*of_prepare][2:-2] == open_folder(root).report.summary().splitlines()[1:]


def test_a_content_is_encoded_once_and_a_repeated_bad_one_told_twice(fitv2, root, tmp_path):
    shutil.copy(root / "cat/000.png", root / "dog/zzz.png")
    write_files(root, {"cat/bad.png": b"x", "dog/bad.png": b"x"})
    report = fitv2("images", "--out", "out", *PIXELS)
    assert (report["encoded"], report["images"], report["duplicates"]) == (12, 13, 2)
    lines = index(tmp_path / "out")
    first, second = lines["cat/000.png"], lines["dog/zzz.png"]
    assert second["duplicate_of"] == "cat/000.png" and (first["label"], second["label"]) == (0, 1)
    assert (first["variants"], first["shard"]) == (second["variants"], second["shard"])
    assert report["skipped_files"] == [["cat/bad.png", "not an image"], ["dog/bad.png", "not an image"]]


def test_a_second_run_encodes_and_writes_nothing(fitv2, root, tmp_path):
    """Also with a slash after the source, which is the same one."""
    fitv2("images", "--out", "out", *PIXELS)
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()}
    report = fitv2("images/", "--out", "out/", *PIXELS)
    assert (report["encoded"], report["reused"]) == (0, 0)
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()} == times


def test_of_a_changed_source_only_what_is_new_is_encoded(fitv2, root, tmp_path):
    fitv2("images", "--out", "out", *PIXELS)
    before = contents(tmp_path / "out")
    write_files(root, {"cat/0000.png": saved(noise(50, 50, 99))})  # in front of most: they all move
    (root / "cat/002.webp").rename(root / "dog/renamed.webp")
    (root / "dog/011.webp").unlink()
    write_files(root, {"dog/009.png": saved(noise(20, 60, 98))})  # other content
    report = fitv2("images", "--out", "out", *PIXELS)
    assert report["encoded"] == 2 and report["reused"] >= 4 and report["images"] == 12
    fitv2("images", "--out", "fresh", *PIXELS)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before
    report = fitv2("images", "--out", "out", *PIXELS, "--shard-size", 7)
    assert (report["encoded"], report["reused"], report["shards"]) == (0, 12, 2)


def test_a_renamed_class_changes_indices_and_no_tensors(fitv2, root, tmp_path):
    before = fitv2("images", "--out", "out", *PIXELS)
    assert before["classes"] == {"cat": 6, "dog": 6} and before["notes"] == []
    tensors = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith(".safetensors")}
    (root / "cat").rename(root / "bird")
    report = fitv2("images", "--out", "out", *PIXELS)
    after = contents(tmp_path / "out")
    assert (report["encoded"], report["reused"], report["classes"]) == (0, 0, {"bird": 6, "dog": 6})
    assert "new bird; gone cat" in report["notes"][0] and "cannot be resumed" in report["notes"][0]
    assert {name: data for name, data in after.items() if name.endswith(".safetensors")} == tensors
    assert fitv2("images", "--out", "fresh", *PIXELS)["notes"] == []
    assert after == contents(tmp_path / "fresh")
    assert fitv2("images", "--out", "bare", *PIXELS, "--labels", "none")["classes"] == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "index", "changed index"])
def test_a_damaged_shard_is_made_anew_to_the_same_bytes(fitv2, root, vae, tmp_path, damage):
    command = ["images", "--out", "out", *SETTINGS, "--autoencoder", vae]
    fitv2(*command)
    before = contents(tmp_path / "out")
    shard = sorted((tmp_path / "out/shards").glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "lose":
        shard.unlink()
    elif damage == "index":
        shard.with_suffix(".jsonl").write_text("{")
    elif damage == "changed index":
        index = shard.with_suffix(".jsonl")
        index.write_text(index.read_text().replace('"offset": ', '"offset": 1'))
    else:
        shard.write_bytes(data if damage == "flip" else data[:-10])
    assert fitv2(*command)["encoded"] == 5
    assert contents(tmp_path / "out") == before


def test_an_autoencoder_may_move(fitv2, root, vae, tmp_path):
    shutil.copytree(vae, tmp_path / "here")
    fitv2("images", "--out", "out", *SETTINGS, "--autoencoder", "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert fitv2("images", "--out", "out", *SETTINGS, "--autoencoder", "there")["encoded"] == 0
    for file in ("settings.json", "dataset.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["autoencoder"] == str(tmp_path / "there")


def test_a_source_that_changes_meanwhile_is_one_sentence(fitv2, root, tmp_path, monkeypatch):
    plan_shards = run_module.plan_shards

    def change_and_plan(*arguments):
        (root / "cat/000.png").write_bytes(saved(noise(9, 9)))
        return plan_shards(*arguments)

    monkeypatch.setattr(run_module, "plan_shards", change_and_plan)
    assert "cat/000.png changed while it was being prepared" in fitv2("images", "--out", "out", *PIXELS)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (["--max-tokens", 25], ["out was prepared with max tokens 16, not 25; choose another --out"]),
        (["--no-flip"], ["prepared with flip True, not False"]),
        (["--channels", 1], ["prepared with channels 3, not 1"]),
        (["--preprocessing", "crop"], ["prepared with preprocessing mixed, not crop"]),
        (["--autoencoder", "vae"], ["prepared with kind pixels, not moments, channels 3, not 4"]),
        (["--channels", 4], ["images have 1 or 3 channels, not 4"]),
        (["--autoencoder", "vae", "--channels", 1], ["--channels goes with --autoencoder pixels"]),
        (["--autoencoder", "./no/where"], ["the autoencoder ./no/where cannot be loaded; name its folder instead"]),
        (["--out", "images/out"], ["lies within the source", "choose a folder outside of it"]),
        (["--out", "images/cat/000.png"], ["is a file; name a folder"]),
        (["--out", "vae"], ["vae holds something else than a prepared data set; choose another --out"]),
    ],
)
def test_a_mistake_is_one_sentence(fitv2, root, vae, tmp_path, change, parts):
    fitv2("images", "--out", "out", *PIXELS)
    (tmp_path / "vae").symlink_to(vae)
    before = contents(tmp_path / "out")
    message = fitv2("images", "--out", "out", *PIXELS, *change)
    assert all(part in message for part in parts), message
    assert contents(tmp_path / "out") == before


def test_sources_without_an_image_are_refused_and_fix_no_settings(fitv2, root, tmp_path):
    (tmp_path / "empty").mkdir()
    write_files(tmp_path / "bad", {"a.png": b"x"})
    assert "no image can be read" in fitv2("empty", "--out", "out", *PIXELS)
    message = fitv2("bad", "--out", "bad-out", *PIXELS)
    assert "no image can be read" in message and "a.png: not an image" in message
    fitv2("images", "--out", "out", *PIXELS, "--max-tokens", 25)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["max_tokens"] == 25


def test_an_out_within_the_source_by_a_link_is_refused_and_prepared_data_is_no_source(fitv2, root, tmp_path):
    (tmp_path / "link").symlink_to(root / "cat")
    assert "lies within the source" in fitv2("images", "--out", "link/out", *PIXELS)
    fitv2("images", "--out", "out", *PIXELS)
    assert "made by fitv2" in fitv2("out", "--out", "again", *PIXELS)
    report = fitv2(".", "--out", tmp_path.parent / f"{tmp_path.name}-out", *PIXELS, "--labels", "none")
    assert ["out", "made by fitv2: prepared data"] in report["skipped_files"]


def test_two_preparations_do_not_share_a_folder(fitv2, root, tmp_path):
    with locked(tmp_path / "out", "a preparation"):
        assert "in use by another process" in fitv2("images", "--out", "out", *PIXELS)
    assert fitv2("images", "--out", "out", *PIXELS)["images"] == 12


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_broken_autoencoder_ends_in_one_sentence_and_stores_nothing(fitv2, root, tmp_path, value):
    network = tiny_autoencoder()
    torch.nn.init.constant_(network.quant_conv.weight, value)
    network.save_pretrained(tmp_path / "broken")
    message = fitv2("images", "--out", "out", *SETTINGS, "--autoencoder", "broken")
    assert all(part in message for part in ("broken", "finite")), message
    assert not list((tmp_path / "out").glob("shards/*")) and not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize("raises", [False, True])
def test_single_images_without_finite_latents_are_listed(fitv2, root, vae, tmp_path, monkeypatch, raises):
    """Whether the encoder gives them or refuses the whole pass."""
    encode = LatentCodec.encode
    whites = saved(Image.new("RGB", (40, 40), "white"))
    write_files(root, {"cat/white.png": whites, "dog/white.png": whites, "dog/same_size.png": saved(noise(40, 40))})

    def with_a_flaw(self, images):
        mean, std = encode(self, images)
        white = (images > 0.99).flatten(1).all(1)
        if raises and white.any():
            raise NotFinite("of one of them")
        return torch.where(white[:, None, None, None], torch.inf, mean), std

    monkeypatch.setattr(LatentCodec, "encode", with_a_flaw)
    command = ["images", "--out", "out", *SETTINGS, "--autoencoder", vae]
    for encoded in (13, 0):
        report = fitv2(*command)
        assert [name for name, reason in report["skipped_files"]] == ["cat/white.png", "dog/white.png"]
        assert list(report["skipped_by_reason"]) == ["not finite"]
        assert (report["images"], report["encoded"]) == (13, encoded)
    assert LatentShards(tmp_path / "out").ids.count("dog/same_size.png") == 1


def test_sets_of_older_decoding_load_and_are_not_mixed(fitv2, root, tmp_path):
    fitv2("images", "--out", "out", *PIXELS)
    path = tmp_path / "out" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoding": 1}))
    assert len(LatentShards(tmp_path / "out")) == 12
    assert "prepared with decoding 1, not 2" in fitv2("images", "--out", "out", *PIXELS)
