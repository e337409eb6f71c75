"""Writes the drawings that ship, and the lists of those that are never trained on.

    python tools/make_emoji_bundle.py emoji --work bundle

1 500 drawings of at most 128 pixels, of 500 things in three sets under permissive licences. `emoji` is the folder that
`fitv2 emoji --out emoji` made: its packages are used again, and the lists are of all its drawings. The drawings of the
bundle are rendered in the folder of --work.
"""

import argparse
import hashlib
import io
import json
from pathlib import Path

from PIL import Image

from fitv2.cli.progress import image_progress
from fitv2.data.cutouts import held_out
from fitv2.data.emoji import Thing, cutouts, read_drawings
from fitv2.prepare.emoji import PACKAGES, about_set, make_emoji, write_archive
from fitv2.prepare.emoji_sets import PERMISSIVE, SETS

DATA = Path(__file__).parent.parent / "src/fitv2/data"
BUNDLED = ("noto", "fluent-flat", "fluent-3d")
THINGS, SIDE, QUALITY = 500, 128, 90


def write_bundle(work: Path) -> None:
    """The things that all bundled sets have, in the order of hashes."""
    sets = [drawn for drawn in SETS if drawn.name in BUNDLED]
    assert {drawn.licence for drawn in sets} <= PERMISSIVE
    make_emoji(work, SIDE, image_progress, sets)
    # One drawing per thing and set.
    found = {(drawing.set, drawing.name): drawing for drawing in read_drawings(work)}
    names = [{name for drawn, name in found if drawn == one} for one in BUNDLED]
    chosen = sorted(set.intersection(*names), key=lambda name: hashlib.sha256(name.encode()).digest())[:THINGS]
    drawings = [drawing for (_, name), drawing in sorted(found.items()) if name in chosen]
    pictures = [
        (d.id, d.set, Thing(d.name, d.label, d.tags, d.group, d.subgroup), d.size, compressed(d.content))
        for d in drawings
    ]
    write_archive(DATA / "emoji.zip", [about_set(drawn, SIDE) for drawn in sets], pictures)
    print(f"{len(pictures)} drawings, {(DATA / 'emoji.zip').stat().st_size / 1e6:.2f} MB")


def compressed(content: bytes) -> bytes:
    """The same drawing with small losses in colour and none in alpha, in half of the bytes."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(content)).save(smaller, "WEBP", quality=QUALITY, method=6)
    return smaller.getvalue()


def write_lists(folder: Path) -> None:
    """Names that are held back, and drawings that are held out, among all of the nine sets."""
    drawings = read_drawings(folder)
    trained = cutouts(drawings)
    lists = {
        "names": sorted({drawing.name for drawing in drawings if drawing.held_back}),
        "drawings": [trained.ids[i] for i in held_out(trained.ids)],
    }
    (DATA / "emoji-held.json").write_text(json.dumps(lists, indent=1) + "\n")
    print(f"{len(lists['names'])} names held back, {len(lists['drawings'])} drawings held out")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("emoji", type=Path)
parser.add_argument("--work", type=Path, required=True)
arguments = parser.parse_args()
arguments.work.mkdir(parents=True, exist_ok=True)
if not (arguments.work / PACKAGES).exists():
    (arguments.work / PACKAGES).symlink_to((arguments.emoji / PACKAGES).resolve())
write_bundle(arguments.work)
write_lists(arguments.emoji)
