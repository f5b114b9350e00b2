"""Frozen text encoders behind one value, `TextConditioning`."""

from __future__ import annotations

from latentgen.conditioning.clip import ClipConditioner
from latentgen.conditioning.text import TextConditioning

__all__ = ["ClipConditioner", "TextConditioning"]
