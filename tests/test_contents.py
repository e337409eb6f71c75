"""What a folder holds and what its classes are, as training and preparation read it."""

import json
import os

import pytest
from PIL import Image

from fitv2.build import build_dataset
from fitv2.data.captions import has_captions
from fitv2.data.listing import STUDY_MARK as MARK
from fitv2.data.tables import read_table
from fitv2.errors import UserError
from fitv2.images.sheets import save_sheet
from fitv2.prepare.sources import FolderSource, open_source
from fitv2.settings.read import build_recipe
from fitv2.training.run_folder import check_run, keep_recipe
from image_folders import open_folder, save_image, write_tar


def both_readings(root, labels="auto") -> dict[str, str | None]:
    """Image to class, as training and as preparation read a folder, which have to agree."""
    folder, source = open_folder(root, labels_from=labels), FolderSource(root, labels)
    names = source.class_names
    assert folder.class_names == names
    read = {path: names[label] if names else None for path, label in zip(folder.paths, folder.labels, strict=True)}
    prepared = {item.id: names[item.label] if names else None for item in source.items if item.refused is None}
    assert read == prepared
    return read


def save_all(root, *names):
    for name in names:
        save_image(root / name, 20, 20)


def test_images_beside_class_folders_are_an_error(tmp_path):
    save_all(tmp_path, *(f"{i}.png" for i in range(58)), "rejected/a.png", "rejected/b.png")
    for read, option in ((open_folder, "--set data.labels="), (FolderSource, "--labels ")):
        with pytest.raises(UserError) as error:
            read(tmp_path)
        what, move, choose = str(error.value).split(". ")
        assert "58 loose images" in what and "rejected/ (2)" in what and move.startswith("Move")
        assert f"{option}folders takes" in choose and f"{option}none all" in choose
    assert set(both_readings(tmp_path, "folders").items()) == {
        ("rejected/a.png", "rejected"),
        ("rejected/b.png", "rejected"),
    }
    assert len(both_readings(tmp_path, "none")) == 60


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "#recycle"])
def test_system_folders_are_not_classes_but_counted(tmp_path, folder):
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
def test_folders_above_the_class_folders_are_not_classes(tmp_path, names, parts):
    save_all(tmp_path, *names)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert all(part in str(error.value) for part in parts), error.value
    assert set(both_readings(tmp_path, "folders").values()) == {name.partition("/")[0] for name in names}


def test_one_class_and_numbers_out_of_order_are_noted(tmp_path, caplog):
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
        ("metadata.jsonl", '{"file_name": "x/a.png", "year": 1990}', "holds no labels, only file_name, year"),
        ("dataset.json", '{"version": 1}', "is not used"),
        ("metadata.parquet", "PAR1", "is not read"),
    ],
)
def test_a_table_without_labels_is_named_in_a_note(tmp_path, caplog, name, content, note):
    save_all(tmp_path, "x/a.png", "y/b.png")
    (tmp_path / name).write_text(content)
    classes = set(both_readings(tmp_path).values())
    assert classes == ({None} if "null" in content else {"x", "y"}) and note in caplog.text


def test_several_tables_and_tables_below_the_root_are_errors(tmp_path):
    save_all(tmp_path, "x/a.png", "b.png", "train/a.png")
    for name in ("metadata.csv", "dataset.json"):
        (tmp_path / name).write_text(TABLES[name])
    with pytest.raises(UserError, match=r"dataset\.json and in"):
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
def test_output_of_fitv2_is_not_data(tmp_path, what):
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


def test_samples_do_not_hide_the_images_beside_them(tmp_path):
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


def test_a_run_among_the_images_is_refused(tmp_path):
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


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("forest.png", "lake.png"), {"README.md": "Landscapes."}),
        (("runs/a.png", "sheets/b.png"), {}),
        (("a.png", "b.png"), {"evaluation.json": "{}"}),
    ],
)
def test_names_that_fitv2_uses_as_well_do_not_make_a_folder_its_own(tmp_path, names, others):
    root = tmp_path / "all/landscapes"
    save_all(root, *names)
    for name, text in others.items():
        (root / name).write_text(text)
    assert list(both_readings(root)) == sorted(names)
    assert list(both_readings(tmp_path / "all", "none")) == [f"landscapes/{name}" for name in sorted(names)]
    (root / "README.md").write_text(f"{MARK}\n# A study")
    with pytest.raises(UserError, match="is a study, made by fitv2"):
        open_folder(root)


def test_what_is_no_label_or_no_path_in_a_table(tmp_path, caplog):
    save_all(tmp_path, "x/a.png", "x/b.png", "y/c.png")
    (tmp_path / "dataset.json").write_text('{"labels": [[0, 1], [1, 0]]}')
    assert set(both_readings(tmp_path).values()) == {"x", "y"} and "dataset.json is not used" in caplog.text
    rows = [("x/a.png", "1.0"), ("x/b.png", "0.0"), ("y/c.png", "NaN")]
    text = "\n".join(f'{{"file_name": "{name}", "label": {label}}}' for name, label in rows)
    (tmp_path / "metadata.jsonl").write_text(text)
    assert both_readings(tmp_path) == {"x/a.png": "1", "x/b.png": "0"}


def test_rows_of_a_table_are_read_whole_or_refused(tmp_path):
    save_all(tmp_path, "0.png", "#1, red.png")
    table = tmp_path / "metadata.csv"
    table.write_text('# a comment, "open\ntext,file_name\n#sunset at the beach,0.png\n"a, b","#1, red.png",,\n')
    source = FolderSource(tmp_path)
    told = {item.id: source.captions(i) for i, item in enumerate(source.items) if item.refused is None}
    assert told == {"0.png": ("#sunset at the beach",), "#1, red.png": ("a, b",)}
    for name, separator in (("list.txt", "\t"), ("list.csv", ",")):
        (tmp_path / name).write_text(f"#1, red.png{separator}cat\n# none\n0.png{separator}dog")
        assert [row.path for row in read_table(tmp_path / name).rows] == ["#1, red.png", "0.png"]
    table.write_text("file_name,text\n0.png,a cat, on a mat\n")
    with pytest.raises(UserError, match="line 2, has 3 columns"):
        read_table(table)


def test_a_quoted_cell_of_csv_may_hold_line_ends(tmp_path):
    save_all(tmp_path, "0.png", "1.png")
    table = tmp_path / "metadata.csv"
    table.write_bytes(b'# "none\r\nfile_name,text\r\n0.png,"a cat,\r\n\r\non a ""mat"""\r\n\r\n1.png,a dog\r\n')
    source = FolderSource(tmp_path)
    assert [source.captions(i) for i in range(2)] == [('a cat,\n\non a "mat"',), ("a dog",)]
    table.write_text('file_name,text\n0.png,a cat\n1.png,"a\ndog\n')
    with pytest.raises(UserError, match="line 3: a quote"):
        read_table(table)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "file_name,label\n0.png,cat\n,dog\n"),
        ("list.txt", "# a comment\n0.png\tcat\n \tdog"),
        ("list.jsonl", '{"file_name": "0.png"}\n\n{"label": "dog"}'),
        ("list.jsonl", '{"file_name": "0.png"}\n\n{"file_name": null}'),
    ],
)
def test_a_row_without_an_image_is_an_error(tmp_path, name, text):
    save_all(tmp_path, "0.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}, line 3, names no image"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["metadata.jsonl", "dataset.json", "0.txt"])
def test_a_pipe_for_a_table_or_a_caption_is_not_waited_for(tmp_path, name):
    save_all(tmp_path, "0.png")
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}.*not a file"):
        FolderSource(tmp_path).captions(0)


def test_tables_of_captions_below_the_root_are_read_and_captions_of_nothing_refused(tmp_path):
    save_all(tmp_path, "x/0.png", "y/0.png", "y/z/1.png")
    for folder, name in (("x", "0.png"), ("y", "z/1.png")):
        (tmp_path / folder / "metadata.csv").write_text(f"file_name,text\n{name},in {folder}\nlost.png,lost")
    assert has_captions(tmp_path, ["x/0.png", "y/0.png"])
    source = FolderSource(tmp_path)
    told = {item.id: source.captions(i) for i, item in enumerate(source.items) if item.refused is None}
    assert told == {"x/0.png": ("in x",), "y/0.png": (), "y/z/1.png": ("in y",)}
    assert {item.id for item in source.items if item.refused == "read for its captions"} == {
        "x/metadata.csv", "y/metadata.csv"
    }  # fmt: skip
    (tmp_path / "y/metadata.csv").write_text("file_name,text\ny/0.png,by the root")
    with pytest.raises(UserError, match=r"y/y/0\.png"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("folder", ["a", "z"])
def test_of_several_tables_the_deepest_tells_the_caption(tmp_path, folder):
    save_all(tmp_path, f"{folder}/0.png", f"{folder}/1.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{folder}/0.png,above\n{folder}/1.png,above")
    (tmp_path / folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "beside"}')
    source = FolderSource(tmp_path)
    told = {item.id: source.captions(i) for i, item in enumerate(source.items) if item.refused is None}
    assert told == {f"{folder}/0.png": ("beside",), f"{folder}/1.png": ("above",)}


def test_captions_are_split_at_line_ends_alone(tmp_path):
    save_all(tmp_path, "0.png")
    (tmp_path / "0.txt").write_bytes("a car\u2028by a house\r\nred\x85 car\rlast".encode())
    assert FolderSource(tmp_path).captions(0) == ("a car\u2028by a house", "red\x85 car", "last")


def test_labels_that_python_cannot_read_are_no_traceback(tmp_path):
    save_all(tmp_path, "0.png")
    deep = "[" * 100_000
    for name, text in (("list.txt", f"0.png\t{'1' * 5000}"), ("list.jsonl", deep)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=r"not a class|no JSON"):
            open_source(str(tmp_path / name))
    archive = write_tar(tmp_path / "all/all.tar", {"a.png": b"x", "a.json": deep.encode()})
    assert open_source(str(archive)).notes == ["1 .json member without a label in it"]
    (tmp_path / "dataset.json").write_text(deep)
    assert any("dataset.json is not used" in note for note in FolderSource(tmp_path).notes)
