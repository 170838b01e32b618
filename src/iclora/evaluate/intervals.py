"""How sure a figure is: means with bootstrap intervals, alone and set against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap", "compare"]

_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval it lies in with 95% confidence; none if one value cannot tell."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def telling(self) -> bool:
        """Whether the interval leaves zero out: for a difference, that it is one."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def bootstrap(
    values: Sequence[float], seed: int = 0, groups: Sequence[object] | None = None
) -> Estimate:
    """The mean of values and its percentile bootstrap interval.

    Args:
        values: one per set (not per panel: panels of a set depend on each other).
        groups: which values belong together, such as the prompt of each: sets of one prompt
            depend on each other as well, so whole groups are drawn. With a single group its values
            are drawn, and the interval speaks of that prompt alone.
    Raises: ValueError if there are none.
    Source: Efron & Tibshirani 1993, chapter 13; drawing groups, Davison & Hinkley 1997, 3.8.
    """
    if not len(values):
        raise ValueError("no values")
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return Estimate(float(found.mean()), None, None, len(found))
    rng = np.random.default_rng(seed)
    totals, sizes = found, np.ones(len(found))
    if groups is not None and len(set(groups)) > 1:
        names = list(dict.fromkeys(groups))
        places = np.array([names.index(group) for group in groups])
        totals, sizes = np.bincount(places, found), np.bincount(places).astype(float)
    drawn = rng.integers(0, len(totals), (_DRAWS, len(totals)))
    means = totals[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(found.mean()), float(low), float(high), len(found))


def compare(
    one: Mapping[str, float], other: Mapping[str, float], groups: Mapping[str, object] | None = None
) -> Estimate | None:
    """`other` minus `one` over what both were asked for: pairs, so that hard prompts cancel.

    Args:
        one, other: values by the name of what was asked (prompt and seed).
        groups: see `bootstrap`, by the same names.
    Returns: None if they have nothing in common.
    """
    shared = [name for name in one if name in other]
    if not shared:
        return None
    together = [groups[name] for name in shared] if groups else None
    return bootstrap([other[name] - one[name] for name in shared], groups=together)
