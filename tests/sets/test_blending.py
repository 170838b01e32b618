"""Lines that scaling has made of bar and picture, on sheets whose shares are known."""

import numpy as np
import pytest

from iclora.sets.blending import without_blended
from iclora.sets.layout import Box


def sheet(share, bar=250.0, flat=False):
    """Two pictures of 60x40 px between bars of 6 px; their first lines hold a share of the bar."""
    rng = np.random.default_rng(3)
    pixels = np.full((52, 138, 3), bar, dtype=np.float32)
    boxes = [Box(6, 6, 60, 40), Box(72, 6, 60, 40)]
    for box in boxes:
        grain = rng.uniform(0, 220, (42, 62, 3))
        rough = (grain[:-2, :-2] + grain[1:-1, 1:-1] + grain[2:, 2:]) / 3
        part = pixels[box.top : box.bottom, box.left : box.right]
        part[:] = 90 if flat else rough
        part[0] = share * bar + (1 - share) * part[0]
    return pixels, boxes


@pytest.mark.parametrize(("share", "cut"), [(0.0, 0), (0.1, 0), (0.4, 1), (0.8, 1)])
def test_a_line_that_holds_much_of_the_bar_is_cut_off_all_pictures_of_its_row(share, cut):
    pixels, boxes = sheet(share)
    wanted = [Box(b.left, b.top + cut, b.width, b.height - cut) for b in boxes]
    assert without_blended((2,), boxes, pixels) == wanted
    turned = [Box(b.top, b.left, b.height, b.width) for b in boxes]
    found = without_blended((1, 1), turned, pixels.transpose(1, 0, 2))
    assert found == [Box(b.top, b.left, b.height, b.width) for b in wanted]


def test_drawings_and_bars_of_the_picture_s_brightness_are_left():
    pixels, boxes = sheet(0.4, flat=True)
    assert without_blended((2,), boxes, pixels) == boxes
    pixels, boxes = sheet(0.4, bar=110.0)
    pixels[6:46, 6:66] = pixels[6:46, 72:132] = np.tile([[[105.0]], [[115.0]]], (20, 60, 3))
    assert without_blended((2,), boxes, pixels) == boxes
