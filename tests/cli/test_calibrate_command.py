"""`fitv2 calibrate`: a table, a sheet, and the best way in the model's folder."""

import json
import shutil

import pytest

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.cli.calibrate import ENLARGED, ONE_PASS, best_way, keep_best, ways_of
from fitv2.cli.options import ModelOptions

CALIBRATE = ("--reference", "fashion", "--size", "own:2", "--num-images", 20, "--steps", 1, "--out", "calibration")


@pytest.fixture
def folder(model, tmp_path):
    return shutil.copytree(model, tmp_path / "mine")


def test_the_best_way_becomes_the_default(fitv2, folder, tmp_path):
    (folder / "sampling.json").write_text('{"guidance": 1.3}')
    told = fitv2("calibrate", "mine", *CALIBRATE).ok().out
    report = json.loads((tmp_path / "calibration" / "calibration.json").read_bytes())
    assert (tmp_path / "calibration" / "sheet.png").is_file() and len(report["rows"]) == 9
    assert f"{report['best']} (best)" in told and {row["size"] for row in report["rows"]} == {"own:2"}
    kept = load_pretrained(folder).recommended
    assert kept["guidance"] == 1.3
    if report["best"].startswith("two passes"):
        assert kept["upscale_from"] == 14 and f"{kept['upscale_time']:g}" in report["best"]
        assert kept["upscale_side"] == 7
    # The images are there: the same command makes none.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "calibration/samples").rglob("*.npz")}
    fitv2("calibrate", "mine", *CALIBRATE, "--no-keep").ok()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "calibration/samples").rglob("*.npz")}


def test_the_least_mean_logarithm_wins_and_enlargement_alone_never():
    rows = [
        {"way": way, "size": size, "fd": fd}
        for way, distances in {ONE_PASS: (1.0, 9.0), "vision-ntk": (2.0, 2.0), ENLARGED: (0.1, 0.1)}.items()
        for size, fd in zip("ab", distances, strict=True)
    ]
    assert best_way(rows) == "vision-ntk"
    times = {"two passes, 0.4": 1.5, "two passes, 0.7": 1.02, "two passes, 0.85": 1.0}
    assert best_way([{"way": way, "fd": fd} for way, fd in times.items()]) == "two passes, 0.7"
    assert best_way(rows + [{"way": way, "fd": 9.0} for way in times]) == "vision-ntk"


@pytest.mark.parametrize(("best", "recommended"), [("two passes, 0.7", 14), (ONE_PASS, None), ("vision-ntk", None)])
def test_what_is_kept_is_what_fitv2_sample_can_follow(folder, best, recommended):
    (folder / "sampling.json").write_text('{"guidance": 1.3, "upscale_from": 99}')
    ways, pretrained = ways_of(ModelOptions(), 14, extrapolates=True), load_pretrained(folder)
    told = keep_best(str(folder), pretrained, ways[best], best, keep=True)
    kept = load_pretrained(folder).recommended
    assert kept["guidance"] == 1.3 and kept.get("upscale_from") == recommended
    way = "two passes" if recommended else "one pass"
    assert len(told) == 2 and f"now recommends {way}" in told[1]
    assert ("cannot hold an extrapolation" in told[1]) == (best == "vision-ntk")
    assert "Nothing was kept" in keep_best("builtin:fashion", pretrained, ways[best], best, keep=True)[1]
    assert len(keep_best(str(folder), pretrained, ways[best], best, keep=False)) == 1
    assert not set(ways_of(ModelOptions(), 14, extrapolates=False)) & {"vision-ntk", "vision-pi"}


def test_what_cannot_be_calibrated(fitv2, tmp_path):
    assert "not a model" in fitv2("calibrate", "nothing", "--reference", "fashion").sentence
