"""Where a film's shots begin and end, and which of their frames belong to one shot alone.

A film is read as tiny pictures, one a frame. Two things end a shot:

A cut: one frame differs from the one before far more than its neighbours do from theirs, and what
follows stays different. (After a flash the old picture comes back.) Or, where two shots have one
background: a block of the picture changes so, and for some frames around it nothing else moves.

A fade or dissolve: over some frames the picture is a mixture of the one before and the one after,
in growing shares. (A moving camera shows shifted pictures in between, which no mixture makes.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TINY", "Shot", "ShotFinder"]

Pixels = NDArray[np.float32]

TINY = (32, 18)
"""Width and height at which frames are compared, px."""
_AHEAD = 48
"""Frames that must be known behind one before it is settled: the longest mixture."""
_STEP = 64
"""Frames that are settled at a time."""
_CUT = 6.0
"""Mean change of a cut in 256 levels, at least."""
_TIMES = 3.0
"""Times the change of a cut is larger than that of the frames around it."""
_ALONE = 1.7
"""Times it is larger than that of any of the three frames before and behind it."""
_BLOCK = 3
"""Side of the blocks in which a change is looked for that is small in the whole, tiny px."""
_LOCAL = 12.0
"""Change of a block in 256 levels that is a cut, at least."""
_QUIET = 8
"""Frames before and behind such a cut in which no block changes a third as much."""
_FOOT = 5
"""Lowest rows that are left out of it: subtitles come and go there within a shot."""
_MIXED = 10.0
"""Mean difference between the pictures before and after a fade or dissolve."""
_REST = 0.22
"""Share of that difference that a mixture leaves unexplained at most."""
_LENGTHS = (*range(4, 16), *range(16, 46, 2))
"""Frames that a mixture may take, up to just under 2 s of film."""
_MOVES = 0.5
"""Mean change of a frame that is more than the noise of an encoder."""
_SLOWEST, _FASTEST = 0.2, 4.0
"""Steps of a mixture's shares, as multiples of even ones."""
_FLAT = 4.0
"""Deviation of a tiny picture below which it is a ground of one colour."""


@dataclass(frozen=True)
class Shot:
    """One shot, in frames."""

    first: int
    end: int
    """Behind its last frame."""
    faded: bool
    """True if a fade, a dissolve or a dark stretch lies before it, so that it opens a scene."""


class ShotFinder:
    """Shots, found while a film is read.

    `feed` takes one tiny picture after the other and yields shots as they are known to have ended;
    `close` yields the last one.
    """

    def __init__(self) -> None:
        self._tiny = np.zeros((0, TINY[1] * TINY[0] * 3), dtype=np.float32)
        self._base = 0
        """Number of the first frame that is kept."""
        self._new: list[Pixels] = []
        self._count = 0
        self._settled = 0
        self._open: int | None = None
        """First frame of the shot that has not ended."""
        self._faded = True

    @property
    def settled(self) -> int:
        """Frames before this one are known to belong to a shot or not."""
        return self._settled

    @property
    def count(self) -> int:
        """Frames that were fed."""
        return self._count

    def state(self) -> dict[str, Any]:
        """Numbers that, with the frames it has `kept`, make the same finder again."""
        return {
            "base": self._base,
            "count": self._count,
            "settled": self._settled,
            "open": self._open,
            "faded": self._faded,
        }

    def kept(self) -> NDArray[np.uint8]:
        """The frames that it still holds, (n, 18, 32, 3), from number `base` on."""
        rows = [self._tiny, *(row[None] for row in self._new)]
        return np.concatenate(rows).astype(np.uint8).reshape(-1, TINY[1], TINY[0], 3)

    @staticmethod
    def from_state(state: dict[str, Any], kept: NDArray[np.uint8]) -> ShotFinder:
        """The finder that was in a state."""
        finder = ShotFinder()
        finder._tiny = kept.reshape(len(kept), -1).astype(np.float32)
        finder._base, finder._count = int(state["base"]), int(state["count"])
        finder._settled, finder._faded = int(state["settled"]), bool(state["faded"])
        finder._open = None if state["open"] is None else int(state["open"])
        return finder

    def feed(self, tiny: NDArray[np.uint8]) -> Iterator[Shot]:
        """Take the next frame, (18, 32, 3)."""
        self._new.append(tiny.astype(np.float32).ravel())
        self._count += 1
        if self._count - self._settled >= _STEP + _AHEAD:
            yield from self._settle(self._count - _AHEAD)

    def close(self) -> Iterator[Shot]:
        """The film has ended."""
        yield from self._settle(self._count)
        if self._open is not None:
            yield Shot(self._open, self._count, self._faded)

    def _settle(self, until: int) -> Iterator[Shot]:
        if self._new:
            self._tiny = np.concatenate([self._tiny, np.stack(self._new)])
            self._new = []
        if len(self._tiny) < 2:
            return
        mixed, cuts = find_ends(self._tiny)
        for frame in range(self._settled, until):
            at = frame - self._base
            if mixed[at]:
                if self._open is not None:
                    yield Shot(self._open, frame, self._faded)
                self._open, self._faded = None, True
            elif cuts[at] and self._open is not None:
                yield Shot(self._open, frame, self._faded)
                self._open, self._faded = frame, False
            elif self._open is None:
                self._open = frame
        self._settled = until
        drop = max(0, until - _AHEAD - self._base)
        self._tiny, self._base = self._tiny[drop:], self._base + drop


def find_ends(tiny: Pixels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which frames are of no shot alone, and at which frames a new shot begins at once.

    Args:
        tiny: frames (n, pixels).
    """
    change = np.zeros(len(tiny), dtype=np.float32)
    change[1:] = np.abs(np.diff(tiny, axis=0)).mean(axis=1)
    spread = tiny.std(axis=1)
    mixed = spread < _FLAT
    for first, end in _mixtures(tiny, change, spread):
        mixed[first:end] = True
    cuts = np.zeros(len(tiny), dtype=np.bool_)
    jumps, places = _jumps(tiny)
    for at in np.flatnonzero((change >= _CUT) | (jumps >= _LOCAL)):
        if not mixed[at]:
            whole = change[at] >= _CUT and _is_cut(tiny, change, int(at))
            cuts[at] = whole or _is_local(tiny, jumps, places, int(at))
    return mixed, cuts


def _jumps(tiny: Pixels) -> tuple[Pixels, NDArray[np.intp]]:
    """The largest change of a block in each frame, in 256 levels, and the block's number."""
    away = np.abs(np.diff(_rows(tiny), axis=0)).mean(axis=3)
    # Sums along both sides, by shifts: blocks overlap, so that none is cut by a border.
    wide = sum(away[:, :, i : TINY[0] - _BLOCK + 1 + i] for i in range(_BLOCK))
    blocks = sum(wide[:, i : away.shape[1] - _BLOCK + 1 + i] for i in range(_BLOCK))
    blocks = np.asarray(blocks, dtype=np.float32).reshape(len(away), -1)
    places = np.concatenate([[0], blocks.argmax(axis=1)])
    jumps = np.concatenate([[0], blocks.max(axis=1) / _BLOCK**2])
    return jumps.astype(np.float32), places


def _rows(tiny: Pixels) -> Pixels:
    """Frames (n, rows, columns, 3) without their foot."""
    return tiny.reshape(-1, TINY[1], TINY[0], 3)[:, : TINY[1] - _FOOT]


def _is_local(tiny: Pixels, jumps: Pixels, places: NDArray[np.intp], at: int) -> bool:
    """True if a block changes at once and for good, while nothing moves."""
    start = max(1, at - _QUIET)
    near = np.concatenate([jumps[start:at], jumps[at + 1 : at + 1 + _QUIET]])
    # Whatever moves into a place is seen to move before or after it.
    if jumps[at] < _LOCAL or jumps[at] < _TIMES * near.max(initial=0) + 2:
        return False
    top, left = divmod(int(places[at]), TINY[0] - _BLOCK + 1)
    seen = _rows(tiny[start - 1 : at + 1 + _QUIET])
    block = seen[:, top : top + _BLOCK, left : left + _BLOCK].reshape(len(seen), -1)
    before, behind = np.split(block, [at - start + 1])
    back = np.abs(behind[:, None] - before[None]).mean(axis=2).min()
    return bool(back >= 0.5 * jumps[at])


def _is_cut(tiny: Pixels, change: Pixels, at: int) -> bool:
    near = np.concatenate([change[max(1, at - 3) : at], change[at + 1 : at + 4]])
    around = np.concatenate([change[max(1, at - 8) : at], change[at + 1 : at + 9]])
    # A camera that whips from side to side changes as much for several frames.
    if not len(near) or change[at] < _ALONE * near.max():
        return False
    if change[at] < _TIMES * float(np.median(around)) + 2:
        return False
    # A flash lasts a few frames, and before and behind it there is one picture.
    before, behind = tiny[max(0, at - 3) : at], tiny[at : at + 6]
    back = np.abs(behind[:, None] - before[None]).mean(axis=2).min()
    return bool(back >= 0.5 * change[at])


def _mixtures(tiny: Pixels, change: Pixels, spread: Pixels) -> Iterator[tuple[int, int]]:
    """Stretches of frames that mix what is before with what is behind them."""
    at = 1
    while at < len(tiny) - _LENGTHS[0]:
        end = _mixture_end(tiny, change, spread, at) if change[at] > _MOVES else 0
        if end:
            yield at, end
        at = max(end, at) + 1


def _mixture_end(tiny: Pixels, change: Pixels, spread: Pixels, first: int) -> int:
    """The frame behind the longest mixture that begins at a frame; 0 if none does."""
    before = tiny[first - 1]
    calm = change[max(1, first - 7) : first - 1]
    # Nearly all frames of a moving camera end here.
    if not _livelier(float(change[first]), calm, spread[first - 1]):
        return 0
    ends = [first + length for length in _LENGTHS if first + length < len(tiny)]
    sizes = np.abs(tiny[ends] - before).mean(axis=1)
    for behind, size in sorted(zip(ends, sizes, strict=True), reverse=True):
        if size < _MIXED:
            continue
        # Over so few numpy's own takes ten times as long.
        inside = median(change[first : behind + 1].tolist())
        if not _livelier(inside, calm, spread[first - 1]):
            continue
        if not _livelier(inside, change[behind + 2 : behind + 8], spread[behind]):
            continue
        away = tiny[behind] - before
        inner = tiny[first:behind] - before
        shares = inner @ away / float(away @ away)
        rest = np.abs(inner - shares[:, None] * away).mean(axis=1) / size
        steps = np.diff(np.concatenate([[0], shares, [1]])) * (len(shares) + 1)
        if rest.max() < _REST and steps.min() > _SLOWEST and steps.max() < _FASTEST:
            return int(behind)
    return 0


def _livelier(inside: float, outside: Pixels, spread: float) -> bool:
    """True if a stretch changes more than what is beside it, or goes to or from a ground, whose
    pixels have a small deviation."""
    if not len(outside) or spread < 3 * _FLAT:
        return True
    return bool(inside > 2 * median(outside.tolist()) + 0.5)
