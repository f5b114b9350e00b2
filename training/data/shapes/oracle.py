"""Owns the judge of `shapes`: it reads a picture back into facts from the pixels alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from training.data.shapes.drawing import render
from training.data.shapes.language import facts_of
from training.data.shapes.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Facts, Placed, Scene, Thing

__all__ = ["UNKNOWN", "agrees", "read"]

UNKNOWN = "unknown"
"""Stands for a colour or shape that is none of the world's."""

_FAINT = 40.0  # RGB distance from the background at which a pixel may belong to a thing
_BRIDGE = 0.35  # share of a region's strength below which its pixels do not join
_BACKGROUND_REACH = 60.0  # RGB distance within which a background is recognised
_COLOUR_REACH = 85.0  # and a colour
_SPECK = 0.003  # share of the picture under which a component is dust, not a thing
_PURE = 0.8  # share of a thing's inner pixels that must be of one colour
_BESIDE = 1.0  # a relation is clear when the way along its axis is longer than across by this factor
_NEAR = 0.1  # and longer than this share of the side
_GRID = 20  # cells of the frame in which silhouettes are compared
_FRAME = 2.4  # half the frame's side, in root-mean-square radii of the silhouette
_SHAPE_REACH = 0.12  # root-mean-square difference of silhouettes above which a shape is unknown
_SIZE_EDGES = (0.15, 0.31, 0.5)  # diameters between these are small, then large


def read(image: Image.Image) -> Facts:
    """Reads what a picture of the world shows.

    Each connected region that stands out from the border's colour is a thing. Its colour is that of its inner pixels;
    its shape is that of the rendered silhouette nearest to its own, after both are moved and scaled to a common frame
    by their moments; its size follows from that scale. What fits nothing is `UNKNOWN` (None for a size).

    Args:
        image: A square picture, as drawn or as a model made it.

    Returns:
        All things, and for two of them their relation if it is clear, in the relation's order; else from left to right.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    ground = _border_colour(pixels)
    labels, count = _regions(np.linalg.norm(pixels - ground, axis=-1))
    seen = []
    for label in range(1, count + 1):
        if (labels == label).sum() >= _SPECK * labels.size:
            seen.append(_look(pixels, ground, labels, label))
    seen.sort(key=lambda one: one.x)
    relation = None
    if len(seen) == 2:
        relation, order = _relation(*seen)
        seen = [seen[place] for place in order]
    return Facts(tuple(one.thing for one in seen), relation, _nearest(ground, BACKGROUNDS, _BACKGROUND_REACH))


def agrees(facts: Facts, caption: str | Facts) -> bool:
    """Whether what a picture shows is all that its caption says, and no thing more.

    Raises:
        ValueError: If the caption is not of the grammar.
    """
    said = facts_of(caption) if isinstance(caption, str) else caption
    if len(facts.things) != len(said.things) or said.background not in (None, facts.background):
        return False
    if said.relation not in (None, facts.relation):
        return False
    pairs = zip(facts.things, said.things, strict=True)
    return all(
        (seen.colour, seen.shape) == (told.colour, told.shape) and told.size in (None, seen.size)
        for seen, told in pairs
    )


# --- parts


@dataclass(frozen=True)
class _Seen:
    thing: Thing
    x: float
    y: float


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    frame = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    sides = np.concatenate([pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    return np.median(np.concatenate([frame, sides]), axis=0)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]], reach: float) -> str | None:
    away = np.linalg.norm(np.array(list(palette.values()), dtype=np.float32) - colour, axis=-1)
    return list(palette)[int(away.argmin())] if away.min() <= reach else None


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels the 4-connected regions of a mask from 1 on, by joining runs of neighbouring rows."""
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_of = np.searchsorted(rows, np.arange(height + 1)).tolist()
    starts_, ends_ = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, here = first_of[row - 1], first_of[row]
        while above < first_of[row] and here < first_of[row + 1]:
            if starts_[above] < ends_[here] and starts_[here] < ends_[above]:
                parent[root(here)] = root(above)
            if ends_[above] < ends_[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(run) for run in range(len(rows))], dtype=np.int64)
    names, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros((height, width), dtype=np.int32)
    for row, start, end, number in zip(rows.tolist(), starts_, ends_, numbers.tolist(), strict=True):
        labels[row, start:end] = number + 1
    return labels, len(names)


def _regions(away: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels the regions that stand out, by their distance from the background's colour."""
    labels, count = _components(away > _FAINT)
    # Blur can join two strong neighbours by a faint bridge: cut what is faint for its own region.
    strength = np.array([0.0] + [np.quantile(away[labels == label], 0.9) for label in range(1, count + 1)])
    return _components((labels > 0) & (away > _BRIDGE * strength[labels]))


def _look(pixels: np.ndarray, ground: np.ndarray, labels: np.ndarray, label: int) -> _Seen:
    """Reads one region."""
    side = labels.shape[0]
    ys, xs = np.nonzero(labels == label)
    top, left = max(ys.min() - 2, 0), max(xs.min() - 2, 0)
    window = (slice(top, ys.max() + 3), slice(left, xs.max() + 3))
    away = np.where(np.isin(labels[window], (0, label)), np.linalg.norm(pixels[window] - ground, axis=-1), 0.0)
    inner = away >= np.quantile(away[labels[window] == label], 0.6)
    colour = np.median(pixels[window][inner], axis=0)
    full = colour - ground
    # How much of each pixel the thing covers: its place on the way from the background's colour to the thing's.
    cover = np.clip((pixels[window] - ground) @ full / max(float(full @ full), 1.0), 0.0, 1.0) * (away > 0)
    cover[cover < 0.12] = 0.0
    name = _nearest(colour, COLOURS, _COLOUR_REACH) or UNKNOWN
    if _impure(pixels[window], ground, full, labels[window] == label):
        name = UNKNOWN
    silhouette, (row, column), radius = _silhouette(cover)
    shape, diameter = _match(silhouette, radius)
    diameter /= side
    size = dict(zip(SIZES, itertools.pairwise(_SIZE_EDGES), strict=True))
    fits = [word for word, (low, high) in size.items() if low <= diameter < high]
    thing = Thing(name, shape, fits[0] if fits else None)
    return _Seen(thing, (left + column + 0.5) / side, (top + row + 0.5) / side)


def _impure(pixels: np.ndarray, ground: np.ndarray, full: np.ndarray, mask: np.ndarray) -> bool:
    """Whether too many of a region's pixels lie off the line between the background's colour and its own."""
    ways = pixels[mask] - ground
    along = np.clip(ways @ full / max(float(full @ full), 1.0), 0.0, 1.0)
    return bool((np.linalg.norm(ways - along[:, None] * full, axis=-1) > _COLOUR_REACH).mean() > 1 - _PURE)


def _silhouette(cover: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """Samples a coverage map in the common frame; returns it with its centre and root-mean-square radius in pixels."""
    mass = cover.sum()
    rows, columns = np.arange(cover.shape[0]), np.arange(cover.shape[1])
    row, column = (cover.sum(1) @ rows) / mass, (cover.sum(0) @ columns) / mass
    spread = (cover.sum(1) @ (rows - row) ** 2 + cover.sum(0) @ (columns - column) ** 2) / mass
    radius = float(np.sqrt(spread))
    ticks = ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * _FRAME * radius
    return _bilinear(cover, row + ticks, column + ticks), (float(row), float(column)), radius


def _bilinear(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Samples a grid at every pair of rows and columns; zero outside."""

    def weights(ticks: np.ndarray, length: int) -> np.ndarray:
        return np.maximum(0.0, 1.0 - np.abs(ticks[:, None] - np.arange(length)))  # (ticks, length)

    return weights(rows, values.shape[0]) @ values @ weights(columns, values.shape[1]).T


def _relation(first: _Seen, second: _Seen) -> tuple[str | None, tuple[int, int]]:
    ways = np.array([second.x - first.x, second.y - first.y])
    axis = int(np.abs(ways).argmax())
    if abs(ways[axis]) < max(_NEAR, _BESIDE * abs(ways[1 - axis])):
        return None, (0, 1)
    return RELATIONS[axis], ((0, 1) if ways[axis] > 0 else (1, 0))


# --- known silhouettes


@lru_cache(maxsize=1)
def _known() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Silhouettes of every shape, size, and a few offsets and blurs: (N, cells), their shapes, diameter per radius."""
    rows, shapes, ratios = [], [], []
    side = 64
    for shape in SHAPES:
        for low, high in SIZES.values():
            for shift in ((0.0, 0.0), (0.5, 0.25), (0.25, 0.5)):
                for blur in (0.0, 0.6, 1.1, 1.6):
                    diameter = (low + high) / 2
                    where = Placed(Thing("blue", shape), 0.5 + shift[0] / side, 0.5 + shift[1] / side, diameter)
                    picture = render(Scene(Facts((), None, "black"), (where,)), side).filter(
                        ImageFilter.GaussianBlur(blur)
                    )
                    cover = np.asarray(picture, dtype=np.float32)[:, :, 2] / COLOURS["blue"][2]
                    silhouette, _, radius = _silhouette(cover)
                    rows.append(silhouette.ravel())
                    shapes.append(shape)
                    ratios.append(diameter * side / radius)
    return np.array(rows, dtype=np.float32), shapes, np.array(ratios)


def _match(silhouette: np.ndarray, radius: float) -> tuple[str, float]:
    """The shape of the nearest known silhouette, and the diameter in pixels that the radius means for it."""
    known, shapes, ratios = _known()
    away = np.sqrt(np.square(known - silhouette.ravel().astype(np.float32)).mean(1))
    best = int(away.argmin())
    return (shapes[best] if away[best] <= _SHAPE_REACH else UNKNOWN), float(radius * ratios[best])
