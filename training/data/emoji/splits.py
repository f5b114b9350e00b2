"""Owns which emoji pictures are held out of training, as a pure function of the rows and a seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Candidate", "split_kinds"]

_Choice = TypeVar("_Choice")
_CONCEPTS = 0.012  # share of concepts that training sees in no style
_PAIRS = 0.115  # share of the others that training sees in all styles but one
_TONES = 0.16  # share of (concept, style) with skin tones of which training lacks one
_MIXED = 0.03  # share of pictures of two people of different tones that training lacks


@dataclass(frozen=True)
class Candidate:
    """What a split needs to know of a picture: `digest` is equal for equal pictures, `tones` are in spelt order."""

    concept: str
    style: str
    tones: tuple[str, ...]
    digest: str


def split_kinds(rows: Sequence[Candidate], seed: int = 0) -> list[str]:
    """Says for each row why it is in its split: "train", or held out as "pair", "concept" or "tone".

    Concepts that a style draws with the same picture are one for this purpose: they are held out together. A choice
    hangs on the seed and on names alone, so one more picture does not reshuffle the others.

    * concept: training has the concept in no style.
    * pair: training has the concept, but not in this style.
    * tone: training has the concept in this style, but not with this skin tone.
    """
    cluster = _clusters(rows)
    members: dict[str, set[str]] = defaultdict(set)
    styles: dict[str, set[str]] = defaultdict(set)  # of a concept
    tones: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)  # of a concept in a style
    for row in rows:
        members[cluster[row.concept]].add(row.concept)
        styles[row.concept].add(row.style)
        tones[row.concept, row.style].add(row.tones)

    concepts = {name for name in members if _share(seed, "concept", name) < _CONCEPTS}
    pairs = set()
    lacking = set()
    for name, group in members.items():
        every = sorted(set().union(*(styles[concept] for concept in group)))
        # Each concept must keep a style in training.
        fit = [style for style in every if all(styles[concept] != {style} for concept in group)]
        if fit and _share(seed, "pair", name) < _PAIRS:
            pairs.add((name, _first(fit, seed, "pair style", name)))
        for style in every:
            drawn = [tones[concept, style] for concept in group if style in styles[concept]]
            # And where a tone is held out, the toneless picture.
            loose = {tone for tone in set().union(*drawn) if tone and all(tone not in of or () in of for of in drawn)}
            single = sorted(tone for tone in loose if len(set(tone)) == 1)
            if len(single) > 1 and _share(seed, "tone", name, style) < _TONES:
                lacking.add((name, style, _first(single, seed, "which tone", name, style)))
            mixed = loose - set(single)
            lacking |= {(name, style, tone) for tone in mixed if _share(seed, "mixed", name, style, *tone) < _MIXED}

    kinds = []
    for row in rows:
        name = cluster[row.concept]
        held = {
            "concept": name in concepts,
            "pair": (name, row.style) in pairs,
            "tone": (name, row.style, row.tones) in lacking,
        }
        kinds.append(next((kind for kind, is_held in held.items() if is_held), "train"))
    # A toned picture that training shows under another tone is no test of anything.
    shown = {(row.style, row.digest) for row, kind in zip(rows, kinds, strict=True) if kind == "train"}
    return [
        "train" if kind == "tone" and (row.style, row.digest) in shown else kind
        for row, kind in zip(rows, kinds, strict=True)
    ]


def _clusters(rows: Iterable[Candidate]) -> dict[str, str]:
    """Joins concepts that share a picture in a style; returns each concept's least member."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[tuple[str, str], str] = {}
    for row in rows:
        parent.setdefault(row.concept, row.concept)
        one, other = root(row.concept), root(owner.setdefault((row.style, row.digest), row.concept))
        parent[max(one, other)] = min(one, other)
    return {name: root(name) for name in parent}


def _share(seed: int, *names: str) -> float:
    """A number in [0, 1) that belongs to a seed and names."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _first(choices: list[_Choice], seed: int, *names: str) -> _Choice:
    """One of several choices, by seed and names."""
    return min(choices, key=lambda choice: _share(seed, *names, repr(choice)))
