"""Scores of pictures that were asked for in words: which to ask for, which facts came out right, and the tables."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentgen.evaluation.statistics import Share

CONCEPT, STYLE, TONE = ATTRIBUTES = ("concept", "style", "skin_tone")
NO_TONE = "none"

# What is counted, in the order of the tables.
LINES = {
    "concept": "right concept",
    "concept_top5": "right concept among five",
    "style": "right style",
    "tone": "right skin tone",
    "tone_of_toned": "right skin tone, where there are tones",
    "all": "all three right",
}


Tally = dict[str, Share]  # a share for each of LINES


@dataclass(frozen=True)
class Verdict:
    """What a judge sees in a picture: of each attribute the labels, most likely first, and the first one's share."""

    labels: Mapping[str, tuple[str, ...]]
    confidence: Mapping[str, float]

    def first(self, attribute: str) -> str:
        """The label that the judge would give."""
        return self.labels[attribute][0]


@dataclass(frozen=True)
class Case:
    """A picture to ask for, and what it must show.

    Attributes:
        split: The group it is counted in.
        id: Names the row of the data.
        caption: The sentence.
        truth: The label of each attribute.
        alike: Concepts that the data draws, in this style, with the very same picture; they count as right too.
        toned: Whether the concept has skin tones, so that even "none" must be got right.
    """

    split: str
    id: str
    caption: str
    truth: Mapping[str, str]
    alike: frozenset[str] = frozenset()
    toned: bool = False

    def right(self, verdict: Verdict) -> dict[str, bool]:
        """Which facts the verdict finds right."""
        concepts = {self.truth[CONCEPT], *self.alike}
        right = {
            "concept": verdict.first(CONCEPT) in concepts,
            "concept_top5": not concepts.isdisjoint(verdict.labels[CONCEPT][:5]),
            "style": verdict.first(STYLE) == self.truth[STYLE],
            "tone": verdict.first(TONE) == self.truth[TONE],
        }
        if self.toned:
            right["tone_of_toned"] = right["tone"]
        return right | {"all": right["concept"] and right["style"] and right["tone"]}


def toned_concepts(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Concepts of which some row has a skin tone."""
    return {row[CONCEPT] for row in rows if row[TONE] != NO_TONE}


def alike_concepts(rows: Iterable[Mapping[str, Any]], digests: Iterable[str]) -> dict[tuple[str, str], frozenset[str]]:
    """(concept, style) -> the other concepts that this style draws with an equal picture.

    Args:
        rows: With the columns concept and style.
        digests: One for each row, equal for equal pictures.
    """
    drawn = defaultdict(set)
    for row, digest in zip(rows, digests, strict=True):
        drawn[row[STYLE], digest].add(row[CONCEPT])
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (style, _), concepts in drawn.items():
        for concept in concepts:
            found[concept, style] |= concepts - {concept}
    return {key: frozenset(others) for key, others in found.items() if others}


def lot(seed: int, *names: str) -> int:
    """A number that belongs to a seed and names alone: who sorts by it draws lots that nothing else disturbs."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest(), "little")


def choose(rows: Sequence[Mapping[str, Any]], count: int | None, seed: int) -> list[int]:
    """Indices of `count` rows by lot, as many of each style as there can be; None takes all, in the rows' order.

    A smaller count chooses a part of what a larger one chooses.

    Raises:
        ValueError: `count` is below 1.
    """
    if count is None or count >= len(rows):
        return list(range(len(rows)))
    if count < 1:
        raise ValueError(f"{count} captions were asked for; expected at least 1, or all")
    styles = defaultdict(list)
    for index, row in enumerate(rows):
        styles[row[STYLE]].append((lot(seed, row["id"]), index))
    turns = [(turn, style, index) for style, lots in styles.items() for turn, (_, index) in enumerate(sorted(lots))]
    return [index for _, _, index in sorted(turns)[:count]]


def tally(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> Tally:
    """How many pictures have each of `LINES` right; a line is counted over the cases that it applies to."""
    counted: dict[str, list[bool]] = {line: [] for line in LINES}
    for case, verdict in zip(cases, verdicts, strict=True):
        for line, right in case.right(verdict).items():
            counted[line].append(right)
    return {line: Share(sum(found), len(found)) for line, found in counted.items()}


def percent(share: Share) -> str:
    """Such as " 71.5% [66.9, 75.7] of 400"."""
    if not share.total:
        return "-"
    low, high = share.interval()
    return f"{share.share:6.1%} [{100 * low:.1f}, {100 * high:.1f}] of {share.total}"


def table(title: str, columns: Mapping[str, Tally]) -> str:
    """Lines of text: one line of `LINES` a row, and one column for each tally."""
    width = max(len(text) for text in LINES.values())
    cells = {name: [percent(column[line]) for line in LINES] for name, column in columns.items()}
    widths = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
    head = "  ".join([f"{title:<{width}}", *(f"{name:<{widths[name]}}" for name in cells)])
    body = [
        "  ".join([f"{text:<{width}}", *(f"{cells[name][i]:<{widths[name]}}" for name in cells)])
        for i, text in enumerate(LINES.values())
    ]
    return "\n".join(line.rstrip() for line in [head, "-" * len(head), *body])


def as_json(tallied: Mapping[str, Share]) -> dict[str, dict[str, Any]]:
    """A tally as plain values: right, total, share and its 95% interval."""
    return {
        line: {"right": share.right, "total": share.total, "share": share.share, "interval": share.interval()}
        for line, share in tallied.items()
        if share.total
    }
