"""Owns the door by which training reaches `shapes`: a source without files."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from training.data.shapes import world
from training.data.shapes.drawing import render
from training.data.shapes.language import canonical_caption, random_caption
from training.data.shapes.world import Facts, Scene, facts_said, held_out, scene

if TYPE_CHECKING:
    from training.data.sources import DataConfig

__all__ = ["ShapesSource"]


class ShapesSource:
    """Scenes 0 to length - 1 of a split, drawn when asked for."""

    trusted = True
    """Its pictures are made here, so a scan need not look at them."""

    def __init__(self, split: str = "train", length: int = 100_000, resolution: int = 64, seed: int = 0) -> None:
        self.split, self.length, self.resolution, self.seed = split, length, resolution, seed
        first = [scene(seed, split, index) for index in range(64)]  # fails for an unknown split
        facts = {
            "world": [world.COLOURS, world.BACKGROUNDS, world.SHAPES, world.SIZES],
            # So many that a change of how scenes are drawn shows.
            "first": [repr(one) for one in first],
            "drawn": [hashlib.blake2b(render(one, resolution).tobytes()).hexdigest() for one in first[:16]],
            "place": [split, length, resolution, seed],
        }
        self.fingerprint = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    @classmethod
    def from_config(cls, config: DataConfig) -> ShapesSource:
        """Makes the source that a configuration names."""
        length = config.length if config.limit is None else min(config.length, config.limit)
        return cls(config.split, length, config.resolution, config.seed)

    def __len__(self) -> int:
        """The number of scenes."""
        return self.length

    def scene(self, index: int) -> Scene:
        """The scene of a row.

        Raises:
            IndexError: For an index outside the source.
        """
        self._require(index)
        return scene(self.seed, self.split, index)

    def _require(self, index: int) -> None:
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of {self.length}")

    def facts(self, index: int) -> Facts:
        """What the caption of a row says.

        Raises:
            IndexError: For an index outside the source.
        """
        self._require(index)
        return facts_said(self.seed, self.split, index)

    def image(self, index: int) -> Image.Image:
        """The picture, RGB."""
        return render(self.scene(index), self.resolution)

    def row(self, index: int) -> dict[str, Any]:
        """The canonical caption and the held-out combinations that the scene has."""
        facts = self.facts(index)
        return {"id": self.id(index), "caption": canonical_caption(facts), "held_out": list(held_out(facts))}

    def id(self, index: int) -> str:
        """A name of the row for messages."""
        return f"shapes-{self.split}-{self.seed}-{index}"

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """The canonical caption, or with `rng` one of the wordings that training sees."""
        facts = self.facts(index)
        return canonical_caption(facts) if rng is None else random_caption(facts, rng)
