"""Canvases of cut-outs: what lies where, in which sizes, under which words, and the same for every process."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from fitv2.build import build_dataset, build_model_config
from fitv2.data.canvas_layout import Background, Scene, describe, paint, with_article
from fitv2.data.canvases import Canvases
from fitv2.data.cutouts import Cutouts, name_of
from fitv2.data.dataset import Epoch
from fitv2.data.folder import ImageFolder
from fitv2.training.trainer import Trainer
from tiny import log_lines, recipe

PATCH, BUDGET = 8, 64
SETS = 2


def cutouts(number: int = 300) -> Cutouts:
    """Opaque rectangles, each of a colour that tells its index, of many shapes and of two sets."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 120, (number, 2))

    def read(index: int) -> Image.Image:
        height, width = sizes[index].tolist()
        return Image.new("RGBA", (width, height), (*colour(index), 255))

    return Cutouts(
        ids=[f"thing-{index}" for index in range(number)],
        names=[f"thing {index}." for index in range(number)],
        sizes=sizes,
        labels=np.arange(number) % 5,
        class_names=list("abcde"),
        sets=np.arange(number) % SETS,
        styles=["flat", ""],
        read=read,
    )


def colour(index: int) -> tuple[int, int, int]:
    return index % 256, index // 256, 77


def canvases(number: int = 300, **settings) -> Canvases:
    return Canvases(cutouts(number), **{"max_tokens": BUDGET, "patch": PATCH, "min_scale": 0.4} | settings)


def scenes(view: Epoch) -> list[Scene]:
    """What is on every image of an epoch of canvases."""
    return [view.dataset.scene(index, *view._drawn(index)) for index in range(len(view.dataset))]


@pytest.fixture(scope="module")
def view():
    return canvases().epoch(3, 7)


def test_sizes_are_within_the_budget_and_the_range_and_a_third_is_filled(view):
    counts = view.dataset.counts[view.variant]
    tokens, aspect = view.hw.prod(1), view.hw[:, 1] / view.hw[:, 0]
    assert 0.25 < (counts == 0).mean() < 0.42 and {0, 1, 2, 3, 4} == set(counts.tolist())
    assert tokens.max() <= BUDGET and tokens[counts > 0].min() >= 4
    composed = aspect[counts > 0]
    assert composed.min() >= 0.25 and composed.max() <= 4 and composed.min() < 0.4 and composed.max() > 2.5
    assert abs(np.log(composed).mean()) < 0.15 and tokens[counts > 0].min() < 12 < 50 < tokens.max()
    assert (tokens[counts == 4] >= 16).all()
    assert all(view.load(index).shape[1:] == tuple(view.hw[index] * PATCH) for index in range(12))


def test_the_same_key_gives_the_same_canvas_in_any_order(view):
    again, other = canvases().epoch(3, 7), canvases().epoch(4, 7)
    assert np.array_equal(again.hw, view.hw) and not np.array_equal(other.hw, view.hw)
    for index in (20, 3, 11):
        assert view.load(index).equal(again.load(index)) and view.caption(index) == again.caption(index)
    assert sum(view.caption(index) == other.caption(index) for index in range(50)) < 10


def test_cut_outs_lie_on_their_canvas_and_do_not_overlap(view):
    arrangements = set()
    for scene in scenes(view):
        arrangements.add(scene.arrangement)
        for left, top, width, height in scene.boxes:
            assert min(left, top) >= 0 and min(width, height) > 0
            assert left + width <= scene.size[1] and top + height <= scene.size[0]
        for (x, y, w, h), (left, top, width, height) in combinations(scene.boxes, 2):
            assert x + w <= left or left + width <= x or y + h <= top or top + height <= y
        assert len(set(scene.cutouts)) == len(scene.boxes) and len({index % SETS for index in scene.cutouts}) == 1
    assert arrangements == {"alone", "row", "column", "grid"}


def test_captions_name_what_is_there_in_its_order(view):
    for index, scene in enumerate(scenes(view)):
        pixels = ((view.load(index) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        for number, (left, top, width, height) in zip(scene.cutouts, scene.boxes, strict=True):
            assert tuple(pixels[top + height // 2, left + width // 2]) == colour(number)
        caption, names = view.caption(index), [f"a thing {number}." for number in scene.cutouts]
        places = [caption.find(name) for name in names]
        assert places == sorted(places) and places[0] == 0 and caption.count("thing") == len(names)
        assert caption.endswith("flat style") == (scene.styled and index % SETS == 0)
        assert (scene.background.name in caption) and ("background" in caption) == bool(scene.background.name)


def test_an_image_of_one_thing_has_its_class_and_one_of_several_has_none(view):
    several = view.dataset.counts[view.variant] > 1
    assert (view.labels[several] == 5).all()
    assert np.array_equal(view.labels[~several], view.dataset.labels[~several])


def test_held_out_cut_outs_are_among_themselves_and_never_trained_on():
    data = canvases(1000)
    held = set(data.held_out.tolist())
    assert 30 < len(held) < 70
    assert all(len({index in held for index in scene.cutouts}) == 1 for scene in scenes(data.epoch(0, 0)))
    assert not len(canvases(600).held_out)


def test_alpha_is_composed_on_the_background():
    cutout = Image.new("RGBA", (20, 10), (200, 0, 0, 128))
    scene = Scene((30, 40), [0], [(10, 5, 20, 10)], "alone", Background((100, 100, 0), (100, 100, 0)))
    pixels = np.asarray(paint(scene, lambda index: cutout))
    inside = np.zeros((30, 40), bool)
    inside[5:15, 10:30] = True
    assert np.abs(pixels[inside].astype(int) - [150, 50, 0]).max() <= 1 and (pixels[~inside] == [100, 100, 0]).all()


def test_a_mirrored_canvas_mirrors_each_thing_in_its_place():
    cutout = Image.new("RGBA", (20, 10), "red")
    cutout.paste("blue", (10, 0, 20, 10))
    scene = Scene((10, 40), [0], [(0, 0, 20, 10)], "alone", Background(), mirrored=True)
    pixels = np.asarray(paint(scene, lambda index: cutout))
    assert tuple(pixels[5, 2]) == (0, 0, 255) and tuple(pixels[5, 17]) == (255, 0, 0)
    assert tuple(pixels[5, 30]) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arrangement", "names", "caption"),
    [
        ("alone", ["red apple"], "a red apple"),
        ("row", ["cat", "rocket"], "a cat to the left of a rocket"),
        ("column", ["moon", "house"], "a moon above a house"),
        ("row", ["cat", "rocket", "tree"], "a cat, a rocket and a tree in a row"),
        ("grid", ["cat", "owl", "bus", "grapes"], "a cat and an owl above a bus and grapes"),
    ],
)
def test_captions(arrangement, names, caption):
    scene = Scene((8, 8), [], [], arrangement, Background(), styled=True)
    assert describe(scene, names, "") == caption and describe(scene, names, "flat") == f"{caption}, flat style"


def test_articles_and_names():
    for name in ("an owl", "a unicorn", "an hourglass", "a cactus", "a glass", "scissors", "a face with open eyes"):
        assert with_article(name.removeprefix("an ").removeprefix("a ")) == name
    assert [name_of(text) for text in ("red_apple-02", "T-Rex", "7", "tree 3")] == ["red apple", "T Rex", "7", "tree"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_decoded_in_every_mode_and_trimmed(tmp_path, mode):
    image = Image.new("RGBA", (30, 20), (90, 90, 90, 0))
    image.paste((90, 90, 90, 255), (5, 4, 20, 12))
    (tmp_path / "images").mkdir()
    image.convert(mode).save(tmp_path / "images/thing.png")
    read = ImageFolder(tmp_path / "images", 64, 4, channels=4).read(0)
    assert (
        read.mode == "RGBA" and read.size == (15, 8) and read.getextrema() == ((90, 90), (90, 90), (90, 90), (255, 255))
    )


def test_a_cut_out_that_cannot_be_seen_is_skipped(tmp_path):
    (tmp_path / "images").mkdir()
    for name, alpha in (("faint", 8), ("seen", 9)):
        Image.new("RGBA", (30, 20), (90, 90, 90, alpha)).save(tmp_path / f"images/{name}.png")
    images = ImageFolder(tmp_path / "images", 64, 4, channels=4)
    assert images.paths == ["seen.png"] and images.report.skipped == [("faint.png", "transparent everywhere")]


@pytest.fixture
def folder(tmp_path):
    """A folder of cut-outs with a transparent margin, and an opaque photograph among them."""
    for number in range(12):
        image = Image.new("RGBA", (60, 80), (0, 0, 0, 0))
        image.paste((20 * number, 90, 10, 255), (10, 20, 50, 50))
        path = tmp_path / "things" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    Image.new("RGB", (50, 70), "green").save(tmp_path / "things/dog/photo.jpg")
    return tmp_path / "things"


def of_folder(folder, *overrides: str):
    settings = [f"data.source={folder}", "data.max_tokens=32", "model.patch_size=8", "data.canvas={objects: [2, 3]}"]
    return recipe(*settings, *overrides)


def test_a_folder_of_cut_outs_is_trimmed_and_trains(folder, tmp_path):
    chosen = of_folder(folder)
    data = build_dataset(chosen.data, 8, tmp_path / "images.json")
    assert data.class_names == ["cat", "dog"] and data.cutouts.sizes[:12].tolist() == [[30, 40]] * 12
    view = data.epoch(0, 0)
    assert {"a cat", "a dog"} >= {view.caption(i).split(" on ")[0] for i in np.flatnonzero(view.variant < 2)}
    Trainer(chosen, data, build_model_config(chosen, data), tmp_path / "run").fit(lambda figures: None)
    assert log_lines(tmp_path / "run")[-1]["step"] == 10
    # The sizes of trimmed images are not taken for those of whole ones, or the other way round.
    whole = build_dataset(of_folder(folder, "data.canvas=null").data, 8, tmp_path / "images.json")
    assert whole.sizes[:12].tolist() == [[80, 60]] * 12


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.canvas={aspect: [4, 1]}", "smaller number first"),
        ("data.canvas={objects: [1, 9]}", "at most 4"),
        ("data.canvas={objects: [0, 2]}", r"data\.canvas\.objects"),
        ("data.canvas={aspekt: [1, 2]}", "no setting"),
        ("data.channels=1", r"data\.channels=3"),
        ("data.preprocessing=crop", "preprocessing=resize"),
    ],
)
def test_settings_that_make_no_canvas_are_refused(folder, override, part):
    with pytest.raises(ValueError, match=part):
        of_folder(folder, override)


def test_aspects_that_no_size_has_are_refused():
    with pytest.raises(ValueError, match=r"canvas\.aspect"):
        canvases(aspect=(1.01, 1.02))


def test_extreme_settings_make_canvases_or_a_sentence():
    widest = canvases(aspect=(1e-300, 1e308)).sizes_of
    assert all(np.array_equal(widest[n][0], sizes) for n, (sizes, _) in canvases(aspect=(1 / 64, 64)).sizes_of.items())
    with pytest.raises(ValueError, match="3 cut-outs"):
        canvases(max_tokens=4, patch=1)
    tiny = canvases(max_tokens=16, patch=1, aspect=(1 / 16, 16), min_scale=1.0)
    for scene in (scene for seed in range(3) for scene in scenes(tiny.epoch(seed, seed))):
        for left, top, width, height in scene.boxes:
            assert 0 <= left <= scene.size[1] - width and 0 <= top <= scene.size[0] - height
