"""Frames: thin lines of one colour that run around a whole picture, alike on its four sides."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from iclora.sets.edges import Edges, Pixels, ground, largest, sampled

__all__ = ["agreed_frames", "find_frame", "lines_of"]

_WIDEST = 6
"""px; a wider one is a border, which is found by itself."""
_NEAR = 24.0
"""Difference from a line's colour that compression makes of it."""
_ALIKE = 40.0
"""Difference between the colours of a frame's sides."""


def find_frame(pixels: Pixels) -> Edges:
    """Find the thin line around a picture; no edges if it does not run along all four sides.

    A picture's own lines do not: so also one of a single px is certain.
    """
    if min(pixels.shape[:2]) < 4 * _WIDEST:
        return Edges()
    across = pixels.transpose(1, 0, 2)
    sides = []
    for each in (across, pixels, across[::-1], pixels[::-1]):
        sides.append(_line(each))
        if not sides[-1][0]:  # as of most pictures
            return Edges()
    widths = [width for width, _ in sides]
    if max(widths) - min(widths) > 1:
        return Edges()
    # One colour, or one that runs to another, but not at the corners.
    left, top, right, bottom = (colours for _, colours in sides)
    meeting = ((left[0], top[0]), (top[1], right[0]), (left[1], bottom[0]), (bottom[1], right[1]))
    off = max(float(np.abs(one - other).max()) for one, other in meeting)
    return Edges(*widths) if off < _ALIKE else Edges()


def _line(pixels: Pixels) -> tuple[int, NDArray[np.float32]]:
    """Width in px of the line along the first one of pixels, or 0; its colours at both ends."""
    lines = sampled(pixels[: _WIDEST + 3])
    colour = np.median(lines[0], axis=0)[None]
    if (np.abs(lines[0] - colour).max(axis=1) < _NEAR).mean() < 0.8:
        colour = ground(lines[:1])
    ends = colour[[0, -1]]
    away = largest(np.abs(lines - colour))
    near = (away < _NEAR).mean(axis=1)
    width = int(np.argmin(near >= 0.8)) if (near < 0.8).any() else len(near)
    if not 1 <= width <= _WIDEST:
        return 0, ends
    # The line behind it may be blended with it.
    if near[width : width + 2].min() > 0.4:
        return 0, ends
    off = away.mean(axis=1)
    return width + bool(off[width] < 0.6 * off[width + 1]), ends


def agreed_frames(found: Sequence[Edges]) -> list[Edges]:
    """Frames of the panels of one sheet: alike, where at least half of the panels show one."""
    shown = [each for each in found if any(each)]
    if not shown or 2 * len(shown) < len(found):
        return list(found)
    usual = Edges(*(median_low(widths) for widths in zip(*shown, strict=True)))
    return [each if any(each) else usual for each in found]


def lines_of(pixels: Pixels, frame: Edges, colours: Sequence[Pixels]) -> Edges:
    """Those sides of a frame that other panels have at which this picture has a line too."""
    across = pixels.transpose(1, 0, 2)
    widths = []
    sides = (across, pixels, across[::-1], pixels[::-1])
    for lines, width in zip(sides, frame, strict=True):
        near = sampled(lines[: width + 3])
        off = [np.abs(near - colour).mean(axis=(1, 2)) for colour in colours]
        widths.append(width if width and any(o[0] < 0.5 * o[-1] for o in off) else 0)
    return Edges(*widths)
