"""What lies at a picture's edges and may be no picture: named, for nobody can be sure of it.

Bars that are certain are cut off (`bars`). These are not: a band that ends at once but is not
quite of one colour, round corners, a strip with a text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from iclora.sets.bars import is_page_colour
from iclora.sets.edges import Edges, Pixels, away_from_ground, largest, sampled

__all__ = [
    "agreed_leftovers",
    "blended_edges",
    "find_bands",
    "find_in_file",
    "find_leftovers",
    "strip_depth",
    "told_leftovers",
]

_DEEPEST = 26
"""px of a band that may be left."""
_SMALLEST = 48
"""Side of a picture, px, below which nothing is looked for."""
_STRIP = 0.3
"""Share of a picture's height that a strip of text takes at most."""
_NONE = Edges()
_LETTERS = 30
"""Ends of strokes that a line through text crosses at least."""
Colour = NDArray[np.float32]


def find_leftovers(pixels: Pixels, page: Sequence[Colour] = (), alone: Edges = _NONE) -> list[str]:
    """Name what may be no picture at the edges of one.

    Args:
        pixels: (height, width, 3), of a panel as it is trained.
        page: colours of the bars that were cut off around it.
        alone: bands at single sides that may be bars of another colour.
    """
    if min(pixels.shape[:2]) < _SMALLEST:
        return []
    bands = Edges(*map(max, find_bands(pixels, page), alone))._asdict()
    found = [f"a band of {depth} px at its {side}" for side, depth in bands.items() if depth]
    for side, lines in (("top", pixels), ("bottom", pixels[::-1])):
        if not bands[side] and (depth := strip_depth(lines)):
            found.append(f"a strip with text at its {side} ({depth} px)")
    if page:
        soft = _soft_edges(pixels, page)._asdict()
        found += [
            f"a blended band of {depth} px at its {side}"
            for side, depth in soft.items()
            if depth > 1 and not bands[side]
        ]
    if not any("strip" in each for each in found) and _round_corners(pixels, page):
        found.append("round corners")
    return found


def _soft_edges(pixels: Pixels, page: Sequence[Colour]) -> Edges:
    """How many lines, px, are far nearer to a bar's colour, and more even, than those behind."""
    across = pixels.transpose(1, 0, 2)
    depths = []
    for lines in (across, pixels, across[::-1], pixels[::-1]):
        near = sampled(lines[:16])
        even = away_from_ground(near).mean(axis=(1, 2))
        is_even = even[:6] < 0.7 * np.median(even[8:])
        deepest = 0
        for colour in page:
            off = np.abs(near - colour).mean(axis=(1, 2))
            inner = float(np.median(off[8:]))
            soft = is_even & (off[:6] < 0.6 * inner) & (inner > 20)
            deepest = max(deepest, 0 if soft.all() else int(np.argmin(soft)))
        depths.append(deepest)
    return Edges(*depths)


def find_in_file(picture: Image) -> list[str]:
    """As `find_leftovers`, of a file of one picture: strips with text and round corners alone."""
    wide, high = picture.size
    if min(wide, high) < _SMALLEST:
        return []
    found = []
    pixel: Any = picture.im.getpixel  # of a loaded picture; Image's own loads it each time
    part = int(_STRIP * high) + 1
    for side, line, top in (("top", 1, 0), ("bottom", high - 2, high - part)):
        if not _near(pixel((1, line)), pixel((wide - 2, line))):
            continue
        rim = np.asarray(picture.crop((0, line, wide, line + 1)), dtype=np.float32)[0]
        if (np.abs(rim - np.median(rim, axis=0)).max(axis=1) < 32).mean() > 0.9:
            shown = picture.crop((0, top, wide, top + part))
            pixels = np.asarray(shown)[:, :: max(1, wide // 200)].astype(np.float32)
            lines = pixels if side == "top" else pixels[::-1]
            if depth := strip_depth(np.concatenate([lines, lines, lines, lines])):
                found.append(f"a strip with text at its {side} ({depth} px)")
    tip = pixel((0, 0))
    others = ((wide - 1, 0), (0, high - 1), (wide - 1, high - 1))
    if not found and all(_near(tip, pixel(place)) for place in others):
        boxes = [(x, y, x + 24, y + 24) for y in (0, high - 24) for x in (0, wide - 24)]
        four = [np.asarray(picture.crop(box), dtype=np.float32) for box in boxes]
        rows = [np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)]
        if _round_corners(np.concatenate(rows), ()):
            found.append("round corners")
    return found


def _near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    red, green, blue = one[0] - other[0], one[1] - other[1], one[2] - other[2]
    return -40 <= red <= 40 and -40 <= green <= 40 and -40 <= blue <= 40


def agreed_leftovers(found: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Leftovers of one sheet's panels; strips and round corners only if half of them have these."""
    kinds = [{each.split(" (")[0] for each in own} for own in found]
    shared = {
        kind
        for kind in set().union(*kinds)
        if kind.startswith("a band") or 2 * sum(kind in own for own in kinds) >= len(found)
    }
    return tuple(tuple(e for e in own if e.split(" (")[0] in shared) for own in found)


def find_bands(pixels: Pixels, page: Sequence[Colour] = ()) -> Edges:
    """Bands at a picture's edges that end at once and are far more even than the picture.

    Only those of the page's colour, of a page's usual white and black, or of two sides alike.
    """
    if min(pixels.shape[:2]) < _SMALLEST:
        return Edges()
    across = pixels.transpose(1, 0, 2)
    bands = [_band(lines) for lines in (across, pixels, across[::-1], pixels[::-1])]
    depths = []
    for band in bands:
        others = [other[1] for other in bands if other and other is not band]
        is_one = band and (
            is_page_colour(band[1]) or any(_same(band[1], c) for c in (*page, *others))
        )
        depths.append(band[0] if band and is_one else 0)
    return Edges(*depths)


def blended_edges(pixels: Pixels, page: Sequence[Colour]) -> Edges:
    """Outermost lines that compression has blended with a bar beside them, 1 px each, if any.

    They are far nearer to the bar's colour than the lines behind them.
    """
    if min(pixels.shape[:2]) < _SMALLEST or not page:
        return Edges()
    across = pixels.transpose(1, 0, 2)
    blended = []
    for lines in (across, pixels, across[::-1], pixels[::-1]):
        near = sampled(lines[:3])
        off = [np.abs(near - colour).mean(axis=(1, 2)) for colour in page]
        blended.append(int(any(own[0] < 0.6 * own[2] and own[2] > 12 for own in off)))
    return Edges(*blended)


def _same(one: Colour, other: Colour) -> bool:
    return bool(np.abs(one - other).max() < 24)


def _band(pixels: Pixels) -> tuple[int, Colour] | None:
    """Depth in px and colour of a band at the first line that ends at once along a straight line.

    Unlike a bar's, its lines need only be far more even than the picture's.
    """
    lines = sampled(pixels[: min(_DEEPEST + 12, len(pixels) // 3)])
    change = largest(np.abs(np.diff(lines, axis=0)))
    ends = (change > 16).mean(axis=1) >= 0.6
    depths = np.flatnonzero(ends[: min(_DEEPEST, len(ends) - 6)]) + 1
    if not len(depths):  # as of most pictures
        return None
    middles = np.median(lines, axis=1, keepdims=True)
    off = largest(away_from_ground(lines)).mean(axis=1)
    for depth in depths:
        behind = float(np.median(off[depth + 1 : depth + 12]))
        if off[:depth].max() > max(8.0, 0.5 * behind) or off[:depth].min() > 16:
            return None
        # Of a picture that fades into its end each line changes.
        if np.ptp(middles[:depth, 0], axis=0).max() > 40:
            return None
        return int(depth), np.median(middles[:depth, 0], axis=0)
    return None


def strip_depth(pixels: Pixels) -> int:
    """Depth in px of a strip of text on a ground of one colour at the first line; 0 for none."""
    lines = sampled(pixels[: int(_STRIP * len(pixels))])
    if len(lines) < 12:
        return 0
    rim = lines[:4]
    even = (largest(np.abs(rim - np.median(rim, axis=1, keepdims=True))) < 32).mean(axis=1)
    if even.max() < 0.35:
        return 0
    middles = np.median(lines[:8], axis=1)
    # Lines through small letters are darker than their paper.
    blank = (largest(np.abs(lines[:8] - middles[:, None])) < 32).mean(axis=1) > 0.9
    paper = np.median(middles[blank] if blank.any() else middles, axis=0)
    is_near = largest(np.abs(lines - paper)) < 32
    near = is_near.mean(axis=1)
    first = int(np.argmax(near[:4] >= 0.35))  # a line may be left, or be blended
    within = near[first:] >= 0.35
    depth = len(within) if within.all() else int(np.argmin(within))
    strokes = np.diff(is_near[first:], axis=1).sum(axis=1)
    blank = near[first:] > 0.9
    behind = near[first + depth : first + depth + 2]
    if depth < 10 or not len(behind) or behind.min() > 0.2:
        # Where the picture goes on in the paper's colour, its text alone tells a strip.
        found = _text(strokes, blank)
        return first + found if found else 0
    blank, strokes = blank[:depth], strokes[:depth]
    if blank.sum() < 3:
        return 0
    # Paper is of one colour, as a sky is not.
    levels = np.median(lines[first : first + depth][blank], axis=1)
    # A bar's colour runs into its outer lines.
    if (np.abs(levels - paper).max(axis=1) < 10).mean() < 0.6:
        return 0
    # The letters are lines of their own, with blank ones before the picture.
    return first + depth if (strokes > 12).sum() >= 4 and blank[-4:].any() else 0


def _text(strokes: NDArray[np.intp], blank: NDArray[np.bool_]) -> int:
    """Depth in px at which a line of text ends, with paper before and behind it; 0 for none."""
    ink = np.flatnonzero(strokes > _LETTERS)
    if not len(ink) or ink[0] > _DEEPEST or not blank[: max(1, ink[0] - 3)].all():
        return 0
    gaps = np.flatnonzero(np.diff(ink) > 2)
    last = int(ink[gaps[0]] if len(gaps) else ink[-1])
    behind = blank[last + 1 : last + 8]
    return last + 4 if 5 <= last - ink[0] + 1 <= 24 and behind[-4:].all() and len(behind) > 4 else 0


def _round_corners(pixels: Pixels, page: Sequence[Colour]) -> bool:
    """True if all four corners are cut off round, in one colour."""
    corners = (pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1])
    tips = np.array([corner[0, 0] for corner in corners])
    tip = np.median(tips, axis=0)
    if page and sum(map(_is_cut_round, corners)) >= 3:
        return True
    if np.abs(tips - tip).max(axis=1).mean() > 40:
        return False
    is_page = any(_same(tip, c) for c in page)

    def is_round(corner: Pixels) -> bool:
        diagonal = np.abs(corner[range(24), range(24)] - tip).max(axis=1)
        inner = np.abs(corner[(0, 1, 22, 23), (22, 23, 0, 1)] - tip).max(axis=1)
        return bool(diagonal[0] < 40 and diagonal[2:12].max() > 40 and inner.max() > 30)

    return sum(map(is_round, corners)) >= (3 if is_page else 4)


def _is_cut_round(corner: Pixels) -> bool:
    """True if a corner's tip is even, and ends at once."""
    tip = corner[(0, 0, 1, 1), (0, 1, 0, 1)]
    diagonal = corner[range(24), range(24)]
    steps = np.abs(diagonal[2:] - diagonal[:-2]).max(axis=1)
    first = int(np.argmax(steps > 40)) if (steps > 40).any() else 24
    inner = np.abs(corner[(0, 1, 22, 23), (22, 23, 0, 1)] - tip[0]).max(axis=1)
    # Strong compression blends it with the picture, far less than these differ.
    even = np.ptp(tip, axis=0).max() < max(12, steps.max() / 3)
    return bool(even and first < 8 and inner.max() > 30)


def told_leftovers(found: Iterable[Sequence[str]]) -> str:
    """Leftovers of the panels of a set in words; nothing if there are none."""
    panels: dict[str, list[int]] = defaultdict(list)
    for number, leftovers in enumerate(found, 1):
        for each in leftovers:
            panels[each].append(number)
    told = []
    for what, numbers in panels.items():
        shown = ", ".join(map(str, numbers))
        told.append(f"{what} (panel{'s' * (len(numbers) > 1)} {shown})")
    return "; ".join(told)
