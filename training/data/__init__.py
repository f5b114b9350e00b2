"""Owns what training reads: sources of pictures, their captions, and the procedural world `shapes`."""

from __future__ import annotations

from training.data.captions import CaptionWeights, caption_template
from training.data.randomness import draw_seed, draws
from training.data.sources import (
    Bad,
    BadPictureError,
    DataConfig,
    Scan,
    Source,
    decode,
    open_source,
    scan,
    to_image,
    to_tensor,
)

__all__ = [
    "Bad",
    "BadPictureError",
    "CaptionWeights",
    "DataConfig",
    "Scan",
    "Source",
    "caption_template",
    "decode",
    "draw_seed",
    "draws",
    "open_source",
    "scan",
    "to_image",
    "to_tensor",
]
