"""A sheet's cuts judged as a whole: pictures of one size, gutters and borders of one width.

Where a picture ends in the colour of the bar beside it, nobody can see its end. Where the other
pictures end tells it. What fits neither its own pixels nor the others is a doubt, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise, product
from typing import NamedTuple

import numpy as np

from iclora.sets.edges import Pixels, away_from_ground, largest, sampled
from iclora.sets.layout import Box

__all__ = ["are_bars", "hidden_bars", "judge_cuts"]

_NEAR = 1
"""px by which ends that are meant to be alike differ, for blended lines and rounding."""
_ALIKE = 24.0
"""Mean difference of a bar that compression has blended from its colour, in 256 levels."""
_EVEN = 5.0
"""Mean deviation of a line of one colour, or of one that runs to another."""
_SHOWS = 14.0
"""Change between two lines that shows."""
_NEARLY = 6
"""px by which pictures differ that are meant to be of one size."""
_MOST = 5
"""Widths that are tried of each bar."""

Span = tuple[int, int]


class _Piece(NamedTuple):
    """A picture along one direction."""

    number: int
    """Of the picture, counted from 1."""
    place: int
    """Of the picture in its row or column, counted from 0."""
    start: int
    end: int
    low: int
    high: int
    """Where it lies across this direction."""


class _Axis(NamedTuple):
    """All pictures of a sheet along one direction."""

    names: tuple[str, str]
    """Of the sides where it begins and ends."""
    pixels: Pixels
    """With this direction's lines first."""
    places: int
    """How many of them lie in a row or column."""
    pieces: list[_Piece]

    @property
    def length(self) -> int:
        return len(self.pixels)

    @property
    def firsts(self) -> list[int]:
        """Widths of the border where it begins."""
        return [piece.start for piece in self.pieces if piece.place == 0]

    @property
    def lasts(self) -> list[int]:
        """Widths of the border where it ends."""
        return [self.length - p.end for p in self.pieces if p.place == self.places - 1]

    @property
    def gaps(self) -> list[int]:
        """Widths between neighbours."""
        by_low: dict[int, list[_Piece]] = {}
        for piece in self.pieces:
            by_low.setdefault(piece.place, []).append(piece)
        return [
            behind.start - piece.end
            for place in range(self.places - 1)
            for piece in by_low[place]
            for behind in by_low[place + 1]
            if min(piece.high, behind.high) > max(piece.low, behind.low)
        ]


def judge_cuts(
    per_row: Sequence[int], boxes: Sequence[Box], pixels: Pixels, colours: Sequence[Pixels]
) -> tuple[list[Box], list[str]]:
    """The cuts of a sheet that has bars, as they fit together, and what is not certain of them.

    Args:
        boxes: of the pictures in px of the sheet, as each was found by itself.
        pixels: (height, width, 3), of the whole sheet.
        colours: of its bars.
    """
    ends = [0, *accumulate(per_row)]
    down, across = [], []
    for row, (start, end) in enumerate(pairwise(ends)):
        for number in range(start, end):
            b = boxes[number]
            down.append(_Piece(number, row, b.top, b.bottom, b.left, b.right))
            across.append(_Piece(number, number - start, b.left, b.right, b.top, b.bottom))
    axes = [_Axis(("top", "bottom"), pixels, len(per_row), down)]
    if len(set(per_row)) == 1:
        turned = pixels.transpose(1, 0, 2)
        axes.append(_Axis(("left", "right"), turned, per_row[0], across))
    margins = Counter(w for axis in axes for w in (*axis.firsts, *axis.lasts))
    gaps = Counter(w for axis in axes for w in axis.gaps)
    spans: list[dict[int, Span]] = []
    doubts: list[str] = []
    for axis in axes:
        fitted, more = _fitted(axis, margins, gaps, colours)
        spans.append(fitted)
        doubts += more
    judged = []
    for number, b in enumerate(boxes):
        top, bottom = spans[0][number]
        left, right = spans[1][number] if len(spans) > 1 else (b.left, b.right)
        judged.append(Box(left, top, right - left, bottom - top))
    if not doubts:
        doubts = _uneven(per_row, judged)
    if any(_overlap(one, other) for one, other in combinations(judged, 2)):
        return list(boxes), [*doubts, "its pictures do not lie regularly"]
    return judged, doubts


def _uneven(per_row: Sequence[int], boxes: Sequence[Box]) -> list[str]:
    """Where pictures are nearly of one size: a line beside some may be left, or cut off others."""
    ends = [0, *accumulate(per_row)]
    rows = [boxes[a:b] for a, b in pairwise(ends)]
    sizes = {
        "high": [box.height for box in boxes],
        "wide": [box.width for box in boxes] if len(set(per_row)) == 1 else [],
    }
    told = []
    for way, found in sizes.items():
        low, high = min(found, default=0), max(found, default=0)
        if _NEAR < high - low <= _NEARLY:
            told.append(f"its pictures are {low} to {high} px {way}")
    # Also pictures of uneven sheets are of one width in a column.
    columns = list(zip(*rows, strict=True)) if sizes["wide"] and len(rows) > 1 else []
    if not told and any(np.ptp([b.width for b in column]) > _NEAR for column in columns):
        told.append("pictures above each other differ in width")
    return told


def _overlap(one: Box, other: Box) -> bool:
    across = one.left < other.right and other.left < one.right
    return across and one.top < other.bottom and other.top < one.bottom


def are_bars(per_row: Sequence[int], boxes: Sequence[Box], pixels: Pixels) -> bool:
    """True if what lies between and around the pictures of a sheet of drawings is bars for certain.

    Drawings have walls and floors of one colour. Bars are even to the pixel and lie regularly.
    """
    ends = [0, *accumulate(per_row)]
    rows = [list(boxes[a:b]) for a, b in pairwise(ends)]
    height, width = pixels.shape[:2]
    zones = [
        (a.right, max(a.top, b.top), b.left, min(a.bottom, b.bottom))
        for row in rows
        for a, b in pairwise(row)
    ]
    zones += [
        (
            min(b.left for b in a),
            max(b.bottom for b in a),
            max(b.right for b in a),
            min(c.top for c in b_row),
        )
        for a, b_row in pairwise(rows)
        for c in b_row[:1]
    ]
    gaps = [zone[2] - zone[0] for zone in zones[: len(boxes) - len(rows)]]
    gaps += [zone[3] - zone[1] for zone in zones[len(boxes) - len(rows) :]]
    for left, top, right, bottom in zones:
        zone = pixels[top:bottom, left:right]
        if not zone.size:
            continue
        lines = zone if zone.shape[1] > zone.shape[0] else zone.transpose(1, 0, 2)
        lines = sampled(lines)
        even = (largest(away_from_ground(lines)) < 12).mean(axis=1)
        if (even[2:-2].min() if len(even) > 5 else even.max()) < 0.95:
            return False
    sizes = np.array([box.size for box in boxes])
    edges = [b.left for b, *_ in rows] + [width - row[-1].right for row in rows]
    edges += [b.top for b in rows[0]] + [height - b.bottom for b in rows[-1]]
    is_regular = np.ptp(sizes, axis=0).max() <= 2
    return bool(is_regular or (np.ptp(gaps) <= 2 and np.ptp(edges) <= 2))


def hidden_bars(per_row: Sequence[int], boxes: Sequence[Box], pixels: Pixels) -> list[str]:
    """Where pictures meet at a thin bar that compression or scaling has blended with both.

    Of two pictures that join, each line is one's or the other's, or a mixture of both.
    """
    ends = [0, *accumulate(per_row)]
    rows = [list(boxes[a:b]) for a, b in pairwise(ends)]
    columns = pixels.transpose(1, 0, 2)
    met: list[str] = []
    for number, (above, below) in enumerate(pairwise(rows), 1):
        at, left = above[0].bottom, min(box.left for box in above)
        right = max(box.right for box in above)
        if at == below[0].top and _is_hidden(pixels[max(0, at - 12) : at + 12, left:right]):
            met.append(f"rows {number} and {number + 1}")
    for start, row in zip(ends, rows, strict=False):
        for number, (one, other) in enumerate(pairwise(row), start + 1):
            lines = columns[max(0, one.right - 12) : one.right + 12, one.top : one.bottom]
            if one.right == other.left and _is_hidden(lines):
                met.append(f"panels {number} and {number + 1}")
    if not met:
        return []
    return [f"a thin bar may lie between {', '.join(met)}, and would be trained"]


def _is_hidden(lines: Pixels) -> bool:
    """True if a blended bar lies in the middle of 24 lines."""
    lines = sampled(lines)
    if len(lines) < 24:
        return False
    off = away_from_ground(lines).mean(axis=(1, 2))
    around = max(float(np.median(off[:8])), float(np.median(off[-8:])))
    first, last = lines[8], lines[16]
    way = last - first
    length = np.maximum((way * way).sum(axis=1), 1e-3)
    own = np.abs(lines[8] - lines[5]).max(axis=1), np.abs(lines[16] - lines[19]).max(axis=1)
    least = 20 + 2 * np.maximum(*own)
    for line, even in zip(lines[10:15], off[10:15], strict=True):
        if even > 0.75 * around:
            continue
        share = np.clip(((line - first) * way).sum(axis=1) / length, 0, 1)
        apart = np.abs(line - first - share[:, None] * way).max(axis=1)
        if (apart > least).mean() >= 0.4:
            return True
    return False


def _usual(widths: Sequence[int], known: Counter[int]) -> list[int]:
    """The widths that are most frequent, those of this place first."""
    own = Counter(widths)
    return list(
        dict.fromkeys([w for w, _ in own.most_common(3)] + [w for w, _ in known.most_common(3)])
    )[:_MOST]


def _fitted(
    axis: _Axis, margins: Counter[int], gaps: Counter[int], colours: Sequence[Pixels]
) -> tuple[dict[int, Span], list[str]]:
    """Where each picture begins and ends, and doubts."""
    found = {p.number: (p.start, p.end) for p in axis.pieces}
    between = _usual(axis.gaps, gaps) or [0]
    best: tuple[float, list[Span]] | None = None
    tried = product(_usual(axis.firsts, margins), _usual(axis.lasts, margins), between)
    for first, last, gap in tried:
        places = _places(axis, first, last, gap)
        if not places:
            continue
        matched = sum(
            (abs(p.start - places[p.place][0]) <= _NEAR)
            + (abs(p.end - places[p.place][1]) <= _NEAR)
            for p in axis.pieces
        )
        share = matched / (2 * len(axis.pieces))
        if 2 * _matched_inside(axis, places) < len(axis.gaps):
            continue
        # A border has one width all around, even where it cannot be told from a picture.
        around = abs(first - last) <= _NEAR and first and first in margins
        if around and _ends_show(axis, places):
            share += 1.1
        better = share >= 0.5 and (best is None or share > best[0])
        if better and _holds(axis, places, colours):
            best = share, places
    if best is None:
        return found, _doubts(axis)
    for piece in axis.pieces:
        start, end = best[1][piece.place]
        found[piece.number] = (
            piece.start if abs(piece.start - start) <= _NEAR else start,
            piece.end if abs(piece.end - end) <= _NEAR else end,
        )
    return found, []


def _places(axis: _Axis, first: int, last: int, gap: int) -> list[Span]:
    """Pictures of one size between borders of these widths; nothing if there is no room."""
    size = (axis.length - first - last - (axis.places - 1) * gap) / axis.places
    if size < 8:
        return []
    starts = [first + k * (size + gap) for k in range(axis.places)]
    return [(round(start), round(start + size)) for start in starts]


def _matched_inside(axis: _Axis, places: Sequence[Span]) -> float:
    """How many of the gaps between pictures lie where these places have them; one end is a half."""
    found = 0
    for p in axis.pieces:
        start, end = places[p.place]
        found += p.place > 0 and abs(p.start - start) <= _NEAR
        found += p.place < axis.places - 1 and abs(p.end - end) <= _NEAR
    return found / 2


def _holds(axis: _Axis, places: Sequence[Span], colours: Sequence[Pixels]) -> bool:
    """True if all lines that would be cut off besides those that are cut already are a bar's."""
    for piece in axis.pieces:
        start, end = places[piece.place]
        across = sampled(axis.pixels[:, piece.low : piece.high])
        # What lies beside it and is cut off already tells the bar's colour there.
        for low, high, beside in (
            (piece.start, start - _NEAR, across[max(0, piece.start - 2) : piece.start]),
            (end + _NEAR, piece.end, across[piece.end : piece.end + 2]),
        ):
            if high <= low:
                continue
            lines = across[low:high]
            off = np.abs(lines.mean(axis=(0, 1)) - beside.mean(axis=(0, 1))) if len(beside) else 0
            if not _is_bar(lines, colours, bool(np.max(off) < 2 * _ALIKE)):
                return False
    return True


def _ends_show(axis: _Axis, places: Sequence[Span]) -> bool:
    """True if a border that is wider than it was found ends in a part of its length."""
    for outer, side in ((0, 0), (axis.places - 1, 1)):
        at = places[outer][side]
        pieces = [p for p in axis.pieces if p.place == outer]
        if not any(at > p.start + _NEAR if side == 0 else at < p.end - _NEAR for p in pieces):
            continue
        lines = [
            np.abs(np.diff(axis.pixels[max(0, at - 2) : at + 2, p.low : p.high], axis=0)).max(
                axis=(0, 2)
            )
            for p in pieces
        ]
        if (np.concatenate(lines) > _SHOWS).mean() < 0.25:
            return False
    return True


def _is_bar(lines: Pixels, colours: Sequence[Pixels], running: bool) -> bool:
    """True if each of some lines has a bar's colour; the outer ones nearly.

    Args:
        running: True if it may also be any one colour, as of a page whose colour runs to another.
    """
    off = np.full(len(lines), np.inf)
    if running:
        off = away_from_ground(lines).mean(axis=(1, 2)) * (_ALIKE / _EVEN)
    for colour in colours:
        off = np.minimum(off, np.abs(lines - colour).mean(axis=(1, 2)))
    blended = min(2, (len(off) - 1) // 2)
    return bool(off.max() < 4 * _ALIKE and off[blended : len(off) - blended].max() < _ALIKE)


def _doubts(axis: _Axis) -> list[str]:
    """What is not certain of pictures that are not of one size."""
    told = []
    if np.ptp(axis.gaps or [0]) > 2:
        told.append(f"bars between its pictures are {min(axis.gaps)} to {max(axis.gaps)} px wide")
    return told
