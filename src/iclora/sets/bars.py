"""Bars: the gutters, borders and letterboxes around pictures, recognised in their pixels.

A bar is a band of one colour across a whole picture that ends at once: just behind its last line
nearly everything is of another colour. A dark or bright part of a picture ends gradually, or for
a part of its width only, and so is never taken for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from iclora.sets.edges import Edges, Pixels, away_from_ground, ground, is_drawn, largest, sampled
from iclora.sets.frames import find_frame

__all__ = [
    "Edges",
    "colour_name",
    "find_edges",
    "find_gutter",
    "is_bar",
    "is_one_bar",
    "is_page_colour",
    "opposite",
]

_FLAT = 7.0
"""Mean deviation of a line from its own mean colour, in 256 levels; JPEG stays below it."""
_OTHER = 14.0
"""Difference of a pixel from the bar's colour that shows."""
_ENDS = 0.7
"""Share of the line behind a bar that has to be of another colour."""
_THINNEST = 2
_THIN = 5
"""Lines of a gutter that compression blends as a whole."""
_MOST_SLOPE = 70.0
"""As `_FLAT`, of a line whose colour runs to another one."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_FLAT_LIGHT = 6.0
"""As `_FLAT`, of brightness alone, which JPEG does not keep at a smaller size."""
_BLENDED = 24.0
"""As `_FLAT`, of a line whose colours are blended with its neighbours'."""
_MOST = 0.3
"""Share of a side that a bar at its edge takes at most."""


def find_edges(picture: Image | Pixels) -> Edges:
    """Find the bars around a picture: a border, a letterbox, a pillarbox.

    Args:
        picture: RGB, or its pixels (height, width, 3).
    """
    if not isinstance(picture, np.ndarray):
        if min(picture.size) < 8 or not _may_have_bars(picture):
            return Edges()
        pixels = np.asarray(picture, dtype=np.float32)
    else:
        pixels = picture
    left, top, right, bottom = find_frame(pixels)
    for _ in range(2):  # again, for what stands between bars at the sides ends at once only then
        inner = pixels[top : len(pixels) - bottom, left : pixels.shape[1] - right]
        top += _at_start(inner)
        bottom += _at_start(inner[::-1])
        inner = pixels[top : len(pixels) - bottom, left : pixels.shape[1] - right]
        across = inner.transpose(1, 0, 2)
        more = _at_start(across), _at_start(across[::-1])
        left, right = left + more[0], right + more[1]
        if not any(more):
            break
    found = Edges(left, top, right, bottom)
    return found.plus(find_frame(found.within(pixels))) if any(found) else found


def opposite(picture: Image, edges: Edges) -> Edges:
    """Those of a picture's bars that lie opposite each other, as of a letterbox or a border.

    They are of one colour and about as wide. A band at one side alone may belong to the picture:
    the head of a slide, a caption's ground.
    """
    return pairs_of(np.asarray(picture, dtype=np.float32), edges)


def pairs_of(pixels: Pixels, edges: Edges) -> Edges:
    """`opposite` of a picture's pixels (height, width, 3)."""
    upright = _pair(pixels, edges.top, edges.bottom)
    across = _pair(pixels.transpose(1, 0, 2), edges.left, edges.right)
    return Edges(across[0], upright[0], across[1], upright[1])


def is_own(picture: Image, edges: Edges) -> bool:
    """True if bands at single sides are rather a drawing's own, such as its floor.

    They are of some colour, and most of the drawing is flat as well.
    """
    if edges.top:
        return False
    pixels = np.asarray(picture, dtype=np.float32)
    across = pixels.transpose(1, 0, 2)
    low = pixels[len(pixels) - edges.bottom :]
    bands = (low, across[: edges.left], across[len(across) - edges.right :])
    colours = [np.median(b.reshape(-1, 3), axis=0) for b in bands if b.size]
    return not any(is_page_colour(c) for c in colours) and is_drawn(pixels)


def _pair(pixels: Pixels, first: int, last: int) -> tuple[int, int]:
    """The widths of bars at both ends, or 0 and 0 if they are no pair."""
    wide, narrow = max(first, last), min(first, last)
    if not narrow or wide - narrow > max(4, wide // 4):
        return 0, 0
    colours = [sampled(lines).mean(axis=(0, 1)) for lines in (pixels[:first], pixels[-last:])]
    return (first, last) if np.abs(colours[0] - colours[1]).max() < 16 else (0, 0)


def is_bar(picture: Image, edges: Edges) -> bool:
    """True if all of these edges of a picture are of one colour, however they end."""
    pixels = np.asarray(picture, dtype=np.float32)
    across = pixels.transpose(1, 0, 2)
    ends = (pixels, edges.top), (pixels[::-1], edges.bottom)
    sides = (across, edges.left), (across[::-1], edges.right)
    colours = []
    for lines, width in (*ends, *sides):
        # Compression blends the line that is next to a picture with it, and some further ones.
        bar = lines[: max(1, width - 3)] if width else lines[:0]
        if not _is_flat(bar).all():
            return False
        colours += list(sampled(bar).mean(axis=1))
    return not colours or bool(np.ptp(np.array(colours), axis=0).max() < 16)


def is_one_bar(lines: Pixels) -> bool:
    """True if some lines are all of one colour, but for one at each end that may be blended."""
    inner = lines[1:-1] if len(lines) > 3 else lines
    return bool(_is_flat(inner).all() and np.ptp(inner.mean(axis=1), axis=0).max() < 12)


def _may_have_bars(picture: Image) -> bool:
    """True if some outermost line of a picture is of one colour; most end in many colours."""
    right, bottom = picture.width - 1, picture.height - 1
    pixel: Any = picture.im.getpixel  # of a loaded picture; Image's own loads it each time
    corners = {(x, y): pixel((x, y)) for x in (0, right) for y in (0, bottom)}
    rims = ((0, 0, right, 0), (0, bottom, right, bottom), (0, 0, 0, bottom))
    for rim in (*rims, (right, 0, right, bottom)):
        ends = corners[rim[:2]], corners[rim[2:]]
        if any(abs(a - b) > 48 for a, b in zip(*ends, strict=True)):
            continue
        line = picture.crop((rim[0], rim[1], rim[2] + 1, rim[3] + 1))
        if _is_flat(np.asarray(line, dtype=np.float32).reshape(1, -1, 3))[0]:
            return True
    return False


def _at_start(pixels: Pixels) -> int:
    """Width of the bar at the first line, px; 0 if there is none."""
    if not _is_flat(pixels[:1])[0]:
        return 0
    end = _flat_from(pixels[: int(len(pixels) * _MOST) + 3])
    if end < _THINNEST or end > len(pixels) * _MOST:
        return 0
    edge = _sharp_end(pixels, end, ground(sampled(pixels[max(0, end - 10) : end])))
    edge = edge or _lined_end(pixels, end)
    return edge + _hairline(pixels[edge : edge + 4]) if edge else 0


def _lined_end(pixels: Pixels, end: int) -> int:
    """The first line behind a bar that a thin line of another colour closes; 0 if none does.

    From the bar to the picture it is two steps, of which none need be the larger part.
    """
    closed = end + _flat_from(pixels[end : end + _THIN + 1])
    # Drawings have grounds with outlines.
    if not end < closed <= end + _THIN or is_drawn(pixels):
        return 0
    return _sharp_end(pixels, closed, ground(sampled(pixels[end:closed])))


def _hairline(pixels: Pixels) -> int:
    """Lines of the thin frame that begins behind a bar; 0 if there is none, or no end of it."""
    flat = _is_flat(pixels)
    return 0 if flat.all() else int(np.argmin(flat))


def find_gutter(
    pixels: Pixels, low: int, high: int, width: int | None = None
) -> tuple[int, int] | None:
    """Find the gutter between two pictures: its first line, and the first one behind it.

    Args:
        pixels: (height, width, 3), the pictures one above the other.
        low, high: the gutter's middle lies between these lines.
        width: of the gutters between pictures beside them. One that is as wide may end at once on
            one side only, where a picture of its colour begins on the other.
    """
    reach = max(4, (high - low) // 2)
    start, end = max(0, low - reach), min(len(pixels), high + reach)
    flat = _is_flat(pixels[start:end])
    best: tuple[int, int] | None = None
    at = 0
    while at < len(flat):
        if not flat[at]:
            at += 1
            continue
        first, length = start + at, _flat_from(pixels[start + at : end])
        at += max(1, length)
        last = first + length
        if length < _THINNEST or not low <= (first + last) / 2 <= high:
            continue
        colour = ground(sampled(pixels[first:last]))
        above = _sharp_end(pixels[:last][::-1], length, colour)
        below = _sharp_end(pixels[first:], length, colour)
        if above and below:
            found = last - above, first + below
        elif width and (above or below) and length >= width - 2:
            start_at = last - above if above else first + below - width
            found = start_at, start_at + width
        else:
            continue
        if best is None or length > best[1] - best[0]:
            best = found
    return best or _thin_gutter(pixels, low, high)


def _thin_gutter(pixels: Pixels, low: int, high: int) -> tuple[int, int] | None:
    """Find a gutter of a few lines whose colours compression has blended with the pictures'.

    JPEG keeps colours at half the size, so that a line's neighbours show in them; its brightness
    is still its own, equal along the whole line, and ends at once above and below.
    """
    start, end = max(2, low - _THIN), min(len(pixels) - 2, high + _THIN)
    lines = sampled(pixels[start - 2 : end + 2])
    light = lines @ _LUMA
    off = np.abs(lines - lines.mean(axis=1, keepdims=True)).mean(axis=(1, 2))
    even = np.abs(light - light.mean(axis=1, keepdims=True)).mean(axis=1) < _FLAT_LIGHT
    flat = (even & (off < _BLENDED)).tolist()
    best: tuple[int, int] | None = None
    at = 2
    while at < len(flat) - 2:
        if not flat[at]:
            at += 1
            continue
        last = at
        while last < len(flat) and flat[last]:
            last += 1
        levels = light[at:last].mean(axis=1)
        inside = low <= start - 2 + (at + last) / 2 <= high
        if _THINNEST <= last - at <= _THIN and inside and np.ptp(levels) < _OTHER:
            # The lines next to it may be blended.
            away = np.abs(
                lines[[at - 2, min(last + 1, len(lines) - 1)]] - lines[at:last].mean((0, 1))
            )
            ends = (largest(away) > _OTHER).mean(axis=1).min() >= _ENDS
            if ends and (best is None or last - at > best[1] - best[0]):
                best = start - 2 + at, start - 2 + last
        at = last
    return best


def _is_flat(lines: Pixels) -> NDArray[np.bool_]:
    """Which lines are of one colour."""
    lines = sampled(lines)
    off = np.abs(lines - lines.mean(axis=1, keepdims=True)).mean(axis=(1, 2))
    found: NDArray[np.bool_] = off < _FLAT
    # A page's colour may run to another along the line.
    some = ~found & (off < _MOST_SLOPE)
    if some.any():
        found[some] = away_from_ground(lines[some]).mean(axis=(1, 2)) < _FLAT / 2
    return found


def _flat_from(pixels: Pixels) -> int:
    """How many lines from the first are flat and of its colour, or of one that runs to another."""
    flat = _is_flat(pixels)
    means = sampled(pixels).mean(axis=1)
    same = flat & (np.abs(means - _run(pixels, means)).max(axis=1) < 6)
    return int(np.argmin(same)) if not same.all() else len(same)


def _run(pixels: Pixels, means: Pixels) -> Pixels:
    """The colour of each line as it goes on from the first ones."""
    first = np.median(means[:3], axis=0)
    if len(means) < 8:
        return first[None]
    slope = (means[6] - means[0]) / 6
    # A sky has grain, and so has everything else that a camera sees.
    if np.abs(slope).max() > 3 or away_from_ground(sampled(pixels[:6])).mean() > 0.7:
        return first[None]
    return np.asarray(means[0] + slope * np.arange(len(means))[:, None], dtype=np.float32)


def _sharp_end(pixels: Pixels, end: int, colour: NDArray[np.float32]) -> int:
    """The first line behind a bar, past those that compression has blended; 0 if it fades out."""
    # JPEG blends within blocks of 8.
    behind = sampled(pixels[end - 1 : end + 8])
    if len(behind) < 2:
        return 0
    away = np.abs(behind - colour)
    other = (largest(away) > _OTHER).mean(axis=1)
    if other.max(initial=0) < _ENDS:
        return 0
    # A straight end is there along the whole line at once; a round one grows.
    begins = int(np.argmax(other >= _ENDS))
    if other[max(0, begins - 3)] > 0.4:
        return 0
    off = away.mean(axis=(1, 2))
    # A blended line lies between the bar and the picture; what fades takes many lines.
    jump = max((off[2:] - off[:-2]).max(initial=0), (off[1:] - off[:-1]).max(initial=0))
    if jump < 0.5 * off.max():
        return 0
    return end - 1 + int(np.argmax(off > 0.6 * off.max()))


def colour_name(colour: Sequence[float]) -> str:
    """Black, white, grey or coloured."""
    if max(colour) - min(colour) > 24:
        return "coloured"
    middle = sum(colour) / len(colour)
    return "black" if middle < 40 else "white" if middle > 215 else "grey"


def is_page_colour(colour: Sequence[float] | Pixels) -> bool:
    """True for white and black, which pages have and floors do not."""
    return min(colour) > 235 or max(colour) < 20
