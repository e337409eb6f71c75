"""Prepares real images among which bad files are planted, then again with kills, and compares every byte.

python tools/stress_prepare.py IMAGES WORK 2000 50 10 --max-tokens 64 --autoencoder pixels --patch-size 8

IMAGES: a folder with sub-folders of images. WORK: a new folder, which will hold the chosen ones and both results.
2000 images, 50 bad files, 10 kills; what follows goes to 'fitv2 prepare'. Exit code 1 if anything is wrong.
"""

import io
import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from fitv2.data.decode import MAX_PIXELS

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


def pixels(path: Path) -> int:
    """What the header says; 0 where Pillow refuses it. Real collections have images of 600 megapixels."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (OSError, Image.DecompressionBombError):
        return 0


def choose(folder: Path, source: Path, count: int, rng: random.Random) -> list[Path]:
    """Copies of `count` images that lie in sub-folders, by their first sub-folder as the class."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    found = [path for path in found if len(path.relative_to(folder).parts) > 1 and 0 < pixels(path) <= MAX_PIXELS]
    copies = []
    for path in sorted(rng.sample(found, count)):
        copy = source / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        copies.append(copy)
    return copies


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def odd(number: int) -> bytes:
    """TIFF of pixels without a defined white: floats, or whole numbers beyond 16 bits."""
    kind, value = (np.float32, 0.5) if number % 2 else (np.int32, 70_000)
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60 + number), value, kind)).save(buffer, "TIFF")
    return buffer.getvalue()


def plant(copies: list[Path], count: int, rng: random.Random) -> dict[Path, str]:
    """Bad files of six kinds beside good ones: path to the kind of the reason that must be told, or kinds."""
    planted = {}
    # In a file of a few bytes the damage would reach the signature, and it would be no image at all.
    large = [path for path in copies if path.stat().st_size > 1000]
    for number, beside in enumerate(rng.sample(large, count)):
        whole = bytearray(beside.read_bytes())
        middle = len(whole) // 2
        damaged = (
            whole[: middle - 32] + bytes(255 - byte for byte in whole[middle - 32 : middle + 32]) + whole[middle + 32 :]
        )
        name, content, reason = [
            ("truncated.png", whole[: int(len(whole) * rng.uniform(0.3, 0.9))], "truncated or damaged"),
            ("damaged.png", damaged, "truncated or damaged, not an image"),  # by what the damage hits
            ("image.txt", whole, "ignored extension"),
            ("page.jpg", b"<html>404 not found %d</html>" % number, "not an image"),
            ("huge.png", claims(50_000 + number, 50_000), "too large"),
            ("odd.tiff", odd(number // 6), "not supported"),
        ][number % 6]
        path = beside.with_name(f"planted {number} {name}")
        path.write_bytes(content)
        planted[path] = reason
    return planted


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def shards_in(out: Path) -> int:
    return len(list(out.glob("shards/*.jsonl")))


def check(wrong: bool, what: str) -> None:
    if wrong:
        sys.exit(f"WRONG: {what}")


images, work, number, bad, kills, *options = sys.argv[1:]
work, rng = Path(work), random.Random(0)
if work.exists():
    sys.exit(f"{work} is there already; name a new folder")
source = work / "source"
copies = choose(Path(images), source, int(number), rng)
planted = plant(copies, int(bad), rng)
command = [sys.executable, "-m", "fitv2.cli", "prepare", str(source), *options, "--json", "--out"]

start = time.perf_counter()
done = subprocess.run([*command, str(work / "whole")], capture_output=True, text=True)
seconds = time.perf_counter() - start
check(done.returncode != 0, done.stderr)
report = json.loads(done.stdout)
told = {source / name: reason.partition(":")[0] for name, reason in report["skipped_files"]}
unnamed = {str(path): told.get(path) for path, kinds in planted.items() if told.get(path, "nothing") not in kinds}
check(bool(unnamed), f"planted files are not named, or with another reason: {unnamed}")
lines = [json.loads(line) for line in (work / "whole" / "index.jsonl").read_text().splitlines()]
present = {source / line["id"] for line in lines if "skipped" not in line}
lost = {path: told.get(path, "not named") for path in set(copies) - present}
check(bool(lost), f"good images are not there: {lost}")

expected, struck = contents(work / "whole"), 0
shards = shards_in(work / "whole")
for target in sorted(rng.choices(range(shards), k=int(kills))):
    child = subprocess.Popen([*command, str(work / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and shards_in(work / "killed") < target:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 2 * seconds / shards) if target else rng.uniform(0, seconds / 2))
    child.kill()
    struck += child.wait() == -signal.SIGKILL
    print(f"killed with {shards_in(work / 'killed')} of {shards} shards written", file=sys.stderr)
again = subprocess.run([*command, str(work / "killed")], capture_output=True, text=True)
check(again.returncode != 0, again.stderr)
check(struck < int(kills), f"only {struck} kills struck a running process")
check(contents(work / "killed") != expected, "the killed preparation differs")

figures = {key: report[key] for key in ("files", "images", "duplicates", "shards", "skipped_by_reason")}
figures |= {"planted": len(planted), "named": len(planted), "lost": 0, "kills": struck, "same_bytes": True}
figures |= {"bytes": sum(map(len, expected.values())), "seconds": round(seconds, 1)}
print(json.dumps(figures | {"encoded_by_the_last_run": json.loads(again.stdout)["encoded"]}))
