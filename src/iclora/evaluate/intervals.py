"""How sure a figure is: means with bootstrap intervals, alone and set against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap", "compare"]

_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval it lies in with 95% confidence; none where one value cannot tell."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def telling(self) -> bool:
        """Whether the interval leaves zero out: for a difference, that it is one."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of independent values and its percentile bootstrap interval.

    Args:
        values: one per set (not per panel: panels of a set depend on each other).
    Raises: ValueError if there are none.
    Source: Efron & Tibshirani 1993, chapter 13.
    """
    if not len(values):
        raise ValueError("no values")
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return Estimate(float(found.mean()), None, None, len(found))
    rng = np.random.default_rng(seed)
    means = found[rng.integers(0, len(found), (_DRAWS, len(found)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(found.mean()), float(low), float(high), len(found))


def compare(one: Mapping[str, float], other: Mapping[str, float]) -> Estimate | None:
    """`other` minus `one` over what both were asked for: pairs, so that hard prompts cancel.

    Args:
        one, other: values by the name of what was asked (prompt and seed).
    Returns: None if they have nothing in common.
    """
    shared = [name for name in one if name in other]
    return bootstrap([other[name] - one[name] for name in shared]) if shared else None
