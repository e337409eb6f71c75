"""WebDataset archives: images as KEY.jpg (or another such extension), their labels in KEY.cls or KEY.json."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from posixpath import normpath
from typing import BinaryIO, NamedTuple

from ..data.contents import Labels
from ..data.labelling import WHOLE, Item, labelled
from ..data.listing import listed
from ..data.tables import label_text, labelling_key
from ..errors import UserError
from ..messages import counted, shortened
from .items import Source, check_length

LABEL_EXTENSIONS = (".cls", ".json")
MOST_LABEL_BYTES = 1 << 20
# After the last member: two blocks mark the end, and fill a record.
MOST_ZEROS = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
# What compressed archives begin with; they cannot be read where they lie.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Place(NamedTuple):
    """Where the bytes of a member lie."""

    archive: Path
    start: int
    length: int


class Member(NamedTuple):
    """name: ARCHIVE/member, or the archive alone for what is wrong with it. refused: Why it is not used."""

    archive: Path
    name: str
    place: Place | None = None
    refused: str | None = None


class ArchiveSource(Source):
    """The members of uncompressed tar archives, one archive after another in the order given, read where they lie."""

    def __init__(self, archives: Sequence[Path], labels: Labels = "auto") -> None:
        found = [member for archive in archives for member in without_replaced(list(members(archive)))]
        files = [m for m in found if m.refused or split_name(m.name).extension not in LABEL_EXTENSIONS]
        images = [m for m in files if not m.refused]
        self.notes: list[str] = []
        texts = [None] * len(images) if labels == "none" else self._labels(images, found)
        items, self.class_names = labelled([m.name for m in images], texts, shortened([*map(str, archives)], 1))
        taken = iter(items)
        self.items = [Item(m.name, refused=m.refused) if m.refused else next(taken) for m in files]
        self.places = [m.place for m in files]

    def read(self, index: int) -> bytes:
        place = self.places[index]
        assert place is not None  # Only what is refused has none.
        return read_place(place)

    def _labels(self, images: Sequence[Member], found: Sequence[Member]) -> list[str | None]:
        """The label of each image: by the member that has its whole name, else by the one that has its key."""
        stems = {(m.archive, split_name(m.name).stem) for m in images}
        of_stem, of_key, silent = defaultdict(dict), defaultdict(dict), Counter()
        for archive, name, place, refused in found:
            key, stem, extension = split_name(name)
            if place is None or refused is not None or extension not in LABEL_EXTENSIONS:
                continue
            label = read_label(place, extension)
            if label is None:
                silent[extension] += 1
                continue
            of_stem[archive, stem][name] = label
            if stem == key or (archive, stem) not in stems:
                of_key[archive, key][name] = label
        self.notes += [f"{counted(number, f'{kind} member')} without a label in it" for kind, number in silent.items()]
        return [
            one_label(m.name, of_stem.get((m.archive, own.stem)) or of_key.get((m.archive, own.key), {}))
            for m in images
            for own in [split_name(m.name)]
        ]


def one_label(image: str, labels: dict[str, str]) -> str | None:
    """Returns the label of an image from the members that have one for it; .cls comes before .json.

    Raises UserError where they contradict each other: an id and a name do not.
    """
    for ids in (True, False):
        alike = {name: label for name, label in labels.items() if bool(WHOLE.fullmatch(label)) == ids}
        if len(set(alike.values())) > 1:
            told = " and ".join(f"{label} ({name})" for name, label in sorted(alike.items()))
            raise UserError(f"{image} has several labels, {told}: give it one, or use --labels none")
    return next((labels[name] for name in sorted(labels)), None)


def without_replaced(found: list[Member]) -> Iterator[Member]:
    """Refuses all but the last of several members of one name: only that one would be left by unpacking."""
    last = {normpath(member.name): index for index, member in enumerate(found) if member.place}
    for index, member in enumerate(found):
        replaced = member.place is not None and last[normpath(member.name)] != index
        yield member._replace(refused="replaced by a later member of this name") if replaced else member


def members(archive: Path) -> Iterator[Member]:
    """Yields every file of an archive in order, and what of the archive cannot be read.

    Archives that were joined are read to the end of the last one. The tarfile library ends in silence where a header is
    missing or damaged, so the end of the last member is compared with the file.
    """
    size, start = archive.stat().st_size, 0
    if not size:
        yield Member(archive, archive.name, refused="empty file")
    with archive.open("rb") as file:
        refuse_compressed(archive, file.read(6))
        while start < size:
            end = yield from joined_part(archive, file, start)
            start = after_zeros(file, end)
            if start == end or start - end > MOST_ZEROS:
                missing = what_is_missing(end, start, size)
                yield Member(archive, archive.name, refused=f"truncated or damaged: {missing}")
            if start == end:
                return


def refuse_compressed(archive: Path, begin: bytes) -> None:
    kind = next((kind for mark, kind in COMPRESSED.items() if begin.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{archive} is compressed ({kind}), and images cannot be read where they lie: unpack it first")


def joined_part(archive: Path, file: BinaryIO, start: int) -> Generator[Member, None, int]:
    """Yields the members of the archive that begins at a byte of a file; returns where the last one ends."""
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - what it opens is not its own.
    except (tarfile.TarError, EOFError, ValueError):
        return start
    with suppress(tarfile.TarError, EOFError, ValueError):
        for member in tar:
            name = f"{archive.name}/{member.name}"
            kind = listed(member.name)
            if member.isdir():
                continue
            if not member.isreg():
                yield Member(archive, name, refused="not a file")
            elif kind.refused is None or kind.kind in LABEL_EXTENSIONS:
                yield Member(archive, name, Place(archive, member.offset_data, member.size))
            else:
                yield Member(archive, name, refused=kind.refused)
    return tar.offset


def what_is_missing(end: int, start: int, size: int) -> str:
    """Returns what an archive of `size` bytes lacks, if it has no or too many zeros from `end`, after a member, to
    `start`.
    """
    if start > end:
        return f"{start - end} zeros from byte {end} on, in the place of members perhaps"
    if end > size:
        return f"the file ends at byte {size}, and its last member at byte {end}"
    if end == size:
        return "it ends without the mark of its end, so that members after the last one may be missing"
    return f"no member begins at byte {end}, and the {size - end} bytes from there on are not read"


def after_zeros(file: BinaryIO, start: int) -> int:
    """Returns where the blocks of zeros that begin at `start` end; a whole archive has at least two."""
    file.seek(start)
    while (block := file.read(tarfile.BLOCKSIZE)) and not any(block):
        start += len(block)
    return start


def read_place(place: Place) -> bytes:
    check_length(place.length)
    with place.archive.open("rb") as file:
        file.seek(place.start)
        content = file.read(place.length)
    if len(content) < place.length:
        raise OSError(None, "the archive ends within it")
    return content


class Split(NamedTuple):
    """A member's name in parts. key: WebDataset's, up to the first dot of the file's own name. stem: all but the last
    extension. extension: that one, in lower case.
    """

    key: str
    stem: str
    extension: str


def split_name(name: str) -> Split:
    folder, slash, own = normpath(name).rpartition("/")
    return Split(folder + slash + own.partition(".")[0], folder + slash + Path(own).stem, Path(own).suffix.lower())


def read_label(place: Place, extension: str) -> str | None:
    """Returns the label in a .cls or .json member; None if it holds nothing that can be a label."""
    try:
        if place.length > MOST_LABEL_BYTES:
            return None
        content = read_place(place)
        if extension == ".cls":
            # Bytes that are not UTF-8 stay in a label, as in those of lists.
            text = content.decode("utf-8-sig", "surrogateescape").strip()
            return None if "\0" in text else text or None
        content = json.loads(content.decode("utf-8-sig"))
        key = labelling_key(list(content)) if isinstance(content, dict) else None
        return label_text(content if not isinstance(content, dict) else content.get(key))
    except (OSError, ValueError):
        return None
