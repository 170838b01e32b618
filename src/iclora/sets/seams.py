"""Seams: the lines between pictures in a composite that somebody else joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iclora.sets.edges import is_drawn

__all__ = ["Seams", "exact_seams", "find_seams", "shows"]

_BLANK = 4.0
"""Change between the lines of a ground of one colour, in 256 levels."""

_CLEAR, _CLEAR_DRAWN = 0.7, 0.8
"""Share of a line that has to break, for a seam off its usual place to be certain."""

_SORTING = (
    *((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6)),
    *((0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6)),
)
"""Batcher's network for 8: pairs that are put in order, one after the other."""


def exact_seams(pixels: NDArray[np.float32], ends: Sequence[float]) -> list[int] | None:
    """The ends of stacked panels, in px, if each shows just where it is expected; else None.

    Args:
        pixels, ends: as of `find_seams`.
    """
    found = []
    for end in ends[:-1]:
        exact = end * len(pixels)
        places = sorted({math.floor(exact + 1e-6), math.ceil(exact - 1e-6)})
        shown = [place for place in places if shows(pixels, place)]
        if not shown:
            return None
        found.append(shown[0])
    return [*found, len(pixels)]


class Seams(NamedTuple):
    """The ends of stacked panels."""

    ends: list[int]
    """In px, the last one the canvas's."""
    missed: int
    """Seams that do not show, so that their usual place stands."""
    guessed: int
    """Seams off their usual place at lines that are not clear enough to be certain."""


def find_seams(pixels: NDArray[np.float32], ends: Sequence[float]) -> Seams:
    """Find the ends of stacked panels.

    Args:
        pixels: (height, width, 3).
        ends: expected ends as fractions of the height, the last one 1.
    """
    height, drawn = pixels.shape[0], is_drawn(pixels)
    # Some 500 samples across the canvas judge a line as well as all of them do.
    pixels = pixels[:, :: max(1, pixels.shape[1] // 500)]
    change = np.abs(np.diff(pixels, axis=0)).mean(axis=2)
    # The change of each column near a line but not on it: texture and soft edges change over
    # several lines, a seam in one (JPEG may smear it over two, so the nearest are left out).
    around = _median([np.roll(change, k, axis=0) for k in (-6, -5, -4, -3, 3, 4, 5, 6)])
    broken = (change > 2 * around + 6).mean(axis=1)
    score = change.mean(axis=1) * broken
    seams: list[int] = []
    missed = guessed = 0
    for start, end, following in zip([0.0, *ends], ends[:-1], ends[1:], strict=False):
        expected = round(end * height)
        reach = max(1, int(min(end - start, following - end) * height * 0.25))
        low = max(expected - reach, (seams[-1] if seams else 0) + 1)
        window = range(low, min(expected + reach, height - 1) + 1)
        # A mild pull towards the expected place decides between near equals.
        pulled = [score[y - 1] * math.exp(-(((y - expected) / (2 * reach)) ** 2)) for y in window]
        best = int(np.argmax(pulled))
        place = window[best]
        clear = float(broken[place - 1])
        # A fifth of the line must break, or it is part of a picture. Where a ground of one colour
        # runs through the usual place, the seam may lie in it, and must break far more elsewhere.
        blank = change[expected - 2 : expected + 1].max(initial=0.0) < _BLANK
        found = clear >= (0.5 if blank else 0.2)
        # Pictures have lines of their own, drawings such that run all through them.
        certain = abs(place - end * height) <= 1 or clear >= (_CLEAR_DRAWN if drawn else _CLEAR)
        found = found and (certain or not drawn)
        seams.append(place if found else expected)
        missed += not found
        guessed += found and not certain
    return Seams([*seams, height], missed, guessed)


def _median(eight: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Of 8 arrays number by number; NumPy's own would take most of the time of finding seams."""
    for a, b in _SORTING:
        eight[a], eight[b] = np.minimum(eight[a], eight[b]), np.maximum(eight[a], eight[b])
    found: NDArray[np.float32] = (eight[3] + eight[4]) * np.float32(0.5)
    return found


def shows(pixels: NDArray[np.float32], end: int) -> bool:
    """True if the picture changes at once at a line.

    Args:
        pixels: (height, width, 3).
        end: the first line behind the seam.
    """
    near = pixels[max(0, end - 8) : end + 8, :: max(1, pixels.shape[1] // 500)]
    change = np.abs(np.diff(near, axis=0)).mean(axis=2)
    at = min(end, 8) - 1
    around = np.median(np.delete(change, slice(max(0, at - 2), at + 3), axis=0), axis=0)
    return bool((change[at] > 2 * around + 6).mean() >= 0.2)
