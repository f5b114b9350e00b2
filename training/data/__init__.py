"""Owns what training reads: sources of pictures, their captions, and the procedural world `shapes`."""

from __future__ import annotations

from training.data.captions import CaptionWeights, caption_template
from training.data.decoding import BadPictureError, decode, to_image, to_tensor
from training.data.quarantine import Bad, Scan, scan
from training.data.randomness import draw_seed, draws
from training.data.sources import DataConfig, Source, digest_of_rows, open_source, picture_tensor

__all__ = [
    "Bad",
    "BadPictureError",
    "CaptionWeights",
    "DataConfig",
    "Scan",
    "Source",
    "caption_template",
    "decode",
    "digest_of_rows",
    "draw_seed",
    "draws",
    "open_source",
    "picture_tensor",
    "scan",
    "to_image",
    "to_tensor",
]
