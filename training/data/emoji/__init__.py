"""Owns the making of the emoji tables from local checkouts of the public sources; nothing here runs during training."""

from __future__ import annotations

from training.data.emoji.artwork import STYLES, Artwork, draw, open_artwork
from training.data.emoji.splits import Candidate, split_kinds
from training.data.emoji.tables import Summary, prepare
from training.data.emoji.unicode import Emoji, read_emoji

__all__ = [
    "STYLES",
    "Artwork",
    "Candidate",
    "Emoji",
    "Summary",
    "draw",
    "open_artwork",
    "prepare",
    "read_emoji",
    "split_kinds",
]
