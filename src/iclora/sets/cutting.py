"""Stacked pictures cut apart: at gutters of one colour, or at the lines where one picture ends.

A band of one colour between two pictures may also be the floor of the upper one. A gutter is
believed for what a whole sheet shows: pieces of one size, gutters of one width and colour, a border
of that colour. Where the pieces join without a gap just where the layout has their ends, there is
none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iclora.sets.bars import find_gutter, is_one_bar, is_page_colour
from iclora.sets.edges import Pixels, away_from_ground, ground, is_drawn, largest, sampled
from iclora.sets.seams import Seams, exact_seams, find_seams, shows

__all__ = ["Cut", "cut_apart", "even_ends"]

_REGULAR = 32
"""Widest gutter, px, that is looked for at the places where pieces of one size put it."""
_SMALLEST = 48
"""Smallest piece, px, that is thought of there."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SAME = 16.0
"""Difference between colours that are meant to be one."""
_BESIDE = 2
"""px between the end of a gutter and a line that is taken for it."""


class Cut(NamedTuple):
    """Pictures along one axis."""

    spans: list[tuple[int, int]]
    """The first line of each, and the one behind its last."""
    unseen: int = 0
    """Seams that do not show, so that their usual place stands."""
    guessed: int = 0
    """Seams that are not certain: off their usual place, or beside a band that may be a gutter."""
    colours: tuple[NDArray[np.float32], ...] = ()
    """Of the gutters."""


def cut_apart(
    pixels: Pixels,
    ends: Sequence[float],
    page: NDArray[np.float32] | None = None,
    barred: bool = True,
    width: int | None = None,
) -> Cut:
    """Cut stacked pictures apart.

    Args:
        pixels: (height, width, 3), the pictures one above the other.
        ends: expected ends as fractions of the height, the last one 1.
        page: colour of the border around them all, if there is one.
        barred: False to look for no gutters.
        width: of the sheet's other gutters, px, if it has some.
    """
    length, ends = len(pixels), even_ends(ends)
    if len(ends) == 1:
        return Cut([(0, length)])
    gutters: Gutters = {}
    seen: Gutters = {}
    if barred:
        seen = _gutters(pixels, ends, width)
        gutters = (
            _regular(pixels, len(ends))
            or _believed(pixels, seen, ends, page, width)
            or _half_seen(pixels, len(ends))
        )
    colours = tuple(_colour(pixels, *gutter) for gutter in gutters.values())
    if len(gutters) == len(ends) - 1:
        own = [gutters[number][0] for number in sorted(gutters)]
        seams, missed, guessed = Seams([*own, length], 0, 0)
    elif not gutters and (exact := exact_seams(pixels, ends)):
        seams, missed, guessed = Seams(exact, 0, _beside(exact, seen, pixels))
    else:
        seams, missed, guessed = find_seams(pixels, ends)
        guessed = max(guessed, 0 if gutters else len(seen))
    starts = [0, *seams[:-1]]
    for number, (first, behind) in gutters.items():
        seams[number], starts[number + 1] = first, behind
    # Between gutters the places of pictures that have none are no usual ones.
    unsure = 0 if gutters else guessed
    return Cut(list(zip(starts, seams, strict=True)), missed, unsure, colours)


def even_ends(ends: Sequence[float]) -> list[float]:
    """Ends of pieces that are meant to be of one size, but for their rounding to a grid."""
    even = [(k + 1) / len(ends) for k in range(len(ends))]
    near = all(abs(a - b) < 0.03 for a, b in zip(ends, even, strict=True))
    return even if near else list(ends)


Gutters = Mapping[int, tuple[int, int]]
"""The first line of each gutter, and the one behind it, by its number."""


def _gutters(pixels: Pixels, ends: Sequence[float], width: int | None) -> Gutters:
    length = len(pixels)
    found: dict[int, tuple[int, int]] = {}
    for again in (False, True):
        usual = max((b - a for a, b in found.values()), default=width if again else None)
        for number, (before, end, after) in enumerate(
            zip([0.0, *ends], ends[:-1], ends[1:], strict=False)
        ):
            reach = max(2, int(min(end - before, after - end) * length * 0.25))
            middle = round(end * length)
            if number not in found and (usual or not again):
                gutter = find_gutter(pixels, middle - reach, middle + reach, usual)
                if gutter:
                    found[number] = gutter
    return found


def _believed(
    pixels: Pixels,
    gutters: Gutters,
    ends: Sequence[float],
    page: NDArray[np.float32] | None,
    width: int | None,
) -> Gutters:
    """These gutters, or none if they are rather parts of pictures."""
    if not gutters:
        return {}
    length = len(pixels)
    widths = [b - a for a, b in gutters.values()]
    colours = np.array([_colour(pixels, *gutter) for gutter in gutters.values()])
    alike = np.ptp(widths) <= 2 and np.ptp(colours, axis=0).max() < _SAME
    if len(gutters) == len(ends) - 1:
        ordered = [gutters[number] for number in sorted(gutters)]
        bounds = [(0, 0), *ordered, (length, length)]
        pieces = [b[0] - a[1] for a, b in pairwise(bounds)]
        if alike and np.ptp(pieces) <= max(2, 0.015 * length):
            return gutters
        # A page's colour may run to another one from gutter to gutter.
        if len(gutters) > 1 and np.ptp(widths) <= 2 and np.ptp(pieces) <= 1:
            return gutters
    of_page = page is not None and np.abs(colours - page).max() < _SAME
    if exact := exact_seams(pixels, ends):
        # A gutter of the page's colour may end there itself, or be as wide as the others are.
        usual = width is not None and max(abs(each - width) for each in widths) <= 2
        own = len(gutters) == len(ends) - 1 and (usual or _end_at(gutters, exact))
        return gutters if of_page and own and not is_drawn(pixels) else {}
    if of_page:
        return gutters
    if alike and (len(gutters) > 1 or is_page_colour(colours[0])):
        return gutters
    return {} if is_drawn(pixels) else gutters


def _end_at(gutters: Gutters, seams: Sequence[int]) -> bool:
    """True if every gutter holds its seam, or ends beside it."""
    return all(
        first - _BESIDE <= seams[number] <= behind + _BESIDE
        for number, (first, behind) in gutters.items()
    )


def _beside(seams: Sequence[int], gutters: Gutters, pixels: Pixels) -> int:
    """How many bands that may be gutters begin or end just at seams.

    A drawing has its floor there.
    """
    if is_drawn(pixels):
        return 0
    return sum(bool({first, behind} & set(seams)) for first, behind in gutters.values())


def _colour(pixels: Pixels, first: int, behind: int) -> NDArray[np.float32]:
    colour: NDArray[np.float32] = np.median(pixels[first:behind].reshape(-1, 3), axis=0)
    return colour


def _regular(pixels: Pixels, count: int) -> Gutters:
    """Gutters just where pieces of one size put them.

    Compression blends their colours with the pictures', not that far that they would not be far
    more even than the lines around them.
    """
    length = len(pixels)
    for width in range(_REGULAR, 0, -1):
        size, rest = divmod(length - (count - 1) * width, count)
        starts = [k * size + (k - 1) * width for k in range(1, count)]
        middles = [k * length // count for k in range(1, count)]
        if width > 3 and all(shows(pixels, middle) for middle in middles):
            continue  # the pictures join there
        if not rest and size >= _SMALLEST and all(_is_thin(pixels, at, width) for at in starts):
            return {number: (at, at + width) for number, at in enumerate(starts)}
    return {}


def _half_seen(pixels: Pixels, count: int) -> Gutters:
    """Gutters just where pieces of one size put them, of which one end alone shows.

    The picture at the other end begins in the gutter's colour.
    """
    length = len(pixels)
    if is_drawn(pixels):
        return {}
    for width in range(2 * _REGULAR, 2, -1):
        size, rest = divmod(length - (count - 1) * width, count)
        if rest or size < _SMALLEST:
            continue
        starts = [k * size + (k - 1) * width for k in range(1, count)]
        bands = [sampled(pixels[at : at + width]) for at in starts]
        if all(
            (shows(pixels, at) or shows(pixels, at + width)) and is_one_bar(band)
            for at, band in zip(starts, bands, strict=True)
        ):
            colours = np.array([np.median(band.reshape(-1, 3), axis=0) for band in bands])
            if np.ptp(colours, axis=0).max() < _SAME:
                return {number: (at, at + width) for number, at in enumerate(starts)}
    return {}


def _is_thin(pixels: Pixels, start: int, width: int) -> bool:
    """True if these lines are of one colour, and those around them are of others."""
    lines = sampled(pixels[start - 12 : start + width + 12])
    band = lines[12 : 12 + width]
    middles = np.median(band, axis=1)
    away = away_from_ground(lines)
    off = away.mean(axis=1).max(axis=1)
    own = off[12 : 12 + width]
    above, below = float(np.median(off[:9])), float(np.median(off[-9:]))
    around = min(above, below)
    # The middle line is the least blended one; the outer ones may be by a half, each with the
    # picture on its side.
    half = (width + 1) // 2
    is_even = own.min() <= 7 and (
        own[:half].max() <= max(7.0, 0.7 * around, 0.3 * above)
        and own[width - half :].max() <= max(7.0, 0.7 * around, 0.3 * below)
    )
    # Lines that are not blended are of the very same colour.
    if np.ptp(middles, axis=0).max() > (_SAME if own.max() <= 7 else 3 * _SAME):
        return False
    # No part of the least blended one is of another colour, as furniture before a wall is.
    if (away[12 + int(own.argmin())].max(axis=1) < 48).mean() < 0.85:
        return False
    if not is_even and (own.min() > 0.4 * around or own.max() > 0.75 * around):
        return False
    away = largest(np.abs(lines[[10, 11, -12, -11]] - ground(band)))
    shown = (away > 14).mean(axis=1)
    if min(shown[1], shown[2]) < 0.1:  # it goes on
        return False
    return bool(max(shown[:2]) >= 0.6 and max(shown[2:]) >= 0.6)
