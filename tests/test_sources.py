"""Sources of images: folders, lists, archives and data sets of Hugging Face give items, and name the rest."""

import os
import sys
import tarfile

import pytest

from fitv2.data.formats import UnreadableImage
from fitv2.data.labelling import Item
from fitv2.errors import UserError
from fitv2.prepare.sources import open_source
from image_files import saved
from image_folders import good_files, noise, write_files, write_tar

GOOD = good_files(6)


def taken(source) -> dict[str, tuple[int, bytes]]:
    """Id to label and bytes of every item that is not refused."""
    items = enumerate(source.items)
    return {item.id: (item.label, source.read(index)) for index, item in items if item.refused is None}


def refused(source) -> dict[str, str]:
    return {item.id: item.refused for item in source.items if item.refused is not None}


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


def test_archives_with_numbers_and_json(tmp_path):
    first = {"./cats": None, "./cats/a.jpg": b"A", "./cats/a.cls": b"1\n", "b.png": b"B", "b.json": b'{"label": 0}'}
    second = {"a.webp": b"C", "a.cls": b"1", "a.txt": b"a caption", "b.seg.png": b"D", "b.json": b"[]", "c.png": b"E"}
    write_tar(tmp_path / "0.tar", first)
    write_tar(tmp_path / "1.tar", second)
    for name in (str(tmp_path), f"{tmp_path}/*.tar"):
        source = open_source(name)
        assert source.class_names == ["0", "1"]
        assert taken(source) == {"0.tar/./cats/a.jpg": (1, b"A"), "0.tar/b.png": (0, b"B"), "1.tar/a.webp": (1, b"C")}
        assert refused(source) == {"1.tar/b.seg.png": "without a label", "1.tar/c.png": "without a label"}
    assert taken(open_source(str(tmp_path / "0.tar"))).keys() == {"0.tar/./cats/a.jpg", "0.tar/b.png"}
    for folder, label in (("x", b"0"), ("y", b"1")):  # Archives of one name do not mix their labels.
        write_tar(tmp_path / folder / "0.tar", {"a.png": label, "a.cls": label})
    assert [item.label for item in open_source(f"{tmp_path}/[xy]/0.tar").items] == [0, 1]


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
        with pytest.raises(UnreadableImage, match=r"^too large: 1001 bytes, limit 1000$"):
            source.read(0)
        assert source.read(1)


def listed(folder, name: str, text: str | bytes, files=("a.png", "b.png", "c.png")):
    """The source of a list of that text beside those files."""
    write_files(folder, {file: os.fsencode(file) for file in files})
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(str(folder / name))


def labels_of(source) -> dict[str, str | None]:
    return {item.id: source.class_names[item.label] for item in source.items if item.refused is None}


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
    assert archive_labels(tmp_path, {"a.png": b"x", "a.cls": b"na\xefve\n"}) == {"a.png": os.fsdecode(b"na\xefve")}


def test_an_archive_is_read_to_its_end_or_said_to_be_cut(tmp_path):
    halves = [{f"{half}{i}.png": saved(noise(8, 8, i)) for i in range(6)} for half in "ab"]
    first, second = (write_tar(tmp_path / f"{i}.tar", half).read_bytes() for i, half in enumerate(halves))
    with tarfile.open(tmp_path / "0.tar") as tar:
        bounds = [member.offset for member in tar.getmembers()]
    cut = bounds[3]
    cases = {
        "whole": (first, 6, None),
        "joined": (first + second, 12, None),
        "one block of zeros": (first[: bounds[-1] + 1024] + bytes(512), 6, None),
        "between members": (first[:cut], 3, "truncated or damaged"),
        "within a member": (first[: cut + 600], 4, "truncated or damaged"),
        "within a header": (first[: cut + 100], 3, "truncated or damaged"),
        "cut and joined": (first[:cut] + second, 9, None),
        "garbage behind": (first + b"x" * 700, 6, "truncated or damaged"),
        "zeros to the end": (first[:cut] + bytes(20480), 3, "truncated or damaged"),
        "damaged header": (first[:cut] + b"x" * 512 + first[cut + 512 :], 3, "truncated or damaged"),
        "empty": (b"", 0, "empty file"),
    }
    for name, (content, number, problem) in cases.items():
        path = tmp_path / "case.tar"
        path.write_bytes(content)
        source = open_source(str(path))
        assert len([item for item in source.items if item.refused is None]) == number, name
        assert (problem is None) == (not refused(source)), name
        assert problem is None or problem in refused(source)["case.tar"], name
        if name == "within a member":
            with pytest.raises(OSError, match="archive ends"):
                source.read(3)


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_packed_archives_are_one_sentence(tmp_path, kind):
    with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}"):
        pass
    (tmp_path / "b.tar").write_bytes((tmp_path / f"a.tar.{kind}").read_bytes())
    for name in (f"a.tar.{kind}", "b.tar"):
        with pytest.raises(UserError, match="unpack it first"):
            open_source(str(tmp_path / name))
    write_tar(tmp_path / "b.tar", {"x.png": b"x"})
    for name in (str(tmp_path), f"{tmp_path}/[ab]*", f"{tmp_path}/a*"):
        with pytest.raises(UserError, match="unpack them first"):
            open_source(name)


@pytest.mark.parametrize("first", ["PK_1.png", "BZh.png"])
def test_an_archive_is_known_by_its_content_and_a_file_is_no_pattern(tmp_path, first):
    write_tar(tmp_path / "x1.tar", {"wrong.png": b"x"})
    write_tar(tmp_path / "x[1].tar", {first: b"A"})
    assert taken(open_source(str(tmp_path / "x[1].tar"))) == {f"x[1].tar/{first}": (0, b"A")}


def test_sparse_members_are_refused(tmp_path):
    member = tarfile.TarInfo("a.bmp")
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}
    with tarfile.open(tmp_path / "all.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    assert refused(open_source(str(tmp_path / "all.tar")))["all.tar/a.bmp"].startswith("sparse: ")


def archive_labels(folder, members: dict[str, bytes], labels="auto") -> dict[str, str | None]:
    source = open_source(str(write_tar(folder / "all.tar", members)), labels)
    return {name.removeprefix("all.tar/"): label for name, label in labels_of(source).items()}


def test_each_image_of_an_archive_has_the_label_of_its_name(tmp_path):
    dotted = {f"img_0.{i}_a.png": b"x" for i in range(3)} | {f"img_0.{i}_a.cls": b"%d" % i for i in range(3)}
    assert archive_labels(tmp_path, dotted) == {f"img_0.{i}_a.png": str(i) for i in range(3)}
    shared = {"a.left.png": b"x", "a.right.png": b"y", "a.cls": b"1", "b.png": b"z", "b.seg.png": b"s", "b.cls": b"0"}
    assert archive_labels(tmp_path, shared) == {
        "a.left.png": "1", "a.right.png": "1", "b.png": "0", "b.seg.png": "0"
    }  # fmt: skip
    both = {"a.png": b"x", "a.cls": b"1", "a.json": b'{"class_name": "dog"}', "b.png": b"x", "b.cls": b"0"}
    assert archive_labels(tmp_path, both) == {"a.png": "1", "b.png": "0"}
    unknown = {f"{i}.png": b"x" for i in range(4)} | {f"{i}.cls": b"%d" % (i - 1) for i in range(4)}
    assert archive_labels(tmp_path, unknown) == {f"{i + 1}.png": str(i) for i in range(3)}
    system = {"a.png": b"x", "__MACOSX/._a.png": b"x", "@eaDir/a.png": b"x", ".hidden/a.png": b"x"}
    assert list(taken(open_source(str(write_tar(tmp_path / "all.tar", system))))) == ["all.tar/a.png"]


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        ({"a.1.cls": b"1", "a.2.cls": b"2", "a.png": b"x"}, ["a.png has several labels", "1 (", "2 ("]),
        ({"a.cls": b"1", "a.json": b'{"label": 2}', "a.png": b"x"}, ["several labels"]),
        ({"a.cls": b"1", "a.png": b"x", "b.cls": b"dog", "b.png": b"x"}, ["mix numbers"]),
    ],
)
def test_labels_of_an_archive_that_contradict_each_other(tmp_path, members, parts):
    with pytest.raises(UserError) as error:
        archive_labels(tmp_path, members)
    assert all(part in str(error.value) for part in parts)
    assert open_source(str(tmp_path / "all.tar"), "none").class_names == []


def test_of_repeated_members_the_last_one_counts(tmp_path):
    first, second = {"a.png": b"old", "a.cls": b"0"}, {"./a.png": b"new", "a.cls": b"1"}
    parts = [write_tar(tmp_path / "part.tar", part).read_bytes() for part in (first, second)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    source = open_source(str(tmp_path / "all.tar"))
    assert taken(source) == {"all.tar/./a.png": (1, b"new")}
    assert "replaced" in refused(source)["all.tar/a.png"]
