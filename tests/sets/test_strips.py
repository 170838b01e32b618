"""Strips of text are cut off sheets exactly where they are regular, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from iclora.sets.layout import Box
from iclora.sets.leftovers import strip_depth
from iclora.sets.strips import cut_strips
from tests.sets.test_bars import smooth

WORDS = "Ana looks at the sea and waits for him"


def captioned(image, height=24, words=WORDS, paper="white", ink="black", above=False):
    page = Image.new("RGB", (image.width, image.height + height), paper)
    page.paste(image, (0, height * above))
    place = (8, 5 + image.height * (not above))
    ImageDraw.Draw(page).text(place, words, fill=ink, font=ImageFont.load_default(12))
    return page


def joined(panels, per_row, gutter=8, colour="#336699"):
    """A sheet of panels of one size, and their boxes."""
    wide, high = panels[0].size
    rows = len(panels) // per_row
    size = per_row * (wide + gutter) - gutter, rows * (high + gutter) - gutter
    sheet, boxes = Image.new("RGB", size, colour), []
    for number, panel in enumerate(panels):
        row, column = divmod(number, per_row)
        boxes.append(Box(column * (wide + gutter), row * (high + gutter), wide, high))
        sheet.paste(panel, boxes[-1][:2])
    return np.asarray(sheet, dtype=np.float32), boxes


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(("paper", "ink"), [("white", "black"), ("black", "white")])
@pytest.mark.parametrize("height", [20, 33])
def test_strips_of_one_height_are_cut_to_the_pixel_and_their_height_is_told(
    above, paper, ink, height
):
    pictures = [smooth(k) for k in range(4)]
    panels = [captioned(p, height, paper=paper, ink=ink, above=above) for p in pictures]
    pixels, boxes = joined(panels, 2)
    found, told = cut_strips((2, 2), boxes, pixels)
    for box, picture in zip(found, pictures, strict=True):
        own = pixels[box.top : box.bottom, box.left : box.right]
        assert np.array_equal(own, np.asarray(picture, dtype=np.float32))
    where = "above" if above else "under"
    assert told == (f"strips of text {where} its panels, {height} px high",)


def test_a_row_may_have_one_text_for_all_of_its_pictures():
    pictures = [smooth(k) for k in range(4)]
    panels = [captioned(p, words=WORDS * (k % 2 == 0)) for k, p in enumerate(pictures)]
    pixels, boxes = joined(panels, 2)
    # A strip without words has been cut off as a bar before.
    boxes = [b._replace(height=192) if k % 2 else b for k, b in enumerate(boxes)]
    found, told = cut_strips((2, 2), boxes, pixels)
    assert [box.height for box in found] == [192] * 4
    assert told == ("strips of text under its panels, 24 px high",)


def test_paper_that_runs_into_gutters_of_its_colour_is_cut_off_with_them():
    pictures = [smooth(k) for k in range(3)]
    pixels, _ = joined([captioned(p, 32) for p in pictures], 1, colour="white")
    # Panels as they are cut where the gutter does not show: the strip begins the one below.
    boxes = [Box(0, 0, 256, 192), Box(0, 192, 256, 272), Box(0, 464, 256, 232)]
    boxes[2] = Box(0, 464, 256, len(pixels) - 464)
    boxes[1] = Box(0, 192, 256, 464 - 192)
    found, told = cut_strips((1, 1, 1), boxes, pixels)
    assert [(box.top, box.bottom) for box in found] == [(0, 192), (232, 424), (464, 656)]
    assert told == ("strips of text under its panels, 32 to 40 px high",)


def slide(seed):
    """A drawing with a head of its own."""
    page = Image.new("RGB", (256, 192), "white")
    ImageDraw.Draw(page).rectangle((40, 40, 200, 150), fill=(40 * seed, 80, 120))
    return page


@pytest.mark.parametrize(
    ("heights", "draw", "words"),
    [
        ((24, 30, 36, 20), smooth, WORDS),  # no rule in them
        ((24, 0, 24, 0), smooth, WORDS),  # two pictures in rows without any
        ((24,) * 4, slide, WORDS),
        ((24,) * 4, smooth, ""),
    ],
)
def test_what_is_irregular_drawn_or_without_words_is_left(heights, draw, words):
    pictures = [draw(k) for k in range(4)]
    size = 192 + max(heights)
    panels = [
        captioned(p.resize((256, size - high)), high, words if high else "")
        for p, high in zip(pictures, heights, strict=True)
    ]
    pixels, boxes = joined([panels[k] for k in (0, 2, 1, 3)], 2)
    assert cut_strips((2, 2), boxes, pixels) == (boxes, ())


def test_paper_is_known_by_its_blank_lines_where_letters_are_small():
    lines = np.full((15, 150, 3), 254, dtype=np.float32)
    lines[4:10] = np.where(np.arange(150)[:, None] % 2 > 0, 60.0, 254.0)
    picture = np.asarray(smooth(3, 150, 100), dtype=np.float32) * 0.3
    assert strip_depth(np.concatenate([lines, picture])) == 15
