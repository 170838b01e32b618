"""Strips of text above or below the pictures of a sheet, cut off where they are regular.

One strip may be part of a picture: a sign, the head of a slide. Strips of one height and one paper
at the same side of all pictures are captions that somebody laid there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from iclora.sets.edges import Pixels, is_drawn, largest, sampled
from iclora.sets.layout import Box
from iclora.sets.leftovers import strip_depth

__all__ = ["cut_strips"]

_NEAR = 32.0
"""Difference from a paper's colour that compression makes of it, in 256 levels."""
_PAPER = 0.35
"""Share of a line that paper takes between letters, at least."""


class _Foot(NamedTuple):
    """What lies at one side of a picture."""

    depth: int
    """px of its strip, what was cut off already with it; 0 for none."""
    worded: bool
    """True if there is text in it."""


def cut_strips(
    per_row: Sequence[int], boxes: Sequence[Box], pixels: Pixels
) -> tuple[list[Box], tuple[str, ...]]:
    """The boxes without strips of text, and what was cut off, in words.

    Each row has to have a text at that side; beside it a strip may be empty.

    Args:
        boxes: of the pictures in px of the sheet, without the bars around them.
        pixels: (height, width, 3), of the whole sheet.
    """
    ends = [0, *accumulate(per_row)]
    rows: list[Row] = [list(boxes[a:b]) for a, b in pairwise(ends)]
    told = []
    turned = [_turned(row, len(pixels)) for row in _handed_up(rows, pixels)]
    if depths := _shared(turned, pixels[::-1]):
        rows = [_turned(row, len(pixels)) for row in _without(turned, depths)]
        told.append(f"strips of text under its panels, {_range(depths)} px high")
    if depths := _shared(rows, pixels):
        rows = _without(rows, depths)
        told.append(f"strips of text above its panels, {_range(depths)} px high")
    return [box for row in rows for box in row], tuple(told)


Row = Sequence[Box]


def _range(depths: Sequence[int]) -> str:
    low, high = min(depths), max(depths)
    return str(low) if low == high else f"{low} to {high}"


def _turned(row: Row, height: int) -> list[Box]:
    return [Box(box.left, height - box.bottom, box.width, box.height) for box in row]


def _part(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.top : box.bottom, box.left : box.right]


def _handed_up(rows: Sequence[Row], pixels: Pixels) -> list[Row]:
    """The rows, strips given to the row above that were found at the top of the one below.

    A paper that runs from a strip into a gutter of its colour shows no end there.
    """
    if not all(strip_depth(_part(pixels, box)[::-1]) for box in rows[-1]):
        return list(rows)
    handed = list(rows)
    for number, (above, below) in enumerate(pairwise(rows)):
        if len({box.bottom for box in above} | {box.top for box in below}) > 1:
            continue
        depth = min(strip_depth(_part(pixels, box)) for box in below)
        if depth and not any(strip_depth(_part(pixels, box)[::-1]) for box in above):
            handed[number] = [b._replace(height=b.height + depth) for b in handed[number]]
            handed[number + 1] = [
                Box(b.left, b.top + depth, b.width, b.height - depth) for b in below
            ]
    return handed


def _without(rows: Sequence[Row], depths: Sequence[int]) -> list[Row]:
    cut: list[Row] = []
    for row, depth in zip(rows, depths, strict=True):
        first = min(box.top for box in row) + depth
        cut.append([Box(b.left, first, b.width, b.bottom - first) for b in row])
    return cut


def _shared(rows: Sequence[Row], pixels: Pixels) -> list[int]:
    """Depth in px of the strips with which each row begins; nothing if there is no rule in them."""
    found: Counter[int] = Counter()
    own: list[Counter[int]] = []
    for row in rows:
        first = min(box.top for box in row)
        feet = [_foot(_part(pixels, _from(b, first)), b.top - first) for b in row]
        worded = Counter(foot.depth for foot in feet if foot.worded)
        if not worded or not all(foot.depth for foot in feet):
            return []
        found += worded
        own.append(worded)
    # Of the page's own paper they reach as far as the next picture does, one farther than another.
    depths = [each.most_common(1)[0][0] for each in own]
    ends = [max(box.bottom for box in row) - min(box.top for box in row) for row in rows]
    sizes = {end - depth for end, depth in zip(ends, depths, strict=True)}
    if len(rows) == 1 or len(sizes) > 1:
        depth, votes = found.most_common(1)[0]
        if votes < 2 or 2 * votes < sum(map(len, rows)):
            return []
        depths = [depth] * len(rows)
    return depths if _hold(rows, depths, pixels) else []


def _from(box: Box, first: int) -> Box:
    return Box(box.left, first, box.width, box.bottom - first)


def _foot(panel: Pixels, cut: int) -> _Foot:
    if cut > 0:  # paper without a word, which was taken for a bar
        return _Foot(cut, False)
    depth = strip_depth(panel)
    return _Foot(depth, depth > 0)


def _hold(rows: Sequence[Row], depths: Sequence[int], pixels: Pixels) -> bool:
    """True if all lines of the strips are paper but for letters, above pictures that are photos.

    Slides and other drawings have heads of their own.
    """
    drawn = []
    for row, depth in zip(rows, depths, strict=True):
        first = min(box.top for box in row)
        for box in row:
            panel = _part(pixels, _from(box, first))
            if not _is_paper(panel[:depth]):
                return False
            drawn.append(is_drawn(panel[depth:]))
    return 2 * sum(drawn) < len(drawn)


def _is_paper(lines: Pixels) -> bool:
    """True if all lines are of one colour but for letters; compression blends the last ones."""
    lines = sampled(lines)
    paper = np.median(lines.reshape(-1, 3), axis=0)
    near = (largest(np.abs(lines - paper)) < _NEAR).mean(axis=1)
    return bool((near[1:-2] >= _PAPER).all() and (near > 0.9).mean() > 0.2)
