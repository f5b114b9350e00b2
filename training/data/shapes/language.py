"""Owns the captions of `shapes`: how facts are worded, and how a caption is read back into facts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from training.data.english import plural, with_article
from training.data.shapes.world import BACKGROUNDS, COLOURS, COUNTS, SHAPES, SIZES, Facts, Thing

__all__ = ["canonical_caption", "facts_of", "random_caption"]

# Wordings of a relation from first to second, and from second to first.
_FORWARD = {"left of": ("left of", "to the left of"), "above": ("above", "over")}
_BACKWARD = {"left of": ("right of", "to the right of"), "above": ("below", "under")}
# "a ring with a star ...": where the thing named second is.
_BESIDE = {"left of": ("to its left", "on its left"), "above": ("above it", "over it")}
_BESIDE_BACK = {"left of": ("to its right", "on its right"), "above": ("below it", "under it")}
_GROUNDS = ("{} on a {} background", "{} on {}", "{}, {} background", "{} against a {} background")
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_PLAIN = 0.8
_DROP_BACKGROUND = 0.1


def _noun(thing: Thing, count: int = 1, size_word: str | None = None) -> str:
    size = [size_word or thing.size] if thing.size else []
    return " ".join([*size, thing.colour, thing.shape if count == 1 else plural(thing.shape)])


def canonical_caption(facts: Facts) -> str:
    """The plain caption of facts, such as "a green square above a large yellow ring on a grey background"."""
    first = facts.things[0]
    if facts.relation is not None:
        words = f"{with_article(_noun(first))} {facts.relation} {with_article(_noun(facts.things[1]))}"
    elif len(facts.things) == 1:
        words = with_article(_noun(first))
    else:
        words = f"{COUNTS[len(facts.things) - 1]} {_noun(first, len(facts.things))}"
    return _GROUNDS[0].format(words, facts.background) if facts.background else words


def random_caption(facts: Facts, rng: np.random.Generator) -> str:
    """One of the wordings of facts: mostly the canonical one; now and then the background is not said."""
    plain, background, drop, way, variant, size, lead = rng.random(7)
    if drop < _DROP_BACKGROUND:
        facts = replace(facts, background=None)
    if plain < _PLAIN:
        return canonical_caption(facts)
    things = [
        _noun(thing, len(facts.things) if facts.relation is None else 1, _size_word(thing, size))
        for thing in facts.things
    ]
    if facts.relation is not None:
        words = _relation_words(facts.relation, with_article(things[0]), with_article(things[1]), way, variant)
    elif len(things) == 1:
        words = f"one {things[0]}" if variant < 0.3 else with_article(things[0])
    else:
        words = f"{COUNTS[len(things) - 1]} {things[0]}"
    if lead < 0.1:
        words = f"a picture of {words}"
    if facts.background:
        words = _GROUNDS[int(background * len(_GROUNDS))].format(words, facts.background)
    return words


def _size_word(thing: Thing, die: float) -> str | None:
    words = _SIZE_WORDS[thing.size] if thing.size else (None,)
    return words[int(die * len(words))]


def _relation_words(relation: str, first: str, second: str, way: float, variant: float) -> str:
    pick = int(variant * 2)
    wordings = (
        f"{first} {_FORWARD[relation][pick]} {second}",
        f"{second} {_BACKWARD[relation][pick]} {first}",
        f"{second} with {first} {_BESIDE[relation][pick]}",
        f"{first} with {second} {_BESIDE_BACK[relation][pick]}",
    )
    return wordings[int(way * len(wordings))]


# --- reading


def _either(words: object) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


_SIZE_OF = {word: size for size, words in _SIZE_WORDS.items() for word in words}
_SHAPE_OF = {word: shape for shape in SHAPES for word in (shape, plural(shape))}
_COUNT_OF = {"a": 1, "an": 1} | {word: place + 1 for place, word in enumerate(COUNTS)}
_COUNT_OF |= {str(place + 1): place + 1 for place in range(len(COUNTS))}
_THING = (
    rf"(?:(?P<count{{0}}>{_either(_COUNT_OF)}) )?(?:(?P<size{{0}}>{_either(_SIZE_OF)}) )?"
    rf"(?P<colour{{0}}>{_either(COLOURS)}) (?P<shape{{0}}>{_either(_SHAPE_OF)})"
)
# Each wording of a relation: the relation in facts, and whether the thing that is named first comes second in it.
_LINKS = {
    word: (relation, swapped)
    for table, swapped in ((_FORWARD, False), (_BACKWARD, True))
    for relation, words in table.items()
    for word in words
}
_BESIDES = {
    word: (relation, swapped)
    for table, swapped in ((_BESIDE, True), (_BESIDE_BACK, False))
    for relation, words in table.items()
    for word in words
}
_CAPTION = re.compile(
    rf"(?:an? (?:picture|image|drawing) of )?{_THING.format(1)}"
    rf"(?: (?P<link>{_either(_LINKS)}) {_THING.format(2)}| with {_THING.format(3)} (?P<beside>{_either(_BESIDES)}))?"
    rf"(?:,? (?:on|against|with)? ?(?:an? )?(?P<background>{_either(BACKGROUNDS)})(?: background)?)?\.?"
)


def facts_of(caption: str) -> Facts:
    """Reads a caption of the grammar back into facts.

    Raises:
        ValueError: If the caption is not of the grammar, or contradicts itself ("two circle").
    """
    text = " ".join(caption.lower().replace("gray", "grey").split())
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"the caption {caption!r} is not of the shapes grammar; expected one such as "
            "'three small blue stars on a black background' or 'a green square above a yellow ring on grey'"
        )
    first, count = _read_thing(match, 1)
    if not match["link"] and not match["beside"]:
        return Facts((first,) * count, None, match["background"])
    second, other = _read_thing(match, 2 if match["link"] else 3)
    if (count, other) != (1, 1):
        raise ValueError(f"the caption {caption!r} relates more than two things; shapes relates one thing to one")
    relation, swapped = _LINKS[match["link"]] if match["link"] else _BESIDES[match["beside"]]
    return Facts((second, first) if swapped else (first, second), relation, match["background"])


def _read_thing(match: re.Match[str], place: int) -> tuple[Thing, int]:
    count = _COUNT_OF[match[f"count{place}"] or "a"]
    noun = match[f"shape{place}"]
    if (count == 1) != (noun in SHAPES):
        raise ValueError(f"{match[0]!r} counts {count} and says {noun!r}; expected the noun's number to fit its count")
    size = match[f"size{place}"]
    return Thing(match[f"colour{place}"], _SHAPE_OF[noun], _SIZE_OF[size] if size else None), count


assert set(_SIZE_WORDS) == set(SIZES)
