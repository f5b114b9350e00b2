"""Owns how a scene of `shapes` becomes pixels: anti-aliased outlines on a plain background."""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageDraw

from training.data.shapes.world import BACKGROUNDS, COLOURS, Placed, Scene

__all__ = ["render"]

_FINER = 4  # each pixel is the mean of so many squared
_RING_HOLE = 0.5  # a ring's hole as a share of its diameter
_CROSS_ARM = 0.15  # half the width of a cross's arms
_STAR_WAIST = 0.46  # a star's inner radius as a share of its outer


def _round_points(radii: tuple[float, ...], points: int) -> list[tuple[float, float]]:
    turns = [2 * math.pi * point / points for point in range(points)]
    return [
        (radii[k % len(radii)] * math.sin(turn), -radii[k % len(radii)] * math.cos(turn))
        for k, turn in enumerate(turns)
    ]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * point / 60 for point in range(60)]
    return [
        (
            16 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in turns
    ]


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """The corners of a shape, scaled and centred so that its box's longer side runs from -0.5 to 0.5."""
    arm = _CROSS_ARM
    corners = {
        "circle": lambda: _round_points((0.5,), 60),
        "ring": lambda: _round_points((0.5,), 60),
        "square": lambda: [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)],
        "triangle": lambda: [(0.0, -0.5), (0.5, 0.45), (-0.5, 0.45)],
        "star": lambda: _round_points((0.5, 0.5 * _STAR_WAIST), 10),
        "cross": lambda: [
            (sign_x * x, sign_y * y)
            for sign_x, sign_y, pairs in (
                (1, -1, ((arm, 0.5), (arm, arm), (0.5, arm))),
                (1, 1, ((0.5, arm), (arm, arm), (arm, 0.5))),
                (-1, 1, ((arm, 0.5), (arm, arm), (0.5, arm))),
                (-1, -1, ((0.5, arm), (arm, arm), (arm, 0.5))),
            )
            for x, y in pairs
        ],
        "diamond": lambda: _round_points((0.5,), 4),
        "heart": _heart,
    }[shape]()
    xs, ys = zip(*corners, strict=True)
    scale = max(max(xs) - min(xs), max(ys) - min(ys))
    middle = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    return tuple(((x - middle[0]) / scale, (y - middle[1]) / scale) for x, y in corners)


def _paint(draw: ImageDraw.ImageDraw, one: Placed, side: int, background: tuple[int, int, int]) -> None:
    def at(scale: float) -> list[tuple[float, float]]:
        # Pixel k of the canvas covers [k, k + 1), and Pillow counts from its centre: hence the half.
        reach = one.diameter * scale
        return [
            ((one.x + reach * x) * side - 0.5, (one.y + reach * y) * side - 0.5) for x, y in _outline(one.thing.shape)
        ]

    draw.polygon(at(1.0), fill=COLOURS[one.thing.colour])
    if one.thing.shape == "ring":
        draw.polygon(at(_RING_HOLE), fill=background)


def render(scene: Scene, resolution: int = 64) -> Image.Image:
    """Draws a scene as an RGB picture of `resolution` x `resolution` pixels.

    Raises:
        ValueError: For a resolution below 32, where small things are no longer told apart.
    """
    if resolution < 32:
        raise ValueError(f"resolution is {resolution}; shapes can be told apart from 32 pixels on")
    background = scene.shade or BACKGROUNDS[scene.facts.background or "white"]
    side = resolution * _FINER
    canvas = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(canvas)
    for one in scene.placed:
        _paint(draw, one, side, background)
    return canvas.reduce(_FINER)
