"""Contact sheets: pictures in rows with a few words below each, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PLAIN, GOOD, BAD, QUIET = "black", "#0a7a20", "#c01010", "#707070"
_GAP, _SIZE = 6, 11


@dataclass(frozen=True)
class Line:
    """Words in one colour; they wrap to at most `rows` rows, and what is left is cut with dots."""

    text: str
    colour: str = PLAIN
    rows: int = 1


@dataclass(frozen=True)
class Tile:
    """A picture with the words below it, and a picture shown small at its right."""

    picture: Image.Image
    lines: tuple[Line, ...] = ()
    beside: Image.Image | None = None


def contact_sheet(tiles: Sequence[Tile], columns: int = 8, side: int = 128) -> Image.Image:
    """Put tiles on white, row by row.

    Args:
        tiles: What to show.
        columns: Tiles of a row.
        side: Of the square that a picture is fitted into, in pixels; a smaller picture is enlarged to whole multiples.

    Raises:
        ValueError: There are no tiles, or no columns.
    """
    if not tiles or columns < 1:
        raise ValueError(f"a sheet of {len(tiles)} tiles in {columns} columns; expected at least one of each")
    font = ImageFont.load_default(_SIZE)
    width = side + (side // 2 + 2 if any(tile.beside for tile in tiles) else 0)
    texts = [_wrapped(tile.lines, width, font) for tile in tiles]
    line_height = _SIZE + 2
    rows = [texts[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [side + line_height * max(map(len, row)) + _GAP for row in rows]
    page = Image.new("RGB", ((width + _GAP) * min(columns, len(tiles)) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(page)
    top = _GAP
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            tile, left = tiles[number * columns + column], _GAP + column * (width + _GAP)
            page.paste(_fitted(tile.picture, side), (left, top))
            if tile.beside is not None:
                page.paste(_fitted(tile.beside, side // 2), (left + side + 2, top))
            for index, line in enumerate(text):
                pen.text((left, top + side + index * line_height), line.text, fill=line.colour, font=font)
        top += heights[number]
    return page


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture in a white square of `side`; enlarged by whole numbers only, so that its pixels stay sharp."""
    longest = max(picture.size)
    scale = float(side // longest) if longest <= side else side / longest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture.convert("RGB").resize(size, resample), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _wrapped(lines: Sequence[Line], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[Line]:
    wrapped = []
    for line in lines:
        rows: list[str] = [""]
        for word in line.text.split():
            longer = f"{rows[-1]} {word}".strip()
            if not rows[-1] or font.getlength(longer) <= width:
                rows[-1] = longer
            else:
                rows.append(word)
        if len(rows) > line.rows:
            rows = [*rows[: line.rows - 1], f"{rows[line.rows - 1]} ..."]
        wrapped += [Line(_cut(text, width, font), line.colour) for text in rows]
    return wrapped


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        text = f"{text.removesuffix('...').rstrip()[:-1]}..."
    return text
