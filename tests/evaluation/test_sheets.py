"""Contact sheets show their pictures and words where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from latentgen.evaluation.sheets import BAD, Line, Tile, contact_sheet


def tiles(count: int, **more: object) -> list[Tile]:
    return [Tile(Image.new("RGB", (64, 64), (10 * number, 0, 255)), **more) for number in range(count)]


def test_pictures_stand_in_rows_enlarged_by_whole_numbers() -> None:
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    page = np.asarray(contact_sheet([Tile(picture), *tiles(2)], columns=2, side=128))
    assert np.array_equal(page[6:134:2, 6:134:2], np.asarray(picture))
    assert np.array_equal(page[7:135:2, 7:135:2], np.asarray(picture))
    assert tuple(page[6, 140]) == (0, 0, 255)
    assert tuple(page[140, 6]) == (10, 0, 255)
    assert (page[:6] == 255).all()


def test_other_pictures_fit_and_stand_on_white() -> None:
    page = np.asarray(contact_sheet([Tile(Image.new("RGB", (300, 100), "black"))], side=90))
    assert (page[6:36, 6:96] == 255).all()
    assert (page[38:64, 8:94] == 0).all()


def test_words_are_drawn_in_their_colour_below_and_make_room() -> None:
    plain, worded = contact_sheet(tiles(1), side=64), contact_sheet(tiles(1, lines=(Line("no: pear", BAD),)), side=64)
    assert worded.height > plain.height
    below = np.asarray(worded)[70:].reshape(-1, 3)
    assert (below == np.array([0xC0, 0x10, 0x10])).all(1).any()


def test_long_words_wrap_to_their_rows_and_stay_inside() -> None:
    long = "an astonishingly long caption " * 5
    heights = [contact_sheet(tiles(1, lines=(Line(long, rows=rows),)), side=64).height for rows in (1, 2, 3)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > 0
    page = np.asarray(contact_sheet(tiles(1, lines=(Line("w" * 200),)), side=64))
    assert (page[:, 71:] == 255).all()


def test_the_picture_beside_widens_every_tile() -> None:
    beside = Image.new("RGB", (64, 64), "red")
    page = np.asarray(contact_sheet(tiles(2, beside=beside), columns=2, side=64))
    assert tuple(page[6, 6 + 64 + 2]) == (255, 0, 0)
    assert tuple(page[6, 6 + 64 + 34 + 6]) == (10, 0, 255)


@pytest.mark.parametrize(("count", "columns"), [(0, 4), (1, 0)])
def test_empty_sheets_are_refused(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        contact_sheet(tiles(count), columns=columns)
