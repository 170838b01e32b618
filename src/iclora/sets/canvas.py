"""Pictures on a layout: joined into a composite, split again, found in a composite of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.errors import LayoutError
from iclora.sets.bars import Edges, find_edges, find_gutter
from iclora.sets.layout import Layout
from iclora.sets.seams import find_seams, shows

__all__ = ["Panels", "compose", "find_panels", "is_likely", "split"]


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


@dataclass(frozen=True)
class Panels:
    """The panels found in a composite."""

    layout: Layout
    unseen: int = 0
    """Seams that do not show, so that their usual place stands."""
    bars: int = 0
    """Width of the widest bar that was cut off around and between the panels, px."""


def find_panels(layout: Layout, composite: Image.Image) -> Panels:
    """Find a layout's panels in a composite that somebody else joined, of any size.

    Rows of panels: each seam is searched around its place in the layout, as a gutter of one
    colour, or else as the line across the canvas at which the picture changes at once. If nothing
    changes there, the expected place stands. A border, gutters and the bars around single panels
    are left out; all other pixels belong to a panel. Free boxes are scaled. The boxes need no grid.

    Raises: LayoutError if the composite is too small to hold the panels.
    """
    width, height = composite.size
    if min(width, height) < 8 * layout.panels:
        raise LayoutError(
            f"a composite of {width}x{height} px is too small to hold {layout.panels} panels",
            "Use the full-sized picture.",
        )
    if not layout.per_row:
        return Panels(_scaled(layout, width, height))
    pixels = np.asarray(composite, dtype=np.float32)
    border = find_edges(pixels)
    bars = max(border)
    inner = pixels[border.top : height - border.bottom, border.left : width - border.right]
    if min(inner.shape[:2]) < 8 * layout.panels:
        border, inner, bars = Edges(), pixels, 0
    ends = list(accumulate(layout.per_row))
    bottoms = [layout.boxes[end - 1].bottom / layout.height for end in ends]
    rows, unseen = _cut(inner, bottoms)
    boxes: list[list[tuple[int, int, int, int]]] = []
    columns_of: list[list[tuple[int, int]]] = []
    for (top, bottom), (start, end) in zip(rows, pairwise([0, *ends]), strict=True):
        rights = [box.right / layout.width for box in layout.boxes[start:end]]
        columns, missed = _cut(inner[top:bottom].transpose(1, 0, 2), rights)
        unseen += missed
        columns_of.append(columns)
        boxes.append([(left, top, right - left, bottom - top) for left, right in columns])
    flat = [box for row in boxes for box in row]
    trimmed = [_trim(inner, *box) for box in flat]
    bars = max([bars, _widest(rows), *map(_widest, columns_of), *(t.bars for t in trimmed)])
    if not bars:
        widths = [[w for _, _, w, _ in row] for row in boxes]
        return Panels(Layout.stacked([b - a for a, b in rows], widths), unseen)
    found = [(t.left + border.left, t.top + border.top, t.width, t.height) for t in trimmed]
    return Panels(Layout.free(found, width, height), unseen, bars)


def _cut(pixels: NDArray[np.float32], ends: Sequence[float]) -> tuple[list[tuple[int, int]], int]:
    """The first line of each of stacked panels and the one behind its last; seams that are unseen.

    Args:
        ends: expected ends as fractions of the height, the last one 1.
    """
    length = len(pixels)
    gutters: dict[int, tuple[int, int]] = {}
    for again in (False, True):
        usual = max((b - a for a, b in gutters.values()), default=None)
        for number, (before, end, after) in enumerate(
            zip([0.0, *ends], ends[:-1], ends[1:], strict=False)
        ):
            reach = max(2, int(min(end - before, after - end) * length * 0.25))
            middle = round(end * length)
            if number not in gutters and (usual or not again):
                found = find_gutter(pixels, middle - reach, middle + reach, usual)
                if found:
                    gutters[number] = found
    if len(gutters) == len(ends) - 1:
        seams, missed = [*(gutters[number][0] for number in sorted(gutters)), length], 0
    else:
        seams, missed = find_seams(pixels, ends)
    starts = [0, *seams[:-1]]
    for number, (first, behind) in gutters.items():
        seams[number], starts[number + 1] = first, behind
    return list(zip(starts, seams, strict=True)), missed


def _widest(spans: Sequence[tuple[int, int]]) -> int:
    """The widest gap between neighbours, px."""
    return max((b - a for (_, a), (b, _) in pairwise(spans)), default=0)


class _Trimmed(NamedTuple):
    left: int
    top: int
    width: int
    height: int
    bars: int


def _trim(pixels: NDArray[np.float32], left: int, top: int, width: int, height: int) -> _Trimmed:
    """A panel's box without the bars around its own picture."""
    own = find_edges(pixels[top : top + height, left : left + width])
    wide, high = width - own.left - own.right, height - own.top - own.bottom
    return _Trimmed(left + own.left, top + own.top, wide, high, max(own))


def is_likely(layout: Layout, composite: Image.Image, usual: Layout) -> bool:
    """False if a recorded layout cuts a composite elsewhere than its pictures end.

    It is believed where its seams show, and where no seam shows anywhere.
    """
    if not layout.per_row:
        return True
    inner = [box for box in layout.boxes if box.bottom < layout.height]
    if not inner:
        lines = np.asarray(composite, dtype=np.float32).transpose(1, 0, 2)
        ends = {box.right for box in layout.boxes if box.right < layout.width}
    else:
        lines = np.asarray(composite, dtype=np.float32)
        ends = {box.bottom for box in inner}
    if all(shows(lines, end) for end in ends):
        return True
    found = find_panels(usual, composite)
    return found.unseen > 0 or found.bars > 0


def _scaled(layout: Layout, width: int, height: int) -> Layout:
    """Free boxes on a canvas of another size, edges rounded to whole px."""
    across, down = width / layout.width, height / layout.height
    boxes = []
    for box in layout.boxes:
        left, top = round(box.left * across), round(box.top * down)
        right, bottom = round(box.right * across), round(box.bottom * down)
        boxes.append((left, top, right - left, bottom - top))
    return Layout.free(boxes, width, height)
