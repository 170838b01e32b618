"""Pictures on a layout: joined into a composite, split again, found in a composite of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from PIL import Image

from iclora.errors import LayoutError
from iclora.sets.bars import find_edges, is_page_colour, pairs_of
from iclora.sets.blending import without_blended
from iclora.sets.cutting import cut_apart, even_ends
from iclora.sets.edges import Edges, Pixels, is_drawn
from iclora.sets.frames import agreed_frames, lines_of
from iclora.sets.layout import Box, Layout
from iclora.sets.leftovers import agreed_leftovers, blended_edges, find_bands, find_leftovers
from iclora.sets.regular import are_bars, hidden_bars, judge_cuts
from iclora.sets.seams import exact_seams, shows
from iclora.sets.strips import cut_strips

__all__ = ["Panels", "compose", "find_panels", "is_likely", "split"]

_FRAME = 8
"""Widest frame, px, that all panels of a sheet are taken to have if most show it."""
_ALIKE = 24
"""Mean difference, in 256 levels, of a bar that compression has blended from its colour."""
_GUESSED = (
    "{} of the borders between its panels lie off their usual places, or beside bands, that may be "
    "a picture's own"
)
_DRAWN = "bands of one colour at the ends of its drawings may be bars or their own, and are left"
_THIN = 2
"""px of a line that is cut off without being certain of it."""


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
    rest: tuple[tuple[str, ...], ...] = ()
    """What may be no picture at each panel's edges, in words."""
    doubts: tuple[str, ...] = ()
    """Why the cuts as a whole are not certain, in words."""
    strips: tuple[str, ...] = ()
    """Strips of text that were cut off besides, in words."""


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
    border = _border(layout, pixels)
    inner = border.within(pixels)
    if min(inner.shape[:2]) < 8 * layout.panels:
        border, inner = Edges(), pixels
    boxes, unseen, guessed, colours = _cut(layout, inner, _page_colours(pixels, border))
    trims, alone = _trims(inner, boxes, colours)
    found = [
        Box(
            border.left + box.left + trim.left,
            border.top + box.top + trim.top,
            box.width - trim.left - trim.right,
            box.height - trim.top - trim.bottom,
        )
        for box, trim in zip(boxes, trims, strict=True)
    ]
    doubts = [_GUESSED.format(guessed)] if guessed else []
    known = colours
    if not _fills(found, width, height):
        known = [*colours, *_frame_colours(inner, boxes, trims)]
        found, more = judge_cuts(layout.per_row, found, pixels, known)
        doubts += more
        if is_drawn(pixels) and not are_bars(layout.per_row, found, pixels):
            boxes, unseen, guessed, _ = _cut(layout, pixels, [], barred=False)
            doubts = [_GUESSED.format(guessed)] if guessed else []
            return Panels(_rows(layout, boxes), unseen, doubts=(*doubts, _DRAWN))
        found = without_blended(layout.per_row, found, pixels)
    bars = _widest(layout, found, width, height)
    found, strips = _without_strips(layout, found, pixels, known)
    whole = _fills(found, width, height)
    bands = [Edges()] * len(found) if whole else alone
    rest = agreed_leftovers(
        [
            find_leftovers(pixels[b.top : b.bottom, b.left : b.right], known, own)
            for b, own in zip(found, bands, strict=True)
        ]
    )
    doubts += hidden_bars(layout.per_row, found, pixels)
    if whole:
        return Panels(_rows(layout, found), unseen, rest=rest, doubts=tuple(doubts))
    free = Layout.free(found, width, height)
    return Panels(free, unseen, bars, rest, tuple(doubts), strips)


def _without_strips(
    layout: Layout, boxes: Sequence[Box], pixels: Pixels, known: Sequence[Pixels]
) -> tuple[list[Box], tuple[str, ...]]:
    """The boxes without strips of text and the thin lines between these and the pictures."""
    cut, strips = cut_strips(layout.per_row, boxes, pixels)
    if not strips:
        return list(boxes), ()
    found = []
    for box, before in zip(cut, boxes, strict=True):
        panel = pixels[box.top : box.bottom, box.left : box.right]
        thin = _with_thin(panel, Edges(), known)
        top = box.top + thin.top * (box.top > before.top)
        bottom = box.bottom - thin.bottom * (box.bottom < before.bottom)
        found.append(Box(box.left, top, box.width, bottom - top))
    return without_blended(layout.per_row, found, pixels), strips


def _rows(layout: Layout, boxes: Sequence[Box]) -> Layout:
    ends = [0, *accumulate(layout.per_row)]
    widths = [[box.width for box in boxes[a:b]] for a, b in pairwise(ends)]
    return Layout.stacked([boxes[start].height for start in ends[:-1]], widths)


def _border(layout: Layout, pixels: Pixels) -> Edges:
    """The border around a sheet; a band at one end alone may be a picture's floor."""
    found = find_edges(pixels)
    if not any(found):
        return found
    ends = [layout.boxes[end - 1].bottom / layout.height for end in accumulate(layout.per_row)]
    left, top, right, bottom = found
    if (not top or not bottom) and max(top, bottom):
        joined = len(ends) > 1 and exact_seams(pixels, even_ends(ends))
        if joined or not _is_bar_alone(pixels[:top] if top else pixels[-bottom:], pixels):
            top = bottom = 0
    if (not left or not right) and max(left, right):
        columns = pixels.transpose(1, 0, 2)
        rights = [box.right / layout.width for box in layout.boxes[: layout.per_row[0]]]
        joined = len(rights) > 1 and exact_seams(columns, even_ends(rights))
        band = columns[:left] if left else columns[-right:]
        if joined or not _is_bar_alone(band, pixels):
            left = right = 0
    return Edges(left, top, right, bottom)


def _is_bar_alone(
    band: Pixels, pixels: Pixels, colours: Sequence[Pixels] = (), certain: bool = True
) -> bool:
    """True if a band at one side of a picture is a bar, though none lies opposite it.

    Args:
        colours: of the sheet's other bars.
        certain: False to believe none but white and black without these.
    """
    colour = np.median(band.reshape(-1, 3), axis=0)
    if any(np.abs(colour - known).max() < 16 for known in colours):
        return True
    return not is_drawn(pixels) and (certain or is_page_colour(colour))


def _page_colours(pixels: Pixels, border: Edges) -> list[Pixels]:
    return [np.median(band.reshape(-1, 3), axis=0) for band in _bands(pixels, border) if band.size]


def _cut(
    layout: Layout, inner: Pixels, page: Sequence[Pixels], barred: bool = True
) -> tuple[list[Box], int, int, list[Pixels]]:
    """The boxes of the panels, the seams that are unseen and those guessed, the colours of bars."""
    ends = [0, *accumulate(layout.per_row)]
    bottoms = [layout.boxes[end - 1].bottom / layout.height for end in ends[1:]]
    ground = page[0] if page else None
    rows, unseen, guessed, colours = cut_apart(inner, bottoms, ground, barred)
    known = [*page, *colours]
    gaps = [below[0] - above[1] for above, below in pairwise(rows)]
    width = min(gaps, default=0) if np.ptp(gaps or [0]) <= 2 else 0
    strips, columns = [inner[top:bottom].transpose(1, 0, 2) for top, bottom in rows], []
    for strip, (start, end) in zip(strips, pairwise(ends), strict=True):
        rights = [box.right / layout.width for box in layout.boxes[start:end]]
        first = known[0] if known else None
        spans, missed, unsure, more = cut_apart(strip, rights, first, barred, width or None)
        unseen += missed
        guessed += unsure
        known += more
        columns.append(spans)
    columns = _as_in_other_rows(strips, columns, known)
    boxes = [
        Box(left, top, right - left, bottom - top)
        for (top, bottom), spans in zip(rows, columns, strict=True)
        for left, right in spans
    ]
    return boxes, unseen, guessed, known


Spans = list[tuple[int, int]]


def _as_in_other_rows(
    strips: Sequence[Pixels], columns: list[Spans], known: Sequence[Pixels]
) -> list[Spans]:
    """The columns of each row; where no bars were found, those of another row if they go on."""

    def gaps(spans: Spans) -> Spans:
        return [(a[1], b[0]) for a, b in pairwise(spans)]

    def goes_on(strip: Pixels, spans: Spans) -> bool:
        return all(
            min(np.abs(strip[a:b] - colour).mean() for colour in known) < _ALIKE
            for a, b in gaps(spans)
        )

    barred = [spans for spans in columns if len(spans) > 1 and all(b > a for a, b in gaps(spans))]
    found = []
    for strip, spans in zip(strips, columns, strict=True):
        like = [other for other in barred if len(other) == len(spans)]
        if spans not in barred and like and goes_on(strip, like[0]):
            spans = like[0]
        found.append(spans)
    return found


def _trims(
    inner: Pixels, boxes: Sequence[Box], colours: list[Pixels]
) -> tuple[list[Edges], list[Edges]]:
    """The bars around single panels, and their frames; bands that may be bars and are left."""
    own, left = [], []
    for box in boxes:
        panel = inner[box.top : box.bottom, box.left : box.right]
        found = find_edges(panel)
        pairs = pairs_of(panel, found)
        # A band that has none of its kind opposite may be the picture's own.
        alone = zip(found, pairs, _bands(panel, found), strict=True)
        own.append(
            Edges(
                *(
                    width if width == pair or _is_bar_alone(band, panel, colours, False) else 0
                    for width, pair, band in alone
                )
            )
        )
        rest = Edges(*(a - b for a, b in zip(found, own[-1], strict=True)))
        # A drawing has a floor.
        left.append(rest._replace(bottom=0) if any(rest) and is_drawn(panel) else rest)
    known = [*colours, *_frame_colours(inner, boxes, own)]
    frames = agreed_frames([each if max(each) <= _FRAME else Edges() for each in own])
    trims = []
    for box, each, frame in zip(boxes, own, frames, strict=True):
        panel = inner[box.top : box.bottom, box.left : box.right]
        if not any(each) and any(frame):
            each = lines_of(panel, frame, known)
        trims.append(_with_thin(panel, each, known))
    return trims, left


def _bands(pixels: Pixels, edges: Edges) -> list[Pixels]:
    """What lies at each of a picture's edges."""
    height, width = pixels.shape[:2]
    return [
        pixels[:, : edges.left],
        pixels[: edges.top],
        pixels[:, width - edges.right :],
        pixels[height - edges.bottom :],
    ]


def _frame_colours(inner: Pixels, boxes: Sequence[Box], trims: Sequence[Edges]) -> list[Pixels]:
    """Colours of the lines next to pictures, where something was cut off above them."""
    tops = [
        inner[box.top + trim.top - 1] for box, trim in zip(boxes, trims, strict=True) if trim.top
    ]
    return [np.median(line, axis=0) for line in tops]


def _with_thin(panel: Pixels, trim: Edges, colours: Sequence[Pixels]) -> Edges:
    """A panel's bars, and lines of one or two px that compression has left of them."""
    for _ in range(3):
        found = find_bands(trim.within(panel), colours)
        thin = Edges(*(d * (d <= _THIN) for d in found))
        blended = blended_edges(thin.plus(trim).within(panel), colours)
        if not any(thin) and not any(blended):
            break
        trim = trim.plus(thin).plus(blended)
    return trim


def _fills(boxes: Sequence[Box], width: int, height: int) -> bool:
    """True if panels leave nothing of a sheet out."""
    return sum(box.width * box.height for box in boxes) == width * height


def _widest(layout: Layout, boxes: Sequence[Box], width: int, height: int) -> int:
    """The widest gap between neighbours, or between a panel and the sheet's end, px."""
    ends = [0, *accumulate(layout.per_row)]
    rows = [boxes[a:b] for a, b in pairwise(ends)]
    down = [low[0].top - high[0].bottom for high, low in pairwise(rows)]
    across = [b.left - a.right for row in rows for a, b in pairwise(row)]
    sides = [w for row in rows for w in (row[0].left, width - row[-1].right)]
    tops = [b.top for b in rows[0]] + [height - b.bottom for b in rows[-1]]
    return max([*down, *across, *sides, *tops])


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
