"""Cuts of a sheet judged as a whole: what others show tells an end, and what fits none is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from iclora.sets.layout import Box
from iclora.sets.regular import are_bars, hidden_bars, judge_cuts
from tests.sets.test_bars import on_bars, smooth

BLACK = [np.zeros(3, dtype=np.float32)]


def sheet(per_row=2, count=4, gutter=10, border=6, dark=None):
    """Pixels of pictures on black, and their boxes; a dark one ends in black at its left."""
    pictures = [np.asarray(smooth(k, 120, 90)).copy() for k in range(count)]
    if dark is not None:
        pictures[dark][:, :8] = 0
    canvas, boxes = on_bars(
        [Image.fromarray(p) for p in pictures], per_row, gutter, border, "black"
    )
    return np.asarray(canvas, dtype=np.float32), [Box(*box) for box in boxes]


def shifted(box, left=0, right=0):
    return Box(box.left + left, box.top, box.width - left - right, box.height)


def test_an_end_in_the_colour_of_its_bar_is_told_by_the_other_pictures():
    pixels, boxes = sheet(dark=3)
    found = [*boxes[:3], shifted(boxes[3], left=8)]  # as it looks by itself
    judged, doubts = judge_cuts((2, 2), found, pixels, BLACK)
    assert judged == boxes
    assert doubts == []


def test_a_bar_that_one_picture_kept_is_cut_off_as_beside_the_others():
    pixels, boxes = sheet()
    found = [*boxes[:3], shifted(boxes[3], left=-7)]
    assert judge_cuts((2, 2), found, pixels, BLACK) == (boxes, [])


@pytest.mark.parametrize(("widths", "named"), [((120, 124, 120), True), ((120, 150, 90), False)])
def test_pictures_that_are_nearly_of_one_size_are_named_and_uneven_ones_are_not(widths, named):
    pixels = np.zeros((90, sum(widths) + 20, 3), dtype=np.float32)
    boxes, left = [], 0
    for seed, width in enumerate(widths):
        boxes.append(Box(left, 0, width, 90))
        pixels[:, left : left + width] = smooth(seed, width, 90)
        left += width + 10
    judged, doubts = judge_cuts((3,), boxes, pixels, BLACK)
    assert judged == boxes
    assert doubts == ["its pictures are 120 to 124 px wide"] * named


def test_pictures_of_one_px_more_or_less_are_no_doubt():
    pixels, boxes = sheet()
    found = [boxes[0], shifted(boxes[1], right=1), *boxes[2:]]
    assert judge_cuts((2, 2), found, pixels, BLACK)[1] == []


def test_drawings_have_bars_only_where_they_are_even_and_lie_regularly():
    pixels, boxes = sheet()
    assert are_bars((2, 2), boxes, pixels)
    rng = np.random.default_rng(0)
    gutter = pixels[:, boxes[0].right : boxes[1].left]
    gutter[:] = rng.integers(0, 255, gutter.shape)
    assert not are_bars((2, 2), boxes, pixels)


@pytest.mark.parametrize("width", [0, 2])
def test_a_thin_bar_between_pictures_that_touch_is_named_and_a_plain_seam_is_not(width):
    pixels, _ = sheet(per_row=1, count=2, gutter=width, border=0)
    high = len(pixels) // 2
    boxes = [Box(0, 0, 120, high), Box(0, high, 120, len(pixels) - high)]
    told = hidden_bars((1, 1), boxes, pixels)
    assert len(told) == (width > 0)
    assert all("between rows 1 and 2" in each for each in told)
