"""Owns what Unicode says of emoji: which there are, in what order, their names, keywords, groups and skin tones."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TONES", "Emoji", "bare", "read_emoji"]

TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
_VARIATION = "fe0f"
# Flags of places are left out: their names are geography, and their artwork has many owners.
_LEFT_OUT = {"country-flag", "subdivision-flag"}
_LEFT_OUT_GROUPS = {"Component"}
_LINE = re.compile(r"^([0-9A-F ]+?)\s*;\s*fully-qualified\s*#\s*\S+\s+E\d+\.\d+\s+(.+?)\s*$")
_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


@dataclass(frozen=True)
class Emoji:
    """One fully-qualified emoji.

    Attributes:
        codepoints: Lower-case hexadecimal, joined by "-".
        concept: The emoji without regard to skin tone: its code points without tones and variation selectors.
        skin_tone: "none", a tone of `TONES`, or "mixed" for two people of different tones.
        name: English short name, the tone included, printable ASCII.
        keywords: English keywords, printable ASCII.
        group: As in emoji-test.txt.
        subgroup: As in emoji-test.txt.
    """

    codepoints: str
    concept: str
    skin_tone: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def bare(codepoints: str) -> str:
    """Code points without variation selectors: what the sources disagree about writing."""
    return "-".join(part for part in codepoints.split("-") if part != _VARIATION)


def read_emoji(emoji_test: str | Path, cldr: str | Path) -> list[Emoji]:
    """Reads all emoji but the flags of places, in Unicode's order.

    Args:
        emoji_test: Unicode's emoji-test.txt.
        cldr: A checkout of unicode-org/cldr (or its folder `common`).

    Raises:
        FileNotFoundError: If a file is not where these sources have it.
        ValueError: If emoji-test.txt has no fully-qualified emoji, or an annotation file is no XML.
    """
    lines = _read_test(Path(emoji_test))
    names, keywords = _read_annotations(Path(cldr))
    by_name = {name: codepoints for codepoints, name, _, _ in lines}
    known = {bare(codepoints) for codepoints, *_ in lines}
    found = []
    for codepoints, name, group, subgroup in lines:
        if subgroup in _LEFT_OUT or group in _LEFT_OUT_GROUPS:
            continue
        key = bare(codepoints)
        tones = [TONES[part] for part in codepoints.split("-") if part in TONES]
        found.append(
            Emoji(
                codepoints,
                _concept(key, name, known, by_name),
                "none" if not tones else tones[0] if len(set(tones)) == 1 else "mixed",
                _ascii(names.get(key, name)),
                tuple(dict.fromkeys(word for word in map(_ascii_or_none, keywords.get(key, ())) if word)),
                group,
                subgroup,
            )
        )
    return found


def _read_test(path: Path) -> list[tuple[str, str, str, str]]:
    """Returns (codepoints, name, group, subgroup) of every fully-qualified emoji."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; expected Unicode's emoji-test.txt")
    group = subgroup = ""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif match := _LINE.match(line):
            lines.append(("-".join(match[1].lower().split()), match[2], group, subgroup))
    if not lines:
        raise ValueError(f"{path} lists no fully-qualified emoji; expected Unicode's emoji-test.txt")
    return lines


def _read_annotations(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Returns names and keywords by code points without variation selectors."""
    common = root / "common" if (root / "common").is_dir() else root
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        path = common / folder / "en.xml"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; expected a checkout of unicode-org/cldr at {root}")
        try:
            tree = ElementTree.parse(path)
        except ElementTree.ParseError as error:
            raise ValueError(f"{path} is not XML: {error}") from error
        for entry in tree.iter("annotation"):
            key = bare("-".join(f"{ord(sign):04x}" for sign in entry.get("cp", "")))
            text = (entry.text or "").strip()
            if entry.get("type") == "tts":
                names[key] = text
            else:
                keywords[key] = [word.strip() for word in text.split("|")]
    return names, keywords


def _concept(key: str, name: str, known: set[str], by_name: dict[str, str]) -> str:
    toneless = "-".join(part for part in key.split("-") if part not in TONES)
    if toneless in known:
        return toneless
    # Some couples are spelt with other code points once they have tones; their name still says which couple it is.
    head, _, tail = name.partition(": ")
    details = [part for part in tail.split(", ") if part and not part.endswith(" skin tone")]
    for kept in (details, [part for part in details if part != "person"]):
        base = ": ".join([head, ", ".join(kept)]) if kept else head
        if base in by_name:
            return bare(by_name[base])
    return toneless


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.translate(_STRAIGHT))
    return "".join(sign for sign in plain if " " <= sign <= "~").strip()


def _ascii_or_none(text: str) -> str | None:
    """A keyword in ASCII; None where it is in another script and little of it would be left."""
    plain = unicodedata.normalize("NFKD", text.translate(_STRAIGHT))
    letters = [sign for sign in plain if not unicodedata.combining(sign)]
    return "".join(letters).strip() if all(" " <= sign <= "~" for sign in letters) else None
