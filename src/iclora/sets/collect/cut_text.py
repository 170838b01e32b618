"""Text that an edge of a picture cuts: a line of letters that runs out of it, or is sliced along.

Only text on a ground of nearly one colour is found (pages, slides, posters, captions); letters over
a photograph are not told from its other shapes, so that no photograph is accused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["cut_text"]

_SIDE = 1024
"""Longer side of the picture that is looked at, px."""
_GROUND = 10
"""Difference from the ground, in 256 levels, of pixels that belong to it."""
_GROUNDS = 0.5
"""Share of the pixels around a line of text that are ground."""
_INK = 48
"""Difference from the ground of a letter's strokes."""
_DEEPEST = 0.14
"""Height of a line of text at most, as a share of the picture's side."""
_LOWEST = 6
"""Height of a line of text at least, px; of a sliced one half of it."""
_LETTERS = 6
"""Letters, or groups that touch, of which a line consists at least."""
_VARIED = 0.15
"""Deviation of the widths of letters, as a share of their mean; of stripes it is less."""
_FILLED = (0.08, 0.62)
"""Share of a line's area that is ink."""

Grey = NDArray[np.uint8]
Ink = NDArray[np.bool_]


def cut_text(picture: Image.Image) -> tuple[str, ...]:
    """Sides at which text is cut: "left", "top", "right", "bottom".

    Args:
        picture: RGB.
    """
    small = picture.convert("L")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small)
    if min(grey.shape) < 4 * _LOWEST:
        return ()
    found = {
        "left": _runs_out(grey),
        "top": _is_sliced(grey),
        "right": _runs_out(grey[:, ::-1]),
        "bottom": _is_sliced(grey[::-1]),
    }
    return tuple(side for side, cut in found.items() if cut)


def _is_sliced(grey: Grey) -> bool:
    """True if the first row goes through a line of text."""
    deep = max(2 * _LOWEST, int(_DEEPEST * len(grey)))
    for start, end in _windows(grey.shape[1]):
        ink = _ink(grey[:deep, start:end])
        if ink is None or len(_runs(ink[0])) < _LETTERS // 2:
            continue
        blank: Any = ~ink.any(axis=1)
        depth = int(np.argmax(blank)) if blank.any() else 0
        rest = blank[depth : depth + max(2, depth // 5)]
        if depth < _LOWEST // 2 or not rest.all():
            continue
        line = ink[:depth]
        letters = _runs(line.any(axis=0))
        touching = sum(bool(line[0, a:b].any()) for a, b in letters)
        if touching >= max(_LETTERS // 2, 0.3 * len(letters)) and _is_text(line, letters):
            return True
    return False


def _runs_out(grey: Grey) -> bool:
    """True if a line of text begins at the first column, which cuts or touches its first letter."""
    height, width = grey.shape
    for start, end in _windows(height):
        ink = _ink(grey[start:end, : max(width // 2, min(width, 12 * _LOWEST))])
        if ink is None:
            continue
        for top, bottom in _runs(ink.any(axis=1)):
            tall = bottom - top
            # A line at the window's own end may go on behind it.
            whole = (top > 1 or start == 0) and (bottom < len(ink) - 1 or end == height)
            if not (whole and _LOWEST <= tall <= _DEEPEST * height):
                continue
            line = ink[top:bottom, : 16 * tall]
            if not line[:, 0].any():
                continue
            letters = _runs(line.any(axis=0))
            gaps = [b[0] - a[1] for a, b in pairwise(letters)]
            first = letters[: next((i + 1 for i, gap in enumerate(gaps) if gap > 1.5 * tall), None)]
            # A wide thing at the edge is a box that hides the line's end.
            if letters[0][1] <= 2 * tall and _is_text(line[:, : first[-1][1]], first, tall):
                return True
    return False


def _is_text(line: Ink, letters: list[tuple[int, int]], tall: int | None = None) -> bool:
    """True if what stands in a line is of many parts, none too wide, of unequal widths."""
    widths = np.array([b - a for a, b in letters])
    if len(letters) < _LETTERS or not _FILLED[0] <= line.mean() <= _FILLED[1]:
        return False
    if tall is not None and np.median(widths) > 1.3 * tall:
        return False
    return bool(widths.std() > _VARIED * widths.mean())


def _ink(grey: Grey) -> Ink | None:
    """What is drawn on a ground of one colour, all darker or all brighter; None without one."""
    # Of 256 levels, counting tells the median and the ground's share at once.
    counts = np.bincount(grey.ravel(), minlength=256)
    below = np.cumsum(counts)
    half = (grey.size + 1) // 2
    ground = int(np.searchsorted(below, half))
    if counts[max(0, ground - _GROUND) : ground + _GROUND + 1].sum() < _GROUNDS * grey.size:
        return None
    dark, bright = grey <= ground - _INK, grey >= ground + _INK
    more, less = (dark, bright) if dark.sum() >= bright.sum() else (bright, dark)
    # Letters are of one colour; what has both is a picture.
    return more if less.sum() <= 0.1 * more.sum() else None


def _windows(length: int) -> Iterator[tuple[int, int]]:
    """The whole length, then halves and quarters that overlap: text may stand in a part alone."""
    for parts in (1, 2, 4):
        span = length // parts
        for start in range(0, length - span + 1, max(1, span // 2)):
            yield start, start + span


def _runs(line: Any) -> list[tuple[int, int]]:
    """First and behind the last of each stretch of True in (n,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
