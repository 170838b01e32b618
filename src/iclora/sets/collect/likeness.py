"""Pictures that look alike: near-duplicates, and families of one subject."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.sets.collect.picture import Look

__all__ = [
    "Seer",
    "all_unlike",
    "families",
    "grouped",
    "is_grey",
    "near_duplicates",
    "root_shares",
    "same_picture",
    "unlike",
]

_BITS = 8
"""Bits of 64 in which the hashes of one picture, scaled and compressed, differ at most; 2 do."""
_TONE = 2.5
"""The same for its tones: mean difference in 256 levels; 1 is usual."""
_WORST = 12.0
"""And for the tone that differs most: a small thing that moved changes few tones a lot."""
_LEVELS = 8
"""Of each channel, of the colours that are counted."""
_GREY = 10
"""Difference of the channels of a tone that is a colour, in 256 levels."""
_CHUNK = 512


@dataclass(frozen=True)
class Seer:
    """A model that sees how alike pictures are; whoever may import torch opens it."""

    embed: Callable[[Sequence[Image.Image]], NDArray[np.float32]]
    """Of RGB pictures, a row of length 1 each: (count, channels)."""
    most: float
    """1 less the cosine of two pictures of one subject, on average, at most."""


def same_picture(one: Look, other: Look, times: float = 1) -> bool:
    """True if two looks are of one picture, scaled or compressed otherwise.

    Args:
        times: as much of the difference passes; 2 or 3 for pictures that show nearly the same.
    """
    if (one.hash ^ other.hash).bit_count() > times * _BITS or not _one_shape(one, other):
        return False
    off = np.abs(one.tones.astype(np.int16) - other.tones)
    return bool(off.mean() <= times * _TONE and off.max() <= times * _WORST)


def _one_shape(one: Look, other: Look) -> bool:
    (a, b), (c, d) = one.size, other.size
    return abs(a * d - b * c) <= 0.04 * max(a * d, b * c) + max(a, b, c, d)


def near_duplicates(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Pairs of indices of the same picture, the smaller index first."""
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    for start in range(0, len(hashes), _CHUNK):
        rows = hashes[start : start + _CHUNK, None]
        # Only what comes behind: every pair once.
        off = np.bitwise_count(rows ^ hashes[None, start:])
        for row, column in np.argwhere(off <= _BITS):
            one, other = start + int(row), start + int(column)
            if one < other and same_picture(looks[one], looks[other]):
                yield one, other


def unlike(one: Look, other: Look) -> float:
    """How unlike two pictures are: 0 for the same colours, 1 if they share none.

    It is the Hellinger distance between their shares of 512 colours. Where a colour lies does not
    matter: another shot of the same people in the same place has the same colours elsewhere.
    """
    return float(all_unlike([one, other])[0, 1])


def all_unlike(looks: Sequence[Look]) -> NDArray[np.float32]:
    """How unlike every two pictures are, as by `unlike`: (n, n)."""
    if not looks:
        return np.zeros((0, 0), dtype=np.float32)
    roots = np.array([root_shares(look) for look in looks])
    away: NDArray[np.float32] = np.sqrt(np.maximum(0, 1 - roots @ roots.T))
    return away


def root_shares(look: Look) -> NDArray[np.float32]:
    """Square roots of a picture's shares of 512 colours, (512,); their squares add up to 1.

    A tone counts for the eight colours around it, so that no border splits what looks the same.
    """
    tones = look.tones.reshape(-1, 3).astype(np.float64)
    place = tones * ((_LEVELS - 1) / 255)
    low = np.minimum(place.astype(np.int64), _LEVELS - 2)
    above = place - low
    shares = np.zeros(_LEVELS**3)
    for corner in range(8):
        bits = np.array([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        weights = np.where(bits, above, 1 - above).prod(axis=1)
        bins = (low + bits) @ (_LEVELS**2, _LEVELS, 1)
        shares += np.bincount(bins, weights=weights, minlength=len(shares))
    found: NDArray[np.float32] = np.sqrt(shares / len(tones)).astype(np.float32)
    return found


def is_grey(look: Look) -> bool:
    """True if a picture has no colours to be compared by."""
    return bool(np.ptp(look.tones.astype(np.int16), axis=2).max() < _GREY)


def families(looks: Sequence[Look], most: float = 0.22) -> list[list[int]]:
    """Group pictures so that the members of a group look alike on average.

    Groups are joined, nearest first, while the mean difference between their members is below
    `most` (average linkage).

    Returns: indices of each group, in order, larger groups and earlier ones first.
    """
    return grouped(all_unlike(looks), most)


def grouped(unlikeness: NDArray[np.float32], most: float) -> list[list[int]]:
    """`families` of pictures whose differences are known: (n, n)."""
    away = unlikeness.astype(np.float64)
    count = len(away)
    np.fill_diagonal(away, np.inf)
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    nearest = away.argmin(axis=1) if count else np.zeros(0, dtype=np.intp)
    least = away[np.arange(count), nearest] if count else np.zeros(0)
    while len(members) > 1:
        one = int(least.argmin())
        if not least[one] < most:
            break
        other = int(nearest[one])
        a, b = len(members[one]), len(members[other])
        joined = (a * away[one] + b * away[other]) / (a + b)
        joined[one] = joined[other] = np.inf
        away[one], away[:, one] = joined, joined
        away[other], away[:, other], least[other] = np.inf, np.inf, np.inf
        members[one] += members.pop(other)
        # Only rows that pointed at either of the two can have a new nearest neighbour further away.
        for row in [one, *(i for i in members if nearest[i] in (one, other))]:
            nearest[row] = away[row].argmin()
            least[row] = away[row, nearest[row]]
        closer = joined < least
        nearest[closer], least[closer] = one, joined[closer]
    groups: dict[int, list[int]] = defaultdict(list)
    for root, found in members.items():
        groups[root] = sorted(found)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))
