"""Pictures on a layout: joined into a composite, split again, found in a composite of others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from PIL import Image

from iclora.errors import LayoutError
from iclora.sets.layout import Layout
from iclora.sets.seams import find_seams

__all__ = ["compose", "find_panels", "split"]


def compose(layout: Layout, panels: Sequence[Image.Image]) -> Image.Image:
    """Join RGB pictures into one canvas; each is resized once to fill its box, none cropped.

    Gaps between the boxes are white.
    Raises: LayoutError if a picture is missing or would be stretched by more than 25%.
    """
    layout.check_count(len(panels))
    canvas = Image.new("RGB", layout.size, "white")
    for number, (image, box) in enumerate(zip(panels, layout.boxes, strict=True), 1):
        canvas.paste(layout.fit_panel(number, image), (box.left, box.top))
    return canvas


def split(layout: Layout, composite: Image.Image) -> list[Image.Image]:
    """The panels of a composite of exactly this layout's size. Raises: LayoutError."""
    if composite.size != layout.size:
        raise LayoutError(
            f"a composite of {composite.width}x{composite.height} px for a layout of "
            f"{layout.width}x{layout.height} px",
            "Find its panels first: find_panels(layout, composite).",
        )
    return [composite.crop(box.corners) for box in layout.boxes]


def find_panels(layout: Layout, composite: Image.Image) -> tuple[Layout, int]:
    """Find a layout's panels in a composite that somebody else joined, of any size.

    Rows of panels: each seam is searched around its place in the layout, as the line across the
    canvas at which the picture changes at once. If nothing changes there, the expected place
    stands. Free boxes are scaled. All pixels belong to a panel; the boxes need no grid.

    Returns: the layout found, and how many of its seams do not show.
    Raises: LayoutError if the composite is too small to hold the panels.
    """
    width, height = composite.size
    if min(width, height) < 8 * layout.panels:
        raise LayoutError(
            f"a composite of {width}x{height} px is too small to hold {layout.panels} panels",
            "Use the full-sized picture.",
        )
    if not layout.per_row:
        return _scaled(layout, width, height), 0
    pixels = np.asarray(composite, dtype=np.float32)
    ends = list(accumulate(layout.per_row))
    bottoms = [layout.boxes[end - 1].bottom / layout.height for end in ends]
    ys, missed = find_seams(pixels, bottoms)
    widths = []
    for (top, bottom), (start, end) in zip(pairwise([0, *ys]), pairwise([0, *ends]), strict=True):
        rights = [box.right / layout.width for box in layout.boxes[start:end]]
        xs, unseen = find_seams(pixels[top:bottom].transpose(1, 0, 2), rights)
        missed += unseen
        widths.append([b - a for a, b in pairwise([0, *xs])])
    return Layout.stacked([b - a for a, b in pairwise([0, *ys])], widths), missed


def _scaled(layout: Layout, width: int, height: int) -> Layout:
    """Free boxes on a canvas of another size, edges rounded to whole px."""
    across, down = width / layout.width, height / layout.height
    boxes = []
    for box in layout.boxes:
        left, top = round(box.left * across), round(box.top * down)
        right, bottom = round(box.right * across), round(box.bottom * down)
        boxes.append((left, top, right - left, bottom - top))
    return Layout.free(boxes, width, height)
