"""Owns the wording of captions: templates that turn the columns of a row into the sentence a person would type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from training.data import english

__all__ = ["CaptionTemplate", "CaptionWeights", "ColumnCaptions", "EmojiCaptions", "FormatCaptions", "caption_template"]

Row = Mapping[str, Any]
Columns = Mapping[str, tuple[str, ...]]
TEXT, TEXTS, NUMBER, NOTHING = "text", "lists of texts", "numbers", "nothing"


def column_kind(feature: Any) -> str:
    """The kind of values in a column of a `datasets.Dataset`: one of ours, or what `datasets` calls it."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return TEXT  # a class is read as its name
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(inner, datasets.Value) and column_kind(inner) == TEXT:
        return TEXTS
    if not isinstance(feature, datasets.Value):
        return str(feature)
    if feature.dtype in ("string", "large_string"):
        return TEXT
    if re.match("u?int|float|bool", feature.dtype):
        return NUMBER
    return NOTHING if feature.dtype == "null" else feature.dtype


@dataclass
class CaptionWeights:
    """How often each wording is drawn for a training caption; weights of one group are relative to each other.

    Args:
        canonical: Subject in the canonical wording, "a firefighter".
        bare: Subject as the bare name without article, "firefighter".
        keyword: One or two keywords in place of the name, "wizard" or "sorcerer, witch" for a mage.
        name_and_keyword: The name followed by a keyword, "a mage, wizard".
        drop_style: Share of captions that leave the style out.
        drop_tone: Share of captions of a toned picture that leave the skin tone out.
        vary_style: Share of captions whose style is worded otherwise, "in noto style", "noto emoji of ...".
        vary_tone: Share of captions whose skin tone is worded otherwise, "a dark skinned firefighter".
    """

    canonical: float = 0.65
    bare: float = 0.15
    keyword: float = 0.1
    name_and_keyword: float = 0.1
    drop_style: float = 0.08
    drop_tone: float = 0.05
    vary_style: float = 0.3
    vary_tone: float = 0.3

    def __post_init__(self) -> None:
        """Checks the weights.

        Raises:
            ValueError: For a negative weight, subject weights that are all zero, or a share outside [0, 1].
        """
        subjects = (self.canonical, self.bare, self.keyword, self.name_and_keyword)
        if min(subjects) < 0 or sum(subjects) <= 0:
            raise ValueError(
                f"the caption weights canonical, bare, keyword, name_and_keyword are {subjects}; "
                "expected numbers of at least 0 that are not all 0"
            )
        for name in ("drop_style", "drop_tone", "vary_style", "vary_tone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"the caption weight {name} is {getattr(self, name)}; expected a share between 0 and 1"
                )


class CaptionTemplate(Protocol):
    """Turns a row's columns into a caption."""

    columns: Columns
    """The columns that a row must have, each with the kinds of values that it may hold: see `column_kind`."""

    def canonical(self, row: Row) -> str:
        """The one caption of a row that evaluation uses; empty where the row has none."""

    def draw(self, row: Row, rng: np.random.Generator) -> str:
        """A caption for training, chosen with `rng`."""


class ColumnCaptions:
    """Captions that stand in a column, as a text or as a list of texts of which training draws one."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.columns: Columns = {column: (TEXT, TEXTS)}

    def _texts(self, row: Row) -> list[str]:
        value = row[self.column]
        texts = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
        return [text.strip() for text in texts if isinstance(text, str) and text.strip()]

    def canonical(self, row: Row) -> str:
        """The text, or the first text of the list."""
        return next(iter(self._texts(row)), "")

    def draw(self, row: Row, rng: np.random.Generator) -> str:
        """The text, or one text of the list."""
        texts = self._texts(row)
        return texts[rng.integers(len(texts))] if texts else ""


class FormatCaptions:
    """Captions made by filling a row's columns into a sentence such as "a photo of a {label}"."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.columns: Columns = dict.fromkeys(re.findall(r"{(\w+)}", sentence), (TEXT, NUMBER))
        if not self.columns or re.sub(r"{\w+}", "", sentence).count("{"):
            raise ValueError(
                f"the caption sentence {sentence!r} must name its columns in braces, like 'a photo of a {{label}}'"
            )

    def canonical(self, row: Row) -> str:
        """The filled sentence; empty where one of its columns is empty."""
        values = {name: row[name] for name in self.columns}
        if any(value is None or value == "" for value in values.values()):
            return ""
        return re.sub(r"{(\w+)}", lambda match: str(values[match[1]]), self.sentence)

    def draw(self, row: Row, rng: np.random.Generator) -> str:
        """The same sentence: it has no variants."""
        return self.canonical(row)


@dataclass(frozen=True)
class _Subject:
    """An emoji's name taken apart: the phrase with its article, the words without, and the skin tones that it named."""

    phrase: str
    bare: str
    tones: tuple[str, ...]


_TONE = " skin tone"
_KEYCAPS = {"#": "a hash sign", "*": "an asterisk"}
_GROUPS = {"family": "family of {0}", "kiss": "kiss between {0}", "couple with heart": "couple of {0} with{1} heart"}
_COUNTS = {2: "two", 3: "three", 4: "four"}
_STYLE_WORDINGS = (
    "{subject}, in {style} style",
    "{subject} in {style} style",
    "{subject} in the {style} style",
    "{subject}, {style} emoji",
    "{subject}, {style}",
    "{style} style, {subject}",
    "{style} emoji of {subject}",
    "{style} style {bare}",
)
# Keywords that say little alone; one of these is only ever drawn beside another.
_VAGUE = english.words(
    "man woman person people men women face hand button sign symbol adult young old gesture gender-neutral finger "
    "arrow up down left right animal food family clock object mark red blue green yellow white black orange purple "
    "brown pink heart square circle geometric large small medium open closed"
) | {"unspecified gender"}


class EmojiCaptions:
    """Captions of the emoji tables, from the columns name, keywords, style and skin_tone.

    The canonical caption is "<subject>[ with <tone> skin], <style> style", for instance "a firefighter with dark skin,
    fluent 3d style". Rows whose names, styles or tones differ have different canonical captions.
    """

    columns: Columns = {"name": (TEXT,), "keywords": (TEXTS,), "style": (TEXT,), "skin_tone": (TEXT,)}

    def __init__(self, weights: CaptionWeights | None = None) -> None:
        self.weights = weights or CaptionWeights()
        weight = self.weights
        kinds = np.array([weight.canonical, weight.bare, weight.keyword, weight.name_and_keyword], dtype=np.float64)
        self._kinds = np.cumsum(kinds / kinds.sum())
        self._subjects: dict[tuple[str, str], _Subject] = {}

    def _subject(self, row: Row) -> _Subject:
        key = (row["name"] or "", row["skin_tone"] or "none")
        if key not in self._subjects:
            self._subjects[key] = _read_name(*key)
        return self._subjects[key]

    def canonical(self, row: Row) -> str:
        """The canonical caption; empty for a row without a name."""
        if not row["name"]:
            return ""
        subject = self._subject(row)
        return _with_style(_with_tones(subject.phrase, subject.tones), row["style"])

    def draw(self, row: Row, rng: np.random.Generator) -> str:
        """A wording of the row's facts: mostly the canonical one, see `CaptionWeights`."""
        if not row["name"]:
            return ""
        weight, subject = self.weights, self._subject(row)
        # All numbers are drawn before any is used, so that a wording does not depend on which branch took how many.
        kind, *dice = rng.random(10)
        which = int(np.searchsorted(self._kinds, kind, side="right"))
        words, bare, extra = self._words(subject, row["keywords"] or [], which, dice[:3])
        if subject.tones and dice[3] >= weight.drop_tone:
            worded = partial(_vary_tones, die=dice[5]) if dice[4] < weight.vary_tone else _with_tones
            words, bare = worded(words, subject.tones), worded(bare, subject.tones)
        words, bare = words + extra, bare + extra
        if not row["style"] or dice[6] < weight.drop_style:
            return words
        if dice[7] >= weight.vary_style:
            return _with_style(words, row["style"])
        wording = _STYLE_WORDINGS[int(dice[8] * len(_STYLE_WORDINGS))]
        return wording.format(subject=words, bare=bare, style=_style_words(row["style"]))

    @staticmethod
    def _words(subject: _Subject, keywords: Sequence[str], kind: int, dice: Sequence[float]) -> tuple[str, str, str]:
        """Returns the subject's words, the same without article, and what is to follow the skin tone."""
        if kind == 0:
            return subject.phrase, subject.bare, ""
        keywords = [english.plain(word) for word in keywords if not word.endswith(_TONE)]
        useful = [word for word in keywords if word.lower() != subject.bare.lower()]
        if kind == 3:  # A keyword that the name already says adds nothing beside it.
            useful = [word for word in useful if word.lower() not in subject.bare.lower()]
        telling = [word for word in useful if word.lower() not in _VAGUE]
        if kind == 1 or not telling:
            return subject.bare, subject.bare, ""
        first = telling[int(dice[0] * len(telling))]
        if kind == 3:
            return (subject.phrase if dice[2] < 0.5 else subject.bare), subject.bare, f", {first}"
        others = [word for word in useful if word != first]
        if dice[2] < 0.5 or not others:
            return (english.with_article(first) if dice[1] < 0.5 else first), first, ""
        pair = f"{first}, {others[int(dice[1] * len(others))]}"
        return pair, pair, ""


def _read_name(name: str, skin_tone: str) -> _Subject:
    """Takes a CLDR short name apart, such as "woman: dark skin tone, curly hair" or "kiss: woman, man"."""
    head, _, tail = name.partition(": ")
    details = [part.strip() for part in tail.split(",") if part.strip()]
    tones = tuple(part.removesuffix(_TONE) for part in details if part.endswith(_TONE))
    details = [part for part in details if not part.endswith(_TONE)]
    if not tones and skin_tone not in ("none", "mixed"):
        tones = (skin_tone,)
    phrase, bare = _join_details(head, details)
    return _Subject(phrase, bare, tones)


def _join_details(head: str, details: list[str]) -> tuple[str, str]:
    if not details:
        return english.noun_phrase(head), english.plain(head)
    text = ", ".join(details)
    if head == "keycap":
        sign = _KEYCAPS.get(text, f"the number {text}")
        return f"a keycap with {sign}", f"keycap {text}"
    if head in _GROUPS:
        group = _GROUPS[head]
        people = _people(details, articles=False)
        return english.with_article(group.format(_people(details), " a")), group.format(people, "")
    if details == ["bald"]:
        return english.with_article(f"bald {head}"), f"bald {head}"
    if details == ["beard"]:
        return f"{english.noun_phrase(head)} with a beard", f"{head} with beard"
    return f"{english.noun_phrase(head)} with {text}", f"{head} with {text}"


def _people(people: list[str], articles: bool = True) -> str:
    """Words a list of people: ["man", "man", "girl"] is "two men and a girl"."""
    parts = []
    for person, count in Counter(people).items():
        single = english.with_article(person) if articles else person
        parts.append(single if count == 1 else f"{_COUNTS.get(count, count)} {english.plural(person)}")
    return _listed(parts)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _with_tones(words: str, tones: Sequence[str]) -> str:
    if not tones:
        return words
    return f"{words} {'and' if ' with ' in words and len(tones) == 1 else 'with'} {_listed(list(tones))} skin"


def _vary_tones(words: str, tones: Sequence[str], die: float) -> str:
    text = _listed(list(tones))
    article, _, rest = words.partition(" ")
    if article not in ("a", "an", "the"):
        article, rest = "", words
    before = f"{text} skinned {rest}"
    variants = (
        f"{words} with {text} skin tone",
        f"{words}, {text} skin tone",
        f"{words}, {text} skin",
        f"the {before}" if article == "the" else english.with_article(before) if article else before,
        f"{words} with {english.with_article(text) if len(tones) == 1 else text} skin tone{'s' * (len(tones) > 1)}",
    )
    return variants[int(die * len(variants))]


def _style_words(style: str) -> str:
    return style.replace("-", " ")


def _with_style(words: str, style: str | None) -> str:
    return f"{words}, {_style_words(style)} style" if style else words


_NAMED: dict[str, Any] = {"emoji": EmojiCaptions}


def caption_template(
    template: str | None = None, column: str | None = None, weights: CaptionWeights | None = None
) -> CaptionTemplate | None:
    """Makes the caption template that a configuration names.

    Args:
        template: A name ("emoji"), or a sentence with columns in braces ("a photo of a {label}").
        column: The column that holds the captions; not together with `template`.
        weights: How often each wording of a named template is drawn.

    Returns:
        The template; None where neither is given.

    Raises:
        ValueError: If both are given, or the template is unknown.
    """
    if template and column:
        raise ValueError(f"caption_template is {template!r} and caption_column is {column!r}; give one of the two")
    if column:
        return ColumnCaptions(column)
    if not template:
        return None
    if template in _NAMED:
        return _NAMED[template](weights)
    if "{" in template:
        return FormatCaptions(template)
    known = ", ".join(sorted(_NAMED))
    raise ValueError(
        f"unknown caption_template {template!r}; expected one of: {known}, "
        "or a sentence such as 'a photo of a {label}'"
    )
