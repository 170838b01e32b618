"""Pictures that look alike: near-duplicates, and families of one subject."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from iclora.collect.picture import Look

__all__ = ["alike", "families", "near_duplicates", "same_picture", "unlike"]

_BITS = 10
"""Bits of 64 in which the hashes of one picture, scaled and compressed, differ at most."""
_TONE = 9.0
"""The same for its tones: mean difference in 256 levels."""
_WORST = 40.0
"""And for the tone that differs most: a small thing that moved changes few tones a lot."""
_CHUNK = 512


def same_picture(one: Look, other: Look) -> bool:
    """True if two looks are of one picture, scaled or compressed otherwise."""
    if (one.hash ^ other.hash).bit_count() > _BITS or not _one_shape(one, other):
        return False
    off = np.abs(one.tones.astype(np.int16) - other.tones)
    return bool(off.mean() <= _TONE and off.max() <= _WORST)


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
    """How unlike two pictures are: 0 for the same, about 1 for strangers."""
    shared = float(np.minimum(one.shades, other.shades).sum())
    tones = float(np.abs(one.tones.astype(np.int16) - other.tones).mean()) / 96
    return 0.6 * (1 - shared) + 0.4 * min(1.0, tones)


def alike(looks: Sequence[Look]) -> NDArray[np.float32]:
    """How unlike every two pictures are, as by `unlike`: (n, n)."""
    if not looks:
        return np.zeros((0, 0), dtype=np.float32)
    shades = np.array([look.shades for look in looks], dtype=np.float32)
    tones = np.array([look.tones.ravel() for look in looks], dtype=np.int16)
    found = np.zeros((len(looks), len(looks)), dtype=np.float32)
    for i in range(len(looks)):
        shared = np.minimum(shades[i], shades[i:]).sum(axis=1)
        away = np.abs(tones[i] - tones[i:]).mean(axis=1) / 96
        found[i, i:] = found[i:, i] = 0.6 * (1 - shared) + 0.4 * np.minimum(1, away)
    return found


def families(looks: Sequence[Look], most: float = 0.3) -> list[list[int]]:
    """Group pictures so that the members of a group look alike on average.

    Groups are joined, nearest first, while the mean difference between their members is below
    `most` (average linkage).

    Returns: indices of each group, in order, larger groups and earlier ones first.
    """
    away = alike(looks).astype(np.float64)
    np.fill_diagonal(away, np.inf)
    members: dict[int, list[int]] = {i: [i] for i in range(len(looks))}
    nearest = away.argmin(axis=1) if len(looks) else np.zeros(0, dtype=np.intp)
    least = away[np.arange(len(looks)), nearest] if len(looks) else np.zeros(0)
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
