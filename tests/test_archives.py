"""Archives as sources of images: what is in them, which label each image has, and damage."""

import os
import tarfile

import pytest

from fitv2.errors import UserError
from fitv2.prepare.sources import open_source
from image_files import saved
from image_folders import labels_of, noise, refused, taken, write_tar


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


def test_a_label_that_is_not_utf8(tmp_path):
    assert archive_labels(tmp_path, {"a.png": b"x", "a.cls": b"na\xefve\n"}) == {"a.png": os.fsdecode(b"na\xefve")}


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
