"""Owns `shapes`: a procedural world of captioned pictures, and an exact oracle that reads a picture back into facts."""

from __future__ import annotations

from training.data.shapes.drawing import render
from training.data.shapes.language import canonical_caption, facts_of, random_caption
from training.data.shapes.oracle import agrees, read
from training.data.shapes.source import ShapesSource
from training.data.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Facts,
    Placed,
    Scene,
    Thing,
    held_out,
    scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Facts",
    "Placed",
    "Scene",
    "ShapesSource",
    "Thing",
    "agrees",
    "canonical_caption",
    "facts_of",
    "held_out",
    "random_caption",
    "read",
    "render",
    "scene",
]
