"""Classes by number and by name, and the names that ship."""

import pytest

from fitv2.classes import Classes, imagenet_names, read_names, readable_names


def test_imagenet():
    classes = Classes(1000, dict(enumerate(imagenet_names())))
    assert len(classes.names) == 1000
    for name, number in {"tench": 0, "macaw": 88, "golden retriever": 207, "toilet tissue": 999}.items():
        assert classes.number(name) == number
    with pytest.raises(ValueError, match=r"'crane'.* 134, 517"):
        classes.number("crane")


def test_numbers_names_and_no_class():
    classes = Classes(3, {0: "cat", 2: "7"})
    assert [classes.number(label) for label in ("cat", "1", "7", 0, 3)] == [0, 1, 2, 0, 3]
    for label in ("3", "dog", 4, -1):
        with pytest.raises(ValueError, match=f"no class {label!r} in this model; its classes are 0 cat, 2 7"):
            classes.number(label)
    assert str(Classes(30, dict.fromkeys(range(30), "x"))).endswith("19 x and 10 more")


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# ours\ncat\n\n  dog\u2028house \n", encoding="utf-8")
    assert read_names(path) == ["cat", "dog\u2028house"]
    with pytest.raises(ValueError, match="cannot be read"):
        read_names(tmp_path / "nothing.txt")


def test_the_folders_of_imagenet_get_its_names():
    folders = [f"n{number:08d}" for number in range(1_440_764, 1_441_764)]
    assert readable_names(folders) == imagenet_names()
    for others in (folders[:-1], [*folders[:-1], "cat"], ["cat", "dog"], []):
        assert readable_names(others) == others
