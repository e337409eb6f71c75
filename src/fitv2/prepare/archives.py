"""WebDataset archives: images as KEY.jpg (or another such extension), with files of the same key beside them.

Labels are in KEY.cls or KEY.json; captions in KEY.txt or KEY.caption, one per line, or in KEY.json.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from posixpath import normpath, splitext
from typing import Any, NamedTuple, TypeVar

from ..data.captions import TEXTS, caption_lines
from ..data.contents import Labels
from ..data.labelling import WHOLE, Item, labelled
from ..data.listing import listed
from ..data.tables import CAPTIONS, LABELS, caption_texts, first_of, label_text
from ..errors import UserError
from ..messages import counted, shortened
from .items import Source, check_length

# Of members that tell of an image, and those of them with a label.
LABEL_EXTENSIONS = (".cls", ".json")
BESIDE_EXTENSIONS = (*LABEL_EXTENSIONS, *TEXTS)
# Of a label, or of captions.
MOST_TEXT_BYTES = 1 << 20
# After the last member: two blocks mark the end, and fill a record.
MOST_ZEROS = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
T = TypeVar("T")
# The first bytes of compressed archives, in which members cannot be read one by one.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
# In the header of a member, whose name may begin like a compressed archive.
USTAR = slice(257, 262)


class Member(NamedTuple):
    """A file in an archive, or a fault of the archive itself.

    Attributes:
        name: ARCHIVE/path, or the archive alone.
        start, length: The place of its content, in bytes.
        refused: Why it is not used.
    """

    archive: Path
    name: str
    start: int = 0
    length: int = 0
    refused: str | None = None

    @property
    def path(self) -> str:
        return normpath(self.name)

    def ends(self, *extensions: str) -> bool:
        return self.name.lower().endswith(extensions)

    @property
    def stem(self) -> tuple[Path, str]:
        """The name without its last extension."""
        return self.archive, splitext(self.path)[0]

    @property
    def key(self) -> tuple[Path, str]:
        """WebDataset's key: the name up to the first dot of the file's own name."""
        folder, slash, name = self.path.rpartition("/")
        return self.archive, folder + slash + name.partition(".")[0]

    def read(self) -> bytes:
        check_length(self.length)
        with self.archive.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.length)
        if len(content) < self.length:
            raise OSError("the archive ends within it")
        return content


class ArchiveSource(Source):
    """The members of uncompressed tar archives, one archive after another in the order given, read where they lie."""

    def __init__(self, archives: Sequence[Path], labels: Labels = "auto") -> None:
        found = [member for archive in archives for member in without_replaced(list(members(archive)))]
        images = [member for member in found if not (member.refused or member.ends(*BESIDE_EXTENSIONS))]
        of_images = {name for image in images for name in (image.stem, image.key)}
        # A text of no image is no caption.
        found = [
            member._replace(refused=listed(member.name).refused)
            if member.ends(*TEXTS) and not member.refused and of_images.isdisjoint((member.stem, member.key))
            else member
            for member in found
        ]
        self.members = [member for member in found if member.refused or not member.ends(*BESIDE_EXTENSIONS)]
        self.notes: list[str] = []
        self.beside = Beside(images, found)
        texts = [None] * len(images) if labels == "none" else self._labels(images)
        items, self.class_names = labelled([m.name for m in images], texts, shortened([*map(str, archives)], 1))
        used = iter(items)
        self.items = [Item(m.name, refused=m.refused) if m.refused else next(used) for m in self.members]

    def read(self, index: int) -> bytes:
        return self.members[index].read()

    def captions(self, index: int) -> tuple[str, ...]:
        found = self.beside.told(self.members[index], read_captions)
        return tuple(dict.fromkeys(text for name in sorted(found) for text in found[name]))

    def _labels(self, images: Sequence[Member]) -> list[str | None]:
        with_label = [member for member in self.beside.members if member.ends(*LABEL_EXTENSIONS)]
        label_of = {member: read_label(member) for member in with_label}
        without = Counter(splitext(member.name)[1].lower() for member, label in label_of.items() if label is None)
        self.notes += [f"{counted(number, f'{kind} member')} without a label in it" for kind, number in without.items()]
        return [one_label(image.name, self.beside.told(image, label_of.get)) for image in images]


class Beside:
    """The members that tell of images, by the names that they share with them.

    Attributes:
        members: All of them, in order.
    """

    def __init__(self, images: Sequence[Member], found: Sequence[Member]) -> None:
        self.members = [member for member in found if member.ends(*BESIDE_EXTENSIONS) and not member.refused]
        stems = {image.stem for image in images}
        self.of_stem, self.of_key = defaultdict(list), defaultdict(list)
        for member in self.members:
            self.of_stem[member.stem].append(member)
            if member.stem == member.key or member.stem not in stems:
                self.of_key[member.key].append(member)

    def told(self, image: Member, read: Callable[[Member], T | None]) -> dict[str, T]:
        """Returns what `read` finds in the members with the image's stem, or else with its key, by their names.

        read: Returns nothing of a member that tells nothing of this kind.
        """
        for members in (self.of_stem.get(image.stem, ()), self.of_key.get(image.key, ())):
            if found := {member.name: told for member in members if (told := read(member))}:
                return found
        return {}


def one_label(image: str, labels: dict[str, str]) -> str | None:
    """Returns the label of an image from the members that have one; .cls comes before .json.

    Raises UserError for different ids or different names; an id beside a name is no contradiction.
    """
    ids = {label for label in labels.values() if WHOLE.fullmatch(label)}
    if len(ids) > 1 or len({*labels.values()} - ids) > 1:
        told = " and ".join(f"{label} ({name})" for name, label in sorted(labels.items()))
        raise UserError(f"{image} has several labels, {told}: give it one, or use --labels none")
    return next((labels[name] for name in sorted(labels)), None)


def without_replaced(found: list[Member]) -> Iterator[Member]:
    """Refuses all but the last of several members of one name: unpacking would leave only that one."""
    last = {member.path: index for index, member in enumerate(found) if not member.refused}
    for index, member in enumerate(found):
        replaced = not member.refused and last[member.path] != index
        yield member._replace(refused="replaced by a later member of this name") if replaced else member


def members(archive: Path) -> Iterator[Member]:
    """Yields every file of an archive in order, and each place where it is damaged.

    Archives that were joined are read to the end of the last one. tarfile ends silently where a header is missing or
    damaged, so the end of the last member is compared with the file.
    """
    size, start = archive.stat().st_size, 0
    if not size:
        yield Member(archive, archive.name, refused="empty file")
    with archive.open("rb") as file:
        begin = file.read(tarfile.BLOCKSIZE)
        kind = next((kind for mark, kind in COMPRESSED.items() if begin.startswith(mark)), None)
        if kind and begin[USTAR] != b"ustar":
            raise UserError(f"{archive} is compressed ({kind}), and its members cannot be read: unpack it first")
        while start < size:
            end = start
            with suppress(tarfile.TarError, EOFError, ValueError):
                file.seek(start)
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is closed by its own block.
                for info in tar:
                    end = tar.offset
                    name, kind = f"{archive.name}/{info.name}", listed(info.name)
                    if info.issparse():  # Its zeros are not in the archive, so that its bytes are not the file's.
                        yield Member(archive, name, refused="sparse: pack the archive again without --sparse")
                    elif info.isreg() and (kind.refused is None or kind.kind in BESIDE_EXTENSIONS):
                        yield Member(archive, name, info.offset_data, info.size)
                    elif not info.isdir():
                        yield Member(archive, name, refused=kind.refused if info.isreg() else "not a file")
            start = file.seek(end)
            while (block := file.read(tarfile.BLOCKSIZE)) and not any(block):
                start += len(block)
            if start == end or start - end > MOST_ZEROS:
                lost = f"at byte {end} of {size}; members may be missing there"
                yield Member(archive, archive.name, refused=f"truncated or damaged: {lost}")
            if start == end:
                return


def read_label(member: Member) -> str | None:
    """Returns the label in a .cls or .json member; None if it holds none."""
    try:
        if member.ends(".cls"):
            # Bytes that are not UTF-8 stay in a label, as in the labels of lists.
            text = read_text(member).decode("utf-8-sig", "surrogateescape").strip()
            return None if "\0" in text else text or None
        content = read_json(member)
        key = first_of(LABELS, list(content)) if isinstance(content, dict) else None
        return label_text(content.get(key) if isinstance(content, dict) else content)
    except (OSError, ValueError):
        return None


def read_captions(member: Member) -> tuple[str, ...]:
    """Returns the captions in a .txt, .caption or .json member, none if it holds none.

    Raises UserError for a text that cannot be read.
    """
    if member.ends(*TEXTS):
        return caption_lines(partial(read_text, member), member.name)
    if not member.ends(".json"):
        return ()
    try:
        content = read_json(member)
    except (OSError, ValueError):
        return ()
    key = first_of(CAPTIONS, list(content)) if isinstance(content, dict) else None
    return () if key is None else caption_texts(content[key], member.name)


def read_json(member: Member) -> Any:
    """Returns the content of a .json member. Raises OSError or ValueError if there is none."""
    try:
        return json.loads(read_text(member).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def read_text(member: Member) -> bytes:
    """Returns the bytes of a label or of captions. Raises OSError if they are damaged or far too many."""
    if member.length > MOST_TEXT_BYTES:
        raise OSError(f"too large: {member.length} bytes, limit {MOST_TEXT_BYTES}")
    return member.read()
