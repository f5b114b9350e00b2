"""Owns what can be in a picture of `shapes`: its words, its scenes, and the combinations held out of training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from training.data.randomness import draws

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Facts",
    "Placed",
    "Scene",
    "Thing",
    "facts_said",
    "held_out",
    "scene",
]

# Colours stand far apart from each other and from the backgrounds, so that a drifted one still reads as itself.
COLOURS = {
    "red": (220, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 50),
    "green": (35, 160, 60),
    "cyan": (50, 210, 225),
    "blue": (35, 70, 215),
    "purple": (140, 45, 185),
    "pink": (250, 130, 195),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0), "brown": (100, 62, 35)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
# Diameters as shares of the picture's side.
SIZES = {"small": (0.24, 0.265), "large": (0.36, 0.4)}
COUNTS = ("one", "two", "three", "four", "five")
# Each pair of places has one name in facts: "a right of b" is stored as "b left of a".
RELATIONS = ("left of", "above")
SPLITS = ("train", "validation")

_SHADES = 0.5  # share of training's scenes on a background that no word names
_SHADE_OFF = 75.0  # RGB distance of such a background from each that has a name
_SHADE_CLEAR = 100.0  # and from each thing on it
_KINDS = ("single", "count", "relation")
_KIND_SHARES = (0.3, 0.3, 0.4)
_MARGIN = 2 / 64  # from the picture's edge
_GAP = 3 / 64  # between the boxes of two things
_APART = 0.2  # between the centres along a relation's axis
_SLANT = 1.5  # how much longer the way along that axis is than across it


@dataclass(frozen=True)
class Thing:
    """One thing of a picture; `size` is None where a caption does not say."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a caption says, or what a picture shows.

    Attributes:
        things: Every thing; with a relation, in its order.
        relation: "left of" or "above" between two things; None where it is not said or not clear.
        background: None where it is not said or not recognised.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Placed:
    """A thing and where it is: centre and diameter as shares of the picture's side, y downwards."""

    thing: Thing
    x: float
    y: float
    diameter: float


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; `facts` is what its canonical caption says.

    `shade` is the RGB of a background that no word names; None where facts say it.
    """

    facts: Facts
    placed: tuple[Placed, ...]
    shade: tuple[int, int, int] | None = None


def held_out(facts: Facts) -> tuple[str, ...]:
    """Names the combinations in a scene that training never shows; empty for a scene of training.

    Each kind is a fixed set that meets every colour, shape, count, relation and background at most in part, so each
    of these words alone is learnt: 8 of 64 (colour, shape), 4 of 40 (count, shape), 4 of 32 (background, colour), and
    16 of 128 (relation, shape, shape).
    """
    shapes = [SHAPES.index(thing.shape) for thing in facts.things]
    colours = [list(COLOURS).index(thing.colour) for thing in facts.things]
    found = [
        f"{thing.colour} {thing.shape}"
        for thing, colour, shape in zip(facts.things, colours, shapes, strict=True)
        if shape == (3 * colour + 1) % len(SHAPES)
    ]
    if facts.relation is None and len(shapes) > 1 and shapes[0] == (2 * len(shapes) + 1) % len(SHAPES):
        found.append(f"{COUNTS[len(shapes) - 1]} {SHAPES[shapes[0]]}")
    if facts.relation is not None:
        first, second = shapes
        if (first + 3 * second + 5 * RELATIONS.index(facts.relation)) % len(SHAPES) == 0:
            found.append(f"{SHAPES[first]} {facts.relation} {SHAPES[second]}")
    if facts.background is not None:
        place = 2 * list(BACKGROUNDS).index(facts.background)
        found += [
            f"{thing.colour} on {facts.background}"
            for thing, at in zip(facts.things, colours, strict=True)
            if at == place
        ]
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=1024)
def scene(seed: int, split: str, index: int) -> Scene:
    """The scene of a number; a pure function of its arguments.

    Some scenes of training stand on a background without a name, whose caption says none. Without them each named
    background meets only the colours that are not held out with it, and "never red on white" is what training teaches.

    Args:
        seed: The world's seed.
        split: "train" has no held-out combination, "validation" has at least one in every scene.
        index: The scene's number, from 0.

    Raises:
        ValueError: For an unknown split.
    """
    drawn, said, shade = _content(seed, split, index)
    return Scene(said, _place(drawn, draws(seed, "shapes", split, "places", index)), shade)


def facts_said(seed: int, split: str, index: int) -> Facts:
    """The facts of a scene alone, which cost less than the scene; see `scene`."""
    return _content(seed, split, index)[1]


@lru_cache(maxsize=1 << 16)  # a training's captions, epoch for epoch
def _content(seed: int, split: str, index: int) -> tuple[Facts, Facts, tuple[int, int, int] | None]:
    """What a scene shows, what its caption says of it, and the colour of a background without a name."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; shapes has: {', '.join(SPLITS)}")
    rng = draws(seed, "shapes", split, index)
    while True:
        drawn = _draw_facts(rng)
        if bool(held_out(drawn)) == (split == "validation"):
            break
    said, shade = drawn, None
    if split == "train" and rng.random() < _SHADES:
        shade = _draw_shade(drawn, rng)
        said = replace(said, background=None)
    if drawn.relation is not None and rng.random() < 0.5:
        said = replace(said, things=tuple(replace(thing, size=None) for thing in drawn.things))
    return drawn, said, shade


def _choice(rng: np.random.Generator, names: tuple[str, ...] | dict[str, tuple[int, int, int]]) -> str:
    return tuple(names)[rng.integers(len(names))]


def _draw_thing(rng: np.random.Generator) -> Thing:
    return Thing(_choice(rng, COLOURS), _choice(rng, SHAPES), _choice(rng, tuple(SIZES)))


def _draw_facts(rng: np.random.Generator) -> Facts:
    kind = rng.choice(_KINDS, p=_KIND_SHARES)
    background = _choice(rng, BACKGROUNDS)
    first = _draw_thing(rng)
    if kind == "single":
        return Facts((first,), None, background)
    if kind == "count":
        # Five large things do not fit beside each other.
        most = len(COUNTS) if first.size == "small" else len(COUNTS) - 1
        return Facts((first,) * int(rng.integers(2, most + 1)), None, background)
    second = first
    while (second.colour, second.shape) == (first.colour, first.shape):
        second = _draw_thing(rng)
    return Facts((first, second), _choice(rng, RELATIONS), background)


def _draw_shade(facts: Facts, rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour between a named background and any other, far enough from all names and from the things."""
    named = np.array(list(BACKGROUNDS.values()))
    shown = np.array([COLOURS[thing.colour] for thing in facts.things])
    while True:
        start = named[rng.integers(len(named))]
        shade = (start + rng.random() * (rng.integers(0, 256, 3) - start)).round().astype(int)
        if _distances(shade, named).min() >= _SHADE_OFF and _distances(shade, shown).min() >= _SHADE_CLEAR:
            red, green, blue = shade.tolist()
            return red, green, blue


def _distances(colour: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(others - colour, axis=-1)


def _place(facts: Facts, rng: np.random.Generator, tries: int = 32) -> tuple[Placed, ...]:
    """Places the things at random without overlap, and so that their relation is plain to see.

    One thing after the other takes the first free one of some random spots; where none is free, all begin anew.
    """
    bounds = np.array([SIZES[thing.size or "small"] for thing in facts.things])
    diameters = rng.uniform(bounds[:, 0], bounds[:, 1])
    while True:
        centres: list[np.ndarray] = []
        for diameter in diameters:
            edge = _MARGIN + diameter / 2
            spots = edge + rng.random((tries, 2)) * (1 - 2 * edge)
            free = np.ones(tries, dtype=bool)
            for centre, other in zip(centres, diameters, strict=False):
                way = spots - centre
                free &= np.abs(way).max(-1) - (diameter + other) / 2 >= _GAP
                if facts.relation is not None:
                    axis = RELATIONS.index(facts.relation)
                    free &= (way[:, axis] >= _APART) & (way[:, axis] >= _SLANT * np.abs(way[:, 1 - axis]))
            if not free.any():
                break
            centres.append(spots[int(free.argmax())])
        else:
            rows = zip(facts.things, centres, diameters, strict=True)
            return tuple(Placed(thing, float(x), float(y), float(diameter)) for thing, (x, y), diameter in rows)
