"""Captions in which two words have changed places: what a contrastive loss must tell from the true ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations

import numpy as np

_WORD = re.compile(r"[\w'-]+")


class WordSwaps:
    """Exchanges two words of a caption so that what it says changes and how it is said does not.

    As in NegCLIP (arXiv 2210.01936), a negative has the words of its caption in another order, so it is told from it by
    which word belongs to which alone. There the words' kinds choose what may change places; here the data do: every
    three words that follow each other in a negative follow each other in some caption.

    Args:
        captions: What follows what is learnt from these.
    """

    def __init__(self, captions: Iterable[str]) -> None:
        self.said = {three for caption in captions for three in _threes(_WORD.findall(caption))}

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """One of the caption's swaps, drawn with `rng`; empty where it has none."""
        places = list(_WORD.finditer(caption))
        words = [place[0] for place in places]
        swaps = [pair for pair in combinations(range(len(words)), 2) if self._is_said(words, *pair)]
        if not swaps:
            return ""
        first, second = swaps[rng.integers(len(swaps))]
        (start, end), (other_start, other_end) = places[first].span(), places[second].span()
        between, after = caption[end:other_start], caption[other_end:]
        return caption[:start] + words[second] + between + words[first] + after

    def _is_said(self, words: list[str], first: int, second: int) -> bool:
        if words[first] == words[second]:
            return False
        swapped = [*words]
        swapped[first], swapped[second] = words[second], words[first]
        return self.said.issuperset(_threes(swapped))


def _threes(words: list[str]) -> Iterable[tuple[str, str, str]]:
    return zip(["", *words], words, [*words[1:], ""])
