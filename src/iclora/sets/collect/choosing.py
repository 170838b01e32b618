"""Which of the found sets are taken: no set twice, the best ones, and those unlike each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iclora.sets.collect.likeness import near_duplicates, root_shares
from iclora.sets.collect.picture import Look

__all__ = ["spread_out", "without_twins"]


def without_twins(sets: Sequence[Sequence[Look]], scores: Sequence[float]) -> dict[int, int]:
    """Sets that show what a better set shows already.

    A set is another's twin if each of its pictures is a near-duplicate of one of the other's.

    Args:
        sets: the looks of each set's pictures.
        scores: of each set; of twins the better one stays, of equals the earlier.
    Returns: the set that stays in its place, by index, for each that is left out.
    """
    owner = [(number, at) for number, looks in enumerate(sets) for at in range(len(looks))]
    shared: dict[tuple[int, int], set[int]] = defaultdict(set)
    for a, b in near_duplicates([sets[number][at] for number, at in owner]):
        (one, at), (other, place) = owner[a], owner[b]
        if one != other:
            shared[one, other].add(at)
            shared[other, one].add(place)
    left: dict[int, int] = {}
    order = sorted(range(len(sets)), key=lambda i: (-scores[i], i))
    rank = {number: place for place, number in enumerate(order)}
    twins: dict[int, list[int]] = defaultdict(list)
    for (one, other), places in shared.items():
        if rank[other] < rank[one] and len(places) == len(sets[one]):
            twins[one].append(other)
    for number in order:
        better = [other for other in twins[number] if other not in left]
        if better:
            left[number] = min(better, key=rank.__getitem__)
    return left


def spread_out(
    sets: Sequence[Sequence[Look]],
    scores: Sequence[float],
    keep: int,
    rows: NDArray[np.float32] | None = None,
) -> list[int]:
    """The best sets that are also diverse: each next one is the best times the furthest away.

    Args:
        sets: the looks of each set's pictures.
        rows: what a model sees in each set, (sets, channels); by default their looks are compared.
    Returns: indices of at most `keep` sets, in the order in which they were chosen.
    """
    if not sets:
        return []
    if rows is None:
        means = [np.mean([_features(look) for look in found], axis=0) for found in sets]
        looks = np.array(means, dtype=np.float32)
    else:
        looks = rows
    worth = np.asarray(scores, dtype=np.float64)
    first = int(worth.argmax())
    chosen = [first]
    near = np.linalg.norm(looks - looks[first], axis=1)
    while len(chosen) < min(keep, len(sets)):
        value = (worth + 1e-6) * (near + 1e-6)
        value[chosen] = -1.0
        best = int(value.argmax())
        chosen.append(best)
        near = np.minimum(near, np.linalg.norm(looks - looks[best], axis=1))
    return chosen


def _features(look: Look) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    tones = look.tones.astype(np.float32).ravel() / 255
    return np.concatenate([tones / tones.size**0.5, root_shares(look)]).astype(np.float32)
