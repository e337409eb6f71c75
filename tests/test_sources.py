"""Sources of images: folders, lists and data sets of Hugging Face give items, and name the rest."""

import os
import sys

import pytest

from fitv2.data.formats import UnreadableImage
from fitv2.data.labelling import Item
from fitv2.errors import UserError
from fitv2.prepare.sources import open_source
from image_files import saved
from image_folders import good_files, labels_of, noise, refused, taken, write_files, write_tar

GOOD = good_files(6)


def test_list_with_numbers_gaps_and_no_labels(tmp_path):
    write_files(tmp_path, {"a.png": b"a", "b.png": b"b", "c.jpeg": b"c"})
    listing = tmp_path / "list.txt"
    listing.write_text("a.png\t2\nb.png\t0\nc.jpeg\nnowhere.png\t1\n")
    source = open_source(str(listing))
    assert source.class_names == ["0", "1", "2"]
    assert {name: label for name, (label, _) in taken(source).items()} == {"a.png": 2, "b.png": 0}
    assert refused(source) == {"c.jpeg": "without a label", "nowhere.png": "not a file"}
    listing.write_text("b.png\na.png\n")
    source = open_source(str(listing))
    assert (source.items, source.class_names) == ([Item("b.png"), Item("a.png")], [])
    listing.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"not a list"):
        open_source(str(listing))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nowhere/at/all", "there is no nowhere/at/all: give a folder of images"),
        ("nowhere.tar", "there is no nowhere.tar"),
        ("./nowhere", "there is no ./nowhere"),
        ("file.zip", "file.zip is neither a folder, a list (.txt, .tsv, .csv, .jsonl) nor a .tar archive"),
        ("someone/images", "install the package datasets"),
    ],
)
def test_an_unknown_source_is_one_sentence(tmp_path, monkeypatch, name, part):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(ValueError) as error:
        open_source(name)
    assert part in str(error.value)


def test_archives_beside_images_are_not_taken_for_all(tmp_path):
    write_files(tmp_path, good_files(3))
    write_tar(tmp_path / "a.tar", {"x.png": saved(noise(8, 8))})
    with pytest.raises(ValueError, match="archives and images"):
        open_source(str(tmp_path))
    assert list(taken(open_source(str(tmp_path / "*.tar")))) == ["a.tar/x.png"]


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet"])
def test_hugging_face_folders(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {
        "image": [{"bytes": content, "path": None} for content in GOOD.values()],
        "label": [int(name.startswith("dog")) for name in GOOD],
    }
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if kind == "parquet":
        (tmp_path / "data").mkdir()
        rows.to_parquet(str(tmp_path / "data" / "train-00000.parquet"))
        write_files(tmp_path, {"logo.png": b"A"})  # Of a download: it belongs to the page of the data set.
    else:
        (rows if kind == "saved" else datasets.DatasetDict(train=rows)).save_to_disk(str(tmp_path))
    source = open_source(str(tmp_path))
    assert source.class_names == ["cat", "dog"]
    assert list(taken(source).values()) == [(int(name.startswith("dog")), content) for name, content in GOOD.items()]


@pytest.mark.parametrize("named", [True, False])
def test_tables_of_files_that_other_programs_have_written(tmp_path, named):
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").table
    cells = [{"bytes": content, "path": name} if named else content for name, content in GOOD.items()]
    columns = {"picture": cells, "label": ["dog" if name.startswith("dog") else "cat" for name in GOOD]}
    parquet.write_table(table(columns), tmp_path / "all.parquet")
    source = open_source(str(tmp_path))
    assert source.class_names == ["cat", "dog"]
    assert list(taken(source).values()) == [(int(name.startswith("dog")), content) for name, content in GOOD.items()]


@pytest.mark.parametrize(
    ("labels", "problem"), [([-1, -1, -1, 0], "3 of 4 images have no label"), ([[0]] * 4, "no class")]
)
def test_hugging_face_labels_that_are_none(tmp_path, labels, problem):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = {"image": datasets.Image(), "label": [names] if isinstance(labels[0], list) else names}
    columns = {"image": [{"bytes": b"x", "path": None}] * 4, "label": labels}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(tmp_path))
    with pytest.raises(UserError, match=problem):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), "none").class_names == []


def test_a_file_far_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("fitv2.prepare.items.MAX_BYTES", 1000)
    write_files(tmp_path / "images", {"large.png": bytes(1001), "small.png": bytes(1000)})
    (tmp_path / "list.txt").write_text("images/large.png\nimages/small.png\n")
    write_tar(tmp_path / "all.tar", {"large.png": bytes(1001), "small.png": bytes(1000)})
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("read") if "large" in path.name else b"x")
    for name in ("images", "list.txt", "all.tar"):
        source = open_source(str(tmp_path / name))
        with pytest.raises(UnreadableImage, match="1001 bytes, limit 1000"):
            source.read(0)
        assert source.read(1)


def listed(folder, name: str, text: str | bytes, files=("a.png", "b.png", "c.png")):
    """The source of a list of that text beside those files."""
    write_files(folder, {file: os.fsencode(file) for file in files})
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(str(folder / name))


@pytest.mark.parametrize(
    ("name", "separator"), [("list.csv", ","), ("list.tsv", "\t"), ("list.txt", "\t"), ("list.csv", ";")]
)
@pytest.mark.parametrize(
    "header", ["", "file_name label", "image class", "Path Category", "label file_name", "file species"]
)
def test_lists_with_and_without_a_header(tmp_path, name, separator, header):
    rows = [["b.png", "dog"], ["a.png", "cat"]]
    if header.startswith("label"):
        rows = [row[::-1] for row in rows]
    text = "\n".join(separator.join(row) for row in [*([header.split()] if header else []), *rows])
    source = listed(tmp_path, name, text + "\n\n")
    assert (source.class_names, labels_of(source)) == (["cat", "dog"], {"a.png": "cat", "b.png": "dog"})
    assert [item.id for item in source.items] == ["b.png", "a.png"]
    assert taken(source)["a.png"] == (0, b"a.png")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"# a comment\n\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_of_any_editor(tmp_path, start, end):
    source = listed(
        tmp_path, "list.txt", start.replace(b"\n", end) + end.join([b" a.png \t cat ", b"", b"./b.png\tdog"])
    )
    assert labels_of(source) == {"a.png": "cat", "./b.png": "dog"}
    wide = listed(tmp_path, "wide.txt", "a.png\tcat\r\nb.png\tdog".encode("utf-16"))
    assert labels_of(wide) == {"a.png": "cat", "b.png": "dog"}


def test_a_quote_is_a_character_but_in_csv(tmp_path):
    files = ("a.png", 'b".png', "c, d.png", "#e.png")
    source = listed(tmp_path, "list.tsv", 'a.png\t"unclosed cat\nb".png\tdog\nc, d.png\tdog\n#e.png\tdog', files)
    assert labels_of(source) == {"a.png": '"unclosed cat', 'b".png': "dog", "c, d.png": "dog", "#e.png": "dog"}
    source = listed(tmp_path, "list.csv", 'a.png,"cat, big"\n"c, d.png",dog\n"b"".png",dog', files)
    assert labels_of(source) == {"a.png": "cat, big", "c, d.png": "dog", 'b".png': "dog"}
    assert labels_of(listed(tmp_path, "bare.csv", "a.png,cat\nc, d.png,dog", files))["c, d.png"] == "dog"
    with pytest.raises(UserError, match="line 2: a quote"):
        listed(tmp_path, "open.csv", 'a.png,cat\nb.png,"dog\nc.png,dog')


@pytest.mark.parametrize("written", ["{}", "{}.0", "{:03}"])
def test_class_ids_keep_their_number_and_large_ones_are_names_in_numerical_order(tmp_path, written):
    files, ids = [f"{i}.png" for i in range(5)], [0, 1, 10, 11, 2]
    rows = [f"{name}\t{written.format(number)}" for name, number in zip(files, ids, strict=True)]
    source = listed(tmp_path, "list.tsv", "\n".join(rows), files)
    assert source.class_names == [str(i) for i in range(12)] and [item.label for item in source.items] == ids
    source = listed(tmp_path, "list.txt", "a.png\t900000\nb.png\t10000000\nc.png\t7")
    assert source.class_names == ["7", "900000", "10000000"] and [i.label for i in source.items] == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.png\t3\nb.png\tcat", ["mix numbers", "3", "cat", "--labels none"]),
        ("a.png\t0.5\nb.png\t1", ["0.5", "not a class"]),
        ("a.png\t-2\nb.png\t1", ["-2", "start at 0"]),
        ("a.png\t0\nb.png\nc.png\t-1", ["2 of 3 images have no label", "b.png"]),
        ("a.png\tcat\nb.png\tdog\na.png\tdog", ["two labels for a.png", "cat (line 1)", "dog (line 3)"]),
        ("a.png cat\nb.png dog", ["'a.png cat'", "a tab its label"]),
        ("a.png\tcat\t1\nb.png\tdog\t2", ["3 columns", "file_name"]),
        ("x\tfirst\tsecond\na.png\tcat\t1", ["first, second", "Rename"]),
        ("path\tkind\tmood\na.png\tcat\t1", ["kind, mood", "Rename"]),
    ],
)
def test_a_list_that_can_mean_several_things_is_refused(tmp_path, text, parts):
    with pytest.raises(UserError) as error:
        listed(tmp_path, "list.txt", text)
    assert all(part in str(error.value) for part in parts), error.value
    assert open_source(str(tmp_path / "list.txt"), "none").class_names == [] if "mix" in parts[0] else True


def test_absolute_repeated_and_missing_paths(tmp_path):
    text = f"{tmp_path}/a.png\tcat\nb.png\tdog\n./b.png\tdog\nnowhere.png\tdog\nc.png\t\n"
    source = listed(tmp_path, "list.txt", text)
    assert labels_of(source) == {f"{tmp_path}/a.png": "cat", "b.png": "dog"}
    assert refused(source) == {
        "./b.png": "listed before", "nowhere.png": "not a file", "c.png": "without a label"
    }  # fmt: skip


def test_json_lines_and_captions(tmp_path):
    source = listed(tmp_path, "list.csv", 'file_name,text\na.png,"a cat, asleep"\nb.png,a dog')
    assert source.class_names == [] and len(taken(source)) == 2 and "no labels" in source.notes[0]
    text = '{"file_name": "a.png", "label": 2, "text": "x"}\n{"file_name": "b.png", "label": 0}\n'
    source = listed(tmp_path, "list.jsonl", text)
    assert (source.class_names, [item.label for item in source.items]) == (["0", "1", "2"], [2, 0])
    for bad in ('{"file_name": "a.png", "label": [0, 1]}', "a.png"):
        with pytest.raises(UserError, match="line 1"):
            listed(tmp_path, "bad.jsonl", bad)


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    source = listed(tmp_path, "list.txt", b"caf\xe9.png\tna\xefve\nb.png\tdog", (name, "b.png"))
    assert labels_of(source)[name] == os.fsdecode(b"na\xefve")
