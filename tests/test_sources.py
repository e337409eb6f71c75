"""Sources of pictures: folders, lists, archives and data sets of Hugging Face give items, and name the rest."""

import io
import tarfile

import pytest

from fitv2.data.images import UnreadableImage
from fitv2.data.labelling import Item
from fitv2.prepare.sources import open_source
from pictures import as_bytes, good_files, noise, write_files

GOOD = good_files(6)


def taken(source) -> dict[str, tuple[int, bytes]]:
    """Id to label and bytes of every item that is not refused."""
    return {
        item.id: (item.label, source.read(index)) for index, item in enumerate(source.items) if item.refused is None
    }


def refused(source) -> dict[str, str]:
    return {item.id: item.refused for item in source.items if item.refused is not None}


def write_tar(path, members: dict[str, bytes | None]):
    """None is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.size = (tarfile.DIRTYPE, 0) if content is None else (tarfile.REGTYPE, len(content))
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def test_folder(tmp_path):
    write_files(tmp_path, GOOD)
    source = open_source(str(tmp_path))
    assert source.class_names == ["cat", "dog"]
    assert taken(source) == {name: (int(name.startswith("dog")), content) for name, content in GOOD.items()}
    assert [item.id for item in source.items] == sorted(GOOD)


def test_folder_without_classes(tmp_path):
    write_files(tmp_path, {"b.png": b"b", "a.png": b"a"})
    source = open_source(str(tmp_path))
    assert (source.items, source.class_names) == ([Item("a.png"), Item("b.png")], [])


def test_every_other_file_of_a_folder_is_named(tmp_path):
    write_files(tmp_path, GOOD | {"loose.png": b"x", "cat/notes.txt": b"x", "cat/README": b"", ".git/config": b""})
    (tmp_path / "dog" / "link.png").symlink_to(tmp_path / "nowhere")
    source = open_source(str(tmp_path), "folders")
    assert refused(source) == {
        "loose.png": "outside the class folders",
        "cat/notes.txt": "ignored extension: .txt",
        "cat/README": "ignored extension: without extension",
        ".git": "hidden",
        "dog/link.png": "not a file",
    }
    assert set(taken(source)) == set(GOOD)


@pytest.mark.parametrize(("name", "separator"), [("list.txt", "\t"), ("list.tsv", "\t"), ("list.csv", ",")])
@pytest.mark.parametrize("header", ["", "path{}label\n"])
def test_list_with_names_of_classes(tmp_path, name, separator, header):
    write_files(tmp_path / "pictures", GOOD)
    lines = [f"pictures/{path}{separator}{path[:3]}" for path in reversed(GOOD)]
    (tmp_path / name).write_text(header.format(separator) + "\n".join(lines) + "\n\n")
    source = open_source(str(tmp_path / name))
    assert source.class_names == ["cat", "dog"]
    assert [item.id for item in source.items] == [f"pictures/{path}" for path in reversed(GOOD)]
    assert list(taken(source).values()) == [(int("dog" in path), GOOD[path]) for path in reversed(GOOD)]


def test_list_with_numbers_gaps_and_no_labels(tmp_path):
    write_files(tmp_path, {"a.png": b"a", "b.png": b"b", "c.jpeg": b"c"})
    listing = tmp_path / "list.txt"
    listing.write_text("a.png\t2\nb.png\t0\nc.jpeg\nnowhere.png\t1\n")
    source = open_source(str(listing))
    assert source.class_names == ["0", "1", "2"]
    assert {name: label for name, (label, _) in taken(source).items()} == {"a.png": 2, "b.png": 0}
    assert refused(source) == {"c.jpeg": "without a label", "nowhere.png": "not a file"}
    listing.write_text("b.png\na.png\n")
    assert (open_source(str(listing)).items, open_source(str(listing)).class_names) == (
        [Item("b.png"), Item("a.png")],
        [],
    )
    listing.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"list\.txt is not a list"):
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
        assert refused(source) == {
            "1.tar/a.txt": "ignored extension: .txt",
            "1.tar/b.seg.png": "without a label",
            "1.tar/c.png": "without a label",
        }
    assert taken(open_source(str(tmp_path / "0.tar"))).keys() == {"0.tar/./cats/a.jpg", "0.tar/b.png"}


def test_archives_of_equal_names_do_not_mix_their_labels(tmp_path):
    write_tar(tmp_path / "x" / "0.tar", {"a.png": b"A", "a.cls": b"0"})
    write_tar(tmp_path / "y" / "0.tar", {"a.png": b"B", "a.cls": b"1"})
    source = open_source(f"{tmp_path}/*/0.tar")
    assert [(item.label, source.read(i)) for i, item in enumerate(source.items)] == [(0, b"A"), (1, b"B")]


@pytest.mark.parametrize("kept", [0.4, 0.6])
def test_a_truncated_archive_gives_what_is_whole_and_is_named(tmp_path, kept):
    path = write_tar(tmp_path / "0.tar", {f"{i}.png": as_bytes(noise(40, 40, i)) for i in range(4)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    source = open_source(str(path))
    assert "truncated or damaged" in refused(source)["0.tar"]
    last = [item for item in source.items if item.refused is None][-1]
    with pytest.raises(OSError, match="the archive ends within it"):
        source.read(source.items.index(last))
    assert source.read(0) == as_bytes(noise(40, 40, 0))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nowhere/at/all", "there is no nowhere/at/all: give a folder of pictures"),
        ("nowhere.tar", "there is no nowhere.tar"),
        ("./nowhere", "there is no ./nowhere"),
        ("file.zip", "file.zip is neither a folder, a list (.txt, .tsv, .csv, .jsonl) nor a .tar archive"),
    ],
)
def test_what_is_no_source_is_one_sentence(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(ValueError) as error:
        open_source(name)
    assert part in str(error.value)


def test_archives_beside_pictures_are_not_taken_for_all(tmp_path):
    write_files(tmp_path, good_files(3))
    write_tar(tmp_path / "a.tar", {"x.png": as_bytes(noise(8, 8))})
    with pytest.raises(ValueError, match="holds archives and pictures: name the archives by "):
        open_source(str(tmp_path))
    assert list(taken(open_source(str(tmp_path / "*.tar")))) == ["a.tar/x.png"]


def test_hugging_face_without_the_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="install the package datasets"):
        open_source("someone/pictures")


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
    else:
        (rows if kind == "saved" else datasets.DatasetDict(train=rows)).save_to_disk(str(tmp_path))
    source = open_source(str(tmp_path))
    assert source.class_names == ["cat", "dog"]
    assert list(taken(source).values()) == [(int(name.startswith("dog")), content) for name, content in GOOD.items()]


def test_a_file_far_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("fitv2.prepare.items.MOST_BYTES", 1000)
    write_files(tmp_path / "pictures", {"large.png": bytes(1001), "small.png": bytes(1000)})
    (tmp_path / "list.txt").write_text("pictures/large.png\npictures/small.png\n")
    write_tar(tmp_path / "all.tar", {"large.png": bytes(1001), "small.png": bytes(1000)})
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("read") if "large" in path.name else b"x")
    for name in ("pictures", "list.txt", "all.tar"):
        source = open_source(str(tmp_path / name))
        with pytest.raises(UnreadableImage, match=r"^too large: 1001 bytes, limit 1000$"):
            source.read(0)
        assert source.read(1)
