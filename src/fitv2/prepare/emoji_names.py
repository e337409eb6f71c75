"""What a drawing shows: from its name in a set, or its code points, to the word and the group that emojibase has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..data.emoji import Thing
from ..messages import check_known

# Signs, letters and keycaps; flags, most of which differ in their stripes alone; parts of people.
LEFT_OUT_GROUPS = {"component", "symbols", "flags"}
LEFT_OUT_SUBGROUPS = {"family", "person-symbol"}
CLOCK = re.compile(r"o'clock|thirty$")
# Men, women, their signs and a direction in joined code points: the same person once more, beside the one without.
SAME_PERSON = re.compile(r"(1f468|1f469)-200d|-200d-(2640|2642|27a1)\b")


class Catalogue:
    """All things by code points and by the names that sets have for them.

    Args:
        entries: en/data.json of emojibase.
        groups: meta/groups.json of emojibase.
        named: chars.json of several sets, code points to names; the first that has a name decides.
    """

    def __init__(
        self, entries: Iterable[Mapping[str, Any]], groups: Mapping[str, Any], named: Iterable[Mapping[str, str]]
    ) -> None:
        self.things: dict[str, Thing] = {}
        self.codes: dict[str, str] = {}
        known: list[str] = []
        for entry in entries:
            code = plain_code(entry["hexcode"])
            known.append(code)
            self.codes.setdefault(squeezed(entry["label"]), code)
            if (thing := thing_of(code, entry, groups)) is not None:
                self.things[code] = thing
        for names in named:
            for code, name in names.items():
                if plain_code(code) in known:
                    self.codes.setdefault(squeezed(name), plain_code(code))
        for code in known:  # Older sets have Unicode's own names.
            if "-" not in code:
                with suppress(ValueError):
                    self.codes.setdefault(squeezed(unicodedata.name(chr(int(code, 16)))), code)

    def keep(self, groups: Sequence[str]) -> None:
        """Leaves out everything but the things of some groups. Raises UserError for a group that is not known."""
        known = sorted({thing.group for thing in self.things.values()})
        for group in groups:
            check_known("group", group, known)
        self.things = {code: thing for code, thing in self.things.items() if thing.group in groups}

    def by_code(self, code: str) -> Thing | None:
        """Returns what code points, in hexadecimal with dashes, stand for; None if it is left out or unknown."""
        return self.things.get(plain_code(code))

    def by_name(self, name: str) -> Thing | None:
        """Returns what a name such as red-apple, or bird-2 for a second bird, stands for; None as `by_code`."""
        code = self.codes.get(squeezed(name)) or self.codes.get(squeezed(re.sub(r"-\d+$", "", name)))
        return None if code is None else self.things.get(code)


def thing_of(code: str, entry: Mapping[str, Any], groups: Mapping[str, Any]) -> Thing | None:
    """Returns what an entry of emojibase is about; None if it is left out."""
    if "group" not in entry:  # Letters of flags.
        return None
    group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
    label = entry["label"].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if group in LEFT_OUT_GROUPS or subgroup in LEFT_OUT_SUBGROUPS:
        return None
    if subgroup == "time" and CLOCK.search(label):
        return None
    if group == "people-body" and SAME_PERSON.search(code):
        return None
    name = re.sub(r"\W+", "-", label.lower()).strip("-")
    return Thing(name, label, tuple(entry.get("tags", ())), group, subgroup)


def plain_code(code: str) -> str:
    """Returns code points in lower case without leading zeros and without the sign that asks for colours."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def squeezed(name: str) -> str:
    """Returns the letters and digits of a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
