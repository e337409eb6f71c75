"""Gathers photographs under permissive licences from packages of Debian, and drawings that no training has seen.

    python tools/gather_photographs.py FOLDER

needs apt-get and dpkg-deb (run apt-get update before), and writes

    FOLDER/train/           photographs to train on
    FOLDER/held-out/        others, about one in eight by a hash of their names
    FOLDER/held-out-drawings/   the bundled drawings whose names are held back, each on a canvas
    FOLDER/ATTRIBUTION.md   package, file, licence and copyright of every photograph

A file counts if the machine-readable debian/copyright of its package puts it under a licence of `PERMISSIVE`.
"""

from __future__ import annotations

import argparse
import io
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fitv2.data.canvas_layout import Scene, draw_background, fill, paint
from fitv2.data.cutouts import every
from fitv2.data.decode import decode
from fitv2.data.emoji import read_drawings
from fitv2.data.formats import EXTENSIONS, UnreadableImage
from fitv2.randomness import Purpose, numpy_generator

# Packages, and the names of their photographs; of the first two all images count.
PACKAGES = {
    "gcompris-qt-data": ".*",
    "lomiri-wallpapers-16.04": ".*",
    "python3-skimage": "astronaut|brick|camera|chelsea|coffee|coins|grass|gravel|moon|motorcycle_left|retina|rocket",
    "python3-sklearn": "china|flower",
}
PERMISSIVE = re.compile(r"public-domain|CC0-1\.0|CC-BY-[1-4]\.[05]|Expat|MIT|BSD-[23]-Clause|Apache-2\.0")
# Smaller images are icons; larger ones are scaled down.
SMALLEST, LARGEST = 192, 1024
HELD_OUT, CANVAS = 8, 192


class Terms(NamedTuple):
    """A pattern of files in debian/copyright, and what it says of them."""

    pattern: str
    licence: str
    copyright: str


def read_terms(file: Path) -> list[Terms]:
    """Returns the patterns of a machine-readable debian/copyright in their order; the last that matches counts."""
    found = []
    for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
        fields = dict(re.findall(r"^(\S+?):\s*(.*(?:\n[ \t].*)*)", paragraph, re.M))
        if {"Files", "License"} <= fields.keys():
            owner = " ".join(fields.get("Copyright", "").split())
            found += [Terms(pattern, fields["License"].split("\n")[0], owner) for pattern in fields["Files"].split()]
    return found


def terms_of(path: str, terms: list[Terms]) -> Terms | None:
    """Returns the terms of a file.

    Packages convert images, so that extensions do not matter; and a package without a rule for all files may install
    some in other folders than it names.
    """
    same = [one for one in terms if one.pattern.rpartition(".")[0] == path.rpartition(".")[0]]
    matching = [one for one in terms if fnmatchcase(path, one.pattern)]
    named = [one for one in terms if Path(one.pattern).stem == Path(path).stem]
    return next((found[-1] for found in (same, matching, named) if found), None)


def read_resources(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of the files in a Qt resource archive (.rcc) that are images."""
    content = file.read_bytes()
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    row, folders = (14 if version == 1 else 22), [(0, "")]
    while folders:
        number, above = folders.pop()
        name_at, flags = struct.unpack_from(">IH", content, tree + number * row)
        (length,) = struct.unpack_from(">H", content, names + name_at)
        name = content[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
        path = f"{above}/{name}" if number else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", content, tree + number * row + 6)
            folders += [(first + i, path) for i in range(count)]
        elif Path(path).suffix in EXTENSIONS:
            (at,) = struct.unpack_from(">I", content, tree + number * row + 10)
            (size,) = struct.unpack_from(">I", content, data + at)
            stored = content[data + at + 4 :][:size]
            yield path.removeprefix("/gcompris/"), zlib.decompress(stored[4:]) if flags & 1 else stored


def images_of(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yields every image file of an unpacked package, by its path as debian/copyright has it."""
    for file in sorted(root.rglob("*")):
        if file.suffix == ".rcc":
            yield from sorted(read_resources(file))
        elif file.suffix in EXTENSIONS and file.is_file():
            path = file.relative_to(root).as_posix()
            if "/tests/" not in path:
                yield path, file.read_bytes()


def gather(package: str, wanted: str, folder: Path) -> Iterator[str]:
    """Writes the photographs of a package whose names match `wanted`; yields a line for each, with its terms."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["apt-get", "-qq", "download", package], cwd=work, check=True)
        (archive,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, f"{work}/content"], check=True)
        root = Path(work, "content")
        terms = read_terms(root / "usr/share/doc" / package / "copyright")
        for path, content in images_of(root):
            own = terms_of(path, terms)
            if own is None or not PERMISSIVE.fullmatch(own.licence) or not re.fullmatch(wanted, Path(path).stem):
                continue
            try:
                image = decode(io.BytesIO(content))
            except UnreadableImage:
                continue
            if min(image.size) < SMALLEST:
                continue
            image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
            name = f"{package}-{re.sub(r'[^A-Za-z0-9]+', '-', path.rpartition('.')[0])}.png"
            image.save(folder / ("held-out" if every(name, HELD_OUT) else "train") / name)
            yield f"| {name} | {path} | {own.licence} | {own.copyright} |"


def draw_held_back(folder: Path) -> int:
    """Writes each drawing that is held back, filling a canvas; returns their number."""
    drawings = [drawing for drawing in read_drawings() if drawing.held_back]
    for number, drawing in enumerate(drawings):
        background = draw_background(numpy_generator(Purpose.CANVAS, 0, 0, number))
        box = fill((CANVAS, CANVAS), drawing.size)
        scene = Scene((CANVAS, CANVAS), [0], [box], "alone", background)
        image = paint(scene, lambda _, content=drawing.content: Image.open(io.BytesIO(content)).convert("RGBA"))
        Image.fromarray(np.asarray(image)).save(folder / f"{drawing.id.replace('/', '-')}.png")
    return len(drawings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for part in ("train", "held-out", "held-out-drawings"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = [line for package, wanted in PACKAGES.items() for line in gather(package, wanted, folder)]
    table = ["| file | in the package | licence | copyright |", "|---|---|---|---|", *rows]
    (folder / "ATTRIBUTION.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    held_out = len(list((folder / "held-out").iterdir()))
    drawings = draw_held_back(folder / "held-out-drawings")
    print(f"{len(rows)} photographs, {held_out} of them held out, and {drawings} drawings in {folder}")


if __name__ == "__main__":
    main()
