"""Seams in composites somebody else joined."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from iclora.errors import LayoutError
from iclora.sets.canvas import find_panels
from iclora.sets.layout import Layout
from iclora.sets.seams import _median
from tests.conftest import picture


def joined(heights, width=400, vertical=False):
    """Pictures of these heights, stacked with no regard to any grid."""
    panels = [picture(width, h, seed=i + 3) for i, h in enumerate(heights)]
    canvas = Image.new("RGB", (width, sum(heights)))
    for panel, top in zip(panels, np.cumsum([0, *heights]), strict=False):
        canvas.paste(panel, (0, int(top)))
    return canvas.transpose(Image.Transpose.TRANSPOSE) if vertical else canvas


@pytest.mark.parametrize("heights", [(200, 200, 200), (190, 214, 196), (220, 185, 195)])
def test_seams_are_found_to_the_pixel_in_unequal_stacks(heights):
    found = find_panels(Layout.rows(3, 1024, 1536), joined(heights))
    assert (found.unseen, found.bars) == (0, 0)
    assert tuple(box.height for box in found.layout.boxes) == heights


def test_seams_are_found_between_columns_and_in_a_2x2():
    layout = find_panels(Layout.columns(2, 1024, 512), joined((190, 210), vertical=True)).layout
    assert [box.width for box in layout.boxes] == [190, 210]
    true = [(0, 0, 180, 210), (180, 0, 220, 210), (0, 210, 215, 190), (215, 210, 185, 190)]
    composite = Image.new("RGB", (400, 400))
    for i, (left, top, width, height) in enumerate(true):
        composite.paste(picture(width, height, seed=i + 20), (left, top))
    found = find_panels(Layout.of_rows((2, 2), 1024, 1024), composite)
    assert found.unseen == 0
    assert list(found.layout.boxes) == true


def test_where_no_seam_shows_the_expected_place_stands():
    found = find_panels(Layout.rows(3, 1024, 1536), Image.new("RGB", (300, 301), "gray"))
    assert found.unseen == 2
    assert [box.height for box in found.layout.boxes] == [100, 101, 100]


def test_a_jpeg_seam_is_found_within_two_pixels(tmp_path):
    joined((190, 214, 196)).save(tmp_path / "c.jpg", quality=85)
    image = Image.open(tmp_path / "c.jpg").convert("RGB")
    layout = find_panels(Layout.rows(3, 1024, 1536), image).layout
    assert [b.bottom for b in layout.boxes] == pytest.approx([190, 404, 600], abs=2)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (400, 20)])
def test_a_composite_too_small_to_split_is_refused(size):
    with pytest.raises(LayoutError, match="too small"):
        find_panels(Layout.rows(3, 1024, 1536), Image.new("RGB", size))


def test_the_median_of_eight_is_numpys():
    numbers = np.random.default_rng(0).integers(0, 9, (8, 5000)).astype(np.float32)
    assert np.array_equal(_median(list(numbers)), np.median(numbers, axis=0))
