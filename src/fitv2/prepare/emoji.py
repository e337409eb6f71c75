"""Makes the colour data set: fetches packages of drawings, checks them, renders them, writes an archive per set.

What is finished stays: a package that is there is not fetched again, and an archive of the same content is not made
again. `data.emoji` reads the archives.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.emoji import DAMAGES, INDEX, Thing, file_of
from ..data.folder import trim
from ..data.scan import in_threads
from ..errors import UserError
from ..system.atomic import write_file, write_text
from ..system.hashes import file_digest
from ..system.limits import available_cores
from .emoji_names import Catalogue
from .emoji_sets import EMOJIBASE, NAMING, SETS, DrawingSet, Package
from .items import Progress

# The longer side that drawings are rendered with before they are trimmed, which leaves four fifths of it.
RENDERED = 1.5
PACKAGES, ATTRIBUTION = "packages", "ATTRIBUTION.md"
# Sides of Iconify's sets that do not say theirs.
SIDE = 16
# (name in the set, what it shows, how to get its image).
Found = tuple[str, Thing, Callable[[], Image.Image]]


@dataclass(frozen=True)
class Written:
    """An archive. made: Whether it was made now."""

    path: Path
    drawings: int
    made: bool


def make_emoji(
    out: Path, side: int, progress: Progress, sets: Sequence[DrawingSet] = SETS, groups: Sequence[str] = ()
) -> list[Written]:
    """Writes the archives of all sets, and who drew them, into a folder.

    side: the longest side of a trimmed drawing, in pixels. groups: of the things to draw; none given: all. Raises
    UserError if npm or the renderer is missing, a package is not the known one, or a group is not known.
    """
    need_renderer()
    packages = {package: fetch(package, out / PACKAGES) for package in (EMOJIBASE, *SETS)}
    write_text(out / ATTRIBUTION, attribution(sets))
    catalogue = read_catalogue(packages)
    if groups:
        catalogue.keep(groups)
    return [write_set(out, drawn, packages[drawn], catalogue, side, progress) for drawn in sets]


def need_renderer() -> None:
    """Raises UserError if the library that renders vectors is not installed."""
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise UserError("rendering needs resvg-py: pip install 'fitv2[emoji]'") from None


def fetch(package: Package, folder: Path) -> Path:
    """Returns the tarball of a package, fetched with npm unless it is there.

    Raises UserError if there is no npm, if it fails, or if it brings another content.
    """
    path, wanted = folder / package.tarball, f"{package.package}@{package.version}"
    if path.is_file() and file_digest(path) == package.sha256:
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed, which fetches the drawings: install Node.js, then run this again")
    with tempfile.TemporaryDirectory() as draft:
        command = [npm, "pack", wanted, "--pack-destination", draft, "--silent"]
        done = subprocess.run(command, cwd=draft, capture_output=True, text=True)
        fetched = Path(draft, package.tarball)
        if done.returncode or not fetched.is_file():
            why = (done.stderr.strip().splitlines() or ["it does not say why"])[0]
            raise UserError(f"npm cannot fetch {wanted}: {why}")
        if file_digest(fetched) != package.sha256:
            raise UserError(f"npm's {wanted} is not the one that fitv2 knows, by its SHA-256: it is not used")
        write_file(path, lambda target: shutil.copyfile(fetched, target))
    return path


def read_catalogue(packages: dict[Package, Path]) -> Catalogue:
    """Returns what names and code points stand for."""
    entries, groups = read_json(packages[EMOJIBASE], "en/data.json", "meta/groups.json")
    named = [drawn for name in NAMING for drawn in SETS if drawn.name == name]
    return Catalogue(entries, groups, [read_json(packages[drawn], "chars.json")[0] for drawn in named])


def read_json(tarball: Path, *names: str) -> list[Any]:
    """Returns the content of JSON files in a package."""
    with tarfile.open(tarball) as opened:
        return [json.load(opened.extractfile(f"package/{name}") or io.BytesIO()) for name in names]


def write_set(
    out: Path, drawn: DrawingSet, tarball: Path, catalogue: Catalogue, side: int, progress: Progress
) -> Written:
    """Writes the archive of a set, unless it is there with the same content."""
    path, about = out / f"{drawn.name}.zip", about_set(drawn, side)
    found = list(images(tarball, drawn, catalogue) if drawn.images else vectors(drawn, tarball, catalogue, side))
    if holds(path, about, found):
        return Written(path, len(found), False)
    with progress(drawn.name, len(found)) as advance:
        encoded = in_threads(available_cores(), lambda one: encode(one[2](), side), found)
        pictures = []
        for (name, thing, _), (size, content) in zip(found, encoded, strict=True):
            pictures.append((f"{drawn.name}/{name}", drawn.name, thing, size, content))
            advance(1)
    write_archive(path, [about], pictures)
    return Written(path, len(pictures), True)


def encode(picture: Image.Image, side: int) -> tuple[tuple[int, int], bytes]:
    """Trims an RGBA image and scales it down to a longest side; returns (height, width), and it as a WebP file."""
    picture, encoded = trim(picture), io.BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    picture.save(encoded, "WEBP", lossless=True, quality=50, method=2)
    return (picture.height, picture.width), encoded.getvalue()


def about_set(drawn: DrawingSet, side: int) -> dict[str, Any]:
    """Returns what an archive says about a set."""
    return {"set": drawn.name, "side": side} | {k: v for k, v in asdict(drawn).items() if k not in ("name", "images")}


def holds(path: Path, about: dict[str, Any], found: Iterable[Found]) -> bool:
    """Whether there is an archive of these drawings of a set."""
    try:
        with zipfile.ZipFile(path) as opened:
            index = json.loads(opened.read(INDEX))
        lines = [{key: value for key, value in line.items() if key != "size"} for line in index["drawings"]]
        expected = [line_of(f"{about['set']}/{name}", about["set"], thing) for name, thing, _ in found]
        return index["sets"] == [about] and json.dumps(lines) == json.dumps(expected)
    except DAMAGES:
        return False


def line_of(drawing: str, drawn: str, thing: Thing) -> dict[str, Any]:
    """Returns what an archive says about a drawing, but for its size."""
    return {"id": drawing, "set": drawn} | asdict(thing)


def vectors(drawn: DrawingSet, tarball: Path, catalogue: Catalogue, side: int) -> Iterator[Found]:
    """Yields the drawings of a set of vectors that show a thing."""
    (icons,) = read_json(tarball, "icons.json")
    size = icons.get("width", SIDE), icons.get("height", SIDE)
    for name, icon in sorted(icons["icons"].items()):
        if (thing := catalogue.by_name(name)) is not None:
            across, down = icon.get("width", size[0]), icon.get("height", size[1])
            origin = icon.get("left", 0), icon.get("top", 0)
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{across}" '
            )
            svg += f'height="{down}" viewBox="{origin[0]} {origin[1]} {across} {down}">{icon["body"]}</svg>'
            yield name, thing, partial(render, svg, RENDERED * side / max(across, down))


def render(svg: str, zoom: float) -> Image.Image:
    """Returns a drawing as RGBA."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg, zoom=zoom, skip_system_fonts=True)))).convert("RGBA")


def images(tarball: Path, drawn: DrawingSet, catalogue: Catalogue) -> Iterator[Found]:
    """Yields the drawings of a set of images that show a thing, named by their code points."""
    with tarfile.open(tarball) as opened:
        members = {member.name: member for member in opened if Path(member.name).parent.name == drawn.images}
        seen = set()
        for path, member in sorted(members.items()):
            thing = catalogue.by_code(Path(path).stem)
            if thing is not None and thing not in seen:
                seen.add(thing)
                content = (opened.extractfile(member) or io.BytesIO()).read()
                yield thing.name, thing, lambda content=content: Image.open(io.BytesIO(content)).convert("RGBA")


def write_archive(
    path: Path, sets: Sequence[dict[str, Any]], pictures: Sequence[tuple[str, str, Thing, tuple[int, int], bytes]]
) -> None:
    """Writes an archive that `data.emoji` reads, whole or not at all.

    pictures: (id, set, thing, (height, width), WebP file).
    """
    lines = [line_of(name, drawn, thing) | {"size": size} for name, drawn, thing, size, _ in pictures]

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            add(archive, INDEX, json.dumps({"sets": list(sets), "drawings": lines}).encode())
            for name, *_, content in pictures:
                add(archive, file_of(name), content)

    write_file(path, write)


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Adds a file without the time, so that the same content makes the same archive; only texts are compressed."""
    packed = zipfile.ZIP_DEFLATED if name == INDEX else zipfile.ZIP_STORED
    archive.writestr(zipfile.ZipInfo(name), content, packed)


def attribution(sets: Iterable[DrawingSet]) -> str:
    """Returns who drew what under which licence, as Markdown."""
    lines = ["# Drawings", "", "| set | by | version | licence |", "|---|---|---|---|"]
    lines += [
        f"| [{drawn.title}]({drawn.url}), npm `{drawn.package}` | {drawn.artist} | {drawn.version} | {drawn.licence} |"
        for drawn in sets
    ]
    lines += ["", f"Names and groups: npm `{EMOJIBASE.package}` {EMOJIBASE.version} by Miles Johnson, MIT licence."]
    lines += ["", "Rendered to pixels and trimmed to their boxes; otherwise unchanged.", ""]
    return "\n".join(lines)
